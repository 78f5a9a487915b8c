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
    The HTTP server                  only for `python jwtserver.py`; skip it with another server
    Commands, The command line       what each command does; all commands and flags
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
from functools import lru_cache, partial
from http import HTTPStatus
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import (
    TYPE_CHECKING, Annotated, Any, Callable, DefaultDict, Deque, Dict, Iterable, Iterator, List,
    Mapping, NamedTuple, Optional, Protocol, Sequence, TextIO, Tuple, Type, Union, get_type_hints,
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
MAX_WAITING_HASHES = 64
REFRESH_GRACE = 10.0  # seconds in which a client that lost the response may refresh again
KEY_FILE_INTERVAL = 0.5  # seconds between two checks whether it has changed
SWEEP_ROWS = 25  # expired rows deleted with each new one: a few ms, among millions of rows
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
# Design: the class `Settings` is the table of all settings. Each field has a type, the parser that
# checks its value, and a default. A parser takes the text of an environment variable, or a Python
# value, and returns the value of the field or raises ValueError. All settings are parsed once,
# before anything else happens. A parser never touches a file, and nothing after it reads the
# environment.


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
    """A parser of whole numbers that also accepts any float from Python code."""
    return lambda value: value if isinstance(value, float) else _parse_integer(value, maximum)


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
        if re.search("[,:=]", rule.rpartition(" ")[2]):
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
    threads: Annotated[int, _integer(10_000, 2)] = 128  # one accepts requests, the others work
    head_timeout: Annotated[float, _number(MAX_LIFETIME)] = 10  # seconds to receive the headers
    idle_timeout: Annotated[float, _number(MAX_LIFETIME)] = 15  # seconds without a byte
    body_rate: Annotated[float, _number(10**9)] = 1024  # the least bytes per second, both ways

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
# Design: the first key signs, all keys verify. They are in the setting `secret`, or in a file that
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
    """Create a file as a whole. If two processes try at once, one succeeds and both go on."""
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

    It checks the file at once for a token with an unknown signature, because another process may
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
    """The signer of the service's tokens. It creates the key file if that is missing.

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
# Design: a user is a row of a table, found by name. Names are stored and compared in one Unicode
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
# Design: signing in opens a session. Access tokens name it in their claim `sid` and are valid while
# its row exists. A refresh token is `family.generation.secret`. `_rotate` replaces it at each use.
# The row holds only hashes, so that nobody can make a token from the database. It is found by the
# hash of the family, so that nobody can make one from the claim `sid` either.


class Session(NamedTuple):
    """A row of the table `sessions`: a session that has not ended."""

    id: str  # the claim `sid`
    user_name: str
    generation: int  # the number in its current refresh token
    refresh_hash: str  # of the current refresh token; "" if it has none
    previous_hash: str  # of the token that the current one has replaced
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
    3. A token of this generation that became void in this way is refused during those seconds.
    4. Any other token has been used before. Two parties have it, so one of them has stolen it, and
       the session ends (RFC 9700 §4.14.2).

    Raises:
        RefreshError: in case 3 and, with the session that must end, in case 4.
    """
    family, generation, _ = token.split(".")
    digest = _digest(token)
    in_grace = abs(now - session.rotated) < REFRESH_GRACE  # the clock may have been set back
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
# Design: each failed sign-in counts three times: for the user at the address, for the address, and
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
# process number. `getpid` costs 0.3 µs at most; a fork hook would not run under uWSGI.


class StoreError(Error):
    """The database cannot do what was asked. The message names the database."""


class Connection(Protocol):
    """The methods that the store uses. Connections of `sqlite3` have them."""

    def execute(self, statement: str, values: Any = ..., /) -> Any:
        """Run a statement, with a value for each `?`, and return a cursor."""

    def close(self) -> None:
        """Close the connection, which rolls back what is not committed."""


def _take_idle(idle: List[Connection]) -> Optional[Connection]:
    try:
        return idle.pop()
    except IndexError:  # all are in use
        return None


def _close_idle(pools: Dict[int, List[Connection]]) -> None:
    while connection := _take_idle(pools[os.getpid()]):
        connection.close()


class _PooledConnection:
    """Lends a connection to a `with` block. If the block raises, it is closed, which rolls back."""

    __slots__ = ("_database", "_idle", "_connection")

    def __init__(self, database: "_Database") -> None:
        self._database = database

    def __enter__(self) -> Connection:
        self._idle = self._database.pools[os.getpid()]
        try:
            self._connection = self._idle.pop()
        except IndexError:  # all are in use
            self._connection = self._database.connect_or_raise()
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

    def __init__(self) -> None:
        self.pools: DefaultDict[int, List[Connection]] = defaultdict(list)  # by process
        weakref.finalize(self, _close_idle, self.pools)

    @abstractmethod
    def connect(self) -> Connection:
        """Open a connection, on which each statement is a transaction by default."""

    @abstractmethod
    def migrate(self, migrations: Sequence[Sequence[str]]) -> None:
        """Create the tables or bring them up to date. Version N follows migration number N."""

    def lock(self, connection: Connection) -> None:
        """Stop other processes here until the transaction ends, if `begin` has not done so."""

    def ping(self) -> None:
        """Raise StoreError if a connection works, but leads to a database that is gone."""

    def connect_or_raise(self) -> Connection:
        """Open a connection, or raise StoreError."""
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
    def transaction(self) -> Iterator[Connection]:
        """Lend a connection in a transaction that is committed if the block succeeds."""
        with self.connection() as connection:
            connection.execute(self.begin)
            yield connection
            connection.execute("COMMIT")

    def store_error(self, problem: object) -> StoreError:
        """An error in one line, with the name of the database."""
        return StoreError(f"{self.name}: {_one_line(problem)}")

    def check_version(self, version: int, newest: int) -> None:
        if version > newest:
            raise self.store_error("was written by a newer version of jwtserver")


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

    def connect(self) -> Connection:
        """Open the file. It must exist: after a deletion, an empty one would lose all users."""
        return sqlite3.connect(
            f"{self._path.as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT,
            isolation_level=None, check_same_thread=False)

    def migrate(self, migrations: Sequence[Sequence[str]]) -> None:
        """Create the file if it is missing, and bring its tables up to date."""
        self._create_file()
        with self.connection() as connection:
            version = self._version(connection, len(migrations))
            _use_wal(connection)
        if version == len(migrations):
            return
        with self.transaction() as connection:
            version = self._version(connection, len(migrations))  # another process may be done
            for statement in chain.from_iterable(migrations[version:]):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {len(migrations)}")

    def _create_file(self) -> None:
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

    def _version(self, connection: Connection, newest: int) -> int:
        """The version of the tables; 0 if there are none."""
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        # Read last: if another process has just created the tables, their ID exists by now.
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        if application_id != _APPLICATION_ID and (tables or version):
            raise self.store_error("is the database of another application")
        self.check_version(version, newest)
        return int(version)

    def ping(self) -> None:
        """Check that the file is still there. A deleted file can be read while it is open."""
        if not self._path.exists():
            raise self.store_error(os.strerror(errno.ENOENT))


def _use_wal(connection: Connection) -> None:
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
        """Run a statement."""
        return self._connection.execute(statement.replace("?", "%s"), values)

    def close(self) -> None:
        """Roll back and close."""
        self._connection.close()

    def is_usable(self) -> bool:
        """Whether the server has sent nothing. A server that stops sends an error."""
        return not self._poll.poll(0)


class _PostgreSQL(_Database):
    """A PostgreSQL database, which machines may share. It needs psycopg 3.

    Raises:
        SettingsError: psycopg is not installed, or the URL is malformed.
    """

    for_update = " FOR UPDATE"
    skip_locked = " FOR UPDATE SKIP LOCKED"

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

    def connect(self) -> Connection:
        """Open a connection to the server."""
        return _PostgreSQLConnection(self.psycopg, self._options)

    def connection(self) -> _PooledConnection:
        """Lend a connection, after closing those that a restart of the server has cut."""
        idle = self.pools[os.getpid()]
        connection: Any = _take_idle(idle)
        while connection and not connection.is_usable():
            connection.close()
            connection = _take_idle(idle)
        if connection:
            idle.append(connection)
        return super().connection()

    def migrate(self, migrations: Sequence[Sequence[str]]) -> None:
        """Create the tables or bring them up to date."""
        with self.transaction() as connection:
            self.lock(connection)
            connection.execute("CREATE TABLE IF NOT EXISTS jwtserver (version INTEGER NOT NULL)")
            (version,) = connection.execute(
                "SELECT coalesce(max(version), 0) FROM jwtserver").fetchone()
            self.check_version(version, len(migrations))
            for statement in chain.from_iterable(migrations[version:]):
                connection.execute(statement.replace("INTEGER", "BIGINT"))
            if version < len(migrations):
                connection.execute("DELETE FROM jwtserver")
                connection.execute("INSERT INTO jwtserver VALUES (?)", [len(migrations)])

    def lock(self, connection: Connection) -> None:
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
_IS_OPEN = "SELECT 1 FROM sessions WHERE id = ? AND expires > ?"
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
        """Whether there are no users."""
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
        return self._change_user(name, "DELETE FROM users WHERE name = ?")

    def disable_user(self, name: str) -> bool:
        """Refuse the sign-ins of a user."""
        return self._change_user(name, "UPDATE users SET disabled = 1 WHERE name = ?")

    def enable_user(self, name: str) -> bool:
        """Allow a disabled user to sign in again."""
        return self._execute("UPDATE users SET disabled = 0 WHERE name = ?", name) > 0

    def set_password(self, name: str, password_hash: str) -> bool:
        """Replace the password of a user."""
        return self._change_user(
            name, "UPDATE users SET password_hash = ? WHERE name = ?", password_hash)

    def set_scope(self, name: str, scope: str) -> bool:
        """Replace the scopes of a user."""
        return self._change_user(name, "UPDATE users SET scope = ? WHERE name = ?", scope)

    def _change_user(self, name: str, statement: str, *values: str) -> bool:
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
        self, connection: Connection, attempt: Attempt, now: float, own_failures: int = 0,
    ) -> float:
        """Seconds until the lock-out ends, or 0. `own_failures` do not count against the attempt.
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
            LockedOut: other attempts have reached the limit, so this result stays secret.
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

    def _find_session(self, connection: Connection, session_id: str, now: float) -> Session:
        row = connection.execute(
            f"SELECT * FROM sessions WHERE id = ? AND expires > ?{self.database.for_update}",
            [session_id, now]).fetchone()
        if row is None:
            raise RefreshError
        return Session(*row)

    def _save_rotation(self, connection: Connection, session: Session) -> User:
        connection.execute(
            "UPDATE sessions SET generation = ?, refresh_hash = ?, previous_hash = ?, rotated = ?"
            " WHERE id = ?", [session.generation, session.refresh_hash, session.previous_hash,
                              session.rotated, session.id])
        return User(*connection.execute(
            "SELECT * FROM users WHERE name = ?", [session.user_name]).fetchone())

    def is_open(self, session_id: str, now: float) -> bool:
        """Whether a session has not ended. Each guarded request asks this."""
        with self.database.connection() as connection:
            row = connection.execute(_IS_OPEN, (session_id, now)).fetchone()
        return row is not None

    def end_session(self, session_id: str) -> None:
        """End a session, if it has not ended."""
        self._execute("DELETE FROM sessions WHERE id = ?", session_id)

    def end_sessions(self, name: str) -> int:
        """End the sessions of a user, and return how many there were."""
        return self._execute("DELETE FROM sessions WHERE user_name = ?", name)

    def _sweep(self, connection: Connection, table: str, now: float) -> None:
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
        """Count the sessions whose last token was signed until then and has not expired."""
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
# Design: a handler takes the environ of a request and returns a Response, or raises HTTPError. The
# `Router` finds the handler by path and method, in the thread of the request, and passes other
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


Handler = Callable[[Environ], Response]


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
        raise HTTPError(401, f"A `{name}` is required")
    return value


class Operation(NamedTuple):
    """The handler of one method of a path, and its OpenAPI description."""

    handler: Handler
    status: int = 200  # of a success
    schema: Optional[Mapping[str, Any]] = None  # of the JSON of a success
    fields: Tuple[str, ...] = ()  # that the body must have
    errors: Tuple[int, ...] = ()  # besides those that every operation of its kind has


class Route(NamedTuple):
    """The operations at one path, by method or `*`, and the JSON member of their errors."""

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
        return operation.handler(environ)

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
        except HTTPError as error:
            response = route.error_response(error)
        except StoreError as error:
            logger.error("%s", error)
            response = route.error_response(HTTPError(503, "The database cannot answer"))
        except Exception:
            logger.exception("Internal error at %s", ascii(environ.get("PATH_INFO")))
            response = route.error_response(HTTPError(500, "Internal server error"))
            return _send_response(response, environ, start_response, sys.exc_info())
        return _send_response(response, environ, start_response)


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


class _HashQueue:
    """A queue in which password hashes wait for a core.

    A hash takes some tenths of a second of a core. Only as many run as there are cores, so that
    other requests are not slowed down. If too many wait, further sign-ins get 503.
    """

    def __init__(self, cores: int) -> None:
        self._cores = threading.BoundedSemaphore(cores)
        self._queue_slots = threading.BoundedSemaphore(cores + MAX_WAITING_HASHES)

    def __enter__(self) -> None:
        if not self._queue_slots.acquire(blocking=False):
            raise HTTPError(503, "Too many sign-ins at once", ("Retry-After", "10"))
        self._cores.acquire()

    def __exit__(self, *exc_info: Any) -> None:
        self._cores.release()
        self._queue_slots.release()


# By process, and created when needed: a lock that another thread held at a fork would never be
# released in the child, and gevent replaces the locks of `threading` after the import.
_hash_queues: Dict[int, _HashQueue] = {}
_build_locks: Dict[int, threading.Lock] = {}


def client_address(environ: Environ, trusted_proxies: int) -> str:
    """The address of the client, as seen by the first of the trusted proxies.

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
    """Sign a token for a session. Return it with its lifetime: it ends with the session at last."""
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
        # The least cost of checking a password: that of the strongest stored hash met so far.
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
        attempt = Attempt.of(name, self.address(environ), self.settings.login_failures)
        self.store.check_attempt(attempt, self.clock())
        user = self.store.find_user(name)
        iterations = self.settings.pbkdf2_iterations
        environ.get("jwtserver.step_aside", lambda: None)()  # only this module's server has it
        with _hash_queues.setdefault(os.getpid(), _HashQueue(_usable_cores())):
            self.store.check_attempt(attempt, self.clock())  # others may have failed meanwhile
            stored = user.password_hash if user else None
            self._iterations = max(self._iterations, password_iterations(stored))
            matches = verify_password(password, stored, min_iterations=self._iterations)
            outdated = matches and needs_rehash(stored or "", iterations=iterations)
            new_hash = hash_password(password, iterations=iterations) if outdated else None
        now = self.clock()
        if not matches or user is None or user.disabled:
            self.store.count_failure(attempt, now)
            return None
        grant = new_grant(user, self.settings.session_lifetime, now)
        opened = self.store.open_session(grant, now, attempt=attempt, new_hash=new_hash)
        # If the user was changed meanwhile, try again: another sign-in may have upgraded the hash.
        return grant if opened else self._sign_in(name, password, environ)

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
        """Whether the session of a token has ended.

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

    def shows_good_token(self, environ: Environ) -> bool:
        """Tell whether the request has a token that is good, if it has not been revoked."""
        try:
            self.signer.verify(environ.get("HTTP_AUTHORIZATION", "").partition(" ")[2].strip())
        except InvalidTokenError:
            return False
        return True

    def client(self, environ: Environ) -> str:
        """For whom requests are counted: the user, behind the guard, else the address."""
        user = environ.get("REMOTE_USER")
        return f"user {user}" if user else f"address {_network(self.address(environ))}"


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
# summary of an operation is the first line of its handler's docstring.


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
    name = operation.handler.__name__.strip("_")
    description: Dict[str, Any] = {
        "operationId": f"{name}_{method.lower()}" if "*" in route.methods else name,
        "summary": (operation.handler.__doc__ or "").partition("\n")[0],
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


def create_app(
    settings: Optional[Settings] = None, *, app: Optional[WSGIApplication] = None,
    clock: Callable[[], float] = time.time, store: Optional[Store] = None,
) -> WSGIApplication:
    """Compose the service: the endpoints, and behind the guard `app` or else the demo.

    Without `settings`, they come from the environment. The database, without users, and the key are
    made if they are not there. `clock` returns seconds since 1970.

    Raises:
        SettingsError: a setting, the database or the file of the keys cannot be used.
        TypeError: `settings` or `app` is something else.
    """
    if settings is not None and not isinstance(settings, Settings):
        raise TypeError("settings must be Settings; an application is given as app=…")
    if app is not None and not callable(app):
        raise TypeError("app must be a WSGI application")
    settings = settings.checked() if settings else Settings.from_environ(os.environ)
    if store is None:
        store = open_store(settings.database)
        if store.is_empty():
            logger.warning("%s has no users; python jwtserver.py user add NAME", store.name)
        store.close()  # a server may fork now, and uWSGI does not tell
    service = Service(store, make_signer(settings, clock), settings, clock)
    routes = _routes(service, settings.prefix, demo=app is None)
    guarded = {path: route for path, route in routes.items() if route.guarded}
    before = {path: route for path, route in routes.items() if not route.guarded}
    protect = settings.protect or ("/protected" if app is None else "/",)

    def stranger(environ: Environ) -> Optional[str]:
        known = environ.get("PATH_INFO") not in before and service.shows_good_token(environ)
        return None if known else service.client(environ)  # or is counted behind the guard

    behind = _limited(
        Router(guarded, fallback=None if app is None else _with_nosniff(app)),
        settings.rate_limit, service.client)
    own = [path for path in guarded if path != "/protected"]
    guard = _guarded(behind, service, own, protect, settings.exempt)
    whole = _limited(Router(before, fallback=guard), settings.rate_limit, stranger)
    return _shared(whole, settings.cors_origins)


def _guarded(
    app: WSGIApplication, service: Service, own: Sequence[str], protect: Rules,
    exempt: Sequence[str],
) -> WSGIApplication:
    """Put an application behind the guard; the `own` endpoints need a token without a rule."""
    rules = protect if isinstance(protect, Mapping) else dict.fromkeys(protect, ())
    try:
        return BearerAuthMiddleware(
            app, service.signer, protect={**dict.fromkeys(own, ()), **rules}, exempt=exempt,
            is_revoked=service.is_revoked)
    except ValueError as error:
        raise SettingsError(f"JWTSERVER_PROTECT (--protect) or JWTSERVER_EXEMPT: {error}") from None


def _limited(
    app: WSGIApplication, rate: Optional[Rate], client: Callable[[Environ], Optional[str]],
) -> WSGIApplication:
    if rate is None:
        return app
    return RateLimitMiddleware(app, limit=rate.limit, period=rate.seconds, key=client)


def _shared(app: WSGIApplication, origins: Sequence[str]) -> WSGIApplication:
    if not origins:
        return app
    try:
        return CORSMiddleware(app, allow_origins=origins)
    except ValueError as error:
        raise SettingsError(f"JWTSERVER_CORS_ORIGINS: {error}") from None


_built: Optional[WSGIApplication] = None


def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """The WSGI application as the environment configures it, made at the first request."""
    global _built
    if _built is None:
        with _build_locks.setdefault(os.getpid(), threading.Lock()):
            if _built is None:
                _built = create_app()
    return _built(environ, start_response)


# --- The HTTP server ----------------------------------------------------------------------------
#
# wsgiref's own parses a head with an e-mail parser, which forgives; over a connection that is kept,
# what one reader forgives and another does not is a second request that nobody has checked
# (request smuggling, RFC 9112 §11.2). So a head is read by the grammar, or refused.

_TCHAR = "[!#$%&'*+.^_`|~0-9A-Za-z-]"
# RFC 9112 §3: request-line = method SP request-target SP HTTP-version
# RFC 9112 §2.3: HTTP-version = "HTTP" "/" DIGIT "." DIGIT
_REQUEST_LINE = re.compile(rf"({_TCHAR}+) ([!-~]+) HTTP/([0-9]\.[0-9])\r\n")
# RFC 9112 §5: field-line = field-name ":" OWS field-value OWS, and no obs-fold
# RFC 9110 §5.5: field-vchar = VCHAR / obs-text
_FIELDS = re.compile(rf"(?:{_TCHAR}+:[\t -~\x80-\xff]*\r\n)*")
# RFC 9110 §7.2: Host = uri-host [ ":" port ]
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[\w.~!$&'()*+,;=%-]*)(?::[0-9]*)?", re.ASCII)
# RFC 9112 §3.2: origin-form = absolute-path [ "?" query ], absolute-form = absolute-URI
_TARGET = re.compile(r"(?:https?://([^/?#]+))?(/[^?#]*)?(?:\?([^#]*))?", re.IGNORECASE)
# RFC 9110 §8.6: Content-Length = 1*DIGIT
_CONTENT_LENGTH = re.compile("[0-9]+")
# RFC 9112 §4: status-line = HTTP-version SP status-code SP [ reason-phrase ]
_STATUS = re.compile(r"[2-5][0-9]{2} [\t -~\x80-\xff]*")
_BARE_LINE_END = re.compile(rb"(?<!\r)\n|\r(?![\n]|$)")  # RFC 9112 §2.2
_EMPTY_LINES = re.compile(rb"(?:\r\n)*")  # RFC 9112 §2.2: may come before a request line
_FIRST = re.compile(_TCHAR.encode() + rb"|\r?$")
_UNLOGGABLE = re.compile(r'[^\x20-\x7e]|["\\]')
_ONCE = ("HTTP_HOST", "HTTP_CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING")
_HOP_BY_HOP = frozenset([  # RFC 9110 §7.6.1: the server's business
    "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding",
    "upgrade"])

MAX_HEAD_BYTES = 64 * 1024
MAX_LINE_BYTES = 16 * 1024
MAX_FIELDS = 100
MAX_REMEMBERED_HEAD = 2048  # bytes, for each connection
RECEIVE_BYTES = 16 * 1024
LISTEN_FD = 3  # SD_LISTEN_FDS_START
BLOCK_GRACE = 0.05  # seconds that a client may keep a thread, when there is none for others
FAIRNESS = 0.005  # seconds in which requests that came together may keep new ones waiting
GC_THRESHOLD = 10_000  # objects, of which some tens come and go with a request
LINGER = 1.0  # seconds, for a client to read an answer before the connection is closed on it
SHUTDOWN_TIMEOUT = 10.0  # seconds, for what is in flight


# What a socket raises on which nothing can be read, or written, at the moment.
_would_block: Tuple[Type[Exception], ...] = (BlockingIOError,)


class _ClientGone(Exception):
    """The client has closed the connection, or neither sends nor takes anything."""


class _Request(NamedTuple):
    """A request by its head."""

    environ: Environ
    line: str  # as it came
    length: int  # of the body
    persists: bool  # so that another may follow
    expects: bool  # to be told to continue


def _parse_head(head: bytes, environ: Environ) -> _Request:
    """Read a head by the grammar of RFC 9112, and add it to the environ.

    Raises:
        HTTPError: it is malformed, or asks for what is not done here.
    """
    text = head.decode("latin-1")
    line = _REQUEST_LINE.match(text)
    if not line:
        raise HTTPError(400, "Malformed request line")
    environ["REQUEST_METHOD"], target, version = line.groups()
    if version not in ("1.0", "1.1"):
        raise HTTPError(505, "HTTP/1.0 and HTTP/1.1 only")
    environ["SERVER_PROTOCOL"] = f"HTTP/{version}"
    _parse_fields(text, line.end(), environ)
    if version == "1.1" and "HTTP_HOST" not in environ:  # RFC 9112 §3.2
        raise HTTPError(400, "A Host is required")
    _parse_target(target, environ)
    if not _HOST.fullmatch(environ.get("HTTP_HOST", "")):
        raise HTTPError(400, "Malformed Host")
    length = _body_length(environ)
    persists, expects = version == "1.1", False
    if "HTTP_CONNECTION" in environ:
        options = re.split("[ \t]*,[ \t]*", environ["HTTP_CONNECTION"].lower())
        persists = persists and "close" not in options
    if "HTTP_EXPECT" in environ and version == "1.1":
        if environ["HTTP_EXPECT"].lower() not in ("", "100-continue"):
            raise HTTPError(417, "Nothing but 100-continue can be expected")
        expects = bool(environ["HTTP_EXPECT"] and length)
    return _Request(environ, line[0], length, persists, expects)


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
            continue  # `X_Y` would pass for `X-Y`
        key, value = f"HTTP_{name.upper().replace('-', '_')}", value.strip("\t ")
        if key in environ:
            if key in _ONCE:
                raise HTTPError(400, f"Two fields {name}")
            value = f"{environ[key]}{'; ' if key == 'HTTP_COOKIE' else ','}{value}"
        environ[key] = value
    if "HTTP_CONTENT_TYPE" in environ:
        environ["CONTENT_TYPE"] = environ.pop("HTTP_CONTENT_TYPE")


def _parse_target(target: str, environ: Environ) -> None:
    if target == "*" and environ["REQUEST_METHOD"] == "OPTIONS":  # RFC 9112 §3.2.4
        environ["PATH_INFO"] = "*"
        return
    match = _TARGET.fullmatch(target)
    if not match or not (match[1] or match[2]):
        raise HTTPError(400, "Malformed request target")
    if match[1]:
        environ["HTTP_HOST"] = match[1]  # RFC 9112 §3.2.2: whatever Host says
    path = match[2] or "/"
    environ["PATH_INFO"] = unquote_to_bytes(path).decode("latin-1") if "%" in path else path
    environ["QUERY_STRING"] = match[3] or ""


def _body_length(environ: Environ) -> int:
    """How long the body is (RFC 9112 §6.3); where two answers are possible there is none."""
    length = environ.pop("HTTP_CONTENT_LENGTH", None)
    if "HTTP_TRANSFER_ENCODING" in environ:
        if length is not None:
            raise HTTPError(400, "Content-Length beside Transfer-Encoding")
        if environ["HTTP_TRANSFER_ENCODING"].lower() == "chunked":
            raise HTTPError(411, "The request needs a Content-Length")
        raise HTTPError(501, "No Transfer-Encoding is known")
    if length is None:
        return 0
    if not _CONTENT_LENGTH.fullmatch(length):
        raise HTTPError(400, "The Content-Length must be a number")
    if len(length) > 15:
        raise HTTPError(413, "The body is too long")
    environ["CONTENT_LENGTH"] = length
    return int(length)


class _Body(io.RawIOBase):
    """The body of a request, read off its connection as the application asks for it."""

    def __init__(self, connection: "_Connection", request: _Request) -> None:
        self._connection = connection
        self._start = 0.0
        self._received = 0
        self.left = request.length
        self.awaited = request.expects  # the client waits to be told that it may send

    def readable(self) -> bool:
        """Tell that this can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read a piece; nothing, if the client sends too slowly."""
        if self.awaited:
            self._connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.awaited = False
        self._start = self._start or time.monotonic()
        size = min(len(buffer), self.left)
        data = self._connection.receive_body(size, self._start, self._received) if size else b""
        buffer[:len(data)] = data
        self._received += len(data)
        self.left -= len(data)
        return len(data)


class _Input(io.BufferedReader):
    """What an application reads a body from."""

    def read(self, size: Optional[int] = -1) -> bytes:
        """Read in pieces: a client may announce more than there is memory, which is taken ahead."""
        if size is None or size <= RECEIVE_BYTES:
            return super().read(size)
        data = bytearray()
        while len(data) < size:
            piece = super().read(min(size - len(data), RECEIVE_BYTES))
            if not piece:
                break
            data += piece
        return bytes(data)


class _Exchange(SimpleHandler):
    """Runs the application for one request, and frames its answer (RFC 9112 §6).

    Nothing is taken from this process's environment; nothing is sent before it has been checked.
    """

    status: Optional[str] = None
    headers: Any = None
    result: Any = None
    headers_sent = False
    error_headers = [("Content-Type", "application/json"), _NOSNIFF]
    error_body = b'{"success": false, "error": "Internal server error"}'

    def __init__(
        self, connection: "_Connection", request: _Request, body: Optional[_Body] = None,
    ) -> None:
        self._connection = connection
        self._body = body
        self.environ = request.environ  # which the application may change
        self._method = request.environ["REQUEST_METHOD"]
        self._version = request.environ.get("SERVER_PROTOCOL")
        self.persists = request.persists
        self.broken = False  # and nobody would see it
        self.sent = 0  # bytes of body
        self._fields = ""
        self._length: Optional[int] = None  # of the body, as the application announces it
        self._left: Optional[int] = None  # what is to come of that
        self._chunked = False
        self._unbounded = False  # its end is the end of the connection
        self._bare = False  # no body may be sent, whatever the application says

    def run(self, application: WSGIApplication) -> None:
        """Answer the request. The client gets a whole answer, or a connection that is cut."""
        try:
            try:
                self.result = application(self.environ, self.start_response)
                self.finish_response()
            except _ClientGone:
                raise
            except BaseException:  # sys.exit() too: it would end the thread that all wait for
                if self.headers_sent:
                    self.persists = False
                    self.broken = self._unbounded
                self.handle_error()
        except _ClientGone:
            self.persists = False

    def finish_response(self) -> None:
        """Send what the application returns, as it comes."""
        try:
            for data in self.result:
                if data or not isinstance(data, bytes):  # PEP 3333: an empty one sends no head
                    self.write(data)
            self.finish_content()
        finally:
            self.close()

    def start_response(
        self, status: str, headers: List[Tuple[str, str]], exc_info: Any = None,
    ) -> Callable[[bytes], None]:
        """Take the head of the answer, as PEP 3333 has it."""
        if exc_info and self.headers_sent:
            try:
                raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        if self.headers is not None and not exc_info:
            raise AssertionError("the head of the answer is there already")
        self._fields, self._length, dated = _check_answer(status, tuple(headers))
        if not dated:
            self._fields += _date_field(int(time.time()))
        self.status, self.headers = status, headers
        return self.write

    def write(self, data: bytes) -> None:
        """Send a piece of the body, after the head if that is still to come."""
        if not isinstance(data, bytes):
            raise TypeError("the body must be bytes")
        alone = isinstance(self.result, (list, tuple)) and len(self.result) == 1
        self._send(data, alone)

    def finish_content(self) -> None:
        """End the answer."""
        if not self.headers_sent:
            self._send(b"", True)
        if self._chunked:
            self._connection.post(b"0\r\n\r\n")
        if self._left:  # less came than was announced
            logger.error("The body of the answer is shorter than its Content-Length")
            self.persists = False

    def _send(self, data: bytes, whole: bool) -> None:
        head = b"" if self.headers_sent else self._head(len(data) if whole else None)
        if self._bare:
            data = b""
        elif self._left is not None:
            if len(data) > self._left:
                logger.error("The body of the answer is longer than its Content-Length")
            data = data[:self._left]
            self._left -= len(data)
        self.sent += len(data)
        if self._chunked and data:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if whole:
            self._connection.post(head + data)
        elif head or data:
            self._connection.send(head + data)

    def _head(self, length: Optional[int]) -> bytes:
        """The head of the answer; `length` is that of its body, where that is known."""
        if self.status is None:
            raise AssertionError("a body before start_response")
        self.headers_sent = True
        self._bare = self._method == "HEAD" or self.status[:3] in ("204", "304")
        self._left = None if self._bare else self._length
        if self._bare or self._length is not None:
            framing = ""
        elif length is not None:
            framing = f"Content-Length: {length}\r\n"
        elif self._version == "HTTP/1.1":
            framing, self._chunked = "Transfer-Encoding: chunked\r\n", True
        else:
            framing, self.persists, self._unbounded = "", False, True
        if self._body and (self._body.awaited or self._body.left > MAX_BODY_BYTES):
            self.persists = False  # nobody knows whether it will come, or it is too much to skip
            self._body.awaited = False  # what asks for it would be part of the answer
        if not self.persists or self._connection.server.stopping:
            self.persists = False
            framing += "Connection: close\r\n"
        return f"HTTP/1.1 {self.status}\r\n{self._fields}{framing}\r\n".encode("latin-1")

    def close(self) -> None:
        """Let go of the application's iterable, and remember what has been sent."""
        if hasattr(self.result, "close"):
            self.result.close()

    def log_exception(self, exc_info: Any) -> None:
        """Log what the application has raised."""
        logger.error("A fault in the application", exc_info=exc_info)


