"""Real proxies with the configuration in the README and in `deployment`, before every WSGI server.

Each server runs one process with the service and an application. Both show the environ that they
have received, so that a test sees what a client could forge.
"""

import http.client
import json
import re
import shutil
import socketserver
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

import jwtserver
from http_support import CERTIFICATE
from support import PASSWORD, ROOT, free_port, user
from test_wsgi_servers import DEPLOYMENT, DOCUMENTED_COMMANDS, apache_command, command_for

README = (ROOT / "README.md").read_text(encoding="utf-8")
# Caddy has changed how it treats these headers several times. `caddy` is Debian's. `.ci/run`
# installs the others.
CADDIES = {"caddy": "caddy", **{
    f"caddy {version}": str(ROOT / f".ci/caddy-{version}/bin/caddy")
    for version in ("2.8.4", "2.10.2", "2.11.1", "2.11.7")}}
PROXIES = ["nginx", *CADDIES, "traefik", "envoy"]
SERVERS = ["jwtserver", "mod_wsgi", *DOCUMENTED_COMMANDS]
BACKEND = '''
import json
import jwtserver

asked = {}

def show(environ):
    return json.dumps({key: value for key, value in environ.items() if type(value) is str})

def application(environ, start_response):
    def start(status, headers, *exc_info):
        if environ["PATH_INFO"] == "/verify":
            asked["verify"] = show(environ)
        if environ["PATH_INFO"] in ("/authenticate", "/health"):
            headers = [*headers, ("Seen", show(environ))]
        return start_response(status, headers, *exc_info)

    if not environ["PATH_INFO"].startswith("/api/"):
        return service(environ, start)
    received = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["received"] = str(len(received))
    body = f'{{"application": {show(environ)}, "verify": {asked["verify"]}}}'.encode()
    start_response("200 OK", [("Content-Type", "application/json"),
                              ("Content-Length", str(len(body)))])
    return [body]

service = jwtserver.create_app()
'''
OWN_SERVER = '''
import sys
import backend
import jwtserver

jwtserver.create_app = lambda *args, **options: backend.application
sys.exit(jwtserver.main())
'''
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
}}
"""
CADDY = """
{{
    admin off
    storage file_system {folder}
}}
{site}
"""


@pytest.fixture(scope="module")
def backend(request, open_folder, open_start):
    """A server with the service, which trusts one proxy, and an application."""
    port = free_port()
    with open_folder() as folder, open_start(folder) as start:
        store = jwtserver.open_store(str(folder / "jwtserver.db"))
        store.set_scope("alice", "read")
        store.add_users([user("bob"), user("carol", "staff admin")])
        store.close()
        (folder / "backend.py").write_text(BACKEND)
        (folder / "own_server.py").write_text(OWN_SERVER)
        client = start(backend_command(request.param, folder, port), port,
                       JWTSERVER_TRUSTED_PROXIES="1", JWTSERVER_LOGIN_FAILURES="3/900",
                       JWTSERVER_PBKDF2_ITERATIONS="1000")
        client.folder = folder
        yield client


def backend_command(server, folder, port):
    """The documented command for a server, with one process and the module BACKEND."""
    if server == "jwtserver":
        return [sys.executable, "own_server.py", "--port", str(port)]
    if server == "mod_wsgi":
        return apache_command(folder, port, "backend.py", processes=1)
    command = re.sub(r"(workers|processes) 4", r"\1 1", DOCUMENTED_COMMANDS[server])
    return command_for(server, command.replace("jwtserver", "backend"), port)


@pytest.fixture
def proxy(request, backend, open_start):
    """The client of a proxy with the README's configuration, in front of a server.

    After the name of the proxy, `, optional` means that no token is needed.
    """
    name, optional, _ = request.param.partition(", optional")
    port, tls_port = free_port(), free_port()
    program = CADDIES.get(name, name)
    if not shutil.which(program, path=f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin"):
        pytest.skip(f"{name} is not installed")
    folder = backend.folder / f"proxy-{port}"
    (folder / "site").mkdir(parents=True)
    (folder / "site" / "index.html").write_text("a page")
    (folder / "pem").write_text(CERTIFICATE)
    backend.folder.chmod(0o755)

    def write(file_name, text):
        for printed, used in [
            ("listen 8080", f"listen 127.0.0.1:{port}; listen 127.0.0.1:{tls_port} ssl;"
             f" ssl_certificate {folder}/pem; ssl_certificate_key {folder}/pem"),
            ("\nhttp://:8080 {", f"\nhttp://:{port} {{\nbind 127.0.0.1\n"),
            ("address: :8080", f"address: 127.0.0.1:{port}"),
            ("0.0.0.0, port_value: 8080", f"127.0.0.1, port_value: {port}"),
            ("port_value: 3000", f"port_value: {backend.host.rpartition(':')[2]}"),
            ("port_value: 9000", f"port_value: {backend.host.rpartition(':')[2]}"),
            ("127.0.0.1:3000", backend.host), ("127.0.0.1:9000", backend.host),
            ("/srv/site", f"{folder}/site"),
        ]:
            text = text.replace(printed, used)
        if optional:
            text = text.replace("/verify?login", "/verify?optional").replace(  # and for nginx:
                f"internal;\n    proxy_pass http://{backend.host};",
                f"internal;\n    proxy_pass http://{backend.host}/verify?optional;")
        (folder / file_name).write_text(text)

    if name == "nginx":
        for file in ("nginx-jwtserver.conf", "nginx-groups.conf"):
            write(file, deployment_file(file))
        # The groups are in the same server block.
        include = "include nginx-jwtserver.conf;"
        site = readme_block("nginx", include).replace(
            include, f"{include} include nginx-groups.conf;")
        write("nginx.conf", NGINX.format(folder=folder, site=site))
        command = ["nginx", "-c", f"{folder}/nginx.conf", "-e", f"{folder}/log"]
    elif name == "traefik":
        (folder / "traefik.d").mkdir()
        write("traefik.yml", deployment_file("traefik.yml"))
        write("traefik.d/jwtserver.yml", deployment_file("traefik.d/jwtserver.yml"))
        write("traefik.d/application.yml", deployment_file("traefik.d/application.yml"))
        command = ["traefik", "--configfile=traefik.yml"]
    elif name == "envoy":
        write("envoy.yaml", deployment_file("envoy.yaml"))
        command = ["envoy", "--config-path", "envoy.yaml", "--concurrency", "1",
                   "--disable-hot-restart", "--log-level", "warning"]
    else:
        # The folder that needs a scope is a comment in the README.
        site = re.sub(r"\t# (?=forward_auth|\turi|})", "\t", readme_block("caddy"))
        assert site.count("forward_auth") == 2
        write("Caddyfile", CADDY.format(folder=folder, site=site))
        command = [program, "run"]
    with open_start(folder) as start:
        client = start(command, port, path="/api/", HOME=str(folder))
        # Traefik serves before it has read its other files.
        assert any(client("/api/")[0] in (200, 401) for _ in range(2000))
        client.name, client.tls_url = name, f"https://127.0.0.1:{tls_port}"
        yield client


def readme_block(kind, word=""):
    blocks = re.findall(f"```{kind}\n(.*?)```", README, re.DOTALL)
    (block,) = [block for block in blocks if word in block]
    return block


def deployment_file(name):
    return (DEPLOYMENT / name).read_text(encoding="utf-8")


def ask(client, path, headers=(), token=None, method="GET", body=None):
    """Status, headers and body, for headers in any spelling, and more than once."""
    if token:
        headers = [*headers, ("Authorization", f"Bearer {token}")]
    if body is not None:
        headers = [*headers, ("Content-Length", str(len(body)))]
    while True:
        with closing(http.client.HTTPConnection(client.host, timeout=20)) as connection:
            connection.putrequest(method, path)
            for name, value in headers:
                connection.putheader(name, value)
            connection.endheaders(body)
            with connection.getresponse() as response:
                # Caddy before 2.11.7 cuts off one in a hundred responses to POST, with any server.
                with suppress(http.client.IncompleteRead):
                    answer = response.read()
                    break
    if response.headers["Content-Type"] == "application/json":
        answer = json.loads(answer or "null")
    return response.status, response.headers, answer


FORGED_USER = [("Remote-User", "root"), ("Remote-Scope", "admin")]
FORGED_USER_WITH_UNDERSCORES = [("Remote_User", "root"), ("REMOTE_SCOPE", "admin")]
CONNECTION = [("Connection", "close, Remote-User, Remote-Scope, Remote_User, X-Forwarded-For,"
                             " X-Forwarded-Method, X-Forwarded-Uri, X-Forwarded-Proto")]
FORGED_CLIENT = [
    (name.replace("-", separator, 1), value) for separator in "-_" for name, value in [
        ("X-Forwarded-For", "9.9.9.9"), ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "forged.example"), ("X-Forwarded-Method", "HEAD"),
        ("X-Forwarded-Uri", "/forged"), ("X-Real-IP", "9.9.9.9"),
        ("X-FORWARDED_FOR", "9.9.9.9"), ("x-forwarded_proto", "https")]
] + [("Forwarded", "for=9.9.9.9;proto=https;host=forged.example")]
FORGERIES = {
    "user": FORGED_USER,
    "user with underscores": FORGED_USER_WITH_UNDERSCORES,
    "both": FORGED_USER_WITH_UNDERSCORES + FORGED_USER + FORGED_USER_WITH_UNDERSCORES,
    "user in capitals": [(name.upper(), value) for name, value in FORGED_USER],
    "user removed": CONNECTION,
    "user removed and replaced": CONNECTION + FORGED_USER_WITH_UNDERSCORES + FORGED_USER,
    "client": FORGED_CLIENT,
    "everything": FORGED_CLIENT + CONNECTION + FORGED_USER + FORGED_USER_WITH_UNDERSCORES,
}


def forgeries_for(proxy):
    """All forgeries, without those to which a proxy answers 400."""
    if proxy.name != "envoy":
        return FORGERIES.values()
    assert ask(proxy, "/api/", CONNECTION)[0] == 400
    harmless = ("Connection", "close, Remote-User, Remote-Scope, Remote_User")
    return [[harmless if header in CONNECTION else header for header in forgery]
            for forgery in FORGERIES.values()]


@pytest.mark.parametrize("backend", SERVERS, indirect=True)
@pytest.mark.parametrize("proxy", PROXIES, indirect=True)
def test_proxy_passes_on_only_the_user_and_the_client_that_it_has_seen(proxy, backend):
    tokens = {name: proxy("/authenticate", {"username": name, "password": PASSWORD})[2]["token"]
              for name in ("alice", "bob")}

    for forgery in forgeries_for(proxy):
        check_user_is_needed(proxy, forgery)
        check_user_is_that_of_the_token(proxy, tokens["alice"], "alice", "read", forgery)
        check_user_is_that_of_the_token(proxy, tokens["bob"], "bob", "", forgery)
        check_service_sees_the_client(proxy, forgery)
    check_failures_count_for_the_client_address(proxy, backend)
    assert proxy("/logout", token=tokens["alice"], method="POST")[0] == 204
    assert proxy("/api/", token=tokens["alice"])[0] == 401
    assert proxy("/api/", token=tokens["bob"])[0] == 200


@pytest.mark.parametrize("backend", ["cheroot"], indirect=True)  # `Remote_User` is `Remote-User`
@pytest.mark.parametrize("proxy", [  # Caddy before 2.10 passes on the name of its own variable
    f"{name}, optional" for name in PROXIES if name not in ("caddy", "caddy 2.8.4")], indirect=True)
def test_proxy_passes_on_no_user_without_a_token(proxy, backend):
    token = proxy.sign_in()[2]["token"]

    for forgery in forgeries_for(proxy):
        status, _, seen = ask(proxy, "/api/", forgery)
        assert status == 200
        for environ in (seen["application"], seen["verify"]):
            check_client(environ, proxy)
            assert not environ.get("HTTP_REMOTE_USER") and not environ.get("HTTP_REMOTE_SCOPE")
        assert ask(proxy, "/api/", forgery, token="x.y.z")[0] == 401
        seen = ask(proxy, "/api/", forgery, token)[2]
        assert seen["application"]["HTTP_REMOTE_USER"] == "alice"


def check_user_is_needed(proxy, forgery):
    status, headers, _ = ask(proxy, "/api/", forgery)
    assert (status, headers["WWW-Authenticate"]) == (401, 'Bearer realm="api"')
    status, headers, _ = ask(proxy, "/api/?optional", forgery, token="x.y.z")
    (challenge,) = headers.get_all("WWW-Authenticate")
    assert status == 401 and 'error="invalid_token"' in challenge


def check_user_is_that_of_the_token(proxy, token, name, scope, forgery):
    path = "/api/a%20b?optional&scope=admin&scope=x"

    status, _, seen = ask(proxy, path, forgery, token, "POST", b"x" * 70_000)

    assert status == 200
    application, verify = seen["application"], seen["verify"]
    assert application["HTTP_REMOTE_USER"] == name
    assert application.get("HTTP_REMOTE_SCOPE", "") == scope
    assert (application["REQUEST_METHOD"], application["received"]) == ("POST", "70000")
    assert verify["PATH_INFO"] == "/verify"
    assert verify.get("QUERY_STRING", "") in ("", "login")  # nginx has two locations
    assert (verify["HTTP_X_FORWARDED_METHOD"], verify["HTTP_X_FORWARDED_URI"]) == ("POST", path)
    for environ in (application, verify):
        check_client(environ, proxy)


def check_service_sees_the_client(proxy, forgery):
    status, headers, _ = ask(proxy, "/authenticate", forgery)
    assert status == 405
    check_client(json.loads(headers["Seen"]), proxy)


def check_client(environ, proxy):
    forged = {"root", "admin", "9.9.9.9", "https", "forged.example", "HEAD", "/forged"}
    assert not {key: value for key, value in environ.items() if value in forged}
    assert "HTTP_FORWARDED" not in environ
    assert environ["HTTP_X_FORWARDED_FOR"] == "127.0.0.1"
    assert environ["HTTP_X_FORWARDED_PROTO"] == environ["wsgi.url_scheme"] == "http"
    assert environ["HTTP_X_FORWARDED_HOST"] == environ["HTTP_HOST"] == proxy.host


def check_failures_count_for_the_client_address(proxy, backend):
    name = f"nobody at {proxy.host}"
    statuses = []
    for number in range(4):
        forged = [(header, f"192.0.2.{number}") for header in (
            "X-Forwarded-For", "X_Forwarded_For", "X-Forwarded_For", "X-Real-IP")]
        body = json.dumps({"username": name, "password": "x"}).encode()
        statuses.append(ask(proxy, "/authenticate", [*forged, ("Content-Type", "application/json")],
                            method="POST", body=body)[0])
    assert statuses == [401, 401, 401, 429]


@pytest.mark.parametrize("backend", SERVERS, indirect=True)
def test_service_without_a_proxy_hides_the_identity_headers_of_a_client(backend):
    for forgery in FORGERIES.values():
        _, headers, _ = ask(backend, "/health", forgery)
        assert {"root", "admin"}.isdisjoint(json.loads(headers["Seen"]).values())


@pytest.mark.parametrize("backend", ["jwtserver"], indirect=True)
@pytest.mark.parametrize("proxy", ["nginx"], indirect=True)
def test_nginx_asks_verify_before_files(proxy, backend):
    token = proxy.sign_in()[2]["token"]

    assert proxy("/index.html")[0] == proxy("/")[0] == 401
    assert proxy("/index.html", token=token)[2] == b"a page"
    assert proxy("/verify", token=token)[0] == 404


@pytest.mark.parametrize("backend", ["jwtserver"], indirect=True)
@pytest.mark.parametrize("proxy", PROXIES[:-1], indirect=True)
def test_proxy_upgrades_only_to_websocket(proxy, backend):
    token = proxy.sign_in()[2]["token"]

    for protocols in [["websocket"], ["h2c"], ["h2c, websocket"], ["h2c", "websocket"], []]:
        headers = [("Connection", "Upgrade"), *(("Upgrade", protocol) for protocol in protocols)]
        seen = ask(proxy, "/api/", headers, token)[2]
        allowed = ["websocket"] if protocols == ["websocket"] else ["websocket", None]
        assert seen["application"].get("HTTP_UPGRADE") in allowed


@pytest.mark.parametrize("backend", ["jwtserver"], indirect=True)
@pytest.mark.parametrize("proxy", ["envoy"], indirect=True)
def test_envoy_does_not_upgrade_to_http_2(proxy, backend):
    token = proxy.sign_in()[2]["token"]

    for protocols in ["h2c", "h2c, websocket"]:
        headers = [("Connection", "Upgrade"), ("Upgrade", protocols)]
        status, _, seen = ask(proxy, "/api/", headers, token)
        assert status == 403 or "HTTP_UPGRADE" not in seen["application"]


class Browser:
    """What a person's browser does, over a proxy: it keeps the cookie and says who sends a form."""

    def __init__(self, proxy):
        self.proxy = proxy
        self.cookie = ""

    def __call__(self, path, form=None, origin=None, forged=()):
        headers = [("Accept", "text/html,*/*;q=0.8"), *forged]
        if self.cookie:
            headers.append(("Cookie", self.cookie))
        if form is None:
            return ask(self.proxy, path, headers)
        headers += [("Origin", origin or self.proxy.url),
                    ("Content-Type", "application/x-www-form-urlencoded")]
        status, headers, body = ask(
            self.proxy, path, headers, method="POST", body=urlencode(form).encode())
        if headers["Set-Cookie"]:
            self.cookie = headers["Set-Cookie"].partition(";")[0]
        return status, headers, body

    def sign_in(self, name, next_page="/"):
        return self("/login", {"username": name, "password": PASSWORD, "next": next_page})


