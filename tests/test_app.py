"""The endpoints, and how create_app composes them with the guard and an application."""

import contextlib
import io
import json
import os
import shlex
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from wsgiref.validate import validator

import pytest
from webtest import TestApp

import jwtserver
from http_support import exchange, serving, statuses
from jwtserver import Settings, create_app, open_store
from support import KEY, PASSWORD, Clock, bearer, call, for_each, sign_in, user
from wsgi_auth import decode, hash_password, needs_rehash

OLD_HASH = "pbkdf2_sha1$1000$n3RFFf2yKkyGrDsLxbSpFe$Em41LAFXKnPpAMTV8ooZ9gXHwnk="  # Django's
USERS = [user("alice", "read write"), user("Zoë"), user("mallory", disabled=1),
         user("old", password_hash=OLD_HASH)]


@pytest.fixture
def client(settings, store):
    return TestApp(create_app(settings))


def post(app, **environ):
    """Post to /authenticate with an environ that a well-behaved client cannot send."""
    return call(app, "/authenticate", "POST", **{"CONTENT_TYPE": "application/json", **environ})


# --- Signing in


@for_each("post", ["post_json", "post"])
def test_authenticate_right_password_answers_token(client, post):
    response = getattr(client, post)("/authenticate", {"username": "alice", "password": PASSWORD})

    assert response.status_int == 200
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.content_type == "application/json"
    assert set(response.json) == {"token", "token_type", "expires_in", "refresh_token"}
    assert (response.json["token_type"], response.json["expires_in"]) == ("Bearer", 3600)


def test_authenticate_token_has_only_these_claims(client):
    claims = decode(sign_in(client).json["token"], KEY)

    assert set(claims) == {"sub", "username", "iat", "exp", "jti", "sid", "scope"}
    assert (claims["sub"], claims["username"], claims["scope"]) == ("alice", "alice", "read write")
    assert claims["exp"] - claims["iat"] == 3600


def test_authenticate_user_without_scope_gets_no_scope_claim(client):
    claims = decode(sign_in(client, "Zoë").json["token"], KEY)

    assert "scope" not in claims


def test_authenticate_twice_gives_different_sessions(client):
    first, second = (decode(sign_in(client).json["token"], KEY) for _ in range(2))

    assert first["sid"] != second["sid"]
    assert first["jti"] != second["jti"]


def test_authenticate_issuer_and_audience_are_written_and_required(settings, store):
    client = TestApp(create_app(Settings(**{
        **settings._asdict(), "issuer": "https://issuer.example", "audience": "tool"})))
    plain = sign_in(TestApp(create_app(settings))).json["token"]

    token = sign_in(client).json["token"]

    claims = decode(token, KEY, audience="tool")
    assert (claims["iss"], claims["aud"]) == ("https://issuer.example", "tool")
    client.get("/protected", headers=bearer(token))
    client.get("/protected", headers=bearer(plain), status=401)


def test_authenticate_name_in_other_unicode_form_is_the_same_user(client):
    claims = decode(sign_in(client, "Zoe\u0308").json["token"], KEY)

    assert claims["sub"] == "Zoë"


@for_each("name, password", [
    ("alice", "wrong"), ("nobody", PASSWORD), ("mallory", PASSWORD), ("Alice", PASSWORD),
    ("alice ", PASSWORD), ("ali\0ce", PASSWORD),
    ("a" * 151, PASSWORD), ("alice", "x" * 1025), ("' OR 1=1 --", PASSWORD), ("*", "*"),
])
def test_authenticate_wrong_credentials_are_refused_alike(client, name, password):
    response = sign_in(client, name, password, status=401)

    assert response.json == {"success": False, "message": "Invalid username and password"}


@for_each("fields, message", [
    ({"user": "alice"}, "A `username` is required"),
    ({"username": "", "password": "x"}, "A `username` is required"),
    ({"password": "x"}, "A `username` is required"),
    ({"username": "alice"}, "A `password` is required"),
    ({"username": "alice", "password": ""}, "A `password` is required"),
])
@for_each("post", ["post_json", "post"])
def test_authenticate_missing_field_is_named(client, post, fields, message):
    response = getattr(client, post)("/authenticate", fields, status=401)

    assert response.json == {"success": False, "message": message}


@for_each("value", [None, 1, True, False, 0, [], {}, ["alice"], 1.5])
@for_each("name", ["username", "password"])
def test_authenticate_field_of_another_type_is_malformed(client, name, value):
    fields = {"username": "alice", "password": PASSWORD, name: value}

    response = client.post_json("/authenticate", fields, status=400)

    assert response.json == {"success": False, "message": f"`{name}` must be a string"}


