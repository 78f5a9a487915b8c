"""The README's commands, run as printed, in a folder that contains only the two modules."""

import configparser
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from functools import partial

import pytest

import jwtserver
import wsgi_auth
from support import ENVIRONMENT, ROOT, for_each, free_port, store_with, user

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def shell(tmp_path):
    """Starts a line in a shell whose `python` is this Python."""
    folder = tmp_path / "empty"
    folder.mkdir()
    for module in ("jwtserver.py", "wsgi_auth.py"):
        shutil.copy(ROOT / module, folder)
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (commands / "python").chmod(0o755)
    environment = {**ENVIRONMENT, "PATH": f"{commands}{os.pathsep}{ENVIRONMENT['PATH']}"}

    def start(line, **variables):
        return subprocess.Popen(
            line, shell=True, cwd=folder, env={**environment, **variables}, text=True,
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL)

    return start


def output_of(process):
    with process:
        output = process.stdout.read()
    assert process.returncode == 0
    return output


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_readme_commands_pasted_in_an_empty_folder_print_what_it_shows(shell):
    port = str(free_port())  # instead of 3000, which another program may use
    readme = README.replace("3000", port)
    (start,) = re.findall("^Run it:\n\n    (.*)$", readme, re.MULTILINE)
    transcript = "".join(blocks("console", readme))
    steps = re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", transcript, re.MULTILINE)
    assert len(steps) == 10
    server = shell(f"{start} --port {port}")
    try:
        (greeting,) = blocks("text", readme)
        shown = "".join(server.stdout.readline() for _ in greeting.splitlines())
        assert re.fullmatch(re.sub("[0-9a-f]{16}", "[0-9a-f]{16}", as_pattern(greeting)), shown)

        # One shell runs all commands, because some set variables. A null byte ends each output.
        pasted = "".join(f"{command}\nprintf '\\0'\n" for command, _ in steps)
        outputs = output_of(shell(pasted)).split("\0")[:-1]

        assert len(outputs) == len(steps)
        for (command, expected), output in zip(steps, outputs):
            pattern = as_pattern(expected.rstrip("\n"))
            assert re.fullmatch(pattern, output.rstrip("\n")), command
        client = next(block for block in blocks("python", readme) if "urlopen" in block)
        assert run_python(client) == "Welcome to the protected page\n"
        if shutil.which("node"):
            assert run("node", "--input-type=module", "-e", *blocks("js", readme)) == \
                "Welcome to the protected page\n"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        with server:
            server.stdout.read()


def blocks(kind, text=README):
    return re.findall(f"^```{kind}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def as_pattern(text):
    """A pattern in which `…` stands for any characters of a token or path."""
    return re.escape(text).replace("…", r"[\w./-]+")


def run(*command):
    return subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, check=True, text=True,
                          stdout=subprocess.PIPE, stdin=subprocess.DEVNULL).stdout


def run_python(program):
    return run(sys.executable, "-c", program)


def test_readme_test_command_is_what_ci_runs():
    commands = re.findall("^    (python3 -m venv .*)$", README, re.MULTILINE)
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")

    assert len(commands) == 1
    assert "grep -m 1 '^    python3 -m venv ' README.md" in ci
    assert "pytest" in commands[0] and "activate" not in commands[0]


def test_readme_test_command_installs_what_the_metadata_names():
    """By name, because the installation of the project takes longer than that of these packages."""
    metadata = configparser.ConfigParser(interpolation=None)
    metadata.read(ROOT / "setup.cfg", encoding="utf-8")
    (installed,) = re.findall(r"pip install --quiet ([\w -]+) &&", README)

    required = re.findall(r"^[\w-]+", metadata["options.extras_require"]["test"], re.MULTILINE)
    assert installed.split() == required


def test_readme_names_every_setting_and_no_other():
    documented = set(re.findall(r"JWTSERVER_[A-Z_0-9]+", README))

    assert documented == {f"JWTSERVER_{name.upper()}" for name in jwtserver._PARSERS}


DEPLOYMENT = (ROOT / "tests" / "deployment" / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"\b(?:jwtserver\.py |`)((?:user|session|token|key) [a-z]+)",
                                 README + DEPLOYMENT)))


def test_deployment_readme_names_only_settings():
    named = set(re.findall(r"JWTSERVER_[A-Z_0-9]+", DEPLOYMENT))

    assert named <= {f"JWTSERVER_{name.upper()}" for name in jwtserver._PARSERS}


def test_deployment_readme_lines_of_the_file_of_variables_are_valid():
    lines = re.findall("^    (JWTSERVER_.*)$", DEPLOYMENT, re.MULTILINE)
    assert len(lines) == 5

    for line in lines:
        (assignment,) = shlex.split(line)  # quotes as in a shell
        name, value = assignment.split("=", 1)
        jwtserver.Settings.from_environ({name: value})


def test_deployment_readme_command_makes_the_last_key_the_first(tmp_path):
    (command,) = re.findall("^ +.umask 077; (python3 -c 'import os; k = .*).$", DEPLOYMENT,
                            re.MULTILINE)
    keys = tmp_path / "jwtserver.key"
    keys.write_text(f"{'a' * 32}\n{'b' * 32}\n{'c' * 32}\n")

    subprocess.run([sys.executable, *shlex.split(command)[1:]], cwd=tmp_path, check=True)

    assert [line[0] for line in keys.read_text().splitlines()] == ["c", "a", "b"]


