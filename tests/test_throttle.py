"""Bounds on guessing and flooding: the lock-out, the hash queue."""

import os
import threading

import pytest

import jwtserver
from jwtserver import Rate, open_store
from support import PASSWORD, for_each, user

USERS = [user("alice"), user("bob"), user("Zoë")]
LOCKED = {"success": False, "message": "Too many failed sign-ins"}


@pytest.fixture
def client(make):
    return make(login_failures=Rate(3, 60))


def sign_in(client, name="alice", password=PASSWORD, address="192.0.2.1", **options):
    return client.post_json(
        "/authenticate", {"username": name, "password": password},
        extra_environ={"REMOTE_ADDR": address}, status="*", **options)


def fail(client, times, name="alice", address="192.0.2.1"):
    return [sign_in(client, name, "wrong", address).status_int for _ in range(times)]


# --- Lock-out


def test_failures_up_to_the_limit_lock_out_even_the_right_password(client, caplog):
    assert fail(client, 4) == [401, 401, 401, 429]

    response = sign_in(client)

    assert (response.status_int, response.json) == (429, LOCKED)
    assert response.headers["Retry-After"] == "60"
    assert 'locked_out user="alice" address="192.0.2.1" locked="user at address"' in caplog.text


def test_lockout_ends_a_period_after_the_first_failure(client, clock):
    fail(client, 1)
    clock.now += 30.5
    fail(client, 9)
    assert sign_in(client).headers["Retry-After"] == "30"
    clock.now += 29.5

    assert fail(client, 4) == [401, 401, 401, 429]


def test_lockout_hashes_nothing(client, monkeypatch):
    fail(client, 3)
    monkeypatch.setattr(jwtserver, "verify_password", None)

    assert sign_in(client).status_int == 429


def test_lockout_written_by_a_clock_that_was_ahead_ends_with_it(client, clock):
    clock.now += 365 * 86400
    assert fail(client, 4) == [401, 401, 401, 429]

    clock.now -= 365 * 86400

    assert fail(client, 4) == [401, 401, 401, 429]
    clock.now += 60
    assert sign_in(client).status_int == 200


def test_lockout_is_of_a_user_at_an_address(client):
    fail(client, 3)

    assert sign_in(client, address="192.0.2.2").status_int == 200
    assert sign_in(client, "bob").status_int == 200
    assert sign_in(client).status_int == 429


@pytest.mark.parametrize("name", ["nobody", "x" * 60_000, " a", "\0", "a/b"])
def test_lockout_of_an_unknown_name_is_the_same(client, name):
    assert fail(client, 5, name) == [401, 401, 401, 429, 429]


def test_name_that_takes_long_to_normalize_is_truncated_first(client, monkeypatch):
    """NFC takes quadratic time: 64 KiB would delay all other requests by seconds."""
    lengths = []
    normalize = jwtserver.unicodedata.normalize

    def watched(form, text):
        lengths.append(len(text))
        return normalize(form, text)

    monkeypatch.setattr("unicodedata.normalize", watched)
    name = "a" + "\u0345" * 5000 + "\u0316" * 5000

    assert fail(client, 4, name) == [401, 401, 401, 429]

    assert max(lengths) <= jwtserver.MAX_NAME_INPUT


def test_lockout_counts_all_unicode_forms_of_a_name_together(client):
    assert fail(client, 2, "Zoe\u0308") + fail(client, 2, "Zo\xeb") == [401, 401, 401, 429]


def test_success_clears_the_failures_of_that_user_at_that_address(client):
    fail(client, 2)
    fail(client, 2, "bob")

    assert sign_in(client).status_int == 200

    assert fail(client, 4) == [401, 401, 401, 429]
    assert fail(client, 2, "bob") == [401, 429]


def test_address_is_locked_out_at_ten_times_the_limit_over_all_names(client, caplog):
    assert {code for name in range(15) for code in fail(client, 2, f"user{name}")} == {401}
    sign_in(client, address="192.0.2.9")

    assert sign_in(client).status_int == 429
    assert caplog.text.rstrip().endswith(' locked="address"')
    assert sign_in(client, address="192.0.2.2").status_int == 200


