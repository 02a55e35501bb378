"""The configuration of the recommender as transformers stores it."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from setrec.models.backbones import scratch_config


class SetRecConfig(PretrainedConfig):
    """Configuration from which the model is rebuilt; ``backbone`` is the backbone's own configuration, ``words`` the
    number of key words that training predicts, ``leg_epochs`` the number of epochs after which each leg was best on
    validation."""

    model_type = "setrec"

    def __init__(
        self,
        items: int = 1,
        backbone: dict[str, Any] | None = None,
        lora: dict[str, Any] | None = None,
        collaborative: int = 64,
        text: int = 384,
        text_slot: int = 0,
        extra: dict[str, int] | None = None,
        semantic_tokens: int = 4,
        hidden: list[int] | None = None,
        history: str = "fused",
        max_items: int = 50,
        instruction: int = 4,
        query_mode: str = "last_item",
        dropout: float = 0.0,
        trainable_table: bool = True,
        id_dropout: float = 0.0,
        history_skip: list[float] | None = None,
        repeat_bias: bool = False,
        word_scale: float | None = None,
        offset: bool = False,
        words: int = 0,
        collaborative_leg: dict[str, Any] | None = None,
        read_blocks: int | None = None,
        leg_epochs: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        self.items, self.backbone, self.lora = items, backbone, lora
        self.collaborative, self.text, self.text_slot, self.extra = collaborative, text, text_slot, extra or {}
        self.semantic_tokens, self.hidden = semantic_tokens, [512, 256, 128] if hidden is None else hidden
        self.history_skip, self.repeat_bias, self.word_scale = history_skip or [], repeat_bias, word_scale
        self.history, self.max_items, self.instruction = history, max_items, instruction
        self.query_mode, self.dropout, self.offset, self.words = query_mode, dropout, offset, words
        self.collaborative_leg, self.read_blocks, self.leg_epochs = collaborative_leg, read_blocks, leg_epochs
        self.trainable_table, self.id_dropout = trainable_table, id_dropout
        super().__init__(**kwargs)


def backbone_config(given: dict[str, Any] | None) -> PretrainedConfig:
    """Return a backbone's configuration from its fields; ``None``: a tiny Qwen3."""
    if given is None:
        return scratch_config("qwen3", "tiny", 0.0)
    fields = dict(given)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)
