"""Reading of histories for serving: the user codes of :meth:`SetRecModel.user_codes`, up to rounding, at a fraction of
the time.

Only for causal backbones whose last item answers (``query_mode: item``). There the answer is the state of one token,
so the last layer computes one token per history; the maps after it are one matrix; the instruction is the same for all
histories, so its keys and values are computed once; histories are packed, without padding, except in attention. The
weights are the model's own, not copies.

Keys and values of an item depend on the instruction, the items before it and its position, but not on later items. They
stay valid when a history grows at its end, so those of the first items may be given (``known``). They do not when the
window of the latest ``max_items`` slides: above the first layer every state depends on the items that have left it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from setrec.models.backbones import CausalBackbone
from setrec.models.grounding import slot_weights
from setrec.models.kernels import add_skip, place_heads, scale_rows
from setrec.models.setrec_model import LOG_UNIT, SetRecModel
from setrec.ragged import Ragged, offsets_of

_FEW = 16
"""For fewer rows oneDNN's product is slower, as it reorders the weights for each product."""
_PLAIN = np.empty((0, 0), np.float32)


class _Linear(NamedTuple):
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, module: Any) -> _Linear:
        """Return the product of a linear layer, with its adapters merged."""
        base = getattr(module, "base_layer", module)
        weight = base.weight.detach()
        if base is not module:
            weight = weight + sum(module.get_delta_weight(name).detach() for name in module.active_adapters)
        return cls(weight, None if base.bias is None else base.bias.detach())

    def __call__(self, rows: Tensor) -> Tensor:
        if rows.shape[0] < _FEW:
            return F.linear(rows, self.weight, self.bias)
        # oneDNN's product: PyTorch's default is MKL's, which has half the speed on processors not by Intel.
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")
        return product


class _Norm(NamedTuple):
    """Root mean square normalisation with a gain."""

    gain: np.ndarray
    eps: float

    @classmethod
    def of(cls, module: Any) -> _Norm:
        return cls(module.weight.detach().numpy(), module.variance_epsilon)

    def __call__(self, rows: Tensor) -> Tensor:
        scaled = torch.empty_like(rows)
        scale_rows(rows.numpy(), self.gain, self.eps, scaled.numpy())
        return scaled


class _Layer(NamedTuple):
    before: _Norm
    query: _Linear
    key: _Linear
    value: _Linear
    query_norm: _Norm
    key_norm: _Norm
    out: _Linear
    between: _Norm
    gate: _Linear
    up: _Linear
    down: _Linear

    @classmethod
    def of(cls, module: Any) -> _Layer:
        own, mlp = module.self_attn, module.mlp
        none = _Norm(np.empty(0, np.float32), 0.0)
        norms = [_Norm.of(getattr(own, name)) if hasattr(own, name) else none for name in ("q_norm", "k_norm")]
        return cls(
            _Norm.of(module.input_layernorm), *map(_Linear.of, (own.q_proj, own.k_proj, own.v_proj)), *norms,
            _Linear.of(own.o_proj), _Norm.of(module.post_attention_layernorm),
            *map(_Linear.of, (mlp.gate_proj, mlp.up_proj, mlp.down_proj)),
        )  # fmt: skip

    def feed_forward(self, x: Tensor) -> Tensor:
        rows = self.between(x)
        return self.down(F.silu(self.gate(rows), inplace=True).mul_(self.up(rows))).add_(x)


def can_read(model: object) -> TypeGuard[SetRecModel]:
    """Return whether :class:`InferencePass` can read histories with ``model``."""
    if not isinstance(model, SetRecModel) or not isinstance(model.backbone, CausalBackbone) or model.maps is None:
        return False
    config = model.backbone.model.config
    plain = set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    known = config.model_type in ("qwen2", "qwen3", "llama") and config.hidden_act == "silu"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default") == "default"
    own = model.maps.device.type == "cpu" and model.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return plain and known and rope and own


