"""A login service: user name and password in, JSON Web Token out, and a guard that asks for it.

    python jwtserver.py                   serves on http://127.0.0.1:3000
    python jwtserver.py user add alice    asks for a password
    python jwtserver.py --help            shows the other commands

The server answers

    POST /authenticate  {"username": …, "password": …}, as JSON or as a form: {"token": …, …}
    POST /refresh       {"refresh_token": …}: a new token and a new refresh token
    POST /logout        with the header `Authorization: Bearer TOKEN`: ends the session
    any  /verify        with the same header: 204, for a proxy that asks who a request is from
    GET  /protected     with the same header: a greeting
    GET  /health        {"status": "ok"}, or 503 if the database cannot answer
    GET  /openapi.json  all of this for programs
    GET  /              a list of these

and guards any other WSGI application in the place of /protected:

    application = jwtserver.create_app(app=my_application)

A WSGI server finds `jwtserver:application`, configured by the environment (see Settings). Users
and sessions are kept in an SQLite file, and the keys that sign tokens in a file beside it. The
logger `jwtserver.audit` has a line for each sign-in, failure, refresh, logout and change of a user
or key.
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
from collections import deque
from contextlib import contextmanager, suppress
from enum import Enum
from functools import lru_cache, partial
from http import HTTPStatus
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import (
    TYPE_CHECKING, Any, Callable, Deque, Dict, Iterable, Iterator, List, Mapping, NamedTuple,
    Optional, Protocol, Sequence, Set, TextIO, Tuple, Type, Union,
)
from urllib.parse import parse_qsl, unquote_to_bytes
from wsgiref.handlers import SimpleHandler, format_date_time
from wsgiref.util import FileWrapper

if TYPE_CHECKING:
    import ssl  # else where TLS is asked for: it takes memory

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
MAX_SPELLING = 4 * MAX_NAME_LENGTH  # NFC makes one character of up to 4, in quadratic time
MAX_LIFETIME = 10 * 366 * 86400  # seconds
MAX_COUNT = 1_000_000  # requests or failures in a rate
MAX_PROXIES = 100
MAX_WAITING_HASHES = 64
REFRESH_GRACE = 10.0  # seconds in which a client whose answer was lost may refresh again
KEY_FILE_INTERVAL = 0.5  # seconds between two looks at it
SWEEP = 25  # old rows that are removed with a new one: a few ms, among millions of rows
BUSY_TIMEOUT = 5.0  # seconds to wait while another process writes to the database
MAX_IDLE_CONNECTIONS = 16  # to the database, in each process

logger = logging.getLogger("jwtserver")
audit_logger = logging.getLogger("jwtserver.audit")
audit_logger.setLevel(logging.INFO)


class Error(Exception):
    """What stops a command; the message is one line for the person who gave it."""


_SUSPICIOUS = ("sign_in_failed", "locked_out", "refresh_failed", "refresh_reused")


def _audit(event: str, **details: str) -> None:
    """Log one line; JSON escapes what could break it, and what a terminal could act upon."""
    level = logging.WARNING if event in _SUSPICIOUS else logging.INFO
    line = " ".join([event, *(f"{name}={json.dumps(value)}" for name, value in details.items())])
    audit_logger.log(level, "%s", line.replace("\x7f", "\\u007f"))


# --- Settings -----------------------------------------------------------------------------------


class SettingsError(Error):
    """A setting that cannot be used. The message names its variable."""


def _is_url(database: str) -> bool:
    return database.startswith(("postgresql://", "postgres://"))


# Each takes the text of a variable, or a value of Python as a field of Settings has it.


def _parse_path(value: Any) -> str:
    return os.fsdecode(value)


def _parse_database(value: Any) -> str:
    text = _parse_path(value)
    if not text or ("://" in text and not _is_url(text)) or text == ":memory:":
        raise ValueError("must be the name of an SQLite file, or postgresql://…")
    return text


def _parse_number(value: Any, most: int, least: int = 1) -> int:
    text = str(value)
    if not re.fullmatch("[0-9]{1,18}", text) or not least <= int(text) <= most:
        raise ValueError(f"must be a whole number from {least} to {most}, not {value!r}")
    return int(text)


def _parse_float(value: Any, most: int) -> float:
    return value if isinstance(value, float) else _parse_number(value, most)


class Rate(NamedTuple):
    """So many events in so many seconds, written `5/900`."""

    limit: int
    seconds: int


def _parse_rate(value: Any) -> Rate:
    try:
        count, seconds = value.split("/") if isinstance(value, str) else value
        return Rate(_parse_number(count, MAX_COUNT), _parse_number(seconds, MAX_LIFETIME))
    except ValueError:
        raise ValueError(f"must be a number and seconds, like 5/900, not {value!r}") from None


def _parse_list(value: Any, separator: str) -> Tuple[str, ...]:
    items = value.split(separator) if isinstance(value, str) else value
    return tuple(item.strip() for item in items if item.strip())


def _parse_rules(value: Any) -> Rules:
    if isinstance(value, Mapping):
        return value
    rules = _parse_list(value, ";")
    for rule in rules if isinstance(value, str) else ():
        if re.search("[,:=]", rule.partition("/")[2]):  # taken for one path, it opened all others
            raise ValueError(f"must be rules separated by `;`, without scopes, not {rule!r}")
    return rules


def _parse_keys(value: Any) -> str:
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


_PARSERS: Dict[str, Callable[[Any], Any]] = {
    "database": _parse_database,
    "secret": _parse_keys,
    "secret_file": _parse_path,
    "issuer": _parse_name,
    "audience": _parse_name,
    "token_lifetime": partial(_parse_number, most=MAX_LIFETIME),
    "session_lifetime": partial(_parse_number, most=MAX_LIFETIME),
    "cors_origins": partial(_parse_list, separator=","),
    "login_failures": _parse_rate,
    "rate_limit": _parse_rate,
    "trusted_proxies": partial(_parse_number, most=MAX_PROXIES, least=0),
    "protect": _parse_rules,
    "exempt": _parse_rules,
    "prefix": _parse_prefix,
    "pbkdf2_iterations": partial(_parse_number, most=MAX_PBKDF2_ITERATIONS),
    "connections": partial(_parse_number, most=1_000_000),
    "threads": partial(_parse_number, most=10_000, least=2),  # one that leads while one works
    "head_timeout": partial(_parse_float, most=MAX_LIFETIME),
    "idle_timeout": partial(_parse_float, most=MAX_LIFETIME),
    "body_rate": partial(_parse_float, most=10**9),
}


def _parse(name: str, value: Any) -> Any:
    variable = f"JWTSERVER_{name.upper()}"
    try:
        return _PARSERS[name](value)
    except ValueError as error:
        raise SettingsError(f"{variable} {error}") from None
    except (TypeError, AttributeError):
        kind = type(value).__name__
        raise SettingsError(f"{variable} must not be of the type {kind}") from None


class Settings(NamedTuple):
    """How the service is configured. Each field is the variable `JWTSERVER_` and its name.

    >>> Settings.from_environ({"JWTSERVER_TOKEN_LIFETIME": "600"}).token_lifetime
    600
    >>> Settings.from_environ({"JWTSERVER_TOKEN_LIFETIME": "soon"})
    Traceback (most recent call last):
    jwtserver.SettingsError: JWTSERVER_TOKEN_LIFETIME must be a whole number ...
    """

    database: str = "jwtserver.db"  # an SQLite file, or postgresql://…
    secret: str = ""  # keys, one a line: the first signs, all verify
    secret_file: str = ""  # a file of such lines; jwtserver.key beside the database, if not given
    issuer: Optional[str] = None
    audience: Optional[str] = None
    token_lifetime: int = 3600  # seconds
    session_lifetime: int = 14 * 86400  # seconds, from the sign-in to the end of all refreshing
    cors_origins: Tuple[str, ...] = ()  # whose pages may read the answers; * for all
    login_failures: Rate = Rate(5, 900)  # for a user at an address
    rate_limit: Optional[Rate] = None  # of requests, for a client
    trusted_proxies: int = 0  # how many write the end of X-Forwarded-For
    protect: Rules = ()  # /protected or, with an application of yours, everything
    exempt: Sequence[str] = ()  # rules
    prefix: str = ""  # the path that the endpoints are below
    pbkdf2_iterations: int = PBKDF2_ITERATIONS
    connections: int = 4096  # that this module's own server keeps open
    threads: int = 128  # requests that it answers at once
    head_timeout: float = 10  # seconds for the head of a request
    idle_timeout: float = 15  # seconds for a request to begin, and for a client to take an answer
    body_rate: float = 1024  # bytes a second that a body must come with, and an answer be taken

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        """Read the settings; an empty variable counts as none.

        Raises:
            SettingsError: a value cannot be used.
        """
        variables = {f"JWTSERVER_{name.upper()}": name for name in _PARSERS}
        unknown = {name for name in environ if name.startswith("JWTSERVER_")} - set(variables)
        if unknown:
            logger.warning("There is no such setting: %s", ", ".join(sorted(unknown)))
        given: Dict[str, Any] = {
            name: environ[variable] for variable, name in variables.items()
            if environ.get(variable)}
        return cls(**given).checked()

    def checked(self) -> "Settings":
        """The same, with each text read as that of a variable is.

        Raises:
            SettingsError: a value cannot be used.
        """
        given = {name: value for name, value in self._asdict().items()
                 if value != self._field_defaults[name]}
        return Settings(**{name: _parse(name, value) for name, value in given.items()})

    @property
    def key_file(self) -> Path:
        """The file of the keys, where `secret` is not given."""
        folder = Path() if _is_url(self.database) else Path(self.database).parent
        return Path(self.secret_file or folder / "jwtserver.key")


# --- Keys ---------------------------------------------------------------------------------------


def prepare_keys(settings: Settings) -> None:
    """Make the file of the keys, with a new key in it, if the keys are to be in a file that is not
    there.

    Raises:
        SettingsError: the file cannot be made.
    """
    if not settings.secret:
        with _using(settings.key_file):
            if not settings.key_file.exists():
                _make_file(settings.key_file, [secrets.token_hex(32).encode()])


@contextmanager
def _using(key_file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SettingsError(f"JWTSERVER_SECRET_FILE: {key_file}: {error.strerror}") from error


def load_keys(settings: Settings) -> List[bytes]:
    """The keys, the signing one first.

    Raises:
        SettingsError: there is no key, or one that cannot be used.
    """
    if settings.secret:
        source, text = "JWTSERVER_SECRET", settings.secret.encode("utf-8", "surrogateescape")
    else:
        source = f"JWTSERVER_SECRET_FILE: {settings.key_file}"
        text = _read_key_file(settings.key_file)
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    if any(len(key.split()) > 1 for key in keys):  # text of another kind is no secret
        raise SettingsError(f"{source}: a key has no spaces in it, and a line of its own")
    try:
        TokenSigner(keys)
    except InvalidKeyError as error:
        raise SettingsError(f"{source}: {error}") from None
    return keys


def _read_key_file(path: Path) -> bytes:
    with _using(path):
        text = path.read_bytes()
        if os.name == "posix" and path.is_file() and path.stat().st_mode & 0o077:
            logger.warning("%s can be read by others; run: chmod 600 %s", path, path)
    return text[3:] if text.startswith(b"\xef\xbb\xbf") else text  # as some editors mark UTF-8


def _make_file(path: Path, lines: Sequence[bytes] = ()) -> None:
    """Make a file whole or not at all; of two processes that try at once, one succeeds."""
    draft = _write_draft(path, lines)
    try:
        with suppress(FileExistsError):
            os.link(draft, path)  # unlike a rename, it never replaces a file
    finally:
        os.unlink(draft)


def _write_draft(path: Path, lines: Iterable[bytes]) -> str:
    """Write a file for its owner's eyes alone, on its disk, in the folder of `path`."""
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
    """Rewrite the file of the keys at one stroke; its owner and mode remain.

    Return the keys that it had, and when those were written, in seconds since 1970.

    Raises:
        SettingsError: the keys are not in a file.
        OSError: the file cannot be replaced.
    """
    if settings.secret:
        raise SettingsError("the keys are in JWTSERVER_SECRET; change them there")
    prepare_keys(settings)
    keys = load_keys(settings)
    path = settings.key_file.resolve()  # where it is a link, what it points to
    status = path.stat()
    draft = _write_draft(path, change(keys))
    try:
        if hasattr(os, "chown"):  # Windows has none
            os.chown(draft, status.st_uid, status.st_gid)
        os.chmod(draft, status.st_mode & 0o777)
        os.replace(draft, path)
    except OSError:
        os.unlink(draft)
        raise
    return keys, status.st_mtime


