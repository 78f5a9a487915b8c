"""What several test files need: a clock, users, a WSGI client, sign-in, a server process."""

import atexit
import functools
import hashlib
import inspect
import io
import json
import os
import py_compile
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Dict, List, NamedTuple
from wsgiref.util import setup_testing_defaults

import pytest
from webtest import TestApp

import jwtserver

ROOT = Path(__file__).resolve().parents[1]
KEY = "0123456789abcdef" * 2
PASSWORD = "correct horse"
# The hash of PASSWORD with 1,000 iterations. It is fixed, because not every Python has PBKDF2.
PASSWORD_HASH = ("pbkdf2_sha256$1000$41ce83e6d63f718362c75ee5a0a589e6"
                 "$7+cdmEfyd01/JYLHuOft7CUdZgFKJDe1BjWBZqnxbh4=")
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("JWTSERVER_")},
    "JWTSERVER_PBKDF2_ITERATIONS": "1000", "PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error",
}


def for_each(names, rows):
    """Run a test with each row of a table. It fails after the last row, and shows all failed rows.

    Rows are written as for `pytest.mark.parametrize`. That makes a test of each row, which costs
    4 ms with pytest-xdist; most rows take 0.1 ms. A dict gives each row a name.
    """
    names = names.split(", ")
    table = []
    for row in rows:
        if isinstance(row, type(pytest.param())):
            label, values = row.id, row.values
        else:
            label, values = ascii(row)[:100], rows[row] if isinstance(rows, dict) else row
            values = [values] if len(names) == 1 else values
        table.append((label, dict(zip(names, values))))
    assert table

    def decorate(test):
        @functools.wraps(test)
        def test_all_rows(**fixtures):
            failures = []
            for label, arguments in table:
                try:
                    test(**arguments, **fixtures)
                except (Exception, pytest.fail.Exception) as error:
                    failures.append((label, error))
            if failures:
                lines = [f"{label}: {type(error).__name__}: {error}" for label, error in failures]
                raise AssertionError("\n".join(lines)) from failures[0][1]

        signature = inspect.signature(test)
        test_all_rows.__signature__ = signature.replace(parameters=[
            parameter for name, parameter in signature.parameters.items() if name not in names])
        return test_all_rows

    return decorate


def standard_input(text: str) -> io.TextIOWrapper:
    """A standard input with this text."""
    return io.TextIOWrapper(io.BytesIO(text.encode()))


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Response(NamedTuple):
    """What a WSGI application answered."""

    status: int
    headers: Dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"null")


def call(app, path="/", method="GET", body=b"", **environ) -> Response:
    """Call a WSGI application with any environ, and join what it writes and returns.

    A key of the environ whose value is None is left out.
    """
    started: List[Any] = []
    written: List[bytes] = []

    def start_response(status, headers, exc_info=None):
        started[:] = [int(status[:3]), dict(headers)]
        return written.append

    base = {"REQUEST_METHOD": method, "SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": "",
            "REMOTE_ADDR": "192.0.2.1", "wsgi.input": io.BytesIO(body),
            "CONTENT_LENGTH": str(len(body))}
    setup_testing_defaults(base)
    base.update(environ)
    iterable = app(
        {name: value for name, value in base.items() if value is not None}, start_response)
    try:
        written += iterable
    finally:
        if hasattr(iterable, "close"):
            iterable.close()
    return Response(started[0], started[1], b"".join(written))


def hello(environ, start_response):
    """Answers with the name of the user, or `nobody`."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ.get("REMOTE_USER", "nobody").encode("utf-8")]


@functools.lru_cache(maxsize=None)
def empty_database() -> bytes:
    """An SQLite database without users. Most tests start with a copy: to make one takes 5 ms."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "empty.db")
        jwtserver.open_store(str(path)).close()
        return path.read_bytes()


def store_with(database, *users):
    """The store in a database, after adding these users."""
    if not hasattr(hashlib, "pbkdf2_hmac"):  # Pyodide's CPython has no OpenSSL
        pytest.skip("this Python has no PBKDF2, so nobody can sign in")
    if "://" not in database and not os.path.exists(database):
        Path(database).touch(0o600)
        Path(database).write_bytes(empty_database())
    store = jwtserver.open_store(database)
    store.add_users(users)
    return store


def user(name, scope="", disabled=0, password_hash=PASSWORD_HASH):
    return jwtserver.User(name, password_hash, scope, disabled, 0)


def bearer(token) -> Dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def sign_in(client: TestApp, name="alice", password=PASSWORD, **options):
    """The response to a sign-in; `options` are WebTest's, such as `status=401`."""
    return client.post_json(
        "/authenticate", {"username": name, "password": password}, **options)


@functools.lru_cache(maxsize=None)
def compiled() -> Path:
    """A folder with both modules compiled. Python compiles a program again at each start: 0.15 s.

    `python FOLDER/jwtserver.pyc` runs the program, and `PYTHONPATH=FOLDER` imports both modules.
    """
    folder = Path(tempfile.mkdtemp(prefix="jwtserver-test-"))
    atexit.register(shutil.rmtree, folder)
    for name in ("jwtserver", "wsgi_auth"):
        py_compile.compile(str(ROOT / f"{name}.py"), str(folder / f"{name}.pyc"), doraise=True)
    return folder


def program(*arguments: str) -> List[str]:
    """The command that runs the program with this Python."""
    return [sys.executable, str(compiled() / "jwtserver.pyc"), *arguments]


def python(code: str, *arguments: str) -> "subprocess.Popen[str]":
    """Start Python code that can import both modules."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], text=True,
        env={**os.environ, "PYTHONPATH": str(compiled()), "PYTHONUNBUFFERED": ""},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def python_at_once(count: int, code: str, *arguments: str) -> List[str]:
    """Run Python code in several processes at the same time, and return the lines of all.

    They are forks of one process, which has imported jwtserver: that takes 0.1 s. Each writes its
    output in one piece, at its end.
    """
    process = python(f"""
import os, sys, jwtserver
wait, go = os.pipe()
if all(os.fork() for _ in range({count})):  # zero in each child, which starts no others
    os.close(go)
    sys.exit(max(os.wait()[1] for _ in range({count})) != 0)
os.close(go)
os.read(wait, 1)  # until the parent has started all, and closes its end as well
{code}
""", *arguments)
    output, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    return output.splitlines()


def free_port() -> int:
    """A port that no program uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Running:
    """A server in a process of its own, in its own folder, on a port that was free."""

    def __init__(self, folder, *arguments, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-S", str(compiled() / "jwtserver.pyc"), "--port", "0", *arguments],
            cwd=folder, env={**ENVIRONMENT, **environment}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.first_line = self.process.stdout.readline()
        self.url = re.search(r"https?://\S+", self.first_line)[0]
        self.port = int(self.url.rpartition(":")[2])

    def request(self, path, data=None, **headers):
        """Status, headers and parsed body."""
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, response.headers, json.loads(response.read() or "null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, json.loads(error.read() or "null")

    def raw(self, data):
        """All that comes back for these bytes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            with connection.makefile("rb") as file:
                return file.read()

    def stop(self, number=signal.SIGTERM):
        """Exit code, rest of the output, errors."""
        self.process.send_signal(number)
        with self.process:
            output, errors = self.process.stdout.read(), self.process.stderr.read()
        return self.process.returncode, output, errors
