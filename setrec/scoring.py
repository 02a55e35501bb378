"""A trained recommender as a scorer for ``setrec.ranking``: histories in, scores of the whole catalogue out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from setrec.model import SetRecModel
from setrec.ragged import Ragged


def kind_scorer(model: SetRecModel) -> Callable[[Ragged], dict[str, np.ndarray]]:
    """Scores by slot kind, each (b, I): every weighting of the kinds is a weighted sum of these, from one pass."""
    model.eval()
    codes = model.item_codes()

    @torch.no_grad()
    def score(history: Ragged) -> dict[str, np.ndarray]:
        user, found = model.user_codes(history, dict.fromkeys(model.kinds, 1.0), codes), {}
        for kind, (a, b) in model.code_columns.items():
            scores = (user[:, a:b] @ codes[:, a:b].T).cpu().numpy()
            alone = {other: float(other == kind) for other in model.kinds}
            found[kind] = raised(scores, history, model.return_bias(alone))
        return found

    return score


def scorer(model: SetRecModel, weights: Mapping[str, float]) -> Callable[[Ragged], np.ndarray]:
    """Scores (b, I) at the given weights of the slot kinds."""
    model.eval()
    codes = model.item_codes()

    @torch.no_grad()
    def score(history: Ragged) -> np.ndarray:
        scores = (model.user_codes(history, weights, codes) @ codes.T).cpu().numpy()
        return raised(scores, history, model.return_bias(weights))

    return score


def raised(scores: np.ndarray, history: Ragged, by: float) -> np.ndarray:
    """Scores (b, I), changed in place: those of the items in each row's history raised by a number."""
    if by:
        row = np.repeat(np.arange(len(history)), history.lengths)
        pairs = np.unique(np.stack([row, history.values]), axis=1)
        scores[pairs[0], pairs[1]] += by
    return scores


def weight_grid(kinds: tuple[str, ...], step: float = 0.1) -> list[dict[str, float]]:
    """Every weighting of the kinds that sums to one, in steps: SETRec's (1 - beta, beta) for two kinds."""
    parts = round(1 / step)

    def compositions(left: int, over: int) -> list[tuple[int, ...]]:
        if over == 1:
            return [(left,)]
        return [(first, *rest) for first in range(left + 1) for rest in compositions(left - first, over - 1)]

    return [dict(zip(kinds, (c / parts for c in combo), strict=True)) for combo in compositions(parts, len(kinds))]
