"""Generation of codes with a T5 whose beams share the encoder states."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.benchmark.opponents.code_t5 import CodeT5


class CachedWriter:
    """The decoder of a :class:`CodeT5` for users whose items (b, L), right-padded, and ``lengths`` (b,) are given; a
    :class:`pipelines.benchmark.opponents.code_beam.Writer`.

    Beams of a user are parallel queries, so that the user's history is held once and not once per beam, which
    transformers' own cache cannot do. Keys and values of generated codes are stored by beam. Sizes as in
    :mod:`code_t5`.
    """

    def __init__(self, model: CodeT5, items: Tensor, lengths: Tensor) -> None:
        self.model, self.heads, self.level = model, model.settings.heads, 0
        self.decoder = cast(Any, model.t5.decoder)  # transformers' layers have no types of their own
        memory = model.encode(items, lengths[:, None])
        self.mask = model.looked(items.shape[1], lengths[:, None])
        attentions = [block.layer[1].EncDecAttention for block in self.decoder.block]
        self.memory = [(self._split(a.k(memory)), self._split(a.v(memory))) for a in attentions]
        self.written: list[tuple[Tensor, Tensor]] = []

    def __call__(self, codes: Tensor | None, beam: Tensor | None) -> Tensor:
        """Return log probabilities (b, beams, C) of the next codes, (b, 1, C) of the first."""
        if codes is None or beam is None:
            tokens = torch.zeros(len(self.mask), 1, dtype=torch.int64, device=self.mask.device)
        else:
            tokens = codes + self.model.span[self.level - 1][0]
            self.written = [(_follow(k, beam), _follow(v, beam)) for k, v in self.written]
        x = self.decoder.embed_tokens(tokens)
        bias = self.decoder.block[0].layer[0].SelfAttention.compute_bias(1, self.level + 1, None, self.level)
        for at, block in enumerate(self.decoder.block):
            own, other = block.layer[0], block.layer[1]
            x = x + self._own(own.SelfAttention, own.layer_norm(x), at, bias)
            x = x + self._other(other.EncDecAttention, other.layer_norm(x), at)
            x = block.layer[2](x)
        hidden = self.decoder.final_layer_norm(x)
        self.level += 1
        return F.log_softmax(self.model.logits(hidden, self.level - 1), dim=-1)

    def _split(self, x: Tensor) -> Tensor:
        """Split heads: (b, heads, keys, d / heads) from (b, keys, d)."""
        heads: Tensor = x.unflatten(2, (self.heads, -1)).transpose(1, 2)
        return heads

    def _own(self, attention: Any, x: Tensor, at: int, bias: Tensor) -> Tensor:
        """Return self-attention of every beam over its codes so far, (b, beams, d)."""
        q, k, v = (part(x).unflatten(2, (self.heads, 1, -1)) for part in (attention.q, attention.k, attention.v))
        if at < len(self.written):
            k, v = (torch.cat([old, new], dim=3) for old, new in zip(self.written[at], (k, v), strict=True))
            self.written[at] = k, v
        else:
            self.written.append((k, v))
        # T5 does not scale its products.
        weights = (q @ k.transpose(3, 4) + bias[:, None]).softmax(dim=-1)
        out: Tensor = attention.o((weights @ v).flatten(2))
        return out

    def _other(self, attention: Any, x: Tensor, at: int) -> Tensor:
        """Return cross-attention of every beam over the user's history, (b, beams, d)."""
        k, v = self.memory[at]
        mixed = F.scaled_dot_product_attention(self._split(attention.q(x)), k, v, self.mask, scale=1.0)
        out: Tensor = attention.o(mixed.transpose(1, 2).flatten(2))
        return out


def _follow(kept: Tensor, beam: Tensor) -> Tensor:
    """Select the keys or values (b, beams, heads, codes, width) of the surviving beams."""
    return kept[torch.arange(len(beam), device=beam.device)[:, None], beam]
