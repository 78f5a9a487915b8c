"""Sessions: refresh, reuse of a refresh token, logout, key rotation, the audit log."""

import hashlib
import json
import os
import re
import signal
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from webtest import TestApp

import jwtserver
import support
from jwtserver import Settings, create_app, open_store
from support import (
    KEY, PASSWORD, PASSWORD_HASH, Clock, bearer, call, for_each, python, python_at_once, user,
)
from wsgi_auth import TokenSigner, decode, encode, hash_password, needs_rehash

OTHER = KEY[::-1]
DATABASE = "jwtserver.db"
USERS = [user("alice", "read"), user("bob")]


@pytest.fixture
def clock():
    return Clock(1_800_000_000.5)


def sign_in(client, name="alice", **options):
    return support.sign_in(client, name, **options).json


def refresh(client, token, status=200):
    return client.post_json("/refresh", {"refresh_token": token}, status=status).json


def protected(client, token, status=200):
    return client.get("/protected", headers=bearer(token), status=status)


def logout(client, token, status=204):
    return client.post("/logout", headers=bearer(token), status=status)


def rows(database, statement="SELECT * FROM sessions"):
    connection = open_store(database).database.connect()
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


def claims_of(answer, clock):
    return decode(answer["token"], KEY, now=clock.now)


def audit(caplog):
    """The lines of the audit log, without the session IDs."""
    return [re.sub('session="[0-9a-f]{32}"', "session=S", record.getMessage())
            for record in caplog.records if record.name == "jwtserver.audit"]


# --- Refresh


@pytest.mark.sqlite
def test_authenticate_answers_a_refresh_token_that_is_not_stored(client, store):
    token = sign_in(client)["refresh_token"]

    store.close()
    assert re.fullmatch(r"[\w-]{22}\.[0-9a-f]{64}", token)
    stored = b"".join(path.read_bytes() for path in Path().glob(f"{DATABASE}*"))
    assert hashlib.sha256(token.encode()).hexdigest().encode() in stored
    for part in token.split("."):
        assert part.encode() not in stored


def test_token_lifetime_is_expires_in_even_if_the_clock_advances_meanwhile(store, settings):
    seconds = iter(range(1_800_000_000, 1_800_001_000))
    client = TestApp(create_app(settings, clock=lambda: next(seconds) + 0.5))

    answer = sign_in(client)

    claims = decode(answer["token"], KEY, now=1_800_000_100)
    assert answer["expires_in"] == claims["exp"] - claims["iat"] == 3600


def test_refresh_answers_the_shape_of_authenticate_and_rotates(client, clock, database):
    first = sign_in(client)
    clock.now += 100

    response = client.post("/refresh", {"refresh_token": first["refresh_token"]})

    second = response.json
    assert response.headers["Cache-Control"] == "no-store"
    assert second.keys() == first.keys()
    assert (second["token_type"], second["expires_in"]) == ("Bearer", 3600)
    assert second["refresh_token"] != first["refresh_token"]
    before, after = claims_of(first, clock), claims_of(second, clock)
    assert (after["sid"], after["sub"], after["scope"]) == (before["sid"], "alice", "read")
    assert (after["iat"], after["exp"]) == (before["iat"] + 100, before["exp"] + 100)
    assert after["jti"] != before["jti"]
    for answer in (first, second):
        protected(client, answer["token"])
    assert len(rows(database)) == 1


def test_refresh_grants_the_scope_that_the_user_has_now(client, store, clock):
    token = sign_in(client)["refresh_token"]
    with store.database.connection() as connection:
        connection.execute("UPDATE users SET scope = 'read write'")

    assert claims_of(refresh(client, token), clock)["scope"] == "read write"


@for_each("body, status, message", [
    ({}, 401, "A `refresh_token` is required"),
    ({"refresh_token": ""}, 401, "A `refresh_token` is required"),
    ({"refresh_token": 7}, 400, "`refresh_token` must be a string"),
    ({"refresh_token": "x"}, 401, "Invalid refresh token"),
    ({"refresh_token": "\ud800"}, 400, "Malformed body: Invalid JSON"),
    ({"refresh_token": f"{'A' * 22}.{'a' * 64}"}, 401, "Invalid refresh token"),
    ({"refresh_token": f"{'A' * 22}.{'a' * 64}\n"}, 401, "Invalid refresh token"),
    ({"refresh_token": f"{'A' * 22}.{'a' * 60_000}"}, 401, "Invalid refresh token"),
    ({"refresh_token": f"{'A' * 22}.\u0660.{'A' * 43}"}, 401, "Invalid refresh token"),
])
def test_refresh_with_another_token_is_refused(client, body, status, message):
    answer = client.post_json("/refresh", body, status=status).json

    assert answer == {"success": False, "message": message}


