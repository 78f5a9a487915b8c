"""Sign-in with JSON Web Tokens, for any WSGI application.

    python jwtserver.py                   serve on http://127.0.0.1:3000
    python jwtserver.py user add alice    add a user; the command asks for a password
    python jwtserver.py --help            list the other commands

The endpoints:

    POST /authenticate  {"username": …, "password": …}, as JSON or as a form: sign in, get tokens
    POST /refresh       {"refresh_token": …}: get new tokens for the same session
    POST /logout        with `Authorization: Bearer TOKEN`: end the session
    any  /verify        with the same header: 204, for a proxy that asks who sent a request
    GET  /protected     with the same header: a greeting
    GET  /health        {"status": "ok"}, or 503 if the database cannot answer
    GET  /openapi.json  a description of the endpoints for programs
    GET  /              a list of the endpoints

The guard protects any other WSGI application in place of /protected:

    application = jwtserver.create_app(app=my_application)

A WSGI server imports `jwtserver:application`, which reads its settings from the environment. Users
and sessions are in a database, the signing keys in a file. Which chapter to read for what:

    Settings                         every setting, its default, and how it is checked
    Keys                             the key file, and how servers notice that it has changed
    Users, Sessions                  what is stored; how a refresh token rotates (`_rotate`)
    Failed sign-ins                  which failures are counted, and when they lock out
    Database connections, The store  SQLite and PostgreSQL; all SQL
    Requests and responses           bodies, JSON, and how an error becomes a response
    Endpoints                        what each endpoint does
    Routes and OpenAPI               which endpoints exist, and their description
    The application                  how all of this is composed with the guard
    HTTP: requests, responses        how requests are parsed and responses are framed
    HTTP: connections                the state of a connection
    HTTP: the event loop, sockets    which thread does what, and how the loop moves
    Commands, The command line       what each command does; all commands and flags

The five HTTP chapters are the server of `python jwtserver.py`. Skip them if you use another server.
"""

import argparse
import csv
import errno
import gc
import getpass
import hashlib
import importlib
import io
import ipaddress
import json
import logging
import math
import os
import re
import secrets
import select
import selectors
import signal
import socket
import sqlite3
import struct
import sys
import threading
import time
import unicodedata
import weakref
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from contextlib import contextmanager, suppress
from enum import Enum
from functools import lru_cache, partial
from http import HTTPStatus
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import (
    TYPE_CHECKING, Annotated, Any, Callable, DefaultDict, Deque, Dict, Iterable, Iterator, List,
    Mapping, NamedTuple, Optional, Protocol, Sequence, Set, TextIO, Tuple, Type, Union,
    TypeVar, get_type_hints,
)
from urllib.parse import parse_qsl, unquote_to_bytes
from wsgiref.handlers import SimpleHandler, format_date_time
from wsgiref.util import FileWrapper

if TYPE_CHECKING:
    import ssl  # imported when TLS is configured, because it needs much memory

from wsgi_auth import (
    MAX_PBKDF2_ITERATIONS, PBKDF2_ITERATIONS, BearerAuthMiddleware, Claims, CORSMiddleware,
    DecodeError, Environ, InvalidKeyError, InvalidSignatureError, InvalidTokenError,
    RateLimitMiddleware, Rules, StartResponse, TokenSigner, WSGIApplication, hash_password,
    needs_rehash, parse_json_object, parse_scopes, password_iterations, verify_password,
)

__all__ = ["Settings", "application", "create_app", "main"]
__version__ = "0.4.0"

MAX_BODY_BYTES = 64 * 1024
MAX_NAME_LENGTH = 150  # characters, as in Django
MAX_NAME_INPUT = 4 * MAX_NAME_LENGTH  # NFC joins up to 4 characters, in quadratic time
MAX_LIFETIME = 10 * 366 * 86400  # seconds
MAX_COUNT = 1_000_000  # requests or failures in a rate
MAX_PROXIES = 100
MAX_WAITING_HASHES = 64  # at most this many threads wait for a core
REFRESH_GRACE = 10.0  # seconds in which a client that lost the response may refresh again
KEY_FILE_INTERVAL = 0.5  # seconds between two checks of the key file for changes
SWEEP_ROWS = 25  # expired rows deleted per insert; a few ms even with millions of rows
BUSY_TIMEOUT = 5.0  # seconds to wait while another process writes to the database
MAX_IDLE_CONNECTIONS = 16  # to the database, in each process
_APPLICATION_ID = 0x6A777473  # "jwts": marks an SQLite file as a database of jwtserver

logger = logging.getLogger("jwtserver")
audit_logger = logging.getLogger("jwtserver.audit")
audit_logger.setLevel(logging.INFO)


class Error(Exception):
    """An error shown to the user of a command, in one line."""


_WARNING_EVENTS = ("sign_in_failed", "locked_out", "refresh_failed", "refresh_reused")


def _audit(event: str, **details: str) -> None:
    """Log an event in one line. JSON escapes line ends and terminal control characters."""
    level = logging.WARNING if event in _WARNING_EVENTS else logging.INFO
    line = " ".join([event, *(f"{name}={json.dumps(value)}" for name, value in details.items())])
    audit_logger.log(level, "%s", line.replace("\x7f", "\\u007f"))


# --- Settings -----------------------------------------------------------------------------------
#
# Design: The class `Settings` is the table of all settings. Each field has a type, the parser that
# checks its value, and a default. A parser takes the text of an environment variable, or a Python
# value, and returns the value of the field or raises ValueError. All settings are parsed once,
# before anything else happens, and no other code reads them from the environment. A parser must
# never touch a file.


class SettingsError(Error):
    """A setting that cannot be used. The message names its variable."""


def _is_postgresql(database: str) -> bool:
    return database.startswith(("postgresql://", "postgres://"))


def _parse_path(value: Any) -> str:
    return os.fsdecode(value)


def _parse_database(value: Any) -> str:
    text = _parse_path(value)
    if not text or ("://" in text and not _is_postgresql(text)) or text == ":memory:":
        raise ValueError("must be the name of an SQLite file, or postgresql://…")
    return text


def _parse_integer(value: Any, maximum: int, minimum: int = 1) -> int:
    text = str(value)
    if not re.fullmatch("[0-9]{1,18}", text) or not minimum <= int(text) <= maximum:
        raise ValueError(f"must be a whole number from {minimum} to {maximum}, not {value!r}")
    return int(text)


def _integer(maximum: int, minimum: int = 1) -> Callable[[Any], int]:
    return partial(_parse_integer, maximum=maximum, minimum=minimum)


def _number(maximum: int) -> Callable[[Any], float]:
    """A parser of whole numbers that also accepts a float, such as 0.5, from Python code."""
    def parse(value: Any) -> float:
        if not isinstance(value, float):
            return _parse_integer(value, maximum)
        if not 0 < value <= maximum:  # NaN fails as well
            raise ValueError(f"must be more than 0 and at most {maximum}, not {value!r}")
        return value

    return parse


class Rate(NamedTuple):
    """A number of events per number of seconds, written `5/900`."""

    limit: int
    seconds: int


def _parse_rate(value: Any) -> Rate:
    try:
        limit, seconds = value.split("/") if isinstance(value, str) else value
        return Rate(_parse_integer(limit, MAX_COUNT), _parse_integer(seconds, MAX_LIFETIME))
    except ValueError:
        raise ValueError(
            f"must be a count and a number of seconds, like 5/900, not {value!r}") from None


def _parse_list(value: Any, separator: str = ",") -> Tuple[str, ...]:
    items = value.split(separator) if isinstance(value, str) else value
    return tuple(item.strip() for item in items if item.strip())


def _parse_rule_list(value: Any) -> Rules:
    if isinstance(value, Mapping):
        return value
    rules = _parse_list(value, ";")
    for rule in rules if isinstance(value, str) else ():
        # `/a,/b` is one path for the guard, and would leave both /a and /b open.
        if re.search("[,:=]", rule.partition("/")[2]):
            raise ValueError(f"must be rules separated by `;`, without scopes, not {rule!r}")
    return rules


def _parse_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _parse_name(value: Any) -> str:
    try:
        str.encode(value)
    except UnicodeEncodeError:
        raise ValueError("must be UTF-8") from None
    return str(value)


def _parse_prefix(value: Any) -> str:
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]*[A-Za-z0-9_~-])*/?", value):
        raise ValueError(f"must be a path like /auth, not {value!r}")
    return str(value).rstrip("/")


class Settings(NamedTuple):
    """The configuration of the service. The variable of a field is `JWTSERVER_` and its name.

    >>> Settings.from_environ({"JWTSERVER_TOKEN_LIFETIME": "600"}).token_lifetime
    600
    >>> Settings.from_environ({"JWTSERVER_TOKEN_LIFETIME": "soon"})
    Traceback (most recent call last):
    jwtserver.SettingsError: JWTSERVER_TOKEN_LIFETIME must be a whole number ...
    """

    database: Annotated[str, _parse_database] = "jwtserver.db"  # an SQLite file or postgresql://…
    secret: Annotated[str, _parse_text] = ""  # keys, one per line: the first signs, all verify
    secret_file: Annotated[str, _parse_path] = ""  # their file; jwtserver.key beside the database
    issuer: Annotated[Optional[str], _parse_name] = None
    audience: Annotated[Optional[str], _parse_name] = None
    token_lifetime: Annotated[int, _integer(MAX_LIFETIME)] = 3600  # seconds
    session_lifetime: Annotated[int, _integer(MAX_LIFETIME)] = 14 * 86400  # from the sign-in
    cors_origins: Annotated[Tuple[str, ...], _parse_list] = ()  # whose pages may read responses
    login_failures: Annotated[Rate, _parse_rate] = Rate(5, 900)  # per user and address
    rate_limit: Annotated[Optional[Rate], _parse_rate] = None  # of requests, per client
    trusted_proxies: Annotated[int, _integer(MAX_PROXIES, 0)] = 0  # at the end of X-Forwarded-For
    protect: Annotated[Rules, _parse_rule_list] = ()  # /protected or, with your application, all
    exempt: Annotated[Sequence[str], _parse_rule_list] = ()
    prefix: Annotated[str, _parse_prefix] = ""  # the path under which the endpoints are
    pbkdf2_iterations: Annotated[int, _integer(MAX_PBKDF2_ITERATIONS)] = PBKDF2_ITERATIONS
    # The rest is for this module's own server.
    connections: Annotated[int, _integer(1_000_000)] = 4096  # open at the same time
    # One thread runs the event loop, the others are workers.
    threads: Annotated[int, _integer(10_000, 2)] = 128
    head_timeout: Annotated[float, _number(MAX_LIFETIME)] = 10  # seconds to receive the headers
    idle_timeout: Annotated[float, _number(MAX_LIFETIME)] = 15  # seconds without a byte
    # Minimum bytes per second, in each direction.
    body_rate: Annotated[float, _number(10**9)] = 1024

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        """Read the settings. An empty variable counts as missing.

        Raises:
            SettingsError: a value cannot be used.
        """
        variables = {_variable(name): name for name in _PARSERS}
        unknown = {name for name in environ if name.startswith("JWTSERVER_")} - set(variables)
        if unknown:
            logger.warning("There is no such setting: %s", ", ".join(sorted(unknown)))
        given: Dict[str, Any] = {
            name: environ[variable] for variable, name in variables.items()
            if environ.get(variable)}
        return cls(**given).checked()

    def checked(self) -> "Settings":
        """Return a copy with all fields parsed and checked.

        Raises:
            SettingsError: a value cannot be used.
        """
        given = {name: value for name, value in self._asdict().items()
                 if value != self._field_defaults[name]}
        return Settings(**{name: _parse_setting(name, value) for name, value in given.items()})

    @property
    def key_file(self) -> Path:
        """The file with the keys, if they are not in `secret`."""
        folder = Path() if _is_postgresql(self.database) else Path(self.database).parent
        return Path(self.secret_file or folder / "jwtserver.key")


_PARSERS: Dict[str, Callable[[Any], Any]] = {
    name: hint.__metadata__[0]
    for name, hint in get_type_hints(Settings, include_extras=True).items()}


def _variable(name: str) -> str:
    return f"JWTSERVER_{name.upper()}"


def _parse_setting(name: str, value: Any) -> Any:
    try:
        return _PARSERS[name](value)
    except ValueError as error:
        raise SettingsError(f"{_variable(name)} {error}") from None
    except (TypeError, AttributeError):
        kind = type(value).__name__
        raise SettingsError(f"{_variable(name)} must not be of the type {kind}") from None


# --- Keys ---------------------------------------------------------------------------------------
#
# Design: The first key signs, all keys verify. They are in the setting `secret`, or in a file that
# is only ever replaced as a whole, so that a reader never sees half of it. `FileSigner` compares
# the file's fingerprint twice a second, in the thread of a request, and reads it again if it has
# changed. An unusable file must never stop a running server: the old keys stay in use.


def prepare_keys(settings: Settings) -> None:
    """Create the key file with one new key, if keys are in a file and it is missing.

    Raises:
        SettingsError: the file cannot be created.
    """
    if not settings.secret:
        with _key_file_errors(settings.key_file):
            if not settings.key_file.exists():
                _create_file(settings.key_file, [secrets.token_hex(32).encode()])


