"""Text similarity of an item to a history, dominated by the nearest items of the history.

A history reflects several interests, and the next item resembles only some of its items. The mean of all cosines
favours items that resemble everything a little; the power mean

    c_i = (mean over items h of the history of max(0, t_hi)^p)^(1/p),   p = 4,

lies between that mean and the maximum, which depends on a single item. t_hi is the mean of the cosines of the TF-IDF
rows and of the sentence vectors: words state a brand, a product line or a size exactly, and vectors match meaning
across different words. The component's graph is G = max(0, t)^p, of which each row's largest entries are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from setrec.scoring.item_graph import GraphComponent, ItemGraph, Reading

POWER = 4
READING = Reading(last=50, decay=1.0, power=POWER)
ENTRIES = 1 << 24
"""Maximum number of arcs in total, 8 bytes each; it is divided equally among the items."""
FEWEST = 64
"""Minimum number of arcs per item."""
_CELLS = 1 << 23
"""Number of similarities in memory at a time."""


@dataclass(frozen=True)
class TextFeatures:
    """Features of I items for text similarity: ``lexical``, TF-IDF rows of length 1, float32 (I, V), and ``sentences``,
    unit vectors float32 (I, w) around their mean (:func:`unit_rows`), ``None`` without a sentence encoder."""

    lexical: sp.csr_matrix
    sentences: np.ndarray | None = None

    def __len__(self) -> int:
        return int(self.lexical.shape[0])

    def take(self, rows: np.ndarray) -> TextFeatures:
        """Return the features of some rows."""
        return TextFeatures(self.lexical[rows], None if self.sentences is None else self.sentences[rows])

    def similarity(self, other: TextFeatures) -> np.ndarray:
        """Return G between these items and ``other`` ones, a dense float32 (len(self), len(other))."""
        alike = (self.lexical @ other.lexical.T).toarray()
        if self.sentences is not None and other.sentences is not None:
            alike = (alike + self.sentences @ other.sentences.T) / 2
        return np.asarray(np.maximum(alike, 0) ** POWER, dtype=np.float32)


def kept_arcs(items: int) -> int:
    """Return the number of arcs kept per item in a catalogue of ``items``."""
    return max(FEWEST, ENTRIES // max(1, items))


def text_component(features: TextFeatures, kept: int | None = None) -> GraphComponent:
    """Return the component of a catalogue; ``kept``: arcs per item, by default :func:`kept_arcs`."""
    items = len(features)
    kept, step = kept or kept_arcs(items), max(1, _CELLS // max(1, items))
    rows = [
        greatest(features.take(np.arange(start, min(start + step, items))).similarity(features), kept)
        for start in range(0, items, step)
    ]
    return GraphComponent(ItemGraph.of(sp.vstack(rows, format="csr")), READING)


def greatest(rows: np.ndarray, count: int) -> sp.csr_matrix:
    """Return the positive entries among the ``count`` largest of each row."""
    if count >= rows.shape[1]:
        return sp.csr_matrix(rows)
    columns = np.sort(np.argpartition(rows, -count, axis=1)[:, -count:], axis=1).astype(np.int32)
    offsets = np.arange(len(rows) + 1) * count
    kept = sp.csr_matrix((np.take_along_axis(rows, columns, axis=1).ravel(), columns.ravel(), offsets), rows.shape)
    kept.eliminate_zeros()
    return kept
