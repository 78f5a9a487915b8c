"""HTTP requests: which bytes are parsed, which are rejected, and where each request ends."""

import contextlib
import json
import os
import random
import re
import socket
import threading
from wsgiref.validate import validator

import pytest

import jwtserver
from http_support import (
    HOST, connect, echo, exchange, head, parse, received, serving, statuses)
from support import Clock, for_each


@pytest.fixture(scope="module")
def echoing():
    with serving(echo) as server:
        yield server


# --- Valid and malformed requests

CONTROLS = [bytes([code]) for code in (*range(9), *range(11, 13), *range(14, 32), 127)]


VALID = [
    head(), head(b"X: y"), head(b"X:y"), head(b"X:"), head(b"X: \t y \t "), head(b"X: \xff\x80"),
    head(b"!#$%&'*+-.^_`|~09azAZ: y"), head(b"X_Y: z"), head(b"Cookie: a", b"Cookie: b"),
    head(b"X: " + b"y" * 16_000), head(b"X: " + b"y" * 16_000, b"Y: " + b"y" * 16_000),
    head(*[b"X%d: y" % number for number in range(99)]),
    head(first=b"GET /" + b"a" * 16_000 + b" HTTP/1.1"),
    head(first=b"GET /x?y=[1]&z={2}|\\^` HTTP/1.1"),  # Chromium sends all of these in queries
    head(first=b"GET /x!$&'()*+,-.:;=@_~?/? HTTP/1.1"), head(first=b"GET /%zz HTTP/1.1"),
    head(first=b"GET //x HTTP/1.1"), head(first=b"GET /? HTTP/1.1"),
    head(first=b"GET http://a/x HTTP/1.1"), head(first=b"GET HTTP://a:1?x HTTP/1.1"),
    head(first=b"GET https://[::1]:8/x HTTP/1.1"), head(first=b"GET http://a HTTP/1.1"),
    head(first=b"get /x HTTP/1.1"), head(first=b"M-SEARCH /x HTTP/1.1"),
    head(first=b"GET /x HTTP/1.2"), head(first=b"GET /x HTTP/1.9"),
    head(first=b"GET /x HTTP/1.0"), head(first=b"GET /x HTTP/1.0", host=b""),
    head(host=b"Host:\r\n"), head(host=b"Host: [::1]:80\r\n"), head(host=b"hOST: a.b-c_d:\r\n"),
    head(b"Content-Length: 0"), head(b"Content-Length: 000"), b"\r\n" + head(),
    b"\r\n\r\n\r\n" + head(), head(b"Expect: 100-continue"), head(b"Expect:"),
    head(b"Transfer_Encoding: chunked"), head(b"Content_Length: 7"), head(b"Upgrade: h2c"),
    head(b"Connection: keep-alive"), head(b"Connection: close"), head(b"Connection: x, Close"),
    head(first=b"GET /x HTTP/1.0", host=b"") + b"", head(b"Expect: x", first=b"GET /x HTTP/1.0"),
]
VALID_CHUNKS = [  # and what they decode to
    (b"0\r\n\r\n", b""), (b"000\r\n\r\n", b""), (b"3\r\nabc\r\n0\r\n\r\n", b"abc"),
    (b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", b"abc"), (b"a\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
    (b"0000000000000aA\r\n" + b"x" * 170 + b"\r\n0\r\n\r\n", b"x" * 170),
    (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n"), (b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n"),
    (b"3;a\r\nabc\r\n0;b=c\r\n\r\n", b"abc"), (b"3 ; a = b\t;c\r\nabc\r\n0\r\n\r\n", b"abc"),
    (b'3;a="b;\\"\xff\t"\r\nabc\r\n0\r\n\r\n', b"abc"),
    (b"3;a=" + b"b" * 4000 + b"\r\nabc\r\n0\r\n\r\n", b"abc"),
    (b"3\r\nabc\r\n0\r\nX: y\r\nContent-Length: 9\r\nHost: b\r\nX-Y:\r\n\r\n", b"abc"),
    (b"0\r\n" + (b"X: " + b"y" * 900 + b"\r\n") * 17 + b"\r\n", b""),
]
MALFORMED_CHUNKS = [
    # sizes
    *(size + b"\r\nabc\r\n0\r\n\r\n" for size in [
        b"", b"x", b"0x3", b"0X3", b"+3", b"-3", b" 3", b"3 ", b"3\t", b"\t3", b"3 3", b"3_0",
        b"3.0", b"3e0", b"3h", b"\xb2", b"\xd9\xa3", b"\x003", b"3\x00", b"3\x0b", b"\x0c3",
        b"3,3", b"00000000000000003", b"fffffffffffffffff", b"3" * 5000, b'"3"']),
    # extensions
    *(b"3" + extension + b"\r\nabc\r\n0\r\n\r\n" for extension in [
        b";", b"; ", b";=b", b";a=", b";a b", b";a=b c", b";;a", b";a;", b";\xff", b":a", b",a",
        b';a="b', b';a="b\\"', b';a=b"', b';a="\n"', b';a="\r"', b';a="\r\n"', b";a\r=b",
        b";a\n=b", b";a=\x00", b";a=\x7f", b";a=b\x01", b";a=" + b"b" * 5000, b";a" * 2500,
        b" " * 5000]),
    # line ends
    b"3\nabc\r\n0\r\n\r\n", b"3\rabc\r\n0\r\n\r\n", b"3\r\nabc\n0\r\n\r\n",
    b"3\r\nabc\r0\r\n\r\n", b"3\r\nabc0\r\n\r\n", b"3\r\nabcd\r\n0\r\n\r\n",
    b"3\r\nab\r\n0\r\n\r\n", b"3\r\nabc\r\n0\n\n", b"3\r\nabc\r\n0\r\n\n",
    b"\r\n3\r\nabc\r\n0\r\n\r\n", b"3\r\r\nabc\r\n0\r\n\r\n", b"3\r\nabcXX0\r\n\r\n",
    b"3\r\nabc\r\n\r\n0\r\n\r\n", b"0\r\n\r", b"0\r\n", b"3\r\nab", b"3\r\nabc\r\n", b"3",
    b"",
    # trailers
    *(b"0\r\n" + trailer + b"\r\n\r\n" for trailer in [
        b"X : y", b" X: y", b"X", b": y", b"X: y\r\n z", b"X: \x00", b"X: y\nZ: 1", b"X: y\rZ: 1",
        b"X: " + b"y" * 5000, b"X: y\r\n" * 3000 + b"X: y"]),
    b"0\r\nGET /smuggled HTTP/1.1\r\n" + HOST + b"\r\n",
]
MALFORMED = [
    # request lines
    *((head(first=line), [400]) for line in [
        b"GET /x", b"GET", b"GET  /x HTTP/1.1", b"GET /x  HTTP/1.1", b" GET /x HTTP/1.1",
        b"GET /x HTTP/1.1 ", b"GET\t/x\tHTTP/1.1", b"GET /x y HTTP/1.1", b"GET x HTTP/1.1",
        b"GET ?x HTTP/1.1", b"GET * HTTP/1.1", b"GET /x#y HTTP/1.1", b"GET /x?y#z HTTP/1.1",
        b"GET ftp://a/x HTTP/1.1", b"GET http:///x HTTP/1.1",
        b"GET http://a b/x HTTP/1.1", b"GET http://u@a/x HTTP/1.1", b"GET http://a/x#y HTTP/1.1",
        b"GET /x\x00 HTTP/1.1", b"GET /\xff HTTP/1.1", b"GET /x http/1.1", b"GET /x HTTP/1",
        b"GET /x HTTP/11", b"GET /x HTTP/1.1.1", b"GET /x HTTP/a.b", b"GET /x HTTP/ 1.1",
        b"GET /x HTTPS/1.1", b"G\x01T /x HTTP/1.1", b"G(T /x HTTP/1.1", b"\xffGET /x HTTP/1.1",
        b"GET: /x HTTP/1.1", b"GET /\x7f HTTP/1.1", b"GET \\x HTTP/1.1",
        *(b"GET /x%cy HTTP/1.1" % code for code in b'"<>[\\]^`{|}'),
        *(b"GET http://a/%c HTTP/1.1" % code for code in b'"<>[\\]^`{|}'),
        *(b"GET /x?y%c HTTP/1.1" % code for code in b'"<>'),
        b"GET http://a:b:c/ HTTP/1.1", b"GET http://[::1/ HTTP/1.1", b"OPTIONS ** HTTP/1.1",
    ]),
    *((head(first=b"GET /x HTTP/" + version), [505]) for version in [
        b"0.9", b"2.0", b"3.0", b"9.9"]),
    *((head(first=b"CONNECT " + target + b" HTTP/1.1"), [405]) for target in [b"a:80", b"/x"]),
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
        b"a b", b"a/b", b"a@b", b"a:b", b"[::1", b"a:80:80", b"a,b/", b"\xff", b"a?b", b"a#b",
        b"a%zz", b"a%2"]),
    (head(host=b"Host_: a\r\n"), [400]), (head(HOST[:-2], first=b"GET /x HTTP/1.0"), [400]),
    # lengths
    *((head(b"Content-Length: " + length) + b"abc", [400]) for length in [
        b"", b"-3", b"+3", b"3 ,3", b"3,3", b"3, 3", b"0x3", b"3.0", b"3e0", b"\xb2", b"3 3",
        b"three", b"3;", b'"3"', b"3_0", b"\xd9\xa3"]),
    (head(b"Content-Length: 3", b"Content-Length: 3") + b"abc", [400]),
    (head(b"Content-Type: text/plain", b"Content-Type: text/plain"), [400]),
    (head(b"Content-Length: 3", b"Content-Length: 4") + b"abc", [400]),
    (head(b"Content-Length: 0", b"content-length: 3") + b"abc", [400]),
    (head(b"Content-Length: 3", b"Transfer-Encoding: chunked") + b"0\r\n\r\n", [400]),
    (head(b"Transfer-Encoding: chunked", b"Content-Length: 3") + b"0\r\n\r\n", [400]),
    (head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), [400]),
    (head(b"Content-Length: " + b"9" * 16), [413]),
    (head(b"Content-Length: " + b"9" * 9000), [413]),
    *((head(b"Transfer-Encoding: chunked", first=b"GET /x HTTP/1.0", host=host)
       + b"0\r\n\r\n", [400]) for host in [b"", HOST]),
    *((head(b"Transfer-Encoding: " + coding) + b"0\r\n\r\n", [400]) for coding in [
        b"gzip", b"identity", b"chunked, chunked", b"gzip, chunked", b"chunked;x", b"xchunked",
        b"", b"chunked,", b"\x80chunked", b",chunked", b"chunked, gzip", b'"chunked"',
        b"chunked\t;x"]),
    (head(b"Transfer-Encoding:\x0bchunked"), [400]),
    *((head(b"Transfer-Encoding: chunked", first=b"POST /x HTTP/1.1") + body, [400])
      for body in MALFORMED_CHUNKS),
    *((head(b"Expect: " + what), [417]) for what in [b"x", b"100-continue, x", b"200-ok"]),
    # sizes
    (head(first=b"GET /" + b"a" * 16_400 + b" HTTP/1.1"), [414]), (b"GET /" + b"a" * 70_000, [414]),
    (head(b"X: " + b"y" * 16_400), [431]), (head(*[b"X: " + b"y" * 16_000] * 5), [431]),
    (head(*[b"X%d: y" % number for number in range(101)]), [431]),
    (head(b"X" * 16_400 + b": y"), [431]), (head(b"X: " + b"y" * 70_000)[:-4], [431]),
    (head(*[b"X: " + b"y" * 1000] * 99)[:-4], [431]),
]
INCOMPLETE = [
    (b"G", [400]), (b"GET /x HTTP/1.1\r\n", [400]), (head()[:-2], [400]), (head()[:-1], [400]),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", [400]), (b"\x00" * 10, [400]),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400, 505]), (b"", []), (b"\r\n", []), (b"\r\n\r\n", []),
]


