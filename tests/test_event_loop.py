"""The event loop: states and their timers, slow clients, and how the loop moves between threads."""

import contextlib
import ctypes
import errno
import json
import os
import random
import resource
import selectors
import signal
import socket
import ssl
import struct
import sys
import threading

import pytest

import jwtserver
from http_support import connect, echo, exchange, head, parse, received, serving, statuses
from jwtserver import _State
from support import for_each

LONG = 1_000_000  # bytes of a body that is read by the application, in a worker


def put(size, *lines):
    return head(b"Content-Length: %d" % size, *lines, first=b"PUT /x HTTP/1.1")


def advance(server, clock, seconds):
    """Move the clock of a server, and let its loop see it."""
    clock.now += seconds
    server._wake()


class Gate:
    """An application that waits at /slow until it is opened."""

    def __init__(self):
        self.arrived, self.opened = threading.Semaphore(0), threading.Event()
        self.order = []

    def __call__(self, environ, start_response):
        if environ["PATH_INFO"] == "/slow":
            self.arrived.release()
            assert self.opened.wait(10)
        self.order.append(environ["PATH_INFO"])
        return echo(environ, start_response)

    def await_requests(self, count):
        for _ in range(count):
            assert self.arrived.acquire(timeout=10)


SLOW = head(first=b"GET /slow HTTP/1.1")


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.opened.set()


# --- States and their timers


@for_each("data, state, seconds, responses", [
    (b"", _State.IDLE, 15, []),
    (head(), _State.IDLE, 15, [200]),
    (head()[:-3], _State.READING_HEADER, 10, [408]),
    (put(9) + b"abc", _State.READING_BODY, 10, [408]),
    (head(b"Connection: close"), _State.LINGERING, jwtserver.LINGER_SECONDS, [200]),
])
def test_state_that_lasts_too_long_ends(clock, data, state, seconds, responses):
    with serving(clock=clock) as server, connect(server) as connection:
        server.await_state(_State.IDLE)
        connection.sendall(data)
        if data:
            server.await_state(state)

        advance(server, clock, seconds - 0.1)
        server._wake()
        assert server.count(state) == 1
        advance(server, clock, 0.2)

        assert statuses(received(connection)) == responses


def test_state_of_a_header_in_pieces_keeps_its_timer(clock):
    with serving(clock=clock) as server, connect(server) as connection:
        for piece in (b"G", b"E", b"T"):
            connection.sendall(piece)
            server.await_state(_State.READING_HEADER) if piece == b"G" else None
            advance(server, clock, 4)

        assert statuses(received(connection)) == [408]


def test_empty_lines_before_a_request_do_not_restart_the_timer(clock):
    with serving(clock=clock) as server, connect(server) as connection:
        connection.sendall(b"\r")
        server.await_state(_State.READING_HEADER)
        for piece in (b"\n", b"\r", b"\n"):
            clock.now += 4
            connection.sendall(piece)
            server._wake()

        assert statuses(received(connection)) == [408]


def test_body_at_the_promised_rate_is_received(clock):
    with serving(clock=clock, body_rate=10) as server, connect(server) as connection:
        connection.sendall(put(300, b"Connection: close"))
        server.await_state(_State.READING_BODY)
        for _ in range(2):
            connection.sendall(b"x" * 100)
            assert server.progressed.acquire(timeout=10)
            advance(server, clock, 9)
        connection.sendall(b"x" * 100)

        ((status, _, body),) = parse(received(connection))

    assert (status, len(json.loads(body)[3])) == (200, 300)


def test_body_that_drips_is_too_slow_on_average(clock):
    with serving(clock=clock, body_rate=1) as server, connect(server) as connection:
        connection.sendall(put(300))
        server.await_state(_State.READING_BODY)
        for number in range(3):
            connection.sendall(b"x")
            assert server.progressed.acquire(timeout=10)
            clock.now += 5

        connection.sendall(b"x")

        assert statuses(received(connection)) == [408]


def test_response_that_nobody_reads_is_reset(clock):
    def app(environ, start_response):
        start_response("200 OK", [])
        return [b"x" * 20_000_000]

    with serving(app, clock=clock) as server, connect(server) as connection:
        connection.sendall(head())
        server.await_state(_State.SENDING)
        assert len(server._threads) == 1  # a slow reader costs no thread

        while not server.closed.acquire(timeout=0.02):  # the kernel may still take some bytes
            advance(server, clock, jwtserver.MAX_READER_PAUSE + 0.1)

        with pytest.raises(ConnectionResetError):
            while connection.recv(1_000_000):
                pass


def test_response_read_too_slowly_on_average_is_reset(clock):
    def app(environ, start_response):
        start_response("200 OK", [])
        return [b"x" * 20_000_000]

    with serving(app, clock=clock, body_rate=1_000_000_000) as server, \
            connect(server) as connection:
        connection.sendall(head())
        server.await_state(_State.SENDING)

        with pytest.raises(ConnectionResetError):
            while connection.recv(100_000):
                clock.now += 1


def test_body_after_a_slowly_read_response_is_judged_by_itself(clock):
    def app(environ, start_response):
        start_response("200 OK", [])
        return [b"x" * (20_000_000 if environ["REQUEST_METHOD"] == "GET" else 1)]

    with serving(app, clock=clock) as server, connect(server) as connection:
        connection.sendall(head())
        server.await_state(_State.SENDING)
        clock.now += 14
        file = connection.makefile("rb")
        while file.readline().strip():
            pass
        file.read(20_000_000)
        while server.progressed.acquire(blocking=False):
            pass
        connection.sendall(put(300, b"Connection: close"))
        server.await_state(_State.READING_BODY)
        for _ in range(2):
            clock.now += 4
            connection.sendall(b"x" * 100)
            assert server.progressed.acquire(timeout=10)
        connection.sendall(b"x" * 100)

        assert file.readline().startswith(b"HTTP/1.1 200 ")
        file.close()