def test_refresh_with_an_access_token_is_refused(client):
    refresh(client, sign_in(client)["token"], 401)


def test_refresh_token_used_again_after_the_grace_period_ends_the_session(
    client, clock, caplog, database,
):
    first = sign_in(client)
    second = refresh(client, first["refresh_token"])
    clock.now += 30

    refresh(client, first["refresh_token"], 401)

    refresh(client, second["refresh_token"], 401)
    for answer in (first, second):
        refused = protected(client, answer["token"], 401)
        assert "Token has been revoked" in refused.headers["WWW-Authenticate"]
    assert rows(database) == []
    assert 'refresh_reused user="alice" address="" session=S' in audit(caplog)


def test_refresh_token_repeated_in_any_process_gets_the_same_successor(client, make, clock):
    first = sign_in(client)
    second = refresh(client, first["refresh_token"])
    clock.now += 29.75

    answers = [refresh(server, first["refresh_token"]) for server in (client, make(), client)]

    assert {answer["refresh_token"] for answer in answers} == {second["refresh_token"]}
    assert {claims_of(answer, clock)["iat"] for answer in answers} == {int(clock.now)}
    third = refresh(make(), second["refresh_token"])
    assert third["refresh_token"] != second["refresh_token"]
    clock.now += 60
    protected(client, third["token"])


def test_refresh_token_repeated_does_not_extend_the_grace_period(client, clock, database):
    token = sign_in(client)["refresh_token"]
    refresh(client, token)
    clock.now += 20
    refresh(client, token)
    clock.now += 10

    refresh(client, token, 401)

    assert rows(database) == []


def test_two_tabs_that_refresh_at_once_stay_signed_in(client, clock):
    """The tab with the first response was signed out later."""
    token = sign_in(client)["refresh_token"]
    tabs = [refresh(client, token), refresh(client, token)]

    for _ in range(3):
        clock.now += 3000
        tabs = [refresh(client, answer["refresh_token"]) for answer in tabs]
        for answer in tabs:
            protected(client, answer["token"])


@pytest.mark.parametrize("seconds, sessions", [(29, 1), (30, 0)])
def test_refresh_token_older_than_the_latest_rotation_ends_the_session_only_after_the_grace_period(
    client, clock, database, seconds, sessions,
):
    first = sign_in(client)
    second = refresh(client, first["refresh_token"])
    third = refresh(client, second["refresh_token"])
    clock.now += seconds

    refresh(client, first["refresh_token"], 401)

    assert len(rows(database)) == sessions
    refresh(client, third["refresh_token"], 200 if sessions else 401)


def test_refresh_without_a_grace_period_ends_the_session_when_a_token_is_repeated(make, database):
    client = make(refresh_grace=0)
    first = sign_in(client)
    second = refresh(client, first["refresh_token"])
    refresh(client, second["refresh_token"])

    refresh(client, second["refresh_token"], 401)

    assert rows(database) == []


def test_refresh_token_used_again_after_the_clock_was_set_back_ends_the_session(client, clock):
    old = sign_in(client)["refresh_token"]
    new = refresh(client, old)["refresh_token"]
    clock.now -= 3600

    refresh(client, old, 401)

    refresh(client, new, 401)


def test_each_rotation_has_a_fresh_salt(client, database):
    token, salts = sign_in(client)["refresh_token"], set()

    for _ in range(3):
        token = refresh(client, token)["refresh_token"]
        salts.add(rows(database, "SELECT salt FROM sessions")[0][0])

    assert len(salts) == 3 and min(map(len, salts)) == 32


def test_refresh_with_an_invented_token_does_not_wait_for_a_writer(client, store, monkeypatch):
    """It took the lock first. Many invented tokens beside a writer delayed all other requests."""
    monkeypatch.setattr(jwtserver, "BUSY_TIMEOUT", 0.05)
    store.close()
    writer = store.database.connect()
    writer.execute(store.database.begin)
    writer.execute("UPDATE sessions SET refreshed = 0")

    refresh(client, f"{'A' * 22}.{'a' * 64}", 401)

    writer.close()


