"""Recall of an index against exact search, and the intrinsic dimension of the codes, on which recall depends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import faiss
import numpy as np

from serving.retrieval.exact import flat_scan

_GATHERED = 1 << 16
_LID_ROWS, _LID_NEAREST, _LID_TABLE = 500, 20, 100_000


@dataclass(frozen=True)
class Audit:
    """Recall@k against exact search, mean over ``queries``, with a 95% interval (Wilson, conservative for means).

    ``source``: the queries were ``given`` (of the model, or live) or ``derived`` from the codes, which is a weak
    estimate. ``intrinsic_dimension`` is that of the codes (maximum likelihood, 20 nearest neighbours); recall depends
    on it.
    """

    recall: float
    low: float
    high: float
    queries: int
    k: int
    source: Literal["given", "derived"] = "given"
    intrinsic_dimension: float | None = None


def of(shares: Sequence[float], k: int, like: Audit | None = None) -> Audit:
    """Return the audit of the recall of each query, ``shares``, of the same index as ``like``."""
    recall = float(np.mean(shares)) if len(shares) else 1.0
    known = None if like is None else like.intrinsic_dimension
    return Audit(recall, *wilson(recall, max(len(shares), 1)), len(shares), k, intrinsic_dimension=known)


def share(scores: np.ndarray, best: np.ndarray) -> float:
    """Return the share of the exact ``best`` scores (descending) among those ``found``; ties with the last count."""
    return float((scores >= best[-1]).sum()) / len(best) if len(best) else 1.0


def wilson(p: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson interval of a proportion ``p`` of ``n``."""
    centre, spread = p + z * z / (2 * n), z * sqrt(max(p * (1 - p), 0.0) / n + z * z / (4 * n * n))
    return max(0.0, (centre - spread) / (1 + z * z / n)), min((centre + spread) / (1 + z * z / n), 1.0)


def truth(codes: np.ndarray, queries: np.ndarray, k: int, masks: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    """Return the rows (Q, min(k, allowed)) of largest float32 inner product for each mask, bool (I,) or ``None``.

    Allowed codes are gathered in parts, so that memory does not grow with their number.
    """
    with flat_scan(len(queries)):
        return [_nearest(codes, queries, k, None if mask is None else np.flatnonzero(mask)) for mask in masks]


def _nearest(codes: np.ndarray, queries: np.ndarray, k: int, rows: np.ndarray | None) -> np.ndarray:
    product = faiss.METRIC_INNER_PRODUCT
    if rows is None:
        best: np.ndarray = faiss.knn(queries, codes, min(k, len(codes)), product)[1]
        return best
    scores, found = [], []
    for start in range(0, len(rows), _GATHERED):
        part = rows[start : start + _GATHERED]
        score, at = faiss.knn(queries, codes[part], min(k, len(part)), product)
        scores.append(score)
        found.append(part[at])
    order = np.argsort(-np.concatenate(scores, axis=1), axis=1, kind="stable")[:, :k]
    return np.take_along_axis(np.concatenate(found, axis=1), order, axis=1)


def derived_queries(codes: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return surrogate queries, float32 (count, D), for use without a model's: mean codes of an item and its three
    nearest neighbours.

    Histories contain similar items, and a query lies near such items. The directions of a model's queries do not follow
    from codes, so pass the model's queries if possible.
    """
    rng = np.random.default_rng(seed)
    table = codes[np.sort(rng.choice(len(codes), min(len(codes), _LID_TABLE), replace=False))]
    table = table - table.mean(axis=0)
    seeds = table[rng.choice(len(table), count)]
    near = faiss.knn(seeds, table, min(4, len(table)))[1]
    queries: np.ndarray = table[near].mean(axis=1).astype(np.float32)
    return queries


def intrinsic_dimension(codes: np.ndarray, seed: int = 0) -> float | None:
    """Return Levina and Bickel's estimate from 20 nearest neighbours, with MacKay and Ghahramani's mean over 500
    points.

    At most 100 thousand sampled rows are used. Equal rows count once; ``None`` if too few remain.
    """
    rng = np.random.default_rng(seed)
    table = codes[np.sort(rng.choice(len(codes), min(len(codes), _LID_TABLE), replace=False))]
    table = np.unique(table, axis=0)
    if len(table) <= _LID_NEAREST + 1:
        return None
    points = table[rng.choice(len(table), min(len(table), _LID_ROWS), replace=False)]
    squared = faiss.knn(points, table, _LID_NEAREST + 1)[0][:, 1:].astype(np.float64)
    logs = np.log(np.maximum(squared, 1e-30)) / 2
    spread = (logs[:, -1:] - logs[:, :-1]).sum(axis=1).mean() / (_LID_NEAREST - 2)
    return round(float(1 / spread), 1) if spread > 0 else None