def test_response_long_is_sent_whole():
    def app(environ, start_response):
        start_response("200 OK", [])
        return [bytes(range(250)) * 80_000]

    with serving(app) as server:
        ((_, _, body),) = parse(exchange(server, head()))

    assert body == bytes(range(250)) * 80_000


def test_response_to_a_large_upload_arrives_although_the_body_is_not_read():
    """Closing at once would reset the connection, and the client would lose the response."""
    def app(environ, start_response):
        start_response("401 Unauthorized", [])
        return [b"no"]

    size = 30_000_000
    with serving(app) as server, connect(server) as connection:
        connection.sendall(put(size) + b"x" * size)

        ((status, headers, body),) = parse(received(connection))

    assert (status, headers["connection"], body) == (401, "close", b"no")


def test_response_that_is_not_read_for_two_minutes_is_still_sent(clock):
    def app(environ, start_response):
        start_response("200 OK", [])
        return [b"x" * 20_000_000]

    with serving(app, clock=clock) as server, connect(server) as connection:
        connection.sendall(head(b"Connection: close"))
        server.await_state(_State.SENDING)
        advance(server, clock, 119)

        ((_, _, body),) = parse(received(connection))

    assert len(body) == 20_000_000


def test_lingering_client_that_sends_too_much_is_closed(monkeypatch):
    monkeypatch.setattr(jwtserver, "MAX_DISCARDED_BYTES", 100_000)
    size = jwtserver.MAX_BODY_BYTES + 1
    with serving() as server, connect(server) as connection:
        connection.sendall(b"BAD\r\n\r\n")
        server.await_state(_State.LINGERING)
        with pytest.raises(OSError):
            while True:
                connection.sendall(b"x" * size)


def test_connections_over_the_limit_evict_the_one_that_waited_longest(clock):
    with serving(clock=clock, connections=3) as server:
        idle = connect(server)
        server.await_state(_State.IDLE)
        clock.now += 0.1
        begun = connect(server)
        begun.sendall(head()[:9])
        server.await_state(_State.READING_HEADER)
        clock.now += 0.1
        others = [connect(server) for _ in range(2)]

        assert idle.recv(9) == b""
        clock.now += 0.1
        assert statuses(exchange(server, head())) == [200]
        assert begun.recv(9) == b""
        for connection in others:
            connection.sendall(head(b"Connection: close"))
            assert statuses(received(connection)) == [200]

        for connection in (idle, begun, *others):
            connection.close()


def test_connections_over_the_limit_evict_a_reader_last():
    def app(environ, start_response):
        start_response("200 OK", [])
        return [b"x" * 20_000_000]

    with serving(app, connections=1) as server, connect(server) as reading:
        reading.sendall(head())
        server.await_state(_State.SENDING)

        with connect(server) as other:
            server.await_state(_State.IDLE, 2)
            assert server.count(_State.SENDING) == 0
            other.close()


def test_connections_over_the_limit_are_refused_if_all_are_being_answered(gate):
    with serving(gate, connections=1) as server, connect(server) as slow:
        slow.sendall(SLOW)
        gate.await_requests(1)

        with connect(server) as refused:
            assert refused.recv(9) == b""

        gate.opened.set()
        assert slow.recv(12) == b"HTTP/1.1 200"


def test_open_files_over_the_limit_evict_a_connection(clock):
    class FullListener:
        def accept(self):
            raise OSError(errno.EMFILE, "Too many open files")

    with serving(clock=clock) as server, connect(server) as idle:
        server.await_state(_State.IDLE)

        server._accept(FullListener(), {})

        assert idle.recv(9) == b""
        with connect(server) as waiting:
            waiting.sendall(head(b"Connection: close"))
            server._wake()
            assert server.count(_State.IDLE) == 0  # the file is left to the database
            advance(server, clock, jwtserver.ACCEPT_PAUSE_SECONDS)
            assert statuses(received(waiting)) == [200]


def test_system_without_a_limit_for_its_buffers_serves(monkeypatch):
    monkeypatch.delattr(socket, "TCP_NOTSENT_LOWAT")
    with serving() as server:
        assert statuses(exchange(server, head())) == [200]


def test_connections_beyond_those_accepted_at_once_follow(monkeypatch):
    monkeypatch.setattr(jwtserver, "MAX_ACCEPTS", 2)
    listener = socket.create_server(("127.0.0.1", 0))
    connections = [socket.create_connection(listener.getsockname()) for _ in range(5)]

    with serving(listener=listener) as server:
        server.await_state(_State.IDLE, 5)

    for connection in connections:
        connection.close()


def test_client_that_has_gone_before_its_options_are_set_costs_nothing():
    ours, theirs = socket.socketpair()  # has no TCP_NODELAY either
    theirs.close()
    with serving() as server:
        server._open_connection(ours, ("192.0.2.1", 1), {})

        assert server.closed.acquire(timeout=10)
        assert ours.fileno() == -1


def test_accept_and_receive_without_anything_to_do_do_nothing():
    with serving() as server, connect(server):
        server.await_state(_State.IDLE)
        (connection,) = server._timers[_State.IDLE]

        server._accept(*server._listeners, {})

        assert connection.receive() is False


