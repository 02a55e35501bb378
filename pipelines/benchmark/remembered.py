"""SETRec with memories of events: its own training positions, and what test users did between training and test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch

from pipelines.benchmark.calibration import fit_temperature
from pipelines.benchmark.problem import Problem
from pipelines.benchmark.walked import Part, walked
from serving.memory import EventMemory, MemorySettings, mixed
from setrec import grounding, ranking, scoring
from setrec.batches import one_pass
from setrec.catalog import TRAIN, VALID
from setrec.model import SetRecModel
from setrec.ragged import Ragged

TARGETS = 4096
"""Positions encoded at a time."""
CALIBRATED = 2000
"""Validation users that the temperature of the scores is fitted on."""
GRID = [
    MemorySettings(temperature=temperature, weight=weight)
    for weight, temperature in ((0.0, 0.05), *product((0.05, 0.1, 0.2, 0.3, 0.5), (0.02, 0.05, 0.1)))
]
"""The first is no memory at all, which is taken where nothing helps."""


def remember(
    model: SetRecModel, weights: Mapping[str, float], problem: Problem
) -> tuple[ranking.Scorer, dict[str, Any]]:
    """The model with a memory of all training and validation events as a scorer, and what was chosen.

    Weight and temperature are chosen on validation users in two halves: while one half is ranked, the other half's
    validation events are in the memory, as at test time everybody's are.
    """
    # A vote is a distribution, so the model's scores have to mean one: at the temperature that suits validation best.
    heat = fit_temperature(scoring.scorer(model, weights), problem.valid.sample(CALIBRATED, 0))
    weights = {kind: weight / heat for kind, weight in weights.items()}
    events = _Events.of(model, weights, problem)
    chosen, tried = _choose(model, weights, events, problem.goal)
    told = {"temperature": heat, "memory": chosen.model_dump(), "memory_tried": tried, "events": len(events.every)}
    parts = [Part(half.cases, _Scorer(model, weights, half.memory, chosen), half.known) for half in events.halves]
    remembering = _Scorer(model, weights, events.every, chosen)
    scorer, walk = walked(remembering, problem.histories.upto(VALID), parts, problem.items, problem.goal)
    return scorer, told | walk


class _Scorer:
    """Scores with a memory."""

    def __init__(
        self, model: SetRecModel, weights: Mapping[str, float], memory: EventMemory, settings: MemorySettings
    ) -> None:
        self.model, self.weights, self.memory, self.settings = model, weights, memory, settings
        self.codes = model.item_codes()

    def __call__(self, history: Ragged) -> np.ndarray:
        """Log-probabilities (b, I)."""
        users = self.model.user_codes(history, self.weights, self.codes)
        scores = scoring.raised((users @ self.codes.T).numpy(), history, self.model.return_bias(self.weights))
        return self.memory.mix(scores, users.numpy(), self.settings, list(history))


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
class _Half:
    """Half of the validation users: their ``cases``, a ``memory`` of all events but their validation ones, and the
    histories ``known`` that it is of."""

    cases: ranking.Cases
    memory: EventMemory
    known: Ragged


@dataclass(frozen=True)
class _Events:
    """Two halves of validation, and a memory of ``every`` event."""

    halves: list[_Half]
    every: EventMemory

    @classmethod
    def of(cls, model: SetRecModel, weights: Mapping[str, float], problem: Problem) -> _Events:
        cases, halves = problem.valid, []
        half = np.random.default_rng(0).permutation(len(cases)) % 2 == 0
        trained = positions(model, problem.train, weights)
        every = _memory(model, trained)
        for ranked in (half, ~half):
            others, rows = cases.users[~ranked], np.flatnonzero(ranked)
            histories = problem.histories.upto(VALID).take(others)
            later = positions(model, histories, weights, problem.train.lengths[others])
            every.add(*later)
            part = ranking.Cases(cases.users[rows], cases.history.take(rows), cases.truth.take(rows))
            halves.append(_Half(part, _memory(model, trained, later), _known(problem, cases.users[rows])))
        return cls(halves, every)


def _memory(model: SetRecModel, *events: tuple[np.ndarray, np.ndarray]) -> EventMemory:
    memory = EventMemory(model.tokens.code_width)
    for part in events:
        memory.add(*part)
    return memory


def _known(problem: Problem, ranked: np.ndarray) -> Ragged:
    """All histories up to validation, those of users that are ``ranked`` up to training."""
    splits, items = problem.histories.splits, problem.histories.items
    own = np.isin(items.row_of_value, ranked)
    return items.where((splits == TRAIN) | ((splits == VALID) & ~own))


def _choose(
    model: SetRecModel, weights: Mapping[str, float], events: _Events, history: str
) -> tuple[MemorySettings, list[dict[str, Any]]]:
    """The settings of :data:`GRID` with the best validation metric over both halves, and all that were tried."""
    values, users = np.zeros(len(GRID)), sum(len(half.cases) for half in events.halves)
    for half in events.halves:
        share = len(half.cases) / max(1, users)
        values += np.array(_values(model, weights, half.memory, half.cases, history)) * share
    tried = [{**one.model_dump(), "ndcg@10": float(value)} for one, value in zip(GRID, values, strict=True)]
    return GRID[int(np.argmax(values))], tried


def _values(
    model: SetRecModel, weights: Mapping[str, float], memory: EventMemory, cases: ranking.Cases, history: str
) -> list[float]:
    """NDCG@10 of every setting of the grid, from one search."""
    codes, most = model.item_codes(), max(one.neighbours for one in GRID)
    every = np.ones(len(codes), dtype=bool)
    groups = [ranking.Group("all", every, every)]
    found: list[list[ranking.Ranks]] = [[] for _ in GRID]
    for start in range(0, len(cases), 256):
        read, truth = cases.batch(start, 256)
        users = model.user_codes(read, weights, codes)
        scores = scoring.raised((users @ codes.T).numpy(), read, model.return_bias(weights))
        near = memory.neighbours(users.numpy(), most)
        for number, one in enumerate(GRID):
            told = scores if one.weight == 0 else mixed(scores, *near, one, list(read))
            found[number].append(ranking.batch_ranks(lambda _, told=told: told, read, truth, groups))
    return [ranking.joined(cases.users, one, groups, (10,)).mean("ndcg@10", "all", history) for one in found]
