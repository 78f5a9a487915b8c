"""A login service: user name and password in, JSON Web Token out, and a guard that asks for it.

    python jwtserver.py                   serves on http://127.0.0.1:3000
    python jwtserver.py user add alice    asks for a password
    python jwtserver.py --help            shows the other commands

The server answers

    POST /authenticate  {"username": …, "password": …}, as JSON or as a form: {"token": …, …}
    GET  /protected     with the header `Authorization: Bearer TOKEN`: a greeting
    GET  /health        {"status": "ok"}, or 503 if the database cannot answer

and guards any other WSGI application in the place of /protected:

    application = jwtserver.create_app(app=my_application)

A WSGI server finds `jwtserver:application`, configured by the environment (see Settings). Users
are kept in an SQLite file, and the keys that sign tokens in a file beside it.
"""

import argparse
import csv
import getpass
import json
import logging
import os
import re
import secrets
import signal
import socket
import socketserver
import sqlite3
import sys
import tempfile
import threading
import time
import unicodedata
import weakref
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import (
    Any, Callable, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple,
)
from urllib.parse import parse_qsl
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer

from wsgi_auth import (
    MAX_PBKDF2_ITERATIONS, PBKDF2_ITERATIONS, BearerAuthMiddleware, Claims, DecodeError, Environ,
    InvalidKeyError, InvalidTokenError, StartResponse, TokenSigner, WSGIApplication, hash_password,
    is_password_usable, needs_rehash, parse_json_object, parse_scopes, verify_password,
)

__all__ = ["Settings", "application", "create_app", "main"]

MAX_BODY_BYTES = 64 * 1024
MAX_NAME_LENGTH = 150  # characters, as in Django
MAX_LIFETIME = 10 * 366 * 86400  # seconds
BUSY_TIMEOUT = 5.0  # seconds to wait while another process writes to the database
MAX_IDLE_CONNECTIONS = 16  # to the database, in each process
CLIENT_TIMEOUT = 30.0  # seconds in which a client must send or take a byte

logger = logging.getLogger("jwtserver")


class Error(Exception):
    """What stops a command; the message is one line for the person who gave it."""


# --- Settings -----------------------------------------------------------------------------------


class SettingsError(Error):
    """A setting that cannot be used. The message names its variable."""


def _parse_database(text: str) -> str:
    if "://" in text or text == ":memory:":
        raise ValueError("must be the name of an SQLite file")
    return text


def _parse_number(text: str, most: int) -> int:
    if not re.fullmatch("[0-9]{1,18}", text) or not 1 <= int(text) <= most:
        raise ValueError(f"must be a whole number from 1 to {most}, not {text!r}")
    return int(text)


def _parse_rules(text: str) -> Tuple[str, ...]:
    return tuple(rule.strip() for rule in text.split(";") if rule.strip())


def _parse_prefix(text: str) -> str:
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]*[A-Za-z0-9_~-])+/?", text):
        raise ValueError(f"must be a path like /auth, not {text!r}")
    return text.rstrip("/")


_PARSERS: Dict[str, Callable[[str], Any]] = {
    "database": _parse_database,
    "secret": str,
    "secret_file": str,
    "issuer": str,
    "audience": str,
    "token_lifetime": lambda text: _parse_number(text, MAX_LIFETIME),
    "protect": _parse_rules,
    "exempt": _parse_rules,
    "prefix": _parse_prefix,
    "pbkdf2_iterations": lambda text: _parse_number(text, MAX_PBKDF2_ITERATIONS),
}


