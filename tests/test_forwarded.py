"""The headers of proxies: which values are trusted, and where the service sees them."""

import io

import pytest
from webtest import TestApp

from http_support import exchange, serving
from jwtserver import Rate, Settings, create_app
from support import KEY, PASSWORD, bearer, for_each, sign_in, store_with, user


@pytest.fixture
def store():
    store = store_with("jwtserver.db", user("alice", "read"))
    yield store
    store.close()


@pytest.fixture
def make(store):
    def make(**settings):
        """The service around an application that keeps the environ it has received."""
        def app(environ, start_response):
            client.seen = environ
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"x"]

        client = TestApp(create_app(
            Settings(**{"secret": KEY, "pbkdf2_iterations": 1000, "protect": ("/closed",),
                        **settings}),
            app=app, store=store), {"REMOTE_ADDR": "192.0.2.1"})
        return client

    return make


def seen_with(client, **headers):
    """Address, scheme and host that the application has received."""
    client.get("/", headers={name.replace("_", "-"): value for name, value in headers.items()})
    return [client.seen[key] for key in ("REMOTE_ADDR", "wsgi.url_scheme", "HTTP_HOST")]


@for_each("proxies, forwarded, address", [
    (0, "198.51.100.1", "192.0.2.1"),
    (1, "198.51.100.1", "198.51.100.1"),
    (1, "203.0.113.9, 198.51.100.1", "198.51.100.1"),
    (2, "203.0.113.9, 198.51.100.1", "203.0.113.9"),
    (2, "1.1.1.1,203.0.113.9 ,\t198.51.100.1 ", "203.0.113.9"),
    (2, "198.51.100.1", "192.0.2.1"),
    (1, "", "192.0.2.1"),
    (1, "unknown", "192.0.2.1"),
    (1, "_hidden", "192.0.2.1"),
    (1, "198.51.100.1:4711", "198.51.100.1"),
    (1, "2001:DB8:0::1", "2001:db8::1"),
    (1, "[2001:db8::1]", "2001:db8::1"),
    (1, "[2001:db8::1]:4711", "2001:db8::1"),
    (1, "[]:4711", "192.0.2.1"),
    (1, "198.51.100.1:", "192.0.2.1"),
    (1, "198.51.100.1 198.51.100.2", "192.0.2.1"),
    (1, "198.51.100.1\xb2", "192.0.2.1"),
    (1, "'; DROP TABLE users", "192.0.2.1"),
    (1, ",", "192.0.2.1"),
    (1, "198.51.100.1,", "192.0.2.1"),
    (2, "1.1.1.1,,198.51.100.1", "192.0.2.1"),
])
def test_address_is_the_one_that_the_outermost_trusted_proxy_saw(make, proxies, forwarded, address):
    client = make(trusted_proxies=proxies)

    assert seen_with(client, X_Forwarded_For=forwarded)[0] == address


def test_address_without_the_header_is_that_of_the_connection(make):
    assert seen_with(make(trusted_proxies=1))[0] == "192.0.2.1"


def test_address_of_a_unix_socket_is_that_of_the_header_or_empty(make, caplog):
    client = make(trusted_proxies=1)
    client.extra_environ.clear()

    sign_in(client, password="wrong", status=401)
    sign_in(client, password="wrong", status=401, headers={"X-Forwarded-For": "198.51.100.1"})

    assert caplog.messages == [
        'sign_in_failed user="alice" address="" reason="wrong password"',
        'sign_in_failed user="alice" address="198.51.100.1" reason="wrong password"']


@for_each("proxies, forwarded, scheme", [
    (0, "https", "http"),
    (1, "https", "https"),
    (1, "HTTPS", "https"),
    (1, "wss", "https"),
    (1, "ws", "http"),
    (1, "https, http", "http"),
    (2, "https, http", "https"),
    (2, "https , http", "https"),
    (2, "http, https, http", "https"),
    (2, "https", "https"),
    (1, "", "http"),
    (1, "https,", "http"),
    (1, "ftp", "http"),
    (1, "https://", "http"),
    (1, "on", "http"),
    (1, "\xb5", "http"),
])
def test_scheme_is_the_one_that_the_outermost_trusted_proxy_saw(make, proxies, forwarded, scheme):
    client = make(trusted_proxies=proxies)

    assert seen_with(client, X_Forwarded_Proto=forwarded)[1] == scheme