@pytest.fixture
def browser(proxy):
    return Browser(proxy)


PAGE = "/api/a%20b?c=%26&d='%22"


@pytest.mark.parametrize("backend", ["jwtserver"], indirect=True)
@pytest.mark.parametrize("proxy", PROXIES, indirect=True)
def test_proxy_sends_people_to_the_form_and_back_to_the_page(browser, backend):
    status, headers, _ = browser(PAGE)
    assert (status, headers["Cache-Control"]) == (303, "no-store")
    login = urlsplit(headers["Location"])
    assert (login.scheme, login.netloc, login.path) == ("", "", "/login")
    assert parse_qs(login.query) == {"next": [PAGE]}
    status, _, form = browser(headers["Location"])
    assert status == 200 and b"</form>" in form
    assert browser("/login", {"username": "alice"})[0] == 401

    status, headers, _ = browser.sign_in("alice", PAGE)

    assert (status, headers["Location"]) == (303, PAGE)
    status, _, seen = browser(PAGE)
    assert (status, seen["application"]["HTTP_REMOTE_USER"]) == (200, "alice")
    assert b"Your account" in browser("/login")[2]
    assert browser("/sessions")[2]["sessions"][0]["current"]
    status, headers, _ = browser("/logout", {})
    assert (status, headers["Location"]) == (303, "/login")
    assert "Max-Age=0" in headers["Set-Cookie"]