def test_header_repeated_is_parsed_once_and_gives_equal_environs():
    def app(environ, start_response):
        seen.append(dict(environ))
        environ.clear()  # each request has its own
        start_response("200 OK", [])
        return []

    seen = []
    first = head(b"X: y", first=b"GET /a?b HTTP/1.1")
    long = head(b"X: " + b"y" * jwtserver.MAX_CACHED_HEADER_BYTES)
    with serving(app) as server:
        data = exchange(server, first + first + head() + b"Bad\r\n\r\n" + first)
        assert statuses(data) == [200, 200, 200, 400]
        assert statuses(exchange(server, long + long)) == [200, 200]

    bodies = [environ.pop("wsgi.input") for environ in seen]
    assert len(set(map(id, bodies))) == len(bodies)
    assert seen[0] == seen[1] != seen[2]
    assert seen[3] == seen[4]


# --- The loop moves


def test_loop_moves_when_a_response_takes_long(gate):
    with serving(gate) as server:
        waiting = [connect(server) for _ in range(5)]
        for connection in waiting:
            connection.sendall(SLOW + head())
        gate.await_requests(5)

        assert statuses(exchange(server, head() * 2)) == [200, 200]

        gate.opened.set()
        for connection in waiting:
            connection.shutdown(socket.SHUT_WR)
            assert statuses(received(connection)) == [200, 200]
            connection.close()


def test_loop_that_has_moved_leaves_no_thread_behind(gate):
    with serving(gate) as server:
        with connect(server) as connection:
            connection.sendall(head(b"Connection: close", first=b"GET /slow HTTP/1.1"))
            gate.await_requests(1)
            assert statuses(exchange(server, head())) == [200]
            (worker,) = server._threads - {server._loop_thread}

            gate.opened.set()

            assert statuses(received(connection)) == [200]
            worker.join(10)
            assert server._threads == {server._loop_thread}


def test_loop_moves_only_after_the_interval(clock, gate):
    with serving(gate, clock=clock) as server, connect(server) as connection:
        connection.sendall(SLOW)
        gate.await_requests(1)
        clock.now += 0.004
        server._move_loop(jwtserver.POLL_INTERVAL)
        assert len(server._threads) == 1

        clock.now += 0.002
        server._move_loop(jwtserver.POLL_INTERVAL)

        assert len(server._threads) == 2
        assert statuses(exchange(server, head())) == [200]
        gate.opened.set()


def test_loop_moves_sooner_while_many_responses_take_long(clock, gate):
    """110 responses that sleep once delayed all other clients by more than half a second."""
    with serving(gate, clock=clock) as server:
        slow = [connect(server) for _ in range(6)]
        patience = []
        for connection in slow:
            connection.sendall(SLOW)
            gate.await_requests(1)
            patience.append(server._patience())
            clock.now += 2 * patience[-1]
            server._move_loop(patience[-1])
        gate.opened.set()
        for connection in slow:
            assert connection.recv(12) == b"HTTP/1.1 200"
            connection.close()

    assert patience == [0.005 / busy for busy in (1, 2, 3, 4, 5)] + [jwtserver.MIN_PATIENCE]


def test_loop_released_by_the_application_moves_at_once(clock, gate):
    def app(environ, start_response):
        if environ["PATH_INFO"] == "/slow":
            environ["jwtserver.start_slow_response"]()
            environ["jwtserver.start_slow_response"]()  # this thread has no loop any more
        return gate(environ, start_response)

    with serving(app, clock=clock) as server, connect(server) as slow:
        slow.sendall(head(b"Connection: close", first=b"GET /slow HTTP/1.1"))
        gate.await_requests(1)

        assert statuses(exchange(server, head())) == [200]

        assert len(server._threads) == 2
        gate.opened.set()
        assert statuses(received(slow)) == [200]


def test_loop_polls_although_requests_wait(clock, gate):
    """A flood of pipelined requests does not delay others."""
    flood = head(first=b"GET /flood HTTP/1.1")
    together = jwtserver.RECEIVE_BYTES // len(flood)  # are received at once
    begun, other_sent = threading.Event(), threading.Event()

    def app(environ, start_response):
        begun.set()
        assert other_sent.wait(10)
        clock.now += 0.002
        return gate(environ, start_response)

    with serving(app, clock=clock) as server, connect(server) as flooding:
        flooding.sendall(flood * together)
        assert begun.wait(10)
        with connect(server) as other:
            other.sendall(head(b"Connection: close"))
            other_sent.set()
            assert statuses(received(other)) == [200]

        assert gate.order.index("/x") < together - 1


def test_request_after_a_burst_does_not_wait_for_all_of_it(gate, clock):
    def app(environ, start_response):
        clock.now += jwtserver.POLL_INTERVAL
        return gate(environ, start_response)

    with serving(app, threads=1, clock=clock) as server:
        first, *burst, last = [connect(server) for _ in range(22)]
        server.await_state(_State.IDLE, 22)
        first.sendall(SLOW)
        gate.await_requests(1)  # the loop stays in this response
        for connection in burst:
            connection.sendall(head(first=b"GET /burst HTTP/1.1"))
        last.sendall(head())

        gate.opened.set()

        for connection in (last, first, *burst):
            assert connection.recv(12) == b"HTTP/1.1 200"
            connection.close()
    assert gate.order.index("/x") <= 4


