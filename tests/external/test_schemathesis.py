"""Requests that schemathesis derives from /openapi.json, sent to a running server."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def test_openapi_describes_every_response_to_schemathesis(start, free_port, folder):
    """No endpoint fails, or answers with a status or shape that the document lacks."""
    program = shutil.which("schemathesis", path=Path(sys.executable).parent)
    if not program:
        pytest.skip("there is no schemathesis")
    port = free_port()
    client = start([sys.executable, "jwtserver.py", "--port", str(port)], port,
                   JWTSERVER_LOGIN_FAILURES="100000/60")

    for selection in (
        ["--exclude-path", "/logout", "--exclude-path", "/verify"],
        # `/verify` supports every method.
        ["--include-path", "/verify", "--exclude-checks", "unsupported_method"],
        ["--include-path", "/logout"],  # separately: it ends the session
    ):
        token = client.sign_in()[2]["token"]
        result = subprocess.run(
            [program, "run", f"{client.url}/openapi.json", "--checks", "all", "--seed", "1",
             "--max-examples", "30", "--generation-database", "none", "--no-color", *selection,
             "-H", f"Authorization: Bearer {token}"],
            cwd=folder, env={**os.environ, "PYTHONWARNINGS": ""}, capture_output=True, text=True,
            timeout=100)

        assert result.returncode == 0, result.stdout
        assert "Test cases:" in result.stdout
    assert client("/health")[0] == 200
