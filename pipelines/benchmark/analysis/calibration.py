"""Calibration of a system's scores as probabilities of the next item."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from setrec.evaluation import ranking
from setrec.evaluation.intervals import bootstrap_means
from setrec.scoring.search.temperature import fit_temperature, log_normaliser, relative_scores, scored

BINS = 10


def calibration(
    system: str, scorer: ranking.Scorer, valid: ranking.Cases, test: ranking.Cases, *, batch: int = 256
) -> list[dict[str, Any]]:
    """Return calibration metrics of the softmax of the scores over the catalogue without the user's history.

    Scores are divided by one temperature, that with the smallest negative log-likelihood of validation truths (Guo and
    others 2017). Every truth is an event: the top item, with its probability, is the truth or not. Rows of group
    ``all``: ``temperature``; ``nll``, minus the log-probability of a test truth; ``ece``, the expected calibration
    error over ten bins; ``possible``, the share of truths with a probability (items of the history and items scored
    minus infinity have none; such truths count in no other row). Rows ``bin 1`` to ``bin 10``: ``accuracy`` among
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
    """Return rows over all truths, then by bin."""
    bins, some = _bins(read), read.possible > 0
    sums = read.sums(bins)
    value, drawn = _figures(sums.mean(axis=0)[None]), _figures(bootstrap_means(sums, 1000, 0))
    rows: list[dict[str, Any]] = []
    for metric in ("nll", "ece", "possible"):
        users = int(some.sum()) if metric != "possible" else len(some)
        rows.append({**head, "metric": metric, **_interval(value[metric], drawn[metric]), "users": users})
    for number in np.unique(bins[some]).tolist():
        row = _interval(value["accuracy"][:, number], drawn["accuracy"][:, number])
        row |= {"confidence": float(value["confidence"][0, number]), "users": int((some & (bins == number)).sum())}
        rows.append({**head, "group": f"bin {number + 1}", "metric": "accuracy", **row})
    return rows


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
        """Return the sums behind averages (users, 3 + 3 BINS): ``total``, ``possible``, ``nll``; then by bin
        ``possible``, ``hits``, and the sum of confidences."""
        chosen = bins[:, None] == np.arange(BINS)
        parts = [self.possible, self.hits, self.confidence * self.possible]
        plain = np.stack([self.total, self.possible, self.nll], axis=1)
        return np.concatenate([plain, *(chosen * part[:, None] for part in parts)], axis=1)


def _read(scorer: ranking.Scorer, cases: ranking.Cases, temperature: float, batch: int) -> _Read:
    parts = []
    for scores, history, truth in scored(scorer, cases, batch):
        relative = relative_scores(scores, history) / np.float32(temperature)
        normaliser, top = log_normaliser(relative), np.argmax(relative, axis=1)
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
    """Return the tenth of each user by confidence; tenths contain equally many truths, up to ties."""
    events = np.repeat(read.confidence, read.possible.astype(int))
    edges = np.quantile(events, np.arange(1, BINS) / BINS)
    return np.searchsorted(edges, read.confidence, side="right")


def _figures(means: np.ndarray) -> dict[str, np.ndarray]:
    """Return metrics (m,), and those by bin (m, BINS), from means (m, 3 + 3 BINS) of :meth:`_Read.sums`."""
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
