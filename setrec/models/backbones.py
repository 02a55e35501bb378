"""One interface for T5 and Qwen: it maps instruction, items and queries to answers.

Two classes of backbones cover all language models of transformers: a stack of causal layers (:class:`CausalBackbone`:
Qwen2, Qwen3, Gemma, Llama ...) and an encoder with a decoder (:class:`EncoderDecoderBackbone`: T5). Both take masks and
positions through transformers' public interfaces.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from setrec.errors import ConfigError, first_line
from setrec.models import attention, masks
from setrec.models.block_attention import LONG
from setrec.models.fused.layers import fuse
from setrec.models.settings import LoraSettings

MASTER = torch.float32
"""Type of a backbone's weights for any stored type: small updates vanish in half precision, and autocast decides
whether products use bf16 (``setrec.precision``)."""

SHARED = 8
"""Tokens of an instruction from which a batch reads it once, in a pass of its own, and not in every row. The words of a
pretrained backbone's instruction are most of the tokens of short histories; with a few learned vectors nothing is
gained."""

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"width": 128, "layers": 2, "heads": 4, "feed_forward": 256},
    "small": {"width": 256, "layers": 4, "heads": 8, "feed_forward": 768},
    "base": {"width": 512, "layers": 6, "heads": 8, "feed_forward": 2048},
}


def scratch_config(
    family: str, size: str, dropout: float, words: int = 1, layers: int | None = None
) -> PretrainedConfig:
    """Return the configuration of a backbone trained from scratch; ``words`` is the size of its vocabulary, a single
    row if it reads only vectors; ``layers`` as :func:`keep_layers`."""
    s = SIZES[size]
    if family == "t5":
        config = AutoConfig.for_model(
            "t5", vocab_size=words, d_model=s["width"], d_kv=s["width"] // s["heads"], d_ff=s["feed_forward"],
            num_layers=s["layers"], num_decoder_layers=s["layers"], num_heads=s["heads"], dropout_rate=dropout,
            feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=0, decoder_start_token_id=0,
        )  # fmt: skip
        return keep_layers(config, layers)
    head = {"head_dim": s["width"] // s["heads"]} if family == "qwen3" else {}
    config = AutoConfig.for_model(
        family, vocab_size=words, hidden_size=s["width"], intermediate_size=s["feed_forward"],
        num_hidden_layers=s["layers"], num_attention_heads=s["heads"], num_key_value_heads=s["heads"],
        attention_dropout=dropout, max_position_embeddings=4096, tie_word_embeddings=True,
        pad_token_id=None, bos_token_id=None, eos_token_id=None, **head,
    )  # fmt: skip
    return keep_layers(config, layers)


def keep_layers(config: PretrainedConfig, layers: int | None) -> PretrainedConfig:
    """Reduce ``config`` in place to its first ``layers`` layers, and return it; ``None`` keeps all.

    Raises:
        ConfigError: the backbone has fewer layers.
    """
    there_are = config.num_hidden_layers
    if layers is None or layers == there_are:
        return config
    if layers > there_are:
        raise ConfigError(f"backbone.layers={layers}: the backbone has only {there_are} layers")
    config.num_hidden_layers = layers
    if config.is_encoder_decoder:
        config.num_decoder_layers = min(layers, config.num_decoder_layers)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    return config


def build_backbone(
    config: PretrainedConfig, lora: LoraSettings | None = None
) -> CausalBackbone | EncoderDecoderBackbone:
    """Build a backbone with random float32 weights from ``config``."""
    return wrap(AutoModel.from_config(config, attn_implementation=attention.NAME, dtype=MASTER), lora)


def refuse_missing_folder(path_or_hub_id: str) -> None:
    """Raise a ConfigError for a path, which cannot be a hub id, where nothing is."""
    if path_or_hub_id.startswith(("/", ".", "~")) and not Path(path_or_hub_id).exists():
        raise ConfigError(f"backbone '{path_or_hub_id}' cannot be loaded: no such folder")


def load_backbone(
    path_or_hub_id: str, *, speaking: bool = False, layers: int | None = None, **kwargs: Any
) -> PreTrainedModel:
    """Load a pretrained model by local path or hub id for :func:`wrap`, from safetensors or GGUF.

    Weights and configuration are float32 for any stored type (hub checkpoints: mostly bf16), unless ``kwargs`` contain
    another ``dtype``. ``speaking``: include the language-modelling head. ``layers`` as :func:`keep_layers`.

    Raises:
        ConfigError: there is no usable model, its weights are stored quantised, or some of them are missing.
    """
    refuse_missing_folder(path_or_hub_id)
    kwargs.setdefault("dtype", MASTER)
    kwargs.setdefault("use_safetensors", None if "gguf_file" in kwargs else True)
    try:
        config = AutoConfig.from_pretrained(path_or_hub_id, gguf_file=kwargs.get("gguf_file"))
        if quantised := getattr(config, "quantization_config", None):
            way = dict(quantised).get("quant_method", "some other type")
            raise ValueError(f"it is stored quantised ({way}); name one in bf16 or float32")
        if config.is_encoder_decoder and not config.model_type.endswith("t5"):
            raise ValueError(f"of models with an encoder only T5 can be used, not '{config.model_type}'")
        keep_layers(config, layers)
        kind: Any = AutoModel
        if speaking:
            kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        with _quiet(layers is not None):
            model: PreTrainedModel
            model, found = kind.from_pretrained(
                path_or_hub_id, config=config, attn_implementation=attention.NAME, output_loading_info=True, **kwargs
            )
        if missing := sorted(found["missing_keys"]):
            # transformers would leave them at random.
            raise ValueError(f"it lacks {len(missing)} weights, among them {missing[0]}")
        if (
            not config.is_encoder_decoder
            and "position_ids" not in inspect.signature(model.base_model.forward).parameters
        ):
            raise ValueError(f"a '{config.model_type}' model takes no positions")
        return model
    except ConfigError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"backbone '{path_or_hub_id}' cannot be loaded: {first_line(error)}") from error


@contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    """Suppress the list of unused weights that transformers logs for removed layers."""
    level = logging.get_verbosity()
    if quiet:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def copy_weights(source: PreTrainedModel, target: nn.Module) -> None:
    """Copy the weights of a pretrained backbone into the model's, whose linear layers may be wrapped by adapters."""
    own = dict(target.state_dict())
    for name, value in source.state_dict().items():
        stem, _, leaf = name.rpartition(".")
        key = name if name in own else f"{stem}.base_layer.{leaf}"
        own[key].copy_(value)


