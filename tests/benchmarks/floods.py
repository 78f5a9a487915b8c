"""What floods cost a signed-in user: `python tests/benchmarks/floods.py [--rounds 3]`.

A probe sends a guarded GET each 10 ms over one connection: without load, while wrk signs in from
many networks with wrong passwords, and while wrk sends tokens with a wrong signature. The server
trusts X-Forwarded-For, so that each request of the floods comes from another network. The loads
take turns in each round, and the medians are printed. Then: what a second of PBKDF2 costs both
sides. Needs wrk.
"""

import argparse
import http.client
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import wsgi_auth  # noqa: E402

PASSWORD = "correct horse"
SECRET = "k" * 64
CLIENTS = 64
COUNT_STATUSES = """
statuses = {}
function setup(thread) only = thread end
function response(status) statuses[status] = (statuses[status] or 0) + 1 end
function done()
  for status, count in pairs(only:get("statuses")) do print("status", status, count) end
end
local number = 0
local function network()
  number = number + 1
  return string.format("10.%d.%d.1", math.floor(number / 256) % 256, number % 256)
end
"""
BAD_TOKENS = """
function request()
  return wrk.format("GET", "/protected", {["X-Forwarded-For"] = network(),
    ["Authorization"] = string.format("Bearer HEADER.PAYLOAD.%043d", number * 4)})
end
"""
FLOODS = {  # Lua for wrk
    "nothing": None,
    "sign-ins": """
function request()
  return wrk.format("POST", "/authenticate",
    {["X-Forwarded-For"] = network(), ["Content-Type"] = "application/json"},
    '{"username": "user ' .. number .. '", "password": "wrong"}')
end
""",
    "at most 1,000 bad tokens per second": f"""{BAD_TOKENS}
function delay() return {CLIENTS} end  -- milliseconds
""",
    "bad tokens": BAD_TOKENS,
}


class Load:
    """wrk, which runs one of the floods."""

    def __init__(self, port, script, seconds):
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            ["wrk", "-t1", f"-c{CLIENTS}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script),
             f"http://127.0.0.1:{port}/"], stdout=subprocess.PIPE, text=True)

    def end(self):
        """How many responses per second had each status, and wrk's processor time for each."""
        before = _children_seconds()
        output = self.process.communicate()[0]
        seconds = time.monotonic() - self.began
        counts = {int(status): int(count) for status, count
                  in re.findall(r"(?m)^status\s+(\d+)\s+(\d+)", output)}
        cost = (_children_seconds() - before) / sum(counts.values())
        return {status: count / seconds for status, count in counts.items()}, cost


def _children_seconds():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def probe(port, token, seconds):
    """Milliseconds of each request of a signed-in user."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    times, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.perf_counter()
        connection.request("GET", "/protected", headers={"Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        assert response.status == 200 and response.read()
        times.append((time.perf_counter() - began) * 1000)
        time.sleep(0.01)
    connection.close()
    return times


def sign_in(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/authenticate",
                       json.dumps({"username": "a", "password": PASSWORD}),
                       {"Content-Type": "application/json"})
    token = json.loads(connection.getresponse().read())["token"]
    connection.close()
    return token


def processor_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def await_rest(process):
    """Wait until the server has answered what a flood has left."""
    before = None
    while before != (before := processor_seconds(process.pid)):
        time.sleep(0.5)


def measure(process, port, token, script, seconds):
    """Times of the probe, cores that the server uses, statuses per second, wrk's cost of one."""
    await_rest(process)
    load = Load(port, script, seconds + 2) if script else None
    time.sleep(1)
    before = processor_seconds(process.pid)
    times = probe(port, token, seconds)
    cores = (processor_seconds(process.pid) - before) / seconds
    return (times, cores, *(load.end() if load else ({}, 0)))


def write_scripts(folder, token):
    header, payload, _ = token.split(".")
    for name, flood in FLOODS.items():
        if flood is None:
            yield name, None
            continue
        script = Path(folder) / f"{name}.lua"
        script.write_text(COUNT_STATUSES + flood.replace("HEADER.PAYLOAD", f"{header}.{payload}"))
        yield name, script


def print_floods(measured):
    print("| flood | p50, ms | p99, ms | slowest, ms | statuses per second | cores of the server |"
          "\n| --- | ---: | ---: | ---: | --- | ---: |")
    for name, rounds in measured.items():
        times = [sorted(times) for times, *_ in rounds]
        figures = [statistics.median(each[int(len(each) * share)] for each in times)
                   for share in (0.5, 0.99, 0.9999)]
        statuses = ", ".join(
            f"{status}: {rate:.0f}" for status, rate in sorted(rounds[-1][2].items()))
        cores = statistics.median(cores for _, cores, *_ in rounds)
        print(f"| {name} |", " | ".join(f"{figure:.1f}" for figure in figures),
              f"| {statuses or '-'} | {cores:.2f} |")


def print_costs(request_seconds):
    encoded = wsgi_auth.hash_password(PASSWORD)
    began = time.process_time()
    for _ in range(5):
        wsgi_auth.verify_password("wrong", encoded)
    check_seconds = (time.process_time() - began) / 5
    print("\n| one second of PBKDF2 on one core | |\n| --- | ---: |")
    for label, figure in (
        ("processor time of one check, ms", check_seconds * 1000),
        ("passwords that the server checks", 1 / check_seconds),
        ("passwords that a thief of the database tries on such a core", 1 / check_seconds),
        ("processor time of a client that sends so many passwords, ms",
         request_seconds / check_seconds * 1000),
    ):
        print(f"| {label} | {figure:.1f} |")


def main():
    parser = argparse.ArgumentParser(description="Flood the server beside a signed-in user.")
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    command = [sys.executable, str(ROOT / "jwtserver.py")]
    with tempfile.TemporaryDirectory() as folder:
        environ = {**os.environ, "JWTSERVER_TRUSTED_PROXIES": "1", "JWTSERVER_SECRET": SECRET}
        subprocess.run([*command, "user", "add", "a", "--password-stdin"], input=PASSWORD,
                       text=True, cwd=folder, env=environ, check=True, capture_output=True)
        process = subprocess.Popen([*command, "--port", "0"], cwd=folder, env=environ, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            line = process.stdout.readline()
            port = int(line.split("://")[1].split()[0].rpartition(":")[2])
            token = sign_in(port)
            scripts = dict(write_scripts(folder, token))
            measured = {name: [] for name in scripts}
            for _ in range(args.rounds):
                for name, script in scripts.items():
                    measured[name].append(measure(process, port, token, script, args.seconds))
        finally:
            process.terminate()
            process.stdout.read()
            process.wait()
            process.stdout.close()
    print_floods(measured)
    print_costs(measured["bad tokens"][-1][3])  # a sign-in costs a client the same


if __name__ == "__main__":
    main()
