// Run the tests that need no operating system on a CPython that Pyodide compiled to WebAssembly.
//
//     ulimit -s 65536
//     node --stack-size=60000 pyodide.mjs FOLDER_OF_NPM_PACKAGE FOLDER_OF_PYTHON_PACKAGES
//
// Deeply nested JSON texts, which the tests send, need the larger stack.
// The first folder is the npm package `pyodide`. The second contains pytest and WebTest, because
// Pyodide would download them from the network. This CPython has no threads, processes, sockets or
// PBKDF2; tests/conftest.py lists the test files that run without them.
import path from "node:path";
import { fileURLToPath } from "node:url";

const PYTHON = `
import os, sys

os.chdir("/project")
sys.path[:0] = ["/project", "/project/tests", "/packages"]
print("CPython", sys.version)
import jwtserver, wsgi_auth
import pytest
from conftest import PORTABLE

files = sorted(f"tests/{name}" for name in PORTABLE if os.path.exists(f"tests/{name}"))
int(pytest.main(["-W", "error", "-q", "-o", "addopts=-p no:logging -p no:cacheprovider", *files]))
`;

const [npm, packages] = process.argv.slice(2).map((folder) => path.resolve(folder));
const { loadPyodide } = await import(path.join(npm, "pyodide.mjs"));
const pyodide = await loadPyodide({ env: { PYTHONDONTWRITEBYTECODE: "1", HOME: "/" } });
pyodide.mountNodeFS("/project", path.dirname(path.dirname(fileURLToPath(import.meta.url))));
pyodide.mountNodeFS("/packages", packages);
process.exit(pyodide.runPython(PYTHON));
