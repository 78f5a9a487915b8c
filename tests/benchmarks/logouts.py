"""Whether a logout applies at once in every process: `python tests/benchmarks/logouts.py`.

Starts two servers on one SQLite file, with a key file whose `stat` takes 20 ms. In each round,
several sessions are ended at server A, which must check the key file first, and then waits for the
database. Meanwhile other sessions are ended at server B. As soon as B has confirmed a logout, the
token of that session is sent to A. Prints how many A accepted, and exits with 1 if any.

`--source FOLDER` runs the modules of another checkout.
"""

import argparse
import http.client
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import jwtserver  # noqa: E402

PARALLEL = 4  # logouts at server A in each round
STAT_SECONDS = 0.02
INTERVAL = jwtserver.KEY_FILE_INTERVAL + 0.1  # seconds until a server checks the key file again
LAUNCHER = f"""
import os, sys, time
sys.path.insert(0, sys.argv.pop(1))
stat = os.stat

def slow_stat(path, *arguments, **options):
    if str(path).endswith(".key"):
        time.sleep({STAT_SECONDS})
    return stat(path, *arguments, **options)

os.stat = slow_stat
import jwtserver
sys.exit(jwtserver.main(["--port", "0"]))
"""


def start_server(source):
    """A server in the current folder, and its port."""
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(source)], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return process, int(process.stdout.readline().split(" (")[0].rpartition(":")[2])


def issue_tokens(count):
    """Tokens of as many sessions of one user."""
    settings, now = jwtserver.Settings(), time.time()
    store, signer = jwtserver.open_store(settings.database), jwtserver.make_signer(settings)
    user = jwtserver.User("alice", "hash", "", 0, 0)
    store.add_users([user])
    tokens = []
    for _ in range(count):
        grant = jwtserver.new_grant(user, 3600, now)
        store.open_session(grant, now)
        tokens.append(jwtserver.issue_token(grant, signer, 3600, now)[0])
    store.close()
    return tokens


class Client:
    """A connection to a server."""

    def __init__(self, port):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def send(self, token, method="GET", path="/protected"):
        self.connection.request(method, path, headers={"Authorization": f"Bearer {token}"})

    def receive(self):
        """The status of the response."""
        response = self.connection.getresponse()
        response.read()
        return response.status


def count_accepted(here, there, valid, pairs):
    """How many tokens `here` accepts after `there` has confirmed their logout."""
    ending = [Client(here) for _ in range(PARALLEL)]
    elsewhere, asking = Client(there), Client(here)
    accepted = 0
    for first in range(0, len(pairs), PARALLEL):
        time.sleep(INTERVAL)
        elsewhere.send(valid)  # so that this server has just checked the key file
        assert elsewhere.receive() == 200
        for client, (token, _) in zip(ending, pairs[first:]):
            client.send(token, "POST", "/logout")
        time.sleep(STAT_SECONDS / 2)  # they check the key file, and write while others do
        for _, token in pairs[first:first + PARALLEL]:
            elsewhere.send(token, "POST", "/logout")
            assert elsewhere.receive() == 204
            asking.send(token)
            accepted += asking.receive() == 200
        assert [client.receive() for client in ending] == [204] * PARALLEL
    return accepted


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--source", type=Path, default=ROOT)
    args = parser.parse_args()
    os.chdir(tempfile.mkdtemp())
    count = args.rounds * PARALLEL
    valid, *tokens = issue_tokens(2 * count + 1)
    servers = [start_server(args.source.resolve()) for _ in range(2)]
    try:
        accepted = count_accepted(
            servers[0][1], servers[1][1], valid, list(zip(tokens[:count], tokens[count:])))
    finally:
        for process, _ in servers:
            process.terminate()
            process.wait()
            process.stdout.close()
    print(f"{accepted} of {count} tokens were accepted after their logout was confirmed")
    return 1 if accepted else 0


if __name__ == "__main__":
    sys.exit(main())
