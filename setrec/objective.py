"""The losses: cross-entropy over the catalogue per slot, over the fused score, and the autoencoder's error."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from setrec import grounding
from setrec.settings import Settings
from setrec.softmax import catalogue_cross_entropy
from setrec.tokens import ItemTokens


class ObjectiveSettings(Settings):
    """The training loss, SETRec's Eq. (8) and our additions.

    ``alpha`` weighs the reconstruction error. ``slots`` weighs the mean of the slots' own cross-entropies. ``fused``
    weighs the cross-entropy of the fused score, which lets the slots cooperate (the paper: 0). ``negatives``: with
    ``trained``, items that training never shows as a target are left out of the softmax, so that they are not pushed
    down for being new (the paper: ``all``).
    """

    alpha: float = 0.5
    slots: float = 0.2
    fused: float = 1.0
    negatives: Literal["trained", "all"] = "trained"

    @classmethod
    def paper(cls) -> ObjectiveSettings:
        """The loss as published."""
        return cls(alpha=0.7, slots=1.0, fused=0.0, negatives="all")


def loss(
    tokens: ItemTokens,
    outputs: Tensor,
    targets: Tensor,
    codes: Tensor,
    settings: ObjectiveSettings,
    trained: Tensor,
    rows: Tensor,
) -> dict[str, Tensor]:
    """Loss terms, each a sum over targets (``slots``, ``fused``) or a mean (``reconstruction``).

    Shapes: outputs (T, n, d), targets int64 (T,), codes (I, D), trained bool (I,). ``rows``: items whose text vectors
    are reconstructed.
    """
    if settings.negatives == "trained":
        # Positions of the remaining items among themselves; targets are training items, hence always among them.
        targets = (torch.cumsum(trained, dim=0) - 1)[targets]
        codes = codes[trained]
    own = grounding.slot_codes(tokens, outputs)
    pairs = list(zip(own, tokens.slots, strict=True))
    terms = {}
    if settings.slots:
        each = [catalogue_cross_entropy(u, codes[:, s.start : s.stop], targets) for u, s in pairs]
        terms["slots"] = torch.stack(each).mean()
    if settings.fused:
        kinds = [torch.stack([u for u, s in pairs if s.kind == kind]).sum(dim=0) for kind in tokens.kinds]
        terms["fused"] = catalogue_cross_entropy(torch.cat(kinds, dim=-1) / len(pairs), codes, targets)
    if settings.alpha and tokens.semantic is not None:
        terms["reconstruction"] = tokens.semantic.reconstruction_error(rows)
    return terms


def total(terms: dict[str, Tensor], settings: ObjectiveSettings, count: float) -> Tensor:
    """One number: (slots + fused) per target + alpha * reconstruction; ``count`` targets share the sums."""
    weights = {"slots": settings.slots / count, "fused": settings.fused / count, "reconstruction": settings.alpha}
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()
