"""The systems of the ranking table, as one process holds them: ours at any slot weights, and its opponents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

import torch

from pipelines.features import load_sasrec
from pipelines.runs import Run
from pipelines.system_names import ALONE, OURS, SASREC
from setrec import ranking, sasrec, scoring
from setrec.model import SetRecModel
from setrec.ragged import Ragged
from setrec.walk import Walked, WalkSettings
from setrec.walk_choice import NO_WALK, WalkChoice


class Systems:
    """A trained recommender and ``others``, ready to rank batches of cases in ``groups``; ``choice`` is of walks that
    the recommender may be given."""

    def __init__(
        self,
        model: SetRecModel,
        others: Mapping[str, ranking.Scorer],
        groups: Sequence[ranking.Group],
        choice: WalkChoice = NO_WALK,
    ) -> None:
        self.model, self.others, self.groups, self.choice = model.eval(), others, groups, choice
        self._ours: dict[tuple[tuple[str, float], ...], ranking.Scorer] = {}

    @classmethod
    def load(
        cls,
        root: Path,
        given: Mapping[str, ranking.Scorer],
        groups: Sequence[ranking.Group],
        choice: WalkChoice = NO_WALK,
        *,
        gpu: bool = False,
    ) -> Systems:
        """The run's own recommender (on the GPU, where there is one and ``gpu`` says so) and SASRec, after ``given``.

        Raises:
            ConfigError: the run has not been trained.
        """
        run = Run(root)
        model = SetRecModel.from_pretrained(run.require(run.model, "train"))
        if gpu:
            torch.nn.Module.to(model, "cuda")
        return cls(model, {**given, SASREC: sasrec.scorer(load_sasrec(run))}, groups, choice)

    @property
    def names(self) -> list[str]:
        """Every system, ours last."""
        return [*self.others, OURS]

    def scorer(self, name: str, weights: Mapping[str, float], walk: WalkSettings | None = None) -> ranking.Scorer:
        """The scorer of a system; ``weights`` by kind of slot are ours, and so is the walk with these settings."""
        if name not in (OURS, ALONE):
            return self.others[name]
        key = tuple(weights.items())
        if key not in self._ours:
            self._ours[key] = scoring.scorer(self.model, weights)
        if name == ALONE or walk is None:
            return self._ours[key]
        return Walked(self._ours[key], self.choice.walk(walk))

    def rank(
        self, history: Ragged, truth: Ragged, name: str, weights: Mapping[str, float], walk: WalkSettings | None = None
    ) -> ranking.Ranks:
        """Ranks of one batch's truths by one system."""
        return ranking.batch_ranks(self.scorer(name, weights, walk), history, truth, self.groups)

    def weigh_walks(self, history: Ragged, truth: Ragged, weights: Mapping[str, float]) -> list[Ragged]:
        """Ranks of one batch's truths by ours with every walk at every weight, as the choice's grid has them."""
        terms = partial(self.choice.terms, self.scorer(ALONE, weights))
        return ranking.weighted_ranks(terms, history, truth, self.choice.grid)

    def weigh(self, history: Ragged, truth: Ragged, grid: Sequence[Mapping[str, float]]) -> list[Ragged]:
        """Ranks of one batch's truths by ours, under every weighting of the grid, from one pass of the model."""
        return ranking.weighted_ranks(self._kinds, history, truth, grid)

    @cached_property
    def _kinds(self) -> ranking.KindScorer:
        return scoring.kind_scorer(self.model)