@for_each("body", [
    b"", b"{", b"[]", b'"alice"', b"null", b'{"username": "a", "username": "b"}', b"\xff",
    b"\xef\xbb\xbf", b"\xef\xbb\xbf\xef\xbb\xbf{}", b"{}\xef\xbb\xbf",
    b"[" * 60000, b'{"username": "\\ud800"}',
    b'{"a": NaN}', b'{"a": 1' + b"0" * 5000 + b"}",
    '{"username": "alice"}'.encode("utf-16"),
])
def test_authenticate_malformed_json_is_refused(client, body):
    response = client.post(
        "/authenticate", body, content_type="application/json", status=400)

    assert response.json["success"] is False
    assert response.json["message"].startswith("Malformed body")


@for_each("body", [
    b"username=alice&username=bob&password=x", b"username=%ff&password=x", b"username=\xff",
    b"&".join(b"x%d=1" % i for i in range(101)),
])
def test_authenticate_malformed_form_is_refused(client, body):
    response = client.post("/authenticate", body, status=400)

    assert response.json["message"].startswith("Malformed body")


def test_authenticate_json_sent_as_a_form_is_refused_with_the_missing_header(client):
    response = client.post(
        "/authenticate", json.dumps({"username": "alice", "password": PASSWORD}), status=415)

    assert response.json["message"].startswith("The body looks like JSON, but is sent as a form")


@for_each("content_type", [
    "text/plain", "multipart/form-data; boundary=x", "application/xml", "application/jsonp", "",
    ";application/json",
])
def test_authenticate_other_content_type_is_refused(settings, store, content_type):
    response = post(
        create_app(settings), CONTENT_TYPE=content_type, CONTENT_LENGTH="2",
        **{"wsgi.input": io.BytesIO(b"{}")})

    assert (response.status, response.json["success"]) == (415, False)


def test_authenticate_content_type_with_parameters_is_accepted(client):
    client.post("/authenticate", json.dumps({"username": "alice", "password": PASSWORD}),
                content_type="Application/JSON; charset=utf-8", status=200)


@for_each("content_type, body", [
    ("application/json", json.dumps({"username": "alice", "password": PASSWORD})),
    ("application/x-www-form-urlencoded", "username=alice&password=correct+horse")])
def test_authenticate_body_with_a_byte_order_mark_is_accepted(client, content_type, body):
    client.post("/authenticate", b"\xef\xbb\xbf" + body.encode(), content_type=content_type,
                status=200)


@for_each("coding, status", [
    ("gzip", 415), ("GZIP", 415), ("br", 415), ("deflate, gzip", 415), ("x", 415),
    ("identity", 200), ("Identity ", 200), ("", 200)])
def test_authenticate_content_encoding_is_refused(client, coding, status):
    response = client.post(
        "/authenticate", json.dumps({"username": "alice", "password": PASSWORD}),
        {"Content-Encoding": coding}, content_type="application/json", status=status)

    if status == 415:
        assert response.headers["Accept-Encoding"] == "identity"
        assert response.json["message"] == "The body must have no Content-Encoding"


@for_each("error", [
    OSError, ValueError, EOFError, ConnectionResetError, TimeoutError, RuntimeError, KeyError])
@for_each("terminated", [False, True])
def test_authenticate_body_that_cannot_be_read_is_malformed(
    settings, store, caplog, error, terminated,
):
    """Each server has its own errors for a malformed chunk or a client that has gone."""
    class Broken(io.BytesIO):
        def read(self, size=-1):
            if self.tell() == 0:
                return super().read(1)
            raise error("broken")

    environ = {"wsgi.input": Broken(b"{}"), "wsgi.input_terminated": terminated,
               "CONTENT_LENGTH": None if terminated else "2"}

    response = post(create_app(settings), **environ)

    assert (response.status, response.json["message"]) == (400, "The body cannot be read")
    assert "Traceback" not in caplog.text


def test_body_error_of_the_own_server_passes_through_the_endpoints(settings, store, caplog):
    app = create_app(settings)
    with serving(app) as server:
        broken = exchange(server, (
            b"POST /authenticate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\nx\r\n"))
        late = exchange(server, (
            b"POST /refresh HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Content-Length: 9\r\nExpect: 100-continue\r\n\r\n{"))

    assert b'{"success": false, "message": "Malformed chunked body"}' in broken
    assert b" 408 " in late and b'"message": "The request body is incomplete"' in late
    assert "Traceback" not in caplog.text


