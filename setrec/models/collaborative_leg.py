"""The collaborative leg: one slot, read and answered by a backbone of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from setrec.models import masks
from setrec.models.backbones import CausalBackbone, build_backbone
from setrec.models.configuration import backbone_config
from setrec.models.item_tokens import TableTokenizer
from setrec.models.recommender import SHARPNESS


class CollaborativeLeg(nn.Module):
    """Maps the collaborative codes of a history to an answer in their columns.

    Args:
        config: dropout, and the configuration of the backbone.
        slots: number of slots of the other leg, by which the loss divides the scores of both.
        decays: number of decays of the history skip connection.
        repeats: whether a bias of items in the history is learned.

    Attributes:
        log_skip, repeat_logit: as of :class:`setrec.models.setrec_model.SetRecModel`, which uses them.
    """

    def __init__(self, config: Mapping[str, Any], slots: int, decays: int, *, repeats: bool) -> None:
        super().__init__()
        self.backbone = cast(CausalBackbone, build_backbone(backbone_config(config["backbone"])))
        width = self.backbone.width
        self.start = nn.Parameter(0.02 * torch.randn(1, width))
        self.answer = nn.Linear(width, width)
        nn.init.eye_(self.answer.weight)
        nn.init.zeros_(self.answer.bias)
        self.log_scale = nn.Parameter(torch.tensor(slots / SHARPNESS * width**-0.5).log())
        self.log_skip = nn.Parameter(torch.zeros(1, decays)) if decays else None
        self.repeat_logit = nn.Parameter(torch.zeros(1)) if repeats else None
        self.dropout = nn.Dropout(config["dropout"])

    def forward(self, tokenizer: TableTokenizer, codes: Tensor, visible: Tensor) -> Tensor:
        """Return answers (B, Q, c) of query blocks that see the first ``visible`` int (B or 1, Q) items of a history
        with collaborative codes (B, L, c)."""
        states = self.backbone.read(self.start, self.dropout(tokenizer.project(codes)))
        own = self.dropout(self.answer(masks.last_seen(states, visible.long())))
        answers: Tensor = own * self.log_scale.exp() @ tokenizer.project.weight
        return answers
