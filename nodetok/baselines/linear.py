"""Baseline for classification: logistic regression on given features."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

STRENGTHS = (0.1, 1.0, 10.0)
"""Inverse strengths of regularisation, of which validation chooses one."""


def logistic_regression(
    features: sparse.csr_matrix, labels: np.ndarray, train: np.ndarray, valid: np.ndarray, seconds: float = math.inf
) -> np.ndarray:
    """Return the predicted class of every row, int64 (N,), by the model that is best on validation.

    ``features`` (N, F); ``labels`` int (N,), -1 where unknown; ``train`` and ``valid``: rows, int. After ``seconds`` of
    CPU time no further model is fitted.
    """
    began, best, chosen = time.process_time(), -1.0, None
    for strength in STRENGTHS:
        if chosen is not None and time.process_time() - began > seconds:
            break
        model = LogisticRegression(C=strength, max_iter=500, tol=1e-3).fit(features[train], labels[train])
        value = float((model.predict(features[valid]) == labels[valid]).mean())
        if value > best:
            best, chosen = value, model
    assert chosen is not None
    predicted: np.ndarray = chosen.predict(features)
    return predicted


def bag_of_words(texts: Sequence[str]) -> sparse.csr_matrix:
    """Return TF-IDF features (N, F) of texts."""
    if not any(any(map(str.isalnum, text)) for text in texts):
        return sparse.csr_matrix((len(texts), 0))
    return TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True).fit_transform(texts)
