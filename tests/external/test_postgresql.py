"""PostgreSQL: its URL, several servers that share it, and restarts."""

import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from webtest import TestApp

import jwtserver
from jwtserver import Rate, Settings, SettingsError, create_app, open_store
from support import KEY, PASSWORD, ROOT, bearer, sign_in, store_with, user


@pytest.fixture
def store(postgresql_url):
    store = store_with(postgresql_url, user("alice"))
    yield store
    store.close()


def test_url_without_psycopg_prints_one_line_with_the_remedy(tmp_path):
    result = subprocess.run(
        [sys.executable, "-S", str(ROOT / "jwtserver.py"), "--port", "0", "--database",
         "postgresql://h/x"],
        cwd=tmp_path, capture_output=True, text=True, timeout=20)

    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and "pip install 'psycopg[binary]'" in result.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("url", ["postgresql://h/x", "postgres://h/x"])
def test_url_needs_psycopg(url, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)  # so that it cannot be imported

    with pytest.raises(SettingsError, match="^JWTSERVER_DATABASE needs psycopg; run: pip"):
        open_store(url)


@pytest.mark.parametrize("url", [
    "postgresql://h/x?nope=1", "postgresql://[h/x", "postgresql://u:p%zzsecret@h/x",
    "postgresql://u:sec/secret@127.0.0.1:1/x", "postgresql://u:pa@secret@127.0.0.1:1/x"])
def test_url_that_is_malformed_names_the_setting_and_shows_no_password(url):
    pytest.importorskip("psycopg")

    with pytest.raises(SettingsError, match="^JWTSERVER_DATABASE must be ") as caught:
        open_store(url)

    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_url_with_a_space_shows_no_password():
    """psycopg with libpq 17 and earlier accepts it."""
    pytest.importorskip("psycopg")

    with pytest.raises(SettingsError, match="^JWTSERVER_DATABASE(: | must be )") as caught:
        open_store("postgresql://u:pa secret@127.0.0.1:1/x")

    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_server_that_is_not_there_is_one_line_without_the_password(free_port):
    pytest.importorskip("psycopg")

    words = "^JWTSERVER_DATABASE: database x at 127.0.0.1: "
    with pytest.raises(SettingsError, match=words) as caught:
        open_store(f"postgresql://u:sesame@127.0.0.1:{free_port()}/x")

    assert "\n" not in str(caught.value) and "sesame" not in str(caught.value)


def test_prepare_by_many_at_once_makes_the_tables_once(postgresql_url):
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(open_store, [postgresql_url] * 8))

    assert stores[0].is_empty()
    for store in stores:
        store.close()


def test_database_of_a_newer_version_is_refused(store, postgresql_url):
    with store.database.connection() as connection:
        connection.execute("UPDATE jwtserver SET version = 99")

    with pytest.raises(SettingsError, match="was written by a newer version of jwtserver"):
        open_store(postgresql_url)


def test_table_of_another_application_is_left_alone(postgresql_url):
    database = jwtserver._PostgreSQL(postgresql_url)
    with database.connection() as connection:
        connection.execute("CREATE TABLE users (theirs TEXT)")

    with pytest.raises(SettingsError, match='"users" already exists'):
        open_store(postgresql_url)

    with database.connection() as connection:
        assert connection.execute("SELECT * FROM users").fetchall() == []
    database.close()


def test_role_that_owns_nothing_is_told_so_in_one_line(postgresql_url, administrator):
    schema = postgresql_url.rpartition("%3D")[2]
    administrator.execute("CREATE ROLE stranger LOGIN")
    administrator.execute(f"GRANT USAGE ON SCHEMA {schema} TO stranger")

    with pytest.raises(SettingsError, match="; the role must own the database and its tables$"):
        open_store(postgresql_url.replace("postgres@", "stranger@"))


def test_failures_at_once_are_all_counted_without_deadlock(store):
    rate = Rate(1000, 900)
    attempts = [jwtserver.Attempt.of(name, address, rate)
                for name in "abcd" for address in ("192.0.2.1", "192.0.2.2")]
    for attempt in attempts:
        store.count_failure(attempt, 1_000_000)  # a wrong clock: they start again at 1

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: store.count_failure(attempts[number % 8], 0), range(160)))

    with store.database.connection() as connection:
        counted = connection.execute("SELECT count FROM failures").fetchall()
    assert sorted(counted) == [(20,)] * 8 + [(40,)] * 4 + [(80,)] * 2