class FileSigner:
    """A TokenSigner that has the keys that are in the file now, or were half a second ago.

    A token that none of them has signed makes it look at once: another process may have signed with
    a newer key. Where the file is gone or cannot be used, the keys before that remain.

    Raises:
        SettingsError: the file cannot be used to begin with.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._path = str(settings.key_file.absolute())  # wherever the application goes
        self._settings = settings._replace(secret_file=self._path)
        self._clock = clock
        self._looked = clock()
        self._seen = self._identity()
        self._signer = self._load()

    def _identity(self) -> Optional[Tuple[int, int, int, int]]:
        """What is another whenever the file is; None if there is none."""
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def _load(self) -> TokenSigner:
        return _load_signer(self._settings, self._clock)

    def _look(self) -> None:
        """Take the keys from the file, if it is another one."""
        now, identity = self._clock(), self._identity()
        if identity != self._seen:
            try:
                self._signer = self._load()
            except SettingsError as error:
                logger.error("The keys that were there remain in use: %s", error)
        self._seen = identity  # last: until then, other threads must look for themselves
        self._looked = now

    def _current(self) -> TokenSigner:
        if not 0 <= self._clock() - self._looked < KEY_FILE_INTERVAL:
            self._look()
        return self._signer

    def sign(self, claims: Claims) -> str:
        """Sign as TokenSigner does."""
        return self._current().sign(claims)

    def verify(self, token: str) -> Claims:
        """Verify as TokenSigner does."""
        signer = self._current()
        try:
            return signer.verify(token)
        except InvalidSignatureError:
            self._look()
            if self._signer is signer:
                raise
            return self._signer.verify(token)


Signer = Union[TokenSigner, FileSigner]


def make_signer(settings: Settings, clock: Callable[[], float] = time.time) -> Signer:
    """What signs and verifies the tokens of the service; where there is no key, one is made.

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


class User(NamedTuple):
    """A row of the table `users`."""

    name: str
    password_hash: str
    scope: str
    disabled: int
    created: int  # seconds since 1970


def clean_name(name: str) -> str:
    """Return a user name in the form in which names are compared, NFC.

    Raises:
        ValueError: it is empty, too long, or has what cannot be seen.

    >>> clean_name("Zoe\\u0308")
    'Zoë'
    """
    name = unicodedata.normalize("NFC", name[:MAX_SPELLING])
    if not 1 <= len(name) <= MAX_NAME_LENGTH:
        raise ValueError(f"a user name has 1 to {MAX_NAME_LENGTH} characters")
    if name != name.strip():
        raise ValueError("a user name has no space at its ends")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        raise ValueError("a user name has no control characters")
    return name


# --- Sessions -----------------------------------------------------------------------------------


class Session(NamedTuple):
    """A row of the table `sessions`: a sign-in that has not ended.

    A refresh token is `family.generation.secret`. Its session is found by the hash of the family,
    so that nobody can guess it from the claim `sid`; and an older token of the family, whose own
    hash is no longer kept, is still known for one.
    """

    id: str  # the claim `sid`
    user_name: str
    generation: int  # how often it has been refreshed
    refresh_hash: str  # of the refresh token that is good; "" if there is none
    previous_hash: str  # of the one in whose place it came
    rotated: float  # when it came, in seconds since 1970
    expires: int  # likewise


class Grant(NamedTuple):
    """What a client gets: a session of a user, and the token that prolongs it."""

    user: User
    session: Session
    refresh_token: str


_REFRESH_TOKEN = re.compile(r"(?P<family>[\w-]{22})\.(?P<generation>[0-9]{1,9})\.[\w-]{43}", re.A)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _session_id(family: str) -> str:
    return _digest(family)[:32]


def _refresh_token(family: str, generation: int) -> str:
    return f"{family}.{generation}.{secrets.token_urlsafe(32)}"  # 256 random bits


def new_grant(user: User, lifetime: int, now: float) -> Grant:
    """A new session, which begins at `now` and ends `lifetime` seconds later."""
    family = secrets.token_urlsafe(16)
    token = _refresh_token(family, 0)
    session = Session(
        _session_id(family), user.name, 0, _digest(token), "", now, int(now) + lifetime)
    return Grant(user, session, token)


class RefreshError(Error):
    """A refresh token that is refused; `ended` is the session that it was the end of, if any."""

    def __init__(self, ended: Optional[Session] = None) -> None:
        super().__init__("Invalid refresh token")
        self.ended = ended


def _refreshed(session: Session, token: str, now: float) -> Tuple[Session, str]:
    """The session after this refresh token has been presented, and the next one.

    Raises:
        RefreshError: it is not the token's turn. One whose turn has been ends the session: either
            this client or the one before it has stolen it (RFC 9700 §4.14.2).
    """
    family, generation, _ = token.split(".")
    digest = _digest(token)
    recent = abs(now - session.rotated) < REFRESH_GRACE  # the clock may have been set back
    if secrets.compare_digest(digest, session.refresh_hash):
        session = session._replace(
            generation=session.generation + 1, previous_hash=digest, rotated=now)
    elif recent and int(generation) == session.generation:
        raise RefreshError  # another request with the same predecessor was answered after this one
    elif not (recent and secrets.compare_digest(digest, session.previous_hash)):
        raise RefreshError(session)
    token = _refresh_token(family, session.generation)
    return session._replace(refresh_hash=_digest(token)), token


# --- Failed sign-ins ----------------------------------------------------------------------------


class LockedOut(Error):
    """Too many logins have failed; none is looked at for the next `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__("Too many failed sign-ins")
        self.seconds = math.ceil(seconds)


class Attempt(NamedTuple):
    """A login, and the counters of failures that it meets: each with its limit."""

    limits: Mapping[str, int]
    seconds: int  # for which a failure is remembered
    own: str  # the counter that a success clears

    def latest(self, now: float) -> float:
        """The time beyond which no counter can end, but one that a wrong clock has written."""
        return now + 2 * self.seconds

    @classmethod
    def of(cls, name: str, address: str, rate: Rate) -> "Attempt":
        """The login of a user, who need not exist, from an address."""
        name, network = unicodedata.normalize("NFC", name[:MAX_SPELLING]), _network(address)
        own, by_network, by_name = (
            _digest(json.dumps(counted))
            for counted in ([name, network], [None, network], [name, None]))
        limits = {own: rate.limit, by_network: 10 * rate.limit, by_name: 20 * rate.limit}
        return cls(limits, rate.seconds, own)


def _network(address: str) -> str:
    """The address, or its /64: who has one address of IPv6 has them all (RFC 6177 §2)."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:  # a server on a Unix socket knows none
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return address
    return str(ip.ipv4_mapped or ipaddress.ip_network((ip, 64), strict=False))


# --- The store ----------------------------------------------------------------------------------


class StoreError(Error):
    """The database cannot do what it is asked. The message names it."""


class NameTaken(Error):
    """There is a user of that name already."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is a user {name!r} already")


class Connection(Protocol):
    """What the store asks of a connection; those of `sqlite3` are some."""

    def execute(self, statement: str, values: Any = ..., /) -> Any:
        """Run a statement, with a value for each `?`, and return a cursor."""

    def close(self) -> None:
        """Close it, which rolls back what is not committed."""


# Each entry leads from one version of the schema, which is its index, to the next. A release may
# add entries; those that have been released stay as they are.
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
_COUNT_FAILURE = (
    "INSERT INTO failures VALUES (?, 1, ?) ON CONFLICT (id) DO UPDATE SET"
    " count = CASE WHEN failures.expires > ? AND failures.expires <= ?"
    " THEN failures.count + 1 ELSE 1 END,"
    " expires = CASE WHEN failures.expires > ? AND failures.expires <= ?"
    " THEN failures.expires ELSE excluded.expires END")
_APPLICATION_ID = 0x6A777473  # "jwts", in the file's header: this database is ours


_pid = os.getpid()  # which costs a system call to ask


def _after_fork() -> None:
    global _pid
    _pid = os.getpid()


getattr(os, "register_at_fork", dict)(after_in_child=_after_fork)  # Windows has none


def _close_own(connections: Dict[int, List[Connection]]) -> None:
    for connection in connections.pop(_pid, []):
        connection.close()


def _pop(connections: List[Connection]) -> Optional[Connection]:
    try:
        return connections.pop()
    except IndexError:  # all are in use
        return None


def _use_wal(connection: Connection) -> None:
    """Have readers never wait for a writer. Of two that switch at once, one is told to try again:
    SQLite's own busy timeout does not hold here."""
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


class _Loan:
    """A connection of the store, lent; it is returned unless something has gone wrong with it."""

    __slots__ = ("_store", "_idle", "_more", "_connection")

    def __init__(
        self, store: "Store", idle: List[Connection],
        more: Callable[[], Connection],
    ) -> None:
        self._store = store
        self._idle = idle
        self._more = more

    def __enter__(self) -> Connection:
        try:
            self._connection = _pop(self._idle) or self._more()
        except self._store.errors as error:
            raise StoreError(f"{self._store.name}: {_one_line(error)}") from error
        return self._connection

    def __exit__(self, kind: Any, error: Optional[BaseException], traceback: Any) -> None:
        if error is None and len(self._idle) < MAX_IDLE_CONNECTIONS:
            self._idle.append(self._connection)
            return
        self._connection.close()  # which rolls back
        if isinstance(error, self._store.errors):
            raise StoreError(f"{self._store.name}: {_one_line(error)}") from error


