"""The HTTP server: its strict reading of heads, framing, slow clients, TLS, its end."""

import contextlib
import errno
import io
import json
import os
import random
import re
import resource
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from wsgiref.validate import validator

import pytest

import jwtserver
from jwtserver import Settings
from test_server import ENVIRONMENT, ROOT, Running

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


def echo(environ, start_response):
    """Tells what it has been asked."""
    size = int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read(size) if environ["PATH_INFO"] != "/unread" else b""
    text = json.dumps([environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"],
                       body.decode("latin-1")]).encode()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [text]


@contextlib.contextmanager
def serving(app, **options):
    """A server on a free port, in threads of this process."""
    tls = options.pop("tls", None)
    log = options.pop("access_log", None)
    listener = options.pop("listener", None) or socket.create_server(("127.0.0.1", 0))
    server = jwtserver._Server(app, listener, Settings(**options), tls, log)
    server.address = listener.getsockname()
    thread = threading.Thread(target=lambda: (server.serve_forever(0.002), server.finish()))
    thread.start()
    try:
        yield server
    finally:
        server.stopping = True
        thread.join()


@pytest.fixture(scope="module")
def echoing():
    with serving(echo) as server:
        yield server


def connect(server):
    return socket.create_connection(server.address, timeout=10)


def received(connection):
    with connection.makefile("rb") as file:
        return file.read()


def exchange(server, data, end=True):
    """All that comes back for these bytes, until the server closes."""
    with connect(server) as connection:
        with contextlib.suppress(OSError):  # it may have had enough of them
            connection.sendall(data)
            if end:
                connection.shutdown(socket.SHUT_WR)
        return received(connection)


def parse(data, methods=()):
    """Answers, one after the other, each whole: status, headers, body."""
    answers, file = [], io.BytesIO(data)
    methods = iter(methods)
    while True:
        line = file.readline()
        if not line:
            return answers
        match = re.fullmatch(rb"HTTP/1\.1 ([1-5]\d\d) [ -~]+\r\n", line)
        assert match, line
        headers = {}
        for line in iter(file.readline, b"\r\n"):
            name, separator, value = line.decode("latin-1").partition(": ")
            assert separator and value.endswith("\r\n") and name.lower() not in headers
            headers[name.lower()] = value[:-2]
        status = int(match[1])
        if status == 100:
            answers.append((100, headers, b""))
            continue
        body = b""
        if next(methods, "GET") != "HEAD" and status != 204:
            if headers.get("transfer-encoding") == "chunked":
                for size in iter(lambda: int(file.readline(), 16), 0):
                    body += file.read(size)
                    assert file.read(2) == b"\r\n"
                assert file.read(2) == b"\r\n"
            elif "content-length" in headers:
                body = file.read(int(headers["content-length"]))
                assert len(body) == int(headers["content-length"])
            else:
                assert headers["connection"] == "close"
                body = file.read()
        answers.append((status, headers, body))


def statuses(data, methods=()):
    return [status for status, _, _ in parse(data, methods)]


# --- What is read, and what is refused

HOST = b"Host: a\r\n"
CONTROLS = [bytes([code]) for code in (*range(9), *range(11, 13), *range(14, 32), 127)]


def head(*lines, first=b"GET /x HTTP/1.1", host=HOST):
    return first + b"\r\n" + host + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


