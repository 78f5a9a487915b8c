"""Fuzzing with atheris: `python tests/fuzz/fuzz.py TARGET -max_total_time=600`.

Needs `pip install atheris`. The targets, and what must hold for every input:

- decode: a token, and a signed header and payload, give claims or InvalidTokenError.
- password: any stored value gives a bool, and what is made here is verified here.
- head: what a connection sends gets whole answers, one for each request that the application saw.
- chunked: a decoder gives the same for a chunked body in pieces as at once: the content of an
  independent reader, or an error. It decodes each body that is encoded by RFC 9112.
- cookie: the value is the one that a reader of RFC 6265's grammar finds, if it finds just one.
- next: a page to return to is on this site for every browser. It is the page that was asked for.
- otp: a code is valid if it is that of this time step, or of the ones beside it, by RFC 6238.
- forwarded: values that a client has forged change nothing of what the trusted proxies have seen.
- path: if a chain of usual readings leads from a path, mounted or not, to a protected path, the
  guard refuses it. If a chain leads out of /public, an exemption of /public does not apply.
"""

import hashlib
import io
import ipaddress
import os
import random
import re
import socket
import string
import sys
import threading
from base64 import b32encode
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import atheris

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

import paths  # noqa: E402

with atheris.instrument_imports(include=["wsgi_auth", "jwtserver"]):
    import jwtserver
    import wsgi_auth

KEY = "0123456789abcdef" * 2
SIGNER = wsgi_auth.TokenSigner(KEY)


def compose(source, pieces):
    """Some of the pieces, and now and then a byte: bytes alone would never spell anything."""
    return "".join(
        source.choice(pieces) if source.random() < 0.95 else chr(source.randrange(256))
        for _ in range(source.randint(1, 16)))


TOKEN_PIECES = [
    "{", "}", "[", "]", ",", ":", '"', '"sub":"alice"', '"exp":4e9', '"exp":1', '"aud":"a"',
    '"iss":"b"', '"aud":["a"]', '"alg":"HS256"', '"typ":"JWT"', '"crit":[]', '"nbf":1e999',
    '"iat":NaN', "null", "true", "1", "-0", "1e400", "\\ud800", "\\u0000", "\\",
    '"a":{"a":{"a":[[[', "]]]}}", " ", "\n", "\xef\xbb\xbf", "\xff", "9" * 400, "[" * 101, '"',
    '{"sub":"alice","exp":4e9', "{}",
]


