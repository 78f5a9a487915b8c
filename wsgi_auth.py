"""Sign-in for any WSGI application: JSON Web Tokens, password hashes, and a guard for paths.

A user signs in with a password and gets a token. A request with a valid token passes the guard::

    import wsgi_auth

    signer = wsgi_auth.TokenSigner(key)  # make a key with secrets.token_hex(32)
    application = wsgi_auth.BearerAuthMiddleware(application, signer, exempt=["/public"])

    if wsgi_auth.verify_password(password, stored_hash):
        token = signer.sign({"sub": "alice"})

Behind the guard, an application can trust these keys of its environ:

- ``wsgi_auth.claims``: the verified claims, a dict
- ``REMOTE_USER``: the claim ``sub``
- ``AUTH_TYPE``: ``"Bearer"``

The module defends against forged, expired and malformed tokens (RFC 8725), against guessing
passwords from stolen hashes (OWASP Password Storage Cheat Sheet), and against paths that a guard
and an application read differently. It needs only the standard library, does no I/O, reads no
environment variables, and keeps no state except rate-limit counters and a cache of recent paths.
You can copy this one file into any project.

The chapters. Each one uses only the chapters above it:

- Errors: every reason to reject a token or a key
- base64url and JSON: strict parsing of bytes that anyone may have sent
- Signatures: which keys are usable, HMAC-SHA256, and the header of a token
- Claims: expiry, issuer, audience and the other registered claims
- Tokens: the public functions `encode` and `decode`, and `TokenSigner`
- Passwords: new hashes, and the hashes of other libraries
- Path rules: which rules apply to a path
- The guard, The rate limit, CORS: the three WSGI middleware classes
"""

import base64
import hashlib
import hmac
import json
import math
import re
import secrets
import string
import threading
import time
import unicodedata
from binascii import Error as Base64Error, a2b_base64, b2a_base64
from collections import OrderedDict
from functools import lru_cache
from itertools import filterfalse
from typing import (
    Any, Callable, Dict, FrozenSet, Iterable, List, Mapping, NamedTuple, Optional,
    Protocol, Sequence, Tuple, Union,
)
from urllib.parse import unquote_to_bytes

__all__ = [
    "BearerAuthMiddleware", "CORSMiddleware", "DecodeError", "ExpiredSignatureError",
    "ImmatureSignatureError", "InvalidAlgorithmError", "InvalidAudienceError",
    "InvalidClaimError", "InvalidIssuerError", "InvalidKeyError", "InvalidSignatureError",
    "InvalidTokenError", "MAX_TOKEN_BYTES", "MissingRequiredClaimError", "PBKDF2_ITERATIONS",
    "RateLimitMiddleware", "TokenSigner", "decode", "encode", "hash_password", "needs_rehash",
    "parse_json_object", "parse_scopes", "password_iterations", "verify_password",
]

MAX_TOKEN_BYTES = 16 * 1024  # a longer token is rejected before any of it is parsed
MAX_JSON_DEPTH = 100  # the parser recurses; CPython 3.13 could overflow a thread's stack
MIN_KEY_BYTES = 32  # RFC 7518 §3.2: at least the size of the hash
PBKDF2_ITERATIONS = 600_000  # OWASP Password Storage Cheat Sheet, PBKDF2-HMAC-SHA256
MAX_PBKDF2_ITERATIONS = 10_000_000  # takes seconds; a stored hash with more is rejected
MAX_PASSWORD_BYTES = 1024  # of UTF-8
SALT_BYTES = 16  # NIST SP 800-132 §5.1
MAX_REMEMBERED = 1024  # requests, by method and path, of which the guard knows what they need
MAX_REMEMBERED_LENGTH = 256  # characters of those
MAX_BUCKETS = 65_536  # clients that a rate limit remembers; some 10 MB

Claims = Dict[str, Any]
Environ = Dict[str, Any]
StartResponse = Callable[..., Any]
WSGIApplication = Callable[[Environ, StartResponse], Iterable[bytes]]
Key = Union[str, bytes]
Keys = Union[Key, Sequence[Key]]
StrOrList = Union[str, Sequence[str], None]  # None: not checked
Scopes = Tuple[str, ...]
Rules = Union[Sequence[str], Mapping[str, Union[str, Iterable[str]]]]  # or rules and their scopes
Headers = List[Tuple[str, str]]  # of a response
HMACFunction = Callable[[bytes], bytes]  # from a signing input to its signature in base64url


# --- Errors -------------------------------------------------------------------------------------
#
# Design: every rejected token raises a subclass of InvalidTokenError, so callers catch one class.
# The class names are those of PyJWT. Each message is a fixed sentence that may be sent to the
# client or logged, so it must never contain any part of a token or key.


class InvalidKeyError(ValueError):
    """The signing key is unusable. The message explains how to make a valid key."""


class InvalidTokenError(Exception):
    """The token is rejected: the base class of all errors about tokens."""


class DecodeError(InvalidTokenError):
    """The token is malformed."""


class InvalidSignatureError(DecodeError):
    """The signature does not match any of the keys."""


class InvalidAlgorithmError(InvalidTokenError):
    """The header names an algorithm other than HS256."""


class ExpiredSignatureError(InvalidTokenError):
    """The time in `exp` has passed."""


class ImmatureSignatureError(InvalidTokenError):
    """The time in `nbf` or `iat` is in the future."""


class InvalidClaimError(InvalidTokenError):
    """A claim has a value that is not allowed."""


class InvalidAudienceError(InvalidClaimError):
    """The token is meant for another audience, or `aud` is malformed."""


class InvalidIssuerError(InvalidClaimError):
    """The token was issued by another issuer, or `iss` is malformed."""


class MissingRequiredClaimError(InvalidTokenError):
    """A required claim is missing; `claim` is its name."""

    def __init__(self, claim: str) -> None:
        super().__init__(claim)
        self.claim = claim

    def __str__(self) -> str:
        return f"Token is missing the {self.claim} claim"


# --- base64url and JSON -------------------------------------------------------------------------
#
# Design: two programs that read one token must get the same claims from it. So base64url is
# accepted only in its canonical form, and JSON only if RFC 8259 gives it exactly one meaning.
# Python's C parsers are fast but lenient; cheap checks before and after them reject the rest. For
# any bytes, these functions return a value or raise DecodeError, in time linear in the input.

_BASE64_TO_BASE64URL = bytes.maketrans(b"+/", b"-_")
# Characters valid only in base64 become `!`, which the encoder never writes.
_BASE64URL_TO_BASE64 = bytes.maketrans(b"-_+/=", b"+/!!!")
_PADDING_BY_LENGTH = (b"", b"===", b"==", b"=")  # of the text, modulo 4


def _base64url_encode(data: bytes) -> bytes:
    return b2a_base64(data, newline=False).translate(_BASE64_TO_BASE64URL, b"=")


