"""Self-service, machine tokens, the second factor, and the commands about them."""

import io
import re
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from webtest import TestApp

import jwtserver
from jwtserver import (
    OTP_STEP_SECONDS, create_app, find_otp_step, main, new_grant, otp_code, otp_uri,
)
from support import KEY, PASSWORD, Clock, bearer, for_each, sign_in, user
from wsgi_auth import decode

SECRET = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"  # of RFC 6238, appendix B
NEW_PASSWORD = "battery staple"
USERS = [user("alice", "read write"), user("bob")]


@pytest.fixture(autouse=True)
def key_of_commands(monkeypatch):
    monkeypatch.setenv("JWTSERVER_SECRET", KEY)


@pytest.fixture
def command(capsys, monkeypatch, store, clock):
    """Runs a command line, split at its spaces; returns exit code, output, errors."""
    monkeypatch.setattr(jwtserver.time, "time", clock)

    def run(line, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        return (main(line.split()), *capsys.readouterr())

    return run


def code_at(now, secret=SECRET):
    return otp_code(secret, int(now) // OTP_STEP_SECONDS)


def refused(result, words):
    code, output, errors = result
    assert (code, output) == (1, "")
    assert errors.splitlines()[-1].startswith("jwtserver: ") and words in errors
    return True


# --- Passwords ----------------------------------------------------------------------------------


def change(client, token, password=PASSWORD, new_password=NEW_PASSWORD, status=204):
    fields = {"password": password, "new_password": new_password}
    return client.post_json("/password", fields, headers=bearer(token), status=status)


def test_password_change_keeps_the_current_session_and_ends_all_others(client, command):
    current, other = sign_in(client).json, sign_in(client).json
    _, machine, _ = command("token issue alice")

    response = change(client, current["token"])

    assert response.body == b""
    client.get("/protected", headers=bearer(current["token"]))
    client.post_json("/refresh", {"refresh_token": current["refresh_token"]})
    client.get("/protected", headers=bearer(other["token"]), status=401)
    client.get("/protected", headers=bearer(machine.strip()), status=401)
    sign_in(client, status=401)
    sign_in(client, password=NEW_PASSWORD)


@for_each("fields", [
    {}, {"password": PASSWORD}, {"new_password": NEW_PASSWORD},
    {"password": PASSWORD, "new_password": ""}, {"password": "", "new_password": NEW_PASSWORD},
    {"password": 1, "new_password": NEW_PASSWORD}, {"password": PASSWORD, "new_password": None},
    {"password": "wrong", "new_password": "x" * 1025},
])
def test_password_change_without_usable_fields_is_400(client, fields):
    response = client.post_json(
        "/password", fields, headers=bearer(sign_in(client).json["token"]), status=400)

    assert set(response.json) == {"success", "error"}


def test_wrong_old_password_counts_as_a_failed_sign_in(client):
    token = sign_in(client).json["token"]

    for _ in range(5):
        response = change(client, token, "wrong", status=401)
    assert response.json == {"success": False, "error": "Invalid password"}
    assert change(client, token, status=429).headers["Retry-After"] == "900"
    sign_in(client, status=429)


def test_failed_sign_ins_lock_the_password_change(client):
    token = sign_in(client).json["token"]
    for _ in range(5):
        sign_in(client, password="wrong", status=401)

    change(client, token, status=429)


def test_right_old_password_clears_the_failures(client):
    token = sign_in(client).json["token"]
    for _ in range(4):
        change(client, token, "wrong", status=401)
    change(client, token)

    for _ in range(5):
        change(client, token, "wrong", status=401)


def test_password_change_while_the_operator_changes_it_is_checked_again(client, store, monkeypatch):
    token, real = sign_in(client).json["token"], jwtserver.hash_password

    def hash_password(password, **options):
        if options["iterations"] > 1:
            store.set_password("alice", real("another", iterations=1000))
        return real(password, **options)

    monkeypatch.setattr(jwtserver, "hash_password", hash_password)

    change(client, token, status=401)


def test_lock_out_during_a_password_change_stops_it(client, store, monkeypatch):
    token, real = sign_in(client).json["token"], jwtserver.hash_password

    def hash_password(password, **options):
        if options["iterations"] > 1:
            for _ in range(5):
                sign_in(client, password="wrong", status=401)
        return real(password, **options)

    monkeypatch.setattr(jwtserver, "hash_password", hash_password)

    change(client, token, status=429)


@for_each("path, method", [
    ("/password", "POST"), ("/sessions", "GET"), ("/sessions/" + "0" * 32, "DELETE")])
def test_machine_token_and_token_without_session_are_refused(client, command, path, method):
    _, machine, _ = command("token issue alice")
    foreign = jwtserver.TokenSigner(KEY, clock=Clock()).sign({"sub": "alice"})

    for token in (machine.strip(), foreign):
        client.request(path, method=method, headers=bearer(token), status=403)
    client.request(path, method=method, status=401)


# --- Sessions -----------------------------------------------------------------------------------


def test_sessions_are_the_users_own_the_newest_first(client, clock, command):
    sign_in(client, "bob")
    first = sign_in(client).json
    clock.now += 10
    command("token issue alice --label ci --lifetime 60")
    clock.now += 10
    first = client.post_json("/refresh", {"refresh_token": first["refresh_token"]}).json

    sessions = client.get("/sessions", headers=bearer(first["token"])).json["sessions"]

    start = clock.now - 20
    assert [session.pop("id") for session in sessions][1] == decode(
        first["token"], KEY, now=clock())["sid"]
    assert sessions == [
        {"label": "ci", "created": start + 10, "last_used": start + 10, "expires": start + 70,
         "current": False},
        {"label": None, "created": start, "last_used": start + 20, "expires": start + 14 * 86400,
         "current": True}]


@pytest.mark.parametrize("method", ["DELETE", "POST"])
def test_user_ends_a_session(client, method):
    one, other = sign_in(client).json["token"], sign_in(client).json["token"]
    path = f"/sessions/{decode(other, KEY, now=Clock()())['sid']}"

    client.request(path, method=method, headers=bearer(one), status=204)

    client.get("/protected", headers=bearer(other), status=401)
    client.request(path, method=method, headers=bearer(one), status=404)


@for_each("session_id", ["", "x", "0" * 32, "%00", "%27", "a/b", "x" * 10_000])
def test_session_that_is_not_there_is_404(client, session_id):
    token = sign_in(client).json["token"]

    client.delete(f"/sessions/{session_id}", headers=bearer(token), status=404)


def test_session_of_another_user_is_404_and_stays(client):
    alice, bob = sign_in(client).json["token"], sign_in(client, "bob").json["token"]

    client.delete(f"/sessions/{decode(bob, KEY, now=Clock()())['sid']}", headers=bearer(alice),
                  status=404)

    client.get("/protected", headers=bearer(bob))


def test_operator_lists_and_ends_sessions(client, command, clock):
    tokens = sign_in(client).json
    token = tokens["token"]
    session_id = decode(token, KEY, now=clock())["sid"]
    command("token issue alice --label night --lifetime 60 --scope read")

    _, output, _ = command("session list alice")
    lines = output.splitlines()
    assert len(lines) == 2 and lines[0 if "token" in lines[0] else 1].endswith(
        "token   created 2027-01-15 08:00 UTC, expires 2027-01-15 08:01 UTC, scope 'read',"
        ' "night"')
    assert any(line == f"{session_id} session created 2027-01-15 08:00 UTC, expires 2027-01-29"
               " 08:00 UTC" for line in lines)

    clock.now += 60
    client.post_json("/refresh", {"refresh_token": tokens["refresh_token"]})
    assert command("session list alice")[1].rstrip() == (
        f"{session_id} session created 2027-01-15 08:00 UTC, last refreshed 2027-01-15 08:01 UTC,"
        " expires 2027-01-29 08:00 UTC")
    assert command(f"session end {session_id}")[:2] == (0, "Ended a session of alice\n")
    client.get("/protected", headers=bearer(token), status=401)
    for wrong in (session_id, "x"):
        assert refused(command(f"session end {wrong}"), "there is no session")


# --- Machine tokens -----------------------------------------------------------------------------


def test_machine_token_is_narrower_than_its_user_and_is_revoked_by_its_id(client, command):
    code, token, errors = command("token issue alice --label ci --lifetime 31536000 --scope read")

    claims = decode(token.strip(), KEY, now=Clock()())
    assert (code, claims["scope"], claims["exp"] - claims["iat"]) == (0, "read", 31536000)
    assert f"ID: {claims['sid']}\n" in errors and token.count("\n") == 1
    assert command(f"token revoke {claims['sid']}")[:2] == (0, "Revoked a token of alice\n")
    client.get("/protected", headers=bearer(token.strip()), status=401)


@for_each("scope, missing", [("read admin", "admin"), ("b a", "a b")])
def test_machine_token_is_never_wider_than_its_user(command, scope, missing, capsys):
    assert main(["token", "issue", "alice", "--scope", scope]) == 1
    assert (f"does not have the scope {missing}; the user's scopes are: read write\n"
            in capsys.readouterr().err)


def test_machine_token_without_scopes(command, capsys):
    assert main(["token", "issue", "alice", "--scope", ""]) == 0
    assert "scope" not in decode(capsys.readouterr().out.strip(), KEY, now=Clock()())


def test_label_that_cannot_be_shown_is_refused(command, capsys):
    for label in ("a\nb", "\x1b[31m", "x" * 101):
        assert main(["token", "issue", "alice", "--label", label]) == 1
        assert "--label must be printable text" in capsys.readouterr().err


def test_change_of_the_scopes_ends_machine_tokens(client, command):
    _, token, _ = command("token issue alice --lifetime 60")

    command("user scope alice read")

    client.get("/protected", headers=bearer(token.strip()), status=401)


# --- The second factor --------------------------------------------------------------------------


@for_each("now, code", [  # RFC 6238, appendix B, of which 6 digits are used
    (59, "287082"), (1111111109, "081804"), (1111111111, "050471"), (1234567890, "005924"),
    (2000000000, "279037"), (20000000000, "353130")])
def test_otp_vectors_of_the_rfc(now, code):
    assert code_at(now) == code
    assert find_otp_step(SECRET, code, now) == now // 30


def test_otp_allows_one_step_of_drift_and_spaces():
    now = 1_800_000_000
    steps = {offset: find_otp_step(SECRET, code_at(now + 30 * offset), now) - now // 30
             for offset in (-1, 0, 1)}

    assert steps == {-1: -1, 0: 0, 1: 1}
    assert find_otp_step(SECRET, code_at(now - 60), now) == -1
    assert find_otp_step(SECRET, code_at(now + 60), now) == -1
    assert find_otp_step(SECRET, " ".join(code_at(now)), now) == now // 30
    for wrong in ("", "x", "1234567", "\ud800", "１２３４５６", code_at(now) + "\0"):
        assert find_otp_step(SECRET, wrong, now) == -1


def test_otp_uri_escapes_names():
    uri = urlsplit(otp_uri("a b:c/ü", SECRET, "my tool"))

    assert (uri.scheme, uri.netloc, uri.path) == (
        "otpauth", "totp", "/my%20tool:a%20b%3Ac%2F%C3%BC")
    assert parse_qs(uri.query) == {"secret": [SECRET], "issuer": ["my tool"]}


@pytest.fixture
def otp_client(client, store):
    store.set_otp("alice", SECRET, 0)
    return client


def sign_in_with(client, status=200, **fields):
    return client.post_json(
        "/authenticate", {"username": "alice", "password": PASSWORD, **fields}, status=status)


def test_password_without_a_code_gets_otp_required_and_counts_as_nothing(otp_client):
    for _ in range(6):
        response = sign_in_with(otp_client, 401)
    assert response.json == {"success": False, "message": "A one-time password is required",
                             "otp_required": True}
    assert sign_in_with(otp_client, 401, otp="").json == response.json


def test_code_is_accepted_once(otp_client, clock):
    code = code_at(clock())

    sign_in_with(otp_client, otp=code)
    assert sign_in_with(otp_client, 401, otp=code).json == {
        "success": False, "message": "Invalid username and password"}
    sign_in_with(otp_client, 401, otp=code_at(clock() - 30))
    sign_in_with(otp_client, otp=code_at(clock() + 30))


def test_code_is_accepted_once_by_two_processes_at_once(otp_client, clock, settings, monkeypatch):
    code, other = code_at(clock()), TestApp(create_app(settings, clock=clock))
    real, answers = jwtserver.find_otp_step, []

    def find_otp_step(*arguments):
        if not answers:
            answers.append(None)
            answers.append(sign_in_with(other, otp=code))
        return real(*arguments)

    monkeypatch.setattr(jwtserver, "find_otp_step", find_otp_step)

    sign_in_with(otp_client, 401, otp=code)


def test_wrong_code_counts_as_a_failed_sign_in(otp_client, clock):
    for _ in range(5):
        assert "otp_required" not in sign_in_with(otp_client, 401, otp="000000").json
    sign_in_with(otp_client, 429, otp=code_at(clock()))


def test_wrong_password_reveals_nothing_about_the_second_factor(otp_client, clock):
    responses = [otp_client.post_json("/authenticate", {
        "username": name, "password": "wrong", **fields}, status=401).json
        for name in ("alice", "bob", "nobody") for fields in ({}, {"otp": code_at(clock())})]

    assert responses == [{"success": False, "message": "Invalid username and password"}] * 6


def test_code_without_a_second_factor_is_ignored(client):
    sign_in_with(client, otp="123456")
    sign_in_with(client, 400, otp=123456)


def test_command_turns_on_a_second_factor_after_one_code(command, client, clock, monkeypatch):
    monkeypatch.setattr(jwtserver, "new_otp_secret", lambda: SECRET)
    token = sign_in(client).json["token"]

    code, output, errors = command("user otp alice", code_at(clock()) + "\n")

    assert code == 0 and f"Secret: {SECRET}\n" in output
    assert f"otpauth://totp/jwtserver:alice?secret={SECRET}&issuer=jwtserver" in output
    assert SECRET not in errors
    client.get("/protected", headers=bearer(token))
    sign_in_with(client, 401, otp=code_at(clock()))  # the code that turned it on is used
    clock.now += 30
    sign_in_with(client, otp=code_at(clock()))
    assert re.search("alice +enabled +otp read write\nbob +enabled\n", command("user list")[1])
    assert refused(command("user otp alice"), "has a second factor; remove it first")
    assert command("user otp alice --remove")[0] == 0
    sign_in_with(client)


def test_commands_that_find_nothing_to_change_say_so(command, client, caplog):
    assert command("session list alice") == (0, "", "alice has no sessions\n")
    assert command("user otp alice --remove") == (0, "alice has no second factor\n", "")
    assert not caplog.messages
    assert command("user unlock alice")[1].startswith("alice was not locked out. An address with")


def test_wrong_code_does_not_turn_it_on(command, client):
    code, _, errors = command("user otp alice", "000000\n1\n")

    assert code == 1 and errors == (
        "Code: Wrong. Code: Wrong. Code: jwtserver: the code is wrong; nothing has changed. The"
        " next run makes a new secret\n")
    sign_in_with(client)


def test_log_says_why_a_sign_in_has_failed(client, store, caplog, clock):
    store.disable_user("bob")
    store.set_otp("alice", SECRET, 0)
    code = code_at(clock())
    for fields in ({"username": "nobody"}, {"username": "bob"}, {"password": "wrong"},
                   {}, {"otp": "000000"}, {"otp": code}, {"otp": code}):
        client.post_json("/authenticate", {
            "username": "alice", "password": PASSWORD, **fields}, status="*")

    reasons = [line.partition("reason=")[2] for line in caplog.messages]
    assert reasons == ['"unknown user"', '"disabled user"', '"wrong password"', "", '"wrong code"',
                       "", '"used code"']
    assert caplog.messages[3] == 'otp_required user="alice" address=""'


def test_new_secret_has_160_bits():
    assert re.fullmatch("[A-Z2-7]{32}", jwtserver.new_otp_secret())


def test_secret_is_never_logged(otp_client, clock, caplog):
    sign_in_with(otp_client, otp=code_at(clock()))
    sign_in_with(otp_client, 401, otp="000000")

    assert SECRET not in caplog.text and code_at(clock()) not in caplog.text


# --- Operator commands --------------------------------------------------------------------------


@pytest.mark.parametrize("line", [
    "user password alice --password-stdin", "user otp alice", "user scope alice read",
    "user rename alice carol"])
def test_change_of_a_user_who_is_removed_meanwhile_is_an_error(command, store, monkeypatch, line):
    """The operator may type the password or the code minutes after the command has started."""
    real = jwtserver._find_existing_user

    def find_existing_user(*arguments):
        found = real(*arguments)
        store.remove_user("alice")
        return found

    monkeypatch.setattr(jwtserver, "_find_existing_user", find_existing_user)
    monkeypatch.setattr(jwtserver, "find_otp_step", lambda *arguments: 1)

    code, output, errors = command(line, "123456\n")

    assert code == 1 and "Changed" not in output and "Turned on" not in output
    assert errors.endswith("'alice' was removed or renamed meanwhile; nothing has changed\n")


def test_rename_ends_sessions_and_keeps_password_and_scopes(command, client):
    token = sign_in(client).json["token"]

    assert command("user rename alice carol")[1] == (
        "Renamed alice to carol and ended the user's sessions and tokens\n")
    client.get("/protected", headers=bearer(token), status=401)
    sign_in(client, status=401)
    assert decode(sign_in(client, "carol").json["token"], KEY, now=Clock()())["scope"] == (
        "read write")
    assert refused(command("user rename carol bob"), "the user 'bob' exists already")
    assert refused(command("user rename nobody x"), "there is no user 'nobody'")


def test_import_from_standard_input(command, client):
    line = "\ufeffdora," + user("x").password_hash + ",read\n"

    assert command("user import -", line)[0] == 0
    sign_in(client, "dora")


def test_new_key_beside_open_sessions_causes_a_warning(
    settings, store, command, monkeypatch, clock, caplog,
):
    monkeypatch.delenv("JWTSERVER_SECRET")
    of_machine = [settings._replace(secret="", secret_file=f"{name}.key") for name in "ab"]
    client = TestApp(create_app(of_machine[0], clock=clock))
    # There are users, but no other server can have a key yet, unless the database is PostgreSQL.
    assert ("is new" in caplog.text) == ("://" in settings.database)
    sign_in(client)

    create_app(of_machine[1])
    assert "b.key is new: " in caplog.text and "need the same key file" in caplog.text
    command("token issue alice --secret-file c.key")
    assert "c.key is new: " in caplog.text
    caplog.clear()
    create_app(of_machine[1])
    assert "is new" not in caplog.text


def test_key_list_and_prune_know_which_key_signed_live_tokens(
    settings, store, command, monkeypatch, clock,
):
    monkeypatch.delenv("JWTSERVER_SECRET")
    client = TestApp(create_app(settings._replace(secret="", secret_file="jwtserver.key"),
                                clock=clock))
    old = sign_in(client).json
    command("key rotate")
    Path("other.key").write_text("k" * 32)
    clock.now += 1
    sign_in(client)
    alice = store.find_user("alice")
    store.open_session(new_grant(alice, 86400, clock()), clock())  # of a release before

    (signs, verifies, unknown) = command("key list")[1].splitlines()
    assert re.fullmatch("[0-9a-f]{16} signs         live sessions: 1", signs)
    assert re.fullmatch("[0-9a-f]{16} verifies only live sessions: 1", verifies)
    assert unknown == "Live sessions from before an upgrade, whose key was not recorded: 1"
    elsewhere = new_grant(alice, 86400, clock(), key_fingerprint="0" * 16)
    store.open_session(elsewhere, clock())  # of a key that is not in the file, so not broken
    assert refused(command("key prune"), "tokens that are valid: 2, for example of alice. Wait"
                   " until they expire, or make these tokens invalid with --force (refresh tokens"
                   " keep working)")

    new = client.post_json("/refresh", {"refresh_token": old["refresh_token"]}).json
    assert "verifies only live sessions: 0" in command("key list")[1]
    assert command("key list --secret-file other.key")[1].endswith(
        "\nLive sessions whose key is not here: 3\n")
    clock.now += 3600 + 30 + 10 - 1  # the lifetime, the grace period and the leeway
    assert refused(command("key prune"), "tokens that are valid: 1")
    assert command("key prune --force")[0] == 0
    store.end_sessions("alice")
    assert command("key list")[1].count("\n") == 1
    assert command("key prune")[1].endswith("has only one key; there is none to remove\n")
    assert new["token"] != old["token"]