@lru_cache(maxsize=256)  # few applications have more different heads
def _check_answer(
    status: str, headers: Tuple[Tuple[str, str], ...],
) -> Tuple[str, Optional[int], bool]:
    """The header of an answer as it is sent, its Content-Length, and whether it has a Date.

    Raises:
        ValueError: it is malformed, so that another answer may hide in it, or says what is the
            server's business.
        TypeError: it is not made of text.
    """
    if status[:3] == "204":  # RFC 9110 §8.6
        headers = tuple(field for field in headers if field[0].lower() != "content-length")
    fields = "".join([name + ": " + value + "\r\n" for name, value in headers])
    if not _STATUS.fullmatch(status) or not _FIELDS.fullmatch(fields) \
            or fields.count("\n") != len(headers):
        raise ValueError("malformed status or header")
    names = [name.lower() for name, _ in headers]
    if not _HOP_BY_HOP.isdisjoint(names) or names.count("content-length") > 1:
        raise ValueError("a header that is the server's business")
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


class _Connection:
    """A connection: what has come over it, and how its requests are answered."""

    def __init__(self, sock: socket.socket, address: Any, server: "_Server") -> None:
        self.sock: Any = sock  # or that in TLS
        self.greeted = not server.tls  # its handshake is over
        self.address = address[0] if isinstance(address, tuple) else ""
        self.server = server
        self.received = b""  # and not used yet
        self.seen = 0  # how much of that has been looked at, and is no whole head
        self.posted = b""  # of the answer, and not sent yet
        self.persists = True  # so that another request may follow
        self.busy = False  # a thread answers a request of it
        self.watched = False  # by the selector
        self.discarding = False  # what still comes, before it is closed
        self.fault: Optional[HTTPError] = None
        # The last head, and what has been read in it: over a connection that is kept, most clients
        # send the same one again, and reading it takes a fifth of what an answer costs.
        self._head = b""
        self._request: Any = None

    def take(self) -> bool:
        """Take in what has come; tell whether there is something to answer now.

        Raises:
            OSError: the client has gone.
        """
        try:
            if not self.greeted:
                self.sock.do_handshake()
                self.greeted = True
            data = self.sock.recv(RECEIVE_BYTES)
        except _would_block:
            return False
        if self.discarding:
            self.seen += len(data)
            if not data or self.seen > MAX_BODY_BYTES:
                raise ConnectionAbortedError
            return False
        if not data:
            if not self.received:
                raise ConnectionAbortedError
            self.fault = HTTPError(400, "The request is not whole")
            return True
        self.received += data
        return self.has_head()

    def has_head(self) -> bool:
        """Tell whether what has been taken in is to be answered, be it as a fault."""
        data = self.received
        if data[:1] == b"\r":
            data = self.received = data[_EMPTY_LINES.match(data).end():]  # type: ignore[union-attr]
        if data.find(b"\r\n\r\n", max(0, self.seen - 3)) >= 0:
            return True
        try:
            _check_part(data, self.seen)
        except HTTPError as error:
            self.fault = error
            return True
        self.seen = len(data)
        return False

    def answer(self) -> None:
        """Answer a request; what cannot be one gets an answer too. It may be left posted.

        Raises:
            _ClientGone: it has not been answered.
        """
        try:
            request = self._next_request()
        except HTTPError as error:
            failure = _NO_ROUTE.error_response(error)
            request = _Request(
                {"REQUEST_METHOD": "-", "REMOTE_ADDR": self.address}, "-", 0, False, False)
            self._run(request, None, lambda *called: _send_response(failure, *called))
            return
        body = _Body(self, request) if request.length else None
        request.environ["wsgi.input"] = _Input(body) if body else io.BytesIO()
        app = _answer_options if request.environ["PATH_INFO"] == "*" else self.server.app
        self._run(request, body, app)
        if body and body.left and self.persists:
            self.persists = self._skip(body)

    def _next_request(self) -> _Request:
        if self.fault:
            raise self.fault
        end = self.received.index(b"\r\n\r\n") + 4
        head, self.received, self.seen = self.received[:end], self.received[end:], 0
        if head != self._head:
            _check_lines(head)
            environ = {**self.server.environ, "REMOTE_ADDR": self.address}
            self._request = _parse_head(head, environ)
            self._head = head if len(head) <= MAX_REMEMBERED_HEAD else b""
        return _Request(self._request.environ.copy(), *self._request[1:])

    def _run(self, request: _Request, body: Optional[_Body], app: WSGIApplication) -> None:
        exchange = _Exchange(self, request, body)
        exchange.run(app)
        self.persists = exchange.persists
        self.server.log_access(request, exchange)
        if exchange.broken:
            self.reset()
            raise _ClientGone

    def _skip(self, body: _Body) -> bool:
        """Read what the application has left of a body, lest it pass for the next request."""
        self.flush()  # the client may want to see it before it sends any more
        piece = bytearray(RECEIVE_BYTES)
        while body.left:
            if not body.readinto(piece):
                return False
        return True

    def receive_body(self, size: int, start: float, received: int) -> bytes:
        """The next piece of a body, b"" if none comes, or too slowly, counted from its start."""
        if self.received:
            data, self.received = self.received[:size], self.received[size:]
            return data
        settings = self.server.settings
        end = start + settings.head_timeout + received / settings.body_rate
        try:
            with self.server.waiting_for(self, max(end - time.monotonic(), 0.001)):
                return bytes(self.sock.recv(size))
        except OSError:
            return b""

    def post(self, data: bytes) -> None:
        """Have this sent, which is the end of an answer, before long."""
        self.posted += data

    def flush(self) -> None:
        """Send what has been posted.

        Raises:
            _ClientGone: the client takes less than it must.
        """
        data, self.posted = self.posted, b""
        if data:
            self.send(data)

    def send(self, data: bytes) -> None:
        """Send all of it.

        Raises:
            _ClientGone: the client takes less than it must.
        """
        try:
            sent = self.sock.send(data)
        except _would_block:
            sent = 0
        except (OSError, ValueError):
            raise _ClientGone from None
        if sent < len(data):
            self._send_slowly(memoryview(data)[sent:])

    def _send_slowly(self, data: memoryview) -> None:
        settings = self.server.settings
        end = time.monotonic() + settings.idle_timeout
        try:
            with self.server.waiting_for(self, settings.idle_timeout):
                while data:
                    sent = self.sock.send(data)
                    data, end = data[sent:], end + sent / settings.body_rate
                    if time.monotonic() > end:
                        raise _ClientGone
        except (OSError, ValueError):
            raise _ClientGone from None

    def discard(self) -> None:
        """Say that nothing more will be sent, and let the client read what has been: closing on
        what it still sends could cost it the answer."""
        self.discarding, self.seen = True, 0
        with suppress(OSError, ValueError):
            if self.server.tls:
                self.sock.unwrap()
        with suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_WR)

    def reset(self) -> None:
        """Have it end in a way that no client takes for the end of an answer."""
        with suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def cut(self) -> None:
        """Wake the thread that waits for this client, with the end of everything."""
        with suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)