def _base64url_decode(text: bytes) -> bytes:
    """Decode base64url in its canonical form (RFC 7515 §2, RFC 4648 §3.5).

    Lenient decoders accept many spellings of one token. Encoding the result again and comparing
    accepts only the canonical one.
    """
    padded = text.translate(_BASE64URL_TO_BASE64) + _PADDING_BY_LENGTH[len(text) % 4]
    try:
        decoded = a2b_base64(padded)
    except Base64Error:
        raise DecodeError("Invalid base64url") from None
    if b2a_base64(decoded, newline=False) != padded:
        raise DecodeError("Invalid base64url")
    return decoded


def _refuse_duplicates(members: List[Tuple[str, Any]]) -> Dict[str, Any]:
    unique_members = dict(members)
    if len(unique_members) != len(members):  # RFC 7519 §4: another parser may pick the other value
        raise DecodeError("Duplicate member name in JSON")
    return unique_members


def _finite_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):  # RFC 8259 §6 has no NaN and no Infinity; 1e400 overflows
        raise DecodeError("JSON numbers must be finite")
    return number


_parse_json = json.JSONDecoder(
    parse_float=_finite_number, parse_constant=_finite_number).raw_decode
_parse_unique_json = json.JSONDecoder(
    parse_float=_finite_number, parse_constant=_finite_number,
    object_pairs_hook=_refuse_duplicates).raw_decode
_write_json = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_ESCAPES_QUOTES_BRACKETS = re.compile(r'\\.|["\[{\]}]')


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_JSON_DEPTH:
        return
    depth, in_string = 0, False
    for mark in _ESCAPES_QUOTES_BRACKETS.findall(text):
        if mark == '"':
            in_string = not in_string
        elif not in_string:
            depth += 1 if mark in "[{" else -1
        if depth > MAX_JSON_DEPTH:
            raise DecodeError("JSON is nested too deeply")


def parse_json_object(data: bytes) -> Dict[str, Any]:
    """Parse one JSON object in UTF-8, strictly (RFC 8259).

    Duplicate member names, NaN, Infinity, numbers that overflow, lone surrogates, and more than
    100 levels of arrays and objects are rejected.

    Raises:
        DecodeError: `data` is anything else.

    >>> parse_json_object(b'{"a": 1}')
    {'a': 1}
    >>> parse_json_object(b'{"a": 1, "a": 2}')
    Traceback (most recent call last):
    wsgi_auth.DecodeError: Duplicate member name in JSON
    """
    try:
        text = data.decode().strip(" \t\n\r")
        colons = text.count(":")  # one for each member, and perhaps others inside strings
        if "[" in text or colons >= MAX_JSON_DEPTH:  # each nested level needs one or the other
            _check_depth(text)
        members, members_end = _parse_json(text)
        if members_end != len(text) or type(members) is not dict:
            raise DecodeError("Expected one JSON object")
        # As many colons as names: no duplicates. Otherwise parse again with the duplicate check,
        # which is slower. A colon before `//` is not counted: it is inside a string, in a URL.
        if colons != len(members) and colons - text.count("://") != len(members):
            _parse_unique_json(text)
        if "\\" in text:
            _write_json(members).encode()  # raises for a lone surrogate, which UTF-8 cannot express
    except (ValueError, RecursionError):
        raise DecodeError("Invalid JSON") from None
    return members


# --- Signatures ---------------------------------------------------------------------------------
#
# Design: the outer layer of a token, `header.payload.signature` (RFC 7515 §7.1). There is only one
# algorithm, HS256, and no header parameter ever chooses a key (RFC 8725 §3.1). Each key becomes a
# function that signs bytes. Verifying means signing again and comparing in constant time. The
# payload must not be parsed before that, so a forged payload never reaches the JSON parser.

_STANDARD_HEADER = _base64url_encode(b'{"alg":"HS256","typ":"JWT"}')
_TOKEN_TYPES = ("jwt", "at+jwt", "application/jwt", "application/at+jwt")  # RFC 7519 §5.1, RFC 9068
_ASYMMETRIC_KEY = re.compile(
    rb"-----BEGIN|---- BEGIN SSH2|ssh-(?:rsa|dss|ed|xmss)|ecdsa-sha2-")
_KEY_ADVICE = (
    "Use at least 32 random bytes. This command prints a valid key:"
    ' python -c "import secrets; print(secrets.token_hex(32))"'
)
_HMAC_BLOCK_BYTES = 64  # RFC 2104 §2: B, for SHA-256
_INNER_PAD = bytes(byte ^ 0x36 for byte in range(256))  # RFC 2104 §2: ipad, as a translation table
_OUTER_PAD = bytes(byte ^ 0x5C for byte in range(256))  # opad


def _key_bytes(key: Any) -> bytes:
    """Return the bytes of a key, or raise InvalidKeyError.

    A public key is not a secret: used as an HMAC key, it would let anyone sign (RFC 8725 §2.1).
    """
    try:
        key_bytes = key if isinstance(key, bytes) else str.encode(key)
    except (TypeError, UnicodeEncodeError):
        raise InvalidKeyError(f"The key must be bytes or valid text. {_KEY_ADVICE}") from None
    if len(key_bytes) < MIN_KEY_BYTES:
        raise InvalidKeyError(f"The key is too short ({len(key_bytes)} bytes). {_KEY_ADVICE}")
    without_nul = key_bytes.replace(b"\0", b"")  # finds a PEM file in UTF-16 as well
    if _ASYMMETRIC_KEY.search(without_nul) or _is_json_document(key_bytes):
        raise InvalidKeyError(f"A PEM, SSH or JWK document is not an HMAC key. {_KEY_ADVICE}")
    return key_bytes


def _is_json_document(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), (dict, list))
    except (ValueError, RecursionError):
        return False


def _hmac_functions(keys: Keys) -> List[HMACFunction]:
    """Return one signing function for each key, in the same order."""
    is_single = isinstance(keys, (str, bytes)) or not isinstance(keys, Sequence)
    key_list = [keys] if is_single else keys
    if not key_list:
        raise InvalidKeyError(f"There is no key. {_KEY_ADVICE}")
    return [_hmac_function(_key_bytes(key)) for key in key_list]


def _hmac_function(key: bytes) -> HMACFunction:
    """Return HMAC-SHA256 with this key (RFC 2104 §2).

    Hashing the two padded keys only once halves the cost of hmac.digest().
    """
    short_key = hashlib.sha256(key).digest() if len(key) > _HMAC_BLOCK_BYTES else key
    block = short_key.ljust(_HMAC_BLOCK_BYTES, b"\0")
    inner_start = hashlib.sha256(block.translate(_INNER_PAD))
    outer_start = hashlib.sha256(block.translate(_OUTER_PAD))

    def sign(message: bytes) -> bytes:
        inner, outer = inner_start.copy(), outer_start.copy()
        inner.update(message)
        outer.update(inner.digest())
        return _base64url_encode(outer.digest())

    return sign