def test_body_error_of_an_application_on_the_own_server_is_408(settings, store, caplog):
    def reading(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["wsgi.input"].read(9)]

    app = create_app(settings._replace(protect=("/other",)), app=reading)
    with serving(app) as server:
        data = exchange(server, b"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\nx")

    assert statuses(data) == [408]
    assert "Traceback" not in caplog.text


@for_each("size, status", [
    (65_000, 401), (65_536, 401), (65_537, 413), (10**6, 413)])
def test_authenticate_chunked_body_on_the_own_server_has_a_limit(settings, store, size, status):
    body = b'{"x": "' + b"x" * (size - 9) + b'"}'
    with serving(create_app(settings)) as server:
        data = exchange(server, (
            b"POST /authenticate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (size, body)))

    assert statuses(data) == [status]
    assert b'"message"' in data


@for_each("length, body, status", [
    ("", b"{}", 411), (None, b"{}", 411), ("-1", b"", 400), ("+2", b"{}", 400), ("2 ", b"{}", 400),
    ("0x2", b"{}", 400), ("\u0662", b"{}", 400), ("1e1", b"{}", 400), ("2", b"{", 400),
    ("65536", b" " * 65534 + b"{}", 401), ("65537", b" " * 65537, 413),
    ("9" * 5000, b"", 413), ("0" * 10 + "2", b"{}", 413),
])
def test_authenticate_length_is_checked(settings, store, length, body, status):
    response = post(
        create_app(settings), CONTENT_LENGTH=length, **{"wsgi.input": io.BytesIO(body)})

    assert (response.status, response.json["success"]) == (status, False)


class Trickle(io.BytesIO):
    """A body that arrives byte by byte."""

    def read(self, size=-1):
        return super().read(min(size, 1))


@for_each("body, status", [
    (json.dumps({"username": "alice", "password": PASSWORD}).encode(), 200),
    (b" " * 65537, 413),
])
def test_authenticate_chunked_body_is_read_to_its_end(settings, store, body, status):
    response = post(create_app(settings), CONTENT_LENGTH=None, **{
        "wsgi.input": Trickle(body), "wsgi.input_terminated": True})

    assert response.status == status


# --- Password hashes


def test_authenticate_old_hash_is_upgraded(client, store):
    sign_in(client, "old")

    upgraded = store.find_user("old").password_hash
    assert upgraded.startswith("pbkdf2_sha256$1000$")
    assert not needs_rehash(upgraded, iterations=1000)
    sign_in(client, "old")


def test_authenticate_twice_at_once_with_an_old_hash_succeeds_for_both(client, store, monkeypatch):
    verify = jwtserver.verify_password
    both = threading.Barrier(2)

    def verify_together(*args, **options):
        right = verify(*args, **options)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(10)
        both.abort()  # the next attempt is alone
        return right

    monkeypatch.setattr(jwtserver, "_usable_cores", lambda: 2)
    monkeypatch.setattr(jwtserver, "verify_password", verify_together)
    monkeypatch.setattr(jwtserver, "_hash_queues", {})
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: sign_in(client, "old", status="*").status_int, "ab"))

    assert answers == [200, 200]


def test_authenticate_costs_as_much_as_the_strongest_hash_so_far(
        client, store, monkeypatch):
    store.add_users([
        user("strong", password_hash=hash_password(PASSWORD, iterations=3000))])
    done = count_iterations(monkeypatch)

    for name in ("strong", "nobody", "alice"):
        sign_in(client, name, "wrong", status=401)

    assert done == [3000, 3000, 1000, 2000]


def test_authenticate_wrong_password_upgrades_nothing(client, store):
    sign_in(client, "old", "wrong", status=401)

    assert store.find_user("old").password_hash == OLD_HASH


def count_iterations(monkeypatch):
    """Record the iterations of each PBKDF2 computation."""
    done = []
    real = jwtserver.verify_password.__globals__["hashlib"].pbkdf2_hmac

    def pbkdf2_hmac(name, password, salt, iterations):
        done.append(iterations)
        return real(name, password, salt, iterations)

    monkeypatch.setattr("hashlib.pbkdf2_hmac", pbkdf2_hmac)
    return done


@for_each("name", ["alice", "nobody", "mallory", "old", "a\0b"])
def test_authenticate_refusal_costs_the_same_for_every_user(settings, store, monkeypatch, name):
    client = TestApp(create_app(settings._replace(pbkdf2_iterations=1500)))
    done = count_iterations(monkeypatch)

    sign_in(client, name, "wrong", status=401)

    assert sum(done) == 1500


