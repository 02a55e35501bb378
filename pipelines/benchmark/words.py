"""Vectors of the words in texts: weighted counts brought to few dimensions. What a sentence encoder blurs (a brand, a
product line, a size) is often what makes people choose the next item, and rare words say it exactly."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

WIDTH = 256
SPARE, ROUNDS = 32, 4
"""Directions beyond those kept, and rounds of refinement, of the randomised decomposition."""
_WORD = re.compile(r"\w+")


def word_rows(texts: Sequence[str]) -> sp.csr_matrix:
    """Weighted counts of words, (len(texts), words), rows of length 1 (0 for texts of no known word).

    Words in a single text, and in more than half of them, are left out; counts are dampened by their logarithm, and
    words weighted by their inverse document frequency.
    """
    counts = _counts(texts)
    seen = np.diff(counts.tocsc().indptr)
    weights = np.where((seen > 1) & (seen <= max(2, len(texts) / 2)), np.log(len(texts) / np.maximum(seen, 1)), 0.0)
    counts.data = 1 + np.log(counts.data)
    return _unit_rows(counts @ sp.diags(weights))


def word_vectors(texts: Sequence[str], width: int = WIDTH, seed: int = 0) -> np.ndarray:
    """Latent semantic vectors, float32 (len(texts), width), of length 1 (0 for texts of no known word): the
    :func:`word_rows` cut to their first ``width`` singular directions (Deerwester and others 1990)."""
    table = word_rows(texts)
    left, strength = _directions(table, width, seed)
    vectors = np.zeros((len(texts), width), dtype=np.float32)
    vectors[:, : len(strength)] = left * strength
    vectors[np.diff(table.indptr) == 0] = 0.0  # not the rounding errors that would be scaled up
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def _directions(table: sp.csr_matrix, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The first left singular vectors (rows, k <= width) and values (k,), by random projection and subspace iteration
    (Halko, Martinsson and Tropp 2011, arXiv 0909.4061): unlike Lanczos steps, the same in every call."""
    kept = min(width + SPARE, *table.shape)
    q = np.random.default_rng(seed).standard_normal((table.shape[1], kept))
    for _ in range(ROUNDS):
        q, _ = np.linalg.qr(table.T @ np.linalg.qr(table @ q)[0])
    left, strength, _ = np.linalg.svd(table @ q, full_matrices=False)
    return left[:, :width], strength[:width]


def _counts(texts: Sequence[str]) -> sp.csr_matrix:
    column: dict[str, int] = {}
    words = [[column.setdefault(w, len(column)) for w in _WORD.findall(text.lower())] for text in texts]
    lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.fromiter((w for row in words for w in row), dtype=np.int64, count=int(offsets[-1]))
    counts = sp.csr_matrix((np.ones(len(flat)), flat, offsets), (len(texts), max(1, len(column))))
    counts.sum_duplicates()
    return counts


def _unit_rows(table: sp.csr_matrix) -> sp.csr_matrix:
    norms = np.sqrt(np.asarray(table.multiply(table).sum(axis=1)).ravel())
    return sp.csr_matrix(sp.diags(1.0 / np.maximum(norms, 1e-12)) @ table)