def _check_header(header: Dict[str, Any]) -> None:
    """Reject a header that asks for more than HS256 (RFC 8725 §3.1, RFC 7515 §4.1.11)."""
    if header.get("alg") != "HS256":
        raise InvalidAlgorithmError("The algorithm must be HS256")
    if "crit" in header or "b64" in header:
        raise DecodeError("Token uses an extension that is not supported")
    token_type = header.get("typ", "JWT")
    if not isinstance(token_type, str) or token_type.lower() not in _TOKEN_TYPES:
        raise DecodeError("The token type must be JWT or at+jwt")


def _sign(header: bytes, claims: Claims, hmac_function: HMACFunction) -> str:
    if not isinstance(claims, dict):
        raise TypeError("claims must be a dict")
    signing_input = header + b"." + _base64url_encode(_write_json(claims).encode())
    return (signing_input + b"." + hmac_function(signing_input)).decode()


def _verify_signature(token: Any, hmac_functions: List[HMACFunction]) -> Claims:
    """Return the claims of a token that one of the keys signed, without checking the claims."""
    if isinstance(token, str):
        token = str.encode(token, "ascii", "replace")  # with `?`, which is never valid in a token
    if not isinstance(token, bytes):
        raise DecodeError("Token must be text or bytes")
    if len(token) > MAX_TOKEN_BYTES:
        raise DecodeError("Token is too long")
    signing_input, _, signature = token.rpartition(b".")
    header, separator, payload = signing_input.partition(b".")
    if not separator:
        raise DecodeError("Token must have three parts")
    if header != _STANDARD_HEADER:  # PyJWT and jsonwebtoken write the same one; skip parsing it
        _check_header(parse_json_object(_base64url_decode(header)))
    for hmac_function in hmac_functions:
        # Comparing the encoded form accepts only the canonical spelling of the signature.
        if hmac.compare_digest(hmac_function(signing_input), signature):
            return parse_json_object(_base64url_decode(payload))
    raise InvalidSignatureError("Signature verification failed")


# --- Claims -------------------------------------------------------------------------------------
#
# Design: the inner layer of a token, its registered claims (RFC 7519 §4.1), with one function for
# each kind of claim. A registered claim must have the right type wherever it is present. The caller
# decides which claims must be present and which issuers and audiences are accepted. These functions
# never read the clock: they get `now`, in seconds since 1970.

_NUMBER_TYPES = (int, float)  # compared with type(), because bool is a subclass of int


def _validate_claims(
    claims: Claims, require: Iterable[str], now: float, leeway: float, audience: StrOrList,
    issuer: StrOrList,
) -> None:
    for name in require:
        if name not in claims:
            raise MissingRequiredClaimError(name)
    if "exp" in claims:
        _validate_expiry(claims["exp"], now - leeway)
    if "nbf" in claims:
        _validate_start("nbf", claims["nbf"], now + leeway)
    if "iat" in claims:
        _validate_start("iat", claims["iat"], now + leeway)
    if type(claims.get("sub", "")) is not str or type(claims.get("jti", "")) is not str:
        raise InvalidClaimError("sub and jti must be strings")
    if issuer is not None or "iss" in claims:
        _validate_issuer(claims, issuer)
    if audience is not None or "aud" in claims:
        _validate_audience(claims, audience)


def _validate_expiry(expiry: Any, now: float) -> None:
    """RFC 7519 §4.1.4."""
    if type(expiry) not in _NUMBER_TYPES:
        raise InvalidClaimError("exp must be a number")
    if not now < expiry:  # `now >= expiry` would accept the token if the leeway were NaN
        raise ExpiredSignatureError("Token has expired")


def _validate_start(name: str, start: Any, now: float) -> None:
    """RFC 7519 §4.1.5, §4.1.6. A token from the future means a wrong clock or a forgery."""
    if type(start) not in _NUMBER_TYPES:
        raise InvalidClaimError(f"{name} must be a number")
    if not now >= start:
        raise ImmatureSignatureError(f"Token is not valid yet ({name})")


def _validate_issuer(claims: Claims, issuer: StrOrList) -> None:
    """RFC 7519 §4.1.1."""
    if "iss" not in claims:
        raise MissingRequiredClaimError("iss")
    if type(claims["iss"]) is not str:
        raise InvalidIssuerError("iss must be a string")
    accepted_issuers = [issuer] if isinstance(issuer, str) else issuer
    if accepted_issuers is not None and claims["iss"] not in accepted_issuers:
        raise InvalidIssuerError("Invalid issuer")


def _validate_audience(claims: Claims, audience: StrOrList) -> None:
    """RFC 7519 §4.1.3: a recipient that `aud` does not name must reject the token."""
    if "aud" not in claims:
        raise MissingRequiredClaimError("aud")
    token_audiences = [claims["aud"]] if isinstance(claims["aud"], str) else claims["aud"]
    if (not isinstance(token_audiences, list)
            or not all(type(name) is str for name in token_audiences)):
        raise InvalidAudienceError("aud must be a string or a list of strings")
    accepted_audiences = [audience] if isinstance(audience, str) else audience or ()
    if not any(name in accepted_audiences for name in token_audiences):
        raise InvalidAudienceError("Invalid audience")


# --- Tokens -------------------------------------------------------------------------------------
#
# Design: the public functions. Each combines the two layers above: the signature first, then the
# claims. `encode` and `decode` take everything as arguments. A TokenSigner keeps the keys and one
# policy, so it is faster and harder to misuse. It never changes, so threads can share it.


def encode(claims: Claims, key: Key, *, headers: Optional[Mapping[str, Any]] = None) -> str:
    """Sign `claims` with HMAC-SHA256 as a JSON Web Token (RFC 7519, RFC 7515 §3.1).

    `claims` are written as they are. `headers` are additional header parameters.

    Raises:
        InvalidKeyError: the key has fewer than 32 bytes, or is a PEM, SSH or JWK document.
        InvalidTokenError: `decode` would reject a token with these `headers`.
        TypeError, ValueError: the claims are not a dict that JSON can express.

    >>> encode({"sub": "alice"}, "k" * 32)[:42]
    'eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzd'
    """
    header = {"alg": "HS256", "typ": "JWT", **(headers or {})}
    _check_header(header)
    encoded_header = _base64url_encode(_write_json(header).encode())
    return _sign(encoded_header, claims, _hmac_functions(key)[0])


