"""The losses: cross-entropy over the catalogue per slot, over the fused score, and the autoencoder's error."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from setrec import grounding
from setrec.settings import Settings
from setrec.tokens import SEMANTIC, ItemTokens

LOGITS_AT_ONCE = 1 << 25
"""Logits held at a time (128 MiB in float32); a larger catalogue or batch is computed in chunks and recomputed."""


class ObjectiveSettings(Settings):
    """The training loss, SETRec's Eq. (8) and our additions.

    ``alpha`` weighs the reconstruction error. ``fused`` weighs the cross-entropy of the fused score, which lets the slots
    cooperate (the paper: 0). ``negatives``: with ``trained``, items that training never shows as a target are left
    out of the softmax, so that they are not pushed down for being new (the paper: ``all``).
    """

    alpha: float = 0.5
    fused: float = 1.0
    negatives: Literal["trained", "all"] = "trained"
    label_smoothing: float = 0.0

    @classmethod
    def paper(cls) -> ObjectiveSettings:
        """The loss as published."""
        return cls(alpha=0.7, fused=0.0, negatives="all", label_smoothing=0.0)


def catalogue_cross_entropy(
    users: Tensor, codes: Tensor, targets: Tensor, allowed: Tensor | None, smoothing: float = 0.0
) -> Tensor:
    """Summed cross-entropy of the targets (T,) in a softmax over all items, logits = users (T, w) @ codes (I, w).T.

    ``allowed`` bool (I,): items that take part in the softmax; a target that does not is an error of the caller.
    """
    blocked = None if allowed is None else torch.where(allowed, 0.0, float("-inf"))

    def part(u: Tensor, t: Tensor) -> Tensor:
        logits = u @ codes.T
        loss = (
            torch.logsumexp(logits if blocked is None else logits + blocked, dim=1) - logits.gather(1, t[:, None])[:, 0]
        )
        if smoothing:
            pool = logits if allowed is None else logits[:, allowed]
            loss = loss + smoothing * (logits.gather(1, t[:, None])[:, 0] - pool.mean(dim=1))
        return loss.sum()

    rows = max(1, LOGITS_AT_ONCE // len(codes))
    if len(users) <= rows:
        return part(users, targets)
    pieces = zip(users.split(rows), targets.split(rows), strict=True)
    return torch.stack([checkpoint(part, u, t, use_reentrant=False) for u, t in pieces]).sum()


def loss(
    tokens: ItemTokens, outputs: Tensor, targets: Tensor, codes: Tensor, settings: ObjectiveSettings,
    allowed: Tensor, rows: Tensor,
) -> dict[str, Tensor]:  # fmt: skip
    """Loss terms, each a sum over targets (``slots``, ``fused``) or a mean (``reconstruction``).

    Shapes: outputs (T, n, d), targets (T,), codes (I, D), allowed bool (I,); ``rows``: items whose text vectors are
    reconstructed.
    """
    pool = allowed if settings.negatives == "trained" else None
    own = grounding.slot_codes(tokens, outputs)
    slots = sum(
        catalogue_cross_entropy(u, codes[:, s.start : s.stop], targets, pool, settings.label_smoothing)
        for u, s in zip(own, tokens.slots, strict=True)
    )
    terms = {"slots": slots / len(tokens.slots)}
    if settings.fused:
        kinds = [sum(u for u, s in zip(own, tokens.slots, strict=True) if s.kind == kind) for kind in tokens.kinds]
        user = torch.cat(kinds, dim=-1) / len(tokens.slots)
        terms["fused"] = catalogue_cross_entropy(user, codes, targets, pool, settings.label_smoothing)
    if settings.alpha and SEMANTIC in tokens.kinds:
        terms["reconstruction"] = tokens.parts[SEMANTIC].reconstruction_error(rows)
    return terms


def total(terms: dict[str, Tensor], settings: ObjectiveSettings, count: Tensor | float) -> Tensor:
    """One number: (slots + fused) per target + alpha * reconstruction; ``count`` targets share the sums."""
    value = terms["slots"] / count
    if "fused" in terms:
        value = value + settings.fused * terms["fused"] / count
    if "reconstruction" in terms:
        value = value + settings.alpha * terms["reconstruction"]
    return value
