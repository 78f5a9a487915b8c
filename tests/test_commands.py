"""The command line: what each command does, and that errors are one line."""

import importlib.util
import io
import json
import os
import pty
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from webtest import TestApp

import jwtserver
from jwtserver import Settings, main, open_store
from support import PASSWORD, ROOT, compiled, for_each, program, store_with, user
from wsgi_auth import decode, encode, verify_password

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


def called_as():
    """How the messages begin a command for the database of the test."""
    return jwtserver._program(Settings.from_environ(os.environ))


def refused(result, words):
    code, output, errors = result
    assert (code, output) == (1, "")
    assert errors.startswith("jwtserver: ") and errors.count("\n") == 1
    assert words in errors
    return True


# --- What is printed is true and can be pasted


@pytest.mark.parametrize("line, shown", [
    ("{python} jwtserver.py", "{python} jwtserver.py"),
    ("cd sub && {python} ../jwtserver.py", "{python} ../jwtserver.py"),
    ("{python} -m jwtserver", "{python} -m jwtserver"),
    ("jwtserver", "jwtserver"),
    ("bin/jwtserver", "bin/jwtserver"),
])
def test_example_shows_the_command_as_it_was_called(tmp_path, line, shown):
    python = "python" if sys.version_info >= (3, 10) else sys.executable  # no sys.orig_argv
    (tmp_path / "sub").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    script = tmp_path / "bin" / "jwtserver"
    script.write_text(f"#!{sys.executable}\nimport sys, jwtserver\nsys.exit(jwtserver.main())\n")
    script.chmod(0o755)
    if "jwtserver.py" in line:
        (tmp_path / "jwtserver.py").symlink_to(ROOT / "jwtserver.py")
    result = subprocess.run(
        f"{line.format(python=python)} user list --help", shell=True, capture_output=True,
        text=True, timeout=20, env={**os.environ, "PYTHONPATH": str(compiled()),
                                    "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"})

    assert result.stdout.endswith(f"\nexamples:\n  {shown.format(python=python)} user list\n")


@pytest.mark.parametrize("argv, module, settings, shown", [
    (["x/jwtserver.py"], None, Settings(), "py x/jwtserver.py"),
    (["/a b/jwtserver.py"], None, Settings(), "py '/a b/jwtserver.py'"),
    (["/x/jwtserver.py"], "jwtserver", Settings(), "py -m jwtserver"),
    (["/none/jwtserver"], None, Settings(), "/none/jwtserver"),
    (["gunicorn"], "gunicorn", Settings(), f"py {jwtserver.__file__}"),
    (["jwtserver.py"], None, Settings(database="a b.db", secret_file="$x"),
     "py jwtserver.py --secret-file '$x' --database 'a b.db'"),
    (["jwtserver.py"], None, Settings(database="postgresql://u:secret@h/d"),
     "JWTSERVER_DATABASE=postgresql://… py jwtserver.py"),
    (["jwtserver.py"], None, Settings(audit_log="a b.log"),
     "JWTSERVER_AUDIT_LOG='a b.log' py jwtserver.py"),
])
def test_command_in_a_message_has_the_files_in_use(monkeypatch, argv, module, settings, shown):
    monkeypatch.setattr(sys, "orig_argv", ["py"], raising=False)
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", module and ModuleSpec(module, None))

    assert jwtserver._program(settings) == shown


def test_command_in_a_message_of_a_server_that_embeds_python_starts_python(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["uwsgi"], raising=False)
    monkeypatch.setattr(sys, "executable", "uwsgi")

    assert jwtserver._program() == f"python {jwtserver.__file__}"


def test_command_in_a_message_is_without_a_in_folderif_the_shell_finds_it(monkeypatch):
    os.mkdir("bin")
    script = Path("bin/jwtserver").absolute()
    script.touch(0o755)
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert jwtserver._program() == str(script)

    monkeypatch.setenv("PATH", str(script.parent))
    assert jwtserver._program() == "jwtserver"


