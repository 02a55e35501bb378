"""The language model behind the graph language model: loaded or new, what of it trains, and the scale of its words."""

from __future__ import annotations

import hashlib
from typing import Any, Literal, cast

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

from setrec.errors import ConfigError
from setrec.models import attention
from setrec.models.backbones import (
    MASTER,
    CausalBackbone,
    EncoderDecoderBackbone,
    inject_lora,
    load_backbone,
    scratch_config,
)
from setrec.models.settings import BackboneSettings, LoraSettings

Tuning = Literal["full", "lora", "frozen"]
_ADAPTER, _BASE = "lora_", ".base_layer"
SYSTEM = "You answer questions about a graph."


def build_language_model(settings: BackboneSettings, tuning: Tuning, words: int) -> PreTrainedModel:
    """T5 or a decoder with its head, float32: pretrained by path or hub id, or new with a vocabulary of ``words``.

    Raises:
        ConfigError: nothing usable is at the path, or there are settings of adapters that ``tuning`` leaves out.
    """
    if settings.lora is not None and tuning != "lora":
        raise ConfigError(f"model.backbone.lora needs model.tuning=lora, not {tuning}: set that, or drop the section")
    if settings.pretrained:
        model = load_backbone(settings.pretrained, speaking=True, layers=settings.layers)
    else:
        model = from_config(
            scratch_config(settings.family, settings.size, settings.dropout, words, layers=settings.layers)
        )
    return tune(model, settings, tuning)


def from_config(config: PretrainedConfig | dict[str, Any]) -> PreTrainedModel:
    """A language model with random weights, float32 whatever ``config`` says."""
    if isinstance(config, dict):
        fields = dict(config)
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return kind.from_config(config, attn_implementation=attention.NAME, dtype=MASTER)


def tune(model: PreTrainedModel, settings: BackboneSettings, tuning: Tuning) -> PreTrainedModel:
    """Choose what trains; must come after the weights are in place."""
    if tuning == "lora":
        targets = (
            EncoderDecoderBackbone.lora_targets if model.config.is_encoder_decoder else CausalBackbone.lora_targets
        )
        inject_lora(model, settings.lora or LoraSettings(), targets)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(_ADAPTER in name)
    elif tuning == "frozen":
        model.requires_grad_(False)
    return model


def base_sha256(model: PreTrainedModel) -> str:
    """SHA-256 of the weights that the language model was loaded with; adapters beside them do not count."""
    digest = hashlib.sha256()
    for name, value in sorted((name.replace(_BASE, ""), value) for name, value in model.state_dict().items()):
        if _ADAPTER not in name:
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


def load_tokenizer(path_or_hub_id: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint.

    Raises:
        ConfigError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(path_or_hub_id)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"'{path_or_hub_id}' has no usable tokenizer: {reason}") from error


def chat_template(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What stands before and after a user's message in the tokenizer's chat template; nothing without one."""
    if not tokenizer.chat_template:
        return "", ""
    mark = "THE PROMPT"
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": mark}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception:  # Templates are programs of their own and raise what they like, mostly at a system message.
        text = tokenizer.apply_chat_template(messages[1:], tokenize=False, add_generation_prompt=True)
    before, _, after = str(text).partition(mark)
    return before, after


@torch.no_grad()
def word_vectors(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Input vectors (..., d) of word ids, as the first layer gets them."""
    return model.get_input_embeddings()(ids.to(model.device)).float()


def word_scale(model: PreTrainedModel, sample: int = 4096) -> float:
    """Root mean square of the numbers in the vectors of words."""
    rows = len(cast(Tensor, model.get_input_embeddings().weight))
    ids = torch.linspace(0, rows - 1, min(rows, sample)).long()
    return float(word_vectors(model, ids).square().mean().sqrt())


@torch.no_grad()
def answer_vectors(model: PreTrainedModel, answers: list[list[int]]) -> Tensor:
    """Unit vectors (C, d): the mean over each answer's word ids of the rows of the model's head, less the mean of all
    answers. The inner product with a state is then the model's own preference among the answers, on a scale of its
    own."""
    head = model.get_output_embeddings().weight.float()
    means = torch.stack([head[torch.tensor(ids)].mean(dim=0) for ids in answers])
    return torch.nn.functional.normalize(means - means.mean(dim=0), dim=1)
