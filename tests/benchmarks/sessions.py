"""What sessions cost: `python tests/benchmarks/sessions.py`.

Times a guarded request with the look-up of its session and without (a token without `sid` has
none), in this process and over HTTP; and a login that is locked out against one that is looked at.
All take turns in each round of one run; the medians are printed.
"""

import http.client
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import jwtserver  # noqa: E402

KEY = "0123456789abcdef" * 4
PASSWORD = "correct horse"


def make_service():
    """An application in the current folder, and tokens of alice with and without a session."""
    settings = jwtserver.Settings(secret=KEY)
    app = jwtserver.create_app(settings)
    store = jwtserver.open_store(settings.database)
    store.add_users([jwtserver._new_user(name, jwtserver._hash_password(PASSWORD, settings))
                     for name in ("alice", "bob")])
    grant = jwtserver.new_grant(store.find_user("alice"), 86400, time.time())
    store.open_session(grant, time.time())
    signer = jwtserver.make_signer(settings)
    token, _ = jwtserver.issue_token(grant, signer, 3600, time.time())
    claims = signer.verify(token)
    del claims["sid"]
    store.close()
    return app, {"with the look-up": token, "without": signer.sign(claims)}


def called(app, method, path, body=b"", authorization=""):
    """A function that calls the application and returns the status."""
    statuses = []

    def call():
        app({
            "REQUEST_METHOD": method, "PATH_INFO": path, "SCRIPT_NAME": "",
            "REMOTE_ADDR": "127.0.0.1", "HTTP_AUTHORIZATION": authorization,
            "CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
        }, lambda status, headers, exc_info=None: statuses.append(status))
        return int(statuses.pop()[:3])

    return call


def requested(port, method, path, body=None, **headers):
    """A function that makes the request and returns the status."""
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def call():
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        response.read()
        return response.status

    return call


def compare(title, rounds, calls, subjects):
    """Time functions in turn; each comes with the status that it must return."""
    times = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, (subject, status) in subjects.items():
            start = time.perf_counter()
            for _ in range(calls):
                assert subject() == status
            times[name].append((time.perf_counter() - start) / calls * 1e6)
    print(f"\n{title}, µs, median of {rounds} rounds of {calls}")
    for name, values in times.items():
        print(f"    {name:20} {statistics.median(values):12.1f}")


def start_server():
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "jwtserver.py"), "--port", "0"], text=True,
        env={**os.environ, "JWTSERVER_SECRET": KEY},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return process, int(process.stdout.readline().split(" (")[0].rpartition(":")[2])


def login(name, password):
    return json.dumps({"username": name, "password": password}).encode()


def main():
    os.chdir(tempfile.mkdtemp())
    app, tokens = make_service()
    process, port = start_server()
    print(f"CPython {platform.python_version()}, {platform.machine()}")
    headers = {name: f"Bearer {token}" for name, token in tokens.items()}
    compare("A guarded request in this process", 101, 100, {
        name: (called(app, "GET", "/protected", authorization=header), 200)
        for name, header in headers.items()})
    compare("A guarded request over HTTP", 101, 20, {
        name: (requested(port, "GET", "/protected", Authorization=header), 200)
        for name, header in headers.items()})
    for _ in range(5):
        called(app, "POST", "/authenticate", login("bob", "wrong"))()
    compare("A login over HTTP", 11, 1, {
        name: (requested(port, "POST", "/authenticate", login(user, PASSWORD),
                         **{"Content-Type": "application/json"}), status)
        for name, user, status in (("looked at", "alice", 200), ("locked out", "bob", 429))})
    process.terminate()
    process.wait()


if __name__ == "__main__":
    main()