@pytest.fixture
def greeting(capsys):
    """Starts and ends a server in this process; returns its output and errors."""
    def start(*arguments):
        before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
        with pytest.MonkeyPatch.context() as context:
            context.setattr(jwtserver._Server, "serve_forever",
                            lambda server: server.interrupt(signal.SIGINT, None))
            assert main(["--port", "0", *arguments]) == 0
        for number, handler in before:
            signal.signal(number, handler)
        return capsys.readouterr()

    return start


def curl_url(output):
    """The URL of the second curl command, without the server; None if there is none."""
    lines = [shlex.split(line)[-1] for line in output.splitlines() if line.startswith("curl ")]
    return lines[1].partition("127.0.0.1:")[2].partition("/")[2] if lines[1:] else None


@pytest.mark.parametrize("arguments, path", [
    ([], "protected"),
    (["--protect", "/"], "protected"),  # `/` is open: it lists the endpoints
    (["--protect", "/secret"], "secret"),
    (["--protect", "/secret", "--protect", "/protected"], "protected"),
    (["--protect", "POST /a", "--protect", "PUT,GET /my files"], "my%20files"),
    (["--protect", "/\u00e9&$(x)"], "%C3%A9%26%24%28x%29"),
    (["--protect", "/\udcff"], None),  # not UTF-8: no request matches it
    (["--protect", "/a", "--exempt", "GET /a", "--protect", "/b"], "b"),
    (["--protect", "/a", "--optional", "/a/", "--exempt", "GET /a"], None),
    (["--protect", "POST /a"], None),
    (["--app", "wsgiref.simple_server:demo_app"], ""),
    (["--app", "wsgiref.simple_server:demo_app", "--prefix", "/auth", "--protect", "/x"], "x"),
])
def test_greeting_uses_a_path_that_needs_a_token(greeting, monkeypatch, arguments, path):
    monkeypatch.setattr(sys, "path", list(sys.path))

    output, _ = greeting(*arguments)

    assert curl_url(output) == path
    missing = path not in (None, "protected") and "--app" not in arguments
    assert ("(the answer is 404 until --app names your application)" in output) is missing
    assert ("/auth/authenticate" in output) is ("--prefix" in arguments)


def test_greeting_names_exceptions_and_the_database(greeting):
    output, _ = greeting("--database", "a b.db", "--exempt", "/x", "--optional", "/y")

    assert "\nA token is needed for /protected, but not for /x, /y\n" in output
    assert f"\n{jwtserver._program()} --database 'a b.db' user add NAME\n" in output


@pytest.mark.parametrize("host, tls, text, url, is_public", [
    ("127.0.0.1", False, "http://127.0.0.1:PORT", "http://127.0.0.1:PORT", False),
    ("0.0.0.0", False, "all addresses of this machine, such as http://127.0.0.1:PORT",
     "http://127.0.0.1:PORT", True),
    ("0.0.0.0", True, "all addresses of this machine, such as https://127.0.0.1:PORT",
     "https://127.0.0.1:PORT", False),
    ("::", False, "all addresses of this machine, such as http://[::1]:PORT",
     "http://[::1]:PORT", True),
    ("::1", False, "http://[::1]:PORT", "http://[::1]:PORT", False),
])
def test_address_is_that_of_the_socket(host, tls, text, url, is_public):
    with jwtserver._listen(host, 0)[0] as listener:
        port = str(listener.getsockname()[1])

        address = jwtserver._Address.of(listener, tls)

    assert address == (text.replace("PORT", port), url.replace("PORT", port),
                       ("-k",) if tls else (), is_public)


def test_address_of_a_unix_socket_is_its_path():
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("my socket")

        assert jwtserver._Address.of(listener, False) == (
            "the Unix socket my socket", "http://localhost", ("--unix-socket", "my socket"), False)


PUBLIC = "jwtserver: warning: other machines can connect without encryption; use --tls-cert, or"


