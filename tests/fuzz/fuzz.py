"""Fuzzing with atheris: `python tests/fuzz/fuzz.py TARGET -max_total_time=600`.

Needs `pip install atheris`. The targets, and what must hold whatever the input:

- decode: a token, and a signed header and payload, give claims or InvalidTokenError.
- password: whatever is stored gives a bool, and what is made here is verified here.
- head: what a connection sends gets whole answers, one for each request that the application saw.
- path: no path that some chain of usual readings leads below /protected gets past the guard.
"""

import io
import os
import posixpath
import re
import socket
import sys
import threading
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["wsgi_auth", "jwtserver"]):
    import jwtserver
    import wsgi_auth

KEY = "0123456789abcdef" * 2
SIGNER = wsgi_auth.TokenSigner(KEY)


def fuzz_decode(data):
    mac = wsgi_auth._mac(KEY.encode())
    header, _, payload = data.partition(b"\xff")
    encoded = wsgi_auth._b64encode
    signed = [encoded(header) + b"." + encoded(payload), header + b"." + payload,
              wsgi_auth._HEADER + b"." + encoded(data)]
    for token in (data, data.decode("latin-1"), *(part + b"." + mac(part) for part in signed)):
        for options in ({}, {"audience": "a", "issuer": ["b"], "require": ["sub"], "leeway": 1.5}):
            try:
                claims = wsgi_auth.decode(token, [KEY, KEY[::-1]], **options)
            except wsgi_auth.InvalidTokenError as error:
                str(error).encode("ascii")
            else:
                assert type(claims) is dict
        try:
            claims = SIGNER.verify(token)
        except wsgi_auth.InvalidTokenError:
            continue
        assert type(claims["sub"]) is str


HASHES = [
    "pbkdf2_sha256$1$salt$JbHEkDDiqy0bq3YN3t2NYVBm5wD2D3yx4hTjd0P1a9M=",
    "pbkdf2_sha1$1$salt$0e7xUfKMGWKWSrzJbUJ7fBpJ4Ls=",
    "pbkdf2:sha256:1$salt$" + "0123456789abcdef" * 4,
    "$pbkdf2-sha256$1$c2FsdA$JbHEkDDiqy0bq3YN3t2NYVBm5wD2D3yx4hTjd0P1a9M",
]


def fuzz_password(data):
    """Replace a part of a hash of each form; and try the hash that is made of the password."""
    provider = atheris.FuzzedDataProvider(data)
    encoded = provider.PickValueInList(HASHES)
    start, end = sorted(provider.ConsumeIntInRange(0, len(encoded)) for _ in range(2))
    encoded = encoded[:start] + provider.ConsumeUnicode(40) + encoded[end:]
    password = provider.ConsumeUnicode(1100)
    if re.search(r"(?:\$|:)\d{5}", encoded):
        return  # some seconds of honest work
    assert wsgi_auth.verify_password(password, encoded) is False
    assert type(wsgi_auth.needs_rehash(encoded)) is bool
    assert type(wsgi_auth.password_iterations(encoded)) is int
    try:
        made = wsgi_auth.hash_password(password, iterations=1)
    except ValueError:
        return
    assert wsgi_auth.verify_password(password, made) and wsgi_auth.password_iterations(made)


class Server:
    """The server, in a thread of this process, and an application that counts its requests."""

    def __init__(self):
        self.seen = 0
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = listener.getsockname()
        settings = jwtserver.Settings(head_timeout=1, idle_timeout=1)
        server = jwtserver._Server(self, listener, settings)
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def __call__(self, environ, start_response):
        self.seen += 1
        assert environ["PATH_INFO"].startswith("/")
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"] or 0))
        start_response("200 OK", [("X-Method", environ["REQUEST_METHOD"])])
        return [b"%d" % len(body)]


server = lru_cache(Server)


def exchange(data):
    """All that comes back for this, sent over one connection."""
    received = []
    with socket.create_connection(server().address, timeout=10) as connection:
        with suppress(ConnectionError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            received.extend(iter(lambda: connection.recv(65536), b""))
    return b"".join(received)


def statuses(received):
    """The statuses of answers that follow one another, each of them whole."""
    file = io.BytesIO(received)
    for line in iter(file.readline, b""):
        status = re.fullmatch(rb"HTTP/1\.1 ([1-5]\d\d) [ -~]+\r\n", line)
        assert status, received
        fields = {}
        for field in iter(file.readline, b"\r\n"):
            name, _, value = re.fullmatch(rb"([\w-]+)(: )([\t -~\x80-\xff]*)\r\n", field).groups()
            fields[name] = value
        if fields.get(b"X-Method") != b"HEAD":
            length = int(fields.get(b"Content-Length", 0))
            assert len(file.read(length)) == length, received
        yield int(status[1])


def fuzz_head(data):
    before = server().seen
    answered = list(statuses(exchange(data)))
    assert answered.count(200) == server().seen - before, answered
    assert all(status in (100, 200, 204) for status in answered[:-1]), answered


READINGS = [
    unquote, lambda path: unquote(path, "latin-1"), lambda path: path.replace("\\", "/"),
    lambda path: re.sub("//+", "/", path), lambda path: re.sub(";[^/]*", "", path),
    lambda path: posixpath.normpath(path) if path else path, str.lower, str.strip,
    lambda path: path.partition("#")[0], lambda path: path.partition("?")[0],
    lambda path: "/" + path.lstrip("/"), lambda path: "/".join(
        name.rstrip(". ") for name in path.split("/")),
    lambda path: safely_split(path), lambda path: re.sub("[\0-\x1f]", "", path),
]
GUARD = wsgi_auth.BearerAuthMiddleware(
    lambda environ, start_response: start_response("200 OK", []) or [], SIGNER,
    protect=["/protected"])


def safely_split(path):
    try:
        return urlsplit(path).path
    except ValueError:
        return path


def fuzz_path(data):
    provider = atheris.FuzzedDataProvider(data)
    chain = [provider.ConsumeIntInRange(0, len(READINGS) - 1) for _ in range(4)]
    path = provider.ConsumeBytes(200).decode("latin-1")
    statuses = []
    GUARD({"REQUEST_METHOD": "GET", "PATH_INFO": path},
          lambda status, headers: statuses.append(status[:3]))
    assert statuses[0] in ("200", "401")
    read = path.encode("latin-1").decode("utf-8", "replace")
    for number in chain:
        read = READINGS[number](read)
    if read == "/protected" or read.startswith("/protected/"):
        assert statuses[0] == "401", (path, read, chain)


if __name__ == "__main__":
    os.environ.pop("JWTSERVER_SECRET", None)
    target = globals()[f"fuzz_{sys.argv.pop(1)}"]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
