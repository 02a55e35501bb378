"""Text similarity: how close an item's text comes to those of a history, to the nearest of its items above all.

A history is of several interests, and what comes next resembles some of it. The mean of cosines to all of it asks for
what resembles everything a little; the power mean

    c_i = (mean over items h of the history of max(0, t_hi)^p)^(1/p),   p = 4,

lies between that mean and the largest, where a single item decides. t_hi is the mean of the cosines of the TF-IDF rows
and of the sentence vectors: words state a brand, a product line or a size exactly, and vectors what is meant where
words differ. The component's graph is G = max(0, t)^p, of which each row's largest entries are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from setrec.scoring.item_graph import GraphComponent, ItemGraph, Reading

POWER = 4
READING = Reading(last=50, decay=1.0, power=POWER)
ENTRIES = 1 << 24
"""Arcs kept in all, 8 bytes each: as many of every item as this allows."""
FEWEST = 64
"""Arcs kept of an item at least."""
_CELLS = 1 << 23
"""Similarities held at a time."""


@dataclass(frozen=True)
class TextFeatures:
    """What similarity reads of I items: ``lexical``, TF-IDF rows of length 1, float32 (I, V), and ``sentences``, unit
    vectors float32 (I, w) around their mean (:func:`unit_rows`), ``None`` without a sentence encoder."""

    lexical: sp.csr_matrix
    sentences: np.ndarray | None = None

    def __len__(self) -> int:
        return int(self.lexical.shape[0])

    def take(self, rows: np.ndarray) -> TextFeatures:
        """The features of some rows."""
        return TextFeatures(self.lexical[rows], None if self.sentences is None else self.sentences[rows])

    def similarity(self, other: TextFeatures) -> np.ndarray:
        """G of these items and of ``other`` ones, float32 (len(self), len(other)), without zeros left out."""
        alike = (self.lexical @ other.lexical.T).toarray()
        if self.sentences is not None and other.sentences is not None:
            alike = (alike + self.sentences @ other.sentences.T) / 2
        return np.asarray(np.maximum(alike, 0) ** POWER, dtype=np.float32)


def kept_arcs(items: int) -> int:
    """How many arcs of an item are kept in a catalogue of ``items``."""
    return max(FEWEST, ENTRIES // max(1, items))


def text_component(features: TextFeatures, kept: int | None = None) -> GraphComponent:
    """The component of a catalogue; ``kept`` arcs of an item, by default :func:`kept_arcs`."""
    items = len(features)
    kept, step = kept or kept_arcs(items), max(1, _CELLS // max(1, items))
    rows = [
        greatest(features.take(np.arange(start, min(start + step, items))).similarity(features), kept)
        for start in range(0, items, step)
    ]
    return GraphComponent(ItemGraph.of(sp.vstack(rows, format="csr")), READING)


def greatest(rows: np.ndarray, count: int) -> sp.csr_matrix:
    """The entries above zero among the ``count`` greatest of each row."""
    if count >= rows.shape[1]:
        return sp.csr_matrix(rows)
    columns = np.sort(np.argpartition(rows, -count, axis=1)[:, -count:], axis=1).astype(np.int32)
    offsets = np.arange(len(rows) + 1) * count
    kept = sp.csr_matrix((np.take_along_axis(rows, columns, axis=1).ravel(), columns.ravel(), offsets), rows.shape)
    kept.eliminate_zeros()
    return kept
