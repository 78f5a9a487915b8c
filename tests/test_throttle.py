"""Bounds on guessing and flooding: the lock-out, the hash queue, the rate limit."""

import json
import os
import threading
import tracemalloc
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from webtest import TestApp

import jwtserver
import wsgi_auth
from jwtserver import Rate, Settings, client_address, create_app, open_store
from support import KEY, PASSWORD, Clock, store_with, user
from wsgi_auth import RateLimitMiddleware

LOCKED = {"success": False, "message": "Too many failed sign-ins"}


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make(clock, database):
    store_with(database, user("alice"), user("bob"), user("Zoë")).close()

    def make(**settings):
        return TestApp(create_app(
            Settings(**{"database": database, "secret": KEY, "pbkdf2_iterations": 1000,
                        **settings}), clock=clock))

    return make


@pytest.fixture
def client(make):
    return make(login_failures=Rate(3, 60))


def sign_in(client, name="alice", password=PASSWORD, address="192.0.2.1", **options):
    return client.post_json(
        "/authenticate", {"username": name, "password": password},
        extra_environ={"REMOTE_ADDR": address}, status="*", **options)


def fail(client, times, name="alice", address="192.0.2.1"):
    return [sign_in(client, name, "wrong", address).status_int for _ in range(times)]


# --- Lock-out


def test_failures_up_to_the_limit_lock_out_even_the_right_password(client, caplog):
    assert fail(client, 4) == [401, 401, 401, 429]

    response = sign_in(client)

    assert (response.status_int, response.json) == (429, LOCKED)
    assert response.headers["Retry-After"] == "60"
    assert 'locked_out user="alice" address="192.0.2.1"' in caplog.text


def test_lockout_ends_a_period_after_the_first_failure(client, clock):
    fail(client, 1)
    clock.now += 30.5
    fail(client, 9)
    assert sign_in(client).headers["Retry-After"] == "30"
    clock.now += 29.5

    assert fail(client, 4) == [401, 401, 401, 429]


def test_lockout_hashes_nothing(client, monkeypatch):
    fail(client, 3)
    monkeypatch.setattr(jwtserver, "verify_password", None)

    assert sign_in(client).status_int == 429


def test_lockout_written_by_a_clock_that_was_ahead_ends_with_it(client, clock):
    clock.now += 365 * 86400
    assert fail(client, 4) == [401, 401, 401, 429]

    clock.now -= 365 * 86400

    assert fail(client, 4) == [401, 401, 401, 429]
    clock.now += 60
    assert sign_in(client).status_int == 200


def test_lockout_is_of_a_user_at_an_address(client):
    fail(client, 3)

    assert sign_in(client, address="192.0.2.2").status_int == 200
    assert sign_in(client, "bob").status_int == 200
    assert sign_in(client).status_int == 429


@pytest.mark.parametrize("name", ["nobody", "x" * 60_000, " a", "\0", "a/b"])
def test_lockout_of_an_unknown_name_is_the_same(client, name):
    assert fail(client, 5, name) == [401, 401, 401, 429, 429]


def test_name_that_takes_long_to_normalize_is_truncated_first(client, monkeypatch):
    """NFC takes quadratic time: 64 KiB would delay all other requests by seconds."""
    lengths = []
    normalize = jwtserver.unicodedata.normalize

    def watched(form, text):
        lengths.append(len(text))
        return normalize(form, text)

    monkeypatch.setattr("unicodedata.normalize", watched)
    name = "a" + "\u0345" * 5000 + "\u0316" * 5000

    assert fail(client, 4, name) == [401, 401, 401, 429]

    assert max(lengths) <= jwtserver.MAX_NAME_INPUT


def test_lockout_counts_all_unicode_forms_of_a_name_together(client):
    assert fail(client, 2, "Zoe\u0308") + fail(client, 2, "Zo\xeb") == [401, 401, 401, 429]


def test_success_clears_the_failures_of_that_user_at_that_address(client):
    fail(client, 2)
    fail(client, 2, "bob")

    assert sign_in(client).status_int == 200

    assert fail(client, 4) == [401, 401, 401, 429]
    assert fail(client, 2, "bob") == [401, 429]


def test_address_is_locked_out_at_ten_times_the_limit_over_all_names(client):
    assert {code for name in range(15) for code in fail(client, 2, f"user{name}")} == {401}
    sign_in(client, address="192.0.2.9")

    assert sign_in(client).status_int == 429
    assert sign_in(client, address="192.0.2.2").status_int == 200


def test_success_does_not_clear_the_failures_of_an_address(client):
    for name in range(15):
        fail(client, 2, f"user{name}")
        status = sign_in(client, "bob").status_int

    assert status == 429


