"""Item-to-item graphs and their scores, used for transitions between items and for text similarity.

An item graph holds for every item h some arcs to items i with a share G[h, i] > 0. A component reads it from the latest
items of a history, the item a steps back with weight decay^a, multiplied by the event's weight if events weigh
differently (the weights x_h add up to one), and scores

    c_i = (sum over h of x_h G[h, i])^(1 / power)

for every item i that is not in the history, and 0 for items of the history. Avoided items lower the scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import scipy.sparse as sp
from pydantic import Field, FiniteFloat, ValidationError
from safetensors import safe_open
from safetensors.numpy import save_file

from setrec.data.events import avoided, read
from setrec.mapped import mapped
from setrec.ragged import Ragged
from setrec.scoring.kernels.histories import read_arcs
from setrec.settings import Settings


class Reading(Settings):
    """Settings for reading a graph: the ``last`` items, ``decay`` per step back, and the ``power`` of the root."""

    last: int = Field(50, ge=1)
    decay: FiniteFloat = Field(1.0, gt=0, le=1)
    power: FiniteFloat = Field(2.0, gt=0)


class Arcs(Protocol):
    """Interface to the arcs of items, independent of their storage."""

    def __len__(self) -> int:
        """Number of items, I."""
        ...

    def take(self, rows: np.ndarray) -> tuple[Ragged, np.ndarray]:
        """Return the targets of the arcs of each of ``rows``, and their shares, float32, one per target."""
        ...


@dataclass(frozen=True)
class ItemGraph:
    """Arcs in memory, or memory-mapped: of item i to the items ``targets[i]`` with ``shares`` float32, one per arc."""

    targets: Ragged
    shares: np.ndarray

    @classmethod
    def of(cls, matrix: sp.csr_matrix) -> ItemGraph:
        """Build a graph from a matrix (I, I), without its diagonal, which is never read."""
        coo = matrix.tocoo()
        kept = (coo.row != coo.col) & (coo.data > 0)
        plain = sp.csr_matrix((coo.data[kept], (coo.row[kept], coo.col[kept])), matrix.shape)
        plain.sort_indices()
        return cls(Ragged(plain.indices.astype(np.int32), plain.indptr.astype(np.int64)), plain.data.astype(np.float32))

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: np.ndarray) -> tuple[Ragged, np.ndarray]:
        """See :class:`Arcs`."""
        return self.targets.take(rows), Ragged(self.shares, self.targets.offsets).take(rows).values

    def is_damaged(self) -> bool:
        """Return whether the arrays are not a valid graph; a file may hold anything."""
        offsets, items, shares = self.targets.offsets, self.targets.values, self.shares
        return bool(
            offsets.ndim != 1
            or items.ndim != 1
            or shares.shape != items.shape
            or len(offsets) == 0
            or not offsets[0] == 0 <= offsets[-1] == len(items)
            or (offsets[:-1] > offsets[1:]).any()
            or items.min(initial=0) < 0
            or items.max(initial=-1) >= len(self)
            or not (np.isfinite(shares) & (shares > 0)).all()
        )


@dataclass(frozen=True)
class GraphComponent:
    """A term of the hybrid score: a graph and the settings for reading it."""

    arcs: Arcs
    reading: Reading

    def entries(self, history: Ragged) -> tuple[Ragged, np.ndarray]:
        """See :class:`setrec.scoring.registry.Component`."""
        return without_avoided(self._entries, history, len(self.arcs))

    def _entries(self, history: Ragged) -> tuple[Ragged, np.ndarray]:
        near, weight = start_weights(history, self.reading)
        if isinstance(self.arcs, ItemGraph):
            rows, arcs, shares = near, self.arcs.targets, self.arcs.shares
        else:
            rows = Ragged(np.arange(len(near.values)), near.offsets)
            arcs, shares = self.arcs.take(near.values)
        places, total = read_arcs(rows, weight, arcs, shares, history, len(self.arcs))
        return places, root(total, self.reading.power)

    def save(self, file: Path) -> None:
        """Write the graph and its reading settings.

        Raises:
            TypeError: the arcs are not those of an :class:`ItemGraph`.
        """
        if not isinstance(self.arcs, ItemGraph):
            raise TypeError("only an item graph is saved")
        graph = self.arcs
        tensors = {"offsets": graph.targets.offsets, "items": graph.targets.values, "shares": graph.shares}
        save_file(tensors, file, {"reading": self.reading.model_dump_json()})

    @classmethod
    def load(cls, file: Path) -> GraphComponent:
        """Read what :meth:`save` wrote, memory-mapped.

        Raises:
            KeyError, ValueError: the file holds something else.
        """
        with safe_open(file, "np") as content:
            metadata = content.metadata() or {}
        graph = ItemGraph(
            Ragged(mapped(file, "items", np.int32), mapped(file, "offsets", np.int64)), mapped(file, "shares")
        )
        if graph.is_damaged():
            raise ValueError(f"{file}: not a table of arcs between items")
        try:
            return cls(graph, Reading.model_validate_json(metadata.get("reading", "")))
        except ValidationError as error:
            raise ValueError(f"{file}: {error.errors()[0]['msg']}") from error


def without_avoided(
    entries: Callable[[Ragged], tuple[Ragged, np.ndarray]], events: Ragged, items: int
) -> tuple[Ragged, np.ndarray]:
    """Return the ``entries`` of the events that are read, minus those of the avoided items; each part is read as if it
    were the whole history. Avoided items count by their average weight, but at most in proportion to the items read:
    one dislike does not outweigh fifty purchases."""
    against, known = avoided(events), read(events)
    places, values = entries(known)
    if against is None:
        return places, values
    whole = np.bincount(against.row_of_value, against.weights, len(against))
    weighs = np.bincount(known.row_of_value, known.weights, len(known))
    strength = whole / np.maximum(np.maximum(1, against.lengths), weighs)
    less, by = entries(against)
    keys = [one.row_of_value * items + one.values for one in (places, less)]
    distinct, at = np.unique(np.concatenate(keys), return_inverse=True)
    total = np.bincount(at, np.concatenate([values, -by * strength[less.row_of_value]]), len(distinct))
    offsets = np.searchsorted(distinct, np.arange(len(events) + 1) * items)
    return Ragged(distinct % items, offsets), total.astype(np.float32)


def start_weights(history: Ragged, reading: Reading) -> tuple[Ragged, np.ndarray]:
    """Return the last items of every history, and their weights x, float64, which add up to one per history."""
    age = np.repeat(history.offsets[1:], history.lengths) - 1 - np.arange(len(history.values))
    near = history.where(age < reading.last)
    weight = reading.decay ** age[age < reading.last].astype(np.float64)
    weight = weight if near.weights is None else weight * near.weights
    row = near.row_of_value
    return near, weight / np.bincount(row, weight, minlength=len(near))[row]


def root(total: np.ndarray, power: float) -> np.ndarray:
    """Return the values of a component, float32: the root of the sums over arcs."""
    values = np.sqrt(np.sqrt(total)) if power == 4 else np.sqrt(total) if power == 2 else total ** (1 / power)
    return np.asarray(values, dtype=np.float32)


def scatter(entries: Ragged, values: np.ndarray, items: int) -> np.ndarray:
    """Return entries as a table, float32 (rows, ``items``), zero elsewhere."""
    table = np.zeros((len(entries), items), dtype=np.float32)
    table[entries.row_of_value, entries.values] = values
    return table


def lookup(entries: Ragged, values: np.ndarray, rows: Ragged, items: int) -> np.ndarray:
    """Return values at ``rows`` (one row of items per history), one per item, zero where there is no entry."""
    if not len(entries.values):
        return np.zeros(len(rows.values), dtype=values.dtype)
    keys = entries.row_of_value * items + entries.values
    wanted = rows.row_of_value * items + rows.values
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], np.zeros((), values.dtype))


def largest(matrix: sp.csr_matrix, count: int) -> sp.csr_matrix:
    """Return a matrix with only the ``count`` largest entries of every row; ties go to the smaller column."""
    lengths = np.diff(matrix.indptr)
    if lengths.max(initial=0) <= count:
        return matrix
    row = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((matrix.indices, -matrix.data, row))
    kept = np.sort(order[np.arange(len(order)) - matrix.indptr[row] < count])
    offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, count))])
    return sp.csr_matrix((matrix.data[kept], matrix.indices[kept], offsets), matrix.shape)