class Store:
    """Users, their sessions, and failed logins, in an SQLite file that processes may share.

    Raises:
        StoreError: from each method, if the file cannot be used.
    """

    errors: Type[Exception] = sqlite3.Error  # what its connections raise
    _begin_writing = "BEGIN IMMEDIATE"  # from here on, nobody else writes

    # For a database where others may write meanwhile: SQL that locks the rows that are read, and
    # SQL that also skips those that others have locked.
    _for_update = _skip_locked = ""

    def __init__(self, path: str) -> None:
        self.path = Path(path).absolute()  # wherever the application goes
        self.name = str(self.path)
        # By process: one that was forked must not touch, nor close, what its parent has opened
        # (https://sqlite.org/howtocorrupt.html §2.6).
        self._idle: Dict[int, List[Connection]] = {}
        self.close = weakref.finalize(self, _close_own, self._idle)

    def _connect(self) -> Connection:
        return sqlite3.connect(
            f"{self.path.as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT,
            isolation_level=None, check_same_thread=False)

    def _connection(self) -> "_Loan":
        """Lend a connection; each statement is a transaction, if no other is begun."""
        return _Loan(self, self._idle.setdefault(_pid, []), self._connect)

    def close_idle(self) -> None:
        """Close what is open: over a fork, an open file or socket would be shared."""
        _close_own(self._idle)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._connection() as connection:
            connection.execute(self._begin_writing)
            yield connection
            connection.execute("COMMIT")

    def _execute(self, statement: str, *values: str) -> int:
        """Run a statement by itself; return how many rows it has changed."""
        with self._connection() as connection:
            return int(connection.execute(statement, values).rowcount)

    def prepare(self) -> None:
        """Make the file if it is not there, and bring its schema up to date."""
        try:
            # For its owner alone, for it holds the hashes. It must not be opened here if it is
            # there: closing it would drop the locks that SQLite has on it, and other processes
            # then delete what is in use (https://sqlite.org/howtocorrupt.html §2.2).
            if self.path.is_dir():
                raise StoreError(f"{self.name}: {os.strerror(errno.EISDIR)}")
            if not self.path.exists():
                _make_file(self.path)
        except OSError as error:
            raise StoreError(f"{self.name}: {error.strerror}") from error
        with self._connection() as connection:
            version = self._version(connection)
            _use_wal(connection)
        if version == len(_MIGRATIONS):
            return
        with self._transaction() as connection:
            version = self._version(connection)  # another process may have been faster
            for statement in chain.from_iterable(_MIGRATIONS[version:]):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")

    def _version(self, connection: Connection) -> int:
        """The version of the schema; 0 where there is none yet."""
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        # Read last: by then it is there, if another process has just made what was read above.
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        if application_id != _APPLICATION_ID and (tables or version):
            raise StoreError(f"{self.name}: is the database of another application")
        if version > len(_MIGRATIONS):
            raise StoreError(f"{self.name}: was written by a newer version of jwtserver")
        return int(version)

    def check(self) -> None:
        """Do nothing, if the database can answer, and the file is still where it was."""
        self.find("nobody")
        if not self.path.exists():  # what is open can be read on
            raise StoreError(f"{self.name}: {os.strerror(errno.ENOENT)}")

    def find(self, name: str) -> Optional[User]:
        """The user of that name, in whatever Unicode form it is given."""
        try:
            key = clean_name(name)
        except ValueError:
            return None
        with self._connection() as connection:
            row = connection.execute("SELECT * FROM users WHERE name = ?", [key]).fetchone()
        return User(*row) if row else None

    def is_empty(self) -> bool:
        """Tell whether there are no users."""
        with self._connection() as connection:
            return connection.execute("SELECT name FROM users LIMIT 1").fetchone() is None

    def all(self) -> List[User]:
        """All users, by name."""
        with self._connection() as connection:
            return sorted(User(*row) for row in connection.execute("SELECT * FROM users"))

    def add(self, users: Iterable[User]) -> None:
        """Add all of them or none.

        Raises:
            NameTaken: there is a user of such a name.
        """
        with self._transaction() as connection:
            for user in users:
                added = connection.execute(
                    "INSERT INTO users VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", user)
                if not added.rowcount:
                    raise NameTaken(user.name)

    def remove(self, name: str) -> bool:
        """Remove a user, whose sessions end; tell whether there was one."""
        return self._change(name, "DELETE FROM users WHERE name = ?")

    def disable(self, name: str) -> bool:
        """Let a user sign in no longer, and end his sessions; tell whether there is one."""
        return self._change(name, "UPDATE users SET disabled = 1 WHERE name = ?")

    def enable(self, name: str) -> bool:
        """Let a user sign in again; tell whether there is one."""
        return self._execute("UPDATE users SET disabled = 0 WHERE name = ?", name) > 0

    def set_password(self, name: str, password_hash: str) -> bool:
        """Give a user another password, and end his sessions; tell whether there is one."""
        return self._change(
            name, "UPDATE users SET password_hash = ? WHERE name = ?", password_hash)

    def set_scope(self, name: str, scope: str) -> bool:
        """Give a user other scopes, and end his sessions; tell whether there is one."""
        return self._change(name, "UPDATE users SET scope = ? WHERE name = ?", scope)

    def _change(self, name: str, statement: str, *values: str) -> bool:
        with self._transaction() as connection:
            changed: int = connection.execute(statement, [*values, name]).rowcount
            connection.execute("DELETE FROM sessions WHERE user_name = ?", [name])
        return changed > 0

    def check_attempt(self, attempt: Attempt, now: float) -> None:
        """Do nothing, if a login may be tried.

        Raises:
            LockedOut: it may not.
        """
        with self._connection() as connection:
            locked = self._locked_for(connection, attempt, now)
        if locked:
            raise LockedOut(locked)

    def _locked_for(
        self, connection: Connection, attempt: Attempt, now: float, counted: int = 0,
    ) -> float:
        """The seconds until a login is looked at, 0 for now. `counted` of the failures are its own.
        """
        rows = connection.execute(
            "SELECT id, count, expires FROM failures WHERE id IN (?, ?, ?)", list(attempt.limits))
        locks: List[float] = [expires - now for counter, count, expires in rows
                              if count - counted >= attempt.limits[counter]
                              and expires <= attempt.latest(now)]
        return max([0.0, *locks])

    def count_failure(self, attempt: Attempt, now: float) -> None:
        """Count a failed login.

        Raises:
            LockedOut: others have reached the limit meanwhile; that this one failed is not told.
        """
        with self._transaction() as connection:
            self._sweep(connection, "failures", now)
            live = [now, attempt.latest(now)]
            for counter in sorted(attempt.limits):
                connection.execute(_COUNT_FAILURE, [counter, now + attempt.seconds, *live, *live])
            locked = self._locked_for(connection, attempt, now, counted=1)
            if locked:
                connection.execute("UPDATE failures SET count = count - 1 WHERE id IN (?, ?, ?)",
                                   list(attempt.limits))
        if locked:
            raise LockedOut(locked)

    def open_session(
        self, grant: Grant, now: float, *, attempt: Optional[Attempt] = None,
        better_hash: Optional[str] = None,
    ) -> bool:
        """Open a session; tell whether the user is still the one who was looked up.

        If it is for a login, that clears his failures, and `better_hash` is what is to be stored
        of the password from now on.

        Raises:
            LockedOut: too many other logins have failed meanwhile.
        """
        user = grant.user
        with self._transaction() as connection:
            locked = self._locked_for(connection, attempt, now) if attempt else 0
            row = connection.execute(
                f"SELECT * FROM users WHERE name = ?{self._for_update}", [user.name]).fetchone()
            if not locked and row == user:
                self._sweep(connection, "sessions", now)
                connection.execute(
                    "INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?)", grant.session)
                if better_hash:
                    connection.execute("UPDATE users SET password_hash = ? WHERE name = ?",
                                       [better_hash, user.name])
                if attempt:
                    connection.execute("DELETE FROM failures WHERE id = ?", [attempt.own])
        if locked:
            raise LockedOut(locked)
        return bool(row == user)

    def refresh(self, token: str, now: float) -> Grant:
        """Trade a refresh token for the next one of its session.

        Raises:
            RefreshError: it is not good, and may have been the end of the session.
        """
        match = _REFRESH_TOKEN.fullmatch(token)
        if not match:
            raise RefreshError
        refused = None
        with self._transaction() as connection:
            session_id = _session_id(match["family"])
            try:
                session, token = _refreshed(self._session(connection, session_id, now), token, now)
                connection.execute(
                    "UPDATE sessions SET generation = ?, refresh_hash = ?, previous_hash = ?,"
                    " rotated = ? WHERE id = ?",
                    [session.generation, session.refresh_hash, session.previous_hash,
                     session.rotated, session_id])
                row = connection.execute(
                    "SELECT * FROM users WHERE name = ?", [session.user_name]).fetchone()
            except RefreshError as error:  # not out of here: what it has ended must be committed
                refused = error
                if error.ended:
                    connection.execute("DELETE FROM sessions WHERE id = ?", [session_id])
        if refused:
            raise refused
        return Grant(User(*row), session, token)

    def _session(self, connection: Connection, session_id: str, now: float) -> Session:
        row = connection.execute(
            f"SELECT * FROM sessions WHERE id = ? AND expires > ?{self._for_update}",
            [session_id, now]).fetchone()
        if row is None:
            raise RefreshError
        return Session(*row)

    def is_open(self, session_id: str, now: float) -> bool:
        """Tell whether a session has not ended."""
        with self._connection() as connection:
            row = connection.execute(_IS_OPEN, (session_id, now)).fetchone()
        return row is not None

    def end_session(self, session_id: str) -> None:
        """End a session, if it has not ended."""
        self._execute("DELETE FROM sessions WHERE id = ?", session_id)

    def end_sessions(self, name: str) -> int:
        """End the sessions of a user; return how many there were."""
        return self._execute("DELETE FROM sessions WHERE user_name = ?", name)

    @contextmanager
    def changing_keys(self) -> Iterator[None]:
        """Keep other processes from changing the keys meanwhile."""
        with self._transaction() as connection:
            self._exclude_others(connection)
            yield

    def _exclude_others(self, connection: Connection) -> None:
        """Nobody else writes in a transaction of SQLite."""

    def _sweep(self, connection: Connection, table: str, now: float) -> None:
        connection.execute(
            f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE expires <= ?"
            f" LIMIT {SWEEP}{self._skip_locked})", [int(now)])

    def count_tokens(self, before: float, lifetime: int, now: float) -> int:
        """Count the sessions whose last token was issued before that time, and may still be good.
        """
        with self._connection() as connection:
            (count,) = connection.execute(
                "SELECT count(*) FROM sessions WHERE expires > ? AND rotated <= ?"
                " AND (rotated > ? OR refresh_hash = '')", [now, before, now - lifetime]).fetchone()
        return int(count)


class _PostgreSQLConnection:
    """A connection of psycopg, with `?` for a value as SQLite has it."""

    def __init__(self, psycopg: Any, options: Mapping[str, Any]) -> None:
        self._connection = psycopg.connect(**options, autocommit=True)
        self._poll = select.poll()
        self._poll.register(self._connection.fileno(), select.POLLIN)
        self._connection.execute(f"SET statement_timeout = {int(1000 * BUSY_TIMEOUT)}")

    def execute(self, statement: str, values: Any = None) -> Any:
        """Run a statement."""
        return self._connection.execute(statement.replace("?", "%s"), values)

    def close(self) -> None:
        """Close it, which rolls back."""
        self._connection.close()

    def is_usable(self) -> bool:
        """Tell whether the server has said nothing unasked: it does so when it goes."""
        return not self._poll.poll(0)


