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
- ``wsgi_auth.cookie``: True if the token came in a cookie

The module defends against forged, expired and malformed tokens (RFC 8725), against guessing
passwords from stolen hashes (OWASP Password Storage Cheat Sheet), and against paths that a guard
and an application read differently. It needs only the standard library, does no I/O, reads no
environment variables, and keeps no state except rate-limit counters and caches of recent tokens and
paths. You can copy this one file into any project.

The chapters. Each one uses only the chapters above it:

- Errors: every reason to reject a token or a key
- base64url and JSON: strict parsing of untrusted bytes
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
from enum import IntEnum
from functools import lru_cache, partial
from itertools import chain, filterfalse, takewhile
from typing import (
    Any, Callable, Dict, FrozenSet, Iterable, List, Mapping, NamedTuple, Optional,
    Protocol, Sequence, Tuple, Union,
)
from urllib.parse import quote, unquote_to_bytes

__all__ = [
    "BearerAuthMiddleware", "CORSMiddleware", "DecodeError", "ExpiredSignatureError",
    "ImmatureSignatureError", "InvalidAlgorithmError", "InvalidAudienceError",
    "InvalidClaimError", "InvalidIssuerError", "InvalidKeyError", "InvalidSignatureError",
    "InvalidTokenError", "MAX_TOKEN_BYTES", "MissingRequiredClaimError", "PBKDF2_ITERATIONS",
    "RateLimitMiddleware", "TokenSigner", "decode", "encode", "hash_password", "is_cross_site",
    "key_fingerprint", "needs_rehash", "parse_json_object", "parse_scopes",
    "password_iterations", "verify_password",
]

MAX_TOKEN_BYTES = 16 * 1024  # a longer token is rejected before any of it is parsed
MAX_JSON_DEPTH = 100  # the parser recurses; CPython 3.13 could overflow a thread's stack
MIN_KEY_BYTES = 32  # RFC 7518 §3.2: at least the size of the hash
PBKDF2_ITERATIONS = 600_000  # OWASP Password Storage Cheat Sheet, PBKDF2-HMAC-SHA256
MAX_PBKDF2_ITERATIONS = 10_000_000  # takes seconds; a stored hash with more is rejected
MAX_PASSWORD_BYTES = 1024  # of UTF-8
SALT_BYTES = 16  # NIST SP 800-132 §5.1
TOKEN_CACHE_SIZE = 1024  # tokens in a signer's cache; at most 2 MB
MAX_CACHED_TOKEN_LENGTH = 1024  # characters; longer tokens are not cached
PATH_CACHE_SIZE = 1024  # entries in the guard's path cache
MAX_CACHED_PATH_LENGTH = 256  # characters; longer paths are not cached
MAX_BUCKETS = 65_536  # clients in a rate limit's memory; about 10 MB

Claims = Dict[str, Any]
Environ = Dict[str, Any]
StartResponse = Callable[..., Any]
WSGIApplication = Callable[[Environ, StartResponse], Iterable[bytes]]
Key = Union[str, bytes]
Keys = Union[Key, Sequence[Key]]
StrOrList = Union[str, Sequence[str], None]
Scopes = Tuple[str, ...]
# A list of rules, or a mapping from rule to scopes.
Rules = Union[Sequence[str], Mapping[str, Union[str, Iterable[str]]]]
Headers = List[Tuple[str, str]]  # of a response
HMACFunction = Callable[[bytes], bytes]  # from a signing input to its signature in base64url


