"""The rate limit: RateLimitMiddleware, and the one rate limiter in front of the whole service."""

import tracemalloc
from wsgiref.validate import validator

import pytest
from support import KEY, bearer, call, for_each, hello, sign_in, store_with, user
from webtest import TestApp

import jwtserver
import wsgi_auth
from jwtserver import Rate, Settings, StoreError, create_app
from wsgi_auth import BearerAuthMiddleware, RateLimitMiddleware, TokenSigner


def statuses(app, times, **environ):
    return [call(app, **environ).status for _ in range(times)]


def limited_hello(clock, **options):
    return RateLimitMiddleware(hello, **{"limit": 1, "period": 60, "clock": clock, **options})


# --- RateLimitMiddleware


def test_rate_limit_allows_a_burst_and_then_a_steady_flow(clock):
    app = validator(limited_hello(clock, limit=10, period=1))

    assert statuses(app, 12) == [200] * 10 + [429] * 2
    for _ in range(20):
        clock.now += 0.1
        assert statuses(app, 2) == [200, 429]
    clock.now += 100
    assert statuses(app, 12) == [200] * 10 + [429] * 2


def test_rate_limit_refusal_has_json_and_the_seconds_to_wait(clock):
    app = limited_hello(clock, limit=3, period=100)
    statuses(app, 3)

    response = call(app)

    assert response.status == 429
    assert response.headers == {
        "Content-Type": "application/json", "Content-Length": str(len(response.body)),
        "X-Content-Type-Options": "nosniff", "Retry-After": "34"}
    assert response.json == {"success": False, "error": "Too many requests"}
    clock.now += 34
    assert statuses(app, 1) == [200]


def test_rate_limit_refusal_of_head_has_no_body(clock):
    app = validator(limited_hello(clock))
    statuses(app, 1)

    response = call(app, method="HEAD")

    assert (response.status, response.headers["Content-Length"], response.body) == (429, "49", b"")


def test_rate_limit_counts_by_user_and_otherwise_by_address(clock):
    app = limited_hello(clock)

    assert statuses(app, 2) == [200, 429]
    assert statuses(app, 2, REMOTE_ADDR="192.0.2.2") == [200, 429]
    assert statuses(app, 2, REMOTE_USER="alice") == [200, 429]
    assert statuses(app, 1, REMOTE_USER="alice", REMOTE_ADDR="192.0.2.3") == [429]
    assert statuses(app, 1, REMOTE_USER="192.0.2.1") == [200]


def test_rate_limit_key_of_none_is_not_limited(clock):
    app = limited_hello(clock, key=lambda environ: environ.get("HTTP_X_KEY"))

    assert statuses(app, 3) == [200] * 3
    assert statuses(app, 2, HTTP_X_KEY="a") == [200, 429]


def test_rate_limit_keeps_only_the_clients_seen_last(clock, monkeypatch):
    monkeypatch.setattr(wsgi_auth, "MAX_BUCKETS", 3)
    app = limited_hello(clock)
    for host in range(3):
        statuses(app, 1, REMOTE_ADDR=f"192.0.2.{host}")
    statuses(app, 1, REMOTE_ADDR="192.0.2.0")  # refused, but seen

    statuses(app, 1, REMOTE_ADDR="192.0.2.3")

    assert len(app._full_at) == 3
    assert statuses(app, 1, REMOTE_ADDR="192.0.2.0") == [429]
    assert statuses(app, 1, REMOTE_ADDR="192.0.2.1") == [200]


def test_rate_limit_of_a_clock_that_was_ahead_recovers_when_it_is_set_back(clock):
    app = limited_hello(clock, limit=2, period=10)
    clock.now += 1000
    statuses(app, 3)

    clock.now -= 1000
    assert statuses(app, 1) == [429]
    clock.now += 10
    assert statuses(app, 3) == [200, 200, 429]


def test_rate_limit_keeps_no_long_keys(clock):
    app = limited_hello(clock, limit=2)
    tracemalloc.start()

    for number in range(100):
        call(app, REMOTE_USER=f"{number}" * 5000)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert kept < 100 * 1000
    assert statuses(app, 2, REMOTE_USER="1" * 5000) == [200, 429]


@for_each("limit, period", [
    (0, 1), (-1, 1), (0.5, 1), (1, 0), (1, -1), (float("nan"), 1), (1, float("nan")),
    (float("inf"), 1), (1, float("inf"))])
def test_rate_limit_with_an_impossible_rate_is_refused(limit, period):
    with pytest.raises(ValueError, match="limit must be 1 or more, and period above 0"):
        RateLimitMiddleware(hello, limit=limit, period=period)


# --- One check of the token, for the rate limit and the guard


class CountingSigner(TokenSigner):
    verified = 0

    def verify(self, token):
        self.verified += 1
        return super().verify(token)


@pytest.fixture
def signer():
    return CountingSigner(KEY)


def authorization(signer, **claims):
    return f"Bearer {signer.sign({'sub': 'alice', **claims})}"


