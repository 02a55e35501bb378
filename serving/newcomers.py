"""Codes for items that training never saw: what is known of their text, and a guess at the rest.

The collaborative columns of such an item are unknown. Zero there is no neutral choice: scores are inner products, a
trained item gathers most of its score in these columns, and a newcomer would come in below nearly all of the catalogue
(MovieLens-100K: recall@10 of unseen films 0.0005 where chance is 0.006, although *among* unseen films the ranking is
five times as good as chance). So they are estimated from the semantic columns by ridge regression over the trained
items. How popular an item is takes part as one more regressor, and a newcomer is placed at a stated quantile of it:
this is how much benefit of the doubt newcomers get.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field
from safetensors.numpy import load_file, save_file

from setrec.settings import Settings
from setrec.tokens import COLLABORATIVE, SEMANTIC

FILE = "newcomers.safetensors"


class NewcomerSettings(Settings):
    """How items without training interactions get collaborative columns; ``estimate: false`` leaves these at zero.

    ``ridge``: strength of the regression, as a share of the mean variance of the semantic columns. ``popularity``: the
    quantile, among trained items, of the popularity that a newcomer is taken to have. More of it shows newcomers more
    often, at the expense of the others. Chosen on validation (``benchmarks/bench_live_items.py``) as what finds most
    without showing newcomers more often than users chose them: recall@10 of unseen films 0.036, and 0.257 instead of
    0.272 of the others where an eighth of the catalogue is new. Among newcomers alone the order is no better for it.
    """

    estimate: bool = True
    ridge: float = Field(default=0.3, gt=0)
    popularity: float = Field(default=0.98, ge=0, le=1)


@dataclass(frozen=True)
class Estimate:
    """Collaborative columns (C,) from semantic ones (S,): ``weight`` float32 (S, C), ``bias`` float32 (C,)."""

    weight: np.ndarray
    bias: np.ndarray

    @classmethod
    def fit(
        cls, codes: np.ndarray, counts: np.ndarray, columns: Mapping[str, tuple[int, int]], s: NewcomerSettings
    ) -> Estimate | None:
        """From the trained items among codes float32 (I, D), those with ``counts`` int64 (I,) of at least one.

        ``None`` where nothing can be estimated: it is switched off, a kind of column is missing or no item is trained.
        """
        trained = counts > 0
        if not s.estimate or not {COLLABORATIVE, SEMANTIC} <= columns.keys() or not trained.any():
            return None
        known, wanted = _part(codes[trained], columns[SEMANTIC]), _part(codes[trained], columns[COLLABORATIVE])
        popularity = np.log1p(counts[trained].astype(np.float64))
        x = np.column_stack([known, popularity])
        centre, target = x.mean(axis=0), wanted.mean(axis=0)
        x = x - centre
        gram = x.T @ x
        penalty = max(s.ridge * float(np.trace(gram[:-1, :-1])) / known.shape[1], 1e-9)
        # Popularity is not shrunk: its effect is meant to come in whole. The small number is for when it never varies.
        gram[np.diag_indices_from(gram)] += np.r_[np.full(known.shape[1], penalty), 1e-9]
        solution = np.linalg.solve(gram, x.T @ (wanted - target))
        taken = np.quantile(popularity, s.popularity) - centre[-1]
        bias = target - centre[:-1] @ solution[:-1] + taken * solution[-1]
        return cls(solution[:-1].astype(np.float32), bias.astype(np.float32))

    def __call__(self, semantic: np.ndarray) -> np.ndarray:
        """Collaborative columns, float32 (rows, C), of semantic ones float32 (rows, S)."""
        return semantic @ self.weight + self.bias

    def complete(self, codes: np.ndarray, untrained: np.ndarray, columns: Mapping[str, tuple[int, int]]) -> None:
        """Write the estimate into ``codes`` float32 (I, D) where ``untrained`` bool (I,) items have zeros, in place."""
        (start, stop), (first, last) = columns[COLLABORATIVE], columns[SEMANTIC]
        rows = np.flatnonzero(untrained & ~codes[:, start:stop].any(axis=1))
        codes[rows, start:stop] = self(codes[rows, first:last])

    def save(self, directory: Path) -> None:
        """Write ``newcomers.safetensors``."""
        save_file({"weight": self.weight, "bias": self.bias}, directory / FILE)

    @classmethod
    def load(cls, directory: Path) -> Estimate | None:
        """Read what ``save`` wrote; ``None`` where there is nothing.

        Raises:
            KeyError, SafetensorError: the file is damaged.
        """
        if not (directory / FILE).exists():
            return None
        tensors = load_file(directory / FILE)
        return cls(tensors["weight"].astype(np.float32), tensors["bias"].astype(np.float32))


def _part(codes: np.ndarray, span: tuple[int, int]) -> np.ndarray:
    return codes[:, span[0] : span[1]].astype(np.float64)
