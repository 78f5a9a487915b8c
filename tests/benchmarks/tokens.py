"""Signs and verifies tokens with one library: `python tests/benchmarks/tokens.py LIBRARY`.

For each line of the input, `verify` or `sign`, and how often, it prints the seconds that it took.
Every token gets iat, exp and a random jti; every one is verified with its times and its subject.
"""

import secrets
import sys
import time
import warnings

KEY = "0123456789abcdef" * 4
CLAIMS = {"sub": "alice", "username": "alice", "sid": "Jf4UWVmDcHyQVdZqQm8M1w"}
CHECKED = {"exp": {"essential": True}, "sub": {"essential": True}}


def dated():
    now = int(time.time())
    return {**CLAIMS, "iat": now, "exp": now + 3600, "jti": secrets.token_urlsafe(16)}


def wsgi_auth():
    from wsgi_auth import TokenSigner
    signer = TokenSigner(KEY)
    return signer.verify, lambda: signer.sign(CLAIMS)


def pyjwt():
    import jwt
    options = {"require": ["exp", "sub"]}
    return (lambda token: jwt.decode(token, KEY, algorithms=["HS256"], options=options),
            lambda: jwt.encode(dated(), KEY, algorithm="HS256"))


def joserfc():
    from joserfc import jwt
    from joserfc.jwk import OctKey
    key, registry = OctKey.import_key(KEY), jwt.JWTClaimsRegistry(**CHECKED)
    return (lambda token: registry.validate(jwt.decode(token, key, algorithms=["HS256"]).claims),
            lambda: jwt.encode({"alg": "HS256", "typ": "JWT"}, dated(), key))


def authlib():
    from authlib.deprecate import AuthlibDeprecationWarning
    warnings.simplefilter("ignore", AuthlibDeprecationWarning)  # that joserfc is to follow it
    from authlib.jose import JsonWebToken, OctKey
    jwt, key = JsonWebToken(["HS256"]), OctKey.import_key(KEY)
    return (lambda token: jwt.decode(token, key, claims_options=CHECKED).validate(),
            lambda: jwt.encode({"alg": "HS256", "typ": "JWT"}, dated(), key).decode())


def python_jose():
    from jose import jwt
    options = {"require_exp": True, "require_sub": True}
    return (lambda token: jwt.decode(token, KEY, algorithms=["HS256"], options=options),
            lambda: jwt.encode(dated(), KEY, algorithm="HS256"))


def main():
    verify, sign = globals()[sys.argv[1].lower().replace("-", "_")]()
    token = sign()
    for line in sys.stdin:
        task, count = line.split()
        start = time.perf_counter()
        if task == "verify":
            for _ in range(int(count)):
                verify(token)
        else:
            for _ in range(int(count)):
                sign()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
