"""Sign-in for any WSGI application: JSON Web Tokens, password hashes, and a guard for paths.

Whoever knows a password gets a token; whoever has a token gets past the guard::

    import wsgi_auth

    signer = wsgi_auth.TokenSigner(key)  # 32 random bytes or more: secrets.token_hex(32)
    application = wsgi_auth.BearerAuthMiddleware(application, signer, exempt=["/public"])

    if wsgi_auth.verify_password(password, stored_hash):
        token = signer.sign({"sub": "alice"})

Behind the guard, an application finds in its environ, and may trust:

- ``wsgi_auth.claims``: the verified claims, a dict
- ``REMOTE_USER``: the claim ``sub``
- ``AUTH_TYPE``: ``"Bearer"``

The module defends against forged, stolen-and-expired and malformed tokens (RFC 8725), against the
guessing of passwords from stolen hashes (OWASP Password Storage Cheat Sheet), and against paths
that are written so that a guard and an application read them differently. It needs the standard
library alone, does no I/O, reads no environment, and keeps no state but the counts of a rate
limit, and what the last paths needed: copy it into any project.
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
from functools import lru_cache, partial
from itertools import chain, filterfalse, takewhile
from typing import (
    Any, Callable, Dict, FrozenSet, Iterable, List, Mapping, NamedTuple, NoReturn, Optional,
    Protocol, Sequence, Tuple, Union,
)
from urllib.parse import unquote_to_bytes

__all__ = [
    "BearerAuthMiddleware",
    "CORSMiddleware",
    "DecodeError",
    "ExpiredSignatureError",
    "ImmatureSignatureError",
    "InvalidAlgorithmError",
    "InvalidAudienceError",
    "InvalidClaimError",
    "InvalidIssuerError",
    "InvalidKeyError",
    "InvalidSignatureError",
    "InvalidTokenError",
    "MAX_TOKEN_BYTES",
    "MissingRequiredClaimError",
    "PBKDF2_ITERATIONS",
    "RateLimitMiddleware",
    "TokenSigner",
    "decode",
    "encode",
    "hash_password",
    "needs_rehash",
    "parse_json_object",
    "parse_scopes",
    "password_iterations",
    "verify_password",
]

MAX_TOKEN_BYTES = 16 * 1024  # what is read of a token, before anything else is known of it
MAX_JSON_DEPTH = 100  # the parser recurses, and in CPython 3.13 as far as a thread's stack goes
MIN_KEY_BYTES = 32  # RFC 7518 §3.2: as many bits as the hash has
PBKDF2_ITERATIONS = 600_000  # OWASP Password Storage Cheat Sheet, PBKDF2-HMAC-SHA256
MAX_PBKDF2_ITERATIONS = 10_000_000  # some seconds: more in a stored hash is an attack or a mistake
MAX_PASSWORD_BYTES = 1024  # of UTF-8
SALT_BYTES = 16  # NIST SP 800-132 §5.1
PATH_CACHE_SIZE = 1024  # entries in the guard's path cache
MAX_CACHED_PATH_LENGTH = 256  # characters; longer paths are not cached
MAX_BUCKETS = 65_536  # clients in a rate limit's memory; some 10 MB

Claims = Dict[str, Any]
Environ = Dict[str, Any]
StartResponse = Callable[..., Any]
WSGIApplication = Callable[[Environ, StartResponse], Iterable[bytes]]
Key = Union[str, bytes]
Keys = Union[Key, Sequence[Key]]
OneOrMore = Union[str, Sequence[str], None]  # None: not asked for
Scopes = Tuple[str, ...]
Rules = Union[Sequence[str], Mapping[str, Union[str, Iterable[str]]]]  # or rules and their scopes
Mac = Callable[[bytes], bytes]


# --- Errors -------------------------------------------------------------------------------------


class InvalidKeyError(ValueError):
    """A signing key that cannot be used. The message says how to make a good one."""


class InvalidTokenError(Exception):
    """The root of every refusal of a token. The message may be shown to the client."""


class DecodeError(InvalidTokenError):
    """The token is malformed."""


class InvalidSignatureError(DecodeError):
    """The signature is not that of this token under any of the keys."""


class InvalidAlgorithmError(InvalidTokenError):
    """The header names another algorithm than HS256."""


class ExpiredSignatureError(InvalidTokenError):
    """The time in `exp` has come."""


class ImmatureSignatureError(InvalidTokenError):
    """The time in `nbf` or `iat` has not come yet."""


class InvalidClaimError(InvalidTokenError):
    """A claim has a value that it must not have."""


class InvalidAudienceError(InvalidClaimError):
    """The token is meant for somebody else, or `aud` is malformed."""


class InvalidIssuerError(InvalidClaimError):
    """The token is from somebody else, or `iss` is malformed."""


class MissingRequiredClaimError(InvalidTokenError):
    """A required claim is not there; `claim` is its name."""

    def __init__(self, claim: str) -> None:
        super().__init__(claim)
        self.claim = claim

    def __str__(self) -> str:
        return f"Token is missing the {self.claim} claim"


# --- base64url and JSON -------------------------------------------------------------------------

_TO_BASE64URL = bytes.maketrans(b"+/", b"-_")
# From base64url's alphabet to base64's; what is base64's alone becomes `!`, which is refused.
_TO_BASE64 = bytes.maketrans(b"-_+/=", b"+/!!!")
_PADDING = (b"", b"===", b"==", b"=")


def _b64encode(data: bytes) -> bytes:
    return b2a_base64(data, newline=False).translate(_TO_BASE64URL, b"=")


def _b64decode(text: bytes) -> bytes:
    """Decode base64url in its one canonical spelling (RFC 7515 §2, RFC 4648 §3.5).

    Decoders skip what they do not know and drop stray bits, so that many texts mean one token;
    encoding the result again accepts the one that an encoder writes.
    """
    padded = text.translate(_TO_BASE64) + _PADDING[len(text) % 4]
    try:
        data = a2b_base64(padded)
    except Base64Error:
        raise DecodeError("Invalid base64url") from None
    if b2a_base64(data, newline=False) != padded:
        raise DecodeError("Invalid base64url")
    return data


def _unique_members(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):  # RFC 7515 §4, RFC 7519 §4: two readers may pick different ones
        raise DecodeError("Duplicate member name in JSON")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise DecodeError("Invalid JSON")  # NaN and Infinity, which RFC 8259 §6 does not have


def _finite_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise DecodeError("Number out of range in JSON")
    return number


_read_json = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_float=_finite_float).raw_decode
_read_json_strictly = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_float=_finite_float, object_pairs_hook=_unique_members,
).raw_decode
_JSON_MARKS = re.compile(r'\\.|["\[{\]}]')
_write_json = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"),
).encode


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_JSON_DEPTH:
        return
    depth, quoted = 0, False
    for mark in _JSON_MARKS.findall(text):
        if mark == '"':
            quoted = not quoted
        elif not quoted:
            depth += 1 if mark in "[{" else -1
        if depth > MAX_JSON_DEPTH:
            raise DecodeError("JSON is nested too deeply")


def parse_json_object(data: bytes) -> Dict[str, Any]:
    """Parse one JSON object in UTF-8, strictly (RFC 8259).

    Duplicate member names, NaN, Infinity, numbers that overflow, lone surrogates, and more than
    100 levels of arrays and objects are refused.

    Raises:
        DecodeError: it is anything else.

    >>> parse_json_object(b'{"a": 1}')
    {'a': 1}
    >>> parse_json_object(b'{"a": 1, "a": 2}')
    Traceback (most recent call last):
    wsgi_auth.DecodeError: Duplicate member name in JSON
    """
    try:
        text = data.decode().strip(" \t\n\r")
        colons = text.count(":")  # each member of an object has one
        if "[" in text or colons >= MAX_JSON_DEPTH:  # else it cannot be nested that deeply
            _check_depth(text)
        value, end = _read_json(text)
        if end != len(text) or type(value) is not dict:
            raise DecodeError("Not one JSON object")
        # If there are no more colons than names, no name came twice; else it takes the hook, a
        # call of Python for each object, to know.
        if colons != len(value):
            _read_json_strictly(text)
        if "\\" in text:
            _write_json(value).encode()  # fails on a lone surrogate, which nobody could pass on
    except (ValueError, RecursionError):
        raise DecodeError("Invalid JSON") from None
    return value


# --- Tokens, the outer layer: bytes and signatures ----------------------------------------------

_HEADER = _b64encode(b'{"alg":"HS256","typ":"JWT"}')
_TYPES = ("jwt", "at+jwt", "application/jwt", "application/at+jwt")  # RFC 7519 §5.1, RFC 9068 §4
_ASYMMETRIC_KEY = re.compile(
    rb"-----BEGIN|---- BEGIN SSH2|ssh-(?:rsa|dss|ed|xmss)|ecdsa-sha2-")
_KEY_ADVICE = (
    "a key is at least 32 random bytes of text or bytes; make one with"
    ' python -c "import secrets; print(secrets.token_hex(32))"'
)


def _key_bytes(key: Any) -> bytes:
    """The bytes of a key, unless it is weak or was made for something else.

    A public key as an HMAC secret is the algorithm confusion of RFC 8725 §2.1: everybody knows it.
    """
    try:
        data = key if isinstance(key, bytes) else str.encode(key)
    except (TypeError, UnicodeEncodeError):
        raise InvalidKeyError(f"Not a key: {_KEY_ADVICE}") from None
    if len(data) < MIN_KEY_BYTES:
        raise InvalidKeyError(f"The key is too short, {len(data)} bytes: {_KEY_ADVICE}")
    if _ASYMMETRIC_KEY.search(data.replace(b"\0", b"")) or _is_json_document(data):  # or in UTF-16
        raise InvalidKeyError(f"A PEM, SSH or JWK document is no HMAC key: {_KEY_ADVICE}")
    return data


def _is_json_document(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), (dict, list))
    except (ValueError, RecursionError):
        return False


def _macs(keys: Keys) -> List[Mac]:
    """One function for each key, in their order, from a signing input to its signature."""
    several = isinstance(keys, Sequence) and not isinstance(keys, (str, bytes))
    listed = keys if several else [keys]
    if not listed:
        raise InvalidKeyError(f"There is no key: {_KEY_ADVICE}")
    return [_mac(_key_bytes(key)) for key in listed]


def _mac(key: bytes) -> Mac:
    """HMAC-SHA256 (RFC 2104 §2), the key's two hashes done once: half the cost of hmac.digest()."""
    block = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
    inner = hashlib.sha256(block.translate(hmac.trans_36))
    outer = hashlib.sha256(block.translate(hmac.trans_5C))

    def mac(message: bytes) -> bytes:
        inside, outside = inner.copy(), outer.copy()
        inside.update(message)
        outside.update(inside.digest())
        return _b64encode(outside.digest())

    return mac


