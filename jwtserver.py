"""Sign-in with JSON Web Tokens, for any WSGI application.

    python jwtserver.py                   serve on http://127.0.0.1:3000
    python jwtserver.py user add alice    add a user; the command asks for a password
    python jwtserver.py --help            list the other commands

The endpoints:

    POST /authenticate  {"username": …, "password": …}, as JSON or as a form: sign in, get tokens
    POST /refresh       {"refresh_token": …}: get new tokens for the same session
    POST /logout        with `Authorization: Bearer TOKEN`: end the session
    any  /verify        with the same header: who sent a request, for a proxy that asks
    POST /password      with the same header and {"password": …, "new_password": …}
    GET  /sessions      with the same header: the user's sessions; DELETE /sessions/ID ends one
    GET  /protected     with the same header: a greeting
    GET  /health        {"status": "ok"}, or 503 if the database cannot answer
    GET  /openapi.json  a description of the endpoints for programs
    GET  /              a list of the endpoints, or a page for people
    GET  /login         a sign-in form for people; when signed in, the account page

The guard protects any other WSGI application in place of /protected:

    application = jwtserver.create_app(app=my_application)

A WSGI server imports `jwtserver:application`, which reads its settings from the environment. Users
and sessions are in a database, the signing keys in a file. Which chapter to read for what:

    Settings                         every setting, its default, and how it is checked
    Keys                             the key file, and how servers notice that it has changed
    Users, One-time passwords        what is stored about a user; the second factor
    Sessions                         what is stored; how a refresh token rotates (`_rotate`)
    Failed sign-ins                  which failures are counted, and when they lock out
    Database connections, The store  SQLite and PostgreSQL; all SQL
    Requests and responses           bodies, JSON, and how an error becomes a response
    Endpoints                        what each endpoint does
    Pages for people                 the sign-in form and other pages
    Routes and OpenAPI               which endpoints exist, and their description
    The application                  how all of this is composed with the guard
    HTTP: requests, responses        how requests are parsed and responses are framed
    HTTP: connections                the state of a connection
    HTTP: the event loop, sockets    which thread does what, and how the loop moves
    Output                           how the server writes to a pipe that nobody reads
    Commands, The command line       what each command does; all commands and flags

The five HTTP chapters are the server of `python jwtserver.py`. Skip them if you use another server.
"""

import argparse
import base64
import codecs
import csv
import errno
import gc
import getpass
import hashlib
import hmac
import importlib
import io
import ipaddress
import json
import logging
import math
import os
import re
import secrets
import selectors
import shlex
import shutil
import signal
import socket
import sqlite3
import stat
import struct
import sys
import threading
import time
import traceback
import unicodedata
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict, defaultdict, deque
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum
from functools import lru_cache, partial
from html import escape
from http import HTTPStatus
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import (
    TYPE_CHECKING, Annotated, Any, BinaryIO, Callable, ContextManager, DefaultDict, Deque, Dict,
    Iterable, Iterator, List, Mapping, NamedTuple, NoReturn, Optional, Sequence, Set,
    TextIO, Tuple, Type, Union, TypeVar, get_type_hints,
)
from urllib.parse import parse_qsl, quote, unquote_to_bytes
from wsgiref.handlers import format_date_time
from wsgiref.util import FileWrapper

if TYPE_CHECKING:
    import ssl  # imported when TLS is configured, because it needs much memory

try:
    from wsgi_auth import (
        MAX_NEXT_LENGTH, MAX_PBKDF2_ITERATIONS, PBKDF2_ITERATIONS, SAFE_METHODS,
        BearerAuthMiddleware, Claims, CORSMiddleware, DecodeError, Environ, ExpiredSignatureError,
        InvalidAudienceError, InvalidIssuerError, InvalidKeyError, InvalidSignatureError,
        InvalidTokenError, RateLimitMiddleware, Rules, StartResponse, TokenSigner, WSGIApplication,
        hash_password, is_cross_site, key_fingerprint, needs_rehash, parse_json_object,
        parse_scopes, password_iterations, verify_password,
    )
except ImportError as missing:
    if __name__ == "__main__":
        sys.exit(f"jwtserver: {missing}; copy both files, jwtserver.py and wsgi_auth.py, of one"
                 " release into the same folder")
    raise

__all__ = ["Settings", "application", "create_app", "main"]
__version__ = "0.4.0"

MAX_BODY_BYTES = 64 * 1024
MAX_NAME_LENGTH = 150  # characters, as in Django
MAX_NAME_INPUT = 4 * MAX_NAME_LENGTH  # NFC joins up to 4 characters, in quadratic time
MAX_LABEL = 100  # characters
MIN_PASSWORD_LENGTH = 8  # characters; NIST SP 800-63B §5.1.1.1. A shorter one causes a warning
MAX_SCOPE_LENGTH = 2048  # characters: with the longest name, a token fits into 8 KiB of headers
# Bytes of Remote-User and Remote-Scope. nginx accepts 4 KiB for all headers of /verify.
MAX_VERIFY_BYTES = 3072
MAX_LIFETIME = 10 * 366 * 86400  # seconds
MAX_COUNT = 1_000_000  # requests or failures in a rate
MAX_PROXIES = 100
MAX_WAITING_HASHES = 64  # at most this many threads wait for a core
LEEWAY = 10  # seconds by which the clocks of machines may differ, if no setting says otherwise
FILE_INTERVAL = 0.5  # seconds between two checks of the SQLite file, for guarded requests
MAX_DRAFT_AGE = 60.0  # seconds; an older draft of the key file belongs to a killed process
KEY_FILE_INTERVAL = 0.5  # seconds between two checks of the key file for changes
SWEEP_ROWS = 25  # expired rows deleted per insert; a few ms even with millions of rows
BUSY_TIMEOUT = 5.0  # seconds to wait while another process writes to the database
MIGRATION_TIMEOUT = 120.0  # seconds to wait while another one migrates; a million sessions take 9
MAX_IDLE_CONNECTIONS = 16  # to the database, in each process
_APPLICATION_ID = 0x6A777473  # "jwts": marks an SQLite file as a database of jwtserver


def _always_enabled(logger: logging.Logger) -> logging.Logger:
    """Make a logger ignore `disabled`.

    By default, `logging.config` disables all loggers that exist when an application calls it. The
    audit log and tracebacks would be lost without a notice. Levels and handlers still apply.
    """
    ignoring = property(lambda self: False, lambda self, value: None)
    logger.__class__ = type("Logger", (type(logger),), {"disabled": ignoring})
    return logger


logger = _always_enabled(logging.getLogger("jwtserver"))
audit_logger = _always_enabled(logging.getLogger("jwtserver.audit"))
audit_logger.setLevel(logging.INFO)
_warn_once = lru_cache(maxsize=256)(logger.warning)  # each warning once per process
_audit_path = ""  # the file of JWTSERVER_AUDIT_LOG, if it is set


class Error(Exception):
    """An error shown to the user of a command, in one line."""


_WARNING_EVENTS = ("sign_in_failed", "locked_out", "refresh_failed", "refresh_reused")
_LOG_TIME_FORMAT = "%Y-%m-%dT%H:%M:%S%z"


def _audit(event: str, **details: str) -> None:
    """Log an event in one line. JSON escapes line ends and terminal control characters."""
    level = logging.WARNING if event in _WARNING_EVENTS else logging.INFO
    line = " ".join([event, *(f"{name}={json.dumps(value)}" for name, value in details.items())])
    line = line.replace("\x7f", "\\u007f")
    audit_logger.log(level, "%s", line)
    if _audit_path:
        _append_to_audit_log(_audit_path, line)


def _for_owner_only(path: str, flags: int) -> int:
    """Open a file, for its owner only if it is new; an opener for `open`.

    A pipe without a reader is an error, instead of blocking the server.
    """
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o600)


def _append_to_audit_log(path: str, line: str) -> None:
    """Append a line in one write, so that those of several processes do not mix.

    The file is opened for each line (20 µs), because logrotate may have moved the old one away. An
    error is only logged: what the line reports has been done, and the log has the line as well.
    """
    try:
        with open(path, "a", encoding="utf-8", opener=_for_owner_only) as file:
            file.write(f"{time.strftime(_LOG_TIME_FORMAT)} {line}\n")
    except OSError as error:
        logger.error("JWTSERVER_AUDIT_LOG: %s: %s", path, error.strerror)


def _open_audit_log(settings: "Settings") -> None:
    """Append audit lines to the file that the settings name, in addition to the log.

    Raises:
        SettingsError: the file cannot be written.
    """
    global _audit_path
    _audit_path = ""
    if settings.audit_log:
        path = os.path.abspath(settings.audit_log)  # an application may change the current folder
        try:
            with open(path, "a", opener=_for_owner_only) as file:
                owner = os.fstat(file.fileno()).st_uid
        except OSError as error:
            raise SettingsError(f": {path}: {error.strerror}", "audit_log") from error
        _audit_path = path
        if owner == 0 != os.stat(os.path.dirname(path)).st_uid:
            logger.warning("%s belongs to root, but its folder to another user, who may not be able"
                           " to write it; change its owner with chown", path)


# --- Settings -----------------------------------------------------------------------------------
#
# Design: The class `Settings` is the table of all settings. Each field has a type, the parser that
# checks its value, and a default. A parser takes the text of an environment variable, or a Python
# value, and returns the value of the field or raises ValueError. All settings are parsed once,
# before anything else happens, and no other code reads them from the environment. A parser must
# never touch a file.


class SettingsError(Error):
    """A setting that cannot be used. The message is its variable and the `problem`."""

    def __init__(self, problem: str, *names: str) -> None:
        super().__init__(" or ".join(map(_variable, names)) + problem)
        self.problem = problem
        self.names = names


def _is_postgresql(database: str) -> bool:
    return database.startswith(("postgresql://", "postgres://"))


def _parse_database(value: Any) -> str:
    text = os.fsdecode(value)
    looks_like_url = "://" in text or re.match("postgres(ql)?:", text)
    if not text or (looks_like_url and not _is_postgresql(text)) or text == ":memory:":
        raise ValueError("must be the name of an SQLite file, or postgresql://…")
    return text


def _parse_integer(value: Any, maximum: int, minimum: int = 1) -> int:
    text = str(value)
    if not re.fullmatch("[0-9]{1,18}", text) or not minimum <= int(text) <= maximum:
        raise ValueError(f"must be a whole number from {minimum} to {maximum}, not {value!r}")
    return int(text)


def _parse_number(value: Any, maximum: int) -> float:
    """A whole number or, from Python code, a float such as 0.5."""
    if not isinstance(value, float):
        return _parse_integer(value, maximum)
    if not 0 < value <= maximum:  # NaN fails as well
        raise ValueError(f"must be more than 0 and at most {maximum}, not {value!r}")
    return value


def _integer(maximum: int, minimum: int = 1) -> Callable[[Any], int]:
    return partial(_parse_integer, maximum=maximum, minimum=minimum)


def _number(maximum: int) -> Callable[[Any], float]:
    return partial(_parse_number, maximum=maximum)


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
    name = _parse_text(value)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError("must be UTF-8") from None
    return name


def _parse_cookie(value: Any) -> Optional[str]:
    if value is None or value == "off":
        return None
    if value.lower() in ("no", "false", "0", "on", "true", "1"):
        raise ValueError(f"must be the name of a cookie, not {value!r}; write off to turn it off")
    # Browsers refuse `__Host-…` over plain HTTP; over HTTPS the guard adds it.
    if not re.fullmatch("(?!__)[A-Za-z0-9_.-]{1,64}", value):
        raise ValueError(f"must be the name of a cookie without `__Host-`, or off, not {value!r}")
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
    secret_file: Annotated[str, os.fsdecode] = ""  # their file; jwtserver.key beside the database
    issuer: Annotated[Optional[str], _parse_name] = None
    audience: Annotated[Optional[str], _parse_name] = None
    token_lifetime: Annotated[int, _integer(MAX_LIFETIME)] = 3600  # seconds
    session_lifetime: Annotated[int, _integer(MAX_LIFETIME)] = 14 * 86400  # from the sign-in
    refresh_grace: Annotated[int, _integer(MAX_LIFETIME, 0)] = 30  # seconds to repeat a refresh
    leeway: Annotated[int, _integer(MAX_LIFETIME, 0)] = LEEWAY  # seconds
    cookie: Annotated[Optional[str], _parse_cookie] = "jwtserver"  # for browsers; None: no pages
    cors_origins: Annotated[Tuple[str, ...], _parse_list] = ()  # whose pages may read responses
    login_failures: Annotated[Rate, _parse_rate] = Rate(5, 900)  # per user and address
    rate_limit: Annotated[Optional[Rate], _parse_rate] = None  # of requests, per client
    trusted_proxies: Annotated[int, _integer(MAX_PROXIES, 0)] = 0  # by X-Forwarded-*
    protect: Annotated[Rules, _parse_rule_list] = ()  # /protected or, with your application, all
    exempt: Annotated[Sequence[str], _parse_rule_list] = ()
    audit_log: Annotated[str, os.fsdecode] = ""  # a file to which audit lines are appended
    optional: Annotated[Sequence[str], _parse_rule_list] = ()
    prefix: Annotated[str, _parse_prefix] = ""  # the path under which the endpoints are
    pbkdf2_iterations: Annotated[int, _integer(MAX_PBKDF2_ITERATIONS)] = PBKDF2_ITERATIONS
    # The rest is for this module's own server.
    connections: Annotated[int, _integer(1_000_000)] = 4096  # open at the same time
    threads: Annotated[int, _integer(10_000, 2)] = 128  # one for the event loop, the rest workers
    head_timeout: Annotated[float, _number(MAX_LIFETIME)] = 10  # seconds to receive the headers
    idle_timeout: Annotated[float, _number(MAX_LIFETIME)] = 15  # seconds between two requests
    body_rate: Annotated[float, _number(10**9)] = 1024  # minimum bytes a second, each direction
    host: Annotated[str, _parse_name] = "127.0.0.1"  # the address to listen on
    port: Annotated[int, _integer(65535, 0)] = 3000  # 0 chooses a free one

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        """Read the settings. An empty variable counts as missing.

        Raises:
            SettingsError: a value cannot be used.
        """
        variables = {_variable(name): name for name in _PARSERS}
        environ = {variable: text for variable, text in environ.items()
                   if variable.startswith("JWTSERVER_")
                   and not _SET_BY_KUBERNETES.match(f"{variable}={text}")}
        for variable in sorted(environ.keys() - variables.keys()):
            logger.warning("jwtserver has no such setting: %s%s", variable,
                           _did_you_mean(variable, variables, len("JWTSERVER_")))
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


# In a cluster with a service that is called jwtserver.
_SET_BY_KUBERNETES = re.compile("JWTSERVER_(SERVICE_|PORT_|PORT=tcp://)")


def _variable(name: str) -> str:
    return f"JWTSERVER_{name.upper()}"


def _did_you_mean(word: str, words: Iterable[str], prefix: int = 0) -> str:
    """Suggest the most similar word, compared without the first `prefix` characters, if any."""
    import difflib  # rarely needed
    similar = {other[prefix:]: other for other in words}
    matches = [other for other in similar if other.startswith(word[prefix:])]
    matches = matches or difflib.get_close_matches(word[prefix:], similar, n=1)
    return f"; did you mean {similar[matches[0]]!r}?" if matches else ""


def _parse_setting(name: str, value: Any) -> Any:
    try:
        return _PARSERS[name](value)
    except ValueError as error:
        raise SettingsError(f" {error}", name) from None
    except (TypeError, AttributeError):
        kind = type(value).__name__
        raise SettingsError(f" must not be of the type {kind}", name) from None


# --- Keys ---------------------------------------------------------------------------------------
#
# Design: The first key signs, all keys verify. They are in the setting `secret`, or in a file that
# is only ever replaced as a whole, so that a reader never sees half of it. `FileSigner` compares
# the file's fingerprint twice a second, in the thread of a request, and reads it again if it has
# changed. An unusable file must never stop a running server: the old keys stay in use. Root may
# rotate the keys in a folder of another user, who can swap names for links at any moment. So
# `replace_keys` opens the folder and the file once, and checks and changes only what it has opened.


def prepare_keys(settings: Settings) -> bool:
    """Create the key file with one new key, if keys are in a file and it is missing.

    Return whether it was missing.

    Raises:
        SettingsError: the file cannot be created.
    """
    if settings.secret:
        return False
    with _key_file_errors(settings.key_file):
        if settings.key_file.exists():
            return False
        _create_file(settings.key_file, [secrets.token_hex(32).encode()])
    return True


@contextmanager
def _key_file_errors(key_file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        advice = _file_advice(key_file)
        if isinstance(error, FileNotFoundError):
            advice = "; check JWTSERVER_SECRET_FILE and JWTSERVER_DATABASE"
        raise SettingsError(f": {key_file}: {error.strerror}{advice}", "secret_file") from error


def _file_advice(path: Path) -> str:
    """What to do about a file that cannot be used, if that is certain."""
    if os.path.isdir(path):
        return "; name a file, not a folder"
    for place, kind, remedy in (
            (path, "file", "change its owner with chown"),
            (path.absolute().parent, "folder", "with the settings of the server")):
        if (os.name == "posix" and os.path.exists(place) and not os.access(place, os.W_OK)
                and os.stat(place).st_uid != os.getuid()):
            return f"; the {kind} belongs to another user; run this as that user, or {remedy}"
    return ""


def load_keys(settings: Settings) -> List[bytes]:
    """Read the keys. The first one signs.

    Raises:
        SettingsError: there is no key, or one of them cannot be used.
    """
    if settings.secret:
        text = settings.secret.encode("utf-8", "surrogateescape")
        return _parse_keys(text, "", "secret")
    with _key_file_errors(settings.key_file), open(settings.key_file, "rb") as file:
        return _read_keys(settings.key_file, file)


def _read_keys(path: Path, file: BinaryIO) -> List[bytes]:
    status = os.fstat(file.fileno())
    if os.name == "posix" and stat.S_ISREG(status.st_mode):
        if status.st_mode & 0o077:
            _warn_once("%s can be read by others; run: chmod 600 %s", path, path)
        if os.geteuid() == 0 and status.st_uid != 0:
            _warn_once("%s belongs to another user, and so do its keys; run jwtserver as that user,"
                       " not as root", path)
    text = file.read().removeprefix(codecs.BOM_UTF8)
    advice = "" if text else (". Restore it from a backup. Only if there is none, delete the empty"
                              " file: the next start creates a key")
    return _parse_keys(text, f": {path}", "secret_file", advice)


def _parse_keys(text: bytes, place: str, setting: str, advice: str = "") -> List[bytes]:
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    # A document that is not a key file, or the two characters `\n` in place of a line end.
    if any(len(key.split()) > 1 or b"\\n" in key for key in keys):
        raise SettingsError(f"{place}: a key must be on a line of its own, without spaces and"
                            " without \\n", setting)
    try:
        TokenSigner(keys)
    except InvalidKeyError as error:
        raise SettingsError(f"{place}: {error}{advice}", setting) from None
    return keys


def _create_file(path: Path, lines: Sequence[bytes]) -> None:
    """Create a file atomically. If two processes try at once, both continue with the same file."""
    with _draft(str(path), lines) as draft:
        try:
            os.link(draft, path)  # unlike a rename, a link never replaces a file
        except FileExistsError:
            pass
        except (OSError, AttributeError):  # there are no hard links on FAT and some systems
            if not path.exists():  # of two processes that start at once, the second replaces it
                os.replace(draft, path)


@contextmanager
def _draft(
    path: str, lines: Sequence[bytes], folder: Optional[int] = None,
    like: Optional[os.stat_result] = None,
) -> Iterator[str]:
    """Write a file beside `path` to the disk. After the `with` block, delete it if it is there.

    Only this user can read it, or it has the owner and mode of `like`.
    """
    draft = f"{path}.{secrets.token_hex(8)}"
    try:
        with open(draft, "xb", opener=partial(os.open, mode=0o600, dir_fd=folder)) as file:
            file.write(b"".join(line + b"\n" for line in lines))
            file.flush()
            if like and hasattr(os, "fchown"):  # not on Windows
                # Only root can always keep the group. It does not matter if it has no rights.
                keeps_group = os.geteuid() == 0 or like.st_mode & 0o070
                os.fchown(file.fileno(), like.st_uid, like.st_gid if keeps_group else -1)
                os.fchmod(file.fileno(), like.st_mode & 0o777)
            os.fsync(file.fileno())
        yield draft
    finally:
        with suppress(FileNotFoundError):
            os.unlink(draft, dir_fd=folder)


def _with_key_file(settings: Settings) -> Settings:
    """The settings, if they name a key file; else raise SettingsError."""
    if settings.secret:
        raise SettingsError("the keys are in JWTSERVER_SECRET; change them there")
    return settings


def replace_keys(
    settings: Settings, change: Callable[[List[bytes]], List[bytes]],
) -> List[bytes]:
    """Replace the key file atomically, keeping owner and mode. Return the previous keys.

    Raises:
        SettingsError: the keys are not in a file, or it cannot be replaced.
    """
    path = _with_key_file(settings).key_file.resolve()  # the file that a link points to
    with ExitStack() as stack:
        with _key_file_errors(settings.key_file):
            folder = stack.enter_context(_open_folder(path.parent))
        name = path.name if folder is not None else str(path)
        flags = getattr(os, "O_NOFOLLOW", 0)
        with _key_file_errors(settings.key_file), open(
            name, "rb", opener=lambda name, mode: os.open(name, mode | flags, dir_fd=folder),
        ) as file:
            status = os.fstat(file.fileno())
            _check_link(settings.key_file, path, status.st_uid)
            keys = _read_keys(settings.key_file, file)
        with _key_file_errors(settings.key_file), _draft(
                name, change(keys), folder, status) as draft:
            os.replace(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
        _remove_stale_drafts(path, folder)
    return keys


@contextmanager
def _open_folder(path: Path) -> Iterator[Optional[int]]:
    """Open a folder, so that a link that replaces it changes nothing; None on Windows."""
    if os.open not in os.supports_dir_fd:
        yield None
        return
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield folder
    finally:
        os.close(folder)


def _check_link(key_file: Path, path: Path, owner: int) -> None:
    """Refuse a link to the file of somebody else than the owner of the folder with the link."""
    folder = key_file.parent.resolve()
    if path != folder / key_file.name and owner != folder.stat().st_uid:
        raise SettingsError(f": {key_file} is a link to {path}, which does not belong to the owner"
                            f" of {folder}; name that file instead", "secret_file")


def _remove_stale_drafts(path: Path, folder: Optional[int]) -> None:
    """Remove the drafts that killed processes have left: they contain keys."""
    pattern = re.compile(re.escape(path.name) + r"\.[0-9a-f]{16}")
    with os.scandir(path.parent if folder is None else folder) as entries:
        for entry in filter(lambda entry: pattern.fullmatch(entry.name), entries):
            with suppress(OSError):  # another process may have removed it
                age = time.time() - entry.stat(follow_symlinks=False).st_mtime
                if age > MAX_DRAFT_AGE:
                    os.unlink(entry.path, dir_fd=folder)


class FileSigner:
    """A TokenSigner that reloads the key file when it changes, within half a second.

    It checks the file at once for a token that no known key signed, because another process may
    already sign with a newer key.

    Raises:
        SettingsError: the file cannot be used at the start.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._path = str(settings.key_file.absolute())  # the application may change the folder
        self._settings = settings._replace(secret_file=self._path)
        self._clock = clock
        self._checked_at = clock()
        fingerprint = self._fingerprint()  # before the file is read, which may change meanwhile
        # One value: if two threads reload at once, the fingerprint must be that of the signer.
        self._loaded = _load_signer(self._settings, clock), fingerprint
        self._last_error = ""

    def _fingerprint(self) -> Optional[Tuple[int, ...]]:
        """A value that changes with the file, its owner and its mode; None if it is missing."""
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns,
                status.st_ctime_ns)

    def _reload_if_changed(self) -> None:
        now, fingerprint = self._clock(), self._fingerprint()
        signer, loaded_fingerprint = self._loaded
        if fingerprint != loaded_fingerprint:
            try:
                signer, self._last_error = _load_signer(self._settings, self._clock), ""
            except SettingsError as error:
                if str(error) != self._last_error:
                    logger.error("The old keys stay in use: %s", error)
                self._last_error = str(error)
                if isinstance(error.__cause__, OSError):  # the next attempt may succeed
                    fingerprint = None
            self._loaded = signer, fingerprint
        # Set last: until the new keys are in use, other threads must not skip the check.
        self._checked_at = now

    def _fresh_signer(self) -> TokenSigner:
        if not 0 <= self._clock() - self._checked_at < KEY_FILE_INTERVAL:
            self._reload_if_changed()
        return self._loaded[0]

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the key that signs, as that of TokenSigner."""
        return self._fresh_signer().fingerprint

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
            if self._loaded[0] is signer:
                raise
            return self._loaded[0].verify(token)


Signer = Union[TokenSigner, FileSigner]


def _accepted_seconds(settings: Settings) -> int:
    """Seconds after a refresh in which its tokens may be accepted.

    It may be repeated in the grace period, and servers accept an expired token within the leeway.
    """
    return settings.token_lifetime + settings.refresh_grace + settings.leeway


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
        load_keys(settings), issuer=settings.issuer, audience=settings.audience,
        leeway=settings.leeway, clock=clock)


# --- Users --------------------------------------------------------------------------------------
#
# Design: A user is a row of a table, found by name. Names are stored and compared in one Unicode
# form (NFC), so that the same name typed on two systems is one user. A new name must not look like
# another one, so it contains no invisible characters (RFC 8265 §3.3). Names that are already stored
# may contain some, and their users can still sign in or be removed.

_CONTROL_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")  # with surrogates and line ends
_INVISIBLE_CATEGORIES = ("Cf", "Cn", "Co", "Zs")  # format, unassigned, private use, white space
# Letters and marks that are not displayed (RFC 8264 §9.13), and the Braille blank.
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f"
                        "\uffa0\U000e0100-\U000e01ef]")


class User(NamedTuple):
    """A row of the table `users`."""

    name: str
    password_hash: str
    scope: str
    disabled: int
    created: int  # seconds since 1970
    otp_secret: str = ""  # of the second factor; "" if there is none
    otp_step: int = 0  # the time step of its last code; no code is accepted twice


def _has_category(name: str, categories: Sequence[str]) -> bool:
    return any(unicodedata.category(character) in categories for character in name)


def clean_name(name: str) -> str:
    """Return the name for a new user in NFC.

    Raises:
        ValueError: the name is empty, too long, or has invisible characters.

    >>> clean_name("Zoe\\u0308")
    'Zoë'
    """
    name = normalize_name(name)
    if _has_category(name.replace(" ", ""), _INVISIBLE_CATEGORIES) or _INVISIBLE.search(name):
        raise ValueError("a user name must not contain invisible characters")
    return name


def normalize_name(name: str) -> str:
    """Return a user name in NFC, the form in which names are compared.

    Raises:
        ValueError: no user can have this name.
    """
    name = unicodedata.normalize("NFC", name[:MAX_NAME_INPUT])
    if not 1 <= len(name) <= MAX_NAME_LENGTH:
        raise ValueError(f"a user name must have 1 to {MAX_NAME_LENGTH} characters")
    if name != name.strip():
        raise ValueError("a user name must not start or end with white space")
    if _has_category(name, _CONTROL_CATEGORIES):
        raise ValueError("a user name must not contain control characters")
    return name