@pytest.mark.parametrize("arguments, variables, warned", [
    (["--host", "0.0.0.0"], {}, True),
    ([], {"HOST": "0.0.0.0"}, True),
    (["--host", "127.0.0.1"], {"HOST": "0.0.0.0"}, False),
    (["--host", "0.0.0.0"], {"TRUSTED_PROXIES": "1"}, False),
    (["--host", "0.0.0.0", "--tls-cert", "server.pem"], {}, False),
])
def test_plain_http_for_other_machines_causes_one_line(
        greeting, monkeypatch, certificate, arguments, variables, warned):
    for name, value in variables.items():
        monkeypatch.setenv(f"JWTSERVER_{name}", value)

    output, errors = greeting(*arguments)

    assert [line[:len(PUBLIC)] for line in errors.splitlines()] == [PUBLIC] * warned
    assert ("curl -k -d" in output) is ("--tls-cert" in arguments)


# --- Warnings


@pytest.mark.parametrize("password, words", [
    ("1234567", "the password has fewer than 8 characters"), ("12345678", ""),
    ("ALICEalice", "the password is the user name"),
])
@pytest.mark.parametrize("line", ["user add AliceAlice", "user password AliceAlice"])
def test_weak_password_causes_a_warning(command, database, line, password, words):
    store_with(database, *([user("AliceAlice")] if "password" in line else [])).close()

    code, _, errors = command(f"{line} --password-stdin", password)

    assert code == 0
    assert errors.startswith(f"jwtserver: warning: {words}") if words else errors == ""
    assert errors.count("\n") == bool(words)


def test_cheap_password_hash_causes_a_warning(command, greeting, monkeypatch, database):
    monkeypatch.setenv("JWTSERVER_PBKDF2_ITERATIONS", "999")
    warning = ("jwtserver: warning: JWTSERVER_PBKDF2_ITERATIONS is 999, so stolen password hashes"
               " are easy to break; the default is 600000\n")

    assert command("user add bob --password-stdin", "long secret")[2] == warning
    assert command("user password bob --password-stdin", "long secret")[2] == warning
    assert greeting()[1] == warning


@pytest.mark.sqlite
def test_unknown_variable_causes_the_same_line_in_all_commands(tmp_path):
    for arguments in (["user", "add", "bob"], ["--port", "0", "--protect", "nope"]):
        result = subprocess.run(
            program(*arguments), capture_output=True, text=True, timeout=20,
            stdin=subprocess.DEVNULL, env={**os.environ, "JWTSERVER_PROT": "1"})

        assert result.stderr.splitlines()[0] == (
            "jwtserver: warning: jwtserver has no such setting:"
            " JWTSERVER_PROT; did you mean 'JWTSERVER_PROTECT'?")
        assert result.returncode == 1 and result.stderr.count("\n") == 2


# --- Errors in the user's terms


@pytest.mark.parametrize("line, hint", [
    ("usr list", "unknown command 'usr'; did you mean 'user'?"),
    ("user lst", "unknown command 'lst'; did you mean 'list'?"),
    ("add alice", "unknown command 'add'; did you mean 'user add'?"),
    ("useradd alice", "unknown command 'useradd'; did you mean 'user add'?"),
    ("xyzzy", "unknown command 'xyzzy'"),
    ("user list --databse x", "unrecognized arguments: --databse x; did you mean '--database'?"),
    ("--prot=1", "unrecognized arguments: --prot=1; did you mean '--protect'?"),
    ("--rate-limit=1", "unrecognized arguments: --rate-limit=1; set JWTSERVER_RATE_LIMIT in the"
     " environment"),
    ("--xyzzy", "unrecognized arguments: --xyzzy"),
    ("--port 1 user list",
     "unrecognized arguments: user list; write the command user before its flags"),
    ("user add bob --scope read write",
     "unrecognized arguments: write; put quotes around a value that contains spaces"),
    ("--port x", "argument --port: must be a whole number from 0 to 65535, not 'x'"),
])
def test_mistyped_word_gets_a_suggestion(line, hint, capsys):
    with pytest.raises(SystemExit) as exit:
        main(line.split())

    errors = capsys.readouterr().err
    assert exit.value.code == 2
    assert errors.startswith("usage: ") and errors.splitlines()[-1] == f"jwtserver: {hint}"