def test_success_does_not_clear_the_failures_of_an_address(client):
    for name in range(15):
        fail(client, 2, f"user{name}")
        status = sign_in(client, "bob").status_int

    assert status == 429


def test_name_is_locked_out_at_twenty_times_the_limit_over_all_addresses(client, caplog):
    codes = {code for host in range(20) for code in fail(client, 3, address=f"192.0.2.{host}")}
    assert codes == {401}

    assert sign_in(client, address="198.51.100.7").status_int == 429
    assert caplog.text.rstrip().endswith(' locked="user"')
    assert sign_in(client, "bob", address="198.51.100.7").status_int == 200


def test_addresses_of_one_ipv6_network_count_as_one(client):
    codes = [fail(client, 1, address=f"2001:db8::{host:x}") for host in range(4)]

    assert codes == [[401], [401], [401], [429]]
    assert sign_in(client, address="2001:db8:0:1::1").status_int == 200


def test_ipv4_addresses_on_a_dual_stack_socket_count_separately(client):
    codes = [fail(client, 2, address=f"::ffff:192.0.2.{host}") for host in range(4)]

    assert codes == [[401, 401]] * 4
    assert fail(client, 2, address="192.0.2.1") == [401, 429]


@for_each("address", ["fe80::1%eth0", "fe80::1%eth1", "fe80::2"])
def test_zone_of_an_address_does_not_change_the_network(address):
    assert jwtserver._network(address) == "fe80::/64"


def test_disabled_user_is_counted_as_a_wrong_password(client):
    jwtserver.main(["user", "disable", "alice"])

    assert [sign_in(client).status_int for _ in range(4)] == [401, 401, 401, 429]


