"""Codes of an approximate index when items without training interactions have separate weights.

Their score is model * <q, c> + level: an inner product of (model * c, level) with (q, 1). Other items have (c, 0).
A column of zeros keeps the width even, for quantisers that take two numbers at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from setrec.mapped import mapped
from setrec.scoring.hybrid import NewItemWeights

FILE = "index_codes.safetensors"


@dataclass(frozen=True)
class IndexCodes:
    """The transformation of codes at ``weights``; the identity for trivial ones."""

    weights: NewItemWeights

    @property
    def is_trivial(self) -> bool:
        """Whether the transformation is the identity."""
        return self.weights.model == 1 and self.weights.level == 0

    def of_items(self, codes: np.ndarray, new: np.ndarray) -> np.ndarray:
        """Return index codes, float32 (rows, W), of codes float32 (rows, D) with flags ``new`` bool (rows,)."""
        scale = np.where(new, np.float32(self.weights.model), np.float32(1))
        level = np.where(new, np.float32(self.weights.level), np.float32(0))
        return _even(np.concatenate([codes * scale[:, None], level[:, None]], axis=1))

    def of_users(self, users: np.ndarray) -> np.ndarray:
        """Return queries, float32 (B, W), of user codes float32 (B, D)."""
        return _even(np.concatenate([users, np.ones((len(users), 1), np.float32)], axis=1))

    def save(self, folder: Path, codes: np.ndarray) -> None:
        """Write ``index_codes.safetensors``."""
        save_file({"codes": codes}, folder / FILE)


def load_index_codes(folder: Path, codes: np.ndarray) -> np.ndarray:
    """Return the codes in the index of a bundle: those of its own file, memory-mapped, or the ``codes`` themselves."""
    return mapped(folder / FILE, "codes") if (folder / FILE).exists() else codes


def _even(rows: np.ndarray) -> np.ndarray:
    return np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
