"""Diversity, factors and rules: what changes an answer after, or on top of, the scores."""

import time

import numpy as np
import pytest
from serving_helpers import ITEMS, SLOTS, catalog, fake_bundle, hybrid_parts, load_fake, offline

from serving.bundle.reader import Bundle
from serving.engine.engine import Engine, Request, RequestError
from serving.engine.rules import AttributeLimit, Boost, Pin, RuleSet
from serving.retrieval.filters import Equals
from serving.retrieval.retriever import RetrieverSettings
from setrec.ragged import Ragged
from setrec.scoring.hybrid import HybridWeights, NewItemWeights

WEIGHTS = HybridWeights(
    slots=SLOTS,
    components={"transitions_near": 3.0, "text_similarity": 2.0},
    new_items=NewItemWeights(model=0.5, components={"text_similarity": 4.0}, level=0.7),
)
HISTORY = tuple(f"item-{row}" for row in (3, 5, 8, 13))
MANY = 400


@pytest.fixture(scope="module", params=["exact", "ivf"])
def made(request, tmp_path_factory):
    """An engine by either route, and the offline scorer of the same weights."""
    from serving_helpers import codes, histories

    folder, parts = tmp_path_factory.mktemp("reranking"), hybrid_parts(WEIGHTS, MANY)
    settings = RetrieverSettings(kind=request.param, nlist=8, nprobe=8, tune_queries=20)
    more = {"catalog": catalog(MANY), "histories": histories(MANY), "item_codes": codes(MANY)}
    fake_bundle(folder / "b", settings, **more, **parts)
    return Engine(Bundle.open(folder / "b", load_fake), max_k=50), offline(parts, MANY)


@pytest.fixture
def engine(made):
    yield made[0]
    made[0].state.rules.clear()


def ids(answer):
    return [item.item_id for item in answer.items]


def scores_of(scorer, rows=(3, 5, 8, 13)):
    history = Ragged.of([np.array(rows)], np.int64)
    every = Ragged.of([np.arange(MANY)], np.int64)
    return scorer.parts(history, every)


def test_diversity_zero_is_the_answer_without_it_and_more_brings_items_of_other_codes(engine):
    plain = engine.recommend_one(Request(history=HISTORY))
    assert engine.recommend_one(Request(history=HISTORY, diversity=0.0)) == plain
    diverse = engine.recommend_one(Request(history=HISTORY, diversity=0.8))
    assert ids(diverse)[0] == ids(plain)[0]

    def alike(answer):
        table = engine.bundle.codes[[int(item[5:]) for item in ids(answer)]]
        unit = table / np.linalg.norm(table, axis=1, keepdims=True)
        return (unit @ unit.T).mean()

    assert alike(diverse) < alike(plain) - 0.05
    best = {item.item_id: item.score for item in engine.recommend_one(Request(history=HISTORY, k=50)).items}
    for item in diverse.items:  # scores stay what they are
        assert item.score == pytest.approx(best.get(item.item_id, item.score))


def test_factors_multiply_the_terms_of_the_score(made):
    engine, scorer = made
    parts = scores_of(scorer)
    factors = {"collaborative": 0.5, "transitions_near": 0.0, "text_similarity": 3.0}
    total = sum(factors.get(name, 1.0) * part for name, part in parts.items())
    total[[3, 5, 8, 13]] = -np.inf
    found = engine.recommend([Request(history=HISTORY, factors=factors), Request(history=HISTORY)])
    best = np.lexsort((np.arange(MANY), -total))[:10]
    assert ids(found[0]) == [f"item-{row}" for row in best]
    np.testing.assert_allclose([item.score for item in found[0].items], total[best], rtol=1e-4, atol=1e-5)
    assert not any("transitions_near" in item.shares for item in found[0].items)
    assert found[1] == engine.recommend_one(Request(history=HISTORY))  # another request's factors are not its own


def test_a_factor_of_nothing_is_refused_with_the_names_there_are(engine):
    with pytest.raises(RequestError, match="known are collaborative, semantic, transitions_near, text_similarity"):
        engine.recommend_one(Request(history=HISTORY, factors={"transitions_far": 2.0}))


