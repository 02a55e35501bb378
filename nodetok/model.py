"""The graph language model: words and node tokens in; answers to learned queries, grounded in candidates, out.

One backbone (T5 or Qwen) answers in two ways. *Grounded*: n query vectors read the prompt at once and are compared with
the candidates' tokens by one inner product, as items are in SETRec. *Text*: the same weights write words
(:mod:`nodetok.text`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedModel,
)

from nodetok.positions import as_lengths
from nodetok.prompts import FEATURE, NEIGHBOUR, POSITION, WORD, PromptBatch
from nodetok.ways import Ways
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
from setrec.models.settings import BackboneSettings
from setrec.settings import Settings
from setrec.training.softmax import catalogue_cross_entropy

SCALES = (0.4, 1.6)
"""Starting values of tau: the small one tells far distances apart, the large one near ones."""


class GraphModelSettings(Settings):
    """The shape of the graph language model.

    ``tuning``: ``full``; ``lora`` (adapters as ``backbone.lora`` says, a section that other tunings refuse, or its
    defaults); ``frozen`` trains projectors, soft prompt, queries and candidates alone. ``position_tokens`` a node, each
    of an equal share of the anchors; ``neighbours``: how many neighbours a node shows (0: none); ``feature_restart``
    above 0: a second feature token, the features averaged over a walk that returns with this probability a step.
    ``soft_prompt`` learned vectors stand first. ``ways``: whether nodes are told how far apart they are
    (:mod:`nodetok.ways`). ``identity``: width of the candidates' own learned vectors. ``feature_dropout`` and
    ``position_dropout``: of a node's features and of what it holds of its distances, before they become tokens.
    ``text_loss`` weighs the loss of the written answer.
    """

    backbone: BackboneSettings = BackboneSettings()
    tuning: Literal["full", "lora", "frozen"] = "full"
    position_tokens: int = Field(4, ge=0, le=16)
    neighbours: int = Field(16, ge=0)
    feature_restart: float = Field(0.0, ge=0, lt=1)
    soft_prompt: int = Field(2, ge=0)
    ways: bool = True
    identity: int = Field(64, ge=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    feature_dropout: float = Field(0.0, ge=0, lt=1)
    position_dropout: float = Field(0.0, ge=0, lt=1)
    text_loss: float = Field(0.0, ge=0)


@dataclass(frozen=True)
class Shape:
    """Sizes that follow from the graph and the task: distance columns, feature width and tokens, relations,
    candidates, and whether candidates are nodes (then they carry features and positions as well)."""

    columns: int
    features: int
    feature_tokens: int
    relations: int
    candidates: int
    node_candidates: bool
    words: int


@dataclass(frozen=True, eq=False)
class NodeData:
    """What stands behind the nodes: distances (V, columns) to the anchors, features (V, tokens, F) or ``None``.

    ``raw``: the table holds coordinates to be read as they are, such as eigenvectors, not distances.
    """

    table: Tensor
    features: Tensor | None
    raw: bool = False

    def to(self, device: torch.device) -> NodeData:
        """On another device."""
        return NodeData(self.table.to(device), None if self.features is None else self.features.to(device), self.raw)


class GraphLanguageModel(nn.Module):
    """A language model with projectors for nodes, a soft prompt, queries and candidates.

    Args:
        language_model: from :func:`build_language_model`, trained or not.
    """

    def __init__(self, settings: GraphModelSettings, shape: Shape, language_model: PreTrainedModel) -> None:
        super().__init__()
        self.settings, self.shape = settings, shape
        self.lm = language_model
        reader = _reader(language_model)
        # Not a submodule: its weights are the language model's.
        self._reader = (reader,)
        d = self.width = reader.width
        groups = settings.position_tokens
        if groups:
            per = -(-shape.columns // groups)
            self.log_tau = nn.Parameter(torch.tensor(SCALES).log()[:, None].repeat(1, shape.columns))
            self.position = nn.Parameter(torch.randn(groups, len(SCALES) * per, d) * (len(SCALES) * per) ** -0.5)
            self.position_bias = nn.Parameter(torch.randn(groups, d) * 0.02)
            self.position_dropout = nn.Dropout(settings.position_dropout)
        if shape.features:
            self.feature = nn.Linear(shape.features, d)
            self.feature_kind = nn.Embedding(shape.feature_tokens, d)
            self.feature_dropout = nn.Dropout(settings.feature_dropout)
        self.ways = Ways(reader.heads, d) if groups and settings.ways else None
        self.beside = nn.Linear(d, d)
        self.relation = nn.Embedding(shape.relations + 1, d)
        self.soft_prompt = nn.Parameter(torch.randn(settings.soft_prompt, d) * 0.02)
        self.norm = nn.LayerNorm(d)
        self.kinds = nn.Embedding(5, d)
        for embedding in (self.kinds, *([self.feature_kind] if shape.features else [])):
            nn.init.normal_(embedding.weight, std=0.02)
        # Beside a normalised token, and told from the first step on what the neighbour is to the node.
        nn.init.normal_(self.relation.weight, std=0.5)
        self._add_candidates(settings, shape, d)
        self.dropout = nn.Dropout(settings.dropout)

    def _add_candidates(self, settings: GraphModelSettings, shape: Shape, d: int) -> None:
        """One slot per kind of candidate token; z = A c + b with a small code c, so scores fold as in SETRec."""
        widths = {}
        if settings.identity:
            self.identity = nn.Embedding(shape.candidates, settings.identity)
            nn.init.normal_(self.identity.weight, std=settings.identity**-0.5)
            widths["identity"] = settings.identity
        if shape.node_candidates and shape.features:
            # Features wider than an answer are mapped to its width first: the same inner products, a smaller code.
            widths["features"] = min(shape.features, d)
            if shape.features > d:
                self.feature_code = nn.Linear(shape.features, d, bias=False)
        if shape.node_candidates and settings.position_tokens:
            widths["positions"] = shape.columns
        if not widths:
            raise ConfigError("candidates need an identity, features or positions")
        if "identity" in widths and shape.node_candidates and settings.position_tokens:
            # A node that is a candidate too is told apart by the same vector when it is read: an answer that stands
            # among the neighbours can be passed on.
            self.entity = nn.Linear(settings.identity, d, bias=False)
            nn.init.normal_(self.entity.weight)
        self.slots = tuple(widths)
        self.answer_maps = nn.ModuleDict({kind: nn.Linear(d, width, bias=False) for kind, width in widths.items()})
        self.queries = nn.Parameter(torch.randn(len(widths), d) * 0.02)
        self.log_scale = nn.Parameter(torch.zeros(len(widths)))

    @property
    def reader(self) -> CausalBackbone | EncoderDecoderBackbone:
        """The language model behind SETRec's backbone interface."""
        return self._reader[0]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.queries.device

    @property
    def causal(self) -> bool:
        """Whether the backbone reads from left to right."""
        return isinstance(self.reader, CausalBackbone)

    def decayed(self, distances: Tensor) -> Tensor:
        """exp(-tau d) at each scale, (..., scales, columns) from (..., columns); unreachable is 0."""
        lengths = as_lengths(distances)[..., None, :]
        reached = torch.isfinite(lengths)
        return torch.exp(-self.log_tau.exp() * lengths.masked_fill(~reached, 0.0)) * reached

    def vectors(self, batch: PromptBatch, data: NodeData) -> Tensor:
        """Token vectors (B, H, d); rows of nodes that occur more than once are projected once."""
        out = self.kinds(batch.kinds)
        words = batch.kinds == WORD
        if words.any():
            embedded = self.lm.get_input_embeddings()(batch.values[words])
            out = out.index_put((words,), embedded.to(out.dtype), accumulate=True)
        for kind, make in ((POSITION, self._positions), (FEATURE, self._features), (NEIGHBOUR, self._neighbours)):
            here = batch.kinds == kind
            if here.any():
                values, back = torch.unique(batch.values[here], return_inverse=True)
                made = self.norm(make(values, data))[back]
                if kind == NEIGHBOUR:
                    made = made + self.relation(batch.relations[here])
                out = out.index_put((here,), made.to(out.dtype), accumulate=True)
        return self.dropout(out)

    def _positions(self, values: Tensor, data: NodeData) -> Tensor:
        """Position tokens of values = row * groups + group: (n, d)."""
        groups = self.settings.position_tokens
        rows, group = values // groups, values % groups
        used, back = torch.unique(rows, return_inverse=True)
        made = self._grouped(data.table[used], data.raw)
        if hasattr(self, "entity"):
            made = made + self.entity(self.identity.weight[used])[:, None]
        return made[back, group]

    def _grouped(self, distances: Tensor, raw: bool) -> Tensor:
        """All position tokens (n, groups, d) of distances (n, columns)."""
        groups = self.settings.position_tokens
        near = distances.float()[:, None].expand(-1, len(SCALES), -1) if raw else self.decayed(distances)
        near = self.position_dropout(near)
        near = F.pad(near, (0, -near.shape[-1] % groups)).unflatten(-1, (groups, -1)).transpose(1, 2)
        return torch.einsum("ngx,gxd->ngd", near.flatten(2), self.position) + self.position_bias

    def _features(self, values: Tensor, data: NodeData) -> Tensor:
        """Feature tokens of values = row * tokens + number: (n, d)."""
        assert data.features is not None
        tokens = self.shape.feature_tokens
        features = self.feature_dropout(data.features[values // tokens, values % tokens].float())
        return self.feature(features) + self.feature_kind(values % tokens)

    def _neighbours(self, rows: Tensor, data: NodeData) -> Tensor:
        """One token a neighbour: the sum of its tokens, through a map of its own."""
        total = torch.zeros(len(rows), self.width, device=rows.device)
        if self.settings.position_tokens:
            total = total + self._grouped(data.table[rows], data.raw).sum(dim=1)
        if hasattr(self, "entity"):
            total = total + self.entity(self.identity.weight[rows])
        if data.features is not None:
            total = total + self._features(rows * self.shape.feature_tokens, data)
        return self.beside(total)

    def answers(self, batch: PromptBatch, data: NodeData) -> Tensor:
        """Answers (B, n, d) to the queries, one per slot, in one pass."""
        history, sees, places, bias = self.read(batch, data)
        n = len(self.slots)
        queries = self.queries.expand(len(history), -1, -1)
        lengths = batch.lengths + self.settings.soft_prompt
        asks = torch.cat([places.new_ones(len(places), n, self.settings.soft_prompt) > 0, batch.asks(n)], dim=2)
        out = self.reader.attend(history, sees, places, queries, asks, lengths[:, None].expand(-1, n), bias)
        return self.dropout(out) * self.log_scale.exp()[:, None]

    def read(self, batch: PromptBatch, data: NodeData) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Vectors (B, H, d), who sees whom (B, H, H), places (B, H) and attention bias (B, heads, H, H), the soft
        prompt in front."""
        sees, places = batch.sees(causal=self.causal), batch.places
        vectors, bias = self._tell(batch, self.vectors(batch, data), sees, data)
        a = self.settings.soft_prompt
        if not a:
            return vectors, sees, places, bias
        full = F.pad(sees, (a, 0, a, 0))
        full[:, a:, :a] = True
        first = torch.ones(a, a, dtype=torch.bool, device=sees.device)
        full[:, :a, :a] = first.tril() if self.causal else first
        if not self.causal:
            full[:, :a, a:] = batch.asks(a)
        start = torch.arange(a, device=places.device).expand(len(places), -1)
        return (
            torch.cat([self.soft_prompt.expand(len(vectors), -1, -1), vectors], dim=1),
            full,
            torch.cat([start, places + a], dim=1),
            None if bias is None else F.pad(bias, (a, 0, a, 0)),
        )

    def _tell(self, batch: PromptBatch, vectors: Tensor, sees: Tensor, data: NodeData) -> tuple[Tensor, Tensor | None]:
        """Vectors (B, H, d) in which the first position token of a node says how far the nodes it sees are, and the
        attention bias (B, heads, H, H)."""
        groups = self.settings.position_tokens
        rows = batch.rows(groups, self.shape.feature_tokens)
        if self.ways is None or data.raw or not (rows >= 0).any():
            return vectors, None
        first = (batch.kinds == POSITION) & (batch.values % groups == 0)
        at = torch.argsort(~first, dim=1, stable=True)[:, : int(first.sum(dim=1).max())]
        slots = rows.masked_fill(~first, -1).gather(1, at)
        among = sees.gather(1, at[:, :, None].expand(-1, -1, sees.shape[2])).gather(
            2, at[:, None].expand(-1, at.shape[1], -1)
        )
        told = self.ways.tell(slots, among, data.table)
        vectors = vectors.scatter_add(1, at[:, :, None].expand_as(told), told.to(vectors.dtype))
        return vectors, self.ways.between(rows, data.table)

    def codes(self, data: NodeData, rows: Tensor | slice = slice(None)) -> Tensor:
        """Codes of all candidates, (C, D), or of some: small, and all that a ranking needs of them."""
        parts = []
        for kind in self.slots:
            if kind == "identity":
                parts.append(self.identity.weight[rows])
            elif kind == "features":
                own = cast(Tensor, data.features)[rows, 0].float()
                parts.append(self.feature_code(own) if hasattr(self, "feature_code") else own)
            else:
                parts.append(data.table[rows].float() if data.raw else self.decayed(data.table[rows])[:, 1])
        return torch.cat(parts, dim=1)

    def asked(self, answers: Tensor) -> Tensor:
        """Folded answers (B, D): their inner products with :meth:`codes` are the scores, sum over slots <o_k, z_k>."""
        return torch.cat([self.answer_maps[kind](answers[:, k]) for k, kind in enumerate(self.slots)], dim=1)

    def loss(self, batch: PromptBatch, targets: Tensor, data: NodeData, sampled: int = 0) -> Tensor:
        """Mean cross-entropy of the right candidate (B,) among all.

        With ``sampled`` above 0 the sum over the wrong ones is estimated from so many, drawn uniformly and shared by
        the batch (importance sampling of the partition function, Bengio & Senécal 2008): the cost no longer grows with
        the number of candidates.
        """
        folded = self.asked(self.answers(batch, data))
        count = self.shape.candidates
        if not 0 < sampled < count:
            return catalogue_cross_entropy(folded, self.codes(data), targets) / len(targets)
        drawn = torch.randint(count, (sampled,), device=targets.device)
        own = (folded * self.codes(data, targets)).sum(dim=1, keepdim=True).float()
        others = (folded @ self.codes(data, drawn).to(folded.dtype).T).float() + math.log(count / sampled)
        others = others.masked_fill(drawn == targets[:, None], -math.inf)
        return (torch.cat([own, others], dim=1).logsumexp(dim=1) - own[:, 0]).mean()

    @torch.no_grad()
    def scores(self, batch: PromptBatch, data: NodeData, codes: Tensor | None = None) -> Tensor:
        """Scores (B, C) of all candidates: one pass and one matrix product."""
        codes = self.codes(data) if codes is None else codes
        return self.asked(self.answers(batch, data)).float() @ codes.float().T


def _reader(model: PreTrainedModel) -> CausalBackbone | EncoderDecoderBackbone:
    if model.config.is_encoder_decoder:
        return EncoderDecoderBackbone(model)
    return CausalBackbone(cast(PreTrainedModel, model.base_model))


def build_language_model(settings: BackboneSettings, tuning: str, words: int) -> PreTrainedModel:
    """T5 or Qwen with its head, float32: pretrained by path or hub id, or from a size with a vocabulary of ``words``.

    Raises:
        ConfigError: nothing usable is at the path, or there are settings of adapters that ``tuning`` leaves out.
    """
    if settings.lora is not None and tuning != "lora":
        raise ConfigError(f"model.backbone.lora needs model.tuning=lora, not {tuning}: set that, or drop the section")
    if settings.pretrained:
        model = load_backbone(settings.pretrained, speaking=True)
    else:
        config = scratch_config(settings.family, settings.size, settings.dropout, words)
        model = from_config(config)
    return tune(model, settings, tuning)


def from_config(config: PretrainedConfig | dict[str, Any]) -> PreTrainedModel:
    """A language model with random weights, float32 whatever ``config`` says."""
    if isinstance(config, dict):
        fields = dict(config)
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return kind.from_config(config, attn_implementation=attention.NAME, dtype=MASTER)


def tune(model: PreTrainedModel, settings: BackboneSettings, tuning: str) -> PreTrainedModel:
    """Choose what trains; must come after the weights are in place."""
    if tuning == "lora":
        from setrec.models.backbones import LoraSettings

        targets = (
            EncoderDecoderBackbone.lora_targets if model.config.is_encoder_decoder else CausalBackbone.lora_targets
        )
        inject_lora(model, settings.lora or LoraSettings(), targets)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
    elif tuning == "frozen":
        model.requires_grad_(False)
    return model


def attach(table: np.ndarray, features: np.ndarray | None, *, raw: bool = False) -> NodeData:
    """Arrays of a graph as tensors."""
    own = None if features is None else torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))
    return NodeData(torch.from_numpy(np.ascontiguousarray(table)), own, raw)