def test_refresh_overtaken_by_another_process_gets_the_same_successor(client, make, monkeypatch):
    token, other, answers = sign_in(client)["refresh_token"], make(), []
    save = jwtserver.Store._save_rotation

    def overtaken(*arguments):
        monkeypatch.setattr(jwtserver.Store, "_save_rotation", save)
        answers.append(refresh(other, token))
        return save(*arguments)

    monkeypatch.setattr(jwtserver.Store, "_save_rotation", overtaken)

    answers.append(refresh(client, token))

    assert answers[0]["refresh_token"] == answers[1]["refresh_token"]


def test_refresh_of_a_user_who_is_removed_meanwhile_is_refused(client, store, monkeypatch):
    token = sign_in(client)["refresh_token"]
    save = jwtserver.Store._save_rotation
    monkeypatch.setattr(
        jwtserver.Store, "_save_rotation",
        lambda *arguments: save(*arguments) and store.remove_user("alice"))

    refresh(client, token, 401)


def test_session_that_a_clock_ahead_has_opened_ends_when_the_clock_is_right(client, clock, store):
    clock.now += 10 * 365 * 86400
    answer = sign_in(client)
    sid = claims_of(answer, clock)["sid"]
    created = clock.now

    clock.now -= 10 * 365 * 86400

    protected(client, answer["token"], 401)
    refresh(client, answer["refresh_token"], 401)
    assert not store.is_open(sid, created - 10.25)
    assert store.is_open(sid, created - 10)


def test_leeway_of_the_settings_holds_for_sessions_too(make, clock):
    ahead, lenient, strict = make(), make(leeway=30), make(leeway=0)
    token = sign_in(ahead)["token"]

    clock.now -= 20

    protected(lenient, token)
    protected(strict, token, 401)


def test_refresh_token_forged_from_a_session_id_ends_nothing(client, clock):
    answer = sign_in(client)
    sid = claims_of(answer, clock)["sid"]
    clock.now += 60

    for family in (sid[:22], sid[-22:]):
        refresh(client, f"{family}.{'a' * 64}", 401)

    protected(client, answer["token"])


def test_session_ends_at_its_time_even_if_refreshed(make, clock):
    client = make(session_lifetime=7000)
    answer = sign_in(client)
    end = int(clock.now) + 7000

    for _ in range(6):
        clock.now += 1000
        answer = refresh(client, answer["refresh_token"])
        assert claims_of(answer, clock)["exp"] == min(int(clock.now) + 3600, end)
        assert answer["expires_in"] == min(3600, end - int(clock.now))
    clock.now += 999
    protected(client, answer["token"])
    clock.now = end
    protected(client, answer["token"], 401)
    refresh(client, answer["refresh_token"], 401)


def test_a_hundred_threads_refresh_one_token(client, monkeypatch):
    monkeypatch.setattr(jwtserver, "BUSY_TIMEOUT", 60.0)  # a busy machine may take more than 5 s
    token = sign_in(client)["refresh_token"]
    start, answers = threading.Barrier(100), []

    def retry():
        start.wait()
        answers.append(client.post_json("/refresh", {"refresh_token": token}).json)

    threads = [threading.Thread(target=retry) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(answers) == 100
    (successor,) = {answer["refresh_token"] for answer in answers}
    refresh(client, successor)


def test_expired_sessions_are_swept_a_few_at_a_time(
    client, store, clock, monkeypatch, database,
):
    monkeypatch.setattr(jwtserver, "SWEEP_ROWS", 2)
    for _ in range(3):
        sign_in(client)
    clock.now += 14 * 86400
    assert len(rows(database)) == 3

    sign_in(client)
    assert len(rows(database)) == 2
    sign_in(client)
    assert len(rows(database)) == 2


# --- Logout, and the end of all sessions


def test_logout_ends_the_session_in_every_process(client, make, clock, caplog):
    mine, others = sign_in(client), sign_in(client)

    response = logout(client, mine["token"])

    assert response.body == b""
    assert "Content-Length" not in response.headers and "Content-Type" not in response.headers
    for server in (client, make()):
        protected(server, mine["token"], 401)
        refresh(server, mine["refresh_token"], 401)
        logout(server, mine["token"], 401)
        protected(server, others["token"])
    assert 'logout user="alice" address="" session=S' in audit(caplog)


def test_logout_without_a_token_is_refused(client):
    answer = client.post("/logout", status=401).json

    assert answer == {"success": False, "error": "An authorization header is required"}


def test_logout_exempt_from_the_guard_is_refused_without_a_token(make):
    answer = make(exempt=("/logout",)).post("/logout", status=401).json

    assert answer == {"success": False, "error": "An authorization header is required"}


@for_each("method", ["GET", "PUT", "DELETE"])
def test_logout_by_another_method_is_refused(client, method):
    headers = bearer(sign_in(client)["token"])

    response = client.request("/logout", method=method, headers=headers, status=405)

    assert response.headers["Allow"] == "POST"


def test_logout_below_the_prefix_leaves_the_path_to_the_application(store, settings):
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"mine"]

    client = TestApp(create_app(settings._replace(prefix="/auth", protect=("/x",)), app=app))
    token = client.post_json(
        "/auth/authenticate", {"username": "alice", "password": PASSWORD}).json["token"]
    headers = {"Authorization": f"Bearer {token}"}

    assert client.post("/logout").body == b"mine"
    client.post("/auth/logout", status=401)
    client.post("/auth/logout", headers=headers, status=204)
    client.get("/x", headers=headers, status=401)


