"""How cost grows with users and sessions: `python tests/benchmarks/growth.py`.

Fills an SQLite file with 10 to 1,000,000 users, each with a session, and times a sign-in (of one
iteration of PBKDF2, so without its cost), a refresh and a guarded request on each, in turns; and
then sign-ins while all those sessions have expired and are swept; the slowest of these counts.
"""

import io
import json
import logging
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jwtserver  # noqa: E402

SIZES = (10, 1000, 100_000, 1_000_000)
NAME = "alice"


class Service:
    """A service whose database has so many users and sessions, called as a server does."""

    def __init__(self, size):
        self.settings = jwtserver.Settings(
            database=f"{size}.db", secret="k" * 64, pbkdf2_iterations=1)
        store = jwtserver.open_store(self.settings.database)
        hashed = jwtserver._hash_password("x", self.settings)
        now = time.time()
        with store.database.transaction() as connection:
            self.fill(connection, size, hashed, now)
        store.add_users([jwtserver._new_user(NAME, hashed)])
        store.close()
        self.clock = time.time
        self.app = jwtserver.create_app(self.settings, clock=lambda: self.clock())
        self.answer = self.sign_in()
        self.latest = self.answer

    @staticmethod
    def fill(connection, size, hashed, now):
        numbers = range(size)
        connection.executemany(
            "INSERT INTO users VALUES (?, ?, ?, ?, ?, ?, ?)",
            (jwtserver.User(f"user {n}", hashed, "", 0, 0) for n in numbers))
        connection.executemany(
            "INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (jwtserver.Session(
                jwtserver._session_id(str(n)), f"user {n}", now, now, int(now) + 86400 + n % 1000,
                jwtserver._digest(str(n))) for n in numbers))

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

    def guarded(self):
        self.call("GET", "/protected", token=self.answer["token"])


def timed(function):
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e6


def main():
    os.chdir(tempfile.mkdtemp())
    logging.disable()
    services = {size: Service(size) for size in SIZES}
    print(f"CPython {platform.python_version()}, SQLite {sqlite3.sqlite_version}\n")
    print("| µs, with so many users and sessions |", " | ".join(f"{size:,}" for size in SIZES), "|")
    print("| --- |", " | ".join("---:" for _ in SIZES), "|")
    for name, rounds in (("guarded", 3000), ("refresh", 300), ("sign_in", 300)):
        times = {size: [] for size in SIZES}
        for _ in range(rounds):
            for size, service in services.items():
                times[size].append(timed(getattr(service, name)))
        print(f"| {name} |", " | ".join(
            f"{statistics.median(times[size]):.0f}" for size in SIZES), "|")
    service, slowest = services[SIZES[-1]], {}
    for name, seconds in (("without sweeping", 0), ("that sweep", 90_000)):  # all sessions are over
        service.clock = lambda: time.time() + seconds
        slowest[name] = sorted(timed(service.sign_in) / 1000 for _ in range(1000))
    print()
    for name, times in slowest.items():
        print(f"1,000 sign-ins {name}: median {times[500]:.1f} ms, p99 {times[990]:.1f} ms,"
              f" slowest {times[-1]:.1f} ms")


if __name__ == "__main__":
    main()