def test_loop_answers_requests_between_expensive_events(gate, clock, monkeypatch):
    """2,000 simultaneous TLS handshakes once delayed all other clients by seconds."""
    handled, handled_before = [], []

    def app(environ, start_response):
        handled_before.append(len(handled))
        return gate(environ, start_response)

    with serving(app, threads=1, clock=clock) as server:
        first, *expensive, last = [connect(server) for _ in range(22)]
        server.await_state(_State.IDLE, 22)
        first.sendall(SLOW)
        gate.await_requests(1)
        receive = jwtserver._Connection.receive

        def expensive_receive(connection):
            clock.now += 0.002
            handled.append(connection)
            return receive(connection)

        monkeypatch.setattr(jwtserver._Connection, "receive", expensive_receive)
        for connection in expensive:
            connection.sendall(head(first=b"GET /burst HTTP/1.1")[:-1])
        last.sendall(head())

        gate.opened.set()

        assert last.recv(12) == b"HTTP/1.1 200"
        for connection in (first, *expensive, last):
            connection.close()
    assert handled_before[1] < 10


def test_loop_sends_the_responses_of_an_iteration_although_it_moves(gate):
    with serving(gate, threads=2) as server:
        first, *others = [connect(server) for _ in range(6)]
        server.await_state(_State.IDLE, 6)
        with server._lock:  # nothing moves
            for number, connection in enumerate((first, *others)):
                connection.sendall(SLOW if number == 3 else head())
        gate.await_requests(1)

        for number, connection in enumerate((first, *others)):
            if number != 3:
                assert connection.recv(12) == b"HTTP/1.1 200"

        gate.opened.set()
        assert others[2].recv(12) == b"HTTP/1.1 200"
        for connection in (first, *others):
            connection.close()


def test_input_during_a_response_in_a_worker_is_for_later(gate):
    with serving(gate) as server, connect(server) as connection:
        connection.sendall(SLOW)
        gate.await_requests(1)
        server._move_loop(0)
        (responding,) = server._timers[_State.RESPONDING]
        unwatched = threading.Event()
        watch = server._watch
        server._watch = lambda *arguments: (watch(*arguments), unwatched.set())

        connection.sendall(head(b"Connection: close"))

        assert unwatched.wait(10) and responding.watched_events == 0
        gate.opened.set()
        assert statuses(received(connection)) == [200, 200]