class InferencePass:
    """A pass of ``model`` over histories at fixed ``weights`` of the slot kinds. The model must not be trained on."""

    def __init__(self, model: SetRecModel, weights: Mapping[str, float]) -> None:
        assert can_read(model) and model.maps is not None
        stack, config = cast(Any, model.backbone.model), model.backbone.model.config
        self._max_items = model.max_items
        self._heads, self._groups = config.num_attention_heads, config.num_key_value_heads
        self._layers = [_Layer.of(layer) for layer in stack.layers]
        self._width = len(self._layers[0].query.weight) // self._heads
        norms = [_Norm.of(stack.norm)]
        with torch.inference_mode():
            instruction = model.instruction.detach()
            places = torch.arange(len(instruction) + self._max_items)
            rotary = stack.rotary_emb(instruction, places[None])
            self._cos, self._sin = (part[0, :, : self._width // 2].contiguous().numpy() for part in rotary)
            whole, bias = model.tokens.fused_map()
            self._vectors = _Linear(whole.detach().contiguous(), bias.detach())
            if scale := model.config.word_scale:
                one, eps = np.ones(model.backbone.width, np.float32), float(torch.finfo(torch.float32).eps)
                self._input_norm: _Norm | None = _Norm(np.float32(scale) * one, eps)
                norms.append(_Norm(one, eps))
            else:
                self._input_norm = None
            self._norms = norms
            self._answer, self._skip = _answer_map(model, weights), _skip_gains(model, weights)
            self._decays = np.array(model.config.history_skip, np.float64)
            self._bounds = np.array([0, *(stop for _, stop in model.code_columns.values())])
            nothing = torch.empty(2 * len(self._layers), self._groups, 0, self._width)
            last, (self._instruction,) = self._states(
                instruction, np.arange(len(instruction)), offsets_of(np.array([len(instruction)])), [nothing], keep=True
            ) if len(instruction) else (torch.zeros(1, model.backbone.width), [nothing])
            self._nothing_read = last

    def user_codes(
        self, histories: Ragged, codes: np.ndarray, known: Sequence[Tensor | None] = (), *, keep: bool = False
    ) -> tuple[np.ndarray, list[Tensor]]:
        """Return the user codes, float32 (B, D), of histories of rows of ``codes`` float32 (U, D), at most ``max_items``
        each, and with ``keep`` the keys and values of each history.

        ``known``: keys and values that were returned for the first items of each history, fewer than all; ``None`` where
        there are none. Those of k items have the shape (2 * layers, heads, a + k, c), so those of fewer are a slice.
        """
        a = self._instruction.shape[2]
        before = [self._instruction if own is None else own for own in known or [None] * len(histories)]
        first = np.array([own.shape[2] - a for own in before], np.int64)
        lengths = histories.lengths - first
        at = np.repeat(histories.offsets[1:] - np.cumsum(lengths), lengths) + np.arange(lengths.sum())
        some = np.flatnonzero(lengths)
        with torch.inference_mode():
            states, tables = self._nothing_read.expand(len(histories), -1), [self._instruction] * len(histories)
            if len(some):
                vectors = self._vectors(torch.from_numpy(codes))
                vectors = vectors if self._input_norm is None else self._input_norm(vectors)
                read, whole = self._states(
                    vectors, histories.values[at], offsets_of(lengths[some]), [before[b] for b in some], keep=keep
                )
                if len(some) == len(histories):
                    states, tables = read, whole
                else:
                    states = states.index_copy(0, torch.from_numpy(some), read)
                    for b, own in zip(some, whole, strict=False):
                        tables[b] = own
            for norm in self._norms[1:]:
                states = norm(states.contiguous())
            found = self._answer(states.contiguous()).numpy()
        if len(self._skip):
            add_skip(codes, histories.values, histories.offsets, self._decays, self._skip, self._bounds, found)
        return found, tables if keep else []

    def _states(
        self, vectors: Tensor, rows: np.ndarray, offsets: np.ndarray, known: Sequence[Tensor], *, keep: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the state (B, d) of the last new token of each history, and with ``keep`` all keys and values.

        ``rows`` int (T,) of ``vectors`` (U, d) are the new tokens, at least one a history; ``known`` as in
        :meth:`user_codes`, never ``None``.
        """
        first, lengths = np.array([own.shape[2] for own in known], np.int64), np.diff(offsets)
        ends, last = first + lengths, torch.from_numpy(offsets[1:] - 1)
        mask, tables = _mask(first, lengths, int(ends.max())), list[Tensor]()
        rows, x, packed = np.ascontiguousarray(rows, np.int64), vectors, _packed(lengths)
        for number, layer in enumerate(self._layers):
            final, normed = layer is self._layers[-1], layer.before(x)
            keys, values = (self._known(known, 2 * number + i, int(ends.max())) for i in (0, 1))
            self._place(layer.key(normed), rows, offsets, first, first, layer.key_norm, keys)
            self._place(layer.value(normed), rows, offsets, first, first, None, values)
            tables += [keys, values] if keep else []
            x = x[torch.from_numpy(rows)] if not number else x
            if final:
                x, normed = x[last], normed[torch.from_numpy(rows[offsets[1:] - 1])]
                rows, lengths, first = np.arange(len(known)), np.ones(len(known), np.int64), ends - 1
                offsets, mask, packed = np.arange(len(known) + 1), _mask(first, lengths, int(ends.max())), None
            queries = torch.zeros(len(known), self._heads, int(lengths.max()), self._width)
            self._place(layer.query(normed), rows, offsets, np.zeros_like(first), first, layer.query_norm, queries)
            seen = F.scaled_dot_product_attention(queries, keys, values, mask, enable_gqa=self._heads > self._groups)
            seen = seen.transpose(1, 2).reshape(-1, self._heads * self._width)
            x = layer.feed_forward(layer.out(seen if packed is None else seen[packed]).add_(x))
            rows = np.arange(x.shape[0])
        whole = [torch.stack([t[b, :, :end] for t in tables]) for b, end in enumerate(ends)] if keep else []
        return self._norms[0](x), whole

    def _known(self, known: Sequence[Tensor], number: int, length: int) -> Tensor:
        """Return keys or values (B, heads, ``length``, c) with the known ones at the start of each history."""
        table = torch.zeros(len(known), self._groups, length, self._width)
        if all(own is known[0] for own in known):
            table[:, :, : known[0].shape[2]] = known[0][number]
        else:
            for b, own in enumerate(known):
                table[b, :, : own.shape[2]] = own[number]
        return table

    def _place(
        self, rows: Tensor, source: np.ndarray, offsets: np.ndarray, at: np.ndarray, position: np.ndarray,
        norm: _Norm | None, out: Tensor,
    ) -> None:  # fmt: skip
        """Write the heads of packed tokens to ``out`` (B, heads, S, c), rotated by position unless ``norm`` is
        ``None``."""
        cos, sin = (_PLAIN, _PLAIN) if norm is None else (self._cos, self._sin)
        gain, eps = (_PLAIN[0:0].ravel(), 0.0) if norm is None else (norm.gain, norm.eps)
        place_heads(rows.numpy(), source, offsets, at, position, gain, eps, cos, sin, out.numpy())


def _mask(first: np.ndarray, lengths: np.ndarray, longest: int) -> Tensor | None:
    """Return what new tokens see, float (B or 1, 1, L, S): zero for all keys up to their own; ``None``: everything."""
    if (first == first[0]).all():
        first = first[:1]
        if lengths.max() == 1 and first[0] + 1 == longest:
            return None
    seen = torch.from_numpy(first)[:, None, None] + torch.arange(int(lengths.max()))[:, None]
    hidden = torch.arange(longest) > seen
    return torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))[:, None]


def _packed(lengths: np.ndarray) -> Tensor | None:
    """Return the places of packed tokens in a padded batch (B * L,); ``None`` if nothing is padded."""
    longest = lengths.max()
    if (lengths == longest).all():
        return None
    return torch.from_numpy(np.flatnonzero((np.arange(longest) < lengths[:, None]).ravel()))


def _answer_map(model: SetRecModel, weights: Mapping[str, float]) -> _Linear:
    """Return the map from a state (B, d) to the user code (B, D) without the skip connection: each slot's map, its scale
    and the fold into the columns of its code, at the weights of the kinds."""
    assert model.maps is not None
    slots = zip(model.tokens.slots, model.tokens.maps(), slot_weights(model.tokens, weights), strict=True)
    whole = torch.zeros(model.tokens.code_width, model.backbone.width, dtype=torch.float64)
    bias = torch.zeros(model.tokens.code_width, dtype=torch.float64)
    for k, (slot, (fold, _), weight) in enumerate(slots):
        own = fold.detach().double().T * (weight * model.log_scale[k].detach().double().exp())
        whole[slot.start : slot.stop] += own @ model.maps[k].detach().double().T
        bias[slot.start : slot.stop] += own @ model.queries[k].detach().double()
    return _Linear(whole.float(), bias.float())


def _skip_gains(model: SetRecModel, weights: Mapping[str, float]) -> np.ndarray:
    """Return the gains, float64 (kinds, decays), of the decayed means of the codes of a history; empty without any."""
    if model.log_skip is None:
        return np.empty((0, 0))
    gains = (model.log_skip.detach() * LOG_UNIT).exp().double().numpy()
    slots = zip(model.tokens.slots, slot_weights(model.tokens, weights), strict=True)
    total = dict.fromkeys(model.kinds, 0.0)
    for slot, weight in slots:
        total[slot.kind] += weight / (slot.stop - slot.start)
    return gains * np.array(list(total.values()))[:, None]
