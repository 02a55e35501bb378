"""Explanations: the items of the history that a score depends on, and the items that each slot alone would
recommend."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from serving.engine.ranking.candidates import Ranked, ScoringBatch
from setrec.data.events import read
from setrec.ragged import Ragged

EFFECTS, NEAREST = 3, 3
CONSIDERED = 50
"""Number of latest items of the history that are left out in turn; by default the model reads no more."""


def history_effects(
    events: Ragged, ranked: Ranked, score: Callable[[Ragged], ScoringBatch]
) -> list[list[tuple[int, float]]]:
    """Return, for each item, rows of the history with the decrease of the score without them, largest first.

    Every distinct item of the history is left out once, in one batch.

    Args:
        events: the history, one row; see :mod:`setrec.data.events`.
        ranked: the items to explain, with scores of the whole history.
        score: function that scores other histories with the same terms.
    """
    history = read(events).values
    latest = np.unique(history[::-1], return_index=True)
    distinct = latest[0][np.argsort(latest[1], kind="stable")][:CONSIDERED]
    without = np.zeros((len(distinct), len(ranked.rows)))
    if len(distinct) > 1:  # otherwise the only item is the whole explanation
        reduced = [events.where(events.values != row) for row in distinct]
        batch = score(Ragged.joined(reduced))
        rows = Ragged.of([ranked.rows] * len(reduced), np.int64)
        parts = batch.scorer.parts(batch.history, rows, batch.entries)
        without = np.sum(list(parts.values()), axis=0).reshape(without.shape)
    effects = ranked.scores - without
    order = np.argsort(-effects, axis=0, kind="stable")[:EFFECTS]
    return [
        [(int(distinct[at]), float(effects[at, i])) for at in order[:, i] if effects[at, i] > 0]
        for i in range(len(ranked.rows))
    ]


def slot_queries(user: np.ndarray, columns: dict[str, tuple[int, int]]) -> dict[str, np.ndarray]:
    """Return the query of each slot kind alone, float32 (D,), from a user code float32 (D,), without kinds of weight
    0."""
    queries = {}
    for kind, (start, stop) in columns.items():
        query = np.zeros_like(user)
        query[start:stop] = user[start:stop]
        if query.any():
            queries[kind] = query
    return queries