# --- One-time passwords -------------------------------------------------------------------------
#
# Design: A user may have a second factor: an app that shows a new code every 30 seconds (TOTP,
# RFC 6238). Server and app share a secret, and compute the code from it and the number of the time
# step. The row of the user has the step of the last code that was accepted. No code of that step or
# an earlier one is accepted again (RFC 6238 §5.2).

OTP_STEP_SECONDS = 30
OTP_DRIFT = 1  # steps by which the clock of the app may be wrong


def new_otp_secret() -> str:
    """A random secret of 160 bits in base32, as RFC 4226 §4 recommends."""
    return base64.b32encode(secrets.token_bytes(20)).decode()


def otp_code(secret: str, step: int) -> str:
    """The code of a time step: HOTP with SHA-1 and 6 digits (RFC 4226 §5.3).

    >>> otp_code("GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", 59 // OTP_STEP_SECONDS)  # RFC 6238, appendix B
    '287082'
    """
    mac = hmac.new(base64.b32decode(secret), struct.pack(">Q", step), "sha1").digest()
    offset = mac[-1] & 15
    return f"{(int.from_bytes(mac[offset:offset + 4], 'big') & 0x7fff_ffff) % 10**6:06}"


def find_otp_step(secret: str, code: str, now: float) -> int:
    """The time step of a code that is valid at `now`, or -1."""
    digits, found = code.replace(" ", "").encode("utf-8", "replace"), -1
    current = int(now) // OTP_STEP_SECONDS
    for step in range(current - OTP_DRIFT, current + OTP_DRIFT + 1):
        if secrets.compare_digest(otp_code(secret, step).encode(), digits):
            found = step
    return found


def otp_uri(name: str, secret: str, issuer: str) -> str:
    """The URI that authenticator apps read, usually from a QR code.

    https://github.com/google/google-authenticator/wiki/Key-Uri-Format
    """
    issuer = quote(issuer, "")
    return f"otpauth://totp/{issuer}:{quote(name, '')}?secret={secret}&issuer={issuer}"


# --- Sessions -----------------------------------------------------------------------------------
#
# Design: Signing in opens a session, a row of a table. Access tokens name it in their claim `sid`
# and are valid until the row has expired or is deleted. A refresh token is `family.secret`. The
# family stays the same, so an old token is recognized: its family is that of a session, its secret
# is not the current one. A refresh derives the next token from the presented one and a fresh random
# salt. The row keeps the salt, so that each process can derive the same token again. It keeps only
# hashes of the family and the tokens: neither the database nor a claim `sid` is enough to make a
# refresh token.


class Session(NamedTuple):
    """A row of the table `sessions`: a session that has not ended."""

    id: str  # the claim `sid`
    user_name: str
    created: float  # seconds since 1970
    refreshed: float  # when its refresh token was last replaced, in seconds since 1970
    expires: int  # seconds since 1970
    refresh_hash: str  # of the current refresh token; "" if it has none
    previous_hash: str = ""  # of the token before it; "" at first
    salt: str = ""  # the random value from which the current token was derived; "" at first
    key_fingerprint: str = ""  # of the key that signed its last token; "" if it is not known
    machine: int = 0  # 1: `token issue` opened it, for a program
    label: Optional[str] = None
    scope: Optional[str] = None  # None: all scopes of the user


class Grant(NamedTuple):
    """What a client receives for a sign-in or a refresh."""

    user: User
    session: Session
    refresh_token: str


# Version 0.3 had a number between the family and the secret. The row has a hash of the whole token.
_REFRESH_TOKEN = re.compile(r"(?P<family>[\w-]{22})\.[\w.-]{43,64}", re.ASCII)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _session_id(family: str) -> str:
    return _digest(family)[:32]


def _successor(token: str, salt: str) -> str:
    """The refresh token that replaces this one. It cannot be made without the token."""
    family = token.partition(".")[0]
    return f"{family}.{hmac.new(token.encode(), salt.encode(), 'sha256').hexdigest()}"


def new_grant(
    user: User, lifetime: int, now: float, *, refreshable: bool = True, **details: Any,
) -> Grant:
    """Create a session that begins at `now` and ends `lifetime` seconds later.

    `details`: its `label`, `scope` and `machine`. If it is not refreshable, it has one token only.
    """
    family = secrets.token_urlsafe(16)
    token = f"{family}.{secrets.token_hex(32)}" if refreshable else ""  # 256 random bits
    session = Session(
        _session_id(family), user.name, now, now, int(now) + lifetime,
        _digest(token) if refreshable else "", **details)
    return Grant(user, session, token)


class RefreshError(Error):
    """A refused refresh token. `ended`: the session that its reuse ended, if any."""

    def __init__(self, ended: Optional[Session] = None) -> None:
        super().__init__("Invalid refresh token")
        self.ended = ended


def _rotate(
    session: Session, token: str, now: float, grace: float, key_fingerprint: str,
) -> Tuple[Session, str]:
    """Return the session after this refresh token was presented, and the next token.

    1. The current token is replaced by its successor, with a fresh salt.
    2. In the grace period, the token before it gets the same successor again. The response may have
       been lost, or two tabs refresh at once. The session stays as it is.
    3. In the grace period, an older token is refused. It may come from a tab that was slow.
    4. After the grace period, we assume that an old token was stolen, and the session ends
       (RFC 9700 §4.14.2).

    Raises:
        RefreshError: in case 3 and, with the session that must end, in case 4.
    """
    digest = _digest(token)
    if secrets.compare_digest(digest, session.refresh_hash):
        salt = secrets.token_hex(16)
        next_token = _successor(token, salt)
        return session._replace(
            refreshed=now, refresh_hash=_digest(next_token), previous_hash=digest, salt=salt,
            key_fingerprint=key_fingerprint), next_token
    if not abs(now - session.refreshed) < grace:  # abs: a clock set back extends nothing
        raise RefreshError(session)
    if not secrets.compare_digest(digest, session.previous_hash):
        raise RefreshError
    return session, _successor(token, session.salt)


# --- Failed sign-ins ----------------------------------------------------------------------------
#
# Design: Each failed sign-in counts three times: for the user at the address, for the address, and
# for the user. Each counter has its own limit. When one has reached its limit, no password is
# checked, not even the right one, until the counter expires. Names and addresses are stored as
# hashes. Unknown names count as well: a response must never reveal whether a user exists.


class LockedOut(Error):
    """Too many sign-ins have failed. No password is checked for the next `seconds`.

    `locked`: what is locked, for the log.
    """

    def __init__(self, seconds: float, locked: str) -> None:
        super().__init__("Too many failed sign-ins")
        self.seconds = math.ceil(seconds)
        self.locked = locked


class Attempt(NamedTuple):
    """A sign-in, and the failure counters that apply to it, with the limit of each."""

    limits: Mapping[str, int]
    seconds: int  # from the first failure until a counter expires
    user_at_address: str  # the counter that a success clears
    name: str  # the counter of the user; the row of the one above has it too, for `user unlock`

    def latest_expiry(self, now: float) -> float:
        """The latest plausible expiry. A later one was written with a wrong clock."""
        return now + 2 * self.seconds

    def subject(self, counter: str) -> str:
        """What a counter counts for."""
        names = {self.user_at_address: "user at address", self.name: "user"}
        return names.get(counter, "address")

    @classmethod
    def of(cls, name: str, address: str, rate: Rate) -> "Attempt":
        """The sign-in of a user, who may not exist, from an address."""
        name, network = unicodedata.normalize("NFC", name[:MAX_NAME_INPUT]), _network(address)
        both, by_network, by_name = (
            _counter(*key) for key in ((name, network), (None, network), (name, None)))
        limits = {both: rate.limit, by_network: 10 * rate.limit, by_name: 20 * rate.limit}
        return cls(limits, rate.seconds, user_at_address=both, name=by_name)


def _counter(name: Optional[str], network: Optional[str]) -> str:
    """The ID of the counter of a user at an address, or of one of them."""
    return _digest(json.dumps([name, network]))


def _network(address: str) -> str:
    """The address, or its /64: one IPv6 client controls a whole /64 (RFC 6177 §2)."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:  # a server on a Unix socket knows no address
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
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


# Both have `execute(statement, values)`, with a value for each `?`, and `close`, which rolls back.
DatabaseConnection = Union["_SQLiteConnection", "_PostgreSQLConnection"]


def _close_idle(pools: Dict[int, List[DatabaseConnection]]) -> None:
    with suppress(IndexError):
        while True:
            pools[os.getpid()].pop().close()


class _Database(ABC):
    """A database and the idle connections to it. Its methods raise StoreError."""

    name: str  # in messages
    driver_error: Type[Exception]  # what its connections raise
    begin = "BEGIN"
    # Where others may write during a transaction: SQL that locks the rows that are read, and SQL
    # that also skips the rows that others have locked.
    for_update = skip_locked = ""

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
                connection.execute(statement)
            if version < len(migrations):
                self.write_version(connection, len(migrations))

    def lock(self, connection: DatabaseConnection) -> None:
        """Serialize with other processes until the transaction ends.

        SQLite's BEGIN IMMEDIATE already does.
        """

    @abstractmethod
    def take(self, idle: List[Any], max_age: float = 0.0) -> Any:
        """Take a usable connection from this list, or open one.

        A database that was replaced is noticed after at most `max_age` seconds.
        """

    def _take_any(self, idle: List[Any]) -> Any:
        try:
            return idle.pop()
        except IndexError:  # all are in use
            pass
        try:
            return self.connect()
        except self.driver_error as error:
            raise self.store_error(error) from error

    @staticmethod
    def give_back(connection: Any, idle: List[Any]) -> None:
        """Put a connection back, or close it if there are enough."""
        if len(idle) < MAX_IDLE_CONNECTIONS:
            idle.append(connection)
        else:
            connection.close()

    def fetch_one(self, statement: str, values: Sequence[Any], max_age: float = 0.0) -> Any:
        """Run a statement and return its first row or None, faster than through `connection`."""
        idle = self.pools[os.getpid()]
        connection = self.take(idle, max_age)
        try:
            row = connection.execute(statement, values).fetchone()
        except BaseException as error:
            self._close_and_raise(connection, error)
        self.give_back(connection, idle)
        return row

    def _close_and_raise(self, connection: Any, error: BaseException) -> NoReturn:
        """Close a connection that is in an unknown state, and raise the error again."""
        connection.close()
        if isinstance(error, self.driver_error):
            raise self.store_error(error) from error
        raise error

    def close(self) -> None:
        """Close the idle connections of this process. A later statement opens a new one."""
        _close_idle(self.pools)

    @contextmanager
    def connection(self) -> Iterator[DatabaseConnection]:
        """Lend a connection to a `with` block.

        If the block raises anything else than an Error of this module, the connection is closed.
        """
        idle = self.pools[os.getpid()]
        connection = self.take(idle)
        try:
            yield connection
        except Error:
            self.give_back(connection, idle)
            raise
        except BaseException as error:
            self._close_and_raise(connection, error)
        self.give_back(connection, idle)

    @contextmanager
    def transaction(self) -> Iterator[DatabaseConnection]:
        """Lend a connection in a transaction that is committed if the block succeeds."""
        with self.connection() as connection:
            connection.execute(self.begin)
            try:
                yield connection
            except Error:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def store_error(self, problem: object) -> StoreError:
        """An error in one line, with the name of the database."""
        return StoreError(f"{self.name}: {_one_line(problem)}")


def _one_line(problem: object) -> str:
    return " ".join(str(problem).split())


_FileID = Optional[Tuple[int, int]]  # device and inode of a file; None if there is none


def _file_id(path: str) -> _FileID:
    with suppress(OSError):
        status = os.stat(path)
        return status.st_dev, status.st_ino
    return None


class _SQLiteConnection(sqlite3.Connection):
    """A connection that knows the database file that it has opened, and the files of its log."""

    file: _FileID
    log: Dict[str, _FileID]


class _SQLite(_Database):
    """An SQLite file, which the processes of one machine may share.

    If another file has replaced it, as when a backup is restored, new connections use the new file.
    """

    driver_error = sqlite3.Error
    begin = "BEGIN IMMEDIATE"  # no other process can write until the transaction ends

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = Path(path).absolute()  # the application may change the current folder
        self.name = str(self._path)
        self._file: _FileID = None  # at the last check
        self._checked_at = -math.inf

    def connect(self) -> _SQLiteConnection:
        """Open the file. It must exist: after a deletion, an empty one would lose all users."""
        file = _file_id(self.name)  # before it is opened: it may be replaced at any time
        connection = sqlite3.connect(
            f"{self._path.as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT,
            isolation_level=None, check_same_thread=False, factory=_SQLiteConnection)
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the log
        except sqlite3.Error:
            connection.close()
            raise
        connection.file = file
        target = os.path.realpath(self.name)  # SQLite follows links
        connection.log = {path: _file_id(path) for path in (f"{target}-wal", f"{target}-shm")}
        return connection

    def store_error(self, problem: object) -> StoreError:
        return super().store_error(f"{problem}{_file_advice(self._path)}")

    def take(self, idle: List[Any], max_age: float = 0.0) -> Any:
        if time.monotonic() - self._checked_at >= max_age:
            self._check_file()
        while (connection := self._take_any(idle)).file != self._file:
            self._close_replaced(connection)
        return connection

    def _check_file(self) -> None:
        try:
            status = os.stat(self.name)
        except OSError as error:
            raise self.store_error(error.strerror) from error
        file = status.st_dev, status.st_ino
        if self._file not in (None, file):
            logger.warning("Another file has replaced %s, and is used from now on", self.name)
        self._file, self._checked_at = file, time.monotonic()

    def _close_replaced(self, connection: _SQLiteConnection) -> None:
        """Close a connection whose file was replaced, and delete its log.

        SQLite would apply the log to the new file. Other processes do the same. With the lock, one
        of them comes first, and the others see that the log is not the one that they have open.
        """
        try:
            connection.execute("BEGIN IMMEDIATE")
            self._check_file()
            if connection.file != self._file:
                for path, file in connection.log.items():
                    if file and file == _file_id(path):
                        os.unlink(path)
        except (sqlite3.Error, OSError) as error:
            raise self.store_error(error) from error
        finally:
            connection.close()

    def migrate(self, migrations: Sequence[Sequence[str]]) -> None:
        """Create the file if it is missing, and bring its tables up to date."""
        self._create_if_missing()
        with self.connection() as connection:
            version = self.read_version(connection)
            if version <= len(migrations):  # otherwise it must stay as it is
                _use_wal(connection)
        self.close()  # that connection may not know the log
        if version != len(migrations):  # otherwise, do not wait for processes that write
            with self.connection() as connection:
                connection.execute(f"PRAGMA busy_timeout = {int(1000 * MIGRATION_TIMEOUT)}")
            super().migrate(migrations)
            self.close()

    def _create_if_missing(self) -> None:
        """Create the file for its owner only, because it will hold password hashes.

        An existing file is not opened: closing it would drop all locks that SQLite has on it in
        this process, and others would delete data in use (howtocorrupt.html §2.2).
        """
        try:
            if self._path.is_dir():
                raise self.store_error(os.strerror(errno.EISDIR))
            if not self._path.exists():
                with suppress(FileExistsError):  # another process was first
                    self._path.touch(0o600, exist_ok=False)
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
        self._connection = psycopg.connect(**options, autocommit=True, prepare_threshold=None)
        # Windows has no poll(), but its select() takes any socket.
        self._selector = getattr(selectors, "PollSelector", selectors.SelectSelector)()
        self._selector.register(self._connection.fileno(), selectors.EVENT_READ)
        _, process_id = self._connection.execute(
            "SELECT set_config('statement_timeout', %s, false), pg_backend_pid()",
            [str(int(1000 * BUSY_TIMEOUT))]).fetchone()
        # Prepared statements belong to a process of the server. PgBouncer changes it between
        # transactions, and invents the ID that the client knows. Without prepared statements, a
        # look-up costs the server three times as much (69 µs, not 23).
        if process_id == self._connection.info.backend_pid:
            self._connection.prepare_threshold = 5  # psycopg's default

    def execute(self, statement: str, values: Any = None) -> Any:
        return self._connection.execute(statement.replace("?", "%s"), values)

    def close(self) -> None:
        self._connection.close()

    def is_usable(self) -> bool:
        """Return whether the server has sent nothing. A server that stops sends an error."""
        return not self._selector.select(0)


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
            raise SettingsError(" needs psycopg; run: pip install 'psycopg[binary]'"
                                f" ({_one_line(error)})", "database") from None
        self.driver_error = self.psycopg.Error
        try:
            options = self.psycopg.conninfo.conninfo_to_dict(url)
        except self.psycopg.Error:  # its message may quote the password
            options = {"dbname": "@"}
        # As after a slash or an `@` in the password, which must not be shown as a name.
        if "@" in options.get("dbname", "") + options.get("host", ""):
            raise SettingsError(" must be postgresql://user:password@host/database, with special"
                                " characters percent-encoded (@ is %40, / is %2F)", "database")
        defaults = {option.keyword.decode(): (option.val or b"").decode()
                    for option in self.psycopg.pq.Conninfo.get_defaults()}  # PGHOST, PGSERVICE, …
        known = {**defaults, **options}
        self.name = f"database {known['dbname']} at {known['host'] or 'localhost'}"
        # Of several hosts, use the one that can write. A standby may not know the latest logout.
        self._options = {"connect_timeout": int(BUSY_TIMEOUT), "target_session_attrs": "read-write",
                         "tcp_user_timeout": int(1000 * BUSY_TIMEOUT), **options}

    def store_error(self, problem: object) -> StoreError:
        text = str(problem).partition("\nLINE ")[0]  # without the statement
        if "permission denied" in text:
            text += "; the role must own the database and its tables"
        return super().store_error(text)

    def connect(self) -> DatabaseConnection:
        return _PostgreSQLConnection(self.psycopg, self._options)

    def take(self, idle: List[Any], max_age: float = 0.0) -> Any:
        """Take a connection, and close idle ones that a restart of the server has cut."""
        while not (connection := self._take_any(idle)).is_usable():
            connection.close()
        return connection

    def read_version(self, connection: DatabaseConnection) -> int:
        connection.execute("CREATE TABLE IF NOT EXISTS jwtserver (version INTEGER NOT NULL)")
        (version,) = connection.execute(
            "SELECT coalesce(max(version), 0) FROM jwtserver").fetchone()
        return int(version)

    def write_version(self, connection: DatabaseConnection, version: int) -> None:
        connection.execute("DELETE FROM jwtserver")
        connection.execute("INSERT INTO jwtserver VALUES (?)", [version])

    def lock(self, connection: DatabaseConnection) -> None:
        """Wait for other processes that hold this lock, and hold it until the transaction ends.

        The transaction has no time limit: to migrate a million sessions takes several seconds.
        """
        connection.execute("SET LOCAL statement_timeout = 0")
        connection.execute("SELECT pg_advisory_xact_lock(?)", [_APPLICATION_ID])


# --- The store ----------------------------------------------------------------------------------
#
# Design: `Store` holds all SQL about users, sessions and failed sign-ins, for both databases.
# Each method is one statement or one transaction, in the calling thread. Nothing is cached: a
# change that one process has committed is visible to the next statement of every other process.
# (If another file replaces an SQLite database, `is_open` may need half a second to notice.)
# PostgreSQL locks rows. Transactions must lock a user before the user's sessions, and counters in
# the order of their IDs, or they deadlock.


class NameTaken(Error):
    """The name of a new user belongs to another one."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the user {name!r} exists already")


# Migration N leads from version N of the tables to N + 1. A release may append one, but must
# never change an old one. BIGINT: PostgreSQL's INTEGER has 32 bits; to SQLite they are the same.
_MIGRATIONS = (
    ("""CREATE TABLE users (
        name TEXT NOT NULL PRIMARY KEY,
        password_hash TEXT NOT NULL,
        scope TEXT NOT NULL,
        disabled BIGINT NOT NULL,
        created BIGINT NOT NULL
    )""",),
    ("""CREATE TABLE sessions (
        id TEXT NOT NULL PRIMARY KEY,
        user_name TEXT NOT NULL,
        generation BIGINT NOT NULL,
        refresh_hash TEXT NOT NULL,
        previous_hash TEXT NOT NULL,
        rotated DOUBLE PRECISION NOT NULL,
        expires BIGINT NOT NULL
    )""",
     "CREATE INDEX sessions_by_user ON sessions (user_name)",
     "CREATE INDEX sessions_by_end ON sessions (expires)",
     """CREATE TABLE failures (
        id TEXT NOT NULL PRIMARY KEY,
        count BIGINT NOT NULL,
        expires DOUBLE PRECISION NOT NULL
    )""",
     "CREATE INDEX failures_by_end ON failures (expires)"),
    # SQLite before 3.35 cannot drop a column, so the sessions are copied. Their refresh tokens and
    # access tokens stay valid. A token that was replaced before the migration has no successor.
    ("ALTER TABLE sessions RENAME TO old_sessions",
     """CREATE TABLE sessions (
        id TEXT NOT NULL PRIMARY KEY,
        user_name TEXT NOT NULL,
        created DOUBLE PRECISION NOT NULL,
        refreshed DOUBLE PRECISION NOT NULL,
        expires BIGINT NOT NULL,
        refresh_hash TEXT NOT NULL,
        previous_hash TEXT NOT NULL,
        salt TEXT NOT NULL,
        key_fingerprint TEXT NOT NULL,
        machine BIGINT NOT NULL,
        label TEXT,
        scope TEXT
    )""",
     "INSERT INTO sessions SELECT id, user_name, rotated, rotated, expires, refresh_hash,"
     " '', '', '', CASE WHEN refresh_hash = '' THEN 1 ELSE 0 END, NULL, NULL FROM old_sessions",
     "DROP TABLE old_sessions",  # and its indexes
     "CREATE INDEX sessions_by_user ON sessions (user_name)",
     "CREATE INDEX sessions_by_end ON sessions (expires)",
     "ALTER TABLE failures ADD COLUMN name TEXT NOT NULL DEFAULT ''",
     "ALTER TABLE users ADD COLUMN otp_secret TEXT NOT NULL DEFAULT ''",
     "ALTER TABLE users ADD COLUMN otp_step BIGINT NOT NULL DEFAULT 0"),
)
# A session that was created in the future, beyond the leeway, was created with a wrong clock.
_FIND_OPEN_SESSION = "SELECT * FROM sessions WHERE id = ? AND expires > ? AND created <= ?"
_IS_OPEN = _FIND_OPEN_SESSION.replace("*", "1")
# A session without a refresh token has one token only, which is valid as long as the session.
_HAS_VALID_TOKEN = "expires > ? AND (refreshed > ? OR refresh_hash = '')"