@pytest.mark.parametrize("backend", ["jwtserver"], indirect=True)
@pytest.mark.parametrize("proxy", PROXIES, indirect=True)
def test_proxy_admits_a_cookie_only_from_its_own_pages(browser, proxy, backend):
    browser.sign_in("alice")
    stolen = browser.cookie
    website = "http://other.example"
    safe = [("X-Forwarded-Method", "GET"), ("X_Forwarded_Method", "GET"),
            ("X-HTTP-Method-Override", "GET")]
    handshake = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Origin", website),
                 ("Sec-WebSocket-Key", "eA=="), ("Sec-WebSocket-Version", "13")]
    host = [("X-Forwarded-Host", "other.example"), ("X_Forwarded_Host", "other.example"),
            ("Forwarded", "host=other.example")]

    assert browser("/api/", {"a": "b"})[0] == 200
    for forged in [[], safe, host, safe + host, [("Sec-Fetch-Site", "cross-site")]]:
        assert browser("/api/", {"a": "b"}, website, forged)[0] == 403
        assert browser("/api/", {"a": "b"}, "null", forged)[0] == 403
        assert browser("/login", {"username": "bob"}, website, forged)[0] == 403
        assert browser("/logout", {}, website, forged)[0] == 403
    assert browser("/api/", {"a": "b"}, forged=[("Sec-Fetch-Site", "cross-site")])[0] == 403
    assert browser("/api/", forged=handshake)[0] == 403
    assert browser("/api/")[0] == 200
    assert browser("/logout", {})[0] == 303
    assert ask(proxy, "/api/", [("Cookie", stolen)])[0] == 401