@dataclass(frozen=True)
class Settings:
    """How the service is configured. Each field is the variable `JWTSERVER_` and its name.

    >>> Settings.from_environ({"JWTSERVER_TOKEN_LIFETIME": "600"}).token_lifetime
    600
    >>> Settings.from_environ({"JWTSERVER_TOKEN_LIFETIME": "soon"})
    Traceback (most recent call last):
    jwtserver.SettingsError: JWTSERVER_TOKEN_LIFETIME must be a whole number ...
    """

    database: str = "jwtserver.db"
    secret: str = ""  # keys, one a line: the first signs, all verify
    secret_file: str = ""  # a file of such lines; jwtserver.key beside the database, if not given
    issuer: Optional[str] = None
    audience: Optional[str] = None
    token_lifetime: int = 3600  # seconds
    protect: Tuple[str, ...] = ()  # rules; /protected or, with an application of yours, everything
    exempt: Tuple[str, ...] = ()
    prefix: str = ""  # the path that the endpoints are below
    pbkdf2_iterations: int = PBKDF2_ITERATIONS

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        """Read the settings; an empty variable counts as none.

        Raises:
            SettingsError: a value cannot be used.
        """
        given = {}
        for name, parse in _PARSERS.items():
            variable = f"JWTSERVER_{name.upper()}"
            if environ.get(variable):
                try:
                    given[name] = parse(environ[variable])
                except ValueError as error:
                    raise SettingsError(f"{variable} {error}") from None
        return cls(**given)

    @property
    def key_file(self) -> Path:
        """The file of the keys, where `secret` is not given."""
        return Path(self.secret_file or Path(self.database).parent / "jwtserver.key")


# --- Keys ---------------------------------------------------------------------------------------


def load_keys(settings: Settings) -> List[bytes]:
    """The keys, the signing one first. A file that is not there is made, with a new key in it.

    Raises:
        SettingsError: there is no key, or one that cannot be used.
        OSError: the file cannot be read or made.
    """
    if settings.secret:
        source, text = "JWTSERVER_SECRET", settings.secret.encode("utf-8", "surrogateescape")
    else:
        source, text = str(settings.key_file), _read_key_file(settings.key_file)
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    try:
        TokenSigner(keys)
    except InvalidKeyError as error:
        raise SettingsError(f"{source}: {error}") from None
    return keys


def _read_key_file(path: Path) -> bytes:
    if not path.exists():
        _make_key_file(path)
    if os.name == "posix" and path.stat().st_mode & 0o077:
        logger.warning("%s can be read by others; run: chmod 600 %s", path, path)
    return path.read_bytes()


def _make_key_file(path: Path) -> None:
    """Make the file whole or not at all; of two processes that try at once, one succeeds."""
    draft = _write_draft(path, [secrets.token_hex(32).encode()])
    try:
        os.link(draft, path)  # unlike a rename, it never replaces a file
    except FileExistsError:
        pass
    finally:
        os.unlink(draft)


def _write_draft(path: Path, keys: Iterable[bytes]) -> str:
    """Write a file for its owner's eyes alone, on its disk, in the folder of `path`."""
    descriptor, draft = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    with open(descriptor, "wb") as file:
        file.write(b"".join(key + b"\n" for key in keys))
        file.flush()
        os.fsync(file.fileno())
    return draft


def replace_keys(settings: Settings, change: Callable[[List[bytes]], List[bytes]]) -> List[bytes]:
    """Rewrite the file of the keys at one stroke; its owner and mode remain.

    Raises:
        SettingsError: the keys are not in a file.
        OSError: the file cannot be replaced.
    """
    if settings.secret:
        raise SettingsError("the keys are in JWTSERVER_SECRET; change them there")
    keys = change(load_keys(settings))
    path = settings.key_file.resolve()  # where it is a link, what it points to
    draft = _write_draft(path, keys)
    try:
        status = path.stat()
        if hasattr(os, "chown"):  # Windows has none
            os.chown(draft, status.st_uid, status.st_gid)
        os.chmod(draft, status.st_mode & 0o777)
        os.replace(draft, path)
    except OSError:
        os.unlink(draft)
        raise
    return keys


# --- Users --------------------------------------------------------------------------------------


class StoreError(Error):
    """The database cannot do what it is asked. The message names the file."""


class User(NamedTuple):
    """A row of the table `users`."""

    name: str
    password_hash: str
    scope: str
    disabled: int
    created: int  # seconds since 1970


# Each entry leads from one version of the schema, which is its index, to the next. A release may
# add entries; those that have been released stay as they are.
_MIGRATIONS = (
    """CREATE TABLE users (
        name TEXT NOT NULL PRIMARY KEY,
        password_hash TEXT NOT NULL,
        scope TEXT NOT NULL,
        disabled INTEGER NOT NULL,
        created INTEGER NOT NULL
    )""",
)
_APPLICATION_ID = 0x6A777473  # "jwts", in the file's header: this database is ours


