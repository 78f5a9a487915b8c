"""How cost grows: `python tests/benchmarks/growth.py [--largest 1000000] [--rounds 300]`.

One table, each row of which grows one thing, and all sizes take turns:

- 1,000 to a million users, each with a session, on SQLite and on PostgreSQL (if Debian's package,
  psycopg and pytest are installed; without fsync): a guarded request, `session list`, a refresh,
  and a sign-in of one iteration of PBKDF2, so without its cost.
- The server's processor time per guarded request, with 1 to 4,096 connections, and with 1 to 96
  more header fields, the same ones and different ones. Needs wrk.
- 1 to 1,000 rules: the guard, for a path that it has seen and for a new one.
- 1 to 10 keys: verifying a token that the oldest of them has signed.
- Bodies of up to 100 MB: time per MB, and the peak of the server's memory.

Then sign-ins while all the sessions have expired and are swept; the slowest of these counts.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import platform
import re
import resource
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import jwtserver  # noqa: E402
import wsgi_auth  # noqa: E402
from floods import processor_seconds  # noqa: E402

NAME = "alice"
SECRET = "k" * 64


class Service:
    """A service whose database has so many users and sessions, called as a server does."""

    def __init__(self, size, database):
        self.settings = jwtserver.Settings(
            database=database, secret=SECRET, pbkdf2_iterations=1)
        store = self.store = jwtserver.open_store(self.settings.database)
        hashed = jwtserver._hash_password("x", self.settings)
        now = time.time()
        with store.database.transaction() as connection:
            self.fill(connection, size, hashed, now)
        store.add_users([jwtserver._new_user(NAME, hashed)])
        self.clock = time.time
        self.app = jwtserver.create_app(self.settings, clock=lambda: self.clock())
        self.answer = self.sign_in()
        self.latest = self.answer

    def fill(self, connection, size, hashed, now):
        users = (jwtserver.User(f"user {n}", hashed, "", 0, 0) for n in range(size))
        sessions = (jwtserver.Session(
            jwtserver._session_id(str(n)), f"user {n}", now, now, int(now) + 86400 + n % 1000,
            jwtserver._digest(str(n))) for n in range(size))
        for table, rows, row in (
            ("users", users, jwtserver.User), ("sessions", sessions, jwtserver.Session),
        ):
            if self.settings.database.startswith("postgresql:"):
                connection.execute("SET LOCAL statement_timeout = 0")
                copy = connection._connection.cursor().copy(f"COPY {table} FROM STDIN")
                with copy as file:
                    for each in rows:
                        file.write_row(each)
            else:
                marks = ", ".join("?" * len(row._fields))
                connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        connection.execute("ANALYZE")

    def bytes_each(self, size):
        """Bytes on disk for a user and a session, with their indexes."""
        with self.store.database.connection() as connection:
            if self.settings.database.startswith("postgresql:"):
                statement = ("SELECT pg_total_relation_size('users')"
                             " + pg_total_relation_size('sessions')")
            else:
                statement = ("SELECT page_count * page_size"
                             " FROM pragma_page_count, pragma_page_size")
            return connection.execute(statement).fetchone()[0] / size

    def call(self, method, path, fields=None, token=""):
        statuses, body = [], json.dumps(fields).encode() if fields else b""
        (answer,) = self.app({
            "REQUEST_METHOD": method, "PATH_INFO": path, "SCRIPT_NAME": "",
            "REMOTE_ADDR": "127.0.0.1", "HTTP_AUTHORIZATION": f"Bearer {token}",
            "CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
        }, lambda status, headers, exc_info=None: statuses.append(status))
        assert statuses == ["200 OK"], statuses
        return json.loads(answer)

    def sign_in(self):
        return self.call("POST", "/authenticate", {"username": NAME, "password": "x"})

    def refresh(self):
        self.latest = self.call(
            "POST", "/refresh", {"refresh_token": self.latest["refresh_token"]})

    def session_list(self):
        os.environ["JWTSERVER_DATABASE"] = self.settings.database
        with contextlib.redirect_stdout(io.StringIO()):
            assert jwtserver.main(["session", "list", NAME]) in (0, None)

    def guarded(self):
        self.call("GET", "/protected", token=self.answer["token"])


def timed(function, *arguments):
    """Microseconds that a call takes."""
    start = time.perf_counter()
    function(*arguments)
    return (time.perf_counter() - start) * 1e6


def in_turns(functions, rounds):
    """The median of the microseconds of each function; `functions` has them by size."""
    times = {size: [] for size in functions}
    for _ in range(rounds):
        for size, function in functions.items():
            times[size].append(timed(function))
    return {size: statistics.median(of_size) for size, of_size in times.items()}


def print_row(label, unit, figures):
    sizes, costs = list(figures), list(figures.values())
    print(f"| {label} | {', '.join(f'{size:,}' for size in sizes)} | {unit} |"
          f" {', '.join(f'{cost:.{0 if cost >= 100 else 1}f}' for cost in costs)} |"
          f" {costs[-1] / costs[0]:.1f} |", flush=True)


# --- Users and sessions


def measure_users(kind, services, rounds):
    print_row(f"users and sessions, {kind}: size on disk", "bytes for each",
              {size: service.bytes_each(size) for size, service in services.items()})
    for label, method, times in (
        ("guarded request", "guarded", 10), ("`session list`", "session_list", 0.1),
        ("refresh", "refresh", 1), ("sign-in, less its hash", "sign_in", 1),
    ):
        functions = {size: getattr(service, method) for size, service in services.items()}
        in_turns(functions, 20)  # to warm up
        print_row(f"users and sessions, {kind}: {label}", "µs",
                  in_turns(functions, max(int(times * rounds), 5)))


@contextlib.contextmanager
def temporary_postgresql():
    """The URL of an empty PostgreSQL, or None if it cannot be started here."""
    try:
        from conftest import HAS_POSTGRESQL, PostgreSQL
    except ImportError:
        HAS_POSTGRESQL = False
    if not HAS_POSTGRESQL:
        yield None
        return
    server = PostgreSQL()
    server.start()
    try:
        yield server.url
    finally:
        server.stop("immediate")
        subprocess.run(["rm", "-r", str(server.folder)], check=True)


def in_schema(url, size):
    import psycopg
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA t{size}")
    return f"{url}?options=-csearch_path%3Dt{size}"


def measure_sweep(service):
    service.clock = time.time
    lasted = {"without sweeping": 0, "that sweep": 90_000}  # then all sessions have expired
    print()
    for name, seconds in lasted.items():
        service.clock = lambda: time.time() + seconds
        times = sorted(timed(service.sign_in) / 1000 for _ in range(1000))
        print(f"1,000 sign-ins {name}: median {times[500]:.1f} ms, p99 {times[990]:.1f} ms,"
              f" slowest {times[-1]:.1f} ms")


# --- Rules and keys


def measure_rules(rounds):
    numbers, signer = iter(range(10**9)), wsgi_auth.TokenSigner(SECRET)
    guards = {count: wsgi_auth.BearerAuthMiddleware(
        lambda environ, start_response: [], signer,
        protect=[f"/rule/{number}/x" for number in range(count)]) for count in (1, 10, 100, 1000)}

    def call(guard, path):
        guard({"REQUEST_METHOD": "GET", "PATH_INFO": path(next(numbers))}, None)

    for label, path in (
        ("a path seen before", lambda number: "/open/page"),
        ("a new path", lambda number: f"/open/page-{number}"),
        ("a new path that is not canonical", lambda number: f"/open//page-{number}"),
    ):
        print_row(f"rules: the guard, {label}", "µs", in_turns(
            {count: partial(call, guard, path) for count, guard in guards.items()}, 10 * rounds))


def measure_keys(rounds):
    keys = [f"{number:064}" for number in range(10)]
    functions = {}
    for count in (1, 2, 5, 10):
        token = wsgi_auth.TokenSigner(keys[count - 1]).sign({"sub": NAME})
        signer = wsgi_auth.TokenSigner(keys[:count])
        functions[count] = partial(signer.verify, token)
    print_row("keys: verifying a token of the oldest", "µs", in_turns(functions, 10 * rounds))


# --- Over HTTP

APPLICATION = """
def app(environ, start_response):
    size, read = 0, environ["wsgi.input"].read
    while piece := read(65536):
        size += len(piece)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(size).encode()]