def test_scheme_of_a_proxy_without_tls_replaces_that_of_the_server(make):
    client = make(trusted_proxies=1)

    client.get("https://h/", headers={"X-Forwarded-Proto": "http"})

    assert client.seen["wsgi.url_scheme"] == "http"


@for_each("proxies, forwarded, host", [
    (0, "a.example", "localhost:80"),
    (1, "a.example", "a.example"),
    (1, "A.example:8443", "A.example:8443"),
    (1, "[2001:db8::1]", "[2001:db8::1]"),
    (1, "[2001:db8::1]:8443", "[2001:db8::1]:8443"),
    (1, "forged.example, a.example", "a.example"),
    (2, "a.example, b.example", "a.example"),
    (2, "forged.example, a.example, b.example", "a.example"),
    (2, "a.example", "a.example"),
    (1, "", "localhost:80"),
    (1, "a.example,", "localhost:80"),
    (1, "user@a.example", "localhost:80"),
    (1, "a.example/path", "localhost:80"),
    (1, "a example", "localhost:80"),
    (1, "a.example:port", "localhost:80"),
    (1, "2001:db8::1", "localhost:80"),
    (1, '"a"', "localhost:80"),
    (1, "b\xfccher.example", "localhost:80"),
])
def test_host_is_the_one_that_the_outermost_trusted_proxy_saw(make, proxies, forwarded, host):
    client = make(trusted_proxies=proxies)

    assert seen_with(client, X_Forwarded_Host=forwarded)[2] == host


@for_each("header", [
    "Forwarded", "X-Real-IP", "X-Forwarded-Port", "X-Forwarded-Server", "X-Forwarded-Ssl",
    "X-Forwarded-Scheme", "X-Url-Scheme", "Front-End-Https", "X-Forwarded-Prefix", "Client-IP"])
def test_other_headers_about_a_client_are_not_used(make, header):
    client = make(trusted_proxies=1)

    seen = seen_with(client, **{header: "for=198.51.100.1;proto=https;host=a.example"})

    assert seen == ["192.0.2.1", "http", "localhost:80"]


def test_lock_out_rate_limit_and_audit_log_use_the_address(make, caplog):
    client = make(trusted_proxies=1, login_failures=Rate(1, 60), rate_limit=Rate(2, 60))

    def code(forwarded):
        return sign_in(client, password="wrong", status="*",
                       headers={"X-Forwarded-For": forwarded}).status_int

    codes = [code("x, 198.51.100.1"), code("y, 198.51.100.1"), code("x, 198.51.100.2")]
    assert codes == [401, 429, 401]
    assert code("z, 198.51.100.1") == 429 and len(caplog.messages) == 3  # now the rate limit
    assert [line for line in caplog.messages if "192.0.2.1" in line] == []


def test_access_log_has_the_address_of_the_client(make):
    client = make(trusted_proxies=1)
    log = io.StringIO()

    with serving(client.app, access_log=log) as server:
        exchange(server, b"GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 9.9.9.9\r\n"
                         b"X-Forwarded-For: 198.51.100.1\r\nX_Forwarded_For: 9.9.9.9\r\n"
                         b"Connection: close\r\n\r\n")

    assert log.getvalue().startswith("198.51.100.1 - - [")


@for_each("proxies", [0, 1])
@for_each("path", ["/open", "/closed"])
def test_identity_headers_for_other_applications_are_removed(make, proxies, path):
    client = make(protect=("/closed",), exempt=(), trusted_proxies=proxies)
    token = sign_in(client, password=PASSWORD).json["token"]

    client.get(path, headers={
        "Remote-User": "root", "Remote-Scope": "admin", **bearer(token)})

    assert not [key for key, value in client.seen.items() if value in ("root", "admin")]
    assert client.seen.get("REMOTE_USER") == {"/closed": "alice", "/open": None}[path]