def test_token_without_a_session_is_valid_and_cannot_be_logged_out(client, clock):
    token = TokenSigner(KEY, clock=clock).sign({"sub": "script"})

    protected(client, token)
    answer = logout(client, token, 400).json

    assert answer == {"success": False, "error": "The token belongs to no session"}


@for_each("sid", ["", "x", 7, None, True, ["x"], {"x": 1}, "\0", "' OR 1 --"])
def test_token_of_an_unknown_session_is_refused(client, clock, sid):
    sign_in(client)
    token = encode({"sub": "alice", "sid": sid, "exp": int(clock.now) + 9}, KEY)

    protected(client, token, 401)


@pytest.mark.parametrize("end", [
    lambda store: store.end_sessions("alice"),
    lambda store: store.disable_user("alice"),
    lambda store: store.remove_user("alice"),
    lambda store: store.set_password("alice", "other"),
], ids=["logout", "disable", "remove", "password"])
def test_end_of_all_sessions_of_a_user_leaves_those_of_others(client, store, end):
    mine = [sign_in(client), sign_in(client)]
    others = sign_in(client, "bob")

    end(store)

    for answer in mine:
        protected(client, answer["token"], 401)
        refresh(client, answer["refresh_token"], 401)
    protected(client, others["token"])
    refresh(client, others["refresh_token"])


def test_enable_and_an_upgraded_hash_end_no_session(client, make, store):
    answer = sign_in(client)

    store.enable_user("alice")
    sign_in(make(pbkdf2_iterations=1001))

    assert not needs_rehash(store.find_user("alice").password_hash, iterations=1001)
    protected(client, answer["token"])


def test_guard_without_the_database_answers_503(client, store, monkeypatch, database):
    token = sign_in(client)["token"]

    def take(database, idle, max_age):
        raise database.store_error("disk I/O error")

    monkeypatch.setattr(type(store.database), "take", take)

    answer = protected(client, token, 503).json
    assert answer == {"success": False, "error": "The database cannot answer"}


# --- Scopes that fit into headers


LONGEST_SCOPE = " ".join(["s" * 1023, "t" * 1024])


@pytest.mark.parametrize("command", ["user add carol --password-stdin --scope", "user scope alice"])
def test_scopes_that_are_too_long_for_a_header_are_refused(store, capsys, monkeypatch, command):
    """A user could sign in with 13 KiB of scopes, but servers refused the token's header."""
    monkeypatch.setattr("sys.stdin", support.standard_input("x\nx\n"))

    assert jwtserver.main([*command.split(), LONGEST_SCOPE + "t"]) == 1
    assert capsys.readouterr().err == (
        "jwtserver: the scopes have 2049 characters; more than 2048 do not fit into the headers"
        " that proxies accept\n")
    assert jwtserver.main([*command.split(), LONGEST_SCOPE]) == 0