class RecordingConnection:
    """A database connection that records its statements."""

    def __init__(self, connection, statements):
        self._connection, self._statements = connection, statements

    def execute(self, statement, values=()):
        self._statements.append(statement)
        return self._connection.execute(statement, values)

    def __getattr__(self, name):
        return getattr(self._connection, name)


def test_authenticate_refusal_of_a_disabled_user_does_not_depend_on_the_password(
    settings, store, monkeypatch,
):
    """The right one must not take longer, to upgrade a hash, or shorter, with fewer iterations."""
    settings = settings._replace(pbkdf2_iterations=1500)
    weak = hash_password(PASSWORD, iterations=1000)
    store.add_users([user("gone", disabled=1, password_hash=weak),
                     user("gone2", disabled=1, password_hash=OLD_HASH)])
    client = TestApp(create_app(settings, store=store))
    statements, done, connect = [], count_iterations(monkeypatch), store.database.connect
    store.close()
    monkeypatch.setattr(
        store.database, "connect", lambda: RecordingConnection(connect(), statements))

    def cost(name, password):
        statements.clear()
        done.clear()
        sign_in(client, name, password, status=401)
        return sum(done), list(statements)

    refusal = cost("nobody", "wrong")
    assert [cost(name, password) for name in ("mallory", "gone", "gone2")
            for password in (PASSWORD, "wrong")] == [refusal] * 6


@pytest.mark.parametrize("change", [
    lambda store: store.remove_user("alice"),
    lambda store: store.disable_user("alice"),
    lambda store: store.set_password("alice", hash_password("other", iterations=1000)),
], ids=["removed", "disabled", "other password"])
def test_authenticate_user_changed_while_hashing_is_refused(client, store, monkeypatch, change):
    real = jwtserver.verify_password

    def verify_password(*args, **options):
        change(store)  # a command that another process runs at this moment
        return real(*args, **options)

    monkeypatch.setattr(jwtserver, "verify_password", verify_password)

    sign_in(client, status=401)


def test_hashing_is_bounded_and_other_requests_go_on(client, store, monkeypatch):
    queue = jwtserver._HashQueue(1)
    monkeypatch.setitem(jwtserver._hash_queues, os.getpid(), queue)
    token = sign_in(client).json["token"]
    answers = []
    login = threading.Thread(target=lambda: answers.append(sign_in(client).status_int))

    with queue.core("192.0.2.9"):  # another sign-in uses the only core
        login.start()
        client.get("/protected", headers=bearer(token), status=200)
        client.get("/health", status=200)
        assert answers == []
    login.join()

    assert answers == [200]


def test_hashing_makes_the_server_go_on_before_it_waits_for_a_core(client, monkeypatch):
    done = count_iterations(monkeypatch)
    seen = []
    environ = {"jwtserver.start_slow_response": lambda: seen.append(len(done)) or True}

    client.post("/authenticate", {"username": "alice", "password": PASSWORD}, extra_environ=environ)

    assert (seen, len(done)) == ([0], 1)


def test_authenticate_that_cannot_release_the_loop_is_refused_without_hashing(client, monkeypatch):
    done = count_iterations(monkeypatch)

    response = client.post(
        "/authenticate", {"username": "alice", "password": PASSWORD}, status=503,
        extra_environ={"jwtserver.start_slow_response": lambda: False})

    assert response.json == {"success": False, "message": "Too many sign-ins at once"}
    assert response.headers["Retry-After"] == "10"
    assert done == []


# --- Signing out


@for_each("authorization", [None, "Bearer x", "Basic x", "expired", "revoked"])
@for_each("post", ["post_json", "post"])
def test_logout_with_a_refresh_token_ends_the_session(settings, store, authorization, post):
    clock = Clock()
    client = TestApp(create_app(settings._replace(token_lifetime=60), clock=clock))
    tokens, other = sign_in(client).json, sign_in(client).json
    if authorization == "revoked":
        client.post("/logout", headers=bearer(other["token"]), status=204)
        authorization = f"Bearer {other['token']}"
    elif authorization == "expired":
        clock.now += 61
        authorization = f"Bearer {tokens['token']}"
    headers = {"Authorization": authorization} if authorization else {}
    fields = {"refresh_token": tokens["refresh_token"]}

    response = getattr(client, post)("/logout", fields, headers=headers, status=204)

    assert response.body == b"" and "Content-Length" not in response.headers
    client.post_json("/refresh", fields, status=401)
    client.get("/protected", headers=bearer(tokens["token"]), status=401)
    getattr(client, post)("/logout", fields, headers=headers, status=204)


