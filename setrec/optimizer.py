"""AdamW with weight decay on matrices only, and a learning rate of its own for a pretrained backbone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

FULL, ADAPTERS = 1 / 50, 1 / 5
"""Learning rate of a pretrained backbone as a share of that of new weights: of all its weights, of adapters only."""


def backbone_share(*, pretrained: bool, lora: bool) -> float:
    """Return the default learning rate of a backbone's weights, as a share of that of other weights."""
    if not pretrained:
        return 1.0
    return ADAPTERS if lora else FULL


def adamw(parameters: Iterable[tuple[nn.Parameter, float, float]], learning_rate: float) -> torch.optim.AdamW:
    """Return AdamW over trainable ``parameters``, each with its share of the learning rate and its weight decay; those
    with one dimension have none."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for p, share, weight_decay in parameters:
        if p.requires_grad:
            groups.setdefault((share * learning_rate, weight_decay if p.ndim > 1 else 0.0), []).append(p)
    each = [{"params": ps, "lr": rate, "weight_decay": decay} for (rate, decay), ps in groups.items()]
    return torch.optim.AdamW(each, lr=learning_rate, fused=True)
