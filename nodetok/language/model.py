"""The graph language model, which reads text and node tokens, and answers learned queries grounded in candidates.

One backbone (T5, or a decoder such as Qwen) answers in two ways. *Grounded*: n query vectors read the prompt at once
and are compared with the candidates' codes by one inner product, as items are in SETRec. *Text*: the same weights
generate text (:mod:`nodetok.language.generation`).
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from nodetok.language.language_model import LowerLayers, answer_vectors, word_scale, word_vectors
from nodetok.language.pair_distances import PairDistances
from nodetok.language.prompts import FEATURE, NEIGHBOUR, POSITION, WORD, NodeData, PromptBatch, Shape
from nodetok.language.settings import GraphModelSettings
from nodetok.positions import as_lengths
from setrec.errors import ConfigError
from setrec.models.backbones import CausalBackbone, EncoderDecoderBackbone
from setrec.training.softmax import catalogue_cross_entropy

SCALES = (0.4, 1.6)
"""Initial values of tau: the small one distinguishes large distances, the large one small distances."""

BASE_WIDTH = 128
"""Width of the backbone for which the learning rates are tuned."""

WORDS_GAIN = 2.0
"""Maximum initial score from the candidates' words."""

TEXT_GAIN = 10.0
"""Initial weight of the cosine of a class's text and a feature token of the node."""


