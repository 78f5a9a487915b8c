"""A server in this process, and a client that sends any bytes and checks how responses are framed.
"""

import contextlib
import io
import json
import re
import socket
import threading
from collections import defaultdict

import jwtserver
from jwtserver import Settings

jwtserver.IDLE_INTERVAL = jwtserver.POLL_INTERVAL  # so that a server ends at once, not after 50 ms

HOST = b"Host: a\r\n"
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBmzCCAUGgAwIBAgIUKafWcAwLv/0Lpq8iyoDWnoql1tgwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMzE4NDcxMVoYDzIxMjYxMDMw
MTg0NzExWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAASB/ehs64K0kPSIvpLpQISO2okfrNyXYBHRco174qOTgTNHSMzOEVS9
AKk6pw3RZ6tvS4HcJGWuDDuWcSyX7+lpo28wbTAdBgNVHQ4EFgQUGfEbvZNvrFb5
AcuC7cMlLpje5yUwHwYDVR0jBBgwFoAUGfEbvZNvrFb5AcuC7cMlLpje5yUwDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDSAAwRQIgKZyKeVLn66DSDP+L7h+8yfnUxF7wwsKCfmm7NSfCPQMCIQDW
OaCE3Jxp4h4fbk0Ki9WVuPtpLZK1/Wi2p+4fF9Is+Q==
-----END CERTIFICATE-----
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgiJp6YXjs8fgrVh4P
COyyegHkD9hHqvKn12FNEH+8BmChRANCAASB/ehs64K0kPSIvpLpQISO2okfrNyX
YBHRco174qOTgTNHSMzOEVS9AKk6pw3RZ6tvS4HcJGWuDDuWcSyX7+lp
-----END PRIVATE KEY-----
"""  # of localhost and 127.0.0.1, for a hundred years
OTHER_CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBnDCCAUGgAwIBAgIUPXZzFswQca3TuYTyZKaxRS8xtpQwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyODA1NDQ0MloYDzIxMjYxMTA0
MDU0NDQyWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAATNKazuKdJHdeWFrFT4r/Giern0MjAZd61U3o1izEW0NBxMP3tPvJTK
2sHMJ96iXFQH+kkURqM3GphIhxBQ/o6/o28wbTAdBgNVHQ4EFgQUZjLCf7RZy++5
713y1aCOKDG6iiUwHwYDVR0jBBgwFoAUZjLCf7RZy++5713y1aCOKDG6iiUwDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDSQAwRgIhAL/0oDxrqILp613k9j4LdwG0fHtb2+CELRBovs3+NfHKAiEA
lyJxldndx8UtIHVLJtT80nL75E6ccZQRGFz3sGjeSzQ=
-----END CERTIFICATE-----
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgQj4HqJ06ly5nMTLa
Ao23ibNFaJELj2PQEm8qZXAJFiuhRANCAATNKazuKdJHdeWFrFT4r/Giern0MjAZ
d61U3o1izEW0NBxMP3tPvJTK2sHMJ96iXFQH+kkURqM3GphIhxBQ/o6/
-----END PRIVATE KEY-----
"""  # for the same names


def echo(environ, start_response):
    """Answers with what was asked, in JSON: method, path, query, body. Leaves /unread unread."""
    terminated = environ.get("wsgi.input_terminated")  # the body is chunked
    size = -1 if terminated else int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read(size) if environ["PATH_INFO"] != "/unread" else b""
    text = json.dumps([environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"],
                       body.decode("latin-1")]).encode()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [text]


class Server(jwtserver._Server):
    """The server, with semaphores that count what happens in it."""

    def __init__(self, app, listener, settings, **options):
        self.entered = defaultdict(lambda: threading.Semaphore(0))  # by state
        self.closed = threading.Semaphore(0)
        self.progressed = threading.Semaphore(0)  # a short body, or a response in SENDING
        self.address = listener.getsockname()
        super().__init__(app, [listener], settings, **options)

    def _enter(self, connection, state):
        super()._enter(connection, state)
        self.entered[state].release()

    def _check_pace(self, *arguments):
        super()._check_pace(*arguments)
        self.progressed.release()

    def _close(self, connection):
        super()._close(connection)
        self.closed.release()

    def await_state(self, state, count=1):
        for _ in range(count):
            assert self.entered[state].acquire(timeout=10), f"no connection is {state}"

    def count(self, state):
        return len(self._timers[state])


@contextlib.contextmanager
def serving(app=echo, *, listener=None, tls=None, access_log=None, clock=None, **settings):
    """A server on a free port, in threads of this process."""
    listener = listener or socket.create_server(("127.0.0.1", 0))
    options = {"clock": clock} if clock else {}
    server = Server(
        app, listener, Settings(**settings), tls=tls, access_log=access_log, **options)
    thread = threading.Thread(target=lambda: (server.serve_forever(), server.finish()))
    thread.start()
    try:
        yield server
    finally:
        if not server.stopping:
            server.interrupt()
        thread.join()


def connect(server):
    return socket.create_connection(server.address, timeout=10)


def received(connection):
    """All bytes until the server closes the connection."""
    with connection.makefile("rb") as file:
        return file.read()


def exchange(server, data, end=True):
    """Send bytes on a connection of their own; return all bytes until the server closes it."""
    with connect(server) as connection:
        with contextlib.suppress(OSError):  # the server may have closed it already
            connection.sendall(data)
            if end:
                connection.shutdown(socket.SHUT_WR)
        return received(connection)


def parse(data, methods=()):
    """Split bytes into complete responses: status, headers, body."""
    responses, file = [], io.BytesIO(data)
    methods = iter(methods)
    while True:
        line = file.readline()
        if not line:
            return responses
        match = re.fullmatch(rb"HTTP/1\.1 ([1-5]\d\d) [ -~]+\r\n", line)
        assert match, line
        headers = {}
        for line in iter(file.readline, b"\r\n"):
            name, separator, value = line.decode("latin-1").partition(": ")
            assert separator and value.endswith("\r\n") and name.lower() not in headers
            headers[name.lower()] = value[:-2]
        status = int(match[1])
        if status == 100:
            responses.append((100, headers, b""))
            continue
        body = b""
        if next(methods, "GET") != "HEAD" and status != 204:
            if headers.get("transfer-encoding") == "chunked":
                chunks = []
                for size in iter(lambda: int(file.readline(), 16), 0):
                    chunks.append(file.read(size))
                    assert file.read(2) == b"\r\n"
                assert file.read(2) == b"\r\n"
                body = b"".join(chunks)
            elif "content-length" in headers:
                body = file.read(int(headers["content-length"]))
                assert len(body) == int(headers["content-length"])
            else:
                assert headers["connection"] == "close"
                body = file.read()
        responses.append((status, headers, body))


def statuses(data, methods=()):
    return [status for status, _, _ in parse(data, methods)]


def head(*lines, first=b"GET /x HTTP/1.1", host=HOST):
    """A request without a body."""
    return first + b"\r\n" + host + b"".join(line + b"\r\n" for line in lines) + b"\r\n"
