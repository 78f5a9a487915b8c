"""What verifying a token costs: `python tests/benchmarks/verify.py`.

Compares `TokenSigner.verify`, alone and behind the guard, with whichever of PyJWT and joserfc can
be imported, and with the floor: one HMAC-SHA256 over the signing input, one base64 decode and one
JSON decode of the payload. All take turns in each of many short rounds; printed are the medians of
the times, and of each round's own ratios, which hold where the machine's speed comes and goes.
"""

import base64
import hmac
import json
import platform
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from wsgi_auth import BearerAuthMiddleware, TokenSigner  # noqa: E402

ROUNDS, CALLS = 301, 100
KEY = "0123456789abcdef" * 4

signer = TokenSigner(KEY)
token = signer.sign({"sub": "alice", "username": "alice", "sid": "Jf4UWVmDcHyQVdZqQm8M1w"})
signing_input, _, _ = token.encode().rpartition(b".")
payload = signing_input.partition(b".")[2]
padded = payload + b"=" * (-len(payload) % 4)
environ = {
    "REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": "/protected",
    "HTTP_AUTHORIZATION": f"Bearer {token}",
}


def app(environ, start_response):
    return []


guard = BearerAuthMiddleware(app, signer, protect=["/protected"])


def floor():
    hmac.digest(KEY.encode(), signing_input, "sha256")
    json.loads(base64.urlsafe_b64decode(padded))


def verify():
    signer.verify(token)


def guarded():
    assert guard(dict(environ), None) == []


def unguarded():
    app(dict(environ), None)


subjects = {
    "the floor": floor,
    "TokenSigner.verify": verify,
    "a guarded request": guarded,
    "the same, unguarded": unguarded,
}

try:
    import jwt
except ImportError:
    pass
else:
    def pyjwt():
        jwt.decode(token, KEY, algorithms=["HS256"], options={"require": ["exp", "sub"]})
    subjects[f"PyJWT {jwt.__version__}, jwt.decode"] = pyjwt

try:
    import joserfc
    from joserfc import jwt as joserfc_jwt
    from joserfc.jwk import OctKey
except ImportError:
    pass
else:
    oct_key = OctKey.import_key(KEY)
    registry = joserfc_jwt.JWTClaimsRegistry(exp={"essential": True}, sub={"essential": True})

    def joserfc_decode():
        registry.validate(joserfc_jwt.decode(token, oct_key, algorithms=["HS256"]).claims)
    subjects[f"joserfc {joserfc.__version__}, decode and validate"] = joserfc_decode


def timed(subject):
    """Microseconds for a call."""
    start = time.perf_counter()
    for _ in range(CALLS):
        subject()
    return (time.perf_counter() - start) / CALLS * 1e6


def main():
    rounds = [
        {name: timed(subject) for name, subject in subjects.items()} for _ in range(ROUNDS)]

    def median(value):
        return statistics.median(value(times) for times in rounds)

    print(f"CPython {platform.python_version()}, {platform.machine()}, token of {len(token)} bytes,"
          f" median of {ROUNDS} rounds of {CALLS} calls\n")
    print(f"{'':40} {'µs':>8} {'x floor':>8} {'x verify':>9}")
    for name in subjects:
        print(f"{name:40} {median(lambda times: times[name]):8.2f}"
              f" {median(lambda times: times[name] / times['the floor']):8.2f}"
              f" {median(lambda times: times[name] / times['TokenSigner.verify']):9.2f}")
    added = median(lambda times: (
        times["a guarded request"] - times["the same, unguarded"] - times["TokenSigner.verify"]))
    print(f"\nThe guard adds {added:.2f} µs to verifying the token.")


if __name__ == "__main__":
    main()
