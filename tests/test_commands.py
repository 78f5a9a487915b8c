"""The command line: what each command does, and that errors are one line."""

import io
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from webtest import TestApp

import jwtserver
from jwtserver import Settings, main, open_store
from support import PASSWORD, ROOT, for_each, program, user
from wsgi_auth import decode, verify_password

HASHES = {
    "django": "pbkdf2_sha256$1000$n3RFFf2yKkyGrDsLxbSpFe"
              "$Ojx+SLNFe/Jg6RntLE0fwXaApOJ131pSkj9poemmYlk=",
    "django-sha1": "pbkdf2_sha1$1000$n3RFFf2yKkyGrDsLxbSpFe$Em41LAFXKnPpAMTV8ooZ9gXHwnk=",
    "werkzeug": "pbkdf2:sha256:1000$p5kZiG0XKLjnLneQ"
                "$53d0d31087b79106de722767795b28acdadb2f492054add7c11b8b58fc37c9a0",
    "passlib": "$pbkdf2-sha256$1000$cY4xJsQYQ2jtXcsZo/T.3w"
               "$oYQuw2E6TIPhm7syo3BAE/3IUNCoqV4bGTtWPB3sZr0",
}
USERS = [user("alice", "read write")]
BCRYPT = "$2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy"


@pytest.fixture
def command(capsys, monkeypatch, database):
    """Runs a command line, split at its spaces; returns exit code, output, errors."""

    def run(line, stdin=""):
        data = stdin if isinstance(stdin, bytes) else stdin.encode("utf-8", "surrogateescape")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(
            io.BytesIO(data), "utf-8", errors="surrogateescape"))
        code = main(line.split() if isinstance(line, str) else line)
        return (code, *capsys.readouterr())

    return run


def refused(result, words):
    code, output, errors = result
    assert (code, output) == (1, "")
    assert errors.startswith("jwtserver: ") and errors.count("\n") == 1
    assert words in errors
    return True


# --- user


def test_user_add_takes_the_password_from_the_input(command, database):
    code, output, errors = command(
        "user add bob --scope read --password-stdin", "secret\r\nmore\n")

    store = open_store(database)
    added = store.find_user("bob")
    assert (code, output, errors) == (0, f"Added the user bob to {store.name}\n", "")
    assert (added.name, added.scope, added.disabled) == ("bob", "read", 0)
    assert added.password_hash.startswith("pbkdf2_sha256$1000$")
    assert verify_password("secret", added.password_hash)


@for_each("line, stdin, words", [
    ("user add alice --password-stdin", "x", "the user 'alice' exists already"),
    ("user add bob --password-stdin", "", "the password is empty"),
    ("user add bob --password-stdin", "x" * 1025, "longer than 1024 bytes"),
    ("user add bob --password-stdin", "\udcff", "not valid Unicode"),
    ("user add bob", "x", "--password-stdin"),
    (["user", "add", " bob", "--password-stdin"], "x", "not start or end with"),
    (["user", "add", "b\x1b[31mob", "--password-stdin"], "x", "not contain control characters"),
    (["user", "add", "bob", "--scope", 'a"b', "--password-stdin"], "x", "not a scope"),
    ("user password bob --password-stdin", "x", "there is no user 'bob'"),
    ("user remove bob", "", "there is no user 'bob'"),
    ("user disable bob", "", "there is no user 'bob'"),
    ("user enable bob", "", "there is no user 'bob'"),
    (["user", "remove", "\x1b[31m\n"], "", "there is no user '\\x1b[31m\\n'"),
    ("token issue bob", "", "there is no user 'bob'"),
    (["user", "scope", "alice", 'a"b'], "", "not a scope"),
    ("user import none.csv", "", "jwtserver: none.csv: No such file or directory"),
    ("user list --database no/such.db", "", "no/such.db; `user add` creates it"),
    ("user add bob --password-stdin --database no/such.db", "x", "no/such.db: No such file"),
    (["user", "scope", "alice", "a,b"], "", "separate scopes with spaces, not commas: 'a,b'"),
    ("user add bob --scope a,b --password-stdin", "x", "with spaces, not commas: 'a,b'"),
    ("key rotate --secret-file no/such.key", "", "no/such"),
])
def test_command_that_cannot_be_done_is_one_line(command, store, line, stdin, words):
    before = store.all_users()

    assert refused(command(line, stdin), words)
    assert store.all_users() == before