def test_name_is_locked_out_at_twenty_times_the_limit_over_all_addresses(client):
    codes = {code for host in range(20) for code in fail(client, 3, address=f"192.0.2.{host}")}
    assert codes == {401}

    assert sign_in(client, address="198.51.100.7").status_int == 429
    assert sign_in(client, "bob", address="198.51.100.7").status_int == 200


def test_addresses_of_one_ipv6_network_count_as_one(client):
    codes = [fail(client, 1, address=f"2001:db8::{host:x}") for host in range(4)]

    assert codes == [[401], [401], [401], [429]]
    assert sign_in(client, address="2001:db8:0:1::1").status_int == 200


def test_ipv4_addresses_on_a_dual_stack_socket_count_separately(client):
    codes = [fail(client, 2, address=f"::ffff:192.0.2.{host}") for host in range(4)]

    assert codes == [[401, 401]] * 4
    assert fail(client, 2, address="192.0.2.1") == [401, 429]


@pytest.mark.parametrize("address", ["fe80::1%eth0", "fe80::1%eth1", "fe80::2"])
def test_zone_of_an_address_does_not_change_the_network(address):
    assert jwtserver._network(address) == "fe80::/64"


def test_disabled_user_is_counted_as_a_wrong_password(client):
    jwtserver.main(["user", "disable", "alice"])

    assert [sign_in(client).status_int for _ in range(4)] == [401, 401, 401, 429]