def _check_header(header: Dict[str, Any]) -> None:
    """Refuse every header that asks for more than HS256 (RFC 8725 §3.1, RFC 7515 §4.1.11)."""
    if header.get("alg") != "HS256":
        raise InvalidAlgorithmError("The algorithm must be HS256")
    if "crit" in header or "b64" in header:
        raise DecodeError("The token uses an extension that is not supported")
    typ = header.get("typ", "JWT")
    if not isinstance(typ, str) or typ.lower() not in _TYPES:
        raise DecodeError("The type must be JWT")


def _signed(header: bytes, claims: Claims, mac: Mac) -> str:
    if not isinstance(claims, dict):
        raise TypeError("claims must be a dict")
    signing_input = header + b"." + _b64encode(_write_json(claims).encode())
    return (signing_input + b"." + mac(signing_input)).decode()


def _verified(token: Any, macs: List[Mac]) -> Claims:
    """The claims of a token that one of the keys signed, not looked at any further."""
    if isinstance(token, str):
        try:
            token = str.encode(token, "ascii")
        except UnicodeEncodeError:
            raise DecodeError("Invalid base64url") from None
    elif not isinstance(token, bytes):
        raise DecodeError("A token is text or bytes")
    if len(token) > MAX_TOKEN_BYTES:
        raise DecodeError("The token is too long")
    signing_input, _, signature = token.rpartition(b".")
    header, dot, payload = signing_input.partition(b".")
    if not dot:
        raise DecodeError("A token has three parts")
    if header != _HEADER:  # ours, and PyJWT's and jsonwebtoken's: no need to parse what we know
        _check_header(parse_json_object(_b64decode(header)))
    for mac in macs:
        # Compared as text, so that no other spelling of the same signature will do.
        if hmac.compare_digest(mac(signing_input), signature):
            return parse_json_object(_b64decode(payload))
    raise InvalidSignatureError("Signature verification failed")