@for_each("name", ["a" * 150, "\u5c71" * 150, "\U0001f642" * 150])
def test_longest_scopes_and_name_fit_into_the_headers_of_proxies(client, store, name):
    store.add_users([user(name, LONGEST_SCOPE)])

    token = sign_in(client, name)["token"]
    response = client.get("/verify", headers=bearer(token))

    assert len(f"Authorization: Bearer {token}") < 5000
    assert response.headers["Remote-Scope"] == LONGEST_SCOPE
    assert sum(len(f"{name}: {value}\r\n") for name, value in response.headerlist) < 4096 - 1024


@for_each("claims", [
    {"sub": "script", "scope": "s" * 3067}, {"sub": "\xe9" * 1537}])
def test_token_made_elsewhere_that_is_too_long_for_a_header_is_refused_by_verify(
    client, clock, claims,
):
    token = TokenSigner(KEY, clock=clock).sign(claims)

    answer = client.get("/verify", headers=bearer(token), status=403).json

    assert answer["error"] == "The token's subject and scope are too long for a header"


# --- Two processes, and one that is killed


def test_logout_in_one_store_is_seen_by_the_next_look_up_of_another(store, database, clock):
    here, now = store, clock()
    there = open_store(database)
    grants = [jwtserver.new_grant(store.find_user("alice"), 1000, now) for _ in range(3)]
    for grant in grants:
        here.open_session(grant, now)

    seen = []
    for ended in grants:
        there.end_session(ended.session.id)
        seen.append([here.is_open(grant.session.id, now) for grant in grants])

    assert seen == [[False, True, True], [False, False, True], [False, False, False]]
    there.close()


def test_logout_between_two_requests_of_the_server_is_seen_by_the_second(
    store, database, monkeypatch,
):
    """It looked up all sessions of one iteration of its loop in one snapshot."""
    monkeypatch.setenv("JWTSERVER_SECRET", KEY)
    grants = [jwtserver.new_grant(store.find_user("alice"), 1000, time.time()) for _ in range(2)]
    for grant in grants:
        store.open_session(grant, time.time())
    first, second = (
        f"Bearer {jwtserver.issue_token(grant, TokenSigner(KEY), 60, time.time())[0]}"
        for grant in grants)
    statuses, make_app = [], jwtserver.create_app

    def create_app(*arguments, **options):
        app = make_app(*arguments, **options)

        def serve_forever(server):
            statuses.append(call(app, "/protected", HTTP_AUTHORIZATION=first).status)
            store.end_session(grants[1].session.id)
            statuses.append(call(app, "/protected", HTTP_AUTHORIZATION=second).status)

        monkeypatch.setattr(jwtserver._Server, "serve_forever", serve_forever)
        return app

    monkeypatch.setattr(jwtserver, "create_app", create_app)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)

    assert jwtserver.main(["--port", "0"]) == 0
    assert statuses == [200, 401]


CHILD = f"""
import io, os, signal, sys, jwtserver
settings = jwtserver.Settings.from_environ(os.environ)._replace(secret={KEY!r})
app = jwtserver.create_app(settings)

def post(path, authorization="", body=b""):
    statuses = []
    environ = {{
        "REQUEST_METHOD": "POST", "PATH_INFO": path, "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body),
        "HTTP_AUTHORIZATION": authorization}}
    app(environ, lambda status, headers, exc_info=None: statuses.append(status))
    return statuses[0]
"""


def test_processes_see_each_others_logout_and_lockout(store, settings):
    client = TestApp(create_app(settings))
    answer = sign_in(client)

    output, errors = python(CHILD + """
print(post("/logout", "Bearer " + sys.argv[1]))
for _ in range(6):
    print(post("/authenticate", body=b'{"username": "bob", "password": "wrong"}'))
""", answer["token"]).communicate()

    assert output.splitlines() == [
        "204 No Content", *["401 Unauthorized"] * 5, "429 Too Many Requests"], errors
    protected(client, answer["token"], 401)
    refresh(client, answer["refresh_token"], 401)
    client.post_json("/authenticate", {"username": "bob", "password": PASSWORD}, status=429)


ACTIONS = {
    "refresh": lambda store, token, now: store.refresh(token, now, 30, ""),
    "open": lambda store, token, now: store.open_session(
        jwtserver.new_grant(store.find_user("alice")._replace(password_hash="better"), 99, now),
        now, found=store.find_user("alice"),
        attempt=jwtserver.Attempt.of("alice", "", Settings().login_failures)),
    "fail": lambda store, token, now: store.count_failure(
        jwtserver.Attempt.of("alice", "", Settings().login_failures), now),
    "disable": lambda store, token, now: store.disable_user("alice"),
    "remove": lambda store, token, now: store.remove_user("alice"),
}