@pytest.mark.parametrize("data", [
    "sécret\r\n".encode("utf-8-sig"), "sécret\r\nmore\r\n".encode("utf-16"),
    b"\xfe\xff" + "sécret\n".encode("utf-16-be"), "sécret".encode("utf-16"), "sécret\n".encode(),
], ids=["utf8_with_mark", "utf16", "utf16_big_endian", "utf16_without_line_end", "utf8"])
def test_password_as_powershell_sends_it_is_that_password(command, store, data):
    assert command("user password alice --password-stdin", data)[0] == 0

    assert verify_password("sécret", store.find_user("alice").password_hash)


def test_password_in_utf16_may_contain_the_byte_of_a_line_end(command, store):
    password = "\u0a0a\u010a"

    assert command("user password alice --password-stdin", f"{password}\n".encode("utf-16"))[0] == 0

    assert verify_password(password, store.find_user("alice").password_hash)


def test_password_in_half_of_a_utf16_character_is_refused_in_one_line(command, store):
    assert refused(command("user password alice --password-stdin", b"\xff\xfex\n\n"), "utf-16")


def test_token_as_powershell_sends_it_is_inspected(command, store):
    _, token, _ = command("token issue alice")

    code, output, _ = command("token inspect", token.encode("utf-16"))

    assert (code, json.loads(output)["sub"]) == (0, "alice")


def test_user_list_shows_name_state_and_scope(command, store):
    store.add_users([user("Zoë", disabled=1)])

    code, output, _ = command("user list")

    assert [line.split() for line in output.splitlines()] == [
        ["Zoë", "disabled"], ["alice", "enabled", "read", "write"]]


def test_token_that_cannot_be_signed_opens_no_session(command, store, monkeypatch):
    monkeypatch.setenv("JWTSERVER_SECRET", "short")

    assert refused(command("token issue alice"), "JWTSERVER_SECRET: The key is too short")
    assert store.end_sessions("alice") == 0


@pytest.mark.sqlite
@for_each("line, words", [
    ("user list > /dev/full", "jwtserver: No space left on device"),
    ("user add bob --password-stdin <&-", "standard input is closed"),
    ("user add bob <&-", "standard input is closed"),
    ("token inspect <&-", "standard input is closed"),
    ("token inspect < bytes", "invalid start byte"),
    ("user add bob --password-stdin < bytes", "invalid start byte"),
    ("user import users.csv", "users.csv: the user 'alice' exists already"),
    ("--port 0 --tls-cert alice.csv --tls-key none", "cannot use alice.csv with none: "),
])
def test_program_that_cannot_read_or_write_ends_with_one_line(store, tmp_path, line, words):
    (tmp_path / "bytes").write_bytes(b"\xff\n")
    (tmp_path / "users.csv").write_text(f"alice,{HASHES['django']}\n")
    environ = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    environ.pop("PYTHONUNBUFFERED", None)
    result = subprocess.run(
        f"{shlex.join(program())} {line}", shell=True, cwd=tmp_path, env=environ,
        capture_output=True, text=True, timeout=20)

    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("jwtserver: ") and result.stderr.count("\n") == 1
    assert words in result.stderr


def test_closed_streams_cause_one_line_or_nothing(command, store, monkeypatch, capsys):
    class Full:
        def write(self, text):
            return len(text)

        def flush(self):
            raise OSError("no space")

        def fileno(self):
            return descriptor

    with open("output", "w") as file:
        descriptor = file.fileno()
        monkeypatch.setattr(sys, "stdout", Full())
        assert main(["user", "list"]) == 1
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["user", "list"]) == 0
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["token", "inspect"]) == 1
    assert capsys.readouterr().err == "jwtserver: no space\njwtserver: standard input is closed\n"


