"""The service under other WSGI servers, each started by its command in `deployment/README.md`."""

import os
import shlex
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

import jwtserver
from support import ROOT, store_with, user
from wsgi_auth import InvalidSignatureError, decode

DEPLOYMENT = ROOT / "tests" / "deployment"
APACHE_MODULES = Path("/usr/lib/apache2/modules")

GUNICORN = "gunicorn --bind 127.0.0.1:8000 --workers 4 --threads 8 jwtserver:application"
UWSGI = ("uwsgi --http-socket 127.0.0.1:8000 --add-header 'Connection: close' --master"
         " --processes 4 --enable-threads --die-on-term --module jwtserver")
GRANIAN = "granian --interface wsgi --host 127.0.0.1 --port 8000 --workers 4 jwtserver:application"
DOCUMENTED_COMMANDS = {
    "gunicorn": GUNICORN,
    "uwsgi": UWSGI,
    "waitress": "waitress-serve --no-clear-untrusted-proxy-headers --listen 127.0.0.1:8000"
                " jwtserver:application",
    "cheroot": "python -m cheroot --bind 127.0.0.1:8000 jwtserver:application",
    "granian": GRANIAN,
    "bjoern": "python -c 'import bjoern, jwtserver;"
              ' bjoern.run(jwtserver.application, "127.0.0.1", 8000)\'',
}
# The module of a server, if it has another name than the server.
MODULES = {"uwsgi": "uwsgidecorators"}
COMMANDS = {
    **DOCUMENTED_COMMANDS,
    "gunicorn sync": GUNICORN.replace(" --threads 8", ""),
    "gunicorn sync --preload": GUNICORN.replace(" --threads 8", " --preload"),
    "gunicorn gthread --preload": GUNICORN.replace("--workers", "--preload --workers"),
    "gunicorn gevent": GUNICORN.replace("--threads 8", "--worker-class gevent"),
    "gunicorn gevent --preload": GUNICORN.replace("--threads 8", "--worker-class gevent --preload"),
}
# WORKERS builds its application at import. A preloading server does that before it forks.
SEVERAL_PROCESSES = {
    name: COMMANDS[name].replace("jwtserver:application", "workers:application")
                        .replace("--module jwtserver", "--module workers")
    for name in COMMANDS if "gunicorn" in name or name in ("uwsgi", "granian")}
WORKERS = '''
import os
import jwtserver

def show_process(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]

application = jwtserver.create_app(app=show_process)
'''


def command_for(name, command, port):
    module = name.partition(" ")[0]
    if not find_spec(MODULES.get(module, module)) or ("gevent" in name and not find_spec("gevent")):
        pytest.skip(f"{module} is not installed")
    return shlex.split(command.replace("8000", str(port)))


def check_sign_in_guard_refresh_and_logout(client):
    assert client("/protected")[0] == 401
    assert client("/%2e/PROTECTED")[0] == 401
    assert client.sign_in("wrong")[0] == 401

    status, headers, answer = client.sign_in()
    assert (status, headers["Cache-Control"]) == (200, "no-store")
    token = answer["token"]
    assert client("/protected", token=token)[2] == {"message": "Welcome to the protected page"}
    status, headers, _ = client("/verify", token=token)
    assert (status, headers["Remote-User"]) == (200, "alice")
    status, headers, _ = client("/protected", token=token + "x")
    assert status == 401 and 'error="invalid_token"' in headers["WWW-Authenticate"]
    status, _, answer = client("/refresh", {"refresh_token": answer["refresh_token"]})
    assert status == 200

    assert client("/logout", token=token, method="POST")[0] == 204
    for refused in (token, answer["token"]):
        for _ in range(8):  # any worker may answer
            assert client("/protected", token=refused)[0] == 401
    assert client("/refresh", {"refresh_token": answer["refresh_token"]})[0] == 401