def test_connection_is_used_by_one_thread_at_a_time(trusting, certificate):
    """Over TLS too, while the loop moves at each request and bodies arrive late."""
    overlaps, used, outcomes = [], set(), []

    class Watched:
        def __init__(self, sock):
            self.sock, self.busy = sock, threading.Lock()

        def __getattr__(self, name):
            method = getattr(self.sock, name)
            if name not in ("recv", "send", "do_handshake", "unwrap"):
                return method

            def call(*arguments):
                used.add(name)
                if not self.busy.acquire(blocking=False):
                    overlaps.append(name)
                try:
                    return method(*arguments)
                finally:
                    self.busy.release()

            return call

    def app(environ, start_response):
        environ["jwtserver.start_slow_response"]()
        return echo(environ, start_response)

    with serving(app, tls=jwtserver._tls_context(certificate, None)) as server:
        enter = server._enter

        def enter_watched(connection, state):
            if not isinstance(connection.sock, Watched):
                connection.sock = Watched(connection.sock)
            enter(connection, state)

        server._enter = enter_watched

        def client(number):
            dice = random.Random(number)
            with trusting.wrap_socket(connect(server), server_hostname="localhost") as tls:
                file, expected = tls.makefile("rb"), []
                for turn in range(30):
                    size = dice.choice([3, 40_000, 100_000])
                    tls.sendall(put(size))
                    tls.sendall(b"x" * size + head() + head())
                    expected += ["PUT", "GET", "GET"]
                tls.sendall(head(b"Connection: close"))
                methods = [json.loads(body)[0] for _, _, body in parse(file.read())]
                file.close()
                outcomes.append(methods == [*expected, "GET"])

        threads = [threading.Thread(target=client, args=[number]) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert outcomes == [True] * 4
    assert overlaps == [] and {"recv", "send"} <= used


# --- No thread is free


def test_threads_all_busy_let_requests_wait(gate):
    with serving(gate, threads=1) as server, connect(server) as connection, \
            connect(server) as other:
        connection.sendall(SLOW)
        gate.await_requests(1)
        other.sendall(head(b"Connection: close"))
        server._move_loop(0)
        assert len(server._threads) == 1
        gate.opened.set()

        assert statuses(received(other)) == [200]


@pytest.fixture
def no_thread_starts(monkeypatch):
    """Limits threads as `ulimit -u` does, after `allowed` more have been started."""
    start = threading.Thread.start

    def limit(allowed):
        def limited(thread):
            nonlocal allowed
            allowed -= 1
            if allowed < 0:
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", limited)

    return limit


def test_thread_that_cannot_be_started_counts_as_busy(gate, clock, no_thread_starts):
    with serving(gate, clock=clock) as server, connect(server) as connection:
        server.await_state(_State.IDLE)
        no_thread_starts(0)
        connection.sendall(SLOW)
        gate.await_requests(1)
        server._move_loop(0)
        server._move_loop(0)  # not tried again so soon
        loop = server._loop_thread
        gate.opened.set()

        assert connection.recv(12) == b"HTTP/1.1 200"

        assert server._threads == {loop}
        no_thread_starts(9)
        gate.opened.clear()
        with connect(server) as again:
            clock.now += jwtserver.RETRY_THREAD_SECONDS
            again.sendall(SLOW)
            gate.await_requests(1)
            server._move_loop(0)
            assert len(server._threads) == 2
            gate.opened.set()


def test_server_without_any_other_thread_serves_in_its_own(no_thread_starts, caplog):
    no_thread_starts(1)  # that of the test
    with serving() as server:
        assert statuses(exchange(server, head() + put(LONG) + b"x")) == [200, 408]
        assert server._threads == set()
    assert "No thread can be started" in caplog.text


def test_client_that_stalls_in_a_long_body_is_not_aborted_without_need(monkeypatch):
    monkeypatch.setattr(jwtserver, "RECHECK_SECONDS", 0.001)
    with serving(threads=2) as server, connect(server) as connection:
        connection.sendall(put(LONG, b"Connection: close"))
        while len(server._threads) < 2:
            assert statuses(exchange(server, head())) == [200]
        for _ in range(9):  # meanwhile the worker waits more than once
            assert statuses(exchange(server, head())) == [200]
        connection.sendall(b"x" * LONG)

        ((status, _, body),) = parse(received(connection))

    assert (status, len(json.loads(body)[3])) == (200, LONG)


# --- Slow readers of a stream


def streaming(pieces, size=100_000):
    def app(environ, start_response):
        if environ["PATH_INFO"] == "/x":
            return echo(environ, start_response)
        start_response("200 OK", [])
        return (b"%d" % (number % 10) * size for number in range(pieces))

    return app


STREAM = head(b"Connection: close", first=b"GET /stream HTTP/1.1")


def test_stream_waits_for_its_client(monkeypatch):
    monkeypatch.setattr(jwtserver, "RECHECK_SECONDS", 0.001)
    with serving(streaming(200)) as server, connect(server) as connection:
        connection.sendall(STREAM)
        while len(server._threads) < 2:
            assert statuses(exchange(server, head())) == [200]

        ((_, _, body),) = parse(received(connection))

    assert len(body) == 20_000_000 and body[::100_000] == b"0123456789" * 20


def test_streams_to_slow_clients_do_not_count_as_busy_threads():
    """500 clients that read slowly once delayed all others by seconds."""
    with serving(streaming(100), threads=2) as server:
        slow = [connect(server) for _ in range(9)]
        for connection in slow:
            connection.sendall(STREAM)
        while server._waiting_threads < 9:
            assert statuses(exchange(server, head())) == [200]

        for connection in slow:
            ((_, _, body),) = parse(received(connection))
            assert len(body) == 10_000_000 and body[::100_000] == b"0123456789" * 10
            connection.close()


def test_stream_to_a_fast_client_is_whole_although_no_thread_is_free(no_thread_starts, clock):
    no_thread_starts(1)  # that of the test, so the loop cannot be given away
    with serving(streaming(5, size=4_000_000), clock=clock) as server:
        ((_, _, body),) = parse(exchange(server, STREAM))

    assert len(body) == 20_000_000


def test_client_that_keeps_the_loop_is_dropped_soon(no_thread_starts, clock):
    waits = []

    class SlowSocket:
        """Takes a few bytes of each call, after almost all of the time that it may block."""

        def __init__(self, sock):
            self.sock = sock

        def __getattr__(self, name):
            return getattr(self.sock, name)

        def send(self, data):
            if not self.sock.gettimeout():
                raise BlockingIOError
            waits.append(0.9 * self.sock.gettimeout())
            clock.now += waits[-1]
            return self.sock.send(data[:10])

    no_thread_starts(1)
    with serving(streaming(5), clock=clock) as server:
        enter = server._enter

        def enter_slow(connection, state):
            connection.sock = SlowSocket(connection.sock)
            enter(connection, state)

        server._enter = enter_slow
        with pytest.raises(ConnectionResetError):
            exchange(server, STREAM, end=False)

    assert sum(waits) < 3 * jwtserver.RECHECK_SECONDS


@for_each("data", [STREAM, put(LONG)])
def test_clients_that_block_too_many_threads_lose_them(monkeypatch, data):
    monkeypatch.setattr(jwtserver, "MAX_WAITING_THREADS", 2)
    monkeypatch.setattr(jwtserver, "RECHECK_SECONDS", 0.02)
    with serving(streaming(100)) as server:
        slow = [connect(server) for _ in range(4)]
        for connection in slow:
            connection.sendall(data)

        server.await_state(_State.RESPONDING, 4)
        while server.count(_State.RESPONDING) > 2:  # until two are dropped
            assert statuses(exchange(server, head())) == [200]

        for connection in slow:
            connection.close()


def test_stream_is_closed_when_its_client_has_gone():
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


@for_each("body_rate, read, size", [
    (1024, 0, 1_000_000), (1e12, 100_000, 1_000_000), (1e12, 3_000, 10_000)])
def test_stream_whose_client_is_too_slow_is_closed(monkeypatch, body_rate, read, size):
    monkeypatch.setattr(jwtserver, "MAX_READER_PAUSE", 0.05)
    monkeypatch.setattr(jwtserver, "RECHECK_SECONDS", 0.02)
    closed = threading.Event()

    def app(environ, start_response):
        start_response("200 OK", [])
        try:
            while True:
                yield b"x" * size
        finally:
            closed.set()

    with serving(app, body_rate=body_rate) as server, \
            connect(server) as connection:
        connection.sendall(head())
        with contextlib.suppress(ConnectionResetError):
            while not closed.wait(0.001):
                if read:
                    connection.recv(read)


def test_long_body_that_drips_is_too_slow_on_average():
    with serving(head_timeout=0.05) as server, connect(server) as connection:
        connection.settimeout(0.01)
        connection.sendall(put(LONG))
        status = b""
        while not status:
            connection.sendall(b"x")
            with contextlib.suppress(socket.timeout):
                status = connection.recv(12)

    assert status == b"HTTP/1.1 408"


READS = {
    "read": lambda stream: stream.read(),
    "read(size)": lambda stream: stream.read(LONG),
    "read1": lambda stream: [stream.read1(10**12) for _ in range(9)],
    "readline": lambda stream: stream.readline(),
    "lines": lambda stream: list(stream),
}


@for_each("read", [*READS])
@for_each("end", ["close", "reset", "reset before", "stall"])
def test_long_body_that_is_cut_off_raises_in_the_application(clock, monkeypatch, read, end):
    monkeypatch.setattr(jwtserver, "RECHECK_SECONDS", 0.02)
    outcomes, go, done = [], threading.Event(), threading.Event()

    def app(environ, start_response):
        assert go.wait(10)
        for _ in range(2):  # and not only the first time
            try:
                outcomes.append(READS[read](environ["wsgi.input"]))
            except OSError as error:
                outcomes.append(str(error))
        done.set()
        start_response("200 OK", [])
        return []

    with serving(app, clock=clock) as server, connect(server) as connection:
        connection.sendall(put(LONG) + b"abc")
        server.await_state(_State.RESPONDING)
        if end == "close":
            connection.shutdown(socket.SHUT_WR)
        if end != "reset before":
            go.set()
        if end.startswith("reset"):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        go.set()
        while not done.wait(0.02):
            clock.now += 10.1 if end == "stall" else 0

    assert outcomes == ["The request body is incomplete"] * 2


def test_long_body_that_is_cut_off_gets_408_without_a_traceback(caplog):
    with serving() as server:
        ((status, headers, body),) = parse(exchange(server, put(LONG) + b"abc"))

    assert (status, headers["connection"]) == (408, "close")
    assert json.loads(body) == {"success": False, "error": "The request body is incomplete"}
    assert caplog.text == ""


def test_long_body_that_is_cut_off_during_the_response_resets_the_connection():
    def app(environ, start_response):
        start_response("200 OK", [])
        yield b"begun"
        environ["wsgi.input"].read()

    with serving(app) as server, connect(server) as connection:
        connection.sendall(put(LONG) + b"abc")
        connection.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionResetError):
            while connection.recv(999):
                pass