@pytest.mark.parametrize("backend", ["jwtserver"], indirect=True)
@pytest.mark.parametrize("proxy", PROXIES, indirect=True)
def test_proxy_answers_programs_and_forgeries_with_401(browser, proxy, backend):
    for forgery in forgeries_for(proxy):
        for query in ["", "?optional", "?optional&login&scope=x", "?%6Fptional"]:
            status, headers, body = ask(proxy, f"/api/{query}", forgery)
            assert (status, headers.get_all("WWW-Authenticate")) == (401, ['Bearer realm="api"'])
            assert body == {"success": False, "error": "An authorization header is required"}
        status, headers, _ = browser("/api/?optional", forged=forgery)
        assert (status, headers["Location"]) == (303, "/login?next=/api/%3Foptional")
        assert browser("/api/", {"a": "b"}, forged=forgery)[0] == 401
        assert browser("/api/", forged=[*forgery, ("Authorization", "Bearer x")])[0] == 401
    status, _, body = ask(proxy, "/api/", method="HEAD")
    assert status == 401 and not body
    assert ask(proxy, "/health")[0] == 401


@pytest.mark.parametrize("backend", ["jwtserver"], indirect=True)
@pytest.mark.parametrize("proxy", PROXIES, indirect=True)
def test_proxy_sends_people_to_the_form_from_an_address_of_any_length(browser, backend):
    for length in [2000, 2048, 3000, 3900, 4080, 6000]:
        status, headers, _ = browser("/api/?" + "x" * length)
        assert status == 303
        page = parse_qs(urlsplit(headers["Location"]).query)["next"][0]
        browser.cookie = ""
        assert browser.sign_in("alice", page)[0] == 303
        assert browser.sign_in("alice", "/" + "x" * length)[0] == 303
        browser.cookie = ""


