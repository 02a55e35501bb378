"""Two towers over item texts, which give a sentence encoder a gradient: a history is near to its next item.

The item tower is the encoder. The query tower is small on purpose, so that the encoder learns what is to be learned: a
weighted mean of the latest items' vectors, with one learned weight per step back, plus a linear map of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from setrec.data.events import read
from setrec.evaluation.ranking import Scorer
from setrec.models.grounding import LogitBias
from setrec.ragged import Ragged
from setrec.text.upper_layers import UpperLayers
from setrec.training.sampled_softmax import Candidates, sampled_cross_entropy

_SHARPEST = 100.0
"""Largest inverse temperature."""
_EXCLUDED = -1e4
"""Added to the logits of negatives that are in the user's history."""


@dataclass(frozen=True)
class TowerStep:
    """T targets of a training step; all items are rows of distinct texts.

    ``read`` int64 (T, N): the items before each target, newest first, -1 where there is none. ``own``: the histories of
    the step's users, ``user`` int64 (T,) the row of each target's. ``negatives``: hard ones, shared by all targets.
    ``log_counts`` float32, of all texts: log of the expected count among targets and hard negatives of a step.
    """

    own: Ragged
    user: np.ndarray
    read: np.ndarray
    targets: np.ndarray
    negatives: np.ndarray
    log_counts: np.ndarray


class TwoTowers(nn.Module):
    """The encoder, and a query tower that reads the ``latest`` items; ``temperature`` is where the learned one starts.

    Without training a query is the mean of the latest items' vectors with weights 1, 1/2, 1/3 ... back in time.
    """

    def __init__(self, items: UpperLayers, latest: int, temperature: float) -> None:
        super().__init__()
        width = items.original.shape[1]
        self.items = items
        self.recency = nn.Parameter(-torch.log1p(torch.arange(latest, dtype=torch.float32)))
        self.residual = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.residual.weight)
        self.sharpness = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.to(items.model.device)

    def queries(self, vectors: Tensor, read: np.ndarray) -> Tensor:
        """Return queries (T, w) of length 1, zeros for an empty history, from vectors (M, w) and their rows ``read``
        int64 (T, N), newest first, -1 for none."""
        rows = torch.from_numpy(read).to(vectors.device)
        weights = self.recency.exp() * (rows >= 0)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)
        mean = torch.einsum("tn,tnw->tw", weights, vectors[rows.clamp(min=0)])
        return normalize(mean + self.residual(mean), dim=-1)

    def loss(self, step: TowerStep, vectors: Tensor, texts: np.ndarray) -> Tensor:
        """Return the mean InfoNCE over targets; candidates are the step's targets and hard negatives, but for a user's
        own items.

        Logits are corrected by ``log_counts``, so that the loss estimates that of all texts whatever their frequency
        (logQ correction, Yi et al. 2019; mixed negatives, Yang et al. 2020). ``vectors`` (M, w) are those of ``texts``
        int64 (M,), ascending.
        """
        rows, total = np.unique(np.concatenate([step.targets, step.negatives])), len(step.log_counts)
        pairs = np.arange(len(step.own))[:, None] * total + rows
        own = np.isin(pairs, step.own.row_of_value * total + step.own.values)[step.user]
        users, columns = np.nonzero(own & (rows != step.targets[:, None]))
        place = [users, *(np.searchsorted(texts, some) for some in (rows[columns], rows, step.targets))]
        at, excluded, among, targets = (torch.from_numpy(some).to(vectors.device) for some in place)
        candidates = Candidates(among, torch.from_numpy(step.log_counts[rows]).to(vectors.device))
        queries = self.queries(vectors, np.where(step.read < 0, -1, np.searchsorted(texts, step.read)))
        queries = self.sharpness.clamp(max=math.log(_SHARPEST)).exp() * queries
        bias = LogitBias(at, excluded, vectors.new_tensor(_EXCLUDED))
        return sampled_cross_entropy(queries, vectors, targets, candidates, [bias]) / len(targets)

    @torch.inference_mode()
    def scorer(self) -> Scorer:
        """Return a function from histories of item rows to scores of all items, float32 (b, I)."""
        text_of, vectors = self.items.text_of, torch.from_numpy(self.items.vectors()).to(self.recency.device)

        @torch.inference_mode()
        def score(history: Ragged) -> np.ndarray:
            history = read(history)
            rows = latest(history, np.arange(len(history)), history.offsets[1:], len(self.recency))
            queries = self.queries(vectors, np.where(rows < 0, -1, text_of[rows]))
            return np.asarray((queries @ vectors.T).cpu())[:, text_of]

        return score


def latest(rows: Ragged, row: np.ndarray, end: np.ndarray, count: int) -> np.ndarray:
    """Return the ``count`` values of each ``row`` before the flat position ``end``, newest first, -1 where there is
    none, int64 (len(row), count)."""
    at = end[:, None] - 1 - np.arange(count)
    values = np.append(rows.values, -1)  # also of no values at all
    return np.where(at >= rows.offsets[row][:, None], values[at.clip(min=-1)], -1).astype(np.int64)