def clean_name(name: str) -> str:
    """Return a user name in the form in which names are compared, NFC.

    Raises:
        ValueError: it is empty, too long, or has what cannot be seen.

    >>> clean_name("Zoe\\u0308")
    'Zoë'
    """
    name = unicodedata.normalize("NFC", name)
    if not 1 <= len(name) <= MAX_NAME_LENGTH:
        raise ValueError(f"a user name has 1 to {MAX_NAME_LENGTH} characters")
    if name != name.strip():
        raise ValueError("a user name has no space at its ends")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        raise ValueError("a user name has no control characters")
    return name


def _close_own(connections: Dict[int, List[sqlite3.Connection]]) -> None:
    for connection in connections.pop(os.getpid(), []):
        connection.close()


def _pop(connections: List[sqlite3.Connection]) -> Optional[sqlite3.Connection]:
    try:
        return connections.pop()
    except IndexError:  # all are in use
        return None


def _use_wal(connection: sqlite3.Connection) -> None:
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


class Store:
    """The users, in an SQLite file that processes may share.

    Raises:
        StoreError: from each method, if the file cannot be used.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        # By process: one that was forked must not touch, nor close, what its parent has opened
        # (https://sqlite.org/howtocorrupt.html §2.6).
        self._idle: Dict[int, List[sqlite3.Connection]] = {}
        self.close = weakref.finalize(self, _close_own, self._idle)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT,
            isolation_level=None, check_same_thread=False)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection; each statement is a transaction, if no other is begun."""
        idle = self._idle.setdefault(os.getpid(), [])
        connection = None
        try:
            connection = _pop(idle) or self._connect()
            yield connection
        except BaseException as error:
            if connection:
                connection.close()  # which rolls back
            if isinstance(error, sqlite3.Error):
                raise StoreError(f"{self.path}: {error}") from error
            raise
        if len(idle) < MAX_IDLE_CONNECTIONS:
            idle.append(connection)
        else:
            connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")

    def prepare(self) -> bool:
        """Make the file if it is not there, bring its schema up to date; tell whether it is new."""
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))  # it holds the hashes
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}") from error
        with self._connection() as connection:
            version = self._version(connection)
            _use_wal(connection)
        if version == len(_MIGRATIONS):
            return False
        with self._transaction() as connection:
            version = self._version(connection)  # another process may have been faster
            for statement in _MIGRATIONS[version:]:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")
        return version == 0

    def _version(self, connection: sqlite3.Connection) -> int:
        """The version of the schema; 0 where there is none yet."""
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        # Read last: by then it is there, if another process has just made what was read above.
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        if application_id != _APPLICATION_ID and (tables or version):
            raise StoreError(f"{self.path}: is the database of another application")
        if version > len(_MIGRATIONS):
            raise StoreError(f"{self.path}: was written by a newer version of jwtserver")
        return int(version)

    def check(self) -> None:
        """Do nothing, if the database can answer."""
        self.find("nobody")

    def find(self, name: str) -> Optional[User]:
        """The user of that name, in whatever Unicode form it is given."""
        try:
            key = clean_name(name)
        except ValueError:
            return None
        with self._connection() as connection:
            row = connection.execute("SELECT * FROM users WHERE name = ?", [key]).fetchone()
        return User(*row) if row else None

    def all(self) -> List[User]:
        """All users, by name."""
        with self._connection() as connection:
            return [User(*row) for row in connection.execute("SELECT * FROM users ORDER BY name")]

    def add(self, users: Iterable[User]) -> None:
        """Add all of them or, if a name is taken, none."""
        with self._transaction() as connection:
            for user in users:
                added = connection.execute(
                    "INSERT INTO users VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", user)
                if not added.rowcount:
                    raise Error(f"there is a user {user.name!r} already")

    def remove(self, name: str) -> bool:
        """Remove a user; tell whether there was one."""
        return self._write("DELETE FROM users WHERE name = ?", name)

    def set_disabled(self, name: str, disabled: bool) -> bool:
        """Let a user sign in no longer, or again; tell whether there is one."""
        return self._write("UPDATE users SET disabled = ? WHERE name = ?", int(disabled), name)

    def set_password(self, name: str, password_hash: str) -> bool:
        """Give a user another password; tell whether there is one."""
        return self._write(
            "UPDATE users SET password_hash = ? WHERE name = ?", password_hash, name)

    def upgrade_password(self, user: User, password_hash: str) -> bool:
        """Store a better hash of a password, unless the password has changed meanwhile."""
        return self._write(
            "UPDATE users SET password_hash = ? WHERE name = ? AND password_hash = ?",
            password_hash, user.name, user.password_hash)

    def _write(self, statement: str, *values: Any) -> bool:
        with self._connection() as connection:
            return connection.execute(statement, values).rowcount > 0


