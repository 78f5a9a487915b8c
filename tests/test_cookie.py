"""The guard for browsers: a token in a cookie, optional tokens, the way to a login page."""

from urllib.parse import parse_qs, unquote, urlsplit
from wsgiref.validate import validator

import pytest
import support
from support import KEY, for_each, hello

from wsgi_auth import MAX_NEXT_LENGTH, BearerAuthMiddleware, RateLimitMiddleware, TokenSigner

NOW = 1_700_000_000
SIGNER = TokenSigner(KEY, clock=lambda: NOW)
TOKEN = SIGNER.sign({"sub": "alice", "scope": "read", "jti": "1"})
EXPIRED = SIGNER.sign({"sub": "alice", "jti": "2", "iat": NOW - 200, "exp": NOW - 100})
COOKIE = f"session={TOKEN}"
HTML = "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"
PRIVATE = {"Vary": "Cookie", "Cache-Control": "private"}


def guard(app=hello, **options):
    """The guard with a cookie, and a validator on both of its sides."""
    options.setdefault("cookie", "session")
    return validator(BearerAuthMiddleware(validator(app), SIGNER, **options))


def call(application, method="GET", path="/", cookie=COOKIE, **environ):
    return support.call(application, path, method, HTTP_COOKIE=cookie, **environ)


def headers_of(answer, *names):
    return {name: answer.headers[name] for name in names if name in answer.headers}


def identity(environ, start_response):
    """Answers with all that the guard tells an application."""
    names = ("REMOTE_USER", "AUTH_TYPE", "wsgi_auth.cookie", "wsgi_auth.claims")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [repr({name: environ[name] for name in names if name in environ}).encode()]


# --- The cookie ---------------------------------------------------------------------------------


def test_cookie_with_a_valid_token_admits_and_says_so():
    answer = call(guard(identity))

    shown = eval(answer.body)
    assert shown.pop("wsgi_auth.claims")["sub"] == "alice"
    assert shown == {"REMOTE_USER": "alice", "AUTH_TYPE": "Bearer", "wsgi_auth.cookie": True}


def test_cookie_without_the_option_is_ignored():
    assert call(guard(cookie=None)).status == 401


def test_authorization_header_wins_over_the_cookie():
    guarded = guard(identity)

    assert call(guarded, HTTP_AUTHORIZATION="Bearer x").status == 401
    answer = call(guarded, cookie="session=x", HTTP_AUTHORIZATION=f"Bearer {TOKEN}")
    assert (answer.status, eval(answer.body)["wsgi_auth.cookie"]) == (200, False)
    assert headers_of(answer, *PRIVATE) == {}


# RFC 6265 §4.2.1. A header that breaks the grammar anywhere, or a name that occurs twice, is none.
@for_each("header, status", [
    (COOKIE, 200),
    (f"a=b; {COOKIE}", 200),
    (f"{COOKIE}; a=b", 200),
    (f'a="b"; {COOKIE}; Session=x; xsession=x; session2=x', 200),
    (f"a=b=c; {COOKIE}; empty=", 200),
    ("", 401),
    ("session=", 401),
    (f'session="{TOKEN}"', 401),
    (f"session=x; {COOKIE}", 401),
    (f"{COOKIE}; {COOKIE}", 401),
    (f"Session={TOKEN}", 401),
    (f"__Host-session={TOKEN}", 401),
    (f"{COOKIE};", 401),
    (f"{COOKIE};a=b", 401),
    (f"{COOKIE}; a", 401),
    (f"{COOKIE}; a=b c", 401),
    (f"{COOKIE}, a=b", 401),
    (f"{COOKIE}; a=b\\", 401),
    (f"{COOKIE}; \xe9=b", 401),
    (f"{COOKIE}; a=\xe9", 401),
    (f'{COOKIE}; a="b', 401),
    (f"{COOKIE}; a=\x7f", 401),
    (f" {COOKIE}", 401),
    (f"{COOKIE}\n", 401),
    (f"session={TOKEN[:-1]}", 401),
    (f"session={EXPIRED}", 401),
    (f"{COOKIE}; a=" + "x" * 8192, 200),
    ("session=" + "x" * 8192, 401),
    ("session=" + "x" * 20_000, 401),
    ("; ".join(["a=b"] * 5000), 401),
])
def test_cookie_header_is_parsed_strictly(header, status):
    assert call(guard(), cookie=header).status == status


def test_cookie_over_https_needs_the_host_prefix():
    guarded, secure = guard(), {"wsgi.url_scheme": "https"}

    assert call(guarded, **secure).status == 401
    assert call(guarded, cookie=f"__Host-{COOKIE}", **secure).status == 200
    assert call(guarded, cookie=f"{COOKIE}; __Host-session=x", **secure).status == 401