@contextmanager
def _key_file_errors(key_file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SettingsError(f"JWTSERVER_SECRET_FILE: {key_file}: {error.strerror}") from error


def load_keys(settings: Settings) -> List[bytes]:
    """Read the keys. The first one signs.

    Raises:
        SettingsError: there is no key, or one of them cannot be used.
    """
    if settings.secret:
        source, text = "JWTSERVER_SECRET", settings.secret.encode("utf-8", "surrogateescape")
    else:
        source = f"JWTSERVER_SECRET_FILE: {settings.key_file}"
        text = _read_key_file(settings.key_file)
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    if any(len(key.split()) > 1 for key in keys):  # a document that is not a key file
        raise SettingsError(f"{source}: a key must be on a line of its own, without spaces")
    try:
        TokenSigner(keys)
    except InvalidKeyError as error:
        raise SettingsError(f"{source}: {error}") from None
    return keys


def _read_key_file(path: Path) -> bytes:
    with _key_file_errors(path):
        text = path.read_bytes()
        if os.name == "posix" and path.is_file() and path.stat().st_mode & 0o077:
            logger.warning("%s can be read by others; run: chmod 600 %s", path, path)
    return text[3:] if text.startswith(b"\xef\xbb\xbf") else text  # a byte order mark


def _create_file(path: Path, lines: Sequence[bytes] = ()) -> None:
    """Create a file atomically. If two processes try at once, both continue with the same file."""
    draft = _write_draft(path, lines)
    try:
        with suppress(FileExistsError):
            os.link(draft, path)  # unlike a rename, a link never replaces a file
    finally:
        os.unlink(draft)


def _write_draft(path: Path, lines: Iterable[bytes]) -> str:
    """Write a file beside `path` that only its owner can read, and wait until it is on the disk."""
    draft = f"{path}.{secrets.token_hex(8)}"
    try:
        with open(draft, "xb", opener=partial(os.open, mode=0o600)) as file:
            file.write(b"".join(line + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # the disk may be full
        with suppress(FileNotFoundError):
            os.unlink(draft)
        raise
    return draft


def replace_keys(
    settings: Settings, change: Callable[[List[bytes]], List[bytes]],
) -> Tuple[List[bytes], float]:
    """Replace the key file atomically, keeping owner and mode.

    Return the previous keys, and when they were written, in seconds since 1970.

    Raises:
        SettingsError: the keys are not in a file.
        OSError: the file cannot be replaced.
    """
    if settings.secret:
        raise SettingsError("the keys are in JWTSERVER_SECRET; change them there")
    prepare_keys(settings)
    keys = load_keys(settings)
    path = settings.key_file.resolve()  # the file that a link points to
    status = path.stat()
    draft = _write_draft(path, change(keys))
    try:
        if hasattr(os, "chown"):  # not on Windows
            os.chown(draft, status.st_uid, status.st_gid)
        os.chmod(draft, status.st_mode & 0o777)
        os.replace(draft, path)
    except OSError:
        os.unlink(draft)
        raise
    return keys, status.st_mtime


class FileSigner:
    """A TokenSigner that reloads the key file when it changes, within half a second.

    It checks the file at once for a token that no known key signed, because another process may
    already sign with a newer key. If the file is missing or unusable, the old keys stay in use.

    Raises:
        SettingsError: the file cannot be used at the start.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._path = str(settings.key_file.absolute())  # the application may change the folder
        self._settings = settings._replace(secret_file=self._path)
        self._clock = clock
        self._checked_at = clock()
        self._loaded_fingerprint = self._fingerprint()
        self._signer = _load_signer(self._settings, clock)

    def _fingerprint(self) -> Optional[Tuple[int, int, int, int]]:
        """A value that changes with the file; None if it is missing."""
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def _reload_if_changed(self) -> None:
        now, fingerprint = self._clock(), self._fingerprint()
        if fingerprint != self._loaded_fingerprint:
            try:
                self._signer = _load_signer(self._settings, self._clock)
            except SettingsError as error:
                logger.error("The old keys stay in use: %s", error)
        # Set last: until the new keys are in use, other threads must not skip the check.
        self._loaded_fingerprint = fingerprint
        self._checked_at = now

    def _fresh_signer(self) -> TokenSigner:
        if not 0 <= self._clock() - self._checked_at < KEY_FILE_INTERVAL:
            self._reload_if_changed()
        return self._signer

    def sign(self, claims: Claims) -> str:
        """Sign as TokenSigner does."""
        return self._fresh_signer().sign(claims)

    def verify(self, token: str) -> Claims:
        """Verify as TokenSigner does."""
        signer = self._fresh_signer()
        try:
            return signer.verify(token)
        except InvalidSignatureError:
            self._reload_if_changed()
            if self._signer is signer:
                raise
            return self._signer.verify(token)


Signer = Union[TokenSigner, FileSigner]


def make_signer(settings: Settings, clock: Callable[[], float] = time.time) -> Signer:
    """The signer of the service's tokens. Creates the key file if missing.

    Raises:
        SettingsError: the keys cannot be used.
    """
    prepare_keys(settings)
    if settings.secret:
        return _load_signer(settings, clock)
    return FileSigner(settings, clock)


def _load_signer(settings: Settings, clock: Callable[[], float]) -> TokenSigner:
    return TokenSigner(
        load_keys(settings), issuer=settings.issuer, audience=settings.audience, clock=clock)


# --- Users --------------------------------------------------------------------------------------
#
# Design: A user is a row of a table, found by name. Names are stored and compared in one Unicode
# form (NFC), so that the same name typed on two systems is one user.


class User(NamedTuple):
    """A row of the table `users`."""

    name: str
    password_hash: str
    scope: str
    disabled: int
    created: int  # seconds since 1970


def clean_name(name: str) -> str:
    """Return a user name in NFC, the form in which names are compared.

    Raises:
        ValueError: the name is empty, too long, or has invisible characters.

    >>> clean_name("Zoe\\u0308")
    'Zoë'
    """
    name = unicodedata.normalize("NFC", name[:MAX_NAME_INPUT])
    if not 1 <= len(name) <= MAX_NAME_LENGTH:
        raise ValueError(f"a user name must have 1 to {MAX_NAME_LENGTH} characters")
    if name != name.strip():
        raise ValueError("a user name must not start or end with white space")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        raise ValueError("a user name must not contain control characters")
    return name


# --- Sessions -----------------------------------------------------------------------------------
#
# Design: Signing in opens a session. Access tokens name it in their claim `sid` and are valid while
# its row exists. The family is a random name of the session that only the client knows. A refresh
# token is `family.generation.secret`, and `_rotate` replaces it at each use. The row contains only
# hashes: the database is not enough to make a token. The claim `sid` is the hash of the family, so
# it is not enough either.


class Session(NamedTuple):
    """A row of the table `sessions`: a session that has not ended."""

    id: str  # the claim `sid`
    user_name: str
    generation: int  # the number in its current refresh token
    refresh_hash: str  # of the current refresh token; "" if it has none
    previous_hash: str  # of the token that began this generation; "" at first
    rotated: float  # when the generation began, in seconds since 1970
    expires: int  # seconds since 1970


class Grant(NamedTuple):
    """What a client receives for a sign-in or a refresh."""

    user: User
    session: Session
    refresh_token: str


_REFRESH_TOKEN = re.compile(
    r"(?P<family>[\w-]{22})\.(?P<generation>[0-9]{1,9})\.[\w-]{43}", re.ASCII)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _session_id(family: str) -> str:
    return _digest(family)[:32]


def _new_refresh_token(family: str, generation: int) -> str:
    return f"{family}.{generation}.{secrets.token_urlsafe(32)}"  # 256 random bits


def new_grant(user: User, lifetime: int, now: float) -> Grant:
    """Create a session that begins at `now` and ends `lifetime` seconds later."""
    family = secrets.token_urlsafe(16)
    token = _new_refresh_token(family, 0)
    session = Session(
        _session_id(family), user.name, 0, _digest(token), "", now, int(now) + lifetime)
    return Grant(user, session, token)


class RefreshError(Error):
    """A refused refresh token. `ended`: the session that its reuse ended, if any."""

    def __init__(self, ended: Optional[Session] = None) -> None:
        super().__init__("Invalid refresh token")
        self.ended = ended


def _rotate(session: Session, token: str, now: float) -> Tuple[Session, str]:
    """Replace the refresh token of a session, and return the session and the new token.

    1. The current token starts a new generation, with a new token.
    2. The previous token may be used again for REFRESH_GRACE seconds, because the response to it
       may have been lost. It gets another new token of this generation; the lost one is void.
    3. Any other token that names this generation, such as the void one, is refused during those
       seconds.
    4. Any other token was used before, was voided, or is forged. We assume theft, and the session
       ends (RFC 9700 §4.14.2).

    If two tabs refresh at once and each keeps its own answer, the tab with the first answer holds a
    void token. The session ends when that tab uses it after those seconds, by rule 4. This
    limitation is accepted.

    Raises:
        RefreshError: in case 3 and, with the session that must end, in case 4.
    """
    family, generation, _ = token.split(".")
    digest = _digest(token)
    in_grace = abs(now - session.rotated) < REFRESH_GRACE  # abs: a clock set back extends nothing
    if secrets.compare_digest(digest, session.refresh_hash):
        session = session._replace(
            generation=session.generation + 1, previous_hash=digest, rotated=now)
    elif in_grace and int(generation) == session.generation:
        raise RefreshError
    elif not (in_grace and secrets.compare_digest(digest, session.previous_hash)):
        raise RefreshError(session)
    new_token = _new_refresh_token(family, session.generation)
    return session._replace(refresh_hash=_digest(new_token)), new_token


# --- Failed sign-ins ----------------------------------------------------------------------------
#
# Design: Each failed sign-in counts three times: for the user at the address, for the address, and
# for the user. Each counter has its own limit. When one has reached its limit, no password is
# checked, not even the right one, until the counter expires. Names and addresses are stored as
# hashes. Unknown names count as well: a response must never reveal whether a user exists.


class LockedOut(Error):
    """Too many sign-ins have failed. No password is checked for the next `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__("Too many failed sign-ins")
        self.seconds = math.ceil(seconds)


class Attempt(NamedTuple):
    """A sign-in, and the failure counters that apply to it, with the limit of each."""

    limits: Mapping[str, int]
    seconds: int  # from the first failure until a counter expires
    user_at_address: str  # the counter that a success clears

    def latest_expiry(self, now: float) -> float:
        """The latest plausible expiry. A later one was written with a wrong clock."""
        return now + 2 * self.seconds

    @classmethod
    def of(cls, name: str, address: str, rate: Rate) -> "Attempt":
        """The sign-in of a user, who may not exist, from an address."""
        name, network = unicodedata.normalize("NFC", name[:MAX_NAME_INPUT]), _network(address)
        both, by_network, by_name = (
            _digest(json.dumps(key)) for key in ([name, network], [None, network], [name, None]))
        limits = {both: rate.limit, by_network: 10 * rate.limit, by_name: 20 * rate.limit}
        return cls(limits, rate.seconds, user_at_address=both)


def _network(address: str) -> str:
    """The address, or its /64: one IPv6 client controls a whole /64 (RFC 6177 §2)."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:  # a server on a Unix socket knows no address
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return address
    return str(ip.ipv4_mapped or ipaddress.ip_network((ip, 64), strict=False))


# --- Database connections -----------------------------------------------------------------------
#
# Design: `_Database` keeps idle connections and lends one to each `with` block. `_SQLite` and
# `_PostgreSQL` add what differs: how to connect, migrate, lock and ping. All statements about users
# and sessions are in the next chapter. Any thread of any process may use a database. A forked
# process must never use or close a connection of its parent: the two would share a socket, or
# break SQLite's locks (https://sqlite.org/howtocorrupt.html §2.6). So idle connections are kept by
# process ID. `getpid` costs 0.3 µs at most; a fork hook would not run under uWSGI.


class StoreError(Error):
    """The database cannot do what was asked. The message names the database."""


class DatabaseConnection(Protocol):
    """The methods that the store uses. Connections of `sqlite3` have them."""

    def execute(self, statement: str, values: Any = ..., /) -> Any:
        """Run a statement, with a value for each `?`, and return a cursor."""

    def close(self) -> None:
        """Close the connection, which rolls back what is not committed."""


def _close_idle(pools: Dict[int, List[DatabaseConnection]]) -> None:
    with suppress(IndexError):
        while True:
            pools[os.getpid()].pop().close()


class _PooledConnection:
    """Lends a connection to a `with` block. If the block raises, it is closed, which rolls back."""

    __slots__ = ("_database", "_idle", "_connection")

    def __init__(self, database: "_Database") -> None:
        self._database = database

    def __enter__(self) -> DatabaseConnection:
        self._idle = self._database.pools[os.getpid()]
        self._connection = self._database.take(self._idle)
        return self._connection

    def __exit__(self, kind: Any, error: Optional[BaseException], traceback: Any) -> None:
        if error is None and len(self._idle) < MAX_IDLE_CONNECTIONS:
            self._idle.append(self._connection)
            return
        self._connection.close()
        if isinstance(error, self._database.driver_error):
            raise self._database.store_error(error) from error


class _Database(ABC):
    """A database and the idle connections to it. Its methods raise StoreError."""

    name: str  # in messages
    driver_error: Type[Exception]  # what its connections raise
    begin = "BEGIN"
    # Where others may write during a transaction: SQL that locks the rows that are read, and SQL
    # that also skips the rows that others have locked.
    for_update = skip_locked = ""
    integer_type = "INTEGER"  # of 64 bits

    def __init__(self) -> None:
        self.pools: DefaultDict[int, List[DatabaseConnection]] = defaultdict(list)  # by process
        weakref.finalize(self, _close_idle, self.pools)

    @abstractmethod
    def connect(self) -> DatabaseConnection:
        """Open a connection, on which each statement is a transaction by default."""

    @abstractmethod
    def read_version(self, connection: DatabaseConnection) -> int:
        """The version of the tables; 0 if there are none."""

    @abstractmethod
    def write_version(self, connection: DatabaseConnection, version: int) -> None:
        """Store the version of the tables."""

    def migrate(self, migrations: Sequence[Sequence[str]]) -> None:
        """Create the tables or bring them up to date. Version N follows migration number N."""
        with self.transaction() as connection:
            self.lock(connection)
            version = self.read_version(connection)
            if version > len(migrations):
                raise self.store_error("was written by a newer version of jwtserver")
            for statement in chain.from_iterable(migrations[version:]):
                connection.execute(statement.replace("INTEGER", self.integer_type))
            if version < len(migrations):
                self.write_version(connection, len(migrations))

    def lock(self, connection: DatabaseConnection) -> None:
        """Serialize with other processes until the transaction ends.

        SQLite's BEGIN IMMEDIATE already does.
        """

    def ping(self) -> None:
        """Raise StoreError if open connections still work but the database file was deleted."""

    def take(self, idle: List[DatabaseConnection]) -> DatabaseConnection:
        """Take an idle connection from this list, or open one."""
        try:
            return idle.pop()
        except IndexError:  # all are in use
            pass
        try:
            return self.connect()
        except self.driver_error as error:
            raise self.store_error(error) from error

    def close(self) -> None:
        """Close the idle connections of this process. A later statement opens a new one."""
        _close_idle(self.pools)

    def connection(self) -> _PooledConnection:
        """Lend a connection to a `with` block."""
        return _PooledConnection(self)

    @contextmanager
    def transaction(self) -> Iterator[DatabaseConnection]:
        """Lend a connection in a transaction that is committed if the block succeeds."""
        with self.connection() as connection:
            connection.execute(self.begin)
            yield connection
            connection.execute("COMMIT")

    def store_error(self, problem: object) -> StoreError:
        """An error in one line, with the name of the database."""
        return StoreError(f"{self.name}: {_one_line(problem)}")


def _one_line(problem: object) -> str:
    return " ".join(str(problem).split())


class _SQLite(_Database):
    """An SQLite file, which the processes of one machine may share."""

    driver_error = sqlite3.Error
    begin = "BEGIN IMMEDIATE"  # no other process can write until the transaction ends

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = Path(path).absolute()  # the application may change the current folder
        self.name = str(self._path)

    def connect(self) -> DatabaseConnection:
        """Open the file. It must exist: after a deletion, an empty one would lose all users."""
        return sqlite3.connect(
            f"{self._path.as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT,
            isolation_level=None, check_same_thread=False)

    def migrate(self, migrations: Sequence[Sequence[str]]) -> None:
        """Create the file if it is missing, and bring its tables up to date."""
        self._create_if_missing()
        with self.connection() as connection:
            version = self.read_version(connection)
            if version <= len(migrations):  # otherwise it must stay as it is
                _use_wal(connection)
        if version != len(migrations):  # otherwise, do not wait for processes that write
            super().migrate(migrations)

    def _create_if_missing(self) -> None:
        """Create the file for its owner only, because it will hold password hashes.

        An existing file is not opened: closing it would drop all locks that SQLite has on it in
        this process, and others would delete data in use (howtocorrupt.html §2.2).
        """
        try:
            if self._path.is_dir():
                raise self.store_error(os.strerror(errno.EISDIR))
            if not self._path.exists():
                _create_file(self._path)
        except OSError as error:
            raise self.store_error(error.strerror) from error

    def read_version(self, connection: DatabaseConnection) -> int:
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        # Read last: if another process has just created the tables, their ID exists by now.
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        if application_id != _APPLICATION_ID and (tables or version):
            raise self.store_error("is the database of another application")
        return int(version)

    def write_version(self, connection: DatabaseConnection, version: int) -> None:
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {version}")

    def ping(self) -> None:
        if not self._path.exists():
            raise self.store_error(os.strerror(errno.ENOENT))


def _use_wal(connection: DatabaseConnection) -> None:
    """Switch to a write-ahead log, so that readers never wait for a writer."""
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            # Retry: SQLite's busy timeout does not cover this statement.
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


class _PostgreSQLConnection:
    """A connection of psycopg that takes `?` for a value, as SQLite does."""

    def __init__(self, psycopg: Any, options: Mapping[str, Any]) -> None:
        self._connection = psycopg.connect(**options, autocommit=True)
        self._poll = select.poll()
        self._poll.register(self._connection.fileno(), select.POLLIN)
        self._connection.execute(f"SET statement_timeout = {int(1000 * BUSY_TIMEOUT)}")

    def execute(self, statement: str, values: Any = None) -> Any:
        return self._connection.execute(statement.replace("?", "%s"), values)

    def close(self) -> None:
        self._connection.close()

    def is_usable(self) -> bool:
        """Return whether the server has sent nothing. A server that stops sends an error."""
        return not self._poll.poll(0)


class _PostgreSQL(_Database):
    """A PostgreSQL database, which machines may share. It needs psycopg 3.

    Raises:
        SettingsError: psycopg is not installed, or the URL is malformed.
    """

    for_update = " FOR UPDATE"
    skip_locked = " FOR UPDATE SKIP LOCKED"
    integer_type = "BIGINT"

    def __init__(self, url: str) -> None:
        super().__init__()
        try:
            self.psycopg: Any = importlib.import_module("psycopg")
        except ImportError as error:
            raise SettingsError(
                "JWTSERVER_DATABASE needs psycopg; run: pip install 'psycopg[binary]'"
                f" ({_one_line(error)})") from None
        self.driver_error = self.psycopg.Error
        try:
            options = self.psycopg.conninfo.conninfo_to_dict(url)
        except self.psycopg.Error:  # its message may quote the password
            options = {"dbname": "@"}
        if "@" in options.get("dbname", ""):  # as after a slash in the password
            raise SettingsError("JWTSERVER_DATABASE must be postgresql://user:password@host/"
                                "database, with special characters percent-encoded (/ is %2F)")
        self.name = f"database {options.get('dbname', '')} at {options.get('host', 'localhost')}"
        self._options = {"connect_timeout": int(BUSY_TIMEOUT),
                         "tcp_user_timeout": int(1000 * BUSY_TIMEOUT), **options}

    def connect(self) -> DatabaseConnection:
        return _PostgreSQLConnection(self.psycopg, self._options)

    def take(self, idle: List[DatabaseConnection]) -> DatabaseConnection:
        """Take a connection, and close idle ones that a restart of the server has cut."""
        connection: Any = super().take(idle)
        while not connection.is_usable():
            connection.close()
            connection = super().take(idle)
        return connection  # type: ignore[no-any-return]

    def read_version(self, connection: DatabaseConnection) -> int:
        connection.execute("CREATE TABLE IF NOT EXISTS jwtserver (version INTEGER NOT NULL)")
        (version,) = connection.execute(
            "SELECT coalesce(max(version), 0) FROM jwtserver").fetchone()
        return int(version)

    def write_version(self, connection: DatabaseConnection, version: int) -> None:
        connection.execute("DELETE FROM jwtserver")
        connection.execute("INSERT INTO jwtserver VALUES (?)", [version])

    def lock(self, connection: DatabaseConnection) -> None:
        """Wait for other processes that hold this lock, and hold it until the transaction ends."""
        connection.execute("SELECT pg_advisory_xact_lock(?)", [_APPLICATION_ID])


# --- The store ----------------------------------------------------------------------------------
#
# Design: `Store` holds all SQL about users, sessions and failed sign-ins, for both databases.
# Each method is one statement or one transaction, in the calling thread. Nothing is cached: a
# change that one process has committed is visible to the next statement of every other process.
# PostgreSQL locks rows. Transactions must lock a user before the user's sessions, and counters in
# the order of their IDs, or they deadlock.


class NameTaken(Error):
    """The name of a new user belongs to another one."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the user {name!r} exists already")


# Migration N leads from version N of the tables to N + 1. A release may append one, but must
# never change an old one.
_MIGRATIONS = (
    ("""CREATE TABLE users (
        name TEXT NOT NULL PRIMARY KEY,
        password_hash TEXT NOT NULL,
        scope TEXT NOT NULL,
        disabled INTEGER NOT NULL,
        created INTEGER NOT NULL
    )""",),
    ("""CREATE TABLE sessions (
        id TEXT NOT NULL PRIMARY KEY,
        user_name TEXT NOT NULL,
        generation INTEGER NOT NULL,
        refresh_hash TEXT NOT NULL,
        previous_hash TEXT NOT NULL,
        rotated DOUBLE PRECISION NOT NULL,
        expires BIGINT NOT NULL
    )""",
     "CREATE INDEX sessions_by_user ON sessions (user_name)",
     "CREATE INDEX sessions_by_end ON sessions (expires)",
     """CREATE TABLE failures (
        id TEXT NOT NULL PRIMARY KEY,
        count INTEGER NOT NULL,
        expires DOUBLE PRECISION NOT NULL
    )""",
     "CREATE INDEX failures_by_end ON failures (expires)"),
)
# A counter that has expired, or that a wrong clock has written, starts again at 1.
_COUNT_FAILURE = (
    "INSERT INTO failures VALUES (?, 1, ?) ON CONFLICT (id) DO UPDATE SET"
    " count = CASE WHEN failures.expires > ? AND failures.expires <= ?"
    " THEN failures.count + 1 ELSE 1 END,"
    " expires = CASE WHEN failures.expires > ? AND failures.expires <= ?"
    " THEN failures.expires ELSE excluded.expires END")


class Store:
    """Users, their sessions, and failed sign-ins, in a database that processes may share.

    Raises:
        StoreError: from each method, if the database cannot be used.
    """

    def __init__(self, database: _Database) -> None:
        self.database = database
        self.name = database.name

    def close(self) -> None:
        """Close the idle connections of this process. The store can still be used."""
        self.database.close()

    def ping(self) -> None:
        """Check that the database can answer."""
        self.is_empty()
        self.database.ping()

    def _fetch_one(self, statement: str, *values: Any) -> Any:
        with self.database.connection() as connection:
            return connection.execute(statement, values).fetchone()

    def _execute(self, statement: str, *values: str) -> int:
        """Run one statement as a transaction, and return the number of rows it has changed."""
        with self.database.connection() as connection:
            return int(connection.execute(statement, values).rowcount)

    # Users

    def find_user(self, name: str) -> Optional[User]:
        """The user of that name, in any Unicode form, or None."""
        try:
            key = clean_name(name)
        except ValueError:
            return None
        row = self._fetch_one("SELECT * FROM users WHERE name = ?", key)
        return User(*row) if row else None

    def is_empty(self) -> bool:
        """Return whether there are no users."""
        return self._fetch_one("SELECT name FROM users LIMIT 1") is None

    def all_users(self) -> List[User]:
        """All users, sorted by name."""
        with self.database.connection() as connection:
            return sorted(User(*row) for row in connection.execute("SELECT * FROM users"))

    def add_users(self, users: Iterable[User]) -> None:
        """Add all of these users, or none.

        Raises:
            NameTaken: one of the names belongs to another user.
        """
        with self.database.transaction() as connection:
            for user in users:
                added = connection.execute(
                    "INSERT INTO users VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", user)
                if not added.rowcount:
                    raise NameTaken(user.name)

    # Each of these returns whether the user exists. All except `enable_user` end the user's
    # sessions.

    def remove_user(self, name: str) -> bool:
        """Remove a user."""
        return self._change_and_end_sessions(name, "DELETE FROM users WHERE name = ?")

    def disable_user(self, name: str) -> bool:
        """Refuse the sign-ins of a user."""
        return self._change_and_end_sessions(name, "UPDATE users SET disabled = 1 WHERE name = ?")

    def enable_user(self, name: str) -> bool:
        """Allow a disabled user to sign in again."""
        return self._execute("UPDATE users SET disabled = 0 WHERE name = ?", name) > 0

    def set_password(self, name: str, password_hash: str) -> bool:
        """Replace the password of a user."""
        return self._change_and_end_sessions(
            name, "UPDATE users SET password_hash = ? WHERE name = ?", password_hash)

    def set_scope(self, name: str, scope: str) -> bool:
        """Replace the scopes of a user."""
        return self._change_and_end_sessions(
            name, "UPDATE users SET scope = ? WHERE name = ?", scope)

    def _change_and_end_sessions(self, name: str, statement: str, *values: str) -> bool:
        with self.database.transaction() as connection:
            changed: int = connection.execute(statement, [*values, name]).rowcount
            connection.execute("DELETE FROM sessions WHERE user_name = ?", [name])
        return changed > 0

    # Failed sign-ins

    def check_attempt(self, attempt: Attempt, now: float) -> None:
        """Raise LockedOut if this sign-in may not be tried now."""
        with self.database.connection() as connection:
            seconds = self._lockout_seconds(connection, attempt, now)
        if seconds:
            raise LockedOut(seconds)

    def _lockout_seconds(
        self, connection: DatabaseConnection, attempt: Attempt, now: float, own_failures: int = 0,
    ) -> float:
        """Seconds until the lock-out ends, or 0.

        `own_failures` is subtracted from each counter before it is compared with its limit.
        """
        rows = connection.execute(
            "SELECT id, count, expires FROM failures WHERE id IN (?, ?, ?)", list(attempt.limits))
        lockouts: List[float] = [
            expires - now for counter, count, expires in rows
            if count - own_failures >= attempt.limits[counter]
            and expires <= attempt.latest_expiry(now)]
        return max([0.0, *lockouts])

    def count_failure(self, attempt: Attempt, now: float) -> None:
        """Count a failed sign-in.

        Raises:
            LockedOut: other attempts have reached the limit. Answer as if the password had not
                been checked.
        """
        with self.database.transaction() as connection:
            self._sweep(connection, "failures", now)
            valid = [now, attempt.latest_expiry(now)]
            for counter in sorted(attempt.limits):
                connection.execute(_COUNT_FAILURE, [counter, now + attempt.seconds, *valid, *valid])
            seconds = self._lockout_seconds(connection, attempt, now, own_failures=1)
            if seconds:
                connection.execute("UPDATE failures SET count = count - 1 WHERE id IN (?, ?, ?)",
                                   list(attempt.limits))
        if seconds:
            raise LockedOut(seconds)

    # Sessions

    def open_session(
        self, grant: Grant, now: float, *, attempt: Optional[Attempt] = None,
        new_hash: Optional[str] = None,
    ) -> bool:
        """Open a session. Return False if the user was changed since it was looked up.

        For a sign-in, `attempt` clears its failures, and `new_hash` replaces the password hash.

        Raises:
            LockedOut: too many other sign-ins have failed meanwhile.
        """
        user = grant.user
        with self.database.transaction() as connection:
            seconds = self._lockout_seconds(connection, attempt, now) if attempt else 0
            row = connection.execute(
                f"SELECT * FROM users WHERE name = ?{self.database.for_update}",
                [user.name]).fetchone()
            if not seconds and row == user:
                self._sweep(connection, "sessions", now)
                connection.execute(
                    "INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?)", grant.session)
                if new_hash:
                    connection.execute("UPDATE users SET password_hash = ? WHERE name = ?",
                                       [new_hash, user.name])
                if attempt:
                    connection.execute(
                        "DELETE FROM failures WHERE id = ?", [attempt.user_at_address])
        if seconds:
            raise LockedOut(seconds)
        return bool(row == user)

    def refresh(self, token: str, now: float) -> Grant:
        """Replace a refresh token, by the rules of `_rotate`.

        Raises:
            RefreshError: the token is refused, and may have ended its session.
        """
        match = _REFRESH_TOKEN.fullmatch(token)
        if not match:
            raise RefreshError
        session_id, refusal = _session_id(match["family"]), None
        with self.database.transaction() as connection:
            try:
                session = self._find_session(connection, session_id, now)
                session, next_token = _rotate(session, token, now)
                user = self._save_rotation(connection, session)
            except RefreshError as error:  # not raised here, where it would undo the deletion
                refusal = error
                if error.ended:
                    connection.execute("DELETE FROM sessions WHERE id = ?", [session_id])
        if refusal:
            raise refusal
        return Grant(user, session, next_token)

    def _find_session(self, connection: DatabaseConnection, session_id: str, now: float) -> Session:
        row = connection.execute(
            f"SELECT * FROM sessions WHERE id = ? AND expires > ?{self.database.for_update}",
            [session_id, now]).fetchone()
        if row is None:
            raise RefreshError
        return Session(*row)

    def _save_rotation(self, connection: DatabaseConnection, session: Session) -> User:
        connection.execute(
            "UPDATE sessions SET generation = ?, refresh_hash = ?, previous_hash = ?, rotated = ?"
            " WHERE id = ?", [session.generation, session.refresh_hash, session.previous_hash,
                              session.rotated, session.id])
        return User(*connection.execute(
            "SELECT * FROM users WHERE name = ?", [session.user_name]).fetchone())

    def is_open(self, session_id: str, now: float) -> bool:
        """Return whether a session has not ended. Each guarded request asks this."""
        return self._fetch_one(
            "SELECT 1 FROM sessions WHERE id = ? AND expires > ?", session_id, now) is not None

    def end_session(self, session_id: str) -> None:
        """End a session, if it has not ended."""
        self._execute("DELETE FROM sessions WHERE id = ?", session_id)

    def end_sessions(self, name: str) -> int:
        """End the sessions of a user, and return how many there were."""
        return self._execute("DELETE FROM sessions WHERE user_name = ?", name)

    def _sweep(self, connection: DatabaseConnection, table: str, now: float) -> None:
        """Delete a few expired rows. Every transaction that adds a row does this."""
        connection.execute(
            f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE expires <= ?"
            f" LIMIT {SWEEP_ROWS}{self.database.skip_locked})", [int(now)])

    # Keys

    @contextmanager
    def key_lock(self) -> Iterator[None]:
        """Stop other processes from changing the keys during a `with` block."""
        with self.database.transaction() as connection:
            self.database.lock(connection)
            yield

    def count_tokens(self, signed_until: float, lifetime: int, now: float) -> int:
        """Count the sessions whose last token was signed no later than `signed_until` and is valid.

        A session of `token issue` has no refresh token (`refresh_hash` is empty). Its only token
        is valid until the session expires, and may outlive `lifetime`.
        """
        (count,) = self._fetch_one(
            "SELECT count(*) FROM sessions WHERE expires > ? AND rotated <= ?"
            " AND (rotated > ? OR refresh_hash = '')", now, signed_until, now - lifetime)
        return int(count)


def open_store(database: str) -> Store:
    """Open the store in an SQLite file or a PostgreSQL database, and create what is missing.

    Raises:
        SettingsError: the URL, psycopg or the database cannot be used.
    """
    store = Store(_PostgreSQL(database) if _is_postgresql(database) else _SQLite(database))
    try:
        store.database.migrate(_MIGRATIONS)
    except StoreError as error:
        raise SettingsError(f"JWTSERVER_DATABASE: {error}") from error
    return store


# --- Requests and responses ---------------------------------------------------------------------
#
# Design: An endpoint takes the environ of a request and returns a Response or raises HTTPError. The
# `Router` finds the endpoint by path and method, in the thread of the request, and passes other
# requests on to its fallback. It is the one place where errors become responses. A response must
# never contain the details of an internal fault: those are logged.


class HTTPError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, *headers: Tuple[str, str]) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


_NOSNIFF = ("X-Content-Type-Options", "nosniff")
_STATUS_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}


class Response(NamedTuple):
    """A response of an endpoint."""

    status: str
    headers: List[Tuple[str, str]]
    body: bytes

    @classmethod
    def of(cls, status: int, content: Any = None, *headers: Tuple[str, str]) -> "Response":
        """A response with this content as JSON, or without a body."""
        line = _STATUS_LINES[status]
        if content is None:  # RFC 9110 §8.6: no Content-Length with 204
            return cls(line, [_NOSNIFF, *headers], b"")
        body = json.dumps(content).encode()
        described = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        return cls(line, [*described, _NOSNIFF, *headers], body)


Endpoint = Callable[[Environ], Response]


def _send_response(
    response: Response, environ: Environ, start_response: StartResponse, *exc_info: Any,
) -> List[bytes]:
    start_response(response.status, list(response.headers), *exc_info)
    no_body = not response.body or environ.get("REQUEST_METHOD") == "HEAD"
    return [] if no_body else [response.body]


def _read_body(environ: Environ) -> bytes:
    length = environ.get("CONTENT_LENGTH") or ""  # PEP 3333: may be empty or missing
    if not length and not environ.get("wsgi.input_terminated"):
        raise HTTPError(411, "The request needs a Content-Length")
    if length and not re.fullmatch("[0-9]+", length):
        raise HTTPError(400, "The Content-Length must be a number")
    if len(length) > 9 or int(length or 0) > MAX_BODY_BYTES:
        raise HTTPError(413, f"The body is longer than {MAX_BODY_BYTES} bytes")
    expected = int(length or MAX_BODY_BYTES + 1)
    body = b""
    while len(body) < expected and (chunk := environ["wsgi.input"].read(expected - len(body))):
        body += chunk
    if len(body) > MAX_BODY_BYTES:
        raise HTTPError(413, f"The body is longer than {MAX_BODY_BYTES} bytes")
    if length and len(body) < expected:
        raise HTTPError(400, "The body is shorter than its Content-Length")
    return body


def _read_fields(environ: Environ) -> Dict[str, Any]:
    """Read the fields of a JSON or form body. A name that occurs twice is refused."""
    body = _read_body(environ)
    content_type = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if content_type == "application/json":
        try:
            return parse_json_object(body)
        except DecodeError as error:
            raise HTTPError(400, f"Malformed body: {error}") from None
    if content_type == "application/x-www-form-urlencoded":
        return _parse_form(body)
    raise HTTPError(415, "The body must be application/json or application/x-www-form-urlencoded")


def _parse_form(body: bytes) -> Dict[str, Any]:
    if body.lstrip().startswith(b"{"):  # `curl -d` without a Content-Type
        raise HTTPError(415, "The body looks like JSON, but is sent as a form; it needs"
                             " Content-Type: application/json")
    try:
        pairs = parse_qsl(body.decode(), True, errors="strict", max_num_fields=100)
    except ValueError:
        raise HTTPError(400, "Malformed body: Invalid form") from None
    if len(dict(pairs)) != len(pairs):
        raise HTTPError(400, "Malformed body: A field is given twice")
    return dict(pairs)


def _required_field(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise HTTPError(400, f"`{name}` must be a string")
    if not value:
        # The tutorial's wire format: 401, where 400 would be usual.
        raise HTTPError(401, f"A `{name}` is required")
    return value


class Operation(NamedTuple):
    """The endpoint for one method of a path, and its OpenAPI description."""

    endpoint: Endpoint
    status: int = 200  # of a success
    schema: Optional[Mapping[str, Any]] = None  # of the JSON of a success
    fields: Tuple[str, ...] = ()  # that the body must have
    errors: Tuple[int, ...] = ()  # besides those that every operation of its kind has


class Route(NamedTuple):
    """The operations at one path, by method or `*`.

    `error_member` names the member with the message of an error. In the tutorial's wire format,
    sign-in and refresh use `message`, and all other paths use `error`.
    """

    methods: Mapping[str, Operation]
    error_member: str = "error"
    guarded: bool = False

    def respond(self, environ: Environ) -> Response:
        """Run the operation for the method of the request. GET handles HEAD as well."""
        if not self.methods:
            raise HTTPError(404, "Not found")
        method = environ["REQUEST_METHOD"]
        operation = self.methods.get("GET" if method == "HEAD" else method, self.methods.get("*"))
        if operation is None:
            allowed = [*self.methods, *(["HEAD"] if "GET" in self.methods else [])]
            raise HTTPError(405, "Method not allowed", ("Allow", ", ".join(allowed)))
        return operation.endpoint(environ)

    def error_response(self, error: HTTPError) -> Response:
        """Build the response to an error."""
        content = {"success": False, self.error_member: error.message}
        return Response.of(error.status, content, *error.headers)


_NO_ROUTE = Route({})


class Router:
    """Serves the routes, and passes requests for other paths to `fallback`, or answers 404."""

    def __init__(
        self, routes: Mapping[str, Route], fallback: Optional[WSGIApplication] = None,
    ) -> None:
        self.routes = routes
        self.fallback = fallback

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        route = self.routes.get(environ.get("PATH_INFO", ""), _NO_ROUTE)
        try:
            if route is _NO_ROUTE and self.fallback is not None:
                return self.fallback(environ, start_response)
            response = route.respond(environ)
        except Exception as error:
            response = route.error_response(_http_error(error, environ))
            # PEP 3333: exc_info replaces a response that an application has started, but not sent.
            # Expected errors come before that, and uWSGI and Bjoern mishandle exc_info.
            expected = isinstance(error, (HTTPError, StoreError))
            exc_info = () if expected else (sys.exc_info(),)
            return _send_response(response, environ, start_response, *exc_info)
        return _send_response(response, environ, start_response)


def _http_error(error: Exception, environ: Environ) -> HTTPError:
    """The error to answer with. The details of an internal fault are only logged."""
    if isinstance(error, HTTPError):
        return error
    if isinstance(error, StoreError):
        logger.error("%s", error)
        return HTTPError(503, "The database cannot answer")
    logger.exception("Internal error at %s", ascii(environ.get("PATH_INFO")))
    return HTTPError(500, "Internal server error")


def _with_nosniff(app: WSGIApplication) -> WSGIApplication:
    """Add `X-Content-Type-Options` to responses of an application that does not send it."""

    def wrapped(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: List[Tuple[str, str]], *exc_info: Any) -> Any:
            if not any(name.lower() == "x-content-type-options" for name, _ in headers):
                headers = [*headers, _NOSNIFF]
            return start_response(status, headers, *exc_info)

        return app(environ, start)

    return wrapped


# --- Endpoints ----------------------------------------------------------------------------------
#
# Design: `Service` has one method per endpoint. It checks the request, asks the store, and builds
# the response, all in the thread of the request. The only slow step is a password hash. It waits in
# `_HashQueue` for a core, after this module's server has released the thread. A refused sign-in
# must take the same time and get the same response, whether or not the user exists.


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _too_many_sign_ins() -> HTTPError:
    return HTTPError(503, "Too many sign-ins at once", ("Retry-After", "10"))


class _HashQueue:
    """A queue in which password hashes wait for a core.

    A hash occupies a core for a few tenths of a second. Only as many run as there are cores, so
    that other requests are not slowed down. Networks take turns. None may take more places than it
    leaves free: a flood from one network takes half of the queue, and hardly delays the others.
    """

    def __init__(self, cores: int) -> None:
        self._lock = threading.Lock()  # of the attributes below
        self._free_cores = cores
        self._waiting: Dict[str, Deque[threading.Event]] = {}  # by network; the first is next

    @contextmanager
    def core(self, network: str) -> Iterator[None]:
        """Wait for a core, and use it for a `with` block.

        Raises:
            HTTPError: too many hashes wait, of this network or in total.
        """
        turn = threading.Event()
        with self._lock:
            self._join(network, turn)
        try:
            turn.wait()
            yield
        finally:
            with self._lock:
                self._leave(network, turn)

    def _join(self, network: str, turn: threading.Event) -> None:
        free_places = MAX_WAITING_HASHES - sum(map(len, self._waiting.values()))
        if len(self._waiting.get(network, ())) >= free_places:
            raise _too_many_sign_ins()
        self._waiting.setdefault(network, deque()).append(turn)
        self._start_hashes()

    def _leave(self, network: str, turn: threading.Event) -> None:
        if turn.is_set():
            self._free_cores += 1
        else:  # an exception has ended the wait
            self._waiting[network].remove(turn)
            if not self._waiting[network]:
                del self._waiting[network]
        self._start_hashes()

    def _start_hashes(self) -> None:
        while self._free_cores and self._waiting:
            network = next(iter(self._waiting))
            turns = self._waiting.pop(network)
            turns.popleft().set()
            self._free_cores -= 1
            if turns:
                self._waiting[network] = turns  # behind the other networks


# By process, and created when needed: a lock that another thread held at a fork would never be
# released in the child, and gevent replaces the locks of `threading` after the import.
_hash_queues: Dict[int, _HashQueue] = {}
_build_locks: Dict[int, threading.Lock] = {}
_Item = TypeVar("_Item")


def _for_this_process(items: Dict[int, _Item], create: Callable[[], _Item]) -> _Item:
    process_id = os.getpid()
    if process_id not in items:
        items.setdefault(process_id, create())  # atomic: all threads get the same item
    return items[process_id]


def client_address(environ: Environ, trusted_proxies: int) -> str:
    """The address of the client, as seen by the outermost trusted proxy.

    Each proxy appends the address that it received the request from to X-Forwarded-For. Earlier
    entries can be forged.
    """
    hops = environ.get("HTTP_X_FORWARDED_FOR", "").split(",")
    if 0 < trusted_proxies <= len(hops):
        hop = re.sub(r"^\[(.*)\](:\d+)?$|^([\d.]+):\d+$", r"\1\3", hops[-trusted_proxies].strip())
        with suppress(ValueError):  # a proxy may hide the address
            return str(ipaddress.ip_address(hop))
    return str(environ.get("REMOTE_ADDR", ""))


def issue_token(grant: Grant, signer: Signer, lifetime: float, now: float) -> Tuple[str, int]:
    """Sign a token for a session. Return it with its lifetime: it never outlives the session."""
    user, session, _ = grant
    issued, expires = int(now), int(min(now + lifetime, session.expires))
    claims = {"sub": user.name, "username": user.name, "sid": session.id,
              "iat": issued, "exp": expires}
    if user.scope:
        claims["scope"] = user.scope
    return signer.sign(claims), expires - issued


_UNSENDABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # in a header


class Service:
    """The endpoints that open, refresh, verify and end sessions."""

    def __init__(
        self, store: Store, signer: Signer, settings: Settings, clock: Callable[[], float],
    ) -> None:
        self.store = store
        self.signer = signer
        self.settings = settings
        self.clock = clock
        # Minimum iterations per check: the highest count seen so far.
        self._iterations = settings.pbkdf2_iterations

    def authenticate(self, environ: Environ) -> Response:
        """Sign in with a user name and a password."""
        fields = _read_fields(environ)
        name, password = _required_field(fields, "username"), _required_field(fields, "password")
        audit_details = {"user": name[:MAX_NAME_LENGTH], "address": self.address(environ)}
        try:
            grant = self._sign_in(name, password, environ)
        except LockedOut as error:
            _audit("locked_out", **audit_details)
            raise HTTPError(429, str(error), ("Retry-After", str(error.seconds))) from None
        if grant is None:
            _audit("sign_in_failed", **audit_details)
            raise HTTPError(401, "Invalid username and password")
        _audit("sign_in", **audit_details, session=grant.session.id)
        return self._token_response(grant)

    def _sign_in(self, name: str, password: str, environ: Environ) -> Optional[Grant]:
        """Open a session if the password is right. An unknown user takes the same time.

        Raises:
            LockedOut: too many such sign-ins have failed.
        """
        address = self.address(environ)
        attempt = Attempt.of(name, address, self.settings.login_failures)
        self.store.check_attempt(attempt, self.clock())
        # Only this module's server has a loop. If its thread waited in the queue, it would stop.
        if not environ.get("jwtserver.release_loop", lambda: True)():
            raise _too_many_sign_ins()
        while True:
            user = self.store.find_user(name)
            if user and user.disabled:
                user = None  # hash as for an unknown name, or the time would confirm the password
            queue = _for_this_process(_hash_queues, lambda: _HashQueue(_usable_cores()))
            with queue.core(_network(address)):
                self.store.check_attempt(attempt, self.clock())  # others may have failed meanwhile
                matches, new_hash = self._check_password(user, password)
            now = self.clock()
            if not matches or user is None:
                self.store.count_failure(attempt, now)
                return None
            grant = new_grant(user, self.settings.session_lifetime, now)
            if self.store.open_session(grant, now, attempt=attempt, new_hash=new_hash):
                return grant
            # The user was changed meanwhile, perhaps by a sign-in that upgraded the hash. Check the
            # password again. This ends, because each repetition needs another change of the user.

    def _check_password(self, user: Optional[User], password: str) -> Tuple[bool, Optional[str]]:
        """Return whether the password is right, and a new hash if the stored one is outdated."""
        stored, iterations = user.password_hash if user else "", self.settings.pbkdf2_iterations
        self._iterations = max(self._iterations, password_iterations(stored))
        if not verify_password(password, stored, min_iterations=self._iterations):
            return False, None
        outdated = needs_rehash(stored, iterations=iterations)
        return True, hash_password(password, iterations=iterations) if outdated else None

    def refresh(self, environ: Environ) -> Response:
        """Exchange a refresh token for new tokens."""
        token = _required_field(_read_fields(environ), "refresh_token")
        address = self.address(environ)
        try:
            grant = self.store.refresh(token, self.clock())
        except RefreshError as error:
            if error.ended:
                user, session = error.ended.user_name, error.ended.id
                _audit("refresh_reused", user=user, address=address, session=session)
            else:
                _audit("refresh_failed", address=address)
            raise HTTPError(401, str(error)) from None
        _audit("refresh", user=grant.user.name, address=address, session=grant.session.id)
        return self._token_response(grant)

    def _token_response(self, grant: Grant) -> Response:
        token, seconds = issue_token(
            grant, self.signer, self.settings.token_lifetime, self.clock())
        content = {
            "token": token,
            "token_type": "Bearer",
            "expires_in": seconds,
            "refresh_token": grant.refresh_token,
        }
        return Response.of(200, content, ("Cache-Control", "no-store"))

    def logout(self, environ: Environ) -> Response:
        """End the session of the token."""
        claims = _claims(environ)
        if "sid" not in claims:
            raise HTTPError(400, "The token belongs to no session")
        user, session = claims["sub"], claims["sid"]
        self.store.end_session(session)
        _audit("logout", user=user, address=self.address(environ), session=session)
        return Response.of(204)

    def verify(self, environ: Environ) -> Response:
        """Tell a proxy that the token is valid, and the name of its user."""
        claims = _claims(environ)
        scope = claims.get("scope", "")
        headers = [("Remote-User", claims["sub"]), ("Remote-Scope", scope)]
        for _, value in headers:
            # A proxy could read such a value as another user. No user here has such a name.
            if not isinstance(value, str) or value != value.strip() or _UNSENDABLE.search(value):
                raise HTTPError(403, "The token's subject or scope cannot be sent in a header")
        return Response.of(204, None, *(
            (name, value.encode().decode("latin-1")) for name, value in headers))

    def is_revoked(self, claims: Claims) -> bool:
        """Return whether the session of a token has ended.

        A token without `sid` was made elsewhere with our key. It has no session.
        """
        session_id = claims.get("sid", "")
        if not isinstance(session_id, str) or "\0" in session_id:  # PostgreSQL refuses NUL
            return True
        return "sid" in claims and not self.store.is_open(session_id, self.clock())

    def health(self, environ: Environ) -> Response:
        """Check that the database can answer."""
        self.store.ping()
        return Response.of(200, {"status": "ok"})

    def address(self, environ: Environ) -> str:
        """The address of the client."""
        return client_address(environ, self.settings.trusted_proxies)


def _claims(environ: Environ) -> Claims:
    claims: Optional[Claims] = environ.get("wsgi_auth.claims")
    if not claims:  # the settings exempt this path from the guard
        raise HTTPError(401, "An authorization header is required",
                        ("WWW-Authenticate", 'Bearer realm="api"'))
    return claims


_WELCOME = Response.of(200, {"message": "Welcome to the protected page"})


def _welcome(environ: Environ) -> Response:
    """Greet a user with a valid token."""
    return _WELCOME


# --- Routes and OpenAPI -------------------------------------------------------------------------
#
# Design: `_routes` is the table of all endpoints. The router and the OpenAPI document are made from
# it when the application is built, so that a description cannot differ from what is served. The
# summary of an operation is the first line of its endpoint's docstring.


def _object(**members: Any) -> Dict[str, Any]:
    """The JSON Schema (2020-12) of an object that has these members."""
    return {"type": "object", "properties": members, "required": list(members)}


_STRING = {"type": "string"}
_TOKENS = _object(token=_STRING, token_type={"const": "Bearer"}, expires_in={"type": "integer"},
                  refresh_token=_STRING)
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE")


def _routes(service: Service, prefix: str, demo: bool) -> Dict[str, Route]:
    """All endpoints, by path."""
    routes = {
        "/authenticate": Route({"POST": Operation(
            service.authenticate, schema=_TOKENS, fields=("username", "password"))}, "message"),
        "/refresh": Route({"POST": Operation(
            service.refresh, schema=_TOKENS, fields=("refresh_token",))}, "message"),
        "/logout": Route({"POST": Operation(service.logout, 204, errors=(400,))}, guarded=True),
        "/verify": Route({"*": Operation(service.verify, 204, errors=(403,))}, guarded=True),
        "/health": Route({"GET": Operation(
            service.health, schema=_object(status={"const": "ok"}))}),
    }
    routes = {prefix + path: route for path, route in routes.items()}
    if demo:
        routes["/protected"] = Route(
            {"GET": Operation(_welcome, schema=_object(message=_STRING))}, guarded=True)

    def index(environ: Environ) -> Response:
        """List the endpoints."""
        return listing

    def openapi(environ: Environ) -> Response:
        """Describe the endpoints (OpenAPI 3.1)."""
        return document

    document_path = f"{prefix}/openapi.json"
    routes[document_path] = Route({"GET": Operation(openapi, schema={"type": "object"})})
    if demo:
        names = {"type": "array", "items": _STRING}
        routes["/"] = Route(
            {"GET": Operation(index, schema=_object(endpoints=names, openapi=_STRING))})
    document = Response.of(200, _describe(routes))
    listing = Response.of(200, {
        "endpoints": [f"{'any' if method == '*' else method} {path}"
                      for path, route in routes.items() for method in route.methods],
        "openapi": document_path})
    return routes


def _describe(routes: Mapping[str, Route]) -> Dict[str, Any]:
    """The OpenAPI document of these routes (https://spec.openapis.org/oas/v3.1.0)."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "jwtserver", "version": __version__,
                 "description": "Sign-in with JSON Web Tokens"},
        "paths": {
            path: {method.lower(): _describe_operation(route, method)
                   for method in (_METHODS if "*" in route.methods else route.methods)}
            for path, route in routes.items()},
        "components": {"securitySchemes": {
            "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}},
    }


def _describe_operation(route: Route, method: str) -> Dict[str, Any]:
    operation = route.methods.get(method) or route.methods["*"]
    name = operation.endpoint.__name__.strip("_")
    description: Dict[str, Any] = {
        "operationId": f"{name}_{method.lower()}" if "*" in route.methods else name,
        "summary": (operation.endpoint.__doc__ or "").partition("\n")[0],
        "responses": {str(operation.status): _describe_response(
            operation.status, operation.schema)},
        "security": [{"token": []}] if route.guarded else [],
    }
    statuses = {*operation.errors, 429, 500, 503}
    if route.guarded:
        statuses.add(401)
    if operation.fields:
        statuses.update((400, 401, 411, 413, 415))
        description["requestBody"] = _describe_body(operation.fields)
    success = {"const": False}
    for status in sorted(statuses):
        schema = _object(success=success, **{route.error_member: _STRING})
        if status == 429 and route.error_member != "error":  # the rate limit says `error`
            schema = {"anyOf": [schema, _object(success=success, error=_STRING)]}
        description["responses"][str(status)] = _describe_response(status, schema)
    return description


def _describe_body(fields: Sequence[str]) -> Dict[str, Any]:
    schema = _object(**dict.fromkeys(fields, {"type": "string", "minLength": 1}))
    return {"required": True, "content": {
        "application/json": {"schema": schema},
        "application/x-www-form-urlencoded": {  # no field may occur twice, as an array would
            "schema": {**schema, "additionalProperties": _STRING}}}}


def _describe_response(status: int, schema: Optional[Mapping[str, Any]]) -> Dict[str, Any]:
    description: Dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if schema:
        description["content"] = {"application/json": {"schema": schema}}
    return description


# --- The application ----------------------------------------------------------------------------
#
# Design: `create_app` composes the service from layers. From the outside in: CORS, the rate limit,
# the public endpoints, the guard, then the other endpoints and the application. Only /health stands
# in front of the rate limit. Each Router turns the errors of all layers inside it into responses.


def create_app(
    settings: Optional[Settings] = None, *, app: Optional[WSGIApplication] = None,
    clock: Callable[[], float] = time.time, store: Optional[Store] = None,
) -> WSGIApplication:
    """Compose the service: the endpoints and, behind the guard, `app` or the demo.

    `settings` come from the environment by default. The database, without users, and the key are
    created if they are missing. `clock` returns seconds since 1970.

    Raises:
        SettingsError: a setting, the database or the key file cannot be used.
        TypeError: `settings` or `app` has the wrong type.
    """
    if settings is not None and not isinstance(settings, Settings):
        raise TypeError("settings must be Settings; an application is given as app=…")
    if app is not None and not callable(app):
        raise TypeError("app must be a WSGI application")
    settings = settings.checked() if settings else Settings.from_environ(os.environ)
    store = store or _open_store_for_app(settings)
    service = Service(store, make_signer(settings, clock), settings, clock)
    routes = _routes(service, settings.prefix, demo=app is None)
    public = {path: route for path, route in routes.items() if not route.guarded}
    behind_guard = {path: route for path, route in routes.items() if route.guarded}
    own_paths = [path for path in behind_guard if path != "/protected"]
    protect = settings.protect or ("/protected" if app is None else "/",)

    application = Router(behind_guard, None if app is None else _with_nosniff(app))
    guard = _with_guard(application, service, own_paths, protect)
    limited = _with_rate_limit(Router(public, guard), service, guard)
    return _with_cors(limited, settings.cors_origins)


def _open_store_for_app(settings: Settings) -> Store:
    store = open_store(settings.database)
    if store.is_empty():
        logger.warning("%s has no users; python jwtserver.py user add NAME", store.name)
    store.close()  # the server may fork now; uWSGI gives no notice of it
    return store


def _with_guard(
    app: WSGIApplication, service: Service, own_paths: Sequence[str], protect: Rules,
) -> BearerAuthMiddleware:
    """Put the guard in front of an application; `own_paths` need a token without a rule."""
    rules = protect if isinstance(protect, Mapping) else dict.fromkeys(protect, ())
    try:
        return BearerAuthMiddleware(
            app, service.signer, protect={**dict.fromkeys(own_paths, ()), **rules},
            exempt=service.settings.exempt, is_revoked=service.is_revoked)
    except ValueError as error:
        raise SettingsError(f"JWTSERVER_PROTECT (--protect) or JWTSERVER_EXEMPT: {error}") from None


def _with_rate_limit(
    router: Router, service: Service, guard: BearerAuthMiddleware,
) -> WSGIApplication:
    """Limit the requests of each user or, without a valid token, of each network."""
    rate = service.settings.rate_limit
    if rate is None:
        return router

    def client_key(environ: Environ) -> str:
        claims = guard.authenticate(environ)
        if claims is not None:
            return f"user {claims['sub']}"
        return f"address {_network(service.address(environ))}"

    limited = RateLimitMiddleware(router, limit=rate.limit, period=rate.seconds, key=client_key)
    health = f"{service.settings.prefix}/health"
    return Router({health: router.routes[health]}, limited)


def _with_cors(app: WSGIApplication, origins: Sequence[str]) -> WSGIApplication:
    if not origins:
        return app
    try:
        return CORSMiddleware(app, allow_origins=origins)
    except ValueError as error:
        raise SettingsError(f"JWTSERVER_CORS_ORIGINS: {error}") from None


_built: Optional[WSGIApplication] = None


def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """The WSGI application that the environment configures, built at the first request."""
    global _built
    if _built is None:
        with _for_this_process(_build_locks, threading.Lock):
            if _built is None:
                _built = create_app()
    return _built(environ, start_response)


# --- HTTP: requests -----------------------------------------------------------------------------
#
# Design: wsgiref parses headers with an e-mail parser, which is lenient. On a connection that stays
# open, leniency becomes request smuggling: what one parser takes for a body, another takes for a
# request (RFC 9112 §11.2). So headers are parsed by RFC 9112's grammar, or rejected with an error
# that closes the connection. Parsing runs in the event loop and does no I/O.

_TCHAR = "[!#$%&'*+.^_`|~0-9A-Za-z-]"
# RFC 9112 §3: request-line = method SP request-target SP HTTP-version
# RFC 9112 §2.3: HTTP-version = "HTTP" "/" DIGIT "." DIGIT
_REQUEST_LINE = re.compile(rf"({_TCHAR}+) ([!-~]+) HTTP/([0-9])\.([0-9])\r\n")
# RFC 9112 §5: field-line = field-name ":" OWS field-value OWS, without obs-fold
# RFC 9110 §5.5: field-vchar = VCHAR / obs-text
_FIELDS = re.compile(rf"(?:{_TCHAR}+:[\t -~\x80-\xff]*\r\n)*")
# RFC 9110 §7.2: Host = uri-host [ ":" port ]
# RFC 3986 §3.2.2: reg-name = *( unreserved / pct-encoded / sub-delims )
_HOST = re.compile(
    r"(?:\[[0-9A-Fa-f:.]+\]|(?:[\w.~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?", re.ASCII)
# RFC 9112 §3.2: origin-form = absolute-path [ "?" query ], absolute-form = absolute-URI
_TARGET = re.compile(r"(?:https?://([^/?#]+))?(/[^?#]*)?(?:\?([^#]*))?", re.IGNORECASE)
# RFC 9110 §8.6: Content-Length = 1*DIGIT
_CONTENT_LENGTH = re.compile("[0-9]+")
_BARE_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")  # RFC 9112 §2.2
_EMPTY_LINES = re.compile(rb"(?:\r\n)*")  # RFC 9112 §2.2: allowed before a request line
_FIRST_BYTE = re.compile(_TCHAR.encode() + rb"|\r?$")
_SINGLETON_FIELDS = (
    "HTTP_HOST", "HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE", "HTTP_TRANSFER_ENCODING")

_COMMON_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"

MAX_HEADER_BYTES = 64 * 1024  # of the request line and all fields
MAX_LINE_BYTES = 16 * 1024
MAX_FIELDS = 100
MAX_CACHED_HEADER_BYTES = 2048  # per connection
RECEIVE_BYTES = 16 * 1024  # at least a TLS record (RFC 8446 §5.1), so that none is left half read


class _Request(NamedTuple):
    """A parsed request without its body."""

    environ: Environ
    line: str  # the request line as received
    length: int  # of the body, in bytes
    received_first: int  # bytes of the body that are received before the application runs
    keep_alive: bool  # the connection may serve another request
    expects_continue: bool  # the client waits for 100 Continue before it sends the body


_NO_REQUEST = _Request({}, "", 0, 0, False, False)  # until one has been parsed


def _parse_request(header: bytes, environ: Environ) -> _Request:
    """Parse a request line and fields, and add them to `environ`.

    Raises:
        HTTPError: they are malformed, or ask for something that is not supported.
    """
    text = header.decode("latin-1")
    line = _REQUEST_LINE.match(text)
    if not line:
        raise HTTPError(400, "Malformed request line")
    environ["REQUEST_METHOD"], target, major, minor = line.groups()
    if major != "1":
        raise HTTPError(505, "Only HTTP/1.0 and HTTP/1.1 are supported")
    version = "1.0" if minor == "0" else "1.1"  # RFC 9110 §2.5: 1.2 is compatible with 1.1
    environ["SERVER_PROTOCOL"] = f"HTTP/{version}"
    _parse_fields(text, line.end(), environ)
    if version == "1.1" and "HTTP_HOST" not in environ:  # RFC 9112 §3.2
        raise HTTPError(400, "A Host header is required")
    _parse_target(target, environ)
    if not _HOST.fullmatch(environ.get("HTTP_HOST", "")):
        raise HTTPError(400, "Malformed Host header")
    length = _body_length(environ)
    keep_alive, expects_continue = version == "1.1", False
    if "HTTP_CONNECTION" in environ:
        options = [option.strip(" \t") for option in environ["HTTP_CONNECTION"].lower().split(",")]
        keep_alive = keep_alive and "close" not in options
    if "HTTP_EXPECT" in environ and version == "1.1":
        if environ["HTTP_EXPECT"].lower() not in ("", "100-continue"):
            raise HTTPError(417, "The only supported expectation is 100-continue")
        expects_continue = bool(environ["HTTP_EXPECT"] and length)
    # A short body is received first, so that a slow client costs no thread.
    received_first = 0 if length > MAX_BODY_BYTES or expects_continue else length
    return _Request(environ, line[0], length, received_first, keep_alive, expects_continue)


def _parse_fields(text: str, start: int, environ: Environ) -> None:
    end = len(text) - 2
    if not _FIELDS.fullmatch(text, start, end):
        raise HTTPError(400, "Malformed header")
    fields = text[start:end].split("\r\n")[:-1]
    if len(fields) > MAX_FIELDS:
        raise HTTPError(431, "Too many header fields")
    for field in fields:
        name, _, value = field.partition(":")
        if "_" in name:
            continue  # `X_Y` and `X-Y` have the same name in the environ
        key, value = f"HTTP_{name.upper().replace('-', '_')}", value.strip("\t ")
        if key in environ:
            if key in _SINGLETON_FIELDS:
                raise HTTPError(400, f"Two {name} headers")
            value = f"{environ[key]}{'; ' if key == 'HTTP_COOKIE' else ','}{value}"
        environ[key] = value
    if "HTTP_CONTENT_TYPE" in environ:
        environ["CONTENT_TYPE"] = environ.pop("HTTP_CONTENT_TYPE")


def _parse_target(target: str, environ: Environ) -> None:
    environ["REQUEST_URI"] = environ["RAW_URI"] = target  # the names in Apache and in gunicorn
    if environ["REQUEST_METHOD"] == "CONNECT":  # RFC 9110 §9.3.6: it asks for a tunnel
        raise HTTPError(405, "CONNECT is not supported", ("Allow", _COMMON_METHODS))
    if target == "*" and environ["REQUEST_METHOD"] == "OPTIONS":  # RFC 9112 §3.2.4
        environ["PATH_INFO"] = "*"
        return
    match = _TARGET.fullmatch(target)
    if not match or not (match[1] or match[2]):
        raise HTTPError(400, "Malformed request target")
    if match[1]:
        environ["HTTP_HOST"] = match[1]  # RFC 9112 §3.2.2: it overrides the Host header
    path = match[2] or "/"
    environ["PATH_INFO"] = unquote_to_bytes(path).decode("latin-1") if "%" in path else path
    environ["QUERY_STRING"] = match[3] or ""


def _body_length(environ: Environ) -> int:
    """The length of the body in bytes (RFC 9112 §6.3); an ambiguous one is rejected."""
    length = environ.pop("HTTP_CONTENT_LENGTH", None)
    if "HTTP_TRANSFER_ENCODING" in environ:
        if length is not None:
            raise HTTPError(400, "Both Content-Length and Transfer-Encoding")
        if environ["HTTP_TRANSFER_ENCODING"].lower() == "chunked":
            raise HTTPError(411, "The request needs a Content-Length")
        raise HTTPError(501, "Unsupported Transfer-Encoding")
    if length is None:
        return 0
    if not _CONTENT_LENGTH.fullmatch(length):
        raise HTTPError(400, "The Content-Length must be a number")
    length = length.lstrip("0") or "0"
    if len(length) > 15:
        raise HTTPError(413, "The body is too long")
    environ["CONTENT_LENGTH"] = length
    return int(length)


def _check_partial_header(data: bytes, searched: int) -> None:
    """Reject a malformed or oversized header before it is complete.

    The first `searched` bytes have been checked before.

    Raises:
        HTTPError: it can never become a valid request.
    """
    if _BARE_LINE_END.search(data, max(0, searched - 1)) or not _FIRST_BYTE.match(data):
        raise HTTPError(400, "Malformed request")
    if len(data) > MAX_HEADER_BYTES:
        raise HTTPError(431, "The header is too long")
    line_end = data.rfind(b"\r\n")
    if line_end < 0 and len(data) > MAX_LINE_BYTES:
        raise HTTPError(414, "The request line is too long")
    if line_end >= 0 and len(data) - line_end > MAX_LINE_BYTES + 2:
        raise HTTPError(431, "A header line is too long")


def _check_header_size(header: bytes) -> None:
    if len(header) <= MAX_LINE_BYTES:
        return
    lengths = [len(line) for line in header.split(b"\r\n")]
    if lengths[0] > MAX_LINE_BYTES:
        raise HTTPError(414, "The request line is too long")
    if max(lengths) > MAX_LINE_BYTES or len(header) > MAX_HEADER_BYTES:
        raise HTTPError(431, "The header is too long")


class _BodyError(OSError):
    """The rest of a request body has not arrived."""


class _BodyStream(io.RawIOBase):
    """A long request body, received while the application reads it."""

    def __init__(self, connection: "_Connection", request: _Request) -> None:
        self._connection = connection
        self.remaining = request.length
        self.bytes_received = 0
        self.pace = connection.server.new_pace(_State.READING_BODY)
        self.continue_pending = request.expects_continue
        self._cut_off = False

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Receive some bytes; none at the end of the body.

        Raises:
            _BodyError: the client has closed the connection, or sends too slowly.
        """
        if self.continue_pending:
            self._connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.continue_pending = False
        size = min(len(buffer), self.remaining)
        data = self._connection.receive_body(size, self) if size and not self._cut_off else b""
        if size and not data:
            self._cut_off = True  # for ever: bytes that arrive later must not follow a gap
            raise _BodyError("the request body is incomplete")
        buffer[:len(data)] = data
        self.remaining -= len(data)
        self.bytes_received += len(data)
        return len(data)


class _BodyReader(io.BufferedReader):
    """The `wsgi.input` of a long body."""

    def read(self, size: Optional[int] = -1) -> bytes:
        """Read in pieces: BufferedReader allocates `size` bytes at once, and clients choose it."""
        if size is None or size <= RECEIVE_BYTES:
            return super().read(size)
        data = bytearray()
        while len(data) < size:
            piece = super().read(min(size - len(data), RECEIVE_BYTES))
            if not piece:
                break
            data += piece
        return bytes(data)

    def read1(self, size: int = -1) -> bytes:
        """Read a piece. It is no larger than the bytes that can be received at once."""
        return super().read1(min(size, RECEIVE_BYTES))


# --- HTTP: responses ----------------------------------------------------------------------------
#
# Design: a _Handler runs the application for one request, checks the status and headers that it
# gives, and frames the body (RFC 9112 §6). A list of at most one item is only queued: the event
# loop sends it. Any other iterable is a stream: each piece is sent before the next one (PEP 3333).
# If a response is cut short, the client must be able to tell.

# RFC 9112 §4: status-line = HTTP-version SP status-code SP [ reason-phrase ]
_STATUS = re.compile(r"[2-5][0-9]{2} [\t -~\x80-\xff]*")
_HOP_BY_HOP = frozenset([  # RFC 9110 §7.6.1: only the server may send these
    "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding",
    "upgrade"])
_UNLOGGABLE = re.compile(r'[^\x20-\x7e]|["\\]')
MAX_JOINED_BYTES = 64 * 1024  # a longer body is not copied to be sent together with its headers


class _Framing(Enum):
    """How a client finds the end of a response (RFC 9112 §6.3)."""

    NO_BODY = "the response to HEAD, 204, 304"
    LENGTH = "Content-Length"
    CHUNKED = "Transfer-Encoding: chunked"
    UNTIL_CLOSE = "the end of the connection, for HTTP/1.0"


class _Handler(SimpleHandler):
    """Runs the application for one request, and frames its response.

    wsgiref would copy the environment of this process into each request. This class does not.
    """

    status: Optional[str] = None
    headers: Any = None
    result: Any = None
    headers_sent = False
    error_headers = [("Content-Type", "application/json"), _NOSNIFF]
    error_body = b'{"success": false, "error": "Internal server error"}'

    def __init__(
        self, connection: "_Connection", request: _Request, body: Optional[_BodyStream] = None,
    ) -> None:
        self._connection = connection
        self._body = body
        self.environ = request.environ
        # Copied, because the application may change its environ.
        self._method = request.environ["REQUEST_METHOD"]
        self._version = request.environ.get("SERVER_PROTOCOL")
        self._framing = _Framing.UNTIL_CLOSE
        self._fields = ""
        self._length: Optional[int] = None  # the Content-Length given by the application
        self._remaining = 0  # bytes of it that are still to be sent
        self._is_over = False
        self.keep_alive = request.keep_alive
        self.body_bytes_sent = 0

    def run(self, application: WSGIApplication) -> None:
        """Call the application, and answer with 500 if it fails before it has sent anything.

        Raises:
            _ClientGone: the client has closed the connection, or is too slow.
        """
        try:
            self.result = application(self.environ, self.start_response)
            self.finish_response()
        except _ClientGone:
            raise
        except _BodyError:
            if self.headers_sent:
                raise _ClientGone from None
            self.keep_alive = False
            response = _NO_ROUTE.error_response(HTTPError(408, "The request body is incomplete"))
            self.result = _send_response(
                response, self.environ, self.start_response, sys.exc_info())
            self.finish_response()
        except BaseException:  # SystemExit too: it would end the thread of the event loop
            if self.headers_sent:
                self.keep_alive = False
                # The end of the connection would look like the end of the response.
                self._connection.aborted = self._framing is _Framing.UNTIL_CLOSE
            self.handle_error()
        finally:
            self._is_over = True

    def finish_response(self) -> None:
        """Send the iterable that the application returned, piece by piece."""
        try:
            for data in self.result:
                if data or not isinstance(data, bytes):  # PEP 3333: b"" does not send the headers
                    self.write(data)
                if self.headers_sent and self._framing is _Framing.NO_BODY:
                    break
            self.finish_content()
        finally:
            self.close()

    def start_response(
        self, status: str, headers: List[Tuple[str, str]], exc_info: Any = None,
    ) -> Callable[[bytes], None]:
        """Take the status and headers (PEP 3333)."""
        if exc_info and self.headers_sent:
            try:
                raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        if self.headers is not None and not exc_info:
            raise AssertionError("start_response was called twice")
        self._fields, self._length, has_date = _format_fields(status, tuple(headers))
        if not has_date:
            self._fields += _date_field(int(time.time()))
        self.status, self.headers = status, headers
        return self.write

    def write(self, data: bytes) -> None:
        """Send a piece of the body, after the headers if they have not been sent."""
        if not isinstance(data, bytes):
            raise TypeError("the body must be bytes")
        if self._is_over:
            raise AssertionError("write() after the end of the response")
        is_last_piece = isinstance(self.result, (list, tuple)) and len(self.result) == 1
        self._send(data, is_last_piece)

    def finish_content(self) -> None:
        """End the response."""
        if not self.headers_sent:
            self._send(b"", True)
        self._is_over = True
        if self._framing is _Framing.CHUNKED:
            self._connection.queue(b"0\r\n\r\n")
        if self._remaining:
            logger.error("The response body is shorter than its Content-Length")
            self.keep_alive = False

    def _send(self, data: bytes, is_last_piece: bool) -> None:
        header = b"" if self.headers_sent else self._header(len(data) if is_last_piece else None)
        if self._framing is _Framing.NO_BODY:
            data = b""
        elif self._framing is _Framing.LENGTH:
            if len(data) > self._remaining:
                logger.error("The response body is longer than its Content-Length")
                data = data[:self._remaining]
            self._remaining -= len(data)
        self.body_bytes_sent += len(data)
        if self._framing is _Framing.CHUNKED and data:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if not is_last_piece:
            self._connection.send(header + data)
        elif len(data) > MAX_JOINED_BYTES:
            self._connection.queue(header, data)
        else:
            self._connection.queue(header + data)

    def _header(self, body_length: Optional[int]) -> bytes:
        """The status line and headers; `body_length` is None if it is not known yet."""
        if self.status is None:
            raise AssertionError("start_response was not called")
        self.headers_sent = True
        framing = self._choose_framing(body_length)
        if self._body and (self._body.continue_pending or self._body.remaining):
            self.keep_alive = False  # the rest of the body may never come, or be long
            self._body.continue_pending = False  # 100 Continue would now be part of the response
        if not self.keep_alive or self._connection.server.stopping:
            self.keep_alive = False
            framing += "Connection: close\r\n"
        return f"HTTP/1.1 {self.status}\r\n{self._fields}{framing}\r\n".encode("latin-1")

    def _choose_framing(self, body_length: Optional[int]) -> str:
        """Decide how the client finds the end of the response; return the field that tells it."""
        if self._method == "HEAD" or str(self.status)[:3] in ("204", "304"):
            self._framing = _Framing.NO_BODY
        elif self._length is not None:
            self._framing, self._remaining = _Framing.LENGTH, self._length
        elif body_length is not None:
            self._framing, self._remaining = _Framing.LENGTH, body_length
            return f"Content-Length: {body_length}\r\n"
        elif self._version == "HTTP/1.1":
            self._framing = _Framing.CHUNKED
            return "Transfer-Encoding: chunked\r\n"
        else:
            self.keep_alive = False
        return ""

    def close(self) -> None:
        """Close the application's iterable."""
        if hasattr(self.result, "close"):
            self.result.close()

    def log_exception(self, exc_info: Any) -> None:
        """Log the exception that the application has raised."""
        logger.error("A fault in the application", exc_info=exc_info)


@lru_cache(maxsize=256)  # most applications repeat a few sets of headers
def _format_fields(
    status: str, headers: Tuple[Tuple[str, str], ...],
) -> Tuple[str, Optional[int], bool]:
    """The fields of a response as text, its Content-Length, and whether they include a Date.

    Raises:
        ValueError: the status or a field is malformed, so that it could split the response in two,
            or only the server may send it.
        TypeError: it is not text.
    """
    dropped = {"connection", "keep-alive"}  # event streams send them; the server decides
    if status[:3] == "204":  # RFC 9110 §8.6
        dropped.add("content-length")
    headers = tuple(field for field in headers if field[0].lower() not in dropped)
    fields = "".join([name + ": " + value + "\r\n" for name, value in headers])
    if not _STATUS.fullmatch(status) or not _FIELDS.fullmatch(fields) \
            or fields.count("\n") != len(headers):
        raise ValueError("malformed status or header")
    names = [name.lower() for name, _ in headers]
    if not _HOP_BY_HOP.isdisjoint(names) or names.count("content-length") > 1:
        raise ValueError("a header that only the server may send, or two Content-Length headers")
    length = None
    if "content-length" in names:
        length = headers[names.index("content-length")][1]
        if not _CONTENT_LENGTH.fullmatch(length):
            raise ValueError("malformed Content-Length")
    if "server" not in names:
        fields += "Server: jwtserver\r\n"
    return fields, None if length is None else int(length), "date" in names


@lru_cache(maxsize=2)
def _date_field(seconds: int) -> str:
    return f"Date: {format_date_time(seconds)}\r\n"


def _access_log_line(request: _Request, handler: _Handler) -> str:
    """A line in the combined log format, with all unsafe characters escaped."""
    environ = request.environ
    address, user, line, referer, agent = [
        _UNLOGGABLE.sub(lambda match: f"\\x{ord(match[0]):02x}", str(text or "-"))
        for text in (environ.get("REMOTE_ADDR"), environ.get("REMOTE_USER"), request.line.rstrip(),
                     environ.get("HTTP_REFERER"), environ.get("HTTP_USER_AGENT"))]
    user = user.replace(" ", "\\x20")
    now = time.strftime("%d/%b/%Y:%H:%M:%S %z")
    status = (handler.status or "-")[:3]
    return (f'{address} - {user} [{now}] "{line}" {status} {handler.body_bytes_sent}'
            f' "{referer}" "{agent}"')


# --- HTTP: connections --------------------------------------------------------------------------
#
# Design: A connection has one state and one owner. Only the owner touches the socket and buffers.
# The owner is the event loop. In RESPONDING, from the call of the application to its end, it is the
# thread that runs the application: usually the loop's thread, or a worker if the loop has moved on.
# A worker gives the connection back through a queue. Sockets do not block, except while a thread
# waits for a client in the middle of a stream or of a long body.


class _State:
    """What a connection is doing."""

    HANDSHAKE = "handshake"  # of TLS
    IDLE = "idle"  # no byte of a request has arrived
    READING_HEADER = "reading header"
    READING_BODY = "reading body"  # a short one; a long one is read by the application
    RESPONDING = "responding"  # a request waits to be answered, or is being answered
    SENDING = "sending"  # the client has not taken the whole response yet
    LINGERING = "lingering"  # the response is sent; input is discarded until the client closes


SEND_BYTES = 16 * 1024  # in one call: a TLS socket reports no progress within it
MAX_SENDS = 8  # calls, before the event loop serves another connection


class _ClientGone(BaseException):
    """The client has closed the connection, or reads too slowly.

    It is a BaseException, so that `except Exception` in an application does not catch it.
    """


class _Pace:
    """Decides whether a client is too slow.

    It is if it moves no byte for `grace` seconds, or if the server has waited longer for it in
    total than `grace + bytes / rate` seconds. `clock` returns seconds.
    """

    def __init__(self, grace: float, rate: float, clock: Callable[[], float]) -> None:
        self._grace = grace
        self._rate = rate
        self._clock = clock
        self._bytes_moved = 0
        self._seconds_waited = 0.0
        self._checked_at = self._moved_at = 0.0

    def begin_wait(self) -> None:
        """Start to wait, or start again after a time in which the server did not wait."""
        self._checked_at = self._moved_at = self._clock()

    def record(self, bytes_moved: int) -> bool:
        """Record how many bytes the client has moved so far; return False if it is too slow."""
        now = self._clock()
        self._seconds_waited += now - self._checked_at
        self._checked_at = now
        if bytes_moved > self._bytes_moved:
            self._bytes_moved, self._moved_at = bytes_moved, now
        return (now - self._moved_at <= self._grace
                and self._seconds_waited <= self._grace + bytes_moved / self._rate)


class _Connection:
    """A client's connection: received bytes, the request, and unsent bytes of the response."""

    def __init__(self, sock: socket.socket, address: Any, server: "_Server") -> None:
        self.sock: Any = sock  # a socket, or one wrapped in TLS
        self.address = address[0] if isinstance(address, tuple) else ""
        self.server = server
        self.state = _State.HANDSHAKE if server.tls else _State.IDLE
        self.state_since = 0.0
        self.watched_events = 0  # for which the selector watches the socket
        self.received = b""  # and not parsed yet
        self._searched = 0  # bytes of it that contain no end of a header
        self.request = _NO_REQUEST
        self.error: Optional[Response] = None  # the response to a malformed request
        self.keep_alive = True
        self.aborted = False  # the response cannot be completed
        self.bytes_sent = 0  # of the current response
        self.bytes_discarded = 0  # while lingering
        # Of the short body that is being received, or of the response that is being sent.
        self.pace: Optional[_Pace] = None
        self._unsent: Deque[Union[bytes, memoryview]] = deque()
        # Most clients repeat their headers on each request. Parsing takes a fifth of a response's
        # time, so the last headers are kept with the parsed request.
        self._cached_header = b""
        self._cached_request = _NO_REQUEST

    # These methods run in the event loop.

    def receive(self) -> bool:
        """Receive some bytes; return whether a request is ready to be answered.

        Raises:
            OSError: the client has closed the connection between two requests.
        """
        try:
            data = self.sock.recv(RECEIVE_BYTES)
        except self.server.would_block:
            return False
        self.received += data
        if not data:
            if not self.received and self.request is _NO_REQUEST:
                raise ConnectionAbortedError
            self.reject(HTTPError(400, "The request is incomplete"))
        return self.has_request()

    def has_request(self) -> bool:
        """Return whether a request is ready to be answered, if only with an error."""
        try:
            if self.request is _NO_REQUEST:
                self.request = self._next_request()
        except HTTPError as error:
            self.reject(error)
        request = self.request
        return request is not _NO_REQUEST and len(self.received) >= request.received_first

    def reject(self, error: HTTPError) -> None:
        """Answer with an error instead of calling the application."""
        environ = {"REQUEST_METHOD": "-", "REMOTE_ADDR": self.address, "PATH_INFO": ""}
        self.request = _Request(environ, "-", 0, 0, False, False)
        # Not the exception: its traceback refers to this connection, and would keep it in memory.
        self.error = _NO_ROUTE.error_response(error)

    def _next_request(self) -> _Request:
        data = self.received
        if data[:1] == b"\r":
            data = self.received = data[_EMPTY_LINES.match(data).end():]  # type: ignore[union-attr]
        end = data.find(b"\r\n\r\n", max(0, self._searched - 3)) + 4
        if end < 4:
            _check_partial_header(data, self._searched)
            self._searched = len(data)
            return _NO_REQUEST
        header, self.received, self._searched = data[:end], data[end:], 0
        if header != self._cached_header:
            _check_header_size(header)
            environ = {**self.server.environ, "REMOTE_ADDR": self.address}
            self._cached_request = _parse_request(header, environ)
            self._cached_header = header if len(header) <= MAX_CACHED_HEADER_BYTES else b""
        request = self._cached_request
        return _Request(request.environ.copy(), *request[1:])  # _replace() takes twice as long

    def reading_state(self) -> str:
        """The state in which the rest of a request is awaited."""
        if self.request is not _NO_REQUEST:
            return _State.READING_BODY
        return _State.READING_HEADER if self.received else _State.IDLE

    def shut_down_output(self) -> None:
        """Tell the client that nothing more will be sent."""
        with suppress(OSError, ValueError):
            if self.server.tls:
                self.sock.unwrap()
        with suppress(OSError):
            # The method of an SSL socket would forget its TLS state, and read plain bytes.
            socket.socket.shutdown(self.sock, socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket; with RST if the response is incomplete, so that the client sees it."""
        if self.aborted:
            with suppress(OSError):
                self.sock.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    # These methods run in the thread that answers the request: the event loop's, or a worker.

    def respond(self) -> None:
        """Answer the request. Its last bytes may only be queued."""
        self.bytes_sent, self.pace = 0, None
        request, self.request, body = self.request, _NO_REQUEST, None
        if not request.length:
            request.environ["wsgi.input"] = io.BytesIO()
        elif request.received_first:
            request.environ["wsgi.input"] = io.BytesIO(self.received[:request.length])
            self.received = self.received[request.length:]
        else:
            body = _BodyStream(self, request)
            request.environ["wsgi.input"] = _BodyReader(body)
        application = self.server.app
        if self.error is not None:
            application = partial(_send_response, self.error)
        elif request.environ["PATH_INFO"] == "*":  # about the server itself (RFC 9110 §9.3.7)
            application = partial(_send_response, Response.of(204))
        self._run(request, body, application)

    def _run(
        self, request: _Request, body: Optional[_BodyStream], application: WSGIApplication,
    ) -> None:
        handler = _Handler(self, request, body)
        try:
            handler.run(application)
        except _ClientGone:
            self.aborted = True
        self.keep_alive = handler.keep_alive
        self.server.log_access(request, handler)

    def receive_body(self, size: int, stream: "_BodyStream") -> bytes:
        """Up to `size` bytes of a body; none if the client has gone or is too slow."""
        if not self.received:
            try:
                # More than `size`: TLS must not keep decrypted bytes that no selector can see.
                self.received = self.sock.recv(RECEIVE_BYTES)
            except self.server.would_block:
                self.received = self.server.wait_for_body(self, stream)
            except (OSError, ValueError):
                return b""
        data, self.received = self.received[:size], self.received[size:]
        return data

    def send(self, data: bytes) -> None:
        """Send a piece of the response before the application continues (PEP 3333).

        Raises:
            _ClientGone: the client has closed the connection, or reads too slowly.
        """
        try:
            self.queue(data)
            if not self.send_some():
                self.server.wait_until_sent(self)
        except (OSError, ValueError):
            raise _ClientGone from None

    # These methods run in the thread that owns the connection, whichever it is.

    def queue(self, *pieces: bytes) -> None:
        """Append to the unsent bytes."""
        self._unsent.extend(pieces)

    def send_some(self) -> bool:
        """Send unsent bytes until the socket takes no more; return whether all have been sent.

        Raises:
            OSError: the client has closed the connection.
        """
        for _ in range(MAX_SENDS):
            if not self._unsent:
                return True
            piece = self._unsent[0]
            try:
                # A TLS socket that would have blocked must be offered the same bytes again.
                sent = self.sock.send(
                    piece if len(piece) <= SEND_BYTES else memoryview(piece)[:SEND_BYTES])
            except self.server.would_block:
                return False
            self.bytes_sent += sent
            if sent == len(piece):
                self._unsent.popleft()
            else:
                self._unsent[0] = memoryview(piece)[sent:]
        return not self._unsent


# --- HTTP: the event loop -----------------------------------------------------------------------
#
# Design: One thread owns the loop. It receives requests, answers them one after the other, and
# sends the responses of an iteration together: system calls between responses would cost half of
# their time. Python runs one thread at a time, so more threads would not be faster. When a response
# takes longer than POLL_INTERVAL (at first IDLE_INTERVAL), the main thread moves the loop: it goes
# on in a new thread. The old thread, now a worker, finishes its response, hands its connection back
# through `_finished`, and ends. A thread that has to wait for a client gives the loop away first.
# If no thread is free, it drops that client after RECHECK_SECONDS; if none can be started, a thread
# that waits for another client drops that one as well.

POLL_INTERVAL = 0.005  # seconds after which the loop moves, or polls although requests wait
IDLE_INTERVAL = 0.05  # seconds between two looks of the main thread at a server that is idle
SELECT_SECONDS = 0.25  # the longest wait for a socket, so an expired timer is noticed by then
EXPIRY_INTERVAL = 0.02  # seconds between two checks of the timers under load
RECHECK_SECONDS = 0.2  # that a thread waits for its client before it checks whether it still may
MAX_ACCEPTS = 64  # connections, before the loop serves others
MAX_WAITING_THREADS = 1024  # that wait for a client; JWTSERVER_THREADS does not count them
RETRY_THREAD_SECONDS = 1.0  # until the next attempt, after a thread could not be started
GC_THRESHOLD = 10_000  # objects; each request creates and destroys a few dozen of them
LINGER_SECONDS = 10.0  # for a client that still uploads to notice the response
MAX_DISCARDED_BYTES = 64 * 1024 * 1024  # of such an upload
MAX_READER_PAUSE = 120.0  # seconds in which a client may read nothing of a response
SHUTDOWN_TIMEOUT = 8.0  # seconds for responses in progress; Docker kills after ten


def _state_timeouts(settings: Settings) -> Dict[str, float]:
    """The seconds that a connection may spend in each state."""
    return {
        _State.HANDSHAKE: settings.head_timeout, _State.IDLE: settings.idle_timeout,
        _State.READING_HEADER: settings.head_timeout, _State.READING_BODY: settings.head_timeout,
        _State.RESPONDING: math.inf, _State.SENDING: MAX_READER_PAUSE,
        _State.LINGERING: LINGER_SECONDS}


class _Server:
    """Serves an application over HTTP/1.1 connections that are kept open.

    `clock` returns seconds and never goes back, like time.monotonic.
    """

    def __init__(
        self, app: WSGIApplication, listener: socket.socket, settings: Settings,
        tls: Optional["ssl.SSLContext"] = None, access_log: Optional[TextIO] = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.app = app
        self.settings = settings
        self.tls = tls
        self.access_log = access_log
        self.would_block = _would_block_errors(tls)
        self.environ = _base_environ(listener, "https" if tls else "http")
        self.environ["jwtserver.release_loop"] = self.release_loop
        self.stopping = False
        self._ended = False
        self._deadline = math.inf  # for responses in progress, once the server is stopping
        self._clock = clock
        self._listener = listener
        listener.setblocking(False)
        if listener.family in (socket.AF_INET, socket.AF_INET6):
            _limit_kernel_buffer(listener)
        self._wakeup_sender, self._wakeup_receiver = socket.socketpair()
        for wakeup in (self._wakeup_sender, self._wakeup_receiver):
            wakeup.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wakeup_receiver, selectors.EVENT_READ, self._on_wakeup)
        self._ready: Deque[_Connection] = deque()  # their requests wait to be answered
        self._finished: Deque[_Connection] = deque()  # their responses wait to be sent
        self._timeouts = _state_timeouts(settings)
        # The connections in each state, with the time at which it expires, the earliest first.
        self._timers: Dict[str, Dict[_Connection, float]] = {state: {} for state in self._timeouts}
        self._expiry_checked = 0.0
        self._lock = threading.Lock()  # of the attributes below
        self._threads: Set[threading.Thread] = set()  # the loop's, and the workers
        self._loop_thread: Optional[threading.Thread] = None
        self._response_began: Optional[float] = None  # of the response in the loop, if there is one
        self._waiting_threads = 0  # that wait for a client
        # The next waiting thread that rechecks must drop its client, to free a thread.
        self._client_must_go = False
        self._retry_thread_at = 0.0

    # These methods run in the main thread.

    def serve_forever(self) -> None:
        """Serve until `interrupt` is called; move the loop when a response takes too long."""
        with self._lock:
            started = self._start_thread()
        if not started:
            logger.error("No thread can be started: requests are answered one at a time")
            self._loop_thread = threading.current_thread()
            self._run_loop()
        while not self._ended and self._clock() < self._deadline:
            busy = self._response_began is not None or self._ready or self._finished
            time.sleep(POLL_INTERVAL if busy else IDLE_INTERVAL)
            self._move_loop(POLL_INTERVAL)

    def interrupt(self, *_: Any) -> None:
        """Handle a signal: finish the responses in progress; at the second one, exit at once."""
        if self.stopping:
            os._exit(1)
        self._deadline = self._clock() + SHUTDOWN_TIMEOUT
        self.stopping = True
        self._wake()

    def finish(self) -> None:
        """Close all sockets, after the loop has ended or the deadline has passed."""
        self._ended = True
        self._wake()
        for thread in list(self._threads):
            remaining = max(0.0, self._deadline - self._clock())
            is_loop = thread is self._loop_thread  # it ends as soon as it sees `_ended`
            thread.join(min(SHUTDOWN_TIMEOUT, max(1.0, remaining) if is_loop else remaining))
        for connection in [each for timers in self._timers.values() for each in list(timers)]:
            self._close(connection)
        for closable in (self._listener, self._selector, self._wakeup_sender,
                         self._wakeup_receiver):
            closable.close()

    # These methods run in any thread.

    def release_loop(self) -> bool:
        """Move the loop to another thread, if this thread has it: its response will take long.

        Return False if this thread has the loop and must keep it, because no thread is free.
        """
        with self._lock:
            return self._loop_thread is not threading.current_thread() or self._start_thread()

    def _move_loop(self, min_seconds: float) -> None:
        """Move the loop, if the response in it began `min_seconds` ago."""
        with self._lock:
            began = self._response_began
            if began is not None and self._clock() - began >= min_seconds:
                self._start_thread()

    def _start_thread(self) -> bool:
        """Start a thread and give it the loop; return whether that succeeded. Needs the lock."""
        busy = len(self._threads) - self._waiting_threads
        if busy >= self.settings.threads:
            return False
        if self._clock() < self._retry_thread_at:
            return False
        if self._waiting_threads > MAX_WAITING_THREADS:
            self._client_must_go = True
            return False
        thread = threading.Thread(target=self._run_loop, daemon=True)
        # Both are set first, because the new thread uses them as soon as it runs.
        before = self._loop_thread, self._response_began
        self._loop_thread, self._response_began = thread, None
        try:
            thread.start()
        except RuntimeError:  # by a limit of the system or of a container
            self._loop_thread, self._response_began = before
            self._retry_thread_at = self._clock() + RETRY_THREAD_SECONDS
            self._client_must_go = self._waiting_threads > 0
            return False
        self._threads.add(thread)
        self._client_must_go = False
        return True

    def _wake(self) -> None:
        """Make the loop poll at once."""
        with suppress(OSError):
            self._wakeup_sender.send(b"!")

    # These methods run in the event loop: only its thread changes the selector, the states of
    # connections, and the timers. When it has ended, `finish` does.

    def _run_loop(self) -> None:
        me = threading.current_thread()
        while self._loop_thread is me and not self._ended:
            try:
                self._iterate()
            except Exception:
                logger.exception("A fault in the server")
        with self._lock:
            self._threads.discard(me)

    def _iterate(self) -> None:
        """Send the finished responses, receive requests, and answer them until it is time to poll.
        """
        while self._finished:
            self._attempt(self._send, self._finished.popleft())
        self._poll()
        now = self._clock()
        end = now + POLL_INTERVAL
        while self._ready and now < end:
            if not self._respond(self._ready.popleft(), now):
                return
            now = self._clock()

    def _respond(self, connection: _Connection, now: float) -> bool:
        """Answer a request; return whether this thread still has the loop."""
        self._response_began = now
        try:
            connection.respond()
        except Exception:
            logger.exception("A fault in the server")
            connection.aborted = True
        with self._lock:
            moved = self._loop_thread is not threading.current_thread()
            if not moved:
                self._response_began, self._client_must_go = None, False
        self._finished.append(connection)
        if moved:
            self._wake()
        return not moved

    def _attempt(self, step: Callable[[_Connection], None], connection: _Connection) -> None:
        try:
            step(connection)
        except (OSError, ValueError):  # the client has gone; ssl raises ValueError then
            self._close(connection)
        except Exception:
            logger.exception("A fault in the server")
            self._close(connection)

    def _poll(self) -> None:
        """Wait until a socket is ready, and receive what has arrived."""
        longest_wait = EXPIRY_INTERVAL if self.stopping else SELECT_SECONDS
        events = self._selector.select(0 if self._ready or self._finished else longest_wait)
        for key, _ in events:
            key.data()
        self._close_expired()
        if self.stopping:
            self._shut_down(bool(events))

    def _on_wakeup(self) -> None:
        self._wakeup_receiver.recv(RECEIVE_BYTES)

    def _accept(self) -> None:
        for _ in range(MAX_ACCEPTS):
            try:
                sock, address = self._listener.accept()
            except OSError as error:  # there are no more, or there are too many open files
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self._evict_oldest()
                return
            self._open_connection(sock, address)

    def _open_connection(self, sock: socket.socket, address: Any) -> None:
        sock.setblocking(False)
        try:
            if sock.family != getattr(socket, "AF_UNIX", None):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            if self.tls:
                sock.getpeername()  # raises if the client has gone; wrap_socket() leaks the socket
                sock = self.tls.wrap_socket(
                    sock, server_side=True, do_handshake_on_connect=False)
        except (OSError, ValueError):  # the client has gone
            sock.close()
            return
        if sum(map(len, self._timers.values())) >= self.settings.connections \
                and not self._evict_oldest():
            sock.close()
            return
        connection = _Connection(sock, address, self)
        self._enter(connection, connection.state)
        self._watch(connection, selectors.EVENT_READ)

    def _on_event(self, connection: _Connection) -> None:
        """The socket can be read or, in SENDING, written."""
        state = connection.state
        if state == _State.RESPONDING:  # input is for the thread that answers, or for later
            self._watch(connection, 0)
        elif state == _State.SENDING:
            self._send(connection)
        elif state == _State.HANDSHAKE:
            self._continue_handshake(connection)
        elif state == _State.LINGERING:
            self._discard_input(connection)
        elif connection.receive():
            self._make_ready(connection)
        elif connection.reading_state() not in (state, _State.IDLE):  # an empty line is no progress
            self._enter(connection, connection.reading_state())
        elif state == _State.READING_BODY:
            self._check_pace(connection, len(connection.received))

    def _continue_handshake(self, connection: _Connection) -> None:
        with suppress(*self.would_block):
            connection.sock.do_handshake()
            self._enter(connection, _State.IDLE)

    def _discard_input(self, connection: _Connection) -> None:
        with suppress(*self.would_block):
            size = len(connection.sock.recv(RECEIVE_BYTES))
            connection.bytes_discarded += size
            if not size or connection.bytes_discarded > MAX_DISCARDED_BYTES:
                self._close(connection)

    def _make_ready(self, connection: _Connection) -> None:
        self._enter(connection, _State.RESPONDING)
        self._ready.append(connection)

    def _send(self, connection: _Connection) -> None:
        """Send queued bytes of a finished response, and then await the next request."""
        if connection.aborted:
            self._close(connection)
        elif not connection.send_some():
            if connection.state == _State.SENDING:
                self._check_pace(connection, connection.bytes_sent)
                return
            self._enter(connection, _State.SENDING)
            self._watch(connection, selectors.EVENT_WRITE)
        elif not connection.keep_alive:
            connection.shut_down_output()
            self._enter(connection, _State.LINGERING)
            self._watch(connection, selectors.EVENT_READ)
        elif connection.received and connection.has_request():
            self._make_ready(connection)
        else:
            self._enter(connection, connection.reading_state())
            self._watch(connection, selectors.EVENT_READ)

    def _watch(self, connection: _Connection, events: int) -> None:
        """Let the selector watch the socket for these events; for none if 0."""
        if connection.watched_events == events:
            return
        if not events:
            self._selector.unregister(connection.sock)
        elif connection.watched_events:
            self._selector.modify(
                connection.sock, events, self._selector.get_key(connection.sock).data)
        else:
            self._selector.register(
                connection.sock, events, partial(self._attempt, self._on_event, connection))
        connection.watched_events = events

    def _enter(self, connection: _Connection, state: str) -> None:
        """Put a connection into a state, and start its timer."""
        self._timers[connection.state].pop(connection, None)
        now = self._clock()
        connection.state, connection.state_since = state, now
        self._timers[state][connection] = now + self._timeouts[state]
        if state == _State.READING_BODY:
            connection.pace = None  # that of the response before
        if state in (_State.READING_BODY, _State.SENDING):
            self.pace_of(connection).begin_wait()

    def _close_expired(self) -> None:
        now = self._clock()
        if now < self._expiry_checked + EXPIRY_INTERVAL:
            return
        self._expiry_checked = now
        for timers in self._timers.values():
            while timers:
                connection, end = next(iter(timers.items()))
                if now < end:
                    break
                self._on_timeout(connection)

    def _on_timeout(self, connection: _Connection) -> None:
        if connection.state in (_State.READING_HEADER, _State.READING_BODY):
            connection.reject(HTTPError(408, "The request took too long"))
            self._make_ready(connection)
        else:
            self._close(connection)

    def _check_pace(self, connection: _Connection, bytes_moved: int) -> None:
        """Restart the timer of a client that has moved some bytes, unless it is too slow."""
        if self.pace_of(connection).record(bytes_moved):
            timers = self._timers[connection.state]
            del timers[connection]
            timers[connection] = self._clock() + self._timeouts[connection.state]
        else:
            self._on_timeout(connection)

    def _evict_oldest(self) -> bool:
        """Close a connection to make room for another; return False if none may be closed.

        In each state, the first to expire is a candidate. The oldest candidate is closed. A client
        that is reading its response is only closed if there is no other candidate, and one whose
        request is being answered never.
        """
        waiting = (_State.HANDSHAKE, _State.IDLE, _State.READING_HEADER, _State.READING_BODY,
                   _State.LINGERING)
        for states in (waiting, (_State.SENDING,)):
            oldest = [next(iter(self._timers[state])) for state in states if self._timers[state]]
            if oldest:
                self._close(min(oldest, key=attrgetter("state_since")))
                return True
        return False

    def _close(self, connection: _Connection) -> None:
        if connection.state in (_State.RESPONDING, _State.SENDING):
            connection.aborted = True  # the response may be incomplete
        self._timers[connection.state].pop(connection, None)
        self._watch(connection, 0)
        connection.close()

    def _shut_down(self, received: bool) -> None:
        """Accept no connections; close those without a request; end when all are closed."""
        if self._listener.fileno() >= 0:
            self._selector.unregister(self._listener)
            self._listener.close()
        if not received:  # else a request may just have arrived on one of them
            for state in (_State.HANDSHAKE, _State.IDLE, _State.READING_HEADER):
                for connection in list(self._timers[state]):
                    self._close(connection)
        if not any(timers for state, timers in self._timers.items() if state != _State.LINGERING):
            self._ended = True

    # These methods run in the thread that answers a request: the event loop's, or a worker.

    def wait_for_body(self, connection: _Connection, stream: _BodyStream) -> bytes:
        """Wait for bytes of a body; none if the client has gone, is too slow, or must go."""
        stream.pace.begin_wait()
        with self._waiting(connection) as may_wait, suppress(OSError, ValueError):
            while stream.pace.record(stream.bytes_received):
                with suppress(*self.would_block):
                    data = bytes(connection.sock.recv(RECEIVE_BYTES))
                    stream.pace.record(stream.bytes_received + len(data))
                    return data
                if not may_wait():
                    break
        return b""

    def wait_until_sent(self, connection: _Connection) -> None:
        """Wait until the client has taken all unsent bytes.

        Raises:
            _ClientGone: the client reads too slowly, or must go.
            OSError: the client has gone.
        """
        pace, began, finished = self.pace_of(connection), self._clock(), False
        pace.begin_wait()
        with self._waiting(connection) as may_wait:
            while not finished:
                finished = connection.send_some()
                recheck = not finished and self._clock() - began > RECHECK_SECONDS
                if not pace.record(connection.bytes_sent) or (recheck and not may_wait()):
                    raise _ClientGone

    @contextmanager
    def _waiting(self, connection: _Connection) -> Iterator[Callable[[], bool]]:
        """Let the socket block for RECHECK_SECONDS; the loop continues in another thread.

        Yields a function that returns whether this thread may wait longer: not if it still has the
        loop, nor if it is the first to see that a client must go.
        """
        with self._lock:
            self._waiting_threads += 1
        self.release_loop()
        connection.sock.settimeout(RECHECK_SECONDS)

        def may_wait() -> bool:
            with self._lock:
                must_go, self._client_must_go = self._client_must_go, False
                if must_go:  # and its thread will end
                    self._retry_thread_at = 0.0
                return self._loop_thread is not threading.current_thread() and not must_go

        try:
            yield may_wait
        finally:
            connection.sock.settimeout(0)
            with self._lock:
                self._waiting_threads -= 1

    def pace_of(self, connection: _Connection) -> _Pace:
        """The pace of a client that sends a short body, or reads its response."""
        if connection.pace is None:
            connection.pace = self.new_pace(connection.state)
        return connection.pace

    def new_pace(self, state: str) -> _Pace:
        """A pace with the timeout of a state as its grace.

        A thread that streams is in RESPONDING, which has no timeout; it uses that of SENDING.
        """
        grace = self._timeouts[_State.SENDING if state == _State.RESPONDING else state]
        return _Pace(grace, self.settings.body_rate, self._clock)

    def log_access(self, request: _Request, handler: _Handler) -> None:
        """Write a line about a request, if there is an access log."""
        access_log = self.access_log  # another thread may end it
        if access_log is None:
            return
        try:
            access_log.write(_access_log_line(request, handler) + "\n")
            access_log.flush()
        except (OSError, ValueError) as error:  # its reader has gone; the clients are still there
            logger.error("The access log cannot be written, and ends here: %s", error)
            self.access_log = None


# --- HTTP: sockets ------------------------------------------------------------------------------
#
# Design: what the server needs before it can accept connections: the listening socket, TLS, and the
# part of the environ that is the same for all requests. It runs in the main thread at the start.

LISTEN_FD = 3  # SD_LISTEN_FDS_START


def _would_block_errors(tls: Any) -> Tuple[Type[Exception], ...]:
    """The exceptions of a socket that cannot be read or written now, or in time."""
    if not tls:
        return (BlockingIOError, socket.timeout)
    import ssl
    return (BlockingIOError, socket.timeout, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def _base_environ(listener: socket.socket, scheme: str) -> Environ:
    """The part of the environ that is the same for all requests."""
    host, port = _socket_address(listener)
    return {
        "GATEWAY_INTERFACE": "CGI/1.1", "SERVER_NAME": host, "SERVER_PORT": str(port),
        "SCRIPT_NAME": "", "CONTENT_LENGTH": "", "PATH_INFO": "", "QUERY_STRING": "",
        "wsgi.errors": sys.stderr, "wsgi.version": (1, 0), "wsgi.multithread": True,
        "wsgi.multiprocess": False, "wsgi.run_once": False, "wsgi.file_wrapper": FileWrapper,
        "wsgi.url_scheme": scheme,
    }


def _limit_kernel_buffer(listener: socket.socket) -> None:
    """Buffer little for each client: by default, a client that does not read costs megabytes."""
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # accepted sockets inherit it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_SENDS * SEND_BYTES)


def _socket_address(listener: socket.socket) -> Tuple[str, int]:
    """The address and port of a listening socket; the path and 0 of a Unix socket."""
    name = listener.getsockname()
    return name[:2] if isinstance(name, tuple) else (str(name), 0)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket: the one that systemd hands over (sd_listen_fds(3)), or a new one.

    Raises:
        OSError: the address cannot be used.
    """
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS", "0") > "0":
        return socket.socket(fileno=LISTEN_FD)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both_families = host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(
        (host, port), family=family, backlog=1024, dualstack_ipv6=both_families)


def _tls_context(certificate: str, key: Optional[str]) -> "ssl.SSLContext":
    """A context for TLS 1.2 or later (RFC 8996).

    Raises:
        OSError: a file cannot be read, or has no certificate or key.
    """
    import ssl
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context


# --- Commands -----------------------------------------------------------------------------------
#
# Design: Each command is one function of its arguments and the settings. It does one thing, prints
# one sentence about what it did, and raises Error with one line if it cannot. The table `_COMMANDS`
# in the next chapter has an entry for each. A command runs in the main thread, for one user at a
# terminal or in a script. It must never create a database if it needs an existing user: in the
# wrong folder, an empty database would hide the mistake.


def _serve(args: argparse.Namespace, settings: Settings) -> None:
    app = _load_app(args.app) if args.app else None
    _log_to_stderr()
    if args.tls_key and not args.tls_cert:
        raise Error("--tls-key needs --tls-cert")
    try:
        tls = _tls_context(args.tls_cert, args.tls_key) if args.tls_cert else None
    except OSError as error:
        files = " with ".join(filter(None, (args.tls_cert, args.tls_key)))
        readable = not isinstance(error, (FileNotFoundError, PermissionError))
        hint = "; is its key in --tls-key?" if readable and not args.tls_key else ""
        raise Error(f"cannot use {files}: {error.strerror or error}{hint}") from None
    try:
        listener = _listen(args.host, args.port)
    except OSError as error:
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror  # or that of getaddrinfo
        raise Error(f"cannot listen on {args.host}:{args.port}: {reason};"
                    " choose another address with --host and --port") from None
    _raise_file_limit()
    with listener:
        store = open_store(settings.database)
        log = sys.stdout if args.access_log else None
        server = _Server(create_app(settings, app=app, store=store), listener, settings, tls, log)
        try:
            demo = _add_demo_user(store, settings) if store.is_empty() else None
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, server.interrupt)
            _print_greeting(_server_url(args.host, listener, tls), settings, store, demo,
                            "/" if app else "/protected")
            # Garbage collection took 10 % of the request time; exclude what is loaded so far.
            gc.freeze()
            gc.set_threshold(GC_THRESHOLD)
            server.serve_forever()
        finally:
            server.finish()


def _raise_file_limit() -> None:
    """Let this process open as many files as the system allows: each connection needs one."""
    with suppress(ImportError, OSError, ValueError):  # Windows has no limit, macOS may refuse
        import resource
        _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))