GOOD = [
    head(), head(b"X: y"), head(b"X:y"), head(b"X:"), head(b"X: \t y \t "), head(b"X: \xff\x80"),
    head(b"!#$%&'*+-.^_`|~09azAZ: y"), head(b"X_Y: z"), head(b"Cookie: a", b"Cookie: b"),
    head(b"X: " + b"y" * 16_000), head(b"X: " + b"y" * 16_000, b"Y: " + b"y" * 16_000),
    head(*[b"X%d: y" % number for number in range(99)]),
    head(first=b"GET /" + b"a" * 16_000 + b" HTTP/1.1"),
    head(first=b"GET /x?y=[1]&z={2}|\\^`\"<> HTTP/1.1"), head(first=b"GET /%zz HTTP/1.1"),
    head(first=b"GET //x HTTP/1.1"), head(first=b"GET /? HTTP/1.1"),
    head(first=b"GET http://a/x HTTP/1.1"), head(first=b"GET HTTP://a:1?x HTTP/1.1"),
    head(first=b"GET https://[::1]:8/x HTTP/1.1"), head(first=b"GET http://a HTTP/1.1"),
    head(first=b"get /x HTTP/1.1"), head(first=b"M-SEARCH /x HTTP/1.1"),
    head(first=b"GET /x HTTP/1.0"), head(first=b"GET /x HTTP/1.0", host=b""),
    head(host=b"Host:\r\n"), head(host=b"Host: [::1]:80\r\n"), head(host=b"hOST: a.b-c_d:\r\n"),
    head(b"Content-Length: 0"), head(b"Content-Length: 000"), b"\r\n" + head(),
    b"\r\n\r\n\r\n" + head(), head(b"Expect: 100-continue"), head(b"Expect:"),
    head(b"Transfer_Encoding: chunked"), head(b"Content_Length: 7"), head(b"Upgrade: h2c"),
    head(b"Connection: keep-alive"), head(b"Connection: close"), head(b"Connection: x, Close"),
    head(first=b"GET /x HTTP/1.0", host=b"") + b"", head(b"Expect: x", first=b"GET /x HTTP/1.0"),
]
BAD = [
    # request lines
    *((head(first=line), [400]) for line in [
        b"GET /x", b"GET", b"GET  /x HTTP/1.1", b"GET /x  HTTP/1.1", b" GET /x HTTP/1.1",
        b"GET /x HTTP/1.1 ", b"GET\t/x\tHTTP/1.1", b"GET /x y HTTP/1.1", b"GET x HTTP/1.1",
        b"GET ?x HTTP/1.1", b"GET * HTTP/1.1", b"GET /x#y HTTP/1.1", b"GET /x?y#z HTTP/1.1",
        b"CONNECT a:80 HTTP/1.1", b"GET ftp://a/x HTTP/1.1", b"GET http:///x HTTP/1.1",
        b"GET http://a b/x HTTP/1.1", b"GET http://u@a/x HTTP/1.1", b"GET http://a/x#y HTTP/1.1",
        b"GET /x\x00 HTTP/1.1", b"GET /\xff HTTP/1.1", b"GET /x http/1.1", b"GET /x HTTP/1",
        b"GET /x HTTP/11", b"GET /x HTTP/1.1.1", b"GET /x HTTP/a.b", b"GET /x HTTP/ 1.1",
        b"GET /x HTTPS/1.1", b"G\x01T /x HTTP/1.1", b"G(T /x HTTP/1.1", b"\xffGET /x HTTP/1.1",
        b"GET: /x HTTP/1.1", b"GET /\x7f HTTP/1.1", b"GET \\x HTTP/1.1",
        b"GET http://a:b:c/ HTTP/1.1", b"GET http://[::1/ HTTP/1.1", b"OPTIONS ** HTTP/1.1",
    ]),
    *((head(first=b"GET /x HTTP/" + version), [505]) for version in [
        b"0.9", b"1.2", b"1.9", b"2.0", b"3.0", b"9.9"]),
    # lines and their ends
    (b"GET /x HTTP/1.1\nHost: a\n\n", [400]), (b"GET /x HTTP/1.1\r\nHost: a\n\r\n", [400]),
    (b"GET /x HTTP/1.1\r\nHost: a\r\r\n", [400]), (b"GET /x HTTP/1.1\rHost: a\r\r", [400]),
    (b"GET /x HTTP/1.1\r\nHost: a\r\nX: y\rZ: 1\r\n\r\n", [400]), (b"\n" + head(), [400]),
    (b"\r" + head(), [400]), (b"GET /x HTTP/1.1\n" + HOST + b"\r\n", [400]),
    (head(b"X: y", b" z"), [400]), (head(b"X: y", b"\tz"), [400]), (head(b" X: y"), [400]),
    (head(host=b" Host: a\r\n"), [400]), (head(b"X: y", b" "), [400]),
    # names and values
    *((head(b"X" + bytes([code]) + b"Y: z"), [400]) for code in b'"(),/;<=>?@[\\]{} \t\x80\xff'),
    (head(b"X : y"), [400]), (head(b"X\t: y"), [400]), (head(b": y"), [400]), (head(b"X"), [400]),
    (head(b"Content-Length : 3") + b"abc", [400]),
    *((head(b"X: a" + code + b"b"), [400]) for code in CONTROLS),
    *((head(b"X" + code + b": b"), [400]) for code in CONTROLS),
    # Host
    (head(host=b""), [400]), (head(host=HOST + HOST), [400]),
    (head(host=HOST + b"host: b\r\n"), [400]),
    *((head(host=b"Host: " + host + b"\r\n"), [400]) for host in [
        b"a b", b"a/b", b"a@b", b"a:b", b"[::1", b"a:80:80", b"a,b/", b"\xff", b"a?b", b"a#b"]),
    (head(host=b"Host_: a\r\n"), [400]), (head(HOST[:-2], first=b"GET /x HTTP/1.0"), [400]),
    # lengths
    *((head(b"Content-Length: " + length) + b"abc", [400]) for length in [
        b"", b"-3", b"+3", b"3 ,3", b"3,3", b"3, 3", b"0x3", b"3.0", b"3e0", b"\xb2", b"3 3",
        b"three", b"3;", b'"3"', b"3_0", b"\xd9\xa3"]),
    (head(b"Content-Length: 3", b"Content-Length: 3") + b"abc", [400]),
    (head(b"Content-Length: 3", b"Content-Length: 4") + b"abc", [400]),
    (head(b"Content-Length: 0", b"content-length: 3") + b"abc", [400]),
    (head(b"Content-Length: 3", b"Transfer-Encoding: chunked") + b"0\r\n\r\n", [400]),
    (head(b"Transfer-Encoding: chunked", b"Content-Length: 3") + b"0\r\n\r\n", [400]),
    (head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), [400]),
    (head(b"Content-Length: " + b"9" * 16), [413]),
    (head(b"Content-Length: " + b"9" * 9000), [413]),
    (head(b"Transfer-Encoding: chunked") + b"0\r\n\r\n", [411]),
    (head(b"transfer-encoding:Chunked") + b"3\r\nabc\r\n0\r\n\r\n", [411]),
    *((head(b"Transfer-Encoding: " + coding) + b"0\r\n\r\n", [501]) for coding in [
        b"gzip", b"identity", b"chunked, chunked", b"gzip, chunked", b"chunked;x", b"xchunked",
        b"", b"chunked,", b"\x80chunked"]),
    (head(b"Transfer-Encoding:\x0bchunked"), [400]),
    *((head(b"Expect: " + what), [417]) for what in [b"x", b"100-continue, x", b"200-ok"]),
    # sizes
    (head(first=b"GET /" + b"a" * 16_400 + b" HTTP/1.1"), [414]), (b"GET /" + b"a" * 70_000, [414]),
    (head(b"X: " + b"y" * 16_400), [431]), (head(*[b"X: " + b"y" * 16_000] * 5), [431]),
    (head(*[b"X%d: y" % number for number in range(101)]), [431]),
    (head(b"X" * 16_400 + b": y"), [431]), (head(b"X: " + b"y" * 70_000)[:-4], [431]),
    (head(*[b"X: " + b"y" * 1000] * 99)[:-4], [431]),
]
PARTS = [
    (b"G", [400]), (b"GET /x HTTP/1.1\r\n", [400]), (head()[:-2], [400]), (head()[:-1], [400]),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", [400]), (b"\x00" * 10, [400]),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400, 505]), (b"", []), (b"\r\n", []), (b"\r\n\r\n", []),
]


@pytest.mark.parametrize("data", GOOD, ids=lambda data: ascii(data[:60]))
def test_good_request_is_answered(echoing, data):
    assert statuses(exchange(echoing, data)) == [200]


@pytest.mark.parametrize("data, allowed", BAD, ids=lambda value: ascii(value)[:60])
def test_bad_bytes_are_refused_once_and_nothing_after_them_is_read(echoing, data, allowed):
    ((status, headers, body),) = parse(exchange(echoing, data + head()))

    assert status in allowed
    assert headers["connection"] == "close"
    assert headers["content-type"] == "application/json"
    assert headers["x-content-type-options"] == "nosniff"
    assert json.loads(body)["success"] is False


@pytest.mark.parametrize("data, allowed", PARTS, ids=lambda value: ascii(value)[:60])
def test_bytes_that_are_no_whole_request_are_refused_or_ignored(echoing, data, allowed):
    codes = statuses(exchange(echoing, data))

    assert len(codes) == bool(allowed)
    assert set(codes) <= set(allowed)


@pytest.mark.parametrize("line, path, query", [
    (b"GET /a%20b?c=%20d HTTP/1.1", "/a b", "c=%20d"), (b"GET http://h HTTP/1.1", "/", ""),
    (b"GET http://h?x HTTP/1.1", "/", "x"), (b"GET http://h/p?x?y HTTP/1.1", "/p", "x?y"),
    (b"GET //h/p HTTP/1.1", "//h/p", ""), (b"GET /%ff HTTP/1.1", "/\xff", ""),
])
def test_target_becomes_path_and_query(echoing, line, path, query):
    ((_, _, body),) = parse(exchange(echoing, head(first=line)))

    assert json.loads(body)[1:3] == [path, query]