def _check_part(data: bytes, seen: int) -> None:
    """Refuse a part of a head of which nothing good can come, without looking at all of it again.

    Raises:
        HTTPError: it is malformed, or too long.
    """
    if _BARE_LINE_END.search(data, max(0, seen - 1)) or not _FIRST.match(data):
        raise HTTPError(400, "Malformed request")
    if len(data) > MAX_HEAD_BYTES:
        raise HTTPError(431, "The header is too long")
    start = data.rfind(b"\r\n") + 2
    if len(data) - start > MAX_LINE_BYTES:
        raise HTTPError(414 if start == 1 else 431, "A line is too long")


def _check_lines(head: bytes) -> None:
    if len(head) > MAX_LINE_BYTES:
        lengths = [len(line) for line in head.split(b"\r\n")]
        if lengths[0] > MAX_LINE_BYTES:
            raise HTTPError(414, "The request line is too long")
        if max(lengths) > MAX_LINE_BYTES or len(head) > MAX_HEAD_BYTES:
            raise HTTPError(431, "The header is too long")


def _answer_options(environ: Environ, start_response: StartResponse) -> List[bytes]:
    """Answer `OPTIONS *`, which asks the server and no application (RFC 9110 §9.3.7)."""
    return _send_response(Response.of(204), environ, start_response)