@pytest.mark.parametrize("backend", ["jwtserver"], indirect=True)
@pytest.mark.parametrize("proxy", ["nginx", *CADDIES], indirect=True)
def test_static_site_is_for_people_who_have_signed_in(browser, backend):
    assert browser("/index.html")[1]["Location"] == "/login?next=/index.html"

    browser.sign_in("alice")

    status, headers, body = browser("/")
    assert (status, headers["Cache-Control"], body) == (200, "private, no-cache", b"a page")
    assert browser("/missing")[0] == 404
    cached = [("If-None-Match", headers["ETag"])]  # what a browser asks before it shows the page
    assert browser("/", forged=cached)[0] == 304
    browser("/logout", {})
    assert browser("/", forged=cached)[1]["Location"] == "/login?next=/"


@pytest.mark.parametrize("backend", ["jwtserver"], indirect=True)
@pytest.mark.parametrize("proxy", ["nginx"], indirect=True)
def test_nginx_has_locations_for_groups(browser, backend):
    pages = {"/staff/": 404, "/api/admin/": 200}  # the status for a user with the scope
    unusual = ["/api/%61dmin/", "/api/x/../admin/", "//api//admin/?optional", "/api/./admin/x"]
    for page in pages:
        assert browser(page)[1]["Location"] == f"/login?next={page}"

    browser.sign_in("alice")
    assert [browser(page)[0] for page in pages] == [403, 403]
    assert {browser(page)[0] for page in unusual} == {403}
    assert browser("/api/")[0] == 200

    browser.sign_in("carol")
    assert [browser(page)[0] for page in pages] == [*pages.values()]
    assert browser("/api/admin/")[2]["application"]["HTTP_REMOTE_SCOPE"] == "staff admin"
    assert browser("/verify-scope/staff")[0] == 404


