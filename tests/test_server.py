"""`python jwtserver.py` as a process, over real sockets."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import jwtserver

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("JWTSERVER_")},
    "JWTSERVER_PBKDF2_ITERATIONS": "1000", "PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error",
}


class Running:
    """A server in a process of its own, in its own folder, on a port that was free."""

    def __init__(self, folder, *arguments, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-S", str(ROOT / "jwtserver.py"), "--port", "0", *arguments],
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


@pytest.fixture
def start(tmp_path):
    servers = []

    def start(*arguments, **environment):
        servers.append(Running(tmp_path, *arguments, **environment))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.returncode is None:
            server.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Running(tmp_path_factory.mktemp("server"))
    yield server
    code, _, errors = server.stop()
    assert code == 0
    assert [line for line in errors.splitlines() if " jwtserver.audit: " not in line] == []


@contextlib.contextmanager
def handlers_kept():
    """Lets `main` handle signals meanwhile."""
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def curl_lines(output):
    return [line for line in output.splitlines() if line.startswith("curl ")]


def run_curl(line):
    return json.loads(subprocess.run(
        line, shell=True, check=True, capture_output=True, timeout=20).stdout)


# --- First run, end


def test_first_run_prints_two_curl_lines_that_work_as_pasted(start, tmp_path):
    server = start()
    lines = []
    while len(lines) < 2:
        lines += curl_lines(server.process.stdout.readline())

    signed_in, welcomed = map(run_curl, lines)

    assert signed_in["token_type"] == "Bearer"
    assert welcomed == {"message": "Welcome to the protected page"}
    assert os.stat(tmp_path / "jwtserver.key").st_mode & 0o777 == 0o600
    assert os.stat(tmp_path / "jwtserver.db").st_mode & 0o777 == 0o600


def test_run_that_failed_is_no_first_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert jwtserver.main(["--port", "0", "--protect", "nope"]) == 1
    monkeypatch.setattr(
        jwtserver._Server, "serve_forever", lambda server: server.interrupt(signal.SIGINT, None))

    with handlers_kept():
        assert jwtserver.main(["--port", "0"]) == 0

    assert "curl -d username=demo" in capsys.readouterr().out


def test_first_run_beside_another_that_was_faster_shows_no_password(tmp_path):
    store = jwtserver.open_store(str(tmp_path / "jwtserver.db"))
    store.add_users([jwtserver.User("demo", "", "", 0, 0)])

    assert jwtserver._add_demo_user(store, jwtserver.Settings(pbkdf2_iterations=1)) is None

    store.close()


def test_second_run_adds_no_user_and_shows_no_password(start, tmp_path):
    _, first, _ = start().stop()
    database = (tmp_path / "jwtserver.db").read_bytes()

    code, second, errors = start().stop()

    assert "password" in first
    assert (code, second, errors) == (0, "A token is needed for /protected\n", "")
    assert (tmp_path / "jwtserver.db").read_bytes() == database


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_server_cleanly(start, number):
    code, output, errors = start().stop(number)

    assert code == 0
    assert [line.split()[1:3] for line in errors.splitlines()] == [
        ["jwtserver.audit:", "user_add"], ["jwtserver.audit:", "token_issue"]]


def test_port_in_use_is_one_clear_line_and_makes_no_files(server, tmp_path):
    result = subprocess.run(
        [sys.executable, str(ROOT / "jwtserver.py"), "--port", str(server.port)],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=20)

    assert result.returncode == 1
    assert result.stderr == (
        f"jwtserver: cannot listen on 127.0.0.1:{server.port}: Address already in use;"
        " choose another address with --host and --port\n")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("arguments, environment, words", [
    (["--protect", "nope"], {}, "JWTSERVER_PROTECT"),
    (["--prefix", "nope"], {}, "JWTSERVER_PREFIX"),
    (["--database", "no/such/folder.db"], {}, "no/such/folder.db: No such file"),
    (["--database", "mysql://localhost/x"], {}, "JWTSERVER_DATABASE"),
    (["--secret-file", "no/such/file"], {}, "no/such/"),
    (["--host", "256.0.0.1"], {}, "cannot listen on 256.0.0.1"),
    ([], {"JWTSERVER_TOKEN_LIFETIME": "-1"}, "JWTSERVER_TOKEN_LIFETIME"),
])
def test_setting_that_cannot_be_used_is_one_line(tmp_path, arguments, environment, words):
    result = subprocess.run(
        [sys.executable, str(ROOT / "jwtserver.py"), "--port", "0", *arguments],
        cwd=tmp_path, env={**ENVIRONMENT, **environment}, capture_output=True, text=True,
        timeout=20)

    assert result.returncode == 1
    assert words in result.stderr
    assert result.stderr.startswith("jwtserver: ") and result.stderr.count("\n") == 1


def test_process_environment_does_not_become_request_data(start):
    server = start("--database", "other.db", REMOTE_USER="admin", HTTP_AUTHORIZATION="Bearer x",
                   PATH_INFO="/health", CONTENT_LENGTH="7")

    status, headers, _ = server.request("/protected")

    assert (status, headers["WWW-Authenticate"]) == (401, 'Bearer realm="api"')


# --- Requests


def test_empty_connection_is_no_fault(server):
    assert server.raw(b"") == b""


def test_answer_does_not_tell_the_version_of_python(server):
    _, headers, _ = server.request("/health")
    malformed = server.raw(b"GET / HTTP/9.9\r\n\r\n")

    assert headers["Server"] == "jwtserver"
    assert b"\r\nServer: jwtserver\r\n" in malformed


@pytest.mark.parametrize("size", [65537, 100_000])
def test_body_too_long_is_refused_and_the_answer_arrives(server, size):
    status, _, body = server.request(
        "/authenticate", b" " * size, **{"Content-Type": "application/json"})

    assert (status, body["success"]) == (413, False)


def test_body_that_nobody_reads_does_not_cost_the_answer(server):
    status, _, _ = server.request("/protected", b" " * 60_000)

    assert status == 401


def test_two_authorization_headers_are_refused(server):
    answer = server.raw(
        b"GET /protected HTTP/1.0\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 401 ") and b'error="invalid_token"' in answer


@pytest.mark.parametrize("target", [
    b"/protected", b"//protected", b"http://host/protected", b"/%70rotected", b"/x/../protected",
    b"/PROTECTED", b"/protected;x", b"/protected%00", b"/%2570rotected", b"/protected%0a",
    b"/protected?x=/health", b"/protected%2f", b"/./protected", b"/\\protected",
])
def test_protected_in_any_spelling_needs_a_token(server, target):
    answer = server.raw(b"GET " + target + b" HTTP/1.0\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"Welcome" not in answer


def test_logins_at_once_are_all_answered(server):
    statuses = []

    def sign_in():
        statuses.append(server.request("/authenticate", b"username=x&password=y")[0])

    threads = [threading.Thread(target=sign_in) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(statuses) == [401] * 5 + [429] * 19


def test_server_serves_others_while_a_client_is_silent(server):
    with socket.create_connection(("127.0.0.1", server.port)) as silent:
        silent.sendall(b"GET /health HT")

        assert server.request("/health")[0] == 200


# --- In this process


@pytest.mark.parametrize("arguments, words", [
    ([], ["demo", "curl -d username=demo", "http://127.0.0.1:"]),
    (["--host", "0.0.0.0", "--prefix", "/auth"], ["http://127.0.0.1:", "/auth/authenticate"]),
    ([], ["A token is needed for /protected\n"]),
    (["--protect", "/a", "--protect", "POST /b", "--exempt", "/a/b"],
     ["A token is needed for /a, POST /b, but not for /a/b\n"]),
])
def test_serve_greets_and_ends_with_a_signal(
        tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JWTSERVER_PBKDF2_ITERATIONS", "1000")

    monkeypatch.setattr(
        jwtserver._Server, "serve_forever", lambda server: server.interrupt(signal.SIGINT, None))
    with handlers_kept():
        codes = [jwtserver.main(["--port", "0", *arguments]) for _ in range(2)]

    output = capsys.readouterr().out
    assert codes == [0, 0]
    assert all(word in output for word in words)
    assert output.count("curl ") == 2


def test_greeting_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "jwtserver.key").write_text("k" * 40 + "\n")
    (tmp_path / "jwtserver.key").chmod(0o600)
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, str(ROOT / "jwtserver.py"), "--port", "0"], cwd=tmp_path,
            env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=20)

    lines = [line for line in result.stderr.splitlines() if " jwtserver.audit: " not in line]
    assert (result.returncode, lines) == (1, ["jwtserver: No space left on device"])


def test_serve_on_port_in_use_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        code = jwtserver.main(["--port", str(port)])

    assert code == 1
    assert "cannot listen on" in capsys.readouterr().err