def fuzz_decode(data):
    """What is sent as it is, and what is signed as header, payload, or both."""
    mac, source = wsgi_auth._hmac_function(KEY.encode()), random.Random(data)
    header, payload = (
        compose(source, TOKEN_PIECES).encode("latin-1") if source.random() < 0.8 else half
        for half in (data[: len(data) // 2], data[len(data) // 2:]))
    encoded = wsgi_auth._base64url_encode
    signed = [encoded(header) + b"." + encoded(payload), header + b"." + payload,
              wsgi_auth._STANDARD_HEADER + b"." + encoded(payload)]
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
        server = jwtserver._Server(self, [listener], settings)
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def __call__(self, environ, start_response):
        assert environ["PATH_INFO"].startswith("/")
        terminated = environ.get("wsgi.input_terminated")
        body = environ["wsgi.input"].read(-1 if terminated else int(environ["CONTENT_LENGTH"] or 0))
        self.seen += 1
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
            body = file.read(length)  # a rejected HEAD request, which has no X-Method, gets none
            assert len(body) == length or not (body or b"X-Method" in fields), received
        yield int(status[1])


HEAD_PIECES = [
    "GET ", "POST ", "HEAD ", "OPTIONS ", "get ", "/", "/x", "*", "http://h/x", "?a=b", "#",
    "%2e%2e/", " HTTP/1.1\r\n", " HTTP/1.0\r\n", " HTTP/1.2\r\n", " HTTP/2.0\r\n", "Host: h\r\n",
    "host:h\r\n", "Content-Length: 5\r\n", "Content-Length: 0\r\n", "Content-Length: 5, 5\r\n",
    "\r\n", "\n", "\r", "Content-Length: +5\r\n", "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip\r\n", "Connection: close\r\n",
    "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", "0\r\nX: y\r\n\r\n",
    "Connection: keep-alive\r\n",
    "Expect: 100-continue\r\n", "hello", "X_Y: 1\r\n", "X-Y: 1\r\n", "X-Y : 1\r\n", " folded\r\n",
    "\t", " ", ":", "\0", "\r\n\r\n", "GET / HTTP/1.1\r\nHost: h\r\n",
    "GET / HTTP/1.1\r\nHost: h\r\n\r\n", "0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello", "5\r\nhello\r\n", "\xff",
    "POST / HTTP/1.1\r\nHost: h\r\n", "HEAD / HTTP/1.1\r\nHost: h\r\n\r\n",
]


def fuzz_head(data):
    before, source = server().seen, random.Random(data)
    if source.random() < 0.9:
        data = compose(source, HEAD_PIECES).encode("latin-1")
    answered = list(statuses(exchange(data)))
    assert answered.count(200) == server().seen - before, answered
    assert all(status in (100, 200, 204) for status in answered[:-1]), answered


CHUNK_PIECES = [
    "0\r\n\r\n", "0\r\n", "5\r\nhello\r\n", "5\r\n", "hello", "\r\n", "\n", "\r", "0", "1", "a",
    "A\r\n", "f" * 15, "f" * 16, "00005\r\n", "0x5\r\n", "+5\r\n", "5_0\r\n", " ", "\t", ";", ";a",
    ";a=b", "=", ';a="b\\""', '"', ';a="\r\n', "X: y\r\n", "X : y\r\n", " folded\r\n",
    "Content-Length: 5\r\n", "\0", "\xff", "a" * 4096, "X: " + "y" * 4000 + "\r\n",
    "1\r\nx\r\n" * 20, "GET / HTTP/1.1\r\n",
]
TOKEN = r"[\w!#-\'*+.^`|~-]+"
EXTENSION = rf'[ \t]*;[ \t]*{TOKEN}([ \t]*=[ \t]*({TOKEN}|"(\\.|[^"\\])*"))?'
CHUNK_SIZE = re.compile(rf"([0-9A-F]{{1,15}})({EXTENSION})*\r\n", re.ASCII | re.IGNORECASE)
TRAILER = re.compile(rf"{TOKEN}:[^\r\n\0]*\r\n", re.ASCII)


def fuzz_chunked(data):
    source = random.Random(data)
    if source.random() < 0.9:
        data = compose(source, CHUNK_PIECES).encode("latin-1")
        if source.random() < 0.5:
            data = b"5\r\nhello\r\n" + data + b"0\r\n\r\nrest"
    at_once = decoded([data])
    cuts = sorted(source.randrange(len(data) + 1) for _ in range(source.randint(0, 8)))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)])]
    assert decoded(pieces) == at_once, (data, cuts)
    assert decoded([bytes([byte]) for byte in data]) == at_once, data
    if at_once[0] is True:
        assert at_once[1:] == read_chunked(data), data
    content = source.randbytes(source.choice([0, 1, 5, 300, 70_000]))
    encoded = encode_chunked(content, source)
    assert decoded([encoded + data]) == (True, content, data), encoded


