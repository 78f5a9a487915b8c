"""Checks the order, the number and the content of many responses, over plain HTTP or TLS.

    python tests/benchmarks/stress.py [--responses 100000] [--clients 16] [--tls]
    python tests/benchmarks/stress.py --readers 500 | --sleepers 110 | --headers 1000
    python tests/benchmarks/stress.py --tls --handshakes 2000 | --key-updates
    ... --root ../other-checkout

Each client keeps its connection and sends, in random pieces: pipelined requests, bodies that arrive
late and together with the next request, slow requests that make the event loop move, long bodies,
and long responses. Each response must be the one to its own request.

The other flags attack the server, while a probe measures how long another client waits:

    --readers      so many clients read responses of 4 MB slowly
    --sleepers     the application sleeps for a second in so many requests
    --headers      so many clients send headers of 50 KB
    --handshakes   so many clients begin a TLS handshake
    --key-updates  a client sends nothing but TLS 1.3 KeyUpdate messages (needs Linux)

Exits with 1 if a response is wrong, lost or out of order, or if the probe waits over 0.25 s.
"""

import argparse
import contextlib
import ctypes
import random
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

APPLICATION = '''
import time

BODY = b"x" * 4_000_000

def app(environ, start_response):
    """Answers with the number in the path; what comes before it says how."""
    kind, number = environ["PATH_INFO"].strip("/").split("/")
    size = int(environ.get("CONTENT_LENGTH") or 0)
    read = len(environ["wsgi.input"].read(size)) if size else 0
    text = f"{kind} {number} {read}".encode()
    start_response("200 OK", [("Content-Type", "text/plain")])
    if kind == "slow":
        time.sleep(0.008)
    if kind == "sleep":
        time.sleep(1)
    if kind == "big":
        return [BODY]
    if kind == "stream":
        return (BODY[:50_000] for _ in range(80))
    return (text[i:i + 1] for i in range(len(text))) if kind == "pieces" else [text]
'''


def start(root, folder, tls):
    (folder / "application.py").write_text(APPLICATION)
    flags = []
    if tls:
        from http_support import CERTIFICATE
        (folder / "server.pem").write_text(CERTIFICATE)
        flags = ["--tls-cert", "server.pem"]
    process = subprocess.Popen(
        [sys.executable, str(root / "jwtserver.py"), "--port", "0", "--app", "application:app",
         "--protect", "/protected", *flags], cwd=folder, text=True, stdout=subprocess.PIPE,
        stderr=open(folder / "log", "w"))
    line = process.stdout.readline()
    return process, int(line.split("://", 1)[1].split()[0].rpartition(":")[2])


def connect(port, tls, receive_buffer=None):
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = context.wrap_socket(connection)
    return connection


def request(kind, number, size=0):
    """The header and the body of a request, and the text of the right response."""
    length = f"Content-Length: {size}\r\n" if size else ""
    header = f"POST /{kind}/{number} HTTP/1.1\r\nHost: a\r\n{length}\r\n".encode()
    return header, b"b" * size, f"{kind} {number} {size}".encode()


def read_response(file):
    """The status and body of the next response."""
    status = file.readline()
    if not status:
        raise ConnectionError("the connection ended")
    fields = dict(line.rstrip().lower().split(b": ", 1) for line in iter(file.readline, b"\r\n"))
    if b"content-length" in fields:
        body = file.read(int(fields[b"content-length"]))
    else:
        body = b""
        for size in iter(lambda: int(file.readline(), 16), 0):
            body += file.read(size)
            file.readline()
        file.readline()
    return int(status.split()[1]), body


def client(port, tls, seed, count, results):
    """Send `count` requests over one connection, and check each response."""
    dice, number = random.Random(seed), 0
    connection = connect(port, tls)
    file = connection.makefile("rb")
    while number < count:
        wanted, pieces = [], []
        for _ in range(dice.randint(1, 6)):
            number += 1
            kind = dice.choice(["fast", "fast", "fast", "pieces", "slow"])
            size = dice.choice([0, 0, 0, 10, 3000, 100_000 if dice.random() < 0.05 else 40])
            header, body, text = request(kind, f"{seed}-{number}", size)
            wanted.append(text)
            pieces += [header, body]
        # The last bytes of one request and the first of the next one travel together.
        data = b"".join(pieces)
        cuts = sorted(dice.sample(range(1, len(data)), min(dice.randint(0, 4), len(data) - 1)))
        try:
            for begin, end in zip([0, *cuts], [*cuts, len(data)]):
                connection.sendall(data[begin:end])
                if dice.random() < 0.2:
                    time.sleep(0.001)
            for text in wanted:
                status, body = read_response(file)
                right = status == 200 and body == text
                results["right" if right else "wrong or out of order"] += 1
        except (OSError, ValueError) as error:
            results[f"lost ({type(error).__name__})"] += 1
            file.close()
            connection.close()
            connection = connect(port, tls)
            file = connection.makefile("rb")
    file.close()
    connection.close()