def test_flags_of_all_commands_may_stand_before_the_command(command):
    store_with("x.db", user("alice", "read")).close()

    for line in ("--database x.db user list", "--database=x.db --verbose user list"):
        assert command(line)[:2] == (0, "alice                    enabled      read\n")
    assert command("--secret-file x.key --database x.db token issue alice")[0] == 0
    assert os.path.exists("x.key")
    args = jwtserver._build_parser().parse_args(jwtserver._arrange(
        ["--database", "y.db", "--port", "1"]))
    assert (args.run, args.database, args.port) == (jwtserver._serve, "y.db", 1)


@pytest.mark.parametrize("line, variables, start", [
    ("user list --database mysql://x", {}, "--database must be the name of an SQLite file"),
    ("user list", {"DATABASE": "mysql://x"}, "JWTSERVER_DATABASE must be the name of an SQLite"),
    ("--prefix auth", {"PREFIX": "/x"}, "--prefix must be a path like /auth, not 'auth'"),
    ("--protect nope", {}, "--protect: not a rule: 'nope'"),
    ("--protect /x --exempt nope", {}, "--protect or --exempt: not a rule: 'nope'"),
    ("", {"OPTIONAL": "nope"}, "JWTSERVER_OPTIONAL: not a rule: 'nope'"),
    ("--cors-origin nope", {}, "--cors-origin: not an origin"),
    ("", {"PORT": "x"}, "JWTSERVER_PORT must be a whole number from 0 to 65535, not 'x'"),
    ("key list --secret-file none", {}, "--secret-file: none: No such file or directory"),
    ("key list", {"SECRET_FILE": "none"}, "JWTSERVER_SECRET_FILE: none: No such file"),
    ("key list", {}, "jwtserver.key: No such file or directory"),
    ("key list --secret-file .", {}, "--secret-file: .: Is a directory; name a file, not a folder"),
    ("--secret-file . --port 0", {}, "--secret-file: "),
    ("user list --database .", {}, "--database: "),
])
@pytest.mark.sqlite
def test_error_names_what_the_user_gave(command, monkeypatch, store, line, variables, start):
    for name, value in variables.items():
        monkeypatch.setenv(f"JWTSERVER_{name}", value)
    monkeypatch.setenv("JWTSERVER_COOKIE", "off")

    code, output, errors = command(line)

    assert (code, output) == (1, "") and errors.count("\n") == 1
    assert errors.startswith(f"jwtserver: {start}")
    assert "name a file, not a folder\n" in errors or " ." not in line


@for_each("flag", ["database", "secret-file"])
def test_empty_flag_creates_nothing(flag, command, tmp_path):
    """`--database "$JWTSERVER_DATABASE"` in a terminal without the variable once meant SQLite."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        code, _, errors = command(["user", "add", "bob", f"--{flag}", "", "--password-stdin"],
                                  "long secret")

    assert (code, errors) == (1, f"jwtserver: --{flag} is empty; is its variable set here?\n")
    assert os.listdir(tmp_path) == []


@pytest.mark.sqlite
def test_key_file_that_is_empty_can_be_deleted(command, store):
    Path("jwtserver.key").touch(0o600)

    assert refused(command("token issue alice"), "jwtserver.key: There is no key. ")
    assert refused(command("key list"), "Only if there is none, delete the empty file: the next")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs another user")
def test_files_of_another_user_are_named_as_such():
    """A process of the user `nobody` runs commands in a folder of root."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        store_with(f"{folder}/jwtserver.db", user("alice")).close()
        Path(folder, "jwtserver.key").touch(0o600)
        code = (f"import os, sys\nsys.path.insert(0, {str(compiled())!r})\nimport jwtserver\n"
                f"os.chdir({folder!r})\n"
                # The other user may not be able to read Python's modules.
                "jwtserver.main(['user', 'list', '--database', 'none'])\n"
                "os.setgroups([])\nos.setuid(65534)\n"
                "for line in ('user list', 'key list',\n"
                "             'user add bob --password-stdin --database new.db'):\n"
                "    jwtserver.main(line.split())\n")
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                                timeout=20, input="long secret")

    folder = os.path.realpath(folder)
    advice = "belongs to another user; run this as that user, or"
    on_file = f"; the file {advice} change its owner with chown"
    in_folder = f"; the folder {advice} with the settings of the server"
    assert result.stderr.splitlines()[1:] == [
        f"jwtserver: {folder}/jwtserver.db: unable to open database file{on_file}",
        f"jwtserver: jwtserver.key: Permission denied{on_file}",
        f"jwtserver: --database: {folder}/new.db: Permission denied{in_folder}"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs another user")
def test_files_in_a_closed_in_folderof_another_user_are_named_as_such():
    lines = ("user list --database PATH", "user add bob --password-stdin --database PATH",
             "key list --secret-file PATH")
    with tempfile.TemporaryDirectory() as folder:  # its mode is 0700
        path = f"{os.path.realpath(folder)}/file"
        code = (f"import os, sys\nsys.path.insert(0, {str(compiled())!r})\nimport jwtserver\n"
                # The other user may not be able to read Python's modules.
                "jwtserver.main(['key', 'list', '--database', 'none'])\n"
                "os.setgroups([])\nos.setuid(65534)\n"
                f"for line in {lines!r}:\n"
                f"    jwtserver.main(line.replace('PATH', {path!r}).split())\n")
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                                input="long secret")

    assert result.stderr.splitlines()[1:] == [
        f"jwtserver: {flag}: {path}: Permission denied; the folder belongs to another user; run"
        " this as that user, or with the settings of the server"
        for flag in ("--database", "--database", "--secret-file")]


