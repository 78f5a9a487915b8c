"""`/verify` behind real proxies, with the configuration in the README."""

import re
import shutil
import sys

import pytest

from support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
NGINX = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {site}
    server {{
        listen 127.0.0.1:9000;
        location / {{
            default_type text/plain;
            return 200 "user=$http_remote_user scope=$http_remote_scope method=$request_method";
        }}
    }}
}}
"""
CADDY = """
{{
    admin off
    storage file_system {folder}
}}
{site}
http://:9000 {{
    respond "user={{header.Remote-User}} scope={{header.Remote-Scope}} method={{method}}"
}}
"""


@pytest.fixture
def server(start, free_port, folder):
    """A jwtserver that trusts one proxy and locks a user out after three failures."""
    port = free_port()
    return start([sys.executable, "jwtserver.py", "--port", str(port)], port,
                 JWTSERVER_TRUSTED_PROXIES="1", JWTSERVER_LOGIN_FAILURES="3/900")


@pytest.fixture
def configure(server, free_port, folder):
    """Writes a configuration from the README, with the ports and folders of this test."""
    def configure(kind, program, template):
        if not shutil.which(program, path="/usr/sbin:/usr/bin:/usr/local/bin"):
            pytest.skip(f"{program} is not installed")
        (recipe,) = re.findall(f"```{kind}\n(.*?)```", README, re.DOTALL)
        (folder / "site").mkdir()
        (folder / "site" / "index.html").write_text("a page")
        folder.chmod(0o755)
        text = template.format(folder=folder, site=recipe)
        port, backend, service = free_port(), free_port(), server.url.rpartition(":")[2]
        for printed, used in [
            ("listen 8080", f"listen 127.0.0.1:{port}"),
            ("http://:8080 {", f"http://:{port} {{\nbind 127.0.0.1\n"),
            ("http://:9000 {", f"http://:{backend} {{\nbind 127.0.0.1\n"),
            ("127.0.0.1:3000", f"127.0.0.1:{service}"),
            ("127.0.0.1:9000", f"127.0.0.1:{backend}"),
            ("/srv/site", f"{folder}/site"),
        ]:
            text = text.replace(printed, used)
        path = folder / f"{program}.conf"
        path.write_text(text)
        return path, port

    return configure


def token_from(client):
    status, _, tokens = client.sign_in()
    assert status == 200
    return tokens["token"]


def check_token_is_required(client, path):
    status, headers, _ = client(path, headers={"Remote-User": "root"})
    assert (status, headers["WWW-Authenticate"]) == (401, 'Bearer realm="api"')
    status, headers, _ = client(path, token="x.y.z")
    assert status == 401 and 'error="invalid_token"' in headers["WWW-Authenticate"]


def check_backend_receives_user(client, token, path):
    spoofed = {"Remote-User": "root", "Remote_User": "root", "Remote-Scope": "all"}
    for method, fields in (("GET", None), ("DELETE", None), ("POST", {"a": "b" * 100_000})):
        status, _, body = client(path, fields, token=token, method=method, headers=spoofed)
        assert (status, body) == (200, f"user=alice scope= method={method}".encode())


def check_failures_count_for_the_client_address(client, folder):
    statuses = [
        client("/authenticate", {"username": "alice", "password": "wrong"},
               headers={"X-Forwarded-For": f"192.0.2.{number}"})[0]
        for number in range(4)]
    assert statuses == [401, 401, 401, 429]
    assert 'sign_in_failed user="alice" address="127.0.0.1"' in (folder / "log").read_text()
    assert "192.0.2." not in (folder / "log").read_text()


def test_nginx_asks_verify_before_files_and_another_application(configure, start, folder):
    path, port = configure("nginx", "nginx", NGINX)

    client = start(["nginx", "-c", str(path), "-e", str(folder / "log")], port, path="/")

    token = token_from(client)
    for url in ("/", "/index.html", "/api/", "/api/x?y=/public"):
        check_token_is_required(client, url)
    assert client("/index.html", token=token)[2] == b"a page"
    assert client("/verify", token=token)[0] == 404
    check_backend_receives_user(client, token, "/api/things")
    check_failures_count_for_the_client_address(client, folder)
    assert client("/logout", token=token, method="POST")[0] == 204
    check_token_is_required(client, "/api/")
    assert client("/api/", token=token)[0] == 401


def test_caddy_asks_verify_before_another_application(configure, start, folder):
    path, port = configure("caddy", "caddy", CADDY)

    client = start(["caddy", "run", "--adapter", "caddyfile", "--config", str(path)], port,
                   path="/", HOME=str(folder))

    token = token_from(client)
    check_token_is_required(client, "/api/")
    check_backend_receives_user(client, token, "/api/things")
    check_failures_count_for_the_client_address(client, folder)
    assert client("/logout", token=token, method="POST")[0] == 204
    assert client("/api/", token=token)[0] == 401