def test_environ_is_valid_and_honest():
    seen = {}

    def app(environ, start_response):
        seen.update(environ)
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
        return [b"hello"]

    with serving(validator(app)) as server:
        answer = exchange(server, head(
            b"A: b", b"A: c", b"A_B: d", b"Cookie: e", b"Cookie: f", b"Content-Type: text/x",
            b"Content-Length: 2", first=b"PUT http://h:1/x?y HTTP/1.1") + b"zz")

    assert answer.endswith(b"\r\n\r\nhello")
    assert (seen["wsgi.multithread"], seen["wsgi.multiprocess"]) == (True, False)
    assert not set(os.environ) & set(seen)
    assert {key: seen[key] for key in seen if key.isupper()} == {
        "GATEWAY_INTERFACE": "CGI/1.1", "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": str(server.address[1]), "REMOTE_ADDR": "127.0.0.1",
        "REQUEST_METHOD": "PUT", "SCRIPT_NAME": "", "PATH_INFO": "/x", "QUERY_STRING": "y",
        "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "h:1", "HTTP_A": "b,c", "HTTP_COOKIE": "e; f",
        "CONTENT_TYPE": "text/x", "CONTENT_LENGTH": "2"}


def test_options_of_the_server_are_answered_by_it(echoing):
    assert statuses(exchange(echoing, head(first=b"OPTIONS * HTTP/1.1"))) == [204]


# --- Framing


def test_requests_in_a_pipeline_are_answered_in_turn(echoing):
    data = b"".join(
        head(b"Content-Length: %d" % size, first=b"PUT /%d HTTP/1.1" % size) + b"x" * size
        for size in (0, 5, 60_000, 1, 0))

    answers = parse(exchange(echoing, data))

    assert [json.loads(body)[1] for _, _, body in answers] == ["/0", "/5", "/60000", "/1", "/0"]
    assert [len(json.loads(body)[3]) for _, _, body in answers] == [0, 5, 60_000, 1, 0]
    assert all("connection" not in headers for _, headers, _ in answers)


@pytest.mark.parametrize("first, line", [
    (b"GET /x HTTP/1.0", b"X: y"), (b"GET /x HTTP/1.0", b"Connection: keep-alive"),
    (b"GET /x HTTP/1.1", b"Connection: close"), (b"GET /x HTTP/1.1", b"Connection: x , CLOSE"),
    (b"GET /x HTTP/1.1", b"Connection: x,\tclose\t,y"),
])
def test_connection_that_is_to_close_closes(echoing, first, line):
    ((_, headers, _),) = parse(exchange(echoing, head(line, first=first) + head(), end=False))

    assert headers["connection"] == "close"


def test_body_that_nobody_reads_is_no_request(echoing):
    smuggled = head(first=b"GET /smuggled HTTP/1.1")
    data = head(b"Content-Length: %d" % len(smuggled), first=b"POST /unread HTTP/1.1") + smuggled

    answers = parse(exchange(echoing, data + head()))

    assert [json.loads(body)[1] for _, _, body in answers] == ["/unread", "/x"]


def test_body_that_nobody_reads_and_is_long_ends_the_connection(echoing):
    size = jwtserver.MAX_BODY_BYTES + 1
    data = head(b"Content-Length: %d" % size, first=b"POST /unread HTTP/1.1") + b"x" * size

    ((status, headers, _),) = parse(exchange(echoing, data + head(), end=False))

    assert (status, headers["connection"]) == (200, "close")


def test_body_that_ends_early_ends_the_connection(echoing):
    for path in (b"/unread", b"/x"):
        line = b"POST " + path + b" HTTP/1.1"
        assert statuses(exchange(echoing, head(b"Content-Length: 9", first=line) + b"x")) == [200]


def test_body_that_announces_more_than_there_is_memory_is_read_as_far_as_it_comes(echoing):
    data = head(b"Content-Length: 999999999999999", first=b"PUT /x HTTP/1.1") + b"abc"

    ((status, _, body),) = parse(exchange(echoing, data))

    assert (status, json.loads(body)[3]) == (200, "abc")


def test_body_is_read_whole_in_parts_and_by_lines():
    """By the methods of PEP 3333."""
    read = []

    def app(environ, start_response):
        body = environ["wsgi.input"]
        read.append([body.read(3), body.readline(), body.read(100_000), next(body),
                     body.readlines(), body.read(5), body.read()])
        return text(environ, start_response)

    data = b"x" * 3 + b"a\n" + b"y" * 100_000 + b"\n" + b"b\n" + b"c"
    with serving(app) as server:
        exchange(server, head(b"Content-Length: %d" % len(data), first=b"PUT /x HTTP/1.1") + data)

    assert read == [[b"xxx", b"a\n", b"y" * 100_000, b"\n", [b"b\n", b"c"], b"", b""]]


def test_expectation_is_met_when_the_body_is_wanted(echoing):
    with connect(echoing) as connection:
        lines = b"Expect: 100-Continue", b"Content-Length: 2", b"Connection: close"
        connection.sendall(head(*lines))
        assert connection.recv(99) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"hi")
        assert json.loads(parse(received(connection))[0][2])[3] == "hi"


def test_expectation_that_is_not_met_ends_the_connection(echoing):
    data = head(b"Expect: 100-continue", b"Content-Length: 2", first=b"PUT /unread HTTP/1.1")

    ((status, headers, _),) = parse(exchange(echoing, data, end=False))

    assert (status, headers["connection"]) == (200, "close")


def test_expectation_is_not_met_in_the_midst_of_an_answer():
    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", "3")])
        yield b"a"
        yield environ["wsgi.input"].read(2)

    with serving(app) as server, connect(server) as connection:
        connection.sendall(head(b"Expect: 100-continue", b"Content-Length: 2") + b"bc")

        ((status, headers, body),) = parse(received(connection))

    assert (status, headers["connection"], body) == (200, "close", b"abc")


def test_expectation_of_a_body_of_no_length_is_no_expectation(echoing):
    assert statuses(exchange(echoing, head(b"Expect: 100-continue") * 2)) == [200, 200]


FRAGMENTS = [
    b"Content-Length: 3", b"Content-Length: 0", b"Content-Length: 03", b"Content-Length: 3, 3",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", b"X: y", b"X : y", b" z",
    b"Host: b", b"Connection: close", b"Expect: 100-continue", b"Content_Length: 9", b"X\x00: y",
    b"X: \r", b"Content-Length: 12",
]
FATAL = {b"Content-Length: 3, 3", b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity",
         b"X : y", b" z", b"Host: b", b"X\x00: y", b"X: \r"}


def framed(dice):
    """Bytes of some requests, and how many answers they must get, by an oracle of its own."""
    data, answers, open_ = b"", 0, True
    for _ in range(dice.randint(1, 5)):
        lines = dice.sample(FRAGMENTS, dice.choice([0, 0, 1, 1, 2, 3]))
        lengths = [int(line[16:]) for line in lines
                   if line.startswith(b"Content-Length: ") and line not in FATAL]
        path = dice.choice([b"/unread", b"/read"])
        data += head(*lines, first=b"POST " + path + b" HTTP/1.1") + b"G" * sum(lengths[:1])
        answers += open_
        if set(lines) & FATAL or len(lengths) > 1 or b"Connection: close" in lines \
                or (b"Expect: 100-continue" in lines and sum(lengths) and path == b"/unread"):
            open_ = False
    return data, answers


