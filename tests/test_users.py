"""Users in the database: no acknowledged change is lost, and every failure is one line."""

import gc
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import jwtserver
from jwtserver import Error, SettingsError, StoreError, clean_name, open_store
from support import ROOT, user

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def store(database):
    store = open_store(database)
    yield store
    store.close()


def run(code, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code], env=ENVIRONMENT, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


# --- Names


@pytest.mark.parametrize("name", [
    "a", "a" * 150, "Zoë", "jo@example.org", "o'neil", "山田", "a b", "-", "🙂" * 150])
def test_clean_name_of_a_valid_name_is_the_name(name):
    assert clean_name(name) == name


@pytest.mark.parametrize("name", [
    "", "a" * 151, " a", "a ", "\ta", "a\xa0", "\u3000", "a\0b", "a\nb", "a\x1bb", "a\x7fb",
    "a\x85b", "a\ud800b", "a\u2028b", "a\u2029b", "e\u0301" * 151])
def test_clean_name_of_an_invalid_name_raises(name):
    with pytest.raises(ValueError, match="^a user name must "):
        clean_name(name)


@pytest.mark.parametrize("character", [
    "\u200b", "\xad", "\u202e", "\u200d", "\ufeff", "\u2066", "\U000e0041", "\u180e",  # format
    "\u034f", "\u115f", "\u1160", "\u17b4", "\u180b", "\u3164", "\uffa0", "\ufe0f",  # not displayed
    "\U000e0100", "\u2065", "\ufff0", "\U000e0fff",
    "\u2800", "\xa0", "\u2003", "\u3000",  # blank
    "\ue000", "\U0010fffd", "\ufdd0", "\uffff", "\u0378",  # private use and not assigned
], ids=ascii)
def test_clean_name_with_an_invisible_character_raises(character):
    for name in (f"ali{character}ce", f"{character}alice", f"alice{character}"):
        with pytest.raises(ValueError, match="^a user name must not "):
            clean_name(name)


def test_user_whose_stored_name_has_invisible_characters_is_found_and_removed(store):
    store.add_users([user("ali\u200bce")])

    assert store.find_user("ali\u200bce") == user("ali\u200bce")
    assert store.find_user("alice") is None
    assert store.remove_user("ali\u200bce")


def test_clean_name_counts_composed_characters():
    assert clean_name("e\u0301" * 150) == "é" * 150


# --- The file


def test_open_store_creates_a_file_for_the_owner_only():
    open_store("jwtserver.db")
    store = open_store("jwtserver.db")

    assert store.is_empty()
    assert os.stat("jwtserver.db").st_mode & 0o777 == 0o600
    store.close()
    connection = sqlite3.connect("jwtserver.db")
    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def write(*statements):
    connection = sqlite3.connect("jwtserver.db")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.sqlite
def test_open_store_again_keeps_the_locks_of_this_process(store):
    """Closing the file would drop them, and another process would delete the log."""
    open_store("jwtserver.db")

    with run("import jwtserver as j; j.open_store('jwtserver.db').close()") as other:
        assert other.communicate() == ("", "")

    assert Path("jwtserver.db-wal").exists()
    store.add_users([user("alice")])
    assert store.find_user("alice") == user("alice")


@pytest.mark.parametrize("spoil, words", [
    (lambda: Path("jwtserver.db").write_bytes(b"no database" * 100), "not a database"),
    (lambda: os.mkdir("jwtserver.db"), "Is a directory"),
    (lambda: write("CREATE TABLE users (x)"), "another application"),
    (lambda: write("PRAGMA user_version = 1"), "another application"),
    (lambda: write(f"PRAGMA application_id = {jwtserver._APPLICATION_ID}",
                   "PRAGMA user_version = 3"), "newer version"),
], ids=["text", "folder", "tables", "version", "newer"])
def test_open_store_of_a_foreign_file_refuses_and_leaves_it(spoil, words):
    spoil()
    before = os.path.isfile("jwtserver.db") and Path("jwtserver.db").read_bytes()

    with pytest.raises(SettingsError, match=f"/jwtserver.db: .*{words}") as caught:
        open_store("jwtserver.db")

    assert "\n" not in str(caught.value)
    assert (os.path.isfile("jwtserver.db") and Path("jwtserver.db").read_bytes()) == before


