"""The second stage of a bundle: what an evaluation ranks with, exchangeable, beside all else a request may ask."""

import numpy as np
import pytest
from serving_helpers import ITEMS, SLOTS, catalog, fake_bundle, histories, hybrid_parts, load_fake, offline

from serving.bundle.reader import Bundle
from serving.engine.acceptance import accept
from serving.engine.engine import Engine, Request
from serving.engine.rules import Boost, Pin, RuleSet
from setrec.errors import BundleError
from setrec.ragged import Ragged
from setrec.scoring.hybrid import HybridWeights, build_components
from setrec.scoring.registry import Sources
from setrec.scoring.reranking import AttributeVectors, CatalogFacts, Reranker, RerankingScorer, features

WEIGHTS = HybridWeights(slots=SLOTS, components={"transitions_near": 3.0})
LEARNED = Reranker(
    weights={
        "score": 0.4, "semantic": 0.3, "transitions_near": 0.5, "transitions_wide": 0.8, "popularity": -0.2,
        "attributes": 0.5, "attributes_latest": -0.7,
    },
    candidates=20,
)  # fmt: skip


@pytest.fixture(scope="module")
def parts():
    names = ("transitions_near", "transitions_wide")
    return hybrid_parts(WEIGHTS) | {"components": build_components(names, Sources(histories().items, ITEMS))}


@pytest.fixture(scope="module")
def engine(tmp_path_factory, parts):
    path = tmp_path_factory.mktemp("second") / "b"
    fake_bundle(path, **parts, reranker=LEARNED)
    return Engine(Bundle.open(path, load_fake), max_k=ITEMS)


@pytest.fixture(scope="module")
def evaluated(parts):
    facts = CatalogFacts(histories().train_counts(ITEMS), AttributeVectors(catalog().attributes, ITEMS))
    return RerankingScorer(offline(parts), LEARNED, facts)


def test_the_endpoint_ranks_as_an_evaluation_does(engine, evaluated, parts):
    accept(engine)
    for number, user in enumerate(histories().user_ids[:-1]):
        history = histories().items.take(np.array([number]))
        scores, first = evaluated(history)[0], offline(parts)(history)[0]
        answer = engine.recommend_one(Request(user_id=user, k=30))
        left = np.setdiff1d(np.arange(ITEMS), history.values)
        expected = left[np.lexsort((left, -scores[left]))][:30]
        assert [item.item_id for item in answer.items] == [f"item-{row}" for row in expected]
        for item, row in zip(answer.items, expected, strict=True):
            assert item.score == pytest.approx(scores[row], abs=1e-4)
            assert sum(item.shares.values()) == pytest.approx(item.score)
        assert expected.tolist() != left[np.lexsort((left, -first[left]))][:30].tolist()


def test_the_order_of_candidates_changes_nothing(parts, evaluated):
    history, scorer = histories().items.take(np.array([0])), offline(parts)
    entries, rows = scorer.entries(history), np.arange(20, 40)
    mixed = np.random.default_rng(0).permutation(20)
    given = [Ragged.of([rows], np.int64), Ragged.of([rows[mixed]], np.int64)]
    one, other = (
        LEARNED.scores(features(scorer, history, g, entries, evaluated.facts), g) for g in given
    )  # fmt: skip
    np.testing.assert_allclose(one[mixed], other, atol=1e-9)


def test_rules_diversity_and_explanations_go_on_from_the_second_stage(engine):
    plain = engine.recommend_one(Request(user_id="user-0", k=5))
    last = engine.recommend_one(Request(user_id="user-0", k=40)).items[-1].item_id
    sale = RuleSet(pins=(Pin(item_id=last, position=1),), boosts=(Boost(amount=50, items=(plain.items[3].item_id,)),))
    engine.state.rules["sale"] = sale
    ruled = engine.recommend_one(Request(user_id="user-0", k=5, rules="sale", explain=True))
    assert [item.item_id for item in ruled.items[:2]] == [last, plain.items[3].item_id]
    assert len(ruled.items) == len(ruled.explanation.effects) == 5
    varied = engine.recommend_one(Request(user_id="user-0", k=5, diversity=0.9))
    assert len(varied.items) == 5
    assert varied.items[0] == plain.items[0]
    assert varied.items != plain.items


def test_a_bundle_without_what_its_second_stage_reads_is_not_written(tmp_path, parts):
    with pytest.raises(BundleError, match="text_similarity"):
        fake_bundle(tmp_path / "b", **parts, reranker=Reranker(weights={"text_similarity": 1.0}))
