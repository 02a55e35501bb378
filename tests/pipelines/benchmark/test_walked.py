"""Votes of a walk beside a model's own distribution, chosen on validation."""

import numpy as np
import pytest

from pipelines.benchmark.walked import WALKS, Part, Walked, walked
from setrec import ranking
from setrec.ragged import Ragged
from setrec.transitions import Transitions, transition_graph

ITEMS = 12
CIRCLE = Ragged.of([(np.arange(4) + start) % ITEMS for start in range(ITEMS)] * 2)


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


def test_votes_are_mixed_with_the_scores_softmax_and_none_go_to_the_history():
    walk = Transitions(transition_graph(CIRCLE, ITEMS, WALKS[0]), None, WALKS[0])
    history = Ragged.of([[0, 1, 2]])
    votes = walk(history)[0].astype(float)
    assert (votes[[0, 1, 2]] > 0).any()
    votes[[0, 1, 2]] = 0.0
    mixed = np.exp(Walked(nothing, walk, 0.4)(history)[0])
    np.testing.assert_allclose(mixed, 0.6 / ITEMS + 0.4 * votes / votes.sum(), rtol=1e-5)


def test_a_walk_is_taken_where_it_helps_and_left_where_it_does_not():
    for scorer, step, helps in ((nothing, 1, True), (knows, 2, False)):
        parts = [Part(cases(step), scorer, CIRCLE)] * 2
        chosen, told = walked(scorer, CIRCLE, parts, ITEMS, "removed")
        values = {(one["reach"], one["weight"]): one["ndcg@10"] for one in told["walks_tried"]}
        alone = ranking.mean_metric(scorer, cases(step), history="removed")
        assert values[3, 0.0] == values[8, 0.0] == pytest.approx(alone)
        assert max(values.values()) == values[told["walk"]["reach"], told["walk"]["weight"]]
        assert (chosen is not scorer) == (told["walk"]["weight"] > 0) == helps
        assert ranking.mean_metric(chosen, cases(step), history="removed") == pytest.approx(max(values.values()))