@pytest.mark.parametrize("backend", ["jwtserver"], indirect=True)
@pytest.mark.parametrize("proxy", ["nginx"], indirect=True)
def test_nginx_says_what_is_denied_for_lack_of_a_scope_and_to_whom(browser, proxy, backend):
    for folder in ("staff", "closed"):
        (backend.folder / f"proxy-{proxy.host.rpartition(':')[2]}" / "site" / folder).mkdir()
    token = proxy.sign_in()[2]["token"]
    browser.sign_in("alice")

    for method, body in [("GET", None), ("POST", b"x")]:
        status, headers, answer = ask(proxy, "/api/admin/", [], token, method, body)
        assert (status, answer["error"]) == (403, "Insufficient scope")
        (challenge,) = headers.get_all("WWW-Authenticate")
        assert 'scope="admin"' in challenge
    for page in ("/staff/", "/api/admin/?scope=read&login"):
        status, headers, answer = browser(page)
        assert (status, headers["Cache-Control"]) == (403, "no-store")
        assert b"You are signed in as alice, but have no access to this page" in answer
    assert browser("/api/admin/", {"a": "b"})[2]["error"] == "Insufficient scope"

    # These are refused for other reasons than a scope.
    carol = Browser(proxy)
    carol.sign_in("carol")
    refused = [browser("/closed/"), carol("/closed/"), carol("/staff/"),
               carol("/api/admin/", {"a": "b"}, "http://other.example"),
               browser("/api/", {"a": "b"}, "http://other.example")]
    assert all(status == 403 and b"<h1>403 Forbidden" in body for status, _, body in refused)


