"""Live state on top of a bundle: every test compares two ways to one answer."""

import numpy as np
import pytest
from serving_helpers import ITEMS, FakeText, coded_items, fake_bundle, histories, load_fake, text_codes

from serving.bundle.reader import Bundle
from serving.engine.engine import Engine, Request
from serving.engine.requests import Fallback
from serving.retrieval.filters import Equals, Not
from serving.runtime import edits
from serving.stores import Change, Event, StoreError, open_store
from serving.stores.item_changes import ItemFields
from setrec.errors import UnknownItemError

NEW = ItemFields(title="Title «new»", text="text 3 4", attributes={"genre": ["c"]})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    out = tmp_path_factory.mktemp("live") / "b"
    fake_bundle(out, **coded_items())
    return Bundle.open(out, load_fake)


@pytest.fixture
def store(tmp_path):
    with_file = open_store(str(tmp_path / "live.db"))
    yield with_file
    with_file.close()


@pytest.fixture
def engine(bundle, store):
    return Engine(bundle, store=store, max_k=50, encode=FakeText())


class Away:
    """A store that cannot be reached."""

    def __getattr__(self, name):
        def fails(*arguments):
            raise StoreError("away")

        return fails


def ids(answer):
    return [item.item_id for item in answer.items]


def trained(user):
    """Item ids of what the bundle knows of a user, oldest first."""
    return tuple(f"item-{row}" for row in histories().items[histories().row(user)])


def met(store, user, *items, start=1.0):
    store.append([Event(user, item, start + number) for number, item in enumerate(items)])


def same(one, other):
    assert ids(one) == ids(other)
    np.testing.assert_allclose([i.score for i in one.items], [i.score for i in other.items], rtol=1e-5)


def test_a_live_history_is_the_same_history_spelled_out(engine, store):
    met(store, "stranger", "item-3", "item-5", "item-8")
    met(store, "user-1", "item-50", "item-51")
    known = tuple(item for item in trained("user-1") if item not in ("item-50", "item-51"))
    for user, spelled_out in (
        ("stranger", ("item-3", "item-5", "item-8")),
        ("user-1", (*known, "item-50", "item-51")),
    ):
        answer = engine.recommend_one(Request(user_id=user))
        assert answer.fallback is None
        same(answer, engine.recommend_one(Request(history=spelled_out)))


def test_events_count_in_order_of_time_and_the_next_answer_sees_them(engine, store):
    before = engine.recommend_one(Request(user_id="user-2"))
    store.append([Event("user-2", "item-40", 9.0), Event("user-2", "item-41", 3.0)])
    after = engine.recommend_one(Request(user_id="user-2"))
    assert ids(before) != ids(after)
    known = tuple(item for item in trained("user-2") if item not in ("item-40", "item-41"))
    same(after, engine.recommend_one(Request(history=(*known, "item-41", "item-40"))))


def test_what_the_bundle_and_the_store_both_hold_counts_once(engine, store):
    met(store, "user-1", *trained("user-1"))
    same(engine.recommend_one(Request(user_id="user-1")), engine.recommend_one(Request(history=trained("user-1"))))


def test_an_item_put_is_an_item_of_the_bundle_with_the_same_text(engine, bundle):
    own = int(np.flatnonzero(bundle.popularity == 0)[0])
    edits.put_item(engine, "twin", ItemFields(title=f"Title «{own}»", text=f"text {own}"))
    row = engine.state.items.find("twin")
    np.testing.assert_allclose(engine.state.index.codes([row])[0], bundle.codes[own], rtol=1e-5, atol=1e-6)
    history = ("item-1", "item-2")
    scores = {i.item_id: i.score for i in engine.recommend_one(Request(history=history, k=50)).items}
    if "twin" in scores:
        assert scores["twin"] == pytest.approx(scores[f"item-{own}"], rel=1e-5)
    with_twin, with_own = (engine.recommend_one(Request(history=(*history, i), k=20)) for i in ("twin", f"item-{own}"))
    assert [i for i in ids(with_twin) if i != f"item-{own}"][:15] == [i for i in ids(with_own) if i != "twin"][:15]


def test_an_item_of_the_bundle_described_anew_keeps_what_users_taught_of_it(engine, bundle):
    own = int(np.argmax(bundle.popularity))
    edits.put_item(engine, f"item-{own}", NEW)
    code = engine.state.index.codes([engine.state.items.find(f"item-{own}")])[0]
    np.testing.assert_array_equal(code[:6], bundle.codes[own, :6])
    np.testing.assert_allclose(code[6:], text_codes(["text 3 4"])[0], rtol=1e-5)
    answer = engine.recommend_one(Request(history=("item-1",), allow=(f"item-{own}",)))
    assert [(i.item_id, i.title, i.attributes) for i in answer.items] == [(f"item-{own}", NEW.title, NEW.attributes)]