class Traced:
    """A connection that calls `before` before each statement."""

    def __init__(self, connection, before):
        self.connection, self.before = connection, before

    def execute(self, *arguments):
        self.before()
        return self.connection.execute(*arguments)

    def __getattr__(self, name):
        return getattr(self.connection, name)


def run_until_killed(database, action, token, now, count):
    """Run an action in a process that is killed after `count` statements. Return whether it was."""
    child = os.fork()
    if child == 0:
        try:
            store, left = open_store(database), iter(range(count))
            store.close()
            connect = store.database.connect
            store.database.connect = lambda: Traced(connect(), lambda: (
                next(left, None) is None and os.kill(os.getpid(), signal.SIGKILL)))
            ACTIONS[action](store, token, now)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


# The state of the database: sessions, those with a token issued by the killed process, users,
# whether alice is disabled, whether the password hash is the new one, failure counters.
STATE = """SELECT (SELECT count(*) FROM sessions),
    (SELECT count(*) FROM sessions WHERE refreshed > 1800000001),
    (SELECT count(*) FROM users), (SELECT disabled FROM users WHERE name = 'alice'),
    (SELECT password_hash = 'better' FROM users WHERE name = 'alice'),
    (SELECT count(*) FROM failures)"""
BEFORE = (1, 0, 2, 0, 0, 0)


@pytest.mark.parametrize("action, again, after", [
    ("refresh", False, (1, 1, 2, 0, 0, 0)),
    ("refresh", True, (0, 0, 2, 0, 0, 0)),
    ("open", False, (2, 1, 2, 0, 1, 0)),
    ("fail", False, (1, 0, 2, 0, 0, 3)),
    ("disable", False, (0, 0, 2, 1, 0, 0)),
    ("remove", False, (0, 0, 1, None, None, 0)),
])
def test_process_killed_between_two_statements_leaves_all_or_nothing(
        client, store, clock, database, action, again, after):
    old = sign_in(client)["refresh_token"]
    new = refresh(client, old)["refresh_token"]
    store.close()
    seen, killed = [], True

    while killed and set(seen) <= {BEFORE}:
        killed = run_until_killed(
            database, action, old if again else new, clock.now + 99, len(seen))
        seen += rows(database, STATE)
        if database == DATABASE:
            assert rows(database, "PRAGMA integrity_check") == [("ok",)]

    assert len(seen) >= 3
    assert set(seen[:-1]) == {BEFORE}
    assert seen[-1] == after


# --- Databases of the releases before


# The tables as 0.1.0 made them, and those that 0.2.0 added. 0.3.0 changed nothing.
TABLES_1 = """CREATE TABLE users (
    name TEXT NOT NULL PRIMARY KEY,
    password_hash TEXT NOT NULL,
    scope TEXT NOT NULL,
    disabled INTEGER NOT NULL,
    created INTEGER NOT NULL
);"""
TABLES_2 = TABLES_1 + """CREATE TABLE sessions (
    id TEXT NOT NULL PRIMARY KEY,
    user_name TEXT NOT NULL,
    generation INTEGER NOT NULL,
    refresh_hash TEXT NOT NULL,
    previous_hash TEXT NOT NULL,
    rotated DOUBLE PRECISION NOT NULL,
    expires BIGINT NOT NULL
);
CREATE INDEX sessions_by_user ON sessions (user_name);
CREATE INDEX sessions_by_end ON sessions (expires);
CREATE TABLE failures (
    id TEXT NOT NULL PRIMARY KEY,
    count INTEGER NOT NULL,
    expires DOUBLE PRECISION NOT NULL
);
CREATE INDEX failures_by_end ON failures (expires);"""
OLD_FAMILY = "f" * 22
OLD_TOKENS = [f"{OLD_FAMILY}.{number}.{'s' * 42}{number}" for number in range(2)]


