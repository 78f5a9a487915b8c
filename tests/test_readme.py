"""The README's commands, run as printed, in a folder that contains only the two modules."""

import configparser
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

import jwtserver
from support import ENVIRONMENT, ROOT, free_port, store_with, user

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
def test_readme_transcript_on_a_free_port_matches_word_for_word(shell):
    port = str(free_port())  # instead of 3000, which another program may use
    readme = README.replace("3000", port)
    (run,) = re.findall("^Run it:\n\n    (.*)$", readme, re.MULTILINE)
    transcript = "".join(re.findall("```console\n(.*?)```", readme, re.DOTALL))
    steps = re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", transcript, re.MULTILINE)
    assert len(steps) == 7
    server, variables = shell(f"{run} --port {port}"), {}
    try:
        (greeting,) = re.findall("```text\n(.*?)```", readme, re.DOTALL)
        shown = "".join(server.stdout.readline() for _ in greeting.splitlines())
        pattern = re.escape(greeting).replace("…", r"[\w./-]+")
        assert re.fullmatch(re.sub("[0-9a-f]{16}", "[0-9a-f]{16}", pattern), shown)

        for line, expected in steps:
            output = output_of(shell(line, **variables)).rstrip("\n")

            pattern = re.escape(expected.rstrip("\n")).replace("…", r"[\w./-]+")
            assert re.fullmatch(pattern, output), line
            if "token_type" in output:
                answer = json.loads(output)
                variables = {
                    "TOKEN": answer["token"], "REFRESH_TOKEN": answer["refresh_token"]}
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        with server:
            server.stdout.read()


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


COMMANDS = re.findall(r"^    python jwtserver\.py (\w+ \w+)", README, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_commands_exist(command, capsys):
    with pytest.raises(SystemExit) as exit:
        jwtserver.main([*command.split(), "--help"])

    assert exit.value.code == 0


def test_readme_python_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIGNING_KEY", "0123456789abcdef" * 2)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_project.py").write_text(
        "def my_application(environ, start_response):\n"
        "    start_response('200 OK', [('Content-Type', 'text/plain')])\n"
        "    return [environ['REMOTE_USER'].encode()]\n")
    statuses = []

    for example in re.findall("```python\n(.*?)```", README, re.DOTALL):
        namespace = {}
        exec(example, namespace)
        namespace["application"](
            {"REQUEST_METHOD": "GET", "PATH_INFO": "/api"},
            lambda status, headers: statuses.append(status))

    assert statuses == ["401 Unauthorized"] * 2


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
