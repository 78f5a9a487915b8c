"""What a flood of sign-ins from one network costs the others.

    python tests/benchmarks/sign_ins.py [--clients 70] [--seconds 10] [--networks 1]
    ... --root ../other-checkout

So many clients sign in without pause, with the right password, from each of the networks. A probe
of another network signs in meanwhile, and waits a second after each refusal. The server trusts
X-Forwarded-For, so that each client can choose its address. Prints the statuses, and how long the
probe waited.
"""

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "correct horse"


def sign_in(port, address):
    """The status of a sign-in, and how many seconds it took."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    began = time.monotonic()
    connection.request("POST", "/authenticate", json.dumps({"username": "a", "password": PASSWORD}),
                       {"Content-Type": "application/json", "X-Forwarded-For": address})
    status = connection.getresponse().status
    connection.close()
    return status, time.monotonic() - began


def measure(port, args):
    flood, stop = Counter(), threading.Event()

    def flood_from(address):
        while not stop.is_set():
            flood[sign_in(port, address)[0]] += 1

    threads = [threading.Thread(target=flood_from, args=[f"192.0.2.{1 + number % args.networks}"])
               for number in range(args.clients * args.networks)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    probes, end = [], time.monotonic() + args.seconds
    while time.monotonic() < end:
        probes.append(sign_in(port, "198.51.100.1"))
        if probes[-1][0] != 200:
            time.sleep(1)
    stop.set()
    for thread in threads:
        thread.join()
    waited = sorted(seconds for status, seconds in probes if status == 200) or [float("nan")]
    print(f"probe: {dict(Counter(status for status, _ in probes))},"
          f" sign-in takes {waited[len(waited) // 2]:.2f} s, at most {waited[-1]:.2f} s")
    print(f"flood of {args.clients} clients in each of {args.networks} networks: {dict(flood)}")


def main():
    parser = argparse.ArgumentParser(description="Flood the server with sign-ins.")
    parser.add_argument("--clients", type=int, default=70)
    parser.add_argument("--networks", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--root", type=Path, default=ROOT)
    args = parser.parse_args()
    command = [sys.executable, str(args.root.resolve() / "jwtserver.py")]
    with tempfile.TemporaryDirectory() as folder:
        environ = {**os.environ, "JWTSERVER_TRUSTED_PROXIES": "1"}
        subprocess.run([*command, "user", "add", "a", "--password-stdin"], input=PASSWORD,
                       text=True, cwd=folder, env=environ, check=True, capture_output=True)
        with open(Path(folder) / "log", "w") as log:
            process = subprocess.Popen([*command, "--port", "0"], cwd=folder, env=environ,
                                       text=True, stdout=subprocess.PIPE, stderr=log)
        try:
            measure(int(process.stdout.readline().split("://")[1].split()[0].rpartition(":")[2]),
                    args)
        finally:
            process.terminate()
            process.stdout.read()
            process.wait()


if __name__ == "__main__":
    main()
