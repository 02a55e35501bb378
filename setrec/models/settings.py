"""Settings of the models. Does not import torch, so that a configuration is validated quickly."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from setrec.settings import Precision, Settings


class LoraSettings(Settings):
    """Low-rank adaptation of the attention projections, the rest of the backbone frozen (defaults: SETRec's code)."""

    rank: int = Field(8, ge=1)
    alpha: int = Field(16, ge=1)
    dropout: float = Field(0.02, ge=0, lt=1)


class BackboneSettings(Settings):
    """Settings of the language model that reads the history.

    Either ``pretrained`` (a local path or a hub id; family and size then come from the checkpoint) or a ``family`` and
    a ``size`` trained from scratch. ``layers``: keep the first N layers (T5: of encoder and decoder). ``dropout``
    applies inside a backbone built from a size.
    """

    family: Literal["qwen3", "qwen2", "t5"] = "qwen3"
    size: Literal["tiny", "small", "base"] = "tiny"
    pretrained: str | None = None
    layers: int | None = Field(None, ge=1)
    lora: LoraSettings | None = None
    dropout: float = Field(0.1, ge=0, lt=1)


class LegSettings(Settings):
    """The collaborative leg of the model: a small causal backbone, trained from scratch, that reads and answers the
    collaborative slot alone, while the model's backbone reads and answers the others.

    ``size`` and ``layers`` as of :class:`BackboneSettings`; ``dropout`` of the leg's input and output vectors, half of
    it in its attention.
    """

    size: Literal["tiny", "small", "base"] = "tiny"
    layers: int | None = Field(None, ge=1)
    dropout: float = Field(0.5, ge=0, lt=1)


class ModelSettings(Settings):
    """The shape of the recommender. The defaults are the recipe of ``docs/comparison.md``.

    ``collaborative``: numbers of an item's collaborative vector; ``table``: initialisation of these, ``random`` or from
    a ``sasrec`` trained on the same histories (the paper); ``trainable_table``: whether they are trained further (the
    paper: no). ``semantic_tokens``: semantic slots, made from the text vector by an autoencoder with ``hidden`` layers.
    ``text_slot``: one more slot is the text vector itself, frozen, in so many principal directions (0: no such slot;
    the paper: 0).

    ``collaborative_leg``: a backbone of its own for the collaborative slot, with a softmax, a gradient clip and a best
    epoch of its own, so that both legs learn to rank alone and their scores are summed (after EnsRec, arXiv
    2512.17820); ``null``: one backbone and one softmax for all slots (the paper). Without other slots there is one
    backbone.

    ``history``: ``set`` reads n tokens per item (the paper), ``fused`` their sum, n times cheaper. The latest
    ``max_items`` of a history are read. ``read_blocks``: each block of 128 tokens of a long history reads so many
    earlier blocks, chosen by pooled scores, and not all (``null``; only with the query mode ``item``). ``instruction``:
    number of learned vectors before the history if the backbone has no tokenizer. ``query_mode``: n ``learned`` queries
    follow the history (the paper), or those with the ``last_item``'s vector added, or none: with ``item`` the last
    item's own token answers for every slot through a separate map, which leaves a third of the tokens or less (causal
    backbones and fused histories only). ``auto`` is ``item`` if possible, else ``last_item``.

    ``history_skip``: adds a learned share of the history's own codes to the answer, averaged with weights that decay by
    each of these factors per step back (the paper: none). ``repeat_bias``: a learned number is added to the scores of
    items in the history, which models how often users repeat items; with ``history_skip`` every history is nearest to
    itself, so the two are used together (the paper: no). ``id_dropout``, only without a collaborative leg: share of the
    items whose collaborative code a training step drops, as if they were new, so that items are represented by content
    as well as by interactions and new ones are comparable with others (the paper: 0).
    """

    backbone: BackboneSettings = BackboneSettings()
    collaborative: int = Field(64, ge=0)
    table: Literal["random", "sasrec"] = "random"
    trainable_table: bool = True
    semantic_tokens: int = Field(2, ge=0)
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (512, 256, 128)
    text_slot: int = Field(128, ge=0)
    history: Literal["set", "fused"] = "fused"
    max_items: int = Field(50, ge=1)
    read_blocks: int | None = Field(None, ge=1)
    instruction: int = Field(4, ge=0)
    query_mode: Literal["auto", "learned", "last_item", "item"] = "auto"
    dropout: float = Field(0.2, ge=0, lt=1)
    id_dropout: float = Field(0.3, ge=0, lt=1)
    history_skip: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.0, 0.8, 1.0)
    repeat_bias: bool = True
    collaborative_leg: LegSettings | None = LegSettings()

    def resolved_query_mode(self, *, causal: bool) -> str:
        """Return the query mode for a causal or an encoder-decoder backbone."""
        if self.query_mode != "auto":
            return self.query_mode
        return "item" if causal and self.history == "fused" else "last_item"


class SasRecSettings(Settings):
    """Shape and training of SASRec. ``patience``: epochs without a better validation NDCG@10.

    ``negatives``: draws of the sampled softmax, shared by all targets of a batch; 0 is the full softmax. Only with
    text: ``text_dropout`` of projected texts, drawn separately for inputs and targets; ``id_dropout``, the share of
    items that training represents by their text only, like new items.
    """

    width: int = Field(64, ge=1)
    layers: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)
    max_items: int = Field(50, ge=1)
    epochs: int = Field(30, ge=1)
    patience: int = Field(8, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup_epochs: float = Field(1.0, ge=0)
    targets_per_batch: int = Field(2048, ge=1)
    precision: Precision = "auto"
    negatives: int = Field(0, ge=0)
    text_dropout: float = Field(0.0, ge=0, lt=1)
    id_dropout: float = Field(0.0, ge=0, le=1)

    @field_validator("heads")
    @classmethod
    def _heads_share_the_width(cls, heads: int, info: ValidationInfo) -> int:
        if (width := info.data.get("width")) is not None and width % heads:
            raise ValueError(f"width, {width}, must be a multiple of it")
        return heads