@pytest.mark.sqlite
def test_name_that_the_terminal_cannot_show_is_escaped(store, tmp_path):
    store.add_users([user("Zoë")])
    result = subprocess.run(
        program("user", "list"), cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, timeout=20)

    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.startswith(b"Zo\\xeb ")


def test_empty_flag_overrides_the_environment(monkeypatch):
    monkeypatch.setenv("JWTSERVER_PREFIX", "/auth")

    for prefix in ("", "/"):
        args = jwtserver._build_parser().parse_args(["serve", "--prefix", prefix])
        assert jwtserver._read_settings(args).prefix == ""


def test_user_list_without_users_names_the_database(command, database):
    open_store(database)

    code, output, errors = command("user list")

    assert (code, output, errors.endswith(" has no users\n")) == (0, "", True)


@pytest.mark.sqlite
@for_each("line", [
    "user list", "user remove bob", "user enable bob", "user scope bob read", "user password bob",
    "token issue bob"])
def test_command_in_a_wrong_folder_creates_nothing(command, line):
    assert refused(command(line), f"there is no database {os.getcwd()}/jwtserver.db")
    assert os.listdir() == []


def test_user_password_disable_enable_scope_remove_change_the_user(command, store):
    def done(line, outcome, stdin=""):
        return command(line, stdin) == (0, f"{outcome}\n", "")

    assert done("user password alice --password-stdin",
                "Changed the password of alice and ended the user's sessions", "other\n")
    assert verify_password("other", store.find_user("alice").password_hash)
    assert done("user disable alice", "Disabled the user alice and ended the user's sessions")
    assert store.find_user("alice").disabled
    assert done("user enable alice", "Enabled the user alice")
    assert not store.find_user("alice").disabled
    assert done(["user", "scope", "alice", "read admin"],
                "Changed the scopes of alice to read admin and ended the user's sessions")
    assert store.find_user("alice").scope == "read admin"
    assert done(["user", "scope", "alice", ""],
                "Changed the scopes of alice to none and ended the user's sessions")
    assert store.find_user("alice").scope == ""
    assert done("user logout alice", "Ended the sessions of alice")
    assert done("user remove alice", "Removed the user alice and ended the user's sessions")
    assert store.all_users() == []


def on_a_terminal(arguments, *answers):
    """Run a command on a real terminal, answer each of its questions; exit code and screen."""
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # background jobs ignore it
        os.execv(sys.executable, program(*arguments))
    screen = b""
    try:
        for answer in answers:
            while not screen.endswith(b": "):
                screen += os.read(terminal, 1024)
            os.write(terminal, answer.encode() + b"\n")
            screen += b"\n"
        while True:
            piece = os.read(terminal, 1024)
            if not piece:
                break
            screen += piece
    except OSError:  # Linux's way to tell that the other end has closed
        pass
    os.close(terminal)
    return os.WEXITSTATUS(os.waitpid(pid, 0)[1]), screen.decode()


def test_user_add_on_a_terminal_asks_twice(database):
    code, screen = on_a_terminal(["user", "add", "bob"], "secret", "secret")

    assert code == 0
    assert "secret" not in screen
    assert verify_password("secret", open_store(database).find_user("bob").password_hash)


@for_each("answers, words, code", [
    (("secret", "other"), "the two passwords differ", 1), (("\x03",), "", 130),
    (("\x04",), "\r\njwtserver: no password was entered", 1)])
def test_user_add_on_a_terminal_without_a_password_adds_no_user(answers, words, code, database):
    result, screen = on_a_terminal(["user", "add", "bob"], *answers)

    assert result == code
    assert words in screen and "Traceback" not in screen
    assert open_store(database).find_user("bob") is None


def test_password_is_asked_for_twice(command, store, monkeypatch, capsys):
    answers = ["one", "one", "one", "two"]

    def getpass(prompt):
        if not answers:
            raise EOFError  # as it does at Ctrl-D
        return answers.pop(0)

    monkeypatch.setattr("getpass.getpass", getpass)
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)

    assert main(["user", "password", "alice"]) == 0
    assert main(["user", "password", "alice"]) == 1
    assert main(["user", "password", "alice"]) == 1
    assert verify_password("one", store.find_user("alice").password_hash)
    assert capsys.readouterr().err.splitlines() == [
        "jwtserver: the two passwords differ; nothing has changed",
        "", "jwtserver: no password was entered; nothing has changed"]


