"""What a request costs over HTTP, beside the tutorial's Express app and Fastify.

    npm ci --prefix tests/benchmarks/node
    python tests/benchmarks/http_server.py [--rounds 5] [--seconds 4]
    python tests/benchmarks/http_server.py --logins

Guarded `GET /protected` by wrk over 16 connections that are kept, the server on one core and wrk on
another; the servers take turns in each round, and the medians are printed. With --logins: a probe
each 10 ms while 8 clients sign in without pause; memory at rest; time to the first answer. Needs
wrk, taskset, node and npm; installs nothing itself.
"""

import argparse
import contextlib
import http.client
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SECRET = "0123456789abcdef" * 4
PASSWORD = "correct horse"
PORT = 3917
SERVERS = {
    "jwtserver": ([sys.executable, str(HERE.parents[1] / "jwtserver.py"), "--port", str(PORT)], {}),
    "Fastify, @fastify/jwt": (["node", str(HERE / "node/fastify.js")], {}),
    "Express": (["node", str(HERE / "node/express.js")], {}),
    "Express, KeyObject": (["node", str(HERE / "node/express.js")], {"KEY": "object"}),
}


def call(method, path, body=None, **headers):
    """Status and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read() or "null")


def sign_in():
    body = json.dumps({"username": "demo", "password": PASSWORD})
    status, answer = call("POST", "/authenticate", body, **{"Content-Type": "application/json"})
    assert status == 200, answer
    return answer["token"]


@contextlib.contextmanager
def running(name, core=None):
    """Start a server, with the user demo; yield its process and the seconds to its first answer."""
    command, environ = SERVERS[name]
    environ = {**os.environ, **environ, "SECRET": SECRET, "PASSWORD": PASSWORD, "PORT": str(PORT),
               "NODE_ENV": "production", "JWTSERVER_SECRET": SECRET}
    with tempfile.TemporaryDirectory() as folder:
        if name == "jwtserver":
            subprocess.run([*command[:2], "user", "add", "demo", "--password-stdin"], check=True,
                           input=PASSWORD, text=True, cwd=folder, env=environ)
        start = time.perf_counter()
        process = subprocess.Popen(
            [*(["taskset", "-c", core] if core else []), *command], cwd=folder, env=environ,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while True:
                with contextlib.suppress(OSError):
                    status, _ = call("GET", "/protected")
                    break
                time.sleep(0.005)
            assert status == 401
            yield process, time.perf_counter() - start
        finally:
            process.terminate()
            process.wait()


def requests_per_second(name, seconds):
    with running(name, core="0"):
        authorization = f"Authorization: Bearer {sign_in()}"
        for duration in (1, seconds):  # the first to warm up
            output = subprocess.run(
                ["taskset", "-c", "1", "wrk", "-t1", "-c16", f"-d{duration}s", "-H", authorization,
                 f"http://127.0.0.1:{PORT}/protected"],
                check=True, capture_output=True, text=True).stdout
        assert "Non-2xx" not in output and "Socket errors" not in output, output
        return float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1])


def throughput(rounds, seconds):
    measured = [{name: requests_per_second(name, seconds) for name in SERVERS}
                for _ in range(rounds)]
    print("\n| guarded GET /protected | requests/s | jwtserver to it |\n| --- | ---: | ---: |")
    for name in SERVERS:
        rate = statistics.median(one[name] for one in measured)
        ratio = statistics.median(one["jwtserver"] / one[name] for one in measured)
        print(f"| {name} | {rate:.0f} | {ratio:.2f} |")
    print(f"\nMedians of {rounds} rounds of {seconds} s, 16 connections.")


def probe(token, seconds):
    """Milliseconds of each of the requests that are made every 10 ms."""
    times, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.perf_counter()
        assert call("GET", "/protected", Authorization=f"Bearer {token}")[0] == 200
        times.append((time.perf_counter() - start) * 1000)
        time.sleep(0.01)
    return sorted(times)


def under_logins(name, seconds):
    with running(name) as (process, first):
        token = sign_in()
        status = Path(f"/proc/{process.pid}/status").read_text()
        memory = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024
        done, stop = [], threading.Event()

        def login():
            while not stop.is_set():
                sign_in()
                done.append(1)

        threads = [threading.Thread(target=login) for _ in range(8)]
        for thread in threads:
            thread.start()
        times = probe(token, seconds)
        stop.set()
        for thread in threads:
            thread.join()
    p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
    print(f"| {name} | {p50:.1f} | {p99:.1f} | {times[-1]:.1f} | {len(done) / seconds:.1f} "
          f"| {memory:.0f} | {first * 1000:.0f} |")


def main():
    parser = argparse.ArgumentParser(description="Compare over HTTP.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--logins", action="store_true")
    args = parser.parse_args()
    missing = [tool for tool in ("wrk", "taskset", "node") if not shutil.which(tool)]
    if missing or not (HERE / "node/node_modules").exists():
        sys.exit(f"Missing: {', '.join(missing) or 'npm ci --prefix tests/benchmarks/node'}")
    node = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip()
    packages = json.loads((HERE / "node/package.json").read_text())["dependencies"]
    print(f"CPython {platform.python_version()}, node {node},"
          f" {', '.join(f'{name} {version}' for name, version in packages.items())}")
    if not args.logins:
        throughput(args.rounds, args.seconds)
        return
    print("\n| while 8 clients sign in | p50 ms | p99 ms | max ms | sign-ins/s | memory at rest, MB"
          " | first answer, ms |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in SERVERS:
        under_logins(name, 2 * args.seconds)


if __name__ == "__main__":
    main()
