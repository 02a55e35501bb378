"""Relation paths: rules mined from the paths between entities, and a model that weighs them.

A rule says that a path of up to three arcs implies a relation, e.g. "part of, then part of" implies "part of". Its
confidence is the share of paths for which it holds in the training triples, among heads that have the relation (the
partial completeness assumption of AMIE, Galárraga et al. 2013); a path never visits an entity twice, so that no triple
is evidence for itself (object identity, AnyBURL, Meilicke et al. 2019). Neighbours by text are relations like any
others: "similar text, then is a" is also a rule, and is the main evidence for entities with few triples.

Rules overlap, so confidences cannot be added up. :class:`PathModel` starts from them and trains one weight a rule under
the softmax over the entities reached.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from setrec.settings import Settings

MOST_BODIES = 1 << 24
"""Maximum number of path kinds; with more relations paths are shorter."""
WALKS_AT_ONCE = 3_000_000
NEAREST = (2, 8)
"""The first two neighbours by text are one relation, those up to the eighth another, the rest a third."""


class PathSettings(Settings):
    """Settings of the paths. ``length``: arcs of a path. ``fanout``: maximum number of triples followed from an inner
    entity of a path, sampled. ``neighbours``: number of neighbours by text per entity. ``support``: minimum number of
    times that a rule holds; ``smoothing`` is added to the number of times it could hold; rules of a confidence below
    ``least`` are left out. ``epochs``: passes over the training questions, if time allows."""

    length: int = Field(3, ge=1, le=3)
    fanout: int = Field(32, ge=1)
    neighbours: int = Field(24, ge=0)
    support: int = Field(2, ge=1)
    smoothing: float = Field(5.0, ge=0)
    least: float = Field(0.005, gt=0, lt=1)
    epochs: int = Field(6, ge=1)
    learning_rate: float = Field(0.03, gt=0)
    seed: int = 0


def ranges(begin: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the concatenated ranges begin[i] .. begin[i] + count[i] - 1, and the i of each number."""
    owner = np.repeat(np.arange(len(count)), count)
    return np.arange(len(owner)) + np.repeat(begin - (np.cumsum(count) - count), count), owner


@dataclass(eq=False)
class RelationArcs:
    """Labelled arcs by source: those of v are ``begin[v] .. begin[v + 1]``; label r + N is the inverse of label r."""

    begin: np.ndarray
    label: np.ndarray
    end: np.ndarray

    @classmethod
    def of(cls, source: np.ndarray, label: np.ndarray, end: np.ndarray, nodes: int) -> RelationArcs:
        """Build from arcs in any order; those of one source are sorted by label and end."""
        order = np.lexsort((end, label, source))
        return cls(np.searchsorted(source[order], np.arange(nodes + 1)), label[order], end[order])

    def source(self) -> np.ndarray:
        """Source of every arc."""
        return np.repeat(np.arange(len(self.begin) - 1), np.diff(self.begin))

    def drawn(self, most: int, always: np.ndarray, rng: np.random.Generator) -> RelationArcs:
        """Sample at most ``most`` arcs of each node; labels with ``always`` (bool by label) are kept completely."""
        shuffled = rng.permutation(len(self.end))
        shuffled = shuffled[np.argsort(self.source()[shuffled], kind="stable")]
        place = np.arange(len(shuffled)) - self.begin[self.source()[shuffled]]
        kept = np.sort(shuffled[(place < most) | always[self.label[shuffled]]])
        return RelationArcs(
            np.searchsorted(self.source()[kept], np.arange(len(self.begin))), self.label[kept], self.end[kept]
        )