def await_blocked(administrator):
    """Wait until a statement of another connection waits for a lock."""
    end = time.monotonic() + 10
    while not administrator.execute(
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'").fetchone():
        assert time.monotonic() < end


def test_unlock_locks_counters_in_the_order_of_their_ids(store, administrator):
    """A failure that is counted at the same time locks them in this order. Else both deadlock."""
    for number in range(10):
        attempt = jwtserver.Attempt.of("alice", f"192.0.2.{number}", Rate(1000, 900))
        store.count_failure(attempt, 0)
    unlock = threading.Thread(target=store.unlock, args=["alice"])

    with store.database.transaction() as connection:
        counters = "SELECT id FROM failures WHERE name <> '' OR id = ? ORDER BY id FOR UPDATE"
        connection.execute(f"{counters} LIMIT 1", [attempt.name])
        unlock.start()
        await_blocked(administrator)
        free = connection.execute(f"{counters} SKIP LOCKED", [attempt.name]).fetchall()
    unlock.join()

    assert len(free) == 11


def test_rename_to_a_name_that_is_added_at_the_same_time_is_refused(store, administrator):
    errors = []

    def rename():
        try:
            store.rename_user("alice", "carol")
        except jwtserver.Error as error:
            errors.append(error)

    thread = threading.Thread(target=rename)
    with store.database.transaction() as connection:
        connection.execute("INSERT INTO users VALUES ('carol', '', '', 0, 0, '', 0)")
        thread.start()
        await_blocked(administrator)
    thread.join()

    assert [type(error) for error in errors] == [jwtserver.NameTaken]
    assert store.find_user("alice")


def test_session_opened_while_the_user_is_disabled_does_not_stay(store):
    for _ in range(30):
        together = threading.Barrier(2)
        grant = jwtserver.new_grant(store.find_user("alice"), 1000, 0)

        def open_it():
            together.wait()
            store.open_session(grant, 0)

        thread = threading.Thread(target=open_it)
        thread.start()
        together.wait()
        store.disable_user("alice")
        thread.join()

        assert not store.is_open(grant.session.id, 0)
        store.enable_user("alice")


@pytest.mark.parametrize("system_has_poll", [True, False])
def test_connections_that_a_restart_has_cut_are_replaced_silently(
        own_postgresql, monkeypatch, system_has_poll):
    if not system_has_poll:  # Windows
        monkeypatch.delattr(selectors, "PollSelector")
    store = open_store(own_postgresql.url)
    with store.database.connection(), store.database.connection():
        pass  # so that two are idle

    own_postgresql.stop()
    own_postgresql.start()

    for _ in range(4):
        assert store.find_user("alice") is None
    store.close()


def test_connection_that_was_cut_is_not_used_after_another_block_takes_the_others(store):
    database = store.database
    with database.connection() as usable, database.connection() as cut:
        (process_id,) = cut.execute("SELECT pg_backend_pid()").fetchone()
    usable.execute("SELECT pg_terminate_backend(?, 5000)", [process_id])
    earlier, later = database.connection(), database.connection()

    with later, earlier as connection:
        rows = connection.execute("SELECT 1").fetchall()

    assert rows == [(1,)]


@pytest.fixture
def nodes(store, postgresql_url, start, free_port, folder):
    """Two servers with a database and a key in common."""
    def node():
        port = free_port()
        return start([sys.executable, "jwtserver.py", "--port", str(port)], port,
                     JWTSERVER_DATABASE=postgresql_url, JWTSERVER_LOGIN_FAILURES="3/900")

    return node(), node()


def test_servers_share_users_sessions_and_lock_outs(nodes, folder):
    here, there = nodes
    answer = here.sign_in()[2]

    assert there("/protected", token=answer["token"])[0] == 200
    status, _, newer = there("/refresh", {"refresh_token": answer["refresh_token"]})
    assert status == 200
    assert there("/logout", token=newer["token"], method="POST")[0] == 204
    for node in nodes:
        assert node("/protected", token=answer["token"])[0] == 401
        assert node("/protected", token=newer["token"])[0] == 401
        assert node("/refresh", {"refresh_token": newer["refresh_token"]})[0] == 401

    statuses = [node.sign_in("wrong")[0] for node in (here, there, here, there, here)]
    assert statuses == [401, 401, 401, 429, 429]
    assert there.sign_in()[0] == 429
    assert not (folder / "jwtserver.db-wal").exists()


class Load:
    """Clients that sign in, refresh and ask without pause, and record what was acknowledged."""

    def __init__(self, client):
        self.client, self.stopped, self.there_again = client, False, False
        self.statuses, self.sessions = [], []
        self.begun_then = []  # the statuses of requests that have begun since
        self.threads = [threading.Thread(target=work) for work in (
            self.sign_in, self.refresh, self.ask, self.ask)]

    def send(self, *request, **options):
        there_again = self.there_again
        status, _, answer = self.client(*request, **options)
        self.statuses.append(status)
        if there_again:
            self.begun_then.append(status)
        return answer if status == 200 else None

    def sign_in(self):
        while not self.stopped:
            answer = self.send("/authenticate", {"username": "alice", "password": PASSWORD})
            if answer:
                self.sessions.append(answer["token"])

    def refresh(self):
        self.latest = self.client.sign_in()[2]
        while not self.stopped:
            answer = self.send("/refresh", {"refresh_token": self.latest["refresh_token"]})
            self.latest = answer or self.latest

    def ask(self):
        token = self.client.sign_in()[2]["token"]
        while not self.stopped:
            self.send("/protected", token=token)

    def await_more(self, status):
        """Wait until twenty more requests have had this status."""
        seen = len(self.statuses)
        while self.statuses[seen:].count(status) < 20:
            assert any(thread.is_alive() for thread in self.threads)
            threading.Event().wait(0.005)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_restart_of_the_database_under_load_causes_only_503s(
    mode, own_postgresql, start, free_port,
):
    database, port = own_postgresql, free_port()
    store_with(database.url, user("alice")).close()
    load = Load(start([sys.executable, "jwtserver.py", "--port", str(port)], port,
                      JWTSERVER_DATABASE=database.url))
    for thread in load.threads:
        thread.start()
    try:
        load.await_more(200)
        database.stop(mode)
        load.await_more(503)
        database.start()
        load.await_more(200)
        load.there_again = True
        load.await_more(200)
    finally:
        load.stopped = True
        for thread in load.threads:
            thread.join()

    assert set(load.statuses) == {200, 503}
    assert set(load.begun_then) == {200}
    for token in load.sessions:
        assert load.client("/protected", token=token)[0] == 200
    latest = {"refresh_token": load.latest["refresh_token"]}
    assert load.client("/refresh", latest)[0] == 200


# --- Credentials


def test_password_and_service_come_from_the_environment(own_postgresql, monkeypatch, tmp_path):
    require_passwords(own_postgresql, "sesame")
    host = f"127.0.0.1:{own_postgresql.port}"
    with pytest.raises(SettingsError, match="no password supplied"):
        open_store(f"postgresql://postgres@{host}/postgres")

    monkeypatch.setenv("PGPASSWORD", "sesame")
    open_store(f"postgresql://postgres@{host}/postgres").close()

    (tmp_path / "services").write_text(
        f"[sign-in]\nhost=127.0.0.1\nport={own_postgresql.port}\n"
        "user=postgres\ndbname=postgres\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    monkeypatch.setenv("PGSERVICE", "sign-in")
    store = open_store("postgresql://")
    assert store.name == "database postgres at 127.0.0.1"
    store.close()
    open_store("postgresql:///?service=sign-in").close()


def require_passwords(server, password):
    connection = jwtserver._PostgreSQL(server.url).connect()
    connection.execute(f"ALTER ROLE postgres PASSWORD '{password}'")
    connection.close()
    access = server.folder / "data" / "pg_hba.conf"
    access.write_text(access.read_text().replace("trust", "scram-sha-256"))
    server.stop()
    server.start()


# --- PgBouncer, fail-over


def make_client(url, store=None):
    settings = Settings(database=url, secret=KEY, pbkdf2_iterations=1000)
    return TestApp(create_app(settings, store=store))


def statuses_of(client, answer):
    """The status of a sign-in, a refresh, a guarded request and a health check."""
    requests = [sign_in(client, status="*"),
                client.post_json(
                    "/refresh", {"refresh_token": answer["refresh_token"]}, status="*"),
                client.get("/protected", headers=bearer(answer["token"]), status="*"),
                client.get("/health", status="*")]
    return [response.status_int for response in requests]


@pytest.fixture
def pgbouncer(postgresql, administrator, free_port):
    """The URL of a new database through a PgBouncer whose clients share two connections."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if not program:
        pytest.skip("PgBouncer is not installed")
    administrator.execute("CREATE DATABASE bouncing")
    port, folder = free_port(), Path(tempfile.mkdtemp(prefix="jwtserver-test-"))
    (folder / "pgbouncer.ini").write_text(f"""
[databases]
bouncing = host=127.0.0.1 port={postgresql.port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
""")
    folder.chmod(0o755)
    account = ["--user=nobody"] if os.getuid() == 0 else []
    process = subprocess.Popen([program, *account, str(folder / "pgbouncer.ini")],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    await_port(port)
    yield f"postgresql://postgres@127.0.0.1:{port}/bouncing"
    process.terminate()
    process.wait()
    shutil.rmtree(folder)
    administrator.execute("DROP DATABASE bouncing WITH (FORCE)")


def await_port(port):
    end = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            assert time.monotonic() < end
            threading.Event().wait(0.02)


def test_pgbouncer_that_changes_the_connection_between_transactions_fails_no_request(pgbouncer):
    """A third of the sign-ins failed: a prepared statement belongs to one connection."""
    store_with(pgbouncer, user("alice")).close()
    client = make_client(pgbouncer)

    def work(number):
        answer = sign_in(client).json
        return [statuses_of(client, answer) for _ in range(5)]

    with ThreadPoolExecutor(8) as pool:
        rounds = [statuses for work in pool.map(work, range(8)) for statuses in work]

    assert {status for statuses in rounds for status in statuses} == {200}


def test_connection_without_a_pooler_prepares_its_statements(store):
    """Without them, a look-up costs the server three times as much."""
    with store.database.connection() as connection:
        for _ in range(7):
            connection.execute("SELECT 1 + ?", [1])
        rows = connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchall()

    assert rows == [(1,)]


def test_fail_over_to_a_standby_causes_only_503s(start_postgresql):
    primary = start_postgresql()
    store_with(primary.url, user("alice")).close()
    standby = start_postgresql(primary)
    hosts = f"127.0.0.1:{standby.port},127.0.0.1:{primary.port}"  # the read-only one first
    client = make_client(f"postgresql://postgres@{hosts}/postgres")
    answer = sign_in(client).json

    assert statuses_of(client, answer) == [200] * 4
    primary.stop()  # after the standby has everything
    assert statuses_of(client, answer) == [503] * 4
    standby.promote()
    assert statuses_of(client, answer) == [200] * 4


def test_database_that_becomes_read_only_causes_only_503s(store, postgresql_url, administrator):
    client = make_client(postgresql_url, store)
    answer = sign_in(client).json

    administrator.execute("ALTER ROLE postgres SET default_transaction_read_only = on")
    store.close()
    statuses = statuses_of(client, answer)
    administrator.execute("ALTER ROLE postgres RESET default_transaction_read_only")

    assert statuses == [503] * 4
    assert statuses_of(client, answer) == [200] * 4


def test_pooled_connection_that_became_read_only_fails_one_write(store, postgresql_url):
    """It may lead to a server that is a standby since a fail-over."""
    client = make_client(postgresql_url, store)
    answer = sign_in(client).json
    with store.database.connection() as connection:
        connection.execute("SET default_transaction_read_only = on")

    assert statuses_of(client, answer) == [503, 200, 200, 200]


def test_application_without_its_database_answers_503_until_it_is_back(
    own_postgresql, monkeypatch, caplog,
):
    """It answered 500, with a traceback, because it is built at the first request."""
    monkeypatch.setenv("JWTSERVER_DATABASE", own_postgresql.url)
    monkeypatch.setattr(jwtserver, "_built", None)
    client = TestApp(jwtserver.application)

    own_postgresql.stop()
    response = client.get("/health", status=503)
    own_postgresql.start()

    assert response.json == {"success": False, "error": "The database cannot answer"}
    assert "database postgres at 127.0.0.1: " in caplog.text
    client.get("/health", status=200)
    jwtserver._built = None
