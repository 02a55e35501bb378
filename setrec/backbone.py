"""T5 and Qwen behind one small interface: instruction, items and queries in, answers out.

Two shapes of backbone are enough for every model transformers offers: a stack of causal layers
(:class:`CausalBackbone`: Qwen2, Qwen3, Gemma, Llama ...) and an encoder with a decoder
(:class:`EncoderDecoderBackbone`: T5). Both take masks and positions through transformers' public interfaces.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from setrec import attention, layout
from setrec.errors import ConfigError
from setrec.settings import Settings

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"width": 128, "layers": 2, "heads": 4, "feed_forward": 256},
    "small": {"width": 256, "layers": 4, "heads": 8, "feed_forward": 768},
    "base": {"width": 512, "layers": 6, "heads": 8, "feed_forward": 2048},
}


class LoraSettings(Settings):
    """Low-rank adaptation of the attention projections, the rest of the backbone frozen (defaults: SETRec's code)."""

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.02


class BackboneSettings(Settings):
    """Which language model reads the history.

    Either ``pretrained`` (a local path or a hub id; family and size then come from the checkpoint) or a ``family`` and
    a ``size`` trained from scratch. ``dropout`` applies inside a backbone built from a size.
    """

    family: Literal["qwen3", "qwen2", "t5"] = "qwen3"
    size: Literal["tiny", "small", "base"] = "tiny"
    pretrained: str | None = None
    lora: LoraSettings | None = None
    dropout: float = 0.1


class Backbone(Protocol):
    """What the recommender and the graph language model need of a backbone."""

    width: int

    def __call__(self, instruction: Tensor, items: Tensor, queries: Tensor, visible: Tensor, m: int) -> Tensor:
        """Answers (B, Q, n, d) from instruction (a, d), items (B, L * m, d), queries (B or 1, Q, n, d) and visible
        (B or 1, Q)."""


def scratch_config(family: str, size: str, dropout: float) -> PretrainedConfig:
    """Configuration of a backbone trained from scratch; its vocabulary is a single row because items are vectors."""
    s = SIZES[size]
    if family == "t5":
        return AutoConfig.for_model(
            "t5", vocab_size=1, d_model=s["width"], d_kv=s["width"] // s["heads"], d_ff=s["feed_forward"],
            num_layers=s["layers"], num_decoder_layers=s["layers"], num_heads=s["heads"], dropout_rate=dropout,
            feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=0, decoder_start_token_id=0,
        )  # fmt: skip
    head = {"head_dim": s["width"] // s["heads"]} if family == "qwen3" else {}
    return AutoConfig.for_model(
        family, vocab_size=1, hidden_size=s["width"], intermediate_size=s["feed_forward"],
        num_hidden_layers=s["layers"], num_attention_heads=s["heads"], num_key_value_heads=s["heads"],
        attention_dropout=dropout, max_position_embeddings=4096, tie_word_embeddings=True,
        pad_token_id=None, bos_token_id=None, eos_token_id=None, **head,
    )  # fmt: skip


def build_backbone(
    config: PretrainedConfig, lora: LoraSettings | None = None
) -> CausalBackbone | EncoderDecoderBackbone:
    """The interface around a newly built model of ``config`` (random weights)."""
    return wrap(AutoModel.from_config(config, attn_implementation=attention.NAME), lora)


def load_backbone(path_or_hub_id: str, **kwargs: Any) -> PreTrainedModel:
    """A pretrained model by local path or hub id, to be given to :func:`wrap`; safetensors or GGUF, never pickles.

    Raises:
        ConfigError: nothing usable is found there.
    """
    kwargs.setdefault("use_safetensors", None if "gguf_file" in kwargs else True)
    try:
        return AutoModel.from_pretrained(path_or_hub_id, attn_implementation=attention.NAME, **kwargs)
    except (OSError, ValueError) as error:
        raise ConfigError(f"backbone '{path_or_hub_id}' cannot be loaded: {str(error).splitlines()[0]}") from error


def wrap(model: PreTrainedModel, lora: LoraSettings | None = None) -> CausalBackbone | EncoderDecoderBackbone:
    """The interface around a transformers model, with LoRA adapters injected when asked for."""
    kind = EncoderDecoderBackbone if model.config.is_encoder_decoder else CausalBackbone
    if lora is not None:
        _inject_lora(model, lora, kind.lora_targets)
    return kind(model)


def _inject_lora(model: PreTrainedModel, lora: LoraSettings, targets: list[str]) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(
        LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets),
        model,
    )


class CausalBackbone(nn.Module):
    """A decoder-only language model: queries follow the history in the same causal stack."""

    lora_targets: list[str] = ["q_proj", "v_proj", "o_proj"]  # noqa: RUF012

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.width: int = model.config.hidden_size
        model.get_input_embeddings().requires_grad_(False)

    def forward(self, instruction: Tensor, items: Tensor, queries: Tensor, visible: Tensor, m: int) -> Tensor:
        """See :class:`Backbone`."""
        batch, count = items.shape[0], items.shape[1] // m
        a, (blocks, n) = len(instruction), queries.shape[1:3]
        inputs = torch.cat(
            [
                instruction.expand(batch, -1, -1),
                items,
                queries.flatten(1, 2).expand(batch, -1, -1),
            ],
            dim=1,
        )
        history = layout.history_mask(a, count, m, causal_instruction=True, device=items.device)
        asked = layout.query_mask(visible, n, a, count, m)
        mask = torch.cat([history.expand(len(visible), -1, -1), asked], dim=1)[:, None]
        positions = torch.cat(
            [
                layout.history_positions(a, count, m, items.device).expand(len(visible), -1),
                layout.query_positions(visible, n, a),
            ],
            dim=1,
        )
        out = self.model(
            inputs_embeds=inputs, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        return out[:, -blocks * n :].reshape(batch, blocks, n, self.width)


class EncoderDecoderBackbone(nn.Module):
    """T5: the encoder reads the history under the sparse mask, the decoder's inputs are the queries.

    T5's relative bias is evaluated on the shared positions. Stock T5 has none between decoder and encoder; then a query
    could not tell the last item from the first under an item-causal encoder (no item knows what follows it), so the
    decoder's own table, otherwise unused because queries do not see each other, weighs how far back an item lies.
    """

    lora_targets: list[str] = ["q", "v", "o"]  # noqa: RUF012

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.width: int = model.config.d_model
        model.get_input_embeddings().requires_grad_(False)
        stacks = cast(Any, model)
        for stack in (stacks.encoder, stacks.decoder):
            # Positions reach the attention function inside the mask; the stack's own S x S bias would be thrown away.
            stack.block[0].layer[0].SelfAttention.compute_bias = _no_bias
        for block in stacks.decoder.block:
            # A query that sees only itself needs no query and key projections.
            block.layer[0].SelfAttention.q.requires_grad_(False)
            block.layer[0].SelfAttention.k.requires_grad_(False)

    def forward(self, instruction: Tensor, items: Tensor, queries: Tensor, visible: Tensor, m: int) -> Tensor:
        """See :class:`Backbone`."""
        batch, count = items.shape[0], items.shape[1] // m
        a, (blocks, n) = len(instruction), queries.shape[1:3]
        history = torch.cat([instruction.expand(batch, -1, -1), items], dim=1)
        positions = layout.history_positions(a, count, m, items.device)[None]
        sees = layout.history_mask(a, count, m, causal_instruction=False, device=items.device)[None]
        model = cast(Any, self.model)
        states = model.encoder(
            inputs_embeds=history, attention_mask=self._bias("encoder", positions, positions, sees)
        ).last_hidden_state
        asked = layout.query_mask(visible, n, a, count, m)
        out = model.decoder(
            inputs_embeds=queries.flatten(1, 2).expand(batch, -1, -1),
            attention_mask=asked.new_zeros((1, 1, blocks * n, 0)),
            encoder_hidden_states=states,
            encoder_attention_mask=self._bias("decoder", layout.query_positions(visible, n, a), positions, asked),
            use_cache=False,
        ).last_hidden_state
        return out.reshape(batch, blocks, n, self.width)

    def _bias(self, stack: str, looking: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
        """T5's relative bias between positions, with minus infinity where the mask is false; (B or 1, heads, S, H)."""
        layer = cast(Any, getattr(self.model, stack)).block[0].layer[0].SelfAttention
        buckets = layer._relative_position_bucket(
            seen[:, None, :] - looking[:, :, None],
            bidirectional=stack == "encoder",
            num_buckets=layer.relative_attention_num_buckets,
            max_distance=layer.relative_attention_max_distance,
        )
        bias = layer.relative_attention_bias(buckets).permute(0, 3, 1, 2)
        return bias.masked_fill(~mask[:, None], torch.finfo(bias.dtype).min)


def _no_bias(query_length: int, key_length: int, device: torch.device | None = None, **_: Any) -> Tensor:
    return torch.zeros(1, 1, 1, 1, device=device)