# --- Tokens, the inner layer: claims ------------------------------------------------------------

_NUMBER = (int, float)  # and not bool, which is an int in Python


def _validate_claims(
    claims: Claims, require: Iterable[str], now: float, leeway: float, audience: OneOrMore,
    issuer: OneOrMore,
) -> None:
    for name in require:
        if name not in claims:
            raise MissingRequiredClaimError(name)
    _validate_times(claims, now, leeway)
    if type(claims.get("sub", "")) is not str or type(claims.get("jti", "")) is not str:
        raise InvalidClaimError("sub and jti must be strings")
    if issuer is not None or "iss" in claims:
        _validate_issuer(claims, issuer)
    if audience is not None or "aud" in claims:
        _validate_audience(claims, audience)


def _validate_times(claims: Claims, now: float, leeway: float) -> None:
    """RFC 7519 §4.1.4 to §4.1.6. A token from the future tells of a wrong clock or a forger."""
    try:
        if "exp" in claims:
            if type(claims["exp"]) not in _NUMBER:
                raise InvalidClaimError("exp must be a number")
            if not now < claims["exp"] + leeway:  # nor if one of them is NaN
                raise ExpiredSignatureError("Token has expired")
        for name in ("nbf", "iat"):
            if name in claims:
                if type(claims[name]) not in _NUMBER:
                    raise InvalidClaimError(f"{name} must be a number")
                if not now >= claims[name] - leeway:
                    raise ImmatureSignatureError(f"Token is not valid yet, says {name}")
    except OverflowError:  # an integer beyond every float
        raise InvalidClaimError("A time is out of range") from None


def _validate_issuer(claims: Claims, issuer: OneOrMore) -> None:
    if "iss" not in claims:
        raise MissingRequiredClaimError("iss")
    if type(claims["iss"]) is not str:
        raise InvalidIssuerError("iss must be a string")
    allowed = [issuer] if isinstance(issuer, str) else issuer
    if allowed is not None and claims["iss"] not in allowed:
        raise InvalidIssuerError("Invalid issuer")


def _validate_audience(claims: Claims, audience: OneOrMore) -> None:
    """RFC 7519 §4.1.3: whoever does not find himself in `aud` must refuse the token."""
    if "aud" not in claims:
        raise MissingRequiredClaimError("aud")
    bearers = [claims["aud"]] if isinstance(claims["aud"], str) else claims["aud"]
    if not isinstance(bearers, list) or not all(type(name) is str for name in bearers):
        raise InvalidAudienceError("aud must be a string or a list of strings")
    allowed = [audience] if isinstance(audience, str) else audience or ()
    if not any(name in allowed for name in bearers):
        raise InvalidAudienceError("Invalid audience")


# --- Tokens, in public --------------------------------------------------------------------------


def encode(claims: Claims, key: Key, *, headers: Optional[Mapping[str, Any]] = None) -> str:
    """Sign `claims` with HMAC-SHA256 as a JSON Web Token (RFC 7519, RFC 7515 §3.1).

    `claims` are written as they are, none is added; `headers` are further header parameters.

    Raises:
        InvalidKeyError: the key is shorter than 32 bytes or was made for something else.
        InvalidTokenError: `headers` ask for what `decode` would refuse.
        TypeError, ValueError: the claims are not a dict that JSON can express.

    >>> encode({"sub": "alice"}, "k" * 32)[:42]
    'eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzd'
    """
    header = {"alg": "HS256", "typ": "JWT", **(headers or {})}
    _check_header(header)
    return _signed(_b64encode(_write_json(header).encode()), claims, _macs(key)[0])


def decode(
    token: Union[str, bytes], key: Keys, *, audience: OneOrMore = None, issuer: OneOrMore = None,
    leeway: float = 0, require: Iterable[str] = (), now: Optional[float] = None,
) -> Claims:
    """Verify a token and return its claims (RFC 7519 §7.2, RFC 8725).

    `key` may be a list of keys, any of which may have signed. `audience` and `issuer` are a name or
    several, of which one must be in the token; `leeway`, in seconds, forgives clocks that differ;
    `require` names the claims that must be there; `now` is the time in seconds since 1970.

    Raises:
        InvalidTokenError: the token is refused; a subclass says why.
        InvalidKeyError: the key cannot be used.

    >>> decode(encode({"sub": "alice"}, "k" * 32), "k" * 32)
    {'sub': 'alice'}
    """
    claims = _verified(token, _macs(key))
    _validate_claims(
        claims, require, time.time() if now is None else now, leeway, audience, issuer)
    return claims


