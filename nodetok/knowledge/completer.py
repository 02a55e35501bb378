"""A model for knowledge-graph completion: relation paths, ComplEx, node tokens and texts, with weights chosen on
validation.

    score(question, entity) = log p_paths + w_embedding * ComplEx + w_tokens * log <z, z'> + w_text * <x, x'>

The paths are trained first (:mod:`nodetok.knowledge.paths`), ComplEx in the remaining time, as often as it allows with
different seeds, because a mean of several is better than one wider or longer trained; the three weights are
chosen by coordinate search for the filtered mean reciprocal rank of validation questions, and are 0 for parts without a
gain.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pydantic import Field

from nodetok import kge
from nodetok.kge import KgeSettings
from nodetok.knowledge.neighbours import centred, lexical_neighbours, neighbours
from nodetok.knowledge.paths import PathModel, Paths, PathSettings, Rules
from setrec.settings import Settings

SHARES = {"mine": 0.15, "paths": 0.15}
"""Maximum share of the time; the embeddings have the rest, minus the search of the weights."""
GRID = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
COMPONENTS = ("embedding", "tokens", "text")
SCALE = {"embedding": 1.0, "tokens": 1.0, "text": 10.0}
"""Scales that make a weight of 1 roughly optimal for each part."""


class CompletionSettings(Settings):
    """Settings of the parts; ``members``: maximum number of embeddings, whose scores are averaged; ``sample``: number
    of validation questions on which the weights are chosen."""

    paths: PathSettings = PathSettings()
    embedding: KgeSettings = KgeSettings(kind="complex", epochs=100, patience=5)
    members: int = Field(8, ge=1)
    sample: int = 1_000


@dataclass(frozen=True, eq=False)
class Knowledge:
    """Training data: triples int64 (T, 3), and optionally text ``vectors`` (V, w), ``texts`` and node ``tokens`` (V,
    K)."""

    train: np.ndarray
    valid: np.ndarray
    entities: int
    relations: int
    vectors: np.ndarray | None = None
    texts: Sequence[str] | None = None
    tokens: np.ndarray | None = None


@dataclass(eq=False)
class Completer:
    """A trained model: its parts and their weights."""

    paths: PathModel | None
    embedding: kge.KgeRanker | None
    tokens: torch.Tensor | None
    vectors: torch.Tensor | None
    weights: dict[str, float] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)

    @torch.no_grad()
    def parts(self, questions: np.ndarray) -> dict[str, np.ndarray]:
        """Return scores, float32 (Q, V), of each part for questions (Q, 3)."""
        known, relation, direction = questions.T
        scores: dict[str, np.ndarray] = {}
        if self.paths is not None:
            scores["paths"] = self.paths.scores(known, self.paths.paths.label(relation, direction))
        if self.embedding is not None:
            scores["embedding"] = self.embedding.scores(questions)
        if self.tokens is not None:
            scores["tokens"] = _log_similarity(self.tokens[torch.from_numpy(known)], self.tokens)
        if self.vectors is not None:
            scores["text"] = (self.vectors[torch.from_numpy(known)] @ self.vectors.T).numpy()
        return scores

    def scores(self, questions: np.ndarray) -> np.ndarray:
        """Return scores, float32 (Q, V), of all entities."""
        return self.mix(self.parts(questions), self.weights)

    @staticmethod
    def mix(parts: dict[str, np.ndarray], weights: dict[str, float]) -> np.ndarray:
        """Return the weighted sum of the parts; paths have weight 1."""
        total = parts["paths"].copy() if "paths" in parts else np.zeros_like(next(iter(parts.values())))
        for name, weight in weights.items():
            if weight and name in parts:
                total += np.float32(weight * SCALE[name]) * parts[name]
        return total


def _log_similarity(own: torch.Tensor, tokens: torch.Tensor) -> np.ndarray:
    """Return log inner products, for positions the negative soft minimum of path lengths; nodes without a common anchor
    are farthest."""
    return torch.log((own @ tokens.T).clamp(min=1e-12)).numpy()


def train(
    data: Knowledge,
    seconds: float,
    seed: int,
    settings: CompletionSettings | None = None,
    on_step: Callable[[float, str], None] | None = None,
) -> Completer:
    """Train for ``seconds`` of CPU time of this process, and choose the weights.

    Raises:
        DataError: no triples, or triples outside the entities or relations.
    """
    s = settings or CompletionSettings()
    own = s.paths.model_copy(update={"seed": seed})
    began = time.process_time()

    def spent() -> float:
        return time.process_time() - began

    def say(what: str) -> None:
        if on_step is not None:
            on_step(min(1.0, spent() / seconds), what)

    say("neighbours by text")
    vectors = None if data.vectors is None else centred(data.vectors)
    tables = []
    if own.neighbours and vectors is not None:
        tables.append(neighbours(vectors, own.neighbours))
    elif own.neighbours and data.texts is not None:
        tables.append(lexical_neighbours(data.texts, own.neighbours))
    say("rules")
    walks = Paths(data.train, data.entities, data.relations, tables, own)
    rules = Rules.mine(walks, own, SHARES["mine"] * seconds)
    model = PathModel(walks, rules, vectors)
    say(f"weights of {len(rules.keys)} rules")
    model.train_weights(own, SHARES["paths"] * seconds)
    say("embedding")
    left = max(1.0, 0.92 * seconds - spent())
    ranker = kge.train_ensemble(
        data.train, data.entities, data.relations, data.valid, seed, s.embedding, s.members, seconds=left
    )
    made = Completer(
        model, ranker, None if data.tokens is None else torch.from_numpy(data.tokens),
        None if vectors is None else torch.from_numpy(vectors),
    )  # fmt: skip
    say("weights of the parts")
    value = choose_weights(made, data, s.sample, seed)
    made.curve.append({"epoch": 1, "loss": 0.0, "value": value, "seconds": round(spent(), 2)})
    return made


def choose_weights(made: Completer, data: Knowledge, sample: int, seed: int) -> float:
    """Set the weights with the best filtered mean reciprocal rank on validation questions, and return it."""
    questions, answers, known = kge.held_out(data.train, data.valid, max(1, sample // 2), seed)
    chunks = np.array_split(np.arange(len(questions)), max(1, len(questions) // 100))
    parts = [made.parts(questions[rows]) for rows in chunks]

    def value(weights: dict[str, float]) -> float:
        ranks = []
        for rows, own in zip(chunks, parts, strict=True):
            ranks.append(kge.filtered_ranks(made.mix(own, weights), answers[rows], known.take(rows)))
        return float((1 / np.concatenate(ranks)).mean())

    weights = dict.fromkeys((name for name in COMPONENTS if name in parts[0]), 0.0)
    best = value(weights)
    for _ in range(2):
        for name in weights:
            for weight in GRID:
                candidate = value({**weights, name: weight})
                if candidate > best:
                    best, weights = candidate, {**weights, name: weight}
    made.weights = weights
    return best