def test_logout_with_a_replaced_refresh_token_ends_the_session(client, caplog):
    old = sign_in(client).json
    new = client.post_json("/refresh", {"refresh_token": old["refresh_token"]}).json

    client.post_json("/logout", {"refresh_token": old["refresh_token"]}, status=204)

    client.post_json("/refresh", {"refresh_token": new["refresh_token"]}, status=401)
    assert [line for line in caplog.messages if line.startswith("logout")] == [
        f'logout user="alice" address="" session="{decode(new["token"], KEY)["sid"]}"']


@for_each("token", ["x", "x" * 5000, "\0", f"{'x' * 22}.0.{'x' * 43}"])
def test_logout_with_an_unknown_refresh_token_ends_nothing(client, caplog, token):
    tokens = sign_in(client).json

    client.post_json("/logout", {"refresh_token": token}, status=204)

    client.get("/protected", headers=bearer(tokens["token"]), status=200)
    assert "logout" not in caplog.text


@for_each("body, status, error", [
    (b"", 401, "An authorization header is required"),
    (b"{}", 401, "An authorization header is required"),
    (b'{"refresh_token": ""}', 401, "An authorization header is required"),
    (b'{"refresh_token": 1}', 400, "`refresh_token` must be a string"),
    (b'{"refresh_token": null}', 400, "`refresh_token` must be a string"),
    (b'{"refresh_token": []}', 400, "`refresh_token` must be a string"),
    (b"{", 400, "Malformed body: Invalid JSON"),
])
def test_logout_without_a_usable_token_is_refused(client, body, status, error):
    response = client.post("/logout", body, content_type="application/json", status=status)

    assert response.json == {"success": False, "error": error}
    assert ("WWW-Authenticate" in response.headers) == (status == 401)


def test_logout_with_a_valid_token_does_not_read_the_body(client):
    tokens, other = sign_in(client).json, sign_in(client).json

    client.post("/logout", b"{", headers=bearer(tokens["token"]), status=204)
    client.post_json("/logout", {"refresh_token": tokens["refresh_token"]},
                     headers=bearer(other["token"]), status=204)

    client.post_json("/refresh", {"refresh_token": other["refresh_token"]}, status=401)


def test_logout_by_another_method_asks_for_a_token(client):
    tokens = sign_in(client).json

    client.put_json("/logout", {"refresh_token": tokens["refresh_token"]}, status=401)

    client.get("/protected", headers=bearer(tokens["token"]), status=200)


def test_logout_reads_a_chunked_body(settings, store):
    client = TestApp(create_app(settings))
    tokens = sign_in(client).json
    body = json.dumps({"refresh_token": tokens["refresh_token"]}).encode()

    response = call(create_app(settings), "/logout", "POST", CONTENT_LENGTH=None,
                    CONTENT_TYPE="application/json",
                    **{"wsgi.input": io.BytesIO(body), "wsgi.input_terminated": True})

    assert response.status == 204
    client.get("/protected", headers=bearer(tokens["token"]), status=401)


@for_each("affinity", [True, False])
def test_cores_are_at_least_one(monkeypatch, affinity):
    if affinity:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    else:
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: None)

    assert jwtserver._usable_cores() == (2 if affinity else 1)


# --- The other endpoints


def test_protected_with_token_welcomes(client):
    token = sign_in(client).json["token"]

    response = client.get("/protected", headers=bearer(token))

    assert response.json == {"message": "Welcome to the protected page"}
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_protected_without_token_is_refused_with_the_text_of_the_tutorial(client):
    response = client.get("/protected", status=401)

    assert response.json == {"success": False, "error": "An authorization header is required"}
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="api"'
    assert response.headers.getall("X-Content-Type-Options") == ["nosniff"]


def test_protected_token_of_another_key_is_refused(settings, store, client):
    other = TestApp(create_app(settings._replace(secret=KEY[::-1])))

    response = client.get("/protected", headers=bearer(sign_in(other).json["token"]), status=401)

    assert response.json == {"success": False, "error": "Invalid authorization token"}


def test_rotated_keys_first_signs_and_all_verify(settings, store, client):
    rotated = TestApp(create_app(settings._replace(secret=f"{KEY[::-1]}\n{KEY}")))
    old = sign_in(client).json["token"]
    new = sign_in(rotated).json["token"]

    rotated.get("/protected", headers=bearer(old), status=200)
    rotated.get("/protected", headers=bearer(new), status=200)
    client.get("/protected", headers=bearer(new), status=401)


def test_health_answers_ok(client):
    response = client.get("/health")

    assert (response.json, response.headers["Cache-Control"]) == ({"status": "ok"}, "no-store")