# --- user import


@pytest.mark.parametrize("head", [
    "", "username,password_hash\n", "\ufeffusername,password_hash,scope\n"])
def test_user_import_takes_hashes_of_other_libraries(command, head, database):
    Path("users.csv").write_text(
        head + "\n".join(f"{name},{hashed}" for name, hashed in HASHES.items())
        + '\n\n"Zoe\u0308",' + HASHES["django"] + ",read write\n", encoding="utf-8")

    code, output, errors = command("user import users.csv")

    assert (code, output, errors) == (0, f"Imported 5 users into {open_store(database).name}\n", "")

    users = {user.name: user for user in open_store(database).all_users()}
    assert set(users) == {*HASHES, "Zoë"}
    assert users["Zoë"].scope == "read write"
    assert all(verify_password("correct horse", user.password_hash) for user in users.values())


VALID = f"bob,{HASHES['django']}\n"


@for_each("text, words", [
    (VALID + f"eve,{BCRYPT}\n", "line 2: only PBKDF2"),
    (VALID + "eve,\n", "line 2: only PBKDF2"),
    (VALID + "eve\n", "line 2: username,password_hash[,scope] expected"),
    (VALID + f"eve,{HASHES['django']},a,b\n", "line 2: username"),
    (VALID + f",{HASHES['django']}\n", "line 2: a user name must"),
    (VALID + f"eve,{HASHES['django']},a\"b\n", "line 2: not a scope"),
    (VALID + f"eve,{HASHES['django']},\"a,b\"\n", "line 2: separate scopes with spaces"),
    (VALID + VALID, "line 2: the user 'bob' is in the file twice"),
    (VALID + f"alice,{HASHES['django']}\n", "the user 'alice' exists already"),
    (VALID + "\xff", "users.csv: must be in UTF-8"),
    (VALID + "e\0ve,x\n", "users.csv"),
    (VALID + '"' + "x" * 200_000, "users.csv: field larger"),
])
def test_user_import_of_an_invalid_file_imports_nothing(command, store, text, words):
    Path("users.csv").write_bytes(text.encode("latin-1"))
    before = store.all_users()

    assert refused(command("user import users.csv"), words)
    assert store.all_users() == before


def test_user_import_of_one_user_says_so(command, database):
    Path("users.csv").write_text(VALID)

    assert command("user import users.csv")[1].startswith("Imported 1 user into ")


# --- token


def key():
    return Path("jwtserver.key").read_text().split()[0]


@for_each("flag, lifetime", [("", 3600), (" --lifetime 60", 60)])
def test_token_issue_prints_a_token_of_the_user(command, store, flag, lifetime):
    code, output, errors = command("token issue alice" + flag)

    claims = decode(output.strip(), key())
    assert (code, errors) == (0, f"ID: {claims['sid']}\n")
    assert (claims["sub"], claims["scope"]) == ("alice", "read write")
    assert claims["exp"] - claims["iat"] == lifetime


def test_token_issue_for_a_disabled_user_is_refused(command, store):
    store.disable_user("alice")

    assert refused(command("token issue alice"), "the user 'alice' is disabled")


def test_token_inspect_prints_the_claims(command, store):
    token = command("token issue alice")[1]

    for result in (command("token inspect", token), command(["token", "inspect", token.strip()])):
        assert (result[0], result[2]) == (0, "")
        assert json.loads(result[1]) == decode(token.strip(), key())


@for_each("token, words", [
    ("", "three parts"), ("garbage", "three parts"), ("\x1b[31m.e30.x", "the token is not valid"),
    ("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.e30.x", "Signature verification failed"),
])
def test_token_inspect_of_an_invalid_token_is_refused(command, token, words):
    assert refused(command("token inspect", token), words)


# --- key


