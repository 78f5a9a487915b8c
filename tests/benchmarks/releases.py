"""What a change costs over HTTP: this checkout beside another one, in one run.

    git worktree add ../before 5e55287
    python tests/benchmarks/releases.py ../before [--rounds 5] [--seconds 4]
    python tests/benchmarks/releases.py ../before --logins

The two servers take turns in each round; medians of the rates are printed, with the same header on
each request and with different ones. With --logins: the time of a guarded request every 10 ms while
8 clients sign in without a pause. Needs wrk and taskset.
"""

import argparse
import statistics
from pathlib import Path

import http_server

HERE = Path(__file__).resolve().parent
VARY = ["-s", str(HERE / "vary.lua")]


def servers(before):
    """Add a server of each checkout to those that http_server.py can start."""
    command, environ = http_server.SERVERS["jwtserver"]
    python, _, *flags = command
    program = str(Path(before).resolve() / "jwtserver.py")
    http_server.SERVERS["jwtserver before"] = ([python, program, *flags], environ)
    return "jwtserver before", "jwtserver"


def compare_rates(names, rounds, seconds):
    for label, options in (("same headers", []), ("different headers", VARY)):
        measured = http_server.rounds(names, rounds, seconds, *options)
        before, after = (statistics.median(one[name] for one in measured) for name in names)
        ratio = statistics.median(one[names[1]] / one[names[0]] for one in measured)
        print(f"{label}: {before:.0f} requests/s before, {after:.0f} after, ratio {ratio:.2f}")


def compare_logins(names, rounds, seconds):
    measured = [{name: http_server.under_logins(name, seconds) for name in names}
                for _ in range(rounds)]
    for name in names:
        p50, p99, slowest, logins = (
            statistics.median(getattr(one[name], field) for one in measured)
            for field in ("p50", "p99", "slowest", "logins"))
        print(f"{name}: p50 {p50:.1f} ms, p99 {p99:.1f} ms, slowest {slowest:.1f} ms,"
              f" {logins:.1f} sign-ins/s")
    ratio = statistics.median(one[names[1]].p99 / one[names[0]].p99 for one in measured)
    print(f"p99 after to before: {ratio:.2f}")


def main():
    parser = argparse.ArgumentParser(description="Compare two checkouts.")
    parser.add_argument("before", help="the folder of the other checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--logins", action="store_true")
    args = parser.parse_args()
    compare = compare_logins if args.logins else compare_rates
    compare(servers(args.before), args.rounds, args.seconds)


if __name__ == "__main__":
    main()
