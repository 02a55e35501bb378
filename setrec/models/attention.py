"""The one attention function of both backbones, registered through transformers' attention interface.

Query blocks see the history and themselves, so a square mask over history and queries would be mostly empty: with L
items, n queries a block and one block per item it has (L + nL)^2 entries of which about nL^2 are used. The function
therefore reads a mask of H columns, the history alone, and lets every token after the first H see itself as well.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from setrec.models.block_attention import causal_attention

NAME = "setrec"


def set_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    read_blocks: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend to the first H keys under the mask and, from token H on, to oneself.

    ``query`` (B, heads, S, c); ``key`` and ``value`` (B, key heads, T, c); ``attention_mask``
    (B or 1, heads or 1, S, H), bool (True may see), float (added to the logits) or none. Three shapes occur:

    * T = H: plain attention under the mask (an encoder, cross-attention);
    * S = T > H: history followed by queries (decoder-only backbones);
    * H = 0: every token sees only itself (queries in a decoder's self-attention);
    * a mask without rows, (1, 1, 0, T): every token sees itself and all before it, with ``read_blocks`` only blocks of
      them (:mod:`setrec.models.block_attention`).

    T5 passes a ``position_bias``. A float mask already includes positions; to any other mask the bias is added, as in
    T5's stock decoder. Returns (B, S, heads, c).
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if position_bias is not None and (attention_mask is None or not attention_mask.dtype.is_floating_point):
        attention_mask = _biased(attention_mask, position_bias, query)
    if attention_mask is None:
        out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scaling)
        return out.transpose(1, 2).contiguous(), None
    if attention_mask.shape[2] == 0 < query.shape[2]:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        out = causal_attention(query, key, value, scale, dropout, read_blocks)
        return out.transpose(1, 2).contiguous(), None
    seen = attention_mask.shape[-1]
    if seen == 0:
        return value.transpose(1, 2).contiguous(), None
    if seen == key.shape[2]:
        out = _masked(query, key, value, attention_mask, scaling, dropout)
        return out.transpose(1, 2).contiguous(), None
    first, keys, values = (x[:, :, :seen] for x in (query, key, value))
    history = _masked(first, keys, values, attention_mask[:, :, :seen], scaling, dropout)
    queries = _history_and_self(query, key, value, attention_mask, seen, scaling, dropout)
    return torch.cat([history, queries], dim=2).transpose(1, 2).contiguous(), None


def _biased(mask: Tensor | None, bias: Tensor, query: Tensor) -> Tensor:
    bias = bias.to(query.dtype)
    if mask is None or mask.shape[-1] == 0:
        return bias if mask is None else bias.new_zeros(mask.shape)
    return bias.masked_fill(~mask, torch.finfo(bias.dtype).min)


def _masked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None, dropout: float) -> Tensor:
    narrow = query.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    if query.device.type != "cpu" or not narrow:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
    # PyTorch's fused CPU kernel is 3 to 8 times slower in bfloat16 than these three lines at up to 120 tokens.
    logits = (query * (query.shape[-1] ** -0.5 if scaling is None else scaling)) @ key.transpose(2, 3)
    if mask.dtype == torch.bool:
        logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    else:
        logits = logits + mask
    return F.dropout(logits.softmax(dim=-1).to(value.dtype), dropout) @ value


def _history_and_self(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, seen: int, scaling: float | None, dropout: float
) -> Tensor:
    """Return attention (B, heads, S - seen, c) of the tokens from ``seen`` on over the history and themselves."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    own_query, own_key, own_value = query[:, :, seen:] * scale, key[:, :, seen:], value[:, :, seen:]
    logits = own_query @ key[:, :, :seen].transpose(2, 3)
    asks = mask[:, :, seen:]
    logits = logits.masked_fill(~asks, float("-inf")) if asks.dtype == torch.bool else logits + asks
    itself = (own_query * own_key).sum(-1, keepdim=True)
    weights = F.dropout(torch.cat([logits, itself], dim=-1).softmax(dim=-1), dropout)
    return weights[..., :seen] @ value[:, :, :seen] + weights[..., seen:] * own_value


def _plain_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Return an explicit mask where a kernel could omit it: no mask would mean full attention."""
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})


AttentionInterface.register(NAME, set_attention)
# For text generation transformers builds plain masks; the recommender passes its own.
AttentionMaskInterface.register(NAME, _plain_mask)
