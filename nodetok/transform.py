"""Node tokens for PyTorch Geometric, as a transform like ``AddLaplacianEigenvectorPE``.

data = AddAnchorDistances(64)(data)              # data.anchor_pe: (V, 64)
data = AddAnchorDistances(64, attr_name=None)(data)  # appended to data.x
"""

from __future__ import annotations

import torch
from torch_geometric.data import Data
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform
from torch_geometric.transforms.add_positional_encoding import add_node_attr

from nodetok.graph import Graph
from nodetok.positions import as_lengths
from nodetok.settings import AnchorSettings, DistanceSettings, Strategy, TokenizerSettings
from nodetok.tokenizer import NodeTokenizer
from setrec.errors import DataError


@functional_transform("add_anchor_distances")
class AddAnchorDistances(BaseTransform):  # type: ignore[misc]
    """Add each node's position relative to ``k`` anchors, exp(-tau d), float32 (V, k).

    The inner product of two rows decreases with their distance in the graph. A graph with fewer nodes has zeros in the
    remaining columns, so that batches of graphs have rows of one width.

    Args:
        k: Number of anchors.
        attr_name: Attribute of ``data`` to write; ``None`` appends to ``data.x``.
        strategy: How anchors are chosen, as in :class:`nodetok.anchors.AnchorSettings`.
        raw: Add the distances themselves instead, infinite without a path.
        weight: Edge attribute with lengths, as in :meth:`nodetok.graph.Graph.from_pyg`; ``None``, the default, counts
            hops.

    Raises:
        DataError: ``data`` has no ``edge_index``, no nodes, or ``weight`` is missing or not a length; ``HeteroData``.
    """

    def __init__(
        self, k: int, attr_name: str | None = "anchor_pe", *, strategy: Strategy = "coverage", raw: bool = False,
        weight: str | None = None,
    ) -> None:  # fmt: skip
        self.k, self.attr_name, self.raw, self.weight = k, attr_name, raw, weight
        self.settings = TokenizerSettings(
            anchors=AnchorSettings(count=k, strategy=strategy),
            distances=DistanceSettings(kind="hops" if weight is None else "weighted"),
        )

    def forward(self, data: Data) -> Data:
        """Return ``data`` with the new attribute, on the device of its edges."""
        if hasattr(data, "node_types"):
            raise DataError("HeteroData has no common nodes: convert it with to_homogeneous() first")
        tokenizer = NodeTokenizer.fit(Graph.from_pyg(data, weight=self.weight), self.settings)
        values = as_lengths(torch.from_numpy(tokenizer.table)) if self.raw else torch.from_numpy(tokenizer.transform())
        columns = torch.full((len(values), self.k), float("inf") if self.raw else 0.0)
        columns[:, : values.shape[1]] = values
        if self.attr_name is None and data.x is not None and not data.x.is_floating_point():
            data.x = data.x.float()  # positions would be cut off to whole numbers
        return add_node_attr(data, columns.to(data.edge_index.device), self.attr_name)
