"""Fuzzing with atheris: `python tests/fuzz/fuzz.py TARGET -max_total_time=600`.

Needs `pip install atheris`. The targets, and what must hold whatever the input:

- decode: a token, and a signed header and payload, give claims or InvalidTokenError.
- password: a stored hash gives a bool.
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


def fuzz_password(data):
    password, _, encoded = data.decode("utf-8", "surrogatepass" if data[:1] < b"\x80" else "ignore"
                                       ).partition("|") if is_utf_8(data) else ("x", "", repr(data))
    if re.search(r"\d{4}", encoded.translate({ord("_"): None})):
        return  # some seconds of honest work
    for text in (encoded, f"pbkdf2_sha256${encoded}", f"pbkdf2:sha256:{encoded}",
                 f"$pbkdf2-sha256${encoded}", f"pbkdf2_sha1${encoded}"):
        assert type(wsgi_auth.verify_password(password, text)) is bool
        assert type(wsgi_auth.needs_rehash(text)) is bool
        assert type(wsgi_auth.is_password_usable(text)) is bool


def is_utf_8(data):
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


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
        assert environ["PATH_INFO"].startswith("/") or environ["PATH_INFO"] == ""
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"] or 0))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"%d" % len(body)]


def fuzz_head(data, running=[]):
    server = running[0] if running else Server()
    running[:] = [server]
    before, received = server.seen, b""
    with socket.create_connection(server.address, timeout=10) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while True:
                piece = connection.recv(65536)
                if not piece:
                    break
                received += piece
        except ConnectionError:
            pass
    answers, file = [], io.BytesIO(received)
    for line in iter(file.readline, b""):
        status = re.fullmatch(rb"HTTP/1\.1 ([1-5]\d\d) [ -~]+\r\n", line)
        assert status, (data, received)
        length = 0
        for field in iter(file.readline, b"\r\n"):
            assert field.endswith(b"\r\n"), (data, received)
            if field.lower().startswith(b"content-length:"):
                length = int(field.split(b":")[1])
        head = received[:0]
        answers.append(int(status[1]))
        body = file.read(length)
        assert len(body) == length or b"HEAD" in data, (data, received, head)
    good = sum(status == 200 for status in answers)
    assert good == server.seen - before or b"HEAD" in data, (data, received)
    assert all(status in (100, 200, 204) for status in answers[:-1]), (data, received)


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