def test_long_body_that_is_cut_off_may_be_answered_by_the_application():
    def app(environ, start_response):
        with contextlib.suppress(OSError):
            environ["wsgi.input"].read()
        start_response("400 Bad Request", [])
        return [b"mine"]

    with serving(app) as server:
        ((status, headers, body),) = parse(exchange(server, put(LONG) + b"abc" + head()[:9]))

    assert (status, headers["connection"], body) == (400, "close", b"mine")


# --- Faults of the server, and its end


def test_fault_in_a_response_is_logged_and_costs_one_connection(monkeypatch, caplog):
    respond = jwtserver._Connection.respond

    def fail(connection):
        monkeypatch.setattr(jwtserver._Connection, "respond", respond)
        raise LookupError("a fault")

    monkeypatch.setattr(jwtserver._Connection, "respond", fail)
    with serving() as server:
        with pytest.raises(ConnectionResetError):
            exchange(server, head())
        assert statuses(exchange(server, head())) == [200]
    assert "A fault in the server" in caplog.text and "a fault" in caplog.text


@pytest.mark.parametrize("method", ["_send_queued", "_poll"])
def test_fault_in_the_loop_is_logged_and_the_loop_goes_on(caplog, method):
    with serving() as server, connect(server) as connection:
        server.await_state(_State.IDLE)
        original = getattr(server, method)

        def fail(*arguments):
            setattr(server, method, original)
            raise LookupError("a fault")

        setattr(server, method, fail)
        connection.sendall(head(b"Connection: close"))
        with contextlib.suppress(ConnectionResetError):
            received(connection)

        assert statuses(exchange(server, head())) == [200]
    assert "A fault in the server" in caplog.text and "a fault" in caplog.text


def test_application_that_exits_ends_only_its_response(caplog):
    def app(environ, start_response):
        if environ["PATH_INFO"] == "/exit":
            raise SystemExit("bye")
        return echo(environ, start_response)

    with serving(app, threads=1) as server:
        responses = exchange(server, head(first=b"GET /exit HTTP/1.1") + head())

    assert statuses(responses) == [500, 200]
    assert "SystemExit: bye" in caplog.text


def test_interrupt_closes_connections_without_a_request():
    with serving() as server:
        idle, begun = connect(server), connect(server)
        idle.sendall(head())
        idle.recv(9999)
        begun.sendall(head()[:9])
        server.await_state(_State.READING_HEADER)
    assert idle.recv(9) == begun.recv(9) == b""
    idle.close()
    begun.close()


def test_interrupt_waits_for_responses_up_to_the_deadline(clock, gate):
    with serving(gate, clock=clock) as server, connect(server) as connection:
        connection.sendall(SLOW)
        gate.await_requests(1)
        server.interrupt()
        clock.now += jwtserver.SHUTDOWN_TIMEOUT + 1
        while server._selector.get_map() is not None:  # until it is closed
            gate.opened.wait(0.001)
            server._wake()
        with pytest.raises(ConnectionResetError):  # so that nothing looks like a whole response
            connection.recv(9)
    assert not gate.opened.is_set()