class PostgreSQLStore(Store):
    """The same in a database of PostgreSQL, which machines may share; it takes psycopg 3.

    Where SQLite lets one process write, here rows are locked: those of a user before those of the
    user's sessions, and counters in the order of their ids.

    Raises:
        SettingsError: psycopg is not installed, or the URL is malformed.
    """

    _begin_writing = "BEGIN"
    _for_update = " FOR UPDATE"
    _skip_locked = " FOR UPDATE SKIP LOCKED"

    def __init__(self, url: str) -> None:
        try:
            self._psycopg: Any = importlib.import_module("psycopg")
        except ImportError as error:
            raise SettingsError(
                "JWTSERVER_DATABASE is one of PostgreSQL; run: pip install 'psycopg[binary]'"
                f" ({_one_line(error)})") from None
        self.errors = self._psycopg.Error
        try:
            given = self._psycopg.conninfo.conninfo_to_dict(url)
        except self._psycopg.Error:  # whose message may quote the password
            given = {"dbname": "@"}
        if "@" in given.get("dbname", ""):  # as after a slash in the password
            raise SettingsError("JWTSERVER_DATABASE must be postgresql://user:password@host/"
                                "database, with what is special percent-encoded (/ is %2F)")
        self._options = {"connect_timeout": int(BUSY_TIMEOUT),
                         "tcp_user_timeout": int(1000 * BUSY_TIMEOUT), **given}
        super().__init__("")
        self.name = f"database {given.get('dbname', '')} at {given.get('host', 'localhost')}"

    def _connect(self) -> Connection:
        return _PostgreSQLConnection(self._psycopg, self._options)

    def _connection(self) -> _Loan:
        idle = self._idle.setdefault(_pid, [])
        connection: Any = _pop(idle)
        while connection and not connection.is_usable():  # the server has been started anew
            connection.close()
            connection = _pop(idle)
        if connection:
            idle.append(connection)
        return super()._connection()

    def check(self) -> None:
        """Do nothing, if the database can answer."""
        self.find("nobody")

    def _exclude_others(self, connection: Connection) -> None:
        connection.execute("SELECT pg_advisory_xact_lock(?)", [_APPLICATION_ID])

    def prepare(self) -> None:
        """Make the tables if they are not there, and bring them up to date."""
        with self._transaction() as connection:
            self._exclude_others(connection)
            connection.execute(
                "CREATE TABLE IF NOT EXISTS jwtserver (version INTEGER NOT NULL)")
            version = self._version(connection)
            for statement in chain.from_iterable(_MIGRATIONS[version:]):
                connection.execute(statement.replace("INTEGER", "BIGINT"))
            if version < len(_MIGRATIONS):
                connection.execute("DELETE FROM jwtserver")
                connection.execute("INSERT INTO jwtserver VALUES (?)", [len(_MIGRATIONS)])

    def _version(self, connection: Connection) -> int:
        (version,) = connection.execute(
            "SELECT coalesce(max(version), 0) FROM jwtserver").fetchone()
        if version > len(_MIGRATIONS):
            raise StoreError(f"{self.name}: was written by a newer version of jwtserver")
        return int(version)


def open_store(database: str) -> Store:
    """The store in an SQLite file, made if it is not there, or that behind a URL of PostgreSQL.

    Raises:
        SettingsError: the URL, psycopg or the database cannot be used.
    """
    store = PostgreSQLStore(database) if _is_url(database) else Store(database)
    try:
        store.prepare()
    except StoreError as error:
        raise SettingsError(f"JWTSERVER_DATABASE: {error}") from error
    return store


# --- Requests and answers -----------------------------------------------------------------------


class HTTPError(Exception):
    """A request that gets an error for an answer."""

    def __init__(self, status: int, message: str, *headers: Tuple[str, str]) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


_NOSNIFF = ("X-Content-Type-Options", "nosniff")
_STATUS_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}


class Answer(NamedTuple):
    """What an endpoint answers, ready to be sent."""

    status: str
    headers: List[Tuple[str, str]]
    body: bytes

    @classmethod
    def of(cls, status: int, content: Any = None, *headers: Tuple[str, str]) -> "Answer":
        """An answer of this content in JSON or, without any, of no body."""
        line = _STATUS_LINES[status]
        if content is None:  # RFC 9110 §8.6: no Content-Length with 204
            return cls(line, [_NOSNIFF, *headers], b"")
        body = json.dumps(content).encode()
        described = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        return cls(line, [*described, _NOSNIFF, *headers], body)


Endpoint = Callable[[Environ], Answer]


def _send(
    answer: Answer, environ: Environ, start_response: StartResponse, *exc_info: Any,
) -> List[bytes]:
    start_response(answer.status, list(answer.headers), *exc_info)
    bare = not answer.body or environ.get("REQUEST_METHOD") == "HEAD"
    return [] if bare else [answer.body]


def _read_body(environ: Environ) -> bytes:
    length = environ.get("CONTENT_LENGTH") or ""  # PEP 3333: may be empty or missing
    if not length and not environ.get("wsgi.input_terminated"):
        raise HTTPError(411, "The request needs a Content-Length")
    if length and not re.fullmatch("[0-9]+", length):
        raise HTTPError(400, "The Content-Length must be a number")
    if len(length) > 9 or int(length or 0) > MAX_BODY_BYTES:
        raise HTTPError(413, f"The body is longer than {MAX_BODY_BYTES} bytes")
    wanted = int(length or MAX_BODY_BYTES + 1)
    body = b""
    while len(body) < wanted and (piece := environ["wsgi.input"].read(wanted - len(body))):
        body += piece
    if len(body) > MAX_BODY_BYTES:
        raise HTTPError(413, f"The body is longer than {MAX_BODY_BYTES} bytes")
    if length and len(body) < wanted:
        raise HTTPError(400, "The body is shorter than its Content-Length")
    return body


def _read_fields(environ: Environ) -> Dict[str, Any]:
    """The fields of a body that is JSON or a form; a name that comes twice is refused."""
    body = _read_body(environ)
    content_type = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if content_type == "application/json":
        try:
            return parse_json_object(body)
        except DecodeError as error:
            raise HTTPError(400, f"Malformed body: {error}") from None
    if content_type == "application/x-www-form-urlencoded":
        if body.lstrip().startswith(b"{"):  # as of `curl -d` without a header
            raise HTTPError(415, "The body looks like JSON, but is sent as a form; it needs"
                                 " Content-Type: application/json")
        try:
            pairs = parse_qsl(body.decode(), True, errors="strict", max_num_fields=100)
        except ValueError:
            raise HTTPError(400, "Malformed body: Invalid form") from None
        if len(dict(pairs)) != len(pairs):
            raise HTTPError(400, "Malformed body: A field is given twice")
        return dict(pairs)
    raise HTTPError(415, "The body must be application/json or application/x-www-form-urlencoded")


