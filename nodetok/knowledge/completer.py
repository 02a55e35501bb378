"""A model for knowledge-graph completion: the scores of relation paths, ComplEx, similar entities, node tokens and
texts, added up with weights fitted to validation questions (:mod:`nodetok.knowledge.fusion`).

The paths (:mod:`nodetok.knowledge.paths`) and similar entities (:mod:`nodetok.knowledge.similar`) come first, then
ComplEx in the remaining time, as often as it allows with different seeds, because a mean of several is better than one
that is wider or trained for longer. A part without a gain on validation is not used.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pydantic import Field

from nodetok import kge
from nodetok.kge import KgeSettings
from nodetok.knowledge.fusion import Fusion, Sample
from nodetok.knowledge.neighbours import centred, lexical_neighbours, neighbours
from nodetok.knowledge.paths import PathModel, Paths, PathSettings, Rules
from nodetok.knowledge.similar import SimilarEntities
from setrec.settings import Settings

SHARES = {"mine": 0.15, "paths": 0.15, "all": 0.88}
"""Maximum shares of the time: of the rules, of their weights, and of everything but the fusion, which has the rest."""
START = {"paths": 0.3, "embedding": 1.0, "similar_entities": 0.3, "similar_answers": 0.3, "tokens": 0.1, "text": 10.0}
"""Parts and the weights from which the fit starts."""


class CompletionSettings(Settings):
    """Settings of the parts; ``members``: maximum number of embeddings, whose scores are averaged; ``sample``: number
    of validation questions to which the weights are fitted."""

    paths: PathSettings = PathSettings()
    embedding: KgeSettings = KgeSettings(kind="complex", epochs=100, patience=5)
    members: int = Field(8, ge=1)
    sample: int = 4_000


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
    """A trained model: its parts and the fusion of their scores."""

    paths: PathModel | None
    embedding: kge.KgeRanker | None
    tokens: torch.Tensor | None
    vectors: torch.Tensor | None
    relations: int
    similar: SimilarEntities | None = None
    fusion: Fusion | None = None
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
        if self.similar is not None:
            scores |= self.similar.scores(questions)
        if self.tokens is not None:
            scores["tokens"] = _log_similarity(self.tokens[torch.from_numpy(known)], self.tokens)
        if self.vectors is not None:
            scores["text"] = (self.vectors[torch.from_numpy(known)] @ self.vectors.T).numpy()
        return scores

    def scores(self, questions: np.ndarray) -> np.ndarray:
        """Return scores, float32 (Q, V), of all entities."""
        return self.mix(questions, self.parts(questions))

    def mix(self, questions: np.ndarray, parts: dict[str, np.ndarray], without: str = "") -> np.ndarray:
        """Return the fused scores, float32 (Q, V), of the parts, perhaps without one."""
        if self.fusion is None:
            return sum(np.float32(START[name]) * one for name, one in parts.items())  # type: ignore[return-value]
        return self.fusion.mix(parts, *self.traits(questions, parts), without)

    def traits(self, questions: np.ndarray, parts: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return the label (Q,) of each question, and on what its weights depend otherwise, float32 (Q, 3): logarithms
        of the known answers' and the entity's triples' number, and of the best path's probability."""
        label = questions[:, 1] + self.relations * questions[:, 2]
        traits = np.zeros((len(questions), 3), dtype=np.float32)
        if self.similar is not None:
            traits[:, 0], traits[:, 1] = np.log1p(self.similar.counts(questions[:, 0], label))
        if "paths" in parts:
            traits[:, 2] = parts["paths"].max(axis=1)
        return label, traits


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
    """Train for ``seconds`` of CPU time of this process, and fit the weights.

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
    say("similar entities")
    similar = SimilarEntities.fit(data.train, data.entities, data.relations, seed)
    say("embedding")
    left = max(1.0, SHARES["all"] * seconds - spent())
    ranker = kge.train_ensemble(
        data.train, data.entities, data.relations, data.valid, seed, s.embedding, s.members, seconds=left
    )
    made = Completer(
        model, ranker, None if data.tokens is None else torch.from_numpy(data.tokens),
        None if vectors is None else torch.from_numpy(vectors), data.relations, similar,
    )  # fmt: skip
    say("weights of the parts")
    value = choose_weights(made, data, s.sample, seed, 0.98 * seconds - spent())
    made.curve.append({"epoch": 1, "loss": 0.0, "value": value, "seconds": round(spent(), 2)})
    return made


def choose_weights(made: Completer, data: Knowledge, sample: int, seed: int, seconds: float = math.inf) -> float:
    """Fit the weights of the parts to ``sample`` validation questions, or as many as ``seconds`` of CPU time allow, and
    return the filtered mean reciprocal rank."""
    began = time.process_time()
    questions, answers, known = kge.held_out(data.train, data.valid, max(1, sample // 2), seed)
    order, made.fusion = np.random.default_rng(seed).permutation(len(questions)), None
    samples = list[Sample]()
    for rows in np.array_split(order, max(1, len(order) // 100)):
        parts = made.parts(questions[rows])
        total = made.mix(questions[rows], parts)
        traits = made.traits(questions[rows], parts)
        samples.append(Sample.of(parts, total, answers[rows], known.take(rows), *traits))
        if time.process_time() - began > seconds:
            break
    made.fusion = Fusion(list(parts), [START[name] for name in parts], 2 * data.relations, traits[1].shape[1])
    return made.fusion.fit(Sample.joined(samples))
