"""Norms and attention inputs of a causal backbone on a CPU, with one compiled pass in each direction.

In transformers' own modules a norm is five operations forward and a dozen backward, and the rotation of a head as many
again; on a CPU each reads and writes the whole table, which takes longer than the small products between them. The
modules, their names and weights stay transformers' own; on other devices their own code runs.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, PreTrainedModel

from setrec.models.fused.kernels import scale_rows_backward, turn_heads, turn_heads_backward
from setrec.models.inference.kernels import scale_rows

_NORMS = ("Qwen2RMSNorm", "Qwen3RMSNorm", "LlamaRMSNorm")
"""Classes whose forward pass is x / sqrt(mean(x^2) + eps) * weight."""
_ATTENTIONS = ("Qwen3Attention",)
"""Classes that normalise and rotate each head of queries and keys."""


def fuse(model: PreTrainedModel) -> None:
    """Let the norms and the attention of ``model`` compute in compiled passes on a CPU, in place."""
    for module in model.modules():
        kind: Any = type(module)
        if kind.__name__ in _NORMS:
            module.__class__ = _fused(kind, _FusedNorm)
        elif kind.__name__ in _ATTENTIONS and model.config._attn_implementation in AttentionInterface():
            module.__class__ = _fused(kind, _FusedAttention)


@cache
def _fused(kind: Any, own: Any) -> Any:
    return type(f"Fused{kind.__name__}", (own, kind), {})


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        rows, out, gain = x.detach().reshape(-1, x.shape[-1]), torch.empty(x.shape), _copied(gain)
        scale_rows(rows.numpy(), gain.numpy(), eps, out.view(rows.shape).numpy())
        ctx.save_for_backward(rows, gain)
        ctx.eps = eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, gain = ctx.saved_tensors
        by_rows, by_gain = torch.empty_like(rows), torch.zeros_like(gain)
        grads = given.reshape(rows.shape).contiguous().numpy()
        scale_rows_backward(rows.numpy(), gain.numpy(), ctx.eps, grads, by_rows.numpy(), by_gain.numpy())
        return by_rows.view(given.shape), by_gain, None


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
        rows, gain = x.detach().contiguous(), _copied(gain)
        batch, length, heads, width = rows.shape
        out = torch.empty(batch, heads, length, width)
        turn_heads(rows.numpy(), gain.numpy(), eps, cos.numpy(), sin.numpy(), out.numpy())
        ctx.save_for_backward(rows, gain, cos, sin)
        ctx.eps = eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        rows, gain, cos, sin = ctx.saved_tensors
        by_rows, by_gain = torch.empty_like(rows), torch.zeros_like(gain)
        turn_heads_backward(
            rows.numpy(), gain.numpy(), ctx.eps, cos.numpy(), sin.numpy(), given.contiguous().numpy(),
            by_rows.numpy(), by_gain.numpy(),
        )  # fmt: skip
        return by_rows, by_gain, None, None, None


def _copied(gain: Tensor) -> Tensor:
    """Return a copy for NumPy: a sharded parameter's memory is resized, which NumPy would forbid."""
    return gain.detach().clone()


def _here(*tensors: Tensor) -> bool:
    return all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)


class _FusedNorm(nn.Module):
    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        if not _here(hidden_states, self.weight):
            plain: Tensor = super().forward(hidden_states)
            return plain
        out: Tensor = _Normalise.apply(hidden_states, self.weight, self.variance_epsilon)
        return out


class _FusedAttention(nn.Module):
    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        own: Any = self
        cos, sin = position_embeddings
        if not _here(hidden_states, cos, own.q_norm.weight, own.k_norm.weight):
            plain: tuple[Tensor, Tensor | None] = super().forward(
                hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs
            )
            return plain
        if torch.is_autocast_enabled("cpu"):  # once instead of for each product
            hidden_states = hidden_states.to(torch.get_autocast_dtype("cpu"))
        shape = (*hidden_states.shape[:-1], -1, own.head_dim)
        query, key = (
            _Turn.apply(project(hidden_states).view(shape).float(), norm.weight, norm.variance_epsilon, cos, sin)
            for project, norm in ((own.q_proj, own.q_norm), (own.k_proj, own.k_norm))
        )
        value = own.v_proj(hidden_states).view(shape).transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, own.layer_idx)
        attend = AttentionInterface()[own.config._attn_implementation]
        read, weights = attend(
            self, query, key, value, attention_mask, dropout=own.attention_dropout if self.training else 0.0,
            scaling=own.scaling, sliding_window=own.sliding_window, **kwargs,
        )  # fmt: skip
        return own.o_proj(read.flatten(-2)), weights