# --- Requests and answers -----------------------------------------------------------------------


class HTTPError(Exception):
    """A request that gets an error for an answer."""

    def __init__(self, status: int, message: str, *headers: Tuple[str, str]) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


class Answer(NamedTuple):
    """What an endpoint answers: an object to be written as JSON."""

    status: int
    content: Mapping[str, Any]
    headers: Tuple[Tuple[str, str], ...] = ()


Endpoint = Callable[[Environ], Answer]

_NOSNIFF = ("X-Content-Type-Options", "nosniff")


def _send(
    answer: Answer, environ: Environ, start_response: StartResponse, *exc_info: Any,
) -> List[bytes]:
    body = json.dumps(answer.content).encode()
    start_response(f"{answer.status} {HTTPStatus(answer.status).phrase}", [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        _NOSNIFF,
        *answer.headers,
    ], *exc_info)
    return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]


def _read_body(environ: Environ) -> bytes:
    length = environ.get("CONTENT_LENGTH") or ""  # PEP 3333: may be empty or missing
    if not length and not environ.get("wsgi.input_terminated"):
        raise HTTPError(411, "The request needs a Content-Length")
    if length and not re.fullmatch("[0-9]+", length):
        raise HTTPError(400, "The Content-Length must be a number")
    if len(length) > 9 or (length and int(length) > MAX_BODY_BYTES):
        raise HTTPError(413, f"The body is longer than {MAX_BODY_BYTES} bytes")
    wanted = int(length) if length else MAX_BODY_BYTES + 1
    body = b""
    while len(body) < wanted:
        piece = environ["wsgi.input"].read(wanted - len(body))
        if not piece:
            break
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


class Route(NamedTuple):
    """The endpoints at one path, by method, and the member that holds the text of an error."""

    methods: Mapping[str, Endpoint]
    error_member: str = "error"

    def answer(self, environ: Environ) -> Answer:
        """Ask the endpoint for the method of the request; GET answers HEAD as well."""
        if not self.methods:
            raise HTTPError(404, "Not found")
        method = environ["REQUEST_METHOD"]
        endpoint = self.methods.get("GET" if method == "HEAD" else method)
        if endpoint is None:
            allowed = [*self.methods, *(["HEAD"] if "GET" in self.methods else [])]
            raise HTTPError(405, "Method not allowed", ("Allow", ", ".join(allowed)))
        return endpoint(environ)

    def failure(self, error: HTTPError) -> Answer:
        """Put an error into the words of an answer."""
        content = {"success": False, self.error_member: error.message}
        return Answer(error.status, content, error.headers)


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
            if route is _NO_ROUTE and self.otherwise:
                return self.otherwise(environ, _with_nosniff(start_response))
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


def _with_nosniff(start_response: StartResponse) -> StartResponse:
    def start(status: str, headers: List[Tuple[str, str]], *exc_info: Any) -> Any:
        if not any(name.lower() == "x-content-type-options" for name, _ in headers):
            headers = [*headers, _NOSNIFF]
        return start_response(status, headers, *exc_info)

    return start


# --- Endpoints ----------------------------------------------------------------------------------


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# A hash keeps a core busy for some tenths of a second. Logins beyond the number of cores wait
# here, so that the requests of those who are signed in need not.
_hashing = threading.BoundedSemaphore(_cores())


def claims_of(user: User) -> Claims:
    """The claims of a token for a user; its signer adds the times, `jti`, `iss` and `aud`."""
    claims = {"sub": user.name, "username": user.name, "sid": secrets.token_urlsafe(16)}
    if user.scope:
        claims["scope"] = user.scope
    return claims


