"""Reading of histories for serving: the user codes of :meth:`SetRecModel.user_codes`, up to rounding, at a fraction of
the time.

Only for causal backbones whose last item answers (``query_mode: item``). There the answer is the state of one token,
so the last layer computes one token per history; the maps after it are one matrix; the instruction is the same for all
histories, so its keys and values are computed once; histories are packed, without padding, except in attention. The
weights are the model's own, not copies, unless adapters are merged.

Keys and values of an item depend on the instruction, the items before it and its position, but not on later items. They
stay valid when a history grows at its end, so those of the first items may be given (``known``). They do not when the
window of the latest ``max_items`` slides: above the first layer every state depends on the items that have left it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from setrec.models.inference.kernels import add_skip, place_heads, scale_rows
from setrec.models.item_tokens import COLLABORATIVE, TableTokenizer
from setrec.models.recommender import Recommender
from setrec.ragged import Ragged, offsets_of

_FEW = 16
"""For fewer rows oneDNN's product is slower, as it reorders the weights for each product."""
_MANY, _SHAPES = 128, 64
"""From so many rows on they are padded to a multiple of the second number: oneDNN compiles a product for every number
of rows, which takes as long as 400 rows, and keeps only a thousand."""
_NONE = np.empty((0, 0, 0, 0), np.float32)
FAMILIES = ("qwen2", "qwen3", "llama")
"""Model types of the backbones that can be read."""

States = tuple[Tensor, ...]
"""Keys and values of a history, (2 * layers, heads, a + k, c) of each leg, for an instruction of length a and k items;
those of fewer items are a slice."""


class ItemInputs(NamedTuple):
    """What a leg computes of items by themselves, whatever history they are in: the vectors (U, d) that its stack
    reads, and the queries, keys and values (U, h) of these in its first layer, before rotation; ``None`` in a stack of
    one layer, which has other products."""

    vectors: Tensor
    heads: Tensor | None


class _Linear(NamedTuple):
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, *modules: Any) -> _Linear:
        """Return one product for the outputs of linear layers, with their adapters merged. Layers without any get views
        of its weights, so that there is one copy."""
        bases = [getattr(module, "base_layer", module) for module in modules]
        weight = torch.cat([base.weight.detach() for base in bases])
        parts = weight.split([len(base.weight) for base in bases])
        for module, base, part in zip(modules, bases, parts, strict=True):
            if base is not module:
                part += sum(module.get_delta_weight(name).detach() for name in module.active_adapters)
            else:
                base.weight.data = part
        biases = [base.bias.detach() for base in bases if getattr(base, "bias", None) is not None]
        return cls(weight, torch.cat(biases) if biases else None)

    def rows(self, start: int, stop: int | None = None) -> _Linear:
        """Return the product for some of the outputs, with the same weights."""
        return _Linear(self.weight[start:stop], None if self.bias is None else self.bias[start:stop])

    def __call__(self, rows: Tensor) -> Tensor:
        count = rows.shape[0]
        if count < _FEW or _by_intel():
            return F.linear(rows, self.weight, self.bias)
        # oneDNN's product: PyTorch's default is MKL's, which has half the speed on processors not by Intel.
        if count >= _MANY:
            rows = F.pad(rows, (0, 0, 0, -count % _SHAPES))
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")
        return product[:count]


