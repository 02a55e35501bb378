import numpy as np
import pytest
from serving_helpers import (
    ITEMS,
    SLOTS,
    FakeText,
    catalog,
    coded_items,
    fake_bundle,
    hybrid_parts,
    load_fake,
    offline,
    texts_of,
)

from serving.bundle.reader import Bundle
from serving.bundle.texts import BundleTexts
from serving.engine.engine import Engine, Request, RequestError
from serving.runtime import edits
from serving.stores import open_store
from serving.stores.item_changes import ItemFields
from setrec.errors import UnknownItemError
from setrec.ragged import Ragged
from setrec.scoring.hybrid import HybridWeights

WEIGHTS = HybridWeights(slots=SLOTS, components={"transitions_near": 3.0, "text_similarity": 2.0})
ROWS = [3, 5, 8, 13, 5]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder, parts = tmp_path_factory.mktemp("explanations"), hybrid_parts(WEIGHTS)
    fake_bundle(folder / "b", **parts)
    return Engine(Bundle.open(folder / "b", load_fake), max_k=30), offline(parts)


def request(rows, **more):
    return Request(history=tuple(f"item-{row}" for row in rows), **more)


def test_an_effect_is_the_fall_of_the_score_without_that_item(made):
    engine, scorer = made
    answer = engine.recommend_one(request(ROWS, explain=True, k=6))
    for item, effects in zip(answer.items, answer.explanation.effects, strict=True):
        row = int(item.item_id[5:])
        without = {
            left: scorer.at(Ragged.of([[r for r in ROWS if r != left]], np.int64), Ragged.of([[row]], np.int64))[0]
            for left in set(ROWS)
        }
        expected = sorted(((item.score - score, f"item-{left}") for left, score in without.items()), reverse=True)
        expected = [pair for pair in expected[:3] if pair[0] > 0]
        assert [effect.item_id for effect in effects] == [name for _, name in expected]
        np.testing.assert_allclose([e.effect for e in effects], [fall for fall, _ in expected], atol=1e-5)
        assert all(effect.title.startswith("Title") for effect in effects)


def test_the_answer_itself_is_the_same_with_an_explanation_and_without(made):
    plain, explained = (made[0].recommend_one(request(ROWS, explain=flag)) for flag in (False, True))
    assert plain.items == explained.items
    assert plain.explanation is None


def test_factors_count_in_an_explanation_as_in_the_score(made):
    only = {"collaborative": 0.0, "semantic": 0.0, "transitions_near": 0.0}
    answer = made[0].recommend_one(request(ROWS, explain=True, factors=only))
    assert not answer.explanation.slots
    texts = made[1].components["text_similarity"].entries(Ragged.of([[13]], np.int64))
    first = answer.items[0]
    assert answer.explanation.effects[0][0].effect <= first.score
    assert len(texts[0].values)


def test_the_only_item_of_a_history_is_the_whole_reason(made):
    answer = made[0].recommend_one(request([7, 7], explain=True, k=3))
    for item, effects in zip(answer.items, answer.explanation.effects, strict=True):
        assert [(e.item_id, e.effect) for e in effects] == ([("item-7", item.score)] if item.score > 0 else [])


def test_slots_name_what_each_kind_alone_would_answer(made):
    engine, _ = made
    answer = engine.recommend_one(request(ROWS, explain=True))
    assert set(answer.explanation.slots) == set(SLOTS)
    for kind, nearest in answer.explanation.slots.items():
        others = {name: 0.0 for name in engine.terms if name != kind}
        alone = engine.recommend_one(request(ROWS, factors=others, k=3))
        assert [item.item_id for item in nearest] == [item.item_id for item in alone.items]


def test_popularity_needs_no_explanation(made):
    assert made[0].recommend_one(Request(user_id="nobody", explain=True)).explanation is None


def test_similar_items_by_the_whole_are_the_answer_to_a_history_of_that_item(made):
    engine, _ = made
    assert engine.similar("item-7", 5).items == engine.recommend_one(request([7], k=5)).items


@pytest.mark.parametrize("by", ["model", "collaborative", "semantic", "transitions_near", "text_similarity"])
def test_similar_items_by_one_term_are_those_of_its_largest_values(made, by):
    engine, scorer = made
    history, every = Ragged.of([[7]], np.int64), Ragged.of([np.arange(ITEMS)], np.int64)
    terms = scorer.parts(history, every)
    values = terms["collaborative"] + terms["semantic"] if by == "model" else terms[by]
    values[7] = -np.inf
    found = engine.similar("item-7", 5, by).items
    best = [row for row in np.lexsort((np.arange(ITEMS), -values))[:5] if values[row] != 0]
    assert [item.item_id for item in found] == [f"item-{row}" for row in best]
    assert all(item.shares == {by: item.score} for item in found)


def test_similar_refuses_what_it_does_not_know(made):
    with pytest.raises(UnknownItemError):
        made[0].similar("nothing")
    with pytest.raises(RequestError, match="similar by 'colour' is unknown; known are all, model, collaborative"):
        made[0].similar("item-7", by="colour")


def test_an_item_put_a_moment_ago_has_similar_ones_and_is_one(tmp_path):
    fake_bundle(tmp_path / "b", **coded_items(), **hybrid_parts(WEIGHTS))
    opened = Bundle.open(tmp_path / "b", load_fake)
    opened = Bundle(**{**vars(opened), "texts": BundleTexts(*texts_of(catalog()))})
    store = open_store(str(tmp_path / "live.db"))
    engine = Engine(opened, store=store, max_k=30, encode=FakeText())
    edits.put_item(engine, "fresh", ItemFields(title="Title «7»", text="text 7", attributes={"genre": ["a"]}))
    for by in ("all", "model", "semantic", "text_similarity"):
        assert engine.similar("fresh", 5, by).items
    assert "fresh" in [item.item_id for item in engine.similar("item-7", 5, "text_similarity").items]
    store.close()
