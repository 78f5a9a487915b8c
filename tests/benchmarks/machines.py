"""What is lost, and how long 503 lasts, when PostgreSQL or PgBouncer restarts or fails over.

    python tests/benchmarks/machines.py [--seconds 4] [--clients 8]

Needs Debian's postgresql and pgbouncer, psycopg, and what the tests need. Two servers share a
PostgreSQL, through a PgBouncer in transaction mode or directly with a URL of two hosts. Clients
sign in, refresh and log out at both. In the middle of each load, one part restarts; last, the
primary is killed and its synchronous streaming replica is promoted. Afterwards, each acknowledged
sign-in and refresh must still be valid, and each acknowledged logout must still hold.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import jwtserver  # noqa: E402
from conftest import PostgreSQL  # noqa: E402
from support import KEY, PASSWORD, PASSWORD_HASH, ROOT, free_port  # noqa: E402


def await_port(port):
    end = time.monotonic() + 20
    while True:
        with contextlib.suppress(OSError):
            return socket.create_connection(("127.0.0.1", port)).close()
        assert time.monotonic() < end
        time.sleep(0.01)


class PgBouncer:
    """A PgBouncer in transaction mode, in front of a PostgreSQL."""

    def __init__(self, postgresql):
        self.port, self.folder = free_port(), Path(tempfile.mkdtemp())
        self.folder.chmod(0o755)
        self.file = self.folder / "pgbouncer.ini"
        self.lead_to(postgresql)
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def lead_to(self, postgresql):
        self.file.write_text(
            f"[databases]\npostgres = host=127.0.0.1 port={postgresql.port} user=postgres\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            "auth_type = any\npool_mode = transaction\ndefault_pool_size = 8\n")

    def start(self):
        account = ["--user=nobody"] if os.getuid() == 0 else []
        program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
        self.process = subprocess.Popen([program, *account, str(self.file)],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        await_port(self.port)

    def stop(self):
        self.process.kill()
        self.process.wait()


class Server:
    """A jwtserver in a process of its own."""

    def __init__(self, url):
        environ = {**os.environ, "JWTSERVER_DATABASE": url, "JWTSERVER_SECRET": KEY,
                   "JWTSERVER_PBKDF2_ITERATIONS": "1000"}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "jwtserver.py"), "--port", "0"], env=environ, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.url = re.search(r"http://\S+", self.process.stdout.readline())[0]

    def call(self, method, path, fields=None, token=""):
        """The status and the fields of a response."""
        request = urllib.request.Request(
            self.url + path, json.dumps(fields).encode() if fields else None, method=method,
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.loads(response.read() or "null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, None

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()


class Load:
    """Clients that sign in, refresh and log out, and know what was acknowledged."""

    def __init__(self, servers, clients):
        self.servers = servers
        self.ending = threading.Event()
        self.statuses = Counter()
        self.failures = [[] for _ in servers]  # when a request that failed began and ended
        self.open, self.ended = [], []  # acknowledged: the latest grants, and tokens of logouts
        self.threads = [threading.Thread(target=self.work, args=[n]) for n in range(clients)]
        for thread in self.threads:
            thread.start()

    def call(self, number, *arguments):
        """Send a request to one of the servers, by turns, and note the time of a failure."""
        began, index = time.monotonic(), number % len(self.servers)
        status, fields = self.servers[index].call(*arguments)
        self.statuses[status] += 1
        if status >= 500:
            self.failures[index].append((began, time.monotonic()))
        return status, fields

    def work(self, number):
        while not self.ending.is_set():
            number += 1
            status, grant = self.call(number, "POST", "/authenticate",
                                      {"username": "alice", "password": PASSWORD})
            if status != 200:
                time.sleep(0.02)
                continue
            status, refreshed = self.call(
                number + 1, "POST", "/refresh", {"refresh_token": grant["refresh_token"]})
            if status == 200:
                grant = refreshed
            if number % 2:
                self.open.append(grant)  # the refresh that failed may have been done
            elif self.call(number, "POST", "/logout", None, grant["token"])[0] == 204:
                self.ended.append(grant["token"])

    def end(self):
        self.ending.set()
        for thread in self.threads:
            thread.join()

    def lost(self):
        """How many acknowledged sign-ins and refreshes, and logouts, are gone."""
        server = self.servers[0]
        opened = [server.call("GET", "/protected", None, grant["token"])[0] for grant in self.open]
        refreshed = [server.call("POST", "/refresh", {"refresh_token": grant["refresh_token"]})[0]
                     for grant in self.open]
        ended = [server.call("GET", "/protected", None, token)[0] for token in self.ended]
        return (len(opened) - opened.count(200) + len(refreshed) - refreshed.count(200),
                len(ended) - ended.count(401))


def disturb(label, servers, action, args):
    """Run the load, do something in the middle, and print what the clients noticed."""
    load = Load(servers, args.clients)
    time.sleep(args.seconds / 2)
    began = time.monotonic()
    action()
    lasted = time.monotonic() - began
    time.sleep(args.seconds / 2)
    load.end()
    last = "; ".join(f"{max((end - began for _, end in failures), default=0):.1f}"
                     for failures in load.failures)
    slowest = "; ".join(f"{max((end - start for start, end in failures), default=0):.1f}"
                        for failures in load.failures)
    shown = ", ".join(f"{status}: {count}" for status, count in sorted(load.statuses.items()))
    lost = load.lost()
    assert load.open and load.ended
    print(f"| {label} | {lasted:.1f} | {last} | {slowest} |"
          f" {shown} | {len(load.open)}; {len(load.ended)} | {lost[0]}; {lost[1]} |", flush=True)
    return lost


def replicate(primary):
    """A standby that has each transaction before the client learns that it is committed."""
    standby = PostgreSQL(primary)
    standby.start()
    configuration = primary.folder / "data" / "postgresql.conf"
    with open(configuration, "a") as file:
        file.write("synchronous_standby_names = '*'\n")
    primary._run("pg_ctl", "reload")
    return standby


def kill(postgresql):
    """End a PostgreSQL without a checkpoint. This does not test the disk: fsync is off."""
    pid = int((postgresql.folder / "data" / "postmaster.pid").read_text().split()[0])
    os.kill(pid, signal.SIGQUIT)  # clients are cut off
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.005)


def fail_over(primary, standby, pgbouncer):
    kill(primary)
    standby.promote()
    pgbouncer.lead_to(standby)
    pgbouncer.process.send_signal(signal.SIGHUP)


def restart(part):
    part.stop()
    part.start()


def run(primary, standby, args):
    """Disturb each part in turn; return what was lost each time."""
    print("| event | it takes, s | until each server's last 503, s | slowest 503, s | responses |"
          " sign-ins; logouts | lost |\n| --- | ---: | ---: | ---: | --- | ---: | ---: |")
    pgbouncer = PgBouncer(primary)
    pgbouncer.start()
    hosts = f"127.0.0.1:{standby.port},127.0.0.1:{primary.port}"
    pooled = [Server(pgbouncer.url) for _ in range(2)]
    direct = [Server(f"postgresql://postgres@{hosts}/postgres") for _ in range(2)]
    events = [
        ("nothing, through PgBouncer", pooled, lambda: None),
        ("PgBouncer is killed and started", pooled, lambda: restart(pgbouncer)),
        ("PostgreSQL restarts behind PgBouncer", pooled, lambda: restart(primary)),
        ("nothing, directly", direct, lambda: None),
        ("PostgreSQL restarts", direct, lambda: restart(primary)),
        ("the standby restarts", direct, lambda: restart(standby)),
        ("the standby replaces the killed primary (directly; PgBouncer)", [direct[0], pooled[0]],
         lambda: fail_over(primary, standby, pgbouncer)),
    ]
    try:
        return [disturb(*event, args) for event in events]
    finally:
        for part in (*pooled, *direct, pgbouncer):
            part.stop()


def main():
    parser = argparse.ArgumentParser(description="Restart databases under load.")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--clients", type=int, default=8)
    args = parser.parse_args()
    os.chdir(tempfile.mkdtemp())
    primary = PostgreSQL()
    primary.start()
    with contextlib.closing(jwtserver.open_store(primary.url)) as store:
        store.add_users([jwtserver.User("alice", PASSWORD_HASH, "", 0, 0)])
    standby = replicate(primary)
    try:
        lost = run(primary, standby, args)
    finally:
        for server in (primary, standby):
            with contextlib.suppress(subprocess.CalledProcessError):  # it was killed
                server.stop("immediate")
            shutil.rmtree(server.folder)
    return 1 if any(map(any, lost)) else 0


if __name__ == "__main__":
    sys.exit(main())