@for_each("command", COMMANDS)
def test_readme_commands_exist(command, capsys):
    with pytest.raises(SystemExit) as exit:
        jwtserver.main([*command.split(), "--help"])

    assert exit.value.code == 0


def test_readme_names_every_flag_of_serve_and_no_other(capsys):
    with pytest.raises(SystemExit):
        jwtserver.main(["serve", "--help"])
    flags = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help", "--verbose"}

    configuration = README.partition("\n## Configuration\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"--[a-z][a-z-]+", configuration)) == flags


def example_with(word):
    (example,) = [block for block in blocks("python") if word in block]
    return example


def status_of(application, path, **environ):
    statuses = []
    application({"REQUEST_METHOD": "GET", "PATH_INFO": path, **environ},
                lambda status, headers: statuses.append(status))
    return statuses[0]


def test_readme_example_without_the_service_signs_in_and_guards(tmp_path, monkeypatch):
    monkeypatch.setenv("SIGNING_KEY", "0123456789abcdef" * 2)
    monkeypatch.setattr(wsgi_auth, "hash_password", partial(wsgi_auth.hash_password, iterations=1))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_project.py").write_text(
        "def my_application(environ, start_response):\n"
        "    start_response('200 OK', [('Content-Type', 'text/plain')])\n"
        "    return [environ['REMOTE_USER'].encode()]\n")
    example = {}

    exec(example_with("my_project"), example)

    token = example["sign_in"]("alice", "correct horse")
    assert example["sign_in"]("alice", "x") is example["sign_in"]("bob", "x") is None
    assert status_of(example["application"], "/api") == "401 Unauthorized"
    bearer = f"Bearer {token}"
    assert status_of(example["application"], "/api", HTTP_AUTHORIZATION=bearer) == "200 OK"


def test_readme_flask_example_guards(tmp_path, monkeypatch):
    pytest.importorskip("flask")
    monkeypatch.chdir(tmp_path)
    example = {"__name__": "main"}

    exec(example_with("Flask"), example)

    assert status_of(example["app"], "/api/me") == "401 Unauthorized"


DJANGO_PROJECT = """
import sys
import django
from django.conf import settings
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
from wsgi_auth import BearerAuthMiddleware, TokenSigner

APPLICATIONS = [f"django.contrib.{name}" for name in ("auth", "contenttypes", "sessions")]
MIDDLEWARE = ["django.contrib.sessions.middleware.SessionMiddleware",
              "django.contrib.auth.middleware.AuthenticationMiddleware"]
THE_EXAMPLE
urlpatterns = [path("api", lambda request: HttpResponse(request.user.get_username()))]
database = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
settings.configure(
    MIDDLEWARE=MIDDLEWARE, AUTHENTICATION_BACKENDS=AUTHENTICATION_BACKENDS, SECRET_KEY="x",
    INSTALLED_APPS=APPLICATIONS, DATABASES={"default": database}, ROOT_URLCONF="__main__")
application = get_wsgi_application()
call_command("migrate", verbosity=0)
signer = TokenSigner("0123456789abcdef" * 2)
environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/api", "SERVER_NAME": "localhost",
           "SERVER_PORT": "80", "wsgi.input": sys.stdin.buffer,
           "HTTP_AUTHORIZATION": "Bearer " + signer.sign({"sub": "alice"})}
print(b"".join(BearerAuthMiddleware(application, signer)(environ, lambda *args: None)).decode())
"""


def test_readme_django_example_signs_in_the_user_of_the_token():
    pytest.importorskip("django")

    printed = run_python(DJANGO_PROJECT.replace("THE_EXAMPLE", example_with("MIDDLEWARE")))

    assert printed == "alice\n"


@for_each("document", ["README.md", "tests/deployment/README.md"])
def test_readme_links_lead_to_files(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)

    assert links
    assert [link for link in links if not ((ROOT / document).parent / link).exists()] == []


def test_every_deployment_file_is_in_the_deployment_readme():
    folder = ROOT / "tests" / "deployment"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    assert files - set(re.findall(r"\]\(([^)]+)\)", DEPLOYMENT)) == {"README.md"}


def test_readme_has_at_most_350_lines():
    assert len(README.splitlines()) <= 350


def test_readme_backup_beside_a_server_is_complete_and_private(shell, tmp_path):
    (command,) = re.findall(r"^    (.*\.backup\(.*)$", README, re.MULTILINE)
    store = store_with(str(tmp_path / "empty" / "jwtserver.db"), user("alice"))
    assert (tmp_path / "empty" / "jwtserver.db-wal").stat().st_size

    output_of(shell(command))

    copy = tmp_path / "empty" / "copy.db"
    assert copy.stat().st_mode & 0o777 == 0o600
    restored = jwtserver.open_store(str(copy))
    assert restored.all_users() == store.all_users()
    restored.close()
    store.close()


def test_readme_backup_in_a_wrong_folder_fails_and_makes_no_file(shell, tmp_path):
    (command,) = re.findall(r"^    (.*\.backup\(.*)$", README, re.MULTILINE)

    with shell(command) as process:
        assert process.wait() == 1

    assert {file.suffix for file in (tmp_path / "empty").iterdir()} == {".py"}
