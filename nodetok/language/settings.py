"""Settings of the graph language model and its training. Does not import torch, so that a configuration is validated
quickly."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from setrec.models.settings import BackboneSettings
from setrec.settings import Precision, Seed, Settings

Tuning = Literal["full", "lora", "frozen"]
TOKENS, TEXT, SHUFFLED, LAPLACIAN = "node tokens", "text only", "shuffled tokens", "Laplacian eigenvectors"
TOKENS_ONLY = "tokens only"
ABLATIONS = (TOKENS, TEXT, TOKENS_ONLY, SHUFFLED, LAPLACIAN)


class GraphModelSettings(Settings):
    """The shape of the graph language model.

    ``profile``: with ``anchors`` every anchor has a separate place in a position; ``sorted`` reads the distances of a
    node in ascending order, so that a model can answer on graphs that it was not trained on.

    ``tuning``: ``full``; ``lora`` (adapters by ``backbone.lora``, a section that other tunings reject, or its
    defaults); ``frozen`` trains only projectors, soft prompt, queries and candidates. ``position_tokens`` per node,
    each for an equal share of the anchors; ``neighbours``: number of neighbours shown per node (0: none);
    ``feature_restart`` above 0: a second feature token, the features averaged over a walk that returns with this
    probability per step. ``soft_prompt``: number of learned vectors at the start. ``pair_distances``: whether the
    distances between the nodes of a prompt are added (:mod:`nodetok.language.pair_distances`); ``pair_neighbours``:
    number of neighbours listed per node that make them exact (0: none; not for tasks that hide edges, nor for weighted
    ones). ``identity``: width of
    the candidates' own learned vectors; with 0 the classes of ``classification`` are scored by vectors of their texts,
    so a model can choose among others. ``feature_dropout`` and ``position_dropout``: of a node's features and anchor
    distances, before they become tokens. ``text_loss`` weighs the loss of the generated answer. ``node_words``,
    ``edge_words``, ``class_words``: limits on the tokens of the text of a node, an edge or a class (0: none; ``None``:
    24 if the backbone is pretrained or classes have descriptions). ``chat_template``: whether to use the checkpoint's.
    ``frozen_layers``: first layers of a pretrained Qwen that read words only, once per prompt, and write no text.
    """

    backbone: BackboneSettings = BackboneSettings()
    tuning: Tuning = "full"
    profile: Literal["anchors", "sorted"] = "anchors"
    position_tokens: int = Field(4, ge=0, le=16)
    neighbours: int = Field(16, ge=0)
    feature_restart: float = Field(0.0, ge=0, lt=1)
    soft_prompt: int = Field(2, ge=0)
    pair_distances: bool = True
    pair_neighbours: int = Field(0, ge=0)
    identity: int = Field(64, ge=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    feature_dropout: float = Field(0.0, ge=0, lt=1)
    position_dropout: float = Field(0.0, ge=0, lt=1)
    text_loss: float = Field(0.0, ge=0)
    frozen_layers: int = Field(0, ge=0)
    node_words: int = Field(32, ge=0)
    edge_words: int = Field(64, ge=0)
    class_words: int | None = Field(None, ge=0)
    chat_template: bool = True


class ConsistencySettings(Settings):
    """Settings of consistency training. ``weight`` of the term in the loss (0: off), after a linear ramp of ``ramp``
    steps. ``nodes`` sampled per step and read twice each, at the cost of as many labelled ones. ``temperature`` below 1
    sharpens the target."""

    weight: float = Field(0.0, ge=0)
    nodes: int = Field(256, ge=1)
    temperature: float = Field(0.5, gt=0, le=1)
    ramp: int = Field(100, ge=0)

    def at(self, step: int) -> float:
        """Return the weight at a step, from 0."""
        return self.weight * min(1.0, (step + 1) / (self.ramp + 1))


class GraphTrainingSettings(Settings):
    """Settings of training. ``patience``: epochs without improvement on validation. ``minutes``: limit in CPU minutes
    of this process. ``warmup``: steps of linear warm-up. ``backbone_rate``: the learning rate of a pretrained
    backbone's own weights (``None``: a fiftieth of ``learning_rate`` for all of them, a fifth for adapters).

    ``consistency``: the loss of unlabelled examples, if a task has any. ``sampled``: number of wrong candidates sampled
    per step (0: all); the cost of a step grows with it, 8,192 of 40,943 cost a fifth of the softmax.
    """

    epochs: int = Field(10, ge=1)
    patience: int = Field(10, ge=1)
    batch: int = Field(256, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    backbone_rate: float | None = Field(None, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup: int = Field(20, ge=0)
    clip: float = Field(1.0, gt=0)
    minutes: float | None = Field(None, gt=0)
    precision: Precision = "auto"
    seed: Seed = 0
    consistency: ConsistencySettings = ConsistencySettings()
    sampled: int = Field(0, ge=0)
