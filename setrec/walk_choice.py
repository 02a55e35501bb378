"""Which walk is added to a model's scores, and how much of it: chosen on validation cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from setrec import ranking
from setrec.ragged import Ragged
from setrec.transitions import WalkShape
from setrec.walk import Walk, WalkSettings

WEIGHTS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
"""What is tried. A model's scores are logits at some temperature, which no one knows beforehand."""
SHAPES = (
    WalkShape(reach=3, fade=0.5, shrink=3.0, last=50, decay=0.8, damping=0.5),
    WalkShape(reach=8, fade=0.8, shrink=3.0, last=50, decay=0.9, damping=0.5),
    WalkShape(reach=8, fade=0.8, backward=0.0, shrink=30.0, last=5, decay=0.5, damping=1.0),
)
"""Of a wider search (``setrec.transitions.GRID``) on validation parts of six splits, those that were best on one: the
first two where much of the history counts, the last where what comes next follows from the last few items."""
_MODEL = "model"


@dataclass(frozen=True)
class WalkChoice:
    """``walks``, one of which, or none, is added to the scores of one model."""

    walks: Sequence[Walk]

    @classmethod
    def of(cls, rows: Ragged, items: int) -> WalkChoice:
        """A walk of each of :data:`SHAPES` on what followed what in the histories ``rows``."""
        return cls([Walk.of(rows, items, WalkSettings(**shape.model_dump())) for shape in SHAPES])

    @property
    def grid(self) -> list[dict[str, float]]:
        """What is tried: weights of the :meth:`terms`. The first is the model alone."""
        tried = [{_MODEL: 1.0, str(n): weight} for n in range(len(self.walks)) for weight in WEIGHTS]
        return [{_MODEL: 1.0, "0": 0.0}, *tried]

    def terms(self, scorer: ranking.Scorer, history: Ragged) -> dict[str, np.ndarray]:
        """What is summed to a score, float32 (b, I) each: the model's scores, and the roots of every walk."""
        return {_MODEL: scorer(history), **{str(n): walk.table(history) for n, walk in enumerate(self.walks)}}

    def settings(self, weights: Mapping[str, float]) -> WalkSettings:
        """What a weighting of the :attr:`grid` stands for."""
        ((number, weight),) = [(int(name), weight) for name, weight in weights.items() if name != _MODEL]
        return self.walks[number].settings.model_copy(update={"weight": weight})

    def told(self, tried: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows of :func:`setrec.ranking.best_weights`, weightings of the :attr:`grid`, in terms of settings."""
        return [{**self.settings(row["weights"]).model_dump(), "ndcg@10": row["ndcg@10"]} for row in tried]

    def walk(self, settings: WalkSettings) -> Walk:
        """The walk that ``settings`` stand for, with its weight."""
        same = settings.model_copy(update={"weight": 0.0})
        found = next(walk for walk in self.walks if walk.settings == same)
        return Walk(found.arcs, found.shares, settings)


NO_WALK = WalkChoice(())
