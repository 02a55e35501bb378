"""Text features: the vectors of the model, and the features of text similarity."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import scipy.sparse as sp

from setrec.models.item_tokens import unit_rows
from setrec.scoring.text_similarity import TextFeatures
from setrec.text.lexical import LexicalEncoder


class SentenceEncoder(Protocol):
    """A sentence encoder; :class:`setrec.text.encoder.TextEncoder` is one."""

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        ...

    @property
    def identity(self) -> str:
        """Hash of everything a vector depends on except the text."""
        ...

    def encode(self, texts: Sequence[str], /) -> np.ndarray:
        """Return vectors, float32 (len(texts), width)."""
        ...


class TextFeaturizer:
    """A lexical and a sentence encoder whose vectors are concatenated; either may be missing.

    Raises:
        ValueError: both are missing.
    """

    def __init__(self, lexical: LexicalEncoder | None, sentence: SentenceEncoder | None) -> None:
        if lexical is None and sentence is None:
            raise ValueError("a featurizer needs a lexical encoder or a sentence encoder")
        self.lexical, self.sentence = lexical, sentence

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self._words + (0 if self.sentence is None else self.sentence.width)

    @cached_property
    def identity(self) -> str:
        """Hash of everything a vector depends on except the text."""
        parts = [encoder.identity for encoder in (self.lexical, self.sentence) if encoder is not None]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return the model's text vectors, float32 (len(texts), width): lexical columns, then sentence columns."""
        parts = [] if self.lexical is None else [self.lexical.vectors(texts)]
        parts += [] if self.sentence is None else [self.sentence.encode(texts)]
        return np.ascontiguousarray(np.concatenate(parts, axis=1), dtype=np.float32)

    def similarity_features(
        self, texts: Sequence[str], vectors: np.ndarray, center: np.ndarray | None = None
    ) -> TextFeatures:
        """Return features of new texts: TF-IDF rows, and the sentence columns of their ``vectors`` (rows, width) around
        the catalogue's ``center``, which is not needed without a sentence encoder."""
        words = sp.csr_matrix((len(texts), 0), dtype=np.float32) if self.lexical is None else self.lexical.rows(texts)
        return TextFeatures(words, None if self.sentence is None else unit_rows(vectors[:, self._words :], center))

    @property
    def _words(self) -> int:
        return 0 if self.lexical is None else self.lexical.width
