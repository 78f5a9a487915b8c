"""Users in the database: no acknowledged change is lost, and every failure is one line."""

import gc
import os
import re
import signal
import sqlite3
import sys
import threading
import time
from pathlib import Path

import pytest

import jwtserver
from jwtserver import Error, Rate, SettingsError, StoreError, clean_name, open_store
from support import for_each, python, python_at_once, standard_input, store_with, user


USERS = []  # each test adds its own

# --- Names


@for_each("name", [
    "a", "a" * 150, "Zoë", "jo@example.org", "o'neil", "山田", "a b", "-", "🙂" * 150])
def test_clean_name_of_a_valid_name_is_the_name(name):
    assert clean_name(name) == name


@for_each("name", [
    "", "a" * 151, " a", "a ", "\ta", "a\xa0", "\u3000", "a\0b", "a\nb", "a\x1bb", "a\x7fb",
    "a\x85b", "a\ud800b", "a\u2028b", "a\u2029b", "e\u0301" * 151])
def test_clean_name_of_an_invalid_name_raises(name):
    with pytest.raises(ValueError, match="^a user name must "):
        clean_name(name)


@for_each("character", [
    "\u200b", "\xad", "\u202e", "\u200d", "\ufeff", "\u2066", "\U000e0041", "\u180e",  # format
    "\u034f", "\u115f", "\u1160", "\u17b4", "\u180b", "\u3164", "\uffa0", "\ufe0f",  # not displayed
    "\U000e0100", "\u2065", "\ufff0", "\U000e0fff",
    "\u2800", "\xa0", "\u2003", "\u3000",  # blank
    "\ue000", "\U0010fffd", "\ufdd0", "\uffff", "\u0378",  # private use and not assigned
])
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
    assert connection.execute("PRAGMA user_version").fetchone() == (len(jwtserver._MIGRATIONS),)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


@pytest.mark.parametrize("error", [PermissionError(1, "Operation not permitted"),
                                   OSError(95, "Operation not supported"), AttributeError("link")])
def test_files_are_created_on_a_file_system_without_hard_links(monkeypatch, error):
    def link(source, target):
        raise error

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr("sys.stdin", standard_input("correct horse\n"))

    assert jwtserver.main(["user", "add", "alice", "--password-stdin"]) == 0
    assert jwtserver.main(["token", "issue", "alice"]) == 0

    key = Path("jwtserver.key").read_bytes()
    assert [os.stat(name).st_mode & 0o777 for name in ("jwtserver.db", "jwtserver.key")] == [
        0o600, 0o600]
    assert sorted(path.name for path in Path().glob("jwtserver.key*")) == ["jwtserver.key"]
    jwtserver._create_file(Path("jwtserver.key"), [b"another"])  # as a process that came second
    assert Path("jwtserver.key").read_bytes() == key
    assert sorted(path.name for path in Path().glob("jwtserver.key*")) == ["jwtserver.key"]


def write(*statements):
    connection = sqlite3.connect("jwtserver.db")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.sqlite
def test_open_store_again_keeps_the_locks_of_this_process(store):
    """Closing the file would drop them, and another process would delete the log."""
    store.ping()
    open_store("jwtserver.db")

    with python("import jwtserver as j; j.open_store('jwtserver.db').close()") as other:
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
                   f"PRAGMA user_version = {len(jwtserver._MIGRATIONS) + 1}"), "newer version"),
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
    lines = python_at_once(8, "print(jwtserver.open_store('jwtserver.db').is_empty())")

    assert lines == ["True"] * 8


@pytest.mark.sqlite
def test_migration_after_another_process_has_done_it_changes_nothing(store):
    """Another process may migrate between the first look at the version and the lock."""
    database = store.database

    jwtserver._Database.migrate(database, jwtserver._MIGRATIONS)

    with database.connection() as connection:
        assert database.read_version(connection) == len(jwtserver._MIGRATIONS)


def test_migration_waits_longer_than_a_request_for_another_process(monkeypatch):
    """A million sessions take nine seconds. The second process failed after five."""
    monkeypatch.setattr(jwtserver, "BUSY_TIMEOUT", 0.05)
    database = jwtserver._SQLite("jwtserver.db")
    database.migrate(jwtserver._MIGRATIONS[:1])
    writer = database.connect()
    writer.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.2, writer.execute, ["COMMIT"])
    release.start()

    store = open_store("jwtserver.db")

    assert store.is_empty()
    release.join()
    for opened in (store, database, writer):
        opened.close()


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

    output, errors = python(code).communicate()

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
    process = python(code)
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

    with pytest.raises(StoreError, match="jwtserver.db: No such file or directory"):
        store.ping()

    assert not os.path.exists("jwtserver.db")


