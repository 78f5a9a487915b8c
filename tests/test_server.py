"""`python jwtserver.py` as a process, over real sockets."""

import contextlib
import io
import json
import logging
import os
import re
import select
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from argparse import Namespace

import pytest

import jwtserver
from http_support import (
    OTHER_CERTIFICATE, echo, exchange, head, parse, received, serving, statuses)
from jwtserver import Settings
from support import ENVIRONMENT, Running, for_each, program


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
    """Restores the signal handlers that `main` replaces."""
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


def test_first_run_after_a_failed_start_still_greets(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert jwtserver.main(["--port", "0", "--protect", "nope"]) == 1
    monkeypatch.setattr(
        jwtserver._Server, "serve_forever", lambda server: server.interrupt(signal.SIGINT, None))

    with handlers_kept():
        assert jwtserver.main(["--port", "0"]) == 0

    assert "curl -d username=demo" in capsys.readouterr().out


def test_first_run_beside_a_faster_process_shows_no_password(tmp_path):
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
        program("--port", str(server.port)),
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=20)

    assert result.returncode == 1
    assert result.stderr == (
        f"jwtserver: cannot listen on 127.0.0.1:{server.port}: Address already in use;"
        " choose another address with --host and --port\n")
    assert os.listdir(tmp_path) == []


@for_each("arguments, environment, words", [
    (["--protect", "nope"], {}, "--protect: not a rule"),
    (["--prefix", "nope"], {}, "--prefix must be"),
    (["--database", "no/such/folder.db"], {}, "no/such/folder.db: No such file"),
    (["--database", "mysql://localhost/x"], {}, "--database must be"),
    (["--secret-file", "no/such/file"], {}, "no/such/"),
    (["--host", "256.0.0.1"], {}, "cannot listen on 256.0.0.1"),
    ([], {"JWTSERVER_TOKEN_LIFETIME": "-1"}, "JWTSERVER_TOKEN_LIFETIME"),
])
def test_setting_unusable_is_one_line(monkeypatch, capsys, arguments, environment, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert jwtserver.main(["--port", "0", *arguments]) == 1

    errors = capsys.readouterr().err
    assert words in errors
    assert errors.startswith("jwtserver: ") and errors.count("\n") == 1


def test_environment_of_the_process_is_not_request_data(start):
    server = start("--database", "other.db", REMOTE_USER="admin", HTTP_AUTHORIZATION="Bearer x",
                   PATH_INFO="/health", CONTENT_LENGTH="7")

    status, headers, _ = server.request("/protected")

    assert (status, headers["WWW-Authenticate"]) == (401, 'Bearer realm="api"')


# --- Requests to a process


def test_connection_without_a_byte_is_no_fault(server):
    assert server.raw(b"") == b""


def test_response_does_not_reveal_the_version_of_python(server):
    _, headers, _ = server.request("/health")
    malformed = server.raw(b"GET / HTTP/9.9\r\n\r\n")

    assert headers["Server"] == "jwtserver"
    assert b"\r\nServer: jwtserver\r\n" in malformed


@for_each("size", [65537, 100_000])
def test_body_too_long_is_refused_and_the_response_arrives(server, size):
    status, _, body = server.request(
        "/authenticate", b" " * size, **{"Content-Type": "application/json"})

    assert (status, body["success"]) == (413, False)


def test_body_unread_does_not_cost_the_response(server):
    status, _, _ = server.request("/protected", b" " * 60_000)

    assert status == 401


def test_two_authorization_headers_are_refused(server):
    response = server.raw(
        b"GET /protected HTTP/1.0\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n")

    assert response.startswith(b"HTTP/1.1 401 ") and b'error="invalid_token"' in response


@for_each("target", [
    b"/protected", b"//protected", b"http://host/protected", b"/%70rotected", b"/x/../protected",
    b"/PROTECTED", b"/protected;x", b"/protected%00", b"/%2570rotected", b"/protected%0a",
    b"/protected?x=/health", b"/protected%2f", b"/./protected", b"/%5cprotected",
])
def test_protected_in_any_spelling_needs_a_token(server, target):
    response = server.raw(b"GET " + target + b" HTTP/1.0\r\n\r\n")

    assert response.startswith(b"HTTP/1.1 401 ")
    assert b"Welcome" not in response


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


def test_client_that_is_silent_does_not_delay_others(server):
    with socket.create_connection(("127.0.0.1", server.port)) as silent:
        silent.sendall(b"GET /health HT")

        assert server.request("/health")[0] == 200


# --- The greeting, in this process


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


def test_greeting_to_a_full_disk_is_one_line(tmp_path):
    (tmp_path / "jwtserver.key").write_text("k" * 40 + "\n")
    (tmp_path / "jwtserver.key").chmod(0o600)
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            program("--port", "0"), cwd=tmp_path, env=ENVIRONMENT, stdout=full,
            stderr=subprocess.PIPE, text=True, timeout=20)

    lines = [line for line in result.stderr.splitlines() if " jwtserver.audit: " not in line]
    assert (result.returncode, lines) == (1, ["jwtserver: No space left on device"])