@pytest.mark.sqlite
def test_database_of_another_user_is_named_as_such(command, monkeypatch):
    Path("jwtserver.db").write_text("not a database")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anything
    monkeypatch.setattr(os, "getuid", lambda: os.stat("jwtserver.db").st_uid + 1)

    assert refused(command("user list"), "; the file belongs to another user; run this as that")


APPLICATIONS = """
def app(environ, start_response): pass
def factory(option=1): return app
def nothing(): pass
class Class:
    def __init__(self, environ, start_response): pass
builtin = type
"""


@pytest.mark.parametrize("name", ["app", "factory()", "Class", "builtin"])
def test_application_or_a_call_of_its_factory_is_loaded(monkeypatch, name):
    Path("applications.py").write_text(APPLICATIONS)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "applications", raising=False)

    assert callable(jwtserver._load_app(f"applications:{name}"))


@pytest.mark.parametrize("name, text, words", [
    ("broken:factory", "def factory(option=1): pass", "is not a WSGI application: it cannot be"
     " called with environ and start_response. If it is a factory, which returns the application,"
     " write: --app 'broken:factory()'"),
    ("broken", "from jwtserver import Settings, create_app\napplication = create_app(Settings("
     "'own.db', '0123456789abcdef' * 2))",
     "broken is guarded by jwtserver already; run it with a WSGI server"),
    ("jwtserver", "", "jwtserver is guarded by jwtserver already"),
    ("broken:nothing()", "def nothing(): pass", "broken:nothing() is not callable"),
    ("broken:app", "import json\n\njson.loads('{')", "{folder}/broken.py, line 3)"),
    ("broken:app", "\nimport nothing_there", "'nothing_there' ({folder}/broken.py, line 2)"),
    ("broken:app()", "def app():\n    raise SystemExit(3)",
     "SystemExit: 3 ({folder}/broken.py, line 2)"),
    ("broken:app", "def f(:", "SyntaxError: invalid syntax (broken.py, line 1)"),
    ("broken:app", "raise ValueError('two\\nlines')", "ValueError: two lines ({folder}/"),
    ("nothing_there:app", "", "No module named 'nothing_there' in {folder} or among the installed"),
])
def test_application_that_cannot_be_loaded_is_one_line_with_its_place(
        command, monkeypatch, name, text, words):
    Path("broken.py").write_text(text)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    importlib.invalidate_caches()

    assert refused(command(["--app", name]), words.format(folder=os.getcwd()))
    assert not os.path.exists("jwtserver.db")