def decode(
    token: Union[str, bytes], key: Keys, *, audience: StrOrList = None, issuer: StrOrList = None,
    leeway: float = 0, require: Iterable[str] = (), now: Optional[float] = None,
) -> Claims:
    """Verify a token and return its claims (RFC 7519 §7.2, RFC 8725).

    - `key`: a key or a list of keys, any of which may have signed the token.
    - `audience`, `issuer`: the accepted name or names; the token must contain one of them. A token
      with an audience is rejected if `audience` is not given.
    - `leeway`: seconds by which clocks may differ.
    - `now`: seconds since 1970; the current time if it is not given.
    - `require`: names of claims that must be present.

    Raises:
        InvalidTokenError: the token is rejected; the subclass and message give the reason.
        InvalidKeyError: the key is unusable.

    >>> decode(encode({"sub": "alice"}, "k" * 32), "k" * 32)
    {'sub': 'alice'}
    """
    claims = _verify_signature(token, _hmac_functions(key))
    _validate_claims(
        claims, require, time.time() if now is None else now, leeway, audience, issuer)
    return claims


class TokenSigner:
    """Signs and verifies tokens under one policy.

    `keys` is a key or a list of keys: the first signs, all verify. `lifetime` and `leeway` are in
    seconds. `clock` returns seconds since 1970. `decode` explains the other parameters.

    Raises:
        InvalidKeyError: a key is unusable.

    >>> signer = TokenSigner("k" * 32, lifetime=600)
    >>> claims = signer.verify(signer.sign({"sub": "alice"}))
    >>> claims["sub"], claims["exp"] - claims["iat"]
    ('alice', 600)
    """

    def __init__(
        self, keys: Keys, *, issuer: Optional[str] = None, audience: StrOrList = None,
        lifetime: float = 3600, leeway: float = 0, clock: Callable[[], float] = time.time,
    ) -> None:
        self._hmac_functions = _hmac_functions(keys)
        self.issuer = issuer
        self.audience = audience
        self.lifetime = lifetime
        self.leeway = leeway
        self.clock = clock

    def sign(self, claims: Claims) -> str:
        """Sign `claims`, and add `iat`, `exp`, `jti`, `iss` and `aud` where they are missing.

        Raises:
            TypeError, ValueError: the claims are not a dict that JSON can express.
        """
        now = int(self.clock())
        defaults = {"iat": now, "exp": now + self.lifetime, "jti": secrets.token_urlsafe(16)}
        if self.issuer is not None:
            defaults["iss"] = self.issuer
        if self.audience is not None:
            defaults["aud"] = self.audience
        return _sign(_STANDARD_HEADER, {**defaults, **claims}, self._hmac_functions[0])

    def verify(self, token: Union[str, bytes]) -> Claims:
        """Return the claims of a token that has `exp` and `sub` and satisfies the policy.

        Raises:
            InvalidTokenError: the token is rejected; the subclass and message give the reason.
        """
        claims = _verify_signature(token, self._hmac_functions)
        _validate_claims(
            claims, ("exp", "sub"), self.clock(), self.leeway, self.audience, self.issuer)
        return claims


# --- Passwords ----------------------------------------------------------------------------------
#
# Design: new hashes are PBKDF2-HMAC-SHA256 in Django's format. Hashes in other formats are only
# verified, and `needs_rehash` reports that the next sign-in should replace them. A stored value
# that is not a hash matches no password and must never raise. Hashing takes tenths of a second, but
# it releases the GIL, so other threads continue.


class _PasswordHash(NamedTuple):
    digest: str  # a name that hashlib knows
    iterations: int
    salt: bytes
    checksum: bytes


def _decode_adapted_base64(text: str) -> bytes:
    """Decode passlib's variant of base64: no padding, and a dot instead of a plus."""
    return base64.b64decode(text.replace(".", "+") + "=" * (-len(text) % 4))


# Each supported format, and the decoders of its salt and its checksum.
_Decoder = Callable[[str], bytes]
_HASH_FORMATS: Tuple[Tuple["re.Pattern[str]", _Decoder, _Decoder], ...] = (
    # This module and Django: pbkdf2_sha256$600000$salt$base64
    (re.compile(r"pbkdf2_(sha256|sha1)\$([1-9][0-9]{0,7})\$([^$]+)\$([A-Za-z0-9+/]+=*)"),
     str.encode, base64.b64decode),
    # Werkzeug: pbkdf2:sha256:600000$salt$hex
    (re.compile(r"pbkdf2:(sha256):([1-9][0-9]{0,7})\$([^$]+)\$([0-9a-f]+)"),
     str.encode, bytes.fromhex),
    # passlib: $pbkdf2-sha256$29000$salt$checksum
    (re.compile(r"\$pbkdf2-(sha256)\$([1-9][0-9]{0,7})\$([A-Za-z0-9./]*)\$([A-Za-z0-9./]+)"),
     _decode_adapted_base64, _decode_adapted_base64),
)


def _parse_hash(encoded: Any) -> Optional[_PasswordHash]:
    if not isinstance(encoded, str):
        return None
    for pattern, decode_salt, decode_checksum in _HASH_FORMATS:
        match = pattern.fullmatch(encoded)
        if match:
            digest, iterations = match[1], int(match[2])
            try:
                salt, checksum = decode_salt(match[3]), decode_checksum(match[4])
            except ValueError:
                return None
            is_whole = len(checksum) == hashlib.new(digest).digest_size
            if is_whole and iterations <= MAX_PBKDF2_ITERATIONS:
                return _PasswordHash(digest, iterations, salt, checksum)
    return None


def _password_bytes(password: str) -> bytes:
    if not isinstance(password, str):
        raise TypeError("the password must be a str")
    if not password:
        raise ValueError("the password is empty")
    try:
        password_bytes = password.encode()
    except UnicodeEncodeError:
        raise ValueError("the password is not valid Unicode") from None
    if len(password_bytes) > MAX_PASSWORD_BYTES:
        raise ValueError(f"the password is longer than {MAX_PASSWORD_BYTES} bytes")
    return password_bytes


def hash_password(password: str, *, iterations: int = PBKDF2_ITERATIONS) -> str:
    """Hash a password with PBKDF2-HMAC-SHA256 and a random salt (RFC 8018 §5.2, OWASP).

    Raises:
        ValueError: the password is empty or over 1,024 bytes of UTF-8, or `iterations` is
            below 1 or above 10,000,000.

    >>> hash_password("correct horse", iterations=1000)[:19]
    'pbkdf2_sha256$1000$'
    """
    password_bytes = _password_bytes(password)
    if not 1 <= iterations <= MAX_PBKDF2_ITERATIONS:
        raise ValueError(f"iterations must be from 1 to {MAX_PBKDF2_ITERATIONS}")
    salt = secrets.token_hex(SALT_BYTES)  # passlib allows only letters and digits
    checksum = hashlib.pbkdf2_hmac("sha256", password_bytes, salt.encode(), iterations)
    return f"pbkdf2_sha256${iterations:d}${salt}${base64.b64encode(checksum).decode()}"


