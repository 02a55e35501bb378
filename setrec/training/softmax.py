"""Cross-entropy of a softmax over the whole catalogue, without the full table of logits in memory.

Loss and gradients are computed together, a few rows at a time, so that memory does not grow with batch times catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from setrec.models.grounding import LogitBias

LOGITS_AT_ONCE = 1 << 22
"""Number of logits in memory at a time: 16 MiB in float32; on other devices 64 times as many.

A quarter of that reads the catalogue so often that 41,000 candidates of width 320 take 1.5 times as long, 2 MiB 3.8
times (one core of an AMD EPYC, bfloat16)."""


def catalogue_cross_entropy(
    users: Tensor, codes: Tensor, targets: Tensor, biases: Sequence[LogitBias] = (), weights: Tensor | None = None
) -> Tensor:
    """Return the sum over rows of -log softmax(users @ codes.T)[target], with ``biases`` added to its logits, times
    ``weights``.

    Shapes: users (T, w), codes (I, w), targets int64 (T,) in [0, I), weights float32 (T, 1). Under autocast the
    products run in its precision, everything else in float32. Differentiable once, in users, codes and the biases'
    ``by``.
    """
    product = torch.get_autocast_dtype(users.device.type) if torch.is_autocast_enabled(users.device.type) else None
    fixed = targets, biases, weights, product or torch.float32
    loss: Tensor = _CatalogueCrossEntropy.apply(users.float(), codes.float(), learned(biases, users), *fixed)
    return loss


class _CatalogueCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, users: Tensor, codes: Tensor, by: Tensor, *fixed: Any) -> Tensor:
        with torch.autocast(users.device.type, enabled=False):
            loss, *gradients = _loss_and_gradients(users, codes, by, *fixed)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        by_users, by_codes, by_bias = ctx.saved_tensors
        return grads[0] * by_users, grads[0] * by_codes, grads[0] * by_bias, None, None, None, None


def rows_at_once(codes: Tensor) -> int:
    """Return the number of rows whose logits over all ``codes`` are in memory at a time."""
    return max(1, LOGITS_AT_ONCE * (1 if codes.device.type == "cpu" else 64) // len(codes))


def weighted(values: Tensor, weights: Tensor | None, rows: Any) -> Tensor:
    """Return ``values`` (t, ...) times the ``weights`` of these ``rows``; unchanged without weights."""
    return values if weights is None else values * weights[rows]


def learned(biases: Sequence[LogitBias], like: Tensor) -> Tensor:
    """Return the learned numbers of ``biases``, float32 (n,), on the device of ``like``."""
    return torch.stack([bias.by.float() for bias in biases]) if biases else like.new_zeros(0, dtype=torch.float32)


def _loss_and_gradients(
    users: Tensor,
    codes: Tensor,
    by: Tensor,
    targets: Tensor,
    biases: Sequence[LogitBias],
    weights: Tensor | None,
    product: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """d/du = sum_i p_i c_i - c_target, and likewise for codes; p is normalised where fewest numbers are left."""
    narrow = codes.to(product)
    by_users, by_codes, by_bias = torch.empty_like(users), torch.zeros_like(codes), torch.zeros_like(by)
    loss = users.new_zeros((), dtype=torch.float64)
    step = rows_at_once(codes)
    # A worker's share of a step may hold no row at all.
    for start in range(0, len(users), step):
        rows = slice(start, start + step)
        u, t = users[rows], targets[rows]
        own = codes[t]
        logits = (u.to(product) @ narrow.T).float()
        near = [bias.between(start, start + step) for bias in biases]
        asked = [
            bias.scaled(weighted((t[bias.rows] == bias.items)[:, None], weights, start + bias.rows)).sum()
            for bias in near
        ]
        for n, bias in enumerate(near):
            logits[bias.rows, bias.items] += bias.added(by[n])
            loss -= asked[n] * by[n].double()
        top = logits.amax(dim=1, keepdim=True)
        mass = logits.sub_(top).exp_()
        total = mass.sum(dim=1, keepdim=True)
        loss += weighted(total.log() + top, weights, rows).sum() - weighted(u * own, weights, rows).sum()
        for n, bias in enumerate(near):
            share = (mass[bias.rows, bias.items] / total[bias.rows, 0])[:, None]
            by_bias[n] += bias.scaled(weighted(share, weights, start + bias.rows)).sum() - asked[n]
        mass = mass.to(product)
        by_users[rows] = weighted((mass @ narrow).float() / total - own, weights, rows)
        by_codes += (mass.T @ weighted(u / total, weights, rows).to(product)).float()
    by_codes.index_add_(0, targets, weighted(users, weights, slice(None)), alpha=-1.0)
    return loss.to(users.dtype), by_users, by_codes, by_bias
