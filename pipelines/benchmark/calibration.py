"""Whether a system's scores, read as probabilities of the next item, mean what they say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from setrec import ranking
from setrec.intervals import bootstrap_means
from setrec.ragged import Ragged

CELLS = 1 << 25
"""Validation scores held while the temperature is sought, 128 MB; so many users are drawn by seed 0."""
BINS = 10
SPAN = np.log(1e4)
"""Temperatures tried: the scores' spread, over this far down and up in logarithms."""


def calibration(
    system: str, scorer: ranking.Scorer, valid: ranking.Cases, test: ranking.Cases, *, batch: int = 256
) -> list[dict[str, Any]]:
    """Rows on the softmax of the scores over the catalogue without the user's history.

    Scores are divided by one temperature, that with the smallest negative log-likelihood of validation truths (Guo and
    others 2017). Every truth is an event: the item at the top, with its probability, is it or is not. Rows of group
    ``all``: ``temperature``; ``nll``, minus the log-probability of a test truth; ``ece``, the expected calibration
    error over ten bins; ``possible``, the share of truths that have a probability at all (no item of the history has,
    none scored minus infinity; such truths count in no other row). Rows ``bin 1`` to ``bin 10``: ``accuracy`` among
    truths whose top probability (mean: ``confidence``) is in that tenth of all. Tenths, not equal widths: over
    thousands of items nearly all top probabilities are small. Intervals are over users; that of ``ece`` lies a little
    high, because chance adds to a bin's error and resampling adds chance. No rows where no truth has a probability.
    """
    temperature = fit_temperature(scorer, valid, batch=batch)
    read = _read(scorer, test, temperature, batch)
    if not read.possible.any():
        return []
    head = {"system": system, "history": "removed", "group": "all"}
    fitted = {**head, "metric": "temperature", "value": temperature, "users": len(valid)}
    return [fitted, *_rows(head, read)]


def _rows(head: Mapping[str, str], read: _Read) -> list[dict[str, Any]]:
    """Figures over all truths, then by bin."""
    bins, some = _bins(read), read.possible > 0
    sums = read.sums(bins)
    value, drawn = _figures(sums.mean(axis=0)[None]), _figures(bootstrap_means(sums, 1000, 0))
    rows: list[dict[str, Any]] = []
    for metric in ("nll", "ece", "possible"):
        users = int(some.sum()) if metric != "possible" else len(some)
        rows.append({**head, "metric": metric, **_interval(value[metric], drawn[metric]), "users": users})
    for number in np.unique(bins[some]).tolist():
        told = _interval(value["accuracy"][:, number], drawn["accuracy"][:, number])
        told |= {"confidence": float(value["confidence"][0, number]), "users": int((some & (bins == number)).sum())}
        rows.append({**head, "group": f"bin {number + 1}", "metric": "accuracy", **told})
    return rows


