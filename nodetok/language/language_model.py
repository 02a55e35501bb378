"""The backbone of the graph language model: loading, trainable parameters, and the scale of its embeddings."""

from __future__ import annotations

import copy
import hashlib
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from nodetok.language.settings import Tuning
from setrec.errors import ConfigError, first_line
from setrec.models import attention
from setrec.models.backbones import (
    MASTER,
    CausalBackbone,
    EncoderDecoderBackbone,
    inject_lora,
    load_backbone,
    refuse_missing_folder,
    scratch_config,
)
from setrec.models.settings import BackboneSettings, LoraSettings

_ADAPTER, _BASE = "lora_", ".base_layer"
SYSTEM = "You answer questions about a graph."


CACHED = 2 << 30
"""Default size of the cache of lower layers' states, in bytes."""


class LowerLayers:
    """The frozen first layers of a decoder. They read only the text of a prompt, so their states are computed once for
    each prompt and cached (bf16, in memory, up to a limit).

    Args:
        model: retains the other layers, which receive the states in place of word vectors.
    """

    def __init__(self, model: PreTrainedModel, count: int, cached: int = CACHED) -> None:
        base, config = cast(Any, model.base_model), model.config
        if not config.model_type.startswith("qwen"):
            raise ConfigError(f"model.frozen_layers needs a Qwen backbone, not {config.model_type}")
        if count >= config.num_hidden_layers:
            raise ConfigError(f"model.frozen_layers={count}: the backbone has only {config.num_hidden_layers} layers")
        self._lower = copy.copy(base)
        self._lower._modules = dict(base._modules)
        self._lower.config = copy.copy(config)
        self._lower.layers, self._lower.norm = base.layers[:count], torch.nn.Identity()
        base.layers = base.layers[count:]
        for number, layer in enumerate(base.layers):
            layer.self_attn.layer_idx = number
        for part, first, last in ((self._lower.config, 0, count), (config, count, config.num_hidden_layers)):
            part.layer_types = config.layer_types[first:last]
        self._lower.config.num_hidden_layers, config.num_hidden_layers = count, config.num_hidden_layers - count
        self._lower.requires_grad_(False)
        self._states: dict[tuple[int, ...], Tensor] = {}
        self._room = cached

    @torch.no_grad()
    def __call__(self, ids: list[Tensor], places: list[Tensor]) -> list[Tensor]:
        """Return states (W, d) of the tokens of each prompt, whose ids and positions are int64 (W,)."""
        keys = [(*i.tolist(), *p.tolist()) for i, p in zip(ids, places, strict=True)]
        cached = {key: self._states[key] for key in keys if key in self._states}
        missing = [row for row, key in enumerate(keys) if key not in cached]
        if missing:
            device = ids[0].device
            self._lower.to(device).eval()
            pad = torch.nn.utils.rnn.pad_sequence
            inputs = pad([ids[row] for row in missing], batch_first=True)
            at = pad([places[row] for row in missing], batch_first=True)
            width = inputs.shape[1]
            mask = torch.ones(width, width, dtype=torch.bool, device=device).tril().expand(len(missing), 1, -1, -1)
            states = self._lower(
                inputs_embeds=self._lower.embed_tokens(inputs), attention_mask=mask, position_ids=at, use_cache=False
            ).last_hidden_state
            for row, own in zip(missing, states, strict=True):
                kept = own[: len(ids[row])].to(torch.bfloat16)
                cached[keys[row]] = kept
                if kept.numel() * 2 <= self._room:
                    self._room -= kept.numel() * 2
                    self._states[keys[row]] = kept.cpu()
        return [cached[key].to(ids[0].device).float() for key in keys]