def encode_chunked(content, source):
    """The same content in random chunks, with extensions and trailers of all kinds."""
    encoded, position = [], 0
    while position < len(content):
        chunk = content[position:position + source.randint(1, 40_000)]
        position += len(chunk)
        size = source.choice(["%x", "%X", "00%x"]) % len(chunk)
        extension = source.choice(["", "", ";a", ";a=b", ' ; a = "b;\\"c"', ";a;b=c"])
        encoded.append(f"{size}{extension}\r\n".encode() + chunk + b"\r\n")
    trailers = source.choices(["X: y\r\n", "Digest:\r\n", "X-Y: \xe9\tz\r\n"],
                              k=source.randint(0, 3))
    return b"".join([*encoded, b"0\r\n", "".join(trailers).encode("latin-1"), b"\r\n"])


def decoded(pieces):
    """Whether the body is complete, its content, and the bytes after it; or just the error."""
    decoder, rest = jwtserver._ChunkedDecoder(), b""
    for piece in pieces:
        try:
            rest = decoder.decode(rest + piece)
        except jwtserver.HTTPError:
            return ("error",)
    return decoder.is_complete, bytes(decoder.content), rest


def read_chunked(data):
    """The content of a complete chunked body, and the bytes after it, read line by line."""
    file, content, size = io.BytesIO(data), b"", None
    while size != 0:
        line = CHUNK_SIZE.fullmatch(file.readline().decode("latin-1"))
        size = int(line[1], 16)
        content += file.read(size)
        assert not size or file.read(2) == b"\r\n", data
    while (field := file.readline().decode("latin-1")) != "\r\n":
        assert TRAILER.fullmatch(field), data
    return content, file.read()


def guard(**rules):
    return wsgi_auth.BearerAuthMiddleware(
        lambda environ, start_response: start_response("200 OK", []) or [], SIGNER, **rules)


RULES = ["/protected", "/a/b", "/my files", "/caf\xe9", "/a_b"]
CLOSED = {rule: guard(protect=[rule]) for rule in RULES}
OPENED = guard(exempt=["/public"])


def fuzz_path(data):
    """Compare the guard with chains of readers, which never know more ways than the guard."""
    source = random.Random(data)
    rule = source.choice(RULES)
    as_bytes = rule.encode().decode("latin-1")
    mount = source.choice(["", "", "", "/x", "/public", "/protected", "/a"])
    path = source.choice(["", "/", "/public", as_bytes]) + compose(source, paths.PIECES)
    if source.random() < 0.5:
        path = paths.mutated(source.choice([as_bytes, as_bytes + "/x", "/public/x"]), source)
    closed, opened = passes(CLOSED[rule], mount, path), passes(OPENED, mount, path)
    for _ in range(4):
        reads = [read_somehow(source, path), read_somehow(source, mount + path)]
        if mount:
            reads.append(read_somehow(source, mount) + read_somehow(source, path))
        for read in reads:
            assert not (closed and is_below(read, rule)), (rule, mount, path, read)
            assert not (opened and not is_below(read, "/public")), (mount, path, read)


def read_somehow(source, path):
    with suppress(ValueError):  # some paths are no bytes
        if source.random() < 0.8:
            path = path.encode("latin-1").decode("utf-8", "replace")
    for name in source.choices(list(paths.READERS), k=source.randint(0, 6)):
        with suppress(ValueError):
            path = paths.READERS[name](path)
    return path


def passes(guard, mount, path):
    statuses = []
    guard({"REQUEST_METHOD": "GET", "SCRIPT_NAME": mount, "PATH_INFO": path},
          lambda status, headers: statuses.append(status[:3]))
    assert statuses in (["200"], ["401"])
    return statuses == ["200"]


def is_below(path, rule):
    return path == rule or path.startswith(rule + "/")