def _required(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise HTTPError(400, f"`{name}` must be a string")
    if not value:
        raise HTTPError(401, f"A `{name}` is required")
    return value


class Operation(NamedTuple):
    """What is done for a method at a path, and how it is told to programs."""

    run: Endpoint
    status: int = 200  # if it succeeds
    schema: Optional[Mapping[str, Any]] = None  # of the JSON that it answers then
    fields: Tuple[str, ...] = ()  # that the body must have
    errors: Tuple[int, ...] = ()  # beyond those that any operation of its kind has


class Route(NamedTuple):
    """The operations at one path, by method, `*` for any, and the member that holds the text of an
    error."""

    methods: Mapping[str, Operation]
    error_member: str = "error"
    guarded: bool = False

    def answer(self, environ: Environ) -> Answer:
        """Run the operation for the method of the request; GET answers HEAD as well."""
        if not self.methods:
            raise HTTPError(404, "Not found")
        method = environ["REQUEST_METHOD"]
        operation = self.methods.get("GET" if method == "HEAD" else method, self.methods.get("*"))
        if operation is None:
            allowed = [*self.methods, *(["HEAD"] if "GET" in self.methods else [])]
            raise HTTPError(405, "Method not allowed", ("Allow", ", ".join(allowed)))
        return operation.run(environ)

    def failure(self, error: HTTPError) -> Answer:
        """Put an error into the words of an answer."""
        content = {"success": False, self.error_member: error.message}
        return Answer.of(error.status, content, *error.headers)


_NO_ROUTE = Route({})


class Router:
    """Serves the endpoints at their paths, and hands all other requests to `otherwise`.

    This is also the one place where errors become answers.
    """

    def __init__(
        self, routes: Mapping[str, Route], otherwise: Optional[WSGIApplication] = None,
    ) -> None:
        self.routes = routes
        self.otherwise = otherwise

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        route = self.routes.get(environ.get("PATH_INFO", ""), _NO_ROUTE)
        try:
            if route is _NO_ROUTE and self.otherwise is not None:
                return self.otherwise(environ, start_response)
            answer = route.answer(environ)
        except HTTPError as error:
            answer = route.failure(error)
        except StoreError as error:
            logger.error("%s", error)
            answer = route.failure(HTTPError(503, "The database cannot answer"))
        except Exception:
            logger.exception("A fault at %s", ascii(environ.get("PATH_INFO")))
            answer = route.failure(HTTPError(500, "Internal server error"))
            return _send(answer, environ, start_response, sys.exc_info())
        return _send(answer, environ, start_response)


def _with_nosniff(app: WSGIApplication) -> WSGIApplication:
    """Add the header to the answers of an application that does not send it itself."""

    def wrapped(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: List[Tuple[str, str]], *exc_info: Any) -> Any:
            if not any(name.lower() == "x-content-type-options" for name, _ in headers):
                headers = [*headers, _NOSNIFF]
            return start_response(status, headers, *exc_info)

        return app(environ, start)

    return wrapped


# --- Endpoints ----------------------------------------------------------------------------------


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _HashQueue:
    """Where password hashes wait for a core.

    A hash keeps one busy for some tenths of a second. Those beyond the number of cores wait here,
    so that the requests of those who are signed in need not, and not too many of them.
    """

    def __init__(self, cores: int) -> None:
        self._cores = threading.BoundedSemaphore(cores)
        self._places = threading.BoundedSemaphore(cores + MAX_WAITING_HASHES)

    def __enter__(self) -> None:
        if not self._places.acquire(blocking=False):
            raise HTTPError(503, "Too many sign-ins at once", ("Retry-After", "10"))
        self._cores.acquire()

    def __exit__(self, *exc_info: Any) -> None:
        self._cores.release()
        self._places.release()


# By process, and made when needed: a lock that a thread of the parent held at the fork would stay
# locked here for ever; and gevent's locks are not there until it has patched `threading`.
_hash_queues: Dict[int, _HashQueue] = {}
_build_locks: Dict[int, threading.Lock] = {}


def client_address(environ: Environ, trusted_proxies: int) -> str:
    """The address of the client, as the outermost of so many proxies has seen it.

    Each proxy appends to X-Forwarded-For where it got the request from; what stands before that is
    anybody's claim.
    """
    hops = environ.get("HTTP_X_FORWARDED_FOR", "").split(",")
    if 0 < trusted_proxies <= len(hops):
        hop = re.sub(r"^\[(.*)\](:\d+)?$|^([\d.]+):\d+$", r"\1\3", hops[-trusted_proxies].strip())
        with suppress(ValueError):  # of a proxy that hides it
            return str(ipaddress.ip_address(hop))
    return str(environ.get("REMOTE_ADDR", ""))


def issue_token(grant: Grant, signer: Signer, lifetime: float, now: float) -> Tuple[str, int]:
    """A token of a session, and the seconds for which it is good: never longer than the session."""
    user, session, _ = grant
    issued, expires = int(now), int(min(now + lifetime, session.expires))
    claims = {"sub": user.name, "username": user.name, "sid": session.id,
              "iat": issued, "exp": expires}
    if user.scope:
        claims["scope"] = user.scope
    return signer.sign(claims), expires - issued


_UNSENDABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # in a header


class Service:
    """The endpoints that open, prolong and end sessions."""

    def __init__(
        self, store: Store, signer: Signer, settings: Settings, clock: Callable[[], float],
    ) -> None:
        self.store = store
        self.signer = signer
        self.settings = settings
        self.clock = clock
        # What looking at a password costs at least: as much as the strongest hash that was met.
        self._iterations = settings.pbkdf2_iterations

    def authenticate(self, environ: Environ) -> Answer:
        """Trade a user name and a password for a token and a refresh token."""
        fields = _read_fields(environ)
        name, password = _required(fields, "username"), _required(fields, "password")
        told = {"user": name[:MAX_NAME_LENGTH], "address": self.address(environ)}
        try:
            grant = self._sign_in(name, password, environ)
        except LockedOut as error:
            _audit("locked_out", **told)
            raise HTTPError(429, str(error), ("Retry-After", str(error.seconds))) from None
        if grant is None:
            _audit("sign_in_failed", **told)
            raise HTTPError(401, "Invalid username and password")
        _audit("sign_in", **told, session=grant.session.id)
        return self._granted(grant)

    def _sign_in(self, name: str, password: str, environ: Environ) -> Optional[Grant]:
        """A session, if the password is right. A user who does not exist takes as long as others.

        Raises:
            LockedOut: too many logins like this one have failed.
        """
        attempt = Attempt.of(name, self.address(environ), self.settings.login_failures)
        self.store.check_attempt(attempt, self.clock())
        user = self.store.find(name)
        iterations = self.settings.pbkdf2_iterations
        environ.get("jwtserver.release_loop", lambda: None)()  # if it is the server below that runs
        with _hash_queues.setdefault(_pid, _HashQueue(_cores())):
            self.store.check_attempt(attempt, self.clock())  # that was a while ago
            stored = user.password_hash if user else None
            self._iterations = max(self._iterations, password_iterations(stored))
            right = verify_password(password, stored, min_iterations=self._iterations)
            old = right and needs_rehash(stored or "", iterations=iterations)
            better_hash = hash_password(password, iterations=iterations) if old else None
        now = self.clock()
        if not right or user is None or user.disabled:
            self.store.count_failure(attempt, now)
            return None
        grant = new_grant(user, self.settings.session_lifetime, now)
        opened = self.store.open_session(grant, now, attempt=attempt, better_hash=better_hash)
        # Who was changed meanwhile is looked up anew: another sign-in may have stored a new hash.
        return grant if opened else self._sign_in(name, password, environ)

    def refresh(self, environ: Environ) -> Answer:
        """Trade a refresh token for a new token and the next refresh token."""
        token = _required(_read_fields(environ), "refresh_token")
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
        return self._granted(grant)

    def _granted(self, grant: Grant) -> Answer:
        token, seconds = issue_token(
            grant, self.signer, self.settings.token_lifetime, self.clock())
        content = {
            "token": token,
            "token_type": "Bearer",
            "expires_in": seconds,
            "refresh_token": grant.refresh_token,
        }
        return Answer.of(200, content, ("Cache-Control", "no-store"))

    def logout(self, environ: Environ) -> Answer:
        """End the session of the token."""
        claims = _claims(environ)
        if "sid" not in claims:
            raise HTTPError(400, "The token belongs to no session")
        user, session = claims["sub"], claims["sid"]
        self.store.end_session(session)
        _audit("logout", user=user, address=self.address(environ), session=session)
        return Answer.of(204)

    def verify(self, environ: Environ) -> Answer:
        """Tell a proxy that the token is good, and whose it is."""
        claims = _claims(environ)
        scope = claims.get("scope", "")
        headers = [("Remote-User", claims["sub"]), ("Remote-Scope", scope)]
        for _, value in headers:
            # A name that a proxy could read otherwise is nobody's: not of this service's users.
            if not isinstance(value, str) or value != value.strip() or _UNSENDABLE.search(value):
                raise HTTPError(403, "The token's subject or scope cannot be sent in a header")
        return Answer.of(204, None, *(
            (name, value.encode().decode("latin-1")) for name, value in headers))

    def is_revoked(self, claims: Claims) -> bool:
        """Tell whether the session of a token has ended.

        A token without one is not from here: whoever has the key has made it, and can.
        """
        session_id = claims.get("sid", "")
        if not isinstance(session_id, str) or "\0" in session_id:  # which PostgreSQL has not
            return True
        return "sid" in claims and not self.store.is_open(session_id, self.clock())

    def health(self, environ: Environ) -> Answer:
        """Tell whether the database can answer."""
        self.store.check()
        return Answer.of(200, {"status": "ok"})

    def address(self, environ: Environ) -> str:
        """The address of the client."""
        return client_address(environ, self.settings.trusted_proxies)


def _claims(environ: Environ) -> Claims:
    claims: Optional[Claims] = environ.get("wsgi_auth.claims")
    if not claims:  # the guard has been told to let everybody in
        raise HTTPError(401, "An authorization header is required",
                        ("WWW-Authenticate", 'Bearer realm="api"'))
    return claims


_WELCOME = Answer.of(200, {"message": "Welcome to the protected page"})


def _welcome(environ: Environ) -> Answer:
    """Greet whoever has a good token."""
    return _WELCOME


# --- The route table ----------------------------------------------------------------------------


def _object(**members: Any) -> Dict[str, Any]:
    """A schema (JSON Schema 2020-12) of an object with these members, given by theirs."""
    return {"type": "object", "properties": members, "required": list(members)}


_STRING = {"type": "string"}
_GRANTED = _object(token=_STRING, token_type={"const": "Bearer"}, expires_in={"type": "integer"},
                   refresh_token=_STRING)
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE")


def _routes(service: Service, prefix: str, demo: bool) -> Dict[str, Route]:
    """All endpoints, by path."""
    verify = Operation(service.verify, 204, errors=(403,))
    routes = {
        "/authenticate": Route({"POST": Operation(
            service.authenticate, schema=_GRANTED, fields=("username", "password"))}, "message"),
        "/refresh": Route({"POST": Operation(
            service.refresh, schema=_GRANTED, fields=("refresh_token",))}, "message"),
        "/logout": Route({"POST": Operation(service.logout, 204, errors=(400,))}, guarded=True),
        "/verify": Route({"*": verify}, guarded=True),
        "/health": Route({"GET": Operation(
            service.health, schema=_object(status={"const": "ok"}))}),
    }
    routes = {prefix + path: route for path, route in routes.items()}
    if demo:
        routes["/protected"] = Route(
            {"GET": Operation(_welcome, schema=_object(message=_STRING))}, guarded=True)

    def index(environ: Environ) -> Answer:
        """List the endpoints."""
        return listed

    def openapi(environ: Environ) -> Answer:
        """Describe the endpoints (OpenAPI 3.1)."""
        return document

    described = f"{prefix}/openapi.json"
    routes[described] = Route({"GET": Operation(openapi, schema={"type": "object"})})
    if demo:
        names = {"type": "array", "items": _STRING}
        routes["/"] = Route(
            {"GET": Operation(index, schema=_object(endpoints=names, openapi=_STRING))})
    document = Answer.of(200, _describe(routes))
    listed = Answer.of(200, {
        "endpoints": [f"{'any' if method == '*' else method} {path}"
                      for path, route in routes.items() for method in route.methods],
        "openapi": described})
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
    name = operation.run.__name__.strip("_")
    described: Dict[str, Any] = {
        "operationId": f"{name}_{method.lower()}" if "*" in route.methods else name,
        "summary": (operation.run.__doc__ or "").partition("\n")[0],
        "responses": {str(operation.status): _describe_answer(operation.status, operation.schema)},
        "security": [{"token": []}] if route.guarded else [],
    }
    statuses = {*operation.errors, 429, 500, 503}
    if route.guarded:
        statuses.add(401)
    if operation.fields:
        statuses.update((400, 401, 411, 413, 415))
        schema = _object(**dict.fromkeys(operation.fields, {"type": "string", "minLength": 1}))
        described["requestBody"] = {"required": True, "content": {
            "application/json": {"schema": schema},
            "application/x-www-form-urlencoded": {  # no field of which may come twice
                "schema": {**schema, "additionalProperties": _STRING}}}}
    success = {"const": False}
    for status in sorted(statuses):
        schema = _object(success=success, **{route.error_member: _STRING})
        if status == 429 and route.error_member != "error":  # from the limit of requests
            schema = {"anyOf": [schema, _object(success=success, error=_STRING)]}
        described["responses"][str(status)] = _describe_answer(status, schema)
    return described


def _describe_answer(status: int, schema: Optional[Mapping[str, Any]]) -> Dict[str, Any]:
    described: Dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if schema:
        described["content"] = {"application/json": {"schema": schema}}
    return described


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
    store.close_idle()  # the server may fork now; uWSGI gives no notice of it
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
        with _build_locks.setdefault(_pid, threading.Lock()):
            if _built is None:
                _built = create_app()
    return _built(environ, start_response)


# --- HTTP: requests -----------------------------------------------------------------------------
#
# Design: wsgiref parses headers with an e-mail parser, which forgives. On a connection that is kept
# open, leniency becomes request smuggling: what one parser takes for a body, another takes for a
# request (RFC 9112 §11.2). So headers are parsed by RFC 9112's grammar, or rejected with an error
# that closes the connection. Parsing runs in the event loop and does no I/O.

_TCHAR = "[!#$%&'*+.^_`|~0-9A-Za-z-]"
# RFC 9112 §3: request-line = method SP request-target SP HTTP-version
# RFC 9112 §2.3: HTTP-version = "HTTP" "/" DIGIT "." DIGIT
_REQUEST_LINE = re.compile(rf"({_TCHAR}+) ([!-~]+) HTTP/([0-9]\.[0-9])\r\n")
# RFC 9112 §5: field-line = field-name ":" OWS field-value OWS, without obs-fold
# RFC 9110 §5.5: field-vchar = VCHAR / obs-text
_FIELDS = re.compile(rf"(?:{_TCHAR}+:[\t -~\x80-\xff]*\r\n)*")
# RFC 9110 §7.2: Host = uri-host [ ":" port ]
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[\w.~!$&'()*+,;=%-]*)(?::[0-9]*)?", re.ASCII)
# RFC 9112 §3.2: origin-form = absolute-path [ "?" query ], absolute-form = absolute-URI
_TARGET = re.compile(r"(?:https?://([^/?#]+))?(/[^?#]*)?(?:\?([^#]*))?", re.IGNORECASE)
# RFC 9110 §8.6: Content-Length = 1*DIGIT
_CONTENT_LENGTH = re.compile("[0-9]+")
_BARE_LINE_END = re.compile(rb"(?<!\r)\n|\r(?![\n]|$)")  # RFC 9112 §2.2
_EMPTY_LINES = re.compile(rb"(?:\r\n)*")  # RFC 9112 §2.2: allowed before a request line
_FIRST_BYTE = re.compile(_TCHAR.encode() + rb"|\r?$")
_SINGLETON_FIELDS = ("HTTP_HOST", "HTTP_CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING")

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
    environ["REQUEST_METHOD"], target, version = line.groups()
    if version not in ("1.0", "1.1"):
        raise HTTPError(505, "Only HTTP/1.0 and HTTP/1.1 are supported")
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
    line_start = data.rfind(b"\r\n") + 2
    if len(data) - line_start > MAX_LINE_BYTES:
        raise HTTPError(414 if line_start == 1 else 431, "A header line is too long")


def _check_header_size(header: bytes) -> None:
    if len(header) <= MAX_LINE_BYTES:
        return
    lengths = [len(line) for line in header.split(b"\r\n")]
    if lengths[0] > MAX_LINE_BYTES:
        raise HTTPError(414, "The request line is too long")
    if max(lengths) > MAX_LINE_BYTES or len(header) > MAX_HEADER_BYTES:
        raise HTTPError(431, "The header is too long")


class _BodyStream(io.RawIOBase):
    """A long request body, received while the application reads it."""

    def __init__(self, connection: "_Connection", request: _Request) -> None:
        self._connection = connection
        self.remaining = request.length
        self.bytes_received = 0
        self.pace = connection.server.new_pace(_State.READING_BODY)
        self.continue_pending = request.expects_continue

    def readable(self) -> bool:
        """Tell that this stream can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Receive some bytes; none at the end of the body, or if the client sends too slowly."""
        if self.continue_pending:
            self._connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.continue_pending = False
        size = min(len(buffer), self.remaining)
        data = self._connection.receive_body(size, self) if size else b""
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


# --- HTTP: responses ----------------------------------------------------------------------------
#
# Design: a _Handler runs the application for one request, checks the status and headers that it
# gives, and frames the body (RFC 9112 §6). Bytes of a response that is complete are only queued:
# the event loop sends them. Bytes of a stream are sent before the application continues (PEP 3333).
# A response must never end early without the client being able to see it.

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

    It takes nothing from the environment of this process.
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
        self.environ = request.environ  # the application may change it, so what is needed is copied
        self._method = request.environ["REQUEST_METHOD"]
        self._version = request.environ.get("SERVER_PROTOCOL")
        self._framing = _Framing.UNTIL_CLOSE
        self._fields = ""
        self._length: Optional[int] = None  # the Content-Length given by the application
        self._remaining = 0  # bytes of it that are still to be sent
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
        except BaseException:  # SystemExit too: it would end the thread of the event loop
            if self.headers_sent:
                self.keep_alive = False
                # The end of the connection would pass for the end of the response.
                self._connection.aborted = self._framing is _Framing.UNTIL_CLOSE
            self.handle_error()

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
        is_whole_body = isinstance(self.result, (list, tuple)) and len(self.result) == 1
        self._send(data, is_whole_body)

    def finish_content(self) -> None:
        """End the response."""
        if not self.headers_sent:
            self._send(b"", True)
        if self._framing is _Framing.CHUNKED:
            self._connection.queue(b"0\r\n\r\n")
        if self._remaining:
            logger.error("The response body is shorter than its Content-Length")
            self.keep_alive = False

    def _send(self, data: bytes, is_whole_body: bool) -> None:
        header = b"" if self.headers_sent else self._header(len(data) if is_whole_body else None)
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
        if not is_whole_body:
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


@lru_cache(maxsize=256)  # few applications have more different headers
def _format_fields(
    status: str, headers: Tuple[Tuple[str, str], ...],
) -> Tuple[str, Optional[int], bool]:
    """The fields of a response as text, its Content-Length, and whether they include a Date.

    Raises:
        ValueError: the status or a field is malformed, so that it could split the response in two,
            or only the server may send it.
        TypeError: it is not text.
    """
    if status[:3] == "204":  # RFC 9110 §8.6
        headers = tuple(field for field in headers if field[0].lower() != "content-length")
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
# Design: a connection has one state and one owner. In every state but RESPONDING the owner is the
# event loop. In RESPONDING it is the thread that answers the request: usually the event loop's, but
# if the loop has moved on, a worker thread, which then gives the connection back through a queue.
# Only the owner touches the socket and the buffers. A socket never blocks, except in a worker.


class _State:
    """What a connection is doing."""

    HANDSHAKE = "handshake"  # of TLS
    IDLE = "idle"  # no byte of a request has arrived
    READING_HEADER = "reading header"
    READING_BODY = "reading body"  # a short one; a long one is read by the application
    RESPONDING = "responding"  # a request waits to be answered, or is being answered
    SENDING = "sending"  # the client has not taken the whole response yet
    LINGERING = "lingering"  # the response is sent; input is discarded until the client closes


SEND_BYTES = 64 * 1024  # in one call, so that the progress of a slow client is seen
MAX_SENDS = 2  # calls, before the event loop serves another connection


class _ClientGone(Exception):
    """The client has closed the connection, or sends or reads too slowly."""


class _Pace:
    """Judges a client for which others wait.

    It may pause for `grace` seconds, and must move `rate` bytes a second on average over the time
    that was spent waiting. `clock` returns seconds.
    """

    def __init__(self, grace: float, rate: float, clock: Callable[[], float]) -> None:
        self._grace = grace
        self._rate = rate
        self._clock = clock
        self._bytes_moved = 0
        self._seconds_waited = 0.0
        self._checked_at = self._moved_at = 0.0

    def begin_wait(self) -> None:
        """Start to measure, or continue after a time in which nobody waited."""
        self._checked_at = self._moved_at = self._clock()

    def is_too_slow(self, bytes_moved: int) -> bool:
        """Tell whether the client, which has moved so many bytes so far, has broken the rule."""
        now = self._clock()
        self._seconds_waited += now - self._checked_at
        self._checked_at = now
        if bytes_moved > self._bytes_moved:
            self._bytes_moved, self._moved_at = bytes_moved, now
        return (now - self._moved_at > self._grace
                or self._seconds_waited > self._grace + bytes_moved / self._rate)


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
        self.error: Optional[Answer] = None  # the response to a malformed request
        self.keep_alive = True
        self.aborted = False  # the response cannot be completed
        self.bytes_sent = 0  # of the current response
        self.bytes_discarded = 0  # while lingering
        self.pace: Optional[_Pace] = None  # if the server has waited for a short body or a reader
        self._unsent: Deque[Union[bytes, memoryview]] = deque()
        # Most clients repeat their headers on each request. Parsing takes a fifth of a response's
        # time, so the last headers are kept with the parsed request.
        self._cached_header = b""
        self._cached_request: Any = None

    # These methods run in the event loop.

    def receive(self) -> bool:
        """Receive some bytes; tell whether a request is ready to be answered.

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
        """Tell whether a request is ready to be answered, if only with an error."""
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
        self.error = _NO_ROUTE.failure(error)  # not the exception: its traceback refers to us

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
        return _Request(self._cached_request.environ.copy(), *self._cached_request[1:])

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
            socket.socket.shutdown(self.sock, socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket; if the response is incomplete, with RST, so that the client sees it."""
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
            application = partial(_send, self.error)
        elif request.environ["PATH_INFO"] == "*":  # about the server itself (RFC 9110 §9.3.7)
            application = partial(_send, Answer.of(204))
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
        """Send unsent bytes until the socket takes no more; tell whether all have been sent.

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
# Design: one thread owns the loop. It receives requests, answers them one after the other, and
# sends the responses of an iteration together: system calls between responses would cost half of
# their time. Python runs one thread at a time, so more threads would not be faster. When a response
# takes longer than POLL_INTERVAL, the loop moves: it continues in a new thread, and the old thread,
# now a worker, finishes that response, hands its connection back through `_finished`, and ends.
# The loop itself waits for no client.

POLL_INTERVAL = 0.005  # seconds after which the loop moves, or polls although requests wait
IDLE_POLL_INTERVAL = 0.05  # seconds; the same, for a server that has nothing to do
EXPIRY_INTERVAL = 0.02  # seconds between two checks of the timers
MAX_POLL_WAIT = 0.25  # seconds; no timer expires later than that
MAX_BLOCKED_THREADS = 1024  # that wait for a client; JWTSERVER_THREADS does not count them
MAX_WAIT = 0.2  # seconds that a worker waits for its client before it checks what has changed
RETRY_THREAD_SECONDS = 1.0  # until the next attempt, after a thread could not be started
GC_THRESHOLD = 10_000  # objects; each request creates and destroys some tens of them
LINGER_SECONDS = 1.0  # for a client to read the response before its connection is closed
SHUTDOWN_TIMEOUT = 10.0  # seconds for responses in progress


class _Server:
    """Serves an application over HTTP/1.1 connections that are kept open.

    `clock` returns seconds, and never goes back.
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
        if hasattr(socket, "TCP_NOTSENT_LOWAT") and listener.family != socket.AF_UNIX:
            # Else the system copies megabytes for each client that does not read.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 2 * SEND_BYTES)
        self._wakeup_sender, self._wakeup_receiver = socket.socketpair()
        self._wakeup_receiver.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wakeup_receiver, selectors.EVENT_READ, self._on_wakeup)
        self._ready: Deque[_Connection] = deque()  # their requests wait to be answered
        self._finished: Deque[_Connection] = deque()  # their responses wait to be sent
        self._timeouts = {
            _State.HANDSHAKE: settings.head_timeout, _State.IDLE: settings.idle_timeout,
            _State.READING_HEADER: settings.head_timeout,
            _State.READING_BODY: settings.head_timeout, _State.RESPONDING: math.inf,
            _State.SENDING: settings.idle_timeout, _State.LINGERING: LINGER_SECONDS}
        # The connections in each state, with the time at which it expires, the earliest first.
        self._timers: Dict[str, Dict[_Connection, float]] = {state: {} for state in self._timeouts}
        self._expiry_checked = 0.0
        self._lock = threading.Lock()  # of the attributes below
        self._threads: Set[threading.Thread] = set()  # the loop's, and the workers
        self._loop_thread: Optional[threading.Thread] = None
        self._response_began: Optional[float] = None  # of the response in the loop, if there is one
        self._thread_wanted = False  # the loop could not move, as all threads are busy
        self._retry_thread_at = 0.0
        self._blocked_threads = 0  # of `_threads`, those that wait for a client

    # These methods run in the main thread.

    def serve_forever(self) -> None:
        """Serve until `interrupt` is called; move the loop when a response takes long."""
        with self._lock:
            started = self._start_thread()
        if not started:
            logger.error("No thread can be started: requests are answered one at a time")
            self._loop_thread = threading.current_thread()
            self._run_loop()
        while not self._ended and self._clock() < self._deadline:
            busy = self._response_began is not None or self._ready or self._finished
            time.sleep(POLL_INTERVAL if busy else IDLE_POLL_INTERVAL)
            self._move_loop(POLL_INTERVAL)

    def interrupt(self, *_: Any) -> None:
        """Handle a signal: finish the responses in progress; at the second one, exit at once."""
        if self.stopping:
            os._exit(1)
        self._deadline = self._clock() + SHUTDOWN_TIMEOUT
        self.stopping = True
        self._wake()

    def finish(self) -> None:
        """Close all sockets, after the loop has ended."""
        self._ended = True
        self._wake()
        for thread in list(self._threads):
            remaining = max(0.0, self._deadline - self._clock())
            is_loop = thread is self._loop_thread  # it ends as soon as it sees `_ended`
            thread.join(min(SHUTDOWN_TIMEOUT, max(1.0, remaining) if is_loop else remaining))
        for connection in [each for timers in self._timers.values() for each in timers]:
            self._close(connection)
        for closable in (self._listener, self._selector, self._wakeup_sender,
                         self._wakeup_receiver):
            closable.close()

    # These methods run in any thread.

    def release_loop(self) -> None:
        """Move the loop to another thread, if this thread has it: its response will take long."""
        if self._loop_thread is threading.current_thread():
            self._move_loop(0)

    def _move_loop(self, min_seconds: float) -> None:
        """Let a new thread have the loop, if the response in it began `min_seconds` ago."""
        with self._lock:
            began = self._response_began
            if began is None or self._clock() - began < min_seconds:
                return
            self._response_began = None  # before the new thread begins a response of its own
            self._thread_wanted = not self._start_thread()
            if self._thread_wanted:
                self._response_began = began

    def _start_thread(self) -> bool:
        """Start a thread that has the loop. One that cannot be started counts as busy."""
        if self._is_short_of_threads():
            return False
        thread = threading.Thread(target=self._run_loop, daemon=True)
        previous, self._loop_thread = self._loop_thread, thread
        try:
            thread.start()
        except RuntimeError:  # by a limit of the system or of a container
            self._loop_thread = previous
            self._retry_thread_at = self._clock() + RETRY_THREAD_SECONDS
            return False
        self._threads.add(thread)
        return True

    def _is_short_of_threads(self) -> bool:
        busy = len(self._threads) - self._blocked_threads
        return (busy >= self.settings.threads or self._blocked_threads > MAX_BLOCKED_THREADS
                or self._clock() < self._retry_thread_at)

    def _wake(self) -> None:
        """Make the loop poll at once."""
        with suppress(OSError):
            self._wakeup_sender.send(b"!")

    # These methods run in the event loop: only its thread touches the selector, the states of
    # connections, and the timers.

    def _run_loop(self) -> None:
        me = threading.current_thread()
        while not self._ended and (self._loop_thread is me or self._take_wanted_loop(me)):
            try:
                self._iterate()
            except Exception:
                logger.exception("A fault in the server")
        with self._lock:
            self._threads.discard(me)

    def _take_wanted_loop(self, me: threading.Thread) -> bool:
        """Let this worker, whose response is finished, have the loop if it could not move."""
        with self._lock:
            wanted = self._thread_wanted
            if wanted:
                self._loop_thread, self._response_began = me, None
                self._thread_wanted = False
            else:
                self._threads.discard(me)
            return wanted

    def _iterate(self) -> None:
        """Send the finished responses, receive requests, and answer them until it is time to poll.
        """
        while self._finished:
            self._attempt(self._send, self._finished.popleft())
        self._poll()
        end = self._clock() + POLL_INTERVAL
        while self._ready and self._clock() < end:
            if not self._respond(self._ready.popleft()):
                return

    def _respond(self, connection: _Connection) -> bool:
        """Answer a request; tell whether this thread still has the loop."""
        self._response_began = self._clock()
        try:
            connection.respond()
        except Exception:
            logger.exception("A fault in the server")
            connection.aborted = True
        with self._lock:
            moved = self._loop_thread is not threading.current_thread()
            if not moved:
                self._response_began, self._thread_wanted = None, False
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
        longest_wait = EXPIRY_INTERVAL if self.stopping else MAX_POLL_WAIT
        events = self._selector.select(0 if self._ready or self._finished else longest_wait)
        for key, _ in events:
            key.data()
        self._close_expired()
        if self.stopping:
            self._shut_down(bool(events))

    def _on_wakeup(self) -> None:
        self._wakeup_receiver.recv(RECEIVE_BYTES)

    def _accept(self) -> None:
        try:
            sock, address = self._listener.accept()
        except OSError as error:  # the client has gone, or there are too many open files
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._evict_oldest()
            return
        sock.setblocking(False)
        try:
            if sock.family != getattr(socket, "AF_UNIX", None):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            if self.tls:
                sock.getpeername()  # fails where wrap_socket() would fail and not close the socket
                sock = self.tls.wrap_socket(
                    sock, server_side=True, do_handshake_on_connect=False)
        except (OSError, ValueError):  # the client has gone
            sock.close()
            return
        if sum(map(len, self._timers.values())) >= self.settings.connections:
            self._evict_oldest()
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
        elif connection.reading_state() != state:
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
            if not size or connection.bytes_discarded > MAX_BODY_BYTES:
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
            connection.aborted = connection.state == _State.SENDING
            self._close(connection)

    def _check_pace(self, connection: _Connection, bytes_moved: int) -> None:
        """Restart the timer of a client that has moved some bytes, unless it is too slow."""
        if self.pace_of(connection).is_too_slow(bytes_moved):
            self._on_timeout(connection)
        else:
            timers = self._timers[connection.state]
            del timers[connection]
            timers[connection] = self._clock() + self._timeouts[connection.state]

    def _evict_oldest(self) -> None:
        """Make room for a connection: close the one that has been in its state the longest.

        A client that is reading its response is only evicted if there is no other.
        """
        waiting = (_State.HANDSHAKE, _State.IDLE, _State.READING_HEADER, _State.READING_BODY,
                   _State.LINGERING)
        for states in (waiting, (_State.SENDING,)):
            oldest = [next(iter(self._timers[state])) for state in states if self._timers[state]]
            if oldest:
                self._close(min(oldest, key=attrgetter("state_since")))
                return

    def _close(self, connection: _Connection) -> None:
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
        in_progress = (
            _State.IDLE, _State.READING_BODY, _State.RESPONDING, _State.SENDING)
        if not any(self._timers[state] for state in in_progress):
            self._ended = True

    # These methods run in the thread that answers a request: the event loop's, or a worker.

    def wait_for_body(self, connection: _Connection, stream: _BodyStream) -> bytes:
        """Wait for bytes of a body; none if the client has gone, is too slow, or keeps a thread
        that is needed elsewhere."""
        stream.pace.begin_wait()
        with self._blocking(connection), suppress(OSError, ValueError):
            data = None
            while data is None and not self._thread_wanted:
                with suppress(*self.would_block):
                    data = bytes(connection.sock.recv(RECEIVE_BYTES))
                if stream.pace.is_too_slow(stream.bytes_received + len(data or b"")):
                    return b""
        return data or b""

    def wait_until_sent(self, connection: _Connection) -> None:
        """Wait until the client has taken all unsent bytes.

        Raises:
            _ClientGone: the client reads too slowly, or keeps a thread that is needed elsewhere.
            OSError: the client has gone.
        """
        pace, finished = self.pace_of(connection), False
        pace.begin_wait()
        with self._blocking(connection):
            while not finished:
                finished = connection.send_some()
                if pace.is_too_slow(connection.bytes_sent):
                    raise _ClientGone
                if self._thread_wanted and not finished:
                    raise _ClientGone

    def pace_of(self, connection: _Connection) -> _Pace:
        """The pace of a client that sends a short body, or reads its response."""
        if connection.pace is None:
            connection.pace = self.new_pace(connection.state)
        return connection.pace

    def new_pace(self, state: str) -> _Pace:
        """A pace whose grace is the timeout of a state; SENDING's for RESPONDING."""
        grace = self._timeouts[_State.SENDING if state == _State.RESPONDING else state]
        return _Pace(grace, self.settings.body_rate, self._clock)

    @contextmanager
    def _blocking(self, connection: _Connection) -> Iterator[None]:
        """Let the socket block for MAX_WAIT; the loop continues in another thread."""
        with self._lock:
            self._blocked_threads += 1
        self.release_loop()
        connection.sock.settimeout(MAX_WAIT)
        try:
            yield
        finally:
            connection.sock.settimeout(0)
            with self._lock:
                self._blocked_threads -= 1

    def log_access(self, request: _Request, handler: _Handler) -> None:
        """Write a line about a request, if there is an access log."""
        if self.access_log is None:
            return
        try:
            print(_access_log_line(request, handler), file=self.access_log, flush=True)
        except OSError as error:  # its reader has gone; the clients are still there
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


def _settings(args: argparse.Namespace) -> Settings:
    """Settings from the environment, over which flags prevail."""
    environ = dict(os.environ)
    for name in _PARSERS:
        flag = getattr(args, name, None)
        if isinstance(flag, list):
            flag = ("," if name == "cors_origins" else ";").join(flag)
        if flag is not None:
            environ[f"JWTSERVER_{name.upper()}"] = flag
    if args.secret_file:
        environ["JWTSERVER_SECRET"] = ""
    return Settings.from_environ(environ)


def _serve(args: argparse.Namespace) -> None:
    settings = _settings(args)
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
                    " --host and --port take others") from None
    _raise_file_limit()
    with listener:
        store = open_store(settings.database)
        log = sys.stdout if args.access_log else None
        server = _Server(create_app(settings, app=app, store=store), listener, settings, tls, log)
        try:
            demo = _add_demo(store, settings) if store.is_empty() else None
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, server.interrupt)
            _greet(_url(args.host, listener, tls), settings, store, demo,
                   "/" if app else "/protected")
            # Looking for garbage took a tenth of the time of a request; what is there is none.
            gc.freeze()
            gc.set_threshold(GC_THRESHOLD)
            server.serve_forever()
        finally:
            server.finish()