class Service:
    """The endpoints that sign users in."""

    def __init__(self, store: Store, signer: TokenSigner, iterations: int) -> None:
        self.store = store
        self.signer = signer
        self.iterations = iterations  # of PBKDF2

    def authenticate(self, environ: Environ) -> Answer:
        """Trade a user name and a password for a token."""
        fields = _read_fields(environ)
        user = self._sign_in(_required(fields, "username"), _required(fields, "password"))
        if user is None:
            raise HTTPError(401, "Invalid username and password")
        content = {
            "token": self.signer.sign(claims_of(user)),
            "token_type": "Bearer",
            "expires_in": self.signer.lifetime,
        }
        return Answer(200, content, (("Cache-Control", "no-store"),))

    def _sign_in(self, name: str, password: str) -> Optional[User]:
        """The user, if the password is right. One who does not exist takes as long as others."""
        user = self.store.find(name)
        stored = user.password_hash if user else None
        upgrade = None
        with _hashing:
            if not verify_password(password, stored, min_iterations=self.iterations):
                return None
            if stored and needs_rehash(stored, iterations=self.iterations):
                upgrade = hash_password(password, iterations=self.iterations)
        # That took a while, or a long one: what was true of the user must still be.
        if user is None or user.disabled or self.store.find(name) != user:
            return None
        if upgrade:
            self.store.upgrade_password(user, upgrade)
        return user

    def health(self, environ: Environ) -> Answer:
        """Tell whether the database can answer."""
        self.store.check()
        return Answer(200, {"status": "ok"})


def _welcome(environ: Environ) -> Answer:
    return Answer(200, {"message": "Welcome to the protected page"})


# --- The application ----------------------------------------------------------------------------


def create_app(
    settings: Optional[Settings] = None, *, app: Optional[WSGIApplication] = None,
) -> WSGIApplication:
    """Compose the service: the endpoints, and behind the guard `app` or else the demo.

    Without `settings`, they come from the environment. What is not there is made: the database,
    without users, and the key.

    Raises:
        SettingsError: a setting cannot be used.
        StoreError: the database cannot be used.
        OSError: the file of the keys cannot be read or made.
    """
    settings = settings or Settings.from_environ(os.environ)
    store = Store(settings.database)
    store.prepare()
    signer = make_signer(settings)
    try:
        guarded = BearerAuthMiddleware(
            app or Router({"/protected": Route({"GET": _welcome})}), signer,
            protect=settings.protect or ("/" if app else "/protected",), exempt=settings.exempt)
    except ValueError as error:
        raise SettingsError(f"JWTSERVER_PROTECT or JWTSERVER_EXEMPT: {error}") from None
    service = Service(store, signer, settings.pbkdf2_iterations)
    return Router({
        f"{settings.prefix}/authenticate": Route({"POST": service.authenticate}, "message"),
        f"{settings.prefix}/health": Route({"GET": service.health}),
    }, otherwise=guarded)


def make_signer(settings: Settings, lifetime: Optional[int] = None) -> TokenSigner:
    """What signs and verifies the tokens of the service."""
    return TokenSigner(
        load_keys(settings), issuer=settings.issuer, audience=settings.audience,
        lifetime=lifetime or settings.token_lifetime)


_building = threading.Lock()
_built: Optional[WSGIApplication] = None


def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """The WSGI application as the environment configures it, made at the first request."""
    global _built
    if _built is None:
        with _building:
            if _built is None:
                _built = create_app()
    return _built(environ, start_response)


def _after_fork() -> None:
    """Replace what a thread of the parent may have held: no thread here would release it."""
    global _building, _hashing
    _building = threading.Lock()
    _hashing = threading.BoundedSemaphore(_cores())


getattr(os, "register_at_fork", dict)(after_in_child=_after_fork)  # Windows has none


# --- The HTTP server ----------------------------------------------------------------------------


class _RequestHandler(ServerHandler):
    """Runs the application for one request, and takes nothing from this process's environment."""

    request_handler: WSGIRequestHandler
    server_software = "jwtserver"
    os_environ: Dict[str, str] = {}
    error_headers = [("Content-Type", "application/json"), _NOSNIFF]
    error_body = b'{"success": false, "error": "Internal server error"}'

    def log_exception(self, exc_info: Any) -> None:
        logger.error("A fault in the application", exc_info=exc_info)


