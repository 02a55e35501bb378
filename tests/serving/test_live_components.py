"""Components of the score over live items: every test compares two ways to one answer."""

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
    coded_items,
    fake_bundle,
    histories,
    hybrid_parts,
    load_fake,
    text_codes,
    texts_of,
)

from serving.bundle.reader import Bundle
from serving.bundle.texts import BundleTexts
from serving.engine.engine import Engine, Request
from serving.engine.state import State
from serving.retrieval.retriever import RetrieverSettings
from serving.runtime import edits
from serving.stores import open_store
from serving.stores.item_changes import ItemFields
from setrec.data.catalog import TRAIN, Histories
from setrec.models.item_tokens import unit_rows
from setrec.ragged import Ragged
from setrec.scoring.hybrid import HybridScorer, HybridWeights, NewItemWeights, build_components
from setrec.scoring.registry import Sources
from setrec.scoring.text_similarity import TextFeatures

WEIGHTS = HybridWeights(
    slots=SLOTS,
    components={"transitions_near": 3.0, "text_similarity": 2.0},
    new_items=NewItemWeights(model=0.5, components={"text_similarity": 4.0}, level=0.7),
)
NEW = ItemFields(title="Title «new»", text="text 3 4", attributes={"genre": ["c"]})


def hybrid_bundle(out, retriever=None):
    """A bundle with components of all kinds whose texts live items are compared with, as an export makes one; the
    featurizer of the tests goes into no bundle."""
    fake_bundle(out, retriever, **coded_items(), **hybrid_parts(WEIGHTS))
    opened = Bundle.open(out, load_fake)
    return Bundle(**{**vars(opened), "texts": BundleTexts(*texts_of(catalog()))})


@pytest.fixture
def store(tmp_path):
    with_file = open_store(str(tmp_path / "live.db"))
    yield with_file
    with_file.close()


def ids(answer):
    return [item.item_id for item in answer.items]


def same(one, other):
    assert ids(one) == ids(other)
    np.testing.assert_allclose([i.score for i in one.items], [i.score for i in other.items], rtol=1e-5)


def shares(engine, name, history):
    answer = engine.recommend_one(Request(history=history, k=ITEMS))
    return {item.item_id: item.shares[name] for item in answer.items if name in item.shares}


@pytest.mark.parametrize("weights", [NewItemWeights(level=8.0), NewItemWeights(model=0.5, level=-6.0)])
def test_items_to_come_are_new_to_an_index_of_a_catalogue_that_holds_no_new_ones(tmp_path, monkeypatch, weights):
    monkeypatch.setattr("serving.retrieval.retriever._FEWEST", 10)
    everything = Histories(["reader"], Ragged.of([np.arange(ITEMS)]), np.full(ITEMS, TRAIN, np.int8))
    engines = []
    for kind in ("exact", "ivf"):
        fake_bundle(
            tmp_path / kind, RetrieverSettings(kind=kind, nlist=2, nprobe=2, tune_queries=10), histories=everything,
            scorer=HybridWeights(slots=SLOTS, new_items=weights),
        )  # fmt: skip
        store = open_store(str(tmp_path / f"{kind}.db"))
        engines.append(Engine(Bundle.open(tmp_path / kind, load_fake), store=store, encode=FakeText()))
        for number in range(6):
            edits.put_item(engines[-1], f"new-{number}", ItemFields(title="t", text=f"text {number} {number}"))
    for row in range(20):
        one, other = (engine.recommend_one(Request(history=(f"item-{row}",))) for engine in engines)
        same(one, other)
    for engine in engines:
        engine.store.close()


def test_transitions_stay_with_an_item_that_is_described_anew_and_go_with_one_that_is_removed(tmp_path, store):
    engine = Engine(hybrid_bundle(tmp_path / "b"), store=store, max_k=ITEMS, encode=FakeText())
    history = tuple(f"item-{row}" for row in histories().items[2])
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
        patch.setattr("serving.retrieval.retriever._FEWEST", 10)
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
    monkeypatch.setattr("serving.engine.state._SPARE_ROWS", 3)
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


def test_requests_are_answered_while_rows_are_compacted(tmp_path, store, monkeypatch):
    monkeypatch.setattr("serving.engine.state._SPARE_ROWS", 3)
    engine = Engine(hybrid_bundle(tmp_path / "b"), store=store, max_k=50, encode=FakeText())
    request, compact, meanwhile = Request(history=("item-3", "item-7"), k=40), State.compact, []

    def compacted(state):
        assert not engine.lock.locked(), "requests wait"
        meanwhile.append(engine.recommend_one(request))
        return compact(state)

    monkeypatch.setattr(State, "compact", compacted)
    edits.remove_item(engine, "item-12")
    for number in range(12):
        edits.put_item(engine, "other", ItemFields(title=str(number), text="text 4"))
    assert meanwhile
    for answer in meanwhile:
        same(answer, engine.recommend_one(request))


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