def old_database(database, version, clock):
    """Write a database of an old release: users, and in version 2 a session and a lock-out."""
    if database == DATABASE:
        connection = sqlite3.connect(DATABASE, isolation_level=None)
    else:
        connection = jwtserver._PostgreSQL(database).connect()
    tables = TABLES_1 if version == 1 else TABLES_2
    if database == DATABASE:
        tables += f"PRAGMA application_id = 1786213491; PRAGMA user_version = {version};"
    else:
        tables += ("CREATE TABLE jwtserver (version INTEGER NOT NULL);"
                   f"INSERT INTO jwtserver VALUES ({version});")
    for statement in tables.split(";"):
        if statement.strip():
            connection.execute(statement)
    for name in ("alice", "bob"):
        connection.execute("INSERT INTO users VALUES (?, ?, 'read', 0, 7)", [name, PASSWORD_HASH])
    if version == 2:
        lockout = jwtserver.Attempt.of("bob", "", Settings().login_failures)
        connection.execute("INSERT INTO failures VALUES (?, 5, ?)",
                           [lockout.user_at_address, clock.now + 900])
        connection.execute("INSERT INTO sessions VALUES (?, 'alice', 1, ?, ?, ?, ?)", [
            jwtserver._session_id(OLD_FAMILY), jwtserver._digest(OLD_TOKENS[1]),
            jwtserver._digest(OLD_TOKENS[0]), clock.now - 5, int(clock.now) + 9000])
    connection.close()


def test_database_of_release_0_1_keeps_its_users(clock, database, settings):
    old_database(database, 1, clock)

    client = TestApp(create_app(settings, clock=clock))

    protected(client, sign_in(client)["token"])
    store = open_store(database)
    assert [row[0] for row in store.all_users()] == ["alice", "bob"]
    assert store.find_user("alice")[2:] == ("read", 0, 7, "", 0)
    store.close()


def test_database_of_release_0_3_keeps_users_sessions_and_lock_outs(clock, database, settings):
    old_database(database, 2, clock)

    client = TestApp(create_app(settings, clock=clock))

    sid = jwtserver._session_id(OLD_FAMILY)
    old = encode({"sub": "alice", "sid": sid, "iat": int(clock.now), "exp": clock.now + 9}, KEY)
    protected(client, old)
    sign_in(client, "bob", status=429)
    refresh(client, OLD_TOKENS[0], 401)  # it has no successor, but may come from a slow tab
    answer = refresh(client, OLD_TOKENS[1])
    assert refresh(client, OLD_TOKENS[1])["refresh_token"] == answer["refresh_token"]
    protected(client, answer["token"])
    clock.now += 60
    refresh(client, OLD_TOKENS[0], 401)
    protected(client, answer["token"], 401)


@pytest.mark.parametrize("version", [1, 2])
def test_processes_that_migrate_at_once_migrate_once(clock, database, version):
    old_database(database, version, clock)

    lines = python_at_once(
        4, "print(len(jwtserver.open_store(sys.argv[1]).all_users()))", database)

    assert lines == ["2"] * 4
    assert len(rows(database)) == version - 1


# --- Keys that change under a running server


def keys(*names):
    draft = Path("draft")
    draft.write_text("".join(f"{name}\n" for name in names))
    draft.chmod(0o600)
    os.replace(draft, "jwtserver.key")


@pytest.fixture
def rotating(make):
    """Two servers on one key file."""
    keys(KEY)
    return make(secret=""), make(secret="")


def test_key_rotated_is_used_and_no_valid_token_is_refused(rotating, clock):
    here, there = rotating
    old = sign_in(here)["token"]
    clock.now += 1
    protected(there, old)  # so that this one has looked just now
    keys(OTHER, KEY)

    new = sign_in(here)["token"]

    decode(new, OTHER, now=clock.now)
    for server in rotating:
        protected(server, new)
        protected(server, old)


def test_key_pruned_is_refused_a_second_later(rotating, clock):
    old = sign_in(rotating[0])["token"]
    keys(OTHER)
    clock.now += 1

    for server in rotating:
        protected(server, old, 401)


@pytest.mark.parametrize("spoil", [
    lambda: os.unlink("jwtserver.key"),
    lambda: keys("short"),
    lambda: keys(),
], ids=["gone", "short", "empty"])
def test_key_file_that_becomes_unusable_leaves_the_old_keys_in_use(rotating, clock, caplog, spoil):
    here, _ = rotating
    token = sign_in(here)["token"]
    spoil()
    clock.now += 1

    for _ in range(3):
        protected(here, token)
        protected(here, sign_in(here)["token"])

    assert caplog.text.count("The old keys stay in use: ") == 1
    assert "jwtserver.key" in caplog.text and KEY not in caplog.text
    keys(OTHER)
    clock.now += 1
    decode(sign_in(here)["token"], OTHER, now=clock.now)