@pytest.mark.parametrize("file, words", [
    (None, "No module named 'wsgi_auth'"), ("", "cannot import name "),
])
def test_wsgi_auth_that_is_missing_or_old_is_one_line(tmp_path, file, words):
    shutil.copy(compiled() / "jwtserver.pyc", tmp_path)
    if file is not None:
        (tmp_path / "wsgi_auth.py").write_text(file)
    result = subprocess.run([sys.executable, "-S", "jwtserver.pyc", "user", "list"], cwd=tmp_path,
                            env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True,
                            timeout=20)

    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith(f"jwtserver: {words}")
    assert "; copy both files, jwtserver.py and wsgi_auth.py, of one release" in result.stderr


def test_wsgi_auth_that_is_missing_is_an_import_error_for_other_programs(monkeypatch):
    monkeypatch.setitem(sys.modules, "wsgi_auth", None)
    spec = importlib.util.spec_from_file_location("another_jwtserver", jwtserver.__file__)

    with pytest.raises(ImportError):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# --- user


def test_user_add_takes_the_password_from_the_input(command, database):
    store = open_store(database)

    code, output, errors = command(
        "user add bob --scope read --password-stdin", "long secret\r\nmore\n")

    added = store.find_user("bob")
    assert (code, output, errors) == (0, f"Added the user bob to {store.name}\n", "")
    assert (added.name, added.scope, added.disabled) == ("bob", "read", 0)
    assert added.password_hash.startswith("pbkdf2_sha256$1000$")
    assert verify_password("long secret", added.password_hash)


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
    ("user list --database no/such.db", "", "no/such.db; set JWTSERVER_DATABASE as for the server"),
    ("session end eyJ.eyJ.x", "", "jwtserver: there is no session with this ID in "),
    ("user add bob --password-stdin --database no/such.db", "long secret",
     "no/such.db: No such file"),
    ("user list --database users.csv/x", "", "users.csv/x: Not a directory"),
    (["user", "scope", "alice", "a,b"], "", "separate scopes with spaces, not commas: 'a,b'"),
    ("user add bob --scope a,b --password-stdin", "x", "with spaces, not commas: 'a,b'"),
    ("key rotate --secret-file no/such.key", "", "No such file or directory"),
    ("key rotate --secret-file such.key", "",
     "such.key: No such file or directory; check JWTSERVER_SECRET_FILE and JWTSERVER_DATABASE"),
])
def test_command_that_cannot_be_done_is_one_line(command, store, line, stdin, words):
    before = store.all_users()
    Path("users.csv").touch()

    assert refused(command(line, stdin), words)
    assert store.all_users() == before


@pytest.mark.sqlite
def test_user_add_and_import_say_that_they_create_the_database(command):
    Path("users.csv").write_text(VALID)
    path = Path("new.db").absolute()

    for line in ("user add bob --password-stdin", "user import users.csv"):
        output = command(f"{line} --database new.db", "long secret")[1]
        path.unlink()
        assert output.startswith(f"Created the database {path}\n") and output.count("\n") == 2


@pytest.mark.sqlite
@for_each("line", ["user add bob", "user add bob --password-stdin"])
def test_user_add_without_a_password_creates_no_database(command, line):
    assert refused(command(line), "password")
    assert os.listdir() == []


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
    "token issue bob", "key list --secret-file keys", "key rotate", "key prune"])
def test_command_in_a_wrong_in_foldercreates_nothing(command, line):
    Path("keys").write_text("k" * 32)

    assert refused(command(line), f"there is no database {os.getcwd()}/jwtserver.db")
    assert os.listdir() == ["keys"]


def test_user_password_disable_enable_scope_remove_change_the_user(command, store):
    ended = "and ended the user's sessions and tokens"

    def done(line, outcome, stdin=""):
        return command(line, stdin) == (0, f"{outcome}\n", "")

    assert done("user password alice --password-stdin",
                f"Changed the password of alice {ended}", "other secret\n")
    assert verify_password("other secret", store.find_user("alice").password_hash)
    assert done("user disable alice", f"Disabled the user alice {ended}")
    assert store.find_user("alice").disabled
    assert done("user enable alice", "Enabled the user alice")
    assert not store.find_user("alice").disabled
    assert done(["user", "scope", "alice", "read admin"],
                f"Changed the scopes of alice to 'read admin' {ended}")
    assert store.find_user("alice").scope == "read admin"
    assert done(["user", "scope", "alice", ""],
                f"Changed the scopes of alice to none {ended}")
    assert store.find_user("alice").scope == ""
    assert done("user logout alice", "Ended the sessions and tokens of alice")
    assert done("user remove alice", f"Removed the user alice {ended}")
    assert store.all_users() == []