@pytest.mark.parametrize("seed", range(8))
def test_framing_fuzzed_gives_one_answer_for_each_framed_request(echoing, seed):
    dice = random.Random(seed)

    for _ in range(40):
        data, expected = framed(dice)
        with connect(echoing) as connection:
            for piece in re.findall(b"(?s).{1,%d}" % dice.choice([7, 50, 9999]), data):
                with contextlib.suppress(OSError):
                    connection.sendall(piece)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            codes = [code for code in statuses(received(connection)) if code != 100]
        assert len(codes) == expected, data


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_head_in_pieces_is_one_head(echoing, cut):
    data = head(b"X: y", first=b"GET /pieces HTTP/1.1", host=b"Host: a.example\r\n")
    with connect(echoing) as connection:
        for start in range(0, len(data), cut):
            connection.sendall(data[start:start + cut])
        connection.shutdown(socket.SHUT_WR)

        assert statuses(received(connection)) == [200]


# --- What an application may answer


def answering(*pieces, headers=(("Content-Type", "text/plain"),), status="200 OK", make=iter):
    def app(environ, start_response):
        start_response(status, list(headers))
        return make(pieces)

    return app


def as_if(method):
    """An application that changes the method of its request, as overriding middleware does."""
    def app(environ, start_response):
        environ["REQUEST_METHOD"] = method
        start_response("200 OK", [])
        return [b"abc"]

    return app


def answer_of(app, method=b"GET", version=b"1.1", **options):
    with serving(app, **options) as server:
        return exchange(server, head(first=method + b" / HTTP/" + version))


LENGTH = ("Content-Length", "3")


@pytest.mark.parametrize("app, framing, body", [
    (answering(b"abc", make=list), ("content-length", "3"), b"abc"),
    (answering(make=list), ("content-length", "0"), b""),
    (answering(), ("content-length", "0"), b""),
    (answering(b"", b""), ("content-length", "0"), b""),
    (answering(b"", b"abc"), ("transfer-encoding", "chunked"), b"abc"),
    (answering(b"abc"), ("transfer-encoding", "chunked"), b"abc"),
    (answering(b"a", b"", b"bc", make=list), ("transfer-encoding", "chunked"), b"abc"),
    (answering(b"a", b"bc", headers=[LENGTH]), ("content-length", "3"), b"abc"),
    (answering(b"ab", b"cd", headers=[LENGTH]), ("content-length", "3"), b"abc"),
])
def test_answer_is_framed_by_what_is_known_of_it(app, framing, body):
    ((status, headers, content),) = parse(answer_of(app))

    assert (status, headers[framing[0]], content) == (200, framing[1], body)
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", headers["date"])
    assert headers["server"] == "jwtserver"
    assert "connection" not in headers


def test_answer_of_unknown_length_to_an_old_client_ends_with_the_connection():
    ((_, headers, body),) = parse(answer_of(answering(b"a", b"b"), version=b"1.0"))

    assert "transfer-encoding" not in headers and headers["connection"] == "close"
    assert body == b"ab"


@pytest.mark.parametrize("app, method", [
    (answering(b"a", b"bc"), b"HEAD"), (answering(b"abc", headers=[LENGTH]), b"HEAD"),
    (answering(b"abc", status="304 Not Modified"), b"GET"),
    (answering(b"abc", status="204 No Content", headers=[]), b"GET"),
    (answering(status="204 No Content", headers=[("Content-Length", "0")]), b"GET"),
    (as_if("GET"), b"HEAD"),
])
def test_answer_that_may_have_no_body_has_none(app, method):
    with serving(app) as server:
        data = exchange(server, head(first=method + b" / HTTP/1.1") * 2)

    assert data.count(b"HTTP/1.1 ") == 2 and data.endswith(b"\r\n\r\n")
    assert b"abc" not in data and b"chunked" not in data
    assert not (b" 204 " in data and b"Content-Length" in data)  # RFC 9110 §8.6


def test_answer_is_framed_for_the_request_that_came_whatever_becomes_of_its_environ():
    def clearing(environ, start_response):
        environ.clear()
        start_response("200 OK", [])
        return [b"abc"]

    log = io.StringIO()
    assert parse(answer_of(as_if("HEAD")))[0][2] == b"abc"
    assert parse(answer_of(clearing, access_log=log))[0][2] == b"abc"
    assert log.getvalue().startswith("- - - [")


def test_answer_begun_by_write_and_ended_by_a_list_is_in_order():
    def app(environ, start_response):
        write = start_response("200 OK", [])
        write(b"first ")
        return [b"second"]

    with serving(app) as server:
        answers = parse(exchange(server, head() * 2))

    assert [body for _, _, body in answers] == [b"first second"] * 2


def test_fault_before_the_first_piece_that_is_not_empty_is_500():
    def app(environ, start_response):
        start_response("200 OK", [])
        yield b""
        raise LookupError

    assert statuses(answer_of(app)) == [500]


def test_fault_that_the_framing_would_hide_resets_the_connection():
    def app(environ, start_response):
        start_response("200 OK", [])
        yield b"begun"
        raise LookupError

    with serving(app) as server, connect(server) as connection:
        connection.sendall(head(first=b"GET /x HTTP/1.0"))
        with pytest.raises(ConnectionResetError):
            while connection.recv(999):
                pass


def test_answer_shorter_than_announced_is_cut(caplog):
    data = answer_of(answering(b"ab", headers=[LENGTH]))

    assert data.endswith(b"\r\n\r\nab")
    assert "shorter than its Content-Length" in caplog.text


def test_answer_has_the_date_and_server_that_the_application_gives():
    headers = [("Date", "then"), ("Server", "mine")]
    ((_, found, _),) = parse(answer_of(answering(b"", headers=headers)))

    assert (found["date"], found["server"]) == ("then", "mine")


def raising(environ, start_response):
    raise LookupError("secret detail")