def test_serve_on_port_in_use_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        code = jwtserver.main(["--port", str(port)])

    assert code == 1
    assert "cannot listen on" in capsys.readouterr().err


# --- The flags of serve


def test_limit_of_open_files_is_raised_to_the_maximum():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))

    jwtserver._raise_file_limit()

    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (limits[1], limits[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_listening_socket_is_inherited(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        monkeypatch.setenv("LISTEN_FDS", "1")
        monkeypatch.setattr(jwtserver, "LISTEN_FD", os.dup(listener.fileno()))

        (inherited,) = jwtserver._listen("192.0.2.1", 1)
        with inherited:
            assert inherited.getsockname() == listener.getsockname()


def test_listening_sockets_inherited_are_all_served(monkeypatch):
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    addresses = [listener.getsockname() for listener in listeners]
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "2")
    first = os.dup(listeners[0].fileno())
    os.dup2(listeners[1].fileno(), first + 1)
    monkeypatch.setattr(jwtserver, "LISTEN_FD", first)
    seen = []

    def app(environ, start_response):
        seen.append((environ["SERVER_NAME"], int(environ["SERVER_PORT"])))
        return echo(environ, start_response)

    server = jwtserver._Server(app, jwtserver._listen("", 0), Settings())
    for listener in listeners:
        listener.close()
    thread = threading.Thread(target=lambda: (server.serve_forever(), server.finish()))
    thread.start()
    for address in addresses:
        with socket.create_connection(address) as connection:
            connection.sendall(head(b"Connection: close"))
            assert statuses(received(connection)) == [200]
    server.interrupt()
    thread.join()

    assert seen == addresses


@pytest.mark.parametrize("kind, count, words", [
    ("file", "1", "from LISTEN_FDS, is not a listening socket"),
    ("connection", "1", "from LISTEN_FDS, is not a listening socket"),
    ("listener", "2", "from LISTEN_FDS, is not a listening socket"),
    ("listener", "many", "the variable LISTEN_FDS must be a number, and is many"),
])
def test_socket_inherited_that_cannot_be_served_stops_the_start(
        monkeypatch, capsys, kind, count, words):
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as connection, \
            open(os.devnull) as file:
        given = {"file": file, "connection": connection, "listener": listener}[kind]
        number = 200  # and 201 is not open
        os.dup2(given.fileno(), number)
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        monkeypatch.setenv("LISTEN_FDS", count)
        monkeypatch.setattr(jwtserver, "LISTEN_FD", number)

        assert jwtserver.main(["--port", "0"]) == 1

        errors = capsys.readouterr().err
        assert words in errors and errors.count("\n") == 1
        with contextlib.suppress(OSError):
            os.close(number)


def test_application_is_imported_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "mine_too.py").write_text("def application(environ, start_response): pass\n")
    monkeypatch.setattr(sys, "path", list(sys.path))

    assert jwtserver._load_app("mine_too").__name__ == "application"


def test_logout_holds_for_the_next_request_of_a_connection():
    settings = Settings(secret="k" * 32)
    store = jwtserver.open_store(settings.database)
    app = jwtserver.create_app(settings, store=store)
    user = jwtserver.User("alice", "", "", 0, 0)
    store.add_users([user])
    grant = jwtserver.new_grant(user, 1000, time.time())
    store.open_session(grant, 0)
    token, _ = jwtserver.issue_token(
        grant, jwtserver.make_signer(settings), 1000, time.time())
    requests = [head(b"Authorization: Bearer " + token.encode(), first=line + b" HTTP/1.1")
                for line in (b"GET /protected", b"POST /logout", b"GET /protected")]

    with serving(app) as server:
        assert statuses(exchange(server, b"".join(requests))) == [200, 204, 401]
    store.close()


def test_serve_over_tls(start, certificate, trusting):
    server = start("--tls-cert", certificate)

    assert server.url.startswith("https://127.0.0.1:")
    with trusting.wrap_socket(socket.create_connection(("127.0.0.1", server.port)),
                              server_hostname="127.0.0.1") as connection:
        connection.sendall(head(b"Connection: close", first=b"GET /health HTTP/1.1"))
        assert statuses(received(connection)) == [200]


def test_certificate_is_reloaded_at_a_signal(start, certificate, trusting, tmp_path):
    def presented():
        with trusting.wrap_socket(socket.create_connection(("127.0.0.1", server.port)),
                                  server_hostname="127.0.0.1") as connection:
            return connection.getpeercert(binary_form=True)

    def reload_to(text, message):
        (tmp_path / "server.pem").write_text(text)
        server.process.send_signal(signal.SIGHUP)
        while message not in server.process.stderr.readline():
            pass

    server = start("--tls-cert", certificate)
    first = presented()
    other = OTHER_CERTIFICATE.partition("-----BEGIN PRIV")[0]
    trusting.load_verify_locations(cadata=other)
    reload_to("no certificate", "cannot be used, and the old certificate stays")
    assert presented() == first

    reload_to(OTHER_CERTIFICATE, "is used for new connections")

    assert presented() == ssl.PEM_cert_to_DER_cert(other)


def test_certificate_reloaded_in_this_process(certificate, tmp_path, caplog):
    with serving(tls=jwtserver._tls_context(certificate, None)) as server:
        first = server.tls
        missing = Namespace(tls_cert=str(tmp_path / "none.pem"), tls_key=None)
        jwtserver._reload_certificate(server, missing, signal.SIGHUP, None)
        assert server.tls is first

        present = Namespace(tls_cert=certificate, tls_key=None)
        jwtserver._reload_certificate(server, present, signal.SIGHUP, None)

        assert server.tls is not first
    assert ["none.pem cannot be used" in message for message in caplog.messages] == [True]


def test_serve_over_tls_reloads_its_certificate_at_sighup(certificate, monkeypatch):
    handlers = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(
        jwtserver._Server, "serve_forever", lambda server: handlers[signal.SIGHUP](1, None))

    assert jwtserver.main(["--port", "0", "--tls-cert", certificate]) == 0

    assert handlers[signal.SIGHUP].func is jwtserver._reload_certificate


def test_idle_connections_leave_files_to_the_database(start, tmp_path):
    (tmp_path / "mine.py").write_text("""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
app = print
""")
    server = start("--app", "mine:app")
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(90)]

    assert server.request("/authenticate", b"username=x&password=y")[0] == 401

    for connection in idle:
        connection.close()