def test_open_store_in_a_missing_folder_refuses():
    with pytest.raises(SettingsError, match="/no/jwtserver.db: No such file or directory$"):
        open_store("no/jwtserver.db")


@pytest.fixture
def nobody():
    """Drops the rights of root, who can write any file."""
    if os.getuid() == 0:
        os.seteuid(65534)
    yield
    if os.getuid() == 0:
        os.seteuid(0)


def test_open_store_in_a_read_only_folder_refuses(tmp_path, nobody):
    folder = Path("/")
    if os.access(folder, os.W_OK, effective_ids=True):
        pytest.skip("this user may write anywhere")

    with pytest.raises(SettingsError, match="Permission denied|Read-only file system"):
        open_store(str(folder / "jwtserver-test-jwtserver.db"))


def test_open_store_by_processes_at_once_succeeds_in_all():
    code = ("import sys, jwtserver; sys.stdin.read(1);"
            "print(jwtserver.open_store('jwtserver.db').is_empty())")
    processes = [run(code) for _ in range(8)]

    for process in processes:
        process.stdin.write("x")
        process.stdin.flush()
    results = [process.communicate() for process in processes]

    assert [errors for _, errors in results] == [""] * 8
    assert [output for output, _ in results] == ["True\n"] * 8


@pytest.mark.sqlite
def test_migration_after_another_process_has_done_it_changes_nothing(store):
    """Another process may migrate between the first look at the version and the lock."""
    database = store.database

    jwtserver._Database.migrate(database, jwtserver._MIGRATIONS)

    with database.connection() as connection:
        assert database.read_version(connection) == len(jwtserver._MIGRATIONS)