def raising_late(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Set-Cookie", "secret=1")])
    raise ConnectionResetError("of a database, say")


def silent(environ, start_response):
    return [b"x"]


def twice(environ, start_response):
    start_response("200 OK", [])
    start_response("200 OK", [])


def text(environ, start_response):
    start_response("200 OK", [])
    return ["text"]


BAD_HEADERS = [
    [("X", "a\r\nSet-Cookie: b")], [("X", "a\nb")], [("X", "a\rb")], [("X\r\nY", "a")],
    [("X: a\r\nY", "b")], [("", "a")], [("X Y", "a")], [("X", "a\0")], [("X", "\u20ac")],
    [("X", 1)], [("X", b"a")], [(b"X", "a")], [("Transfer-Encoding", "chunked")],
    [("Connection", "close")], [("Keep-Alive", "x")], [("Upgrade", "x")], [LENGTH, LENGTH],
    [("Content-Length", "-1")], [("Content-Length", "x")], [("Content-Length", "")],
]


@pytest.mark.parametrize("app", [
    raising, raising_late, silent, twice, text, lambda environ, start_response: None,
    *(answering(b"x", headers=headers) for headers in BAD_HEADERS),
    *(answering(b"x", status=status) for status in [
        "200 OK\r\nX: y", "200", "99 x", "100 Continue", "abc", "", "200 \u20ac", b"200 OK"]),
])
def test_fault_of_the_application_is_500_with_logged_traceback(app, caplog):
    ((status, headers, body),) = parse(answer_of(app))

    assert (status, headers["content-type"]) == (500, "application/json")
    assert json.loads(body) == {"success": False, "error": "Internal server error"}
    assert not {"x", "y", "set-cookie"} & set(headers)
    assert "Traceback" in caplog.text


def test_fault_is_not_the_end_of_the_connection():
    with serving(raising) as server:
        assert statuses(exchange(server, head() * 3)) == [500] * 3


def test_fault_after_the_head_cuts_the_connection(caplog):
    def app(environ, start_response):
        start_response("200 OK", [])
        yield b"begun"
        raise LookupError("in the middle")

    data = answer_of(app)

    assert data.endswith(b"5\r\nbegun\r\n")
    assert "in the middle" in caplog.text


def test_fault_in_close_is_logged_and_gives_no_second_answer(caplog):
    class Body(list):
        def close(self):
            raise LookupError("in close")

    data = answer_of(answering(b"abc", make=Body))

    assert len(parse(data)) == 1
    assert "in close" in caplog.text


def test_late_error_replaces_the_head_that_was_not_sent():
    def app(environ, start_response):
        start_response("200 OK", [("X", "y"), LENGTH])
        try:
            raise LookupError
        except LookupError:
            start_response("503 Sorry", [], sys.exc_info())
        return [b"sorry"]

    ((status, headers, body),) = parse(answer_of(app))

    assert (status, body, "x" in headers) == (503, b"sorry", False)


def test_late_error_after_the_head_is_raised_again(caplog):
    def app(environ, start_response):
        start_response("200 OK", [])(b"begun")
        try:
            raise LookupError("too late")
        except LookupError:
            start_response("503 Sorry", [], sys.exc_info())
        return []

    assert answer_of(app).endswith(b"5\r\nbegun\r\n")
    assert "too late" in caplog.text


def test_streamed_answer_arrives_piece_by_piece():
    go = threading.Event()

    def app(environ, start_response):
        start_response("200 OK", [])
        yield b"first"
        assert go.wait(10)
        yield b"second"

    with serving(app) as server, connect(server) as connection:
        connection.sendall(head(b"Connection: close"))
        data = b""
        while b"first" not in data:
            data += connection.recv(999)
        go.set()

        assert parse(data + received(connection))[0][2] == b"firstsecond"


def test_injection_is_refused_without_assertions_too():
    code = f"""
import sys; sys.path[:0] = [{str(ROOT / "tests")!r}, {str(ROOT)!r}]
import test_http
print(test_http.answer_of(test_http.answering(b"x", headers=[("X", "a\\r\\nY: b")]))[:12])
"""
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True)

    assert done.stdout == "b'HTTP/1.1 500'\n"


# --- Slow clients, and many


def test_idle_connection_is_closed_without_a_word():
    with serving(echo, idle_timeout=0.05) as server:
        assert exchange(server, b"", end=False) == b""
        assert statuses(exchange(server, head(), end=False)) == [200]


def test_head_that_takes_too_long_is_told_so():
    with serving(echo, head_timeout=0.05) as server:
        assert statuses(exchange(server, head()[:-3], end=False)) == [408]


def test_body_that_takes_too_long_ends():
    with serving(echo, head_timeout=0.05) as server:
        data = head(b"Content-Length: 9", first=b"PUT /x HTTP/1.1") + b"abc"
        ((status, headers, body),) = parse(exchange(server, data, end=False))

    assert json.loads(body)[3] == "abc"


def test_client_that_does_not_read_is_let_go():
    done = threading.Event()

    def app(environ, start_response):
        start_response("200 OK", [])
        try:
            while True:
                yield b"x" * 1_000_000
        finally:
            done.set()

    with serving(app, idle_timeout=0.05) as server, connect(server) as connection:
        connection.sendall(head())
        assert done.wait(10)


def test_client_that_reads_too_slowly_is_let_go(monkeypatch):
    done = threading.Event()

    def app(environ, start_response):
        start_response("200 OK", [])
        try:
            yield b"x" * 50_000_000
        finally:
            done.set()

    with serving(app, idle_timeout=0.2, body_rate=1e9) as server, connect(server) as connection:
        connection.sendall(head())
        while not done.wait(0.01):
            connection.recv(500_000)


def test_client_that_takes_a_long_answer_gets_it():
    ((_, _, body),) = parse(answer_of(answering(b"x" * 20_000_000, make=list)))

    assert len(body) == 20_000_000


def test_client_that_has_gone_ends_the_iteration():
    closed = threading.Event()

    def app(environ, start_response):
        start_response("200 OK", [])
        try:
            while True:
                yield b"x" * 100_000
        finally:
            closed.set()

    with serving(app) as server:
        with connect(server) as connection:
            connection.sendall(head())
            connection.recv(1)
        assert closed.wait(10)


def test_connections_beyond_the_bound_cost_the_longest_idle():
    with serving(echo, connections=3) as server:
        first, begun = connect(server), connect(server)
        begun.sendall(head()[:9])
        while not server._begun:
            time.sleep(0.001)
        others = [connect(server) for _ in range(2)]
        assert first.recv(9) == b""

        assert statuses(exchange(server, head())) == [200]  # and not those that came after it
        assert begun.recv(9) == b""
        others[0].sendall(head(b"Connection: close"))
        assert statuses(received(others[0])) == [200]

        for connection in (first, begun, *others):
            connection.close()


def test_connections_beyond_what_the_system_allows_cost_the_longest_idle():
    class Full:
        def accept(self):
            raise OSError(errno.EMFILE, "Too many open files")

    with serving(echo) as server, connect(server) as idle:
        while not server._idle:
            time.sleep(0.001)
        listener, server._listener = server._listener, Full()

        server._accept()
        server._accept()  # now that there is none to close

        server._listener = listener
        assert idle.recv(9) == b""


def test_flood_of_pipelined_requests_does_not_hinder_others():
    flood, begun = head(first=b"GET /flood HTTP/1.1"), threading.Event()
    answered = []
    together = jwtserver.RECEIVE_BYTES // len(flood)  # are taken in at once

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/flood":
            begun.set()
            time.sleep(0.002)
        answered.append(environ["PATH_INFO"])
        return echo(environ, start_response)

    with serving(app) as server, connect(server) as flooding:
        flooding.sendall(flood * together)
        assert begun.wait(10)

        assert statuses(exchange(server, head())) == [200]

        assert answered.index("/x") < together - 1


def test_connections_that_drip_do_not_hinder_others():
    with serving(echo, connections=50) as server:
        dripping = [connect(server) for _ in range(80)]
        for connection in dripping:
            with contextlib.suppress(OSError):
                connection.sendall(head()[:9])

        assert [statuses(exchange(server, head())) for _ in range(5)] == [[200]] * 5

        for connection in dripping:
            connection.close()