def test_key_file_is_checked_only_twice_a_second(rotating, clock, monkeypatch):
    here, _ = rotating
    token = sign_in(here)["token"]
    checks = []
    monkeypatch.setattr(
        jwtserver.FileSigner, "_fingerprint",
        lambda signer: checks.append(clock.now) or signer._loaded[1])

    for _ in range(10):
        protected(here, token)
        clock.now += 0.125

    assert len(checks) == 2


def test_clock_set_back_does_not_keep_a_key(rotating, clock):
    old = sign_in(rotating[0])["token"]
    keys(OTHER)
    clock.now -= 5

    protected(rotating[0], old, 401)


# --- The audit log


def test_audit_has_a_line_for_each_event_and_no_secrets(client, clock, caplog):
    answer = sign_in(client, extra_environ={"REMOTE_ADDR": "192.0.2.1"})
    client.post_json("/authenticate", {"username": "a\n\x1b[31m\x7f\u2028é", "password": "hunter2"},
                     status=401)
    again = refresh(client, answer["refresh_token"])
    refresh(client, "x", 401)
    logout(client, again["token"])

    assert audit(caplog) == [
        'sign_in user="alice" address="192.0.2.1" session=S',
        r'sign_in_failed user="a\n\u001b[31m\u007f\u2028\u00e9" address="" reason="unknown user"',
        'refresh user="alice" address="" session=S',
        'refresh_failed address=""',
        'logout user="alice" address="" session=S',
    ]
    for secret in (PASSWORD, "hunter2", KEY, *answer["token"].split("."), again["refresh_token"],
                   *answer["refresh_token"].split(".")):
        assert secret not in caplog.text


def test_audit_truncates_a_name_that_is_too_long(client, caplog):
    client.post_json("/authenticate", {"username": "x" * 60_000, "password": "y"}, status=401)

    assert audit(caplog) == [
        f'sign_in_failed user="{"x" * 150}" address="" reason="unknown user"']


def test_audit_of_commands_has_a_line_for_each_change(store, caplog, monkeypatch, capsys):
    csv = Path("users.csv")
    csv.write_text(f"carol,{hash_password('x', iterations=9)}\n")

    for line in ["user import users.csv", "token issue alice", "user scope alice a{b",
                 "token issue alice --scope a{b --label ci --lifetime 60", "user disable alice",
                 "user enable alice", "user logout alice", "user remove alice", "key rotate",
                 "key prune", "user disable nobody"]:
        jwtserver.main(line.split())

    assert audit(caplog) == [
        'user_add user="carol" scope=""',
        'token_issue user="alice" session=S scope="read" label="" lifetime="3600"',
        'user_scope user="alice" scope="a{b"',
        'token_issue user="alice" session=S scope="a{b" label="ci" lifetime="60"',
        'user_disable user="alice"',
        'user_enable user="alice"', 'user_logout user="alice"', 'user_remove user="alice"',
        "key_rotate", "key_prune"]
    token = capsys.readouterr().out.splitlines()[1]
    assert json.loads('{"%s": 1}' % token) and token not in caplog.text


# --- Commands


def test_token_issue_can_be_logged_out(store, capsys):
    jwtserver.main(["token", "issue", "alice", "--lifetime", "60"])
    token = capsys.readouterr().out.strip()
    assert jwtserver.main(["token", "inspect", token]) == 0

    jwtserver.main(["user", "logout", "alice"])

    assert jwtserver.main(["token", "inspect", token]) == 1
    assert capsys.readouterr().err == "jwtserver: the token is not valid: Token has been revoked\n"


def test_token_issue_for_a_user_who_is_removed_meanwhile_is_refused(store, capsys, monkeypatch):
    real = jwtserver.new_grant

    def new_grant(user, *arguments, **details):
        store.remove_user(user.name)
        return real(user, *arguments, **details)

    monkeypatch.setattr(jwtserver, "new_grant", new_grant)

    assert jwtserver.main(["token", "issue", "alice"]) == 1
    assert "the user 'alice' was changed at the same time" in capsys.readouterr().err


def test_key_rotations_at_once_are_all_kept(store):
    jwtserver.prepare_keys(Settings())
    python_at_once(5, "sys.exit(jwtserver.main(['key', 'rotate']))")

    assert len(set(Path("jwtserver.key").read_text().split())) == 6