def test_endpoints_are_answered_although_all_threads_are_in_the_application(caplog):
    arrived, opened = threading.Semaphore(0), threading.Event()

    def stream(environ, start_response):
        start_response("200 OK", [])
        arrived.release()
        assert opened.wait(10)
        return [b"done"]

    settings = Settings(secret="k" * 32, protect=("/closed",), threads=3)
    store = jwtserver.open_store(settings.database)
    app = jwtserver.create_app(settings, app=stream, store=store)
    with serving(app, threads=3) as server:
        streams = [socket.create_connection(server.address) for _ in range(2)]
        for connection in streams:
            connection.sendall(head(b"Connection: close"))
            assert arrived.acquire(timeout=10)
            server._move_loop(0)

        for _ in range(2):
            assert statuses(exchange(server, head(first=b"GET /health HTTP/1.1"))) == [200]
            ((status, headers, body),) = parse(exchange(server, head()))
            assert (status, headers["retry-after"]) == (503, "1")
            assert json.loads(body) == {"success": False, "error": "All threads are busy"}

        opened.set()
        for connection in streams:
            assert statuses(received(connection)) == [200]
            connection.close()
    store.close()
    assert [message.partition(":")[0] for message in caplog.messages
            if "threads" in message] == ["All 3 threads are busy"]