def test_use_wal_retries_until_a_reader_has_gone():
    write("PRAGMA journal_mode = DELETE")
    reader = sqlite3.connect("jwtserver.db", check_same_thread=False, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM sqlite_master").fetchall()
    release = threading.Timer(0.1, reader.execute, ["COMMIT"])
    release.start()
    connection = sqlite3.connect("jwtserver.db", timeout=0)  # is told "locked" at once

    jwtserver._use_wal(connection)

    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    release.join()
    reader.close()
    connection.close()


def test_open_store_beside_a_reader_that_stays_gives_up(monkeypatch):
    monkeypatch.setattr(jwtserver, "BUSY_TIMEOUT", 0.05)
    reader = sqlite3.connect("jwtserver.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM sqlite_master").fetchall()

    with pytest.raises(SettingsError, match="jwtserver.db: database is locked"):
        open_store("jwtserver.db")

    reader.close()


@pytest.mark.sqlite
@pytest.mark.skipif(sys.platform != "linux", reason="limits a file's size as Linux does")
def test_full_disk_is_one_line_and_loses_nothing(store):
    store.add_users([user("first")])
    store.close()
    code = """
import resource, signal, jwtserver
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = jwtserver.open_store("jwtserver.db")
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
try:
    for i in range(1000):
        store.add_users([jwtserver.User(f"user{i}", "h" * 500, "", 0, 0)])
        acknowledged = i
except jwtserver.StoreError as error:
    print(acknowledged, error)
"""

    output, errors = run(code).communicate()

    acknowledged, _, message = output.partition(" ")
    assert message.startswith(f"{store.name}: ") and message.count("\n") == 1
    assert errors == ""
    fresh = open_store("jwtserver.db")
    names = {row.name for row in fresh.all_users()}
    assert {"first", *(f"user{i}" for i in range(int(acknowledged) + 1))} <= names
    fresh.close()


def test_killed_process_loses_no_acknowledged_user():
    code = """
import jwtserver
store = jwtserver.open_store("jwtserver.db")
for i in range(10**6):
    store.add_users([jwtserver.User(f"user{i}", "hash", "", 0, 0)])
    print(i, flush=True)
"""
    process = run(code)
    for _ in range(20):
        process.stdout.readline()

    process.send_signal(signal.SIGKILL)

    acknowledged = 20 + process.communicate()[0].count("\n") - 1
    store = open_store("jwtserver.db")
    assert len(store.all_users()) >= acknowledged
    assert store.find_user(f"user{acknowledged - 1}")
    store.close()


# --- Users


def test_find_compares_names_in_nfc(store):
    store.add_users([user("Zoë")])

    assert store.find_user("Zoe\u0308") == user("Zoë")
    assert store.find_user("zoë") is None
    assert store.find_user("x" * 151) is None


def test_add_all_or_none(store):
    store.add_users([user("a")])

    with pytest.raises(Error, match="the user 'a' exists already"):
        store.add_users([user("b"), user("a"), user("c")])

    assert [row.name for row in store.all_users()] == ["a"]


def test_changes_tell_whether_there_was_a_user(store):
    store.add_users([user("a")])

    assert store.set_password("a", "other") and not store.set_password("b", "other")
    assert store.disable_user("a") and not store.disable_user("b")
    assert store.find_user("a") == user("a", password_hash="other", disabled=1)
    assert store.enable_user("a") and not store.enable_user("b")
    assert store.find_user("a") == user("a", password_hash="other")
    assert store.remove_user("a") and not store.remove_user("a")
    assert store.find_user("a") is None


@pytest.mark.sqlite
def test_write_beside_a_writer_that_stays_gives_up(store, monkeypatch):
    store.close()
    monkeypatch.setattr(jwtserver, "BUSY_TIMEOUT", 0.05)
    writer = sqlite3.connect("jwtserver.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreError, match="jwtserver.db: database is locked"):
        store.add_users([user("a")])

    writer.close()


@pytest.mark.sqlite
def test_deleted_file_is_not_created_again(store):
    os.unlink("jwtserver.db")
    store.close()

    with pytest.raises(StoreError, match="unable to open database file"):
        store.ping()

    assert not os.path.exists("jwtserver.db")


# --- Connections


def test_connections_are_reused_and_the_idle_ones_bounded(store, monkeypatch):
    monkeypatch.setattr(jwtserver, "MAX_IDLE_CONNECTIONS", 2)
    idle = store.database.pools[os.getpid()]
    database = store.database
    with database.connection() as a, database.connection() as b, database.connection() as c:
        pass

    assert len(idle) == 2
    with store.database.connection() as again:
        assert again in (a, b, c)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_child_opens_connections_of_its_own(store):
    store.add_users([user("a")])
    inherited = list(store.database.pools[os.getpid()])
    assert inherited

    child = os.fork()
    if child == 0:
        status = 1
        try:
            with store.database.connection() as connection:
                status = int(any(connection is other for other in inherited))
            store.add_users([user("b")])
        finally:
            os._exit(status)

    assert os.waitpid(child, 0)[1] == 0
    assert [row.name for row in store.all_users()] == ["a", "b"]


def test_process_that_was_forked_without_a_hook_opens_connections_of_its_own(store, monkeypatch):
    inherited = list(store.database.pools[os.getpid()])
    monkeypatch.setattr(os, "getpid", lambda: -1)  # uWSGI forks without running Python's hooks

    with store.database.connection() as connection:
        pass

    assert inherited and connection not in inherited
    store.close()


def test_unreferenced_store_closes_its_connections():
    store = open_store("jwtserver.db")
    (connection,) = store.database.pools[os.getpid()]

    del store
    gc.collect()

    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")