def test_key_rotate_and_prune_keep_and_drop_older_tokens(command, store):
    old = command("token issue alice")[1].strip()

    code, output, _ = command("key rotate")

    assert code == 0 and output.startswith("Added a new signing key to ")
    assert "python jwtserver.py key prune" in output
    assert command(["token", "inspect", old])[0] == 0
    new = command("token issue alice")[1].strip()
    code, output, _ = command("key prune --force")
    assert code == 0 and "jwtserver.key: 1. Live tokens" in output
    assert command("key prune")[1].endswith(
        "jwtserver.key has only one key; there is none to remove\n")
    assert command(["token", "inspect", new])[0] == 0
    assert refused(command(["token", "inspect", old]), "Signature verification failed")
    assert len(Path("jwtserver.key").read_text().split()) == 1


@for_each("line", ["key rotate", "key prune"])
def test_key_commands_refuse_keys_in_the_environment(command, monkeypatch, line):
    monkeypatch.setenv("JWTSERVER_SECRET", "0123456789abcdef" * 2)

    assert refused(command(line), "the keys are in JWTSERVER_SECRET")


# --- Flags and usage


def test_flags_override_the_environment(command, monkeypatch):
    monkeypatch.setenv("JWTSERVER_DATABASE", "environment.db")
    monkeypatch.setenv("JWTSERVER_SECRET", "not used, and too short")

    command("user add bob --password-stdin --database flag.db", "secret")
    code, output, _ = command("token issue bob --database flag.db --secret-file flag.key")

    assert code == 0
    assert decode(output.strip(), Path("flag.key").read_text().strip())["sub"] == "bob"
    assert not os.path.exists("environment.db")


def test_repeated_rules_of_flags_are_all_used():
    args = jwtserver._build_parser().parse_args(
        ["serve", "--protect", "/a", "--protect", "POST /b", "--exempt", "/a/b",
         "--cors-origin", "https://a", "--cors-origin", "https://b"])

    settings = jwtserver._read_settings(args)

    assert settings == Settings(
        protect=("/a", "POST /b"), exempt=("/a/b",), cors_origins=("https://a", "https://b"),
        pbkdf2_iterations=1000)


@for_each("line", [
    "nope", "user", "user nope", "user add", "user scope alice", "user list extra", "--port x",
    "--port 65536", "--port -1", "--port", "token issue alice --lifetime 0",
    "token issue alice --lifetime x", "key", "--nope", "--data x.db", "serve --apps x:y",
])
def test_wrong_usage_exits_with_2(line, capsys):
    with pytest.raises(SystemExit) as exit:
        main(line.split())

    assert exit.value.code == 2
    assert "usage:" in capsys.readouterr().err
    assert os.listdir() == []


@for_each("line", ["user scope bob read write", "user list --databse x", "--prot 1"])
def test_wrong_usage_shows_the_usage_of_the_command(line, capsys):
    with pytest.raises(SystemExit) as exit:
        main(line.split())

    errors = capsys.readouterr().err
    words = "serve" if line.startswith("-") else " ".join(line.split()[:2])
    assert exit.value.code == 2
    assert f" {words} [-h]" in errors.splitlines()[0]
    assert "unrecognized arguments: " in errors


@for_each("words", [
    "", *jwtserver._GROUPS, *(command.words for command in jwtserver._COMMANDS)])
def test_help_of_every_command_has_an_example(words, capsys):
    with pytest.raises(SystemExit) as exit:
        main([*words.split(), "--help"])

    assert exit.value.code == 0
    assert "examples:\n  python jwtserver.py" in capsys.readouterr().out


def test_help_without_a_command_shows_the_flags_of_serve_and_all_commands(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])

    shown = capsys.readouterr().out
    commands, flags = shown.partition("\ncommands:")[2].split("\nflags of serve:")
    assert [name for name, _ in jwtserver._SERVE_ARGUMENTS if f"  {name} " not in flags] == []
    words = re.findall("[a-z]+", commands)
    assert {word for command in jwtserver._COMMANDS for word in command.words.split()} <= {*words}