# --- Errors -------------------------------------------------------------------------------------
#
# Design: Every rejected token raises a subclass of InvalidTokenError, so callers catch one class.
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
# Design: Two programs that read one token must get the same claims from it. So base64url is
# accepted only in its canonical form, and JSON only if RFC 8259 gives it exactly one meaning.
# Python's C parsers are fast but lenient; cheap checks before and after them reject the rest. For
# any bytes, these functions return a value or raise DecodeError. The time is linear in the input,
# except for long integers before Python's digit limit (3.9.14, 3.10.7, 3.11).

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
# The closing quote is optional, so that the pattern matches at any quote and takes linear time.
_JSON_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?')
_JSON_BRACKET = re.compile(r"[\[{\]}]")


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_JSON_DEPTH:
        return
    depth = 0
    for bracket in _JSON_BRACKET.findall(_JSON_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_JSON_DEPTH:
            raise DecodeError("JSON is nested too deeply")


def parse_json_object(data: bytes) -> Dict[str, Any]:
    """Parse one JSON object in UTF-8, strictly (RFC 8259).

    Duplicate member names, NaN, Infinity, numbers that overflow, lone surrogates, and more than
    100 levels of arrays and objects are rejected.

    Raises:
        DecodeError: `data` is not such an object.

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
        # With as many colons as names, no name was repeated. Otherwise, parse again with the check
        # for duplicates; checking always would make `verify` 10 % slower. The colon of a URL in a
        # string does not count.
        if colons != len(members) and colons - text.count("://") != len(members):
            _parse_unique_json(text)
        if "\\" in text:
            _write_json(members).encode()  # raises for a lone surrogate, which UTF-8 cannot express
    except (ValueError, RecursionError):
        raise DecodeError("Invalid JSON") from None
    return members


# --- Signatures ---------------------------------------------------------------------------------
#
# Design: The outer layer of a token, `header.payload.signature` (RFC 7515 §7.1). There is only one
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


def key_fingerprint(key: Key) -> str:
    """Return a short name for a key, which can be shown: 16 digits of its SHA-256.

    >>> key_fingerprint("k" * 32)
    '5e318f8cf9cbe249'
    """
    return hashlib.sha256(_key_bytes(key)).hexdigest()[:16]


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

    def _sign_message(message: bytes) -> bytes:
        inner, outer = inner_start.copy(), outer_start.copy()
        inner.update(message)
        outer.update(inner.digest())
        return _base64url_encode(outer.digest())

    return _sign_message


def _check_header(header: Dict[str, Any]) -> None:
    """Reject a header that asks for more than HS256 (RFC 8725 §3.1, RFC 7515 §4.1.11)."""
    if header.get("alg") != "HS256":
        raise InvalidAlgorithmError("The algorithm must be HS256")
    if "crit" in header or "b64" in header:
        raise DecodeError("Token uses an extension that is not supported")
    token_type = header.get("typ", "JWT")
    if not isinstance(token_type, str) or token_type.lower() not in _TOKEN_TYPES:
        raise DecodeError("The token type must be JWT or at+jwt")
    if not isinstance(header.get("kid", ""), str):  # RFC 7515 §4.1.4
        raise DecodeError("The key ID must be a string")


def _encode_header(headers: Mapping[str, Any]) -> bytes:
    """Return the first part of a token, or raise InvalidTokenError if `decode` would reject it."""
    try:
        header = _write_json({"alg": "HS256", "typ": "JWT", **headers}).encode()
    except (ValueError, RecursionError):
        raise DecodeError("The header cannot be written as JSON") from None
    _check_header(parse_json_object(header))
    if len(header) > MAX_TOKEN_BYTES:
        raise DecodeError("Token is too long")
    return _base64url_encode(header)


def _encode_payload(claims: Claims) -> bytes:
    try:
        return _write_json(claims).encode()
    except RecursionError:
        raise ValueError("the claims are nested too deeply") from None


def _sign(header: bytes, payload: bytes, hmac_function: HMACFunction) -> str:
    signing_input = header + b"." + _base64url_encode(payload)
    return (signing_input + b"." + hmac_function(signing_input)).decode()


def _signed_payload(token: Any, hmac_functions: List[HMACFunction]) -> bytes:
    """Return the payload of a token that one of the keys signed."""
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
            return _base64url_decode(payload)
    raise InvalidSignatureError("Signature verification failed")


# --- Claims -------------------------------------------------------------------------------------
#
# Design: The inner layer of a token, its registered claims (RFC 7519 §4.1), with one function for
# each kind of claim. A registered claim must have the right type wherever it is present. The caller
# decides which claims must be present and which issuers and audiences are accepted. These functions
# never read the clock: they get `now`, in seconds since 1970.

_NUMBER_TYPES = (int, float)  # compared with type(), because bool is a subclass of int


def _check_number(name: str, value: Any) -> None:
    if not isinstance(value, _NUMBER_TYPES) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number")
    float(value)  # raises OverflowError for an integer that could not be added to a float


def _check_names(name: str, value: Any) -> StrOrList:
    """Return text or None as it is, and a collection of names as a tuple."""
    if value is None or isinstance(value, str):
        return value
    names = tuple(value) if isinstance(value, Iterable) else (value,)
    if isinstance(value, bytes) or not all(isinstance(item, str) for item in names):
        raise TypeError(f"{name} must be a str or a list of str")
    return names


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
    """RFC 7519 §4.1.5, §4.1.6. A future `iat` means a wrong clock or a forgery."""
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
# Design: The public functions. Each combines the two layers above: the signature first, then the
# claims. `encode` and `decode` take everything as arguments. A TokenSigner keeps the keys and one
# policy, so it is faster and harder to misuse. Threads can share it. It also keeps the payloads of
# the tokens that it has verified last: most requests repeat a token. Only tokens with a valid
# signature are kept, so nobody else can fill this cache. Claims are parsed and checked each time.


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
    if not isinstance(claims, dict):
        raise TypeError("claims must be a dict")
    hmac_function = _hmac_functions(key)[0]
    return _sign(_encode_header(headers or {}), _encode_payload(claims), hmac_function)


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
        TypeError: another argument has the wrong type.

    >>> decode(encode({"sub": "alice"}, "k" * 32), "k" * 32)
    {'sub': 'alice'}
    """
    hmac_functions = _hmac_functions(key)
    now = time.time() if now is None else now
    _check_number("leeway", leeway)
    _check_number("now", now)
    audience, issuer = _check_names("audience", audience), _check_names("issuer", issuer)
    if isinstance(require, str):
        raise TypeError("require must be a list of str")
    require = _check_names("require", require) or ()
    claims = parse_json_object(_signed_payload(token, hmac_functions))
    _validate_claims(claims, require, now, leeway, audience, issuer)
    return claims


class TokenSigner:
    """Signs and verifies tokens under one policy.

    `keys` is a key or a list of keys: the first signs, all verify. The attribute `fingerprint`
    names the first. `lifetime` and `leeway` are in seconds. `clock` returns seconds since 1970.
    `decode` explains the other parameters. The leeway is ten seconds, because the clocks of two
    machines differ.

    Raises:
        InvalidKeyError: a key is unusable.
        TypeError: another argument has the wrong type.

    >>> signer = TokenSigner("k" * 32, lifetime=600)
    >>> claims = signer.verify(signer.sign({"sub": "alice"}))
    >>> claims["sub"], claims["exp"] - claims["iat"]
    ('alice', 600)
    """

    def __init__(
        self, keys: Keys, *, issuer: Optional[str] = None, audience: StrOrList = None,
        lifetime: float = 3600, leeway: float = 10, clock: Callable[[], float] = time.time,
    ) -> None:
        self._hmac_functions = _hmac_functions(keys)
        self._payload = partial(_signed_payload, hmac_functions=self._hmac_functions)
        self._cached_payload = lru_cache(TOKEN_CACHE_SIZE)(self._payload)
        _check_number("lifetime", lifetime)
        _check_number("leeway", leeway)
        if not isinstance(issuer, (str, type(None))) or not callable(clock):
            raise TypeError("issuer must be a str, and clock a function")
        self.fingerprint = key_fingerprint(keys if isinstance(keys, (str, bytes)) else keys[0])
        self.issuer = issuer
        self.audience = _check_names("audience", audience)
        self.lifetime = lifetime
        self.leeway = leeway
        self.clock = clock

    def sign(self, claims: Claims) -> str:
        """Sign `claims`, and add `iat`, `exp`, `jti`, `iss` and `aud` where they are missing.

        Raises:
            TypeError, ValueError: the claims are not a dict that JSON can express.
            ValueError: `verify` would reject the token at any time.
        """
        now = int(self.clock())
        defaults = {"iat": now, "exp": now + self.lifetime, "jti": secrets.token_urlsafe(16)}
        if self.issuer is not None:
            defaults["iss"] = self.issuer
        if self.audience is not None:
            defaults["aud"] = self.audience
        payload = _encode_payload({**defaults, **claims})
        token = _sign(_STANDARD_HEADER, payload, self._hmac_functions[0])
        if len(token) > MAX_TOKEN_BYTES:
            raise ValueError(f"the token is longer than {MAX_TOKEN_BYTES} bytes")
        try:  # with a leeway that accepts all times
            _validate_claims(parse_json_object(payload), ("exp", "sub"), now, math.inf,
                             self.audience, self.issuer)
        except InvalidTokenError as error:
            raise ValueError(f"the token would be rejected: {error}") from None
        return token

    def verify(self, token: Union[str, bytes]) -> Claims:
        """Return the claims of a token that has `exp` and `sub` and satisfies the policy.

        Raises:
            InvalidTokenError: the token is rejected; the subclass and message give the reason.
        """
        is_cached = type(token) is str and len(token) <= MAX_CACHED_TOKEN_LENGTH
        payload = (self._cached_payload if is_cached else self._payload)(token)
        claims = parse_json_object(payload)
        _validate_claims(
            claims, ("exp", "sub"), self.clock(), self.leeway, self.audience, self.issuer)
        return claims


# --- Passwords ----------------------------------------------------------------------------------
#
# Design: New hashes are PBKDF2-HMAC-SHA256 in Django's format. Hashes in other formats are only
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
            has_full_length = len(checksum) == hashlib.new(digest).digest_size
            if has_full_length and iterations <= MAX_PBKDF2_ITERATIONS:
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


def _password_forms(password: str) -> List[bytes]:
    """Return the password in NFC (RFC 8265 §4.2), and as it was typed if that differs.

    A Mac types `e` and an accent where others type `é`. NFC makes some characters longer.
    """
    typed = _password_bytes(password)  # limits the length first: NFC takes quadratic time
    normalized = _password_bytes(unicodedata.normalize("NFC", password))
    return list(dict.fromkeys((normalized, typed)))


def hash_password(password: str, *, iterations: int = PBKDF2_ITERATIONS) -> str:
    """Hash a password with PBKDF2-HMAC-SHA256 and a random salt (RFC 8018 §5.2, OWASP).

    Raises:
        ValueError: the password is empty, over 1,024 bytes of UTF-8 (before or after it is
            normalized to NFC) or not valid Unicode, or `iterations` is below 1 or above 10,000,000.
        TypeError: the password is not a str.

    >>> hash_password("correct horse", iterations=1000)[:19]
    'pbkdf2_sha256$1000$'
    """
    password_bytes = _password_forms(password)[0]
    if not 1 <= iterations <= MAX_PBKDF2_ITERATIONS:
        raise ValueError(f"iterations must be from 1 to {MAX_PBKDF2_ITERATIONS}")
    # passlib's reader of this format allows only letters and digits in the salt.
    salt = secrets.token_hex(SALT_BYTES)
    checksum = hashlib.pbkdf2_hmac("sha256", password_bytes, salt.encode(), iterations)
    return f"pbkdf2_sha256${iterations:d}${salt}${base64.b64encode(checksum).decode()}"


def verify_password(password: str, encoded: Optional[str], *, min_iterations: int = 0) -> bool:
    """Return whether `encoded` is a hash of `password`. If it is not a hash, return False.

    The supported formats are Django's `pbkdf2_sha256` and `pbkdf2_sha1`, Werkzeug's `pbkdf2:sha256`
    and passlib's `$pbkdf2-sha256`. A rejection computes at least `min_iterations`, even without a
    stored hash. So its time does not reveal which users exist (OWASP Authentication Cheat Sheet).
    A password that is not in NFC is compared in two forms, which takes twice that time.

    >>> verify_password("correct horse", hash_password("correct horse", iterations=1000))
    True
    >>> verify_password("correct horse", None, min_iterations=1000)
    False
    """
    try:
        forms = _password_forms(password)
    except (TypeError, ValueError):
        return False
    stored_hash = _parse_hash(encoded)
    missing_iterations = min_iterations - (stored_hash.iterations if stored_hash else 0)
    for form in forms:
        if stored_hash:
            checksum = hashlib.pbkdf2_hmac(
                stored_hash.digest, form, stored_hash.salt, stored_hash.iterations)
            if hmac.compare_digest(checksum, stored_hash.checksum):
                return True
        if missing_iterations > 0:
            hashlib.pbkdf2_hmac("sha256", form, b"no user", missing_iterations)
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
# Design: An application may decode a path again, merge slashes or ignore case, and serve a
# different path from the one the guard saw. So a path is read into its canonical beginning, and the
# words (folded segments) of each reading that some application could make of it. A rule that
# certainly matches ends the search. A rule that only may match adds its protection and never
# exempts. BearerAuthMiddleware documents this with examples. The length of paths that are odd (not
# canonical) or not ASCII is limited, so matching takes bounded time.

_METHOD = "(?:GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS|TRACE|CONNECT|QUERY|PROPFIND|MKCOL|COPY|MOVE)"
_RULE = re.compile(r"(?:(?P<methods>[A-Z]+(?:,[A-Z]+)*) )?(?P<path>/[^\"*<>\[\]^`{|}]*)")
_TRAILING_METHODS = re.compile(rf" {_METHOD}(?:,{_METHOD})*/?\Z")
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")  # RFC 6749 §3.3: scope-token

_TARGET_FORM = re.compile(r"/|\*\Z|https?://", re.IGNORECASE)  # RFC 9112 §3.2
_KEPT_SPACES = "\u1680\u2028\u2029"  # white space that NFKC keeps and some applications strip
_ODD = re.compile(  # anything that an application could interpret
    f"[\\x00-\\x1f\\x7f-\\x9f#%;?\\\\\ufffd{_KEPT_SPACES}]|/(?:/|\\.\\.|@@| )|[. ](?:/|\\Z)|:\\$")
_SEPARATOR = re.compile(r"[/\\;?#]|:{1,2}\$")  # on Windows, `name::$DATA` is the file `name`
_VIEW_PREFIX = re.compile(r"^(?:@@\s*|\+)+")  # Pyramid reads `@@a` as `a`, and Morepath `+a`
_LINE_END_OR_NUL = re.compile(r"[\0\r\n]")  # NUL ends a path in C, a line end in some patterns
# Sorting the combining marks of one character takes quadratic time; honest clients send at most 30
# (Unicode Standard Annex #15 §13). Some symbols count as well, but not emoji.
_MANY_MARKS = re.compile(r"[^\w\x00-\u02ff\U0001f000-\U0010ffff]{31}")
_INVISIBLE = re.compile(  # control characters, and category Cf, which databases may ignore
    "[\x01-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f"
    "\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\U000110bd\U000110cd"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001"
    "\U000e0020-\U000e007f]")
# Percent signs and invisible characters of Latin-1. Applications that remove them first may find a
# letter in bytes that are not UTF-8, such as `\xc3\x7f\xb1`.
_REMOVED_BYTE = re.compile(rb"[%\x01-\x1f\x7f-\x9f\xad]")
_PUNCTUATION = str.maketrans(  # `/a-b` is `/a_b` for CherryPy
    dict.fromkeys(string.punctuation.replace("/", ""), "_"))
# CherryPy, Pecan and TurboGears walk the attributes of objects, so they may read `/x/__self__/y` as
# `/y`. For CherryPy and TurboGears, so is `/x/--self--/y`.
_SIGN = "[!-.:-@[-`{-~]"  # ASCII punctuation except the slash
_ATTRIBUTE = re.compile(
    rf"(?:^|[/\\;?#])\s*{_SIGN}{{2}}[a-z][^/]{{0,40}}{_SIGN}{{2}}[.\s]*(?=[/\\;?#]|\Z)",
    re.IGNORECASE)
_HANDLERS = {"default", "_default", "index", "get_one"}  # they may read `/default/x` as `/x`
_TRAILING_DOTS = ". " + _KEPT_SPACES
_MAX_ENCODINGS = 3  # layers of percent-encoding beyond the server's; one is rare already
_MAX_ODD_PATH = 2048  # characters
_MAX_DEPTH = 64  # segments of a rule, and separators in an odd path
_Words = Tuple[str, ...]  # the segments of a path, without the differences that count as equal
_nfkc = partial(unicodedata.normalize, "NFKC")


class _Access(IntEnum):
    """What a rule asks for. If several rules apply, the lowest decides."""

    PROTECTED = 0
    OPTIONAL = 1  # a token is checked if there is one
    OPEN = 2


class _Rule(NamedTuple):
    rank: Tuple[int, bool, _Access]  # the lowest decides
    methods: FrozenSet[str]  # empty: all
    path: str  # with a slash at the end
    words: _Words
    attributes: int  # how many of its segments are like `__x__`
    access: _Access
    scopes: Scopes


class _Path(NamedTuple):
    """The ways in which applications could read a path."""

    certain_prefix: str = "/"  # the canonical beginning, which all of them read alike, and a slash
    canonical_readings: Sequence[_Words] = ()
    odd_readings: Sequence[_Words] = ()
    odd_words: FrozenSet[str] = frozenset()  # of all odd readings: a quick test for most rules
    attributes: int = 0  # how many segments may lead to other objects, such as `__self__`
    readable: bool = True  # otherwise it could be any path

    def may_match(self, rule: _Rule) -> bool:
        """Return whether some application could serve a path that the rule covers."""
        if not self.readable:
            return True
        for words in self.canonical_readings:
            if words[:len(rule.words)] == rule.words:
                return True
        if self.odd_words.issuperset(rule.words):
            for words in self.odd_readings:
                remaining = iter(words)  # each `in` continues after the word before: checks order
                if all(word in remaining for word in rule.words):
                    return True
        return False


def _read_path(path: str) -> _Path:
    if (path.isascii() and path[:1] in ("", "/") and _is_canonical(path)
            and not _ATTRIBUTE.search(path)):
        return _Path(path.rstrip("/") + "/", _canonical_words(path))
    try:
        readings = _decode_readings(path)
    except ValueError:
        return _Path(readable=False)
    has_dots = any(map(_has_dot_segment, readings))
    attributes = max(len(_ATTRIBUTE.findall(text)) for text in readings)
    is_odd = has_dots or attributes or path[:1] != "/" or not _is_canonical(readings[0])
    segment_count = None if is_odd else len(_names(readings[0]))
    canonical, odd = [], []
    for text in readings:
        names = _names(text)
        # Without the bytes beyond ASCII, a reading of a canonical path may have fewer segments.
        if len(names) == segment_count:
            canonical += _canonical_words("/".join(names))
        else:
            odd.append(_odd_words(text))
    certain_prefix = "/" if has_dots else _certain_prefix(readings[0])
    return _Path(certain_prefix, canonical, odd, frozenset(chain.from_iterable(odd)), attributes)


def _read_mounted_path(mount: str, path: str, inner: _Path) -> _Path:
    """Read the two joined. An application may also decode them separately, with the same result.

    It is unpredictable if the path is odd, and the mount is odd too or the path has no slash first.
    """
    if inner.odd_readings and (path[:1] != "/" or _read_path(mount).odd_readings):
        return _Path(readable=False)
    return _read_path(mount + path)


def _decode_readings(path: str) -> List[str]:
    """Return the texts that applications could read; the first is the path in UTF-8.

    Raises ValueError if they are unpredictable. A path must be `*`, a URL, or begin with a slash:
    otherwise applications disagree about where it begins.
    """
    if len(path) > _MAX_ODD_PATH or not _TARGET_FORM.match(path):
        raise ValueError("unpredictable path")
    try:
        data = path.encode("latin-1")  # PEP 3333: each character stands for a byte
    except UnicodeEncodeError:
        data = path.encode("utf-8", "surrogatepass")
    # Django and Werkzeug read UTF-8. Other applications use the environ's text as it is. Some
    # decode percent-encoding again. ASCII stands for those that drop other bytes.
    decoded = [_decode_fully(data, encoding) for encoding in ("ascii", "utf-8", "latin-1")]
    return list(dict.fromkeys([data.decode("utf-8", "replace"), path, *decoded]))


def _decode_fully(data: bytes, encoding: str) -> str:
    """Undo all percent-encoding, normalize, and drop invisible characters and invalid bytes."""
    previous = data.decode(encoding, "replace")
    for _ in range(_MAX_ENCODINGS + 1):
        unquoted = unquote_to_bytes(data)
        text = unquoted.decode(encoding, "ignore")
        if encoding == "utf-8" and _REMOVED_BYTE.search(unquoted) and text.encode() != unquoted:
            break
        if _LINE_END_OR_NUL.search(text) or _MANY_MARKS.search(text):
            break
        text = _INVISIBLE.sub("", _nfkc(text))  # NFKC may expand
        if len(text) > _MAX_ODD_PATH or len(_SEPARATOR.findall(text)) > _MAX_DEPTH:
            break
        if text == previous:
            return text
        previous, data = text, text.encode(encoding, "ignore")
    raise ValueError("unpredictable path")


def _is_canonical(path: str) -> bool:
    """Return whether a decoded path contains nothing that an application could interpret."""
    if _ODD.search(path):
        return False
    if path.isascii():
        return True
    visible = _INVISIBLE.sub("", path)
    return not _ODD.search(visible) and _nfkc(visible) == visible


def _certain_prefix(path: str) -> str:
    """Return the leading segments that are canonical, with a slash before and after each."""
    names = takewhile(lambda name: _is_canonical(f"/{name}/"), path.split("/")[1:])
    return "/".join(["", *names, ""])


def _has_dot_segment(path: str) -> bool:
    """Return whether some application could drop or climb segments: `.`, `..`, `..x`, `@@`."""
    names = map(_strip_name, filter(str.strip, _SEPARATOR.split(path)))
    return any(not name or name[:2] == ".." for name in names)  # `.` and `..` are stripped to ""


def _names(path: str) -> List[str]:
    return list(filter(None, map(_strip_name, path.split("/"))))


def _strip_name(segment: str) -> str:
    """Remove the white space and dots around a segment, and the prefix of a view."""
    name = segment.strip().rstrip(_TRAILING_DOTS)
    return _VIEW_PREFIX.sub("", name) if name[:2] == "@@" else name


def _stems(name: str) -> Iterable[str]:
    """Return the name, and the names that it stands for in some frameworks.

    `a.json` is `a` for Django REST framework, Pecan and TurboGears, and `+a` is `a` for Morepath.
    """
    if "." not in name and name[:1] != "+" and name == name.strip():
        return (name,)
    parts = (name, name.partition(".")[0], name.rpartition(".")[0])
    stems = [*parts, *(part.rstrip(_TRAILING_DOTS).strip() for part in parts)]
    return dict.fromkeys(stems + [_VIEW_PREFIX.sub("", stem) for stem in stems])


def _words(folded_path: str) -> _Words:
    return tuple(filter(None, folded_path.translate(_PUNCTUATION).split("/")))


def _canonical_words(path: str) -> List[_Words]:
    """Return the words of a canonical path, once for each stem of its last segment.

    Some applications skip segments with the name of a handler: each is also left out, and all are.
    """
    above, _, last = _fold(path).rstrip("/").rpartition("/")
    # No rule has more segments than `_MAX_DEPTH`.
    readings = [_words(f"{above}/{stem}")[:_MAX_DEPTH + 1] for stem in _stems(last)]
    without_one = [words[:index] + words[index + 1:] for words in readings
                   for index, word in enumerate(words) if word in _HANDLERS]
    without_all = [tuple(filterfalse(_HANDLERS.__contains__, words)) for words in readings
                   if not _HANDLERS.isdisjoint(words)]
    return readings + without_one + without_all


def _odd_words(path: str) -> _Words:
    """Return all names that an application could find in a path, in order."""
    names: List[str] = []
    for segment in _fold(path).split("/"):
        pieces = _SEPARATOR.split(segment)
        if len(pieces) > 1:  # some applications do not split here
            pieces.insert(0, segment)
        for piece in pieces:
            for name in dict.fromkeys((piece, _strip_name(piece))):
                names += _stems(name)
    return _words("/".join(names))


def _fold(text: str) -> str:
    """Remove what applications and databases may ignore: case, accents, invisible characters."""
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKD", _INVISIBLE.sub("", _nfkc(text).upper().casefold()))
    return _nfkc("".join(filterfalse(unicodedata.combining, folded)))


def parse_scopes(scopes: Union[str, Iterable[str]]) -> Scopes:
    """Split a list of scopes (RFC 6749 §3.3): text with spaces, or separate names.

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
        if name.endswith(","):  # RFC 6749 allows it, but `"read, write"` is a mistake
            raise ValueError(f"separate scopes with spaces, not commas: {name!r}")
    return names


def _parse_rules(
    protect: Rules, optional: Sequence[str], exempt: Sequence[str],
) -> List[_Rule]:
    """Parse the rules. Sort by number of segments, descending; then methods; then access."""
    if any(isinstance(rules, str) for rules in (protect, optional, exempt)):
        raise ValueError("rules come in a list, not as one string")
    required = protect.items() if isinstance(protect, Mapping) else [(rule, ()) for rule in protect]
    rules = [_parse_rule(rule, _Access.PROTECTED, parse_scopes(scopes))
             for rule, scopes in required]
    rules += [_parse_rule(rule, _Access.OPTIONAL) for rule in optional]
    rules += [_parse_rule(rule, _Access.OPEN) for rule in exempt]
    if len({rule.path for rule in rules}) != len({rule.words for rule in rules}):
        raise ValueError(
            "rules whose paths differ only in letter case, accents or punctuation are ambiguous")
    return sorted(rules, key=lambda rule: rule.rank)


def _parse_rule(text: str, access: _Access, scopes: Scopes = ()) -> _Rule:
    match = _RULE.fullmatch(text) if isinstance(text, str) else None
    path = match["path"].rstrip("/") + "/" if match else ""
    words = _words(_fold(path))
    if (not match or not _is_canonical(match["path"]) or _TRAILING_METHODS.search(path)
            or len(words) != path.count("/") - 1 or len(words) > _MAX_DEPTH):
        raise ValueError(f"not a rule: {text!r}; a rule is '/path' or 'GET,POST /path', with the"
                         " methods first, decoded, without wildcards")
    methods = frozenset(match["methods"].split(",")) if match["methods"] else frozenset()
    rank = (-len(words), not methods, access)
    if "GET" in methods:
        methods |= {"HEAD"}
    return _Rule(rank, methods, path, words, len(_ATTRIBUTE.findall(path)), access, scopes)


def _applicable_rules(rules: List[_Rule], method: str, path: _Path) -> Iterable[_Rule]:
    """Return the rules that apply: the first certain match, and before it all that may match.

    Rules of the same rank as the certain match apply as well.
    """
    certain_rank = None
    for rule in rules:
        if certain_rank is not None and rule.rank != certain_rank:
            return
        if rule.methods and method not in rule.methods:
            continue
        # An exemption must be for the object itself, not for what its attributes lead to.
        if path.certain_prefix.startswith(rule.path) and path.attributes == rule.attributes:
            certain_rank = rule.rank
            yield rule
        elif path.may_match(rule):
            yield rule


# --- The guard ----------------------------------------------------------------------------------
#
# Design: The guard looks up which scopes a path needs, checks the token if it needs one, and calls
# the application or answers itself. Which scopes a path needs is cached. A refusal is a value, not
# an exception, so it keeps no stack frames in memory. A rate limiter in front can check the token
# first; its result travels in the environ until the guard uses it, for the same token and checks.
# All of this runs in the thread of the request. In doubt, the guard must refuse or raise.

_TOKEN_CHECK = "wsgi_auth.token_check"  # clients can set only keys that begin with HTTP_
_IDENTITY_KEYS = (
    "wsgi_auth.claims", "wsgi_auth.cookie", "REMOTE_USER", "AUTH_TYPE", _TOKEN_CHECK)
_UNQUOTABLE = re.compile(r"[^\x20\x21\x23-\x5b\x5d-\x7e]")  # RFC 6750 §3: in a challenge's values
_HTTP_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.6.2
SAFE_METHODS = ("GET", "HEAD", "OPTIONS", "TRACE")  # RFC 9110 §9.2.1
# RFC 6265 §4.2.1: cookie-string = cookie-pair *( ";" SP cookie-pair )
_COOKIE_OCTETS = r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*"
_COOKIE_PAIR = rf'{_HTTP_TOKEN.pattern}=(?:{_COOKIE_OCTETS}|"{_COOKIE_OCTETS}")'
_COOKIE_STRING = re.compile(f"{_COOKIE_PAIR}(?:; {_COOKIE_PAIR})*")
_LOGIN_PATH = re.compile(r"/(?:[\w.~!$&'()*+,;=:@%-][\w.~!$&'()*+,;=:@%/-]*)?", re.ASCII)
_PATH_CHARACTERS = "/!$&'()*+,;=:@~"  # RFC 3986 §3.3, besides letters, digits and `-._`
MAX_NEXT_LENGTH = 2048  # of a page to return to; nginx takes 4 KiB of headers, cookie included


class _Refusal(NamedTuple):
    """Why a request is refused, and the parameters of its challenge (RFC 6750 §3)."""

    status: str
    message: str
    challenge: Mapping[str, str] = {}


_MISSING_TOKEN = _Refusal("401 Unauthorized", "An authorization header is required")
_CROSS_ORIGIN = _Refusal("403 Forbidden", "Cross-origin request refused")


def _invalid_token(reason: str) -> _Refusal:
    return _Refusal("401 Unauthorized", "Invalid authorization token",
                    {"error": "invalid_token", "error_description": reason})


def _remove_identity(environ: Environ) -> None:
    for key in _IDENTITY_KEYS:
        environ.pop(key, None)


def _send_error(
    environ: Environ, start_response: StartResponse, status: str, message: str,
    *headers: Tuple[str, str],
) -> Iterable[bytes]:
    body = json.dumps({"success": False, "error": message}).encode() + b"\n"
    start_response(status, [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("X-Content-Type-Options", "nosniff"),
        *headers,
    ])
    return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]


def _keep_private(start_response: StartResponse) -> StartResponse:
    """Stop shared caches from serving a response to other users (RFC 9111 §5.2.2.7)."""

    def _start_response(status: str, headers: Headers, *exc_info: Any) -> Any:
        headers = [*headers, ("Vary", "Cookie")]
        if all(name.lower() != "cache-control" for name, _ in headers):
            headers.append(("Cache-Control", "private"))
        return start_response(status, headers, *exc_info)

    return _start_response


def _find_cookie(header: str, name: str) -> str:
    """Return the value of a cookie, or an empty string if it is missing or ambiguous.

    The order of two cookies of the same name says nothing: one may come from a parent domain or
    another port. A header that breaks the grammar is ignored as a whole.
    """
    if not _COOKIE_STRING.fullmatch(header):
        return ""
    pairs = (pair.partition("=") for pair in header.split("; "))
    values = [value for pair_name, _, value in pairs if pair_name == name]
    return values[0] if len(values) == 1 else ""


def is_cross_site(environ: Environ) -> bool:
    """Return whether a page of another origin may have sent this request with the user's cookie.

    Requests with a safe method change nothing, and other sites cannot read the responses. But they
    could read the messages of a WebSocket. `Sec-Fetch-Site` says who sent a request
    (https://www.w3.org/TR/fetch-metadata/). Older browsers send `Origin` with a form. A program
    sends neither, and has no cookies of a person.
    """
    # Some proxies ask about a handshake without its Upgrade header.
    is_websocket = ("websocket" in environ.get("HTTP_UPGRADE", "").lower()
                    or "HTTP_SEC_WEBSOCKET_KEY" in environ)
    if environ.get("REQUEST_METHOD", "GET") in SAFE_METHODS and not is_websocket:
        return False
    site = environ.get("HTTP_SEC_FETCH_SITE")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = environ.get("HTTP_ORIGIN")
    if origin is None:
        return False
    host = origin.lower().partition("://")[2]  # empty for the origin `null` of a sandboxed frame
    return not host or host != environ.get("HTTP_HOST", "").lower()


def _next_page(environ: Environ) -> str:
    """Return the path and query of a request, percent-encoded for a query parameter."""
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    page = quote(path, _PATH_CHARACTERS, "latin-1", "replace")  # PEP 3333: text stands for bytes
    if environ.get("QUERY_STRING"):
        page += "?" + environ["QUERY_STRING"]
    encoded = quote(page, "/", "latin-1", "replace")
    return encoded if len(encoded) <= MAX_NEXT_LENGTH else "/"


def _redirect(start_response: StartResponse, location: str) -> Iterable[bytes]:
    start_response("303 See Other", [
        ("Location", location), ("Content-Type", "text/plain"), ("Content-Length", "0"),
        ("Cache-Control", "no-store"), ("Vary", "Accept"), ("X-Content-Type-Options", "nosniff")])
    return []


class Verifier(Protocol):
    """The part of a signer that the guard uses; a TokenSigner has it."""

    def verify(self, token: str) -> Claims:
        """Return the claims of a valid token, including `sub`, or raise InvalidTokenError."""


class BearerAuthMiddleware:
    """Requires a valid bearer token (RFC 6750) for the protected paths of an application.

    A rule is a path, optionally preceded by methods: `"/api"`, `"POST,DELETE /articles"`,
    `"/my files"`. It covers the path and everything below it. `"GET"` covers `HEAD`. The matching
    rule with the most segments decides; of two with the same path, the one that names the method,
    and then `protect` before `optional` before `exempt`.

    - `protect`: the rules under which a token is required; all paths by default. A mapping from
      rule to scopes also requires these scopes: `{"/api": (), "/api/admin": "admin"}`.
    - `exempt`: rules under which no token is required, inside protected paths. The application
      gets no identity there.
    - `optional`: rules under which a request may have a token. With a valid one, the application
      gets the identity; without one, it gets none. An invalid `Authorization` header is refused.
    - `realm`: the name of the protected area, shown to refused clients.
    - `is_revoked`: called with the claims of each valid token; returns true to reject it. Its
      exceptions propagate.
    - `cookie`: the name of a cookie that may contain the token, for browsers. Over HTTPS the name
      must begin with `__Host-`: `cookie="session"` reads `__Host-session`. It is read only if there
      is no `Authorization` header. A request that could change something is then refused with 403
      if a page of another site may have sent it (cross-site request forgery). Under `optional`, the
      application gets no identity instead.
    - `login_path`: a path such as `"/login"`. If a browser opens a page without a valid token, it
      is sent there with 303. The page that was asked for is in the query parameter `next`. Check
      that it is a path of this site before you redirect to it. The login page must be exempt. The
      path is used as given: for a page of an application below the mount `/app`, write
      `login_path="/app/login"` and `exempt=["/login", "/app/login"]`.
    - `refuse`: answers refused requests, for example with a page; with JSON by default. It is
      called with the environ, `start_response`, the status, a message, and headers to send.

    In a mounted application, both `PATH_INFO` and `SCRIPT_NAME + PATH_INFO` are compared with the
    rules. If both are protected, the token needs the scopes of both. An exemption must hold for
    both: below the mount `/app`, write `exempt=["/public", "/app/public"]`.

    A path is canonical if an application has nothing to interpret in it: no empty segments, no dot
    segments, no `%`, `;`, `?`, `#`, `:$` or backslash, no control characters, no dot or space at
    the end of a segment, and characters that Unicode normalization (NFKC) keeps. An exemption must
    be a beginning, in whole segments, of the canonical part. But a rule also protects paths that
    only some applications read as covered by it. With `protect=["/api"]`, `exempt=["/api/docs"]`:

    - Open: `/apix`, `/x/api`, `/x//y`. No rule covers them.
    - Open: `/api/docs`, `/api/docs/x//y`, `/api/docs/x;v=1`. The canonical part is exempt.
    - Protected: `/API`, `/api/Docs`, `/api.json`, `/+api`. Some applications ignore letter case,
      accents, invisible characters, punctuation (`a-b` and `a_b`), and a suffix or plus sign in
      the last segment.
    - Protected: `/default/api`, `/_default/api`, `/index/api`, `/get_one/api`. CherryPy, Pecan and
      TurboGears may serve them as `/api`.
    - Protected: `//host/api`, `/x/../api`, `/%61pi`. A path that is not canonical matches each
      rule whose segments it contains in the same order. The scopes of these rules add up.
    - Protected: `/api/docs/../x`. A path with dot segments has no canonical part.
    - Protected: `/api/docs/__self__`, `/api/docs/--self--`. Such a segment leads these frameworks
      from one object to another. It is not canonical, and only a rule with it can exempt the path.
    - Protected: `/x\\n`. A path too unusual to read, as with a line end, matches every rule.

    No list of equal names is complete: a database may also compare `đ` and `d` as equal. If an
    application looks names up under such a collation, protect the path above the names. If it
    takes its path or method from a header, protect everything.

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
        exempt: Sequence[str] = (), optional: Sequence[str] = (), realm: str = "api",
        is_revoked: Optional[Callable[[Claims], bool]] = None,
        cookie: Optional[str] = None, login_path: Optional[str] = None,
        refuse: Callable[..., Iterable[bytes]] = _send_error,
    ) -> None:
        if not callable(app) or not hasattr(signer, "verify"):
            raise TypeError("app must be a WSGI application, and signer a TokenSigner")
        if _UNQUOTABLE.search(realm):
            raise ValueError(f"not a realm: {realm!r}")
        if cookie is not None and not _HTTP_TOKEN.fullmatch(cookie):
            raise ValueError(f"not the name of a cookie: {cookie!r}")
        if login_path is not None and not _LOGIN_PATH.fullmatch(login_path):
            raise ValueError(f"not a path: {login_path!r}")
        self.app = app
        self.signer = signer
        self.realm = realm
        self.is_revoked = is_revoked
        self.cookie = cookie
        self.login_path = login_path
        self.refuse = refuse
        self._rules = _parse_rules(protect, optional, exempt)
        self._cached_access = lru_cache(PATH_CACHE_SIZE)(self._access_of_path)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        access, scopes = self._access(environ)
        if access is _Access.OPEN:
            _remove_identity(environ)
            return self.app(environ, start_response)
        authorization, from_cookie = self._credentials(environ)
        if from_cookie or access is _Access.OPTIONAL:
            start_response = _keep_private(start_response)
        refusal = self._admit(environ, authorization, from_cookie, scopes)
        if refusal is None:
            return self.app(environ, start_response)
        _remove_identity(environ)
        if from_cookie or not authorization:
            if access is _Access.OPTIONAL:
                return self.app(environ, start_response)
            if self.login_path and refusal.status[:3] == "401" and self._is_for_person(environ):
                return _redirect(start_response, f"{self.login_path}?next={_next_page(environ)}")
        return self._refuse(refusal, environ, start_response)

    def protects(self, environ: Environ) -> bool:
        """Return whether the request needs a token."""
        return self._access(environ)[0] is _Access.PROTECTED

    def authenticate(self, environ: Environ) -> Optional[Claims]:
        """Return the claims of the request's token, or None if it has no valid, unrevoked token.

        Middleware in front of the guard can call this. The guard, or another call, then uses the
        result and does not verify the token again. If `is_revoked` raises, this returns None, and
        the guard asks again.
        """
        authorization, _ = self._credentials(environ)
        try:
            result = self._check_token(environ, authorization)
        except Exception:  # a stored exception would keep the frames of the request in memory
            return None
        environ[_TOKEN_CHECK] = (self.signer, self.is_revoked, authorization, result)
        return None if isinstance(result, _Refusal) else result

    def _credentials(self, environ: Environ) -> Tuple[str, bool]:
        """Return the Authorization header, or one with the cookie's token; and which of the two."""
        authorization = environ.get("HTTP_AUTHORIZATION", "").strip(" \t")
        if authorization or self.cookie is None or "HTTP_COOKIE" not in environ:
            return authorization, False
        prefix = "__Host-" if environ.get("wsgi.url_scheme") == "https" else ""
        token = _find_cookie(environ["HTTP_COOKIE"], prefix + self.cookie)
        return (f"Bearer {token}", True) if token else ("", False)

    def _check_token(self, environ: Environ, authorization: str) -> Union[Claims, _Refusal]:
        """Return the claims of the token, or why it is refused; if known, from `authenticate`."""
        token_check = environ.pop(_TOKEN_CHECK, None)
        if isinstance(token_check, tuple) and token_check[:-1] == (
                self.signer, self.is_revoked, authorization):
            result: Union[Claims, _Refusal] = token_check[-1]
            return result
        if not authorization:
            return _MISSING_TOKEN
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return _invalid_token("The scheme must be Bearer")
        try:
            claims = self.signer.verify(token.lstrip(" "))
        except InvalidTokenError as error:
            return _invalid_token(str(error))
        if self.is_revoked is not None and self.is_revoked(claims):
            return _invalid_token("Token has been revoked")
        return claims

    def _admit(
        self, environ: Environ, authorization: str, from_cookie: bool, scopes: Scopes,
    ) -> Optional[_Refusal]:
        """Replace the identity in the environ, or return why the request is refused."""
        claims = self._check_token(environ, authorization)
        if isinstance(claims, _Refusal):
            return claims
        if from_cookie and is_cross_site(environ):
            return _CROSS_ORIGIN
        if scopes:
            granted = claims.get("scope")  # RFC 8693 §4.2: one string, separated by spaces
            if not isinstance(granted, str) or not set(scopes).issubset(granted.split(" ")):
                scope = " ".join(dict.fromkeys(scopes))
                return _Refusal("403 Forbidden", "Insufficient scope",
                                {"error": "insufficient_scope", "scope": scope})
        environ["wsgi_auth.claims"] = claims
        environ["wsgi_auth.cookie"] = from_cookie
        environ["REMOTE_USER"] = claims["sub"]
        environ["AUTH_TYPE"] = "Bearer"
        return None

    def _access(self, environ: Environ) -> Tuple[_Access, Scopes]:
        """Return whether the request needs a token, and the scopes that the token needs."""
        method = environ.get("REQUEST_METHOD", "GET")
        mount, path = environ.get("SCRIPT_NAME", ""), environ.get("PATH_INFO", "")
        # Matching a path may cost as much as verifying a token; most requests repeat a path.
        short = len(method) + len(mount) + len(path) <= MAX_CACHED_PATH_LENGTH
        return (self._cached_access if short else self._access_of_path)(method, mount, path)

    def _access_of_path(self, method: str, mount: str, path: str) -> Tuple[_Access, Scopes]:
        method = method.upper()  # as Werkzeug and Django read it
        readings = [_read_path(path)]
        if mount:
            readings.append(_read_mounted_path(mount, path, readings[0]))
        rules = [rule for reading in readings
                 for rule in _applicable_rules(self._rules, method, reading)]
        access = min((rule.access for rule in rules), default=_Access.OPEN)
        return access, tuple(chain.from_iterable(rule.scopes for rule in rules))

    def _is_for_person(self, environ: Environ) -> bool:
        """Return whether a browser opens a page, other than the login page, to show it."""
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        return (environ.get("REQUEST_METHOD") in ("GET", "HEAD") and path != self.login_path
                and "text/html" in environ.get("HTTP_ACCEPT", "").lower())

    def _refuse(
        self, refusal: _Refusal, environ: Environ, start_response: StartResponse,
    ) -> Iterable[bytes]:
        parameters = {"realm": self.realm, **refusal.challenge}
        challenge = "Bearer " + ", ".join(
            f'{name}="{_UNQUOTABLE.sub("?", value)}"' for name, value in parameters.items())
        # After a cross-origin request, another token would not help.
        headers = [] if refusal is _CROSS_ORIGIN else [("WWW-Authenticate", challenge)]
        return self.refuse(environ, start_response, refusal.status, refusal.message, *headers)


# --- The rate limit -----------------------------------------------------------------------------
#
# Design: Each client has a token bucket. It is stored as one number, the time at which the bucket
# will be full again, in an ordered dictionary whose oldest entries are dropped. The thread of the
# request updates it under a lock. Nothing here may block or grow without a bound.


def _subject_or_address(environ: Environ) -> str:
    subject = environ.get("REMOTE_USER")
    return f"user {subject}" if subject else f"address {environ.get('REMOTE_ADDR', '')}"


class RateLimitMiddleware:
    """Lets a client send `limit` requests at once, and as many again in each `period`.

    Each client has a token bucket that holds `limit` requests and refills evenly. A request that
    finds it empty gets 429 with Retry-After (RFC 6585 §4) and is not counted.

    - `limit`: requests; `period`: seconds.
    - `key`: called with the environ, returns a string for each client. By default, the user behind
      the guard, otherwise the address. Requests for which it returns None are not limited.
    - `clock`: returns seconds.

    The state belongs to one process. It keeps the 65,536 buckets that were used last.

    Raises:
        ValueError: `limit` is below 1, or `period` is not above 0.

    >>> app = RateLimitMiddleware(lambda environ, start_response: [b"hello"], limit=1, period=60)
    >>> environ = {"REMOTE_ADDR": "192.0.2.1"}
    >>> app(environ, print)
    [b'hello']
    >>> app(environ, lambda status, headers: print(status, headers[-1]))
    429 Too Many Requests ('Retry-After', '60')
    [b'{"success": false, "error": "Too many requests"}\\n']
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
        self._seconds_per_request = period / limit
        # By the hash of the client's key: the key itself may have any length.
        self._full_at: "OrderedDict[int, float]" = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        client = self.key(environ)
        wait = 0.0 if client is None else self._take(client)
        if not wait:
            return self.app(environ, start_response)
        return _send_error(
            environ, start_response, "429 Too Many Requests", "Too many requests",
            ("Retry-After", str(math.ceil(wait))))

    def _take(self, client: str) -> float:
        """Take a request from the client's bucket, or return the seconds until it has one."""
        now, bucket = self.clock(), hash(client)
        with self._lock:
            full_at = max(self._full_at.pop(bucket, now), now)
            full_at = min(full_at, now + self._period)  # the clock may have been set back
            wait = full_at + self._seconds_per_request - now - self._period
            if wait < self._seconds_per_request / 1000:  # rounding in sums of floats
                wait, full_at = 0.0, full_at + self._seconds_per_request
            self._full_at[bucket] = full_at
            if len(self._full_at) > MAX_BUCKETS:
                self._full_at.popitem(last=False)
        return wait


# --- CORS ---------------------------------------------------------------------------------------
#
# Design: Tells browsers which pages of other origins may read the responses (Cross-Origin Resource
# Sharing, https://fetch.spec.whatwg.org/#http-cors). It answers preflight requests itself and adds
# headers to all other responses. It must be outside the guard, because a preflight has no token.
# It must never allow credentials, so that pages of other origins cannot use a user's cookies.

_ORIGIN = re.compile(
    r"(?!http://.*:80\Z|https://.*:443\Z)"  # browsers omit the default port
    r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._~-]+|\[[0-9a-f:.]+\])(?::[0-9]+)?")