def check_malformed_chunk_is_the_clients_fault(port):
    """Some servers raise an error of their own while the endpoint reads the body."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(
            b"POST /authenticate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nx\r\n{}\r\n0\r\n\r\n")
        assert connection.recv(9999).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 411 "))


@pytest.mark.parametrize("name", COMMANDS)
def test_server_signs_in_guards_and_logs_out(name, start, free_port):
    port = free_port()

    client = start(command_for(name, COMMANDS[name], port), port)

    check_sign_in_guard_refresh_and_logout(client)
    check_malformed_chunk_is_the_clients_fault(port)


@pytest.mark.parametrize("command", DOCUMENTED_COMMANDS.values(), ids=DOCUMENTED_COMMANDS)
def test_server_command_is_in_the_deployment_readme(command):
    assert f"    {command}\n" in (DEPLOYMENT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SEVERAL_PROCESSES)
def test_workers_share_logout_lock_out_and_keys(name, start, free_port, folder, monkeypatch):
    (folder / "workers.py").write_text(WORKERS)
    port = free_port()
    client = start(command_for(name, SEVERAL_PROCESSES[name], port), port,
                   JWTSERVER_LOGIN_FAILURES="3/900")
    token = client.sign_in()[2]["token"]

    workers = set()
    for _ in range(400):
        status, _, worker = client("/", token=token)
        assert status == 200
        workers.add(worker)
        if len(workers) == 4:
            break
    assert len(workers) > 1  # and each worker knows the session

    monkeypatch.chdir(folder)
    assert jwtserver.main(["key", "rotate"]) == 0
    new_key = (folder / "jwtserver.key").read_text().split()[0]
    assert client("/", token=token)[0] == 200
    end = time.monotonic() + 20
    signed_by_new_key = 0
    while signed_by_new_key < 12:  # in a row, from any worker
        newest = client.sign_in()[2]["token"]
        assert client("/", token=newest)[0] == 200
        assert client("/", token=token)[0] == 200
        try:
            decode(newest, new_key)
            signed_by_new_key += 1
        except InvalidSignatureError:
            signed_by_new_key = 0
            assert time.monotonic() < end

    client("/logout", token=token, method="POST")
    assert {client("/", token=token)[0] for _ in range(20)} == {401}
    assert client("/", token=newest)[0] == 200

    statuses = [client.sign_in("wrong")[0] for _ in range(5)]
    assert statuses == [401, 401, 401, 429, 429]
    assert client.sign_in()[0] == 429


OPEN_CONNECTION = """
store = jwtserver.open_store(os.environ["JWTSERVER_DATABASE"])
application = jwtserver.create_app(app=show_process, store=store)
store.ping()  # leaves a connection in the pool of the process that forks
"""


@pytest.mark.parametrize("name", ["uwsgi", "gunicorn gthread --preload"])
@pytest.mark.parametrize("more", ["", OPEN_CONNECTION], ids=["closed", "open"])
def test_workers_forked_after_the_import_share_no_connection_to_postgresql(
    name, more, start, free_port, folder, postgresql_url,
):
    """uWSGI forks without running Python's fork hooks."""
    (folder / "workers.py").write_text(WORKERS + more)
    store_with(postgresql_url, user("alice")).close()
    port = free_port()
    client = start(command_for(name, SEVERAL_PROCESSES[name], port), port,
                   JWTSERVER_DATABASE=postgresql_url)

    def work(number):
        status, _, answer = client.sign_in()
        assert status == 200
        workers = [client("/", token=answer["token"]) for _ in range(5)]
        assert {status for status, _, _ in workers} == {200}
        assert client("/refresh", {"refresh_token": answer["refresh_token"]})[0] == 200
        return {worker for _, _, worker in workers}

    with ThreadPoolExecutor(8) as pool:
        assert len(set().union(*pool.map(work, range(24)))) > 1


def apache_command(folder, port, script="jwtserver.py", processes=2):
    """The command of an Apache with `deployment/apache.conf`, which it writes into `folder`."""
    if not (APACHE_MODULES / "mod_wsgi.so").exists():
        pytest.skip("mod_wsgi is not installed")
    site = (DEPLOYMENT / "apache.conf").read_text(encoding="utf-8")
    site = site.replace("/srv/jwtserver/jwtserver.py", f"{folder}/{script}")
    site = site.replace("/srv/jwtserver", str(folder))
    site = site.replace("processes=2", f"processes={processes}")
    if os.getuid() == 0:  # Apache's processes change to another account
        shutil.chown(folder, "www-data")
        shutil.chown(folder / "jwtserver.db", "www-data")
        folder.chmod(0o755)
    (folder / "apache.conf").write_text(f"""
ServerRoot {folder}
ServerName localhost
Listen 127.0.0.1:{port}
PidFile {folder}/apache.pid
ErrorLog {folder}/log
User www-data
Group www-data
LoadModule mpm_event_module {APACHE_MODULES}/mod_mpm_event.so
LoadModule authz_core_module {APACHE_MODULES}/mod_authz_core.so
LoadModule wsgi_module {APACHE_MODULES}/mod_wsgi.so
{site}""")
    return ["apache2", "-D", "FOREGROUND", "-f", str(folder / "apache.conf")]


def test_apache_with_mod_wsgi_signs_in_guards_and_logs_out(start, free_port, folder):
    port = free_port()

    client = start(apache_command(folder, port), port)

    check_sign_in_guard_refresh_and_logout(client)
