"""A trained recommender as a scorer for ``setrec.ranking``: histories in, scores of the whole catalogue out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from setrec import grounding
from setrec.model import SetRecModel
from setrec.ragged import Ragged


def kind_scorer(model: SetRecModel) -> Callable[[Ragged], dict[str, np.ndarray]]:
    """Scores by slot kind, each (b, I): every weighting of the kinds is a weighted sum of these, from one pass."""
    model.eval()
    codes = model.item_codes()

    @torch.no_grad()
    def score(history: Ragged) -> dict[str, np.ndarray]:
        user, _ = grounding.fold(model.tokens, model.answers(history, codes), dict.fromkeys(model.kinds, 1.0))
        return {k: (user[:, a:b] @ codes[:, a:b].T).cpu().numpy() for k, (a, b) in model.code_columns.items()}

    return score


def scorer(model: SetRecModel, weights: Mapping[str, float]) -> Callable[[Ragged], np.ndarray]:
    """Scores (b, I) at the given weights of the slot kinds."""
    model.eval()
    codes = model.item_codes()

    @torch.no_grad()
    def score(history: Ragged) -> np.ndarray:
        return (model.user_codes(history, weights, codes) @ codes.T).cpu().numpy()

    return score


def weight_grid(kinds: tuple[str, ...], step: float = 0.1) -> list[dict[str, float]]:
    """Every weighting of the kinds that sums to one, in steps: SETRec's (1 - beta, beta) for two kinds."""
    parts = round(1 / step)

    def compositions(left: int, over: int) -> list[tuple[int, ...]]:
        if over == 1:
            return [(left,)]
        return [(first, *rest) for first in range(left + 1) for rest in compositions(left - first, over - 1)]

    return [dict(zip(kinds, (c / parts for c in combo), strict=True)) for combo in compositions(parts, len(kinds))]
