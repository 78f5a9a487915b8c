"""What /verify answers proxies: its options, and the cookie of the request that they ask about."""

from urllib.parse import parse_qs, urlsplit

import pytest
from webtest import TestApp

import jwtserver
from jwtserver import Rate, Settings, create_app
from support import KEY, PASSWORD, for_each, sign_in, store_with, user

HTML = "text/html,*/*;q=0.8"
FORWARDED = {"X-Forwarded-Method": "GET", "X-Forwarded-Uri": "/tool?a=b%20c", "Accept": HTML}


@pytest.fixture
def settings(database):
    return Settings(database=database, secret=KEY, pbkdf2_iterations=1000, trusted_proxies=1)


@pytest.fixture
def ask(settings):
    """Asks /verify with these headers, and returns the response."""
    store_with(settings.database, user("alice", "read write")).close()

    def ask(query="", headers=FORWARDED, method="GET", **changes):
        client = TestApp(create_app(settings._replace(**changes)))
        return client.request(f"/verify{query}", headers=headers, method=method,
                              expect_errors=True)

    return ask


@pytest.fixture
def tokens(settings, ask):
    """The token of a program, and the one in the cookie of a browser."""
    client = TestApp(create_app(settings))
    token = sign_in(client).json["token"]
    client.post("/login", {"username": "alice", "password": PASSWORD})
    return token, client.cookies["jwtserver"]


def test_verify_answers_200_with_the_user(ask, tokens):
    response = ask(headers={"Authorization": f"Bearer {tokens[0]}"})

    assert response.json == {"user": "alice", "scope": "read write"}
    assert response.headers["Remote-User"] == "alice"
    assert response.headers["Remote-Scope"] == "read write"


def test_options_of_verify(ask, tokens):
    bearer, cookie = tokens
    program = {"Authorization": f"Bearer {bearer}"}

    @for_each("query, headers, status", [
        ("?scope=read", program, 200),
        ("?scope=read%20write", program, 200),
        ("?scope=admin", program, 403),
        ("?scope=read+admin", program, 403),
        ("?optional", program, 200),
        ("?optional&scope=admin", program, 403),
        ("?login", program, 200),
        ("?other=1&other=2", program, 200),
        ("?scope=", program, 400),
        ("?scope=a&scope=a", program, 400),
        ("?scope=%22", program, 400),
        ("?optional&optional", program, 400),
        ("?optional=1", program, 400),
        ("?login=x", program, 400),
        ("?scope=%ff", program, 400),
        ("", {}, 401),
        ("?scope=read", {}, 401),
        ("?optional", {}, 200),
        ("?optional", {"Authorization": "Bearer x"}, 401),
        ("?login", {}, 401),
        # The client's own query, which a proxy may pass on
        ("?optional", {"X-Forwarded-Uri": "/tool?optional"}, 401),
        ("?x&%6fptional", {"X-Forwarded-Uri": "/tool?x&%6fptional"}, 401),
        ("?optional", {"X-Forwarded-Uri": "/tool?x=optional"}, 200),
    ])
    def check(query, headers, status):
        response = ask(query, headers)
        assert response.status_int == status
        if status == 200 and headers is not program:
            assert response.json == {"user": None, "scope": ""}
            assert "Remote-User" not in response.headers

    check()


def test_cookie_counts_only_with_the_method_that_a_trusted_proxy_sends(ask, tokens):
    cookie = {"Cookie": f"jwtserver={tokens[1]}"}
    cross_site = {**cookie, "Sec-Fetch-Site": "cross-site"}

    @for_each("headers, method, proxies, status", [
        ({**cookie, "X-Forwarded-Method": "GET"}, "GET", 1, 200),
        ({**cookie, "X-Forwarded-Method": "POST"}, "GET", 1, 200),
        ({**cookie, "X-Forwarded-Method": "POST"}, "POST", 1, 200),
        ({**cookie, "X-Forwarded-Method": "GET"}, "POST", 1, 200),
        ({**cookie, "X-Forwarded-Method": "HEAD"}, "HEAD", 1, 200),
        ({**cookie, "X-Forwarded-Method": "GET"}, "GET", 0, 401),
        (cookie, "GET", 1, 401),
        ({**cookie, "X-Forwarded-Method": ""}, "GET", 1, 401),
        ({**cross_site, "X-Forwarded-Method": "GET"}, "GET", 1, 200),
        ({**cross_site, "X-Forwarded-Method": "HEAD"}, "GET", 1, 200),
        ({**cross_site, "X-Forwarded-Method": "POST"}, "GET", 1, 403),
        ({**cross_site, "X-Forwarded-Method": "get"}, "GET", 1, 403),
        ({**cross_site, "X-Forwarded-Method": "GET, GET"}, "GET", 1, 403),
        ({**cross_site, "X-Forwarded-Method": "GET", "Sec-WebSocket-Key": "x"}, "GET", 1, 403),
    ])
    def check(headers, method, proxies, status):
        response = ask(headers=headers, method=method, trusted_proxies=proxies)
        assert response.status_int == status
        if status == 200 and method != "HEAD":
            assert response.json["user"] == "alice"

    check()


