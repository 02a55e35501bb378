"""Neighbours by text: the entities whose text vectors, or whose words, are most similar."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer, TfidfVectorizer
from sklearn.pipeline import make_pipeline

from setrec.rows import normalize_rows


def centred(vectors: np.ndarray) -> np.ndarray:
    """Return rows centred on their mean and scaled to length 1, float32."""
    return normalize_rows(vectors.astype(np.float32) - vectors.mean(axis=0, dtype=np.float64).astype(np.float32))


def neighbours(vectors: np.ndarray, k: int, rows: int = 512) -> np.ndarray:
    """Return the ``k`` most similar other rows of each of ``vectors`` (V, w), by inner product, best first, int64 (V,
    k)."""
    # bfloat16 is precise enough to rank neighbours, and takes a third of the time on CPUs that support it.
    every = torch.from_numpy(vectors).bfloat16()
    return _best(len(vectors), k, rows, lambda part: (every[part[0] : part[-1] + 1] @ every.T).float())


def lexical_neighbours(texts: Sequence[str], k: int, rows: int = 512) -> np.ndarray:
    """Return the ``k`` lexically most similar other texts of each, best first, int64 (V, k).

    The similarity is the cosine of TF-IDF over words in at least two texts and at most 2% (or ten) of them.
    """
    counts = TfidfVectorizer(sublinear_tf=True, min_df=2, max_df=max(0.02, min(1.0, 10 / len(texts))), dtype=np.float32)
    try:
        words = counts.fit_transform(texts)
    except ValueError:  # no word remains
        return np.empty((len(texts), 0), dtype=np.int64)
    turned = words.T.tocsr()
    return _best(len(texts), k, rows, lambda part: torch.from_numpy((words[part[0] : part[-1] + 1] @ turned).toarray()))


def lexical_vectors(texts: Sequence[str], width: int = 128) -> np.ndarray:
    """Return text vectors, float32 (V, width), for use without an encoder: TF-IDF reduced by a truncated SVD."""
    try:
        words = TfidfVectorizer(sublinear_tf=True, dtype=np.float32).fit_transform(texts)
    except ValueError:  # no text contains a word
        return np.zeros((len(texts), 1), dtype=np.float32)
    width = min(width, min(words.shape) - 1)
    vectors: np.ndarray = words.toarray() if width < 1 else TruncatedSVD(width, random_state=0).fit_transform(words)
    return vectors


def hashed_encoder(texts: Sequence[str], width: int = 1024) -> Callable[[Sequence[str]], np.ndarray]:
    """Return a function from texts to vectors, float32 (B, width), for use without an encoder: TF-IDF of hashed words,
    weighted by their frequency in ``texts``. The same words have the same places in every data set."""
    words = HashingVectorizer(n_features=width, stop_words="english", norm=None, dtype=np.float32)
    fitted = make_pipeline(words, TfidfTransformer(sublinear_tf=False)).fit(texts)
    return lambda given: fitted.transform(given).toarray().astype(np.float32)


def _best(n: int, k: int, rows: int, scores_of: Callable[[np.ndarray], torch.Tensor]) -> np.ndarray:
    k = max(0, min(k, n - 1))
    best = np.empty((n, k), dtype=np.int64)
    for part in np.array_split(np.arange(n), max(1, n // rows)):
        scores = scores_of(part)
        scores[torch.arange(len(part)), torch.from_numpy(part)] = -torch.inf
        best[part] = scores.topk(k, dim=1).indices.numpy()
    return best
