"""The collaborative leg: one slot, read and answered by a backbone of its own."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from setrec.models import masks
from setrec.models.backbones import CausalBackbone, build_backbone, scratch_config
from setrec.models.item_tokens import TableTokenizer
from setrec.models.recommender import SHARPNESS
from setrec.models.settings import LegSettings


class CollaborativeLeg(nn.Module):
    """Maps the collaborative codes of a history to an answer in their columns.

    Args:
        settings: size and dropout.
        slots: number of slots of the other leg, by which the loss divides the scores of both.
    """

    def __init__(self, settings: LegSettings, slots: int) -> None:
        super().__init__()
        config = scratch_config("qwen3", settings.size, settings.dropout / 2, layers=settings.layers)
        self.backbone = cast(CausalBackbone, build_backbone(config))
        width = self.backbone.width
        self.start = nn.Parameter(0.02 * torch.randn(1, width))
        self.answer = nn.Linear(width, width)
        nn.init.eye_(self.answer.weight)
        nn.init.zeros_(self.answer.bias)
        self.log_scale = nn.Parameter(torch.tensor(slots / SHARPNESS * width**-0.5).log())
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, tokenizer: TableTokenizer, codes: Tensor, visible: Tensor) -> Tensor:
        """Return answers (B, Q, c) of query blocks that see the first ``visible`` int (B or 1, Q) items of a history
        with collaborative codes (B, L, c)."""
        states = self.backbone.read(self.start, self.dropout(tokenizer.project(codes)))
        own = self.dropout(self.answer(masks.last_seen(states, visible.long())))
        answers: Tensor = own * self.log_scale.exp() @ tokenizer.project.weight
        return answers