def test_answers_that_take_long_do_not_hinder_others():
    go, slow = threading.Event(), threading.Semaphore(0)

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/slow":
            slow.release()
            assert go.wait(10)
        return echo(environ, start_response)

    with serving(app) as server:
        waiting = [connect(server) for _ in range(5)]
        for connection in waiting:
            connection.sendall(head(first=b"GET /slow HTTP/1.1") + head())
        for _ in waiting:
            assert slow.acquire(timeout=10)

        assert statuses(exchange(server, head() * 2)) == [200, 200]

        go.set()
        for connection in waiting:
            connection.shutdown(socket.SHUT_WR)
            assert statuses(received(connection)) == [200, 200]
            connection.close()


def test_application_that_says_it_takes_long_hinders_nobody_from_then_on():
    entered, go = threading.Event(), threading.Event()

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/slow":
            environ["jwtserver.step_aside"]()
            environ["jwtserver.step_aside"]()  # another thread's lead is not its to pass
            entered.set()
            assert go.wait(10)
        return echo(environ, start_response)

    listener = socket.create_server(("127.0.0.1", 0))
    server = jwtserver._Server(app, listener, Settings())
    server.address = listener.getsockname()
    server._start_thread()  # and nobody who would pass the lead in time
    try:
        with connect(server) as slow:
            slow.sendall(head(b"Connection: close", first=b"GET /slow HTTP/1.1"))
            assert entered.wait(10)

            assert statuses(exchange(server, head())) == [200]

            assert len(server._threads) == 2
            go.set()
            assert statuses(received(slow)) == [200]
    finally:
        go.set()
        server.finish()


def test_answer_does_not_wait_for_another_that_takes_long():
    gate, go, entered = threading.Event(), threading.Event(), threading.Semaphore(0)

    def app(environ, start_response):
        if environ["PATH_INFO"] != "/x":
            entered.release()
            assert (gate if environ["PATH_INFO"] == "/gate" else go).wait(10)
        return echo(environ, start_response)

    with serving(app, threads=2) as server:
        first, *others = [connect(server) for _ in range(6)]
        first.sendall(head(first=b"GET /gate HTTP/1.1"))
        assert entered.acquire(timeout=10)
        for number, connection in enumerate(others):  # a batch, when the gate opens
            slow = number == 3
            connection.sendall(head(first=b"GET /slow HTTP/1.1" if slow else b"GET /x HTTP/1.1"))
        gate.set()
        assert entered.acquire(timeout=10)

        for number in (0, 1, 2, 4):
            assert others[number].recv(12) == b"HTTP/1.1 200"

        go.set()
        assert others[3].recv(12) == b"HTTP/1.1 200"
        for connection in (first, *others):
            connection.close()


def test_threads_that_wait_for_clients_are_taken_for_others():
    with serving(echo, threads=2) as server:
        slow = [connect(server) for _ in range(2)]
        for connection in slow:
            connection.sendall(head(b"Content-Length: 9", first=b"PUT /x HTTP/1.1"))

        assert statuses(exchange(server, head())) == [200]

        for connection in slow:
            connection.close()


def test_client_in_the_midst_of_a_body_is_not_cut_at_once(monkeypatch):
    monkeypatch.setattr(jwtserver, "BLOCK_GRACE", 1e9)
    with serving(echo, threads=2) as server:
        slow = [connect(server) for _ in range(2)]
        for connection in slow:
            lines = b"Content-Length: 2", b"Connection: close"
            connection.sendall(head(*lines, first=b"PUT /x HTTP/1.1"))
        while len(server._blocking) < 2:
            time.sleep(0.001)
        server._pass_lead(0)
        for connection in slow:
            connection.sendall(b"hi")

            assert json.loads(parse(received(connection))[0][2])[3] == "hi"

            connection.close()


def test_threads_that_are_all_at_work_are_waited_for():
    go, slow = threading.Event(), threading.Semaphore(0)

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/slow":
            slow.release()
            assert go.wait(10)
        return echo(environ, start_response)

    with serving(app, threads=1) as server, connect(server) as connection, \
            connect(server) as other:
        connection.sendall(head(first=b"GET /slow HTTP/1.1"))
        assert slow.acquire(timeout=10)
        other.sendall(head(b"Connection: close"))
        time.sleep(0.02)  # so that the watch is seen to have nothing to pass
        go.set()

        assert statuses(received(other)) == [200]


def test_body_that_comes_while_another_thread_leads_is_read():
    """It wakes who watches, and is none of his business."""
    entered, go = threading.Event(), threading.Event()

    def app(environ, start_response):
        entered.set()
        assert go.wait(10)
        return echo(environ, start_response)

    with serving(app) as server, connect(server) as connection:
        connection.sendall(head(b"Content-Length: 2", first=b"PUT /x HTTP/1.1"))
        assert entered.wait(10)
        while server._leader is None or server._leader.since is not None:
            time.sleep(0.001)
        connection.sendall(b"hi" + head(b"Connection: close"))
        time.sleep(0.02)
        go.set()

        answers = parse(received(connection))
    assert [json.loads(body)[3] for _, _, body in answers] == ["hi", ""]


# --- In the middle of things


