"""What is known beside a model, added to its scores with weights chosen on validation."""

import numpy as np
import pytest
import scipy.sparse as sp

from pipelines.benchmark import evidence, weighing
from pipelines.benchmark.evidence import WALKS, Evidence, EvidenceSettings, choose
from pipelines.benchmark.likeness import Likeness
from pipelines.benchmark.weighing import Part
from setrec import ranking
from setrec.ragged import Ragged
from setrec.transitions import Transitions, transition_graph

ITEMS = 12
CIRCLE = Ragged.of([(np.arange(4) + start) % ITEMS for start in range(ITEMS)] * 2)
EVERY = np.ones(ITEMS, dtype=bool)


def nothing(history: Ragged) -> np.ndarray:
    """A scorer that knows nothing."""
    return np.zeros((len(history), ITEMS), np.float32)


def knows(history: Ragged) -> np.ndarray:
    """A scorer that knows better than the graph: two steps on."""
    scores = nothing(history)
    scores[np.arange(len(history)), [(row[-1] + 2) % ITEMS for row in history]] = 30.0
    return scores


def cases(step: int) -> ranking.Cases:
    read = Ragged.of([[start, (start + 1) % ITEMS] for start in range(ITEMS)])
    return ranking.Cases(np.arange(ITEMS), read, Ragged.of([[(row[-1] + step) % ITEMS] for row in read]))


@pytest.fixture
def alike():
    return Likeness(sp.csr_matrix(np.random.default_rng(0).random((ITEMS, ITEMS)).astype(np.float32)))


@pytest.mark.parametrize("walks", [(1,), (0, 1, 2)])
def test_scores_are_the_stated_sums_and_the_history_gets_nothing(alike, walks):
    trained = EVERY.copy()
    trained[[4, 9]] = False
    s = EvidenceSettings(walks=walks, hops=3.0, likeness=2.0, new_scores=0.5, new_likeness=7.0, new_level=-1.5)
    history, own = Ragged.of([[0, 1, 2]]), np.random.default_rng(1).normal(size=(1, ITEMS)).astype(np.float32)
    found = Evidence(lambda h: own, CIRCLE, alike, trained, s)(history)[0]

    roots, like = [], alike(history)[0]
    for shape in WALKS:
        kinds = Transitions(transition_graph(CIRCLE, ITEMS, shape), None, shape).kinds(history)
        hops = kinds["hop 1"][0] + shape.damping * kinds["hop 2"][0]
        assert (hops[[0, 1, 2]] > 0).any()
        hops[[0, 1, 2]] = like[[0, 1, 2]] = 0.0
        roots.append(np.sqrt(hops))
    root = np.mean([roots[n] for n in walks], axis=0)
    assert root[4] > 0
    expected = np.where(trained, own[0] + 3 * root + 2 * like, 0.5 * own[0] + 3 * root + 7 * like - 1.5)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_walk_is_taken_where_it_helps_and_left_where_it_does_not():
    for scorer, step, helps in ((nothing, 1, True), (knows, 2, False)):
        parts = [Part(cases(step), CIRCLE)] * 2
        chosen, tried = choose(scorer, parts, None, EVERY, "removed")
        alone = ranking.mean_metric(scorer, cases(step), history="removed")
        assert tried[0]["hops"] == 0
        assert tried[0]["ndcg@10"] == pytest.approx(alone)
        assert (chosen.hops > 0) == helps
        there = Evidence(scorer, CIRCLE, None, EVERY, chosen)
        best = max(one["ndcg@10"] for one in tried)
        assert ranking.mean_metric(there, cases(step), history="removed") == pytest.approx(best)


def test_items_training_never_saw_are_ordered_by_texts_where_texts_say_more(monkeypatch, alike):
    """Half of the items are new; what follows is the new item whose text is nearest, and the scores know nothing."""
    monkeypatch.setattr(evidence, "ENOUGH", 5)
    trained = np.arange(ITEMS) < ITEMS // 2
    read = Ragged.of([[a, b] for a in range(6) for b in range(6) if a != b])
    truth = Ragged.of([[6 + int(np.argmax(row[6:]))] for row in alike(read)])
    part = Part(ranking.Cases(np.arange(len(read)), read, truth), read)
    misleading = np.tile(np.where(trained, 0.0, -8.0).astype(np.float32), (len(read), 1))
    misleading[:, 6:] += np.random.default_rng(3).normal(size=(len(read), 6))
    scorer = lambda h: misleading[: len(h)].copy()  # noqa: E731
    chosen = choose(scorer, [part], alike, trained, "kept")[0]
    assert chosen.new_likeness > 10 * chosen.new_scores
    assert chosen.new_likeness > 0
    assert chosen.new_scores < 1
    found = Evidence(scorer, read, alike, trained, chosen)
    new = ranking.Group("new", ~trained, EVERY)
    value = ranking.evaluate(found, part.cases, [new], ks=(10,)).mean("ndcg@10", "new", "kept")
    plain = ranking.evaluate(scorer, part.cases, [new], ks=(10,)).mean("ndcg@10", "new", "kept")
    assert value > plain + 0.2
    few = choose(scorer, [part], alike, EVERY, "kept")[0]
    assert (few.new_scores, few.new_level) == (1.0, 0.0), "no weights of their own where nothing is new"


def test_every_weighting_is_ranked_as_its_sum_would_be():
    rng = np.random.default_rng(4)
    given = cases(3)
    tables = {name: rng.normal(size=(len(given), ITEMS)).astype(np.float32) for name in ("a", "b")}
    cold = rng.random(ITEMS) < 0.4
    groups = [weighing.everything(ITEMS), ranking.Group("cold", cold, cold)]
    grid = [{"a": 1.0}, {"a": 0.5, "b": -2.0}]
    for history in ("kept", "removed"):
        found = weighing.ndcg_of([given], [lambda h: tables], grid, groups, history)
        for row, weights in enumerate(grid):
            total = sum(np.float32(weight) * tables[name] for name, weight in weights.items())
            other = ranking.evaluate(lambda h, total=total: total, given, groups, ks=(10,))
            for at, group in enumerate(groups):
                np.testing.assert_allclose(found[at][row], other.tables[history, group.name]["ndcg@10"])