@for_each("data", VALID)
def test_request_valid_is_answered(echoing, data):
    assert statuses(exchange(echoing, data)) == [200]


@for_each("data, allowed", MALFORMED)
def test_request_malformed_gets_one_error_and_closes_the_connection(echoing, data, allowed):
    ((status, headers, body),) = parse(exchange(echoing, data + head()))

    assert status in allowed
    assert headers["connection"] == "close"
    assert headers["content-type"] == "application/json"
    assert headers["x-content-type-options"] == "nosniff"
    assert json.loads(body)["success"] is False


@for_each("data, allowed", INCOMPLETE)
def test_request_incomplete_is_rejected_or_ignored(echoing, data, allowed):
    codes = statuses(exchange(echoing, data))

    assert len(codes) == bool(allowed)
    assert set(codes) <= set(allowed)


@for_each("line, path, query", [
    (b"GET /a%20b?c=%20d HTTP/1.1", "/a b", "c=%20d"), (b"GET http://h HTTP/1.1", "/", ""),
    (b"GET http://h?x HTTP/1.1", "/", "x"), (b"GET http://h/p?x?y HTTP/1.1", "/p", "x?y"),
    (b"GET //h/p HTTP/1.1", "//h/p", ""), (b"GET /%ff HTTP/1.1", "/\xff", ""),
])
def test_target_is_split_into_path_and_query(echoing, line, path, query):
    ((_, _, body),) = parse(exchange(echoing, head(first=line)))

    assert json.loads(body)[1:3] == [path, query]