def test_login_sends_people_to_the_form_and_back(ask):
    response = ask("?login")

    assert response.status_int == 303
    location = urlsplit(response.headers["Location"])
    assert (location.path, parse_qs(location.query)) == ("/login", {"next": ["/tool?a=b%20c"]})
    assert response.headers["Cache-Control"] == "no-store"
    assert ask("?login", prefix="/auth").status_int == 404


def test_login_redirects_only_people_who_open_a_page(ask, tokens):
    @for_each("query, changes, options, status", [
        ("", {}, {}, 401),
        ("?login", {"Accept": "*/*"}, {}, 401),
        ("?login", {"X-Forwarded-Method": "POST"}, {}, 401),
        ("?login", {"X-Forwarded-Method": ""}, {}, 401),
        ("?login", {"Authorization": "Bearer x"}, {}, 401),
        ("?login", {}, {"trusted_proxies": 0}, 401),
        ("?login", {}, {"cookie": None}, 401),
        ("?login", {"Cookie": "jwtserver=x"}, {}, 303),
        ("?login", {"Cookie": f"jwtserver={tokens[1]}"}, {}, 200),
        ("?login&scope=admin", {"Cookie": f"jwtserver={tokens[1]}"}, {}, 403),
        ("?login", {"X-Forwarded-Method": "HEAD"}, {}, 303),
        ("?login", {"X-Forwarded-Uri": "/" + "x" * 5000}, {}, 303),
    ])
    def check(query, changes, options, status):
        assert ask(query, {**FORWARDED, **changes}, **options).status_int == status

    check()


def test_person_without_the_scope_gets_a_page(ask, tokens):
    headers = {**FORWARDED, "Cookie": f"jwtserver={tokens[1]}"}

    page = ask("?login&scope=admin", headers)
    assert page.status_int == 403 and page.headers["WWW-Authenticate"].endswith('scope="admin"')
    assert "You are signed in as alice, but have no access to this page." in page
    assert '<a href="/login">Go to your account</a>' in page
    head = ask("?login&scope=admin", {**headers, "X-Forwarded-Method": "HEAD"}, "HEAD")
    assert (head.status_int, head.content_type, head.body) == (403, "text/html", b"")
    for query, changes in [("?scope=admin", {}), ("?login&scope=admin", {"Accept": "*/*"})]:
        assert ask(query, {**headers, **changes}).json["error"] == "Insufficient scope"


@for_each("path, headers, proxies, count", [
    ("/verify", {"X-Forwarded-Method": "GET"}, 0, 1), ("/verify", {"X-Forwarded-Uri": "/"}, 0, 1),
    ("/health", {"X-Forwarded-For": "192.0.2.9"}, 0, 1), ("/verify", FORWARDED, 1, 0),
    ("/health", {"X-Forwarded-Method": "GET"}, 0, 0), ("/verify", {}, 0, 0)])
def test_headers_of_a_proxy_that_is_not_trusted_are_logged_once(
        settings, caplog, path, headers, proxies, count):
    jwtserver._warn_once.cache_clear()
    caplog.clear()
    client = TestApp(create_app(settings._replace(trusted_proxies=proxies)))

    for _ in range(2):
        client.get(path, headers=headers, expect_errors=True)

    assert caplog.text.count("but JWTSERVER_TRUSTED_PROXIES is 0") == count


def test_verify_is_limited_and_verifies_a_token_once(ask, tokens, monkeypatch):
    from jwtserver import TokenSigner
    calls, verify = [], TokenSigner.verify
    monkeypatch.setattr(TokenSigner, "verify", lambda self, token: calls.append(token) or verify(
        self, token))
    headers = {**FORWARDED, "Cookie": f"jwtserver={tokens[1]}"}

    assert ask(headers=headers, rate_limit=Rate(1, 60)).status_int == 200
    assert len(calls) == 1