class TokenSigner:
    """Signs and verifies tokens of one kind, by one policy.

    `keys` is a key or a list of keys: the first signs, each verifies. `lifetime` and `leeway` are
    in seconds; `clock` returns seconds since 1970.

    Raises:
        InvalidKeyError: a key cannot be used.

    >>> signer = TokenSigner("k" * 32, lifetime=600)
    >>> claims = signer.verify(signer.sign({"sub": "alice"}))
    >>> claims["sub"], claims["exp"] - claims["iat"]
    ('alice', 600)
    """

    def __init__(
        self, keys: Keys, *, issuer: Optional[str] = None, audience: OneOrMore = None,
        lifetime: float = 3600, leeway: float = 0, clock: Callable[[], float] = time.time,
    ) -> None:
        self._macs = _macs(keys)
        self.issuer = issuer
        self.audience = audience
        self.lifetime = lifetime
        self.leeway = leeway
        self.clock = clock

    def sign(self, claims: Claims) -> str:
        """Sign `claims`, with `iat`, `exp`, `jti`, `iss` and `aud` added where they are not given.

        Raises:
            TypeError, ValueError: the claims are not a dict that JSON can express.
        """
        now = int(self.clock())
        added: Claims = {"iat": now, "exp": now + self.lifetime, "jti": secrets.token_urlsafe(16)}
        if self.issuer is not None:
            added["iss"] = self.issuer
        if self.audience is not None:
            added["aud"] = self.audience
        return _signed(_HEADER, {**added, **claims}, self._macs[0])

    def verify(self, token: Union[str, bytes]) -> Claims:
        """Return the claims of a token that has `exp` and `sub` and keeps to the policy.

        Raises:
            InvalidTokenError: the token is refused; a subclass says why.
        """
        claims = _verified(token, self._macs)
        _validate_claims(
            claims, ("exp", "sub"), self.clock(), self.leeway, self.audience, self.issuer)
        return claims


# --- Passwords ----------------------------------------------------------------------------------


class _PasswordHash(NamedTuple):
    digest: str  # of hashlib
    iterations: int
    salt: bytes
    checksum: bytes


def _ab64decode(text: str) -> bytes:
    """passlib's "adapted base64": no padding, and a dot for the plus."""
    return base64.b64decode(text.replace(".", "+") + "=" * (-len(text) % 4))


# Each form that is verified, and how it writes its salt and its checksum.
_Decoder = Callable[[str], bytes]
_HASH_FORMS: Tuple[Tuple["re.Pattern[str]", _Decoder, _Decoder], ...] = (
    # Django, and ours: pbkdf2_sha256$600000$salt$base64
    (re.compile(r"pbkdf2_(sha256|sha1)\$([1-9][0-9]{0,7})\$([^$]+)\$([A-Za-z0-9+/]+=*)"),
     str.encode, base64.b64decode),
    # Werkzeug: pbkdf2:sha256:600000$salt$hex
    (re.compile(r"pbkdf2:(sha256):([1-9][0-9]{0,7})\$([^$]+)\$([0-9a-f]+)"),
     str.encode, bytes.fromhex),
    # passlib: $pbkdf2-sha256$29000$ab64$ab64
    (re.compile(r"\$pbkdf2-(sha256)\$([1-9][0-9]{0,7})\$([A-Za-z0-9./]*)\$([A-Za-z0-9./]+)"),
     _ab64decode, _ab64decode),
)


def _parse_hash(encoded: Any) -> Optional[_PasswordHash]:
    if not isinstance(encoded, str):
        return None
    for pattern, decode_salt, decode_checksum in _HASH_FORMS:
        match = pattern.fullmatch(encoded)
        if match:
            try:
                parsed = _PasswordHash(
                    match[1], int(match[2]), decode_salt(match[3]), decode_checksum(match[4]))
            except ValueError:
                return None
            whole = len(parsed.checksum) == hashlib.new(parsed.digest).digest_size
            return parsed if whole and parsed.iterations <= MAX_PBKDF2_ITERATIONS else None
    return None


def _password_bytes(password: str) -> bytes:
    if not isinstance(password, str):
        raise TypeError("a password is a str")
    if not password:
        raise ValueError("the password is empty")
    try:
        data = password.encode()
    except UnicodeEncodeError:
        raise ValueError("the password is not valid Unicode") from None
    if len(data) > MAX_PASSWORD_BYTES:
        raise ValueError(f"the password is longer than {MAX_PASSWORD_BYTES} bytes")
    return data


def hash_password(password: str, *, iterations: int = PBKDF2_ITERATIONS) -> str:
    """Hash a password for storage, by PBKDF2-HMAC-SHA256 with a random salt (RFC 8018 §5.2, OWASP).

    The form is Django's. It takes some tenths of a second, by design; other threads go on.

    Raises:
        ValueError: the password is empty or over 1,024 bytes of UTF-8, or `iterations` is not from
            1 to 10,000,000.

    >>> hash_password("correct horse", iterations=1000)[:19]
    'pbkdf2_sha256$1000$'
    """
    data = _password_bytes(password)
    if not 1 <= iterations <= MAX_PBKDF2_ITERATIONS:
        raise ValueError(f"iterations must be from 1 to {MAX_PBKDF2_ITERATIONS}")
    salt = secrets.token_hex(SALT_BYTES)  # passlib allows letters and digits alone
    checksum = hashlib.pbkdf2_hmac("sha256", data, salt.encode(), iterations)
    return f"pbkdf2_sha256${iterations:d}${salt}${base64.b64encode(checksum).decode()}"


