"""Why an item is answered: which items of the history its score depends on, and what each slot alone would answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from serving.engine.ranking.candidates import Ranked, ScoringBatch
from setrec.data.events import read
from setrec.ragged import Ragged

EFFECTS, NEAREST = 3, 3
CONSIDERED = 50
"""Items of the history that are left out in turn, the latest; the model reads no more by default."""


def history_effects(
    events: Ragged, ranked: Ranked, score: Callable[[Ragged], ScoringBatch]
) -> list[list[tuple[int, float]]]:
    """Rows of the history with the fall of an item's score when they are left out, largest first, for each item.

    Every distinct item of the history is left out once, all of them in one batch.

    Args:
        events: the history, one row, see :mod:`setrec.data.events`.
        ranked: the items to explain, with scores of the whole history.
        score: what scores other histories by the same terms.
    """
    history = read(events).values
    latest = np.unique(history[::-1], return_index=True)
    distinct = latest[0][np.argsort(latest[1], kind="stable")][:CONSIDERED]
    without = np.zeros((len(distinct), len(ranked.rows)))
    if len(distinct) > 1:  # otherwise the only item is the whole reason
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
    """Of a user code float32 (D,) what each slot kind alone asks, float32 (D,), without kinds of weight 0."""
    found = {}
    for kind, (start, stop) in columns.items():
        query = np.zeros_like(user)
        query[start:stop] = user[start:stop]
        if query.any():
            found[kind] = query
    return found