def _base_environ(listener: socket.socket, scheme: str) -> Environ:
    """What is the same for all requests."""
    host, port = _bound(listener)
    return {
        "GATEWAY_INTERFACE": "CGI/1.1", "SERVER_NAME": host, "SERVER_PORT": str(port),
        "SCRIPT_NAME": "", "CONTENT_LENGTH": "", "PATH_INFO": "", "QUERY_STRING": "",
        "wsgi.errors": sys.stderr, "wsgi.version": (1, 0), "wsgi.multithread": True,
        "wsgi.multiprocess": False, "wsgi.run_once": False, "wsgi.file_wrapper": FileWrapper,
        "wsgi.url_scheme": scheme,
    }


class _Worker(threading.Thread):
    """A thread that leads, or follows."""

    def __init__(self, work: Callable[["_Worker"], None]) -> None:
        super().__init__(target=work, args=(self,), daemon=True)
        self.since: Optional[float] = None  # when it began with what it is at


class _Server:
    """Serves over connections that are kept.

    One thread leads: it watches all connections, takes in heads as they come, and answers requests
    itself, one after the other. Threads that took turns would not be faster, for Python runs one at
    a time, but would pass the turn several times for each request. When an answer takes longer than
    some milliseconds, as a password hash does, the lead passes to another thread meanwhile. So
    slow clients cost no thread, unless they are slow in the midst of a body or an answer.

    Requests that are there together are a batch: first all are read, then all are answered, then
    all answers are sent. System calls leave a processor cold, for half of what an answer costs; so
    they come by themselves.
    """

    def __init__(
        self, app: WSGIApplication, listener: socket.socket, settings: Settings,
        tls: Optional["ssl.SSLContext"] = None, access_log: Optional[TextIO] = None,
    ) -> None:
        self.app = app
        self._listener = listener
        listener.setblocking(False)
        self.environ = _base_environ(listener, "https" if tls else "http")
        self.environ["jwtserver.step_aside"] = self.step_aside
        self.settings = settings
        self.tls = tls
        self.access_log = access_log
        self.stopping = False
        self._stopped = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._alarm, self._ear = socket.socketpair()
        self._selector.register(
            self._ear, selectors.EVENT_READ, lambda: self._ear.recv(RECEIVE_BYTES))
        self._ready: Deque[_Connection] = deque()  # to be answered
        self._answered: Deque[_Connection] = deque()  # and not sent yet
        # Since when they wait for a request, for the rest of a head, for their end; the longest
        # waiting first.
        self._idle: Dict[_Connection, float] = {}
        self._begun: Dict[_Connection, float] = {}
        self._ending: Dict[_Connection, float] = {}
        self._waiting = ((self._idle, settings.idle_timeout),
                         (self._begun, settings.head_timeout), (self._ending, LINGER))
        self._looked = 0.0  # when those times were last checked
        self._watched = 0.0  # when the selector was last asked for what comes
        self._blocking: Dict[_Connection, float] = {}  # a thread each, since when
        self._threads: List[_Worker] = []
        self._lead = threading.Lock()  # held by the leader
        self._lock = threading.Lock()  # of what follows, and of `busy` and `watched`
        self._leader: Optional[_Worker] = None
        self._followers = 0

    # The lead, and how it is passed.

    def serve_forever(self, patience: float = 0.005) -> None:
        """Serve until interrupted. This thread sees to it that there is one that leads."""
        self._start_thread()
        while not self.stopping:
            time.sleep(patience if self._is_busy() else 10 * patience)
            self._pass_lead(patience)

    def interrupt(self, *_: Any) -> None:
        """Handle a signal: stop serving, or, if it is the second one, everything."""
        if self.stopping:
            os._exit(1)
        self.stopping = True

    def finish(self) -> None:
        """Stop listening, and let what is in flight come to its end, for ten seconds at most."""
        self._selector.unregister(self._listener)
        self._listener.close()
        self.stopping = True
        end = time.monotonic() + SHUTDOWN_TIMEOUT
        self._wake()
        while (self._is_busy() or self._idle) and time.monotonic() < end:
            time.sleep(0.005)
            self._pass_lead(0.005)
        self._stopped = True
        self._wake()
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        for connections in (self._idle, self._begun, self._ending, self._ready, self._answered):
            for connection in list(connections):
                self._close(connection)
        for closable in (self._selector, self._alarm, self._ear):
            closable.close()

    def _is_busy(self) -> bool:
        return bool(self._ready or self._answered
                    or any(thread.since is not None for thread in self._threads))

    def _pass_lead(self, patience: float) -> None:
        with self._lock:
            since = self._leader.since if self._leader else None
            if since is None or time.monotonic() - since < patience:
                return
            alone = not self._followers
            full = len(self._threads) >= self.settings.threads
            if alone and full:
                longest = next(iter(self._blocking.items()), None)
                if longest is None or time.monotonic() - longest[1] < BLOCK_GRACE:
                    return
                longest[0].cut()  # so that its thread may lead
            self._leader = None
            self._lead.release()
        if alone and not full:
            self._start_thread()

    def _start_thread(self) -> None:
        self._threads.append(_Worker(self._work))
        self._threads[-1].start()

    def _wake(self) -> None:
        with suppress(OSError):
            self._alarm.send(b"!")

    def _work(self, me: "_Worker") -> None:
        while not self._stopped:
            with self._lock:
                self._followers += 1
            self._lead.acquire()
            with self._lock:
                self._followers -= 1
                self._leader = me
            while self._leader is me and not self._stopped:
                try:
                    self._step(me)
                except Exception:  # all wait for this thread
                    logger.exception("A fault in the server")
            with self._lock:
                me.since = None
                if self._leader is me:  # so the others may see that it is over
                    self._lead.release()

    def _step(self, me: "_Worker") -> None:
        """Answer a request, or send an answer, in whose midst the lead may be lost; or watch."""
        now = time.monotonic()
        try:
            if self._ready and now < self._watched + FAIRNESS:
                connection, work = self._ready.popleft(), self._answer
            else:
                connection, work = self._answered.popleft(), self._deliver
        except IndexError:  # there is none, or who leads by now was faster
            with self._lock:
                me.since = None  # from here on, nobody passes the lead
                leads = self._leader is me
            if leads:
                self._watch()
            return
        me.since = now
        try:
            work(connection, me)
        except Exception as error:
            if not isinstance(error, (_ClientGone, OSError, ValueError)):
                logger.exception("A fault in the server")
            self._close(connection)
        if self._leader is not me:
            self._wake()  # who leads now may wait, and not for this connection

    def _answer(self, connection: _Connection, me: "_Worker") -> None:
        connection.answer()
        if connection.posted and self._leader is me:
            self._answered.append(connection)
        else:
            self._deliver(connection, me)

    def _deliver(self, connection: _Connection, me: "_Worker") -> None:
        connection.flush()
        self._keep(connection)

    # The connections, as the leader watches them.

    def _watch(self) -> None:
        """Wait for what comes, and take it in."""
        events = self._selector.select(0 if self._ready else 0.25)
        for key, _ in events:
            key.data()
        self._watched = time.monotonic()
        self._close_late()
        if self.stopping and not events:
            for connection in list(self._idle):
                self._close(connection)

    def _accept(self) -> None:
        try:
            sock, address = self._listener.accept()
        except OSError as error:  # it has gone already, or there is no place for it
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._close_longest()
            return
        sock.setblocking(False)
        try:
            if sock.family != getattr(socket, "AF_UNIX", None):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            if self.tls:
                sock.getpeername()  # fails where wrap_socket() would, and leave it open
                sock = self.tls.wrap_socket(
                    sock, server_side=True, do_handshake_on_connect=False)
        except (OSError, ValueError):  # it has gone meanwhile
            sock.close()
            return
        if len(self._idle) + len(self._begun) >= self.settings.connections:
            self._close_longest()
        self._await(_Connection(sock, address, self))

    def _close_longest(self) -> None:
        """Make room, at the cost of the connection that has been waited for the longest time."""
        first = [item for waiting, _ in self._waiting for item in list(waiting.items())[:1]]
        if first:
            self._close(min(first, key=itemgetter(1))[0])

    def _take(self, connection: _Connection) -> None:
        with self._lock:
            if connection.busy or not connection.watched:  # its thread looks, or has closed it
                self._unwatch(connection)
                return
        try:
            ready = connection.take()
        except (OSError, ValueError):
            self._close(connection)
            return
        if ready:
            self._forget(connection)
            connection.busy = True
            self._ready.append(connection)
        else:
            self._wait(connection)

    def _keep(self, connection: _Connection) -> None:
        """See to what follows an answer."""
        if not connection.persists:
            connection.discard()
        elif connection.received and connection.has_head():
            self._ready.append(connection)
            return
        self._await(connection)

    def _await(self, connection: _Connection) -> None:
        """Watch a connection for what comes next."""
        self._wait(connection)
        with self._lock:
            connection.busy = False
            if not connection.watched:
                connection.watched = True
                self._selector.register(
                    connection.sock, selectors.EVENT_READ, lambda: self._take(connection))
        if self.tls and connection.sock.pending():  # which the selector cannot know
            self._take(connection)

    def _wait(self, connection: _Connection) -> None:
        """Let it wait with those that wait for the same, from now on if it did not yet."""
        if connection.discarding:
            waiting = self._ending
        elif connection.received or not connection.greeted:
            waiting = self._begun
        else:
            waiting = self._idle
        if connection not in waiting:
            self._forget(connection)
            waiting[connection] = time.monotonic()

    def _forget(self, connection: _Connection) -> None:
        for waiting, _ in self._waiting:
            waiting.pop(connection, None)

    def _close_late(self) -> None:
        now = time.monotonic()
        if now < self._looked + 0.02:
            return
        self._looked = now
        for waiting, seconds in self._waiting:
            for connection, since in list(waiting.items()):
                if now < since + seconds:
                    break
                if waiting is self._begun and connection.greeted:
                    del waiting[connection]
                    connection.fault = HTTPError(408, "The request took too long")
                    connection.busy = True
                    self._ready.append(connection)
                else:
                    self._close(connection)

    def _close(self, connection: _Connection) -> None:
        """Close a connection, and forget it."""
        self._forget(connection)
        with self._lock:
            self._unwatch(connection)
        connection.sock.close()

    def _unwatch(self, connection: _Connection) -> None:
        if connection.watched:
            connection.watched = False
            self._selector.unregister(connection.sock)

    def step_aside(self) -> None:
        """Let another thread lead, if this one does: it is going to take long."""
        if self._leader is threading.current_thread():
            self._pass_lead(0)

    @contextmanager
    def waiting_for(self, connection: _Connection, seconds: float) -> Iterator[None]:
        """Block a thread for a client, for so long at most, or until the thread is needed."""
        self._blocking[connection] = time.monotonic()
        self.step_aside()  # at once: of a thousand that drip, each would cost some ms
        connection.sock.settimeout(seconds)
        try:
            yield
        finally:
            self._blocking.pop(connection, None)
            connection.sock.settimeout(0)

    def log_access(self, request: _Request, exchange: _Exchange) -> None:
        """Write a line in the combined log format, if they are wanted."""
        if self.access_log is None:
            return
        environ = request.environ
        address, user, line, referer, agent = [
            _UNLOGGABLE.sub(lambda match: f"\\x{ord(match[0]):02x}", str(text or "-"))
            for text in (environ.get("REMOTE_ADDR"), environ.get("REMOTE_USER"),
                         request.line.rstrip(), environ.get("HTTP_REFERER"),
                         environ.get("HTTP_USER_AGENT"))]
        user = user.replace(" ", "\\x20")
        now = time.strftime("%d/%b/%Y:%H:%M:%S %z")
        status = (exchange.status or "-")[:3]
        try:
            print(f'{address} - {user} [{now}] "{line}" {status} {exchange.sent}'
                  f' "{referer}" "{agent}"', file=self.access_log, flush=True)
        except OSError as error:  # whoever read it has gone; the clients are still there
            logger.error("There is no access log from now on: %s", error)
            self.access_log = None


def _bound(listener: socket.socket) -> Tuple[str, int]:
    """Where it listens: an address and a port or, on a Unix socket, a path and 0."""
    name = listener.getsockname()
    return name[:2] if isinstance(name, tuple) else (str(name), 0)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket: the one that systemd hands over (sd_listen_fds(3)), or a new one.

    Raises:
        OSError: there is none.
    """
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS", "0") > "0":
        return socket.socket(fileno=LISTEN_FD)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(
        (host, port), family=family, backlog=1024, dualstack_ipv6=both)


def _tls_context(certificate: str, key: Optional[str]) -> "ssl.SSLContext":
    """TLS 1.2 and up (RFC 8996).

    Raises:
        OSError: a file cannot be read, or is none of TLS.
    """
    import ssl
    global _would_block
    _would_block = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context


# --- Commands -----------------------------------------------------------------------------------
#
# Design: each command is one function of its arguments and the settings. It does one thing, prints
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
            # Garbage collection took 10 % of a request; freeze what is loaded now.
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
    return f"{'https' if tls else 'http'}://{host}:{_bound(listener)[1]}"


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
    """Add the user `demo`. Return its password and a token, or None if another process was faster.
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
