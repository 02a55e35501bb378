"""What is known beside a model, added to its scores: how often one item followed another, and how alike texts are.

A model places an item by what it has learned of it. How often one item followed another, exactly, is more than it can
hold; and of an item that training never saw it has learned nothing, while the likeness of texts says as much of it as
of any other. With s a model's scores in the unit of log-probabilities, w = x P + damping x P^2 the walk of
``setrec.transitions`` over all events that are known, and c the likeness of texts to the history
(``pipelines.benchmark.likeness``), an item scores

    s_i + hops sqrt(w_i) + likeness c_i,

one that training never saw

    new_scores s_i + hops sqrt(w_i) + new_likeness c_i + new_level.

All of it is added before any softmax, so what two sources say of an item reinforces each other, where a mixture of
distributions would only take the louder (Hinton 2002: products of experts). Items of the history get nothing added.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from pipelines.benchmark.likeness import Likeness
from pipelines.benchmark.weighing import Part, everything, ndcg_of, standard_error
from setrec import ranking
from setrec.ragged import Ragged
from setrec.settings import Settings
from setrec.transitions import Transitions, TransitionSettings, transition_graph
from setrec.walk_choice import SHAPES

WALKS = tuple(TransitionSettings(**shape.model_dump()) for shape in SHAPES)
CHOICES = (*((number,) for number in range(len(WALKS))), tuple(range(len(WALKS))))
"""A walk alone, or the mean of what all say: they err apart, and none is best on every data set."""
HOPS = (0.0, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
LIKENESS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
UNSEEN = ((1.0, 0.0), (1.0, 2.5), (1.0, 5.0), (1.0, 10.0), (1.0, 20.0), (1.0, 40.0), (0.5, 40.0), (0.0, 20.0))
"""``new_scores`` and ``new_likeness``, up to a common factor."""
FACTORS = (0.25, 0.5, 1.0, 2.0)
LEVELS = (-12.0, -10.0, -8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)
ENOUGH = 200
"""Validation truths that training never saw, from which on these items get weights of their own."""


class EvidenceSettings(Settings):
    """The weights above; of the :data:`WALKS` with these numbers the mean of sqrt(w) is taken."""

    walks: tuple[int, ...] = CHOICES[0]
    hops: float = 0.0
    likeness: float = 0.0
    new_scores: float = 1.0
    new_likeness: float = 0.0
    new_level: float = 0.0


class Evidence:
    """A scorer with all of it added, itself a scorer.

    Args:
        scorer: scores in the unit of log-probabilities.
        known: histories that are walked on.
        alike: c above, ``None`` where items have no texts.
        trained: which items training saw, bool (I,).
    """

    def __init__(
        self, scorer: ranking.Scorer, known: Ragged, alike: Likeness | None, trained: np.ndarray, s: EvidenceSettings
    ) -> None:
        self.scorer, self.settings = scorer, s
        self._terms = _Terms(scorer, known, alike, trained, s.walks)

    def __call__(self, history: Ragged) -> np.ndarray:
        """Scores float32 (b, I)."""
        terms, weights = self._terms(history), _weights(self.settings, self._terms.alike is not None)
        return np.asarray(sum(np.float32(w) * terms[name] for name, w in weights.items()), dtype=np.float32)


def choose(
    scorer: ranking.Scorer, parts: Sequence[Part], alike: Likeness | None, trained: np.ndarray, history: str
) -> tuple[EvidenceSettings, list[dict[str, Any]]]:
    """The settings that suit the ``parts`` of validation, in the given history protocol, and all that were tried.

    ``walks``, ``hops`` and ``likeness`` are those with the best NDCG@10. For items that training never saw, where
    validation has enough of them, the ratio of weights is the one that orders them best among themselves; then of
    factors and levels whose NDCG@10 over all items is within a standard error (over users) of the best, the one that
    finds most of them: what is new is rarer right after training, where validation lies, than ever after.
    """
    with_text = alike is not None
    terms = [_Terms(scorer, part.known, alike, trained, range(len(WALKS))) for part in parts]
    every, new = everything(len(trained)), ~trained

    def values(grid: Sequence[EvidenceSettings], groups: Sequence[ranking.Group]) -> list[np.ndarray]:
        return ndcg_of([part.cases for part in parts], terms, [_weights(s, with_text) for s in grid], groups, history)

    grid = [
        EvidenceSettings(walks=walks, hops=hops, likeness=likeness, new_likeness=likeness)
        for walks, hops, likeness in product(CHOICES, HOPS, LIKENESS if with_text else (0.0,))
    ]
    (found,) = values(grid, [every])
    tried = _told(grid, np.nanmean(found, axis=1))
    best = grid[int(np.argmax(np.nanmean(found, axis=1)))]
    asked = sum(int(new[part.cases.truth.values].sum()) for part in parts)
    if not with_text or asked < ENOUGH:
        return best, tried
    grid = [best.model_copy(update=_new(*ratio)) for ratio in UNSEEN]
    (found,) = values(grid, [ranking.Group("new among new", new, new)])
    tried += _told(grid, np.nanmean(found, axis=1), "new")
    scores, like = UNSEEN[int(np.argmax(np.nanmean(found, axis=1)))]
    grid = [best] + [best.model_copy(update=_new(f * scores, f * like, level)) for f, level in product(FACTORS, LEVELS)]
    found, of_new = values(grid, [every, ranking.Group("new", new, every.candidates)])
    means = np.nanmean(found, axis=1)
    top = found[int(np.argmax(means))]
    error = np.array([standard_error(top - one) for one in found])
    good = means >= means.max() - error
    chosen = int(np.argmax(np.where(good, np.nanmean(of_new, axis=1), -1.0)))
    return grid[chosen], tried + _told(grid, means)


def _new(scores: float, likeness: float, level: float = 0.0) -> dict[str, float]:
    return {"new_scores": scores, "new_likeness": likeness, "new_level": level}


class _Terms:
    """What is summed, by name: (b, I) each, of the walks of the given numbers."""

    def __init__(
        self, scorer: ranking.Scorer, known: Ragged, alike: Likeness | None, trained: np.ndarray, walks: Sequence[int]
    ) -> None:
        self.scorer, self.alike, self.trained = scorer, alike, trained
        self.walks = {n: Transitions(transition_graph(known, len(trained), WALKS[n]), None, WALKS[n]) for n in walks}

    def __call__(self, history: Ragged) -> dict[str, np.ndarray]:
        held, new = (history.row_of_value, history.values), ~self.trained
        scores = self.scorer(history)
        found = dict(zip(("old", "new"), _parted(scores, new), strict=True))
        for number, walk in self.walks.items():
            kinds = walk.kinds(history)
            hops = kinds["hop 1"] + np.float32(walk.settings.damping) * kinds["hop 2"]
            hops[held] = 0.0
            found[f"hops {number}"] = np.sqrt(hops)
        if self.alike is not None:
            like = self.alike(history)
            like[held] = 0.0
            found |= zip(("likeness", "new likeness"), _parted(like, new), strict=True)
        found["level"] = np.broadcast_to(new.astype(np.float32), scores.shape).copy()
        return found


def _parted(values: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values (b, I) of the items that are not ``new``, and of those that are; zero elsewhere."""
    return np.where(new, np.float32(0), values), np.where(new, values, np.float32(0))


def _weights(s: EvidenceSettings, text: bool) -> dict[str, float]:
    """The weight of each term."""
    hops = {f"hops {number}": s.hops / len(s.walks) for number in s.walks}
    alike = {"likeness": s.likeness, "new likeness": s.new_likeness} if text else {}
    return {"old": 1.0, "new": s.new_scores, **hops, **alike, "level": s.new_level}


def _told(grid: Sequence[EvidenceSettings], values: np.ndarray, among: str = "all") -> list[dict[str, Any]]:
    """What was tried; ``ndcg@10`` is of all items, or of the ``new`` ones among themselves."""
    return [{**s.model_dump(), "among": among, "ndcg@10": float(value)} for s, value in zip(grid, values, strict=True)]
