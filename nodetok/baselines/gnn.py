"""Baselines for node classification: PyTorch Geometric's GCN and GraphSAGE, and an MLP."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, SAGEConv
from torch_geometric.utils import to_torch_csr_tensor, to_undirected

from setrec.epochs import Epochs
from setrec.errors import ConfigError, DataError
from setrec.settings import Settings

Kind = Literal["gcn", "sage", "mlp"]
CLASSIFIERS: dict[str, Kind] = {"GCN": "gcn", "GraphSAGE": "sage", "MLP on words": "mlp"}
LAYERS: dict[str, Any] = {"gcn": GCNConv, "sage": SAGEConv, "mlp": nn.Linear}


class GnnSettings(Settings):
    """Two layers, trained on all nodes at once (defaults: Kipf and Welling 2017, with wider layers)."""

    width: int = Field(64, ge=1)
    dropout: float = Field(0.5, ge=0, lt=1)
    learning_rate: float = Field(0.01, gt=0)
    weight_decay: float = Field(5e-4, ge=0)
    epochs: int = Field(200, ge=1)
    patience: int = Field(100, ge=1)


class TwoLayers(nn.Module):
    """Two convolutions, or two linear layers, with dropout between; :class:`Words` drops features before them."""

    def __init__(self, kind: Kind, features: int, classes: int, settings: GnnSettings) -> None:
        super().__init__()
        layer = LAYERS[kind]
        self.first, self.second = layer(features, settings.width), layer(settings.width, classes)
        self.graph, self.dropout = kind != "mlp", settings.dropout

    def forward(self, x: Tensor, arcs: Tensor) -> Tensor:
        """Return class logits (V, C) from features (V, F) and the sparse adjacency (V, V)."""
        more = (arcs,) if self.graph else ()
        x = F.dropout(F.relu(self.first(x, *more)), self.dropout, self.training)
        logits: Tensor = self.second(x, *more)
        return logits


class Words:
    """Node features (V, F) with rows scaled to sum 1, and a fast dropout of their non-zero entries.

    Zeros stay zeros: only the others are drawn for, which on bags of words takes a hundredth of the time.
    """

    def __init__(self, features: np.ndarray, dropout: float) -> None:
        sums = np.maximum(np.abs(features).sum(axis=1, keepdims=True), 1e-12)
        self.whole, self.dropout = torch.from_numpy(features / sums).float(), dropout
        self._flat = self.whole.flatten()
        self._places = self._flat.nonzero().squeeze(1)
        self._values, self._dropped = self._flat[self._places], self._flat.clone()

    def dropped(self) -> Tensor:
        """Return features (V, F) after dropout; valid until the next call."""
        self._dropped[self._places] = F.dropout(self._values, self.dropout)
        return self._dropped.view_as(self.whole)


def classify_nodes(
    kind: Kind,
    features: np.ndarray,
    edges: np.ndarray,
    labels: np.ndarray,
    train: np.ndarray,
    valid: np.ndarray,
    seed: int,
    settings: GnnSettings | None = None,
    seconds: float = math.inf,
) -> np.ndarray:
    """Train a classifier and return the predicted class of every node, int64 (V,), by the weights of the best
    validation epoch.

    ``features`` (V, F); ``edges`` int (2, E), each undirected edge once; ``labels`` int (V,), -1 where unknown;
    ``train`` and ``valid`` bool (V,). Training ends after ``seconds`` of CPU time at the latest.

    Raises:
        ConfigError: an unknown kind.
        DataError: inconsistent shapes, edges to missing nodes, or a part without labels.
    """
    if kind not in LAYERS:
        raise ConfigError(f"unknown kind '{kind}' (known: {', '.join(LAYERS)})")
    _refuse_misfits(features, edges, labels, train, valid)
    train, valid = train & (labels >= 0), valid & (labels >= 0)
    if not (train.any() and valid.any()):
        raise DataError("a part of the split has no labelled node")
    s = settings or GnnSettings()
    # The library builds sparse matrices at every step; this keeps PyTorch from warning about unset invariant checks.
    with torch.sparse.check_sparse_tensor_invariants(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CS[RC] tensor support is in beta")
        return _predicted(kind, features, edges, labels, train, valid, seed, s, seconds)


def _predicted(
    kind: Kind,
    features: np.ndarray,
    edges: np.ndarray,
    labels: np.ndarray,
    train: np.ndarray,
    valid: np.ndarray,
    seed: int,
    s: GnnSettings,
    seconds: float,
) -> np.ndarray:
    torch.manual_seed(seed)
    words, arcs = Words(features, s.dropout), _adjacency(edges, len(features))
    y, fitted = torch.from_numpy(labels).long(), torch.from_numpy(train)
    model = TwoLayers(kind, features.shape[1], int(labels.max()) + 1, s)
    optimizer = _optimizer(model, s)

    @torch.no_grad()
    def predict() -> np.ndarray:
        model.eval()
        logits: Tensor = model(words.whole, arcs)
        return logits.argmax(dim=1).numpy()

    run = Epochs(model, s.epochs, s.patience, seconds)
    for _ in run:
        model.train()
        loss = F.cross_entropy(model(words.dropped(), arcs)[fitted], y[fitted])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.finish(float((predict()[valid] == labels[valid]).mean()))
    run.restore()
    return predict()


def _optimizer(model: TwoLayers, s: GnnSettings) -> torch.optim.Optimizer:
    """Return Adam with weight decay on the first layer only, as in the GCN paper."""
    decays = {"params": model.first.parameters(), "weight_decay": s.weight_decay}
    return torch.optim.Adam([decays, {"params": model.second.parameters(), "weight_decay": 0.0}], lr=s.learning_rate)


def _adjacency(edges: np.ndarray, nodes: int) -> Tensor:
    """Return the symmetric adjacency, sparse (V, V); with it the library multiplies instead of copying a row per
    arc."""
    arcs = to_undirected(torch.from_numpy(np.ascontiguousarray(edges)).long(), num_nodes=nodes)
    adjacency: Tensor = to_torch_csr_tensor(arcs, size=(nodes, nodes))
    return adjacency


def _refuse_misfits(
    features: np.ndarray, edges: np.ndarray, labels: np.ndarray, train: np.ndarray, valid: np.ndarray
) -> None:
    """Raise a DataError for inconsistent shapes or types, or edges to missing nodes."""
    if features.ndim != 2 or edges.ndim != 2 or len(edges) != 2:
        raise DataError(f"features (V, F) and edges (2, E) are expected, not {features.shape} and {edges.shape}")
    for name, given, kinds in (("labels", labels, "iu"), ("train", train, "b"), ("valid", valid, "b")):
        if given.shape != (len(features),) or given.dtype.kind not in kinds:
            raise DataError(f"{name}: {given.dtype} {given.shape} does not fit features {features.shape}")
    if edges.dtype.kind not in "iu" or (edges.size and (edges.min() < 0 or edges.max() >= len(features))):
        raise DataError(f"edges must hold rows of the {len(features)} nodes")
