"""What requests cost a PostgreSQL on this machine: `python tests/benchmarks/postgresql.py [URL]`.

For each kind of request, made in this process one after the other: the time it takes here, the
processor time that the server spends on it, which says how many a core of it carries, and the bytes
that it writes to its log (WAL). Passwords are hashed once over, so that a sign-in is what it costs
the database. The database must be empty. Without a URL, a server without fsync is started for it.
"""

import io
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jwtserver  # noqa: E402
from growth import temporary_postgresql  # noqa: E402

TICK = os.sysconf("SC_CLK_TCK")  # a second


class Application:
    """The service, called as a WSGI server does."""

    def __init__(self, url):
        settings = jwtserver.Settings(database=url, secret="k" * 64, pbkdf2_iterations=1,
                                      login_failures=jwtserver.Rate(10**6, 900))
        self.store = jwtserver.open_store(url)
        self.app = jwtserver.create_app(settings, store=self.store)
        password_hash = jwtserver._hash_password("x", settings)
        self.store.add_users([jwtserver._new_user("alice", password_hash)])

    def __call__(self, method, path, fields=None, token=""):
        statuses, body = [], json.dumps(fields).encode() if fields else b""
        (answer,) = self.app({
            "REQUEST_METHOD": method, "PATH_INFO": path, "SCRIPT_NAME": "",
            "REMOTE_ADDR": "127.0.0.1", "HTTP_AUTHORIZATION": f"Bearer {token}",
            "CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
        }, lambda status, headers, exc_info=None: statuses.append(status))
        return int(statuses[0][:3]), json.loads(answer)

    def server_seconds(self):
        """Processor time of the server's processes that serve us."""
        with self.store.database.connection() as connection:
            pids = [pid for (pid,) in connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
                " AND backend_type = 'client backend'").fetchall()]
        fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
        return sum(int(stat[11]) + int(stat[12]) for stat in fields) / TICK

    def log_bytes(self):
        """The bytes that the server has written to its log since its beginning."""
        with self.store.database.connection() as connection:
            return int(connection.execute(
                "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()[0])


def main():
    os.chdir(tempfile.mkdtemp())
    logging.disable()
    with temporary_postgresql() if not sys.argv[1:] else nullcontext(sys.argv[1]) as url:
        measure(url)


def measure(url):
    app = Application(url)
    credentials = {"username": "alice", "password": "x"}
    answer = app("POST", "/authenticate", credentials)[1]
    latest = [answer["refresh_token"]]

    def guarded():
        return app("GET", "/protected", token=answer["token"])[0] == 200

    def refresh():
        status, refreshed = app("POST", "/refresh", {"refresh_token": latest[0]})
        latest[0] = refreshed["refresh_token"]
        return status == 200

    def sign_in():
        return app("POST", "/authenticate", credentials)[0] == 200

    def refused():
        return app("POST", "/authenticate", {**credentials, "password": "y"})[0] == 401

    with app.store.database.connection() as connection:
        version = connection.execute("SHOW server_version").fetchone()[0]
    print(f"CPython {platform.python_version()}, psycopg {app.store.database.psycopg.__version__},"
          f" PostgreSQL {version}\n")
    print("| | here, µs | of the processor here, µs |"
          " of the server's processor, µs | a core of it carries, a second |"
          " WAL, bytes |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, request, count in (
        ("guarded request", guarded, 10000), ("refresh", refresh, 3000),
        ("sign-in", sign_in, 3000), ("failed sign-in", refused, 3000),
    ):
        times, before, log_before = [], app.server_seconds(), app.log_bytes()
        here_before = time.process_time()
        for _ in range(count):
            start = time.perf_counter()
            assert request()
            times.append(time.perf_counter() - start)
        here = (time.process_time() - here_before) / count
        cost = (app.server_seconds() - before) / count
        print(f"| {name} | {statistics.median(times) * 1e6:.0f} | {here * 1e6:.0f} |"
              f" {cost * 1e6:.0f} |"
              f" {1 / cost:.0f} | {(app.log_bytes() - log_before) / count:.0f} |")


if __name__ == "__main__":
    main()