class GraphLanguageModel(nn.Module):
    """A language model with projectors for nodes, a soft prompt, queries and candidates.

    With a pretrained language model, vectors added to the prompt have the scale of its word vectors (``scale``), or
    they would dominate; otherwise ``scale`` is 1.

    Args:
        language_model: from :func:`nodetok.language.language_model.build_language_model`, trained or not.
    """

    def __init__(self, settings: GraphModelSettings, shape: Shape, language_model: PreTrainedModel) -> None:
        super().__init__()
        self.settings, self.shape = settings, shape
        self.lm = language_model
        reader = _reader(language_model)
        # Not a submodule: its weights are the language model's.
        self._reader = (reader,)
        d = self.width = reader.width
        pretrained = settings.backbone.pretrained is not None
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(word_scale(language_model) if pretrained else 1.0))
        start = 1.0 if pretrained else 0.02
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
        self.pair_distances = None
        if groups and settings.pair_distances:
            self.pair_distances = PairDistances(reader.heads, d, counted=settings.pair_neighbours > 0)
        self.beside = nn.Linear(d, d)
        self.relation = nn.Embedding(shape.relations + 1, d)
        self.soft_prompt = nn.Parameter(torch.randn(settings.soft_prompt, d) * start)
        self.norm = nn.LayerNorm(d)
        self.kinds = nn.Embedding(5, d)
        for embedding in (self.kinds, *([self.feature_kind] if shape.features else [])):
            nn.init.normal_(embedding.weight, std=0.02)
        # At the scale of a normalised token, so that relations count from the first step.
        nn.init.normal_(self.relation.weight, std=0.5)
        self._add_candidates(settings, shape, d, start)
        self.dropout = nn.Dropout(settings.dropout)

    def _add_candidates(self, settings: GraphModelSettings, shape: Shape, d: int, start: float) -> None:
        """Add one slot per kind of candidate token; z = A c + b with a small code c, so scores fold as in SETRec."""
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
        if settings.backbone.pretrained and not shape.node_candidates:
            # The language model's own preference: the candidates' words, as vectors of its head.
            widths["words"] = d
            self.answer_words: Tensor
            self.register_buffer("answer_words", torch.zeros(shape.candidates, d))
        if shape.described:
            widths["description"] = shape.features
            self.gates = nn.Linear(d, shape.feature_tokens, bias=False)
        if not widths:
            raise ConfigError("candidates need an identity, features, positions or texts")
        if "identity" in widths and shape.node_candidates and settings.position_tokens:
            # A node that is also a candidate has the same vector as input, so that an answer among the neighbours can
            # be copied.
            self.entity = nn.Linear(settings.identity, d, bias=False)
            nn.init.normal_(self.entity.weight)
        self.slots = tuple(widths)
        self.answer_maps = nn.ModuleDict(
            {kind: nn.Linear(d, width, bias=False) for kind, width in widths.items() if kind != "words"}
        )
        if shape.described:
            # At first a class is scored by its similarity to the node's own texts, which needs no training.
            for added in (cast(nn.Linear, self.answer_maps["description"]), self.gates):
                nn.init.zeros_(added.weight)
        self.queries = nn.Parameter(torch.randn(len(widths), d) * start)
        # Scores start small with a pretrained backbone, so that training starts at chance and not at confident error.
        self.log_scale = nn.Parameter(torch.full((len(widths),), math.log(0.5) if start == 1.0 else 0.0))

    @torch.no_grad()
    def start_from_words(self, answers: list[list[int]], prompts: PromptBatch) -> None:
        """Initialise from the pretrained language model: candidates from the token ids of their names, queries from the
        last token of ``prompts``, or from the start token of an encoder-decoder."""
        if "words" in self.slots:
            self.answer_words.copy_(answer_vectors(self.lm, answers))
        if self.causal:
            words = self._words(prompts, prompts.kinds == WORD)
            if getattr(self.lm, "lower", None) is not None:
                # The first token of a prompt has states a hundred times larger than others: the median ignores it.
                self.scale.copy_(words.square().mean(dim=1).sqrt().median())
            own = words[-1]
        else:
            own = word_vectors(self.lm, torch.tensor(self.lm.config.decoder_start_token_id))
        self.queries.data.copy_(own / self.scale + 0.1 * self.queries.data)

    @property
    def reader(self) -> CausalBackbone | EncoderDecoderBackbone:
        """The language model with SETRec's backbone interface."""
        return self._reader[0]

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.queries.device

    @property
    def causal(self) -> bool:
        """Whether the backbone reads from left to right."""
        return isinstance(self.reader, CausalBackbone)

    def decayed(self, distances: Tensor) -> Tensor:
        """Return exp(-tau d) at each scale, (..., scales, columns) from (..., columns); unreachable is 0."""
        lengths = as_lengths(distances)[..., None, :]
        reached = torch.isfinite(lengths)
        return torch.exp(-self.log_tau.exp() * lengths.masked_fill(~reached, 0.0)) * reached

    def vectors(self, batch: PromptBatch, data: NodeData) -> Tensor:
        """Return token vectors (B, H, d); nodes that occur more than once are projected once."""
        out = torch.zeros(*batch.kinds.shape, self.width, device=self.device)
        words = batch.kinds == WORD
        if words.any():
            out = out.index_put((words,), self._words(batch, words).to(out.dtype))
        for kind, make in ((POSITION, self._positions), (FEATURE, self._features), (NEIGHBOUR, self._neighbours)):
            here = batch.kinds == kind
            if here.any():
                values, back = torch.unique(batch.values[here], return_inverse=True)
                made = self.norm(make(values, data))[back]
                if kind == NEIGHBOUR:
                    made = made + self.relation(batch.relations[here])
                made = self.dropout(made + self.kinds.weight[kind]) * self.scale
                out = out.index_put((here,), made.to(out.dtype))
        return out

    def _words(self, batch: PromptBatch, words: Tensor) -> Tensor:
        """Return vectors (n, d) of text tokens, row after row: embeddings, or states of the frozen lower layers."""
        lower = cast(LowerLayers | None, getattr(self.lm, "lower", None))
        if lower is None:
            vectors: Tensor = self.lm.get_input_embeddings()(batch.values[words])
            return vectors
        ids = [row[here] for row, here in zip(batch.values, words, strict=True)]
        return torch.cat(lower(ids, [row[here] for row, here in zip(batch.places, words, strict=True)]))

    def _positions(self, values: Tensor, data: NodeData) -> Tensor:
        """Return position tokens (n, d) of values = row * groups + group."""
        groups = self.settings.position_tokens
        rows, group = values // groups, values % groups
        used, back = torch.unique(rows, return_inverse=True)
        made = self._grouped(data.table[used], data.raw)
        if hasattr(self, "entity"):
            made = made + self.entity(self.identity.weight[used])[:, None]
        return made[back, group]

    def _grouped(self, distances: Tensor, raw: bool) -> Tensor:
        """Return all position tokens (n, groups, d) of distances (n, columns)."""
        groups = self.settings.position_tokens
        if self.settings.profile == "sorted" and not raw:
            distances = distances.sort(dim=1).values
        near = distances.float()[:, None].expand(-1, len(SCALES), -1) if raw else self.decayed(distances)
        near = self.position_dropout(near)
        near = F.pad(near, (0, -near.shape[-1] % groups)).unflatten(-1, (groups, -1)).transpose(1, 2)
        return torch.einsum("ngx,gxd->ngd", near.flatten(2), self.position) + self.position_bias

    def _features(self, values: Tensor, data: NodeData) -> Tensor:
        """Return feature tokens (n, d) of values = row * tokens + number."""
        assert data.features is not None
        row, kind = values // self.shape.feature_tokens, values % self.shape.feature_tokens
        made: Tensor = self.feature(self.feature_dropout(data.features[row, kind].float())) + self.feature_kind(kind)
        return made

    def _neighbours(self, rows: Tensor, data: NodeData) -> Tensor:
        """Return one token per neighbour: the projected sum of its tokens."""
        total: Tensor = torch.zeros(len(rows), self.width, device=rows.device)
        if self.settings.position_tokens:
            total = total + self._grouped(data.table[rows], data.raw).sum(dim=1)
        if hasattr(self, "entity"):
            total = total + self.entity(self.identity.weight[rows])
        if data.features is not None:
            total = total + self._features(rows * self.shape.feature_tokens, data)
        total = self.beside(total)
        return total

    def answers(self, batch: PromptBatch, data: NodeData) -> Tensor:
        """Return answers (B, n, d) to the queries, one per slot, in one forward pass."""
        history, sees, places, bias = self.read(batch, data)
        n = len(self.slots)
        queries = (self.queries * self.scale).expand(len(history), -1, -1)
        lengths = batch.lengths + self.settings.soft_prompt
        asks = torch.cat([places.new_ones(len(places), n, self.settings.soft_prompt) > 0, batch.asks(n)], dim=2)
        out: Tensor = self.reader.attend(history, sees, places, queries, asks, lengths[:, None].expand(-1, n), bias)
        # A step of the following maps changes a score by the sum of the answer's numbers; wide answers are scaled down
        # to the width for which the learning rates are tuned (Yang et al., "Tensor Programs V", 2021).
        out = self.dropout(F.rms_norm(out.float(), out.shape[-1:]) * min(1.0, BASE_WIDTH / self.width))
        return out * self.log_scale.exp()[:, None]

    def read(self, batch: PromptBatch, data: NodeData) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return vectors (B, H, d), attention mask (B, H, H), positions (B, H) and attention bias (B, heads, H, H), the
        soft prompt first."""
        sees, places = batch.sees(causal=self.causal), batch.places
        vectors, bias = self._add_pair_distances(batch, self.vectors(batch, data), sees, data)
        if not (a := self.settings.soft_prompt):
            return vectors, sees, places, bias
        full = F.pad(sees, (a, 0, a, 0))
        full[:, a:, :a] = True
        first = torch.ones(a, a, dtype=torch.bool, device=sees.device)
        full[:, :a, :a] = first.tril() if self.causal else first
        if not self.causal:
            full[:, :a, a:] = batch.asks(a)
        start = torch.arange(a, device=places.device).expand(len(places), -1)
        return (
            torch.cat([(self.soft_prompt * self.scale).expand(len(vectors), -1, -1), vectors], dim=1),
            full,
            torch.cat([start, places + a], dim=1),
            None if bias is None else F.pad(bias, (a, 0, a, 0)),
        )

    def _add_pair_distances(
        self, batch: PromptBatch, vectors: Tensor, sees: Tensor, data: NodeData
    ) -> tuple[Tensor, Tensor | None]:
        """Return vectors (B, H, d) with pair distances added to the first position token of each node, and the
        attention bias (B, heads, H, H)."""
        groups = self.settings.position_tokens
        rows = batch.rows(groups, self.shape.feature_tokens)
        if self.pair_distances is None or data.raw or not (rows >= 0).any():
            return vectors, None
        first = (batch.kinds == POSITION) & (batch.values % groups == 0)
        at = torch.argsort(~first, dim=1, stable=True)[:, : int(first.sum(dim=1).max())]
        slots = rows.masked_fill(~first, -1).gather(1, at)
        among = sees.gather(1, at[:, :, None].expand(-1, -1, sees.shape[2])).gather(
            2, at[:, None].expand(-1, at.shape[1], -1)
        )
        added = self.pair_distances.vectors(slots, among, data.table, data.near) * self.scale
        vectors = vectors.scatter_add(1, at[:, :, None].expand_as(added), added.to(vectors.dtype))
        return vectors, self.pair_distances.attention_bias(rows, data.table)

    def codes(self, data: NodeData, rows: Tensor | slice = slice(None)) -> Tensor:
        """Return codes (C, D) of all candidates, or of some, which suffice for a ranking."""
        parts = []
        for kind in self.slots:
            if kind == "identity":
                parts.append(self.identity.weight[rows])
            elif kind == "words":
                parts.append((self.answer_words if data.answers is None else data.answers)[rows])
            elif kind == "description":
                parts.append(cast(Tensor, data.classes)[rows])
            elif kind == "features":
                own = cast(Tensor, data.features)[rows, 0].float()
                parts.append(self.feature_code(own) if hasattr(self, "feature_code") else own)
            else:
                parts.append(data.table[rows].float() if data.raw else self.decayed(data.table[rows])[:, 1])
        return torch.cat(parts, dim=1)

    def fold(self, answers: Tensor) -> Tensor:
        """Return folded answers (B, D): their inner products with :meth:`codes` are the scores, sum over slots <o_k,
        z_k>."""
        gain = WORDS_GAIN * self.width**0.5 / min(BASE_WIDTH, self.width)
        own = dict(zip(self.slots, answers.unbind(dim=1), strict=True))
        return torch.cat([self.answer_maps[k](o) if k in self.answer_maps else o * gain for k, o in own.items()], dim=1)

    def folded(self, batch: PromptBatch, data: NodeData) -> Tensor:
        """Return the folded answers (B, D) of prompts. If candidates are described, the vectors of the prompt's own
        feature tokens are added, each with a gate that the answer opens: no gate belongs to a class. For classes that
        training has not seen, these are all: the answer's own vector lies among the classes of training."""
        answers = self.answers(batch, data)
        folded = self.fold(answers)
        if not self.shape.described:
            return folded
        tokens, at = self.shape.feature_tokens, self.slots.index("description")
        gates = TEXT_GAIN * (1 + self.gates(answers[:, at]))
        own = batch.kinds == FEATURE
        prompt, values = own.nonzero()[:, 0], batch.values[own]
        row, kind = values // tokens, values % tokens
        vectors = cast(Tensor, data.features)[row, kind].float() * gates[prompt, kind][:, None]
        before = folded.shape[1] - vectors.shape[1]  # the description is the last slot
        if data.unseen:
            folded = F.pad(folded[:, :before], (0, vectors.shape[1]))
        return folded.index_add(0, prompt, F.pad(vectors, (before, 0)).to(folded.dtype))

    def loss(self, batch: PromptBatch, targets: Tensor, data: NodeData, sampled: int = 0) -> Tensor:
        """Return the mean cross-entropy of the correct candidates (B,).

        With ``sampled`` above 0 the sum over the wrong ones is estimated from that many, drawn uniformly and shared by
        the batch (importance sampling of the partition function, Bengio & Senécal 2008): the cost no longer grows with
        the number of candidates.
        """
        folded = self.folded(batch, data)
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
        """Return scores (B, C) of all candidates: one forward pass and one matrix product."""
        codes = self.codes(data) if codes is None else codes
        return self.folded(batch, data).float() @ codes.float().T


def _reader(model: PreTrainedModel) -> CausalBackbone | EncoderDecoderBackbone:
    if model.config.is_encoder_decoder:
        return EncoderDecoderBackbone(model)
    return CausalBackbone(cast(PreTrainedModel, model.base_model))