class _ConnectionHandler(WSGIRequestHandler):
    server: "_Server"
    timeout = CLIENT_TIMEOUT
    wbufsize = -1  # else each header is a packet of its own

    def version_string(self) -> str:
        return _RequestHandler.server_software

    def handle(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if len(self.raw_requestline) > 65536:
            self.requestline = self.command = ""
            self.send_error(HTTPStatus.REQUEST_URI_TOO_LONG)
        elif self.parse_request():  # which sends its errors itself
            handler = _RequestHandler(
                self.rfile, self.wfile,  # type: ignore[arg-type]
                sys.stderr, self.get_environ(), multithread=True)
            handler.request_handler = self
            handler.run(self.server.get_app())  # type: ignore[arg-type]
            self._drain()

    def _drain(self) -> None:
        """Take in what the client still sends: closing on it could cost it the answer."""
        if self.headers.get("Content-Length") or self.headers.get("Transfer-Encoding"):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(1)
            self.rfile.read(MAX_BODY_BYTES)

    def send_error(
        self, code: int, message: Optional[str] = None, explain: Optional[str] = None,
    ) -> None:
        """Tell of a malformed request, as JSON and without repeating it."""
        body = json.dumps({"success": False, "error": HTTPStatus(code).phrase}).encode()
        self.request_version = "HTTP/1.0"  # in 0.9, which malformed lines count as, no head is sent
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header(*_NOSNIFF)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug("%s %r", self.client_address[0], format % args)


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """Serves each connection, which is one request, in a thread of its own."""

    daemon_threads = True
    request_queue_size = 128

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's asks DNS, which may take seconds
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Note what ended a connection: mostly a client that has gone or says nothing."""
        if isinstance(sys.exc_info()[1], OSError):
            logger.debug("Lost the connection from %s", client_address[0], exc_info=True)
        else:
            logger.exception("A fault in serving %s", client_address[0])


# --- Commands -----------------------------------------------------------------------------------


def _settings(args: argparse.Namespace) -> Settings:
    """Settings from the environment, over which flags prevail."""
    environ = dict(os.environ)
    for name in _PARSERS:
        flag = getattr(args, name, None)
        if flag:
            environ[f"JWTSERVER_{name.upper()}"] = flag if isinstance(flag, str) else ";".join(flag)
    if args.secret_file:
        environ["JWTSERVER_SECRET"] = ""
    return Settings.from_environ(environ)


def _serve(args: argparse.Namespace) -> None:
    settings = _settings(args)
    try:
        server = _Server((args.host, args.port), _ConnectionHandler)
    except OSError as error:
        raise Error(f"cannot listen on {args.host}:{args.port}: {error.strerror}") from None
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with server:
        try:
            demo = _first_run(settings)
            server.set_app(create_app(settings))
            host = "127.0.0.1" if args.host in ("", "0.0.0.0") else args.host
            _greet(f"http://{host}:{server.server_port}", settings, demo)
            server.serve_forever()
        except KeyboardInterrupt:
            pass


def _first_run(settings: Settings) -> Optional[Tuple[User, str]]:
    """Where there is no database, make one with a user to try it; return him and his password."""
    store = Store(settings.database)
    if not store.prepare():
        return None
    password = secrets.token_hex(8)
    user = _new_user("demo", _hash(password, settings))
    store.add([user])
    return user, password


def _greet(url: str, settings: Settings, demo: Optional[Tuple[User, str]]) -> None:
    lines = [f"jwtserver listens on {url} (Ctrl-C stops it)"]
    if demo:
        user, password = demo
        token = make_signer(settings).sign(claims_of(user))
        lines += [
            f"\nThis is its first run: {settings.database} is new, with the user {user.name}.",
            f"The password is {password}, and is shown only now.",
            "\nSign in:",
            f"curl -d username={user.name} -d password={password}"
            f" {url}{settings.prefix}/authenticate",
            "\nShow the token to the guard:",
            f'curl -H "Authorization: Bearer {token}" {url}/protected\n',
        ]
    print("\n".join(lines), flush=True)


def _hash(password: str, settings: Settings) -> str:
    try:
        return hash_password(password, iterations=settings.pbkdf2_iterations)
    except ValueError as error:
        raise Error(str(error)) from None


def _new_user(name: str, password_hash: str, scope: str = "") -> User:
    try:
        name, scope = clean_name(name), " ".join(parse_scopes(scope))
    except ValueError as error:
        raise Error(str(error)) from None
    return User(name, password_hash, scope, 0, int(time.time()))


def _open_store(args: argparse.Namespace) -> Store:
    store = Store(_settings(args).database)
    store.prepare()
    return store


def _existing(store: Store, name: str) -> User:
    user = store.find(name)
    if user is None:
        raise Error(f"there is no user {name!r}")
    return user


def _ask_password(args: argparse.Namespace) -> str:
    if args.password_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise Error("there is no terminal to ask for the password on; use --password-stdin")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise Error("these are two different passwords")
    return password


def _user_add(args: argparse.Namespace) -> None:
    store = _open_store(args)
    user = _new_user(args.name, "", args.scope)
    if store.find(user.name):
        raise Error(f"there is a user {user.name!r} already")
    store.add([user._replace(password_hash=_hash(_ask_password(args), _settings(args)))])


def _user_list(args: argparse.Namespace) -> None:
    for user in _open_store(args).all():
        state = "disabled" if user.disabled else "enabled"
        print(f"{user.name:24} {state:8} {user.scope}".rstrip())


def _user_remove(args: argparse.Namespace) -> None:
    store = _open_store(args)
    store.remove(_existing(store, args.name).name)


def _user_password(args: argparse.Namespace) -> None:
    store = _open_store(args)
    user = _existing(store, args.name)
    store.set_password(user.name, _hash(_ask_password(args), _settings(args)))


def _user_disable(args: argparse.Namespace) -> None:
    store = _open_store(args)
    store.set_disabled(_existing(store, args.name).name, args.command == "disable")


def _user_import(args: argparse.Namespace) -> None:
    try:
        with open(args.file, encoding="utf-8-sig", newline="") as file:
            users = list(_read_users(csv.reader(file)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise Error(f"{args.file}: {error}") from None
    except Error as error:
        raise Error(f"{args.file}, {error}") from None
    _open_store(args).add(users)
    print(f"{len(users)} users imported")


def _read_users(rows: Any) -> Iterator[User]:
    """Users from the rows of a csv.reader: username,password_hash[,scope], below a head or not."""
    for row in rows:
        if not row or (rows.line_num == 1 and row[:2] == ["username", "password_hash"]):
            continue
        try:
            if len(row) not in (2, 3):
                raise Error("username,password_hash[,scope] expected")
            if not is_password_usable(row[1]):
                raise Error("only PBKDF2 hashes of Django, Werkzeug and passlib can be verified")
            yield _new_user(*row)
        except Error as error:
            raise Error(f"line {rows.line_num}: {error}") from None


def _token_issue(args: argparse.Namespace) -> None:
    user = _existing(_open_store(args), args.name)
    if user.disabled:
        raise Error(f"the user {user.name!r} is disabled")
    print(make_signer(_settings(args), args.lifetime).sign(claims_of(user)))


def _token_inspect(args: argparse.Namespace) -> None:
    token = args.token or sys.stdin.readline().strip()
    try:
        claims = make_signer(_settings(args)).verify(token)
    except InvalidTokenError as error:
        raise Error(f"not a good token: {error}") from None
    print(json.dumps(claims, indent=2))


def _key_rotate(args: argparse.Namespace) -> None:
    settings = _settings(args)
    keys = replace_keys(settings, lambda keys: [secrets.token_hex(32).encode(), *keys])
    print(f"{settings.key_file} has a new first key, of {len(keys)}. Restart what uses it: the new"
          " key signs from then on, and tokens of the older ones remain good.")


def _key_prune(args: argparse.Namespace) -> None:
    settings = _settings(args)
    replace_keys(settings, lambda keys: keys[:1])
    print(f"{settings.key_file} has its first key alone. Restart what uses it: tokens that were"
          " signed with the other keys are refused from then on.")


# --- The command line ---------------------------------------------------------------------------


class _Commands:
    """A level of the command line: its commands, each with its help and an example."""

    def __init__(self, parser: argparse.ArgumentParser, parents: List[argparse.ArgumentParser]):
        self._subparsers = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
        self._parents = parents

    def add(
        self, name: str, run: Optional[Callable[[argparse.Namespace], None]], help: str,
        *examples: str,
    ) -> argparse.ArgumentParser:
        parser = self._subparsers.add_parser(
            name, help=help, description=help[0].upper() + help[1:] + ".", allow_abbrev=False,
            parents=self._parents if run else [], epilog=_examples(*examples),
            formatter_class=argparse.RawDescriptionHelpFormatter)
        if run:
            parser.set_defaults(run=run)
        return parser


def _examples(*lines: str) -> str:
    return "\n  ".join(("example:" if len(lines) == 1 else "examples:", *lines))


def _at_most(most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        try:
            return _parse_number(text, most)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return number


def _port(text: str) -> int:
    return 0 if text == "0" else _at_most(65535)(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Sign-in with JSON Web Tokens. Without a command, it serves.",
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        epilog=_examples("python jwtserver.py", "python jwtserver.py user add alice",
                         "python jwtserver.py serve --help"))
    files = argparse.ArgumentParser(add_help=False)
    files.add_argument("--database", metavar="FILE", help="default: jwtserver.db")
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
    issue.add_argument("--lifetime", metavar="SECONDS", type=_at_most(MAX_LIFETIME))
    inspect = token.add("inspect", _token_inspect, "verify a token and print its claims",
                        "python jwtserver.py token issue alice | python jwtserver.py token inspect")
    inspect.add_argument("token", metavar="TOKEN", nargs="?", help="default: a line of the input")
    key = _Commands(commands.add("key", None, "manage the signing keys",
                                 "python jwtserver.py key rotate"), [files])
    key.add("rotate", _key_rotate, "sign with a new key, and still verify with the older ones",
            "python jwtserver.py key rotate")
    key.add("prune", _key_prune, "drop all keys but the one that signs",
            "python jwtserver.py key prune")
    return parser


def _add_serve(commands: _Commands) -> None:
    serve = commands.add(
        "serve", _serve, "serve over HTTP", "python jwtserver.py --port 8000",
        "python jwtserver.py --protect /protected --protect 'POST,DELETE /articles'")
    serve.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    serve.add_argument("--port", type=_port, default=3000, help="default: %(default)s")
    serve.add_argument("--protect", metavar="RULE", action="append",
                       help="a path that needs a token, optionally behind methods: 'POST /path'")
    serve.add_argument("--exempt", metavar="RULE", action="append",
                       help="a path inside of it that does not")
    serve.add_argument("--prefix", metavar="PATH", help="where the endpoints are; default: /")


def _add_user_commands(user: _Commands) -> None:
    add = user.add(
        "add", _user_add, "add a user; the password is asked for",
        "python jwtserver.py user add alice --scope 'read write'",
        "echo 'correct horse' | python jwtserver.py user add alice --password-stdin")
    add.add_argument("--scope", metavar="SCOPES", default="", help="what the user's tokens permit")
    user.add("list", _user_list, "list the users", "python jwtserver.py user list")
    named = {
        "add": add,
        "remove": user.add("remove", _user_remove, "remove a user",
                           "python jwtserver.py user remove alice"),
        "password": user.add("password", _user_password, "give a user another password",
                             "python jwtserver.py user password alice"),
        "disable": user.add("disable", _user_disable, "let a user sign in no longer",
                            "python jwtserver.py user disable alice"),
        "enable": user.add("enable", _user_disable, "let a user sign in again",
                           "python jwtserver.py user enable alice"),
    }
    for parser in named.values():
        parser.add_argument("name", metavar="NAME")
    for name in ("add", "password"):
        named[name].add_argument("--password-stdin", action="store_true",
                                 help="the password is the first line of the input")
    load = user.add("import", _user_import, "add the users of a CSV file, all or none",
                    "python jwtserver.py user import users.csv")
    load.add_argument("file", metavar="FILE", help="username,password_hash[,scope] in each line")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run a command; return its exit code: 1 if it failed, 2 if it was not understood."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments.insert(0, "serve")
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
    except KeyboardInterrupt:
        return 130  # as the shell has it
    except (Error, OSError, EOFError) as error:
        print(f"jwtserver: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