COOKIE_PIECES = [
    "token", "=", "; ", "token=abc", "token=", "other=1", '"', 'token="abc"', ";", " ", ",",
    "a.b-c", "__Host-token=x", "token=x=y", "Token=abc", "\\", "\t", "\0", "\r\n", "\xe9", "\u20ac",
    "$Path=/", "token=abc; other=1", "other=1; token=abc", "token =abc", "tokentoken=abc", "\x7f",
    "(", "@",
]
NAME_CHARACTERS = set(string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~")
VALUE_CHARACTERS = set(map(chr, range(0x21, 0x7f))) - set('",;\\')


def fuzz_cookie(data):
    header = compose(random.Random(data), COOKIE_PIECES)
    found = [value for name, value in read_cookies(header) if name == "token"]
    wanted = found[0] if len(found) == 1 else ""
    assert wsgi_auth._find_cookie(header, "token") == wanted, header


def read_cookies(header):
    """The names and values of a Cookie header; none if it is malformed."""
    cookies = []
    for pair in header.split("; "):
        name, equals, value = pair.partition("=")
        inner = value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
        if not name or not equals or set(name) - NAME_CHARACTERS or set(inner) - VALUE_CHARACTERS:
            return []
        cookies.append((name, value))
    return cookies


SITE = "https://tool.example"
PAGE_PIECES = [
    "/", "//", "\\", "evil.example", "http:", "https://evil.example/", "javascript:alert(1)", "@",
    ":", "?", "#", "&", "=", "a=b", "next=", "%2f", "%5c", "%09", "%", "\t", "\n", "\r", " ", "\0",
    "\x1f", "\x7f", ".", "..", "/a", "/b?c=d", "\xe9", "\u2044", "\uff0f", "\ud800", "+", "[", "]",
    "/" * 1000, "x" * 2047,
]


def fuzz_next(data):
    source = random.Random(data)
    page = source.choice(["", "/", "/\t/"]) + compose(source, PAGE_PIECES)
    accepted = jwtserver._local_page(page)
    assert accepted in ("/", page) and site_in_browser(accepted) == SITE, page
    assert urljoin(SITE + "/login", accepted).startswith(SITE + "/"), page
    is_plain = page.isascii() and page.isprintable() and not set(page) & set(" \\")
    if is_plain and page[:1] == "/" != page[1:2] and len(page) <= 2048:
        assert accepted == page
    mount, path, query = ("/x" * source.randint(0, 1), "/" + compose(source, PAGE_PIECES),
                          compose(source, PAGE_PIECES))
    made = wsgi_auth._next_page(
        {"SCRIPT_NAME": mount, "PATH_INFO": path, "QUERY_STRING": query})
    assert re.fullmatch("[A-Za-z0-9/%._~-]{1,2048}", made), made
    asked_path, _, asked_query = unquote(made, "latin-1").partition("?")
    if made != "/":
        assert unquote(asked_path, "latin-1") == as_latin_1(mount + path), (path, made)
        assert asked_query == as_latin_1(query), (query, made)
    target = jwtserver._local_page(unquote(made, "latin-1"))
    if not (mount + path).startswith("//") and not set(query) - VALUE_CHARACTERS:
        assert urlsplit(target).path == asked_path, (path, made)


def as_latin_1(text):
    return text.encode("latin-1", "replace").decode("latin-1")


def site_in_browser(page):
    """The site that a link of SITE leads to, as https://url.spec.whatwg.org resolves it."""
    page = re.sub("[\t\n\r]", "", page.strip("".join(map(chr, range(0x21)))))
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", page)
    path = re.split("[?#]", page)[0].replace("\\", "/")
    return page if scheme or path.startswith("//") else SITE


CODE_PIECES = [*string.digits, " ", "\t", "\u0661", "\uff11", "-", "+", "\0", "\ud800", "x", "00"]


def fuzz_otp(data):
    source = random.Random(data)
    secret = source.randbytes(20)
    step = source.randint(2, 2**34)
    offset = source.randint(-3, 3)
    code = totp(secret, max(step + offset, 0)) if source.random() < 0.7 else ""
    for _ in range(source.choice([0, 0, 1, 2, 6])):
        position = source.randint(0, len(code))
        code = code[:position] + source.choice(CODE_PIECES) + code[position + source.randint(0, 1):]
    found = jwtserver.find_otp_step(
        b32encode(secret).decode(), code, step * 30 + source.random() * 29.99)
    valid = [each for each in (step - 1, step, step + 1)
             if totp(secret, each) == code.replace(" ", "")]
    assert found == (valid[-1] if valid else -1), (secret, step, offset, code)


def totp(secret, step):
    """RFC 6238 with the HMAC of RFC 2104, written out."""
    key = secret.ljust(64, b"\0")
    inner = hashlib.sha1(bytes(byte ^ 0x36 for byte in key) + step.to_bytes(8, "big")).digest()
    mac = hashlib.sha1(bytes(byte ^ 0x5c for byte in key) + inner).digest()
    start = mac[19] % 16
    return str(int.from_bytes(mac[start:start + 4], "big") % 2**31 % 1_000_000).zfill(6)


FORWARDED_PIECES = [
    ",", ", ", " ", "\t", "1.1.1.1", "2001:db8::1", "[2001:db8::1]", ":80", "]", "[", "unknown",
    "_x", "https", "http", "HTTPS", "wss", "evil.example", "evil.example:80", "@", "/", "\\", "%00",
    "%", "\xe9", "\xb2", "\0", "1.1.1.1:4711", "::ffff:1.1.1.1", "fe80::1%a", "0", '"', ";for=1",
]
ADDRESSES = {"198.51.100.1": ["198.51.100.1", "198.51.100.1:4711"],
             "2001:db8::5": ["2001:db8::5", "[2001:DB8::5]", "[2001:db8:0::5]:4711"]}


def fuzz_forwarded(data):
    """A client sends headers, and so many proxies append to them; or replace the last two."""
    source = random.Random(data)
    proxies = source.randint(1, 3)
    address, scheme, host = (source.choice(list(ADDRESSES)), source.choice(["http", "https"]),
                             source.choice(["tool.example", "tool.example:8443", "[::1]:80"]))
    seen = {"FOR": source.choice(ADDRESSES[address]), "PROTO": scheme, "HOST": host}
    inner = {"FOR": "10.0.0.1", "PROTO": "http", "HOST": "inner.example"}
    environ = {"REMOTE_ADDR": "10.0.0.2", "wsgi.url_scheme": "http", "HTTP_HOST": "inner.example"}
    for name in seen:
        values = [seen[name], *[inner[name]] * (proxies - 1)]
        if name != "FOR" and source.random() < 0.5:
            values = [seen[name]]
        elif source.random() < 0.8:
            values.insert(0, compose(source, FORWARDED_PIECES))
        environ[f"HTTP_X_FORWARDED_{name}"] = source.choice([",", ", "]).join(values)
    forwarded = apply_forwarded(environ, proxies)
    assert forwarded == (address, scheme, host), (environ, proxies)
    check_unseen_headers(source, proxies)


def check_unseen_headers(source, proxies):
    """No proxy has seen these values. They still give an address, a scheme and a host."""
    environ = {"REMOTE_ADDR": "10.0.0.2", "wsgi.url_scheme": "http", "HTTP_HOST": "inner.example"}
    for name in ("FOR", "PROTO", "HOST"):
        environ[f"HTTP_X_FORWARDED_{name}"] = compose(source, FORWARDED_PIECES)
    address, scheme, host = apply_forwarded(environ, proxies)
    ipaddress.ip_address(address)
    assert scheme in ("http", "https"), environ
    assert host.isascii() and host.isprintable() and not set(host) & set(' ,/\\@"<>?#'), environ


def apply_forwarded(environ, proxies):
    changed = dict(environ)
    jwtserver._apply_forwarded(changed, proxies)
    return changed["REMOTE_ADDR"], changed["wsgi.url_scheme"], changed["HTTP_HOST"]


if __name__ == "__main__":
    os.environ.pop("JWTSERVER_SECRET", None)
    target = globals()[f"fuzz_{sys.argv.pop(1)}"]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