def test_refusal_of_an_invalid_cookie_gives_the_reason():
    answer = call(guard(), cookie=f"session={EXPIRED}")

    assert answer.json["error"] == "Invalid authorization token"
    assert 'error_description="Token has expired"' in answer.headers["WWW-Authenticate"]


def test_revoked_cookie_and_missing_scope_are_refused():
    assert call(guard(is_revoked=lambda claims: True)).status == 401
    assert call(guard(protect={"/": "write"})).status == 403
    assert call(guard(protect={"/": "read"})).status == 200


@for_each("cookie", ["", "a b", "a=b", "a;", "é", "a,b"])
def test_cookie_name_that_no_browser_sends_is_an_error(cookie):
    with pytest.raises(ValueError, match="not the name of a cookie"):
        guard(cookie=cookie)


# --- Requests of other sites --------------------------------------------------------------------

# The rule of the contract: Sec-Fetch-Site decides; without it, Origin, which must equal Host.
SAME_ORIGIN = [
    {"HTTP_SEC_FETCH_SITE": "same-origin", "HTTP_ORIGIN": "https://other.example"},
    {"HTTP_SEC_FETCH_SITE": "none"},
    {},
    {"HTTP_ORIGIN": "http://tool.example"},
    {"HTTP_ORIGIN": "https://tool.example"},  # a proxy may end TLS
    {"HTTP_ORIGIN": "http://TOOL.example", "HTTP_HOST": "tool.EXAMPLE"},
    {"HTTP_ORIGIN": "http://tool.example:81", "HTTP_HOST": "tool.example:81"},
    {"HTTP_ORIGIN": "http://[::1]:3000", "HTTP_HOST": "[::1]:3000"},
]
OTHER_ORIGIN = [
    {"HTTP_SEC_FETCH_SITE": "cross-site"},
    {"HTTP_SEC_FETCH_SITE": "same-site"},  # another port of this host, or a sister domain
    {"HTTP_SEC_FETCH_SITE": ""},
    {"HTTP_SEC_FETCH_SITE": "Same-Origin"},
    {"HTTP_SEC_FETCH_SITE": "cross-site", "HTTP_ORIGIN": "http://tool.example"},
    {"HTTP_ORIGIN": "http://other.example"},
    {"HTTP_ORIGIN": "http://tool.example:81"},
    {"HTTP_ORIGIN": "http://tool.example.other"},
    {"HTTP_ORIGIN": "http://x.tool.example"},
    {"HTTP_ORIGIN": "tool.example"},
    {"HTTP_ORIGIN": "null"},  # a sandboxed frame
    {"HTTP_ORIGIN": "null", "HTTP_HOST": None},
    {"HTTP_ORIGIN": "http://", "HTTP_HOST": ""},
    {"HTTP_ORIGIN": ""},
    {"HTTP_ORIGIN": "http://tool.example", "HTTP_HOST": None},
]


def post(guarded, headers, method="POST", **environ):
    environ = {"HTTP_HOST": "tool.example", **headers, **environ}
    return call(guarded, method, **environ)


@for_each("headers", SAME_ORIGIN)
def test_unsafe_request_of_this_site_is_admitted(headers):
    assert post(guard(), headers).status == 200


@for_each("headers", OTHER_ORIGIN)
def test_unsafe_request_of_another_site_is_refused(headers):
    guarded = BearerAuthMiddleware(validator(hello), SIGNER, cookie="session")

    answer = post(guarded, headers)

    assert (answer.status, answer.json["error"]) == (403, "Cross-origin request refused")
    assert "WWW-Authenticate" not in answer.headers


@for_each("method", ["GET", "HEAD", "OPTIONS"])
def test_safe_request_of_another_site_is_admitted(method):
    assert post(guard(), {"HTTP_SEC_FETCH_SITE": "cross-site"}, method).status == 200


@for_each("method", ["PUT", "DELETE", "PATCH", "PROPFIND", "get"])
def test_every_other_method_is_unsafe(method):
    guarded = BearerAuthMiddleware(hello, SIGNER, cookie="session")

    assert post(guarded, {"HTTP_SEC_FETCH_SITE": "cross-site"}, method).status == 403


@for_each("upgrade", ["websocket", "WebSocket", "h2c, websocket"])
def test_websocket_handshake_of_another_site_is_refused(upgrade):
    handshake = {"HTTP_UPGRADE": upgrade, "HTTP_CONNECTION": "Upgrade"}

    assert post(guard(), {"HTTP_ORIGIN": "http://tool.example", **handshake}, "GET").status == 200
    assert post(guard(), {"HTTP_ORIGIN": "http://other.example", **handshake}, "GET").status == 403


def test_invalid_token_of_another_site_is_refused_for_the_token():
    assert post(guard(), OTHER_ORIGIN[0], cookie="session=x").status == 401