@for_each("arguments, words", [
    (["--tls-cert", "none.pem"], "cannot use none.pem: No such file or directory\n"),
    (["--tls-cert", "bad.pem"], "key in --tls-key?\n"),
    (["--tls-key", "none.pem"], "--tls-key needs --tls-cert"),
    (["--app", "nothing_there:app"], "cannot import nothing_there:app: ModuleNotFoundError"),
    (["--app", "mine:nothing"], "cannot import mine:nothing: AttributeError"),
    (["--app", "mine:number"], "mine:number is not callable"),
    (["--app", ":app"], "cannot import :app: ValueError"),
])
def test_serve_with_unusable_files_is_one_line(
        tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "bad.pem").write_text("no certificate")
    (tmp_path / "mine.py").write_text("number = 7\n")
    monkeypatch.delitem(sys.modules, "mine", raising=False)

    assert jwtserver.main(["--port", "0", *arguments]) == 1

    errors = capsys.readouterr().err
    assert words in errors and errors.count("\n") == 1


def test_serve_your_own_application_behind_the_guard(start, tmp_path):
    (tmp_path / "mine.py").write_text("""
class site:
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ.get("REMOTE_USER", "nobody").encode()]
""")
    server = start("--app", "mine:site.app", "--exempt", "/open")
    output = ""
    while "curl -H" not in output:
        output = server.process.stdout.readline()
    token = re.search(r"Bearer ([\w.-]+)", output)[1]

    def get(path, *lines):
        return server.raw(head(*lines, first=b"GET " + path + b" HTTP/1.0")).partition(b"\r\n\r\n")

    assert output.rstrip().endswith(f"{server.url}/")
    assert get(b"/")[0].startswith(b"HTTP/1.1 401 ")
    assert get(b"/", b"Authorization: Bearer " + token.encode())[2] == b"demo"
    assert get(b"/open/x")[2] == b"nobody"


def test_logging_configured_by_an_application_is_kept(start, tmp_path):
    (tmp_path / "mine.py").write_text("""
import logging
logging.basicConfig(level="INFO", format="MINE %(message)s")
app = print
""")
    _, _, errors = start("--app", "mine:app").stop()

    assert errors.startswith('MINE user_add user="demo" scope=""\n')


def test_logging_configured_by_an_application_disables_neither_audit_log_nor_tracebacks(
    start, tmp_path,
):
    """`dictConfig` disables all other loggers by default, and resets those below a listed one."""
    (tmp_path / "mine.py").write_text("""
import logging.config
config = {"version": 1, "loggers": {"jwtserver": {"level": "WARNING"}}}
logging.config.dictConfig({"version": 1})
def app(environ, start_response):
    logging.config.dictConfig({"version": 1})
    logging.config.dictConfig(config)
    raise LookupError("mine")
""")
    server = start("--app", "mine:app", "--exempt", "/open", JWTSERVER_AUDIT_LOG="audit.log")
    assert server.request("/open")[0] == 500
    assert server.request("/authenticate", b"username=a&password=b")[0] == 401
    password = next(line for line in server.process.stdout if "The password is" in line).split()[3]
    body = f"username=demo&password={password.rstrip('.')}"
    assert server.request("/authenticate", body.encode())[0] == 200
    _, _, errors = server.stop()

    assert " jwtserver.audit: user_add " in errors and "LookupError: mine\n" in errors
    assert " jwtserver.audit: sign_in_failed " in errors
    assert [line.split()[1] for line in (tmp_path / "audit.log").read_text().splitlines()] == [
        "user_add", "token_issue", "sign_in_failed", "sign_in"]


def test_signal_lets_responses_in_progress_finish(start, tmp_path):
    (tmp_path / "mine.py").write_text("""
import pathlib, time
def app(environ, start_response):
    pathlib.Path("begun").touch()
    while not pathlib.Path("go").exists():
        time.sleep(0.01)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"whole"]
""")
    server = start("--app", "mine:app", "--protect", "/x")
    address = ("127.0.0.1", server.port)
    with socket.create_connection(address) as idle, socket.create_connection(address) as busy:
        busy.sendall(head(first=b"GET / HTTP/1.1") + head(first=b"GET / HTTP/1.1"))
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        assert idle.recv(9) == b""
        with pytest.raises(OSError):
            socket.create_connection(address)
        (tmp_path / "go").touch()

        ((status, headers, body),) = parse(received(busy))

    assert (status, headers["connection"], body) == (200, "close", b"whole")
    with server.process:
        errors = server.process.stderr.read()
        server.process.stdout.read()
    assert (server.process.returncode, "Traceback" in errors) == (0, False)