def verify_password(password: str, encoded: Optional[str], *, min_iterations: int = 0) -> bool:
    """Tell whether `encoded` is a hash of `password`; junk of any kind is just False.

    Understood are Django's `pbkdf2_sha256` and `pbkdf2_sha1`, Werkzeug's `pbkdf2:sha256` and
    passlib's `$pbkdf2-sha256`. A refusal costs at least `min_iterations`, even where there is no
    hash, so that its time does not tell which users exist (OWASP Authentication Cheat Sheet).

    >>> verify_password("correct horse", hash_password("correct horse", iterations=1000))
    True
    >>> verify_password("correct horse", None, min_iterations=1000)
    False
    """
    try:
        data = _password_bytes(password)
    except (TypeError, ValueError):
        return False
    spent = 0
    stored = _parse_hash(encoded)
    if stored:
        derived = hashlib.pbkdf2_hmac(stored.digest, data, stored.salt, stored.iterations)
        if hmac.compare_digest(derived, stored.checksum):
            return True
        spent = stored.iterations
    if spent < min_iterations:
        hashlib.pbkdf2_hmac("sha256", data, b"nobody", min_iterations - spent)
    return False


def needs_rehash(encoded: str, *, iterations: int = PBKDF2_ITERATIONS) -> bool:
    """Tell whether to hash the password anew at the next login: another form, or fewer iterations.

    >>> needs_rehash(hash_password("correct horse", iterations=1000))
    True
    """
    stored = _parse_hash(encoded)
    return not (
        stored and encoded.startswith("pbkdf2_sha256$") and stored.iterations >= iterations)


def password_iterations(encoded: Optional[str]) -> int:
    """The iterations of a hash that `verify_password` understands; 0 for whatever it does not.

    >>> password_iterations(hash_password("correct horse", iterations=1000))
    1000
    >>> password_iterations("$2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhW")  # bcrypt
    0
    """
    stored = _parse_hash(encoded)
    return stored.iterations if stored else 0


# --- Path rules ---------------------------------------------------------------------------------
#
# Design: An application may decode a path again, merge slashes or ignore case, and serve another
# path than the guard saw. A canonical path leaves nothing to interpret: it is compared with a rule
# segment by segment. Any other path falls under each rule whose words it contains in order. A rule
# that certainly applies ends the search. A rule that only may apply adds its protection; it never
# exempts. All of this is computation on bounded text, in the thread of the request.

_METHOD = "(?:GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS|TRACE|CONNECT|QUERY|PROPFIND|MKCOL|COPY|MOVE)"
_RULE = re.compile(
    r"(?:(?P<methods>[A-Z]+(?:,[A-Z]+)*) )?"
    r"(?P<path>/|(?:/[^\x00-\x1f\x7f-\xa0\"#%*;<>?\[\\\]^`{|}/]+)+/?)")
_TRAILING_METHODS = re.compile(rf" {_METHOD}(?:,{_METHOD})*/?\Z")
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")  # RFC 6749 §3.3: scope-token

_TARGET_FORM = re.compile(r"\Z|/|\*\Z|https?://", re.IGNORECASE)  # RFC 9112 §3.2
_ODD_CHARACTER = re.compile("[\\x00-\\x1f\\x7f-\\x9f#%;?\\\\\u1680\u2028\u2029\ufffd]")
_ODD_SEQUENCES = ("//", "/..", "/@@", "/ ", "./", " /")
_SEPARATOR = re.compile(r"[/\\;?#]")
_VIEW_PREFIX = re.compile(r"^(?:@@\s*)+")  # Pyramid serves the view `name` at `@@name`
_LINE_END_OR_NUL = re.compile(r"[\0\r\n]")
_INVISIBLE = re.compile(  # control characters, and category Cf, which databases may ignore
    "[\x01-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f"
    "\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\U000110bd\U000110cd"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001"
    "\U000e0020-\U000e007f]")
_PUNCTUATION = str.maketrans(  # `/a-b` is `/a_b` for CherryPy
    dict.fromkeys(string.punctuation.replace("/", ""), "_"))
_TRAILING_DOTS = ". \u1680\u2028\u2029"  # and the white space that NFKC keeps
_MAX_ENCODINGS = 3  # layers of percent-encoding beyond the server's; one is rare already
_MAX_ODD_PATH = 2048  # characters of a path that is not canonical
_MAX_DEPTH = 64  # segments of a rule, and of a path that is not canonical
_nfkc = partial(unicodedata.normalize, "NFKC")


class _Rule(NamedTuple):
    rank: Tuple[int, bool, bool]  # the lowest decides
    methods: FrozenSet[str]  # empty: all
    path: str  # with a slash at the end
    punctuation_key: str  # the path, folded
    words: Tuple[str, ...]  # its segments, folded
    scopes: Optional[Scopes]  # None: exempt


class _Path(NamedTuple):
    """The ways in which applications could read a path."""

    certain: str = "/"  # the canonical beginning, which all of them read alike, and a slash
    punctuation_keys: Sequence[str] = ()  # canonical readings, folded, each with a slash
    word_lists: Sequence[Sequence[str]] = ()  # the words of other readings, folded
    words: FrozenSet[str] = frozenset()  # all words of these lists
    readable: bool = True  # otherwise it could be any path

    def may_match(self, rule: _Rule) -> bool:
        """Tell whether some application could serve a path that the rule covers."""
        for key in self.punctuation_keys:
            if key.startswith(rule.punctuation_key):
                return True
        if self.word_lists and self.words.issuperset(rule.words):
            return any(_contains_in_order(words, rule.words) for words in self.word_lists)
        return not self.readable


_UNREADABLE = _Path(readable=False)


def _contains_in_order(words: Iterable[str], wanted: Iterable[str]) -> bool:
    remaining = iter(words)
    return all(word in remaining for word in wanted)


def _read_path(path: str) -> _Path:
    if path.isascii() and path[:1] in ("", "/") and _is_canonical(path):
        return _Path(path.rstrip("/") + "/", _punctuation_keys(path))
    # Some applications add a missing slash; others take the first character for it.
    if len(path) > _MAX_ODD_PATH or not _TARGET_FORM.match(path):
        return _UNREADABLE
    try:
        data = path.encode("latin-1")  # PEP 3333: each character stands for a byte
    except UnicodeEncodeError:
        data = path.encode("utf-8", "surrogatepass")
    raw = data.decode("utf-8", "replace")
    encoded = "%" in path
    readings = dict.fromkeys((raw, path) if encoded else ())
    for encoding in ("utf-8", "latin-1", "ascii") if encoded or not path.isascii() else ("ascii",):
        text = _decode_fully(data, encoding)
        if text is None:
            return _UNREADABLE
        readings[text] = None
    return _combine_readings(raw, list(readings))


