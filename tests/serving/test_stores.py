"""Every store of live state, one behaviour; and what only one of them can be asked."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis_server import RedisServer

from serving.stores import Appended, Event, LiveHistory, StoreError, open_store
from serving.stores.sqlite import SqliteStore

# Acknowledges every event on a line of its own, from several threads at once, until it is killed.
_WRITER = """
import sys, threading
from serving.stores import Event, open_store
store = open_store(sys.argv[1])
def write(thread):
    for n in range(100_000):
        store.append([Event(f"user-{thread}", f"item-{n}", float(n))])
        sys.stdout.write(f"user-{thread} item-{n}\\n")
        sys.stdout.flush()
for thread in range(4):
    threading.Thread(target=write, args=(thread,)).start()
"""


class StoreBehaviour:
    """A subclass says where a fresh store is: the fixture ``place``."""

    @pytest.fixture
    def store(self, place):
        store = open_store(place)
        yield store
        store.close()

    def items(self, store, user, limit=1000):
        return list(store.latest([user], limit)[0].items)

    def test_events_come_back_in_order_of_time_and_at_one_time_in_order_of_arrival(self, store):
        store.append([Event("u", "late", 30.0), Event("u", "b", 20.0), Event("u", "a", 20.0), Event("v", "x", 1.0)])
        store.append([Event("u", "early", 10.5)])
        assert self.items(store, "u") == ["early", "b", "a", "late"]
        assert store.latest(["v", "u", "nobody"], 2) == [
            LiveHistory(("x",)),
            LiveHistory(("a", "late")),
            LiveHistory(()),
        ]

    def test_a_repeated_key_is_a_duplicate_for_its_user_alone(self, store):
        event = Event("u", "a", 1.0, key="k")
        assert store.append([event, event]) == Appended(accepted=1, duplicates=1)
        assert store.append([event, Event("v", "a", 1.0, key="k")]) == Appended(accepted=1, duplicates=1)
        assert store.append([Event("u", "a", 1.0)] * 2) == Appended(accepted=2, duplicates=0)
        assert store.append([Event("u", "b", 2.0, key="")] * 2) == Appended(accepted=1, duplicates=1)
        assert self.items(store, "u") == ["a", "a", "a", "b"]
        assert store.append([]) == Appended(0, 0)

    def test_ids_are_any_text(self, store):
        odd = ["", " ", "a:b", "\x00", "ü", "\N{GRINNING FACE}", "'; DROP TABLE events; --", "{x}", "x" * 500]
        for user in odd:
            store.append([Event(user, item, 1.0, key=item) for item in odd])
        for user in odd:
            assert self.items(store, user) == odd
            store.record("put", user, payload=user)
        assert [change.id for change in store.changes(0)] == odd
        assert [change.payload for change in store.changes(0)] == odd

    def test_pages_joined_are_the_history_backwards(self, store):
        times = [5.0] * 7 + [4.0, 6.0, 6.0, 1e9 + 1 / 3, 0.0]
        store.append([Event("u", f"item-{n}", time_) for n, time_ in enumerate(times)])
        for limit in (1, 2, 3, 100):
            seen, before = [], None
            while page := store.page("u", limit, before):
                assert len(page) <= limit
                seen += [event.item_id for event in page]
                before = page[-1].position
            assert seen == self.items(store, "u")[::-1]
        assert store.page("nobody", 5) == []

    def test_events_that_come_while_a_reader_pages_neither_repeat_nor_hide_others(self, store):
        store.append([Event("u", f"item-{n}", float(n)) for n in range(6)])
        first = store.page("u", 3)
        store.append([Event("u", "newer", 9.0), Event("u", "older", 0.5)])
        second = store.page("u", 10, first[-1].position)
        assert [e.item_id for e in first + second] == [*(f"item-{n}" for n in range(5, 0, -1)), "older", "item-0"]

    def test_an_erased_user_is_empty_marked_and_may_come_back(self, store):
        store.append([Event("u", "a", 1.0, key="k"), Event("v", "b", 1.0)])
        assert store.erase("u") == 1
        assert store.erase("u") == 0
        assert store.latest(["u", "v"], 5) == [LiveHistory((), erased=True), LiveHistory(("b",))]
        assert store.page("u", 5) == []
        assert store.append([Event("u", "c", 2.0, key="k")]) == Appended(1, 0)
        assert store.latest(["u"], 5) == [LiveHistory(("c",), erased=True)]

    def test_the_log_holds_the_last_change_of_each_item_in_the_order_of_changes(self, store):
        numbers = [store.record("put", "a", "1"), store.record("put", "b", "2"), store.record("put", "a", "3")]
        assert numbers == sorted(set(numbers))
        assert [(c.id, c.payload) for c in store.changes(0)] == [("b", "2"), ("a", "3")]
        store.record("remove", "b")
        store.erase("u")
        log = store.changes(numbers[-1])
        assert [(c.kind, c.id, c.payload) for c in log] == [("remove", "b", None), ("erase", "u", None)]
        assert store.changes(log[-1].seq) == []

    def test_the_log_can_be_read_in_pieces(self, store):
        for n in range(7):
            store.record("put", f"item-{n}", str(n))
        seen, after = [], 0
        while changes := store.changes(after, limit=3):
            seen += [change.id for change in changes]
            after = changes[-1].seq
        assert seen == [f"item-{n}" for n in range(7)]

    def test_another_process_and_a_later_one_see_what_this_one_was_told_is_kept(self, place, store):
        store.append([Event("u", "a", 1.0)])
        store.record("put", "i", "text")
        code = "import sys; from serving.stores import open_store; s = open_store(sys.argv[1]); "
        code += "print(s.latest(['u'], 5)[0].items, s.changes(0)[0].payload)"
        told = subprocess.run([sys.executable, "-c", code, place], capture_output=True, text=True, check=True)
        assert told.stdout.strip() == "('a',) text"
        store.close()
        again = open_store(place)
        assert self.items(again, "u") == ["a"]
        again.close()

    def test_many_writers_lose_and_double_nothing(self, place, store):
        other = open_store(place)

        def write(n):
            keeper = store if n % 2 else other
            return keeper.append([Event(f"u{n % 3}", f"item-{n}", float(n), key=f"{n // 2}")]).accepted

        with ThreadPoolExecutor(16) as pool:
            accepted = sum(pool.map(write, range(300)))
        stored = sum(len(self.items(store, f"u{u}")) for u in range(3))
        assert stored == accepted == len({(n % 3, n // 2) for n in range(300)})
        other.close()

    def test_a_follower_meets_every_change_once_in_order_while_others_write(self, store):
        done = threading.Event()

        def write(part):
            for n in range(40):
                store.record("put", f"{part}-{n}", "x")

        threads = [threading.Thread(target=write, args=(part,)) for part in range(4)]
        ending = threading.Thread(target=lambda: ([t.join() for t in threads], done.set()))
        seen, after = [], 0
        for thread in [*threads, ending]:
            thread.start()
        last = False
        while not last:
            last = done.is_set()
            for change in store.changes(after, limit=7):
                assert change.seq > after
                after = change.seq
                seen.append(change.id)
            last = last and not store.changes(after)
        ending.join()
        assert sorted(seen) == sorted(f"{part}-{n}" for part in range(4) for n in range(40))

    def test_the_end_of_a_very_long_history_is_read_as_fast_as_that_of_a_short_one(self, store):
        for first in range(0, 100_000, 10_000):
            store.append([Event("long", f"item-{n}", float(n)) for n in range(first, first + 10_000)])
        store.append([Event("short", f"item-{n}", float(n)) for n in range(100)])

        def seconds(user):
            began = time.perf_counter()
            for _ in range(20):
                assert len(self.items(store, user, 50)) == 50
            return time.perf_counter() - began

        short, long = (min(seconds(user) for _ in range(5)) for user in ("short", "long"))
        assert long < 5 * short + 0.01
        assert self.items(store, "long", 1) == ["item-99999"]

    def test_no_acknowledged_event_is_lost_when_the_writer_is_killed(self, place, store):
        process = subprocess.Popen([sys.executable, "-c", _WRITER, place], stdout=subprocess.PIPE, text=True)
        lines = [process.stdout.readline() for _ in range(60)]
        process.send_signal(signal.SIGKILL)
        lines += [line for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        process.wait()
        kept = {user: set(self.items(store, user, 100_000)) for user in (f"user-{t}" for t in range(4))}
        acknowledged = [line.split() for line in lines]
        assert len(acknowledged) >= 60
        assert [pair for pair in acknowledged if pair[1] not in kept[pair[0]]] == []

    # The fixture is one per store, and each example begins by erasing; one test in two classes is the point here.
    @settings(
        max_examples=25,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
    )
    @given(
        st.lists(
            st.tuples(
                st.sampled_from("uvw"), st.sampled_from("abcd"), st.integers(0, 5), st.none() | st.sampled_from("kl")
            ),
            max_size=12,
        )
    )
    def test_it_is_a_sorted_list_per_user(self, store, steps):
        for user in "uvw":
            store.erase(user)
        model, keys = {user: [] for user in "uvw"}, set()
        for user, item, at, key in steps:
            fresh = key is None or (user, key) not in keys
            keys.add((user, key))
            assert store.append([Event(user, item, float(at), key)]).accepted == fresh
            model[user] += [(at, item)] * fresh
        for user, events in model.items():
            expected = [item for _, item in sorted(events, key=lambda event: event[0])]
            assert self.items(store, user) == expected
            assert self.items(store, user, 3) == expected[-3:]


class TestSqlite(StoreBehaviour):
    @pytest.fixture
    def place(self, tmp_path):
        return str(tmp_path / "live.db")

    def test_a_file_that_is_something_else_is_refused_and_left_as_it_is(self, tmp_path):
        foreign, noise, folder = tmp_path / "foreign.db", tmp_path / "noise.db", tmp_path / "folder"
        with sqlite3.connect(foreign) as connection:
            connection.execute("CREATE TABLE theirs (x)")
        connection.close()
        noise.write_bytes(os.urandom(4096))
        folder.mkdir()
        for path, said in ((foreign, "not one of live events"), (noise, "not a database"), (folder, "unable to open")):
            before = path.read_bytes() if path.is_file() else None
            with pytest.raises(StoreError, match=said) as refused:
                SqliteStore(path)
            assert "\n" not in str(refused.value)
            assert before is None or path.read_bytes() == before

    def test_a_newer_format_is_refused(self, place):
        SqliteStore(place).close()
        with sqlite3.connect(place) as connection:
            connection.execute("PRAGMA user_version = 99")
        connection.close()
        with pytest.raises(StoreError, match="newer"):
            SqliteStore(place)

    def test_a_new_file_may_be_opened_by_many_at_once(self, place):
        with ThreadPoolExecutor(8) as pool:
            stores = list(pool.map(SqliteStore, [place] * 8))
        for store in stores:
            store.append([Event("u", "a", 1.0)])
        assert len(self.items(stores[0], "u")) == 8
        for store in stores:
            store.close()

    def test_an_erased_users_ids_are_not_left_in_the_file(self, place, store):
        store.append([Event("very-secret-user", f"very-secret-item-{n}", float(n)) for n in range(100)])
        store.append([Event("other", "item", 1.0)])
        store.erase("very-secret-user")
        store.close()
        with open(place, "rb") as file:
            assert b"very-secret-item" not in file.read()

    def test_a_failed_commit_is_told_to_every_caller_and_the_next_one_works(self, place, store):
        blocker = sqlite3.connect(place)
        blocker.execute("DROP TABLE events")
        blocker.commit()
        with pytest.raises(StoreError, match="no such table"):
            store.append([Event("u", "a", 1.0)])
        assert store.record("put", "i", "x") == 1
        blocker.close()

    def test_a_closed_store_says_so(self, store):
        store.close()
        for call in (lambda: store.append([Event("u", "a", 1.0)]), lambda: store.latest(["u"], 1)):
            with pytest.raises(StoreError, match="closed"):
                call()


class TestRedis(StoreBehaviour):
    @pytest.fixture(scope="class")
    def server(self, tmp_path_factory):
        server = RedisServer(tmp_path_factory.mktemp("redis"))
        server.start()
        yield server
        server.kill()

    @pytest.fixture
    def place(self, server):
        if server.process is None:
            server.start()
        open_store(server.url)._client.flushall()
        return server.url

    def test_no_acknowledged_event_is_lost_when_redis_itself_is_killed(self, server, store):
        for n in range(50):
            store.append([Event("u", f"item-{n}", float(n))])
        server.kill()
        with pytest.raises(StoreError, match="does not answer"):
            store.append([Event("u", "never", 99.0)])
        server.start()
        time.sleep(0.6)  # longer than the store rests after a failure
        assert self.items(store, "u") == [f"item-{n}" for n in range(50)]

    def test_a_redis_that_hangs_is_given_up_at_once_but_for_the_first_caller(self, server, store):
        store.append([Event("u", "a", 1.0)])
        server.freeze()
        try:
            waited = []
            for _ in range(4):
                began = time.perf_counter()
                with pytest.raises(StoreError):
                    store.latest(["u"], 1)
                waited.append(time.perf_counter() - began)
        finally:
            server.thaw()
        assert max(waited) < 2
        assert max(waited[1:]) < 0.1
        time.sleep(0.6)
        assert self.items(store, "u") == ["a"]

    def test_a_redis_that_may_lose_events_is_warned_of(self, place, store, caplog):
        store._client.config_set("appendonly", "no")
        store.latest(["u"], 1)
        store._client.config_set("appendonly", "yes")
        assert "appendonly no" in caplog.text

    def test_a_redis_out_of_memory_refuses_and_acknowledges_nothing(self, store):
        store.append([Event("u", "a", 1.0)])
        store._client.config_set("maxmemory", "1")
        try:
            with pytest.raises(StoreError, match="refuses"):
                store.append([Event("u", "b", 2.0)])
        finally:
            store._client.config_set("maxmemory", "0")
        assert self.items(store, "u") == ["a"]


def test_a_store_is_a_path_or_a_redis_url(tmp_path):
    with pytest.raises(StoreError, match="URL"):
        open_store("postgres://somewhere")
    with pytest.raises(StoreError):
        open_store("redis://host:port/0")
    store = open_store(str(tmp_path / "live.db"))
    assert isinstance(store, SqliteStore)
    store.close()
