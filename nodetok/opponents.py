"""What a graph language model has to beat at node classification: PyTorch Geometric's GCN and GraphSAGE, and an MLP."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, SAGEConv
from torch_geometric.utils import to_undirected

from setrec.errors import DataError
from setrec.settings import Settings

Kind = Literal["gcn", "sage", "mlp"]
CLASSIFIERS: dict[str, Kind] = {"GCN": "gcn", "GraphSAGE": "sage", "MLP on words": "mlp"}


class GnnSettings(Settings):
    """Two layers, trained on all nodes at once (defaults: Kipf and Welling 2017, with wider layers)."""

    width: int = Field(64, ge=1)
    dropout: float = Field(0.5, ge=0, lt=1)
    learning_rate: float = Field(0.01, gt=0)
    weight_decay: float = Field(5e-4, ge=0)
    epochs: int = Field(200, ge=1)
    patience: int = Field(100, ge=1)


class TwoLayers(nn.Module):
    """Two convolutions, or two linear layers, with dropout before each."""

    def __init__(self, kind: Kind, features: int, classes: int, settings: GnnSettings) -> None:
        super().__init__()
        layer = {"gcn": GCNConv, "sage": SAGEConv, "mlp": nn.Linear}[kind]
        self.first, self.second = layer(features, settings.width), layer(settings.width, classes)
        self.graph, self.dropout = kind != "mlp", settings.dropout

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Class logits (V, C) of features (V, F) and arcs (2, arcs)."""
        more = (edges,) if self.graph else ()
        x = F.dropout(x, self.dropout, self.training)
        x = F.dropout(F.relu(self.first(x, *more)), self.dropout, self.training)
        return self.second(x, *more)


def classify_nodes(
    kind: Kind,
    features: np.ndarray,
    edges: np.ndarray,
    labels: np.ndarray,
    train: np.ndarray,
    valid: np.ndarray,
    seed: int,
    settings: GnnSettings | None = None,
) -> np.ndarray:
    """Predicted class of every node, int64 (V,), by the weights of the best validation epoch.

    ``features`` (V, F), made to sum to 1 in each row; ``edges`` int (2, E), each undirected edge once; ``labels``
    int (V,), -1 where unknown; ``train`` and ``valid`` bool (V,).

    Raises:
        DataError: shapes that do not fit together, or a part without labels.
    """
    nodes = len(features)
    if features.ndim != 2 or edges.ndim != 2 or len(edges) != 2 or {len(labels), len(train), len(valid)} != {nodes}:
        raise DataError("features (V, F), edges (2, E), labels, train and valid (V,) do not fit together")
    train, valid = train & (labels >= 0), valid & (labels >= 0)
    if not (train.any() and valid.any()):
        raise DataError("a part of the split has no labelled node")
    s = settings or GnnSettings()
    torch.manual_seed(seed)
    x = torch.from_numpy(features / np.maximum(np.abs(features).sum(axis=1, keepdims=True), 1e-12)).float()
    arcs = to_undirected(torch.from_numpy(np.ascontiguousarray(edges)).long(), num_nodes=nodes)
    y, fitted = torch.from_numpy(labels), torch.from_numpy(train)
    model = TwoLayers(kind, features.shape[1], int(labels.max()) + 1, s)
    optimizer = torch.optim.Adam(
        [
            {"params": model.first.parameters(), "weight_decay": s.weight_decay},
            {"params": model.second.parameters(), "weight_decay": 0.0},
        ],
        lr=s.learning_rate,
    )
    best, best_epoch, found = -1.0, 0, np.zeros(nodes, dtype=np.int64)
    for epoch in range(s.epochs):
        model.train()
        loss = F.cross_entropy(model(x, arcs)[fitted], y[fitted])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            said = model(x, arcs).argmax(dim=1).numpy()
        right = float((said[valid] == labels[valid]).mean())
        if right > best:
            best, best_epoch, found = right, epoch, said
        if epoch - best_epoch >= s.patience:
            break
    return found