def test_guesses_at_once_reveal_no_more_than_guesses_in_turn(make, monkeypatch):
    client = make(login_failures=Rate(3, 60))
    monkeypatch.setitem(jwtserver._hash_queues, os.getpid(), jwtserver._HashQueue(9))
    verify_password, all_there, codes = jwtserver.verify_password, threading.Barrier(9), []

    def verify_together(*arguments, **options):
        all_there.wait()
        return verify_password(*arguments, **options)

    monkeypatch.setattr(jwtserver, "verify_password", verify_together)
    threads = [
        threading.Thread(target=lambda: codes.extend(fail(client, 1))) for _ in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(codes) == [401] * 3 + [429] * 6


def test_right_password_after_the_limit_was_reached_meanwhile_is_locked_out(client, monkeypatch):
    verify_password = jwtserver.verify_password

    def verify_late(*arguments, **options):
        monkeypatch.setattr(jwtserver, "verify_password", verify_password)
        fail(client, 3)
        return verify_password(*arguments, **options)

    monkeypatch.setattr(jwtserver, "verify_password", verify_late)

    assert sign_in(client).status_int == 429


def test_expired_failures_are_swept_a_few_at_a_time(client, clock, monkeypatch, database):
    monkeypatch.setattr(jwtserver, "SWEEP_ROWS", 4)
    store = open_store(database)

    def count():
        with store.database.connection() as connection:
            return connection.execute("SELECT count(*) FROM failures").fetchone()[0]

    for name in "cde":
        fail(client, 1, name, f"192.0.2.{ord(name)}")
    assert count() == 9
    clock.now += 60

    fail(client, 1, "f")
    assert count() == 9 - 4 + 3
    fail(client, 1, "f")
    assert count() == 9 - 8 + 3
    store.close()


# --- The hash queue


class Queue(jwtserver._HashQueue):
    """A hash queue that tells when a sign-in has begun to wait."""

    def __init__(self, cores):
        super().__init__(cores)
        self.began_to_wait = threading.Semaphore(0)

    def _join(self, network):
        turn = super()._join(network)
        if not self._free_cores or turn != min(self._waiting):
            self.began_to_wait.release()
        return turn


@pytest.fixture
def queue(monkeypatch):
    """A queue for 8 sign-ins and one core, which this process uses."""
    monkeypatch.setattr(jwtserver, "MAX_WAITING_HASHES", 8)
    queue = Queue(1)
    monkeypatch.setitem(jwtserver._hash_queues, os.getpid(), queue)
    return queue


class SignIns:
    """Sign-ins in threads of their own."""

    def __init__(self, client, queue):
        self.client, self.queue = client, queue
        self.threads, self.codes = [], []

    def wait(self, *addresses):
        """Start a sign-in from each address, when the one before waits for the core."""
        for address in addresses:
            self.threads.append(threading.Thread(target=self._sign_in, args=[address]))
            self.threads[-1].start()
            assert self.queue.began_to_wait.acquire(timeout=10)

    def _sign_in(self, address):
        self.codes.append(sign_in(self.client, address=address).status_int)

    def finish(self):
        for thread in self.threads:
            thread.join()
        return self.codes


@pytest.fixture
def others(client, queue):
    others = SignIns(client, queue)
    yield others
    assert set(others.finish()) <= {200}
    assert (queue._waiting, queue._free_cores) == ([], 1)


def test_sign_ins_of_one_network_beyond_its_share_are_refused_at_once(client, queue, others):
    with queue.core("192.0.2.9"):
        others.wait(*["192.0.2.1"] * 4)
        refused = sign_in(client)

    assert refused.status_int == 503
    assert refused.json == {"success": False, "message": "Too many sign-ins at once"}
    assert refused.headers["Retry-After"] == "10"
    assert others.finish() == [200] * 4
    assert sign_in(client).status_int == 200


def test_hash_queue_keeps_places_for_networks_that_have_none(client, queue, others):
    def refused(address):
        return sign_in(client, address=address).status_int == 503

    with queue.core("192.0.2.9"):
        others.wait(*["192.0.2.1"] * 4, *["192.0.2.2"] * 2)
        assert refused("192.0.2.1") and refused("192.0.2.2")
        others.wait("192.0.2.3", "192.0.2.4")
        assert refused("192.0.2.5")


def test_hash_queue_counts_an_ipv6_network_as_one(client, queue, others):
    with queue.core("192.0.2.9"):
        others.wait(*[f"2001:db8::{host}" for host in range(4)])
        assert sign_in(client, address="2001:db8::ffff").status_int == 503
        others.wait("2001:db8:0:1::1", "::ffff:192.0.2.1")


def test_hash_queue_serves_the_networks_in_turn(queue):
    served = []

    def hash_for(network):
        with queue.core(network):
            served.append(network)

    threads = [threading.Thread(target=hash_for, args=[network]) for network in "aaabbc"]
    with queue.core("a"):
        for thread in threads:
            thread.start()
            assert queue.began_to_wait.acquire(timeout=10)
    for thread in threads:
        thread.join()

    assert served == ["a", "b", "c", "a", "b", "a"]


def test_hash_queue_serves_a_new_network_in_the_round_that_has_begun(queue):
    """Networks that arrive one after the other do not delay a hash that waits."""
    with queue.core("x"):
        for network in ("a", "a", "b", "a"):
            queue._join(network)
        assert [turn[2] for turn in sorted(queue._waiting)] == ["a", "b", "a", "a"]
        queue._round = 1
        queue._join("c")
        assert [turn[2] for turn in sorted(queue._waiting)] == ["a", "b", "a", "c", "a"]


def test_wait_for_a_core_that_is_interrupted_leaves_the_queue(queue, monkeypatch):
    def interrupt(predicate):
        raise KeyboardInterrupt

    with queue.core("a"):
        other = queue._join("b")
        with monkeypatch.context() as patch:
            patch.setattr(queue._changed, "wait_for", interrupt)
            for network in "abc":
                with pytest.raises(KeyboardInterrupt), queue.core(network):
                    pass
        assert queue._waiting == [other]
        queue._waiting.remove(other)
    with queue.core("a"):
        assert (queue._waiting, queue._free_cores) == ([], 0)
    assert (queue._waiting, queue._free_cores) == ([], 1)
