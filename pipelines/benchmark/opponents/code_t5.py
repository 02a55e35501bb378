"""A T5 that reads the codes of a user's items and generates the codes of the next one, after TIGER (arXiv 2305.05065).

The network is that of transformers, with random weights. Every level of codes has its own tokens, and a code is only
compared with the others of its level. The targets of a user are in one row, block by block: a block attends to itself
and, in the encoder's output, to the items before its target. A causal encoder does not encode which of them came last,
and T5's decoder has no positions of the encoder's output, so a learned bias by recency is added there.

Sizes: b users, L items, Q targets, n codes an item, I items, d width, C codes of a level.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5Config, T5Model
from transformers.models.t5.modeling_t5 import T5Attention, T5DenseActDense

from setrec.settings import Settings
from setrec.training.batches import Batch

Sight = Literal["causal", "both"]
HIDDEN = -1e9
"""Added to masked attention; finite, so that a fully masked row has no NaN."""


class CodeT5Settings(Settings):
    """Shape of the network. ``sight``: whether an item in the encoder attends only to earlier items (``causal``: one
    pass answers every prefix of a history) or also to later ones (``both``, as in the paper: a pass for each
    prefix)."""

    width: int = 128
    heads: int = 4
    head_width: int = 32
    hidden: int = 512
    layers: int = 2
    dropout: float = 0.1
    max_items: int = 20
    sight: Sight = "causal"


class CodeT5(nn.Module):
    """``codes`` int64 (I, n): code of each item at each level; ``tokens`` the same, numbered through all levels."""

    codes: Tensor
    tokens: Tensor

    def __init__(self, codes: np.ndarray, s: CodeT5Settings) -> None:
        super().__init__()
        self.settings, self.levels = s, codes.shape[1]
        sizes = codes.max(axis=0) + 1
        ends = 1 + np.cumsum(sizes)  # token 0 starts every generated item
        self.span = list(zip((ends - sizes).tolist(), ends.tolist(), strict=True))
        self.register_buffer("codes", torch.from_numpy(codes))
        self.register_buffer("tokens", torch.from_numpy(codes + (ends - sizes)))
        self.t5 = T5Model(_config(int(ends[-1]), s))
        self.recency = nn.Embedding(s.max_items, s.heads)
        nn.init.zeros_(self.recency.weight)
        _drop_only_between_layers(self.t5)

    def encode(self, items: Tensor, visible: Tensor) -> Tensor:
        """Return encoder states (b, L * n, d) of right-padded items (b, L), of which targets attend to the first
        ``visible`` (b, Q).

        With ``sight="both"`` a row has one target, which attends to all encoded items.
        """
        if self.settings.sight == "causal":
            seen = items.new_ones(items.shape[1], items.shape[1]).tril().bool()[None].repeat_interleave(self.levels, 1)
        else:
            seen = self._before(items.shape[1], visible)
        mask = _mask(seen.repeat_interleave(self.levels, 2))
        out: Tensor = self.t5.encoder(input_ids=self.tokens[items].flatten(1), attention_mask=mask).last_hidden_state
        return out

    def forward(self, items: Tensor, visible: Tensor, targets: Tensor) -> Tensor:
        """Return hidden states (b, Q, n, d) that predict the codes of the targets (b, Q), each given the previous
        codes."""
        read = F.pad(self.tokens[targets][..., :-1], (1, 0))
        block = items.new_ones(self.levels, self.levels).tril()
        own = torch.block_diag(*[block] * targets.shape[1]).bool()[None]
        looked = self.looked(items.shape[1], visible).repeat_interleave(self.levels, 2)
        hidden: Tensor = self.t5.decoder(
            input_ids=read.flatten(1), attention_mask=_mask(own),
            encoder_hidden_states=self.encode(items, visible),
            encoder_attention_mask=looked,
        ).last_hidden_state.unflatten(1, (-1, self.levels))  # fmt: skip
        return hidden

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of the codes, summed over levels and targets."""
        items, visible, targets = batch.tensors(self.codes.device)
        real = targets >= 0
        hidden, codes = self(items, visible, targets.clamp(min=0))[real], self.codes[targets[real]]
        losses = [
            F.cross_entropy(self.logits(hidden[:, at], at).float(), codes[:, at], reduction="sum")
            for at in range(self.levels)
        ]
        return torch.stack(losses).sum()

    def logits(self, hidden: Tensor, level: int) -> Tensor:
        """Return logits (..., C) over the codes of a level from hidden states (..., d); input and output embeddings are
        shared."""
        begin, end = self.span[level]
        logits: Tensor = hidden @ self.t5.shared.weight[begin:end].T * self.settings.width**-0.5
        return logits

    def looked(self, length: int, visible: Tensor) -> Tensor:
        """Return the bias of the decoder's attention to the encoder's output, (b, heads, Q, L * n): learned by head and
        recency; items from the target on are masked."""
        ago = visible[..., None] - 1 - torch.arange(length, device=visible.device)
        bias: Tensor = self.recency(ago.clamp(0, self.settings.max_items - 1)).permute(0, 3, 1, 2)
        bias = bias + _mask(self._before(length, visible))
        return bias.repeat_interleave(self.levels, 3)

    @staticmethod
    def _before(length: int, visible: Tensor) -> Tensor:
        """Return the mask of items (b, Q, L) that each target attends to."""
        return torch.arange(length, device=visible.device) < visible[..., None]


def _config(tokens: int, s: CodeT5Settings) -> T5Config:
    """Return the configuration for a number of tokens; eager attention is the fastest at this size."""
    shape: dict[str, Any] = {
        "d_model": s.width, "num_heads": s.heads, "d_kv": s.head_width, "d_ff": s.hidden, "num_layers": s.layers,
        "num_decoder_layers": s.layers, "dropout_rate": s.dropout, "attn_implementation": "eager",
    }  # fmt: skip
    return T5Config(vocab_size=tokens, pad_token_id=0, use_cache=False, **shape)


def _drop_only_between_layers(t5: nn.Module) -> None:
    """Disable dropout of attention weights and inside feed-forward layers: their random numbers took a quarter of the
    training time on a CPU, and each layer's output has dropout anyway."""
    for module in t5.modules():
        if isinstance(module, T5Attention):
            module.dropout = 0.0
        elif isinstance(module, T5DenseActDense):
            module.dropout.p = 0.0


def _mask(seen: Tensor) -> Tensor:
    """Convert a boolean mask to an additive one, float32 (b, 1, queries, keys)."""
    return torch.where(seen, 0.0, HIDDEN)[:, None]
