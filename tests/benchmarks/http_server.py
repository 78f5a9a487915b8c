"""What a request costs over HTTP, beside the tutorial's Express app and Fastify.

    npm ci --prefix tests/benchmarks/node
    python tests/benchmarks/http_server.py [--rounds 5] [--seconds 4] [--vary]
    python tests/benchmarks/http_server.py --logins

Guarded `GET /protected` by wrk over 16 connections that are kept, the server on one core and wrk on
another; the servers take turns in each round, and the medians are printed. With --vary, no two
requests have the same head. With --logins: a probe each 10 ms while 8 clients sign in without
pause; memory at rest; time to the first answer. Needs wrk, taskset, node and npm; installs nothing
itself. `compare.py` has the servers of Python as well.
"""

import argparse
import contextlib
import http.client
import json
import os
import platform
import re
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import peers

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import wsgi_auth  # noqa: E402

SECRET = "0123456789abcdef" * 4
PASSWORD = "correct horse"
PORT = 3917
GUNICORN = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{PORT}", "--workers", "1",
            "--worker-class", "gthread", "--threads", "100"]
GRANIAN = [sys.executable, "-m", "granian", "--interface", "wsgi", "--host", "127.0.0.1", "--port",
           str(PORT), "--workers", "1", "--blocking-threads", "100"]
LIMIT = "a bare loop"
SERVERS = {  # what starts them, and in which environment
    "jwtserver": ([sys.executable, str(HERE.parents[1] / "jwtserver.py"), "--port", str(PORT)], {}),
    "Fastify, @fastify/jwt": (["node", str(HERE / "node/fastify.js")], {}),
    "Express": (["node", str(HERE / "node/express.js")], {}),
    "Express, KeyObject": (["node", str(HERE / "node/express.js")], {"KEY": "object"}),
    "jwtserver under gunicorn": (
        [*GUNICORN, "jwtserver:application"], peers.environ_of("gunicorn")),
    "jwtserver under granian": ([*GRANIAN, "jwtserver:application"], peers.environ_of("granian")),
    "Flask, Flask-JWT-Extended": ([*GUNICORN, "flask_app:app"], peers.environ_of("Flask")),
    "Django, Simple JWT": ([*GUNICORN, "django_app:app"], peers.environ_of("Django")),
    "FastAPI, PyJWT": (
        [sys.executable, "-m", "uvicorn", "--port", str(PORT), "--no-access-log",
         "--log-level", "warning", "fastapi_app:app"], peers.environ_of("FastAPI")),
    "Go, golang-jwt": ([str(peers.GO_SERVER)], {}),
    "Bun, fast-jwt": ([peers.BUN, str(HERE / "node/bun.js")], {}),
    "Bun, Hono": ([peers.BUN, str(HERE / "node/hono.js")], {}),
    LIMIT: ([sys.executable, str(HERE / "python/bare_loop.py")], {}),
}
# These have no users, and get a token that `make_token` makes.
WITHOUT_SIGN_IN = list(SERVERS)[-5:]
VARY = ["-s", str(HERE / "vary.lua")]  # an option of wrk: no two requests have the same headers
OF_NODE = list(SERVERS)[:4]


class Rest(NamedTuple):
    """How a server does at rest, and while others sign in."""

    memory: float  # MB
    first: float  # ms
    p50: float = 0  # ms
    p99: float = 0
    slowest: float = 0
    logins: float = 0  # a second


def call(method, path, body=None, **headers):
    """Status and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()


def sign_in():
    body = json.dumps({"username": "demo", "password": PASSWORD})
    status, answer = call("POST", "/authenticate", body, **{"Content-Type": "application/json"})
    assert status == 200, answer
    answer = json.loads(answer)
    return answer.get("token") or answer["access"]


def make_token(lifetime, secret=SECRET):
    """A token with the claims of jwtserver's tokens."""
    now, random = int(time.time()), secrets.token_urlsafe(16)
    return wsgi_auth.encode({"sub": "demo", "username": "demo", "sid": random, "iat": now,
                             "exp": now + lifetime, "jti": random}, secret)


def valid_token(name):
    """A token that this server accepts. It must refuse an expired and a forged token."""
    for token in (make_token(-60), make_token(3600, SECRET[::-1])):
        status, _ = call("GET", "/protected", Authorization=f"Bearer {token}")
        assert status in (401, 422) or name == LIMIT, (name, status)
    return make_token(3600) if name in WITHOUT_SIGN_IN else sign_in()