def test_only_new_items_are_answered_where_that_is_asked(engine):
    answer = engine.recommend_one(Request(history=HISTORY, new_only=True, k=20))
    assert answer.items
    assert all(engine.bundle.popularity[int(item[5:])] == 0 for item in ids(answer))


def test_a_boost_adds_its_amount_and_a_negative_one_buries(made, engine):
    scorer = made[1]
    total = sum(scores_of(scorer).values())
    even = np.arange(MANY) % 2 == 0
    total = total + 2.5 * even - 50.0 * (np.arange(MANY) == np.argmax(total + 2.5 * even))
    buried = f"item-{np.argmin(total - sum(scores_of(scorer).values()))}"
    boosts = (Boost(amount=2.5, filter=Equals(attribute="genre", equals="b")), Boost(amount=-50.0, items=(buried,)))
    engine.state.rules["sale"] = RuleSet(boosts=boosts)
    total[[3, 5, 8, 13]] = -np.inf
    answer, plain = engine.recommend([Request(history=HISTORY, rules="sale"), Request(history=HISTORY)])
    best = np.lexsort((np.arange(MANY), -total))[:10]
    assert ids(answer) == [f"item-{row}" for row in best]
    assert {item.shares.get("rules") for item in answer.items} <= {2.5, None}
    assert not any("rules" in item.shares for item in plain.items)


def test_pinned_items_stand_where_they_are_pinned_unless_the_request_leaves_them_out(engine):
    plain = ids(engine.recommend_one(Request(history=HISTORY, rules=None)))
    pins = (Pin(item_id="item-399", position=1), Pin(item_id="item-398", position=4), Pin(item_id="gone", position=2))
    engine.state.rules["default"] = RuleSet(pins=pins)
    rest = [item for item in plain if item not in ("item-399", "item-398")]
    expected = ["item-399", *rest[:2], "item-398", *rest[2:]][:10]
    answer = engine.recommend_one(Request(history=HISTORY))
    assert ids(answer) == expected
    assert all(sum(item.shares.values()) == pytest.approx(item.score, abs=1e-9) for item in answer.items)
    denied = engine.recommend_one(Request(history=HISTORY, deny=("item-399",)))
    assert "item-399" not in ids(denied)
    assert ids(engine.recommend_one(Request(history=HISTORY, rules=None))) == plain
    stranger = engine.recommend_one(Request(user_id="nobody"))
    assert (ids(stranger)[0], ids(stranger)[3]) == ("item-399", "item-398")


def test_at_most_so_many_items_have_one_value_of_an_attribute(engine):
    engine.state.rules["default"] = RuleSet(limits=(AttributeLimit(attribute="genre", most=4),))
    for request in (Request(history=HISTORY), Request(user_id="nobody")):
        answer = engine.recommend_one(request)
        assert len(answer.items) == 4  # every item is of genre a
        assert ids(answer) == ids(engine.recommend_one(Request(**{**vars(request), "rules": None})))[:4]


def test_a_rule_set_that_is_not_there_is_refused_but_for_the_default(engine):
    with pytest.raises(RequestError, match="no rule set 'winter'"):
        engine.recommend_one(Request(history=HISTORY, rules="winter"))
    assert engine.recommend_one(Request(history=HISTORY, rules="default")).items


def test_items_of_the_catalogue_are_answered_only_while_they_are_available(tmp_path):
    now = time.time()
    films = catalog()
    windows = {0: (now - 10, now + 1000), 1: (now + 1000, None), 2: (None, now - 10)}
    for name, side in (("available_from", 0), ("available_until", 1)):
        films.attributes[name] = [
            [str(windows[r][side])] if r in windows and windows[r][side] is not None else [] for r in range(ITEMS)
        ]
    fake_bundle(tmp_path / "b", catalog=films)
    engine = Engine(Bundle.open(tmp_path / "b", load_fake), max_k=ITEMS)
    every = set(ids(engine.recommend_one(Request(history=("item-9",), exclude_history=False, k=ITEMS))))
    assert every == {f"item-{row}" for row in range(ITEMS)} - {"item-1", "item-2"}