def test_authenticate_result_is_used_once_by_the_guard(signer):
    looked_up = []
    guard = BearerAuthMiddleware(hello, signer, is_revoked=looked_up.append)
    environ = {"HTTP_AUTHORIZATION": authorization(signer)}

    claims = guard.authenticate(environ)
    response = call(guard, **environ)
    assert claims["sub"] == "alice" and response.body == b"alice"
    assert (signer.verified, len(looked_up)) == (1, 1)

    guard(environ, lambda status, headers: None)
    guard(environ, lambda status, headers: None)
    assert signer.verified == 2


@for_each("header", ["", "Bearer x", "Basic x"])
def test_authenticate_without_a_valid_token_returns_none_and_the_guard_refuses(signer, header):
    guard = BearerAuthMiddleware(hello, signer)
    environ = {"HTTP_AUTHORIZATION": header}
    signer.verified = 0

    assert guard.authenticate(environ) is None
    assert call(guard, **environ).status == 401
    assert signer.verified == (header == "Bearer x")


def test_authenticate_result_holds_only_for_the_same_header(signer):
    guard = BearerAuthMiddleware(hello, signer)
    environ = {"HTTP_AUTHORIZATION": authorization(signer)}
    guard.authenticate(environ)

    assert call(guard, **{**environ, "HTTP_AUTHORIZATION": "Bearer x"}).status == 401
    assert call(guard, **{**environ, "HTTP_AUTHORIZATION": ""}).status == 401


def test_authenticate_result_holds_only_for_the_same_guard(signer):
    lenient = BearerAuthMiddleware(hello, signer)
    strict = BearerAuthMiddleware(hello, signer, is_revoked=lambda claims: True)
    environ = {"HTTP_AUTHORIZATION": authorization(signer)}
    lenient.authenticate(environ)

    assert call(strict, **environ).status == 401


@for_each("forged", ["alice", {"sub": "mallory"}, ("x", "", {"sub": "mallory"})])
def test_authenticate_result_that_is_forged_is_ignored(signer, forged):
    guard = BearerAuthMiddleware(hello, signer)

    response = call(guard, **{wsgi_auth._TOKEN_CHECK: forged})

    assert response.status == 401


def test_authenticate_result_does_not_reach_the_application(signer):
    seen = []
    guard = BearerAuthMiddleware(
        lambda environ, start_response: seen.extend(environ) or hello(environ, start_response),
        signer, protect=["/protected"])

    for path in ("/protected", "/open"):
        environ = {"HTTP_AUTHORIZATION": authorization(signer)}
        guard.authenticate(environ)
        assert call(guard, path, **environ).status == 200

    assert seen and wsgi_auth._TOKEN_CHECK not in seen


def test_authenticate_with_a_failing_look_up_returns_none_and_the_guard_raises(signer):
    def is_revoked(claims):
        raise OSError("the database is gone")

    guard = BearerAuthMiddleware(hello, signer, is_revoked=is_revoked, protect=["/protected"])
    environ = {"HTTP_AUTHORIZATION": authorization(signer)}

    assert guard.authenticate(environ) is None
    assert call(guard, "/open", **environ).body == b"nobody"
    with pytest.raises(OSError, match="the database is gone"):
        call(guard, "/protected", **environ)


# --- The rate limit of the service


@pytest.fixture
def store():
    store = store_with("jwtserver.db", user("alice"), user("bob"))
    yield store
    store.close()


@pytest.fixture
def make(clock, store):
    def make(limit=3, app=None, **settings):
        return TestApp(create_app(
            Settings(**{"secret": KEY, "pbkdf2_iterations": 1000,
                        "rate_limit": Rate(limit, 600), **settings}),
            app=app, clock=clock, store=store))

    return make


@pytest.fixture
def client(make):
    return make()


def token_of(client, name, address):
    return sign_in(client, name, extra_environ={"REMOTE_ADDR": address}).json["token"]


def codes(client, path, times, address="192.0.2.1", **options):
    return [client.get(path, extra_environ={"REMOTE_ADDR": address}, status="*",
                       **options).status_int for _ in range(times)]


def test_service_rate_of_valid_tokens_is_counted_by_user(client):
    alice = bearer(token_of(client, "alice", "198.51.100.1"))
    bob = bearer(token_of(client, "bob", "198.51.100.2"))

    assert codes(client, "/protected", 4, headers=alice) == [200, 200, 200, 429]
    assert codes(client, "/protected", 1, "192.0.2.2", headers=alice) == [429]
    assert codes(client, "/protected", 4, headers=bob) == [200, 200, 200, 429]
    assert codes(client, "/", 4) == [200, 200, 200, 429]


def test_service_rate_of_a_valid_token_is_counted_by_user_on_public_paths(client):
    alice = bearer(token_of(client, "alice", "198.51.100.1"))

    assert codes(client, "/", 2, headers=alice) == [200, 200]
    assert codes(client, "/nope", 1, headers=alice) == [404]
    assert codes(client, "/protected", 1, headers=alice) == [429]
    assert codes(client, "/", 1) == [200]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer x"}], ids=["none", "invalid"])