def connected(**options):
    """The server's side of a connection, and the client's."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with serving(echo, **options) as server:
        yield jwtserver._Connection(ours, None, server), theirs
    ours.close()
    theirs.close()


def test_thread_that_has_lost_the_lead_does_not_watch():
    with serving(echo) as server:
        watching = []
        watch, server._watch = server._watch, lambda: watching.append(threading.current_thread())

        server._step(jwtserver._Worker(server._work))

        server._watch = watch
        assert threading.current_thread() not in watching


def test_head_that_is_sent_again_is_read_as_it_was():
    def app(environ, start_response):
        seen.append(dict(environ))
        environ.clear()  # is its own
        start_response("200 OK", [])
        return []

    seen = []
    first = head(b"X: y", first=b"GET /a?b HTTP/1.1")
    long = head(b"X: " + b"y" * jwtserver.MAX_REMEMBERED_HEAD)
    with serving(app) as server:
        data = exchange(server, first + first + head() + b"Bad\r\n\r\n" + first)
        assert statuses(data) == [200, 200, 200, 400]
        assert statuses(exchange(server, long + long)) == [200, 200]

    bodies = [environ.pop("wsgi.input") for environ in seen]
    assert len(set(map(id, bodies))) == len(bodies)
    assert seen[0] == seen[1] != seen[2]
    assert seen[3] == seen[4]


def test_event_that_was_no_event_is_nothing():
    for connection, _ in connected():
        assert connection.take() is False
        connection.server._accept()


def test_event_of_a_connection_that_has_been_closed_is_nothing():
    for connection, client in connected():
        connection.server._await(connection)
        connection.busy = True  # as if a thread answered
        connection.server._close(connection)

        connection.server._take(connection)


def test_send_to_a_client_whose_buffer_is_full_waits():
    for connection, client in connected():
        filled = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                filled += connection.sock.send(b"x" * 65536)
        read = []

        def drain():
            while connection not in connection.server._blocking:
                time.sleep(0.001)
            while sum(read) <= filled:
                read.append(len(client.recv(65536)))

        reader = threading.Thread(target=drain)
        reader.start()

        connection.send(b"y")

        reader.join()
        assert sum(read) == filled + 1


def test_fault_in_the_server_is_logged_and_costs_one_connection(monkeypatch, caplog):
    answer = jwtserver._Connection.answer

    def fault(connection):
        monkeypatch.setattr(jwtserver._Connection, "answer", answer)
        raise LookupError("a fault")

    monkeypatch.setattr(jwtserver._Connection, "answer", fault)
    with serving(echo) as server:
        assert exchange(server, head()) == b""
        assert statuses(exchange(server, head())) == [200]
    assert "A fault in the server" in caplog.text and "a fault" in caplog.text


def test_end_of_the_server_closes_idle_connections():
    with serving(echo) as server:
        connection = connect(server)
        connection.sendall(head())
        connection.recv(9999)
        begun = connect(server)
        begun.sendall(head()[:9] * 2)
        while not server._begun:
            time.sleep(0.001)
    assert connection.recv(9) == begun.recv(9) == b""
    connection.close()
    begun.close()


def test_interrupt_again_exits(monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with serving(echo) as server:
        server.interrupt(signal.SIGTERM, None)
        assert codes == []
        server.interrupt(signal.SIGTERM, None)
    assert codes == [1]


def test_limit_of_open_files_is_raised_to_what_is_allowed():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))

    jwtserver._raise_file_limit()

    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (limits[1], limits[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_listening_socket_may_be_inherited(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        monkeypatch.setenv("LISTEN_FDS", "1")
        monkeypatch.setattr(jwtserver, "LISTEN_FD", os.dup(listener.fileno()))

        with jwtserver._listen("192.0.2.1", 1) as inherited:
            assert inherited.getsockname() == listener.getsockname()


def test_application_is_imported_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "mine_too.py").write_text("def application(): pass\n")
    monkeypatch.setattr(sys, "path", list(sys.path))

    assert jwtserver._load_app("mine_too").__name__ == "application"


def test_application_that_exits_ends_its_answer_alone(caplog):
    def app(environ, start_response):
        if environ["PATH_INFO"] == "/exit":
            sys.exit("bye")
        return echo(environ, start_response)

    with serving(app, threads=1) as server:
        answers = exchange(server, head(first=b"GET /exit HTTP/1.1") + head())

    assert statuses(answers) == [500, 200]
    assert "SystemExit: bye" in caplog.text


# --- TLS


@pytest.fixture
def certificate(tmp_path):
    path = tmp_path / "server.pem"
    path.write_text(CERTIFICATE)
    return str(path)


@pytest.fixture
def trusting(certificate):
    return ssl.create_default_context(cafile=certificate)


def test_tls_serves_requests_one_after_the_other(certificate, trusting):
    seen = []

    def app(environ, start_response):
        seen.append(environ["wsgi.url_scheme"])
        return echo(environ, start_response)

    with serving(app, tls=jwtserver._tls_context(certificate, None)) as server:
        with trusting.wrap_socket(connect(server), server_hostname="localhost") as connection:
            body = b"x" * 40_000
            put = head(b"Content-Length: 40000", first=b"PUT /x HTTP/1.1") + body
            connection.sendall(head() + head() + put + head(b"Connection: close"))
            answers = parse(received(connection))

    assert [status for status, _, _ in answers] == [200] * 4
    assert seen == ["https"] * 4


def test_tls_of_old_versions_is_refused(certificate):
    assert jwtserver._tls_context(certificate, None).minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("data", [head(), b"", b"\x16\x03\x01\x00\x05hello"])
def test_tls_with_a_client_that_has_none_goes_on(certificate, trusting, data):
    with serving(echo, tls=jwtserver._tls_context(certificate, None)) as server:
        with contextlib.suppress(ConnectionResetError):
            exchange(server, data)

        with trusting.wrap_socket(connect(server), server_hostname="localhost") as connection:
            connection.sendall(head(b"Connection: close"))
            assert statuses(received(connection)) == [200]


def test_tls_handshake_that_takes_too_long_is_let_go(certificate):
    with serving(echo, tls=jwtserver._tls_context(certificate, None), head_timeout=0.05) as server:
        assert exchange(server, b"", end=False) == b""


def test_tls_connection_without_a_request_is_idle(certificate, trusting):
    tls = jwtserver._tls_context(certificate, None)
    with serving(echo, tls=tls, head_timeout=1e9, idle_timeout=0.05) as server:
        with trusting.wrap_socket(connect(server), server_hostname="localhost") as connection:
            assert connection.recv(999) == b""


def test_tls_handshakes_that_do_not_go_on_cost_no_thread(certificate, trusting):
    tls = jwtserver._tls_context(certificate, None)
    with serving(echo, tls=tls, threads=1) as server:
        silent = [connect(server) for _ in range(20)]
        for connection in silent[:10]:
            connection.sendall(b"\x16\x03\x01")

        with trusting.wrap_socket(connect(server), server_hostname="localhost") as connection:
            connection.sendall(head(b"Connection: close"))
            assert statuses(received(connection)) == [200]

        for connection in silent:
            connection.close()


def test_tls_with_clients_that_have_gone_before_goes_on(certificate, trusting):
    listener = socket.create_server(("127.0.0.1", 0))
    for data in (b"", b"x"):
        with socket.create_connection(listener.getsockname()) as connection:
            connection.sendall(data)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with serving(echo, listener=listener, tls=jwtserver._tls_context(certificate, None)) as server:
        with trusting.wrap_socket(connect(server), server_hostname="localhost") as connection:
            connection.sendall(head(b"Connection: close"))
            assert statuses(received(connection)) == [200]


def test_logout_holds_for_the_very_next_request_of_a_connection():
    settings = Settings(secret="k" * 32)
    store = jwtserver.open_store(settings.database)
    app = jwtserver.create_app(settings, store=store)
    user = jwtserver.User("alice", "", "", 0, 0)
    store.add_users([user])
    grant = jwtserver.new_grant(user, 1000, time.time())
    store.open_session(grant, 0)
    token, _ = jwtserver.issue_token(
        grant, jwtserver.make_signer(settings), 1000, time.time())
    requests = [head(b"Authorization: Bearer " + token.encode(), first=line + b" HTTP/1.1")
                for line in (b"GET /protected", b"POST /logout", b"GET /protected")]

    with serving(app) as server:
        assert statuses(exchange(server, b"".join(requests))) == [200, 204, 401]
    store.close()


# --- From the command line


@pytest.fixture
def start(tmp_path):
    servers = []

    def start(*arguments, **options):
        servers.append(Running(tmp_path, *arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.returncode is None:
            server.stop(signal.SIGKILL)


def test_serve_over_tls(start, certificate, trusting):
    server = start("--tls-cert", certificate)

    assert server.url.startswith("https://127.0.0.1:")
    with trusting.wrap_socket(socket.create_connection(("127.0.0.1", server.port)),
                              server_hostname="127.0.0.1") as connection:
        connection.sendall(head(b"Connection: close", first=b"GET /health HTTP/1.1"))
        assert statuses(received(connection)) == [200]


@pytest.mark.parametrize("arguments, words", [
    (["--tls-cert", "none.pem"], "cannot use none.pem: No such file or directory\n"),
    (["--tls-cert", "bad.pem"], "key in --tls-key?\n"),
    (["--tls-key", "none.pem"], "--tls-key needs --tls-cert"),
    (["--app", "nothing_there:app"], "cannot import nothing_there:app: ModuleNotFoundError"),
    (["--app", "mine:nothing"], "cannot import mine:nothing: AttributeError"),
    (["--app", "mine:number"], "mine:number is not callable"),
    (["--app", ":app"], "cannot import :app: ValueError"),
])
def test_serve_with_what_cannot_be_used_is_one_line(
        tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "bad.pem").write_text("no certificate")
    (tmp_path / "mine.py").write_text("number = 7\n")
    monkeypatch.delitem(sys.modules, "mine", raising=False)

    assert jwtserver.main(["--port", "0", *arguments]) == 1

    errors = capsys.readouterr().err
    assert words in errors and errors.count("\n") == 1


def test_serve_an_application_of_ones_own_behind_the_guard(start, tmp_path):
    (tmp_path / "mine.py").write_text("""