def test_environ_passes_the_validator_and_has_nothing_of_the_process():
    seen = {}

    def app(environ, start_response):
        seen.update(environ)
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
        return [b"hello"]

    with serving(validator(app)) as server:
        response = exchange(server, head(
            b"A: b", b"A: c", b"A_B: d", b"Cookie: e", b"Cookie: f", b"Content-Type: text/x",
            b"Content-Length: 2", first=b"PUT http://h:1/x?y HTTP/1.1") + b"zz")

    assert response.endswith(b"\r\n\r\nhello")
    assert (seen["wsgi.multithread"], seen["wsgi.multiprocess"]) == (True, False)
    assert not set(os.environ) & set(seen)
    assert {key: seen[key] for key in seen if key.isupper()} == {
        "GATEWAY_INTERFACE": "CGI/1.1", "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": str(server.address[1]), "REMOTE_ADDR": "127.0.0.1",
        "REQUEST_METHOD": "PUT", "SCRIPT_NAME": "", "PATH_INFO": "/x", "QUERY_STRING": "y",
        "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "h:1", "HTTP_A": "b,c", "HTTP_COOKIE": "e; f",
        "CONTENT_TYPE": "text/x", "CONTENT_LENGTH": "2", "REQUEST_URI": "http://h:1/x?y",
        "RAW_URI": "http://h:1/x?y"}