@cache
def _by_intel() -> bool:
    """Return whether the processor is one of Intel, on which MKL's product is faster than oneDNN's at any size."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


class _Norm(NamedTuple):
    """Root mean square normalisation with a gain."""

    gain: np.ndarray
    eps: float

    @classmethod
    def of(cls, module: Any, eps: float) -> _Norm:
        return cls(module.weight.detach().numpy(), eps)

    def __call__(self, rows: Tensor) -> Tensor:
        scaled = np.empty(rows.shape, np.float32)
        scale_rows(rows.numpy(), self.gain, self.eps, scaled)
        return torch.from_numpy(scaled)


class _Layer(NamedTuple):
    before: _Norm
    heads: _Linear
    query: _Linear
    key_value: _Linear
    norms: tuple[np.ndarray, np.ndarray, float]
    out: _Linear
    between: _Norm
    gate_up: _Linear
    down: _Linear

    @classmethod
    def of(cls, module: Any, eps: float, queries: int) -> _Layer:
        """``queries``: number of outputs of all heads' queries."""
        own, mlp, none = module.self_attn, module.mlp, np.empty(0, np.float32)
        heads = _Linear.of(own.q_proj, own.k_proj, own.v_proj)
        query, key = (_Norm.of(getattr(own, n), eps).gain if hasattr(own, n) else none for n in ("q_norm", "k_norm"))
        return cls(
            _Norm.of(module.input_layernorm, eps), heads, heads.rows(0, queries), heads.rows(queries),
            (query, key, eps), _Linear.of(own.o_proj), _Norm.of(module.post_attention_layernorm, eps),
            _Linear.of(mlp.gate_proj, mlp.up_proj), _Linear.of(mlp.down_proj),
        )  # fmt: skip

    def feed_forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(self.between(x)).chunk(2, dim=1)
        return self.down(F.silu(gate).mul_(up)).add_(x)


class CausalRecommender(Recommender):
    """A recommender whose last item answers behind a causal backbone: trained, or read by
    :mod:`setrec.models.inference.stored_model`."""

    backbone: Any
    instruction: Tensor
    maps: Tensor
    log_scale: Tensor


def can_read(model: object) -> TypeGuard[CausalRecommender]:
    """Return whether :class:`InferencePass` can read histories with ``model``."""
    maps = getattr(model, "maps", None)
    if not isinstance(model, Recommender) or maps is None or getattr(model.config, "read_blocks", None):
        return False
    config = cast(Any, model).backbone.model.config
    plain = set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    known = config.model_type in FAMILIES and config.hidden_act == "silu"
    rope = getattr(config, "rope_parameters", None) or {}
    own = maps.device.type == "cpu" and maps.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return plain and known and own and rope.get("rope_type") == "default" and "rope_theta" in rope