def wrap(model: PreTrainedModel, lora: LoraSettings | None = None) -> CausalBackbone | EncoderDecoderBackbone:
    """Wrap a transformers model, with LoRA adapters if ``lora`` is given."""
    kind = EncoderDecoderBackbone if model.config.is_encoder_decoder else CausalBackbone
    if lora is not None:
        inject_lora(model, lora, kind.lora_targets)
    return kind(model)


def inject_lora(model: PreTrainedModel, lora: LoraSettings, targets: list[str]) -> None:
    """Inject low-rank adapters into the named projections of ``model``, in place, and freeze all else.

    Raises:
        ConfigError: the model lacks one of them.
    """
    from peft import LoraConfig, inject_adapter_in_model

    there = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if missing := [name for name in targets if name not in there]:
        kind = model.config.model_type
        raise ConfigError(f"LoRA adapts the projections {', '.join(targets)}; a '{kind}' model has no {missing[0]}")
    inject_adapter_in_model(
        LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets),
        model,
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


class Backbone(nn.Module, ABC):
    """The interface to a transformers model that the recommender and the graph language model share."""

    lora_targets: list[str]
    causal_instruction: bool

    def __init__(self, model: PreTrainedModel, width: int, heads: int) -> None:
        super().__init__()
        self.model, self.width, self.heads, self.recomputed = model, width, heads, False
        model.get_input_embeddings().requires_grad_(False)

    @property
    @abstractmethod
    def layers(self) -> list[nn.Module]:
        """Return the layers whose weights no other module reads, so that each can be sharded separately."""

    def recompute(self) -> None:
        """Enable gradient checkpointing: a third more time for the memory of about one layer, with equal gradients."""
        self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.recomputed = True

    def forward(self, instruction: Tensor, items: Tensor, queries: Tensor, visible: Tensor, m: int) -> Tensor:
        """Return answers (B, Q, n, d) from instruction (a, d), items (B, L * m, d), queries (B or 1, Q, n, d) and
        visible (B or 1, Q)."""
        batch, count = items.shape[0], items.shape[1] // m
        a, (blocks, n) = len(instruction), queries.shape[1:3]
        out = self.attend(
            torch.cat([instruction.expand(batch, -1, -1), items], dim=1),
            masks.history_mask(a, count, m, causal_instruction=self.causal_instruction, device=items.device)[None],
            masks.history_positions(a, count, m, items.device)[None],
            queries.flatten(1, 2).expand(batch, -1, -1),
            masks.query_mask(visible, n, a, count, m),
            masks.query_positions(visible, n, a),
        )
        return out.reshape(batch, blocks, n, self.width)

    @abstractmethod
    def attend(
        self,
        history: Tensor,
        sees: Tensor,
        positions: Tensor,
        queries: Tensor,
        asks: Tensor,
        asked_at: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Return answers (B, S, d) to queries (B, S, d). A query attends to itself and to the tokens of the history
        (B, H, d) in its row of ``asks``, bool (B or 1, S, H); history tokens attend to each other by ``sees``, bool
        (B or 1, H, H). ``positions`` int (B or 1, H) and ``asked_at`` int (B or 1, S) are the positions of tokens and
        queries; ``bias`` (B, heads, H, H) is added to the attention logits between history tokens."""


class CausalBackbone(Backbone):
    """A decoder-only language model: queries follow the history in the same causal stack."""

    lora_targets: list[str] = ["q_proj", "v_proj", "o_proj"]  # noqa: RUF012
    causal_instruction = True
    read_blocks: int | None = None
    """See :class:`setrec.models.settings.ModelSettings`."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model, model.config.hidden_size, model.config.num_attention_heads)
        fuse(model)

    @property
    def layers(self) -> list[nn.Module]:
        """See :class:`Backbone`."""
        return [m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer)]

    def read(self, instruction: Tensor, items: Tensor) -> Tensor:
        """Return the hidden states at the instruction (a, d) and at each of the items (B, L, d): (B, a + L, d)."""
        a, (batch, count) = len(instruction), items.shape[:2]
        if a + count >= LONG or self.read_blocks:
            places = torch.arange(a + count, device=items.device)[None]
            causal = torch.empty(1, 1, 0, a + count, dtype=torch.bool, device=items.device)
            return self._states(torch.cat([instruction.expand(batch, -1, -1), items], dim=1), causal, places)
        sees = masks.history_mask(a, count, 1, causal_instruction=True, device=items.device)[None, None]
        places = masks.history_positions(a, count, 1, items.device)[None]
        if a < SHARED or batch < 2 or not count or self.recomputed:
            return self._states(torch.cat([instruction.expand(batch, -1, -1), items], dim=1), sees, places)
        layers = [DynamicLayer() for _ in range(self.model.config.num_hidden_layers)]
        first = self._states(instruction[None], sees[..., :a, :a], places[:, :a], layers)
        for layer in layers:
            layer.keys, layer.values = (cast(Tensor, x).expand(batch, -1, -1, -1) for x in (layer.keys, layer.values))
        rest = self._states(items, sees[..., a:, :], places[:, a:], layers)
        return torch.cat([first.expand(batch, -1, -1), rest], dim=1)

    def _states(self, vectors: Tensor, sees: Tensor, places: Tensor, layers: list[Any] | None = None) -> Tensor:
        """Return the states of ``vectors`` after the tokens whose keys and values are in ``layers``, which grow."""
        states: Tensor = self.model(
            inputs_embeds=vectors, attention_mask=sees, position_ids=places, use_cache=layers is not None,
            past_key_values=None if layers is None else Cache(layers=layers), read_blocks=self.read_blocks,
        ).last_hidden_state  # fmt: skip
        return states

    def attend(
        self,
        history: Tensor,
        sees: Tensor,
        positions: Tensor,
        queries: Tensor,
        asks: Tensor,
        asked_at: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        """See :class:`Backbone`."""
        rows = max(len(sees), len(asks))
        mask = torch.cat([sees.expand(rows, -1, -1), asks.expand(rows, -1, -1)], dim=1)[:, None]
        if bias is not None:
            bias = nn.functional.pad(bias, (0, 0, 0, asks.shape[1]))
            mask = bias.masked_fill(~mask, torch.finfo(bias.dtype).min)
        places = torch.cat([positions.expand(rows, -1), asked_at.expand(rows, -1)], dim=1)
        out: Tensor = self.model(
            inputs_embeds=torch.cat([history, queries], dim=1), attention_mask=mask, position_ids=places,
            use_cache=False,
        ).last_hidden_state  # fmt: skip
        return out[:, history.shape[1] :]


class EncoderDecoderBackbone(Backbone):
    """T5: the encoder reads the history under the sparse mask, the decoder's inputs are the queries.

    T5's relative bias is evaluated on the shared positions. Stock T5 has none between decoder and encoder; a query then
    could not distinguish the last item from the first under an item-causal encoder (no item sees later ones), so the
    decoder's own table, otherwise unused because queries do not see each other, encodes the distance to an item.
    """

    lora_targets: list[str] = ["q", "v", "o"]  # noqa: RUF012
    causal_instruction = False

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model, model.config.d_model, model.config.num_heads)
        self._set_bias(stock=False)
        for block in cast(Any, model).decoder.block:
            # A query that sees only itself needs no query and key projections.
            block.layer[0].SelfAttention.q.requires_grad_(False)
            block.layer[0].SelfAttention.k.requires_grad_(False)

    @property
    def layers(self) -> list[nn.Module]:
        """See :class:`Backbone`. The first layer of each stack contains the position biases, which all layers read."""
        stacks = cast(Any, self.model)
        return [*stacks.encoder.block[1:], *stacks.decoder.block[1:]]

    def attend(
        self,
        history: Tensor,
        sees: Tensor,
        positions: Tensor,
        queries: Tensor,
        asks: Tensor,
        asked_at: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        """See :class:`Backbone`."""
        answers: Tensor = (
            cast(Any, self.model)
            .decoder(
                inputs_embeds=queries,
                attention_mask=asks.new_zeros((1, 1, queries.shape[1], 0)),
                encoder_hidden_states=self.encode(history, sees, positions, bias),
                encoder_attention_mask=self._bias("decoder", asked_at, positions, asks),
                use_cache=False,
            )
            .last_hidden_state
        )
        return answers

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Restore the stock decoder, which generates text, within the context; outside, its inputs are queries."""
        self._set_bias(stock=True)
        try:
            yield
        finally:
            self._set_bias(stock=False)

    def _set_bias(self, *, stock: bool) -> None:
        # The mask contains the positions; the stack's own S x S bias would be discarded.
        stacks = cast(Any, self.model)
        for stack in (stacks.encoder, stacks.decoder):
            first = stack.block[0].layer[0].SelfAttention
            if stock:
                del first.compute_bias
            else:
                first.compute_bias = _no_bias

    def encode(self, history: Tensor, sees: Tensor, positions: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the encoder states (B, H, d) of the history."""
        mask = self._bias("encoder", positions, positions, sees)
        mask = mask if bias is None else mask + bias
        states: Tensor = cast(Any, self.model).encoder(inputs_embeds=history, attention_mask=mask).last_hidden_state
        return states

    def _bias(self, stack: str, looking: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
        """Return T5's relative bias between positions, (B or 1, heads, S, H), minus infinity where the mask is
        false."""
        layer = cast(Any, getattr(self.model, stack)).block[0].layer[0].SelfAttention
        buckets = layer._relative_position_bucket(
            seen[:, None, :] - looking[:, :, None],
            bidirectional=stack == "encoder",
            num_buckets=layer.relative_attention_num_buckets,
            max_distance=layer.relative_attention_max_distance,
        )
        bias: Tensor = layer.relative_attention_bias(buckets).permute(0, 3, 1, 2)
        return bias.masked_fill(~mask[:, None], torch.finfo(bias.dtype).min)


def _no_bias(query_length: int, key_length: int, device: torch.device | None = None, **_: Any) -> Tensor:
    return torch.zeros(1, 1, 1, 1, device=device)