class Store:
    """Users, their sessions, and failed sign-ins, in a database that processes may share.

    Raises:
        StoreError: from each method, if the database cannot be used.
    """

    def __init__(self, database: _Database, leeway: float = LEEWAY) -> None:
        self.database = database
        self.name = database.name
        self._leeway = leeway  # seconds by which the clock that created a session may be ahead

    def close(self) -> None:
        """Close the idle connections of this process. The store can still be used."""
        self.database.close()

    def ping(self) -> None:
        """Check that the database can answer."""
        self.is_empty()

    def _execute(self, statement: str, *values: Any) -> int:
        """Run one statement as a transaction, and return the number of rows it has changed."""
        with self.database.connection() as connection:
            return int(connection.execute(statement, values).rowcount)

    # Users

    def find_user(self, name: str) -> Optional[User]:
        """The user of that name, in any Unicode form, or None."""
        try:
            key = normalize_name(name)
        except ValueError:
            return None
        row = self.database.fetch_one("SELECT * FROM users WHERE name = ?", [key])
        return User(*row) if row else None

    def is_empty(self) -> bool:
        """Return whether there are no users."""
        return self.database.fetch_one("SELECT name FROM users LIMIT 1", []) is None

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
                self._add_user(connection, user)

    @staticmethod
    def _add_user(connection: DatabaseConnection, user: User) -> None:
        added = connection.execute(
            "INSERT INTO users VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", user)
        if not added.rowcount:
            raise NameTaken(user.name)

    # Each of these returns whether the user exists. All except `enable_user` and
    # `set_otp` end the user's sessions.

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

    def rename_user(self, name: str, new_name: str) -> bool:
        """Rename a user.

        Raises:
            NameTaken: the new name belongs to another user.
        """
        with self.database.transaction() as connection:
            row = connection.execute(
                f"SELECT * FROM users WHERE name = ?{self.database.for_update}", [name]).fetchone()
            if row is None:
                return False
            self._add_user(connection, User(*row)._replace(name=new_name))
            connection.execute("DELETE FROM users WHERE name = ?", [name])
            connection.execute("DELETE FROM sessions WHERE user_name = ?", [name])
        return True

    def set_otp(self, name: str, secret: str, step: int) -> bool:
        """Set the second factor of a user, or remove it with an empty secret."""
        return self._execute("UPDATE users SET otp_secret = ?, otp_step = ? WHERE name = ?",
                             secret, step, name) > 0

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
            self._check_lockout(connection, attempt, now)

    def _check_lockout(
        self, connection: DatabaseConnection, attempt: Attempt, now: float, own_failures: int = 0,
    ) -> None:
        """Raise LockedOut if a counter, without this attempt's own failures, is at its limit."""
        rows = connection.execute(
            "SELECT id, count, expires FROM failures WHERE id IN (?, ?, ?)", list(attempt.limits))
        lockouts = [
            (expires - now, attempt.subject(counter)) for counter, count, expires in rows
            if count - own_failures >= attempt.limits[counter]
            and now < expires <= attempt.latest_expiry(now)]
        if lockouts:
            raise LockedOut(*max(lockouts))

    def count_failure(self, attempt: Attempt, now: float) -> None:
        """Count a failed sign-in.

        Raises:
            LockedOut: other attempts have reached the limit. Answer as if the password had not
                been checked.
        """
        with self.database.transaction() as connection:
            for counter in sorted(attempt.limits):
                # One that has expired, or that a wrong clock has written, starts again at 1.
                connection.execute(
                    "DELETE FROM failures WHERE id = ? AND (expires <= ? OR expires > ?)",
                    [counter, now, attempt.latest_expiry(now)])
                name = attempt.name if counter == attempt.user_at_address else ""
                connection.execute(
                    "INSERT INTO failures VALUES (?, 1, ?, ?) ON CONFLICT (id) DO UPDATE SET"
                    " count = failures.count + 1, name = excluded.name",
                    [counter, now + attempt.seconds, name])
            self._sweep(connection, "failures", now)  # after the locks above, or it may deadlock
            self._check_lockout(connection, attempt, now, own_failures=1)

    def lockouts(self, rate: Rate, now: float) -> Dict[str, float]:
        """Seconds for which users are locked out, at one address or more, by their counters."""
        with self.database.connection() as connection:
            return {counter: expires - now for counter, expires in connection.execute(
                "SELECT CASE name WHEN '' THEN id ELSE name END, max(expires) FROM failures"
                " WHERE expires > ? AND expires <= ? AND (name <> '' AND count >= ? OR count >= ?)"
                " GROUP BY 1", [now, now + 2 * rate.seconds, rate.limit, 20 * rate.limit])}

    def unlock(self, name: str) -> None:
        """Forget the failed sign-ins of a user."""
        counter = _counter(name, None)
        self._execute(  # `count_failure` locks the rows in the same order
            "DELETE FROM failures WHERE id IN (SELECT id FROM failures WHERE name = ? OR id = ?"
            f" ORDER BY id{self.database.for_update})", counter, counter)

    # Sessions

    def open_session(
        self, grant: Grant, now: float, *, attempt: Optional[Attempt] = None,
        found: Optional[User] = None,
    ) -> bool:
        """Open a session. Return False if the user was changed since it was looked up.

        For a sign-in, `attempt` clears its failures, and `found` is the user as it was looked up:
        the grant may have a new password hash or the step of a one-time password.

        Raises:
            LockedOut: too many other sign-ins have failed meanwhile.
        """
        user = grant.user
        with self.database.transaction() as connection:
            if not self._accept(connection, found or user, attempt, now):
                return False
            self._sweep(connection, "sessions", now)
            connection.execute(
                "INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", grant.session)
            if found and found != user:
                connection.execute(
                    "UPDATE users SET password_hash = ?, otp_step = ? WHERE name = ?",
                    [user.password_hash, user.otp_step, user.name])
        return True

    def _accept(
        self, connection: DatabaseConnection, user: User, attempt: Optional[Attempt], now: float,
    ) -> bool:
        """Return whether a user is unchanged. If so, clear the failures. Lock the user's row."""
        if attempt:
            self._check_lockout(connection, attempt, now)
        row = connection.execute(
            f"SELECT * FROM users WHERE name = ?{self.database.for_update}", [user.name]).fetchone()
        if attempt and row == user:
            connection.execute("DELETE FROM failures WHERE id = ?", [attempt.user_at_address])
        return bool(row == user)

    def change_password(
        self, user: User, password_hash: str, session_id: str, attempt: Attempt, now: float,
    ) -> bool:
        """Replace a password, clear its failures, and end all sessions of the user except this one.

        Return False if the user was changed since it was looked up.

        Raises:
            LockedOut: too many other sign-ins have failed meanwhile.
        """
        with self.database.transaction() as connection:
            if not self._accept(connection, user, attempt, now):
                return False
            connection.execute("UPDATE users SET password_hash = ? WHERE name = ?",
                               [password_hash, user.name])
            connection.execute("DELETE FROM sessions WHERE user_name = ? AND id <> ?",
                               [user.name, session_id])
        return True

    def refresh(self, token: str, now: float, grace: float, fingerprint: str) -> Grant:
        """Replace a refresh token, by the rules of `_rotate`.

        An invented token is refused without a lock on the database: many of them cannot delay
        other requests.

        Raises:
            RefreshError: the token is refused, and may have ended its session.
        """
        while session := self.find_session_of(token, now):
            try:
                rotated, next_token = _rotate(session, token, now, grace, fingerprint)
            except RefreshError as error:
                if error.ended:
                    self.end_session(session.id)
                raise
            if rotated == session or self._save_rotation(session, rotated):
                user = self.find_user(session.user_name)
                if user is None:  # removed just now
                    break
                return Grant(user, rotated, next_token)
            # Another request has refreshed or ended the session meanwhile. Look again. This ends,
            # because each repetition needs another refresh of the session.
        raise RefreshError

    def _save_rotation(self, old: Session, new: Session) -> bool:
        """Store a rotation, unless another one was stored meanwhile."""
        return self._execute(
            "UPDATE sessions SET refreshed = ?, refresh_hash = ?, previous_hash = ?, salt = ?,"
            " key_fingerprint = ? WHERE id = ? AND refresh_hash = ?", new.refreshed,
            new.refresh_hash, new.previous_hash, new.salt, new.key_fingerprint, old.id,
            old.refresh_hash) > 0

    def is_open(self, session_id: str, now: float) -> bool:
        """Return whether a session has not ended. Each guarded request asks this."""
        values = (session_id, now, now + self._leeway)
        return self.database.fetch_one(_IS_OPEN, values, FILE_INTERVAL) is not None

    def find_session_of(self, refresh_token: str, now: float) -> Optional[Session]:
        """The session that a refresh token belongs to, even an old token.

        Only the client knows the family, so it is enough to end the session.
        """
        match = _REFRESH_TOKEN.fullmatch(refresh_token)
        return self.find_session(_session_id(match["family"]), now) if match else None

    def find_session(self, session_id: str, now: float) -> Optional[Session]:
        """The session with this ID, or None if it has ended."""
        row = self.database.fetch_one(_FIND_OPEN_SESSION, [session_id, now, now + self._leeway])
        return Session(*row) if row else None

    def sessions_of(self, name: str, now: float) -> List[Session]:
        """The sessions of a user that have not ended, the newest first."""
        with self.database.connection() as connection:
            rows = connection.execute(
                "SELECT * FROM sessions WHERE user_name = ? AND expires > ? AND created <= ?"
                " ORDER BY created DESC, id", [name, now, now + self._leeway])
            return [Session(*row) for row in rows]

    def end_session(self, session_id: str) -> bool:
        """End a session. Return whether it had not ended."""
        return self._execute("DELETE FROM sessions WHERE id = ?", session_id) > 0

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

    def count_tokens(self, lifetime: float, now: float) -> Dict[str, int]:
        """Count the sessions whose last token is valid, by the fingerprint of its key.

        `lifetime`: seconds for which a token is valid after a sign-in or refresh.
        """
        with self.database.connection() as connection:
            return dict(connection.execute(
                f"SELECT key_fingerprint, count(*) FROM sessions WHERE {_HAS_VALID_TOKEN}"
                " GROUP BY key_fingerprint", [now, now - lifetime]).fetchall())

    def users_of_keys(
        self, fingerprints: Sequence[str], lifetime: float, now: float,
    ) -> List[str]:
        """The names of at most three users whose last token is valid and of one of these keys."""
        with self.database.connection() as connection:
            return [name for (name,) in connection.execute(
                f"SELECT DISTINCT user_name FROM sessions WHERE {_HAS_VALID_TOKEN}"
                f" AND key_fingerprint IN ({', '.join('?' * len(fingerprints))})"
                " ORDER BY user_name LIMIT 3", [now, now - lifetime, *fingerprints])]


def open_store(database: str, leeway: float = LEEWAY) -> Store:
    """Open the store in an SQLite file or a PostgreSQL database, and create what is missing.

    `leeway`: seconds by which the clocks of machines may differ.

    Raises:
        SettingsError: the URL, psycopg or the database cannot be used.
    """
    store = Store(
        _PostgreSQL(database) if _is_postgresql(database) else _SQLite(database), leeway)
    try:
        store.database.migrate(_MIGRATIONS)
    except StoreError as error:
        raise SettingsError(f": {error}", "database") from error
    return store


# --- Requests and responses ---------------------------------------------------------------------
#
# Design: An endpoint takes the environ of a request and returns a Response or raises HTTPError. The
# `Router` finds the endpoint by path and method, in the thread of the request, and passes other
# requests on to its fallback. It is the one place where errors become responses. A response must
# never contain the details of an internal fault: those are logged.


