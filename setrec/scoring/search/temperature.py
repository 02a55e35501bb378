"""Temperature scaling: scores divided by the temperature are log-probabilities of the next item."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.optimize import minimize_scalar

from setrec.evaluation import ranking
from setrec.ragged import Ragged

CELLS = 1 << 25
"""Number of scores in memory during the search, 128 MB; it limits the number of users, drawn by seed 0."""
SPAN = np.log(1e4)
"""Range of temperatures searched: the scores' spread times exp(-SPAN) to exp(SPAN)."""


def fit_temperature(scorer: ranking.Scorer, cases: ranking.Cases, *, batch: int = 256) -> float:
    """Return the divisor of the scores with the best log-likelihood of the truths (Guo et al. 2017); 1 if all scores
    are equal. The softmax is over the catalogue without the user's history.

    The likelihood is concave in the inverse, so the optimum is unique; it is located to a thousandth, on as many users
    as :data:`CELLS` allows.
    """
    if not len(cases):
        return 1.0
    items = scorer(cases.batch(0, 1)[0]).shape[1]
    held = [_likely(*part) for part in scored(scorer, cases.sample(max(1, CELLS // items), 0), batch)]
    spread = float(np.mean([np.std(scores, where=np.isfinite(scores)) for scores, _, _ in held]))
    if not spread > 0 or not any(len(rows) for _, rows, _ in held):
        return 1.0

    def loss(log: float) -> float:
        inverse, total = np.float32(np.exp(-log)), 0.0
        for scores, rows, own in held:
            total += float(log_normaliser(inverse * scores)[rows].sum() - (inverse * own).sum(dtype=np.float64))
        return total

    middle = np.log(spread)
    result = minimize_scalar(loss, bounds=(middle - SPAN, middle + SPAN), method="bounded", options={"xatol": 1e-3})
    return float(np.exp(result.x))


def _likely(scores: np.ndarray, history: Ragged, truth: Ragged) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return relative scores (b, I), and the rows and relative scores of the truths that can have a probability."""
    relative = relative_scores(scores, history)
    own = relative[truth.row_of_value, truth.values]
    some = np.isfinite(own)
    return relative, truth.row_of_value[some], own[some]


def scored(scorer: ranking.Scorer, cases: ranking.Cases, batch: int) -> Iterator[tuple[np.ndarray, Ragged, Ragged]]:
    """Yield scores, histories and truths of the cases, batch by batch."""
    for start in range(0, len(cases), batch):
        history, truth = cases.batch(start, batch)
        yield scorer(history), history, truth


def relative_scores(scores: np.ndarray, history: Ragged) -> np.ndarray:
    """Return scores minus the best of their row, float32 (b, I), minus infinity for items of the history."""
    scores = np.array(scores, dtype=np.float32)
    scores[history.row_of_value, history.values] = -np.inf
    best = scores.max(axis=1, keepdims=True)
    return scores - np.where(np.isfinite(best), best, 0)


def log_normaliser(scores: np.ndarray) -> np.ndarray:
    """Return the log-sum-exp (b,) of rows whose maximum is 0."""
    with np.errstate(divide="ignore"):
        normaliser: np.ndarray = np.log(np.exp(scores).sum(axis=1, dtype=np.float64))
        return normaliser
