"""Ranks by comparing tables of scores in torch, pair by pair: plain, and what ``setrec.evaluation.rank_kernels`` agrees
with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from setrec.errors import DataError
from setrec.evaluation.ranking import HISTORIES, NO_RANK, Group, KindScorer, Ranks, Scorer
from setrec.ragged import Ragged

CELLS_AT_ONCE = 1 << 24
"""Score comparisons held at a time: about 100 MB, however many truths a batch has."""


def above(scores: Tensor, row: Tensor, item: Tensor) -> Tensor:
    """Which items rank above ``item`` in ``row`` of scores (b, I): bool (pairs, I)."""
    own, s = scores[row, item][:, None], scores[row]
    earlier = torch.arange(scores.shape[1], device=scores.device)[None, :] < item[:, None]
    return (s > own) | ((s == own) & earlier)


def ranks(
    scores: np.ndarray, truth: Ragged, seen: Ragged | None = None, candidates: np.ndarray | None = None
) -> np.ndarray:
    """What ``setrec.evaluation.ranking.ranks`` returns."""
    table = _checked(scores)
    row, item = _pairs(truth)
    allowed = torch.ones(table.shape, dtype=torch.bool)
    if candidates is not None:
        allowed &= torch.from_numpy(candidates)
    if seen is not None:
        allowed[_pairs(seen)] = False
    found = [(above(table, r, i) & allowed[r]).sum(dim=1) for r, i in _pieces(row, item, table.shape[1])]
    return torch.where(allowed[row, item], torch.cat(found), NO_RANK).numpy()


def batch_ranks(scorer: Scorer, history: Ragged, truth: Ragged, groups: Sequence[Group]) -> Ranks:
    """What ``setrec.evaluation.ranking.batch_ranks`` returns."""
    scores = _checked(scorer(history))
    row, item = _pairs(truth)
    seen = torch.zeros(scores.shape, dtype=torch.bool)
    seen[_pairs(history)] = True
    gone = {"kept": torch.zeros(len(row), dtype=torch.bool), "removed": seen[row, item]}
    pools = [None if group.candidates.all() else torch.from_numpy(group.candidates) for group in groups]
    counts: dict[tuple[str, str], list[Tensor]] = {(h, group.name): [] for group in groups for h in HISTORIES}
    for r, i in _pieces(row, item, scores.shape[1]):
        better = {"kept": above(scores, r, i)}
        better["removed"] = better["kept"] & ~seen[r]
        whole = {h: better[h].sum(dim=1) for h in HISTORIES}
        for h, (group, pool) in product(HISTORIES, zip(groups, pools, strict=True)):
            counts[h, group.name].append(whole[h] if pool is None else (better[h] & pool).sum(dim=1))
    found = {}
    for h, group in product(HISTORIES, groups):
        counted = group.truths[truth.values]
        rank = torch.where(gone[h], NO_RANK, torch.cat(counts[h, group.name])).numpy()
        found[h, group.name] = Ragged(rank[counted], truth.where(counted).offsets)
    return found


def weighted_ranks(
    kind_scorer: KindScorer, history: Ragged, truth: Ragged, grid: Sequence[Mapping[str, float]]
) -> list[Ragged]:
    """What ``setrec.evaluation.ranking.weighted_ranks`` returns: a table of mixed scores for each weighting."""
    kinds, found = kind_scorer(history), []
    for weights in grid:
        mixed = np.sum([np.float32(w) * kinds[kind] for kind, w in weights.items()], axis=0)
        found.append(Ragged(ranks(mixed, truth, seen=history), truth.offsets))
    return found


def _pairs(rows: Ragged) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(rows.row_of_value), torch.from_numpy(rows.values.astype(np.int64))


def _pieces(row: Tensor, item: Tensor, items: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of (row, item) in pieces whose comparison with ``items`` candidates stays small."""
    size = max(1, CELLS_AT_ONCE // max(1, items))
    return zip(row.split(size), item.split(size), strict=True)


def _checked(scores: np.ndarray) -> Tensor:
    if np.isnan(scores).any():
        raise DataError("scores contain a NaN and cannot be ranked")
    return torch.from_numpy(np.ascontiguousarray(scores))
