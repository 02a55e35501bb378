"""A training-free opponent: random walks on the transition graph from the last items of a history.

After arXiv 2605.07125. With P the transition probabilities (:mod:`setrec.scoring.transitions`) and x the start of the
walk at the last items of a history (:func:`setrec.scoring.item_graph.start_weights`), the score is

    x P + damping x P^2 + damping^2 x P^3 + ... (``hops`` terms) + text x T,

where T[i, j] is the cosine of the text vectors of i and j, the only term for a cold item.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import scipy.sparse as sp

from setrec.data.catalog import TRAIN, VALID, Histories
from setrec.evaluation import ranking
from setrec.models.item_tokens import unit_rows
from setrec.ragged import Ragged
from setrec.scoring.item_graph import Reading, start_weights
from setrec.scoring.transitions import TransitionSettings, transition_probabilities

TEXT = "text"
"""The kind of the text score; the others are ``hop 1``, ``hop 2`` and so on."""


class TransitionWalkSettings(TransitionSettings):
    """The graph, the start of a walk (``last`` items of the history, ``decay`` per step back), its number of steps
    (``hops``), the factor per further step (``damping``), and the weight of ``text``."""

    last: int = 5
    decay: float = 0.5
    damping: float = 0.3
    hops: int = 2
    text: float = 0.03

    @property
    def reading(self) -> Reading:
        """The reading of the graph by histories."""
        return Reading(last=self.last, decay=self.decay)


class TransitionScorer:
    """The opponent, a :class:`setrec.evaluation.ranking.Scorer`.

    Args:
        graph: as :func:`transition_probabilities` gives it for the same settings.
        text: as :func:`unit_rows` gives it, ``None`` where items have no texts.
    """

    def __init__(self, graph: sp.csr_matrix, text: np.ndarray | None, settings: TransitionWalkSettings) -> None:
        self.graph, self.text, self.settings = graph, text, settings

    def kinds(self, history: Ragged) -> dict[str, np.ndarray]:
        """Return each term of the score without its weight, float32 (b, I)."""
        near, weight = start_weights(history, self.settings.reading)
        x = step = sp.csr_matrix((weight, near.values, near.offsets), (len(near), self.graph.shape[0]))
        terms = {}
        for hop in range(1, self.settings.hops + 1):
            step = step @ self.graph
            terms[f"hop {hop}"] = step.toarray().astype(np.float32)
        if self.text is not None:
            terms[TEXT] = (x @ self.text).astype(np.float32) @ self.text.T
        return terms

    def __call__(self, history: Ragged) -> np.ndarray:
        """Return scores, float32 (b, I)."""
        weights = term_weights(self.settings, self.text is not None)
        kinds = self.kinds(history)
        return np.asarray(sum(np.float32(weight) * kinds[kind] for kind, weight in weights.items()), dtype=np.float32)


def term_weights(s: TransitionWalkSettings, text: bool) -> dict[str, float]:
    """Return the weight of each term of the score."""
    hops = {f"hop {hop}": s.damping ** (hop - 1) for hop in range(1, s.hops + 1)}
    return hops | {TEXT: s.text} if text else hops


GRID: Mapping[str, Sequence[Any]] = {
    "graph": (
        {"reach": 1, "fade": 1.0},
        {"reach": 3, "fade": 0.5},
        {"reach": 8, "fade": 0.8},
    ),
    "backward": (0.0, 0.5),
    "shrink": (3.0, 30.0),
    "start": (
        {"last": 2, "decay": 0.3},
        {"last": 5, "decay": 0.5},
        {"last": 50, "decay": 0.8},
        {"last": 50, "decay": 0.9},
    ),
    "damping": (0.0, 0.3, 1.0),
    "text": (0.0, 0.01, 0.02, 0.04, 0.08, 0.2),
}
"""The grid; ``graph`` and ``start`` set two fields of :class:`TransitionWalkSettings` at once."""


def tune_transitions(
    histories: Histories,
    items: int,
    text: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    over: Callable[[], bool] = lambda: False,
    users: int = 5_000,
    seed: int = 0,
) -> tuple[TransitionScorer, list[dict[str, Any]]]:
    """Return the walk of :data:`GRID` with the best validation NDCG@10 (history removed), and the values of the grid.

    ``text``: float32 (I, w), or ``None``. Every setting is evaluated on the same sample of ``users`` validation users,
    drawn by ``seed``. All weights of the terms share one walk. ``over`` is called after every walk; once it returns
    true, the best setting so far is used. Without validation items the default settings are used.
    """
    cases = ranking.Cases.of(histories, VALID, users, seed)
    rows, unit = histories.upto(TRAIN), None if text is None else unit_rows(text)
    tried: list[dict[str, Any]] = []
    walks = list(product(GRID["graph"], GRID["backward"], GRID["shrink"])) if len(cases) else []
    best: tuple[float, TransitionScorer] | None = None
    for done, (shape, backward, shrink) in enumerate(walks):
        base = TransitionWalkSettings(**shape, backward=backward, shrink=shrink)
        graph = transition_probabilities(rows, items, base)
        for start in GRID["start"]:
            weighted = _weighted(TransitionScorer(graph, unit, base.model_copy(update=start)), cases)
            tried += [{**s.model_dump(), "ndcg@10": value} for s, value in weighted]
            settings, value = max(weighted, key=lambda one: one[1])
            if best is None or value > best[0]:
                best = (value, TransitionScorer(graph, unit, settings))
            if over():
                return best[1], tried
        if progress is not None:
            progress(done + 1, len(walks))
    if best is None:
        return TransitionScorer(
            transition_probabilities(rows, items, TransitionWalkSettings()), unit, TransitionWalkSettings()
        ), tried
    return best[1], tried


def _weighted(model: TransitionScorer, cases: ranking.Cases) -> list[tuple[TransitionWalkSettings, float]]:
    """Return the NDCG@10 of a walk for all weights of its terms in the grid."""
    text = GRID["text"] if model.text is not None else (0.0,)
    options = [
        model.settings.model_copy(update={"damping": damping, "text": weight})
        for damping, weight in product(GRID["damping"], text)
    ]
    grid = [term_weights(s, model.text is not None) for s in options]
    values = ranking.choose_weights(model.kinds, cases, grid)[1]
    return [(s, row["ndcg@10"]) for s, row in zip(options, values, strict=True)]