def late_body_client(port, tls, seed, count, results):
    """A header, then its body together with a GET, then three more GETs, each in a TLS record."""
    dice = random.Random(seed)
    connection = connect(port, tls)
    file = connection.makefile("rb")
    for number in range(count // 5):
        kind = dice.choice(["fast", "slow"])
        header, body, text = request(kind, f"{seed}-{number}", dice.choice([40, 3000, 70_000]))
        gets = [request("fast", f"{seed}-{number}-{each}") for each in range(4)]
        try:
            connection.sendall(header)
            time.sleep(dice.choice([0, 0.001, 0.006, 0.01]))
            cut = max(0, len(body) - 10_000)
            connection.sendall(body[:cut])
            connection.sendall(body[cut:] + gets[0][0])
            for each in gets[1:]:
                connection.sendall(each[0])
            for wanted in (text, *(each[2] for each in gets)):
                right = read_response(file) == (200, wanted)
                results["right" if right else "wrong or out of order"] += 1
        except (OSError, ValueError) as error:
            results[f"lost ({type(error).__name__})"] += 1
            file.close()
            connection.close()
            connection = connect(port, tls)
            file = connection.makefile("rb")
    file.close()
    connection.close()


def check_responses(port, tls, clients, responses):
    results = Counter()
    threads = [threading.Thread(
        target=late_body_client if number % 2 else client,
        args=(port, tls, number, responses // clients + 5, results)) for number in range(clients)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{sum(results.values())} responses over {'TLS' if tls else 'HTTP'} in"
          f" {time.monotonic() - began:.0f} s: {dict(results)}")
    return set(results) == {"right"}


@contextlib.contextmanager
def reading_slowly(connections):
    """Read a little from each connection, in a thread."""
    stop = threading.Event()

    def read():
        while not stop.is_set():
            for connection in connections:
                with contextlib.suppress(OSError):  # a server may abort it
                    connection.recv(1000)
            time.sleep(0.1)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        stop.set()
        reader.join()


def probe(port, tls, seconds, label):
    """Send requests over new connections; tell whether each took at most 0.25 s."""
    slowest, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        with connect(port, tls) as connection, connection.makefile("rb") as file:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            assert read_response(file)[0] == 200
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.01)
    print(f"{label}: another client waited {slowest:.3f} s at most", flush=True)
    return slowest <= 0.25


def check_readers(port, tls, count):
    results = []
    for kind in ("big", "stream"):
        connections = [connect(port, tls, receive_buffer=4096) for _ in range(count)]
        for connection in connections:
            connection.sendall(request(kind, "0")[0])
        with reading_slowly(connections):
            label = f"{count} clients read /{kind} (4 MB) slowly"
            results.append(probe(port, tls, 8, label))
        for connection in connections:
            connection.close()
    return all(results)


def check_burst(port, tls, count, data, seconds, label):
    """Send `data` over many connections at once."""
    connections = [connect(port, tls) for _ in range(count)]
    sender = threading.Thread(target=lambda: [each.sendall(data) for each in connections])
    sender.start()
    quick = probe(port, tls, seconds, f"{count} {label}")
    sender.join()
    for connection in connections:
        connection.close()
    return quick


def check_handshakes(port, count):
    """Send a ClientHello over many connections at once; the probe makes a handshake too."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    hello = outgoing.read()
    connections = [connect(port, tls=False) for _ in range(count)]
    sender = threading.Thread(target=lambda: [each.sendall(hello) for each in connections])
    sender.start()
    quick = probe(port, True, 6, f"{count} TLS handshakes")
    sender.join()
    for connection in connections:
        connection.close()
    return quick


def check_key_updates(port):
    """Send KeyUpdate messages without a pause for eight seconds."""
    connection = connect(port, tls=True)
    library = ctypes.CDLL(ssl._ssl.__file__)
    library.SSL_key_update.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.SSL_do_handshake.argtypes = [ctypes.c_void_p]
    # struct PySSLSocket: PyObject_HEAD, PyObject *Socket, SSL *ssl
    pointer = ctypes.c_void_p.from_address(id(connection._sslobj) + 24).value
    end = time.monotonic() + 8

    def flood():
        sent = 0
        while time.monotonic() < end:
            if not library.SSL_key_update(pointer, 0) or library.SSL_do_handshake(pointer) != 1:
                break
            sent += 1
        print(f"{sent} KeyUpdate messages sent")

    flooding = threading.Thread(target=flood)
    flooding.start()
    quick = probe(port, True, 8, "KeyUpdate messages without a pause")
    flooding.join()
    connection.close()
    return quick


HEADERS = b"GET /fast/0 HTTP/1.1\r\nHost: a\r\n" + b"".join(
    b"X-%d: %b\r\n" % (number, b"x" * 500) for number in range(98)) + b"\r\n"


def attack(args, port):
    """Run the attack that the flags choose; tell whether the probe was quick."""
    if args.readers:
        return check_readers(port, args.tls, args.readers)
    if args.handshakes:
        return check_handshakes(port, args.handshakes)
    if args.key_updates:
        return check_key_updates(port)
    if args.headers:
        return check_burst(port, args.tls, args.headers, HEADERS, 6, "headers of 50 KB")
    if args.sleepers:
        header = request("sleep", "0")[0]
        return check_burst(port, args.tls, args.sleepers, header, 4, "requests that sleep 1 s")
    return check_responses(port, args.tls, args.clients, args.responses)


def main():
    parser = argparse.ArgumentParser(description="Check many responses.")
    parser.add_argument("--responses", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=16)
    for flag in ("--readers", "--sleepers", "--headers", "--handshakes"):
        parser.add_argument(flag, type=int, default=0)
    parser.add_argument("--key-updates", action="store_true")
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--root", type=Path, default=HERE.parents[1])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        process, port = start(args.root.resolve(), Path(folder), args.tls)
        try:
            right = attack(args, port)
        finally:
            process.terminate()
            process.stdout.read()
            process.wait()
        log = (Path(folder) / "log").read_text()
    faults = log.count("Traceback")
    print(f"tracebacks in the log: {faults}")
    sys.exit(not right or bool(faults))


if __name__ == "__main__":
    main()