def _raise_file_limit() -> None:
    """Let this process have as many files open as it may: each connection is one."""
    with suppress(ImportError, OSError, ValueError):  # Windows has none, macOS may refuse
        import resource
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _url(host: str, listener: socket.socket, tls: Any) -> str:
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    host = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{host}:{_socket_address(listener)[1]}"


def _log_to_stderr() -> None:
    """Show what is logged, unless the application of the user has seen to that already."""
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


def _add_demo(store: Store, settings: Settings) -> Optional[Tuple[str, str]]:
    """Make a user to try it; return a password and a token, unless another process was faster."""
    password = secrets.token_hex(8)
    user = _new_user("demo", _hash(password, settings))
    try:
        _add_users(store, [user])
    except NameTaken:
        return None
    return password, _issue(store, user, settings, settings.token_lifetime)


def _greet(
    url: str, settings: Settings, store: Store, demo: Optional[Tuple[str, str]], path: str,
) -> None:
    needed = f"A token is needed for {', '.join(settings.protect or (path,))}"
    if settings.exempt:
        needed += f", but not for {', '.join(settings.exempt)}"
    lines = [f"jwtserver listens on {url} (Ctrl-C stops it)", needed]
    if demo:
        password, token = demo
        lines += [
            f"\n{store.name} had no users, so there is one now to try it: demo.",
            f"The password is {password}, and is shown only now.",
            "\nSign in:",
            f"curl -d username=demo -d password={password} {url}{settings.prefix}/authenticate",
            "\nShow the token to the guard:",
            f'curl -H "Authorization: Bearer {token}" {url}{path}',
            "\nUsers of your own, and the end of this one:",
            "python jwtserver.py user add NAME",
            "python jwtserver.py user remove demo\n",
        ]
    print("\n".join(lines), flush=True)


