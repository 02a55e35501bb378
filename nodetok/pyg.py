"""Edges of PyTorch Geometric's ``Data`` and ``HeteroData`` as arrays."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np

from setrec.errors import DataError

LENGTHS = ("edge_weight", "weight", "edge_attr")
"""Names of PyTorch Geometric's attributes for edge lengths."""


def as_array(given: Any) -> np.ndarray:
    """Convert a tensor of any type and layout, or a list."""
    if not hasattr(given, "detach"):
        return np.asarray(given)
    dense = given.detach().cpu()
    dense = dense.to_dense() if str(dense.layout) != "torch.strided" else dense
    return np.asarray(dense.float() if str(dense.dtype) == "torch.bfloat16" else dense)


def as_texts(given: Iterable[Any]) -> list[str]:
    """Return texts; missing ones (``None`` and NaN) are empty."""
    return ["" if text is None or text != text else str(text) for text in given]


def edge_arrays(data: Any, what: str, weight: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Return both ends, int (2, E), and lengths (E,), if any, of the edges of ``data``, which errors call ``what``.

    Raises:
        DataError: ``data`` has no edges, or an attribute that is not a length for each edge.
    """
    ends = getattr(data, "edge_index", None)
    if ends is None:
        raise DataError(f"{what} has no edge_index")
    if ends.dim() != 2 or len(ends) != 2:
        raise DataError(f"edge_index of {what} must have the shape (2, edges), not {tuple(ends.shape)}")
    names = LENGTHS if weight == "infer" else () if weight is None else (weight,)
    name = next((name for name in names if getattr(data, name, None) is not None), None)
    if name is None:
        return ends.cpu().numpy(), None
    given = as_array(getattr(data, name))
    if given.shape not in ((ends.shape[1],), (ends.shape[1], 1)) or given.dtype.kind not in "fiu":
        raise DataError(
            f"{name} of {what} is {given.dtype} {given.shape}, not one length for each of {ends.shape[1]} edges; "
            "weight=None leaves it out"
        )
    return ends.cpu().numpy(), given.reshape(-1)


def refuse_missing(what: str, weight: str | None, found: bool) -> None:
    """Raise a DataError if lengths that the caller names are not there."""
    if weight not in (None, "infer") and not found:
        raise DataError(f"{what} has no edge attribute '{weight}'; weight=None gives every edge the length 1")


def hetero_edges(data: Any, weight: str | None) -> tuple[list[Hashable], np.ndarray, np.ndarray | None]:
    """Return node ids (type, row), both ends, int (2, E), and lengths (E,), if any, of a ``HeteroData``.

    Raises:
        DataError: as :func:`edge_arrays`, or an edge ends outside the nodes of its type.
    """
    ids: list[Hashable] = []
    start, size = {}, {}
    for kind in data.node_types:
        start[kind], size[kind] = len(ids), int(data[kind].num_nodes or 0)
        ids += [(kind, row) for row in range(size[kind])]
    both, lengths = [np.empty((2, 0), dtype=np.int64)], []
    for kind in data.edge_types:
        ends, own = edge_arrays(data[kind], f"edge type {kind}", weight)
        for end, side in zip(ends, (kind[0], kind[2]), strict=True):
            if len(end) and (end.min() < 0 or end.max() >= size.get(side, 0)):
                raise DataError(f"edge type {kind} ends outside the {size.get(side, 0)} nodes of type '{side}'")
        both.append(ends + np.array([[start.get(kind[0], 0)], [start.get(kind[2], 0)]]))
        lengths.append(own)
    weights = None
    refuse_missing("the data", weight, any(own is not None for own in lengths) or not lengths)
    if any(own is not None for own in lengths):
        pairs = zip(both[1:], lengths, strict=True)
        weights = np.concatenate([np.ones(ends.shape[1]) if own is None else own for ends, own in pairs])
    return ids, np.concatenate(both, axis=1), weights
