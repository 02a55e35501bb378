"""Lexical features of texts: TF-IDF rows and latent semantic vectors of them (scikit-learn).

A sentence encoder blurs brands, product lines and sizes; rare words state them exactly, and they often determine the
next choice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from safetensors.numpy import load_file, save_file

from setrec.atomic import atomic_file
from setrec.rows import normalize_rows

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

WIDTH = 256
ITERATIONS = 7
"""Power iterations of the randomised decomposition."""
VOCABULARY, TENSORS = "vocabulary.json", "lexical.safetensors"
KEY_WORDS, FEWEST, MOST = 2000, 5, 0.2
"""Maximum number of key words; the number and the share of texts between which a key word occurs."""


class LexicalEncoder:
    """TF-IDF over a fixed vocabulary, and a projection of it to ``width`` numbers.

    Args:
        vocabulary: V words.
        idf: inverse document frequency of each word, float32 (V,).
        directions: the projection, float32 (V, width).
    """

    def __init__(self, vocabulary: Sequence[str], idf: np.ndarray, directions: np.ndarray) -> None:
        self.vocabulary, self.idf, self.directions = tuple(vocabulary), idf, directions

    @classmethod
    def fit(cls, texts: Sequence[str], width: int = WIDTH, seed: int = 0) -> LexicalEncoder:
        """Fit on the ``texts`` of a catalogue. Words of a single text, and of more than half of the texts, are left
        out; the projection is that of latent semantic analysis (Deerwester et al. 1990)."""
        vectorizer = _vectorizer(min_df=2, max_df=max(2, len(texts) // 2))
        try:
            rows = vectorizer.fit_transform(texts)
        except ValueError:  # no word occurs in two texts
            return cls((), np.empty(0, np.float32), np.empty((0, width), np.float32))
        directions = np.zeros((rows.shape[1], width), np.float32)
        if kept := min(width, *rows.shape):
            from sklearn.decomposition import TruncatedSVD

            svd = TruncatedSVD(kept, algorithm="randomized", n_iter=ITERATIONS, random_state=seed).fit(rows)
            directions[:, :kept] = svd.components_.T
        return cls(tuple(vectorizer.get_feature_names_out()), vectorizer.idf_.astype(np.float32), directions)

    @property
    def width(self) -> int:
        """Dimension of the vectors."""
        return int(self.directions.shape[1])

    @cached_property
    def identity(self) -> str:
        """Hash of everything a vector depends on except the text."""
        content = json.dumps(self.vocabulary).encode() + self.idf.tobytes() + self.directions.tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    def rows(self, texts: Sequence[str]) -> sp.csr_matrix:
        """Return TF-IDF rows, float32 (len(texts), V), of length 1; zeros for a text without a word of the
        vocabulary."""
        if not self.vocabulary:
            return sp.csr_matrix((len(texts), 0), dtype=np.float32)
        return sp.csr_matrix(self._vectorizer.transform(texts))

    def key_words(self, texts: Sequence[str]) -> sp.csr_matrix:
        """Return the shares of each text's key words, float32 (len(texts), V'), by TF-IDF; a row adds up to 1, or to 0
        for a text without key words. These are the up to :data:`KEY_WORDS` most frequent words of the vocabulary in at
        least :data:`FEWEST` and at most a share :data:`MOST` of the texts."""
        rows = self.rows(texts)
        count = rows.getnnz(axis=0)
        allowed = np.flatnonzero((count >= FEWEST) & (count <= MOST * len(texts)))
        chosen = np.sort(allowed[np.argsort(-count[allowed], kind="stable")][:KEY_WORDS])
        rows = rows[:, chosen]
        sums = np.maximum(np.asarray(rows.sum(axis=1)).ravel(), np.float32(1e-9))
        return sp.csr_matrix(sp.diags(1 / sums) @ rows, dtype=np.float32)

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Return latent semantic vectors, float32 (len(texts), width), of length 1, or zero without a word of the
        vocabulary."""
        return normalize_rows(np.asarray(self.rows(texts) @ self.directions, dtype=np.float32))

    def save(self, folder: Path) -> None:
        """Write ``vocabulary.json`` and ``lexical.safetensors`` into ``folder``, each atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / TENSORS) as path:
            save_file({"idf": self.idf, "directions": np.ascontiguousarray(self.directions)}, path)
        with atomic_file(folder / VOCABULARY) as path:
            path.write_text(json.dumps(self.vocabulary, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> LexicalEncoder:
        """Load what :meth:`save` wrote.

        Raises:
            OSError, KeyError, ValueError, SafetensorError: the files are missing or damaged.
        """
        vocabulary = json.loads((folder / VOCABULARY).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
        idf, directions = tensors["idf"], tensors["directions"]
        words = isinstance(vocabulary, list) and all(isinstance(word, str) for word in vocabulary)
        if not words or idf.shape != (len(vocabulary),) or directions.shape[:1] != idf.shape:
            raise ValueError(f"{folder}: vocabulary and tensors do not fit together")
        return cls(vocabulary, idf, directions)

    @cached_property
    def _vectorizer(self) -> TfidfVectorizer:
        vectorizer = _vectorizer(vocabulary=list(self.vocabulary))
        vectorizer.idf_ = self.idf
        return vectorizer


def _vectorizer(**settings: object) -> TfidfVectorizer:
    # Imported on use: scikit-learn takes a tenth of the start of `setrec recommend`, which reads no texts.
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(token_pattern=r"(?u)\w+", sublinear_tf=True, smooth_idf=False, dtype=np.float32, **settings)
