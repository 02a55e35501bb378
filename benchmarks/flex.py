"""The recommender's attention by PyTorch's flex attention: a block-sparse mask in place of a table of who sees whom.

Whole tiles of 128 by 128 that nobody may see are left out, so work falls with what the mask leaves; T5's biases of
positions are read inside the kernel. There is no dropout of attention weights. Compiled on a GPU, in plain operations
elsewhere (for tests).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface

from setrec.models import attention
from setrec.models.backbones import CausalBackbone, EncoderDecoderBackbone
from setrec.models.setrec_model import SetRecModel

NAME = "setrec_flex"
See = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def use_flex(model: SetRecModel) -> SetRecModel:
    """The same model, weights shared, with attention by this file; ``model`` itself is changed."""
    inner = model.backbone.model
    inner.set_attn_implementation(NAME)
    kind = FlexEncoderDecoder if isinstance(model.backbone, EncoderDecoderBackbone) else FlexCausal
    model.backbone = kind(inner)
    return model


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float | None = None,
    **given: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    if not isinstance(attention_mask, BlockMask):  # queries of a decoder, each of which sees only itself
        return attention.set_attention(module, query, key, value, attention_mask, scaling, **given)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    biased = getattr(attention_mask, "biased", None)
    grouped = query.shape[1] != key.shape[1]
    key, value = key.to(query.dtype), value.to(query.dtype)
    run = _flex(query.device.type)
    out = run(query, key, value, score_mod=biased, block_mask=attention_mask, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2).contiguous(), None


@cache
def _flex(device: str) -> Callable[..., Any]:
    return torch.compile(flex_attention) if device == "cuda" else flex_attention


def _mask(see: See, rows: int, asking: int, seen: int, device: torch.device) -> BlockMask:
    return create_block_mask(see, rows, None, asking, seen, device=device, _compile=device.type == "cuda")


class FlexCausal(CausalBackbone):
    """History and queries in one sequence; see ``setrec.models.masks`` for who sees whom."""

    def attend(
        self, history: Tensor, sees: Tensor, positions: Tensor, queries: Tensor, asks: Tensor, asked_at: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """As in the class above, for the recommender's own masks, which positions say; ``bias`` is not taken."""
        length, rows = history.shape[1], len(asked_at)
        places = torch.cat([positions.expand(rows, -1), asked_at], dim=1)

        def see(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            return (kv < length) & (places[b, kv] < places[b, q]) | (kv == q)

        mask = _mask(see, rows, places.shape[1], places.shape[1], history.device)
        out = self.model(
            inputs_embeds=torch.cat([history, queries], dim=1), attention_mask=mask, position_ids=places,
            use_cache=False,
        ).last_hidden_state  # fmt: skip
        return out[:, length:]


class FlexEncoderDecoder(EncoderDecoderBackbone):
    """T5: the encoder over the history, the queries' view of it; biases of positions inside the kernel."""

    def _bias(self, stack: str, looking: Tensor, seen: Tensor, mask: Tensor) -> Any:
        allowed = mask[0]

        def history(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            return allowed[q, kv]

        def queries(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            return seen[0, kv] < looking[b, q]

        see = history if stack == "encoder" else queries
        made = _mask(see, len(looking), looking.shape[1], seen.shape[1], seen.device)
        made.biased = self._score(stack, looking, seen)  # type: ignore[attr-defined]
        return made

    def _score(self, stack: str, looking: Tensor, seen: Tensor) -> Callable[..., Tensor]:
        layer: Any = getattr(self.model, stack).block[0].layer[0].SelfAttention
        reach = int(max(looking.max(), seen.max())) + 1
        away = torch.arange(-reach, reach + 1, device=seen.device)
        buckets = layer._relative_position_bucket(
            away, bidirectional=stack == "encoder", num_buckets=layer.relative_attention_num_buckets,
            max_distance=layer.relative_attention_max_distance,
        )  # fmt: skip
        table = layer.relative_attention_bias(buckets)

        def biased(score: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            at = looking[b, q] if len(looking) > 1 else looking[0, q]
            return score + table[seen[0, kv] - at + reach, h]

        return biased


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, attention._plain_mask)
