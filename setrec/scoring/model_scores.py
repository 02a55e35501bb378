"""The trained model as a term of the hybrid score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from setrec.data.events import read
from setrec.ragged import Ragged

if TYPE_CHECKING:  # transformers takes longer to import than all else that serving needs
    from setrec.models.setrec_model import SetRecModel

ROWS = 64
"""Maximum number of histories in one pass of the model."""


class ModelTerm(Protocol):
    """Interface of a model in a hybrid score."""

    @property
    def repeat_bias(self) -> float:
        """Number added to the score of an item of the history."""
        ...

    def dense(self, history: Ragged) -> np.ndarray:
        """Return scores of all items, a new array float32 (b, I), without the repeat bias."""
        ...

    def parts(self, history: Ragged, rows: Ragged) -> dict[str, np.ndarray]:
        """Return the scores of ``rows`` (one row of items per history) by kind of slot, float64, one per item; their
        sum is the score without the repeat bias."""
        ...


class ModelScores:
    """Scores of a model with ``weights`` of its slot kinds: inner products of folded codes. The user codes of the
    latest histories are cached, so that several terms cost one forward pass.
    """

    def __init__(self, model: SetRecModel, weights: Mapping[str, float], codes: torch.Tensor | None = None) -> None:
        self.model, self.weights = model.eval(), dict(weights)
        self.codes = model.item_codes() if codes is None else codes
        self.repeat_bias = model.repeat_bias(self.weights)
        self._kept: tuple[Ragged, torch.Tensor] | None = None

    @torch.no_grad()
    def user_codes(self, history: Ragged) -> torch.Tensor:
        """Return folded user codes, float32 (b, D)."""
        if self._kept is None or self._kept[0] is not history:
            self._kept = history, self._user_codes(read(history))
        return self._kept[1]

    def _user_codes(self, history: Ragged) -> torch.Tensor:
        # A pass is padded to its longest history; rows of similar length waste little.
        order = np.argsort(history.lengths, kind="stable")
        passes = np.array_split(order, max(1, -(-len(order) // ROWS)))
        codes = [self.model.user_codes(history.take(rows), self.weights, self.codes) for rows in passes]
        return torch.cat(codes)[torch.from_numpy(np.argsort(order))]

    def dense(self, history: Ragged) -> np.ndarray:
        """See :class:`ModelTerm`."""
        return np.asarray((self.user_codes(history) @ self.codes.T).cpu().numpy())

    def of_kinds(self, history: Ragged, kinds: Sequence[str]) -> np.ndarray:
        """Return the part of the scores of all items that adjacent ``kinds`` of slots add, float32 (b, I). Items of the
        history include the repeat bias of these kinds."""
        columns = slice(self.model.code_columns[kinds[0]][0], self.model.code_columns[kinds[-1]][1])
        scores = (self.user_codes(history)[:, columns] @ self.codes[:, columns].T).cpu().numpy()
        alone = {kind: weight * (kind in kinds) for kind, weight in self.weights.items()}
        return add_repeat_bias(scores, history, self.model.repeat_bias(alone))

    def by_kind(self, history: Ragged) -> dict[str, np.ndarray]:
        """Return scores of all items by slot kind, float32 (b, I) each, from one forward pass: every weighting of the
        kinds is a sum of these. Items of the history include their repeat bias."""
        return {kind: self.of_kinds(history, (kind,)) for kind in self.model.code_columns}

    def parts(self, history: Ragged, rows: Ragged) -> dict[str, np.ndarray]:
        """See :class:`ModelTerm`."""
        user = self.user_codes(history).double()[torch.from_numpy(rows.row_of_value)]
        products = (user * self.codes[torch.from_numpy(rows.values).long()].double()).cpu().numpy()
        return {kind: products[:, a:b].sum(axis=1) for kind, (a, b) in self.model.code_columns.items()}


def model_scorer(model: SetRecModel, weights: Mapping[str, float] | None = None) -> ModelOnly:
    """Return a scorer of the model alone, with equal weights of all slot kinds by default."""
    return ModelOnly(ModelScores(model, weights or dict.fromkeys(model.kinds, 1.0)))


class ModelOnly:
    """Scorer of a model term with its repeat bias."""

    def __init__(self, term: ModelTerm) -> None:
        self.term = term

    def __call__(self, history: Ragged) -> np.ndarray:
        """Return scores, float32 (b, I)."""
        return add_repeat_bias(self.term.dense(history), history, self.term.repeat_bias)


def add_repeat_bias(scores: np.ndarray, history: Ragged, bias: float) -> np.ndarray:
    """Add ``bias`` in place, once to every item of a row's whole history, and return the scores (b, I)."""
    if bias:
        history = read(history)
        row = history.row_of_value
        pairs = np.unique(np.stack([row, history.values.astype(np.int64)]), axis=1)
        scores[pairs[0], pairs[1]] += bias
    return scores
