"""The systems of the ranking table, as one process holds them: ours at any slot weights, and its opponents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch

from pipelines.features import load_sasrec
from pipelines.runs import Run
from setrec import ranking, sasrec, scoring
from setrec.model import SetRecModel
from setrec.ragged import Ragged

OURS = "SETRec"
SASREC = "SASRec"


class Systems:
    """A trained recommender and ``others``, ready to rank batches of cases in ``groups``."""

    def __init__(
        self, model: SetRecModel, others: Mapping[str, ranking.Scorer], groups: Sequence[ranking.Group]
    ) -> None:
        self.model, self.others, self.groups = model.eval(), others, groups
        self._ours: dict[tuple[tuple[str, float], ...], ranking.Scorer] = {}

    @classmethod
    def load(
        cls, root: Path, given: Mapping[str, ranking.Scorer], groups: Sequence[ranking.Group], *, gpu: bool = False
    ) -> Systems:
        """The run's own recommender (on the GPU, where there is one and ``gpu`` says so) and SASRec, after ``given``.

        Raises:
            ConfigError: the run has not been trained.
        """
        run = Run(root)
        model = SetRecModel.from_pretrained(run.require(run.model, "train"))
        if gpu:
            torch.nn.Module.to(model, "cuda")
        return cls(model, {**given, SASREC: sasrec.scorer(load_sasrec(run))}, groups)

    @property
    def names(self) -> list[str]:
        """Every system, ours last."""
        return [*self.others, OURS]

    def scorer(self, name: str, weights: Mapping[str, float]) -> ranking.Scorer:
        """The scorer of a system; ``weights`` by kind of slot are ours."""
        if name != OURS:
            return self.others[name]
        key = tuple(weights.items())
        if key not in self._ours:
            self._ours[key] = scoring.scorer(self.model, weights)
        return self._ours[key]

    def rank(self, history: Ragged, truth: Ragged, name: str, weights: Mapping[str, float]) -> ranking.Ranks:
        """Ranks of one batch's truths by one system."""
        return ranking.batch_ranks(self.scorer(name, weights), history, truth, self.groups)

    def weigh(self, history: Ragged, truth: Ragged, grid: Sequence[Mapping[str, float]]) -> list[Ragged]:
        """Ranks of one batch's truths by ours, under every weighting of the grid, from one pass of the model."""
        return ranking.weighted_ranks(self._kinds, history, truth, grid)

    @cached_property
    def _kinds(self) -> ranking.KindScorer:
        return scoring.kind_scorer(self.model)