def _issue(store: Store, user: User, settings: Settings, lifetime: int) -> str:
    """A token of a session of its own, which cannot be refreshed."""
    signer, now = make_signer(settings), time.time()
    grant = new_grant(user, lifetime, now)
    grant = grant._replace(session=grant.session._replace(refresh_hash=""))
    if not store.open_session(grant, now):
        raise Error(f"the user {user.name!r} has just been changed")
    _audit("token_issue", user=user.name, session=grant.session.id)
    return issue_token(grant, signer, lifetime, now)[0]


def _add_users(store: Store, users: List[User]) -> None:
    store.add(users)
    for user in users:
        _audit("user_add", user=user.name)


def _hash(password: str, settings: Settings) -> str:
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
        raise Error(f"scopes are separated by spaces, not commas: {scope!r}")
    return " ".join(names)


def _new_user(name: str, password_hash: str, scope: str = "") -> User:
    try:
        name = clean_name(name)
    except ValueError as error:
        raise Error(str(error)) from None
    return User(name, password_hash, _clean_scope(scope), 0, int(time.time()))


def _open_store(args: argparse.Namespace) -> Store:
    """The store that is there: in a wrong folder, a new one would hide the mistake."""
    database = _settings(args).database
    if not _is_url(database) and not Path(database).exists():
        raise Error(f"there is no database {Path(database).absolute()}; `user add` makes it")
    return open_store(database)


def _existing(store: Store, name: str) -> User:
    user = store.find(name)
    if user is None:
        raise Error(f"there is no user {name!r} in {store.name}")
    return user


def _input() -> TextIO:
    if sys.stdin is None:
        raise Error("the input is closed")
    return sys.stdin


def _ask_password(args: argparse.Namespace) -> str:
    if args.password_stdin:
        return _input().readline().rstrip("\r\n")
    if not _input().isatty():
        raise Error("there is no terminal to ask for the password on; use --password-stdin")
    try:
        password, again = getpass.getpass("Password: "), getpass.getpass("Again: ")
    except EOFError:
        print(file=sys.stderr)
        raise Error("there is no password, so nothing has changed") from None
    if again != password:
        raise Error("these are two different passwords")
    return password