class CORSMiddleware:
    """Lets pages of the listed origins read the responses of an application.

    It replaces the application's `Access-Control-*` headers, except that it adds its own names to
    those of `Access-Control-Expose-Headers`.

    - `allow_origins`: a list of origins as browsers send them, such as `"https://app.example.org"`,
      without a path; `"*"` for any origin.
    - `allow_methods`, `allow_headers`: the methods and headers that a page may send.
    - `expose_headers`: the response headers that a page may read, in addition to those that
      browsers always expose.
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
        self._exposed_names = _join_names(expose_headers)
        self._preflight_headers = [
            ("Access-Control-Allow-Methods", _join_names(allow_methods)),
            ("Access-Control-Allow-Headers", _join_names(allow_headers)),
            ("Access-Control-Max-Age", str(int(max_age))),
        ]

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        origin = environ.get("HTTP_ORIGIN")
        is_preflight = (environ.get("REQUEST_METHOD") == "OPTIONS" and origin is not None
                        and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ)
        if is_preflight:
            cors_headers = self._cors_headers(origin, self._preflight_headers)
            start_response(
                "204 No Content", [("X-Content-Type-Options", "nosniff"), *cors_headers])
            return []

        def _start_response(status: str, headers: Headers, *exc_info: Any) -> Any:
            other_headers = [header for header in headers
                             if not header[0].lower().startswith("access-control-")]
            names = [self._exposed_names, *(value for name, value in headers
                                            if name.lower() == "access-control-expose-headers")]
            exposed = ("Access-Control-Expose-Headers", ", ".join(filter(None, names)))
            cors_headers = self._cors_headers(origin, [exposed])
            return start_response(status, other_headers + cors_headers, *exc_info)

        return self.app(environ, _start_response)

    def _cors_headers(self, origin: Optional[str], extra: Headers) -> Headers:
        """Return the CORS headers for this origin, with `extra` if the origin is allowed."""
        if origin is None or self._origins.isdisjoint((origin, "*")):
            return [("Vary", "Origin")]
        allowed_origin = "*" if "*" in self._origins else origin
        return [("Vary", "Origin"), ("Access-Control-Allow-Origin", allowed_origin), *extra]


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