def test_content_length_with_leading_zeros_is_a_number(echoing):
    data = head(b"Content-Length: 0000000000000000005", first=b"PUT /x HTTP/1.1") + b"hello"

    responses = parse(exchange(echoing, data + head()))

    assert [json.loads(body)[3] for _, _, body in responses] == ["hello", ""]


def test_target_is_in_the_environ_as_sent():
    def app(environ, start_response):
        start_response("200 OK", [])
        return [f"{environ['REQUEST_URI']} {environ['RAW_URI']}".encode()]

    with serving(app) as server:
        ((_, _, body),) = parse(exchange(server, head(first=b"GET //a%2fb/%C3?c=%20 HTTP/1.1")))

    assert body.split() == [b"//a%2fb/%C3?c=%20"] * 2


def test_options_asterisk_is_answered_without_the_application(echoing):
    assert statuses(exchange(echoing, head(first=b"OPTIONS * HTTP/1.1"))) == [204]


# --- Framing


def test_requests_in_a_pipeline_are_answered_in_order(echoing):
    data = b"".join(
        head(b"Content-Length: %d" % size, first=b"PUT /%d HTTP/1.1" % size) + b"x" * size
        for size in (0, 5, 60_000, 1, 0))

    responses = parse(exchange(echoing, data))

    assert [json.loads(body)[1] for _, _, body in responses] == ["/0", "/5", "/60000", "/1", "/0"]
    assert [len(json.loads(body)[3]) for _, _, body in responses] == [0, 5, 60_000, 1, 0]
    assert all("connection" not in headers for _, headers, _ in responses)


