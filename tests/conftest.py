"""Each test in a folder of its own, without settings but for a cheap password hash."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from importlib.util import find_spec
from pathlib import Path

import pytest

import jwtserver

ROOT = Path(__file__).resolve().parents[1]
PASSWORD = "correct horse"

# Where this is set, as `.ci/run` does after it has installed everything, nothing may be missing.
ALL = bool(os.environ.get("JWTSERVER_TEST_ALL"))


@pytest.fixture(autouse=True)
def clean_environment(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("JWTSERVER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("JWTSERVER_PBKDF2_ITERATIONS", "1000")
    monkeypatch.chdir(tmp_path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if ALL and report.skipped:
        report.outcome = "failed"
    return report


# --- Databases


def pytest_configure(config):
    config.addinivalue_line("markers", "sqlite: what only SQLite has")


def pytest_collection_modifyitems(config, items):
    other = [item for item in items if getattr(item, "callspec", None)
             and item.callspec.params.get("database") == "postgresql"
             and (item.get_closest_marker("sqlite") or not (ALL or HAS_POSTGRESQL))]
    if other:
        config.hook.pytest_deselected(items=other)
        items[:] = [item for item in items if item not in set(other)]


HAS_POSTGRESQL = bool(find_spec("psycopg") and list(Path("/usr/lib/postgresql").glob("*/bin")))


class PostgreSQL:
    """A server of Debian's PostgreSQL, of its own."""

    def __init__(self, port):
        self._bin = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
        memory = Path("/dev/shm")  # a schema is twenty files, and tests make hundreds
        if not memory.is_dir() or shutil.disk_usage(memory).free < 2**30:
            memory = None
        self.folder = Path(tempfile.mkdtemp(prefix="jwtserver-test-", dir=memory))
        self._user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        if self._user:
            shutil.chown(self.folder, "postgres")
        self.url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        self._run("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-sync")
        with open(self.folder / "data" / "postgresql.conf", "a") as file:
            file.write(f"port = {port}\nlisten_addresses = '127.0.0.1'\n"
                       "fsync = off\nautovacuum = off\n"
                       f"unix_socket_directories = '{self.folder}'\nmax_connections = 300\n")

    def _run(self, program, *arguments):
        subprocess.run(
            [*self._user, str(self._bin / program), "-D", str(self.folder / "data"), *arguments],
            cwd=self.folder, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def start(self):
        self._run("pg_ctl", "-w", "-l", str(self.folder / "log"), "start")

    def stop(self, mode="fast"):
        self._run("pg_ctl", "-w", "-m", mode, "stop")


def run_postgresql():
    if not HAS_POSTGRESQL:
        pytest.skip("there is no PostgreSQL, or no psycopg")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = PostgreSQL(port)
    server.start()
    yield server
    server.stop("immediate")
    shutil.rmtree(server.folder)


@pytest.fixture(scope="session")
def postgresql():
    """A PostgreSQL server, if it and psycopg are installed."""
    yield from run_postgresql()


@pytest.fixture
def own_postgresql():
    """Another one, that a test may stop and start."""
    yield from run_postgresql()


@pytest.fixture(scope="session")
def administrator(postgresql):
    """A connection to it."""
    import psycopg

    with psycopg.connect(postgresql.url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def postgresql_url(postgresql, administrator):
    """A database that is empty: a schema, which costs less to make."""
    schema = f"t{uuid.uuid4().hex}"
    administrator.execute(f"CREATE SCHEMA {schema}")
    return f"{postgresql.url}?options=-csearch_path%3D{schema}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, monkeypatch):
    """An SQLite file in the current folder, and then the same test with PostgreSQL."""
    if request.param == "sqlite":
        return "jwtserver.db"
    url = request.getfixturevalue("postgresql_url")
    monkeypatch.setenv("JWTSERVER_DATABASE", url)
    return url


# --- Servers that are programs of their own


@pytest.fixture
def free_port():
    """Finds a port on which nobody listens."""
    def find():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return find


class Client:
    """Asks a server on this machine, over a connection of its own for each request."""

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}"

    def __call__(self, path, fields=None, token=None, method=None, headers=()):
        """Status, headers and body, parsed if it is JSON."""
        headers = dict(headers)
        if token:
            headers["Authorization"] = f"Bearer {token}"
        data = None
        if fields is not None:
            data, headers["Content-Type"] = json.dumps(fields).encode(), "application/json"
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            response = urllib.request.urlopen(request, timeout=20)
        except urllib.error.HTTPError as error:
            response = error
        with response:
            body = response.read()
        if response.headers.get("Content-Type") == "application/json":
            body = json.loads(body or "null")
        return response.status, response.headers, body

    def sign_in(self, password=PASSWORD):
        return self("/authenticate", {"username": "alice", "password": password})

    def await_server(self, process, path):
        end = time.monotonic() + 30
        while True:
            try:
                return self(path)
            except (OSError, AssertionError):
                assert process.poll() is None and time.monotonic() < end, "it does not answer"
            time.sleep(0.02)


@pytest.fixture
def folder():
    """The two files, copied to where an account without privileges can use them."""
    folder = Path(tempfile.mkdtemp(prefix="jwtserver-test-"))
    for name in ("jwtserver.py", "wsgi_auth.py"):
        shutil.copy(ROOT / name, folder)
    store = jwtserver.open_store(str(folder / "jwtserver.db"))
    password_hash = jwtserver.hash_password(PASSWORD, iterations=1000)
    store.add_users([jwtserver.User("alice", password_hash, "", 0, 0)])
    store.close()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def start(folder):
    """Starts a server by its command line, and returns its client."""
    processes = []
    (folder / "log").touch()

    def start(command, port, path="/health", **environment):
        bin = Path(sys.executable).parent
        programs = f"{bin}{os.pathsep}{os.environ['PATH']}:/usr/sbin"
        environment = {**os.environ, "PATH": programs, **environment}
        with open(folder / "log", "ab") as log:
            processes.append(subprocess.Popen(
                command, cwd=folder, env=environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        client = Client(port)
        try:
            client.await_server(processes[-1], path)
        except AssertionError:
            print((folder / "log").read_text(errors="replace"))
            raise
        return client

    yield start
    for process in processes:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # one was asked to stop while it was starting
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    log = (folder / "log").read_text(errors="replace")
    print(log)
    assert "Traceback" not in log
