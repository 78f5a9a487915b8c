"""Fixtures for tests with other programs: servers in their own process, and their client."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import jwtserver
import support


@pytest.fixture
def free_port():
    """Finds a port that no program uses."""
    return support.free_port


@pytest.fixture
def own_postgresql(start_postgresql):
    """A PostgreSQL server that one test may stop and start."""
    return start_postgresql()


class Client:
    """Sends requests to a server on this machine, each over its own connection."""

    def __init__(self, port):
        self.host = f"127.0.0.1:{port}"
        self.url = f"http://{self.host}"

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

    def sign_in(self, password=support.PASSWORD):
        return self("/authenticate", {"username": "alice", "password": password})

    def await_server(self, process, path):
        end = time.monotonic() + 30
        while True:
            try:
                return self(path)
            except (OSError, AssertionError):
                assert process.poll() is None and time.monotonic() < end, "it does not answer"
            time.sleep(0.02)


@contextlib.contextmanager
def service_folder():
    """The folder of the fixture `folder`."""
    folder = Path(tempfile.mkdtemp(prefix="jwtserver-test-"))
    for name in ("jwtserver.py", "wsgi_auth.py"):
        shutil.copy(support.ROOT / name, folder)
    store = jwtserver.open_store(str(folder / "jwtserver.db"))
    store.add_users([support.user("alice")])
    store.close()
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def processes_in(folder):
    """The function of the fixture `start`, for the servers in a folder."""
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
        except subprocess.TimeoutExpired:  # it was asked to stop while it was starting
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    log = (folder / "log").read_text(errors="replace")
    print(log)
    assert "Traceback" not in log


@pytest.fixture(scope="session")
def open_folder():
    """Makes a folder like the fixture `folder`, for the time of a `with`."""
    return service_folder


@pytest.fixture(scope="session")
def open_start():
    """Makes a function like the fixture `start`, for the time of a `with`."""
    return processes_in


@pytest.fixture
def folder():
    """A folder with the two modules and a user, for accounts without privileges."""
    with service_folder() as folder:
        yield folder


@pytest.fixture
def start(folder):
    """Starts a server by its command line, and returns its client."""
    with processes_in(folder) as start:
        yield start
