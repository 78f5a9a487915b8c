"""HTTP responses: how they are framed, what an application may send, and what its faults cause."""

import io
import json
import re
import subprocess
import sys
import threading

import pytest

import jwtserver
from http_support import connect, exchange, head, parse, received, serving, statuses
from jwtserver import Settings
from support import ROOT, Clock, call, for_each


def answering(*pieces, headers=(("Content-Type", "text/plain"),), status="200 OK", make=iter):
    def app(environ, start_response):
        start_response(status, list(headers))
        return make(pieces)

    return app


def as_if(method):
    """An application that changes REQUEST_METHOD, as method-override middleware does."""
    def app(environ, start_response):
        environ["REQUEST_METHOD"] = method
        start_response("200 OK", [])
        return [b"abc"]

    return app


def response_to(app, method=b"GET", version=b"1.1", **options):
    with serving(app, **options) as server:
        return exchange(server, head(first=method + b" / HTTP/" + version))


LENGTH = ("Content-Length", "3")


@for_each("app, framing, body", [
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
def test_response_framing_uses_the_length_if_it_is_known(app, framing, body):
    ((status, headers, content),) = parse(response_to(app))

    assert (status, headers[framing[0]], content) == (200, framing[1], body)
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", headers["date"])
    assert headers["server"] == "jwtserver"
    assert "connection" not in headers


def test_response_of_unknown_length_over_http_1_0_ends_with_the_connection():
    ((_, headers, body),) = parse(response_to(answering(b"a", b"b"), version=b"1.0"))

    assert "transfer-encoding" not in headers and headers["connection"] == "close"
    assert body == b"ab"


@for_each("app, method", [
    (answering(b"a", b"bc"), b"HEAD"), (answering(b"abc", headers=[LENGTH]), b"HEAD"),
    (answering(b"abc", status="304 Not Modified"), b"GET"),
    (answering(b"abc", status="204 No Content", headers=[]), b"GET"),
    (answering(status="204 No Content", headers=[("Content-Length", "0")]), b"GET"),
    (as_if("GET"), b"HEAD"),
])
def test_response_that_must_have_no_body_has_none(app, method):
    with serving(app) as server:
        data = exchange(server, head(first=method + b" / HTTP/1.1") * 2)

    assert data.count(b"HTTP/1.1 ") == 2 and data.endswith(b"\r\n\r\n")
    assert b"abc" not in data and b"chunked" not in data
    assert not (b" 204 " in data and b"Content-Length" in data)  # RFC 9110 §8.6


def test_response_framing_ignores_changes_of_the_environ():
    def clearing(environ, start_response):
        environ.clear()
        start_response("200 OK", [])
        return [b"abc"]

    log = io.StringIO()
    assert parse(response_to(as_if("HEAD")))[0][2] == b"abc"
    assert parse(response_to(clearing, access_log=log))[0][2] == b"abc"
    assert log.getvalue().startswith("- - - [")


def test_response_by_write_and_then_a_list_is_in_order():
    def app(environ, start_response):
        write = start_response("200 OK", [])
        write(b"first ")
        return [b"second"]

    with serving(app) as server:
        responses = parse(exchange(server, head() * 2))

    assert [body for _, _, body in responses] == [b"first second"] * 2


def test_fault_before_the_first_byte_is_500():
    def app(environ, start_response):
        start_response("200 OK", [])
        yield b""
        raise LookupError

    assert statuses(response_to(app)) == [500]


def test_fault_in_a_response_without_length_resets_the_connection():
    def app(environ, start_response):
        start_response("200 OK", [])
        yield b"begun"
        raise LookupError

    with serving(app) as server, connect(server) as connection:
        connection.sendall(head(first=b"GET /x HTTP/1.0"))
        with pytest.raises(ConnectionResetError):
            while connection.recv(999):
                pass


def test_response_shorter_than_its_content_length_closes_the_connection(caplog):
    data = response_to(answering(b"ab", headers=[LENGTH]))

    assert data.endswith(b"\r\n\r\nab")
    assert "shorter than its Content-Length" in caplog.text


def test_response_keeps_date_and_server_of_the_application():
    headers = [("Date", "then"), ("Server", "mine")]
    ((_, found, _),) = parse(response_to(answering(b"", headers=headers)))

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
    [("X: a\r\nY", "b")], [("X:y", "z")], [("Content-Length:0", "")],
    [("", "a")], [("X Y", "a")], [("X", "a\0")], [("X", "\u20ac")], [("X", 1)], [("X", b"a")],
    [(b"X", "a")], [("Transfer-Encoding", "chunked")],
    [("Upgrade", "x")], [LENGTH, LENGTH],
    [("Content-Length", "-1")], [("Content-Length", "x")], [("Content-Length", "")],
]


@pytest.mark.parametrize("app", [
    raising, raising_late, silent, twice, text, lambda environ, start_response: None,
    *(answering(b"x", headers=headers) for headers in BAD_HEADERS),
    *(answering(b"x", status=status) for status in [
        "200 OK\r\nX: y", "200", "99 x", "100 Continue", "abc", "", "200 \u20ac", b"200 OK"]),
])
def test_fault_of_the_application_is_500_with_logged_traceback(app, caplog):
    ((status, headers, body),) = parse(response_to(app))

    assert (status, headers["content-type"]) == (500, "application/json")
    assert json.loads(body) == {"success": False, "error": "Internal server error"}
    assert not {"x", "y", "set-cookie"} & set(headers)
    assert "Traceback" in caplog.text


SERVER_ERRORS = {  # the status, and what causes it
    400: [b"Content-Length: x"], 408: [b"Content-Length: 9"],
    413: [b"Content-Length: " + b"9" * 16], 417: [b"Expect: x"], 431: [b"X: " + b"y" * 17_000],
}
ORIGIN = "https://app.example"


@for_each("status", [*SERVER_ERRORS])
@for_each("path, member", [
    (b"/auth/authenticate?x", "message"), (b"http://h/auth/refresh", "message"),
    (b"/authenticate", "error"), (b"/auth/logout", "error"), (b"/", "error"),
])
def test_error_of_the_server_has_the_form_of_the_endpoint(status, path, member):
    clock = Clock()
    with serving(cors_origins=(ORIGIN,), prefix="/auth", clock=clock) as server, \
            connect(server) as connection:
        lines = [b"X: y", b"Origin: " + ORIGIN.encode(), *SERVER_ERRORS[status]]
        connection.sendall(head(*lines, first=b"POST " + path + b" HTTP/1.1"))
        if status == 408:
            server.await_state("reading body")
            clock.now += 11
            server._wake()
        ((code, headers, body),) = parse(received(connection))

    assert (code, headers["access-control-allow-origin"]) == (status, ORIGIN)
    assert headers["vary"] == "Origin"
    assert json.loads(body)["success"] is False and json.loads(body)[member]
    assert body.endswith(b"\n")


def test_error_of_the_server_before_the_end_of_the_headers_has_the_form_of_the_endpoint():
    clock = Clock()
    with serving(cors_origins=("*",), clock=clock) as server, connect(server) as connection:
        connection.sendall(b"POST /authenticate HTTP/1.1\r\norigin:https://a\r\nX: y\r\n")
        server.await_state("reading header")
        clock.now += 11
        server._wake()
        ((status, headers, body),) = parse(received(connection))

    assert (status, headers["access-control-allow-origin"]) == (408, "*")
    assert "message" in json.loads(body)


@for_each("first, status, member", [
    (b"POST /authenticate?" + b"x" * 17_000 + b" HTTP/1.1", 414, "message"),
    (b"POST /authenticate HTTP/2.0", 505, "message"),
    (b"CONNECT /authenticate HTTP/1.1", 405, "error"), (b"POST /refresh", 400, "error"),
])
def test_error_about_a_request_line_has_the_member_of_its_path(first, status, member):
    with serving() as server:
        ((code, _, body),) = parse(exchange(server, head(first=first)))

    assert (code, list(json.loads(body))) == (status, ["success", member])


def test_error_of_the_server_to_a_preflight_is_no_answer_to_it():
    lines = [b"Origin: https://a", b"Access-Control-Request-Method: PUT", b"Content-Length: 9"]
    with serving(cors_origins=("*",)) as server:
        data = exchange(server, head(*lines, first=b"OPTIONS /x HTTP/1.1"))

    assert statuses(data) == [400]


@for_each("line", [
    b"Content-Length: x", b"Content-Length: 9", b"Expect: x", b"X: " + b"y" * 17_000,
    b"X" * 17_000])
def test_error_of_the_server_to_head_has_no_body(line):
    with serving() as server:
        data = exchange(server, head(line, first=b"HEAD /x HTTP/1.1"))

    assert data.startswith(b"HTTP/1.1 4") and data.endswith(b"\r\n\r\n")
    assert data.count(b"\r\n\r\n") == 1


def test_error_members_of_the_server_are_those_of_the_endpoints():
    settings = Settings(prefix="/auth")
    service = jwtserver.Service(None, None, settings, None)

    for path, route in jwtserver._routes(
            service, jwtserver.Pages(service), settings.prefix, demo=True).items():
        app = jwtserver._error_application(jwtserver.HTTPError(408, "Late"), path, settings)
        assert call(app).json == {"success": False, route.error_member: "Late"}


@for_each("method", [b"GET", b"HEAD"])
@for_each("started", [False, True])
def test_fault_of_a_generator_is_500_with_cors_headers(method, started):
    def app(environ, start_response):
        if started:
            start_response("200 OK", [("Set-Cookie", "secret=1")])
        yield b""
        raise LookupError

    with serving(app, cors_origins=(ORIGIN,)) as server:
        data = exchange(server, head(
            b"Origin: " + ORIGIN.encode(), first=method + b" /authenticate HTTP/1.1"))

    ((status, headers, body),) = parse(data, [method.decode()])
    assert (status, headers["access-control-allow-origin"]) == (500, ORIGIN)
    assert "set-cookie" not in headers
    assert body == (b"" if method == b"HEAD" else
                    b'{"success": false, "message": "Internal server error"}\n')


def test_connection_headers_of_the_application_are_dropped():
    headers = [("Content-Type", "text/event-stream"), ("Connection", "keep-alive"),
               ("Keep-Alive", "timeout=5")]

    ((status, found, body),) = parse(response_to(answering(b"data", headers=headers)))

    assert (status, found["content-type"], body) == (200, "text/event-stream", b"data")
    assert not {"connection", "keep-alive"} & set(found)


class LateWriter(list):
    """An iterable whose close() writes."""

    def close(self):
        self.write(b"late")


@pytest.mark.parametrize("pieces", [[b"a"], [b"a", b"b"], []])
def test_write_in_close_is_refused_and_does_not_precede_the_next_response(pieces, caplog):
    def app(environ, start_response):
        body = LateWriter(pieces)
        body.write = start_response("200 OK", [])
        return body

    with serving(app) as server:
        data = exchange(server, head() * 2)

    assert b"late" not in data and data.count(b"HTTP/1.1 200 ") == len(parse(data))
    assert "write() after the end of the response" in caplog.text


@for_each("fails", [False, True])
def test_write_kept_for_later_is_refused(fails):
    kept, errors = [], []

    def app(environ, start_response):
        for write in kept:
            with pytest.raises(AssertionError) as caught:
                write(b"late")
            errors.append(str(caught.value))
        kept.append(start_response("200 OK", []))
        if fails:
            raise LookupError
        return [b"ab"]

    with serving(app) as server:
        responses = parse(exchange(server, head() * 2))

    assert [status for status, _, _ in responses] == [500 if fails else 200] * 2
    assert errors == ["write() after the end of the response"]


def test_fault_keeps_the_connection_open():
    with serving(raising) as server:
        assert statuses(exchange(server, head() * 3)) == [500] * 3


def test_fault_after_the_headers_closes_the_connection(caplog):
    def app(environ, start_response):
        start_response("200 OK", [])
        yield b"begun"
        raise LookupError("in the middle")

    data = response_to(app)

    assert data.endswith(b"5\r\nbegun\r\n")
    assert "in the middle" in caplog.text


def test_fault_in_close_is_logged_without_a_second_response(caplog):
    class Body(list):
        def close(self):
            raise LookupError("in close")

    data = response_to(answering(b"abc", make=Body))

    assert len(parse(data)) == 1
    assert "in close" in caplog.text


def test_exc_info_before_the_headers_are_sent_replaces_them():
    def app(environ, start_response):
        start_response("200 OK", [("X", "y"), LENGTH])
        try:
            raise LookupError
        except LookupError:
            start_response("503 Sorry", [], sys.exc_info())
        return [b"sorry"]

    ((status, headers, body),) = parse(response_to(app))

    assert (status, body, "x" in headers) == (503, b"sorry", False)


def test_exc_info_after_the_headers_is_raised(caplog):
    def app(environ, start_response):
        start_response("200 OK", [])(b"begun")
        try:
            raise LookupError("too late")
        except LookupError:
            start_response("503 Sorry", [], sys.exc_info())
        return []

    assert response_to(app).endswith(b"5\r\nbegun\r\n")
    assert "too late" in caplog.text


def test_response_stream_arrives_piece_by_piece():
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


def test_header_injection_is_refused_under_python_O():
    code = f"""
import sys; sys.path[:0] = [{str(ROOT / "tests")!r}, {str(ROOT)!r}]
from http_support import exchange, head, serving
def app(environ, start_response):
    start_response("200 OK", [("X", "a\\r\\nY: b")])
    return [b"x"]
with serving(app) as server:
    print(exchange(server, head())[:12])
"""
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True)

    assert done.stdout == "b'HTTP/1.1 500'\n"