def test_user_scope_takes_several_words(command, store):
    assert command("user scope alice read admin")[0] == 0
    assert store.find_user("alice").scope == "read admin"


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
    answers = ["long secret", "long secret", "long secret", "two"]

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
    assert verify_password("long secret", store.find_user("alice").password_hash)
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
    open_store(database)

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
    open_store(database)

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

    for result in (command("token inspect", token), command("token inspect -", token),
                   command(["token", "inspect", token.strip()])):
        assert (result[0], result[2]) == (0, "")
        assert json.loads(result[1]) == decode(token.strip(), key())


@for_each("token, words", [
    ("", "three parts"), ("garbage", "three parts"), ("\x1b[31m.e30.x", "the token is not valid"),
    ("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.e30.x", "Signature verification failed"),
])
def test_token_inspect_of_an_invalid_token_is_refused(command, token, words):
    jwtserver.prepare_keys(Settings())
    assert refused(command("token inspect", token), words)


@pytest.mark.parametrize("prefix", ["Bearer ", "bearer  ", "Authorization: Bearer "])
def test_token_inspect_accepts_the_token_as_it_stands_in_the_header(command, store, prefix):
    token = command("token issue alice")[1].strip()

    for result in (command("token inspect", prefix + token),
                   command(["token", "inspect", prefix + token]),
                   command(f"token inspect {prefix}{token}")):
        assert (result[0], json.loads(result[1])["sub"]) == (0, "alice")


def test_token_inspect_of_an_expired_token_prints_its_claims_and_the_time(command):
    jwtserver.prepare_keys(Settings())
    token = encode({"sub": "alice", "exp": 1795851660}, key())
    ancient = encode({"sub": "alice", "exp": -1e300}, key())

    code, output, errors = command(["token", "inspect", token])

    assert (code, json.loads(output)) == (1, {"sub": "alice", "exp": 1795851660}), errors
    assert errors == "jwtserver: the token is not valid: it expired at 2026-11-28 07:41 UTC\n"
    assert command(["token", "inspect", ancient])[2].endswith(": it expired at -1e+300\n")


@pytest.mark.parametrize("issue, inspect, words", [
    ({"ISSUER": "x"}, {},
     "warning: the token has the issuer 'x'; JWTSERVER_ISSUER is not set here"),
    ({"ISSUER": "x"}, {"ISSUER": "y"},
     "Invalid issuer: JWTSERVER_ISSUER is 'y' here; set it as for the server"),
    ({"AUDIENCE": "x"}, {}, "JWTSERVER_AUDIENCE is not set here; set it as for the server"),
    ({"SECRET_FILE": "other.key"}, {}, "Signature verification failed: no key in {file}"),
    ({}, {"SECRET": "0123456789abcdef" * 2},
     "Signature verification failed: no key in JWTSERVER_SECRET has signed it"),
])
def test_token_inspect_without_the_environment_of_the_server_says_what_differs(
        command, store, monkeypatch, issue, inspect, words):
    jwtserver.prepare_keys(Settings())
    with monkeypatch.context() as context:
        for name, value in issue.items():
            context.setenv(f"JWTSERVER_{name}", value)
        token = command("token issue alice")[1].strip()
    for name, value in inspect.items():
        monkeypatch.setenv(f"JWTSERVER_{name}", value)

    code, _, errors = command(["token", "inspect", token])

    assert code == (0 if "warning" in words else 1)
    assert words.format(file=Path("jwtserver.key").absolute()) in errors
    assert errors.startswith("jwtserver: ") and errors.count("\n") == 1