def test_an_item_is_there_once_however_often_it_is_put(engine):
    first = edits.put_item(engine, "new", NEW)
    seq = engine.applied
    again = edits.put_item(engine, "new", NEW)
    assert (first, again, engine.applied) == (True, False, seq)
    edits.put_item(engine, "new", NEW.model_copy(update={"title": "Other"}))
    answer = engine.recommend_one(Request(history=("item-1",), allow=("new",)))
    assert [item.title for item in answer.items] == ["Other"]


def test_an_item_removed_is_gone_from_answers_and_from_histories(engine, store):
    met(store, "reader", "item-3", "item-4")
    edits.put_item(engine, "new", NEW)
    met(store, "reader", "new", start=9.0)
    with_all = engine.recommend_one(Request(user_id="reader", k=50))
    for item in ("new", "item-3", "item-3"):
        edits.remove_item(engine, item)
    answer = engine.recommend_one(Request(user_id="reader", k=50))
    assert set(answer.skipped) == {"new", "item-3"}
    assert with_all.skipped == ()
    same(answer, engine.recommend_one(Request(history=("item-4",), k=50)))
    assert not {"new", "item-3"} & set(ids(engine.recommend_one(Request(history=("item-9",), k=50))))
    with pytest.raises(UnknownItemError, match="'item-3'"):
        engine.recommend_one(Request(history=("item-3",)))
    with pytest.raises(UnknownItemError, match="'never'"):
        edits.remove_item(engine, "never")


def test_a_restart_gives_the_same_answers(engine, bundle, store):
    edits.put_item(engine, "new", NEW)
    edits.put_item(engine, "newer", ItemFields(title="n", text="text 7"))
    edits.put_item(engine, "item-9", NEW)
    edits.remove_item(engine, "item-12")
    edits.remove_item(engine, "newer")
    edits.erase_user(engine, "user-3")
    met(store, "user-1", "new", "item-9")
    again = Engine(bundle, store=store, max_k=50, encode=FakeText())
    requests = [Request(user_id=f"user-{u}", k=50) for u in range(8)]
    for one, other in zip(engine.recommend(requests), again.recommend(requests), strict=True):
        same(one, other)
        assert one == other


def test_other_replicas_have_a_change_when_they_have_caught_up_and_need_no_encoder(engine, bundle, store):
    class Same(FakeText):
        def encode(self, texts):
            raise AssertionError("the text was encoded once, by whoever took it in")

    other = Engine(bundle, store=store, max_k=50, replay=False, encode=FakeText())
    other.coder._encoder = Same()
    edits.put_item(engine, "new", NEW)
    assert other.state.items.find("new") is None
    assert other.catch_up() == engine.applied
    same(
        engine.recommend_one(Request(history=("new",), k=50)),
        other.recommend_one(Request(history=("new",), k=50)),
    )


def test_changes_are_applied_once_and_one_that_makes_no_sense_is_passed_over(engine):
    edits.put_item(engine, "new", NEW)
    rows = len(engine.state.items)
    changes = engine.store.changes(0)
    engine.apply(changes)
    assert len(engine.state.items) == rows
    engine.apply([Change(engine.applied + 1, "put", "broken", "{"), Change(engine.applied + 2, "remove", "new")])
    assert engine.state.items.find("broken") is engine.state.items.find("new") is None


def test_live_changes_are_applied_to_a_newer_bundle_with_another_encoder(engine, store, tmp_path):
    edits.put_item(engine, "new", NEW)
    edits.remove_item(engine, "item-12")

    class Other(FakeText):
        identity = "other"

        def encode(self, texts):
            return super().encode(texts) * 2

    fake_bundle(tmp_path / "newer", **coded_items(), model_version="newer")
    newer = Engine(Bundle.open(tmp_path / "newer", load_fake), store=store, encode=Other())
    code = newer.state.index.codes([newer.state.items.find("new")])[0]
    np.testing.assert_allclose(code[6:], 2 * text_codes(["text 3 4"])[0], rtol=1e-5)
    assert "item-12" not in ids(newer.recommend_one(Request(history=("item-1",), k=60)))
    assert newer.recommend_one(Request(history=("new",))).model_version == "newer"


def test_an_erased_user_is_a_new_one_for_good(engine, bundle, store):
    met(store, "user-1", "item-3")
    assert edits.erase_user(engine, "user-1") == 1
    stranger = engine.recommend_one(Request(user_id="nobody"))
    for one in (engine, Engine(bundle, store=store, encode=FakeText())):
        answer = one.recommend_one(Request(user_id="user-1"))
        assert answer.fallback == Fallback("new_user", "popularity")
        assert ids(answer) == ids(stranger)
    met(store, "user-1", "item-7")
    same(engine.recommend_one(Request(user_id="user-1")), engine.recommend_one(Request(history=("item-7",))))


