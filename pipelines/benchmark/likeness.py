"""How near an item comes to a history by what is said of it: to the nearest of its items, more than to all.

A history is of several interests, and what comes next is like some of it. The mean of cosines to all of it asks for
what is a little like everything; their power mean

    c_i = (mean over items h of the history of max(0, t_hi)^p)^(1/p),   p = 4,

lies between that mean and the largest, where a single item decides. t_hi is the mean of the cosines of words and of
sentence vectors: words say exactly a brand, a product line, a size, and vectors what is meant where words differ.

The fourth powers of t are a graph, like that of transitions, and of each item's row the greatest are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from pipelines.benchmark.words import word_rows
from setrec.ragged import Ragged
from setrec.transitions import unit_rows

POWER = 4
ENTRIES = 1 << 24
"""Numbers kept in all, 128 MB."""
FEWEST = 64
"""Numbers kept of an item at least."""
_CELLS = 1 << 23
"""Numbers that are worked out at a time."""


@dataclass(frozen=True)
class Likeness:
    """``graph``: fourth powers of t above, float32 (I, I), the greatest of each row."""

    graph: sp.csr_matrix

    @classmethod
    def of(cls, texts: Sequence[str], sentences: np.ndarray | None = None, entries: int = ENTRIES) -> Likeness:
        """Of items with these ``texts``, and vectors of them, float32 (I, w), where there are any."""
        words, items = word_rows(texts).astype(np.float32), len(texts)
        meant = None if sentences is None else unit_rows(sentences)
        columns, kept = words.T.tocsr(), max(FEWEST, entries // max(1, items))
        rows, step = [], max(1, _CELLS // max(1, items))
        for start in range(0, items, step):
            block = slice(start, start + step)
            alike = (words[block] @ columns).toarray()
            if meant is not None:
                alike = (alike + meant[block] @ meant.T) / 2
            rows.append(_greatest(np.maximum(alike, 0) ** POWER, kept))
        return cls(sp.vstack(rows, format="csr"))

    def __call__(self, history: Ragged) -> np.ndarray:
        """c above, float32 (b, I); zero for an empty history."""
        share = np.repeat(1 / np.maximum(history.lengths, 1), history.lengths).astype(np.float32)
        x = sp.csr_matrix((share, history.values, history.offsets), (len(history), self.graph.shape[0]))
        return np.asarray((x @ self.graph).toarray() ** np.float32(1 / POWER))


def _greatest(rows: np.ndarray, count: int) -> sp.csr_matrix:
    """What is not zero among the ``count`` greatest of each row."""
    if count >= rows.shape[1]:
        return sp.csr_matrix(rows)
    columns = np.sort(np.argpartition(rows, -count, axis=1)[:, -count:], axis=1).astype(np.int32)
    offsets = np.arange(len(rows) + 1) * count
    kept = sp.csr_matrix((np.take_along_axis(rows, columns, axis=1).ravel(), columns.ravel(), offsets), rows.shape)
    kept.eliminate_zeros()
    return kept
