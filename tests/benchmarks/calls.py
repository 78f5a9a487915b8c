"""Calls of functions per guarded request: `python tests/benchmarks/calls.py [--requests 4800]`.

Counts the calls in the server's threads with `sys.setprofile`, so the figures have no noise. 16
clients keep their connections. All of them send a request, and then all of them read the response:
once with the same headers each time, once with a number in a header. The session is looked up in
SQLite. Prints the functions that are called most, too.
"""

import argparse
import os
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jwtserver  # noqa: E402

CONNECTIONS = 16
SHOWN = 8  # functions of each kind


class Profile:
    """Counts calls by kind and function while `enabled`."""

    def __init__(self):
        self.enabled = False
        self.calls = Counter()

    def __call__(self, frame, event, argument):
        if self.enabled and event == "call":
            code = frame.f_code
            self.calls["Python", getattr(code, "co_qualname", code.co_name)] += 1
        elif self.enabled and event == "c_call":
            self.calls["C", argument.__qualname__] += 1


def start_server(profile):
    """Start a server in this process; return its address and a token."""
    settings = jwtserver.Settings(secret="k" * 64)
    store, signer = jwtserver.open_store(settings.database), jwtserver.make_signer(settings)
    user, now = jwtserver.User("alice", "hash", "", 0, 0), time.time()
    store.add_users([user])
    grant = jwtserver.new_grant(user, 3600, now)
    store.open_session(grant, now)
    app = jwtserver.create_app(settings, store=store)
    listener = socket.create_server(("127.0.0.1", 0))
    threading.setprofile(profile)
    server = jwtserver._Server(app, [listener], settings)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return listener.getsockname(), jwtserver.issue_token(grant, signer, 3600, now)[0]


def send_all(connections, head, first_number, is_different):
    """Send a request on each connection, then read the responses."""
    for number, connection in enumerate(connections, first_number):
        field = f"X-Request-Id: {number if is_different else 0:08}\r\n"
        connection.sendall(f"{head}{field}\r\n".encode())
    for connection in connections:
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")


def count_calls(profile, address, token, requests, is_different):
    head = f"GET /protected HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n"
    connections = [socket.create_connection(address) for _ in range(CONNECTIONS)]
    for connection in connections:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    for number in range(-50 * CONNECTIONS, requests, CONNECTIONS):  # first without counting
        if number == 0:
            profile.calls.clear()
            profile.enabled = True
        send_all(connections, head, number, is_different)
    profile.enabled = False
    for connection in connections:
        connection.close()
    return Counter({function: count / requests for function, count in profile.calls.items()})


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=4800)
    args = parser.parse_args()
    requests = -(-args.requests // CONNECTIONS) * CONNECTIONS
    os.chdir(tempfile.mkdtemp())
    profile = Profile()
    address, token = start_server(profile)
    counted = {label: count_calls(profile, address, token, requests, is_different)
               for label, is_different in (("same headers", False), ("different headers", True))}
    print(f"| calls per guarded request | {' | '.join(counted)} |\n| --- | ---: | ---: |")
    for kind in ("Python", "C"):
        of_kind = [Counter({name: count for (each, name), count in calls.items() if each == kind})
                   for calls in counted.values()]
        print_row(f"**{kind}**", [sum(calls.values()) for calls in of_kind])
        for name, _ in of_kind[-1].most_common(SHOWN):
            print_row(f"`{name}`", [calls[name] for calls in of_kind])


def print_row(label, figures):
    print(f"| {label} |", " | ".join(f"{figure:.1f}" for figure in figures), "|")


if __name__ == "__main__":
    main()