def _server_url(host: str, listener: socket.socket, tls: Any) -> str:
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    host = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{host}:{_socket_address(listener)[1]}"


def _log_to_stderr() -> None:
    """Print the log, unless the user's application has already configured logging."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s",
                        datefmt="%Y-%m-%dT%H:%M:%S%z")


def _load_app(name: str) -> WSGIApplication:
    """Import `MODULE:CALLABLE`, from the current folder first."""
    module, _, attributes = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        app: Any = importlib.import_module(module)
        for attribute in (attributes or "application").split("."):
            app = getattr(app, attribute)
    except Exception as error:
        raise Error(f"cannot import {name}: {type(error).__name__}: {error}") from error
    if not callable(app):
        raise Error(f"{name} is not callable")
    return app  # type: ignore[no-any-return]


def _add_demo_user(store: Store, settings: Settings) -> Optional[Tuple[str, str]]:
    """Add the user `demo`. Return its password and a token.

    Return None if another process added it first.
    """
    password = secrets.token_hex(8)
    user = _new_user("demo", _hash_password(password, settings))
    try:
        _add_users(store, [user])
    except NameTaken:
        return None
    return password, _issue_token(store, user, settings, settings.token_lifetime)


def _print_greeting(
    url: str, settings: Settings, store: Store, demo: Optional[Tuple[str, str]], path: str,
) -> None:
    protected = f"A token is needed for {', '.join(settings.protect or (path,))}"
    if settings.exempt:
        protected += f", but not for {', '.join(settings.exempt)}"
    lines = [f"jwtserver listens on {url} (press Ctrl-C to stop it)", protected]
    if demo:
        password, token = demo
        lines += [
            f"\n{store.name} had no users. The user demo was added, so that you can try it.",
            f"The password is {password}. It is shown only this once.",
            "\nSign in:",
            f"curl -d username=demo -d password={password} {url}{settings.prefix}/authenticate",
            "\nUse the token:",
            f'curl -H "Authorization: Bearer {token}" {url}{path}',
            "\nAdd your own users, and remove this one:",
            "python jwtserver.py user add NAME",
            "python jwtserver.py user remove demo\n",
        ]
    print("\n".join(lines), flush=True)


def _issue_token(store: Store, user: User, settings: Settings, lifetime: int) -> str:
    """Open a session that cannot be refreshed, and return its token."""
    signer, now = make_signer(settings), time.time()
    grant = new_grant(user, lifetime, now)
    grant = grant._replace(session=grant.session._replace(refresh_hash=""))
    if not store.open_session(grant, now):
        raise Error(f"the user {user.name!r} was changed at the same time; try again")
    _audit("token_issue", user=user.name, session=grant.session.id)
    return issue_token(grant, signer, lifetime, now)[0]


def _add_users(store: Store, users: List[User]) -> None:
    store.add_users(users)
    for user in users:
        _audit("user_add", user=user.name)


def _hash_password(password: str, settings: Settings) -> str:
    try:
        return hash_password(password, iterations=settings.pbkdf2_iterations)
    except ValueError as error:
        raise Error(str(error)) from None


def _clean_scope(scope: str) -> str:
    try:
        names = parse_scopes(scope)
    except ValueError as error:
        raise Error(str(error)) from None
    if "," in scope:
        raise Error(f"separate scopes with spaces, not commas: {scope!r}")
    return " ".join(names)


def _new_user(name: str, password_hash: str, scope: str = "") -> User:
    try:
        name = clean_name(name)
    except ValueError as error:
        raise Error(str(error)) from None
    return User(name, password_hash, _clean_scope(scope), 0, int(time.time()))


def _open_existing_store(settings: Settings) -> Store:
    database = settings.database
    if not _is_postgresql(database) and not Path(database).exists():
        raise Error(f"there is no database {Path(database).absolute()}; `user add` creates it")
    return open_store(database)


def _find_existing_user(settings: Settings, name: str) -> Tuple[Store, User]:
    store = _open_existing_store(settings)
    user = store.find_user(name)
    if user is None:
        raise Error(f"there is no user {name!r} in {store.name}")
    return store, user


def _standard_input() -> TextIO:
    if sys.stdin is None:
        raise Error("standard input is closed")
    return sys.stdin


def _ask_password(args: argparse.Namespace) -> str:
    if args.password_stdin:
        return _standard_input().readline().rstrip("\r\n")
    if not _standard_input().isatty():
        raise Error("cannot ask for the password without a terminal; use --password-stdin")
    try:
        password, repeated = getpass.getpass("Password: "), getpass.getpass("Again: ")
    except EOFError:
        print(file=sys.stderr)
        raise Error("no password was entered; nothing has changed") from None
    if repeated != password:
        raise Error("the two passwords differ; nothing has changed")
    return password


def _user_add(args: argparse.Namespace, settings: Settings) -> None:
    user = _new_user(args.name, "", args.scope)
    store = open_store(settings.database)
    if store.find_user(user.name):
        raise NameTaken(user.name)
    password_hash = _hash_password(_ask_password(args), settings)
    _add_users(store, [user._replace(password_hash=password_hash)])
    print(f"Added the user {user.name} to {store.name}")


def _user_list(args: argparse.Namespace, settings: Settings) -> None:
    store = _open_existing_store(settings)
    if store.is_empty():
        print(f"{store.name} has no users", file=sys.stderr)
    for user in store.all_users():
        state = "disabled" if user.disabled else "enabled"
        print(f"{user.name:24} {state:8} {user.scope}".rstrip())


def _change_user(
    args: argparse.Namespace, settings: Settings, change: Callable[[Store, str], Any],
    event: str, outcome: str,
) -> None:
    store, user = _find_existing_user(settings, args.name)
    change(store, user.name)
    _audit(event, user=user.name)
    print(outcome.format(user.name))


_user_remove = partial(
    _change_user, change=Store.remove_user, event="user_remove",
    outcome="Removed the user {} and ended the user's sessions")
_user_disable = partial(
    _change_user, change=Store.disable_user, event="user_disable",
    outcome="Disabled the user {} and ended the user's sessions")
_user_enable = partial(
    _change_user, change=Store.enable_user, event="user_enable", outcome="Enabled the user {}")
_user_logout = partial(
    _change_user, change=Store.end_sessions, event="user_logout",
    outcome="Ended the sessions of {}")


def _user_password(args: argparse.Namespace, settings: Settings) -> None:
    store, user = _find_existing_user(settings, args.name)
    store.set_password(user.name, _hash_password(_ask_password(args), settings))
    _audit("user_password", user=user.name)
    print(f"Changed the password of {user.name} and ended the user's sessions")


def _user_scope(args: argparse.Namespace, settings: Settings) -> None:
    store, user = _find_existing_user(settings, args.name)
    scope = _clean_scope(args.scope)
    store.set_scope(user.name, scope)
    _audit("user_scope", user=user.name)
    print(f"Changed the scopes of {user.name} to {scope or 'none'} and ended the user's sessions")


def _user_import(args: argparse.Namespace, settings: Settings) -> None:
    try:
        with open(args.file, encoding="utf-8-sig", newline="") as file:
            users = list(_read_users(csv.reader(file)))
    except UnicodeDecodeError:
        raise Error(f"{args.file}: must be in UTF-8") from None
    except csv.Error as error:
        raise Error(f"{args.file}: {error}") from None
    except Error as error:
        raise Error(f"{args.file}, {error}") from None
    store = open_store(settings.database)
    try:
        _add_users(store, users)
    except NameTaken as error:
        raise Error(f"{args.file}: {error}") from None
    print(f"Imported {len(users)} {'user' if len(users) == 1 else 'users'} into {store.name}")


def _read_users(rows: Any) -> Iterator[User]:
    """Read users from a csv.reader: username,password_hash[,scope], with or without a header."""
    names = set()
    for row in rows:
        if not row or (rows.line_num == 1 and row[:2] == ["username", "password_hash"]):
            continue
        try:
            if len(row) not in (2, 3):
                raise Error("username,password_hash[,scope] expected")
            if not password_iterations(row[1]):
                raise Error("only PBKDF2 hashes of Django, Werkzeug and passlib can be verified")
            user = _new_user(*row)
            if user.name in names:
                raise Error(f"the user {user.name!r} is in the file twice")
            names.add(user.name)
            yield user
        except Error as error:
            raise Error(f"line {rows.line_num}: {error}") from None


def _token_issue(args: argparse.Namespace, settings: Settings) -> None:
    store, user = _find_existing_user(settings, args.name)
    if user.disabled:
        raise Error(f"the user {user.name!r} is disabled")
    print(_issue_token(store, user, settings, args.lifetime or settings.token_lifetime))


def _token_inspect(args: argparse.Namespace, settings: Settings) -> None:
    token = args.token or _standard_input().readline().strip()
    signer = make_signer(settings)
    try:
        claims = signer.verify(token)
    except InvalidTokenError as error:
        raise Error(f"the token is not valid: {error}") from None
    if Service(open_store(settings.database), signer, settings, time.time).is_revoked(claims):
        raise Error("the token is not valid: Token has been revoked")
    print(json.dumps(claims, indent=2))


def _key_rotate(args: argparse.Namespace, settings: Settings) -> None:
    with open_store(settings.database).key_lock():
        keys, _ = replace_keys(settings, lambda keys: [secrets.token_hex(32).encode(), *keys])
    _audit("key_rotate")
    print(f"Added a new signing key to {settings.key_file.absolute()}. Older keys, whose tokens"
          f" stay valid: {len(keys)}. Their last tokens expire in {settings.token_lifetime}"
          " seconds. Then remove them: python jwtserver.py key prune")


def _key_prune(args: argparse.Namespace, settings: Settings) -> None:
    store = open_store(settings.database)
    with store.key_lock():
        keys, rotated = replace_keys(settings, lambda keys: keys[:1])
    if len(keys) == 1:
        print(f"{settings.key_file.absolute()} has only one key; there is none to remove")
        return
    _audit("key_prune")
    signed_until = rotated + KEY_FILE_INTERVAL
    live = store.count_tokens(signed_until, settings.token_lifetime, time.time())
    print(f"Removed the older keys from {settings.key_file.absolute()}: {len(keys) - 1}. Live"
          f" tokens that they may have signed, and that are no longer valid: {live}")


# --- The command line ---------------------------------------------------------------------------
#
# Design: `_COMMANDS` is the table of all commands, with words, function, help, arguments and
# examples. The parsers are built from it. To add a command, write one function and one entry.
# `main` parses the settings once, from the environment and the flags, and passes them to the
# function. All errors end here, as one line on standard error and an exit code. Nothing here may
# print a traceback.


_PROGRAM = "python jwtserver.py"
_GLOBAL_FLAGS = ("-h", "--help", "--version")  # any other flag before a command is one of `serve`
_Argument = Tuple[str, Dict[str, Any]]  # what `add_argument` takes


def _argument(words: str, help: str, **options: Any) -> _Argument:
    """An argument such as `--port PORT`: its name, and the name of its value in the help."""
    name, _, metavar = words.partition(" ")
    return name, {"help": help, **({"metavar": metavar} if metavar else {}), **options}


def _flag_integer(maximum: int, minimum: int = 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            return _parse_integer(text, maximum, minimum)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


class _Command(NamedTuple):
    words: str  # `serve`, or a group and a name
    run: Callable[[argparse.Namespace, Settings], None]
    help: str
    arguments: Sequence[_Argument] = ()
    examples: Sequence[str] = ()  # if they are not just the words and, for NAME, `alice`


_COMMON_ARGUMENTS = (
    _argument("--database FILE", "An SQLite file or postgresql://… (default: jwtserver.db)."),
    _argument("--secret-file FILE",
              "The file with the signing keys (default: jwtserver.key beside the database)."),
)
_NAME = _argument("name NAME", "The name of the user.")
_SCOPE = _argument(
    "--scope SCOPES", "Scopes, separated by spaces (default: none).", default="")
_NEW_SCOPE = _argument("scope SCOPES", "Scopes, separated by spaces, or '' for none.")
_PASSWORD_STDIN = _argument(
    "--password-stdin", "Read the password from standard input (default: ask for it).",
    action="store_true")
_CSV_FILE = _argument("file FILE", "A file with username,password_hash[,scope] on each line.")
_LIFETIME = _argument(
    "--lifetime SECONDS", "Seconds until the token expires (default: JWTSERVER_TOKEN_LIFETIME).",
    type=_flag_integer(MAX_LIFETIME))
_TOKEN = _argument("token TOKEN", "The token (default: a line of standard input).", nargs="?")
_SERVE_ARGUMENTS = (
    _argument("--host HOST", "The address to listen on (default: %(default)s).",
              default="127.0.0.1"),
    _argument("--port PORT", "The port to listen on; 0 chooses one (default: %(default)s).",
              type=_flag_integer(65535, 0), default=3000),
    _argument("--app MODULE:CALLABLE", "Serve this WSGI application behind the guard. It is"
              " imported from the current folder (default: only the page /protected)."),
    _argument("--protect RULE", "A path that needs a token, optionally preceded by methods:"
              " 'POST /path'. Other paths are open. Can be repeated (default: /protected, or /"
              " with --app).", action="append"),
    _argument("--exempt RULE", "A path inside a protected one that needs no token. Can be repeated"
              " (default: none).", action="append"),
    _argument("--prefix PATH", "The path under which the endpoints are served (default: /)."),
    _argument("--cors-origin ORIGIN", "An origin whose pages may read the responses, such as"
              " https://app.example.org, or * for any. Can be repeated (default: none).",
              action="append", dest="cors_origins"),
    _argument("--tls-cert FILE", "Serve HTTPS with this PEM certificate chain (default: HTTP)."),
    _argument("--tls-key FILE", "The private key (default: in the file of the certificate)."),
    _argument("--access-log", "Print a line for each request, in the combined log format"
              " (default: no).", action="store_true"),
)
_GROUPS = {
    "user": "Manage users.", "token": "Issue and inspect tokens.", "key": "Manage signing keys."}
_COMMANDS = (
    _Command("serve", _serve, "Serve over HTTP.", _SERVE_ARGUMENTS,
             ["--port 8000", "--protect /protected --protect 'POST,DELETE /articles'"]),
    _Command("user add", _user_add, "Add a user.", [_NAME, _SCOPE, _PASSWORD_STDIN],
             ["user add alice --scope 'read write'",
              f"echo 'correct horse' | {_PROGRAM} user add alice --password-stdin"]),
    _Command("user list", _user_list, "List all users."),
    _Command("user remove", _user_remove, "Remove a user and end the sessions.", [_NAME]),
    _Command("user password", _user_password, "Change the password of a user and end the sessions.",
             [_NAME, _PASSWORD_STDIN]),
    _Command("user scope", _user_scope, "Change the scopes of a user and end the sessions.",
             [_NAME, _NEW_SCOPE], ["user scope alice 'read write'"]),
    _Command("user disable", _user_disable, "Disable a user and end the sessions.", [_NAME]),
    _Command("user enable", _user_enable, "Allow a disabled user to sign in again.", [_NAME]),
    _Command("user logout", _user_logout, "End all sessions of a user.", [_NAME]),
    _Command("user import", _user_import, "Add all users of a CSV file, or none.", [_CSV_FILE],
             ["user import users.csv"]),
    _Command("token issue", _token_issue, "Print a token for a user, without the password.",
             [_NAME, _LIFETIME], ["token issue alice --lifetime 60"]),
    _Command("token inspect", _token_inspect, "Verify a token and print its claims.", [_TOKEN],
             [f"{_PROGRAM} token issue alice | {_PROGRAM} token inspect"]),
    _Command("key rotate", _key_rotate, "Sign with a new key. Older keys still verify tokens."),
    _Command("key prune", _key_prune, "Remove all keys except the one that signs."),
)


class _CommandParser(argparse.ArgumentParser):
    """A parser that reports unknown arguments with the usage of its own command."""

    def parse_known_args(self, *args: Any) -> Any:  # type: ignore[override]
        """Parse the arguments, and refuse any that are left over."""
        namespace, unknown = super().parse_known_args(*args)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown


def _parser_options(description: str, examples: Sequence[str]) -> Dict[str, Any]:
    lines = [line if _PROGRAM in line else f"{_PROGRAM} {line}".rstrip() for line in examples]
    return {"description": description, "epilog": "\n  ".join(["examples:", *lines]),
            "allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}


def _build_parser() -> _CommandParser:
    parser = _CommandParser(
        usage="%(prog)s [--help] [--version] [COMMAND] ...   (COMMAND --help lists its flags)",
        **_parser_options("Sign-in with JSON Web Tokens. Without a command, `serve` runs.",
                          ("", "user add alice", "serve --help")))
    parser.add_argument("--version", action="version", version=f"jwtserver {__version__}")
    groups = {"": parser.add_subparsers(required=True, metavar="COMMAND", prog=parser.prog)}
    for command in _COMMANDS:
        group, _, name = command.words.rpartition(" ")
        examples = command.examples or [
            command.words + (" alice" if _NAME in command.arguments else "")]
        if group not in groups:
            inner = groups[""].add_parser(group, help=_GROUPS[group], **_parser_options(
                _GROUPS[group], examples[:1]))
            groups[group] = inner.add_subparsers(required=True, metavar="COMMAND", prog=inner.prog)
        leaf = groups[group].add_parser(
            name, help=command.help, **_parser_options(command.help, examples))
        leaf.set_defaults(run=command.run)
        for argument, options in (*command.arguments, *_COMMON_ARGUMENTS):
            leaf.add_argument(argument, **options)
    return parser


def _read_settings(args: argparse.Namespace) -> Settings:
    """Read the settings from the flags, and from the environment where there is no flag."""
    environ = dict(os.environ)
    for name in _PARSERS:
        flag = getattr(args, name, None)
        if isinstance(flag, list):
            flag = ("," if name == "cors_origins" else ";").join(flag)
        if flag is not None:
            environ[_variable(name)] = flag
    if args.secret_file:
        environ["JWTSERVER_SECRET"] = ""
    return Settings.from_environ(environ)


def _flush_output() -> None:
    """Write out what was printed, while a failure can still be reported."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:  # do not try again when the interpreter exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _run_command(arguments: List[str]) -> None:
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may not have all characters
            sys.stdout.reconfigure(errors="backslashreplace")
        args = _build_parser().parse_args(arguments)
        if args.run is not _serve:
            _log_to_stderr()
        args.run(args, _read_settings(args))
    finally:
        _flush_output()


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run a command. Return its exit code: 0, 1 if it failed, or 130 if it was interrupted.

    Raises:
        SystemExit: the usage was wrong (code 2), or the help was shown.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in _GLOBAL_FLAGS):
        arguments.insert(0, "serve")
    try:
        _run_command(arguments)
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as in a shell
    except OSError as error:  # its own text would begin with an error number
        where = f"{error.filename}: " if error.filename else ""
        print(f"jwtserver: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except (Error, UnicodeError) as error:
        print(f"jwtserver: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