class HTTPError(Exception):
    """A request that is answered with an error."""

    def __init__(
        self, status: int, message: str, *headers: Tuple[str, str], **members: Any,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers
        self.members = members  # more members of the JSON


class _BodyError(OSError):
    """The rest of a request body is malformed, or has not arrived: `wsgi.input` raises it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


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
        if content is None:  # RFC 9110 §8.6: no Content-Length with 204
            return cls(_STATUS_LINES[status], [_NOSNIFF, *headers], b"")
        return cls.with_body(
            status, "application/json", json.dumps(content).encode() + b"\n", *headers)

    @classmethod
    def with_body(
        cls, status: int, content_type: str, body: bytes, *headers: Tuple[str, str],
    ) -> "Response":
        """A response with this body."""
        described = [("Content-Type", content_type), ("Content-Length", str(len(body)))]
        return cls(_STATUS_LINES[status], [*described, _NOSNIFF, *headers], body)


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
    body = _read_input(environ["wsgi.input"].read, expected)
    if len(body) > MAX_BODY_BYTES:
        raise HTTPError(413, f"The body is longer than {MAX_BODY_BYTES} bytes")
    if length and len(body) < expected:
        raise HTTPError(400, "The body is shorter than its Content-Length")
    return body


def _read_input(read: Callable[[int], bytes], expected: int) -> bytes:
    body = b""
    try:
        while len(body) < expected and (piece := read(expected - len(body))):
            body += piece
    except _BodyError:
        raise  # this module's server answers with its status
    except Exception:  # each server has its own errors for a body that is malformed or cut off
        raise HTTPError(400, "The body cannot be read") from None
    return body


def _read_fields(environ: Environ, *, only_form: bool = False) -> Dict[str, Any]:
    """Read the fields of a JSON or form body. A name that occurs twice is refused."""
    body = _read_body(environ).removeprefix(codecs.BOM_UTF8)  # RFC 8259 §8.1: may be ignored
    if environ.get("HTTP_CONTENT_ENCODING", "").strip().lower() not in ("", "identity"):
        raise HTTPError(415, "The body must have no Content-Encoding",
                        ("Accept-Encoding", "identity"))  # RFC 9110 §15.5.16
    content_type = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if content_type == "application/x-www-form-urlencoded":
        return _parse_form(body)
    if content_type != "application/json" or only_form:
        json_or = "" if only_form else "application/json or "
        raise HTTPError(415, f"The body must be {json_or}application/x-www-form-urlencoded")
    try:
        return parse_json_object(body)
    except DecodeError as error:
        raise HTTPError(400, f"Malformed body: {error}") from None


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


def _text_field(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise HTTPError(400, f"`{name}` must be a string")
    return value


def _required_field(fields: Mapping[str, Any], name: str, status: int = 401) -> str:
    value = _text_field(fields, name)
    if not value:
        # The tutorial's wire format: 401, where 400 would be usual.
        raise HTTPError(status, f"A `{name}` is required")
    return value


class Operation(NamedTuple):
    """The endpoint for one method of a path, and its OpenAPI description."""

    endpoint: Endpoint
    status: int = 200  # of a success
    schema: Optional[Mapping[str, Any]] = None  # of the JSON of a success
    fields: Tuple[str, ...] = ()  # that the body must have
    optional_fields: Tuple[str, ...] = ()  # that it may have
    errors: Tuple[int, ...] = ()  # besides those that every operation of its kind has
    query: Mapping[str, Mapping[str, Any]] = {}  # the schemas of its query parameters


class Route(NamedTuple):
    """The operations at one path, by method or `*`.

    `error_member` names the member with the message of an error. In the tutorial's wire format,
    sign-in and refresh use `message`, and all other paths use `error`.
    """

    methods: Mapping[str, Operation]
    error_member: str = "error"
    guarded: bool = False
    is_html: bool = False  # all responses are pages, for programs as well
    is_page: bool = False  # people open it or send a form to it: errors are pages

    def respond(self, environ: Environ) -> Response:
        """Run the operation for the method of the request. GET handles HEAD as well."""
        if not self.methods:
            raise HTTPError(404, "Not found")
        method = environ["REQUEST_METHOD"]
        operation = (self.methods.get("GET" if method == "HEAD" else method)
                     or self.methods.get("*"))
        if operation is None:
            allowed = [*self.methods, *(["HEAD"] if "GET" in self.methods else [])]
            raise HTTPError(405, "Method not allowed", ("Allow", ", ".join(allowed)))
        return operation.endpoint(environ)

    def error_response(self, error: HTTPError) -> Response:
        """Build the response to an error."""
        content = {"success": False, self.error_member: error.message, **error.members}
        return Response.of(error.status, content, *error.headers)


_NO_ROUTE = Route({})


class Router:
    """Serves the routes. Other paths go to `apps` or else `fallback`, or get 404."""

    def __init__(
        self, routes: Mapping[str, Route], fallback: Optional[WSGIApplication] = None,
        apps: Mapping[str, WSGIApplication] = {},
    ) -> None:
        self.fallback = fallback
        self.apps = apps
        self._routes = routes
        self._has_ids = any(path.endswith("/{id}") for path in routes)

    def find_route(self, path: str) -> Route:
        """The route of a path."""
        route = self._routes.get(path, _NO_ROUTE)
        if route is _NO_ROUTE and self._has_ids and path[-1:] != "/":
            route = self._routes.get(path.rpartition("/")[0] + "/{id}", _NO_ROUTE)
        return route

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        route = self._routes.get(path, _NO_ROUTE)
        if route is _NO_ROUTE and self._has_ids:
            route = self.find_route(path)
        try:
            if route is _NO_ROUTE and (app := self.apps.get(path, self.fallback)):
                return app(environ, start_response)
            response = route.respond(environ)
        except _BodyError:
            raise  # this module's server answers it
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


# --- Endpoints ----------------------------------------------------------------------------------
#
# Design: `Service` has one method per endpoint. It checks the request, asks the store, and builds
# the response, all in the thread of the request. The only slow step is a password hash. It waits in
# `_HashQueue` for a core, after this module's server has moved its loop to another thread. A
# refused sign-in must take the same time and get the same response, whether or not the user exists.


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _too_many_sign_ins() -> HTTPError:
    return HTTPError(503, "Too many sign-ins at once", ("Retry-After", "10"))


class _HashQueue:
    """A queue in which password hashes wait for a core.

    A hash occupies a core for a few tenths of a second. Only as many run as there are cores, so
    that other requests are not slowed down. Networks take turns: in each round, every network may
    compute one hash. None may take more places than it leaves free: a flood from one network takes
    half of the queue, and hardly delays the others.
    """

    def __init__(self, cores: int) -> None:
        self._changed = threading.Condition()  # of the attributes below
        self._free_cores = cores
        self._round = 0
        self._joined = 0
        self._waiting: List[Tuple[int, int, str]] = []  # round, number and network; lowest is next

    @contextmanager
    def core(self, network: str) -> Iterator[None]:
        """Wait for a core, and use it for a `with` block.

        Raises:
            HTTPError: too many hashes wait, of this network or in total.
        """
        with self._changed:
            turn = self._join(network)
            try:
                self._changed.wait_for(lambda: self._free_cores and turn == min(self._waiting))
                self._free_cores -= 1
                self._round = turn[0]
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free_cores += 1
                self._changed.notify_all()

    def _join(self, network: str) -> Tuple[int, int, str]:
        own_rounds = [number for number, _, other in self._waiting if other == network]
        if len(own_rounds) >= MAX_WAITING_HASHES - len(self._waiting):
            raise _too_many_sign_ins()
        self._joined += 1
        turn = max([self._round, *(number + 1 for number in own_rounds)]), self._joined, network
        self._waiting.append(turn)
        return turn


# By process, and created when needed: a lock that another thread held at a fork would never be
# released in the child, and gevent replaces the locks of `threading` after the import.
_hash_queues: Dict[int, _HashQueue] = {}
_build_locks: Dict[int, threading.Lock] = {}
_Item = TypeVar("_Item")


def _address(environ: Environ) -> str:
    """The address of the client; `_apply_forwarded` has put it there."""
    return str(environ.get("REMOTE_ADDR", ""))


def _for_this_process(items: Dict[int, _Item], create: Callable[[], _Item]) -> _Item:
    process_id = os.getpid()
    if process_id not in items:
        items.setdefault(process_id, create())  # atomic: all threads get the same item
    return items[process_id]


def _core(environ: Environ) -> ContextManager[None]:
    """A core of this machine, for a `with` block that computes a password hash."""
    queue = _for_this_process(_hash_queues, lambda: _HashQueue(_usable_cores()))
    return queue.core(_network(_address(environ)))


def issue_token(grant: Grant, signer: Signer, lifetime: float, now: float) -> Tuple[str, int]:
    """Sign a token for a session. Return it with its lifetime: it never outlives the session."""
    user, session, _ = grant
    issued, expires = int(now), int(min(now + lifetime, session.expires))
    claims = {"sub": user.name, "username": user.name, "sid": session.id,
              "iat": issued, "exp": expires}
    scope = user.scope if session.scope is None else session.scope
    if scope:
        claims["scope"] = scope
    return signer.sign(claims), expires - issued


class _WrongPassword(Exception):
    """The user, the password or the one-time password of an attempt is wrong; says which."""


def _check_otp(user: User, otp: str, now: float) -> int:
    """The time step to store with a user whose password was right.

    Raises:
        HTTPError: the user has a second factor, and there is no code.
        _WrongPassword: the code is wrong, or was used before.
    """
    if not user.otp_secret:
        return user.otp_step
    if not otp:
        raise HTTPError(401, "A one-time password is required", otp_required=True)
    step = find_otp_step(user.otp_secret, otp, now)
    if step <= user.otp_step:
        raise _WrongPassword("wrong code" if step < 0 else "used code")
    return step


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
        return self._token_response(
            self.sign_in(name, password, _text_field(fields, "otp"), environ))

    def sign_in(
        self, name: str, password: str, otp: str, environ: Environ, **details: Any,
    ) -> Grant:
        """Open a session; `details` are those of `new_grant`.

        Raises:
            HTTPError: with status 401, 429 or 503.
        """
        with self._attempt(
                name, environ, "sign_in_failed", "Invalid username and password") as attempt:
            opened = False
            # The user may be changed meanwhile, perhaps by a sign-in that upgrades the hash. Then
            # check the password again. Each repetition needs another change of the user.
            while not opened:
                found = self._check_password(attempt, name, password, environ)
                user = found._replace(otp_step=_check_otp(found, otp, self.clock()))
                if needs_rehash(user.password_hash, iterations=self.settings.pbkdf2_iterations):
                    user = user._replace(password_hash=self._hash_password(password, environ))
                now = self.clock()
                grant = new_grant(user, self.settings.session_lifetime, now,
                                  key_fingerprint=self.signer.fingerprint, **details)
                opened = self.store.open_session(grant, now, attempt=attempt, found=found)
        self._record("sign_in", environ, user.name, grant.session.id)
        return grant

    @contextmanager
    def _attempt(
        self, name: str, environ: Environ, event: str, message: str, session: Optional[str] = None,
    ) -> Iterator[Attempt]:
        """Let a `with` block check a password, and count the failure if it raises _WrongPassword.

        It raises HTTPError in its place, and also if the password must not be tried now.
        """
        attempt = Attempt.of(name, _address(environ), self.settings.login_failures)
        try:
            self.store.check_attempt(attempt, self.clock())
            # Only this module's server has a loop. It would stop if its thread waited for a core.
            if not environ.get("jwtserver.start_slow_response", lambda: True)():
                raise _too_many_sign_ins()
            try:
                yield attempt
            except HTTPError as error:
                if "otp_required" in error.members:
                    self._record("otp_required", environ, name, session)
                raise
            except _WrongPassword as error:
                self.store.count_failure(attempt, self.clock())
                self._record(event, environ, name, session, reason=str(error))
                raise HTTPError(401, message) from None
        except LockedOut as error:
            self._record("locked_out", environ, name, session, locked=error.locked)
            raise HTTPError(429, str(error), ("Retry-After", str(error.seconds))) from None

    def _check_password(
        self, attempt: Attempt, name: str, password: str, environ: Environ,
    ) -> User:
        """The user with this name and password. A refusal takes the same time for every name."""
        user = self.store.find_user(name)
        # A disabled user is an unknown one here, or the time would confirm the password.
        stored = user.password_hash if user and not user.disabled else ""
        with _core(environ):
            self.store.check_attempt(attempt, self.clock())  # others may have failed meanwhile
            self._iterations = max(self._iterations, password_iterations(stored))
            matches = verify_password(password, stored, min_iterations=self._iterations)
        if user is None:
            raise _WrongPassword("unknown user")
        if not matches:
            raise _WrongPassword("disabled user" if user.disabled else "wrong password")
        return user

    def _hash_password(self, password: str, environ: Environ) -> str:
        with _core(environ):
            return hash_password(password, iterations=self.settings.pbkdf2_iterations)

    def _record(
        self, event: str, environ: Environ, user: Optional[str] = None,
        session: Optional[str] = None, **more: str,
    ) -> None:
        details = {"user": user and user[:MAX_NAME_LENGTH], "address": _address(environ),
                   "session": session, **more}
        _audit(event, **{key: value for key, value in details.items() if value is not None})

    def refresh(self, environ: Environ) -> Response:
        """Exchange a refresh token for new tokens."""
        token = _required_field(_read_fields(environ), "refresh_token")
        try:
            grant = self.store.refresh(
                token, self.clock(), self.settings.refresh_grace, self.signer.fingerprint)
        except RefreshError as error:
            if error.ended:
                self._record("refresh_reused", environ, error.ended.user_name, error.ended.id)
            else:
                self._record("refresh_failed", environ)
            raise HTTPError(401, str(error)) from None
        self._record("refresh", environ, grant.user.name, grant.session.id)
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
        self.store.end_session(claims["sid"])
        self._record("logout", environ, claims["sub"], claims["sid"])
        if not environ.get("wsgi_auth.cookie"):
            return Response.of(204)
        # The Back button would show earlier pages from the browser's memory. Browsers obey this
        # header only over HTTPS and from this machine (https://www.w3.org/TR/clear-site-data/).
        return Response.of(
            204, None, self.cookie_header(environ, "", 0), ("Clear-Site-Data", '"cache"'))

    def change_password(self, environ: Environ) -> Response:
        """Replace the password, and end the user's other sessions."""
        session, fields = self._own_session(environ), _read_fields(environ)
        password = _required_field(fields, "password", 400)
        new_password = _required_field(fields, "new_password", 400)
        try:
            hash_password(new_password, iterations=1)  # checks it, before the old one is tried
        except ValueError as error:
            raise HTTPError(400, f"`new_password` cannot be used: {error}") from None
        name = session.user_name
        with self._attempt(
                name, environ, "password_failed", "Invalid password", session.id) as attempt:
            changed = False
            while not changed:  # as in `sign_in`
                user = self._check_password(attempt, name, password, environ)
                new_hash = self._hash_password(new_password, environ)
                changed = self.store.change_password(
                    user, new_hash, session.id, attempt, self.clock())
        self._record("password", environ, name, session.id)
        return Response.of(204)

    def session_of_person(self, claims: Claims) -> Optional[Session]:
        """The session of a token, or None if the token is not from a sign-in."""
        session = self.store.find_session(claims.get("sid", ""), self.clock())
        return None if session is None or session.machine else session

    def _own_session(self, environ: Environ) -> Session:
        session = self.session_of_person(_claims(environ))
        if session is None:
            raise HTTPError(403, "Only a user who has signed in can do this")
        return session

    def sessions(self, environ: Environ) -> Response:
        """List the user's sessions, the newest first."""
        own = self._own_session(environ)
        return Response.of(200, {"sessions": [{
            "id": session.id,
            "label": session.label,
            "created": int(session.created),
            "last_used": int(session.refreshed),
            "expires": session.expires,
            "current": session.id == own.id,
        } for session in self.store.sessions_of(own.user_name, self.clock())]},
            ("Cache-Control", "no-store"))

    def end_session(self, environ: Environ) -> Response:
        """End a session of the user."""
        own = self._own_session(environ)
        session_id = environ["PATH_INFO"].rpartition("/")[2]
        sessions = self.store.sessions_of(own.user_name, self.clock())
        if session_id not in [session.id for session in sessions]:
            raise HTTPError(404, "There is no such session")
        self.store.end_session(session_id)
        self._record("session_end", environ, own.user_name, session_id)
        return Response.of(204)

    def logout_by_refresh_token(self, environ: Environ) -> Optional[Response]:
        """End the session of the refresh token in the body; return None if there is none.

        An unknown token gets the same response: its session has ended (RFC 7009 §2.2).
        """
        has_body = (environ.get("CONTENT_LENGTH") not in (None, "", "0")
                    or environ.get("wsgi.input_terminated"))
        if environ["REQUEST_METHOD"] != "POST" or not has_body:
            return None
        fields = _read_fields(environ)
        if fields.get("refresh_token", "") == "":
            return None
        token = _required_field(fields, "refresh_token")
        session = self.store.find_session_of(token, self.clock())
        if session:
            self.store.end_session(session.id)
            self._record("logout", environ, session.user_name, session.id)
        return Response.of(204)

    def verify(self, environ: Environ) -> Response:
        """Tell a proxy that the token is valid, and the name and scopes of its user."""
        claims = environ.get("wsgi_auth.claims")
        if claims is None:
            return Response.of(200, {"user": None, "scope": ""})
        user, scope = claims["sub"], claims.get("scope", "")
        for value in (user, scope):
            # A proxy could read such a value as another user. No user here has such a name.
            if not isinstance(value, str) or value != value.strip() or _UNSENDABLE.search(value):
                raise HTTPError(403, "The token's subject or scope cannot be sent in a header")
        if len(user.encode()) + len(scope.encode()) > MAX_VERIFY_BYTES:
            raise HTTPError(403, "The token's subject and scope are too long for a header")
        required = _VerifyOptions.of(environ).scopes
        if not set(required).issubset(scope.split(" ")):
            raise HTTPError(403, "Insufficient scope", (
                "WWW-Authenticate",
                f'Bearer realm="api", error="insufficient_scope", scope="{" ".join(required)}"'))
        # Not 204: Envoy's ext_authz admits a request only after 200.
        return Response.of(
            200, {"user": user, "scope": scope},
            ("Remote-User", user.encode().decode("latin-1")),
            ("Remote-Scope", scope.encode().decode("latin-1")))

    def cookie_header(self, environ: Environ, token: str, seconds: int) -> Tuple[str, str]:
        """A header that sets the cookie for some seconds; 0 deletes it."""
        https = environ.get("wsgi.url_scheme") == "https"
        name, secure = ("__Host-", "; Secure") if https else ("", "")
        return "Set-Cookie", (f"{name}{self.settings.cookie}={token}; Max-Age={seconds}; Path=/;"
                              f" HttpOnly; SameSite=Lax{secure}")

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
        return Response.of(200, {"status": "ok"}, ("Cache-Control", "no-store"))


def _claims(environ: Environ) -> Claims:
    claims: Optional[Claims] = environ.get("wsgi_auth.claims")
    if not claims:  # the settings exempt this path from the guard
        raise HTTPError(401, "An authorization header is required",
                        ("WWW-Authenticate", 'Bearer realm="api"'))
    return claims


class _VerifyOptions(NamedTuple):
    """The options of `/verify`, from its query."""

    scopes: Sequence[str]  # that the token must have
    optional: bool  # a request without a token is answered with 200, too
    login: bool  # people without a token are sent to the sign-in form

    @classmethod
    def of(cls, environ: Environ) -> "_VerifyOptions":
        """Parse the query. Parameters with other names are ignored.

        Caddy's `uri /verify` passes on the query of the client. So `optional` does not count if the
        client's own query has it as well. The other options cannot help a client.
        """
        query = parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        given = [pair for pair in query if pair[0] in ("scope", "optional", "login")]
        options = dict(given)
        scopes: Sequence[str] = ()
        with suppress(ValueError):
            scopes = parse_scopes(options.get("scope", ""))
        if (len(options) < len(given) or "scope" in options and not scopes
                or options.get("optional") or options.get("login")):
            raise HTTPError(400, "`scope` must be given once, as names separated by spaces;"
                                 " `optional` and `login` once, without a value")
        client_query = environ.get("HTTP_X_FORWARDED_URI", "").partition("?")[2]
        is_the_clients = "optional" in dict(parse_qsl(client_query, keep_blank_values=True))
        return cls(scopes, "optional" in options and not is_the_clients, "login" in options)


_WELCOME = Response.of(200, {"message": "Welcome to the protected page"})


def welcome(environ: Environ) -> Response:
    """Greet a user with a valid token."""
    return _WELCOME


# --- Pages for people ---------------------------------------------------------------------------
#
# Design: The pages that a browser shows: a sign-in form, an account page, a start page, and errors.
# They work without JavaScript. Signing in sets a cookie with the token of a session that cannot be
# refreshed and lasts as long as the cookie. A page is one string, built in the thread of the
# request. All text from outside is escaped, and no page may contain a password. A form is accepted
# only from this site, because browsers send cookies with the forms of other sites too.

_STYLE = """
:root { color-scheme: light dark; --back: #f4f5f7; --card: #fff; --text: #1c2430; --line: #7d8796;
  --accent: #1d4ed8; --on-accent: #fff; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --back: #12161c; --card: #1c222b; --text: #e8ebf0;
  --line: #717c8c; --accent: #8ab4ff; --on-accent: #0b1a33; --bad: #ff9b92; } }
* { box-sizing: border-box; }
body { margin: 0; min-height: 100svh; display: grid; place-items: center; padding: 1rem;
  background: var(--back); color: var(--text); font: 1rem/1.5 system-ui, sans-serif; }
main { width: 100%; max-width: 26rem; padding: 1.75rem; background: var(--card);
  border-radius: .75rem; box-shadow: 0 1px 3px #0003; overflow-wrap: anywhere; }
h1 { margin: 0 0 1rem; font-size: 1.5rem; line-height: 1.2; }
label { display: block; margin: 1rem 0 .25rem; font-weight: 600; }
input { width: 100%; padding: .6rem .7rem; font: inherit; color: inherit; background: transparent;
  border: 1px solid var(--line); border-radius: .4rem; }
input[aria-invalid] { border-color: var(--bad); }
button { width: 100%; margin-top: 1.25rem; padding: .65rem; font: inherit; font-weight: 600;
  color: var(--on-accent); background: var(--accent); border: 1px solid transparent;
  border-radius: .4rem; cursor: pointer; }
button:hover { filter: brightness(1.1); }
main > :last-child { margin-bottom: 0; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
h2 { margin: 1.75rem 0 .5rem; font-size: 1.1rem; }
ul { padding-left: 1.25rem; }
li { margin: .5rem 0; }
li button { width: auto; margin: .25rem 0 0; padding: .3rem .7rem; color: var(--accent);
  background: transparent; border-color: var(--line); }
.error { margin: .5rem 0 0; color: var(--bad); }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_PAGE_HEADERS = (
    ("Cache-Control", "no-store"),  # the Back button must show nothing after a sign-out
    ("Content-Security-Policy", "default-src 'none'; base-uri 'none'; form-action 'self';"
                                f" frame-ancestors 'none'; style-src 'sha256-{_STYLE_HASH}'"),
    ("Referrer-Policy", "same-origin"),  # `no-referrer` makes browsers send `Origin: null`
    ("X-Frame-Options", "DENY"),
)
_CURRENT_PASSWORD = 'type="password" autocomplete="current-password"'  # attributes of the input
_PASSWORD_CHANGED = "changed"  # the query with which the account page says so
MAX_COOKIE_TOKEN = 4000  # bytes; browsers take 4,096 with the name (RFC 6265 §6.1)
# Headers that a page has from the answer in its place, in lower case.
_KEPT_HEADERS = ("allow", "clear-site-data", "retry-after", "set-cookie", "vary",
                 "www-authenticate")
# A path of this site. Browsers take `//x` and `/\x` for another site, and drop tabs and line ends.
_LOCAL_PAGE = re.compile(r"/(?!/)[!-\[\]-~]*")


def _page(status: int, title: str, content: str, *headers: Tuple[str, str]) -> Response:
    """A response with a page. `content` is HTML."""
    body = (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
            f"<body>\n<main>\n<h1>{escape(title)}</h1>\n{content}</main>\n</body>\n</html>\n"
            ).encode("utf-8", "replace")
    return Response.with_body(status, "text/html; charset=utf-8", body, *_PAGE_HEADERS, *headers)


def _see_other(location: str, *headers: Tuple[str, str]) -> Response:
    return Response.with_body(
        303, "text/plain", b"", ("Location", location), ("Cache-Control", "no-store"), *headers)


def _field(
    name: str, label: str, attributes: str, errors: Mapping[str, str], value: str = "",
    focus: str = "",
) -> str:
    """An input with its label and the error about it, which screen readers read with it."""
    error = errors.get(name, "")
    attributes += " required"
    if error:
        attributes += f' aria-invalid="true" aria-describedby="{name}-error"'
        error = f'<p class="error" id="{name}-error">{escape(error)}</p>\n'
    if name == focus:
        attributes += " autofocus"
    return (f'<label for="{name}">{label}</label>\n'
            f'<input id="{name}" name="{name}" value="{escape(value)}" {attributes}>\n{error}')


def _local_page(page: str) -> str:
    """Return a path of this site, or `/` for one that is long or may lead to another site."""
    return page if _LOCAL_PAGE.fullmatch(page) and len(page) <= MAX_NEXT_LENGTH else "/"


def _wants_page(environ: Environ) -> bool:
    return "HTTP_ACCEPT" in environ and "text/html" in environ["HTTP_ACCEPT"].lower()


def _signed_in_as(claims: Claims) -> str:
    return f"<p>Signed in as <strong>{escape(claims['sub'])}</strong>.</p>\n"


def _sentences(message: str, headers: Sequence[Tuple[str, str]]) -> str:
    """The message of an error and, if its headers say so, when to try again."""
    seconds = dict(headers).get("Retry-After")
    if seconds is None:
        return f"{message}."
    minutes = -(-int(seconds) // 60)
    return f"{message}. Try again in {f'{minutes} minutes' if minutes > 1 else 'a minute'}."


def _html_form(button: str, fields: str = "", action: str = "") -> str:
    target = f' action="{action}"' if action else ""  # without it: the page with the form
    return f'<form method="post"{target}>\n{fields}<button>{button}</button>\n</form>\n'


def _time(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
    except (ValueError, OverflowError, OSError):  # beyond the calendar of the system
        return str(seconds)


class Pages:
    """The pages, for the user whose token is in the cookie."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.guard: BearerAuthMiddleware  # `create_app` sets it
        self.login_path = f"{service.settings.prefix}/login"
        self._sign_out_form = _html_form("Sign out", action=f"{service.settings.prefix}/logout")

    def _claims(self, environ: Environ) -> Optional[Claims]:
        """The claims of the token in the cookie, if it is valid."""
        return None if environ.get("HTTP_AUTHORIZATION") else self.guard.authenticate(environ)

    def start(self, environ: Environ) -> Response:
        """Explain what this is, and who is signed in."""
        claims = self._claims(environ)
        who, link, form = "<p>Nobody is signed in.</p>\n", "Sign in", ""
        if claims is not None:
            who, link, form = _signed_in_as(claims), "Your account", self._sign_out_form
        return _page(200, "jwtserver", (
            "<p>This server signs people and programs in, and protects an application with JSON Web"
            f" Tokens.</p>\n{who}<ul>\n"
            f'<li><a href="{self.login_path}">{link}</a></li>\n'
            '<li><a href="/protected">/protected</a> needs a sign-in</li>\n'
            f'<li><a href="{self.service.settings.prefix}/openapi.json">openapi.json</a> describes'
            f" the endpoints for programs</li>\n</ul>\n{form}"), ("Vary", "Accept"))

    def ask_to_sign_in(self, target: str) -> Response:
        """Redirect to the sign-in form, and back to this path and query afterwards."""
        page = quote(target, "/", "latin-1", "replace")
        if len(page) > MAX_NEXT_LENGTH:
            page = "/"
        return _see_other(f"{self.login_path}?next={page}", ("Vary", "Accept"))

    def login_page(self, environ: Environ) -> Response:
        """Show the sign-in form or, to a signed-in user, the account page."""
        claims = self._claims(environ)
        query = dict(parse_qsl(environ.get("QUERY_STRING", "")))
        next_page = _local_page(query.get("next", ""))
        # Somebody may have put a token of `token issue` into the cookie.
        if claims is None or self.service.session_of_person(claims) is None:
            return self._form(next_page)
        notice = "" if environ.get("QUERY_STRING") != _PASSWORD_CHANGED else (
            "<p>Your password has been changed. Your other sessions have ended.</p>\n")
        return self._account(claims, next_page, notice)

    def login(self, environ: Environ) -> Response:
        """Sign in with the form, and set the cookie."""
        if is_cross_site(environ):
            raise HTTPError(403, "Cross-origin request refused")
        fields = _read_fields(environ, only_form=True)
        next_page = _local_page(fields.get("next", ""))
        name, password, otp = [
            fields.get(field, "") for field in ("username", "password", "otp")]
        errors = {} if name else {"username": "Enter your user name."}
        if not password:
            errors["password"] = "Enter your password."
        if errors:
            return self._form(next_page, 401, name, errors)
        try:
            grant = self.service.sign_in(
                name, password, otp, environ, refreshable=False, label="browser")
        except HTTPError as error:
            if error.status not in (401, 429):
                raise
            errors = _form_errors(error, otp)
            return self._form(next_page, error.status, name, errors, *error.headers)
        return self._signed_in(next_page, grant, environ)

    def _signed_in(self, next_page: str, grant: Grant, environ: Environ) -> Response:
        service = self.service
        previous = self._claims(environ)
        if previous is not None:
            service.store.end_session(previous.get("sid", ""))
        token, seconds = issue_token(
            grant, service.signer, service.settings.session_lifetime, service.clock())
        if len(token) > MAX_COOKIE_TOKEN:  # the browser would drop it, and come back for ever
            service.store.end_session(grant.session.id)
            raise HTTPError(403, "Your name and scopes are too long for a cookie")
        return _see_other(next_page, service.cookie_header(environ, token, seconds))

    def _form(
        self, next_page: str, status: int = 200, name: str = "", errors: Mapping[str, str] = {},
        *headers: Tuple[str, str],
    ) -> Response:
        """The sign-in form. `errors` has the error about each field, by name."""
        focus = "username" if not name or "username" in errors else "password"
        fields = [
            _field("username", "User name", 'autocomplete="username" autocapitalize="none"'
                   ' spellcheck="false"', errors, name, focus),
            _field("password", "Password", _CURRENT_PASSWORD, errors, "", focus)]
        if "otp" in errors:
            fields.append(_field(
                "otp", "Code of your authenticator app",
                'autocomplete="one-time-code" inputmode="numeric"',
                errors))
        hidden = f'<input type="hidden" name="next" value="{escape(next_page)}">\n'
        return _page(
            status, "Sign in", _html_form("Sign in", hidden + "".join(fields)), *headers)

    def _account(
        self, claims: Claims, next_page: str = "/", notice: str = "", status: int = 200,
        error: str = "", headers: Sequence[Tuple[str, str]] = (),
    ) -> Response:
        """The account page, with the result of the form that was sent from it."""
        service, prefix = self.service, self.service.settings.prefix
        focus = ("new_password" if status == 400 else "password") if error else ""
        errors = {focus: error}
        # Chromium applies `form-action` to redirects too. If the next page redirects to another
        # site, the sign-in form stays, without a message. After a reload, this link leads on.
        link = escape(next_page)
        sessions = "".join(
            "<li>" + escape(", ".join(filter(None, (
                "Token" if session.machine else "Sign-in", session.label, _time(session.created)))))
            + (" (this one)" if session.id == claims.get("sid") else _html_form(
                "End this session", action=f"{prefix}/sessions/{session.id}")) + "</li>\n"
            for session in service.store.sessions_of(claims["sub"], service.clock()))
        fields = (
            _field("password", "Current password", _CURRENT_PASSWORD, errors, focus=focus)
            + _field("new_password", "New password",
                     'type="password" autocomplete="new-password"'
                     f' minlength="{MIN_PASSWORD_LENGTH}"', errors, focus=focus))
        return _page(status, "Your account", (
            f"{notice}{_signed_in_as(claims)}<p><a href=\"{link}\">Continue to {link}</a></p>\n"
            f"{self._sign_out_form}<h2>Sessions</h2>\n<ul>\n{sessions}</ul>\n"
            "<h2>Change password</h2>\n"
            + _html_form("Change password", fields, f"{prefix}/password")), *headers)

    def _no_access(self, claims: Claims, headers: Sequence[Tuple[str, str]]) -> Response:
        """The page in place of one that needs a scope which this user does not have."""
        return _page(403, "Forbidden", (
            f'<p class="error">You are signed in as {escape(claims["sub"])}, but have no access to'
            f" this page.</p>\n{self._sign_out_form}"
            f'<p><a href="{self.login_path}">Go to your account</a></p>\n'), *headers)

    def refuse(
        self, environ: Environ, start_response: StartResponse, status: str, message: str,
        *headers: Tuple[str, str],
    ) -> Iterable[bytes]:
        """Answer a request that the guard refuses: a person without a scope gets a page."""
        error = HTTPError(int(status[:3]), message, *headers)
        response = _NO_ROUTE.error_response(error)
        if (error.status == 403 and environ["REQUEST_METHOD"] in ("GET", "HEAD")
                and _wants_page(environ) and (claims := self._claims(environ))):
            response = self._no_access(claims, headers)
        return _send_response(response, environ, start_response)

    def with_pages(self, app: WSGIApplication, router: Router) -> WSGIApplication:
        """Answer people with pages where endpoints, the guard or the rate limit answer programs.

        At the login page, programs get pages too.
        """
        def _respond(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
            path = environ.get("PATH_INFO", "")
            if not (path == self.login_path
                    or _wants_page(environ) and router.find_route(path).is_page):
                return app(environ, start_response)
            return self.answer_person(app, environ, start_response)

        return _respond

    def answer_person(
        self, app: WSGIApplication, environ: Environ, start_response: StartResponse,
    ) -> Iterable[bytes]:
        """Answer with a page in place of an error of `app`."""
        started: List[Any] = []
        body = app(environ, lambda *arguments: started.extend(arguments))
        status, headers, *exc_info = started
        page = None
        with suppress(StoreError):  # the account page needs the database; the JSON does not
            page = self._page_for(environ, int(status[:3]), headers, b"".join(body))
        if page:
            return _send_response(page, environ, start_response, *exc_info)
        start_response(*started)
        return body

    def _page_for(
        self, environ: Environ, status: int, headers: Sequence[Tuple[str, str]], body: bytes,
    ) -> Optional[Response]:
        """The page in place of an answer for programs; None for an answer that people can read."""
        kept = [header for header in headers if header[0].lower() in _KEPT_HEADERS]
        from_account = environ.get("wsgi_auth.cookie")  # a form of the account page
        if from_account and status in (204, 404):  # 404: the session has ended already
            changed = status == 204 and environ["PATH_INFO"].endswith("/password")
            query = f"?{_PASSWORD_CHANGED}" if changed else ""
            return _see_other(self.login_path + query, *kept)
        if status < 400 or ("Content-Type", "application/json") not in headers:
            return None
        title = HTTPStatus(status).phrase
        message = json.loads(body)["error"] if body else title  # no body: HEAD
        if message == "Cross-origin request refused":  # perhaps a proxy does not pass on Host
            logger.warning("Refused a form with the Origin %s; this site is %s", *(
                _loggable(environ.get(name), 200) for name in ("HTTP_ORIGIN", "HTTP_HOST")))
        if (from_account and status in (400, 401, 429)
                and self.service.session_of_person(environ["wsgi_auth.claims"])):
            message = "The current password is wrong" if status == 401 else message
            return self._account(environ["wsgi_auth.claims"], status=status,
                                 error=_sentences(message, headers), headers=kept)
        if status == 401:
            message = "You are not signed in. Nothing has changed"
        if from_account and message == "Insufficient scope":
            return self._no_access(environ["wsgi_auth.claims"], kept)
        can_sign_out = status == 405 and environ["PATH_INFO"].endswith("/logout")
        return _page(status, title, (
            f'<p class="error">{escape(_sentences(message, headers))}</p>\n'
            f'{self._sign_out_form if can_sign_out else ""}<p><a href="{self.login_path}">Go to'
            f' {"your account" if from_account else "the sign-in page"}</a></p>\n'), *kept)


def _form_errors(error: HTTPError, otp: str) -> Dict[str, str]:
    """The error about each field of the sign-in form. It has a field for the code if needed."""
    if error.members:
        return {"otp": "Enter the code of your authenticator app, and your password again."}
    if error.status == 429:
        message = _sentences(error.message, error.headers)
    elif otp:
        message = "The user name, the password or the code is wrong. Each code works only once."
    else:
        message = "The user name or the password is wrong."
    return {"password": message, **({"otp": ""} if otp else {})}


# --- Routes and OpenAPI -------------------------------------------------------------------------
#
# Design: `_routes` is the table of all endpoints. The router and the OpenAPI document are both made
# from it, so that a description cannot differ from what is served. The summary of an operation is
# the first line of its endpoint's docstring.


def _object(**members: Any) -> Dict[str, Any]:
    """The JSON Schema (2020-12) of an object that has these members."""
    return {"type": "object", "properties": members, "required": list(members)}


_STRING = {"type": "string"}
_HTML = {"type": "string"}  # a page
_TOKENS = _object(token=_STRING, token_type={"const": "Bearer"}, expires_in={"type": "integer"},
                  refresh_token=_STRING)
_OR_NULL = {"type": ["string", "null"]}
_TIME = {"type": "integer", "description": "Seconds since 1970"}
_SESSIONS = _object(sessions={"type": "array", "items": _object(
    id=_STRING, label=_OR_NULL, created=_TIME, last_used=_TIME, expires=_TIME,
    current={"type": "boolean"})})
_VERIFY_QUERY = {
    "scope": {**_STRING, "pattern": r"^[!#-\[\]-~]+( [!#-\[\]-~]+)*$",
              "description": "Scopes that the token must have, separated by spaces"},
    "optional": {"const": "", "description": "Answer 200 without a token as well"},
    "login": {"const": "", "description": "Behind a trusted proxy, answer people without a valid"
                                          " token with 303, to the sign-in page"}}
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE")


def _account_routes(service: Service, pages: Pages) -> Dict[str, Route]:
    """The endpoints about users and their sessions, by path below the prefix."""
    routes = {
        "/authenticate": Route({"POST": Operation(
            service.authenticate, schema=_TOKENS, fields=("username", "password"),
            optional_fields=("otp",))}, "message"),
        "/refresh": Route({"POST": Operation(
            service.refresh, schema=_TOKENS, fields=("refresh_token",))}, "message"),
        "/logout": Route({"POST": Operation(
            service.logout, 204, errors=(400, 413, 415))}, guarded=True,
            is_page=True),
        "/password": Route({"POST": Operation(
            service.change_password, 204, fields=("password", "new_password"),
            errors=(403,))}, guarded=True, is_page=True),
        "/sessions": Route({"GET": Operation(
            service.sessions, schema=_SESSIONS, errors=(403,))}, guarded=True),
        "/sessions/{id}": Route(dict.fromkeys(("DELETE", "POST"), Operation(
            service.end_session, 204, errors=(403, 404))), guarded=True, is_page=True),
        "/verify": Route({"*": Operation(
            service.verify, schema=_object(user=_OR_NULL, scope=_STRING), errors=(400, 403),
            query=_VERIFY_QUERY)}, guarded=True),
        "/health": Route({"GET": Operation(
            service.health, schema=_object(status={"const": "ok"}))}),
    }
    if service.settings.cookie:
        routes["/login"] = Route({
            "GET": Operation(pages.login_page, schema=_HTML, query={"next": {
                **_STRING, "description": "The path to return to after the sign-in"}}),
            "POST": Operation(pages.login, 303, fields=("username", "password"),
                              optional_fields=("otp", "next"), errors=(403,))},
            is_page=True, is_html=True)
    return routes


def _routes(service: Service, pages: Pages, prefix: str, demo: bool) -> Dict[str, Route]:
    """All endpoints, by path."""
    routes = {prefix + path: route for path, route in _account_routes(service, pages).items()}
    if demo:
        routes["/protected"] = Route(
            {"GET": Operation(welcome, schema=_object(message=_STRING))}, guarded=True)

    def index(environ: Environ) -> Response:
        """List the endpoints, or show a page to people."""
        for_person = service.settings.cookie and _wants_page(environ)
        return pages.start(environ) if for_person else listing

    def openapi(environ: Environ) -> Response:
        """Describe the endpoints (OpenAPI 3.1)."""
        return document()

    @lru_cache(maxsize=None)
    def document() -> Response:
        return Response.of(200, _describe(routes, prefix), no_cache)

    document_path = f"{prefix}/openapi.json"
    routes[document_path] = Route({"GET": Operation(openapi, schema={"type": "object"})})
    if demo:
        names = {"type": "array", "items": _STRING}
        routes["/"] = Route(
            {"GET": Operation(index, schema=_object(endpoints=names, openapi=_STRING))},
            is_page=True)
    no_cache = ("Cache-Control", "no-cache")  # a restart with other settings changes both
    listing = Response.of(200, {
        "endpoints": [f"{'any' if method == '*' else method} {path}"
                      for path, route in routes.items() for method in route.methods],
        "openapi": document_path}, ("Vary", "Accept"), no_cache)
    return routes


def _describe(routes: Mapping[str, Route], prefix: str) -> Dict[str, Any]:
    """The OpenAPI document of these routes (https://spec.openapis.org/oas/v3.1.0)."""
    # Relative to the document, so that it is right below a mount and behind a proxy as well.
    root = "/".join([".."] * prefix.count("/")) or "."
    parameters = {"parameters": [{"name": "id", "in": "path", "required": True, "schema": _STRING}]}
    return {
        "openapi": "3.1.0",
        "info": {"title": "jwtserver", "version": __version__,
                 "description": "Sign-in with JSON Web Tokens"},
        "servers": [{"url": root}],
        "paths": {
            path: {**(parameters if path.endswith("{id}") else {}),
                   **{method.lower(): _describe_operation(route, method)
                      for method in (_METHODS if "*" in route.methods else route.methods)}}
            for path, route in routes.items()},
        "components": {"securitySchemes": {
            "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}},
    }


def _describe_operation(route: Route, method: str) -> Dict[str, Any]:
    operation = route.methods.get(method) or route.methods["*"]
    name = operation.endpoint.__name__
    endpoints = {operation.endpoint for operation in route.methods.values()}
    is_shared = "*" in route.methods or len(endpoints) < len(route.methods)
    errors = {*operation.errors, 429, 500, 503, *([401] if route.guarded else []),
              *((400, 401, 411, 413, 415) if operation.fields else ())}
    error = _HTML if route.is_html else _error_schema(route.error_member)
    schemas: Dict[int, Any] = {
        operation.status: operation.schema, **dict.fromkeys(sorted(errors), error)}
    if route.error_member != "error":  # the rate limit says `error`
        schemas[429] = {"anyOf": [error, _error_schema("error")]}
    if "otp" in operation.optional_fields and not route.is_html:
        schemas[401] = _error_schema(route.error_member, otp_required={"const": True})
    description: Dict[str, Any] = {
        "operationId": f"{name}_{method.lower()}" if is_shared else name,
        "summary": (operation.endpoint.__doc__ or "").partition("\n")[0],
        "responses": {str(status): _describe_response(status, schema)
                      for status, schema in schemas.items()},
        "security": [{"token": []}] if route.guarded else [],
    }
    if "optional" in operation.query:
        description["security"].append({})  # a request without a token may be answered as well
    if operation.query:
        description["parameters"] = [
            {"name": name, "in": "query", "schema": schema, "allowEmptyValue": "const" in schema}
            for name, schema in operation.query.items()]
    if operation.fields:
        description["requestBody"] = _describe_body(operation, route.is_html)
    return description


def _error_schema(member: str, **optional_members: Any) -> Dict[str, Any]:
    schema = _object(success={"const": False}, **{member: _STRING})
    schema["properties"].update(optional_members)
    return schema


def _describe_body(operation: Operation, is_form: bool) -> Dict[str, Any]:
    schema = _object(**dict.fromkeys(operation.fields, {"type": "string", "minLength": 1}))
    schema["properties"].update(dict.fromkeys(operation.optional_fields, _STRING))
    form = {"application/x-www-form-urlencoded": {  # no field may occur twice, as an array would
        "schema": {**schema, "additionalProperties": _STRING}}}
    json_body = {} if is_form else {"application/json": {"schema": schema}}
    return {"required": True, "content": {**json_body, **form}}


def _describe_response(status: int, schema: Optional[Mapping[str, Any]]) -> Dict[str, Any]:
    description: Dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if schema:
        media_type = "text/html" if schema is _HTML else "application/json"
        description["content"] = {media_type: {"schema": schema}}
    return description


# --- The application ----------------------------------------------------------------------------
#
# Design: `create_app` composes the service from layers. From the outside in: the headers of
# proxies, CORS, the pages, the rate limit, the public endpoints, the guard, then the other
# endpoints and the application. Only /health has no rate limit, and /verify has a guard of its own.
# Each Router turns the errors of all layers inside it into responses. Only the first layer reads
# X-Forwarded-For, -Proto and -Host. All others find the address, scheme and host where every WSGI
# application expects them.


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
    _open_audit_log(settings)
    store = store or _open_store_for_app(settings)
    _prepare_keys_for(store, settings)
    store.close()  # the server may fork now; uWSGI gives no notice of it
    service = Service(store, make_signer(settings, clock), settings, clock)
    pages = Pages(service)
    routes = _routes(service, pages, settings.prefix, demo=app is None)
    public = {path: route for path, route in routes.items() if not route.guarded}
    behind_guard = {path: route for path, route in routes.items() if route.guarded}
    own_paths = [path for path in behind_guard if path != "/protected" and "{" not in path]
    protect = settings.protect or ("/protected" if app is None else "/",)
    inside = Router(behind_guard, None if app is None else _with_service_rules(app))
    guard = pages.guard = _with_guard(inside, pages, own_paths, protect)
    verify_path, logout_path = f"{settings.prefix}/verify", f"{settings.prefix}/logout"
    slash_paths = [f"{path}/" for path in (*public, *own_paths) if path != "/"]
    before_guard = dict.fromkeys([logout_path, *slash_paths], _before_guard(guard, service))
    before_guard[verify_path] = _verify_app(routes[verify_path], verify_path, pages)
    application = _with_rate_limit(Router(public, guard, before_guard), service, guard)
    if settings.cookie:
        application = pages.with_pages(application, Router(routes))
    return _with_proxy_headers(
        _with_cors(application, settings.cors_origins), settings.trusted_proxies)


def _with_service_rules(app: WSGIApplication) -> WSGIApplication:
    """Keep a thread of this module's server for the endpoints, and send X-Content-Type-Options."""
    def _respond(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        def _start(status: str, headers: List[Tuple[str, str]], *exc_info: Any) -> Any:
            if not any(name.lower() == "x-content-type-options" for name, _ in headers):
                headers = [*headers, _NOSNIFF]
            return start_response(status, headers, *exc_info)

        if not environ.get("jwtserver.has_free_thread", lambda: True)():
            raise HTTPError(503, "All threads are busy", ("Retry-After", "1"))
        return app(environ, _start)

    return _respond


def _open_store_for_app(settings: Settings) -> Store:
    store = open_store(settings.database, settings.leeway)
    if store.is_empty():
        logger.warning("%s has no users; run: %s user add NAME",
                       store.name, _program(settings, absolute=True))
    return store


def _prepare_keys_for(store: Store, settings: Settings) -> None:
    """Create the key file if it is missing; warn if other servers may have another key."""
    if prepare_keys(settings) and (
            _is_postgresql(settings.database)
            or store.count_tokens(_accepted_seconds(settings), time.time())):
        logger.warning("The key in %s is new: tokens of other keys are invalid here. All servers"
                       " of %s need the same key file", settings.key_file.absolute(), store.name)


def _with_guard(
    app: WSGIApplication, pages: Pages, own_paths: Sequence[str], protect: Rules,
) -> BearerAuthMiddleware:
    """Put the guard in front of an application; `own_paths` need a token without a rule."""
    service, settings = pages.service, pages.service.settings
    rules = protect if isinstance(protect, Mapping) else dict.fromkeys(protect, ())
    try:
        return BearerAuthMiddleware(
            app, service.signer, protect={**dict.fromkeys(own_paths, ()), **rules},
            exempt=settings.exempt, optional=settings.optional, is_revoked=service.is_revoked,
            cookie=settings.cookie, login_path=pages.login_path if settings.cookie else None,
            refuse=pages.refuse)
    except ValueError as error:
        names = ("protect", "exempt", "optional", "prefix")
        used = [name for name in names if getattr(settings, name)]
        raise SettingsError(f": {error}", *used) from None


def _verify_app(route: Route, path: str, pages: Pages) -> WSGIApplication:
    """Answer `/verify` by the rules for the request that a proxy asks about."""
    service, settings = pages.service, pages.service.settings
    scopes = settings.protect.get(path, ()) if isinstance(settings.protect, Mapping) else ()
    required, optional = [BearerAuthMiddleware(
        Router({path: route}), service.signer, is_revoked=service.is_revoked,
        cookie=settings.cookie, **rules) for rules in (
            {"protect": {"/": scopes}}, {"protect": (), "optional": ["/"]})]

    def _respond(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        options = _VerifyOptions.of(environ)
        method = ""
        if settings.trusted_proxies:
            method = environ.get("HTTP_X_FORWARDED_METHOD", "")
        elif "HTTP_X_FORWARDED_METHOD" in environ or "HTTP_X_FORWARDED_URI" in environ:
            _warn_once(_IGNORED_PROXY)
        _apply_forwarded_method(environ, method)
        guard = optional if options.optional else required
        if (options.login and settings.cookie and method in ("GET", "HEAD")
                and _wants_page(environ) and not environ.get("HTTP_AUTHORIZATION")):
            if guard.authenticate(environ):
                return pages.answer_person(guard, environ, start_response)
            response = pages.ask_to_sign_in(environ.get("HTTP_X_FORWARDED_URI", "/"))
            return _send_response(response, environ, start_response)
        return guard(environ, start_response)

    return _respond


def _apply_forwarded_method(environ: Environ, method: str) -> None:
    """Let the guard judge the cookie by the method of the request that a proxy asks about.

    Without that method, from a proxy that is trusted, the cookie does not count.
    """
    if not method:
        environ.pop("HTTP_COOKIE", None)
    elif method not in SAFE_METHODS:
        environ["REQUEST_METHOD"] = "POST"
    elif environ["REQUEST_METHOD"] != "HEAD":  # whose response has no body
        environ["REQUEST_METHOD"] = "GET"


def _before_guard(guard: BearerAuthMiddleware, service: Service) -> WSGIApplication:
    """Answer what the guard would refuse only because there is no valid token.

    An endpoint with a slash at its end is not found; a token would not help. A refresh token is
    enough to log out.
    """
    def _respond(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if guard.protects(environ) and guard.authenticate(environ) is None:
            if environ["PATH_INFO"].endswith("/"):
                raise HTTPError(404, "Not found")
            response = service.logout_by_refresh_token(environ)
            if response:
                return _send_response(response, environ, start_response)
        return guard(environ, start_response)

    return _respond


def _with_rate_limit(
    app: WSGIApplication, service: Service, guard: BearerAuthMiddleware,
) -> WSGIApplication:
    """Limit the requests of each user or, without a valid token, of each network."""
    rate = service.settings.rate_limit
    if rate is None:
        return app
    health_path = f"{service.settings.prefix}/health"

    def _client(environ: Environ) -> Optional[str]:
        if environ.get("PATH_INFO") == health_path:
            return None  # it has no limit
        claims = guard.authenticate(environ)
        return f"user {claims['sub']}" if claims else f"address {_network(_address(environ))}"

    return RateLimitMiddleware(app, limit=rate.limit, period=rate.seconds, key=_client)


def _with_cors(app: WSGIApplication, origins: Sequence[str]) -> WSGIApplication:
    if not origins:
        return app
    try:
        return CORSMiddleware(app, allow_origins=origins)
    except ValueError as error:
        raise SettingsError(f": {error}", "cors_origins") from None


# With a port, as some proxies write it: `[2001:db8::1]:4711`, `192.0.2.1:4711`
_FORWARDED_ADDRESS = re.compile(r"\[(.*)\](?::\d+)?|([\d.]+):\d+")
# Traefik sends ws and wss for WebSockets. PEP 3333 allows only http and https.
_FORWARDED_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}


def _with_proxy_headers(app: WSGIApplication, proxies: int) -> WSGIApplication:
    """Apply the headers that only a proxy may send, and remove those that no proxy sends here."""
    def _respond(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        # A proxy sends these to other applications, after it has asked /verify. Here a client has
        # sent them, perhaps as `Remote_User`: under cheroot and granian that is the same key.
        environ.pop("HTTP_REMOTE_USER", None)
        environ.pop("HTTP_REMOTE_SCOPE", None)
        if proxies:
            _apply_forwarded(environ, proxies)
        elif "HTTP_X_FORWARDED_FOR" in environ:
            _warn_once(_IGNORED_PROXY)
        return app(environ, start_response)

    return _respond


_IGNORED_PROXY = (
    "A proxy or a client sends X-Forwarded-…, but JWTSERVER_TRUSTED_PROXIES is 0: these headers are"
    " ignored. All clients of a proxy count as one address, and /verify accepts no cookie. Behind a"
    " proxy, set it to the number of proxies")
_FEW_PROXIES = (
    "X-Forwarded-For has fewer addresses than JWTSERVER_TRUSTED_PROXIES: the request has not passed"
    " through all proxies, or their number is wrong. It counts as a request of the last proxy")


def _apply_forwarded(environ: Environ, proxies: int) -> None:
    """Set the address, scheme and host that the outermost of the trusted proxies has seen.

    Each proxy appends the address of its client to X-Forwarded-For, so a request with a shorter
    list has not passed through all of them. Most proxies replace the other two headers, so one
    value may come from the outermost proxy. Values further to the left can be forged. A value that
    is not an address, a scheme or a host is ignored.
    """
    addresses = environ.get("HTTP_X_FORWARDED_FOR", "").split(",")
    if len(addresses) >= proxies:
        address = addresses[-proxies].strip()
        match = _FORWARDED_ADDRESS.fullmatch(address)
        with suppress(ValueError):  # a proxy may hide the address
            environ["REMOTE_ADDR"] = str(ipaddress.ip_address(
                (match[1] or match[2]) if match else address))
    else:
        _warn_once(_FEW_PROXIES)
    scheme, host = [
        environ.get(f"HTTP_X_FORWARDED_{name}", "").split(",")[-proxies:][0].strip()
        for name in ("PROTO", "HOST")]
    if scheme.lower() in _FORWARDED_SCHEMES:
        environ["wsgi.url_scheme"] = _FORWARDED_SCHEMES[scheme.lower()]
    if host and _HOST.fullmatch(host):
        environ["HTTP_HOST"] = host


_built: Optional[WSGIApplication] = None


def _build_once() -> WSGIApplication:
    global _built
    with _for_this_process(_build_locks, threading.Lock):
        if _built is None:
            _built = create_app()
    return _built


def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """The WSGI application that the environment configures, built at the first request."""
    try:
        app = _built or _build_once()
    except SettingsError as error:
        if not isinstance(error.__cause__, StoreError):
            raise
        # The database cannot answer now, but perhaps when the next request comes.
        response = _NO_ROUTE.error_response(_http_error(error.__cause__, environ))
        return _send_response(response, environ, start_response)
    return app(environ, start_response)


# --- HTTP: requests -----------------------------------------------------------------------------
#
# Design: wsgiref parses headers with an e-mail parser, which is lenient. On a connection that stays
# open, leniency becomes request smuggling: what one parser takes for a body, another takes for a
# request (RFC 9112 §11.2). So headers and chunks are parsed by RFC 9112's grammar, or rejected with
# an HTTPError, which closes the connection. Parsing does no I/O and runs in the event loop. A short
# body is received there as well. A longer one is received while the application reads it.

_TCHAR = "[!#$%&'*+.^_`|~0-9A-Za-z-]"
# RFC 9112 §3: request-line = method SP request-target SP HTTP-version
# RFC 9112 §2.3: HTTP-version = "HTTP" "/" DIGIT "." DIGIT
_REQUEST_LINE = re.compile(rf"({_TCHAR}+) ([!-~]+) HTTP/([0-9])\.([0-9])\r\n")
# RFC 9112 §5: field-line = field-name ":" OWS field-value OWS, without obs-fold
# RFC 9110 §5.5: field-vchar = VCHAR / obs-text
_FIELD = rf"{_TCHAR}+:[\t -~\x80-\xff]*"
_FIELD_LINE = re.compile(_FIELD)
_FIELD_LINES = re.compile(rf"(?:{_FIELD}\r\n)*")
# RFC 9110 §7.2: Host = uri-host [ ":" port ]
# RFC 3986 §3.2.2: reg-name = *( unreserved / pct-encoded / sub-delims )
_HOST = re.compile(
    r"(?:\[[0-9A-Fa-f:.]+\]|(?:[\w.~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?", re.ASCII)
# RFC 9112 §3.2: origin-form = absolute-path [ "?" query ], absolute-form = absolute-URI
# RFC 3986 allows " < > [ \ ] ^ ` { | } nowhere. In queries, browsers send all of them but " < >.
_TARGET = re.compile(
    r"""(?:https?://([^/?#]+))?(/[^?#"<>[\\\]^`{|}]*)?(?:\?([^#"<>]*))?""", re.IGNORECASE)
# RFC 9110 §8.6: Content-Length = 1*DIGIT
_CONTENT_LENGTH = re.compile("[0-9]+")
_ORIGIN_FIELD = re.compile(r"\r\norigin:[\t ]*([!-~]+)[\t ]*\r\n", re.IGNORECASE)
_BARE_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")  # RFC 9112 §2.2
_EMPTY_LINES = re.compile(rb"(?:\r\n)*")  # RFC 9112 §2.2: allowed before a request line
_FIRST_BYTE = re.compile(_TCHAR.encode() + rb"|\r?$")
_SINGLETON_FIELDS = (
    "HTTP_HOST", "HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE", "HTTP_TRANSFER_ENCODING")
# RFC 9112 §7.1: chunk = chunk-size [ chunk-ext ] CRLF chunk-data CRLF
#   chunk-ext = *( BWS ";" BWS chunk-ext-name [ BWS "=" BWS ( token / quoted-string ) ] )
_QUOTED_STRING = r'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_EXTENSION = (rf"[\t ]*;[\t ]*{_TCHAR}+"
              rf"(?:[\t ]*=[\t ]*(?:{_TCHAR}+|{_QUOTED_STRING}))?")
_CHUNK_SIZE = re.compile(rf"([0-9A-Fa-f]{{1,15}})(?:{_EXTENSION})*\r\n".encode())
_CHUNK_END = re.compile(rb"\r\n")
_TRAILER = re.compile(_FIELD.encode() + rb"\r\n|(\r\n)")

MAX_HEADER_BYTES = 64 * 1024  # of the request line and all fields
MAX_LINE_BYTES = 16 * 1024
MAX_FIELDS = 100
FIELD_CACHE_SIZE = 1024  # parsed lines; at most 2 MB
MAX_CACHED_LINE_LENGTH = 512  # characters; longer lines are not cached
MAX_CACHED_HEADER_BYTES = 2048  # per connection
MAX_CHUNK_LINE_BYTES = 4096  # the size and extensions of a chunk, or a trailer field
MAX_TRAILER_BYTES = 16 * 1024  # of all trailer fields
RECEIVE_BYTES = 16 * 1024  # at least a TLS record (RFC 8446 §5.1), so that none is left half read


class _Request(NamedTuple):
    """A parsed request without its body."""

    environ: Environ  # the application gets a copy
    line: str = "-"  # the request line as received
    length: int = 0  # of the body, in bytes; 0 if it is chunked
    is_chunked: bool = False
    received_first: int = 0  # bytes received before the application runs
    keep_alive: bool = False  # the connection may serve another request
    expects_continue: bool = False  # the client waits for 100 Continue


_NO_REQUEST = _Request({})  # until one has been parsed


def _parse_request(header: bytes, environ: Environ) -> _Request:
    """Parse a request line and fields, and add them to `environ`."""
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
    is_chunked = "HTTP_TRANSFER_ENCODING" in environ
    length = 0 if is_chunked else _body_length(environ)
    if is_chunked:
        _check_chunked(environ)
    keep_alive, expects_continue = version == "1.1", False
    if "HTTP_CONNECTION" in environ:
        options = [option.strip(" \t") for option in environ["HTTP_CONNECTION"].lower().split(",")]
        keep_alive = keep_alive and "close" not in options
    if "HTTP_EXPECT" in environ and version == "1.1":
        if environ["HTTP_EXPECT"].lower() not in ("", "100-continue"):
            raise HTTPError(417, "The only supported expectation is 100-continue")
        expects_continue = bool(environ["HTTP_EXPECT"] and (length or is_chunked))
    # A short body is received first, so that a slow client costs no thread.
    received_first = 0 if length > MAX_BODY_BYTES or expects_continue else length
    return _Request(
        environ, line[0], length, is_chunked, received_first, keep_alive, expects_continue)


def _parse_fields(text: str, start: int, environ: Environ) -> None:
    lines = text[start:-2].split("\r\n")[:-1]
    if len(lines) > MAX_FIELDS:
        raise HTTPError(431, "Too many header fields")
    for line in lines:
        is_cached = len(line) <= MAX_CACHED_LINE_LENGTH
        name, key, value = (_cached_field if is_cached else _parse_field)(line)
        if key in environ:
            if key in _SINGLETON_FIELDS:
                raise HTTPError(400, f"Two {name} headers")
            value = f"{environ[key]}{'; ' if key == 'HTTP_COOKIE' else ','}{value}"
        if key:
            environ[key] = value
    if "HTTP_CONTENT_TYPE" in environ:
        environ["CONTENT_TYPE"] = environ.pop("HTTP_CONTENT_TYPE")


def _parse_field(line: str) -> Tuple[str, str, str]:
    """The name and value of a field, and its key in the environ.

    The key is empty if the name has an underscore: `X_Y` would have the same key as `X-Y`.
    """
    if not _FIELD_LINE.fullmatch(line):
        raise HTTPError(400, "Malformed header")
    name, _, value = line.partition(":")
    key, value = f"HTTP_{name.upper().replace('-', '_')}", value.strip("\t ")
    if key == "HTTP_HOST" and not _HOST.fullmatch(value):
        raise HTTPError(400, "Malformed Host header")
    return name, "" if "_" in name else key, value


# Clients repeat most lines, even if their headers differ. Only short lines are kept.
_cached_field = lru_cache(FIELD_CACHE_SIZE)(_parse_field)


def _parse_target(target: str, environ: Environ) -> None:
    environ["REQUEST_URI"] = environ["RAW_URI"] = target  # the names in Apache and in gunicorn
    if environ["REQUEST_METHOD"] == "CONNECT":  # RFC 9110 §9.3.6: it asks for a tunnel
        raise HTTPError(405, "CONNECT is not supported", (
            "Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"))
    if target == "*" and environ["REQUEST_METHOD"] == "OPTIONS":  # RFC 9112 §3.2.4
        environ["PATH_INFO"] = "*"
        return
    match = _TARGET.fullmatch(target)
    if not match or not (match[1] or match[2]):
        raise HTTPError(400, "Malformed request target")
    if match[1]:
        if not _HOST.fullmatch(match[1]):
            raise HTTPError(400, "Malformed host in the request target")
        environ["HTTP_HOST"] = match[1]  # RFC 9112 §3.2.2: it overrides the Host header
    path = match[2] or "/"
    environ["PATH_INFO"] = unquote_to_bytes(path).decode("latin-1") if "%" in path else path
    environ["QUERY_STRING"] = match[3] or ""


def _body_length(environ: Environ) -> int:
    """The length of a body that is not chunked, in bytes (RFC 9112 §6.3)."""
    if "HTTP_CONTENT_LENGTH" not in environ:
        return 0
    length = environ.pop("HTTP_CONTENT_LENGTH")
    if not _CONTENT_LENGTH.fullmatch(length):
        raise HTTPError(400, "The Content-Length must be a number")
    length = length.lstrip("0") or "0"
    if len(length) > 15:
        raise HTTPError(413, "The body is too long")
    environ["CONTENT_LENGTH"] = length
    return int(length)


def _check_chunked(environ: Environ) -> None:
    """Reject a body whose end another server could find elsewhere (RFC 9112 §6.1, §11.2)."""
    if "HTTP_CONTENT_LENGTH" in environ:
        raise HTTPError(400, "Both Content-Length and Transfer-Encoding")
    # Removed, because the application gets the decoded body. Bottle would decode it again.
    if environ.pop("HTTP_TRANSFER_ENCODING").lower() != "chunked":
        raise HTTPError(400, "The only supported Transfer-Encoding is chunked")
    if environ["SERVER_PROTOCOL"] == "HTTP/1.0":
        raise HTTPError(400, "Transfer-Encoding in an HTTP/1.0 request")
    del environ["CONTENT_LENGTH"]
    environ["wsgi.input_terminated"] = True  # read() finds the end of the body


def _check_partial_header(data: bytes, searched: int) -> None:
    """Reject a header before it is complete. Its first `searched` bytes were checked before."""
    if _BARE_LINE_END.search(data, max(0, searched - 1)) or not _FIRST_BYTE.match(data):
        raise HTTPError(400, "Malformed request")
    _check_header_size(data)


def _check_header_size(header: bytes) -> None:
    """Reject a header, complete or not, that is too long or has a line that is."""
    if len(header) <= MAX_LINE_BYTES:
        return
    # No more splits than a valid header needs: a client may send thousands of lines byte by byte.
    lengths = [len(line) for line in header.split(b"\r\n", MAX_FIELDS + 2)]
    if lengths[0] > MAX_LINE_BYTES:
        raise HTTPError(414, "The request line is too long")
    if max(lengths) > MAX_LINE_BYTES:
        raise HTTPError(431, "A header line is too long")
    if len(header) > MAX_HEADER_BYTES:
        raise HTTPError(431, "The header is too long")


def _rejected_request(received: bytes) -> _Request:
    """What is known of a request that cannot be parsed: perhaps its method, path and origin.

    They decide whether the error has a body, and which CORS headers and member it has.
    """
    text = received.decode("latin-1")
    line = _REQUEST_LINE.match(text)
    if not line:
        first_line = text[:MAX_LOGGED_LINE].partition("\n")[0]
        return _Request({"REQUEST_METHOD": "-", "PATH_INFO": ""}, first_line)
    environ = {"REQUEST_METHOD": line[1], "PATH_INFO": ""}
    with suppress(HTTPError):
        _parse_target(line[2], environ)
    if origin := _ORIGIN_FIELD.search(text, line.end() - 2):
        environ["HTTP_ORIGIN"] = origin[1]
    return _Request(environ, line[0])


class _ChunkedDecoder:
    """Decodes a chunked body as its bytes arrive (RFC 9112 §7.1).

    Extensions and trailers are checked and dropped.
    """

    def __init__(self) -> None:
        self.content = bytearray()  # decoded, and not taken yet
        self.is_complete = False
        self._expected = _CHUNK_SIZE  # the line that follows the data of this chunk
        self._remaining = 0  # bytes of data in this chunk
        self._trailer_bytes = 0

    def decode(self, data: bytes) -> bytes:
        """Decode some bytes; return those of an incomplete line, or those that follow the body."""
        position = 0
        while not self.is_complete:
            piece = data[position:position + self._remaining]
            self.content += piece
            self._remaining -= len(piece)
            position += len(piece)
            line_end = data.find(b"\n", position, position + MAX_CHUNK_LINE_BYTES) + 1
            if not line_end:
                break
            self._decode_line(data, position, line_end)
            position = line_end
        if len(data) - position >= MAX_CHUNK_LINE_BYTES and not self.is_complete:
            raise HTTPError(400, "A line of the chunked body is too long")
        return data[position:]

    def _decode_line(self, data: bytes, start: int, end: int) -> None:
        line = self._expected.fullmatch(data, start, end)
        if not line:
            raise HTTPError(400, "Malformed chunked body")
        if self._expected is _CHUNK_END:
            self._expected = _CHUNK_SIZE
        elif self._expected is _CHUNK_SIZE:
            self._remaining = int(line[1], 16)
            self._expected = _CHUNK_END if self._remaining else _TRAILER
        else:
            self.is_complete = line[1] is not None
            self._trailer_bytes += end - start
            if self._trailer_bytes > MAX_TRAILER_BYTES:
                raise HTTPError(400, "The trailers of the body are too long")


class _BodyStream(io.RawIOBase):
    """A long request body, received while the application reads it."""

    def __init__(
        self, connection: "_Connection", request: _Request, decoder: Optional[_ChunkedDecoder],
    ) -> None:
        self._connection = connection
        self._decoder = decoder
        self._remaining = request.length
        self.bytes_received = 0
        self.pace = connection.server.new_pace(connection.server.settings.head_timeout)
        self.continue_pending = request.expects_continue
        self._failure: Optional[Tuple[int, str]] = None
        self._lock = threading.Lock()  # held by the thread that reads

    @property
    def is_complete(self) -> bool:
        """The whole body has been received."""
        return self._decoder.is_complete if self._decoder else not self._remaining

    def end(self) -> None:
        """Let a thread that still reads take no bytes that follow the body."""
        with self._lock:
            self._failure = self._failure or (408, "The response has ended")

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Receive some bytes; none at the end of the body.

        Raises:
            _BodyError: the client has closed the connection, sends too slowly, or the body is
                malformed. The next call raises it again: bytes after a gap are of no use.
        """
        if self.continue_pending:
            self._connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.continue_pending = False
        with self._lock:
            try:
                data = b"" if self._failure else self._receive(len(buffer))
            except HTTPError as error:
                self._failure = error.status, error.message
            except OSError:
                self._failure = 408, "The request body is incomplete"
        if self._failure:
            raise _BodyError(*self._failure)
        buffer[:len(data)] = data
        self.bytes_received += len(data)
        return len(data)

    def _receive(self, size: int) -> bytes:
        connection = self._connection
        while not (data := self._take(size)) and size and not self.is_complete:
            received = connection.receive_some()
            if received is None:
                received = connection.server.wait_for_body(connection, self)
            if not received:
                raise ConnectionAbortedError
            connection.received += received
        return data

    def _take(self, size: int) -> bytes:
        """Take up to `size` bytes of the body from those that have been received."""
        connection = self._connection
        if self._decoder is None:
            size = min(size, self._remaining)
            data, connection.received = connection.received[:size], connection.received[size:]
            self._remaining -= len(data)
            return data
        connection.received = self._decoder.decode(connection.received)
        content = bytes(self._decoder.content[:size])
        del self._decoder.content[:size]
        return content


class _BodyReader(io.BufferedReader):
    """The `wsgi.input` of a long body."""

    def read(self, size: Optional[int] = -1) -> bytes:
        """Read in pieces: BufferedReader allocates `size` bytes at once, and clients choose it."""
        if size is None or size <= RECEIVE_BYTES:
            return super().read(size)
        data = bytearray()
        while len(data) < size and (piece := super().read(min(size - len(data), RECEIVE_BYTES))):
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
# Characters in the access log. So a line has fewer than 4,096, which are one write to a pipe.
MAX_LOGGED_LINE = 2048  # of a request line
MAX_LOGGED_FIELD = 480  # of each other field
MAX_JOINED_BYTES = 64 * 1024  # a longer body is not copied to be sent together with its headers


def _error_application(error: HTTPError, path: str, settings: Settings) -> WSGIApplication:
    """Answers with an error of the server, in the same form as the service at this path."""
    uses_message = path in (f"{settings.prefix}/authenticate", f"{settings.prefix}/refresh")
    response = Route({}, "message" if uses_message else "error").error_response(error)
    return _with_cors(partial(_send_response, response), settings.cors_origins)


class _Framing(Enum):
    """How a client finds the end of a response (RFC 9112 §6.3)."""

    NO_BODY = "the response to HEAD, 204, 304"
    LENGTH = "Content-Length"
    CHUNKED = "Transfer-Encoding: chunked"
    UNTIL_CLOSE = "the end of the connection, for HTTP/1.0"


class _Handler:
    """Runs the application for one request, and frames its response."""

    def __init__(
        self, connection: "_Connection", request: _Request, environ: Environ,
        body: Optional[_BodyStream],
    ) -> None:
        self._connection = connection
        self._request_environ = request.environ
        self.environ = environ  # the application may change it
        self._body = body
        self.status: Optional[str] = None  # until start_response has been called
        self.result: Any = None
        self.headers_sent = False
        self.body_bytes_sent = 0
        self._framing = _Framing.UNTIL_CLOSE
        self._fields = ""
        self._length: Optional[int] = None  # the Content-Length given by the application
        self._remaining = 0  # bytes of it that are still to be sent
        self._is_over = self._write_refused = False
        self._thread_id = threading.get_ident()
        self.keep_alive = request.keep_alive

    def run(self, application: WSGIApplication) -> None:
        """Call the application, and answer with 500 if it fails before it has sent anything."""
        try:
            self.result = application(self.environ, self.start_response)
            self.finish_response()
        except _ClientGone:
            raise
        except _BodyError as error:
            if self.headers_sent:
                raise _ClientGone from None
            self.keep_alive = False
            self._answer_error(HTTPError(error.status, str(error)))
        except BaseException:  # SystemExit too: it would end the thread of the event loop
            logger.exception("A fault in the application")
            if self.headers_sent:
                self.keep_alive = False
                # The end of the connection would look like the end of the response.
                self._connection.aborted = self._framing is _Framing.UNTIL_CLOSE
            else:
                self._answer_error(HTTPError(500, "Internal server error"))
        finally:
            self._is_over = True
            if self._body:
                self._body.end()

    def _answer_error(self, error: HTTPError) -> None:
        environ = {name: value for name, value in self._request_environ.items()
                   if name in ("REQUEST_METHOD", "HTTP_ORIGIN")}
        application = _error_application(
            error, self._request_environ["PATH_INFO"], self._connection.server.settings)
        self.status, self._write_refused = None, False  # of the response that failed
        self.result = application(environ, self.start_response)
        self.finish_response()

    def finish_response(self) -> None:
        """Send the iterable that the application returned, piece by piece."""
        is_whole = isinstance(self.result, (list, tuple)) and len(self.result) == 1
        try:
            for data in self.result:
                if data or not isinstance(data, bytes):  # PEP 3333: b"" does not send the headers
                    self._send_piece(data, is_whole)
                if self.headers_sent and self._framing is _Framing.NO_BODY:
                    break
            self.finish_content()
        finally:
            if hasattr(self.result, "close"):
                self.result.close()

    def start_response(
        self, status: str, headers: List[Tuple[str, str]], exc_info: Any = None,
    ) -> Callable[[bytes], None]:
        """Take the status and headers (PEP 3333)."""
        if exc_info and self.headers_sent:
            try:
                raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        if self.status is not None and not exc_info:
            raise AssertionError("start_response was called twice")
        self._fields, self._length, has_date = _format_fields(status, tuple(headers))
        if not has_date:
            self._fields += _date_field(int(time.time()))
        self.status = status
        return self.write

    def write(self, data: bytes) -> None:
        """Send a piece of the body, after the headers if they have not been sent."""
        if self._is_over:
            raise AssertionError("write() after the end of the response")
        if threading.get_ident() != self._thread_id:
            # It could go on after the end, and write into the next response.
            self._write_refused = True
            raise AssertionError("write() in another thread")
        self._send_piece(data, False)

    def finish_content(self) -> None:
        """End the response."""
        if self._write_refused:
            raise AssertionError("a part of the body is missing: write() in another thread")
        if not self.headers_sent:
            self._send_piece(b"", True)
        self._is_over = True
        if self._framing is _Framing.CHUNKED:
            self._connection.queue(b"0\r\n\r\n")
        if self._remaining:
            logger.error("The response body is shorter than its Content-Length")
            self.keep_alive = False

    def _send_piece(self, data: bytes, is_whole: bool) -> None:
        """Send a piece of the body, or queue the whole body."""
        if not isinstance(data, bytes):
            raise TypeError("the body must be bytes")
        size = len(data)
        header = b"" if self.headers_sent else self._header(size if is_whole else None)
        if self._framing is _Framing.NO_BODY:
            data, size = b"", 0
        elif self._framing is _Framing.LENGTH:
            if size > self._remaining:
                logger.error("The response body is longer than its Content-Length")
                data, size = data[:self._remaining], self._remaining
            self._remaining -= size
        self.body_bytes_sent += size
        if self._framing is _Framing.CHUNKED and data:
            data = b"%x\r\n%b\r\n" % (size, data)
        if not is_whole:
            self._connection.send(header + data)
        elif size > MAX_JOINED_BYTES:
            self._connection.queue(header, data)
        else:
            self._connection.queue(header + data)

    def _header(self, body_length: Optional[int]) -> bytes:
        """The status line and headers; `body_length` is None if it is not known yet."""
        if self.status is None:
            raise AssertionError("start_response was not called")
        self.headers_sent = True
        framing = self._choose_framing(body_length)
        if self._body and (self._body.continue_pending or not self._body.is_complete):
            self.keep_alive = False  # the rest of the body may never come, or be long
            self._body.continue_pending = False  # 100 Continue would now be part of the response
        if not self.keep_alive or self._connection.server.stopping:
            self.keep_alive = False
            framing += "Connection: close\r\n"
        return f"HTTP/1.1 {self.status}\r\n{self._fields}{framing}\r\n".encode("latin-1")

    def _choose_framing(self, body_length: Optional[int]) -> str:
        """Decide how the client finds the end of the response; return the field that tells it."""
        is_head = self._request_environ["REQUEST_METHOD"] == "HEAD"
        if is_head or str(self.status)[:3] in ("204", "304"):
            self._framing = _Framing.NO_BODY
        elif self._length is not None:
            self._framing, self._remaining = _Framing.LENGTH, self._length
        elif body_length is not None:
            self._framing, self._remaining = _Framing.LENGTH, body_length
            return f"Content-Length: {body_length}\r\n"
        elif self._request_environ.get("SERVER_PROTOCOL") == "HTTP/1.1":
            self._framing = _Framing.CHUNKED
            return "Transfer-Encoding: chunked\r\n"
        else:
            self.keep_alive = False
        return ""


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
    if any(":" in name for name, _ in headers):  # the first colon ends the name for a client
        raise ValueError("a header name with a colon")
    fields = "".join([name + ": " + value + "\r\n" for name, value in headers])
    if not _STATUS.fullmatch(status) or not _FIELD_LINES.fullmatch(fields) \
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


def _escape(match: "re.Match[str]") -> str:
    return f"\\x{ord(match[0]):02x}"


def _loggable(text: Any, max_length: int) -> str:
    text = str(text or "-")[:max_length]
    return _UNLOGGABLE.sub(_escape, text)[:max_length]


def _access_log_line(request: _Request, handler: _Handler) -> str:
    """A line in the combined log format, with all unsafe characters escaped."""
    environ = handler.environ
    address, user, referer, agent = [
        _loggable(environ.get(key), MAX_LOGGED_FIELD)
        for key in ("REMOTE_ADDR", "REMOTE_USER", "HTTP_REFERER", "HTTP_USER_AGENT")]
    line = _loggable(request.line.rstrip(), MAX_LOGGED_LINE)
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
    RESPONDING = "responding"  # is being answered, or its response waits in `_finished`
    SENDING = "sending"  # the client has not taken the whole response yet
    LINGERING = "lingering"  # the response is sent; input is discarded until the client closes


_READING_STATES = {_State.HANDSHAKE, _State.IDLE, _State.READING_HEADER, _State.READING_BODY}

SEND_BYTES = 16 * 1024  # in one call: a TLS record
MAX_TLS_ANSWERS = 64 * 1024  # bytes that TLS wants to send, before the next response takes them
MAX_SENDS = 8  # calls, before the event loop serves another connection


class _ClientGone(BaseException):
    """Sending fails, because the client has closed the connection, or reads too slowly.

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
        self.begin_wait()

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


class _TLS:
    """Encrypts and decrypts the bytes of one connection. It does no I/O.

    Each call works on the bytes that it is given, so its time is bounded. An SSLSocket would read
    for as long as a client sends KeyUpdate messages (RFC 8446 §4.6.3).
    """

    def __init__(self, context: "ssl.SSLContext") -> None:
        import ssl
        self._want_read = ssl.SSLWantReadError
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        # An application may read the request in one thread and write the response in another.
        self._lock = threading.Lock()

    def decrypt(self, data: bytes) -> Optional[bytes]:
        """Decrypt received bytes. Return None if they contain no data, and b"" at the end."""
        decrypted = b""
        with self._lock, suppress(self._want_read):
            self._incoming.write(data)
            while self._incoming.pending:
                piece = self._session.read(RECEIVE_BYTES)  # also makes the handshake
                if not piece:
                    return decrypted
                decrypted += piece
        if self._outgoing.pending > MAX_TLS_ANSWERS:
            raise ConnectionAbortedError("the client sends too many KeyUpdate messages")
        return decrypted or None

    def handshake_done(self) -> bool:
        """Return whether the handshake is complete."""
        return self._session.version() is not None

    def encrypt(self, data: Union[bytes, memoryview] = b"") -> bytes:
        """Encrypt bytes of a response; return them after those that TLS itself wants to send."""
        with self._lock:
            if data:  # OpenSSL 1.1.1 takes no empty write for a success
                self._session.write(data)
            return self._outgoing.read()

    def end(self) -> None:
        """Tell the client that nothing more will be sent."""
        with suppress(self._want_read):
            self._session.unwrap()


_WOULD_BLOCK = (BlockingIOError, socket.timeout)


class _Connection:
    """A client's connection: received bytes, the request, and unsent bytes of the response.

    Methods that receive or send raise OSError if the client has gone, or violates TLS.
    """

    def __init__(
        self, sock: socket.socket, address: Any, server: "_Server", environ: Environ,
    ) -> None:
        self.sock = sock
        self.address = address[0] if isinstance(address, tuple) else ""
        self.server = server
        self.environ = environ  # the part that is the same for all requests
        self.tls = _TLS(server.tls) if server.tls else None
        self.state = _State.HANDSHAKE if server.tls else _State.IDLE
        self.state_since = 0.0
        self.watched_events = 0  # for which the selector watches the socket
        self.received = b""  # and not parsed yet
        self._searched = 0  # bytes of it that contain no end of a header
        self.request = _NO_REQUEST
        self._decoder: Optional[_ChunkedDecoder] = None  # of the chunked body that arrives
        self.error: Optional[WSGIApplication] = None  # answers a malformed request
        self.keep_alive = True
        self.aborted = False  # the response cannot be completed
        self.bytes_sent = 0  # of the current response
        self.bytes_discarded = 0  # while lingering
        # Of the short body that is being received, or of the response that is being sent.
        self.pace: Optional[_Pace] = None
        self._unsent: Deque[Union[bytes, memoryview]] = deque()
        self._in_transit: Union[bytes, memoryview] = b""  # offered to the socket; encrypted by TLS
        # Most clients repeat their headers on each request. Parsing takes a fifth of a response's
        # time, so the last headers are kept with the parsed request.
        self._cached_header = b""
        self._cached_request = _NO_REQUEST

    # These methods run in the event loop.

    def receive(self) -> bool:
        """Receive some bytes; return whether a request is ready to be answered."""
        if (self.received or self.error) and self.has_request():
            return True  # received with the one before; more would fill the memory
        data = self.receive_some()
        if self.state == _State.HANDSHAKE:
            self.queue(b"")  # only what TLS itself wants to send
            self.send_some()
        if data:
            self.received += data
        elif data == b"":
            if not self.received and self.request is _NO_REQUEST:
                raise ConnectionAbortedError
            self.reject(HTTPError(400, "The request is incomplete"))
        return self.has_request()

    def has_request(self) -> bool:
        """Return whether a request is ready to be answered, if only with an error."""
        try:
            if self.request is _NO_REQUEST:
                self.request = self._next_request()
            if self.request.is_chunked:
                return self._has_chunks()
        except HTTPError as error:
            self.reject(error)
        return self.request is not _NO_REQUEST and len(self.received) >= self.request.received_first

    def _has_chunks(self) -> bool:
        """Decode chunks; return whether the application can run: with a whole body or a stream."""
        self._decoder = self._decoder or _ChunkedDecoder()
        self.received = self._decoder.decode(self.received)
        return (self._decoder.is_complete or len(self._decoder.content) > MAX_BODY_BYTES
                or self.request.expects_continue)

    def body_bytes_received(self) -> int:
        """The bytes of the short body that is being received."""
        return len(self._decoder.content if self._decoder else self.received)

    def reject(self, error: HTTPError) -> None:
        """Answer with an error instead of calling the application."""
        request = self.request
        if request is _NO_REQUEST:
            request = _rejected_request(self.received)
        environ = {**request.environ, "REMOTE_ADDR": self.address}
        environ.pop("HTTP_ACCESS_CONTROL_REQUEST_METHOD", None)  # a preflight gets the error too
        self.request, self._decoder = _Request(environ, request.line), None
        # Not the exception: its traceback refers to this connection, and would keep it in memory.
        self.error = _error_application(error, environ["PATH_INFO"], self.server.settings)

    def _next_request(self) -> _Request:
        data = self.received
        if data[:1] == b"\r":
            data = self.received = data[_EMPTY_LINES.match(data).end():]  # type: ignore[union-attr]
        end = data.find(b"\r\n\r\n", max(0, self._searched - 3)) + 4
        if end < 4:
            _check_partial_header(data, self._searched)
            self._searched = len(data)
            return _NO_REQUEST
        header = data[:end]
        if header != self._cached_header:
            _check_header_size(header)
            environ = {**self.environ, "REMOTE_ADDR": self.address}
            self._cached_request = _parse_request(header, environ)
            self._cached_header = header if len(header) <= MAX_CACHED_HEADER_BYTES else b""
        self.received, self._searched = data[end:], 0
        return self._cached_request

    def reading_state(self) -> str:
        """The state in which the rest of a request is awaited."""
        if self.tls and not self.tls.handshake_done():
            return _State.HANDSHAKE
        if self.request is not _NO_REQUEST:
            return _State.READING_BODY
        # Even after an empty line: it must not restart the timer.
        if self.received or self.state == _State.READING_HEADER:
            return _State.READING_HEADER
        return _State.IDLE

    def shut_down_output(self) -> None:
        """Tell the client that nothing more will be sent."""
        with suppress(OSError):
            if self.tls:
                self.tls.end()
                self.sock.send(self.tls.encrypt())
            self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket; with RST if the response is incomplete, so that the client sees it."""
        with suppress(OSError):
            if self.aborted:
                self.sock.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif self.tls:
                self.sock.send(self.tls.encrypt())  # why the handshake has failed
        self.sock.close()

    # These methods run in the thread that answers the request: the event loop's, or a worker.

    def respond(self) -> None:
        """Answer the request. Its last bytes may only be queued."""
        self.bytes_sent, self.pace = 0, None
        request, self.request = self.request, _NO_REQUEST
        environ = request.environ.copy()
        body, environ["wsgi.input"] = self._open_input(request)
        application = self.server.app
        if self.error is not None:
            application = self.error
        elif environ["PATH_INFO"] == "*":  # about the server itself (RFC 9110 §9.3.7)
            application = partial(_send_response, Response.of(204))
        handler = _Handler(self, request, environ, body)
        try:
            handler.run(application)
        except _ClientGone:
            self.aborted = True
        self.keep_alive = handler.keep_alive
        access_log = self.server.access_log  # another thread may end it
        if access_log is not None:
            self.server.log_access(access_log, request, handler)

    def _open_input(self, request: _Request) -> Tuple[Optional[_BodyStream], io.BufferedIOBase]:
        """The `wsgi.input` of a request, and the stream behind it if its body is long."""
        decoder, self._decoder = self._decoder, None
        if decoder and decoder.is_complete:
            return None, io.BytesIO(decoder.content)
        if not decoder and request.received_first == request.length:
            body, self.received = self.received[:request.length], self.received[request.length:]
            return None, io.BytesIO(body)
        stream = _BodyStream(self, request, decoder)
        return stream, _BodyReader(stream)

    def send(self, data: bytes) -> None:
        """Send a piece of the response before the application continues (PEP 3333)."""
        try:
            self.queue(data)
            if not self.send_some():
                self.server.wait_until_sent(self)
        except OSError:
            raise _ClientGone from None

    # These methods run in the thread that owns the connection, whichever it is.

    def queue(self, *pieces: bytes) -> None:
        """Append to the unsent bytes."""
        self._unsent.extend(pieces)

    def receive_some(self) -> Optional[bytes]:
        """Some bytes, b"" at their end, or None if there are none now."""
        try:
            data = self.sock.recv(RECEIVE_BYTES)
        except _WOULD_BLOCK:
            return None
        return self.tls.decrypt(data) if self.tls and data else data

    def send_some(self, max_sends: int = MAX_SENDS) -> bool:
        """Send unsent bytes until the socket takes no more; return whether all have been sent."""
        for _ in range(max_sends):
            if not self._in_transit:
                if not self._unsent:
                    return True
                self._in_transit = self._next_piece()
            try:
                sent = self.sock.send(self._in_transit)
            except _WOULD_BLOCK:
                return False
            self.bytes_sent += sent
            self._in_transit = self._in_transit[sent:]
        return not self._in_transit and not self._unsent

    def _next_piece(self) -> Union[bytes, memoryview]:
        """Take up to SEND_BYTES of the unsent bytes, and encrypt them."""
        piece = self._unsent.popleft()
        if len(piece) > SEND_BYTES:
            self._unsent.appendleft(memoryview(piece)[SEND_BYTES:])
            piece = memoryview(piece)[:SEND_BYTES]
        return self.tls.encrypt(piece) if self.tls else piece


# --- HTTP: the event loop -----------------------------------------------------------------------
#
# Design: One thread owns the loop. An iteration sends finished responses and polls. Then it
# receives from the sockets with events, and answers each request that is complete. It does each for
# at most POLL_INTERVAL. Responses are sent together, because system calls between them would cost
# half of their time. Python runs one thread at a time, so more threads would not be faster. If a
# response takes longer than `_patience`, the main thread moves the loop: it goes on in a new
# thread. The old one, now a worker, finishes its response, hands its connection back through
# `_finished`, and ends. A thread that has to wait for its client gives the loop away first. If no
# other thread can take the loop, it drops its client after RECHECK_SECONDS. If no thread can be
# started, one of the threads that wait drops its client and ends, to make room for a new thread.

POLL_INTERVAL = 0.005  # seconds after which the loop polls although requests wait
MIN_PATIENCE = 0.001  # seconds; the lower bound of `_patience`
IDLE_INTERVAL = 0.05  # seconds between two looks of the main thread at a server that is idle
SELECT_SECONDS = 0.25  # the longest wait for a socket, so an expired timer is noticed by then
EXPIRY_INTERVAL = 0.02  # seconds between two checks of the timers under load
RECHECK_SECONDS = 0.2  # that a thread waits for its client before it checks whether it still may
MAX_ACCEPTS = 64  # connections, before the loop serves others
ACCEPT_PAUSE_SECONDS = 0.1  # after the process has run out of files
_RESOURCE_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
MAX_WAITING_THREADS = 1024  # that wait for a client; JWTSERVER_THREADS does not count them
LOG_BUSY_SECONDS = 60.0  # between two lines in the log about it
RETRY_THREAD_SECONDS = 1.0  # until the next attempt, after a thread could not be started
HASH_NICENESS = 10  # of threads that hash: the p99 of other requests is a third lower
GC_THRESHOLD = 10_000  # objects; each request creates and destroys a few dozen of them
LINGER_SECONDS = 10.0  # for a client that still uploads to notice the response
MAX_DISCARDED_BYTES = 64 * 1024 * 1024  # of such an upload
MAX_READER_PAUSE = 120.0  # seconds in which a client may read nothing of a response
SHUTDOWN_TIMEOUT = 8.0  # seconds for responses in progress; Docker kills after ten


def _state_timeouts(settings: Settings) -> Dict[str, float]:
    """The seconds that a connection may spend in each state; with a pace, since its last bytes."""
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
        self, app: WSGIApplication, listeners: Sequence[socket.socket], settings: Settings,
        tls: Optional["ssl.SSLContext"] = None, access_log: Optional[TextIO] = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.app, self.settings = app, settings
        self.tls, self.access_log = tls, access_log
        self.stopping = self._ended = False
        self._deadline = math.inf  # for responses in progress, once the server is stopping
        self._clock, self._listeners = clock, listeners
        self._wakeup_sender, self._wakeup_receiver = pair = socket.socketpair()
        for listener in listeners:
            _limit_kernel_buffer(listener)
        for sock in (*listeners, *pair):
            sock.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._max_connections = _connection_limit(self._selector, settings)
        self._accept_again_at = -math.inf  # infinity while connections are accepted
        self._resume_accepting()
        self._selector.register(
            self._wakeup_receiver, selectors.EVENT_READ,
            partial(self._wakeup_receiver.recv, RECEIVE_BYTES))
        # Connections with an event, each once, and those whose responses wait to be sent.
        self._active: "OrderedDict[_Connection, None]" = OrderedDict()
        self._finished: Deque[_Connection] = deque()
        self._newest_first = False  # in every second iteration
        self._timeouts = _state_timeouts(settings)
        # The connections in each state, with the time at which it expires, the earliest first.
        self._timers: Dict[str, Dict[_Connection, float]] = {state: {} for state in self._timeouts}
        self._expiry_checked = 0.0
        self._lock = threading.Lock()  # of the owner of the loop and the counts of threads, below
        self._threads: Set[threading.Thread] = set()  # the loop's, and the workers
        self._loop_thread: Optional[threading.Thread] = None
        self._main_thread_serves = False  # because no other thread can be started
        self._response_began: Optional[float] = None  # of the response in the loop, if there is one
        self._waiting_threads = 0  # that wait for a client
        # The next waiting thread that rechecks must drop its client, to free a thread.
        self._client_must_go = False
        self._retry_thread_at = 0.0
        self._log_busy_at = -math.inf  # not again before that time

    # These methods run in the main thread.

    def serve_forever(self) -> None:
        """Serve until `interrupt` is called; move the loop when a response takes too long."""
        with self._lock:
            started = self._start_thread()
        if not started:
            logger.error("No thread can be started: requests are answered one at a time")
            self._loop_thread, self._main_thread_serves = threading.current_thread(), True
            self._run_loop()
            self._main_thread_serves = False
            self._set_alarm(0)
        while not self._ended and self._clock() < self._deadline:
            busy = self._response_began is not None or self._active or self._finished
            patience = self._patience()
            time.sleep(patience if busy else IDLE_INTERVAL)
            self._move_loop(patience)

    def interrupt(self, *_: Any) -> None:
        """Handle a signal: finish the responses in progress; at the second one, exit at once."""
        if self.stopping:
            os._exit(1)
        self._deadline = self._clock() + SHUTDOWN_TIMEOUT
        if self._main_thread_serves:
            self._set_alarm(SHUTDOWN_TIMEOUT)
        self.stopping = True
        self._wake()

    def _set_alarm(self, seconds: float) -> None:
        """End this process after so many seconds, although an application does not return."""
        with suppress(AttributeError):  # Windows has no such timer
            signal.setitimer(signal.ITIMER_REAL, seconds)

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
        for sock in (*self._listeners, self._wakeup_sender, self._wakeup_receiver):
            sock.close()
        self._selector.close()

    # These methods run in any thread.

    def start_slow_response(self) -> bool:
        """Move the loop to another thread, and let the system prefer all threads to this one.

        This thread will need a core for tenths of a second, and then end. Return False if it must
        keep the loop.
        """
        released = self.release_loop()
        if released and not self._main_thread_serves and sys.platform == "linux":
            with suppress(OSError):  # on Linux, each thread has a priority of its own
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), HASH_NICENESS)
        return released

    def release_loop(self) -> bool:
        """Move the loop to another thread, if this thread has it: its response will take long.

        Return False if this thread has the loop and must keep it, because no thread is free.
        """
        with self._lock:
            return self._loop_thread is not threading.current_thread() or self._start_thread()

    def has_free_thread(self) -> bool:
        """Return whether another thread could take the loop from one that is called now.

        The last thread is for the endpoints of the service, and not for the user's application.
        """
        if self._busy_threads() < self.settings.threads:
            return True
        now = self._clock()
        if now >= self._log_busy_at:
            self._log_busy_at = now + LOG_BUSY_SECONDS
            logger.warning("All %d threads are busy: the application gets no more requests now."
                           " JWTSERVER_THREADS can be higher", self.settings.threads)
        return False

    def _busy_threads(self) -> int:
        return len(self._threads) - self._waiting_threads

    def _patience(self) -> float:
        """Seconds for which a response may keep the loop: fewer, the more threads are busy.

        A hundred responses that sleep would otherwise keep it for half a second.
        """
        return max(MIN_PATIENCE, POLL_INTERVAL / max(1, self._busy_threads()))

    def _move_loop(self, min_seconds: float) -> None:
        """Move the loop, if the response in it began `min_seconds` ago."""
        with self._lock:
            began = self._response_began
            if began is not None and self._clock() - began >= min_seconds:
                self._start_thread()

    def _start_thread(self) -> bool:
        """Start a thread and give it the loop; return whether that succeeded. Needs the lock."""
        if not self.has_free_thread() or self._clock() < self._retry_thread_at:
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
                self._iterate(me)
            except Exception:
                logger.exception("A fault in the server")
        with self._lock:
            self._threads.discard(me)

    def _iterate(self, me: threading.Thread) -> None:
        """Do some of each kind of work in this thread.

        If requests arrive faster than they are answered, every second iteration begins with the
        newest connections. So a client that comes after a burst does not wait for all of it.
        """
        end = self._clock() + POLL_INTERVAL
        while self._finished and self._clock() < end:
            self._try_step(self._send_queued, self._finished.popleft())
        self._poll()
        self._newest_first = not self._newest_first
        end = self._clock() + POLL_INTERVAL
        while self._active and self._loop_thread is me and self._clock() < end:
            connection, _ = self._active.popitem(self._newest_first)
            if self._try_step(self._on_event, connection):
                self._answer(connection, me)

    def _answer(self, connection: _Connection, me: threading.Thread) -> None:
        """Answer a request. Meanwhile, the loop may move to another thread."""
        self._enter(connection, _State.RESPONDING)
        self._response_began = connection.state_since
        try:
            connection.respond()
        except Exception:
            logger.exception("A fault in the server")
            connection.aborted = True
        self._finished.append(connection)
        with self._lock:
            if self._loop_thread is me:
                self._response_began, self._client_must_go = None, False
                return
        self._wake()

    def _try_step(self, step: Callable[[_Connection], Any], connection: _Connection) -> bool:
        """Take a step and return its result, or False if it failed."""
        try:
            return bool(step(connection))
        except OSError:  # the client has gone, or violates TLS
            self._close(connection)
        except Exception:
            logger.exception("A fault in the server")
            self._close(connection)
        return False

    def _poll(self) -> None:
        """Wait until a socket can be read or written; accept connections."""
        longest_wait = EXPIRY_INTERVAL if self.stopping else SELECT_SECONDS
        waiting = self._active or self._finished
        for key, _ in self._selector.select(0 if waiting else longest_wait):
            if isinstance(key.data, _Connection):
                self._active[key.data] = None
            else:
                key.data()
        self._close_expired()
        if self.stopping:
            self._shut_down()
        else:
            self._resume_accepting()

    def _resume_accepting(self) -> None:
        if self._accept_again_at == math.inf or self._clock() < self._accept_again_at:
            return
        self._accept_again_at = math.inf
        for listener in self._listeners:
            environ = _base_environ(listener, "https" if self.tls else "http")
            environ["jwtserver.start_slow_response"] = self.start_slow_response
            environ["jwtserver.has_free_thread"] = self.has_free_thread
            self._selector.register(
                listener, selectors.EVENT_READ, partial(self._accept, listener, environ))

    def _pause_accepting(self) -> None:
        self._accept_again_at = self._clock() + ACCEPT_PAUSE_SECONDS
        for listener in self._listeners:
            self._selector.unregister(listener)

    def _accept(self, listener: socket.socket, environ: Environ) -> None:
        for _ in range(MAX_ACCEPTS):
            try:
                sock, address = listener.accept()
            except OSError as error:  # there are no more, or there are too many open files
                if error.errno in _RESOURCE_ERRORS:
                    # The file of the evicted connection is for the database, not for the next one.
                    self._evict_oldest()
                    self._pause_accepting()
                return
            self._open_connection(sock, address, environ)

    def _open_connection(self, sock: socket.socket, address: Any, environ: Environ) -> None:
        sock.setblocking(False)
        with suppress(OSError):  # it is a Unix socket, or the client has gone
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        if sum(map(len, self._timers.values())) >= self._max_connections \
                and not self._evict_oldest():
            sock.close()
            return
        connection = _Connection(sock, address, self, environ)
        self._enter(connection, connection.state)
        self._watch(connection, selectors.EVENT_READ)

    def _on_event(self, connection: _Connection) -> bool:
        """The socket can be read or, in SENDING, written. Return whether a request is complete."""
        state = connection.state
        if state in _READING_STATES:
            if connection.receive():
                return True
            if connection.reading_state() != state:
                self._enter(connection, connection.reading_state())
            elif state == _State.READING_BODY:
                self._check_pace(connection, connection.body_bytes_received())
        elif state == _State.RESPONDING:  # input is for the thread that answers, or for later
            self._watch(connection, 0)
        elif state == _State.SENDING:
            self._send_queued(connection)
        else:
            self._discard_input(connection)
        return False

    def _discard_input(self, connection: _Connection) -> None:
        with suppress(*_WOULD_BLOCK):
            size = len(connection.sock.recv(RECEIVE_BYTES))
            connection.bytes_discarded += size
            if not size or connection.bytes_discarded > MAX_DISCARDED_BYTES:
                self._close(connection)

    def _send_queued(self, connection: _Connection) -> None:
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
        else:
            self._watch(connection, selectors.EVENT_READ)
            self._enter(connection, _State.READING_HEADER if connection.received else _State.IDLE)
            if connection.received:  # perhaps the next request
                self._active[connection] = None

    def _watch(self, connection: _Connection, events: int) -> None:
        """Let the selector watch the socket for these events; for none if 0."""
        if connection.watched_events == events:
            return
        if not events:
            self._selector.unregister(connection.sock)
        elif connection.watched_events:
            self._selector.modify(connection.sock, events, connection)
        else:
            self._selector.register(connection.sock, events, connection)
        connection.watched_events = events

    def _enter(self, connection: _Connection, state: str) -> None:
        """Put a connection into a state, and start its timer."""
        self._timers[connection.state].pop(connection, None)
        now = self._clock()
        connection.state, connection.state_since = state, now
        self._timers[state][connection] = now + self._timeouts[state]
        if state == _State.READING_BODY:
            connection.pace = self.new_pace(self.settings.head_timeout)
        elif state == _State.SENDING:
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
            self._enter(connection, connection.state)
            self._active[connection] = None
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
        for states in ((*_READING_STATES, _State.LINGERING), (_State.SENDING,)):
            oldest = [next(iter(self._timers[state])) for state in states if self._timers[state]]
            if oldest:
                self._close(min(oldest, key=attrgetter("state_since")))
                return True
        return False

    def _close(self, connection: _Connection) -> None:
        if connection.state in (_State.RESPONDING, _State.SENDING):
            connection.aborted = True  # the response may be incomplete
        self._timers[connection.state].pop(connection, None)
        self._active.pop(connection, None)
        self._watch(connection, 0)
        connection.close()

    def _shut_down(self) -> None:
        """Accept no connections; close those without a request; end when all are closed."""
        if self._accept_again_at == math.inf:
            self._pause_accepting()
        for listener in self._listeners:
            listener.close()
        if not self._active:  # else a request may just have arrived on one of them
            for state in (_State.HANDSHAKE, _State.IDLE, _State.READING_HEADER):
                for connection in list(self._timers[state]):
                    self._close(connection)
        if not any(timers for state, timers in self._timers.items() if state != _State.LINGERING):
            self._ended = True

    # These methods run in the thread that answers a request: the event loop's, or a worker.

    def wait_for_body(self, connection: _Connection, stream: _BodyStream) -> bytes:
        """Wait for bytes of a body; none if the client has gone, is too slow, or must go."""
        with self._waiting(connection, stream.pace) as may_wait:
            while may_wait(stream.bytes_received):
                data = connection.receive_some()
                if data is not None:
                    stream.pace.record(stream.bytes_received + len(data))
                    return data
        return b""

    def wait_until_sent(self, connection: _Connection) -> None:
        """Wait until the client has taken all unsent bytes, or raise _ClientGone."""
        pace = self.pace_of(connection)
        with self._waiting(connection, pace) as may_wait:
            while may_wait(connection.bytes_sent):
                if connection.send_some(1):  # it may block for RECHECK_SECONDS
                    pace.record(connection.bytes_sent)  # counts in the next wait
                    return
        raise _ClientGone

    @contextmanager
    def _waiting(self, connection: _Connection, pace: _Pace) -> Iterator[Callable[[int], bool]]:
        """Let the socket block for RECHECK_SECONDS; the loop continues in another thread.

        Yields a function of the bytes moved so far. It returns whether this thread may wait longer:
        not for a client that is too slow. After RECHECK_SECONDS, it may not if it still has the
        loop, nor if it is the first to see that a client must go.
        """
        with self._lock:
            self._waiting_threads += 1
        self.release_loop()
        connection.sock.settimeout(RECHECK_SECONDS)
        pace.begin_wait()
        began = self._clock()

        def _may_wait(bytes_moved: int) -> bool:
            if not pace.record(bytes_moved):
                return False
            if self._clock() - began <= RECHECK_SECONDS:
                return True
            with self._lock:
                must_go, self._client_must_go = self._client_must_go, False
                if must_go:  # and its thread will end
                    self._retry_thread_at = 0.0
                return self._loop_thread is not threading.current_thread() and not must_go

        try:
            yield _may_wait
        finally:
            connection.sock.settimeout(0)
            with self._lock:
                self._waiting_threads -= 1

    def pace_of(self, connection: _Connection) -> _Pace:
        """The pace of a client that sends a short body, or reads its response."""
        if connection.pace is None:
            connection.pace = self.new_pace(MAX_READER_PAUSE)
        return connection.pace

    def new_pace(self, grace: float) -> _Pace:
        """The pace of a body or a response; the client may pause for `grace` seconds."""
        return _Pace(grace, self.settings.body_rate, self._clock)

    def log_access(self, access_log: TextIO, request: _Request, handler: _Handler) -> None:
        """Write a line about a request."""
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
MAX_SELECT_SOCKETS = 512  # that select() takes on Windows
RESERVED_FILES = 64  # for the log, the key file and the like, and four for each thread's database


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
    is_tcp = listener.family in (socket.AF_INET, socket.AF_INET6)
    if is_tcp and hasattr(socket, "TCP_NOTSENT_LOWAT"):  # accepted sockets inherit it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_SENDS * SEND_BYTES)


def _socket_address(listener: socket.socket) -> Tuple[str, int]:
    """The address and port of a listening socket; the path and 0 of a Unix socket."""
    name = listener.getsockname()
    return name[:2] if isinstance(name, tuple) else (str(name), 0)


def _listen(host: str, port: int) -> List[socket.socket]:
    """The sockets that systemd hands over (sd_listen_fds(3)), or a new one.

    Raises:
        OSError: the address cannot be used.
        Error: a socket that is handed over cannot be used.
    """
    count = os.environ.get("LISTEN_FDS", "0")
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and count != "0":
        if not count.isdecimal():
            raise Error(f"the variable LISTEN_FDS must be a number, and is {count}")
        return _inherited_listeners(int(count))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both_families = host == "::" and socket.has_dualstack_ipv6()
    return [socket.create_server(
        (host, port), family=family, backlog=1024, dualstack_ipv6=both_families)]


def _inherited_listeners(count: int) -> List[socket.socket]:
    listeners: List[socket.socket] = []
    for number in range(LISTEN_FD, LISTEN_FD + count):
        with suppress(OSError):
            listeners.append(socket.socket(fileno=number))
            if listeners[-1].getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                continue
        for listener in listeners:
            listener.close()
        raise Error(f"file descriptor {number}, from LISTEN_FDS, is not a listening socket")
    return listeners


def _connection_limit(selector: selectors.BaseSelector, settings: Settings) -> int:
    """How many connections can be open while files remain for the database and the key file."""
    limit = settings.connections
    if isinstance(selector, selectors.SelectSelector):
        limit = min(limit, MAX_SELECT_SOCKETS // 2)  # the rest is for the server's own sockets
    with suppress(ImportError):  # Windows has no limit of files
        import resource
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files != resource.RLIM_INFINITY:
            limit = min(limit, files - min(files // 2, RESERVED_FILES + 4 * settings.threads))
    return limit


def _tls_context(certificate: str, key: Optional[str]) -> "ssl.SSLContext":
    """A context for TLS 1.2 or later (RFC 8996).

    Raises:
        OSError: a file cannot be read, or has no certificate or key.
    """
    import ssl
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")  # of TLS 1.2: no CBC (RFC 9325 §4.2)
    context.load_cert_chain(certificate, key)
    return context


# --- Output -------------------------------------------------------------------------------------
#
# Design: If nobody reads a pipe, a write to it blocks: first the event loop, then each thread that
# logs. So while the server runs, a write to standard output or error joins a queue, and one thread
# for each of the two does the writing, in pieces that a pipe takes as a whole, so that the lines of
# several processes do not mix. If the queue is full, the write is lost and counted. Files, and the
# console of Windows, are written directly.

MAX_QUEUED_OUTPUT = 1024 * 1024  # bytes
MAX_OUTPUT_WAIT = 0.5  # seconds for a reader of each, before the server ends
MAX_OUTPUT_PIECE = 4096  # bytes; Linux does not split such a write to a pipe (PIPE_BUF)
OUTPUT_INTERVAL = 0.005  # seconds; without a pause, the thread costs 10 % of the requests


class _OutputQueue(io.FileIO):
    """A pipe or terminal to which another thread writes."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._process_id = os.getpid()
        self._changed = threading.Condition()  # of the attributes below
        self._queue = bytearray()
        self._lost_writes = 0
        self._failed = False
        threading.Thread(target=self._run, daemon=True).start()

    def write(self, data: Any) -> int:
        """Append to the queue, if there is room."""
        # If the pipe is closed, a write raises at once. A process that forked has no thread here.
        if self._failed or os.getpid() != self._process_id:
            return super().write(data)
        with self._changed:
            piece = bytes(data)
            if self._lost_writes:
                piece = b"jwtserver: nobody read %d writes; they are lost\n%b" % (
                    self._lost_writes, piece)
            if len(self._queue) + len(piece) > MAX_QUEUED_OUTPUT:
                self._lost_writes += 1
            else:
                self._lost_writes = 0
                self._queue += piece
                self._changed.notify_all()
        return len(data)

    def wait(self, seconds: float) -> None:
        """Wait until all is written, but not longer."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queue or self._failed, seconds)

    def _run(self) -> None:
        while not self._failed:
            with self._changed:
                self._changed.wait_for(lambda: self._queue)
                lines = self._queue.rfind(b"\n", 0, MAX_OUTPUT_PIECE) + 1
                piece = self._queue[:lines or MAX_OUTPUT_PIECE]
            written = 0
            try:
                written = super().write(piece) or 0  # None: another process made it non-blocking
            except (OSError, ValueError):  # ValueError: it was closed
                self._failed = True
            with self._changed:
                del self._queue[:written]
                self._changed.notify_all()
            if not written or not self._queue:
                time.sleep(OUTPUT_INTERVAL)


def _queued(stream: Any) -> Any:
    """The same stream, with a queue in front of it if it may block."""
    # Some streams are missing or have no file, and some systems have no thread left.
    with suppress(AttributeError, OSError, RuntimeError):
        mode = os.fstat(stream.fileno()).st_mode
        is_terminal = os.name == "posix" and stream.isatty()
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or is_terminal:
            return io.TextIOWrapper(
                _OutputQueue(stream.fileno()), stream.encoding, stream.errors, line_buffering=True)
    return stream


@contextmanager
def _queued_output() -> Iterator[None]:
    """Put queues in front of standard output and error, during a `with` block or a function."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = streams = _queued(sys.stdout), _queued(sys.stderr)
    try:
        yield
    finally:
        for stream in streams:
            if stream not in before:
                with suppress(OSError):
                    stream.flush()
                stream.buffer.wait(MAX_OUTPUT_WAIT)
        sys.stdout, sys.stderr = before


# --- Commands -----------------------------------------------------------------------------------
#
# Design: Each command is one function of its arguments and the settings. It does one thing, prints
# one sentence about what it did, and raises Error with one line if it cannot. The table `_COMMANDS`
# in the next chapter has an entry for each. A command runs in the main thread, for one user at a
# terminal or in a script. It must never create a database if it needs an existing user: in the
# wrong folder, an empty database would hide the mistake.


MAX_CODES = 3  # that `user otp` asks for
MIN_PBKDF2_ITERATIONS = 1000  # RFC 8018 §4.2; anything less is a mistake or a test


@_queued_output()
def _serve(args: argparse.Namespace, settings: Settings) -> None:
    app = _load_app(args.app) if args.app else None
    _log_to_stderr()
    tls = _load_certificate(args)
    try:
        listeners = _listen(settings.host, settings.port)
    except OSError as error:
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror  # or that of getaddrinfo
        raise Error(f"cannot listen on {settings.host}:{settings.port}: {reason};"
                    " choose another address with --host and --port") from None
    _raise_file_limit()
    with ExitStack() as stack:
        for listener in listeners:
            stack.enter_context(listener)
        store = open_store(settings.database, settings.leeway)
        log = sys.stdout if args.access_log else None
        server = _Server(create_app(settings, app=app, store=store), listeners, settings, tls, log)
        try:
            demo = _add_demo_user(store, settings) if store.is_empty() else None
            _handle_signals(server, args)
            addresses = [_Address.of(listener, bool(tls)) for listener in listeners]
            _warn_about_weak_settings(settings, addresses)
            _print_greeting(addresses, settings, store, demo, app is None)
            # Garbage collection took 10 % of the request time; exclude what is loaded so far.
            gc.freeze()
            gc.set_threshold(GC_THRESHOLD)
            server.serve_forever()
        finally:
            server.finish()


def _load_certificate(args: argparse.Namespace) -> "Optional[ssl.SSLContext]":
    if args.tls_key and not args.tls_cert:
        raise Error("--tls-key needs --tls-cert")
    try:
        return _tls_context(args.tls_cert, args.tls_key) if args.tls_cert else None
    except OSError as error:
        files = " with ".join(filter(None, (args.tls_cert, args.tls_key)))
        readable = not isinstance(error, (FileNotFoundError, PermissionError))
        hint = "; is its key in --tls-key?" if readable and not args.tls_key else ""
        raise Error(f"cannot use {files}: {error.strerror or error}{hint}") from None


def _handle_signals(server: _Server, args: argparse.Namespace) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.interrupt)
    if server.tls and hasattr(signal, "SIGHUP"):  # Windows has none
        signal.signal(signal.SIGHUP, partial(_reload_certificate, server, args))


def _reload_certificate(server: _Server, args: argparse.Namespace, *_: Any) -> None:
    """Handle a signal: use the certificate that is in the file now, for new connections."""
    try:
        server.tls = _tls_context(args.tls_cert, args.tls_key)
    except OSError as error:
        logger.error("%s cannot be used, and the old certificate stays: %s",
                     args.tls_cert, error.strerror or error)
    else:
        logger.info("The certificate in %s is used for new connections", args.tls_cert)


def _raise_file_limit() -> None:
    """Let this process open as many files as the system allows: each connection needs one."""
    with suppress(ImportError, OSError, ValueError):  # Windows has no limit, macOS may refuse
        import resource
        _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))


class _Address(NamedTuple):
    """Where a socket listens, and how a program on this machine reaches it."""

    text: str  # for people
    url: str
    curl: Tuple[str, ...]  # the flags of curl
    is_public: bool  # other machines can read what is sent

    @classmethod
    def of(cls, listener: socket.socket, has_tls: bool) -> "_Address":
        """The address of a listening socket."""
        host, port = _socket_address(listener)
        scheme, curl = ("https", ("-k",)) if has_tls else ("http", ())
        if not port:
            return cls(f"the Unix socket {host}", f"{scheme}://localhost",
                       (*curl, "--unix-socket", host), False)
        reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        url = f"{scheme}://{f'[{reachable}]' if ':' in reachable else reachable}:{port}"
        text = url if host == reachable else f"all addresses of this machine, such as {url}"
        return cls(text, url, curl, not has_tls and not ipaddress.ip_address(host).is_loopback)


def _warn_about_weak_settings(settings: Settings, addresses: Sequence[_Address] = ()) -> None:
    if settings.pbkdf2_iterations < MIN_PBKDF2_ITERATIONS:
        _warn(f"JWTSERVER_PBKDF2_ITERATIONS is {settings.pbkdf2_iterations}, so stolen password"
              f" hashes are easy to break; the default is {PBKDF2_ITERATIONS}")
    # Behind a proxy, the server cannot know whether clients use HTTPS.
    if not settings.trusted_proxies and any(address.is_public for address in addresses):
        _warn("other machines can connect without encryption; use --tls-cert, or a proxy with HTTPS"
              " and JWTSERVER_TRUSTED_PROXIES=1")


class _LogFormatter(logging.Formatter):
    """Escapes control characters, and indents all lines of a record except the first.

    A traceback shows the text of the exception, which may come from a client. It must not look like
    a line of the audit log, or control the terminal.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record."""
        lines = super().format(record).split("\n")
        return "\n    ".join([_CONTROL_CHARACTERS.sub(_escape, line) for line in lines])


_CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")  # except tabs


def _log_to_stderr(
    level: int = logging.INFO, line: str = "%(asctime)s %(name)s: %(message)s",
) -> logging.Handler:
    """Print the log, unless the user's application has configured logging. Return the handler."""
    handler = logging.StreamHandler()
    handler.setFormatter(_LogFormatter(line, _LOG_TIME_FORMAT))
    logging.basicConfig(level=level, handlers=[handler])
    return handler


def _warn(text: str) -> None:
    """Print a warning about what the user of a command asked for."""
    print(f"jwtserver: warning: {text}", file=sys.stderr)


def _note(text: str) -> None:
    """Print something for people. Programs that read the output do not see it."""
    if sys.stderr and sys.stderr.isatty():
        print(text, file=sys.stderr)


def _program(settings: Settings = Settings(), *, absolute: bool = False) -> str:
    """The beginning of a shell command that runs this program with the same files.

    `absolute`: the command also works in another folder.
    """
    path = os.path.abspath if absolute else os.fspath
    main_module = getattr(sys.modules["__main__"], "__spec__", None)
    python, script = [*getattr(sys, "orig_argv", ()), sys.executable][0], sys.argv[0]
    if "py" not in os.path.basename(python):  # uWSGI or Apache
        python = "python"
    if main_module and main_module.name == "jwtserver":
        words = [python, "-m", "jwtserver"]
    elif Path(script).stem == "jwtserver":
        words = [python, script] if script.endswith(".py") else [script]
    else:  # another program has imported this module
        words = [python, os.path.abspath(__file__)]
    if shutil.which(os.path.basename(words[0])) == words[0]:
        words[0] = os.path.basename(words[0])
    words = [path(word) if os.sep in word else word for word in words]
    if settings.secret_file:
        words += ["--secret-file", path(settings.secret_file)]
    command = shlex.join(words)
    if settings.audit_log:
        command = f"JWTSERVER_AUDIT_LOG={shlex.quote(path(settings.audit_log))} {command}"
    if _is_postgresql(settings.database):  # the URL may contain a password
        return f"JWTSERVER_DATABASE=postgresql://… {command}"
    if absolute or settings.database != Settings().database:
        command += f" --database {shlex.quote(path(settings.database))}"
    return command


def _load_app(name: str) -> WSGIApplication:
    """Import `MODULE:CALLABLE` or call `MODULE:FACTORY()`, from the current folder first."""
    module, _, attributes = name.partition(":")
    is_call = attributes.endswith("()")
    sys.path.insert(0, os.getcwd())
    try:
        find = attrgetter(attributes.removesuffix("()") or "application")
        app: Any = find(importlib.import_module(module))
        app = app() if is_call else app
    except (Exception, SystemExit) as error:
        raise Error(f"cannot import {name}: {type(error).__name__}: {_one_line(error)}"
                    f"{_place_of(error)}") from error
    if not callable(app):
        raise Error(f"{name} is not callable")
    if getattr(app, "__module__", "") == "jwtserver":  # `create_app` has returned it
        raise Error(f"{name} is guarded by jwtserver already; run it with a WSGI server")
    if not _accepts_two_arguments(app):
        raise Error(f"{name} is not a WSGI application: it cannot be called with environ and"
                    " start_response. If it is a factory, which returns the application, write:"
                    f" --app {shlex.quote(f'{name}()')}")
    return app  # type: ignore[no-any-return]


def _place_of(error: BaseException) -> str:
    """The file and line of an exception in an application; the innermost that the user wrote."""
    ignored = ("<", os.path.dirname(os.__file__) + os.sep, _place_of.__code__.co_filename)
    places = [frame for frame in traceback.extract_tb(error.__traceback__)
              if "-packages" in frame.filename or not frame.filename.startswith(ignored)]
    own_places = [frame for frame in places if "-packages" not in frame.filename]
    for frame in (own_places or places)[-1:]:
        return f" ({frame.filename}, line {frame.lineno})"
    is_missing = isinstance(error, ModuleNotFoundError)
    return f" in {os.getcwd()} or among the installed packages" if is_missing else ""


def _accepts_two_arguments(app: Any) -> bool:
    from inspect import signature  # takes 5 ms
    try:
        signature(app, follow_wrapped=False).bind({}, None)
    except TypeError:
        return False
    except ValueError:  # it is written in C
        pass
    return True


def _add_demo_user(store: Store, settings: Settings) -> Optional[Tuple[str, str]]:
    """Add the user `demo`. Return its password and a token; None if another process added it."""
    password = secrets.token_hex(8)
    user = _new_user("demo", _hash_password(password, settings))
    try:
        _add_users(store, [user])
    except NameTaken:
        return None
    return password, _issue_token(store, user, settings, settings.token_lifetime)[0]


def _print_greeting(
    addresses: Sequence[_Address], settings: Settings, store: Store,
    demo: Optional[Tuple[str, str]], has_page: bool,
) -> None:
    """Print where the server listens and, with the user `demo`, commands to try it."""
    default = "/protected" if has_page else "/"  # as in `create_app`
    print(f"jwtserver listens on {', '.join(address.text for address in addresses)}"
          " (press Ctrl-C to stop it)")
    exceptions = [*settings.exempt, *settings.optional]
    print(f"A token is needed for {', '.join(settings.protect or (default,))}"
          + (f", but not for {', '.join(exceptions)}" if exceptions else ""))
    if demo:
        password, token = demo
        program, url = _program(settings), addresses[0].url
        curl = shlex.join(["curl", *addresses[0].curl])
        path = _protected_path(settings, default)
        print(f"\n{store.name} had no users. The user demo was added, so that you can try it.\n"
              f"The password is {password}. It is shown only this once.\n\nSign in:\n{curl}"
              f" -d username=demo -d password={password}"
              f" {shlex.quote(f'{url}{settings.prefix}/authenticate')}")
        if path:
            served = path == "/protected" or not has_page
            print("\nUse the token:" if served else
                  "\nUse the token (the answer is 404 until --app names your application):")
            target = shlex.quote(url + quote(os.fsencode(path)))
            print(f'{curl} -H "Authorization: Bearer {token}" {target}')
        print(f"\nAdd your own users, and remove this one:\n{program} user add NAME\n"
              f"{program} user remove demo\n")
    sys.stdout.flush()


def _protected_path(settings: Settings, default: str) -> Optional[str]:
    """The first path for which GET needs a token; /protected if that is one and is served."""
    rules = [str(rule) for rule in settings.protect] or [default]
    guard = BearerAuthMiddleware(
        Router({}), TokenSigner(secrets.token_hex(32)), protect=rules, exempt=settings.exempt,
        optional=settings.optional)
    paths = [rule[rule.index("/"):] for rule in rules]
    if default == "/protected":  # `/` is a page of the service, and open
        paths = [default, *(path for path in paths if path != "/")]
    for path in paths:
        wsgi_path = os.fsencode(path).decode("latin-1")  # PEP 3333
        if guard.protects({"REQUEST_METHOD": "GET", "PATH_INFO": wsgi_path}):
            return path
    return None


def _issue_token(
    store: Store, user: User, settings: Settings, lifetime: int, label: Optional[str] = None,
    scope: Optional[str] = None,
) -> Tuple[str, Session]:
    """Open a session for a program, which cannot be refreshed. Return its token and the session."""
    _prepare_keys_for(store, settings)
    signer, now = make_signer(settings), time.time()
    grant = new_grant(user, lifetime, now, refreshable=False, machine=1, label=label, scope=scope,
                      key_fingerprint=signer.fingerprint)
    if not store.open_session(grant, now):
        raise Error(f"the user {user.name!r} was changed at the same time; try again")
    _audit("token_issue", user=user.name, session=grant.session.id,
           scope=user.scope if scope is None else scope, label=label or "",
           lifetime=str(lifetime))
    return issue_token(grant, signer, lifetime, now)[0], grant.session


def _add_users(store: Store, users: List[User]) -> None:
    store.add_users(users)
    for user in users:
        _audit("user_add", user=user.name, scope=user.scope)


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
    scope = " ".join(names)
    if len(scope) > MAX_SCOPE_LENGTH:
        raise Error(f"the scopes have {len(scope)} characters; more than {MAX_SCOPE_LENGTH} do not"
                    " fit into the headers that proxies accept")
    return scope


def _new_user(name: str, password_hash: str, scope: str = "") -> User:
    try:
        name = clean_name(name)
    except ValueError as error:
        raise Error(str(error)) from None
    return User(name, password_hash, _clean_scope(scope), 0, int(time.time()))


def _has_database(settings: Settings) -> bool:
    """Return False if the file does not exist."""
    try:
        return _is_postgresql(settings.database) or bool(os.stat(settings.database))
    except FileNotFoundError:
        return False
    except OSError:  # opening it will fail with advice
        return True


def _open_existing_store(settings: Settings) -> Store:
    if not _has_database(settings):
        raise Error(f"there is no database {Path(settings.database).absolute()}; set"
                    " JWTSERVER_DATABASE as for the server, or create one with `user add`")
    return open_store(settings.database, settings.leeway)


def _open_or_create_store(settings: Settings) -> Store:
    has_database = _has_database(settings)
    store = open_store(settings.database)
    if not has_database:
        print(f"Created the database {store.name}")
    return store


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


def _read_line() -> str:
    """Read a line of standard input. PowerShell may send UTF-16, or add a byte order mark."""
    file = _standard_input()
    line = file.buffer.readline()
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        line += file.buffer.read()  # a byte of another character may look like the end of the line
        text = line.decode("utf-16")
    elif line.startswith(codecs.BOM_UTF8):
        text = line.decode("utf-8-sig")
    else:
        text = line.decode(file.encoding, file.errors or "strict")
    return text.partition("\n")[0].rstrip("\r")


def _ask_password(args: argparse.Namespace) -> str:
    if args.password_stdin:
        return _read_line()
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


def _ask_password_hash(args: argparse.Namespace, settings: Settings, name: str) -> str:
    """Ask for a new password, warn if it is weak, and hash it."""
    password = _ask_password(args)
    password_hash = _hash_password(password, settings)
    if len(password) < MIN_PASSWORD_LENGTH:
        _warn(f"the password has fewer than {MIN_PASSWORD_LENGTH} characters; it is easy to guess")
    elif password.casefold() == name.casefold():
        _warn("the password is the user name; it is easy to guess")
    _warn_about_weak_settings(settings)
    return password_hash


def _user_add(args: argparse.Namespace, settings: Settings) -> None:
    user = _new_user(args.name, "", args.scope)
    if _has_database(settings) and open_store(settings.database).find_user(user.name):
        raise NameTaken(user.name)
    password_hash = _ask_password_hash(args, settings, user.name)
    store = _open_or_create_store(settings)
    _add_users(store, [user._replace(password_hash=password_hash)])
    print(f"Added the user {user.name} to {store.name}")
    _print_lockout(store, user.name, settings)


def _user_list(args: argparse.Namespace, settings: Settings) -> None:
    store = _open_existing_store(settings)
    if store.is_empty():
        print(f"{store.name} has no users", file=sys.stderr)
    lockouts = store.lockouts(settings.login_failures, time.time())
    for user in store.all_users():
        state = "locked" if _counter(user.name, None) in lockouts else "enabled"
        state = "disabled" if user.disabled else state
        factor = "otp" if user.otp_secret else ""
        print(f"{user.name:24} {state:8} {factor:3} {user.scope}".rstrip())


def _check_changed(changed: Any, user: User) -> None:
    """Check what `Store` returns: a person may have typed for minutes since the user was found."""
    if changed is False:
        raise Error(f"the user {user.name!r} was removed or renamed meanwhile; nothing has changed")


def _change_user(
    args: argparse.Namespace, settings: Settings, change: Callable[[Store, str], Any],
    outcome: str, **details: str,
) -> None:
    store, user = _find_existing_user(settings, args.name)
    _check_changed(change(store, user.name), user)
    _audit(args.event, user=user.name, **details)
    print(outcome.format(user.name, **details))
    if args.event in ("user_enable", "user_password"):
        _print_lockout(store, user.name, settings)


def _print_lockout(store: Store, name: str, settings: Settings) -> None:
    """Say that failed sign-ins have locked a user out, if so."""
    lockouts = store.lockouts(settings.login_failures, time.time())
    seconds = math.ceil(lockouts.get(_counter(name, None), 0))
    if seconds:
        print(f"{name} is locked out for {seconds} seconds, at one address or more. To end this:"
              f" {_program(settings)} user unlock {shlex.quote(name)}")


_user_remove = partial(_change_user, change=Store.remove_user,
                       outcome="Removed the user {} and ended the user's sessions and tokens")
_user_disable = partial(_change_user, change=Store.disable_user,
                        outcome="Disabled the user {} and ended the user's sessions and tokens")
_user_enable = partial(_change_user, change=Store.enable_user, outcome="Enabled the user {}")
_user_logout = partial(_change_user, change=Store.end_sessions,
                       outcome="Ended the sessions and tokens of {}")


def _user_unlock(args: argparse.Namespace, settings: Settings) -> None:
    store, user = _find_existing_user(settings, args.name)
    outcome = "{} was not locked out" + (", but is disabled" if user.disabled else "")
    if _counter(user.name, None) in store.lockouts(settings.login_failures, time.time()):
        outcome = "Ended the lock-outs of {}"
    _change_user(args, settings, Store.unlock,
                 f"{outcome}. An address with too many failures stays locked out, for all users")


def _user_password(args: argparse.Namespace, settings: Settings) -> None:
    _change_user(
        args, settings,
        lambda store, name: store.set_password(name, _ask_password_hash(args, settings, name)),
        "Changed the password of {} and ended the user's sessions and tokens")


def _user_scope(args: argparse.Namespace, settings: Settings) -> None:
    scope = _clean_scope(" ".join(args.scope))
    shown = "'{scope}'" if scope else "none"
    _change_user(
        args, settings, lambda store, name: store.set_scope(name, scope),
        f"Changed the scopes of {{}} to {shown} and ended the user's sessions and tokens",
        scope=scope)


def _user_rename(args: argparse.Namespace, settings: Settings) -> None:
    new_name = _new_user(args.new_name, "").name
    _change_user(
        args, settings, lambda store, name: store.rename_user(name, new_name),
        "Renamed {} to {new_name} and ended the user's sessions and tokens", new_name=new_name)


def _user_otp(args: argparse.Namespace, settings: Settings) -> None:
    store, user = _find_existing_user(settings, args.name)
    if args.remove and not user.otp_secret:
        print(f"{user.name} has no second factor")
        return
    if args.remove:
        store.set_otp(user.name, "", 0)
        _audit("user_otp_remove", user=user.name)
        print(f"Removed the second factor of {user.name}")
        return
    if user.otp_secret:
        raise Error(f"{user.name} has a second factor; remove it first: {_program(settings)}"
                    f" user otp {shlex.quote(user.name)} --remove")
    secret = new_otp_secret()
    print(f"Secret: {secret}\n{otp_uri(user.name, secret, settings.issuer or 'jwtserver')}\n"
          "Add one of these lines to an authenticator app, and enter the code that it shows.",
          flush=True)
    for attempt in range(MAX_CODES):
        print("Wrong. Code: " if attempt else "Code: ", end="", file=sys.stderr, flush=True)
        step = find_otp_step(secret, _read_line().strip(), time.time())
        if step >= 0:
            break
    else:
        raise Error("the code is wrong; nothing has changed. The next run makes a new secret")
    _check_changed(store.set_otp(user.name, secret, step), user)
    _audit("user_otp", user=user.name)
    print(f"Turned on the second factor of {user.name}. The code cannot be used again")


def _user_import(args: argparse.Namespace, settings: Settings) -> None:
    try:
        source = _standard_input().buffer if args.file == "-" else open(args.file, "rb")
        with io.TextIOWrapper(source, "utf-8-sig", newline="") as file:
            users = list(_read_users(args.file, csv.reader(file)))
        store = _open_or_create_store(settings)
        _add_users(store, users)
    except UnicodeDecodeError:
        raise Error(f"{args.file}: must be in UTF-8") from None
    except (csv.Error, NameTaken) as error:
        raise Error(f"{args.file}: {error}") from None
    print(f"Imported {len(users)} {'user' if len(users) == 1 else 'users'} into {store.name}")


def _read_users(file: str, rows: Any) -> Iterator[User]:
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
            raise Error(f"{file}, line {rows.line_num}: {error}") from None


def _token_issue(args: argparse.Namespace, settings: Settings) -> None:
    store, user = _find_existing_user(settings, args.name)
    if user.disabled:
        raise Error(f"the user {user.name!r} is disabled")
    scope = None if args.scope is None else _clean_scope(args.scope)
    if args.label is not None and not (args.label.isprintable() and len(args.label) <= MAX_LABEL):
        raise Error(f"--label must be printable text of at most {MAX_LABEL} characters")
    missing = set((scope or "").split()) - set(user.scope.split())
    if missing:
        raise Error(f"the user {user.name!r} does not have the scope {' '.join(sorted(missing))};"
                    f" the user's scopes are: {user.scope or 'none'}")
    token, session = _issue_token(
        store, user, settings, args.lifetime or settings.token_lifetime, args.label, scope)
    print(token)
    print(f"ID: {session.id}", file=sys.stderr)
    _note(f"Expires: {_time(session.expires)}")


def _session_list(args: argparse.Namespace, settings: Settings) -> None:
    store, user = _find_existing_user(settings, args.name)
    sessions = store.sessions_of(user.name, time.time())
    if not sessions:
        print(f"{user.name} has no sessions", file=sys.stderr)
    for session in sessions:
        parts = [f"{session.id} {'token' if session.machine else 'session':7} created"
                 f" {_time(session.created)}", f"expires {_time(session.expires)}"]
        if session.refreshed > session.created:
            parts.insert(1, f"last refreshed {_time(session.refreshed)}")
        if session.scope is not None:
            parts.append(f"scope '{session.scope}'")
        if session.label:
            parts.append(json.dumps(session.label, ensure_ascii=False))
        print(", ".join(parts))


def _session_end(args: argparse.Namespace, settings: Settings) -> None:
    store = _open_existing_store(settings)
    is_id = re.fullmatch("[0-9a-f]{32}", args.id)
    session = store.find_session(args.id, time.time()) if is_id else None
    if session is None or not store.end_session(session.id):  # perhaps it is a token: do not show
        raise Error(f"there is no session with this ID in {store.name}; `session list` shows the"
                    " IDs of a user")
    event, outcome = "session_end", "Ended a session"
    if session.machine:
        event, outcome = "token_revoke", "Revoked a token"
    _audit(event, user=session.user_name, session=session.id)
    print(f"{outcome} of {session.user_name}")


def _token_inspect(args: argparse.Namespace, settings: Settings) -> None:
    text = " ".join(args.token)
    text = _read_line() if text in ("", "-") else text
    token = re.sub(r"(authorization:)?\s*bearer\s+", "", text.strip(), count=1, flags=re.I)
    signer = _load_signer(settings, time.time)
    try:
        claims = signer.verify(token)
    except InvalidTokenError as error:
        raise Error(f"the token is not valid: {_explain(error, token, settings)}") from None
    store = _open_existing_store(settings)
    if Service(store, signer, settings, time.time).is_revoked(claims):
        raise Error("the token is not valid: Token has been revoked")
    _print_claims(claims)
    if claims.get("iss") != settings.issuer:
        _warn(f"the token has the issuer {claims.get('iss')!r}; JWTSERVER_ISSUER is not set here")


def _print_claims(claims: Claims) -> None:
    print(json.dumps(claims, indent=2), flush=True)
    _note(", ".join(f"{name}: {_time(claims[name])}" for name in ("iat", "nbf", "exp")
                    if name in claims))


def _explain(error: InvalidTokenError, token: str, settings: Settings) -> str:
    """Add to the reason why a token is not valid what the user of a command can do about it."""
    if isinstance(error, InvalidSignatureError):
        source = "JWTSERVER_SECRET" if settings.secret else settings.key_file.absolute()
        return f"{error}: no key in {source} has signed it"
    for name, kind in (("issuer", InvalidIssuerError), ("audience", InvalidAudienceError)):
        if isinstance(error, kind):
            value = getattr(settings, name)
            here = f"is {value!r} here" if value else "is not set here"
            return f"{error}: {_variable(name)} {here}; set it as for the server"
    if isinstance(error, ExpiredSignatureError):
        payload = token.split(".")[1]  # it is signed and well-formed
        claims = json.loads(base64.urlsafe_b64decode(f"{payload}=="))
        _print_claims(claims)
        return f"it expired at {_time(claims['exp'])}"
    return str(error)


def _key_rotate(args: argparse.Namespace, settings: Settings) -> None:
    with _open_existing_store(_with_key_file(settings)).key_lock():
        keys = replace_keys(settings, lambda keys: [secrets.token_hex(32).encode(), *keys])
    _audit("key_rotate")
    others = " Servers on other machines refuse its tokens until they have it too."
    print(f"Added a new signing key to {settings.key_file.absolute()}."
          f"{others if _is_postgresql(settings.database) else ''} Older keys, whose tokens"
          f" stay valid: {len(keys)}. To remove them, as this user, when no valid token needs them:"
          f" {_program(settings)} key prune")


def _key_list(args: argparse.Namespace, settings: Settings) -> None:
    keys, store = load_keys(settings), _open_existing_store(settings)
    live = store.count_tokens(_accepted_seconds(settings), time.time())
    for number, key in enumerate(keys):
        fingerprint = key_fingerprint(key)
        print(f"{fingerprint} {'verifies only' if number else 'signs':13} live sessions:"
              f" {live.pop(fingerprint, 0)}")
    unrecorded = live.pop("", 0)
    if unrecorded:
        print(f"Live sessions from before an upgrade, whose key was not recorded: {unrecorded}")
    if live:
        print(f"Live sessions whose key is not here: {sum(live.values())}")


def _key_prune(args: argparse.Namespace, settings: Settings) -> None:
    store = _open_existing_store(_with_key_file(settings))
    with store.key_lock():
        keys = load_keys(settings)
        if len(keys) == 1:
            print(f"{settings.key_file.absolute()} has only one key; there is none to remove")
            return
        # An earlier release did not record the key of a session: it may be an older one.
        older, seconds = ["", *map(key_fingerprint, keys[1:])], _accepted_seconds(settings)
        live = store.count_tokens(seconds, time.time())
        broken = sum(live.get(fingerprint, 0) for fingerprint in older)
        if broken and not args.force:
            names = ", ".join(store.users_of_keys(older, seconds, time.time()))
            raise Error(f"older keys have signed tokens that are valid: {broken}, for example of"
                        f" {names}. Wait until they expire, or make these tokens invalid with"
                        " --force (refresh tokens keep working)")
        replace_keys(settings, lambda keys: keys[:1])
    _audit("key_prune")
    print(f"Removed the older keys from {settings.key_file.absolute()}: {len(keys) - 1}. Live"
          f" tokens that they may have signed, and that are no longer valid: {broken}")


# --- The command line ---------------------------------------------------------------------------
#
# Design: `_COMMANDS` is the table of all commands, with words, function, help, arguments and
# examples. The parsers are built from it. To add a command, write one function and one entry.
# `main` parses the settings once, from the environment and the flags, and passes them to the
# function. All errors end here, as one line on standard error and an exit code, and name what the
# user gave. Nothing here may print a traceback.


_HELP_FLAGS = ("-h", "--help", "--version")
_Argument = Tuple[str, Dict[str, Any]]  # what `add_argument` takes


def _argument(words: str, help: str, **options: Any) -> _Argument:
    """An argument such as `--port PORT`, or a flag without a value such as `--force`."""
    name, _, metavar = words.partition(" ")
    kind = {"metavar": metavar} if metavar else {"action": "store_true"}
    return name, {"help": help, **kind, **options}


def _flag_integer(maximum: int, minimum: int = 1) -> Callable[[str], int]:
    def _parse(text: str) -> int:
        try:
            return _parse_integer(text, maximum, minimum)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return _parse


class _Command(NamedTuple):
    words: str  # `serve`, or a group and a name
    run: Callable[[argparse.Namespace, Settings], None]
    help: str
    arguments: Sequence[_Argument] = ()
    # If they are not just the words and, for NAME, `alice`.
    examples: Sequence[str] = ()


_COMMON_ARGUMENTS = (
    _argument("--database FILE", "Use this SQLite file or postgresql://… (default: jwtserver.db)."
              " Other users of this machine can see flags; put a password into"
              " JWTSERVER_DATABASE."),
    _argument("--secret-file FILE",
              "Read the signing keys from this file (default: jwtserver.key beside the database)."),
    _argument("--verbose", "Print the log of a command (default: only warnings)."),
)
_COMMON_FLAGS = [name for name, _ in _COMMON_ARGUMENTS]
_NAME = _argument("name NAME", "The name of the user.")
_SCOPE = _argument(
    "--scope SCOPES", "Give the user these scopes, separated by spaces (default: none).",
    default="")
_NEW_SCOPE = _argument("scope SCOPE", "One scope or more, or '' for none.", nargs="+")
_PASSWORD_STDIN = _argument(
    "--password-stdin", "Read the password from standard input (default: ask for it).")
_CSV_FILE = _argument("file FILE", "A file with username,password_hash[,scope] on each line; -"
                      " reads standard input.")
_NEW_NAME = _argument("new_name NEW", "The new name.")
_REMOVE = _argument("--remove", "Remove the second factor (default: turn it on).")
_SESSION = _argument("id ID", "The ID that `session list` and `token issue` print.")
_TOKEN_SCOPE = _argument("--scope SCOPES", "Give the token only these scopes of the user (default:"
                         " all of them).")
_LABEL = _argument("--label TEXT", "Show this note in `session list` (default: none).")
_FORCE = _argument("--force", "Remove them even if tokens that they have signed are valid"
                   " (default: refuse).")
_LIFETIME = _argument(
    "--lifetime SECONDS",
    "Let the token expire after so many seconds (default: JWTSERVER_TOKEN_LIFETIME).",
    type=_flag_integer(MAX_LIFETIME))
_TOKEN = _argument("token TOKEN", "The token, with or without `Bearer` (default: a line of standard"
                   " input).", nargs="*")
_SERVE_ARGUMENTS = (
    _argument("--host HOST", "Listen on this address; :: is every address (default: 127.0.0.1)."),
    _argument("--port PORT", "Listen on this port; 0 chooses a free one (default: 3000).",
              type=_flag_integer(65535, 0)),
    _argument("--app MODULE:CALLABLE", "Serve this WSGI application behind the guard. It is"
              " imported from the current folder. 'MODULE:FACTORY()' calls a function that returns"
              " it (default: only the page /protected)."),
    _argument("--protect RULE", "Require a token for this path, optionally preceded by methods:"
              " 'POST /path'. Other paths are open. Repeat the flag for more paths (default:"
              " /protected, or / with --app).", action="append"),
    _argument("--exempt RULE", "Require no token for this path inside a protected one. Repeat the"
              " flag for more paths (default: none).", action="append"),
    _argument("--optional RULE", "Accept requests for this path with or without a token. Repeat the"
              " flag for more paths (default: none).", action="append"),
    _argument("--prefix PATH", "Serve the endpoints under this path (default: /)."),
    _argument("--cors-origin ORIGIN", "Let pages of this origin, such as"
              " https://app.example.org, read the responses; * means any. Repeat the flag for more"
              " origins (default: none).", action="append", dest="cors_origins"),
    _argument("--tls-cert FILE", "Serve HTTPS with this PEM certificate chain (default: HTTP)."),
    _argument("--tls-key FILE",
              "Read the private key from this file (default: the file of the certificate)."),
    _argument("--access-log", "Print a line for each request, in the combined log format"
              " (default: no)."),
)
_GROUPS = {
    "user": "Manage users", "session": "Manage the sessions of users",
    "token": "Manage tokens", "key": "Manage signing keys"}
_COMMANDS = (
    _Command("serve", _serve, "Serve over HTTP.", _SERVE_ARGUMENTS,
             ["--port 8000", "--protect /protected --protect 'POST,DELETE /articles'"]),
    _Command("user add", _user_add, "Add a user.", [_NAME, _SCOPE, _PASSWORD_STDIN],
             ["user add alice --scope 'read write'",
              "echo 'correct horse' | PROGRAM user add alice --password-stdin"]),
    _Command("user list", _user_list, "List all users: who is disabled or locked out, scopes."),
    _Command("user remove", _user_remove, "Remove a user and end the sessions.", [_NAME]),
    _Command("user password", _user_password, "Change the password of a user and end the sessions.",
             [_NAME, _PASSWORD_STDIN]),
    _Command("user scope", _user_scope, "Change the scopes of a user and end the sessions.",
             [_NAME, _NEW_SCOPE], ["user scope alice read write"]),
    _Command("user disable", _user_disable, "Disable a user and end the sessions.", [_NAME]),
    _Command("user enable", _user_enable, "Allow a disabled user to sign in again.", [_NAME]),
    _Command("user unlock", _user_unlock,
             "End the lock-outs of a user after failed sign-ins.", [_NAME]),
    _Command("user logout", _user_logout, "End all sessions of a user.", [_NAME]),
    _Command("user rename", _user_rename, "Rename a user and end the sessions.",
             [_NAME, _NEW_NAME], ["user rename alice alicia"]),
    _Command("user otp", _user_otp, "Turn on a second factor: codes of an authenticator app.",
             [_NAME, _REMOVE]),
    _Command("user import", _user_import, "Add all users of a CSV file, or none.", [_CSV_FILE],
             ["user import users.csv"]),
    _Command("session list", _session_list, "List the sessions and tokens of a user.", [_NAME]),
    _Command("session end", _session_end, "End a session, or revoke a token.", [_SESSION],
             ["session end 0123456789abcdef0123456789abcdef"]),
    _Command("token issue", _token_issue,
             "Print a token for a program of a user, without the password.",
             [_NAME, _LIFETIME, _TOKEN_SCOPE, _LABEL],
             ["token issue alice --label ci --lifetime 31536000 --scope read"]),
    _Command("token revoke", _session_end, "Revoke a token, or end a session.", [_SESSION],
             ["token revoke 0123456789abcdef0123456789abcdef"]),
    _Command("token inspect", _token_inspect, "Verify a token and print its claims.", [_TOKEN],
             ["PROGRAM token issue alice | PROGRAM token inspect"]),
    _Command("key rotate", _key_rotate, "Sign with a new key. Older keys still verify tokens."),
    _Command("key list", _key_list, "List the keys, and how many live sessions each has signed."),
    _Command("key prune", _key_prune, "Remove all keys except the one that signs.", [_FORCE]),
)


class _CommandParser(argparse.ArgumentParser):
    """A parser that reports a mistake with the usage of its own command, and a suggestion."""

    def __init__(self, *, examples: Sequence[str], **options: Any) -> None:
        lines = [line if "PROGRAM" in line else f"PROGRAM {line}".rstrip() for line in examples]
        epilog = "\n  ".join(["examples:", *lines]).replace("PROGRAM", _program())
        super().__init__(epilog=epilog.replace("%", "%%"), allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def parse_known_args(self, *args: Any) -> Any:  # type: ignore[override]
        """Parse the arguments, and refuse any that are left over."""
        namespace, unknown = super().parse_known_args(*args)
        if unknown:
            flag = unknown[0].partition("=")[0]
            if flag == "--scope":
                hint = "; to change scopes, write: user scope NAME read write"
            elif flag[:2] == "--" and flag[2:].replace("-", "_") in _PARSERS:
                hint = f"; set {_variable(flag[2:].replace('-', '_'))} in the environment"
            elif flag.startswith("-"):
                hint = _did_you_mean(flag, self._option_string_actions, len("--"))
            elif flag in ("serve", *_GROUPS):
                hint = f"; write the command {flag} before its flags"
            else:
                hint = "; put quotes around a value that contains spaces"
            shown = re.sub(r"://\S*", "://…", " ".join(unknown))  # a URL may contain a password
            self.error(f"unrecognized arguments: {shown}{hint}")
        return namespace, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = list(action.choices)
            if "serve" in names:  # `add` for `user add`
                names += [command.words for command in _COMMANDS]
            words = [name for name in names if name.endswith(f" {value}")]
            hint = f"; did you mean {words[0]!r}?" if words else _did_you_mean(value, names)
            self.error(f"unknown command {value!r}{hint}")

    def error(self, message: str) -> NoReturn:
        """Print the usage and the mistake, and exit with code 2."""
        self.print_usage(sys.stderr)
        self.exit(2, f"jwtserver: {message}\n")


def _add_arguments(
    parser: "argparse._ActionsContainer", arguments: Sequence[_Argument],
) -> None:
    for name, options in (*arguments, *_COMMON_ARGUMENTS):
        parser.add_argument(name, **options)


def _build_parser() -> _CommandParser:
    parser = _CommandParser(
        usage="%(prog)s [serve] [FLAG]...\n       %(prog)s COMMAND [--help] ...",
        description="Sign-in with JSON Web Tokens. Without a command, `serve` runs.",
        examples=["", "user add alice", "serve --help"])
    parser.add_argument("--version", action="version", version=f"jwtserver {__version__}")
    groups = {"": parser.add_subparsers(
        required=True, title="commands", metavar="COMMAND", prog=parser.prog)}
    # Only for the help: `main` puts `serve` before a flag that comes first.
    _add_arguments(parser.add_argument_group("flags of serve"), _SERVE_ARGUMENTS)
    for command in _COMMANDS:
        group, _, name = command.words.rpartition(" ")
        examples = command.examples or [
            command.words + (" alice" if _NAME in command.arguments else "")]
        if group not in groups:
            names = [other.words.split()[-1] for other in _COMMANDS
                     if other.words.startswith(f"{group} ")]
            inner = groups[""].add_parser(
                group, help=f"{_GROUPS[group]}: {', '.join(names)}.",
                description=f"{_GROUPS[group]}.", examples=examples[:1])
            groups[group] = inner.add_subparsers(
                required=True, title="commands", metavar="COMMAND", prog=inner.prog)
        leaf = groups[group].add_parser(
            name, help=command.help, description=command.help, examples=examples)
        # `event` is the name of the command in the audit log.
        leaf.set_defaults(run=command.run, event=command.words.replace(" ", "_"))
        _add_arguments(leaf, command.arguments)
    return parser


def _flag(name: str) -> str:
    """The flag for a field of Settings."""
    return "--" + ("cors-origin" if name == "cors_origins" else name.replace("_", "-"))


def _read_settings(args: argparse.Namespace) -> Settings:
    """Read the settings from the flags, and from the environment where there is no flag."""
    environ = dict(os.environ)
    for name in _PARSERS:
        flag = getattr(args, name, None)
        if isinstance(flag, list):
            flag = ("," if name == "cors_origins" else ";").join(flag)
        if flag == "" and name in ("database", "secret_file"):  # as `--database "$UNSET"`
            raise Error(f"{_flag(name)} is empty; is its variable set here?")
        if flag is not None:
            environ[_variable(name)] = str(flag)
    if args.secret_file:
        environ["JWTSERVER_SECRET"] = ""
    return Settings.from_environ(environ)


def _in_users_terms(error: SettingsError, args: argparse.Namespace) -> str:
    """The message, with the flags and variables that were given, but without those of defaults."""
    given = []
    for name in error.names:
        if getattr(args, name, None) is not None:
            given.append(_flag(name))
        elif os.environ.get(_variable(name)):
            given.append(_variable(name))
    return (" or ".join(given) + error.problem).lstrip(": ")


def _flush_output() -> None:
    """Write out what was printed, while a failure can still be reported."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:  # do not try again when the interpreter exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _run(arguments: List[str]) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may not have all characters
        sys.stdout.reconfigure(errors="backslashreplace")
    args = _build_parser().parse_args(_arrange(arguments))
    handler = _log_to_stderr(logging.WARNING, "jwtserver: warning: %(message)s")
    handler.setLevel(logging.WARNING)  # the level of the audit log is INFO
    try:
        settings = _read_settings(args)
        if args.run is _serve or args.verbose:
            logging.getLogger().removeHandler(handler)
        if args.run is not _serve:  # it configures the logs after it has loaded the application
            if args.verbose:
                _log_to_stderr()
            _open_audit_log(settings)
        args.run(args, settings)
    except SettingsError as error:
        raise Error(_in_users_terms(error, args)) from error


def _arrange(arguments: List[str]) -> List[str]:
    """Add `serve` if there is no command. Move flags of all commands behind the command."""
    flags: List[str] = []
    while arguments and arguments[0].partition("=")[0] in _COMMON_FLAGS:
        count = 1 if "=" in arguments[0] or arguments[0] == "--verbose" else 2
        flags += arguments[:count]
        arguments = arguments[count:]
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in _HELP_FLAGS):
        arguments = ["serve", *arguments]
    count = 2 if arguments[0] in _GROUPS else 1
    return [*arguments[:count], *flags, *arguments[count:]]


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run a command. Return its exit code: 0, 1 if it failed, or 130 if it was interrupted.

    Raises:
        SystemExit: the usage was wrong (code 2), or the help was shown.
    """
    try:
        try:
            _run(list(sys.argv[1:] if argv is None else argv))
        finally:
            _flush_output()
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
