"""SETRec with what is known beside it: transitions, likeness of texts, and a memory of events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch

from pipelines.benchmark import evidence
from pipelines.benchmark.calibration import fit_temperature
from pipelines.benchmark.evidence import Evidence
from pipelines.benchmark.problem import Problem
from pipelines.benchmark.weighing import everything, halves, ndcg_of, standard_error
from serving.memory import EventMemory, MemorySettings, vote_roots
from setrec import grounding, ranking, scoring
from setrec.batches import one_pass
from setrec.catalog import VALID
from setrec.model import SetRecModel
from setrec.ragged import Ragged

TARGETS = 4096
"""Positions encoded at a time."""
CALIBRATED = 2000
"""Validation users that the temperature of the scores is fitted on."""
GRID = [
    MemorySettings(temperature=temperature, weight=weight)
    for weight, temperature in ((0.0, 0.05), *product((2.0, 5.0, 10.0, 20.0, 40.0), (0.02, 0.05, 0.1)))
]
"""The first is no memory at all, which is taken where nothing helps."""


@dataclass(frozen=True)
class Remembered:
    """Scorers with all that is known up to the test, with ``evidence`` without the memory of events, and of the model
    ``alone``, which work a batch out once for all three; what was ``told`` of the choice, and NDCG@10 on validation,
    ``valid``."""

    scorer: ranking.Scorer
    evidence: ranking.Scorer
    alone: ranking.Scorer
    told: dict[str, Any]
    valid: float


def remember(model: SetRecModel, weights: Mapping[str, float], problem: Problem) -> Remembered:
    """The model with evidence and with a memory of all training and validation events.

    Weights are chosen on validation users in two halves. Where the split is each user's own, the other half's
    validation events are known while a half is ranked, as at test time everybody's are. Where it is one of global time
    they are not: they are of the same time as what is asked for, have met all that is new and know what is in fashion,
    while what is known at test time is older. Nothing is added where nothing helps.
    """
    # What is added is in the unit of log-probabilities, so the scores have to be: at the temperature that suits best.
    heat = fit_temperature(scoring.scorer(model, weights), problem.valid.sample(CALIBRATED, 0))
    plain = _Model(model, {kind: weight / heat for kind, weight in weights.items()})
    parts, others = halves(problem)
    chosen, tried = evidence.choose(plain, parts, problem.likeness, problem.trained, problem.goal)
    told: dict[str, Any] = {"temperature": heat, "evidence": chosen.model_dump(), "evidence_tried": tried}

    def with_evidence(known: Ragged) -> Evidence:
        return Evidence(plain, known, problem.likeness, problem.trained, chosen)

    events = _Events.of(plain, problem, others)
    scorers = [
        _Scorer(with_evidence(part.known), plain, memory) for part, memory in zip(parts, events.halves, strict=True)
    ]
    number, tried = _choose(scorers, [part.cases for part in parts], problem)
    told |= {"memory": GRID[number].model_dump(), "memory_tried": tried, "events": len(events.every)}
    every = ranking.Once(with_evidence(problem.histories.upto(VALID)))
    scorer = _Scorer(every, plain, events.every, GRID[number])
    return Remembered(scorer, every, plain, told, tried[number]["ndcg@10"])


class _Model:
    """A model at weights of its kinds as a scorer that keeps user codes and scores of the histories it read last."""

    def __init__(self, model: SetRecModel, weights: Mapping[str, float]) -> None:
        self.model, self.weights, self.codes = model.eval(), weights, model.item_codes()
        self.raised = model.return_bias(weights)
        self._users, self._scores = ranking.Once(self._coded), ranking.Once(self._scored)

    def user_codes(self, history: Ragged) -> np.ndarray:
        """User codes float32 (b, D)."""
        return self._users(history)

    def _coded(self, history: Ragged) -> np.ndarray:
        return np.asarray(self.model.user_codes(history, self.weights, self.codes).numpy())

    def __call__(self, history: Ragged) -> np.ndarray:
        """Scores (b, I), to be read only."""
        return self._scores(history)

    def _scored(self, history: Ragged) -> np.ndarray:
        return scoring.raised(self.user_codes(history) @ self.codes.numpy().T, history, self.raised)


class _Scorer:
    """Scores with evidence and a memory."""

    def __init__(
        self, scores: ranking.Scorer, plain: _Model, memory: EventMemory, settings: MemorySettings = GRID[0]
    ) -> None:
        self.scores, self.plain, self.memory, self.settings = scores, plain, memory, settings

    def __call__(self, history: Ragged) -> np.ndarray:
        """Scores (b, I)."""
        scores = self.scores(history)
        return self.memory.raise_scores(scores, self.plain.user_codes(history), self.settings, history)

    def terms(self, history: Ragged) -> dict[str, np.ndarray]:
        """The scores, and roots of votes by temperature."""
        scores, most = self.scores(history), max(one.neighbours for one in GRID)
        near, items = self.memory.neighbours(self.plain.user_codes(history), most)
        heats = {one.temperature for one in GRID}
        votes = {str(heat): vote_roots(near, items, scores.shape[1], heat, history) for heat in sorted(heats)}
        return {"scores": scores, **votes}


@torch.no_grad()
def positions(
    model: SetRecModel, histories: Ragged, weights: Mapping[str, float], first: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """User codes float32 (T, D) at every position of the histories and the items that followed, int64 (T,).

    ``first`` (one number per history): only positions whose item stands at this place of the history or later. All
    positions of a history are encoded in one pass.
    """
    codes, found, items = model.item_codes(), [], []
    asked_from = np.zeros(len(histories), dtype=np.int64) if first is None else first
    wanted = np.arange(len(histories.values)) - np.repeat(histories.offsets[:-1], histories.lengths)
    wanted = wanted >= np.repeat(asked_from, histories.lengths)
    # Batches of places in the flat array: a target's place tells whether it is asked for, and which item it is.
    marked = Ragged(np.arange(len(histories.values)), histories.offsets)
    for batch in one_pass(marked, model.max_items, TARGETS, np.random.default_rng(0)):
        asked = (batch.targets >= 0) & wanted[np.maximum(batch.targets, 0)]
        if not asked.any():
            continue
        read = torch.from_numpy(histories.values[batch.items]).long()
        own = [
            code[torch.from_numpy(asked)] for code in model.answer_codes(read, torch.from_numpy(batch.visible), codes)
        ]
        found.append(grounding.joined(model.tokens, own, weights).float().numpy())
        items.append(histories.values[batch.targets[asked]].astype(np.int64))
    return np.concatenate(found), np.concatenate(items)


@dataclass(frozen=True)
class _Events:
    """Memories: for each of two ``halves`` of validation one of the events known while it is ranked, and one of
    ``every`` event."""

    halves: list[EventMemory]
    every: EventMemory

    @classmethod
    def of(cls, plain: _Model, problem: Problem, others: Sequence[np.ndarray]) -> _Events:
        """``others``: for each half the users of the other one."""
        trained = positions(plain.model, problem.train, plain.weights)
        every = _memory(plain.model, trained)
        halves = [_memory(plain.model, trained)] * len(others) if problem.timed else []
        for users in others:
            histories = problem.histories.upto(VALID).take(users)
            later = positions(plain.model, histories, plain.weights, problem.train.lengths[users])
            every.add(*later)
            if not problem.timed:
                halves.append(_memory(plain.model, trained, later))
        return cls(halves, every)


def _memory(model: SetRecModel, *events: tuple[np.ndarray, np.ndarray]) -> EventMemory:
    memory = EventMemory(model.tokens.code_width)
    for part in events:
        memory.add(*part)
    return memory


def _choose(
    scorers: Sequence[_Scorer], cases: Sequence[ranking.Cases], problem: Problem
) -> tuple[int, list[dict[str, Any]]]:
    """Which of :data:`GRID` has the best validation metric over both halves, no memory where that is not above it by
    more than a standard error of the difference (over users); and all that were tried."""
    grid = [{"scores": 1.0, str(one.temperature): one.weight} for one in GRID]
    terms = [one.terms for one in scorers]
    (found,) = ndcg_of(cases, terms, grid, [everything(problem.items)], problem.goal)
    values = np.nanmean(found, axis=1)
    tried = [{**one.model_dump(), "ndcg@10": float(value)} for one, value in zip(GRID, values, strict=True)]
    best = int(np.argmax(values))
    gain = found[best] - found[0]
    return best if np.nanmean(gain) > standard_error(gain) else 0, tried
