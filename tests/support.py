"""What several test files need: a clock, users, a WSGI client, and how to sign in."""

import io
import json
from pathlib import Path
from typing import Any, Dict, List, NamedTuple
from wsgiref.util import setup_testing_defaults

from webtest import TestApp

import jwtserver
from wsgi_auth import hash_password

ROOT = Path(__file__).resolve().parents[1]
KEY = "0123456789abcdef" * 2
PASSWORD = "correct horse"
PASSWORD_HASH = hash_password(PASSWORD, iterations=1000)


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Response(NamedTuple):
    """What a WSGI application answered."""

    status: int
    headers: Dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"null")


def call(app, path="/", method="GET", body=b"", **environ) -> Response:
    """Call a WSGI application with any environ, and join what it writes and returns.

    A key of the environ whose value is None is left out.
    """
    started: List[Any] = []
    written: List[bytes] = []

    def start_response(status, headers, exc_info=None):
        started[:] = [int(status[:3]), dict(headers)]
        return written.append

    base = {"REQUEST_METHOD": method, "SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": "",
            "REMOTE_ADDR": "192.0.2.1", "wsgi.input": io.BytesIO(body),
            "CONTENT_LENGTH": str(len(body))}
    setup_testing_defaults(base)
    base.update(environ)
    iterable = app(
        {name: value for name, value in base.items() if value is not None}, start_response)
    try:
        written += iterable
    finally:
        if hasattr(iterable, "close"):
            iterable.close()
    return Response(started[0], started[1], b"".join(written))


def hello(environ, start_response):
    """Answers with the name of the user, or `nobody`."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ.get("REMOTE_USER", "nobody").encode("utf-8")]


def store_with(database, *users):
    """The store in a database, after adding these users."""
    store = jwtserver.open_store(database)
    store.add_users(users)
    return store


def user(name, scope="", disabled=0, password_hash=PASSWORD_HASH):
    return jwtserver.User(name, password_hash, scope, disabled, 0)


def bearer(token) -> Dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def sign_in(client: TestApp, name="alice", password=PASSWORD, **options):
    """The response to a sign-in; `options` are WebTest's, such as `status=401`."""
    return client.post_json(
        "/authenticate", {"username": name, "password": password}, **options)