def test_authorization_header_needs_no_origin():
    answer = post(guard(), OTHER_ORIGIN[0], HTTP_AUTHORIZATION=f"Bearer {TOKEN}")

    assert answer.status == 200


def test_rate_limiter_asks_once_and_the_guard_still_refuses_another_site():
    verified = []

    class CountingSigner:
        def verify(self, token):
            verified.append(token)
            return SIGNER.verify(token)

    guarded = BearerAuthMiddleware(hello, CountingSigner(), cookie="session")
    limited = RateLimitMiddleware(
        guarded, limit=9, period=9, key=lambda environ: str(guarded.authenticate(environ)))

    assert post(limited, {}).status == 200
    assert post(limited, OTHER_ORIGIN[0]).status == 403
    assert post(limited, OTHER_ORIGIN[0], "GET").status == 200
    assert verified == [TOKEN, TOKEN, TOKEN]


# --- Caches -------------------------------------------------------------------------------------


def test_response_that_a_cookie_admitted_is_kept_from_shared_caches():
    assert headers_of(call(guard()), *PRIVATE) == PRIVATE


def test_cache_control_of_the_application_stays():
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain"), ("CACHE-CONTROL", "no-cache")])
        return [b""]

    answer = call(guard(app))

    assert headers_of(answer, "Vary", "Cache-Control") == {"Vary": "Cookie"}
    assert answer.headers["CACHE-CONTROL"] == "no-cache"


@for_each("environ", [{}, {"HTTP_AUTHORIZATION": f"Bearer {TOKEN}"}])
def test_all_responses_of_an_optional_path_are_private(environ):
    answer = call(guard(protect=[], optional=["/"]), cookie=None, **environ)

    assert headers_of(answer, *PRIVATE) == PRIVATE


def test_open_path_has_no_headers_added():
    assert headers_of(call(guard(exempt=["/x"]), path="/x"), *PRIVATE) == {}


# --- Optional -----------------------------------------------------------------------------------


@for_each("environ, status, user", [
    ({}, 200, b"nobody"),
    ({"HTTP_AUTHORIZATION": " "}, 200, b"nobody"),
    ({"HTTP_AUTHORIZATION": f"Bearer {TOKEN}"}, 200, b"alice"),
    ({"HTTP_AUTHORIZATION": "Bearer x"}, 401, None),
    ({"HTTP_AUTHORIZATION": f"Bearer {EXPIRED}"}, 401, None),
    ({"HTTP_AUTHORIZATION": "Basic x", "HTTP_COOKIE": COOKIE}, 401, None),
    ({"HTTP_COOKIE": COOKIE}, 200, b"alice"),
    ({"HTTP_COOKIE": f"session={EXPIRED}"}, 200, b"nobody"),
    ({"HTTP_COOKIE": "session=x; session=y"}, 200, b"nobody"),
    ({"HTTP_COOKIE": COOKIE, "HTTP_SEC_FETCH_SITE": "cross-site"}, 200, b"nobody"),
    ({"HTTP_COOKIE": COOKIE, "REMOTE_USER": "root"}, 200, b"alice"),
    ({"REMOTE_USER": "root", "wsgi_auth.claims": {}, "wsgi_auth.cookie": True}, 200, b"nobody"),
])
def test_optional_token(environ, status, user):
    guarded = guard(protect=[], optional=["/"])

    answer = support.call(guarded, "/", "POST", **environ)

    assert answer.status == status
    assert user is None or answer.body == user


# Which of two rules decides; `/a/b` is asked for without a token.
@for_each("options, status", [
    ({"protect": ["/"], "optional": ["/a"]}, 200),
    ({"protect": ["/a/b"], "optional": ["/a"]}, 401),
    ({"protect": ["/a"], "optional": ["/a"]}, 401),
    ({"protect": ["/a"], "optional": ["GET /a"]}, 200),
    ({"protect": ["GET /a"], "optional": ["/a"]}, 401),
    ({"protect": ["/a/B"], "optional": ["/a/b"], "exempt": []}, ValueError),
])
def test_longest_rule_decides_and_protect_comes_first(options, status):
    if status is ValueError:
        with pytest.raises(ValueError, match="ambiguous"):
            guard(**options)
    else:
        assert call(guard(**options), path="/a/b", cookie=None).status == status


def test_optional_rule_wins_over_an_exemption_of_the_same_path():
    assert call(guard(optional=["/a"], exempt=["/a"]), path="/a").body == b"alice"


# An odd path that may match a protected rule is protected.
@for_each("path", ["/a/../b", "/a//b", "/a/%62", "/a;/b", "/A/b", "/a/b.json"])
def test_optional_rule_opens_no_other_reading_of_a_path(path):
    guarded = guard(protect=["/b", "/a/b"], optional=["/a"])

    assert call(guarded, path=path, cookie=None).status == 401


# --- The login page -----------------------------------------------------------------------------