def test_interrupt_twice_exits(monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with serving() as server:
        server.interrupt(signal.SIGTERM, None)
        assert codes == []
        server.interrupt(signal.SIGTERM, None)
    assert codes == [1]


# --- TLS


def test_tls_serves_requests_in_order(certificate, trusting):
    seen = []

    def app(environ, start_response):
        seen.append(environ["wsgi.url_scheme"])
        return echo(environ, start_response)

    with serving(app, tls=jwtserver._tls_context(certificate, None)) as server:
        with trusting.wrap_socket(connect(server), server_hostname="localhost") as connection:
            for size in (40_000, 400_000):
                connection.sendall(head() + head() + put(size) + b"x" * size)
            connection.sendall(head(b"Connection: close"))
            responses = parse(received(connection))

    assert [status for status, _, _ in responses] == [200] * 7
    assert seen == ["https"] * 7


def test_tls_long_response_is_sent_whole(certificate, trusting):
    with serving(streaming(30), tls=jwtserver._tls_context(certificate, None)) as server:
        with trusting.wrap_socket(connect(server), server_hostname="localhost") as connection:
            connection.sendall(STREAM)

            ((_, _, body),) = parse(received(connection))

    assert len(body) == 3_000_000 and body[::100_000] == b"0123456789" * 3


def test_tls_of_old_versions_is_refused(certificate):
    assert jwtserver._tls_context(certificate, None).minimum_version == ssl.TLSVersion.TLSv1_2


@for_each("data", [head(), b"", b"\x16\x03\x01\x00\x05hello"])
def test_tls_handshake_of_garbage_costs_one_connection(certificate, trusting, data):
    with serving(tls=jwtserver._tls_context(certificate, None)) as server:
        with contextlib.suppress(ConnectionResetError):
            exchange(server, data)

        with trusting.wrap_socket(connect(server), server_hostname="localhost") as connection:
            connection.sendall(head(b"Connection: close"))
            assert statuses(received(connection)) == [200]


def test_tls_handshake_that_lasts_too_long_ends(certificate, clock):
    tls = jwtserver._tls_context(certificate, None)
    with serving(tls=tls, clock=clock) as server, connect(server) as connection:
        server.await_state(_State.HANDSHAKE)
        advance(server, clock, 10.1)

        assert received(connection) == b""


def test_tls_connection_after_its_handshake_is_idle(certificate, trusting, clock):
    tls = jwtserver._tls_context(certificate, None)
    with serving(tls=tls, clock=clock) as server:
        with trusting.wrap_socket(connect(server), server_hostname="localhost") as connection:
            server.await_state(_State.IDLE)
            advance(server, clock, 15.1)
            assert connection.recv(999) == b""


def test_tls_handshakes_that_stall_cost_no_thread(certificate, trusting):
    tls = jwtserver._tls_context(certificate, None)
    with serving(tls=tls, threads=1) as server:
        silent = [connect(server) for _ in range(20)]
        for connection in silent[:10]:
            connection.sendall(b"\x16\x03\x01")

        with trusting.wrap_socket(connect(server), server_hostname="localhost") as connection:
            connection.sendall(head(b"Connection: close"))
            assert statuses(received(connection)) == [200]

        for connection in silent:
            connection.close()


def test_tls_clients_that_have_gone_before_accept_cost_nothing(certificate, trusting):
    listener = socket.create_server(("127.0.0.1", 0))
    for data in (b"", b"x"):
        with socket.create_connection(listener.getsockname()) as connection:
            connection.sendall(data)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with serving(listener=listener, tls=jwtserver._tls_context(certificate, None)) as server:
        with trusting.wrap_socket(connect(server), server_hostname="localhost") as connection:
            connection.sendall(head(b"Connection: close"))
            assert statuses(received(connection)) == [200]


def tls_client(trusting):
    """A client without a socket: its TLS session, the bytes to it, and the bytes from it."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    return trusting.wrap_bio(incoming, outgoing, server_hostname="localhost"), incoming, outgoing


@pytest.fixture
def send_key_updates(trusting):
    """Makes a handshake over a socket; returns a client's session and a flood of KeyUpdates."""
    library = ctypes.CDLL(ssl._ssl.__file__)
    library.SSL_key_update.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.SSL_do_handshake.argtypes = [ctypes.c_void_p]

    def flood(connection, count, requested):
        client, incoming, outgoing = tls_client(trusting)
        while client.version() is None:
            with contextlib.suppress(ssl.SSLWantReadError):
                client.do_handshake()
            connection.sendall(outgoing.read())
            if client.version() is None:
                incoming.write(connection.recv(9999))
        # struct PySSLSocket: PyObject_HEAD, PyObject *Socket, SSL *ssl
        pointer = ctypes.c_void_p.from_address(
            id(client._sslobj) + object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p)).value
        for _ in range(count):
            assert library.SSL_key_update(pointer, requested) == 1
            assert library.SSL_do_handshake(pointer) == 1
        client.write(head(b"Connection: close"))
        return client, incoming, outgoing.read()

    return flood


def test_tls_flood_of_key_updates_is_handled_in_steps(
        certificate, send_key_updates, monkeypatch):
    """OpenSSL reads on and on while a client sends KeyUpdate messages (RFC 8446 §4.6.3)."""
    received, receive = [], jwtserver._Connection.receive
    monkeypatch.setattr(jwtserver._Connection, "receive",
                        lambda connection: received.append(connection) or receive(connection))
    tls = jwtserver._tls_context(certificate, None)
    with serving(tls=tls) as server, connect(server) as connection:
        client, incoming, flood = send_key_updates(connection, 3000, requested=0)
        received.clear()
        connection.sendall(flood)
        answer = b""
        while not answer:
            incoming.write(connection.recv(9999))
            with contextlib.suppress(ssl.SSLWantReadError):
                answer = client.read(12)

    assert answer == b"HTTP/1.1 200"
    assert len(received) >= len(flood) // jwtserver.RECEIVE_BYTES >= 4


