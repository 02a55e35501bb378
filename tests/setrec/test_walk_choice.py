"""Which walk is added to a model's scores: one that helps, and none where none does."""

from functools import partial

import numpy as np

from setrec import ranking
from setrec.ragged import Ragged
from setrec.walk import WalkSettings
from setrec.walk_choice import SHAPES, WEIGHTS, WalkChoice

ITEMS = 30
rng = np.random.default_rng(0)


def zeros(history: Ragged) -> np.ndarray:
    return np.zeros((len(history), ITEMS), dtype=np.float32)


def follows_by(step: int) -> tuple[Ragged, ranking.Cases]:
    """Histories in which item i is followed by i + step, and cases in which it is, once more."""
    starts = [rng.integers(ITEMS) for _ in range(80)]
    read = Ragged.of([(start + step * np.arange(3)) % ITEMS for start in starts])
    truth = Ragged.of([[(start + step * 3) % ITEMS] for start in starts])
    return read, ranking.Cases(np.arange(80), read, truth)


def choice(scorer: ranking.Scorer, rows: Ragged, cases: ranking.Cases) -> tuple[WalkSettings, list[dict]]:
    walks = WalkChoice.of(rows, ITEMS)
    best, found = ranking.choose_weights(partial(walks.terms, scorer), cases, walks.grid)
    return walks.settings(best), walks.told(found)


def test_a_walk_that_helps_gets_a_weight_and_one_that_does_not_gets_none():
    rows, cases = follows_by(1)
    helped, tried = choice(zeros, rows, cases)
    assert helped.weight > 0
    assert max(row["ndcg@10"] for row in tried) > tried[0]["ndcg@10"] + 0.3
    assert tried[0]["weight"] == 0
    assert len(tried) == 1 + len(SHAPES) * len(WEIGHTS)

    def knows(history: Ragged) -> np.ndarray:
        scores = zeros(history)
        last = history.values[history.offsets[1:] - 1]
        scores[np.arange(len(history)), (last + 1) % ITEMS] = 1.0
        return scores

    assert choice(knows, follows_by(7)[0], cases)[0].weight == 0