def test_of_whom_nothing_is_known_gets_the_most_popular_that_are_allowed(engine, bundle, store):
    edits.put_item(engine, "new", NEW)
    best = int(np.argmax(bundle.popularity))
    edits.remove_item(engine, f"item-{best}")
    met(store, "lost", "never", "heard of")
    everything = sorted(range(ITEMS), key=lambda row: (-bundle.popularity[row], row))
    everything.remove(best)
    for request, reason in (
        (Request(user_id="nobody", k=50), "new_user"),
        (Request(user_id="user-8", k=50), "empty_history"),
        (Request(user_id="lost", k=50), "unknown_items"),
        (Request(history=("never",), unknown_items="skip", k=50), "unknown_items"),
    ):
        answer = engine.recommend_one(request)
        assert answer.fallback == Fallback(reason, "popularity")
        assert ids(answer) == [f"item-{row}" for row in everything[:50]]
        assert [item.score for item in answer.items] == [bundle.popularity[row] for row in everything[:50]]
    odd = Not(**{"not": Equals(attribute="genre", equals="b")})
    answer = engine.recommend_one(Request(user_id="nobody", k=50, filter=odd, deny=("item-1", "no such")))
    assert ids(answer) == [*(f"item-{row}" for row in everything if row % 2 and row != 1), "new"]


def test_without_the_store_the_bundles_history_answers_and_the_answer_says_so(engine, store):
    met(store, "user-1", "item-3")
    with_store = engine.recommend_one(Request(user_id="user-2"))
    edits.erase_user(engine, "user-3")
    engine.store = Away()
    answer = engine.recommend_one(Request(user_id="user-1"))
    assert answer.fallback == Fallback("store_unavailable", "bundle_history")
    same(answer, engine.recommend_one(Request(history=trained("user-1"))))
    same(engine.recommend_one(Request(user_id="user-2")), with_store)
    for unknown in ("nobody", "user-3"):
        answer = engine.recommend_one(Request(user_id=unknown))
        assert answer.fallback == Fallback("store_unavailable", "popularity")
    with pytest.raises(StoreError):
        edits.put_item(engine, "new", NEW)


def test_an_engine_that_never_reached_the_store_shows_no_history_that_may_be_erased(bundle):
    engine = Engine(bundle, store=Away(), encode=FakeText())
    assert not engine.synced
    answer = engine.recommend_one(Request(user_id="user-1"))
    assert answer.fallback == Fallback("store_unavailable", "popularity")
    assert engine.recommend_one(Request(history=("item-1",))).fallback is None


def test_filters_allow_and_deny_say_which_items_come(engine):
    edits.put_item(engine, "new", NEW)
    history = ("item-2", "item-4")
    everything = ids(engine.recommend_one(Request(history=history, k=50)))
    only = engine.recommend_one(Request(history=history, k=50, filter=Equals(attribute="genre", equals="b")))
    assert ids(only) == [i for i in ids_of_genre_b(engine) if i not in history]
    assert ids(engine.recommend_one(Request(history=history, filter=Equals(attribute="genre", equals="c")))) == ["new"]
    few = engine.recommend_one(Request(history=history, allow=("item-7", "nothing", "item-2", "new"), k=50))
    assert set(ids(few)) == {"item-7", "new"}
    denied = engine.recommend_one(Request(history=history, deny=tuple(everything[:3]), k=10))
    assert ids(denied) == everything[3:13]


def ids_of_genre_b(engine):
    every = engine.recommend_one(Request(history=("item-2", "item-4"), k=50, exclude_history=False, deny=("new",)))
    rest = engine.recommend_one(
        Request(history=("item-2", "item-4"), k=50, exclude_history=False, deny=tuple(ids(every)))
    )
    return [item.item_id for item in (*every.items, *rest.items) if "b" in item.attributes["genre"]]


def test_a_batch_with_live_users_is_its_requests_one_by_one(engine, store):
    edits.put_item(engine, "new", NEW)
    met(store, "stranger", "new", "item-5")
    met(store, "user-4", "new")
    users = ["stranger", "user-4", "nobody", "user-1", "user-8", "stranger"]
    requests = [Request(user_id=user, k=5 + n, exclude_history=n % 2 == 0) for n, user in enumerate(users)]
    for alone, together in zip(map(engine.recommend_one, requests), engine.recommend(requests), strict=True):
        same(alone, together)
        assert alone.fallback == together.fallback


def test_items_put_over_and_over_do_not_fill_the_memory(engine, monkeypatch):
    monkeypatch.setattr("serving.engine.state._SPARE_ROWS", 5)
    edits.put_item(engine, "kept", NEW)
    edits.remove_item(engine, "item-12")
    before = engine.recommend_one(Request(history=("kept",), k=50))
    for number in range(40):
        edits.put_item(engine, "new", ItemFields(title=str(number), text=f"text {number}"))
    edits.remove_item(engine, "new")
    assert len(engine.state.items) < ITEMS + 15
    same(before, engine.recommend_one(Request(history=("kept",), k=50)))
