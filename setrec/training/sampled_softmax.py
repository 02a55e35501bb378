"""Sampled softmax: cross-entropy for large catalogues, with a sample of items in place of the whole catalogue.

Candidates are drawn log-uniformly over popularity ranks (Zipf's law, the usual shape of demand): of R items the one
of rank r (from 0) with probability p_r = log((r + 2) / (r + 1)) / log(R + 1), T times. The set S of items met holds
item i with probability q_i = 1 - (1 - p_i)^T, its expected count. With the logits of S corrected by -log q_i,

    Z = exp(l_target) + sum over i in S, i not the target, of exp(l_i - log q_i)

has the full softmax's normaliser as its expectation (Horvitz and Thompson 1952) for any logits; the target is always
included, so it is not corrected, and it is not counted again if the sample contains it. The loss is log Z - l_target.
The logarithm is concave, so the loss is biased low by about Var(Z) / (2 Z^2), which vanishes as the sample grows. With
as many draws as items, all items are used, and the loss is the full softmax's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from setrec.models.grounding import LogitBias
from setrec.training import softmax
from setrec.training.softmax import weighted


class Candidates(NamedTuple):
    """A sample of items: ``rows`` int64 (S,), ascending, and the log of their expected counts, float32 (S,)."""

    rows: Tensor
    log_counts: Tensor


class LogUniformSampler:
    """Sampler of candidates by popularity rank.

    Args:
        counts: training interactions of each item, int (I,); the most popular item has rank 0, ties are broken by row.
        eligible: the items that may be drawn, bool (I,).
        samples: number of draws; items drawn more than once count once, so a sample may have fewer.
    """

    def __init__(self, counts: np.ndarray, eligible: np.ndarray, samples: int) -> None:
        by_popularity = np.argsort(-counts, kind="stable")
        self.order = torch.from_numpy(by_popularity[eligible[by_popularity]])
        self.samples = samples

    def draw(self, generator: torch.Generator) -> Candidates:
        """Return a sample, or all items without correction if ``samples`` is at least their number."""
        total = len(self.order)
        if self.samples >= total:
            return Candidates(self.order.sort().values, torch.zeros(total))
        uniform = torch.rand(self.samples, generator=generator, dtype=torch.float64)
        rank = torch.unique((uniform * np.log(total + 1)).exp().sub(1).long().clamp(0, total - 1))
        chance = torch.log1p(1.0 / (rank.double() + 1)) / np.log(total + 1)
        counts = -torch.expm1(self.samples * torch.log1p(-chance))
        rows, at = self.order[rank].sort()
        return Candidates(rows, counts.log()[at].float())


def sampled_cross_entropy(
    users: Tensor,
    codes: Tensor,
    targets: Tensor,
    candidates: Candidates,
    biases: Sequence[LogitBias] = (),
    weights: Tensor | None = None,
) -> Tensor:
    """Return the sum over rows of the loss (see the module) times ``weights``, for logits ``users @ codes.T`` +
    ``biases``.

    Shapes: users (T, w), codes (I, w), targets int64 (T,) and ``candidates.rows`` in [0, I), weights float32 (T, 1).
    Precision and differentiability as in :func:`setrec.training.softmax.catalogue_cross_entropy`.
    """
    product = torch.get_autocast_dtype(users.device.type) if torch.is_autocast_enabled(users.device.type) else None
    place = torch.searchsorted(candidates.rows, targets).clamp(max=len(candidates.rows) - 1)
    place = torch.where(candidates.rows[place] == targets, place, -1)
    again = users.new_zeros(len(biases), len(users), 1, dtype=torch.float32)
    for of_target, bias in zip(again, biases, strict=True):
        hit = targets[bias.rows] == bias.items
        of_target[bias.rows[hit], 0] = 1.0 if bias.values is None else bias.values[hit]
    loss: Tensor = _SampledCrossEntropy.apply(
        users.float(), codes[targets].float(), codes[candidates.rows].float(), softmax.learned(biases, users),
        candidates.log_counts, place, again, tuple(bias.among(candidates.rows) for bias in biases), weights,
        product or torch.float32,
    )  # fmt: skip
    return loss


class _SampledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, users: Tensor, own: Tensor, codes: Tensor, by: Tensor, *fixed: Any) -> Tensor:
        with torch.autocast(users.device.type, enabled=False):
            loss, *gradients = _loss_and_gradients(users, own, codes, by, *fixed)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*(grads[0] * gradient for gradient in ctx.saved_tensors), *(None,) * 6)


def _loss_and_gradients(
    users: Tensor,
    own: Tensor,
    codes: Tensor,
    by: Tensor,
    log_counts: Tensor,
    place: Tensor,
    again: Tensor,
    biases: Sequence[LogitBias],
    weights: Tensor | None,
    product: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return loss and gradients as in ``setrec.training.softmax``, with the target in addition to the candidates;
    ``place``: its position among the candidates, or -1; ``again`` (n, T, 1): factor of each bias in the target's own
    logit."""
    narrow = codes.to(product)
    by_users, by_own, by_codes = torch.empty_like(users), torch.empty_like(own), torch.zeros_like(codes)
    by_bias = torch.zeros_like(by)
    loss = users.new_zeros((), dtype=torch.float64)
    step = softmax.rows_at_once(codes)
    for start in range(0, len(users), step):
        rows = slice(start, start + step)
        u, o, at = users[rows], own[rows], place[rows]
        logits = (u.to(product) @ narrow.T).float().sub_(log_counts)
        near = [bias.between(start, start + step) for bias in biases]
        for n, bias in enumerate(near):
            logits[bias.rows, bias.items] += bias.added(by[n])
        met = (at >= 0).nonzero()[:, 0]
        logits[met, at[met]] = float("-inf")
        target = (u * o).sum(dim=1, keepdim=True)
        for n in range(len(biases)):
            target = target + by[n] * again[n, rows]
        top = torch.maximum(logits.amax(dim=1, keepdim=True), target)
        mass, target_mass = logits.sub_(top).exp_(), (target - top).exp()
        total = mass.sum(dim=1, keepdim=True) + target_mass
        loss += weighted(total.log() + top - target, weights, rows).sum()
        away = target_mass / total - 1
        for n, bias in enumerate(near):
            share = (mass[bias.rows, bias.items] / total[bias.rows, 0])[:, None]
            others = bias.scaled(weighted(share, weights, start + bias.rows)).sum()
            own_factor = again[n, rows]
            by_bias[n] += others + (weighted(away, weights, rows) * own_factor)[own_factor != 0].sum()
        mass = mass.to(product)
        by_users[rows] = weighted((mass @ narrow).float() / total + away * o, weights, rows)
        by_own[rows] = weighted(away * u, weights, rows)
        by_codes += (mass.T @ weighted(u / total, weights, rows).to(product)).float()
    return loss.to(users.dtype), by_users, by_own, by_codes, by_bias