@contextlib.contextmanager
def running(name, core=None):
    """Start a server, with the user demo; yield its process and the seconds to its first answer."""
    command, environ = SERVERS[name]
    environ = {**os.environ, **environ, "SECRET": SECRET, "PASSWORD": PASSWORD, "PORT": str(PORT),
               "NODE_ENV": "production", "JWTSERVER_SECRET": SECRET}
    with tempfile.TemporaryDirectory() as folder:
        if name.startswith("jwtserver"):
            # An older release cannot use the database of a newer one.
            own = command if name == "jwtserver before" else SERVERS["jwtserver"][0]
            subprocess.run([*own[:2], "user", "add", "demo", "--password-stdin"], check=True,
                           input=PASSWORD, text=True, cwd=folder, env=environ,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", PORT)), f"port {PORT} is taken"
        start = time.perf_counter()
        process = subprocess.Popen(
            [*(["taskset", "-c", core] if core else []), *command], cwd=folder, env=environ,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while True:
                with contextlib.suppress(OSError):
                    status, _ = call("GET", "/protected")
                    break
                assert process.poll() is None, f"{name} has ended"
                time.sleep(0.005)
            assert status == 401 or name == LIMIT
            yield process, time.perf_counter() - start
        finally:
            process.terminate()
            process.wait()


def requests_per_second(name, seconds, *options):
    with running(name, core="0"):
        authorization = f"Authorization: Bearer {valid_token(name)}"
        for duration in (1, seconds):  # the first to warm up
            load = subprocess.run(
                ["taskset", "-c", "1", "wrk", "-t1", "-c16", f"-d{duration}s", "-H", authorization,
                 *options, f"http://127.0.0.1:{PORT}/protected"],
                capture_output=True, text=True)
            assert load.returncode == 0, (name, load.stderr)
        assert "Non-2xx" not in load.stdout and "Socket errors" not in load.stdout, load.stdout
        return float(re.search(r"Requests/sec:\s+([\d.]+)", load.stdout)[1])


def rounds(names, count, seconds, *options):
    """Requests a second, by server, in each round; `options` are those of wrk."""
    return [{name: requests_per_second(name, seconds, *options) for name in names}
            for _ in range(count)]


def rate(measured, name):
    """The median rate of a server, and that of how many times jwtserver has it."""
    return (statistics.median(one[name] for one in measured),
            statistics.median(one["jwtserver"] / one[name] for one in measured))


def memory(pid):
    """Megabytes that a process takes and, beyond what they share with it, its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    resident = [_kilobytes(f"/proc/{each}/status", "VmRSS") for each in [pid, *children]]
    own = [_kilobytes(f"/proc/{each}/smaps_rollup", "Private_(?:Clean|Dirty)")
           for each in [pid, *children]]
    largest = resident.index(max(resident))
    return (resident[largest] + sum(own) - own[largest]) / 1024


def _kilobytes(file, name):
    return sum(map(int, re.findall(rf"(?m)^{name}:\s+(\d+)", Path(file).read_text())))


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
        token = valid_token(name)
        resting = memory(process.pid)
        if name in WITHOUT_SIGN_IN:
            return Rest(resting, first * 1000)
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
    return Rest(resting, first * 1000, times[len(times) // 2], times[int(len(times) * 0.99)],
                times[-1], len(done) / seconds)


def main():
    parser = argparse.ArgumentParser(description="Compare over HTTP.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--vary", action="store_true")
    parser.add_argument("--logins", action="store_true")
    args = parser.parse_args()
    missing = [tool for tool in ("wrk", "taskset", "node") if not shutil.which(tool)]
    if missing or not (HERE / "node/node_modules").exists():
        sys.exit(f"Missing: {', '.join(missing) or 'npm ci --prefix tests/benchmarks/node'}")
    node = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip()
    packages = json.loads((HERE / "node/package.json").read_text())["dependencies"]
    print(f"CPython {platform.python_version()}, node {node},"
          f" {', '.join(f'{name} {version}' for name, version in packages.items())}")
    if args.logins:
        print("\n| while 8 clients sign in | p50 ms | p99 ms | max ms | sign-ins/s |"
              " memory at rest, MB | first answer, ms |\n|" + " --- |" + " ---: |" * 6)
        for name in OF_NODE:
            rest = under_logins(name, 2 * args.seconds)
            print(f"| {name} | {rest.p50:.1f} | {rest.p99:.1f} | {rest.slowest:.1f} |"
                  f" {rest.logins:.1f} | {rest.memory:.0f} | {rest.first:.0f} |")
        return
    measured = rounds(OF_NODE, args.rounds, args.seconds, *(VARY if args.vary else []))
    print("\n| guarded GET /protected | requests/s | jwtserver to it |\n| --- | ---: | ---: |")
    for name in OF_NODE:
        median, ratio = rate(measured, name)
        print(f"| {name} | {median:.0f} | {ratio:.2f} |")
    print(f"\nMedians of {args.rounds} rounds of {args.seconds} s, 16 connections.")


if __name__ == "__main__":
    main()
