"""PEP 3333 for all middleware: streams, close(), write(), exc_info and exceptions pass through."""

import sys
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from support import KEY, for_each, hello, user

from jwtserver import Rate, Settings, create_app, open_store
from wsgi_auth import BearerAuthMiddleware, CORSMiddleware, RateLimitMiddleware, TokenSigner

PLAIN = [("Content-Type", "text/plain")]
SIGNER = TokenSigner(KEY)
TOKEN = SIGNER.sign({"sub": "alice"})
ORIGIN = "https://app.example.org"


def guard(app):
    return BearerAuthMiddleware(app, SIGNER)


def open_guard(app):
    return BearerAuthMiddleware(app, SIGNER, protect=[])


def rate_limit(app):
    return RateLimitMiddleware(app, limit=1, period=1)


def cors(app):
    return CORSMiddleware(app, allow_origins=[ORIGIN])


def service(app):
    store = open_store("jwtserver.db")
    store.add_users([user("alice")])
    return create_app(
        Settings(secret=KEY, rate_limit=Rate(9, 60), cors_origins=(ORIGIN,)), app=app, store=store)


@pytest.fixture(params=[guard, open_guard, rate_limit, cors, service],
                ids=lambda wrap: wrap.__name__)
def wrap(request):
    """A function that puts an application behind one middleware, or behind the whole service."""
    return request.param


def environ():
    values = {"PATH_INFO": "/x", "QUERY_STRING": "", "SCRIPT_NAME": "", "HTTP_ORIGIN": ORIGIN,
              "HTTP_AUTHORIZATION": f"Bearer {TOKEN}", "REMOTE_ADDR": "192.0.2.1"}
    setup_testing_defaults(values)
    return values


class Stream:
    """An application and its response of two parts, which logs what happens to it."""

    def __init__(self):
        self.log = []
        self.parts = iter([b"one", b"two"])

    def __call__(self, environ, start_response):
        start_response("200 OK", PLAIN)
        return self

    def __iter__(self):
        return self

    def __next__(self):
        self.log.append(next(self.parts))
        return self.log[-1]

    def close(self):
        self.log.append("closed")


def test_middleware_passes_a_stream_on_part_by_part_and_closes_it(wrap):
    stream = Stream()

    response = validator(wrap(validator(stream)))(environ(), lambda *args: lambda data: None)
    before = list(stream.log)
    first = next(iter(response))
    between = list(stream.log)
    response.close()

    assert (before, first, between) == ([], b"one", [b"one"])
    assert stream.log == [b"one", "closed"]


def test_middleware_returns_the_same_object_as_the_application(wrap):
    stream = Stream()

    assert wrap(stream)(environ(), lambda *args: None) is stream


def test_middleware_passes_write_and_exc_info_through(wrap):
    calls = []

    def app(environ, start_response):
        write = start_response("200 OK", PLAIN)
        write(b"body")
        try:
            raise OSError("too late")
        except OSError:
            start_response("500 Oops", PLAIN, sys.exc_info())
        return []

    def start_response(status, headers, exc_info=None):
        calls.append((status, exc_info and exc_info[0]))
        return calls.append

    validator(wrap(validator(app)))(environ(), start_response).close()

    assert calls == [("200 OK", None), b"body", ("500 Oops", OSError)]


@for_each("middleware", [guard, open_guard, rate_limit, cors])
def test_middleware_passes_exceptions_of_the_application_through(middleware):
    def app(environ, start_response):
        raise OSError("of the application")

    with pytest.raises(OSError, match="of the application"):
        middleware(app)(environ(), lambda *args: None)


def test_middleware_works_inside_other_middleware(wrap):
    app = validator(guard(validator(cors(validator(rate_limit(validator(wrap(hello))))))))

    response = app(environ(), lambda *args: lambda data: None)

    assert list(response) == [b"nobody" if wrap is open_guard else b"alice"]
    response.close()