class _Leg:
    """What reads a history: a stack of layers after an instruction, between a map of codes and one to user codes."""

    def __init__(
        self, backbone: Any, instruction: Tensor, places: int, vectors: _Linear, answer: _Linear,
        word_scale: float | None = None,
    ) -> None:  # fmt: skip
        """``places``: maximum number of items; ``vectors``: the map of codes (U, D); see :class:`SetRecModel`."""
        stack, config = backbone.model, backbone.model.config
        self._heads, self._groups, eps = config.num_attention_heads, config.num_key_value_heads, config.rms_norm_eps
        self._width = getattr(config, "head_dim", None) or config.hidden_size // self._heads
        self._layers = [_Layer.of(layer, eps, self._heads * self._width) for layer in stack.layers]
        self._norms = [_Norm.of(stack.norm, eps)]
        """Of the last layer; with a word scale also of the states and of the items' vectors."""
        if word_scale:
            ones, eps = np.ones(backbone.width, np.float32), float(torch.finfo(torch.float32).eps)
            self._norms += [_Norm(ones, eps), _Norm(np.float32(word_scale) * ones, eps)]
        self._cos, self._sin = _rotary(config.rope_parameters["rope_theta"], self._width, len(instruction) + places)
        self._vectors, self._answer = vectors, answer
        self.instruction = torch.empty(2 * len(self._layers), self._groups, 0, self._width)
        """Keys and values of the instruction."""
        self._nothing_read = torch.zeros(1, backbone.width)
        if count := len(instruction):
            self._nothing_read, (self.instruction,) = self._states(
                self._of_vectors(instruction), np.arange(count), np.array([0, count]), [self.instruction], keep=True
            )

    def inputs(self, codes: np.ndarray) -> ItemInputs:
        """Return the inputs of items with ``codes`` (U, D)."""
        vectors = self._vectors(torch.from_numpy(codes))
        for norm in self._norms[2:]:
            vectors = norm(vectors)
        return self._of_vectors(vectors)

    @property
    def input_width(self) -> int:
        """Numbers of an item's inputs."""
        first = self._layers[0]
        return len(self._vectors.weight) + (len(first.heads.weight) if len(self._layers) > 1 else 0)

    def _of_vectors(self, vectors: Tensor) -> ItemInputs:
        first = self._layers[0]
        return ItemInputs(vectors, first.heads(first.before(vectors)) if len(self._layers) > 1 else None)

    def read(
        self, inputs: ItemInputs, rows: np.ndarray, lengths: np.ndarray, before: Sequence[Tensor], *, keep: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the answers (B, D) to histories after ``lengths`` new items, packed ``rows`` of ``inputs``, and with
        ``keep`` all keys and values; ``before`` are those of the items before."""
        some, count = np.flatnonzero(lengths), len(lengths)
        states, tables = self._states(
            inputs, rows, offsets_of(lengths[some]), [before[b] for b in some.tolist()], keep=keep
        ) if len(some) else (self._nothing_read[:0], [])  # fmt: skip
        if len(some) < count:
            states = self._nothing_read.repeat(count, 1).index_copy_(0, torch.from_numpy(some), states)
            kept = dict(zip(some.tolist(), tables, strict=keep))
            tables = [kept.get(b, self.instruction) for b in range(count)]
        for norm in self._norms[1:2]:
            states = norm(states)
        return self._answer(states), tables

    def _states(
        self, inputs: ItemInputs, rows: np.ndarray, offsets: np.ndarray, known: Sequence[Tensor], *, keep: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the state (B, d) of the last new token of each history, and with ``keep`` all keys and values.

        ``rows`` int64 (T,) of ``inputs`` (U, ...) are the new tokens, at least one a history; ``known`` as in
        :meth:`user_codes`, never ``None``.
        """
        first, lengths = np.array([own.shape[2] for own in known]), offsets[1:] - offsets[:-1]
        ends, last, tables = first + lengths, offsets[1:] - 1, list[np.ndarray]()
        longest, seen = int(lengths.max()), int(ends.max())
        packed, x, final = _packed(lengths, longest), inputs.vectors, self._layers[-1]
        for number, layer in enumerate(self._layers):
            heads = None if number else inputs.heads
            normed = x if heads is not None else layer.before(x)
            x = x if number else x[torch.from_numpy(rows)]
            keys, values = self._known(known, number, seen)
            tables += [keys, values] if keep else []
            if layer is final:
                place_heads(
                    layer.key_value(normed).numpy(), rows, offsets, first, *layer.norms, self._cos, self._sin,
                    _NONE, keys, values,
                )  # fmt: skip
                x, normed = x[torch.from_numpy(last)], normed[torch.from_numpy(rows[last])]
                rows, first, longest, packed = np.arange(len(known)), ends - 1, 1, None
                queries = np.empty((len(known), self._heads, 1, self._width), np.float32)
                place_heads(
                    layer.query(normed).numpy(), rows, np.arange(len(known) + 1), first, *layer.norms, self._cos,
                    self._sin, queries, _NONE, _NONE,
                )  # fmt: skip
            else:
                queries = np.zeros((len(known), self._heads, longest, self._width), np.float32)
                place_heads(
                    (layer.heads(normed) if heads is None else heads).numpy(), rows, offsets, first, *layer.norms,
                    self._cos, self._sin, queries, keys, values,
                )  # fmt: skip
            read = F.scaled_dot_product_attention(
                torch.from_numpy(queries), torch.from_numpy(keys), torch.from_numpy(values),
                _mask(first, longest, seen), enable_gqa=self._heads > self._groups,
            ).transpose(1, 2).reshape(-1, self._heads * self._width)  # fmt: skip
            x = layer.feed_forward(layer.out(read if packed is None else read[packed]).add_(x))
            if not number:
                rows = np.arange(len(rows))
        whole = enumerate(ends.tolist() if keep else [])
        return self._norms[0](x), [torch.from_numpy(np.stack([t[b, :, :end] for t in tables])) for b, end in whole]

    def _known(self, known: Sequence[Tensor], number: int, length: int) -> np.ndarray:
        """Return keys and values (2, B, heads, ``length``, c) of a layer with the known ones at the start of each
        history."""
        tables = np.zeros((2, len(known), self._groups, length, self._width), np.float32)
        if all(own is known[0] for own in known):
            tables[:, :, :, : known[0].shape[2]] = known[0][2 * number : 2 * number + 2].numpy()[:, None]
        else:
            for b, own in enumerate(known):
                tables[:, b, :, : own.shape[2]] = own[2 * number : 2 * number + 2].numpy()
        return tables


class InferencePass:
    """A pass of ``model`` over histories at fixed ``weights`` of the slot kinds. The model must not be trained on."""

    def __init__(self, model: CausalRecommender, weights: Mapping[str, float]) -> None:
        assert can_read(model)
        with torch.inference_mode():
            start, width, self._legs = model.tokens.read[0].start, model.tokens.code_width, list[_Leg]()
            # A leg whose slots have no weight is not read.
            if model.leg is None or any(weights[slot.kind] for slot in model.tokens.read):
                read, bias = (part.detach() for part in model.tokens.fused_map())
                vectors = _Linear(F.pad(read, (start, 0)).contiguous(), bias.contiguous())
                answer, scale = _answer_map(model, weights), model.config.word_scale
                own = _Leg(model.backbone, model.instruction.detach(), model.max_items, vectors, answer, scale)
                self._legs.append(own)
            if (leg := model.leg) is not None and (weights[COLLABORATIVE] or not self._legs):
                project = cast(TableTokenizer, model.tokens.table(COLLABORATIVE)).project
                vectors = _Linear(F.pad(project.weight, (0, width - start)).contiguous(), project.bias)
                fold = project.weight.double().T * (weights[COLLABORATIVE] * leg.log_scale.double().exp())
                parts = fold @ leg.answer.weight.double(), fold @ leg.answer.bias.double()
                answer = _Linear(
                    F.pad(parts[0], (0, 0, 0, width - start)).float(), F.pad(parts[1], (0, width - start)).float()
                )
                self._legs.append(_Leg(leg.backbone, leg.start.detach(), model.max_items, vectors, answer))
            self._skip = _skip_gains(model, weights)
        self._decays = np.array(model.config.history_skip, np.float64)
        self._bounds = np.array([0, *(stop for _, stop in model.code_columns.values())])

    @property
    def input_bytes(self) -> int:
        """Bytes of the inputs of an item."""
        return 4 * sum(leg.input_width for leg in self._legs)

    def inputs(self, codes: np.ndarray) -> list[ItemInputs]:
        """Return the inputs to each leg of items with ``codes``, float32 (U, D); more than a third of a pass."""
        with torch.inference_mode():
            return [leg.inputs(codes) for leg in self._legs]

    def user_codes(
        self,
        histories: Ragged,
        codes: np.ndarray,
        known: Sequence[States | None] = (),
        *,
        keep: bool = False,
        inputs: Sequence[ItemInputs] | None = None,
    ) -> tuple[np.ndarray, list[States]]:
        """Return the user codes, float32 (B, D), of histories of rows int64 of ``codes`` float32 (U, D), at most
        ``max_items`` each, and with ``keep`` the keys and values of each history.

        ``known``: keys and values that were returned for the first items of each history, fewer than all; ``None``
        where there are none. ``inputs``: those of ``codes``, if they are there already.
        """
        inputs = self.inputs(codes) if inputs is None else inputs
        rows, lengths = histories.values, histories.lengths
        nothing = tuple(leg.instruction for leg in self._legs)
        before = [nothing if own is None else own for own in known] or [nothing] * len(histories)
        if any(own is not nothing for own in before):
            lengths = lengths - np.array([own[0].shape[2] - nothing[0].shape[2] for own in before])
            rows = rows[np.repeat(histories.offsets[1:] - np.cumsum(lengths), lengths) + np.arange(lengths.sum())]
        with torch.inference_mode():
            each = [
                leg.read(inputs[number], rows, lengths, [own[number] for own in before], keep=keep)
                for number, leg in enumerate(self._legs)
            ]
            found = torch.stack([answers for answers, _ in each]).sum(dim=0).numpy()
        if len(self._skip):
            add_skip(codes, histories.values, histories.offsets, self._decays, self._skip, self._bounds, found)
        return found, list(zip(*(tables for _, tables in each), strict=True)) if keep else []


def _mask(first: np.ndarray, longest: int, seen: int) -> Tensor | None:
    """Return what up to ``longest`` new tokens see of ``seen`` keys, float (B or 1, 1, longest, seen): zero for those
    before the ``first`` new one and up to their own; ``None``: everything."""
    if (first == first[0]).all():
        return None if longest == 1 and first[0] + 1 == seen else _causal_mask(int(first[0]), longest, seen)
    hidden = np.arange(seen) > first[:, None, None] + np.arange(longest)[:, None]
    return torch.from_numpy(np.where(hidden, np.float32(-np.inf), np.float32(0.0))[:, None])


@lru_cache(64)
def _causal_mask(first: int, longest: int, seen: int) -> Tensor:
    hidden = np.arange(seen) > first + np.arange(longest)[:, None]
    return torch.from_numpy(np.where(hidden, np.float32(-np.inf), np.float32(0.0))[None, None])


def _packed(lengths: np.ndarray, longest: int) -> Tensor | None:
    """Return the places of packed tokens in a padded batch (B * ``longest``,); ``None`` if nothing is padded."""
    if (lengths == longest).all():
        return None
    return torch.from_numpy(np.flatnonzero((np.arange(longest) < lengths[:, None]).ravel()))


def _rotary(theta: float, width: int, places: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cosines and sines, float32 (places, width / 2), by which rotary embeddings turn a head's pairs."""
    frequencies = 1 / theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.arange(places, dtype=torch.float32)[:, None] * frequencies
    return angles.cos().numpy(), angles.sin().numpy()


def _answer_map(model: CausalRecommender, weights: Mapping[str, float]) -> _Linear:
    """Return the map from a state (B, d) to the user code (B, D) without the skip connection: each slot's map, its
    scale and the fold into the columns of its code, at the weights of the kinds."""
    slots = zip(model.tokens.read, model.tokens.maps(), strict=True)
    whole = torch.zeros(model.tokens.code_width, model.backbone.width, dtype=torch.float64)
    bias = torch.zeros(model.tokens.code_width, dtype=torch.float64)
    for k, (slot, (fold, _)) in enumerate(slots):
        own = fold.detach().double().T * (weights[slot.kind] * model.log_scale[k].detach().double().exp())
        whole[slot.start : slot.stop] += own @ model.maps[k].detach().double().T
        bias[slot.start : slot.stop] += own @ model.queries[k].detach().double()
    return _Linear(whole.float(), bias.float())


def _skip_gains(model: CausalRecommender, weights: Mapping[str, float]) -> np.ndarray:
    """Return the gains, float64 (kinds, decays), of the decayed means of the codes of a history; empty without any."""
    gains = model.skip_gains()
    if gains is None:
        return np.empty((0, 0))
    total = dict.fromkeys(model.kinds, 0.0)
    for slot in model.tokens.slots:
        total[slot.kind] += weights[slot.kind] / (slot.stop - slot.start)
    return np.asarray(gains.detach().double().numpy() * np.array(list(total.values()))[:, None])