@pytest.mark.parametrize("backend", ["jwtserver"], indirect=True)
@pytest.mark.parametrize("proxy", CADDIES, indirect=True)
def test_caddy_has_folders_that_need_a_scope(browser, backend):
    pages = ["/staff/", "/staff/x", "/%73taff/x", "/x/../staff/x", "//staff//x", "/STAFF/x"]
    assert browser("/staff/")[1]["Location"] == "/login?next=/staff/"

    browser.sign_in("alice")
    assert {browser(page)[0] for page in pages} == {403}
    assert browser("/")[0] == 200

    browser.sign_in("carol")
    assert {browser(page)[0] for page in pages} == {404}  # there are no such files


GUARDED_APPLICATION = """
import os
import jwtserver

def show(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    names = ["REMOTE_USER", "REMOTE_ADDR", "wsgi.url_scheme", "HTTP_HOST"]
    return [" ".join(environ[name] for name in names).encode()]

app = jwtserver.create_app(app=show)
"""


def test_guarded_application_in_gunicorn_takes_the_client_from_nginx(folder, start):
    if not shutil.which("nginx", path="/usr/sbin:/usr/bin"):
        pytest.skip("nginx is not installed")
    (folder / "main.py").write_text(GUARDED_APPLICATION)
    unit = deployment_file("application.service")
    (command,) = re.findall("^ExecStart=/opt/application/.venv/bin/(.*)$", unit, re.MULTILINE)
    port, application_port = free_port(), free_port()
    location = readme_block("nginx", "location / {\n    proxy_pass")
    site = f"server {{ listen 127.0.0.1:{port}; {location} }}"
    configuration = NGINX.format(folder=folder, site=site)
    (folder / "nginx.conf").write_text(configuration.replace(":8000", f":{application_port}"))

    start(command_for("gunicorn", command, application_port), application_port,
          JWTSERVER_TRUSTED_PROXIES="1")
    nginx = start(["nginx", "-c", f"{folder}/nginx.conf", "-e", f"{folder}/log"], port)

    browser = Browser(nginx)
    assert browser("/page")[1]["Location"] == "/login?next=/page"
    assert browser.sign_in("alice", "/page")[1]["Location"] == "/page"
    seen = f"alice 127.0.0.1 http {nginx.host}".encode()
    assert browser("/page", {"a": "b"})[2] == browser("/page", forged=FORGED_CLIENT)[2] == seen


