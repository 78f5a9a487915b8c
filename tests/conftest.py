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
    store = jwtserver.Store(str(folder / "jwtserver.db"))
    store.prepare()
    password_hash = jwtserver.hash_password(PASSWORD, iterations=1000)
    store.add([jwtserver.User("alice", password_hash, "", 0, 0)])
    store.close()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def start(folder):
    """Starts a server by its command line, and returns its client."""
    processes = []

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