@for_each("first, line", [
    (b"GET /x HTTP/1.0", b"X: y"), (b"GET /x HTTP/1.0", b"Connection: keep-alive"),
    (b"GET /x HTTP/1.1", b"Connection: close"), (b"GET /x HTTP/1.1", b"Connection: x , CLOSE"),
    (b"GET /x HTTP/1.1", b"Connection: x,\tclose\t,y"),
    (b"GET /x HTTP/1.1", b"Connection: a" + b" " * 16_000 + b"b, close"),  # once quadratic
])
def test_connection_close_requested_closes(echoing, first, line):
    ((_, headers, _),) = parse(exchange(echoing, head(line, first=first) + head(), end=False))

    assert headers["connection"] == "close"


def test_body_unread_is_not_parsed_as_a_request(echoing):
    smuggled = head(first=b"GET /smuggled HTTP/1.1")
    data = head(b"Content-Length: %d" % len(smuggled), first=b"POST /unread HTTP/1.1") + smuggled

    responses = parse(exchange(echoing, data + head()))

    assert [json.loads(body)[1] for _, _, body in responses] == ["/unread", "/x"]


def test_body_long_and_unread_closes_the_connection(echoing):
    size = jwtserver.MAX_BODY_BYTES + 1
    data = head(b"Content-Length: %d" % size, first=b"POST /unread HTTP/1.1") + b"x" * size

    ((status, headers, _),) = parse(exchange(echoing, data + head(), end=False))

    assert (status, headers["connection"]) == (200, "close")


@for_each("path", [b"/unread", b"/x"])
def test_body_short_that_ends_early_never_reaches_the_application(echoing, path):
    data = head(b"Content-Length: 9", first=b"POST " + path + b" HTTP/1.1") + b"x"

    assert statuses(exchange(echoing, data)) == [400]


def test_body_of_huge_length_takes_no_memory_in_advance(echoing):
    data = head(b"Content-Length: 999999999999999", first=b"PUT /x HTTP/1.1") + b"abc"

    assert statuses(exchange(echoing, data)) == [408]


def test_body_is_read_by_all_methods_of_pep_3333():
    read = []

    def app(environ, start_response):
        body = environ["wsgi.input"]
        read.append([body.read(3), body.readline(), body.read(100_000), next(body),
                     body.readlines(), body.read(5), body.read(100_000), body.read()])
        start_response("200 OK", [])
        return []

    data = b"x" * 3 + b"a\n" + b"y" * 100_000 + b"\n" + b"b\n" + b"c"
    with serving(app) as server:
        exchange(server, head(b"Content-Length: %d" % len(data), first=b"PUT /x HTTP/1.1") + data)

    assert read == [[b"xxx", b"a\n", b"y" * 100_000, b"\n", [b"b\n", b"c"], b"", b"", b""]]