@for_each("command", jwtserver._COMMANDS)
def test_help_of_every_argument_is_a_sentence_and_states_the_default(command):
    for name, options in (*command.arguments, *jwtserver._COMMON_ARGUMENTS):
        assert options["help"][0].isupper() and options["help"].endswith(".")
        assert not name.startswith("--") or "(default: " in options["help"]


@pytest.mark.sqlite
def test_main_without_site_packages_runs_as_a_program(store):
    result = subprocess.run(
        [sys.executable, "-S", "-X", "dev", "-W", "error", str(ROOT / "jwtserver.py"),
         "user", "list"], capture_output=True, text=True, timeout=20)

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split() == ["alice", "enabled", "read", "write"]


@pytest.mark.sqlite
def test_command_as_a_program_shows_its_line_of_the_audit_log_only_if_asked(store, monkeypatch):
    def run(*arguments):
        result = subprocess.run(program(*arguments), capture_output=True, text=True, timeout=20)
        assert result.returncode == 0 and result.stdout.count("\n") == 1
        return result.stderr

    monkeypatch.setenv("JWTSERVER_NOTHING", "x")
    warning = run("user", "enable", "alice")
    verbose = run("user", "disable", "alice", "--verbose")

    assert warning == "jwtserver: warning: There is no such setting: JWTSERVER_NOTHING\n"
    assert verbose.endswith(' jwtserver.audit: user_disable user="alice"\n')


def test_audit_log_file_gets_the_lines_of_commands_and_server(command, store, monkeypatch):
    monkeypatch.setenv("JWTSERVER_AUDIT_LOG", "audit.log")
    command("user disable alice")
    Path("audit.log").rename("audit.log.1")
    command("user enable alice")
    client = TestApp(jwtserver.create_app())
    client.post("/authenticate", {"username": "x\ny", "password": "x"}, status=401)
    monkeypatch.delenv("JWTSERVER_AUDIT_LOG")
    command("user disable alice")

    old, new = (Path(name).read_text().splitlines() for name in ("audit.log.1", "audit.log"))
    assert [line.partition(" ")[2] for line in old] == ['user_disable user="alice"']
    assert [line.partition(" ")[2] for line in new] == [
        'user_enable user="alice"', 'sign_in_failed user="x\\ny" address=""']


def test_audit_log_that_cannot_be_written_is_an_error(command, store, monkeypatch):
    monkeypatch.setenv("JWTSERVER_AUDIT_LOG", "no/audit.log")

    assert refused(command("user list"), "JWTSERVER_AUDIT_LOG: no/audit.log: No such file")


@pytest.mark.sqlite
def test_audit_log_that_cannot_be_written_later_fails_nothing(
    command, store, monkeypatch, tmp_path, caplog,
):
    """After logrotate has moved the file, the folder may refuse a new one; a disk may be full."""
    monkeypatch.setattr(jwtserver, "_audit_paths", [])
    Path("logs").mkdir()
    client = TestApp(jwtserver.create_app(Settings(
        database=str(tmp_path / "jwtserver.db"), audit_log="logs/audit.log")))
    shutil.rmtree("logs")
    fields = {"username": "alice", "password": PASSWORD}

    client.post("/authenticate", fields, status=200)
    assert caplog.messages[-1].endswith("/logs/audit.log: No such file or directory")
    Path("logs").mkdir()
    monkeypatch.chdir("/")
    client.post("/authenticate", fields, status=200)
    assert (tmp_path / "logs/audit.log").read_text().count(' sign_in user="alice"') == 1
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JWTSERVER_AUDIT_LOG", "/dev/full")
    assert command("user disable alice")[0] == 0
    assert caplog.messages[-1] == "JWTSERVER_AUDIT_LOG: /dev/full: No space left on device"


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--version"])

    assert exit.value.code == 0
    assert capsys.readouterr().out == f"jwtserver {jwtserver.__version__}\n"


def test_interrupt_ends_a_command_without_a_traceback(monkeypatch, capsys):
    def interrupted(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(jwtserver, "_open_existing_store", interrupted)

    assert main(["user", "list"]) == 130
    assert capsys.readouterr() == ("", "")