class site:
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ.get("REMOTE_USER", "nobody").encode()]
""")
    server = start("--app", "mine:site.app", "--exempt", "/open")
    output = ""
    while "curl -H" not in output:
        output = server.process.stdout.readline()
    token = re.search(r"Bearer ([\w.-]+)", output)[1]

    def get(path, *lines):
        return server.raw(head(*lines, first=b"GET " + path + b" HTTP/1.0")).partition(b"\r\n\r\n")

    assert output.rstrip().endswith(f"{server.url}/")
    assert get(b"/")[0].startswith(b"HTTP/1.1 401 ")
    assert get(b"/", b"Authorization: Bearer " + token.encode())[2] == b"demo"
    assert get(b"/open/x")[2] == b"nobody"


def test_logging_that_an_application_configures_remains(start, tmp_path):
    (tmp_path / "mine.py").write_text("""
import logging
logging.basicConfig(level="INFO", format="MINE %(message)s")
app = print
""")
    _, _, errors = start("--app", "mine:app").stop()

    assert errors.startswith('MINE user_add user="demo"\n')


def test_signal_lets_what_is_in_flight_end(start, tmp_path):
    (tmp_path / "mine.py").write_text("""
import pathlib, time
def app(environ, start_response):
    pathlib.Path("begun").touch()
    while not pathlib.Path("go").exists():
        time.sleep(0.01)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"whole"]
""")
    server = start("--app", "mine:app", "--protect", "/x")
    address = ("127.0.0.1", server.port)
    with socket.create_connection(address) as idle, socket.create_connection(address) as busy:
        busy.sendall(head(first=b"GET / HTTP/1.1") + head(first=b"GET / HTTP/1.1"))
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        assert idle.recv(9) == b""
        with pytest.raises(OSError):
            socket.create_connection(address)
        (tmp_path / "go").touch()

        ((status, headers, body),) = parse(received(busy))

    assert (status, headers["connection"], body) == (200, "close", b"whole")
    with server.process:
        errors = server.process.stderr.read()
        server.process.stdout.read()
    assert (server.process.returncode, "Traceback" in errors) == (0, False)


def test_second_signal_ends_at_once(start, tmp_path):
    (tmp_path / "mine.py").write_text("""
import pathlib, time
def app(environ, start_response):
    pathlib.Path("begun").touch()
    time.sleep(60)
""")
    server = start("--app", "mine:app", "--protect", "/x")
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head(first=b"GET / HTTP/1.1"))
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(OSError):
            while True:  # until the first one has come
                socket.create_connection(("127.0.0.1", server.port)).close()
                time.sleep(0.01)
        time.sleep(0.05)
        server.process.send_signal(signal.SIGTERM)
        assert connection.recv(9) == b""
    with server.process:
        server.process.stdout.read()
        server.process.stderr.read()
    assert server.process.returncode == 1


def test_socket_that_systemd_hands_over_is_used(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        code = ("import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = "
                "str(os.getpid()); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])")
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(listener.fileno()), str(ROOT / "jwtserver.py")],
            cwd=tmp_path, env={**ENVIRONMENT, "LISTEN_FDS": "1"}, pass_fds=[listener.fileno()],
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with process:
            assert f"http://127.0.0.1:{port} " in process.stdout.readline()
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(head(b"Connection: close", first=b"GET /health HTTP/1.1"))
                assert statuses(received(connection)) == [200]
            process.terminate()
            process.stdout.read()
            process.stderr.read()


def test_serve_on_ipv6(start):
    server = start("--host", "::")

    assert server.url == f"http://[::1]:{server.port}"
    for host in ("::1", "127.0.0.1"):
        with socket.create_connection((host, server.port)) as connection:
            connection.sendall(head(b"Connection: close", first=b"GET /health HTTP/1.1"))
            assert statuses(received(connection)) == [200]


def test_unix_socket_is_served(tmp_path):
    seen = {}

    def app(environ, start_response):
        seen.update(environ)
        return echo(environ, start_response)

    path = str(tmp_path / "socket")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    with serving(app, listener=listener), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(head(b"Connection: close"))
        assert statuses(received(connection)) == [200]
    assert (seen["REMOTE_ADDR"], seen["SERVER_NAME"], seen["SERVER_PORT"]) == ("", path, "0")


def test_access_log_has_a_line_for_each_request_and_nothing_else():
    log = io.StringIO()

    def app(environ, start_response):
        environ["REMOTE_USER"] = "a b\n"
        return echo(environ, start_response)

    with serving(app, access_log=log) as server:
        agent = b'User-Agent: x" \\ \xff\x80'
        exchange(server, head(agent, b"Referer: http://r", first=b'GET /x?"y HTTP/1.1'))
        exchange(server, b"GARBAGE\r\n\r\n")

    first, second = log.getvalue().splitlines()
    date = r"\[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]"
    assert re.fullmatch(
        r'127\.0\.0\.1 - a\\x20b\\x0a ' + date + r' "GET /x\?\\x22y HTTP/1\.1" 200 \d+ "http://r"'
        r' "x\\x22 \\x5c \\xff\\x80"', first)
    assert re.fullmatch(r'127\.0\.0\.1 - - ' + date + r' "-" 400 \d+ "-" "-"', second)


def test_access_log_that_nobody_takes_costs_no_answer(caplog):
    reader, writer = os.pipe()
    os.close(reader)

    with open(writer, "w", closefd=False) as log, serving(echo, access_log=log) as server:
        assert statuses(exchange(server, head() + head())) == [200, 200]
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)

    assert [record.getMessage() for record in caplog.records] == [
        "There is no access log from now on: [Errno 32] Broken pipe"]
    os.close(writer)


def test_access_log_goes_to_the_output(start):
    server = start("--access-log")
    server.request("/health")

    _, output, _ = server.stop()

    assert '"GET /health HTTP/1.1" 200 16 "-" "Python-urllib/' in output