def chunked(data, *lines, path=b"/x", last=b"0\r\n\r\n", size=10**6):
    """A request with a body in chunks of this size."""
    pieces = [data[start:start + size] for start in range(0, len(data), size)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    coding = b"Transfer-Encoding: chunked"
    return head(coding, *lines, first=b"POST " + path + b" HTTP/1.1") + chunks + last


@for_each("body, content", VALID_CHUNKS)
def test_chunked_body_is_decoded_and_the_next_request_follows(echoing, body, content):
    data = head(b"Transfer-Encoding: cHunked", first=b"POST /x HTTP/1.1") + body

    responses = parse(exchange(echoing, data + head(first=b"GET /next HTTP/1.1")))

    assert [json.loads(body)[1] for _, _, body in responses] == ["/x", "/next"]
    assert json.loads(responses[0][2])[3] == content.decode("latin-1")


@for_each("cut", [1, 2, 3, 7])
def test_chunked_body_in_pieces_is_decoded(echoing, cut):
    data = chunked(b"hello world", size=4, last=b"0;a=b\r\nX: y\r\n\r\n") + head()
    with connect(echoing) as connection:
        for start in range(0, len(data), cut):
            connection.sendall(data[start:start + cut])
        connection.shutdown(socket.SHUT_WR)

        assert [json.loads(body)[3] for _, _, body in parse(received(connection))] == [
            "hello world", ""]


@for_each("size, length", [
    (1, 1), (1, 5000), (7, 65_537), (1000, 65_536), (1000, 65_537), (70_000, 1), (70_000, 300_000)])
def test_chunked_decoder_gives_the_content_and_the_rest(size, length):
    dice, decoder, content = random.Random(length), jwtserver._ChunkedDecoder(), b""
    original = dice.randbytes(length)
    data = chunked(original, size=size).partition(b"\r\n\r\n")[2] + b"rest"

    rest = b""
    while not decoder.is_complete:
        piece, data = data[:9_999], data[9_999:]
        rest = decoder.decode(rest + piece)
        content += decoder.content
        decoder.content.clear()

    assert (content, rest + data) == (original, b"rest")


def test_chunked_environ_has_no_length_and_no_coding():
    seen = []

    def app(environ, start_response):
        seen.append({key: environ.get(key) for key in (
            "CONTENT_LENGTH", "HTTP_CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING",
            "wsgi.input_terminated")})
        start_response("200 OK", [])
        return [environ["wsgi.input"].read()]

    with serving(app) as server:
        responses = parse(exchange(server, chunked(b"abc") + head()))

    assert [body for _, _, body in responses] == [b"abc", b""]
    assert seen == [
        {"CONTENT_LENGTH": None, "HTTP_CONTENT_LENGTH": None, "HTTP_TRANSFER_ENCODING": None,
         "wsgi.input_terminated": True},
        {"CONTENT_LENGTH": "", "HTTP_CONTENT_LENGTH": None, "HTTP_TRANSFER_ENCODING": None,
         "wsgi.input_terminated": None}]


def test_chunked_body_short_is_received_before_the_application_runs():
    called = threading.Event()

    def app(environ, start_response):
        called.set()
        return echo(environ, start_response)

    with serving(app) as server, connect(server) as connection:
        connection.sendall(chunked(b"x" * 60_000, last=b""))
        server.await_state("reading body")
        server.progressed.acquire(timeout=10)
        assert not called.is_set()
        connection.sendall(b"0\r\n\r\n" + head(b"Connection: close"))
        responses = parse(received(connection))

    assert [len(json.loads(body)[3]) for _, _, body in responses] == [60_000, 0]


def test_chunked_body_long_is_streamed_and_the_connection_is_kept():
    def app(environ, start_response):
        lengths = [len(piece) for piece in iter(lambda: environ["wsgi.input"].read(50_000), b"")]
        start_response("200 OK", [])
        return [json.dumps(lengths).encode()]

    with serving(app) as server:
        responses = parse(exchange(server, chunked(b"x" * 210_000, size=5_000) + head()))

    assert [json.loads(body) for _, _, body in responses] == [[50_000] * 4 + [10_000], []]


def test_chunked_body_long_and_unread_closes_the_connection(echoing):
    data = chunked(b"x" * 200_000, path=b"/unread", size=999)

    ((status, headers, _),) = parse(exchange(echoing, data + head(), end=False))

    assert (status, headers["connection"]) == (200, "close")


def test_chunked_body_short_and_unread_is_not_parsed_as_a_request(echoing):
    data = chunked(head(first=b"GET /smuggled HTTP/1.1"), path=b"/unread")

    responses = parse(exchange(echoing, data + head()))

    assert [json.loads(body)[1] for _, _, body in responses] == ["/unread", "/x"]


@for_each("end, status", [
    (b"x\r\n" + b"0\r\n\r\n", 400), (b"3\r\nabcd\r\n", 400), (b"", 408), (b"9\r\nabc", 408),
    (b"0\r\n", 408)])
def test_chunked_body_long_and_broken_raises_and_closes(end, status):
    """Each read() raises, so that an application cannot take half an upload for a whole one."""
    errors = []

    def app(environ, start_response):
        with pytest.raises(OSError):
            environ["wsgi.input"].read()
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            errors.append(type(error))
            raise

    with serving(app) as server:
        data = chunked(b"x" * 100_000, size=30_000, last=end)
        ((code, headers, _),) = parse(exchange(server, data))

    assert (code, headers["connection"]) == (status, "close")
    assert errors == [jwtserver._BodyError]


def test_chunked_body_is_asked_for_with_100_continue(echoing):
    with connect(echoing) as connection:
        data = chunked(b"hi", b"Expect: 100-continue", b"Connection: close")
        header, _, body = data.partition(b"\r\n\r\n")
        connection.sendall(header + b"\r\n\r\n")
        assert connection.recv(99) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)

        assert json.loads(parse(received(connection))[0][2])[3] == "hi"


