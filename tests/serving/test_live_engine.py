"""Live state on top of a bundle: every test compares two ways to one answer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_helpers import (
    ITEMS,
    SLOTS,
    FakeText,
    MeanScores,
    catalog,
    codes,
    fake_bundle,
    histories,
    hybrid_parts,
    load_fake,
    text_codes,
    texts_of,
)

from serving import edits
from serving.bundle import Bundle
from serving.changes import ItemFields
from serving.engine import Engine, Request
from serving.filters import Equals, Not
from serving.requests import Fallback
from serving.retriever import RetrieverSettings
from serving.stores import Change, Event, StoreError, open_store
from serving.texts import BundleTexts
from setrec.errors import UnknownItemError
from setrec.ragged import Ragged
from setrec.scoring.hybrid import HybridScorer, HybridWeights, NewItemWeights, build_components
from setrec.scoring.registry import Sources
from setrec.scoring.text_similarity import TextFeatures
from setrec.tokens import unit_rows

WEIGHTS = HybridWeights(
    slots=SLOTS,
    components={"transitions_near": 3.0, "text_similarity": 2.0},
    new_items=NewItemWeights(model=0.5, components={"text_similarity": 4.0}, level=0.7),
)
NEW = ItemFields(title="Title «new»", text="text 3 4", attributes={"genre": ["c"]})


def coded_items():
    """Codes whose semantic columns come from the texts; every tenth item has never been trained on."""
    table, counts = codes(), histories().train_counts(ITEMS)
    table[:, 6:14] = text_codes(catalog().texts)
    table[counts == 0, :6] = 0
    return {"item_codes": table}


def hybrid_bundle(out, retriever=None):
    """A bundle with components of all kinds whose texts live items are compared with, as an export makes one; the
    featurizer of the tests goes into no bundle."""
    fake_bundle(out, retriever, **coded_items(), **hybrid_parts(WEIGHTS))
    opened = Bundle.open(out, load_fake)
    return Bundle(**{**vars(opened), "texts": BundleTexts(*texts_of(catalog()))})


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


def shares(engine, name, history):
    answer = engine.recommend_one(Request(history=history, k=ITEMS))
    return {item.item_id: item.shares[name] for item in answer.items if name in item.shares}


def test_transitions_stay_with_an_item_that_is_described_anew_and_go_with_one_that_is_removed(tmp_path, store):
    engine = Engine(hybrid_bundle(tmp_path / "b"), store=store, max_k=ITEMS, encode=FakeText())
    history = trained("user-2")
    before = shares(engine, "transitions_near", history)
    anew, gone = sorted(before)[:2]
    edits.put_item(engine, anew, NEW)
    edits.put_item(engine, history[-1], NEW)
    edits.remove_item(engine, gone)
    left = {item: share for item, share in before.items() if item != gone}
    assert anew in left
    assert shares(engine, "transitions_near", history) == left


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """Bundles by kind of index."""
    folder, found = tmp_path_factory.mktemp("grown"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving.retriever._FEWEST", 10)
        for kind in ("exact", "ivf"):
            settings = RetrieverSettings(kind=kind, nlist=2, nprobe=2, tune_queries=10)
            found[kind] = hybrid_bundle(folder / kind, settings)
    return found


@settings(max_examples=15)
@given(data=st.data())
def test_items_put_are_scored_as_if_an_export_had_held_them(grown, tmp_path_factory, data):
    """Random texts put and items removed, against the scorer over a catalogue that holds all of them."""
    folder = tmp_path_factory.mktemp("grown")
    kind = data.draw(st.sampled_from(["exact", "ivf"]))
    store = open_store(str(folder / "live.db"))
    engine = Engine(grown[kind], store=store, max_k=50, encode=FakeText())
    words = [
        f"text {one} {other}"
        for one, other in data.draw(st.lists(st.tuples(*[st.integers(0, 19)] * 2), min_size=1, max_size=4))
    ]
    for number, text in enumerate(words):
        edits.put_item(engine, f"new-{number}", ItemFields(title=f"t{number}", text=text))
    removed = data.draw(st.lists(st.integers(0, ITEMS - 1), max_size=3))
    for row in set(removed):
        edits.remove_item(engine, f"item-{row}")
    names = [f"item-{row}" for row in range(ITEMS) if row not in removed] + [f"new-{n}" for n in range(len(words))]
    history = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=6))
    kept = data.draw(st.booleans())

    table = np.zeros((ITEMS + len(words), 14), np.float32)
    table[:ITEMS] = coded_items()["item_codes"]
    table[ITEMS:, 6:] = text_codes(words)
    new = np.r_[histories().train_counts(ITEMS) == 0, np.ones(len(words), bool)]
    featurizer, center = FakeText(), texts_of(catalog())[1]
    every = [*catalog().texts, *words]
    vectors = featurizer.encode(every)
    features = TextFeatures(featurizer.lexical.rows(every), unit_rows(vectors[:, 3:], center))
    parts = build_components(WEIGHTS.used, Sources(histories().items, ITEMS + len(words), features))
    scorer = HybridScorer(MeanScores(table), parts, WEIGHTS, new)
    row_of = {name: int(name[5:]) if name.startswith("item") else ITEMS + int(name[4:]) for name in names}
    rows = Ragged.of([[row_of[name] for name in history]], np.int64)
    exact = scorer.at(rows, Ragged.of([np.arange(len(table))], np.int64))
    may = np.ones(len(table), dtype=bool)
    may[removed] = False
    may[rows.values] &= kept
    best = np.sort(exact[may])[::-1][:20]
    answer = engine.recommend_one(Request(history=tuple(history), k=20, exclude_history=not kept))
    np.testing.assert_allclose([item.score for item in answer.items], best, rtol=1e-4, atol=1e-5)
    for item in answer.items:
        assert exact[row_of[item.item_id]] == pytest.approx(item.score, rel=1e-4, abs=1e-5)
        assert sum(item.shares.values()) == pytest.approx(item.score, abs=1e-9)
    store.close()


def test_compacted_rows_keep_their_similarities(tmp_path, store, monkeypatch):
    monkeypatch.setattr("serving.state._SPARE_ROWS", 3)
    engine = Engine(hybrid_bundle(tmp_path / "b"), store=store, max_k=50, encode=FakeText())
    edits.put_item(engine, "new", NEW)
    edits.put_item(engine, "item-7", ItemFields(title="t", text="text 3 9"))
    edits.remove_item(engine, "item-12")
    before = engine.recommend_one(Request(history=("new", "item-3", "item-7"), k=50))
    for number in range(20):
        edits.put_item(engine, "other", ItemFields(title=str(number), text=f"text {number}"))
    edits.remove_item(engine, "other")
    assert engine.state.items.added < 12
    same(before, engine.recommend_one(Request(history=("new", "item-3", "item-7"), k=50)))


def test_a_bundle_item_described_anew_resembles_what_its_new_text_resembles(tmp_path, store):
    engine = Engine(hybrid_bundle(tmp_path / "b"), store=store, max_k=ITEMS, encode=FakeText())
    own = f"item-{np.argmax(engine.bundle.popularity)}"
    edits.put_item(engine, own, ItemFields(title="t", text="text 3"))
    edits.put_item(engine, "twin", ItemFields(title="t", text="text 3"))
    similar = shares(engine, "text_similarity", ("item-3",))
    assert similar["twin"] * WEIGHTS.components["text_similarity"] == pytest.approx(
        similar[own] * WEIGHTS.new_items.components["text_similarity"], rel=1e-5
    )
    one, other = (shares(engine, "text_similarity", (item,)) for item in (own, "twin"))
    common = set(one) & set(other) - {own, "twin"}
    assert len(common) > 5
    assert all(one[item] == pytest.approx(other[item], rel=1e-5) for item in common)


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
    monkeypatch.setattr("serving.state._SPARE_ROWS", 5)
    edits.put_item(engine, "kept", NEW)
    edits.remove_item(engine, "item-12")
    before = engine.recommend_one(Request(history=("kept",), k=50))
    for number in range(40):
        edits.put_item(engine, "new", ItemFields(title=str(number), text=f"text {number}"))
    edits.remove_item(engine, "new")
    assert len(engine.state.items) < ITEMS + 15
    same(before, engine.recommend_one(Request(history=("kept",), k=50)))