def verify_password(password: str, encoded: Optional[str], *, min_iterations: int = 0) -> bool:
    """Return whether `encoded` is a hash of `password`. If it is not a hash, return False.

    The supported formats are Django's `pbkdf2_sha256` and `pbkdf2_sha1`, Werkzeug's `pbkdf2:sha256`
    and passlib's `$pbkdf2-sha256`. A rejection computes at least `min_iterations`, even without a
    stored hash. So its time does not reveal which users exist (OWASP Authentication Cheat Sheet).

    >>> verify_password("correct horse", hash_password("correct horse", iterations=1000))
    True
    >>> verify_password("correct horse", None, min_iterations=1000)
    False
    """
    try:
        password_bytes = _password_bytes(password)
    except (TypeError, ValueError):
        return False
    iterations_done = 0
    stored_hash = _parse_hash(encoded)
    if stored_hash:
        checksum = hashlib.pbkdf2_hmac(
            stored_hash.digest, password_bytes, stored_hash.salt, stored_hash.iterations)
        if hmac.compare_digest(checksum, stored_hash.checksum):
            return True
        iterations_done = stored_hash.iterations
    if iterations_done < min_iterations:
        hashlib.pbkdf2_hmac("sha256", password_bytes, b"no user", min_iterations - iterations_done)
    return False


def needs_rehash(encoded: str, *, iterations: int = PBKDF2_ITERATIONS) -> bool:
    """Return whether the next sign-in should replace this hash: old format or fewer iterations.

    >>> needs_rehash(hash_password("correct horse", iterations=1000))
    True
    """
    stored_hash = _parse_hash(encoded)
    return (stored_hash is None or stored_hash.iterations < iterations
            or not encoded.startswith("pbkdf2_sha256$"))


def password_iterations(encoded: Optional[str]) -> int:
    """Return the iteration count of a hash that `verify_password` supports, otherwise 0.

    >>> password_iterations(hash_password("correct horse", iterations=1000))
    1000
    >>> password_iterations("$2a$10$N9qo8uLOickgx2ZMRZoMye")  # bcrypt
    0
    """
    stored_hash = _parse_hash(encoded)
    return stored_hash.iterations if stored_hash else 0


# --- Path rules ---------------------------------------------------------------------------------
#
# A server decodes a path once and hands it over. The application may decode it again, merge
# slashes, ignore case, and so on, in any order, and then serve another path than the guard saw. So
# a rule is held against two extremes: the leading segments that every application reads alike, and
# the furthest that any could make of the whole. A path is only as open as both of them are.

Segments = Tuple[str, ...]

_RULE = re.compile(
    r"(?:(?P<methods>[A-Z]+(?:,[A-Z]+)*) )?"
    r"(?P<path>/|(?:/[^\x00-\x20\x7f-\xa0\"#%*;<>?\[\\\]^`{|}/]+)+/?)")
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")  # RFC 6749 §3.3: scope-token

# A path that all read alike, but for letter case, punctuation and a suffix: no empty segment, none
# that begins with two dots or ends in one, no character that means anything.
_PLAIN_PATH = re.compile(r"(?:/(?!@@|\.\.)[\w.~!$&'()*+,=:@-]*[\w~!$&'()*+,=:@-])*/?", re.ASCII)
_PARAMETERS = re.compile(r";.*|(?<=.)[?#].*", re.DOTALL)
_QUERY = re.compile(r"[?#].*", re.DOTALL)
_VIEW = re.compile(r"^(?:@@\s*)+")  # Pyramid's, by its name
_ENDS = re.compile(r"[\0\r\n]")
_CONTROLS = re.compile(r"[\x01-\x1f\x7f-\x9f]")
_USUAL_FORM = re.compile(r"\Z|/|\*\Z|https?://", re.IGNORECASE)  # of a target, RFC 9112 §3.2
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation.replace("/", ""), "_"))
_TRAILING = ". \u1680\u2028\u2029"  # dots, and what white space NFKC leaves
_MAX_ENCODINGS = 3  # layers of percent-encoding beyond the server's own; one is rare already
_MAX_ODD_PATH = 2048  # characters; some milliseconds to read
_MAX_DEPTH = 64  # segments of a rule


class _Rule(NamedTuple):
    rank: Tuple[int, bool, bool]  # the lowest decides
    methods: FrozenSet[str]  # empty: all
    path: Segments
    folded: Segments
    flat: Segments
    scopes: Optional[Scopes]  # None: exempt


class _Reading(NamedTuple):
    """The furthest that an application could make of a path.

    It keeps the first `firm` segments. Of the others it may drop any, by dot segments, as the name
    of a host, or as a parameter that holds a slash; those that are left stay in order.
    """

    segments: Segments  # folded
    firm: int
    climbs: bool = False  # by dot segments

    def may_enter(self, path: Segments) -> bool:
        """Tell whether this can lead to `path` or below it."""
        firm = self.firm
        if path[:firm] != self.segments[: min(firm, len(path))]:
            return False
        remaining = iter(self.segments[firm:])
        return all(segment in remaining for segment in path[firm:])


class _Path(NamedTuple):
    sure: Segments  # what every application reads alike
    readings: Optional[List[_Reading]]  # the furthest ones; None: it might be any path
    flat: List[Segments]  # what is left where all punctuation is alike, in what comes undecoded

    def may_enter(self, rule: _Rule) -> bool:
        """Tell whether some application could read a path that the rule covers."""
        return (self.readings is None
                or any(reading.may_enter(rule.folded) for reading in self.readings)
                or any(flat[:len(rule.flat)] == rule.flat for flat in self.flat))


def _read_path(path: str) -> _Path:
    if _PLAIN_PATH.fullmatch(path):
        path = "/".join(path.split("/", _MAX_DEPTH + 1)[: _MAX_DEPTH + 1])
        folded = tuple(path.lower().split("/")[1:])
        readings = _with_suffixes_cut([_Reading(folded, len(folded))])
        return _Path(tuple(path.split("/")[1:]), readings, _flatten(path))
    # Without a slash before it, some add one, and some take the first character for one.
    if len(path) > _MAX_ODD_PATH or not _USUAL_FORM.match(path):
        return _Path((), None, [])
    try:
        data = path.encode("latin-1")  # PEP 3333: each character stands for a byte
    except UnicodeEncodeError:
        data = path.encode("utf-8", "surrogatepass")
    texts: List[str] = []
    for encoding in ("utf-8", "latin-1", "ascii"):
        text = _decode_wholly(data, encoding)
        if text is None:
            return _Path((), None, [])
        texts.append(text.replace("\\", "/").strip())
    texts += [_QUERY.sub("", text) for text in texts]
    readings = [_read_text(text) for text in dict.fromkeys(texts)]
    raw = data.decode("utf-8", "replace")
    climbs = any(reading.climbs for reading in readings)  # to some, who drop other bytes
    sure = () if climbs else _sure_segments(raw, readings[0])
    return _Path(sure, _with_suffixes_cut(readings), _flatten(raw) + _flatten(path))