def to_login(path="/", method="GET", cookie=None, **environ):
    environ = {"HTTP_ACCEPT": HTML, **environ}
    return call(guard(login_path="/login"), method, path, cookie, **environ)


@for_each("method", ["GET", "HEAD"])
def test_browser_without_a_token_is_sent_to_the_login_page(method):
    answer = to_login("/reports", method, QUERY_STRING="year=2026&q=a%20b")

    assert (answer.status, answer.body) == (303, b"")
    assert answer.headers == {
        "Location": "/login?next=/reports%3Fyear%3D2026%26q%3Da%2520b", "Content-Length": "0",
        "Content-Type": "text/plain", "Cache-Control": "no-store", "Vary": "Accept",
        "X-Content-Type-Options": "nosniff"}


@for_each("cookie", ["session=x", f"session={EXPIRED}", "malformed"])
def test_browser_with_an_invalid_cookie_is_sent_to_the_login_page(cookie):
    assert to_login(cookie=cookie).status == 303


@for_each("environ, status", [
    ({"HTTP_ACCEPT": "application/json"}, 401),
    ({"HTTP_ACCEPT": "*/*"}, 401),
    ({"HTTP_ACCEPT": None}, 401),
    ({"HTTP_AUTHORIZATION": "Bearer x"}, 401),
    ({"HTTP_AUTHORIZATION": "Basic x"}, 401),
    ({"REQUEST_METHOD": "POST"}, 401),
    ({"REQUEST_METHOD": "OPTIONS"}, 401),
    ({"HTTP_ACCEPT": "TEXT/HTML"}, 303),
])
def test_programs_get_401(environ, status):
    assert to_login(**environ).status == status


def test_browser_without_the_scope_gets_403():
    guarded = guard(login_path="/login", protect={"/": "write"})

    assert call(guarded, HTTP_ACCEPT=HTML).status == 403


def test_protected_login_page_does_not_redirect_to_itself():
    assert to_login("/login").status == 401
    assert to_login("/in", SCRIPT_NAME="/log").status == 303
    assert to_login("/login", SCRIPT_NAME="/app").status == 303


def test_optional_path_never_redirects():
    guarded = guard(login_path="/login", protect=[], optional=["/"])

    assert call(guarded, cookie=None, HTTP_ACCEPT=HTML).status == 200


# The next page comes back from the query as it was asked for, and no path becomes another header
# or parameter.
@for_each("path, query, page", [
    ("/", "", "/"),
    ("/a b", "", "/a%20b"),
    ("/a?b#c", "", "/a%3Fb%23c"),
    ("/100%", "a=%25", "/100%25?a=%25"),
    ("/caf\xc3\xa9", "", "/caf%C3%A9"),
    ("//evil.example/", "", "//evil.example/"),
    ("/\\evil.example", "", "/%5Cevil.example"),
    ("/a\r\nSet-Cookie: x=y", "", "/a%0D%0ASet-Cookie:%20x=y"),
    ("/a", "b=\r\nX: y", "/a?b=\r\nX: y"),
    ("/a&next=/b", "next=/c", "/a&next=/b?next=/c"),
    ("/\u20ac", "", "/%3F"),
    ("/" + "x" * MAX_NEXT_LENGTH, "", "/"),
    ("/a", "x" * MAX_NEXT_LENGTH, "/"),
])
def test_next_page_is_percent_encoded(path, query, page):
    guarded = BearerAuthMiddleware(hello, SIGNER, login_path="/login")

    answer = call(guarded, path=path, QUERY_STRING=query, HTTP_ACCEPT=HTML)

    location = answer.headers["Location"]
    assert location.startswith("/login?next=/") and location.isascii() and location.isprintable()
    assert parse_qs(urlsplit(location).query) == {"next": [page]}


def test_next_page_of_a_mounted_application_begins_with_the_mount():
    answer = to_login("/a", SCRIPT_NAME="/app")

    assert unquote(answer.headers["Location"]) == "/login?next=/app/a"


def test_login_path_of_a_mounted_application_is_used_as_given():
    guarded = guard(cookie=None, login_path="/app/login", exempt=["/login", "/app/login"])

    answer = call(guarded, path="/a", SCRIPT_NAME="/app", HTTP_ACCEPT=HTML)
    assert unquote(answer.headers["Location"]) == "/app/login?next=/app/a"
    assert call(guarded, path="/login", SCRIPT_NAME="/app", HTTP_ACCEPT=HTML).status == 200


@for_each("login_path", [
    "", "login", "//evil.example", "/\\evil", "https://evil.example/", "/login?x", "/a#b",
    "/a\r\nb", "/a b", "/é"])
def test_login_path_that_is_no_plain_path_is_an_error(login_path):
    with pytest.raises(ValueError, match="not a path"):
        guard(login_path=login_path)