def test_tls_flood_of_key_updates_that_want_an_answer_is_disconnected(
        certificate, send_key_updates):
    """The answers would wait in memory."""
    tls = jwtserver._tls_context(certificate, None)
    with serving(tls=tls) as server, connect(server) as connection:
        _, _, flood = send_key_updates(connection, 3000, requested=1)
        with contextlib.suppress(ConnectionError):
            connection.sendall(flood)

        assert server.closed.acquire(timeout=10)
    assert server.entered[_State.RESPONDING].acquire(blocking=False) is False


def test_tls_write_of_nothing_sends_nothing(certificate, trusting):
    def app(environ, start_response):
        write = start_response("200 OK", [("Content-Length", "2")])
        for piece in (b"a", b"", b"b"):
            write(piece)
        return []

    with serving(app, tls=jwtserver._tls_context(certificate, None)) as server:
        with trusting.wrap_socket(connect(server), server_hostname="localhost") as connection:
            connection.sendall(head(b"Connection: close"))

            ((_, _, body),) = parse(received(connection))

    assert body == b"ab"


def test_tls_request_that_arrives_with_the_end_of_the_handshake_is_answered(
        certificate, trusting):
    tls = jwtserver._tls_context(certificate, None)
    with serving(tls=tls) as server, connect(server) as connection:
        client, incoming, outgoing = tls_client(trusting)
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        connection.sendall(outgoing.read())
        incoming.write(connection.recv(9999))
        client.do_handshake()
        client.write(head(b"Connection: close"))

        for byte in outgoing.read():  # in the smallest pieces
            connection.sendall(bytes([byte]))
        incoming.write(received(connection))

        assert statuses(client.read(9999)) == [200]


def test_tls_client_that_ends_its_session_is_closed(certificate, trusting):
    tls = jwtserver._tls_context(certificate, None)
    with serving(tls=tls) as server:
        with trusting.wrap_socket(connect(server), server_hostname="localhost") as connection:
            connection.sendall(head())
            connection.recv(9999)
            with contextlib.suppress(OSError):
                connection.unwrap()

        assert server.closed.acquire(timeout=10)


def test_tls_without_cbc_tells_the_client_why_the_handshake_failed(certificate, trusting):
    trusting.maximum_version = ssl.TLSVersion.TLSv1_2
    trusting.set_ciphers("ECDHE-ECDSA-AES128-SHA256")
    tls = jwtserver._tls_context(certificate, None)

    with serving(tls=tls) as server, connect(server) as connection:
        with pytest.raises(ssl.SSLError, match="(?i)handshake.failure"):
            trusting.wrap_socket(connection, server_hostname="localhost")

    names = [cipher["name"] for cipher in tls.get_ciphers()]
    assert names and all("GCM" in name or "CHACHA20" in name for name in names)


# --- Threads of the application that outlive its response


def test_write_in_another_thread_raises_and_the_response_is_no_success(caplog):
    """The thread could go on after the end of the response, and write into the next one."""
    errors = []

    def app(environ, start_response):
        def write_late():
            with pytest.raises(AssertionError, match="another thread") as error:
                write(b"late")
            errors.append(error)

        write = start_response("200 OK", [])
        thread = threading.Thread(target=write_late)
        thread.start()
        thread.join()
        return []

    with serving(app) as server:
        assert statuses(exchange(server, head() + head())) == [500, 500]

    assert len(errors) == 2 and "a part of the body is missing" in caplog.text


def test_pipelined_requests_are_received_only_as_fast_as_they_are_answered():
    received_bytes = []

    def app(environ, start_response):
        received_bytes.append(max(len(connection.received) for connection in connections))
        start_response("200 OK", [])
        return []

    with serving(app) as server, connect(server) as client:
        server.await_state(_State.IDLE)
        connections = list(server._timers[_State.IDLE])
        reader = threading.Thread(target=received, args=[client])
        reader.start()
        client.sendall(head() * 2000 + head(b"Connection: close"))
        reader.join()

    assert max(received_bytes) <= jwtserver.RECEIVE_BYTES


def test_input_is_not_read_after_the_end_of_the_response():
    kept = []

    def app(environ, start_response):
        kept.append(environ["wsgi.input"])
        start_response("200 OK", [])
        return []

    with serving(app) as server, connect(server) as connection:
        connection.sendall(put(LONG) + b"abc")
        assert statuses(received(connection)) == [200]

        with pytest.raises(OSError):
            kept[0].read(3)


# --- Limits of the system


@for_each("files, connections", [
    (100, 50), (2000, 1424), (resource.RLIM_INFINITY, 4096)])
def test_connections_leave_files_to_the_database(monkeypatch, files, connections):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))

    with serving() as server:
        assert server._max_connections == connections


def test_connections_are_as_few_as_select_takes_on_windows(monkeypatch):
    class WindowsSelector(selectors.SelectSelector):
        def select(self, timeout=None):
            if len(self.get_map()) > 8:
                raise ValueError("too many file descriptors in select()")
            return super().select(timeout)

    monkeypatch.setattr(selectors, "DefaultSelector", WindowsSelector)
    monkeypatch.setattr(jwtserver, "MAX_SELECT_SOCKETS", 8)
    monkeypatch.setitem(sys.modules, "resource", None)
    with serving() as server:
        connections = [connect(server) for _ in range(9)]
        server.await_state(_State.IDLE, 9)

        assert statuses(exchange(server, head())) == [200]

        for connection in connections:
            connection.close()