def _with_suffixes_cut(readings: List[_Reading]) -> List[_Reading]:
    """Add that `/a.json` may be `/a`, as for Django REST framework, Pecan and TurboGears, and that
    `/+a` is, for Morepath."""
    cut = []
    for reading in readings:
        for part in (str.partition, str.rpartition):
            stems = tuple(part(name, ".")[0].rstrip(_TRAILING).strip().lstrip("+") or name
                          for name in reading.segments if name)
            if reading.firm < len(reading.segments):  # any segment may come to be the last
                cut.append(reading._replace(segments=stems))
            last = reading.segments[:len(stems) - 1] + stems[-1:]
            cut.append(reading._replace(segments=last))
    return list(dict.fromkeys(readings + cut))  # most are equal, and each would be held against all


def _flatten(path: str) -> List[Segments]:
    """CherryPy takes `/a-b` for `/a_b`, and TurboGears takes `/a-b.json` for it as well."""
    head, slash, last = path.rstrip("/").rpartition("/")
    whole = dict.fromkeys((path, head + slash + (last.rpartition(".")[0] or last)))
    return [_fold(filter(None, text.translate(_PUNCTUATION).split("/"))) for text in whole]


def _read_mounted_path(mount: str, path: str) -> _Path:
    """Read both as one path, and as two of which the second has been read first."""
    whole = _read_path(mount + path)
    apart = [
        _Reading(outer.segments + inner.segments, 0)
        for inner in _read_path(path).readings or () if inner.firm < len(inner.segments)
        for outer in _read_path(mount).readings or ()
    ]
    if not apart or not whole.readings:
        return whole
    return whole._replace(sure=(), readings=list(dict.fromkeys(apart + whole.readings)))


def _decode_wholly(data: bytes, encoding: str) -> Optional[str]:
    """Undo all percent-encoding and drop control characters; None where anything may come of it.

    NUL ends a path for whoever hands it to C, a line end does for some patterns. No client sends
    them, nor so many encodings.
    """
    before = None
    for _ in range(_MAX_ENCODINGS + 1):
        text = _nfkc(unquote_to_bytes(data).decode(encoding, "ignore"))
        if _ENDS.search(text) or len(text) > _MAX_ODD_PATH:  # NFKC makes 18 letters of one
            return None
        text = _CONTROLS.sub("", text)
        if text == before:
            return text
        before, data = text, text.encode(encoding, "ignore")
    return None


def _read_text(text: str) -> _Reading:
    """Read a decoded path without parameters, empty segments, and white space or dots at ends."""
    parts = [_PARAMETERS.sub("", part).strip() for part in text.split("/")]
    names = [part.rstrip(_TRAILING) for part in parts]
    names = [_VIEW.sub("", name) for name in names]
    dotted = any(part and (not name or name[:2] == "..") for part, name in zip(parts, names))
    hosted = parts[0] != "" or parts[1:-1][:1] == [""]  # urlsplit() takes `//a` for a host as well
    segments = _fold(filter(None, names))
    if dotted or hosted:
        return _Reading(segments, 0, dotted)
    whole = text.partition(";")[0].count("/") + 1
    return _Reading(segments, len(list(filter(None, names[:whole]))))


def _nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _fold(segments: Iterable[str]) -> Segments:
    """Letter case is nothing to some, nor are accents to MySQL, where a name is looked up."""
    return tuple(map(_fold_name, segments))


@lru_cache(MAX_REMEMBERED)  # each name of a path is folded for many readings
def _fold_name(name: str) -> str:
    if name.isascii():
        return name.lower()
    bare = unicodedata.normalize("NFKD", _nfkc(name).upper().casefold())
    return _nfkc("".join(filterfalse(unicodedata.combining, bare)))


def _sure_segments(text: str, reading: _Reading) -> Segments:
    """The leading segments of `text` of which the furthest reading has made nothing else."""
    names = text.split("/")[1:]
    alike = 0
    for name, read in zip(_fold(names), reading.segments[: reading.firm]):
        if name != read:
            break
        alike += 1
    return tuple(names[:alike])


def parse_scopes(scopes: Union[str, Iterable[str]]) -> Scopes:
    """Split a list of scopes (RFC 6749 §3.3): text with spaces, or names already apart.

    Raises:
        ValueError: a name has a character that a scope must not have.

    >>> parse_scopes("read write")
    ('read', 'write')
    """
    try:
        names = tuple(filter(None, scopes.split(" ")) if isinstance(scopes, str) else scopes)
    except TypeError:
        raise ValueError(f"not a list of scopes: {scopes!r}") from None
    for name in names:
        if not isinstance(name, str) or not _SCOPE.fullmatch(name):
            raise ValueError(f"not a scope: {name!r}")
    return names


def _parse_rules(protect: Rules, exempt: Sequence[str]) -> List[_Rule]:
    """Parse all rules, and put first what decides: longer paths before shorter ones and, for one
    path, the rules that name the method before the others, and exemptions before protection."""
    if isinstance(protect, str) or isinstance(exempt, str):
        raise ValueError("rules come in a list, not as one string")
    needed = protect.items() if isinstance(protect, Mapping) else [(rule, ()) for rule in protect]
    rules = [_parse_rule(rule, parse_scopes(scopes)) for rule, scopes in needed]
    rules += [_parse_rule(rule, None) for rule in exempt]
    if len({rule.path for rule in rules}) != len({rule.folded for rule in rules}):
        raise ValueError("rules that differ in letter case or accents alone cannot be told apart")
    return sorted(rules, key=lambda rule: rule.rank)


def _parse_rule(text: str, scopes: Optional[Scopes]) -> _Rule:
    match = _RULE.fullmatch(text) if isinstance(text, str) else None
    path = match["path"] if match else ""
    names = tuple(filter(None, path.split("/")))
    alone = _Reading(_fold(names), len(names))
    if not match or _nfkc(path) != path or _read_text(path) != alone or len(names) > _MAX_DEPTH:
        raise ValueError(
            f"not a rule: {text!r}; a rule is '/path' or 'GET,POST /path', decoded, no wildcards")
    methods = frozenset(filter(None, (match["methods"] or "").split(",")))
    rank = (-len(names), not methods, scopes is not None)
    if "GET" in methods:
        methods |= {"HEAD"}
    return _Rule(rank, methods, names, alone.segments, _flatten(path)[0], scopes)


def _covering(rules: List[_Rule], method: str, path: _Path) -> Iterable[_Rule]:
    """The rule that decides in every reading, and those that would decide in some."""
    deciding = None
    for rule in rules:
        if deciding is not None and rule.rank != deciding:
            return
        if rule.methods and method not in rule.methods:
            continue
        if rule.path == path.sure[: len(rule.path)]:
            deciding = rule.rank
            yield rule
        elif path.may_enter(rule):
            yield rule


# --- Middleware ---------------------------------------------------------------------------------