def _combine_readings(raw: str, readings: Sequence[str]) -> _Path:
    """Divide the readings into those that are canonical and others.

    All readings of a path that is canonical in UTF-8 are canonical, with one exception: where an
    application drops the bytes beyond ASCII, segments may vanish or become dot segments.
    """
    certain, depth = "/", -1
    if not any(map(_has_dot_segment, readings)):
        names = takewhile(lambda name: _is_canonical(f"/{name}/-"), raw.split("/")[1:])
        certain = "/".join(["", *names, ""])
        depth = len(_names(raw)) if raw[:1] == "/" and _is_canonical(raw) else -1
    keys, word_lists = [], []
    for text in readings:
        if len(_names(text)) == depth:
            keys += _punctuation_keys("/" + "/".join(_names(text)))
        else:
            word_lists.append(_odd_words(text))
    return _Path(certain, keys, word_lists, frozenset(chain.from_iterable(word_lists)))


def _read_mounted_path(mount: str, path: str, inner: _Path) -> _Path:
    """Read both as one path and, if `path` is not canonical, as two that are decoded apart."""
    whole, outer = _read_path(mount + path), _read_path(mount)
    if not whole.readable or not inner.word_lists:
        return whole
    mounts = [*(key.split("/") for key in outer.punctuation_keys), *outer.word_lists]
    apart = [[*first, *second] for first in mounts for second in inner.word_lists]
    word_lists = [*whole.word_lists, *apart]
    return _Path("/", whole.punctuation_keys, word_lists, whole.words.union(*apart))


def _decode_fully(data: bytes, encoding: str) -> Optional[str]:
    """Undo all percent-encoding, normalize, and drop invisible characters.

    Returns None if the result is unpredictable. NUL ends a path for C programs, and a line end does
    for some patterns. Honest clients send neither, nor several layers of encoding.
    """
    previous = data.decode(encoding, "replace")
    for _ in range(_MAX_ENCODINGS + 1):
        text = _nfkc(unquote_to_bytes(data).decode(encoding, "ignore"))
        if _LINE_END_OR_NUL.search(text) or len(text) > _MAX_ODD_PATH:  # NFKC may expand
            return None
        text = _INVISIBLE.sub("", text)
        if text == previous:
            return text if len(_SEPARATOR.findall(text)) <= _MAX_DEPTH else None
        previous, data = text, text.encode(encoding, "ignore")
    return None


def _is_canonical(path: str) -> bool:
    """Tell whether a decoded path contains nothing that an application could interpret."""
    if _ODD_CHARACTER.search(path):
        return False
    if not path.isascii():
        path = _INVISIBLE.sub("", path)
        if _nfkc(path) != path:
            return False
    for sequence in _ODD_SEQUENCES:  # a regular expression takes four times as long
        if sequence in path:
            return False
    return not path.endswith((".", " "))


def _has_dot_segment(path: str) -> bool:
    if "." not in path and "@@" not in path:
        return False
    names = map(_strip_name, filter(str.strip, _SEPARATOR.split(path)))
    return any(not name or name[:2] == ".." for name in names)


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
    stems = [name, *(part.rstrip(_TRAILING_DOTS).strip() for part in parts)]
    return dict.fromkeys(stems + [stem.lstrip("+") for stem in stems])


def _punctuation_keys(path: str) -> List[str]:
    """Fold a canonical path, with and without the suffix of its last segment."""
    above, _, last = _fold(path).rstrip("/").rpartition("/")
    return [f"{above}/{stem}/".translate(_PUNCTUATION) for stem in _stems(last)]


def _odd_words(path: str) -> List[str]:
    """Return the names that an application could find in a path, in order and folded."""
    names: List[str] = []
    for segment in _fold(path).split("/"):
        if segment.isalnum():  # nearly all are
            names.append(segment)
        else:
            pieces = _SEPARATOR.split(segment)
            for piece in pieces if len(pieces) == 1 else [segment, *pieces]:
                stems = _stems(_strip_name(piece))
                names += dict.fromkeys((piece, piece.rpartition(".")[0], *stems))
    return "/".join(names).translate(_PUNCTUATION).split("/")


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
    return names


def _parse_rules(protect: Rules, exempt: Sequence[str]) -> List[_Rule]:
    """Parse all rules, and sort them: longer paths, rules with methods and exemptions first."""
    if isinstance(protect, str) or isinstance(exempt, str):
        raise ValueError("rules come in a list, not as one string")
    required = protect.items() if isinstance(protect, Mapping) else [(rule, ()) for rule in protect]
    rules = [_parse_rule(rule, parse_scopes(scopes)) for rule, scopes in required]
    rules += [_parse_rule(rule, None) for rule in exempt]
    paths = {rule.path for rule in rules}
    if len(paths) != len(set(map(_fold, paths))):
        raise ValueError("rules whose paths differ only in letter case or accents are ambiguous")
    return sorted(rules, key=lambda rule: rule.rank)


def _parse_rule(text: str, scopes: Optional[Scopes]) -> _Rule:
    match = _RULE.fullmatch(text) if isinstance(text, str) else None
    path = match["path"].rstrip("/") + "/" if match else "//"
    key = _fold(path).translate(_PUNCTUATION)
    words = tuple(filter(None, key.split("/")))
    if (not _is_canonical(path) or "//" in key or len(words) > _MAX_DEPTH
            or _TRAILING_METHODS.search(path)):
        raise ValueError(f"not a rule: {text!r}; a rule is '/path' or 'GET,POST /path', with the"
                         " methods first, decoded, without wildcards")
    methods = frozenset(filter(None, (match["methods"] or "").split(","))) if match else frozenset()
    rank = (-len(words), not methods, scopes is not None)
    if "GET" in methods:
        methods |= {"HEAD"}
    return _Rule(rank, methods, path, key, words, scopes)