class Paths:
    """Enumerates the paths from entities. ``texts``: tables (V, k) of neighbours by text, nearest first."""

    def __init__(
        self, triples: np.ndarray, entities: int, relations: int, texts: Sequence[np.ndarray], s: PathSettings
    ) -> None:
        self.entities, self.labels, self.settings = entities, relations, s
        self.triples, self.texts = np.unique(triples, axis=0), list(texts)
        parts = [self.triples]
        for table in texts:
            # Nearest, near and further neighbours are separate relations.
            kind = self.labels + np.digitize(np.arange(table.shape[1]), NEAREST)
            own = np.repeat(np.arange(entities), table.shape[1])
            parts.append(np.stack([own, np.tile(kind, entities), table.ravel()], axis=1))
            self.labels += len(NEAREST) + 1
        head, label, tail = np.concatenate(parts).astype(np.int64).T
        self.of_text = np.tile(np.arange(self.labels) >= relations, 2)
        self.arcs = RelationArcs.of(
            np.concatenate([head, tail]), np.concatenate([label, label + self.labels]), np.concatenate([tail, head]),
            entities,
        )  # fmt: skip
        self.within = self.arcs.drawn(s.fanout, self.of_text, np.random.default_rng(s.seed))
        self.base = 2 * self.labels + 1
        self.length = max(n for n in range(1, s.length + 1) if n == 1 or self.base**n <= MOST_BODIES)
        self.bodies = self.base**self.length

    def label(self, relation: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """Return the arc label that leads from a question's entity to its answers, int64 (Q,)."""
        found: np.ndarray = relation + direction * self.labels
        return found

    def walk(self, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the distinct (position in ``starts``, path kind, end) of all paths, sorted by position, end and kind.

        Text relations are followed at most once, and not in paths of three arcs.
        """
        place, now, body = np.arange(len(starts)), starts, np.zeros(len(starts), dtype=np.int64)
        texts, visited, levels = np.zeros(len(starts), dtype=bool), np.empty((0, len(starts)), dtype=np.int64), []
        for step in range(self.length):
            arcs = self.within if step else self.arcs
            at, before = ranges(arcs.begin[now], np.diff(arcs.begin)[now])
            by_text = self.of_text[arcs.label[at]]
            good = ~(by_text & texts[before]) if step < 2 else ~(by_text | texts[before])
            visited = np.concatenate([visited, now[None]])
            good &= (visited[:, before] != arcs.end[at]).all(axis=0)
            at, before = at[good], before[good]
            place, now, body = place[before], arcs.end[at], body[before] * self.base + arcs.label[at] + 1
            texts, visited = texts[before] | by_text[good], visited[:, before]
            levels.append(np.unique((place * self.entities + now) * self.bodies + body))
        every = np.sort(np.concatenate(levels))
        pair, body = every // self.bodies, every % self.bodies
        return pair // self.entities, body, pair % self.entities

    def chunks(self, nodes: np.ndarray, times: np.ndarray | int = 1) -> list[np.ndarray]:
        """Split ``nodes`` into parts with about :data:`WALKS_AT_ONCE` paths; those of a node count ``times``."""
        count: np.ndarray = np.ones(self.entities)
        for step in range(self.length):
            arcs = self.arcs if step == self.length - 1 else self.within
            count = np.bincount(arcs.source(), count[arcs.end], minlength=self.entities)
        part = (np.cumsum(count[nodes] * times) // WALKS_AT_ONCE).astype(np.int64)
        return np.split(nodes, np.flatnonzero(np.diff(part)) + 1)


@dataclass(frozen=True, eq=False)
class Rules:
    """Rules: ``keys``, int64 ascending, are label times the number of bodies plus the body; ``confidence`` of each."""

    keys: np.ndarray
    confidence: np.ndarray

    @classmethod
    def mine(cls, paths: Paths, s: PathSettings, seconds: float = float("inf")) -> Rules:
        """Mine rules from all entities in random order, or from as many as ``seconds`` of CPU time allow."""
        began, counts = time.process_time(), [_Counts(), _Counts()]
        for starts in paths.chunks(np.random.default_rng(s.seed).permutation(paths.entities)):
            _count(paths, starts, *counts)
            if time.process_time() - began > seconds:
                break
        (keys, held), (asked, could) = (each.merged() for each in counts)
        confidence = held / (could[np.searchsorted(asked, keys)] + s.smoothing)
        kept = (held >= s.support) & (confidence >= s.least)
        return cls(keys[kept], confidence[kept])

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Return the position of each key, or -1."""
        if not len(self.keys):
            return np.full(len(keys), -1)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1)


class _Counts:
    def __init__(self) -> None:
        self.keys: list[np.ndarray] = []
        self.counts: list[np.ndarray] = []

    def add(self, keys: np.ndarray, weights: np.ndarray | None = None) -> None:
        unique, where = np.unique(keys, return_inverse=True)
        self.keys.append(unique)
        self.counts.append(np.bincount(where.ravel(), weights, minlength=len(unique)))

    def merged(self) -> tuple[np.ndarray, np.ndarray]:
        total = _Counts()
        total.add(np.concatenate(self.keys), np.concatenate(self.counts))
        return total.keys[0], total.counts[0]


def _count(paths: Paths, starts: np.ndarray, held: _Counts, could: _Counts) -> None:
    """Add to ``held`` the pairs joined by a path and a triple, by label and body, and to ``could`` the pairs joined by
    a path, by each label of its start and body."""
    place, body, end = paths.walk(starts)
    arcs = paths.arcs
    at, owner = ranges(arcs.begin[starts], np.diff(arcs.begin)[starts])
    known = ~paths.of_text[arcs.label[at]]
    at, owner = at[known], owner[known]
    pair = owner * paths.entities + arcs.end[at]
    order = np.argsort(pair, kind="stable")
    pair, label = pair[order], arcs.label[at][order]
    low, high = (np.searchsorted(pair, place * paths.entities + end, side) for side in ("left", "right"))
    hit, which = ranges(low, high - low)
    # The triple itself is a path of one arc, but not evidence.
    other = body[which] != label[hit] + 1
    held.add(label[hit][other] * paths.bodies + body[which][other])
    joined, count = np.unique(place * paths.bodies + body, return_counts=True)
    has = np.unique(owner * 2 * paths.labels + arcs.label[at])
    begin = np.searchsorted(has // (2 * paths.labels), np.arange(len(starts) + 1))
    start = joined // paths.bodies
    hit, which = ranges(begin[start], np.diff(begin)[start])
    could.add(has[hit] % (2 * paths.labels) * paths.bodies + (joined % paths.bodies)[which], count[which])


@dataclass(frozen=True, eq=False)
class Reached:
    """Entities reached by paths from questions: pair p, ascending, is entity ``end[p]`` for question ``question[p]``;
    in entry e rule ``rule[e]`` reaches pair ``pair[e]``."""

    question: np.ndarray
    end: np.ndarray
    pair: np.ndarray
    rule: np.ndarray


class PathModel(nn.Module):
    """Scores of the entities that paths reach: a weight for each rule, and by relation one for the entity's frequency
    as an answer and one for the similarity of texts. ``vectors`` (V, w): rows of length 1, or ``None``."""

    def __init__(self, paths: Paths, rules: Rules, vectors: np.ndarray | None) -> None:
        super().__init__()
        self.paths, self.rules = paths, rules
        self.vectors = None if vectors is None else torch.from_numpy(np.asarray(vectors))
        self.weight = nn.Parameter(torch.from_numpy(-np.log1p(-np.minimum(rules.confidence, 0.99))).float())
        self.by_label = nn.Parameter(torch.zeros(2 * paths.labels, 2))
        self.beyond = nn.Parameter(torch.zeros(2 * paths.labels))
        labels, ends = paths.arcs.label, paths.arcs.end
        self.frequency = _Counts()
        self.frequency.add(labels[~paths.of_text[labels]] * paths.entities + ends[~paths.of_text[labels]])

    def reached(self, known: np.ndarray, label: np.ndarray) -> Iterator[tuple[np.ndarray, Reached]]:
        """Yield, part by part, the positions of questions and the entities reached from them, numbered within the
        part."""
        nodes, where = np.unique(known, return_inverse=True)
        by_node = np.argsort(where, kind="stable")
        begin = np.searchsorted(where[by_node], np.arange(len(nodes) + 1))
        done = 0
        for part in self.paths.chunks(nodes, np.diff(begin)):
            place, body, end = self.paths.walk(part)
            positions = by_node[begin[done] : begin[done + len(part)]]
            first = np.searchsorted(place, np.arange(len(part) + 1))
            node = where[positions] - done
            at, question = ranges(first[node], np.diff(first)[node])
            rule = self.rules.find(label[positions][question] * self.paths.bodies + body[at])
            at, question, rule = at[rule >= 0], question[rule >= 0], rule[rule >= 0]
            pairs, pair = np.unique(question * self.paths.entities + end[at], return_inverse=True)
            part_reached = Reached(pairs // self.paths.entities, pairs % self.paths.entities, pair.ravel(), rule)
            yield positions, part_reached
            done += len(part)

    def forward(self, reached: Reached, known: np.ndarray, label: np.ndarray, own: np.ndarray | None = None) -> Tensor:
        """Return the score of each pair; ``own`` marks training answers, which are excluded from their own
        frequency."""
        score = torch.zeros(len(reached.end)).index_add(
            0, torch.from_numpy(reached.pair), self.weight[torch.from_numpy(reached.rule)]
        )
        of = label[reached.question]
        keys = self.frequency.keys[0]
        key = of * self.paths.entities + reached.end
        at = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
        count = np.where(keys[at] == key, self.frequency.counts[0][at], 0.0)
        count = count if own is None else np.maximum(count - own, 0.0)
        weights = self.by_label[torch.from_numpy(of)]
        score = score + weights[:, 0] * torch.from_numpy(np.log1p(count)).float()
        if self.vectors is not None:
            a, b = (self.vectors[torch.from_numpy(rows)] for rows in (known[reached.question], reached.end))
            score = score + weights[:, 1] * (a * b).sum(dim=1)
        return score

    def train_weights(self, s: PathSettings, seconds: float) -> None:
        """Train the weights on the questions of the training triples, for at most ``seconds`` of CPU time."""
        began, rng = time.process_time(), np.random.default_rng([s.seed, 1])
        optimizer = torch.optim.Adam(self.parameters(), lr=s.learning_rate)
        for epoch in range(s.epochs):
            parts = np.array_split(rng.permutation(self.paths.entities), max(1, self.paths.entities // 500))
            for number, starts in enumerate(parts):
                self._step(starts, optimizer)
                over = max((time.process_time() - began) / seconds, (epoch + (number + 1) / len(parts)) / s.epochs)
                for group in optimizer.param_groups:
                    group["lr"] = s.learning_rate * max(0.05, 1 - over)
                if over >= 1:
                    return

    def _step(self, starts: np.ndarray, optimizer: torch.optim.Optimizer) -> None:
        """Take a step on all questions about the entities ``starts``."""
        arcs, labels = self.paths.arcs, 2 * self.paths.labels
        at, owner = ranges(arcs.begin[starts], np.diff(arcs.begin)[starts])
        known = ~self.paths.of_text[arcs.label[at]]
        at, owner = at[known], owner[known]
        if not len(at):
            return
        distinct, question = np.unique(owner * labels + arcs.label[at], return_inverse=True)
        known_end, label = starts[distinct // labels], distinct % labels
        answers = np.unique(question.ravel() * self.paths.entities + arcs.end[at])
        for part, reached in self.reached(known_end, label):
            loss = self._loss(part, reached, known_end, label, answers)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    def _loss(
        self, part: np.ndarray, reached: Reached, known: np.ndarray, label: np.ndarray, answers: np.ndarray
    ) -> Tensor:
        """Return the mean cross-entropy of reached answers against wrong reached entities and the unreached ones."""
        key = part[reached.question] * self.paths.entities + reached.end
        at = np.minimum(np.searchsorted(answers, key), len(answers) - 1)
        right = answers[at] == key
        score: Tensor = self(reached, known[part], label[part], right)
        question, beyond = torch.from_numpy(reached.question), self.beyond[torch.from_numpy(label[part])]
        top = beyond.detach().scatter_reduce(0, question, score.detach(), "amax")
        wrong = torch.from_numpy(~right)
        mass = torch.exp(beyond - top).index_add(0, question[wrong], torch.exp(score - top[question])[wrong])
        own, of = score[~wrong], question[~wrong]
        total = torch.logaddexp(mass[of].log() + top[of], own)
        return (total - own).mean() if len(own) else 0.0 * score.sum() + 0.0 * beyond.sum()

    @torch.no_grad()
    def scores(self, known: np.ndarray, label: np.ndarray) -> np.ndarray:
        """Return log probabilities, float32 (Q, V); unreached entities share the remaining mass evenly."""
        V = self.paths.entities
        out = np.empty((len(known), V), dtype=np.float32)
        for part, reached in self.reached(known, label):
            score = self(reached, known[part], label[part]).numpy()
            beyond = self.beyond.numpy()[label[part]] - np.log(V)
            out[part] = beyond[:, None]
            at = part[reached.question], reached.end
            out[at] = np.logaddexp(score, out[at])
            out[part] -= torch.logsumexp(torch.from_numpy(out[part]), dim=1, keepdim=True).numpy()
        return out
