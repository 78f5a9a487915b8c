"""Fixtures for all tests: a folder and clean settings for each test, databases."""

import functools
import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from webtest import TestApp

import http_support
import jwtserver
from jwtserver import Settings, create_app
from support import KEY, Clock, free_port, store_with

build_parser = jwtserver._build_parser


@functools.lru_cache
def parser_for(*called_as):
    return build_parser()


# To build the parsers of all commands takes 40 ms with coverage, and tests call `main` 500 times.
jwtserver._build_parser = lambda: parser_for(jwtserver._program(), sys.argv[0])

# `.ci/run` sets this after it has installed everything. Then a skipped test is a failure.
ALL = bool(os.environ.get("JWTSERVER_TEST_ALL"))

# `.ci/pyodide.mjs` runs these files. Most of their tests need no operating system.
PORTABLE = {"test_tokens.py", "test_guard.py", "test_middleware.py", "test_rate_limit.py",
            "test_cors.py", "test_doctests.py"}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    """Give each test an empty current folder, and no settings except a cheap password hash."""
    for name in [name for name in os.environ if name.startswith("JWTSERVER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("JWTSERVER_PBKDF2_ITERATIONS", "1000")
    jwtserver._warn_once.cache_clear()
    monkeypatch.chdir(tmp_path)


# The errors of Pyodide's CPython, which has no processes, threads, PBKDF2 or hard links.
LACKING = re.compile("does not support processes|can't start new thread"
                     "|module '(hashlib|os)' has no attribute '(pbkdf2_hmac|link)'")


def pytest_ignore_collect(collection_path, config):
    """Run the tests with other programs only if they are asked for: they take a minute."""
    if collection_path.name == "external" and not (ALL or os.environ.get("JWTSERVER_TEST_MORE")):
        return not any("external" in argument for argument in config.args) or None
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed and sys.platform == "emscripten" and LACKING.search(str(call.excinfo.value)):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), 0, str(call.excinfo.value))
    if report.skipped and ALL:
        report.outcome = "failed"
    return report


# --- Coverage
#
# Python calls coverage's trace function for each function of pytest as well, which takes a tenth of
# the time of the suite. So tracing is on only in tests. Python 3.14 and later measure coverage
# without a trace function.

trace = None


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    global trace
    trace = sys.gettrace()
    sys.settrace(None)
    gc.disable()  # pytest rewrites 1,600 assertions, and no object of all these trees is garbage
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call():
    sys.settrace(trace)
    try:
        return (yield)
    finally:
        sys.settrace(None)


# --- The service


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def settings(database):
    return Settings(database=database, secret=KEY, pbkdf2_iterations=1000)


@pytest.fixture
def store(request, database):
    """The store, with the USERS of the file that asks for it."""
    store = store_with(database, *request.module.USERS)
    yield store
    store.close()


@pytest.fixture
def make(store, settings, clock):
    """Creates services on one database, as several processes would."""
    def make(**changes):
        return TestApp(create_app(settings._replace(**changes), clock=clock))

    return make


@pytest.fixture
def client(make):
    return make()


# --- TLS


@pytest.fixture
def certificate(tmp_path):
    """The file of the certificate of localhost and its key."""
    path = tmp_path / "server.pem"
    path.write_text(http_support.CERTIFICATE)
    return str(path)


@pytest.fixture
def trusting(certificate):
    """What a client uses that trusts the certificate."""
    import ssl  # Pyodide has none

    return ssl.create_default_context(cafile=certificate)


# --- Databases


def pytest_configure(config):
    config.addinivalue_line("markers", "sqlite: a test of what only SQLite has")


def pytest_collection_modifyitems(config, items):
    """Leave out the PostgreSQL half of a test that cannot run, instead of skipping it."""
    left_out = [item for item in items if getattr(item, "callspec", None)
                and item.callspec.params.get("database") == "postgresql"
                and (item.get_closest_marker("sqlite") or not (ALL or HAS_POSTGRESQL))]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


HAS_POSTGRESQL = bool(find_spec("psycopg") and list(Path("/usr/lib/postgresql").glob("*/bin")))


class PostgreSQL:
    """A PostgreSQL server with its own folder and port, from Debian's package.

    With `primary`, it is a read-only standby of that server.
    """

    def __init__(self, primary=None):
        self._bin = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
        memory = Path("/dev/shm")  # a schema is twenty files, and the tests make hundreds of them
        if not memory.is_dir() or shutil.disk_usage(memory).free < 2**30:
            memory = None
        self.folder = Path(tempfile.mkdtemp(prefix="jwtserver-test-", dir=memory))
        self._user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        if self._user:
            shutil.chown(self.folder, "postgres")
        self.port = port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        if primary:
            self._run("pg_basebackup", "--host=127.0.0.1", f"--port={primary.port}", "--no-sync",
                      "--username=postgres", "--checkpoint=fast", "--write-recovery-conf")
        else:
            self._run(
                "initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-sync")
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

    def promote(self):
        self._run("pg_ctl", "-w", "promote")


@pytest.fixture(scope="session")
def start_postgresql():
    """Starts one more PostgreSQL server, or a standby of one."""
    servers = []

    def start(primary=None):
        if not HAS_POSTGRESQL:
            pytest.skip("PostgreSQL or psycopg is not installed")
        servers.append(PostgreSQL(primary))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        with suppress(subprocess.CalledProcessError):  # a test has stopped it
            server.stop("immediate")
        shutil.rmtree(server.folder)


@pytest.fixture(scope="session")
def postgresql(start_postgresql):
    """The PostgreSQL server that the tests share."""
    return start_postgresql()


@pytest.fixture(scope="session")
def administrator(postgresql):
    """A connection to the shared PostgreSQL server."""
    import psycopg

    with psycopg.connect(postgresql.url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def postgresql_url(postgresql, administrator):
    """An empty schema, which is quicker to make than a database."""
    schema = f"t{uuid.uuid4().hex}"
    administrator.execute(f"CREATE SCHEMA {schema}")
    return f"{postgresql.url}?options=-csearch_path%3D{schema}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, monkeypatch):
    """Runs a test with an SQLite file in the current folder, and again with PostgreSQL."""
    if request.param == "sqlite":
        return "jwtserver.db"
    url = request.getfixturevalue("postgresql_url")
    monkeypatch.setenv("JWTSERVER_DATABASE", url)
    return url