def test_chunked_body_that_sends_only_framing_gets_408():
    """An extension of a chunk is no progress. It would hold a connection for hours."""
    clock = Clock()
    with serving(clock=clock) as server, connect(server) as connection:
        connection.sendall(chunked(b"x", last=b"1;a"))
        server.await_state("reading body")
        for _ in range(2):
            clock.now += 6  # of 10 seconds without progress
            connection.sendall(b"a" * 100)
            assert server.progressed.acquire(timeout=10)

        assert statuses(received(connection)) == [408]


def test_expect_continue_is_answered_when_the_body_is_read(echoing):
    with connect(echoing) as connection:
        lines = b"Expect: 100-Continue", b"Content-Length: 2", b"Connection: close"
        connection.sendall(head(*lines))
        assert connection.recv(99) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"hi")
        assert json.loads(parse(received(connection))[0][2])[3] == "hi"


def test_expect_continue_with_unread_body_closes_the_connection(echoing):
    data = head(b"Expect: 100-continue", b"Content-Length: 2", first=b"PUT /unread HTTP/1.1")

    ((status, headers, _),) = parse(exchange(echoing, data, end=False))

    assert (status, headers["connection"]) == (200, "close")


def test_expect_continue_is_not_answered_inside_a_response():
    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", "3")])
        yield b"a"
        yield environ["wsgi.input"].read(2)

    with serving(app) as server, connect(server) as connection:
        connection.sendall(head(b"Expect: 100-continue", b"Content-Length: 2") + b"bc")

        ((status, headers, body),) = parse(received(connection))

    assert (status, headers["connection"], body) == (200, "close", b"abc")


def test_expect_continue_without_a_body_is_ignored(echoing):
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
    """Random requests, and the number of responses that they must get by independent rules."""
    data, responses, open_ = b"", 0, True
    for _ in range(dice.randint(1, 5)):
        lines = dice.sample(FRAGMENTS, dice.choice([0, 0, 1, 1, 2, 3]))
        lengths = [int(line[16:]) for line in lines
                   if line.startswith(b"Content-Length: ") and line not in FATAL]
        path = dice.choice([b"/unread", b"/read"])
        data += head(*lines, first=b"POST " + path + b" HTTP/1.1") + b"G" * sum(lengths[:1])
        responses += open_
        if set(lines) & FATAL or len(lengths) > 1 or b"Connection: close" in lines \
                or (b"Expect: 100-continue" in lines and sum(lengths) and path == b"/unread"):
            open_ = False
    return data, responses


@for_each("seed", range(8))
def test_framing_fuzzed_gives_one_response_for_each_request(echoing, seed):
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


@for_each("cut", range(1, 60, 7))
def test_header_in_pieces_is_one_request(echoing, cut):
    data = head(b"X: y", first=b"GET /pieces HTTP/1.1", host=b"Host: a.example\r\n")
    with connect(echoing) as connection:
        for start in range(0, len(data), cut):
            connection.sendall(data[start:start + cut])
        connection.shutdown(socket.SHUT_WR)

        assert statuses(received(connection)) == [200]
