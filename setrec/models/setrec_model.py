"""SETRec as a transformers model: maps histories of items to one answer vector per slot, in one forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from setrec.errors import ConfigError
from setrec.models import grounding, masks
from setrec.models.backbones import (
    CausalBackbone,
    build_backbone,
    copy_weights,
    load_backbone,
    scratch_config,
)
from setrec.models.collaborative_leg import CollaborativeLeg
from setrec.models.configuration import SetRecConfig, backbone_config
from setrec.models.grounding import LogitBias
from setrec.models.item_tokens import COLLABORATIVE, ItemFeatures, SemanticTokenizer, TableTokenizer
from setrec.models.recommender import BIAS_UNIT, LOG_UNIT, Recommender, item_tokens
from setrec.models.settings import LoraSettings, ModelSettings
from setrec.ragged import Ragged

INSTRUCTION = "Given the items a user chose, in order, name the item this user will choose next."
SKIP_START = 30.0
"""Initial gain of the history skip connection: the score of an item that equals the history."""


class Answers(NamedTuple):
    """The output of :meth:`SetRecModel.forward`. ``slots``: each slot's answers (T, its columns) in the columns of its
    code; ``codes`` (I, D), or (J, D) of the given rows; ``repeats``: the learned bias of items that a query block has
    seen, of each leg; ``reconstruction``: the autoencoder's mean squared error; ``offset_scale``: see
    :class:`SetRecModel`; ``words``: the cross-entropy of key words."""

    slots: list[Tensor]
    codes: Tensor
    repeats: list[LogitBias] | None
    reconstruction: Tensor | None
    offset_scale: Tensor | None = None
    words: Tensor | None = None


class SetRecModel(Recommender, PreTrainedModel):
    """The recommender: item tokens, a backbone, n queries, and the fold that grounds answers in the catalogue.

    With ``config.offset`` it also learns ``offset_scale``, the weight of the offset in its training loss.
    """

    config_class = SetRecConfig
    base_model_prefix = "setrec"
    _keys_to_ignore_on_load_missing = [r"embed_tokens"]  # noqa: RUF012

    def __init__(self, config: SetRecConfig) -> None:
        super().__init__(config)
        lora = LoraSettings(**config.lora) if config.lora else None
        self.backbone = build_backbone(backbone_config(config.backbone), lora)
        width = self.backbone.width
        leg = config.collaborative_leg
        self.tokens = item_tokens(config, width)
        n, decays = len(self.tokens.read), len(config.history_skip)
        self.leg = None if leg is None else CollaborativeLeg(leg, n, decays, repeats=config.repeat_bias)
        if config.query_mode == "item" and (config.history != "fused" or not isinstance(self.backbone, CausalBackbone)):
            raise ConfigError(
                "an item's own token can answer (query_mode: item) behind a causal backbone and fused histories"
            )
        if config.read_blocks is not None:
            if config.query_mode != "item":
                raise ConfigError("read_blocks: only if an item's own token answers (query_mode: item)")
            for reader in (self, self.leg):
                if reader is not None:
                    cast(CausalBackbone, reader.backbone).read_blocks = config.read_blocks
        self.instruction = nn.Parameter(torch.zeros(config.instruction, width))
        self.queries = nn.Parameter(torch.zeros(n, width))
        self.maps = nn.Parameter(torch.zeros(n, width, width)) if config.query_mode == "item" else None
        # A learned temperature per slot; answers leave the backbone with norms near sqrt(d).
        self.log_scale = nn.Parameter(torch.zeros(n))
        self.log_skip = nn.Parameter(torch.zeros(len(self.tokens.read_kinds), decays)) if decays else None
        self.repeat_logit = nn.Parameter(torch.zeros(1)) if config.repeat_bias else None
        self.log_offset_scale = nn.Parameter(torch.zeros(1)) if config.offset else None
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self:
            nn.init.normal_(self.instruction, std=0.02)
            nn.init.normal_(self.queries, std=0.02)
            if self.maps is not None:
                self.maps.copy_(torch.eye(self.backbone.width).expand_as(self.maps))
            nn.init.constant_(self.log_scale, -0.5 * float(np.log(self.backbone.width)))
            for log_skip in self.of_legs("log_skip"):
                nn.init.constant_(log_skip, float(np.log(SKIP_START / len(self.config.history_skip))) / LOG_UNIT)
            for logit in self.of_legs("repeat_logit"):
                nn.init.zeros_(logit)
        elif isinstance(module, SemanticTokenizer):
            for layer in [*module.encoder, module.split, *module.decoder]:
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    @property
    def tokens_per_item(self) -> int:
        """Number of tokens per item of a history."""
        return 1 if self.config.history == "fused" else len(self.tokens.read)

    @property
    def tokens_per_target(self) -> int:
        """Number of queries per target: one per slot, or none if an item's own token answers."""
        return len(self.tokens.read) if self.maps is None else 0

    @property
    def offset_scale(self) -> Tensor | None:
        """The learned weight of the offset in training, a positive scalar; ``None`` without one."""
        return None if self.log_offset_scale is None else self.log_offset_scale[0].exp()

    def outputs(self, items: Tensor, visible: Tensor, codes: Tensor | None = None) -> Tensor:
        """Return answers (B, Q, n, d) of query blocks that see the first ``visible`` (B or 1, Q) items of a history.

        ``items`` int (B, L), right-padded with any row; ``codes`` (I, D) if already computed.
        """
        codes = self.tokens.codes() if codes is None else codes
        vectors = self.item_vectors(items, codes)
        if self.maps is not None:
            states = cast(CausalBackbone, self.backbone).read(self.instruction, vectors)
            return self.answers_from(masks.last_seen(states, len(self.instruction) - 1 + visible.long()))
        queries = self.query_vectors(vectors, visible)
        return self.answers_from(self.backbone(self.instruction, vectors, queries, visible, self.tokens_per_item))

    def item_vectors(self, items: Tensor, codes: Tensor) -> Tensor:
        """Return the backbone's input vectors (B, L * m, d) of items (B, L)."""
        read = codes[items.long()]
        vectors = self.tokens.fused(read) if self.tokens_per_item == 1 else self.tokens.tokens(read).flatten(1, 2)
        if self.config.word_scale is not None:
            vectors = F.rms_norm(vectors, vectors.shape[-1:]) * self.config.word_scale
        dropped: Tensor = self.dropout(vectors)
        return dropped

    def query_vectors(self, vectors: Tensor, visible: Tensor) -> Tensor:
        """Return the queries (B or 1, Q, n, d) of blocks that each see the first ``visible`` items of ``vectors``."""
        queries = self.queries.expand(1, visible.shape[1], -1, -1)
        if self.config.query_mode == "last_item":
            own = vectors.unflatten(1, (-1, self.tokens_per_item)).sum(dim=2)
            queries = queries + masks.last_seen(own, visible.long() - 1)[:, :, None]
        return queries

    def answers_from(self, states: Tensor) -> Tensor:
        """Return answers (B, Q, n, d) from the states (B, Q, n, d) of the queries, or (B, Q, d) of the last visible
        items (of the instruction if none is visible) where these answer."""
        if self.config.word_scale is not None:  # a pretrained backbone's states get the norm sqrt(d) of a new one's
            states = F.rms_norm(states, states.shape[-1:])
        if self.maps is not None:
            states = torch.einsum("bqd,nde->bqne", states, self.maps) + self.queries
        answers: Tensor = self.dropout(states) * self.log_scale.exp()[:, None]
        return answers

    def answer_codes(self, items: Tensor, visible: Tensor, codes: Tensor | None = None) -> list[Tensor]:
        """Return each slot's answer in the columns of its code, n tensors (B, Q, columns); arguments as of
        :meth:`outputs`."""
        codes = self.tokens.codes() if codes is None else codes
        return self.grounded(self.outputs(items, visible, codes), items, visible, codes)

    def grounded(self, outputs: Tensor, items: Tensor, visible: Tensor, codes: Tensor) -> list[Tensor]:
        """Return :meth:`answer_codes` from answers (B, Q, n, d)."""
        own, read = grounding.slot_codes(self.tokens, outputs), codes[items.long()]
        if self.leg is not None:
            table = cast(TableTokenizer, self.tokens.table(COLLABORATIVE))
            own.insert(0, self.leg(table, read[..., : table.code_width], visible))
        gains = self.skip_gains()
        if gains is None:
            return own
        skip = self._skip(read, visible, gains)
        return [code + skip[slot.kind] for slot, code in zip(self.tokens.slots, own, strict=True)]

    def _skip(self, read: Tensor, visible: Tensor, gains: Tensor) -> dict[str, Tensor]:
        """Return the history skip connection by kind, (B, Q, columns): decayed means of the codes (B, L, D), at gains
        (kinds, decays)."""
        age = visible[..., None] - 1 - torch.arange(read.shape[1], device=read.device)
        weights = []
        for decay in self.config.history_skip:
            weight = torch.where(age >= 0, float(decay) ** age.clamp(min=0).to(read.dtype), 0.0)
            weights.append(weight / weight.sum(dim=-1, keepdim=True).clamp(min=1e-9))
        skip = {}
        for (kind, (a, b)), own in zip(self.tokens.columns.items(), gains, strict=True):
            mixed = torch.stack([gain * weight for gain, weight in zip(own, weights, strict=True)]).sum(dim=0)
            skip[kind] = mixed @ read[..., a:b] / (b - a)
        return skip

    def forward(
        self,
        items: Tensor,
        visible: Tensor,
        asked: Tensor,
        rows: Tensor | None = None,
        reconstructed: Tensor | None = None,
        words: tuple[Tensor, Tensor] | None = None,
    ) -> Answers:
        """Return the answers of the T query blocks for which ``asked``, bool (B, Q), is true, and the item codes.

        ``items`` int (B, L) and ``visible`` int (B, Q) as of :meth:`outputs`. With ``rows`` int64 (J,), only the codes
        of these items are computed, and ``items`` number them. ``reconstructed``: rows of items whose text vectors the
        autoencoder reproduces. ``words``: rows of items (J,) and the shares of their key words (J, V).
        """
        codes = self.tokens.codes(rows)
        own = [code[asked] for code in self.answer_codes(items, visible, codes)]
        repeats: list[LogitBias] | None = None
        if self.repeat_logit is not None:
            seen = self._seen(items, visible, asked)
            repeats = [LogitBias(*seen, logit[0] * BIAS_UNIT) for logit in self.of_legs("repeat_logit")]
        semantic, error, of_words = self.tokens.semantic, None, None
        if reconstructed is not None and semantic is not None:
            error = semantic.reconstruction_error(reconstructed)
        if words is not None and semantic is not None:
            of_words = semantic.word_error(*words)
        return Answers(own, codes, repeats, error, self.offset_scale, of_words)

    def _seen(self, items: Tensor, visible: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distinct pairs of a target and a visible item, in the order of targets."""
        sees = (torch.arange(items.shape[1], device=items.device) < visible[..., None])[asked]
        row, at = sees.nonzero(as_tuple=True)
        seen = items[asked.nonzero()[:, 0][row], at].long()
        pairs = torch.unique(row * self.config.items + seen)
        return pairs // self.config.items, pairs % self.config.items

    @property
    def trained(self) -> Tensor:
        """Mask of training items, bool (I,); all true without a collaborative slot."""
        table = self.tokens.table(COLLABORATIVE)
        if table is None:
            return torch.ones(self.config.items, dtype=torch.bool, device=self.device)
        return table.known

    @torch.no_grad()
    def mark_trained(self, items: np.ndarray) -> None:
        """Add items, bool (I,), to those of training."""
        table = self.tokens.table(COLLABORATIVE)
        if table is not None:
            table.known |= torch.from_numpy(items).to(table.known.device)

    @torch.no_grad()
    def item_codes(self) -> Tensor:
        """Return folded item codes, float32 (I, D), for an index. They are independent of users and slot weights."""
        return self.tokens.codes().float()

    @torch.no_grad()
    def answers(self, histories: Ragged, codes: Tensor | None = None) -> Tensor:
        """Return answers (B, n, d) to whole histories (the latest ``max_items`` of each) in one forward pass."""
        return self.outputs(*self.whole(histories), codes)[:, 0]

    def whole(self, histories: Ragged) -> tuple[Tensor, Tensor]:
        """Return items (B, L) and visible (B, 1) of whole histories, the latest ``max_items`` of each."""
        items, lengths = histories.pad(self.config.max_items)
        return torch.from_numpy(items).to(self.device), torch.from_numpy(lengths).to(self.device)[:, None]

    @torch.no_grad()
    def user_codes(self, histories: Ragged, weights: Mapping[str, float], codes: Tensor | None = None) -> Tensor:
        """Return folded user codes, float32 (B, D): inner products with item codes are scores, up to a constant per
        user."""
        own = self.answer_codes(*self.whole(histories), codes)
        return grounding.joined(self.tokens, own, weights)[:, 0].float()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> SetRecModel:
        """Load a saved model, with the same trainable parameters, which transformers would reset."""
        model: SetRecModel = super().from_pretrained(*args, **kwargs)
        with torch.device("meta"):
            new = dict(cls(cast(SetRecConfig, model.config)).named_parameters(remove_duplicate=False))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(new[name].requires_grad)
        return model

    @classmethod
    def build(
        cls, settings: ModelSettings, features: ItemFeatures, *, offset: bool = False, words: int = 0
    ) -> SetRecModel:
        """Build a model for a catalogue, with a pretrained or new backbone and with tokenizers filled with the items'
        features; ``offset``: it is trained with an offset; ``words``: number of key words that training predicts."""
        b = settings.backbone
        pretrained = load_backbone(b.pretrained, layers=b.layers) if b.pretrained else None
        table = None if pretrained is None else cast(nn.Embedding, pretrained.get_input_embeddings()).weight.detach()
        instruction = _instruction_vectors(b.pretrained, pretrained)
        base = scratch_config(b.family, b.size, b.dropout, layers=b.layers) if pretrained is None else pretrained.config
        own = base.to_dict()
        if pretrained is not None:
            pretrained.resize_token_embeddings(1)
            special = 0 if base.is_encoder_decoder else None  # word ids of the checkpoint, of which none is left
            own |= {"vocab_size": 1, "pad_token_id": special}
            own |= {"bos_token_id": special, "eos_token_id": special}
        config = SetRecConfig(
            items=len(features),
            backbone=own,
            lora=b.lora.model_dump() if b.lora else None,
            collaborative=0 if features.collaborative is None else features.collaborative.shape[1],
            text=0 if features.text is None else features.text.shape[1],
            text_slot=0 if features.text is None else min(settings.text_slot, features.text.shape[1]),
            extra={kind: table.shape[1] for kind, table in features.extra.items()},
            semantic_tokens=settings.semantic_tokens,
            hidden=list(settings.hidden),
            history=settings.history,
            max_items=settings.max_items,
            read_blocks=settings.read_blocks,
            instruction=settings.instruction if instruction is None else len(instruction),
            query_mode=settings.resolved_query_mode(causal=not base.is_encoder_decoder),
            dropout=settings.dropout,
            trainable_table=settings.trainable_table,
            id_dropout=settings.id_dropout,
            history_skip=list(settings.history_skip),
            repeat_bias=settings.repeat_bias,
            word_scale=None if table is None else float(table.square().mean().sqrt()),
            offset=offset,
            words=words,
            collaborative_leg=_leg(settings, features),
        )
        model = cls(config)
        model.tokens.fill(features)
        if pretrained is not None:
            copy_weights(pretrained, model.backbone.model)
        if instruction is not None:
            model.instruction.data.copy_(instruction)
        return model


def _leg(settings: ModelSettings, features: ItemFeatures) -> dict[str, Any] | None:
    """Return the configuration of the collaborative leg; ``None`` if there is no slot for it or none beside it."""
    semantic = features.text is not None and bool(settings.semantic_tokens or settings.text_slot)
    if settings.collaborative_leg is None or features.collaborative is None or not (semantic or features.extra):
        return None
    s = settings.collaborative_leg
    config = scratch_config("qwen3", s.size, s.dropout / 2, layers=s.layers)
    return {"dropout": s.dropout, "backbone": config.to_dict()}


def _instruction_vectors(path: str | None, pretrained: PreTrainedModel | None) -> Tensor | None:
    """Return the embedded instruction (a, d) of a pretrained backbone; ``None`` without a tokenizer."""
    if path is None or pretrained is None:
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError):
        return None
    ids = tokenizer(INSTRUCTION, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    vectors: Tensor = pretrained.get_input_embeddings()(ids).detach().clone()
    return vectors