def test_signal_ends_a_response_that_hangs_although_no_thread_could_be_started(start, tmp_path):
    (tmp_path / "mine.py").write_text("""
import pathlib, sys, threading, time
def start(thread):
    raise RuntimeError("can't start new thread")
threading.Thread.start = start
sys.modules["__main__"].SHUTDOWN_TIMEOUT = 0.1
def app(environ, start_response):
    pathlib.Path("begun").touch()
    time.sleep(60)
""")
    server = start("--app", "mine:app", "--protect", "/x")
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head(first=b"GET / HTTP/1.1"))
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        with server.process:
            server.process.stdout.read()
            server.process.stderr.read()
    assert server.process.returncode == -signal.SIGALRM


def test_second_signal_ends_at_once(start, tmp_path):
    (tmp_path / "mine.py").write_text("""
import pathlib, time
def app(environ, start_response):
    pathlib.Path("begun").touch()
    time.sleep(60)
""")
    server = start("--app", "mine:app", "--protect", "/x")
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head(first=b"GET / HTTP/1.1"))
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(OSError):
            while True:  # until the first one has come
                socket.create_connection(("127.0.0.1", server.port)).close()
                time.sleep(0.01)
        time.sleep(0.05)
        server.process.send_signal(signal.SIGTERM)
        assert connection.recv(9) == b""
    with server.process:
        server.process.stdout.read()
        server.process.stderr.read()
    assert server.process.returncode == 1


def test_socket_from_systemd_is_used(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        code = ("import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = "
                "str(os.getpid()); os.execv(sys.argv[2], sys.argv[2:])")
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(listener.fileno()), *program()],
            cwd=tmp_path, env={**ENVIRONMENT, "LISTEN_FDS": "1"}, pass_fds=[listener.fileno()],
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with process:
            assert f"http://127.0.0.1:{port} " in process.stdout.readline()
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(head(b"Connection: close", first=b"GET /health HTTP/1.1"))
                assert statuses(received(connection)) == [200]
            process.terminate()
            process.stdout.read()
            process.stderr.read()


def test_serve_on_ipv6(start):
    server = start("--host", "::")

    assert server.url == f"http://[::1]:{server.port}"
    for host in ("::1", "127.0.0.1"):
        with socket.create_connection((host, server.port)) as connection:
            connection.sendall(head(b"Connection: close", first=b"GET /health HTTP/1.1"))
            assert statuses(received(connection)) == [200]


def test_unix_socket_is_served(tmp_path):
    seen = {}

    def app(environ, start_response):
        seen.update(environ)
        return echo(environ, start_response)

    path = str(tmp_path / "socket")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    with serving(app, listener=listener), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(head(b"Connection: close"))
        assert statuses(received(connection)) == [200]
    assert (seen["REMOTE_ADDR"], seen["SERVER_NAME"], seen["SERVER_PORT"]) == ("", path, "0")


def test_access_log_has_one_escaped_line_per_request():
    log = io.StringIO()

    def app(environ, start_response):
        environ["REMOTE_USER"] = "a b\n"
        return echo(environ, start_response)

    with serving(app, access_log=log) as server:
        agent = b'User-Agent: x" \\ \xff\x80'
        exchange(server, head(agent, b"Referer: http://r", first=rb"GET /x?\y HTTP/1.1"))
        exchange(server, b"GARBAGE\r\n\r\n")

    first, second = log.getvalue().splitlines()
    date = r"\[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]"
    assert re.fullmatch(
        r'127\.0\.0\.1 - a\\x20b\\x0a ' + date + r' "GET /x\?\\x5cy HTTP/1\.1" 200 \d+ "http://r"'
        r' "x\\x22 \\x5c \\xff\\x80"', first)
    assert re.fullmatch(r'127\.0\.0\.1 - - ' + date + r' "GARBAGE" 400 \d+ "-" "-"', second)