def test_dates_are_for_people_only(command, store, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)

    command("token issue alice")
    monkeypatch.setattr(sys, "stderr", None)
    command("token issue alice")

    shown = "ID: [0-9a-f]{32}\\nExpires: 20[0-9-]{8} [0-9:]{5} UTC\\n"
    assert re.fullmatch(shown, terminal.getvalue())


def test_token_commands_on_a_terminal_show_dates(store):
    jwtserver.prepare_keys(Settings())
    code, screen = on_a_terminal(["token", "issue", "alice"])

    assert code == 0
    assert re.search(r"\nExpires: 20[0-9]{2}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2} UTC\r\n", screen)
    token = screen.split()[0]
    code, screen = on_a_terminal(["token", "inspect", token])
    assert code == 0
    assert re.search(r"\niat: 20[0-9-]{8} [0-9:]{5} UTC, exp: 20[0-9-]{8} [0-9:]{5} UTC", screen)


# --- key


def test_key_rotate_and_prune_keep_and_drop_older_tokens(command, store):
    old = command("token issue alice")[1].strip()

    code, output, _ = command("key rotate")

    assert code == 0 and output.startswith("Added a new signing key to ")
    assert f"{called_as()} key prune" in output
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


def test_user_scope_with_a_flag_gets_a_hint(capsys):
    with pytest.raises(SystemExit):
        main(["user", "scope", "bob", "--scope", "admin"])

    assert "; to change scopes, write: user scope NAME read write\n" in capsys.readouterr().err


def test_wrong_usage_shows_no_password(capsys):
    with pytest.raises(SystemExit):
        main(["--databse", "postgresql://u:secret@h/d"])

    errors = capsys.readouterr().err
    assert "--databse postgresql://…; did you mean '--database'?" in errors
    assert "secret@" not in errors


@for_each("line", ["user rename bob bo b", "user list --databse x", "--prot 1"])
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
    assert f"examples:\n  {jwtserver._program()}" in capsys.readouterr().out


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

    assert warning == "jwtserver: warning: jwtserver has no such setting: JWTSERVER_NOTHING\n"
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
    assert os.name != "posix" or os.stat("audit.log").st_mode & 0o777 == 0o600
    assert [line.partition(" ")[2] for line in old] == ['user_disable user="alice"']
    assert [line.partition(" ")[2] for line in new] == [
        'user_enable user="alice"', 'sign_in_failed user="x\\ny" address="" reason="unknown user"']


def test_audit_log_that_cannot_be_written_is_an_error(command, store, monkeypatch):
    monkeypatch.setenv("JWTSERVER_AUDIT_LOG", "no/audit.log")

    assert refused(command("user list"), "/no/audit.log: No such file or directory")


@pytest.mark.sqlite
def test_audit_log_of_root_in_the_in_folderof_another_user_causes_a_warning(
    command, store, monkeypatch, caplog,
):
    def owned_by(user_id, real_function):  # only root could make such files
        def function(*arguments, **options):
            status = list(real_function(*arguments, **options))
            return os.stat_result([*status[:4], user_id, *status[5:]])

        return function

    monkeypatch.setenv("JWTSERVER_AUDIT_LOG", "audit.log")
    monkeypatch.setattr(os, "fstat", owned_by(0, os.fstat))
    monkeypatch.setattr(os, "stat", owned_by(65534, os.stat))

    assert command("user list")[0] == 0

    assert "/audit.log belongs to root, but its folder to another user" in caplog.text


@pytest.mark.sqlite
def test_audit_log_that_cannot_be_written_later_fails_nothing(
    command, store, monkeypatch, tmp_path, caplog,
):
    """After logrotate has moved the file, the folder may refuse a new one; a disk may be full."""
    monkeypatch.setattr(jwtserver, "_audit_path", "")
    Path("logs").mkdir()
    client = TestApp(jwtserver.create_app(Settings(
        database=str(tmp_path / "jwtserver.db"), audit_log="logs/audit.log",
        pbkdf2_iterations=1000)))
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
    os.mkfifo("pipe")  # that nobody reads
    monkeypatch.setenv("JWTSERVER_AUDIT_LOG", "pipe")
    assert command("user enable alice")[0] == 1


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
