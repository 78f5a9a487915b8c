"""Side by side with its peers, in one table: `python tests/benchmarks/compare.py [--rounds 5]`.

It installs the peers beside itself (`pip install --target`, `npm ci`, `apt-get download`) and needs
wrk, taskset, node, npm and Debian. All take turns in each round: libraries verify and sign tokens,
each in a process of its own; servers answer guarded requests, as `http_server.py` says. The
medians are printed, and in brackets the medians of each round's own ratios: how many times as well
this project does. `--only servers` and `--only libraries` measure half of that.
"""

import argparse
import datetime
import platform
import shutil
import statistics
import subprocess
import sys

import http_server
import peers

OURS = "wsgi_auth"
LIBRARIES = {  # what runs them, and the peer that they are
    OURS: (["tokens.py", OURS], None),
    "PyJWT": (["tokens.py", "pyjwt"], "PyJWT"),
    "joserfc": (["tokens.py", "joserfc"], "joserfc"),
    "Authlib": (["tokens.py", "authlib"], "Authlib"),
    "python-jose": (["tokens.py", "python-jose"], "python-jose"),
    "jsonwebtoken": (["node/tokens.js", "jsonwebtoken"], "jsonwebtoken"),
    "jsonwebtoken, KeyObject": (["node/tokens.js", "jsonwebtoken, KeyObject"], "jsonwebtoken"),
    "fast-jwt": (["node/tokens.js", "fast-jwt"], "fast-jwt"),
}
SERVED_BY = {  # the peer that a server is made of
    "jwtserver": None, "Fastify, @fastify/jwt": "Fastify", "Express": "Express",
    "Express, KeyObject": "Express", "jwtserver under gunicorn": "gunicorn",
    "jwtserver under granian": "granian", "Flask, Flask-JWT-Extended": "Flask",
    "Django, Simple JWT": "Django", "FastAPI, PyJWT": "FastAPI", "Go, golang-jwt": "Go",
    "Bun, fast-jwt": "fast-jwt", "Bun, Hono": "Hono", http_server.LIMIT: None,
}
HEAD = ("", "verify, µs", "sign, µs", "guarded requests/s", "with different headers",
        "p99 while 8 sign in, ms", "memory, MB", "first answer, ms", "packages", "lines")


class Library:
    """A process that signs and verifies."""

    def __init__(self, name):
        (program, library), peer = LIBRARIES[name]
        runtime = "node" if program.endswith(".js") else sys.executable
        self.process = subprocess.Popen(
            [runtime, str(peers.HERE / program), library], env=peers.environ_of(peer), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def time(self, task, count=400):
        """Microseconds for a token."""
        print(task, count, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline()) / count * 1e6

    def end(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def tokens(rounds):
    """For each library, the cells of its tasks."""
    libraries = {name: Library(name) for name in LIBRARIES}
    cells = {name: [] for name in libraries}
    for task in ("verify", "sign"):
        for library in libraries.values():
            library.time(task, 2000)  # to warm up
        measured = [{name: library.time(task) for name, library in libraries.items()}
                    for _ in range(20 * rounds)]
        for name in libraries:
            median = statistics.median(one[name] for one in measured)
            ratio = statistics.median(one[name] / one[OURS] for one in measured)
            cells[name].append(cell(median, ratio, name != OURS))
    for library in libraries.values():
        library.end()
    return cells


def cell(value, ratio, compared):
    shown = f"{value:.1f}" if value < 100 else f"{value:.0f}"
    return f"{shown} ({ratio:.{2 if ratio < 10 else 0}f})" if compared else shown


def size(peer, *files):
    """The cells of packages and lines."""
    packages, lines = peers.size(peer) if peer else (0, 0)
    lines += sum(peers.lines(peers.ROOT / file) for file in files)
    return [str(packages), f"{lines:,}"]


def library_rows(rounds):
    for name, (verify, sign) in tokens(rounds).items():
        peer = LIBRARIES[name][1]
        own = size(peer) if peer else size(None, "wsgi_auth.py")
        yield [name, verify, sign, *[""] * 5, *own]


def server_rows(rounds, seconds):
    same = http_server.rounds(http_server.SERVERS, rounds, seconds)
    different = http_server.rounds(http_server.SERVERS, rounds, seconds, *http_server.VARY)
    rests = [{name: http_server.under_logins(name, 2 * seconds) for name in http_server.SERVERS}
             for _ in range(min(rounds, 3))]
    for name in http_server.SERVERS:
        compared = name != "jwtserver"
        cells = [cell(*http_server.rate(measured, name), compared)
                 for measured in (same, different)]
        for figure in ("p99", "memory", "first"):
            if figure == "p99" and name in http_server.WITHOUT_SIGN_IN:
                cells.append("")
                continue
            values = [(getattr(rest[name], figure), getattr(rest["jwtserver"], figure))
                      for rest in rests]
            cells.append(cell(statistics.median(value for value, _ in values),
                              statistics.median(value / own for value, own in values), compared))
        own = ("wsgi_auth.py", "jwtserver.py") if name.startswith("jwtserver") else ()
        yield [name, "", "", *cells, *size(SERVED_BY[name], *own)]


def main():
    parser = argparse.ArgumentParser(description="Compare with the peers.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--only", choices=("libraries", "servers"))
    args = parser.parse_args()
    tools = ("wrk", "taskset", "node", "npm", "apt-get")
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing:
        sys.exit(f"Missing: {', '.join(missing)}")
    peers.install()
    rows = [HEAD, ["---", *["---:"] * (len(HEAD) - 1)]]
    if args.only != "servers":
        rows += library_rows(args.rounds)
    if args.only != "libraries":
        rows += server_rows(args.rounds, args.seconds)
    node, bun = (subprocess.run([command, "--version"], capture_output=True, text=True).stdout
                 for command in ("node", peers.BUN))
    known = dict.fromkeys(version for peer in (*peers.PYTHON, *peers.NODE, "Go")
                          for version in peers.versions(peer))
    print(f"{datetime.date.today()}, {platform.machine()}, CPython {platform.python_version()},"
          f" Node {node.strip().lstrip('v')}, Bun {bun.strip()}, {', '.join(known)}\n")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))


if __name__ == "__main__":
    main()