def fit_temperature(scorer: ranking.Scorer, cases: ranking.Cases, *, batch: int = 256) -> float:
    """What scores are divided by for the best log-likelihood of the truths; 1 where no score tells items apart.

    The likelihood is concave in the inverse, so there is one best. Found to a thousandth, on as many users as
    :data:`CELLS` allows.
    """
    items = scorer(cases.batch(0, 1)[0]).shape[1]
    held = [_likely(*part) for part in _scored(scorer, cases.sample(CELLS // items, 0), batch)]
    spread = float(np.mean([np.std(scores, where=np.isfinite(scores)) for scores, _, _ in held]))
    if not spread > 0 or not any(len(rows) for _, rows, _ in held):
        return 1.0

    def loss(log: float) -> float:
        inverse, total = np.float32(np.exp(-log)), 0.0
        for scores, rows, own in held:
            total += float(_normaliser(inverse * scores)[rows].sum() - (inverse * own).sum(dtype=np.float64))
        return total

    middle = np.log(spread)
    found = minimize_scalar(loss, bounds=(middle - SPAN, middle + SPAN), method="bounded", options={"xatol": 1e-3})
    return float(np.exp(found.x))


def _likely(scores: np.ndarray, history: Ragged, truth: Ragged) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Relative scores (b, I), and of the truths that can have a probability the rows and the relative scores."""
    relative = _relative(scores, history)
    own = relative[truth.row_of_value, truth.values]
    some = np.isfinite(own)
    return relative, truth.row_of_value[some], own[some]


def _scored(scorer: ranking.Scorer, cases: ranking.Cases, batch: int) -> Iterator[tuple[np.ndarray, Ragged, Ragged]]:
    for start in range(0, len(cases), batch):
        history, truth = cases.batch(start, batch)
        yield scorer(history), history, truth


def _relative(scores: np.ndarray, history: Ragged) -> np.ndarray:
    """Scores less the best of their row, float32, minus infinity for items of the history."""
    scores = np.array(scores, dtype=np.float32)
    scores[history.row_of_value, history.values] = -np.inf
    best = scores.max(axis=1, keepdims=True)
    return scores - np.where(np.isfinite(best), best, 0)


def _normaliser(scores: np.ndarray) -> np.ndarray:
    """Logarithms (b,) of the sums of exponentials of rows whose best is 0."""
    with np.errstate(divide="ignore"):
        return np.log(np.exp(scores).sum(axis=1, dtype=np.float64))


@dataclass(frozen=True)
class _Read:
    """By user: truths, those that have a probability, the sum of minus their log-probabilities, how many of them are
    the top item, and the top item's probability."""

    total: np.ndarray
    possible: np.ndarray
    nll: np.ndarray
    hits: np.ndarray
    confidence: np.ndarray

    def sums(self, bins: np.ndarray) -> np.ndarray:
        """What averages are made of (users, 3 + 3 BINS): ``total``, ``possible``, ``nll``; then by bin ``possible``,
        ``hits``, and the sum of confidences."""
        chosen = bins[:, None] == np.arange(BINS)
        parts = [self.possible, self.hits, self.confidence * self.possible]
        plain = np.stack([self.total, self.possible, self.nll], axis=1)
        return np.concatenate([plain, *(chosen * part[:, None] for part in parts)], axis=1)


def _read(scorer: ranking.Scorer, cases: ranking.Cases, temperature: float, batch: int) -> _Read:
    parts = []
    for scores, history, truth in _scored(scorer, cases, batch):
        relative = _relative(scores, history) / np.float32(temperature)
        normaliser, top = _normaliser(relative), np.argmax(relative, axis=1)
        row, item = truth.row_of_value, truth.values
        likely = np.isfinite(relative[row, item])
        minus_log = np.zeros(len(row))
        minus_log[likely] = normaliser[row[likely]] - relative[row[likely], item[likely]]
        columns = (likely, minus_log, likely & (item == top[row]))
        possible, nll, hits = (np.bincount(row, column, len(truth)) for column in columns)
        confidence = np.where(possible > 0, np.exp(-normaliser), 0.0)
        parts.append(np.stack([truth.lengths, possible, nll, hits, confidence]))
    return _Read(*np.concatenate(parts, axis=1))


def _bins(read: _Read) -> np.ndarray:
    """Each user's tenth by confidence; tenths hold as many truths each, up to equal confidences."""
    events = np.repeat(read.confidence, read.possible.astype(int))
    edges = np.quantile(events, np.arange(1, BINS) / BINS)
    return np.searchsorted(edges, read.confidence, side="right")


def _figures(means: np.ndarray) -> dict[str, np.ndarray]:
    """The figures (m,), and those by bin (m, BINS), from means (m, 3 + 3 BINS) of :meth:`_Read.sums`."""
    total, possible, nll = means[:, :3].T
    count, hits, confidence = np.split(means[:, 3:], 3, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "nll": nll / possible, "possible": possible / total,
            "ece": np.abs(hits - confidence).sum(axis=1) / possible,
            "accuracy": hits / count, "confidence": confidence / count,
        }  # fmt: skip


def _interval(value: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return {"value": float(value[0]), "low": float(low), "high": float(high)}
