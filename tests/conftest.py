"""Each test in a folder of its own, without settings but for a cheap password hash."""

import os

import pytest


@pytest.fixture(autouse=True)
def clean_environment(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("JWTSERVER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("JWTSERVER_PBKDF2_ITERATIONS", "1000")
    monkeypatch.chdir(tmp_path)
