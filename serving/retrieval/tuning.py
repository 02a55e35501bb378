"""Tuning of the search effort to a recall target on held-out queries.

The effort of inverted lists needs no search: an item is found if its cell is probed, so the number of cells is a
quantile of the ranks of the true items' cells. Half of the allowed loss of recall is for the difference of other
queries; with no such part, they missed a target of 0.99 by 0.0025. Most of the other half is for missed cells, and
little for quantisation: re-scoring twice as many candidates costs less than scanning a tenth more cells (10 million
items of 192 numbers: 0.1 to 0.3 ms of 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serving.retrieval import recall_audit
from serving.retrieval.exact import Exact
from serving.retrieval.ivf import Ivf
from serving.retrieval.policy import Kind, RetrieverSettings, SearchPlan

K = 10
SELECTIVITIES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
_MISSED, _LOST = 0.45, 0.5
"""Shares of the allowed loss on the tuning queries: by missed cells, and in all."""
_FEWEST_ALLOWED = 1000
_FILTERED_QUERIES = 96
_OVERSAMPLES = (1, 2, 4, 8, 16, 32, 64)


def choose(
    exact: Exact,
    settings: RetrieverSettings,
    kinds: Sequence[tuple[Kind, str]],
    queries: np.ndarray,
    matrix: np.ndarray,
) -> tuple[Ivf | None, SearchPlan]:
    """Build and tune the first of ``kinds`` (with reasons) that reaches the target, or the last; ``None`` for exact
    search."""
    tuner = Tuner(exact, queries, settings)
    cells: Ivf | None = None
    for kind, reason in kinds:
        if kind == "exact":
            return None, SearchPlan(kind=kind, reason=reason)
        index = cells = Ivf.build(exact.codes, kind, matrix, settings, like=cells)
        plan = tuner.plan(index, kind).model_copy(update={"reason": reason})
        if kind == kinds[-1][0] or tuner.suffices(index, plan):
            return index, plan
    raise ValueError("no kinds to choose from")


class Tuner:
    """Tunes an index on held-out queries, float32 (Q, D), with their true items, without and with random filters."""

    def __init__(self, exact: Exact, queries: np.ndarray, settings: RetrieverSettings) -> None:
        self._exact, self._queries, self._settings = exact, queries, settings
        rng, items = np.random.default_rng(settings.seed), len(exact.codes)
        self._shares = tuple(s for s in SELECTIVITIES if s * items >= _FEWEST_ALLOWED)
        self._masks = [rng.random(items) < share for share in self._shares]
        (self._truth,) = recall_audit.truth(exact.codes, queries, K, [None])
        self._filtered = (
            recall_audit.truth(exact.codes, queries[:_FILTERED_QUERIES], K, self._masks) if self._masks else []
        )

    def plan(self, index: Ivf, kind: Kind) -> SearchPlan:
        """Return effort and over-sampling for ``index``; values in the settings take precedence."""
        plan = self._cells(index, kind)
        return plan.model_copy(update={"oversample": self._settings.oversample or self._oversample(index, plan)})

    def suffices(self, index: Ivf, plan: SearchPlan) -> bool:
        """Return whether the target is reached on the tuning queries by scanning less than a third of the items."""
        if plan.effort > len(index.sizes) / 3:
            return False
        return self._recall(index, plan.effort, plan.oversample) >= self._settings.recall_target

    def _cells(self, index: Ivf, kind: Kind) -> SearchPlan:
        def probes(queries: np.ndarray, rows: np.ndarray) -> int:
            ranks = index.ranks(queries, list(rows))
            return int(np.quantile(ranks, 1 - _MISSED * (1 - self._settings.recall_target), method="higher")) + 1

        effort = self._settings.nprobe or probes(self._queries, self._truth)
        filtered = [(1.0, effort)]
        for share, rows in zip(self._shares, self._filtered, strict=True):
            # Few queries give rough quantiles: the effort must not decrease under a narrower filter.
            filtered.append((share, max(filtered[-1][1], probes(self._queries[:_FILTERED_QUERIES], rows))))
        return SearchPlan(kind=kind, effort=min(effort, len(index.sizes)), filtered=tuple(filtered))

    def _oversample(self, index: Ivf, plan: SearchPlan) -> int:
        allowed = 1 - _LOST * (1 - self._settings.recall_target)
        for oversample in _OVERSAMPLES:
            if self._recall(index, plan.effort, oversample) >= allowed:
                return oversample
        return _OVERSAMPLES[-1]

    def _recall(self, index: Ivf, effort: int, oversample: int) -> float:
        """Return mean recall@K on the held-out queries."""
        shares = []
        for query, best in zip(self._queries, self._truth, strict=True):
            rows = index.propose(query, K * oversample + 1, effort)
            if rows is None:
                return 1.0  # searched exactly
            shares.append(np.isin(best, self._exact.among(query, rows, K).rows).mean())
        return float(np.mean(shares))