_IDENTITY = ("wsgi_auth.claims", "REMOTE_USER", "AUTH_TYPE")
_UNQUOTABLE = re.compile(r"[^\x20\x21\x23-\x5b\x5d-\x7e]")  # RFC 6750 §3: in a challenge's values


def _answer_error(
    environ: Environ, start_response: StartResponse, status: str, message: str,
    header: Tuple[str, str],
) -> Iterable[bytes]:
    body = json.dumps({"success": False, "error": message}).encode()
    start_response(status, [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("X-Content-Type-Options", "nosniff"),
        header,
    ])
    return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]


class _Refusal(Exception):
    """A request that does not get through, and what the client is told (RFC 6750 §3)."""

    def __init__(self, status: str, message: str, **challenge: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.challenge = challenge


def _invalid_token(reason: str) -> _Refusal:
    return _Refusal(
        "401 Unauthorized", "Invalid authorization token",
        error="invalid_token", error_description=reason)


def _granted(claims: Claims) -> List[str]:
    scope = claims.get("scope")  # RFC 8693 §4.2: one string, separated by spaces
    return scope.split(" ") if isinstance(scope, str) else []


class Verifier(Protocol):
    """What the guard asks of a signer; a TokenSigner is one."""

    def verify(self, token: str) -> Claims:
        """Return the claims of a good token, `sub` among them, or raise InvalidTokenError."""


class BearerAuthMiddleware:
    """Lets requests to protected paths through only with a valid bearer token (RFC 6750).

    A rule is a path, which covers all below it, optionally behind methods: `"/api"`,
    `"POST,DELETE /articles"`; `"GET"` covers `HEAD`. The longest matching rule counts and, for one
    path, the one that names the method.

    - `protect`: the rules under which a token is needed, all paths if not given. As a mapping, from
      rule to the scopes that the token must have: `{"/api": (), "/api/admin": "admin"}`.
    - `exempt`: rules under which no token is needed, inside of protected paths.
    - `realm`: the name that a refused client is told.
    - `is_revoked`: is asked with the claims of a valid token; true refuses it. What it raises ends
      the request.

    An application may read a path otherwise than it is written: decode it twice, merge slashes,
    resolve dots, ignore case. A token is needed if any reading is protected, with the scopes of all
    of those; an exemption holds only if it covers every reading. Mounted, both `PATH_INFO` and
    `SCRIPT_NAME + PATH_INFO` are readings. No header is looked at but `Authorization`: an
    application that takes its path or method from another one must not be behind a rule for some.

    Raises:
        ValueError: a rule, a scope or the realm is malformed.
        TypeError: `app` cannot be called, or `signer` cannot verify.

    >>> def hello(environ, start_response):
    ...     start_response("200 OK", [("Content-Type", "text/plain")])
    ...     return [environ["REMOTE_USER"].encode()]
    >>> signer = TokenSigner("k" * 32)
    >>> guarded = BearerAuthMiddleware(hello, signer)
    >>> environ = {"HTTP_AUTHORIZATION": "Bearer " + signer.sign({"sub": "alice"})}
    >>> guarded(environ, lambda status, headers: None)
    [b'alice']
    """

    def __init__(
        self, app: WSGIApplication, signer: Verifier, *, protect: Rules = ("/",),
        exempt: Sequence[str] = (), realm: str = "api",
        is_revoked: Optional[Callable[[Claims], bool]] = None,
    ) -> None:
        if not callable(app) or not hasattr(signer, "verify"):
            raise TypeError("app must be a WSGI application, and signer a TokenSigner")
        if _UNQUOTABLE.search(realm):
            raise ValueError(f"not a realm: {realm!r}")
        self.app = app
        self.signer = signer
        self.realm = realm
        self.is_revoked = is_revoked
        self._rules = _parse_rules(protect, exempt)
        self._remembered_scopes = lru_cache(MAX_REMEMBERED)(self._needed_scopes)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        for key in _IDENTITY:
            environ.pop(key, None)
        try:
            scopes = self._scopes(environ)
            if scopes is not None:
                self._authenticate(environ, scopes)
        except _Refusal as refusal:
            return self._refuse(refusal, environ, start_response)
        return self.app(environ, start_response)

    def _scopes(self, environ: Environ) -> Optional[Scopes]:
        """The scopes that the request needs; None where not even a token is needed."""
        method = environ.get("REQUEST_METHOD", "GET")
        mount, path = environ.get("SCRIPT_NAME", ""), environ.get("PATH_INFO", "")
        # Reading a path costs as much as verifying a token, and most requests are for a few paths.
        short = len(method) + len(mount) + len(path) <= MAX_REMEMBERED_LENGTH
        return (self._remembered_scopes if short else self._needed_scopes)(method, mount, path)

    def _needed_scopes(self, method: str, mount: str, path: str) -> Optional[Scopes]:
        method = method.upper()  # as Werkzeug and Django read it
        needed: Optional[Scopes] = None
        paths = [_read_path(path)]
        if mount:
            paths.append(_read_mounted_path(mount, path))
        for spelling in paths:
            for rule in _covering(self._rules, method, spelling):
                if rule.scopes is not None:
                    needed = (needed or ()) + rule.scopes
        return needed

    def _authenticate(self, environ: Environ, scopes: Scopes) -> None:
        header = environ.get("HTTP_AUTHORIZATION", "").strip(" \t")
        if not header:
            raise _Refusal("401 Unauthorized", "An authorization header is required")
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer":
            raise _invalid_token("The scheme must be Bearer")
        try:
            claims = self.signer.verify(token.lstrip(" "))
        except InvalidTokenError as error:
            raise _invalid_token(str(error)) from None
        if self.is_revoked is not None and self.is_revoked(claims):
            raise _invalid_token("Token has been revoked")
        if scopes and not set(scopes).issubset(_granted(claims)):
            raise _Refusal(
                "403 Forbidden", "Insufficient scope",
                error="insufficient_scope", scope=" ".join(dict.fromkeys(scopes)))
        environ["wsgi_auth.claims"] = claims
        environ["REMOTE_USER"] = claims["sub"]
        environ["AUTH_TYPE"] = "Bearer"

    def _refuse(
        self, refusal: _Refusal, environ: Environ, start_response: StartResponse,
    ) -> Iterable[bytes]:
        parameters = {"realm": self.realm, **refusal.challenge}
        challenge = ", ".join(
            f'{name}="{_UNQUOTABLE.sub("?", value)}"' for name, value in parameters.items())
        return _answer_error(
            environ, start_response, refusal.status, refusal.message,
            ("WWW-Authenticate", f"Bearer {challenge}"))


def _subject_or_address(environ: Environ) -> str:
    subject = environ.get("REMOTE_USER")
    return f"user {subject}" if subject else f"address {environ.get('REMOTE_ADDR', '')}"


class RateLimitMiddleware:
    """Lets a client make `limit` requests at once, and as many again in each `period`.

    Each client has a token bucket that holds `limit` requests and fills evenly. Beyond it the
    answer is 429 with Retry-After (RFC 6585 §4).

    - `limit`: requests; `period`: seconds.
    - `key`: tells clients apart, by the environ: the subject behind the guard, else the address.
      A request for which it returns None is not limited.
    - `clock`: returns seconds.

    The state is this process's own. At most 65,536 buckets are kept, those last used.

    Raises:
        ValueError: `limit` is below 1, or `period` not above 0.

    >>> app = RateLimitMiddleware(lambda environ, start_response: [b"hello"], limit=1, period=60)
    >>> environ = {"REMOTE_ADDR": "192.0.2.1"}
    >>> app(environ, print)
    [b'hello']
    >>> app(environ, lambda status, headers: print(status, headers[-1]))
    429 Too Many Requests ('Retry-After', '60')
    [b'{"success": false, "error": "Too many requests"}']
    """

    def __init__(
        self, app: WSGIApplication, *, limit: float, period: float,
        key: Callable[[Environ], Optional[str]] = _subject_or_address,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not (1 <= limit < math.inf and 0 < period < math.inf):
            raise ValueError("limit must be 1 or more, and period above 0")
        self.app = app
        self.key = key
        self.clock = clock
        self._period = period
        self._cost = period / limit  # the seconds in which what a request takes flows in again
        # When each client's bucket will be full again, the last used at the end. Of a client it is
        # the hash that is kept, a number, as its name may have any length.
        self._full: "OrderedDict[int, float]" = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        client = self.key(environ)
        wait = 0.0 if client is None else self._take(client)
        if not wait:
            return self.app(environ, start_response)
        return _answer_error(
            environ, start_response, "429 Too Many Requests", "Too many requests",
            ("Retry-After", str(math.ceil(wait))))

    def _take(self, client: str) -> float:
        """Take a request out of the client's bucket or, if it is empty, return the seconds to wait.

        A refused request takes nothing.
        """
        now, bucket = self.clock(), hash(client)
        with self._lock:
            full = max(self._full.pop(bucket, now), now)
            full = min(full, now + self._period)  # or the clock was ahead
            wait = full + self._cost - now - self._period
            if wait < self._cost / 1000:  # rounding, in sums of floats
                wait, full = 0.0, full + self._cost
            self._full[bucket] = full
            if len(self._full) > MAX_BUCKETS:
                self._full.popitem(last=False)
        return wait


# --- CORS ---------------------------------------------------------------------------------------
#
# Design: tells browsers which pages of other origins may read the responses (Cross-Origin Resource
# Sharing, https://fetch.spec.whatwg.org/#http-cors). It answers preflight requests itself and adds
# headers to all other responses. It must be outside the guard, because a preflight has no token.
# It must never allow credentials, so that pages of other origins cannot use a user's cookies.

_ORIGIN = re.compile(
    r"(?!http://.*:80\Z|https://.*:443\Z)"  # browsers omit the default port
    r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._~-]+|\[[0-9a-f:.]+\])(?::[0-9]+)?")
_HTTP_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.6.2


class CORSMiddleware:
    """Lets pages of the listed origins read the responses of an application.

    It replaces the application's `Access-Control-*` headers.

    - `allow_origins`: a list of origins as browsers send them, such as `"https://app.example.org"`,
      without a path; `"*"` for any origin.
    - `allow_methods`, `allow_headers`: the methods and headers that a page may send.
    - `expose_headers`: the response headers that a page may read, besides those always allowed.
    - `max_age`: seconds for which a browser may cache the answer to a preflight request.

    Raises:
        ValueError: an origin, a method or the name of a header is malformed.

    >>> app = CORSMiddleware(lambda environ, start_response: start_response("200 OK", []) or [],
    ...                      allow_origins=["https://app.example.org"])
    >>> environ = {"HTTP_ORIGIN": "https://app.example.org"}
    >>> app(environ, lambda status, headers: print(headers[1]))
    ('Access-Control-Allow-Origin', 'https://app.example.org')
    []
    """

    def __init__(
        self, app: WSGIApplication, *, allow_origins: Union[str, Sequence[str]],
        allow_methods: Sequence[str] = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"),
        allow_headers: Sequence[str] = ("Authorization", "Content-Type"),
        expose_headers: Sequence[str] = ("WWW-Authenticate", "Retry-After"), max_age: int = 600,
    ) -> None:
        if isinstance(allow_origins, str) and allow_origins != "*":
            raise ValueError("allow_origins must be a list, not one string")
        self.app = app
        self._origins = frozenset(map(_check_origin, allow_origins))
        self._exposed_headers = [("Access-Control-Expose-Headers", _join_names(expose_headers))]
        self._preflight_headers = [
            ("Access-Control-Allow-Methods", _join_names(allow_methods)),
            ("Access-Control-Allow-Headers", _join_names(allow_headers)),
            ("Access-Control-Max-Age", str(int(max_age))),
        ]

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if _is_preflight(environ):
            cors_headers = self._cors_headers(environ, self._preflight_headers)
            start_response(
                "204 No Content", [("X-Content-Type-Options", "nosniff"), *cors_headers])
            return []
        cors_headers = self._cors_headers(environ, self._exposed_headers)

        def start(status: str, headers: Headers, *exc_info: Any) -> Any:
            other_headers = [header for header in headers
                             if not header[0].lower().startswith("access-control-")]
            return start_response(status, other_headers + cors_headers, *exc_info)

        return self.app(environ, start)

    def _cors_headers(self, environ: Environ, extra: Headers) -> Headers:
        """Return the CORS headers for this origin, with `extra` if the origin is allowed."""
        origin = environ.get("HTTP_ORIGIN")
        if origin is None or self._origins.isdisjoint((origin, "*")):
            return [("Vary", "Origin")]
        allowed_origin = "*" if "*" in self._origins else origin
        return [("Vary", "Origin"), ("Access-Control-Allow-Origin", allowed_origin), *extra]


def _is_preflight(environ: Environ) -> bool:
    return (environ.get("REQUEST_METHOD") == "OPTIONS" and "HTTP_ORIGIN" in environ
            and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ)


def _check_origin(origin: Any) -> str:
    """Return `origin` if a browser could send it, or if it is "*"; otherwise raise ValueError."""
    if not isinstance(origin, str) or not (origin == "*" or _ORIGIN.fullmatch(origin)):
        raise ValueError(f"not an origin as browsers send it: {origin!r}; write scheme://host or"
                         " scheme://host:port in lower case, without a default port")
    return origin


def _join_names(names: Sequence[str]) -> str:
    if isinstance(names, str):
        raise ValueError(f"methods and headers must be a list, not one string: {names!r}")
    name_list = list(names)
    for name in name_list:
        if not isinstance(name, str) or not _HTTP_TOKEN.fullmatch(name):
            raise ValueError(f"not the name of a method or header: {name!r}")
    return ", ".join(name_list)