def _applicable_rules(rules: List[_Rule], method: str, path: _Path) -> Iterable[_Rule]:
    """Return the rules of the longest certain match, and all longer ones that may match."""
    certain_rank = None
    for rule in rules:
        if certain_rank is not None and rule.rank != certain_rank:
            return
        if rule.methods and method not in rule.methods:
            continue
        if path.certain.startswith(rule.path):
            certain_rank = rule.rank
            yield rule
        elif path.may_match(rule):
            yield rule


# --- The guard ----------------------------------------------------------------------------------
#
# Design: The guard looks up which scopes a path needs, checks the token if it needs one, and calls
# the application or answers itself. Which scopes a path needs is cached. A refusal is a value, not
# an exception, so it keeps no stack frames in memory. A rate limiter in front can check the token
# first; its result travels in the environ and is used once, by the same guard, for the same header.
# All of this runs in the thread of the request. In doubt, the guard must refuse or raise.

_IDENTITY_KEYS = ("wsgi_auth.claims", "REMOTE_USER", "AUTH_TYPE")
_TOKEN_CHECK = "wsgi_auth.token_check"  # clients can set only keys that begin with HTTP_
_UNQUOTABLE = re.compile(r"[^\x20\x21\x23-\x5b\x5d-\x7e]")  # RFC 6750 §3: in a challenge's values


class _Refusal(NamedTuple):
    """Why a request is refused, and the parameters of its challenge (RFC 6750 §3)."""

    status: str
    message: str
    challenge: Mapping[str, str] = {}


class _TokenCheck(NamedTuple):
    """The result of checking a token, the guard that checked it, and the header it came in."""

    guard: "BearerAuthMiddleware"
    authorization: str
    result: Union[Claims, _Refusal]


_MISSING_TOKEN = _Refusal("401 Unauthorized", "An authorization header is required")


def _invalid_token(reason: str) -> _Refusal:
    return _Refusal("401 Unauthorized", "Invalid authorization token",
                    {"error": "invalid_token", "error_description": reason})


def _insufficient_scope(scopes: Scopes) -> _Refusal:
    return _Refusal("403 Forbidden", "Insufficient scope",
                    {"error": "insufficient_scope", "scope": " ".join(dict.fromkeys(scopes))})


def _authorization(environ: Environ) -> str:
    """Return the header that a request's token comes in, the only source of tokens."""
    header: str = environ.get("HTTP_AUTHORIZATION", "")
    return header.strip(" \t")


def _token_scopes(claims: Claims) -> List[str]:
    scope = claims.get("scope")  # RFC 8693 §4.2: one string, separated by spaces
    return scope.split(" ") if isinstance(scope, str) else []


