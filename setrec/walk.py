"""What followed what, added to a model's scores, by a walk that is small enough for a request.

A model places an item by what it has learned of it; how often one item followed another, exactly, is more than it can
hold. With P the graph of ``setrec.transitions``, x the start of the walk and W = P + damping P^2, an item's score rises
by

    weight sqrt(x W)_i,

and that of an item of the history by nothing. Where the walk does not come, a score is the model's; so the best k of
all items are among the model's best k and those the walk came to, and an index of the model's codes still finds them.

W is made beforehand, of the ``arcs`` most likely arcs of each item in P, and keeps so many of its own. A request then
reads a few rows of a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from pydantic import Field, FiniteFloat
from safetensors import safe_open
from safetensors.numpy import save_file

from setrec import ranking
from setrec.mapped import mapped
from setrec.ragged import Ragged
from setrec.transitions import WalkShape, start_weights, transition_graph

_ROWS = 1 << 16
_DENSE = 16
"""A table of all items is quicker than sorting, up to so many times as large as what is to be sorted."""


class WalkSettings(WalkShape):
    """A walk, the ``arcs`` of an item that are kept (8 bytes each), and its ``weight``."""

    arcs: int = Field(64, ge=1)
    weight: FiniteFloat = Field(0.0, ge=0)


@dataclass(frozen=True)
class Walk:
    """W above without its diagonal, which no history asks for: of item i the items ``arcs[i]`` with ``shares`` float32,
    one for every arc, ``settings.arcs`` at most."""

    arcs: Ragged
    shares: np.ndarray
    settings: WalkSettings

    @classmethod
    def of(cls, rows: Ragged, items: int, settings: WalkSettings) -> Walk:
        """The walk on what followed what in the histories ``rows``."""
        from setrec.walk_kernels import two_steps

        whole = transition_graph(rows, items, settings)
        # Sorting takes a multiple of the memory of what it sorts.
        parts = [largest(whole[start : start + _ROWS], settings.arcs) for start in range(0, items, _ROWS)]
        graph = sp.vstack(parts, format="csr")
        lengths, found, shares = two_steps(
            graph.indptr.astype(np.int64), graph.indices, graph.data, settings.damping, min(settings.arcs, items)
        )
        kept = np.arange(found.shape[1]) < lengths[:, None]
        return cls(Ragged(found[kept], np.concatenate([[0], np.cumsum(lengths)])), shares[kept], settings)

    def save(self, file: Path) -> None:
        """Write the arcs and, beside them, the settings."""
        tensors = {"offsets": self.arcs.offsets, "items": self.arcs.values, "shares": self.shares}
        save_file(tensors, file, {"settings": self.settings.model_dump_json()})

    @classmethod
    def load(cls, file: Path) -> Walk:
        """What :meth:`save` wrote, memory-mapped.

        Raises:
            KeyError, ValueError: the file holds something else.
        """
        with safe_open(file, "np") as content:
            told = content.metadata() or {}
        arcs = Ragged(mapped(file, "items", np.int32), mapped(file, "offsets", np.int64))
        walk = cls(arcs, mapped(file, "shares"), WalkSettings.model_validate_json(told.get("settings", "")))
        if walk._is_damaged():
            raise ValueError(f"{file}: no transitions of items")
        return walk

    def _is_damaged(self) -> bool:
        offsets, items, shares = self.arcs.offsets, self.arcs.values, self.shares
        return bool(
            offsets.ndim != 1
            or items.ndim != 1
            or shares.shape != items.shape
            or len(offsets) == 0
            or not offsets[0] == 0 <= offsets[-1] == len(items)
            or (offsets[:-1] > offsets[1:]).any()
            or np.diff(offsets).max(initial=0) > self.settings.arcs
            or items.min(initial=0) < 0
            or items.max(initial=-1) >= len(self)
            or not (np.isfinite(shares) & (shares > 0)).all()
        )

    def __len__(self) -> int:
        return len(self.arcs)

    def roots(self, history: Ragged) -> tuple[Ragged, np.ndarray]:
        """Where the walk comes to from each history, rows of items int64 in order, and sqrt(x W) there, float32; items
        of the history itself are left out. ``history`` holds rows of items."""
        near, weight = start_weights(history, self.settings)
        reached = self.arcs.take(near.values)
        shares = Ragged(self.shares, self.arcs.offsets).take(near.values).values
        key = np.repeat(near.row_of_value, reached.lengths) * len(self) + reached.values
        held = history.row_of_value * len(self) + history.values
        places, total = _summed(key, np.repeat(weight, reached.lengths) * shares, held, len(history) * len(self))
        row, item = np.divmod(places, len(self))
        offsets = np.searchsorted(row, np.arange(len(history) + 1))
        return Ragged(item, offsets), np.sqrt(total, dtype=np.float32)

    def table(self, history: Ragged) -> np.ndarray:
        """The same as a table, float32 (b, I)."""
        found, roots = self.roots(history)
        table = np.zeros((len(history), len(self)), dtype=np.float32)
        table[found.row_of_value, found.values] = roots
        return table


class Walked:
    """A scorer with a walk's part added, itself a scorer."""

    def __init__(self, scorer: ranking.Scorer, walk: Walk) -> None:
        self.scorer, self.walk = scorer, walk

    def __call__(self, history: Ragged) -> np.ndarray:
        """Scores float32 (b, I)."""
        return np.asarray(self.scorer(history) + np.float32(self.walk.settings.weight) * self.walk.table(history))


def largest(matrix: sp.csr_matrix, count: int) -> sp.csr_matrix:
    """A matrix with the ``count`` largest entries of every row alone; of equal ones those of the smaller columns."""
    lengths = np.diff(matrix.indptr)
    if lengths.max(initial=0) <= count:
        return matrix
    row = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((matrix.indices, -matrix.data, row))
    kept = np.sort(order[np.arange(len(order)) - matrix.indptr[row] < count])
    offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, count))])
    return sp.csr_matrix((matrix.data[kept], matrix.indices[kept], offsets), matrix.shape)


def _summed(keys: np.ndarray, values: np.ndarray, without: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct keys that are not in ``without``, all below ``size``, in order, and the sums of their values, which
    are above zero."""
    if size <= _DENSE * len(keys):
        sums = np.bincount(keys, values, minlength=size)
        sums[without] = 0.0
        places = np.flatnonzero(sums)
        return places, sums[places]
    places, at = np.unique(keys, return_inverse=True)
    kept = ~np.isin(places, without)
    return places[kept], np.bincount(at, values, minlength=len(places))[kept]