def _user_add(args: argparse.Namespace) -> None:
    store = open_store(_settings(args).database)
    user = _new_user(args.name, "", args.scope)
    if store.find(user.name):
        raise NameTaken(user.name)
    password_hash = _hash(_ask_password(args), _settings(args))
    _add_users(store, [user._replace(password_hash=password_hash)])
    print(f"{user.name} is a user in {store.name} now")


def _user_list(args: argparse.Namespace) -> None:
    store = _open_store(args)
    if store.is_empty():
        print(f"{store.name} has no users", file=sys.stderr)
    for user in store.all():
        state = "disabled" if user.disabled else "enabled"
        print(f"{user.name:24} {state:8} {user.scope}".rstrip())


def _user_change(args: argparse.Namespace) -> None:
    """Remove, disable, enable or log out a user."""
    store = _open_store(args)
    user = _existing(store, args.name)
    change, outcome = {
        "remove": (store.remove, "is removed"),
        "disable": (store.disable, "can no longer sign in, and is signed out"),
        "enable": (store.enable, "can sign in"),
        "logout": (store.end_sessions, "is signed out"),
    }[args.command]
    change(user.name)
    _audit(f"user_{args.command}", user=user.name)
    print(f"{user.name} {outcome}")


def _user_password(args: argparse.Namespace) -> None:
    store = _open_store(args)
    user = _existing(store, args.name)
    store.set_password(user.name, _hash(_ask_password(args), _settings(args)))
    _audit("user_password", user=user.name)
    print(f"{user.name} has the new password, and is signed out")


def _user_scope(args: argparse.Namespace) -> None:
    store = _open_store(args)
    user = _existing(store, args.name)
    scope = _clean_scope(args.scope)
    store.set_scope(user.name, scope)
    _audit("user_scope", user=user.name)
    print(f"{user.name} has {f'the scopes {scope}' if scope else 'no scopes'}, and is signed out")


def _user_import(args: argparse.Namespace) -> None:
    try:
        with open(args.file, encoding="utf-8-sig", newline="") as file:
            users = list(_read_users(csv.reader(file)))
    except UnicodeDecodeError:
        raise Error(f"{args.file}: must be in UTF-8") from None
    except csv.Error as error:
        raise Error(f"{args.file}: {error}") from None
    except Error as error:
        raise Error(f"{args.file}, {error}") from None
    store = open_store(_settings(args).database)
    try:
        _add_users(store, users)
    except NameTaken as error:
        raise Error(f"{args.file}: {error}") from None
    print(f"{len(users)} {'user' if len(users) == 1 else 'users'} imported into {store.name}")


def _read_users(rows: Any) -> Iterator[User]:
    """Users from the rows of a csv.reader: username,password_hash[,scope], below a head or not."""
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


def _token_issue(args: argparse.Namespace) -> None:
    store, settings = _open_store(args), _settings(args)
    user = _existing(store, args.name)
    if user.disabled:
        raise Error(f"the user {user.name!r} is disabled")
    print(_issue(store, user, settings, args.lifetime or settings.token_lifetime))


def _token_inspect(args: argparse.Namespace) -> None:
    token = args.token or _input().readline().strip()
    settings = _settings(args)
    signer = make_signer(settings)
    try:
        claims = signer.verify(token)
    except InvalidTokenError as error:
        raise Error(f"not a good token: {error}") from None
    if Service(open_store(settings.database), signer, settings, time.time).is_revoked(claims):
        raise Error("not a good token: Token has been revoked")
    print(json.dumps(claims, indent=2))


def _key_rotate(args: argparse.Namespace) -> None:
    settings = _settings(args)
    with open_store(settings.database).changing_keys():
        keys, _ = replace_keys(settings, lambda keys: [secrets.token_hex(32).encode(), *keys])
    _audit("key_rotate")
    print(f"{settings.key_file.absolute()} has a new key, which signs from now on; older ones,"
          f" whose tokens remain good: {len(keys)}. When those have expired, in"
          f" {settings.token_lifetime} seconds, run: python jwtserver.py key prune")


def _key_prune(args: argparse.Namespace) -> None:
    settings = _settings(args)
    store = open_store(settings.database)
    with store.changing_keys():
        keys, rotated = replace_keys(settings, lambda keys: keys[:1])
    if len(keys) == 1:
        print(f"{settings.key_file.absolute()} has one key, so there is none to drop")
        return
    _audit("key_prune")
    signed = rotated + KEY_FILE_INTERVAL
    live = store.count_tokens(signed, settings.token_lifetime, time.time())
    print(f"{settings.key_file.absolute()} has one key now; {len(keys) - 1} older dropped. Live"
          f" tokens that they may have signed, and that are refused from now on: {live}")


# --- The command line ---------------------------------------------------------------------------


class _CommandParser(argparse.ArgumentParser):
    """Refuses what it does not know by its own usage; argparse leaves that to the root."""

    def parse_known_args(self, *args: Any) -> Any:  # type: ignore[override]
        """Parse, with nothing left over."""
        namespace, unknown = super().parse_known_args(*args)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown


class _Commands:
    """A level of the command line: its commands, each with its help and an example."""

    def __init__(self, parser: _CommandParser, parents: List[_CommandParser]):
        self._subparsers = parser.add_subparsers(
            dest="command", required=True, prog=parser.prog)
        self._parents = parents

    def add(
        self, name: str, run: Optional[Callable[[argparse.Namespace], None]], help: str,
        *examples: str,
    ) -> _CommandParser:
        parser = self._subparsers.add_parser(
            name, help=help, description=help[0].upper() + help[1:] + ".", allow_abbrev=False,
            parents=self._parents if run else [], epilog=_examples(*examples),
            formatter_class=argparse.RawDescriptionHelpFormatter)
        if run:
            parser.set_defaults(run=run)
        return parser


def _examples(*lines: str) -> str:
    return "\n  ".join(("example:" if len(lines) == 1 else "examples:", *lines))


def _number(most: int, least: int = 1) -> Callable[[str], int]:
    def number(text: str) -> int:
        try:
            return _parse_number(text, most, least)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return number


def _parser() -> _CommandParser:
    parser = _CommandParser(
        description="Sign-in with JSON Web Tokens. Without a command, it serves.",
        usage="%(prog)s [--help] [--version] [COMMAND] ...   (the flags of each: COMMAND --help)",
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        epilog=_examples("python jwtserver.py", "python jwtserver.py user add alice",
                         "python jwtserver.py serve --help"))
    parser.add_argument("--version", action="version", version=f"jwtserver {__version__}")
    files = _CommandParser(add_help=False)
    files.add_argument("--database", metavar="FILE",
                       help="or postgresql://…; default: jwtserver.db")
    files.add_argument("--secret-file", metavar="FILE",
                       help="the signing keys; default: jwtserver.key beside the database")
    commands = _Commands(parser, [files])
    _add_serve(commands)
    user = commands.add("user", None, "manage users", "python jwtserver.py user list")
    _add_user_commands(_Commands(user, [files]))
    token = _Commands(commands.add("token", None, "issue and inspect tokens",
                                   "python jwtserver.py token issue alice"), [files])
    issue = token.add("issue", _token_issue, "print a token for a user, without the password",
                      "python jwtserver.py token issue alice --lifetime 60")
    issue.add_argument("name", metavar="NAME")
    issue.add_argument("--lifetime", metavar="SECONDS", type=_number(MAX_LIFETIME))
    inspect = token.add("inspect", _token_inspect, "verify a token and print its claims",
                        "python jwtserver.py token issue alice | python jwtserver.py token inspect")
    inspect.add_argument("token", metavar="TOKEN", nargs="?", help="default: a line of the input")
    key = _Commands(commands.add("key", None, "manage the signing keys",
                                 "python jwtserver.py key rotate"), [files])
    key.add("rotate", _key_rotate, "sign with a new key, and still verify with the older ones",
            "python jwtserver.py key rotate")
    key.add("prune", _key_prune, "drop all keys but the one that signs, with what they have signed",
            "python jwtserver.py key prune")
    return parser


def _add_serve(commands: _Commands) -> None:
    serve = commands.add(
        "serve", _serve, "serve over HTTP", "python jwtserver.py --port 8000",
        "python jwtserver.py --protect /protected --protect 'POST,DELETE /articles'")
    serve.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    serve.add_argument("--port", type=_number(65535, 0), default=3000,
                       help="0 takes a free one; default: %(default)s")
    serve.add_argument("--app", metavar="MODULE:CALLABLE",
                       help="a WSGI application to serve behind the guard, from this folder")
    serve.add_argument("--protect", metavar="RULE", action="append",
                       help="a path that needs a token, optionally behind methods: 'POST /path';"
                            " what no rule covers is open")
    serve.add_argument("--exempt", metavar="RULE", action="append",
                       help="a path inside of it that does not")
    serve.add_argument("--prefix", metavar="PATH", help="where the endpoints are; default: /")
    serve.add_argument("--cors-origin", metavar="ORIGIN", action="append", dest="cors_origins",
                       help="whose pages may read the answers: https://app.example.org, or *")
    serve.add_argument("--tls-cert", metavar="FILE", help="serve over TLS, with this chain (PEM)")
    serve.add_argument("--tls-key", metavar="FILE", help="its key, if it is not in the same file")
    serve.add_argument("--access-log", action="store_true",
                       help="print a line for each request, in the combined log format")


def _add_user_commands(user: _Commands) -> None:
    add = user.add(
        "add", _user_add, "add a user; the password is asked for",
        "python jwtserver.py user add alice --scope 'read write'",
        "echo 'correct horse' | python jwtserver.py user add alice --password-stdin")
    add.add_argument("--scope", metavar="SCOPES", default="",
                     help="what the user's tokens permit, separated by spaces")
    user.add("list", _user_list, "list the users", "python jwtserver.py user list")
    named = {"add": add}
    for name, run, help in (
        ("remove", _user_change, "remove a user"),
        ("password", _user_password, "give a user another password"),
        ("scope", _user_scope, "give a user other scopes"),
        ("disable", _user_change, "let a user sign in no longer"),
        ("enable", _user_change, "let a user sign in again"),
        ("logout", _user_change, "end the sessions of a user"),
    ):
        scopes = " 'read write'" if name == "scope" else ""
        named[name] = user.add(name, run, help, f"python jwtserver.py user {name} alice{scopes}")
    for parser in named.values():
        parser.add_argument("name", metavar="NAME")
    named["scope"].add_argument("scope", metavar="SCOPES",
                                help="separated by spaces; '' for none")
    for name in ("add", "password"):
        named[name].add_argument("--password-stdin", action="store_true",
                                 help="the password is the first line of the input")
    load = user.add("import", _user_import, "add the users of a CSV file, all or none",
                    "python jwtserver.py user import users.csv")
    load.add_argument("file", metavar="FILE", help="username,password_hash[,scope] in each line")


def _flush() -> None:
    """Write out what has been printed, while it can still be told that it cannot be."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:  # and do not try again at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


_OF_MAIN = ("-h", "--help", "--version")  # other flags are those of `serve`


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run a command; return its exit code: 1 if it failed, 2 if it was not understood."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in _OF_MAIN):
        arguments.insert(0, "serve")
    try:
        try:
            if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may not have all letters
                sys.stdout.reconfigure(errors="backslashreplace")
            args = _parser().parse_args(arguments)
            if args.run is not _serve:
                _log_to_stderr()
            args.run(args)
        finally:
            _flush()
    except KeyboardInterrupt:
        return 130  # as the shell has it
    except OSError as error:  # without its number
        where = f"{error.filename}: " if error.filename else ""
        print(f"jwtserver: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except (Error, UnicodeError) as error:
        print(f"jwtserver: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