def _send_error(
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


class Verifier(Protocol):
    """The part of a signer that the guard uses; a TokenSigner has it."""

    def verify(self, token: str) -> Claims:
        """Return the claims of a valid token, including `sub`, or raise InvalidTokenError."""


class BearerAuthMiddleware:
    """Requires a valid bearer token (RFC 6750) for the protected paths of an application.

    A rule is a path, optionally preceded by methods: `"/api"`, `"POST,DELETE /articles"`,
    `"/my files"`. It covers the path and everything below it. `"GET"` covers `HEAD`. The longest
    matching rule decides; of two rules with the same path, the one that names the method.

    - `protect`: the rules under which a token is required; all paths by default. A mapping from
      rule to scopes also requires these scopes: `{"/api": (), "/api/admin": "admin"}`.
    - `exempt`: rules under which no token is required, inside protected paths.
    - `realm`: the name of the protected area, shown to refused clients.
    - `is_revoked`: called with the claims of each valid token; returns true to reject it. Its
      exceptions propagate.

    The path that a rule is compared with is `PATH_INFO` and, in a mounted application, also
    `SCRIPT_NAME + PATH_INFO`. If both are protected, the token needs the scopes of both.

    A path is canonical if an application has nothing to interpret in it: no empty segments, no dot
    segments, no `%`, `;`, `?`, `#` or backslash, no control characters, no dot or space at the end
    of a segment, and characters that Unicode normalization (NFKC) keeps. It is compared segment by
    segment. These differences count as equal, because some applications ignore them:

    - letter case, accents and invisible characters;
    - punctuation: `/a-b` and `/a_b`;
    - a suffix or plus sign in the last segment: `/a.json` and `/+a` for `/a`.

    Any other path falls under each rule whose segments it contains in the same order:
    `/x/../api`, `/%61pi` and `//host/api` all fall under `"/api"`. So does every path that is too
    unusual to read, such as one with a line end. An exemption is stricter. It must equal the
    canonical beginning of the path exactly, and it does not apply to a path with dot segments.

    No list of equal names is complete: a database may also compare `đ` and `d` as equal. If an
    application looks names up under such a collation, protect the path above the names.

    The guard reads only the `Authorization` header. If the application takes its path or method
    from another header, protect everything.

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
        self._cached_scopes = lru_cache(PATH_CACHE_SIZE)(self._scopes_of_path)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        token_check = environ.pop(_TOKEN_CHECK, None)
        for key in _IDENTITY_KEYS:
            environ.pop(key, None)
        scopes = self._required_scopes(environ)
        if scopes is not None:
            refusal = self._admit(environ, scopes, token_check)
            if refusal is not None:
                return self._refuse(refusal, environ, start_response)
        return self.app(environ, start_response)

    def authenticate(self, environ: Environ) -> Optional[Claims]:
        """Return the claims of the request's token, or None if it has no valid, unrevoked token.

        Middleware in front of the guard can call this. The guard then uses the result and does not
        verify the token again. If `is_revoked` raises, this returns None, and the guard asks again.
        """
        authorization = _authorization(environ)
        try:
            result = self._check_token(authorization)
        except Exception:  # a stored exception would keep the frames of the request in memory
            return None
        environ[_TOKEN_CHECK] = _TokenCheck(self, authorization, result)
        return None if isinstance(result, _Refusal) else result

    def _check_token(self, authorization: str) -> Union[Claims, _Refusal]:
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

    def _admit(self, environ: Environ, scopes: Scopes, token_check: Any) -> Optional[_Refusal]:
        """Add the identity to the environ, or return why the request is refused."""
        authorization = _authorization(environ)
        if isinstance(token_check, _TokenCheck) and token_check[:2] == (self, authorization):
            result = token_check.result
        else:
            result = self._check_token(authorization)
        if isinstance(result, _Refusal):
            return result
        if scopes and not set(scopes).issubset(_token_scopes(result)):
            return _insufficient_scope(scopes)
        environ["wsgi_auth.claims"] = result
        environ["REMOTE_USER"] = result["sub"]
        environ["AUTH_TYPE"] = "Bearer"
        return None

    def _required_scopes(self, environ: Environ) -> Optional[Scopes]:
        """Return the scopes that the request needs, or None if it needs no token."""
        method = environ.get("REQUEST_METHOD", "GET")
        mount, path = environ.get("SCRIPT_NAME", ""), environ.get("PATH_INFO", "")
        # Matching a path may cost as much as verifying a token; most requests repeat a path.
        short = len(method) + len(mount) + len(path) <= MAX_CACHED_PATH_LENGTH
        return (self._cached_scopes if short else self._scopes_of_path)(method, mount, path)

    def _scopes_of_path(self, method: str, mount: str, path: str) -> Optional[Scopes]:
        method = method.upper()  # as Werkzeug and Django read it
        needed: Optional[Scopes] = None
        paths = [_read_path(path)]
        if mount:
            paths.append(_read_mounted_path(mount, path, paths[0]))
        for reading in paths:
            for rule in _applicable_rules(self._rules, method, reading):
                if rule.scopes is not None:
                    needed = (needed or ()) + rule.scopes
        return needed

    def _refuse(
        self, refusal: _Refusal, environ: Environ, start_response: StartResponse,
    ) -> Iterable[bytes]:
        parameters = {"realm": self.realm, **refusal.challenge}
        challenge = ", ".join(
            f'{name}="{_UNQUOTABLE.sub("?", value)}"' for name, value in parameters.items())
        return _send_error(
            environ, start_response, refusal.status, refusal.message,
            ("WWW-Authenticate", f"Bearer {challenge}"))


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

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._~-]+|\[[0-9a-f:.]+\])(?::[0-9]+)?")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.6.2


class CORSMiddleware:
    """Lets pages of other origins read the answers (https://fetch.spec.whatwg.org/#http-cors).

    It answers preflights itself, so that they need no token, and has the last word on all headers
    `Access-Control-*`. Cookies are never let in: a page has its token from a sign-in, and shows it.

    - `allow_origins`: a list of origins as browsers send them, `"https://app.example.org"`, without
      a path; `"*"` for any.
    - `allow_methods`, `allow_headers`: what a page may send.
    - `expose_headers`: what it may read of an answer, beyond what every page may.
    - `max_age`: seconds for which a browser need not ask again.

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
            raise ValueError("origins come in a list, not as one string")
        origins = list(allow_origins)
        for origin in origins:
            if origin != "*" and not _is_origin(origin):
                raise ValueError(f"not an origin as browsers send it: {origin!r}; one is"
                                 " scheme://host or scheme://host:port, in lower case")
        self.app = app
        self._origins = frozenset(origins)
        self._exposed = [("Access-Control-Expose-Headers", _join_names(expose_headers))]
        self._allowed = [
            ("Access-Control-Allow-Methods", _join_names(allow_methods)),
            ("Access-Control-Allow-Headers", _join_names(allow_headers)),
            ("Access-Control-Max-Age", str(int(max_age))),
        ]

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if self._is_preflight(environ):
            start_response("204 No Content", [
                ("X-Content-Type-Options", "nosniff"), *self._added(environ, self._allowed)])
            return []
        added = self._added(environ, self._exposed)

        def start(status: str, headers: List[Tuple[str, str]], *exc_info: Any) -> Any:
            own = [field for field in headers
                   if not field[0].lower().startswith("access-control-")]
            return start_response(status, own + added, *exc_info)

        return self.app(environ, start)

    def _added(self, environ: Environ, more: List[Tuple[str, str]]) -> List[Tuple[str, str]]:
        """What lets a page of this origin read the answer, and `more`, if it may."""
        origin = environ.get("HTTP_ORIGIN")
        if origin is None or self._origins.isdisjoint((origin, "*")):
            return [("Vary", "Origin")]
        allowed = "*" if "*" in self._origins else origin
        return [("Vary", "Origin"), ("Access-Control-Allow-Origin", allowed), *more]

    def _is_preflight(self, environ: Environ) -> bool:
        return (environ.get("REQUEST_METHOD") == "OPTIONS" and "HTTP_ORIGIN" in environ
                and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ)


def _is_origin(text: Any) -> bool:
    """Tell whether a browser could send this, which leaves out the port that is the usual one."""
    match = _ORIGIN.fullmatch(text) if isinstance(text, str) else None
    return match is not None and not re.fullmatch("http://.*:80|https://.*:443", text)


def _join_names(names: Sequence[str]) -> str:
    if isinstance(names, str):
        raise ValueError(f"names come in a list, not as one string: {names!r}")
    listed = list(names)
    for name in listed:
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            raise ValueError(f"not the name of a method or header: {name!r}")
    return ", ".join(listed)