@pytest.mark.parametrize("path, code", [("/protected", 401), ("/", 200), ("/nope", 404)])
def test_service_rate_without_a_valid_token_is_counted_by_address(client, headers, path, code):
    assert codes(client, path, 4, headers=headers) == [code] * 3 + [429]
    assert codes(client, path, 4, "192.0.2.2", headers=headers) == [code] * 3 + [429]


def test_service_rate_of_a_revoked_token_is_counted_by_address(client):
    alice = bearer(token_of(client, "alice", "198.51.100.1"))
    client.post("/logout", headers=alice, status=204)

    assert codes(client, "/protected", 10, headers=alice) == [401] * 3 + [429] * 7


def test_service_rate_of_a_token_without_the_scope_is_counted_by_user(make):
    client = make(protect={"/protected": "admin"})
    alice = bearer(token_of(client, "alice", "198.51.100.1"))

    assert codes(client, "/protected", 10, headers=alice) == [403] * 3 + [429] * 7


@for_each("prefix", ["", "/auth"])
@for_each("headers", [{}, {"Authorization": "Bearer x"}])
def test_service_rate_does_not_count_health(make, prefix, headers):
    client = make(prefix=prefix)

    assert codes(client, f"{prefix}/health", 10, headers=headers) == [200] * 10
    assert codes(client, "/", 4, headers=headers) == [200] * 3 + [429]
    assert codes(client, f"{prefix}/health", 1, headers=headers) == [200]
    assert codes(client, f"{prefix}/health/", 1, headers=headers) == [429]


def test_service_rate_of_sign_ins_is_counted_by_address(client):
    attempts = [sign_in(client, "x", "y", status="*").status_int for _ in range(4)]

    assert attempts == [401, 401, 401, 429]


def test_service_rate_behind_a_proxy_is_counted_by_network(make):
    client = make(1, trusted_proxies=1)

    def code(forwarded):
        return client.get("/", headers={"X-Forwarded-For": forwarded}, status="*").status_int

    assert [code("9.9.9.9, 2001:db8::1"), code("8.8.8.8, 2001:db8::2"), code("2001:db8:1::")] == [
        200, 429, 200]


@pytest.mark.parametrize("limit", [3, 100])
def test_service_verifies_and_looks_up_a_token_once_per_request(make, monkeypatch, store, limit):
    looked_up, verified = [], []
    client = make(limit)
    alice = bearer(token_of(client, "alice", "198.51.100.1"))
    is_open, verify = store.is_open, TokenSigner.verify
    monkeypatch.setattr(
        store, "is_open", lambda *args: looked_up.append(args) or is_open(*args))
    monkeypatch.setattr(
        TokenSigner, "verify", lambda *args: verified.append(args) or verify(*args))

    assert codes(client, "/protected", 4, headers=alice) == [200] * 3 + [429 if limit == 3 else 200]

    assert (len(verified), len(looked_up)) == (4, 4)


@for_each("method, path", [
    ("GET", "/protected"), ("POST", "/logout"), ("GET", "/logout/"), ("GET", "/verify"),
    ("GET", "/verify?optional"), ("GET", "/verify?login"), ("GET", "/sessions"), ("GET", "/login"),
    ("POST", "/login"), ("GET", "/"), ("GET", "/nope"), ("GET", "/health"),
])
@for_each("trusted_proxies", [0, 1])
@for_each("carrier", ["header", "cookie"])
def test_service_verifies_a_token_at_most_once_on_every_path(
    make, monkeypatch, store, method, path, trusted_proxies, carrier,
):
    client = make(trusted_proxies=trusted_proxies)
    token = token_of(client, "alice", "198.51.100.1")
    headers = {"Accept": "text/html", "X-Forwarded-Method": "GET", **(
        bearer(token) if carrier == "header" else {"Cookie": f"jwtserver={token}"})}
    verified, looked_up, verify, is_open = [], [], TokenSigner.verify, store.is_open
    monkeypatch.setattr(
        TokenSigner, "verify", lambda *args: verified.append(args) or verify(*args))
    monkeypatch.setattr(
        store, "is_open", lambda *args: looked_up.append(args) or is_open(*args))

    client.request(path, method=method, headers=headers, status="*")

    assert len(verified) == len(looked_up) == (path != "/health")


def test_service_rate_without_the_database_is_counted_by_address(make, monkeypatch, store):
    client = make(4, app=hello, protect=["/protected"])
    alice = bearer(token_of(client, "alice", "198.51.100.1"))

    def is_open(*args):
        raise StoreError("the database is gone")

    monkeypatch.setattr(store, "is_open", is_open)

    response = client.get("/protected", headers=alice, status=503)
    assert response.json == {"success": False, "error": "The database cannot answer"}
    assert codes(client, "/public", 1, "", headers=alice) == [200]
    assert codes(client, "/protected", 4, "", headers=alice) == [503, 503, 429, 429]
    assert codes(client, "/health", 1, "") == [200]


def test_service_rate_with_a_fault_in_the_look_up_admits_nobody(make, monkeypatch):
    client = make(app=hello)
    alice = bearer(token_of(client, "alice", "198.51.100.1"))
    monkeypatch.setattr(jwtserver.Store, "is_open", None)

    assert codes(client, "/protected", 4, headers=alice) == [500] * 3 + [429]