class ReadAndClose(socketserver.BaseRequestHandler):
    """A machine that stops after it has received a request."""

    def handle(self):
        self.request.recv(65536)


@pytest.fixture
def broken_machine():
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), ReadAndClose) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield "127.0.0.1:%d" % server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("state, answers", [("unreachable", {200}), ("broken", {200, 502})])
def test_nginx_repeats_requests_at_the_other_of_two_machines(
        state, answers, broken_machine, folder, start):
    if not shutil.which("nginx", path="/usr/sbin:/usr/bin"):
        pytest.skip("nginx is not installed")
    port, service_port = free_port(), free_port()
    service = start([sys.executable, "jwtserver.py", "--port", str(service_port)], service_port,
                    JWTSERVER_TRUSTED_PROXIES="1")
    other = broken_machine if state == "broken" else f"127.0.0.1:{free_port()}"
    for name in ("nginx-jwtserver.conf", "nginx-groups.conf"):
        text = deployment_file(name).replace("http://127.0.0.1:3000", "http://jwtserver")
        (folder / name).write_text(text)
    (site,) = re.findall("^    upstream .*\n.*$", deployment_file("README.md"), re.MULTILINE)
    site = site.replace("192.0.2.1:3000", other).replace("192.0.2.2:3000", service.host)
    include = "include nginx-jwtserver.conf;"
    site += "\n" + readme_block("nginx", include).replace(
        include, f"{include} include nginx-groups.conf;").replace(
        "listen 8080", f"listen 127.0.0.1:{port}").replace("/srv/site", str(folder))
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, site=site))
    folder.chmod(0o755)

    nginx = start(["nginx", "-c", f"{folder}/nginx.conf", "-e", f"{folder}/log"], port)

    token = service.sign_in()[2]["token"]
    for path in ("/sessions", "/wsgi_auth.py", "/wsgi_auth.py"):
        assert nginx(path, token=token)[0] == 200
    assert nginx("/staff/", token=token)[0] == 403
    assert {nginx.sign_in()[0] for _ in range(4)} == answers


@pytest.fixture
def chromium():
    pages = pytest.importorskip("test_sign_in_pages")  # needs Selenium
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        pytest.skip("Chromium is not installed")
    chromium = pages.Browser()
    yield chromium
    chromium.quit()


@pytest.mark.parametrize("backend", ["jwtserver"], indirect=True)
@pytest.mark.parametrize("proxy", ["nginx"], indirect=True)
def test_chromium_signs_in_behind_nginx_over_https(chromium, proxy, backend):
    page, site = f"{proxy.tls_url}/api/a%20b?c=%26", f"{proxy.tls_url}/"
    chromium.get(page)
    assert chromium.current_url == f"{proxy.tls_url}/login?next=/api/a%2520b%3Fc%3D%2526"

    chromium.sign_in("alice")

    chromium.await_page(page)
    seen = json.loads(chromium.text)["application"]
    assert (seen["HTTP_REMOTE_USER"], seen["HTTP_X_FORWARDED_PROTO"]) == ("alice", "https")
    (cookie,) = chromium.get_cookies()
    assert (cookie["name"], cookie["secure"]) == ("__Host-jwtserver", True)
    chromium.get(site)
    assert chromium.text == "a page"
    chromium.get(f"{site}staff/")
    assert "You are signed in as alice, but have no access to this page" in chromium.text

    chromium.get(f"{site}login")
    chromium.press("Sign out")

    chromium.await_page(f"{site}login")
    assert chromium.get_cookies() == []
    chromium.get(page)
    assert "Password" in chromium.text