"""


class Server:
    """A jwtserver in a process of its own, and a token."""

    def __init__(self):
        folder = Path(tempfile.mkdtemp(dir=os.getcwd()))
        (folder / "application.py").write_text(APPLICATION)
        settings = jwtserver.Settings(database=str(folder / "server.db"), secret=SECRET)
        environ = {**os.environ, "JWTSERVER_DATABASE": settings.database,
                   "JWTSERVER_SECRET": SECRET}
        user, now = jwtserver.User(NAME, "hash", "", 0, 0), time.time()
        with contextlib.closing(jwtserver.open_store(settings.database)) as store:
            store.add_users([user])
            grant = jwtserver.new_grant(user, 3600, now)
            store.open_session(grant, now)
        self.token = jwtserver.issue_token(grant, jwtserver.make_signer(settings), 3600, now)[0]
        self.process = subprocess.Popen(
            [sys.executable, str(HERE.parents[1] / "jwtserver.py"), "--port", "0", "--app",
             "application:app", "--protect", "/protected"], cwd=folder, env=environ, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.port = int(re.search(r":(\d+)", self.process.stdout.readline())[1])

    def load(self, connections, seconds, *options):
        """Microseconds of the server's processor per guarded request."""
        before = processor_seconds(self.process.pid)
        output = subprocess.run(
            ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-H",
             f"Authorization: Bearer {self.token}", *options,
             f"http://127.0.0.1:{self.port}/protected"],
            check=True, capture_output=True, text=True).stdout
        assert "Non-2xx" not in output and "Socket errors" not in output, output
        count = int(re.search(r"(\d+) requests in", output)[1])
        return (processor_seconds(self.process.pid) - before) / count * 1e6

    def peak(self):
        """Megabytes that the process has taken at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024

    def send_body(self, size, is_chunked):
        """Send a body of so many bytes, in pieces."""
        framing = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {size}"
        piece = b"x" * min(size, 65536)
        encoded = b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(f"POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n".encode())
            for _ in range(size // len(piece)):
                connection.sendall(encoded)
            connection.sendall(b"0\r\n\r\n" if is_chunked else b"")
            response = connection.recv(4096)
        assert response.startswith(b"HTTP/1.1 200 ") and response.endswith(b"%d" % size), response

    def end(self):
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()


def measure_http(seconds):
    server = Server()
    server.load(16, 1)
    sizes = (1, 16, 256, 4096)
    print_row("connections: guarded request", "µs of the processor",
              {count: server.load(count, seconds) for count in sizes})
    server.end()
    for label, options in (("same", []), ("different", ["-s", str(HERE / "vary.lua")])):
        server = Server()
        server.load(16, 1)
        figures = {count: server.load(16, seconds, *options, *(
            word for number in range(count) for word in ("-H", f"X-Field-{number}: value")))
            for count in (1, 10, 30, 96)}
        print_row(f"header fields, {label}: guarded request", "µs of the processor", figures)
        server.end()
    for label, is_chunked in (("Content-Length", False), ("chunked", True)):
        server, times, memory = Server(), {}, {}
        for megabytes in (1, 10, 100):
            size = megabytes * 2**20
            times[megabytes] = timed(server.send_body, size, is_chunked) / 1000 / megabytes
            memory[megabytes] = server.peak()
        server.end()
        print_row(f"MB of a body, {label}", "ms per MB", times)
        print_row(f"MB of a body, {label}: peak of memory", "MB", memory)


def main():
    parser = argparse.ArgumentParser(description="Measure how cost grows.")
    parser.add_argument("--largest", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seconds", type=int, default=2)
    args = parser.parse_args()
    logging.disable()
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    sizes = [size for size in (1000, 10_000, 100_000, 1_000_000) if size <= args.largest]
    print(f"CPython {platform.python_version()}, SQLite {sqlite3.sqlite_version}\n")
    print("| what grows | sizes | unit | cost at each size | last ÷ first |")
    print("| --- | --- | --- | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:  # a million users take 400 MB
        os.chdir(folder)
        measure(sizes, args)


def measure(sizes, args):
    services = {size: Service(size, f"{size}.db") for size in sizes}
    measure_users("SQLite", services, args.rounds)
    with temporary_postgresql() as url:
        if url:
            measure_users("PostgreSQL", {size: Service(size, in_schema(url, size))
                                         for size in sizes}, args.rounds)
    measure_rules(args.rounds)
    measure_keys(args.rounds)
    measure_http(args.seconds)
    measure_sweep(services[sizes[-1]])


if __name__ == "__main__":
    main()
