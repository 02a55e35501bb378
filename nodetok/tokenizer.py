"""The node tokenizer: anchors, distances and positions of a graph, saved as safetensors and JSON."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nodetok import anchors, distances, positions
from nodetok.anchors import Anchors
from nodetok.distances import as_type, fitting, reached, refuse_outside, unreachable
from nodetok.graph import Graph
from nodetok.positions import Positions
from nodetok.settings import TokenizerSettings
from setrec.atomic import atomic_directory, refuse_foreign
from setrec.errors import ConfigError, UnknownNodeError, first_line
from setrec.rows import top_k

FORMAT = 1


@dataclass(eq=False)
class NodeTokenizer:
    """A node tokenizer fitted to a graph: anchor ids, distance table (V, columns) and position encoder.

    Columns are K, or 2 K for both directions of a directed graph. ``digest`` is the graph's.
    """

    settings: TokenizerSettings
    anchors: Anchors
    anchor_ids: tuple[Hashable, ...]
    table: np.ndarray
    positions: Positions
    digest: int | None = None

    @classmethod
    def fit(cls, graph: Graph, settings: TokenizerSettings | None = None) -> NodeTokenizer:
        """Choose anchors, measure distances and, if configured, train the positions."""
        s = settings or TokenizerSettings()
        chosen = anchors.choose(graph, s.anchors)
        table = distances.distances(graph, chosen.rows, s.distances)
        return cls.of(graph, s, chosen, table)

    @classmethod
    def of(cls, graph: Graph, settings: TokenizerSettings, chosen: Anchors, table: np.ndarray) -> NodeTokenizer:
        """Build a tokenizer from given anchors and distances, for instance those measured on a cluster."""
        encoder = Positions(table.shape[1], _rate(graph, table, settings))
        if settings.positions.steps:
            positions.fit(encoder, graph, chosen.rows, table, settings.positions)
        return cls(settings, chosen, tuple(graph.id(row) for row in chosen.rows), table, encoder.eval(), graph.digest)

    @property
    def width(self) -> int:
        """Dimension of a position."""
        return self.positions.width

    @cached_property
    def every(self) -> np.ndarray:
        """Positions of all nodes, float32 (V, width), computed once."""
        return self.transform()

    def __len__(self) -> int:
        return len(self.table)

    @torch.no_grad()
    def transform(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Return positions, float32 (V, width), of all or of the given rows.

        Raises:
            ConfigError: a row lies outside the graph.
        """
        if rows is not None:
            rows = np.asarray(rows)
            refuse_outside(rows, len(self))
            rows = rows.astype(np.int64)  # NumPy makes an empty list one of fractions
        table = self.table if rows is None else self.table[rows]
        parts = np.array_split(table, max(1, len(table) // 65_536))
        return np.concatenate([self.positions(torch.from_numpy(np.ascontiguousarray(p))).numpy() for p in parts])

    def measure(self, graph: Graph) -> np.ndarray:
        """Return distances (V, columns) in another graph that contains the anchors by their ids, such as a grown one.

        Raises:
            UnknownNodeError: an anchor is missing there.
        """
        return distances.distances(graph, graph.rows(self.anchor_ids), self.settings.distances)

    @torch.no_grad()
    def transform_new(self, neighbours: Sequence[np.ndarray]) -> np.ndarray:
        """Return positions, float32 (n, width), of nodes outside the graph, from the rows of their neighbours.

        Exact for hops if the node shortens no path between others; its arcs have length 1. Walks are averaged.

        Raises:
            ConfigError: a neighbour lies outside the graph.
        """
        neighbours = [np.asarray(rows) for rows in neighbours]
        for rows in neighbours:
            refuse_outside(rows, len(self))
        kind = np.dtype(np.float32 if self.table.dtype.kind == "f" else np.int64)
        table = np.full((len(neighbours), self.table.shape[1]), unreachable(kind), dtype=kind)
        for row, rows in enumerate(neighbours):
            if len(rows):
                own = self.table[rows]
                table[row] = self._from_neighbours(own if kind.kind == "f" else as_type(own, kind))
        positions: torch.Tensor = self.positions(torch.from_numpy(table))
        return positions.numpy()

    def _from_neighbours(self, table: np.ndarray) -> np.ndarray:
        if self.settings.distances.kind == "walks":
            with np.errstate(divide="ignore"):
                result: np.ndarray = -np.log((1 - self.settings.distances.restart) * np.exp(-table).mean(axis=0))
                return result
        nearest = table.min(axis=0)
        result = nearest + reached(nearest).astype(table.dtype)
        return result

    def update(self, grown: Graph, source: np.ndarray, target: np.ndarray) -> NodeTokenizer:
        """Return the tokenizer of a graph to which edges from ``source`` to ``target`` (rows), and possibly nodes at
        the end, were added (:meth:`Graph.with_edges`); only affected nodes are visited. Walks are recomputed, and so is
        everything after other changes, such as removed edges or new lengths: the result is always exact.

        Raises:
            ConfigError: an end of an edge that is no row of the graph, an edge that is not in the graph, a graph with
                fewer nodes or with other nodes in the anchors' rows.
        """
        s = self.settings.distances
        if len(grown) < len(self):
            raise ConfigError(f"a graph of {len(grown)} nodes cannot have grown from one of {len(self)}")
        if len(source) != len(target):
            raise ConfigError(f"edges need as many sources as targets, not {len(source)} and {len(target)}")
        for ends in (source, target):
            refuse_outside(np.asarray(ends), len(grown))
        source, target = (np.asarray(ends, dtype=np.int64).reshape(-1) for ends in (source, target))
        added = self._added(grown, source, target)
        chosen = Anchors(self.anchors.rows, self.anchors.gains, len(grown))
        if s.kind == "walks" or added != grown.digest:
            table = self.measure(grown)
            if table.shape[1] != self.table.shape[1]:
                raise ConfigError("of the graph and the one it has grown from only one is directed")
            return replace(self, anchors=chosen, table=table, digest=grown.digest)
        # As int64, new paths may have any length; hops are converted to the smallest type at the end.
        table = self.table if s.kind == "weighted" else as_type(self.table, np.int64)
        fresh = np.full((len(grown) - len(table), table.shape[1]), unreachable(table.dtype), dtype=table.dtype)
        table = np.concatenate([table, fresh])
        touched = np.concatenate([source, target, np.arange(len(self.table), len(grown))])
        seen = distances.views(grown, s)
        for view, block in zip(seen, np.split(table, len(seen), axis=1), strict=True):
            own = np.ascontiguousarray(block)
            block[:] = distances.relax(view, own, touched, weighted=s.kind == "weighted")
        table = table if s.kind == "weighted" else fitting(table)
        return replace(self, anchors=chosen, table=table, digest=grown.digest)

    def nearest(self, row: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and similarities of the ``k`` other nodes with the most similar positions, best first; ties by
        row.

        Raises:
            ConfigError: ``row`` lies outside the graph, or ``k`` is below 0.
        """
        refuse_outside(np.array([row]), len(self))
        if k < 0:
            raise ConfigError(f"k is {k}; it must not be negative")
        scores = self.every @ self.every[row]
        scores[row] = -np.inf
        best = top_k(scores[None], min(k, len(self) - 1))[0]
        return best, scores[best]

    def _added(self, grown: Graph, source: np.ndarray, target: np.ndarray) -> int | None:
        """Return the digest of the fitted graph with the given edges added; ``None`` if it has no digest."""
        if not np.array_equal(grown.rows(self.anchor_ids), self.anchors.rows):
            raise ConfigError("the anchors of the grown graph lie in other rows")
        proper = source != target
        source, target = source[proper], target[proper]
        arcs = grown.find(source, target)
        if (arcs < 0).any():
            a, b = source[arcs < 0][0], target[arcs < 0][0]
            raise ConfigError(f"the graph has no edge from {a} to {b}: add it first (Graph.with_edges)")
        if not grown.directed:
            arcs = np.concatenate([arcs, grown.find(target, source)])
        more = int(grown.digests(np.unique(arcs)).sum(dtype=np.uint64))
        return None if self.digest is None else (self.digest + more) % 2**64

    def describe(self) -> dict[str, Any]:
        """Return the tokenizer's figures for a report."""
        s = self.settings
        return {
            "strategy": s.anchors.strategy, "anchors": len(self.anchors.rows), "radius": s.anchors.radius,
            "coverage": self.anchors.coverage, "distances": s.distances.kind,
            "tau": float(self.positions.log_tau.detach().exp().mean()), "columns": self.table.shape[1],
            "width": self.width,
        }  # fmt: skip

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer.safetensors`` atomically, in place of an earlier tokenizer.

        Raises:
            ConfigError: an anchor's id is neither text nor a whole number (nor a tuple of these), or ``folder`` holds
                something else than a tokenizer.
        """
        refuse_foreign(folder, "tokenizer.json")
        weights = {f"positions.{name}": value for name, value in self.positions.state_dict().items()}
        with atomic_directory(folder) as target:
            save_file(
                {
                    "table": torch.from_numpy(np.ascontiguousarray(self.table)),
                    "anchors": torch.from_numpy(self.anchors.rows.astype(np.int64)),
                    "gains": torch.from_numpy(self.anchors.gains.astype(np.int64)),
                    **weights,
                },
                target / "tokenizer.safetensors",
            )
            record = {
                "format": FORMAT,
                "settings": self.settings.model_dump(mode="json"),
                "nodes": len(self.table),
                "digest": self.digest,
                "anchor_ids": [_plain(node) for node in self.anchor_ids],
            }
            (target / "tokenizer.json").write_text(json.dumps(record, indent=2))

    @classmethod
    def load(cls, folder: str | Path) -> NodeTokenizer:
        """Load a tokenizer that :meth:`save` wrote.

        Raises:
            ConfigError: it is missing, damaged or of another format.
        """
        folder = Path(folder)
        try:
            record = json.loads((folder / "tokenizer.json").read_text())
            if record["format"] != FORMAT:
                raise ConfigError(f"format {record['format']} is not {FORMAT}")
            settings = TokenizerSettings.model_validate(record["settings"])
            tensors = load_file(folder / "tokenizer.safetensors")
            table = tensors.pop("table").numpy()
            rows, gains = tensors.pop("anchors").numpy(), tensors.pop("gains").numpy()
            ids = tuple(_hashable(node) for node in record["anchor_ids"])
            _agree(settings, record["nodes"], len(set(ids)), table, rows, gains)
            encoder = Positions(table.shape[1])
            encoder.load_state_dict({name.removeprefix("positions."): value for name, value in tensors.items()})
        except (OSError, KeyError, ValueError, RuntimeError, TypeError, ValidationError, SafetensorError) as error:
            raise ConfigError(f"{folder}: node tokenizer cannot be loaded: {first_line(error)}") from error
        return cls(settings, Anchors(rows, gains, len(table)), ids, table, encoder.eval(), record.get("digest"))

    def check(self, graph: Graph) -> None:
        """Check that ``graph`` is the one this tokenizer was fitted to, by size, anchors and digest.

        Raises:
            ConfigError: it is not.
        """
        try:
            same = len(graph) == len(self) and np.array_equal(graph.rows(self.anchor_ids), self.anchors.rows)
            same = same and self.digest in (None, graph.digest)
        except UnknownNodeError:
            same = False
        if not same:
            raise ConfigError("the node tokenizer was fitted to another graph")


def _rate(graph: Graph, table: np.ndarray, settings: TokenizerSettings) -> float:
    """Return the initial tau; walks are logarithms of probabilities and have no scale to adapt to."""
    tau, kind = settings.positions.tau, settings.distances.kind
    if kind == "walks":
        return tau
    positive = graph.weights[graph.weights > 0] if kind == "weighted" and graph.weights is not None else np.ones(1)
    return positions.rate(table, float(np.median(positive.astype(np.float64))) if len(positive) else 1.0, tau)


def _agree(
    settings: TokenizerSettings, nodes: int, count: int, table: np.ndarray, rows: np.ndarray, gains: np.ndarray
) -> None:
    kinds = (np.uint8, np.int32) if settings.distances.kind == "hops" else (np.float32,)
    whole = table.ndim == 2 and len(table) == nodes and table.shape[1] in (count, 2 * count) and table.dtype in kinds
    if not whole or not rows.shape == gains.shape == (count,) or not 0 <= rows.min() <= rows.max() < nodes:
        raise ConfigError(f"{nodes} nodes and {count} anchors do not match the tensors")


def _plain(node: Hashable) -> Any:
    if isinstance(node, tuple):
        return [_plain(part) for part in node]
    if isinstance(node, np.generic):
        node = node.item()
    if isinstance(node, str | int):
        return node
    raise ConfigError(f"node id {node!r} cannot be saved: only text, whole numbers and tuples of these can")


def _hashable(node: Any) -> Hashable:
    return tuple(_hashable(part) for part in node) if isinstance(node, list) else node