@for_each("path", ["/health", "/", "/nope", "/protected", "/openapi.json"])
def test_json_body_ends_with_a_line_feed(client, path):
    response = client.get(path, status="*")

    assert response.body.endswith(b"}\n")
    assert int(response.headers["Content-Length"]) == len(response.body)


@pytest.mark.sqlite
def test_health_without_the_database_file_is_503(client, store):
    client.get("/health", status=200)
    os.unlink(store.name)

    client.get("/health", status=503)


@for_each("path", ["/health", "/protected"])
def test_head_is_answered_without_body(client, path):
    headers = bearer(sign_in(client).json["token"])

    response = client.head(path, headers=headers)

    assert response.status_int == 200
    assert response.body == b""
    assert int(response.headers["Content-Length"]) > 0


@for_each("method, path, allow, member", [
    ("GET", "/authenticate", "POST", "message"), ("PUT", "/authenticate", "POST", "message"),
    ("POST", "/health", "GET, HEAD", "error"), ("DELETE", "/protected", "GET, HEAD", "error"),
    ("OPTIONS", "/health", "GET, HEAD", "error"), ("post", "/authenticate", "POST", "message"),
])
def test_wrong_method_is_refused_with_allow(settings, store, client, method, path, allow, member):
    token = sign_in(client).json["token"]

    response = call(create_app(settings), path, method, HTTP_AUTHORIZATION=f"Bearer {token}")

    assert (response.status, response.headers["Allow"]) == (405, allow)
    assert response.json == {"success": False, member: "Method not allowed"}


@for_each("path", ["/nope", "/authenticate/", "/health/x", "/register", ""])
def test_unknown_path_is_not_found(client, path):
    response = client.get(path, status=404)

    assert response.json == {"success": False, "error": "Not found"}


def test_missing_path_is_not_found(settings, store):
    response = call(create_app(settings), PATH_INFO=None)

    assert (response.status, response.json["error"]) == (404, "Not found")


def test_database_broken_answers_503_without_details(client, store, settings, caplog):
    connection = open_store(settings.database).database.connect()
    connection.execute("DROP TABLE users")
    connection.close()

    health = client.get("/health", status=503)
    login = sign_in(client, status=503)

    assert health.json == {"success": False, "error": "The database cannot answer"}
    assert login.json == {"success": False, "message": "The database cannot answer"}
    assert "users" in caplog.text


def test_internal_error_answers_500_and_only_logs_the_traceback(settings, store, caplog):
    response = post(create_app(settings), CONTENT_LENGTH="2", **{"wsgi.input": "no file"})

    assert response.status == 500
    assert response.json == {"success": False, "message": "Internal server error"}
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "Traceback" in caplog.text


# --- An application of one's own


