"""The evidence without a model, as an entrant: what of ours needs no training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.benchmark import evidence
from pipelines.benchmark.entrant import Clock, Fitted, Settings
from pipelines.benchmark.evidence import Evidence
from pipelines.benchmark.problem import Problem
from pipelines.benchmark.weighing import halves
from setrec.catalog import VALID
from setrec.ragged import Ragged


class EvidenceAlone:
    """Walks and likeness of texts, weighed as beside a model, added to nothing."""

    name = "Evidence alone"
    grid: Sequence[Settings] = ({},)
    random = False

    def fit(self, problem: Problem, settings: Settings, seed: int, clock: Clock) -> Fitted:
        """See :class:`pipelines.benchmark.entrant.Entrant`."""

        def nothing(history: Ragged) -> np.ndarray:
            return np.zeros((len(history), problem.items), dtype=np.float32)

        alike = problem.likeness
        chosen, tried = evidence.choose(nothing, halves(problem)[0], alike, problem.trained, problem.goal)
        told = chosen.model_dump()
        valid = next(one["ndcg@10"] for one in reversed(tried) if one["among"] == "all" and told.items() <= one.items())
        scorer = Evidence(nothing, problem.histories.upto(VALID), alike, problem.trained, chosen)
        return Fitted(scorer, {**told, "tried": len(tried)}, valid=valid)
