"""Texts to the vectors that models read and the features that text similarity compares: lexical and sentence parts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import scipy.sparse as sp

from setrec.scoring.text_similarity import TextFeatures
from setrec.text.lexical import LexicalEncoder
from setrec.tokens import unit_rows


class SentenceEncoder(Protocol):
    """What turns texts into sentence vectors; :class:`setrec.encoder.TextEncoder` is one."""

    @property
    def identity(self) -> str:
        """Names everything that a vector depends on but the text."""
        ...

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        ...

    @property
    def encode(self) -> Callable[..., np.ndarray]:
        """Gives vectors, float32 (len(texts), width), of a sequence of texts."""
        ...


class TextFeaturizer:
    """A lexical encoder and a sentence encoder side by side, either of which may be missing.

    A text vector has the lexical numbers first, then those of the sentence.
    """

    def __init__(self, lexical: LexicalEncoder | None, sentence: SentenceEncoder | None) -> None:
        self.lexical, self.sentence = lexical, sentence

    @property
    def identity(self) -> str:
        """Names everything that a vector depends on but the text."""
        parts = [part.identity if part is not None else "" for part in (self.lexical, self.sentence)]
        return hashlib.sha256("/".join(parts).encode()).hexdigest()[:32]

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return sum(part.width for part in (self.lexical, self.sentence) if part is not None)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Text vectors, float32 (len(texts), width)."""
        parts = [np.empty((len(texts), 0), np.float32)]
        if self.lexical is not None:
            parts.append(self.lexical.vectors(texts))
        if self.sentence is not None:
            parts.append(self.sentence.encode(texts))
        return np.ascontiguousarray(np.concatenate(parts, axis=1), dtype=np.float32)

    def similarity_features(self, texts: Sequence[str], vectors: np.ndarray, center: np.ndarray | None) -> TextFeatures:
        """What text similarity compares of texts with these ``vectors`` (len(texts), width); ``center``: the mean of
        the catalogue's sentence vectors, ``None`` where it has none."""
        empty = sp.csr_matrix((len(texts), 0), dtype=np.float32)
        rows = empty if self.lexical is None else self.lexical.rows(texts)
        start = 0 if self.lexical is None else self.lexical.width
        return TextFeatures(rows, None if center is None else unit_rows(vectors[:, start:], center))