def whoami(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [environ["REMOTE_USER"].encode()]


def test_own_application_is_behind_the_guard_as_a_whole(settings, store):
    client = TestApp(create_app(settings, app=validator(whoami)))
    headers = bearer(sign_in(client).json["token"])

    for path in ["/", "/protected", "/anything", "/Authenticate", "/health/x", "//health"]:
        client.get(path, status=401)
        response = client.get(path, headers=headers)
        assert response.text == "alice"
        assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_own_application_endpoints_stay_open(settings, store):
    client = TestApp(create_app(settings, app=whoami))

    client.get("/health", status=200)
    sign_in(client, status=200)


SLASHED = [f"/{name}/" for name in "authenticate refresh logout verify health openapi.json".split()]


@for_each("path", SLASHED)
@for_each("method", ["GET", "POST"])
def test_endpoint_with_a_slash_is_not_found_without_asking_for_a_token(
    settings, store, method, path,
):
    for app in (None, whoami):
        client = TestApp(create_app(settings._replace(prefix="/auth"), app=app))

        response = client.request(f"/auth{path}", method=method, status=404)

        assert response.json == {"success": False, "error": "Not found"}
        assert "WWW-Authenticate" not in response.headers


@for_each("path", SLASHED)
def test_endpoint_with_a_slash_is_the_applications_with_a_token_or_where_it_is_open(
    settings, store, path,
):
    def page(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"mine"]

    closed = TestApp(create_app(settings, app=page))
    opened = TestApp(create_app(settings._replace(protect=("/api",)), app=page))

    headers = bearer(sign_in(closed).json["token"])
    assert closed.get(path, headers=headers).body == b"mine"
    if path not in ("/logout/", "/verify/"):  # below paths that always need a token
        assert opened.get(path).body == b"mine"


def test_own_application_rules_come_from_the_settings(settings, store):
    def hello(environ, start_response):
        start_response("200 OK", [
            ("Content-Type", "text/plain"), ("x-content-type-options", "nosniff")])
        return [b"hello"]

    client = TestApp(create_app(
        settings._replace(protect=("/api",), exempt=("/api/open",)), app=hello))

    assert client.get("/").headers.getall("X-Content-Type-Options") == ["nosniff"]
    client.get("/api/x", status=401)
    client.get("/api/open/x", status=200)


def test_scopes_of_the_settings_hold_for_an_application_and_for_endpoints(settings, store):
    client = TestApp(create_app(
        settings._replace(protect={"/api": (), "/api/admin": "admin", "/verify": "admin"}),
        app=whoami))
    headers = bearer(sign_in(client).json["token"])

    assert client.get("/api/admin", headers=headers, status=403).json == {
        "success": False, "error": "Insufficient scope"}
    client.get("/verify", headers=headers, status=403)
    client.get("/api/x", headers=headers, status=200)
    client.post("/logout", status=401)


@for_each("arguments, words", [
    ({"app": "module:app"}, "app must be"), ({"settings": whoami}, "given as app=")])
def test_create_app_with_arguments_of_another_type_raises_at_once(arguments, words):
    with pytest.raises(TypeError, match=words):
        create_app(**arguments)

    assert os.listdir() == []


def test_falsy_application_is_served_behind_the_guard(settings, store):
    class Application(list):
        def __call__(self, environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"mine"]

    client = TestApp(create_app(settings, app=Application()))

    assert client.get("/", status=401).json["success"] is False
    assert client.get("/", headers=bearer(sign_in(client).json["token"])).body == b"mine"


def test_app_on_a_database_without_users_names_a_command_for_any_folder(
        caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "orig_argv", ["sub/python"], raising=False)  # Python 3.9 has none
    monkeypatch.setattr(sys, "executable", "sub/python")
    create_app(Settings(secret_file="a.key"))

    folder = os.path.realpath(tmp_path)
    words = shlex.split(caplog.text.partition("jwtserver.db has no users; run: ")[2])
    assert words[0] == f"{folder}/sub/python"
    assert words[2:] == ["--secret-file", f"{folder}/a.key", "--database", f"{folder}/jwtserver.db",
                         "user", "add", "NAME"]


def test_prefix_moves_the_endpoints_but_not_the_demo(settings, store):
    client = TestApp(create_app(settings._replace(prefix="/auth")))

    response = client.post_json("/auth/authenticate", {"username": "alice", "password": PASSWORD})

    client.get("/auth/health", status=200)
    client.get("/health", status=404)
    client.get("/protected", headers=bearer(response.json["token"]), status=200)


@for_each("field", ["protect", "exempt"])
def test_malformed_rule_stops_the_composition(settings, field):
    with pytest.raises(jwtserver.SettingsError, match=f"JWTSERVER_{field.upper()}.*'nope'"):
        create_app(settings._replace(**{field: ("nope",)}))


@pytest.mark.parametrize("started", [False, True])
def test_own_application_raising_becomes_500(settings, store, caplog, started):
    def faulty(environ, start_response):
        if started:
            start_response("200 OK", [("Content-Type", "text/plain")])
        raise LookupError("secret detail")

    client = TestApp(create_app(settings, app=faulty))
    headers = bearer(sign_in(client).json["token"])

    response = client.get("/", headers=headers, status=500)

    assert response.json == {"success": False, "error": "Internal server error"}
    assert "secret detail" in caplog.text


def answered_with_exc_info(error, *, started):
    """The status and the exc_info of each call of start_response by a failing application."""
    calls = []

    def faulty(environ, start_response):
        if started:
            start_response("200 OK", [])
        raise error

    def start_response(line, headers, exc_info=(None, None, None)):
        calls.append((line[:3], exc_info[1]))

    jwtserver.Router({}, faulty)({}, start_response)
    return calls


def test_router_fault_after_the_response_was_started_replaces_it():
    error = LookupError("missing")

    calls = answered_with_exc_info(error, started=True)

    assert calls == [("200", None), ("500", error)]


@for_each("error, status", [
    (jwtserver.HTTPError(409, "Taken"), "409"), (jwtserver.StoreError("gone"), "503")])
def test_router_expected_error_is_answered_without_exc_info(error, status):
    """uWSGI and Bjoern lose a response that comes with exc_info."""
    assert answered_with_exc_info(error, started=False) == [(status, None)]


def test_own_application_streams_and_is_closed(settings, store):
    class Stream:
        sent = closed = 0

        def __iter__(self):
            for self.sent in (1, 2):
                yield b"x"

        def close(self):
            self.closed += 1

    stream = Stream()

    def streaming(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return stream

    token = sign_in(TestApp(create_app(settings))).json["token"]
    app = create_app(settings, app=streaming)
    result = app({"REQUEST_METHOD": "GET", "PATH_INFO": "/",
                  "HTTP_AUTHORIZATION": f"Bearer {token}"}, lambda *args: None)

    assert result is stream
    assert next(iter(result)) == b"x" and stream.sent == 1


# --- The module's application


@pytest.fixture
def environment(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("JWTSERVER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("JWTSERVER_DATABASE", str(tmp_path / "users.db"))
    monkeypatch.setenv("JWTSERVER_PBKDF2_ITERATIONS", "1000")
    monkeypatch.setattr(jwtserver, "_built", None)


def test_application_is_in_the_module_dict_and_builds_itself_once(environment, tmp_path):
    assert os.listdir(tmp_path) == []
    app = vars(jwtserver)["application"]
    start = threading.Barrier(8)
    built = []

    def request():
        start.wait()
        TestApp(app).get("/health")
        TestApp(app).get("/health")
        built.append(jwtserver._built)

    threads = [threading.Thread(target=request) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(built) == 8 and len(set(map(id, built))) == 1
    assert {"users.db", "jwtserver.key"} <= set(os.listdir(tmp_path))


def test_application_second_thread_uses_what_the_first_built(environment, monkeypatch):
    def answered(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"built meanwhile"]

    class Lock:
        def __enter__(self):
            jwtserver._built = answered

        def __exit__(self, *exc_info):
            pass

    monkeypatch.setitem(jwtserver._build_locks, os.getpid(), Lock())

    assert TestApp(jwtserver.application).get("/").text == "built meanwhile"


def test_application_whose_database_cannot_answer_is_503_until_it_can(
    environment, monkeypatch, tmp_path,
):
    monkeypatch.setenv("JWTSERVER_DATABASE", str(tmp_path / "later" / "users.db"))
    client = TestApp(jwtserver.application)

    answer = client.get("/health", status=503).json
    os.mkdir(tmp_path / "later")

    assert answer == {"success": False, "error": "The database cannot answer"}
    client.get("/health", status=200)


@pytest.mark.parametrize("variable, value", [
    ("JWTSERVER_TOKEN_LIFETIME", "0"), ("JWTSERVER_PROTECT", "nope"), ("JWTSERVER_SECRET", "short"),
])
def test_application_bad_setting_names_the_variable(environment, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)

    with pytest.raises(jwtserver.SettingsError, match=variable):
        jwtserver.application({"REQUEST_METHOD": "GET", "PATH_INFO": "/health"}, None)


def test_create_app_leaves_no_connection_open_that_a_fork_would_share(
    settings, database, monkeypatch,
):
    connections = []
    for kind in (jwtserver._SQLite, jwtserver._PostgreSQL):
        def connect(database, connect=kind.connect):
            connections.append(ClosingConnection(connect(database)))
            return connections[-1]

        monkeypatch.setattr(kind, "connect", connect)

    create_app(settings._replace(secret=""))  # with a new key, which looks for open sessions

    assert connections and all(connection.closed for connection in connections)


class ClosingConnection:
    """A connection that knows whether it has been closed."""

    def __init__(self, connection):
        self.connection = connection
        self.closed = False

    def __getattr__(self, name):
        return getattr(self.connection, name)

    def close(self):
        self.closed = True
        self.connection.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_application_after_fork_answers_although_a_thread_held_the_locks(
    environment, monkeypatch,
):
    client = TestApp(jwtserver.application)
    client.get("/health")
    lock, queue = threading.Lock(), jwtserver._HashQueue(1)
    monkeypatch.setitem(jwtserver._build_locks, os.getpid(), lock)
    monkeypatch.setitem(jwtserver._hash_queues, os.getpid(), queue)

    with lock, queue._changed:  # as other threads of the parent may hold them
        child = os.fork()
        if child == 0:
            status = 1
            try:
                jwtserver._built = None
                sign_in(client, "nobody", status=401)
                status = 0
            finally:
                os._exit(status)

    assert os.waitpid(child, 0)[1] == 0


def test_token_expires(settings, store):
    client = TestApp(create_app(settings._replace(token_lifetime=1)))
    claims = decode(sign_in(client).json["token"], KEY, now=time.time())

    assert claims["exp"] - claims["iat"] == 1