def test_guesses_at_once_reveal_no_more_than_guesses_in_turn(make, monkeypatch):
    client = make(login_failures=Rate(3, 60))
    monkeypatch.setitem(jwtserver._hash_queues, os.getpid(), jwtserver._HashQueue(9))
    verify_password, all_there, codes = jwtserver.verify_password, threading.Barrier(9), []

    def verify_together(*arguments, **options):
        all_there.wait()
        return verify_password(*arguments, **options)

    monkeypatch.setattr(jwtserver, "verify_password", verify_together)
    threads = [
        threading.Thread(target=lambda: codes.extend(fail(client, 1))) for _ in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(codes) == [401] * 3 + [429] * 6


def test_right_password_after_the_limit_was_reached_meanwhile_is_locked_out(client, monkeypatch):
    verify_password = jwtserver.verify_password

    def verify_late(*arguments, **options):
        monkeypatch.setattr(jwtserver, "verify_password", verify_password)
        fail(client, 3)
        return verify_password(*arguments, **options)

    monkeypatch.setattr(jwtserver, "verify_password", verify_late)

    assert sign_in(client).status_int == 429


def test_expired_failures_are_swept_a_few_at_a_time(client, clock, monkeypatch, database):
    monkeypatch.setattr(jwtserver, "SWEEP_ROWS", 4)
    store = open_store(database)

    def count():
        with store.database.connection() as connection:
            return connection.execute("SELECT count(*) FROM failures").fetchone()[0]

    for name in "cde":
        fail(client, 1, name, f"192.0.2.{ord(name)}")
    assert count() == 9
    clock.now += 60

    fail(client, 1, "f")
    assert count() == 9 - 4 + 3
    fail(client, 1, "f")
    assert count() == 9 - 8 + 3
    store.close()


# --- The hash queue


class Watched(threading.BoundedSemaphore):
    """A semaphore that counts the calls of `acquire`."""

    def __init__(self, value):
        super().__init__(value)
        self.came = threading.Semaphore(0)

    def acquire(self):
        self.came.release()
        return super().acquire()


def test_sign_ins_beyond_the_hash_queue_are_refused_at_once(client, monkeypatch):
    monkeypatch.setattr(jwtserver, "MAX_WAITING_HASHES", 2)
    queue = jwtserver._HashQueue(1)
    queue._cores = Watched(1)
    monkeypatch.setitem(jwtserver._hash_queues, os.getpid(), queue)
    codes = []
    waiting = [threading.Thread(target=lambda: codes.append(sign_in(client).status_int))
               for _ in range(2)]

    with queue:
        for thread in waiting:
            thread.start()
        for _ in range(3):
            queue._cores.came.acquire()
        refused = sign_in(client)
    for thread in waiting:
        thread.join()

    assert refused.status_int == 503
    assert refused.json == {"success": False, "message": "Too many sign-ins at once"}
    assert refused.headers["Retry-After"] == "10"
    assert codes == [200, 200]
    assert sign_in(client).status_int == 200


# --- Addresses


@pytest.mark.parametrize("proxies, forwarded, address", [
    (0, "198.51.100.1", "192.0.2.1"),
    (1, "198.51.100.1", "198.51.100.1"),
    (1, "203.0.113.9, 198.51.100.1", "198.51.100.1"),
    (2, "203.0.113.9, 198.51.100.1", "203.0.113.9"),
    (2, "1.1.1.1,203.0.113.9 ,\t198.51.100.1 ", "203.0.113.9"),
    (2, "198.51.100.1", "192.0.2.1"),
    (1, None, "192.0.2.1"),
    (1, "", "192.0.2.1"),
    (1, "unknown", "192.0.2.1"),
    (1, "198.51.100.1:4711", "198.51.100.1"),
    (1, "2001:DB8:0::1", "2001:db8::1"),
    (1, "[2001:db8::1]", "2001:db8::1"),
    (1, "[2001:db8::1]:4711", "2001:db8::1"),
    (1, "198.51.100.1\u0660", "192.0.2.1"),
    (1, "'; DROP TABLE users", "192.0.2.1"),
    (1, ",", "192.0.2.1"),
])
def test_client_address_is_the_one_that_the_first_trusted_proxy_saw(proxies, forwarded, address):
    environ = {"REMOTE_ADDR": "192.0.2.1"}
    if forwarded is not None:
        environ["HTTP_X_FORWARDED_FOR"] = forwarded

    assert client_address(environ, proxies) == address


def test_client_address_of_a_unix_socket_is_empty():
    assert client_address({}, 0) == ""


def test_lockout_behind_a_proxy_uses_the_address_that_it_saw(make):
    client = make(trusted_proxies=1, login_failures=Rate(1, 60))

    def code(forwarded):
        return sign_in(client, password="wrong", headers={"X-Forwarded-For": forwarded}).status_int

    assert [code("x, 198.51.100.1"), code("y, 198.51.100.1"), code("x, 198.51.100.2")] == [
        401, 429, 401]


# --- The rate limit alone


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def call(app, **environ):
    """Status, headers and body."""
    environ = {"REMOTE_ADDR": "192.0.2.1", "QUERY_STRING": "", **environ}
    setup_testing_defaults(environ)
    answer = []
    body = validator(app)(
        environ, lambda status, headers, exc_info=None: answer.extend([status, dict(headers)]))
    try:
        return (*answer, b"".join(body))
    finally:
        body.close()


def statuses(app, times, **environ):
    return [int(call(app, **environ)[0][:3]) for _ in range(times)]


def test_rate_limit_lets_a_burst_through_and_then_a_steady_flow(clock):
    app = RateLimitMiddleware(validator(hello), limit=10, period=1, clock=clock)

    assert statuses(app, 12) == [200] * 10 + [429] * 2
    for _ in range(20):
        clock.now += 0.1
        assert statuses(app, 2) == [200, 429]
    clock.now += 100
    assert statuses(app, 12) == [200] * 10 + [429] * 2


def test_rate_limit_refuses_with_json_and_the_time_to_wait(clock):
    app = RateLimitMiddleware(hello, limit=3, period=100, clock=clock)
    statuses(app, 3)

    status, headers, body = call(app)

    assert status == "429 Too Many Requests"
    assert headers["Retry-After"] == "34"
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert json.loads(body) == {"success": False, "error": "Too many requests"}
    clock.now += 34
    assert statuses(app, 1) == [200]


def test_rate_limit_refusal_of_head_has_no_body(clock):
    app = RateLimitMiddleware(hello, limit=1, period=1, clock=clock)
    statuses(app, 1)

    status, headers, body = call(app, REQUEST_METHOD="HEAD")

    assert (status[:3], headers["Content-Length"], body) == ("429", "48", b"")


def test_rate_limit_tells_clients_apart_by_subject_and_else_by_address(clock):
    app = RateLimitMiddleware(hello, limit=1, period=60, clock=clock)

    assert statuses(app, 2) == [200, 429]
    assert statuses(app, 2, REMOTE_ADDR="192.0.2.2") == [200, 429]
    assert statuses(app, 2, REMOTE_USER="alice") == [200, 429]
    assert statuses(app, 1, REMOTE_USER="alice", REMOTE_ADDR="192.0.2.3") == [429]
    assert statuses(app, 1, REMOTE_USER="192.0.2.1") == [200]


def test_rate_limit_key_of_none_is_not_limited(clock):
    app = RateLimitMiddleware(
        hello, limit=1, period=60, clock=clock, key=lambda environ: environ.get("HTTP_X_KEY"))

    assert statuses(app, 3) == [200] * 3
    assert statuses(app, 2, HTTP_X_KEY="a") == [200, 429]


def test_rate_limit_remembers_the_clients_last_seen_and_no_more(clock, monkeypatch):
    monkeypatch.setattr(wsgi_auth, "MAX_BUCKETS", 3)
    app = RateLimitMiddleware(hello, limit=1, period=60, clock=clock)
    for host in range(3):
        statuses(app, 1, REMOTE_ADDR=f"192.0.2.{host}")
    statuses(app, 1, REMOTE_ADDR="192.0.2.0")  # refused, but seen

    statuses(app, 1, REMOTE_ADDR="192.0.2.3")

    assert len(app._full) == 3
    assert statuses(app, 1, REMOTE_ADDR="192.0.2.0") == [429]
    assert statuses(app, 1, REMOTE_ADDR="192.0.2.1") == [200]


def test_rate_limit_of_a_clock_that_was_ahead_ends_with_it(clock):
    app = RateLimitMiddleware(hello, limit=2, period=10, clock=clock)
    clock.now += 1000
    statuses(app, 3)

    clock.now -= 1000
    assert statuses(app, 1) == [429]
    clock.now += 10
    assert statuses(app, 3) == [200, 200, 429]


def test_rate_limit_keeps_no_long_name(clock):
    app = RateLimitMiddleware(hello, limit=2, period=10, clock=clock)
    tracemalloc.start()

    for number in range(100):
        call(app, REMOTE_USER=f"{number}" * 5000)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert kept < 100 * 1000
    assert statuses(app, 2, REMOTE_USER="1" * 5000) == [200, 429]


@pytest.mark.parametrize("limit, period", [
    (0, 1), (-1, 1), (0.5, 1), (1, 0), (1, -1), (float("nan"), 1), (1, float("nan")),
    (float("inf"), 1), (1, float("inf"))])
def test_rate_limit_that_makes_no_sense_is_refused(limit, period):
    with pytest.raises(ValueError, match="limit must be 1 or more, and period above 0"):
        RateLimitMiddleware(hello, limit=limit, period=period)


def test_rate_limit_streams_and_closes(clock):
    log = []

    def streaming(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        try:
            for piece in (b"a", b"b"):
                log.append(piece)
                yield piece
        finally:
            log.append("closed")

    environ = {"REMOTE_ADDR": ""}
    setup_testing_defaults(environ)
    body = RateLimitMiddleware(streaming, limit=1, period=1)(environ, lambda *arguments: None)

    assert next(iter(body)) == b"a" and log == [b"a"]
    body.close()
    assert log == [b"a", "closed"]


# --- The rate limit of the service


@pytest.fixture
def limited(make):
    return make(rate_limit=Rate(3, 60), login_failures=Rate(9, 60))


def bearer(client, name):
    token = sign_in(client, name, address=f"198.51.100.{len(name)}").json["token"]
    return {"Authorization": f"Bearer {token}"}


def codes(client, path, times, address="192.0.2.1", **options):
    return [client.get(path, extra_environ={"REMOTE_ADDR": address}, status="*",
                       **options).status_int for _ in range(times)]


def test_rate_of_signed_in_requests_is_of_the_user(limited):
    alice, bob = bearer(limited, "alice"), bearer(limited, "bob")

    assert codes(limited, "/protected", 4, headers=alice) == [200, 200, 200, 429]
    assert codes(limited, "/protected", 1, "192.0.2.2", headers=alice) == [429]
    assert codes(limited, "/protected", 4, headers=bob) == [200, 200, 200, 429]
    assert codes(limited, "/health", 4) == [200, 200, 200, 429]


@pytest.mark.parametrize("path, code", [("/protected", 401), ("/health", 200), ("/nope", 404)])
def test_rate_of_requests_without_a_token_is_of_the_address(limited, path, code):
    assert codes(limited, path, 4) == [code] * 3 + [429]
    assert codes(limited, path, 4, "192.0.2.2") == [code] * 3 + [429]


@pytest.mark.parametrize("path, code", [("/health", 200), ("/nope", 404), ("/protected", 401)])
def test_rate_is_not_escaped_by_a_header_that_nobody_checks(limited, path, code):
    headers = {"Authorization": "Bearer x"}

    assert codes(limited, path, 4, headers=headers) == [code] * 3 + [429]


def test_rate_of_logins_is_of_the_address(limited):
    assert [sign_in(limited, "x", "y").status_int for _ in range(4)] == [401, 401, 401, 429]


def test_rate_by_a_client_that_says_who_he_is_is_of_his_network(make):
    client = make(rate_limit=Rate(1, 60), trusted_proxies=1)

    def code(forwarded):
        return client.get("/health", headers={"X-Forwarded-For": forwarded}, status="*").status_int

    assert [code("9.9.9.9, 2001:db8::1"), code("8.8.8.8, 2001:db8::2"), code("2001:db8:1::")] == [
        200, 429, 200]
