"""Graph to node tokens in one object: anchors, distances and positions, saved as safetensors and JSON."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nodetok import anchors, distances, positions
from nodetok.anchors import Anchors, AnchorSettings
from nodetok.distances import FARTHEST, UNREACHABLE, DistanceSettings
from nodetok.graph import Graph
from nodetok.positions import Positions, PositionSettings
from setrec.atomic import atomic_directory
from setrec.errors import ConfigError, UnknownNodeError
from setrec.settings import Settings

FORMAT = 1


class TokenizerSettings(Settings):
    """How nodes become tokens; anchors of 64 and hops need 64 bytes a node."""

    anchors: AnchorSettings = AnchorSettings()
    distances: DistanceSettings = DistanceSettings()
    positions: PositionSettings = PositionSettings()


@dataclass(eq=False)
class NodeTokenizer:
    """Fitted to a graph: the anchors' ids, the distance table (V, columns) and the position encoder.

    Columns are K, or 2 K where both directions of a directed graph count.
    """

    settings: TokenizerSettings
    anchors: Anchors
    anchor_ids: tuple[Hashable, ...]
    table: np.ndarray
    positions: Positions

    @classmethod
    def fit(cls, graph: Graph, settings: TokenizerSettings | None = None) -> NodeTokenizer:
        """Choose anchors, measure distances and, where the settings ask for it, train the positions."""
        s = settings or TokenizerSettings()
        chosen = anchors.choose(graph, s.anchors)
        table = distances.distances(graph, chosen.rows, s.distances)
        return cls.of(graph, s, chosen, table)

    @classmethod
    def of(cls, graph: Graph, settings: TokenizerSettings, chosen: Anchors, table: np.ndarray) -> NodeTokenizer:
        """From anchors and distances measured elsewhere, by blocks on a cluster for instance."""
        encoder = positions.build(table.shape[1], settings.positions)
        if settings.positions.steps:
            positions.fit(encoder, graph, chosen.rows, table, settings.positions)
        return cls(settings, chosen, tuple(graph.id(row) for row in chosen.rows), table, encoder.eval())

    @property
    def width(self) -> int:
        """Numbers in a node's position."""
        return self.positions.width

    def __len__(self) -> int:
        return len(self.table)

    @torch.no_grad()
    def transform(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Positions, float32 (V, width), or of the given rows only."""
        table = self.table if rows is None else self.table[rows]
        parts = np.array_split(table, max(1, len(table) // 65_536))
        return np.concatenate([self.positions(torch.from_numpy(np.ascontiguousarray(p))).numpy() for p in parts])

    def measure(self, graph: Graph) -> np.ndarray:
        """Distances (V, columns) in another graph that holds the anchors by their ids, e.g. renumbered or grown.

        Raises:
            UnknownNodeError: an anchor is missing there.
        """
        return distances.distances(graph, graph.rows(self.anchor_ids), self.settings.distances)

    @torch.no_grad()
    def transform_new(self, neighbours: Sequence[np.ndarray]) -> np.ndarray:
        """Positions, float32 (n, width), of nodes the graph does not hold, from the rows of their neighbours.

        Exact for hops of a node that shortens no path between others; its arcs have length 1. Walks are averaged.
        """
        empty = np.full(self.table.shape[1], UNREACHABLE if self.table.dtype == np.uint8 else np.inf)
        found = [self._beside(self.table[rows]) if len(rows) else empty for rows in neighbours]
        table = np.asarray(found, dtype=self.table.dtype).reshape(len(neighbours), -1)
        return self.positions(torch.from_numpy(table)).numpy()

    def _beside(self, table: np.ndarray) -> np.ndarray:
        if self.settings.distances.kind == "walks":
            with np.errstate(divide="ignore"):
                return -np.log((1 - self.settings.distances.restart) * np.exp(-table).mean(axis=0))
        nearest = table.min(axis=0).astype(np.float32)
        if table.dtype != np.uint8:
            return nearest + 1
        return np.where(nearest == UNREACHABLE, UNREACHABLE, np.minimum(nearest + 1, FARTHEST))

    def update(self, grown: Graph, source: np.ndarray, target: np.ndarray) -> NodeTokenizer:
        """The tokenizer for a graph to which the edges ``source`` to ``target`` (rows) and perhaps nodes at the end
        were added (:meth:`Graph.with_edges`); hops and lengths are exact, only what changed is visited. Walks are
        measured anew."""
        s = self.settings.distances
        chosen = Anchors(self.anchors.rows, self.anchors.gains, len(grown))
        if s.kind == "walks":
            return NodeTokenizer(self.settings, chosen, self.anchor_ids, self.measure(grown), self.positions)
        fresh = np.full(
            (len(grown) - len(self.table), self.table.shape[1]), UNREACHABLE if s.kind == "hops" else np.inf
        )
        table = np.concatenate([self.table, fresh.astype(self.table.dtype)])
        touched = np.concatenate([source, target, np.arange(len(self.table), len(grown))])
        seen = distances.views(grown, s)
        for view, block in zip(seen, np.split(table, len(seen), axis=1), strict=True):
            own = np.ascontiguousarray(block)
            block[:] = distances.relax(view, own, touched, weighted=s.kind == "weighted")
        return NodeTokenizer(self.settings, chosen, self.anchor_ids, table, self.positions)

    def nearest(self, row: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` most similar other nodes by position, rows and similarities, best first; ties by row."""
        with torch.no_grad():
            every = torch.from_numpy(self.transform())
            scores = self.positions.similarity(every[row][None], every).numpy()
        scores[row] = -np.inf
        best = np.argsort(-scores, kind="stable")[: min(k, len(self) - 1)]
        return best, scores[best]

    def describe(self) -> dict[str, Any]:
        """What a report says of it."""
        s = self.settings
        return {
            "strategy": s.anchors.strategy, "anchors": len(self.anchors.rows), "radius": s.anchors.radius,
            "coverage": self.anchors.coverage, "knee": self.anchors.knee, "distances": s.distances.kind,
            "positions": s.positions.kind, "columns": self.table.shape[1], "width": self.width,
        }  # fmt: skip

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer.safetensors``, as a whole or not at all.

        Raises:
            ConfigError: an anchor's id is neither text nor a whole number (nor a tuple of these).
        """
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
                "anchor_ids": [_plain(node) for node in self.anchor_ids],
            }
            (target / "tokenizer.json").write_text(json.dumps(record, indent=2))

    @classmethod
    def load(cls, folder: str | Path) -> NodeTokenizer:
        """Read what :meth:`save` wrote.

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
            encoder = positions.build(table.shape[1], settings.positions)
            encoder.load_state_dict({name.removeprefix("positions."): value for name, value in tensors.items()})
        except (OSError, KeyError, ValueError, RuntimeError, TypeError, ValidationError, SafetensorError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(f"{folder}: node tokenizer cannot be loaded: {reason}") from error
        return cls(settings, Anchors(rows, gains, len(table)), ids, table, encoder.eval())

    def check(self, graph: Graph) -> None:
        """Whether ``graph`` is the one this tokenizer was fitted to, by size and anchors.

        Raises:
            ConfigError: it is not.
        """
        try:
            same = len(graph) == len(self) and np.array_equal(graph.rows(self.anchor_ids), self.anchors.rows)
        except UnknownNodeError:
            same = False
        if not same:
            raise ConfigError("the node tokenizer was fitted to another graph")


def _agree(
    settings: TokenizerSettings, nodes: int, count: int, table: np.ndarray, rows: np.ndarray, gains: np.ndarray
) -> None:
    kind = np.uint8 if settings.distances.kind == "hops" else np.float32
    whole = table.ndim == 2 and len(table) == nodes and table.shape[1] in (count, 2 * count) and table.dtype == kind
    if not whole or not rows.shape == gains.shape == (count,) or not 0 <= rows.min() <= rows.max() < nodes:
        raise ConfigError(f"{nodes} nodes and {count} anchors are not what the tensors hold")


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
