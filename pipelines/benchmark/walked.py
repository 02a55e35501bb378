"""A second memory: the graph of which item followed which, as votes beside a model's own distribution.

The model places an item by what it has learned of it; how often one item followed another, exactly, is more than it
can hold, and for items that few have chosen more than it could learn. The walk of ``setrec.transitions`` says it, from
all of a history, and from events after training as well. With q the walk's scores as a distribution over the items
outside the history,

    p(i) = (1 - weight) softmax(s)_i + weight q_i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.memory import blended
from setrec import ranking
from setrec.ragged import Ragged
from setrec.transitions import Transitions, TransitionSettings, transition_graph

WALKS = (
    TransitionSettings(reach=3, fade=0.5, shrink=3.0, last=50, decay=0.8, text=0.0),
    TransitionSettings(reach=8, fade=0.8, shrink=3.0, last=50, decay=0.9, text=0.0),
)
WEIGHTS = (0.02, 0.05, 0.1, 0.2, 0.3)
BATCH = 256


@dataclass(frozen=True)
class Part:
    """Validation users to be ranked: their ``cases``, a ``scorer`` that may know the histories ``known`` but not what
    followed for these users."""

    cases: ranking.Cases
    scorer: ranking.Scorer
    known: Ragged


class Walked:
    """A scorer with the votes of a walk, itself a scorer: log-probabilities (b, I)."""

    def __init__(self, scorer: ranking.Scorer, walk: Transitions, weight: float) -> None:
        self.scorer, self.walk, self.weight = scorer, walk, weight

    def __call__(self, history: Ragged) -> np.ndarray:
        """See :class:`setrec.ranking.Scorer`."""
        return blended(self.scorer(history), self.walk(history), self.weight, list(history))


def walked(
    scorer: ranking.Scorer, known: Ragged, parts: Sequence[Part], items: int, history: str
) -> tuple[ranking.Scorer, dict[str, Any]]:
    """``scorer`` with the walk over the ``known`` histories that is best on the ``parts`` of validation, or alone where
    none helps, and what was chosen: NDCG@10 in the given history protocol."""
    users = sum(len(part.cases) for part in parts)
    values = np.zeros((len(WALKS), 1 + len(WEIGHTS)))
    for part in parts:
        values += np.array(_values(part, items, history)) * len(part.cases) / max(1, users)
    tried = [
        {**walk.model_dump(), "weight": weight, "ndcg@10": float(value)}
        for walk, row in zip(WALKS, values, strict=True)
        for weight, value in zip((0.0, *WEIGHTS), row, strict=True)
    ]
    best = max(tried, key=lambda one: one["ndcg@10"])
    told = {"walk": {name: value for name, value in best.items() if name != "ndcg@10"}, "walks_tried": tried}
    if best["weight"] == 0:
        return scorer, told
    chosen = WALKS[tried.index(best) // (1 + len(WEIGHTS))]
    return Walked(scorer, Transitions(transition_graph(known, items, chosen), None, chosen), best["weight"]), told


def _values(part: Part, items: int, history: str) -> list[list[float]]:
    """NDCG@10 by walk, of no weight and of all weights."""
    every = np.ones(items, dtype=bool)
    groups = [ranking.Group("all", every, every)]
    walks = [Transitions(transition_graph(part.known, items, s), None, s) for s in WALKS]
    found: list[list[list[ranking.Ranks]]] = [[[] for _ in range(1 + len(WEIGHTS))] for _ in walks]
    for start in range(0, len(part.cases), BATCH):
        read, truth = part.cases.batch(start, BATCH)
        scores = part.scorer(read)
        for walk, kept in zip(walks, found, strict=True):
            votes = walk(read)
            for weight, ranks in zip((0.0, *WEIGHTS), kept, strict=True):
                told = blended(scores, votes, weight, list(read)) if weight else scores
                ranks.append(ranking.batch_ranks(lambda _, told=told: told, read, truth, groups))
    users = part.cases.users
    return [
        [ranking.joined(users, ranks, groups, (10,)).mean("ndcg@10", "all", history) for ranks in kept]
        for kept in found
    ]