def build_language_model(
    settings: BackboneSettings, tuning: Tuning, words: int, frozen_layers: int = 0
) -> PreTrainedModel:
    """Build T5 or a decoder with its head, float32: pretrained by path or hub id, or new with a vocabulary of
    ``words``.

    ``frozen_layers``: number of first layers that are separated as ``lower`` (:class:`LowerLayers`).

    Raises:
        ConfigError: there is no usable model at the path, or settings of adapters that ``tuning`` does not use.
    """
    if settings.lora is not None and tuning != "lora":
        raise ConfigError(f"model.backbone.lora needs model.tuning=lora, not {tuning}: set that, or drop the section")
    if frozen_layers and (settings.pretrained is None or tuning == "full"):
        raise ConfigError("model.frozen_layers needs model.backbone.pretrained, and model.tuning=lora or frozen")
    if settings.pretrained:
        model = load_backbone(settings.pretrained, speaking=True, layers=settings.layers)
        if frozen_layers:
            cast(Any, model).lower = LowerLayers(model, frozen_layers)
    else:
        model = from_config(
            scratch_config(settings.family, settings.size, settings.dropout, words, layers=settings.layers)
        )
    return tune(model, settings, tuning)


def from_config(config: PretrainedConfig | dict[str, Any]) -> PreTrainedModel:
    """Build a language model with random float32 weights."""
    if isinstance(config, dict):
        fields = dict(config)
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model: PreTrainedModel = kind.from_config(config, attn_implementation=attention.NAME, dtype=MASTER)
    return model


def tune(model: PreTrainedModel, settings: BackboneSettings, tuning: Tuning) -> PreTrainedModel:
    """Select the trainable parameters; call it after loading the weights."""
    if tuning == "lora":
        targets = (
            EncoderDecoderBackbone.lora_targets if model.config.is_encoder_decoder else CausalBackbone.lora_targets
        )
        inject_lora(model, settings.lora or LoraSettings(), targets)
    elif tuning == "frozen":
        model.requires_grad_(False)
    return model


def base_sha256(model: PreTrainedModel) -> str:
    """Return the SHA-256 of the language model's weights without adapters."""
    digest = hashlib.sha256()
    for name, value in sorted((name.replace(_BASE, ""), value) for name, value in model.state_dict().items()):
        if _ADAPTER not in name:
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


def load_tokenizer(path_or_hub_id: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint.

    Raises:
        ConfigError: the checkpoint has no usable tokenizer.
    """
    refuse_missing_folder(path_or_hub_id)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path_or_hub_id)
    except (OSError, ValueError) as error:
        raise ConfigError(f"'{path_or_hub_id}' has no usable tokenizer: {first_line(error)}") from error
    if not tokenizer("node", add_special_tokens=False)["input_ids"]:  # transformers makes an empty one
        raise ConfigError(f"'{path_or_hub_id}' has no usable tokenizer: it reads no words")
    return tokenizer


def chat_template(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return the text before and after a user's message in the tokenizer's chat template; empty without one."""
    if not tokenizer.chat_template:
        return "", ""
    mark = "THE PROMPT"
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": mark}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception:  # Templates are programs and may raise any error, mostly for a system message.
        text = tokenizer.apply_chat_template(messages[1:], tokenize=False, add_generation_prompt=True)
    before, _, after = str(text).partition(mark)
    return before, after


@torch.no_grad()
def word_vectors(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return input embeddings (..., d) of token ids."""
    vectors: Tensor = model.get_input_embeddings()(ids.to(model.device))
    return vectors.float()


def word_scale(model: PreTrainedModel, sample: int = 4096) -> float:
    """Return the root mean square of the token embeddings."""
    rows = len(cast(Tensor, model.get_input_embeddings().weight))
    ids = torch.linspace(0, rows - 1, min(rows, sample)).long()
    return float(word_vectors(model, ids).square().mean().sqrt())


@torch.no_grad()
def answer_vectors(model: PreTrainedModel, answers: list[list[int]]) -> Tensor:
    """Return unit vectors (C, d): the mean over each answer's token ids of the rows of the model's head, centred over
    all answers. The inner product with a state is then the model's own preference among the answers, on an arbitrary
    scale."""
    head = model.get_output_embeddings().weight.float()
    means = torch.stack([head[torch.tensor(ids)].mean(dim=0) for ids in answers])
    return torch.nn.functional.normalize(means - means.mean(dim=0), dim=1)
