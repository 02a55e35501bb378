"""The fit of non-negative weights to candidates: a smooth objective first, then NDCG@10 itself."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize

from setrec.evaluation.intervals import standard_error
from setrec.scoring.search.candidates import CandidateTerms

POWER = 0.5
"""Exponent q of the objective."""
RIDGE = 0.1
"""Penalty of squared standardised weights, as a number of users; it bounds the weights if there are few."""
START = 0.3
"""Initial standardised weights."""
FACTORS = (0.0, 0.5, 0.71, 1.41, 2.0)
"""Factors of a weight that are tried on NDCG@10."""
PASSES = 3


def fit(candidates: CandidateTerms) -> np.ndarray:
    """Return weights of the terms, float64 (terms,).

    They maximise the mean over users of their truths' mean p^q / q, where p is a truth's share in the softmax over all
    items, for which the candidates stand (the generalised cross-entropy of Zhang and Sabuncu, 2018). The likelihood,
    its limit for q = 0, is decided by truths that no weighting ranks high; with q = 1/2 a truth counts with the square
    root of its share. Then each weight in turn is multiplied by the factor with the largest NDCG@10, if that rises by
    more than a standard error of the paired difference.
    """
    return _climbed(candidates, _smooth(candidates))


def _smooth(candidates: CandidateTerms) -> np.ndarray:
    """Return the maximum of the smooth objective, by L-BFGS from equal standardised weights."""
    values, some, row, place = candidates.values, candidates.some, candidates.row, candidates.place
    n = len(values)
    scale = values[some].std(axis=0).astype(np.float64)
    idle = scale <= 1e-9
    scale[idle] = 1.0
    share = 1 / np.bincount(row, minlength=n)[row] / n
    own = values[row, place]

    def loss(standardised: np.ndarray) -> tuple[float, np.ndarray]:
        scores = candidates.scores(standardised / scale) + candidates.mass
        scores -= scores.max(axis=1, keepdims=True)
        at = scores[row, place]
        chances = np.exp(scores)
        sums = chances.sum(axis=1)
        chances /= sums[:, None]
        gains = share * np.exp(POWER * (at - np.log(sums[row])))
        of_user = np.bincount(row, gains, n).astype(np.float32)
        expected = np.matmul((of_user[:, None] * chances)[:, None, :], values)[:, 0].sum(axis=0, dtype=np.float64)
        slope = (gains @ own - expected) / scale
        penalty = RIDGE / n
        value = -float(gains.sum()) / POWER + penalty * float(standardised @ standardised)
        return value, -slope + 2 * penalty * standardised

    bounds = [(0.0, 0.0 if one else None) for one in idle]
    result = minimize(loss, np.where(idle, 0.0, START), jac=True, method="L-BFGS-B", bounds=bounds)
    return np.asarray(result.x / scale)


def _climbed(candidates: CandidateTerms, weights: np.ndarray) -> np.ndarray:
    """Return ``weights`` after steps of single weights that raise NDCG@10."""
    weights = weights.copy()
    values = candidates.ndcg(candidates.scores(weights))
    for _ in range(PASSES):
        before = weights.copy()
        for term in np.flatnonzero(weights).tolist():
            tried = [_scaled(weights, term, factor) for factor in FACTORS]
            each = [candidates.ndcg(candidates.scores(one)) for one in tried]
            at = int(np.argmax([one.mean() for one in each]))
            if rises(each[at], values):
                weights, values = tried[at], each[at]
        if np.array_equal(weights, before):
            break
    return weights


def without(candidates: CandidateTerms, weights: np.ndarray, term: int) -> np.ndarray:
    """Return NDCG@10 of every user without a term."""
    return candidates.ndcg(candidates.scores(_scaled(weights, term, 0.0)))


def _scaled(weights: np.ndarray, term: int, factor: float) -> np.ndarray:
    weights = weights.copy()
    weights[term] *= factor
    return weights


def rises(values: np.ndarray, before: np.ndarray) -> bool:
    """Return whether the mean rises by more than a standard error of the paired difference."""
    return bool(np.nanmean(values - before) > standard_error(values - before))