@for_each("data, line", [
    (b"GET /x HTTP/1.1\r\n\r\n", "GET /x HTTP/1.1"),  # no Host
    (b"GET /x HTTP/2.0\r\n\r\n", "GET /x HTTP/2.0"),
    (b"GET /x HTTP/1.1\nHost: a\n\n", "GET /x HTTP/1.1"),
    (b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n1", "POST /x HTTP/1.1"),
    (b"GET /x", "GET /x"),
    (b"\x16\x03\x01\x02\0\x1b[2J\r\n\r\n", r"\x16\x03\x01\x02\x00\x1b[2J"),  # TLS
    (b'" 200 - "\xe2\x80\xa8\r\n\r\n', r"\x22 200 - \x22\xe2\x80\xa8"),
    (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n", "GET /" + "x" * 2043),
    (b"\r\n" + b"\0" * 20_000 + b"\r\n\r\n", r"\x00" * 512),
])
def test_access_log_has_the_escaped_request_line_of_a_rejected_request(data, line):
    log = io.StringIO()

    with serving(access_log=log) as server:
        assert statuses(exchange(server, data))[0] >= 400

    assert log.getvalue().count("\n") == 1
    assert log.getvalue().split("] ")[1].startswith(f'"{line}" ')


def test_access_log_line_fits_into_one_write_to_a_pipe():
    log = io.StringIO()

    def app(environ, start_response):
        environ.update(REMOTE_USER=" " * 999, REMOTE_ADDR="1" * 999)
        return echo(environ, start_response)

    with serving(app, access_log=log) as server:
        text = b"\xff" * 9999
        exchange(server, head(b"Referer: " + text, b"User-Agent: " + text,
                              first=b"GET /" + b"\\" * 9999 + b" HTTP/1.1"))

    assert 2000 < len(log.getvalue()) < select.PIPE_BUF


def test_access_log_without_a_reader_ends_and_requests_are_answered(caplog):
    reader, writer = os.pipe()
    os.close(reader)

    with open(writer, "w", closefd=False) as log, serving(echo, access_log=log) as server:
        assert statuses(exchange(server, head() + head())) == [200, 200]
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)

    assert [record.getMessage() for record in caplog.records] == [
        "The access log cannot be written, and ends here: [Errno 32] Broken pipe"]
    os.close(writer)


def test_access_log_goes_to_the_output(start):
    server = start("--access-log")
    server.request("/health")

    _, output, _ = server.stop()

    assert '"GET /health HTTP/1.1" 200 17 "-" "Python-urllib/' in output


# --- The log


def test_log_record_cannot_be_forged_by_the_text_of_an_exception():
    formatter = jwtserver._LogFormatter("AT %(name)s: %(message)s")
    try:
        raise ValueError('a\nAT jwtserver.audit: sign_in\r\x85\u2028AT x: y\x1b[2J\té')
    except ValueError:
        record = logging.LogRecord(
            "jwtserver", logging.ERROR, "", 0, "A fault\nAT x: y", (), sys.exc_info())

    text = formatter.format(record)

    assert [line for line in text.splitlines() if not line.startswith("    ")] == [
        "AT jwtserver: A fault"]
    assert text.endswith(
        "\n    AT jwtserver.audit: sign_in\\x0d\\x85\\x2028AT x: y\\x1b[2J\té")


# --- Output that nobody reads


def test_output_that_nobody_reads_does_not_block_the_server(start, tmp_path):
    """A pipe holds 64 KiB."""
    (tmp_path / "mine.py").write_text("""
import logging
logging.basicConfig(format="%(message)s")
def app(environ, start_response):
    logging.warning("a" * 1000)
    environ["wsgi.errors"].write("b" * 1000 + "\\n")
    print("c" * 1000)
    start_response("204 No Content", [])
    return []
""")
    server = start("--app", "mine:app", "--protect", "/x", "--access-log")

    data = server.raw(head(first=b"GET / HTTP/1.1") * 100)
    server.process.terminate()
    output, errors = server.process.communicate(timeout=20)

    assert statuses(data) == [204] * 100
    assert output.count("c" * 1000 + "\n") == output.count('"GET / HTTP/1.1" 204') == 100
    assert errors.count("a" * 1000 + "\n") == errors.count("b" * 1000 + "\n") == 100


@pytest.fixture
def pipe():
    """The two ends of a pipe, and a queue in front of the second."""
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as output, open(writer, "wb", buffering=0) as file:
        yield output, file, jwtserver._OutputQueue(writer)


def fill(file):
    """Fill a pipe, so that the next write blocks."""
    os.set_blocking(file.fileno(), False)
    filled = 0
    while written := file.write(b"." * 65536):
        filled += written
    os.set_blocking(file.fileno(), True)
    return filled


def test_output_beyond_the_queue_is_lost_and_counted(pipe, monkeypatch):
    output, file, queue = pipe
    monkeypatch.setattr(jwtserver, "MAX_QUEUED_OUTPUT", 100)
    filled = fill(file)

    for number in range(13):
        assert queue.write(b"line %02d..\n" % number) == 10
    queue.wait(0)  # gives up
    output.read(filled)
    queue.wait(10)
    queue.write(b"last\n")
    queue.wait(10)

    assert output.read(999).splitlines() == [
        *(b"line %02d.." % number for number in range(10)),
        b"jwtserver: nobody read 3 writes; they are lost", b"last"]


def test_output_to_a_full_pipe_that_does_not_block_is_written_later(pipe, monkeypatch):
    output, file, queue = pipe
    tried = threading.Event()
    monkeypatch.setattr("time.sleep", lambda seconds: tried.set())
    filled = fill(file)
    os.set_blocking(file.fileno(), False)

    queue.write(b"later")
    assert tried.wait(10)
    output.read(filled)
    queue.wait(10)

    assert output.read(99) == b"later"


def test_output_to_a_closed_pipe_raises_from_then_on(pipe):
    output, _, queue = pipe
    output.close()

    queue.write(b"lost")
    queue.wait(10)

    for _ in range(2):
        with pytest.raises(BrokenPipeError, match="Broken pipe"):
            queue.write(b"x")


def test_output_joins_lines_only_as_far_as_a_pipe_takes_them_in_one_piece(pipe):
    output, file, queue = pipe
    filled = fill(file)

    for size in (10, 3000, 1000, 5000, 10):
        queue.write(b"%d" % (size % 9) * size)
    output.read(filled)
    queue.wait(10)

    assert output.read(9999) == b"1" * 10 + b"3" * 3000 + b"1" * 1000 + b"5" * 5000 + b"1" * 10


def test_output_of_a_forked_process_is_written_at_once(pipe, monkeypatch):
    output, file, queue = pipe

    child = os.fork()
    if child == 0:
        queue.write(b"child")
        os._exit(0)
    os.waitpid(child, 0)

    assert output.read(99) == b"child"
    monkeypatch.setattr(queue, "_process_id", 0)  # the same, where coverage sees it
    queue.write(b"x")
    assert (output.read(99), queue._queue) == (b"x", b"")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_output_has_a_queue_only_where_it_may_block(monkeypatch, tmp_path, is_terminal):
    if is_terminal:
        reader, writer = os.openpty()
    else:
        reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as output, open(writer, "w") as stream:
        with open(tmp_path / "file", "w") as file:
            monkeypatch.setattr(sys, "stdout", stream)
            monkeypatch.setattr(sys, "stderr", file)
            with jwtserver._queued_output():
                assert (sys.stdout is stream, sys.stderr is file) == (False, True)
                assert sys.stdout.isatty() == is_terminal
                assert (sys.stdout.fileno(), sys.stdout.encoding) == (writer, stream.encoding)
                print("whole,", "and", end=" ")
                print("unfinished", end="")
            assert (sys.stdout, sys.stderr) == (stream, file)
        assert output.read(99) == b"whole, and unfinished"


@for_each("stream", [None, io.StringIO()])
def test_output_that_is_no_file_has_no_queue(monkeypatch, stream):
    monkeypatch.setattr(sys, "stdout", stream)

    with jwtserver._queued_output():
        assert sys.stdout is stream


def test_output_without_another_thread_has_no_queue(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    reader, writer = os.pipe()
    with open(reader), open(writer, "w") as stream:
        assert jwtserver._queued(stream) is stream


@pytest.mark.skipif(sys.platform != "linux", reason="needs priorities of threads")
def test_password_is_hashed_with_a_low_priority(monkeypatch):
    def verify(*arguments, **options):
        priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return False

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/other":
            priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return service(environ, start_response)

    priorities = []
    monkeypatch.setattr(jwtserver, "verify_password", verify)
    service = jwtserver.create_app(Settings())
    with serving(app) as server:
        body = b"username=alice&password=x"
        request = (b"POST /authenticate HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n"
                   b"Content-Type: application/x-www-form-urlencoded\r\n\r\n%b" % (len(body), body))
        other = b"GET /other HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        data = exchange(server, request + other)

    assert [status for status, _, _ in parse(data)] == [401, 404]
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert priorities == [min(19, jwtserver.HASH_NICENESS), own]


def test_slow_response_is_refused_if_its_thread_must_keep_the_loop():
    def app(environ, start_response):
        answers.append(environ["jwtserver.start_slow_response"]())
        return echo(environ, start_response)

    answers = []
    with serving(app, threads=1) as server:
        assert statuses(exchange(server, head(b"Connection: close"))) == [200]

    assert answers == [False]
