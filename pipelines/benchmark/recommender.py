"""SETRec as an entrant: as published (with masks that mask), ours, and every step between the two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from pipelines.benchmark.entrant import Clock, Fitted, device
from pipelines.benchmark.entrant import Settings as Plain
from pipelines.benchmark.opponents import SAMPLED
from pipelines.benchmark.problem import Problem
from pipelines.benchmark.remembered import remember
from setrec import ranking, scoring
from setrec.backbone import BackboneSettings
from setrec.model import ModelSettings, SetRecModel
from setrec.objective import ObjectiveSettings
from setrec.sasrec import SasRecSettings, train_sasrec
from setrec.settings import Settings
from setrec.tokens import ItemFeatures
from setrec.training import Trainer, TrainingSettings
from setrec.transitions import unit_rows

VALIDATED = 2000
"""Validation users that are ranked after every epoch; weights of slots are chosen on all."""
COLLABORATIVE = 64
START = 0.1
"""Standard deviation of a collaborative table that begins at random."""
FIRST = 0.4
"""Share of the time that a SASRec may take whose vectors are the table."""


class RecommenderSettings(Settings):
    """A recommender and its training. ``table``: collaborative vectors begin at random, or as a SASRec of the same
    split left them (within :data:`FIRST` of the time). ``text``: sentence and word vectors, or sentences alone.
    ``text_slot``: the texts themselves are one more slot, frozen, in so many numbers (principal directions; 0: no such
    slot). ``weights``: those of the slot kinds are chosen on validation over a grid, or all are one. ``memory``: of
    events (``serving.memory``), and transitions and likeness of texts as evidence (``pipelines.benchmark.evidence``),
    their weights chosen on validation."""

    family: Literal["qwen3", "t5"] = "qwen3"
    size: Literal["tiny", "small", "base"] = "tiny"
    semantic_tokens: int = 2
    history: Literal["set", "fused"] = "fused"
    ask: Literal["learned", "last", "item"] = "item"
    table: Literal["random", "sasrec"] = "random"
    trainable_table: bool = True
    forget: float = 0.3
    hidden: tuple[int, ...] = (512, 256, 128)
    text_slot: int = 128
    carry: tuple[float, ...] = (0.0, 0.8, 1.0)
    returns: bool = True
    text: Literal["all", "sentence"] = "all"
    dropout: float = 0.2
    loss: ObjectiveSettings = ObjectiveSettings(slots=0.0, fused=1.0, alpha=0.0, sampled_above=4096, samples=1024)
    weights: Literal["grid", "one"] = "grid"
    memory: bool = True
    epochs: int = 40
    patience: int = 6
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    targets_per_batch: int = 512


PUBLISHED = RecommenderSettings(
    semantic_tokens=4, history="set", ask="learned", table="sasrec", trainable_table=False, forget=0.0,
    text_slot=0, carry=(), returns=False,
    text="sentence", loss=ObjectiveSettings.paper(), learning_rate=1e-3, memory=False,
)  # fmt: skip
"""The design of arXiv 2502.10833, at a size that two cores can train; masks and shared positions as it says."""


class Recommender:
    """A :class:`pipelines.benchmark.entrant.Entrant`."""

    random = True

    def __init__(
        self, name: str, base: RecommenderSettings, tries: Sequence[Mapping[str, Any]] = (), **changes: Any
    ) -> None:
        """``tries``: what the settings of the grid after the first change in ``base`` with ``changes``."""
        self.name = name
        fixed = _changed(base, changes)
        self.grid: Sequence[Plain] = [_changed(fixed, one).model_dump(mode="json") for one in ({}, *tries)]

    def fit(self, problem: Problem, settings: Plain, seed: int, clock: Clock) -> Fitted:
        """See :class:`Entrant`."""
        s = RecommenderSettings.model_validate(settings)
        if problem.text is None:
            s = s.model_copy(update={"semantic_tokens": 0})
        trainer = trainer_of(problem, s, _features(problem, s, seed, clock), seed, lambda: clock.share)
        curve = _train(trainer, clock)
        model = trainer.restore_best().cpu()
        weights = _weights(model, problem, s)
        plain, kinds = scoring.scorer(model, weights), scoring.kind_scorer(model)
        if not s.memory:
            return Fitted(plain, {"weights": weights}, curve, kinds, weights)
        clock.tell("remembers")
        kept = remember(model, weights, problem)
        variants = {"without memory": kept.evidence, "model alone": kept.alone}
        return Fitted(kept.scorer, {"weights": weights, **kept.told}, curve, kinds, weights, variants, kept.valid)


def _changed(base: RecommenderSettings, changes: Mapping[str, Any]) -> RecommenderSettings:
    return RecommenderSettings.model_validate({**base.model_dump(), **changes})


def trainer_of(
    problem: Problem, s: RecommenderSettings, features: ItemFeatures, seed: int, spent: Callable[[], float]
) -> Trainer:
    """The trainer of a model for the problem, until the time is ``spent`` (a share); validation is NDCG@10 in the
    history protocol of its figures."""
    import torch

    torch.manual_seed(seed)
    model = SetRecModel.build(
        ModelSettings(
            backbone=BackboneSettings(family=s.family, size=s.size), semantic_tokens=s.semantic_tokens,
            history=s.history, ask=s.ask, dropout=s.dropout, trainable_table=s.trainable_table, forget=s.forget,
            hidden=s.hidden, carry=s.carry, returns=s.returns,
        ),
        features,
    )  # fmt: skip
    torch.nn.Module.to(model, device())  # transformers types the method of its own for models alone
    cases, alike = problem.valid.sample(VALIDATED, seed), dict.fromkeys(model.kinds, 1.0)
    training = TrainingSettings(
        epochs=s.epochs, patience=s.patience, learning_rate=s.learning_rate, weight_decay=s.weight_decay,
        targets_per_batch=s.targets_per_batch, seed=seed,
    )  # fmt: skip

    def validate(model: SetRecModel) -> float:
        return ranking.mean_metric(scoring.scorer(model, alike), cases, history=problem.goal)

    return Trainer(model, problem.train, validate, training, s.loss, spent=spent)


def _features(problem: Problem, s: RecommenderSettings, seed: int, clock: Clock) -> ItemFeatures:
    text = problem.text if s.text == "all" or problem.sentences is None else problem.sentences
    if s.table == "random":
        rng = np.random.default_rng(seed)
        table = rng.normal(0, START, (problem.items, COLLABORATIVE)).astype(np.float32)
    else:
        clock.tell("SASRec first")
        cases = problem.valid.sample(VALIDATED, seed)
        sasrec = train_sasrec(
            problem.histories, problem.items, SasRecSettings(**SAMPLED, width=COLLABORATIVE), seed=seed,
            seconds=60 * clock.minutes * FIRST, device=device(),
            validate=lambda scorer: ranking.mean_metric(scorer, cases, history=problem.goal),
        )  # fmt: skip
        table = np.ascontiguousarray(sasrec.item_embeddings().numpy(), dtype=np.float32)
    extra = {}
    if s.text_slot and text is not None:
        directions = _principal(unit_rows(text), s.text_slot)
        extra["text"] = directions * np.float32(np.sqrt(directions.shape[1]))
    return ItemFeatures(problem.trained, table, text if s.semantic_tokens else None, extra)


def _principal(rows: np.ndarray, width: int) -> np.ndarray:
    """Unit rows (I, w) in the ``width`` directions in which they differ most, float32, again of length 1 or zero: of
    w / ``width`` times the work for a softmax, what is lost of the cosines is mostly noise."""
    if rows.shape[1] <= width:
        return rows
    _, directions = np.linalg.eigh(rows.T.astype(np.float64) @ rows)
    kept = rows @ directions[:, -width:].astype(np.float32)
    return np.asarray(kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-8), dtype=np.float32)


def _train(trainer: Trainer, clock: Clock) -> list[dict[str, Any]]:
    """Train until the epochs or the time are used up, or validation no longer rises."""
    while True:
        record = trainer.epoch(on_step=lambda epochs: clock.tell(f"epoch {epochs:.1f}"))
        clock.tell(f"NDCG@10 {record['ndcg@10']:.4f}")
        if clock.over or trainer.progress.exhausted(trainer.settings):
            return trainer.progress.curve


def _weights(model: SetRecModel, problem: Problem, s: RecommenderSettings) -> dict[str, float]:
    if s.weights == "one" or len(model.kinds) == 1:
        return dict.fromkeys(model.kinds, 1.0)
    return ranking.choose_weights(scoring.kind_scorer(model), problem.valid, scoring.weight_grid(model.kinds))[0]
