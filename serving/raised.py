"""Items whose scores are more than an inner product: an index does not know by how much, so they are scored one by one.

What is added is told by its source: ``returns``, the learned number that items of the history get where the model has
one; ``transitions``, what a walk from the history adds where it comes to, see ``setrec.walk``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serving.exact import Hits
from serving.items import ItemTable
from setrec.ragged import Ragged
from setrec.walk import Walk

RETURNS, TRANSITIONS = "returns", "transitions"


@dataclass(frozen=True)
class Raised:
    """``rows`` int64 (m,), each once, and what is added to their scores by source, float64 (m,) each."""

    rows: np.ndarray
    added: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, held: np.ndarray, by: float, rows: np.ndarray, more: np.ndarray) -> Raised:
        """Rows ``held``, all raised by one number, and other ``rows`` that a walk raises, each by its own."""
        returns = np.repeat([by, 0.0], [len(held), len(rows)])
        return cls(np.append(held, rows), {RETURNS: returns, TRANSITIONS: np.append(np.zeros(len(held)), more)})

    @property
    def total(self) -> np.ndarray:
        """What is added to each row's score, from all sources."""
        return np.sum(list(self.added.values()), axis=0)

    def where(self, some: np.ndarray) -> Raised:
        """Only the rows whose flag in ``some``, bool (m,), is true."""
        return Raised(self.rows[some], {source: added[some] for source, added in self.added.items()})

    def best(self, hits: Hits, products: np.ndarray, k: int) -> Hits:
        """The ``k`` best of these rows, whose inner products are given, float64 (m,), and of what an index found.

        The index may have found some of these rows too, at less than their score. The answer is the best of all rows
        all the same, if the index found the ``k`` best of those that are not here for being lowered: a row that was not
        among its best is below ``k`` others, which at most rise.
        """
        scores = products + self.total
        other = ~np.isin(hits.rows, self.rows)
        rows, scores = np.append(hits.rows[other], self.rows), np.append(hits.scores[other], scores)
        order = np.lexsort((rows, -scores))[:k]
        return Hits(rows[order], scores[order])

    def shares(self, rows: np.ndarray) -> list[dict[str, float]]:
        """What is added to the score of each of ``rows``, by source; nothing for one that is not here."""
        found: list[dict[str, float]] = [{} for _ in rows]
        _, at, here = np.intersect1d(rows, self.rows, assume_unique=True, return_indices=True)
        for source, added in self.added.items():
            for place, value in zip(at.tolist(), added[here].tolist(), strict=True):
                if value:
                    found[place][source] = value
        return found


def walked(walk: Walk, histories: Sequence[np.ndarray], items: ItemTable) -> list[tuple[np.ndarray, np.ndarray]]:
    """For every history (rows of ``items``) where the walk comes to, rows int64 as they stand now, and what it adds,
    float64. The walk knows the items of the bundle alone."""
    found, roots = walk.roots(Ragged.of([items.before(rows) for rows in histories], np.int64))
    each = []
    for number, rows in enumerate(found):
        now, start = items.moved(rows), found.offsets[number]
        more = walk.settings.weight * roots[start : start + len(rows)].astype(np.float64)
        each.append((now[now >= 0], more[now >= 0]))
    return each