# --- Another file in the place of the database


def replace_database(*names):
    """Put another database with these users into the place of jwtserver.db."""
    store_with("other.db", *map(user, names)).close()
    os.replace("other.db", "jwtserver.db")


def names_in(store):
    return [row.name for row in store.all_users()]


@pytest.mark.sqlite
def test_file_that_replaces_the_database_is_used_from_now_on(store, caplog):
    """The old users stayed. With only a new connection, SQLite applies the old log to the file."""
    store.add_users([user(f"old{number}") for number in range(200)])

    replace_database("new")

    store.ping()
    assert names_in(store) == ["new"] and store.find_user("old1") is None
    assert caplog.messages == [f"Another file has replaced {store.name}, and is used from now on"]
    store.add_users([user("newer")])
    store.close()
    connection = sqlite3.connect("jwtserver.db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("SELECT name FROM users").fetchall() == [("new",), ("newer",)]
    connection.close()


@pytest.mark.sqlite
def test_file_that_replaces_the_target_of_a_link_is_used_from_now_on(store):
    store.close()
    os.symlink("jwtserver.db", "link.db")
    linked = open_store("link.db")
    linked.add_users([user("old")])

    replace_database("new")

    assert names_in(linked) == ["new"]
    linked.close()


@pytest.mark.sqlite
def test_sessions_of_a_replaced_database_end_half_a_second_later(store, monkeypatch):
    store.add_users([user("alice")])
    grant = jwtserver.new_grant(user("alice"), 60, 0)
    store.open_session(grant, 0)
    assert store.is_open(grant.session.id, 0)
    replace_database("alice")

    monkeypatch.setattr(jwtserver, "FILE_INTERVAL", -1)

    assert not store.is_open(grant.session.id, 0)


@pytest.mark.sqlite
def test_file_that_replaces_the_database_is_used_by_all_processes(store):
    code = """
import sys, jwtserver
store = jwtserver.open_store("jwtserver.db")
for line in sys.stdin:
    store.add_users([jwtserver.User(line.strip(), "hash", "", 0, 0)])
    print(*(user.name for user in store.all_users()), flush=True)
store.close()
"""
    store.add_users([user("old")])
    processes = [python(code) for _ in range(2)]

    def names_of(process, added):
        process.stdin.write(added + "\n")
        process.stdin.flush()
        return process.stdout.readline().split()

    for number, process in enumerate(processes):
        assert "old" in names_of(process, f"older{number}")
    replace_database("new")

    assert names_in(store) == ["new"]
    assert [names_of(process, f"x{number}") for number, process in enumerate(processes)] == [
        ["new", "x0"], ["new", "x0", "x1"]]
    assert names_in(store) == ["new", "x0", "x1"]
    for process in processes:
        assert process.communicate()[0] == ""


@pytest.mark.sqlite
def test_stores_that_see_a_replaced_database_one_after_the_other_keep_what_was_added(store):
    other = open_store("jwtserver.db")
    store.add_users([user("old")])
    assert names_in(other) == ["old"]

    with other.database.connection():  # in use meanwhile
        replace_database("new")
        store.add_users([user("newer")])

    assert names_in(other) == names_in(store) == ["new", "newer"]
    other.close()


@pytest.mark.sqlite
def test_new_connection_to_a_file_that_was_replaced_just_now_is_used(store):
    store.ping()
    store.close()
    replace_database("new")

    assert not store.is_open("x", 0)
    assert names_in(store) == ["new"]


@pytest.mark.sqlite
def test_database_that_was_moved_away_and_back_keeps_its_log(store):
    store.add_users([user("alice")])
    os.rename("jwtserver.db", "aside.db")
    with pytest.raises(StoreError, match="jwtserver.db: No such file or directory"):
        store.ping()

    os.rename("aside.db", "jwtserver.db")

    store.ping()
    assert names_in(store) == ["alice"]


@pytest.mark.sqlite
def test_replaced_database_that_is_locked_gives_up(store, monkeypatch):
    store.close()
    monkeypatch.setattr(jwtserver, "BUSY_TIMEOUT", 0.05)
    writer = store.database.connect()
    store.ping()
    writer.execute("BEGIN IMMEDIATE")
    replace_database("new")

    with pytest.raises(StoreError, match="jwtserver.db: database is locked"):
        store.ping()

    writer.close()


# --- Lock-outs


def fail(store, name, address, times, rate=Rate(5, 900)):
    for _ in range(times):
        store.count_failure(jwtserver.Attempt.of(name, address, rate), time.time())


def is_locked(store, name, address):
    try:
        store.check_attempt(jwtserver.Attempt.of(name, address, Rate(5, 900)), time.time())
    except jwtserver.LockedOut:
        return True
    return False


def test_user_unlock_ends_the_lock_outs_of_one_user(store, capsys, caplog):
    store.add_users([user("alice"), user("bob")])
    for address in range(20):
        fail(store, "alice", f"192.0.2.{address}", 5)
    fail(store, "bob", "192.0.2.1", 5)
    assert is_locked(store, "alice", "192.0.2.1") and is_locked(store, "alice", "192.0.2.99")

    assert jwtserver.main(["user", "unlock", "alice"]) == 0

    assert capsys.readouterr().out == (
        "Ended the lock-outs of alice. An address with too many failures stays locked out, for all"
        " users\n")
    assert 'user_unlock user="alice"' in caplog.messages
    assert not is_locked(store, "alice", "192.0.2.1")
    assert not is_locked(store, "alice", "192.0.2.99")
    assert is_locked(store, "bob", "192.0.2.1")


def test_user_unlock_of_an_unknown_user_is_refused(store, capsys):
    assert jwtserver.main(["user", "unlock", "nobody"]) == 1

    assert capsys.readouterr().err.startswith("jwtserver: there is no user 'nobody' in ")


@pytest.mark.parametrize("addresses, times", [(1, 5), (20, 5)], ids=["address", "everywhere"])
@pytest.mark.parametrize("command", [
    "password zoe --password-stdin", "enable zoe", "add zoe --password-stdin"])
def test_change_of_a_user_who_is_locked_out_says_so(
    store, capsys, monkeypatch, command, addresses, times,
):
    store.add_users([user("bob"), *([] if "add" in command else [user("zoe")])])
    for address in range(addresses):
        fail(store, "zoe", f"192.0.2.{address}", times)
    monkeypatch.setattr("sys.stdin", standard_input("new\n"))

    jwtserver.main(["user", *command.split()])

    lines = capsys.readouterr().out.splitlines()
    program = re.escape(jwtserver._program(jwtserver.Settings.from_environ(os.environ)))
    assert re.fullmatch("zoe is locked out for (900|8[0-9]{2}) seconds, at one address or more. To"
                        f" end this: {program} user unlock zoe", lines[1])


@pytest.mark.parametrize("times, rate", [(4, Rate(5, 900)), (5, Rate(5, 31622400))])
def test_change_of_a_user_who_is_not_locked_out_says_nothing_of_it(store, capsys, times, rate):
    """In the second case, a wrong clock has written the counter."""
    store.add_users([user("zoe")])
    fail(store, "zoe", "192.0.2.1", times, rate)

    jwtserver.main(["user", "enable", "zoe"])

    assert capsys.readouterr().out == "Enabled the user zoe\n"


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


def test_transaction_that_our_own_error_ends_is_rolled_back_on_the_same_connection(store):
    store.add_users([user("alice")])
    idle = list(store.database.pools[os.getpid()])

    with pytest.raises(Error, match="the user 'alice' exists already"):
        store.add_users([user("new"), user("alice")])

    assert store.database.pools[os.getpid()] == idle and len(idle) == 1
    assert [found.name for found in store.all_users()] == ["alice"]


def test_other_error_in_a_block_closes_its_connection(store):
    with pytest.raises(KeyError), store.database.connection() as connection:
        raise KeyError

    assert store.database.pools[os.getpid()] == []
    with pytest.raises(store.database.driver_error, match="closed"):
        connection.execute("SELECT 1")


@pytest.mark.sqlite
def test_other_error_in_a_look_up_closes_its_connection(store):
    with pytest.raises(UnicodeEncodeError):
        store.database.fetch_one("SELECT ?", ["\udcff"])

    assert store.database.pools[os.getpid()] == []


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
    store.ping()
    inherited = list(store.database.pools[os.getpid()])
    monkeypatch.setattr(os, "getpid", lambda: -1)  # uWSGI forks without running Python's hooks

    with store.database.connection() as connection:
        pass

    assert inherited and connection not in inherited
    store.close()


def test_unreferenced_store_closes_its_connections():
    store = open_store("jwtserver.db")
    with store.database.connection() as connection:
        pass

    del store
    gc.collect()

    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")
