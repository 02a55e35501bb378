"""The artifact of a graph run: nodes, their tokenizer and, once trained, a model; one folder without pickles.

- ``graph.json``: format, version, task, settings, sizes, candidates that are not nodes
- ``nodes.parquet``: ids and texts of the nodes, in row order
- ``edges.parquet``: rows of both ends of every edge, and its relation, if any
- ``tokenizer/``: the node tokenizer
- ``model/``: weights (without those of a frozen pretrained backbone), tokenizer, and ``data.safetensors``: the node
data that the model reads; or ``completion.safetensors``: a whole completer
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import ValidationError
from safetensors import SafetensorError

from nodetok.knowledge.reader import CompletionReader
from nodetok.language.interface import Task
from nodetok.language.language_model import base_sha256
from nodetok.language.reader_files import has_base, load_reader, own_weights, save_reader
from nodetok.language.training import Reader
from nodetok.tokenizer import NodeTokenizer
from setrec.atomic import atomic_directory, refuse_foreign
from setrec.errors import ConfigError, SetRecError, UnknownNodeError, first_line

FORMAT = 4
RECORD = "graph.json"


@dataclass(eq=False)
class GraphArtifact:
    """An open artifact; ``tokenizer`` is ``None`` if every example has its own graph, ``reader`` if no model was
    trained. ``edges`` int (E, 2) or None, with names in ``relations``, if edges have relations, and texts in
    ``edge_texts``, if questions are about edges; ``wordings``: the prompts, with other wordings of each for free-text
    questions; answers of a probability below ``threshold`` are refused."""

    task: str
    version: str
    ids: Sequence[str]
    texts: Sequence[str] | None
    candidates: Sequence[str]
    tokenizer: NodeTokenizer | None = None
    reader: Reader | CompletionReader | None = None
    edges: np.ndarray | None = None
    relations: Sequence[str] | None = None
    wordings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    threshold: float = 0.0
    edge_texts: Sequence[str] | None = None

    @cached_property
    def _edge_of(self) -> dict[tuple[int, int], int]:
        return {} if self.edges is None else {(a, b): number for number, (a, b) in enumerate(self.edges.tolist())}

    def edge(self, source: int, target: int) -> int | None:
        """Return the number of the edge between two rows in either direction, if there is one."""
        return self._edge_of.get((source, target), self._edge_of.get((target, source)))

    def ends(self, edge: int) -> list[int]:
        """Return the rows of both ends of an edge, by its number."""
        assert self.edges is not None
        rows: list[int] = self.edges[edge].tolist()
        return rows

    def relation_of(self, source: int, target: int) -> str | None:
        """Return the name of the relation between two rows in either direction, if edges have names."""
        if self.relations is None or (edge := self.edge(source, target)) is None:
            return None
        return self.relations[edge] or None

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {node: row for row, node in enumerate(self.ids)}

    def row(self, node: str) -> int:
        """Return the row of a node by its id.

        Raises:
            UnknownNodeError: no node has this id.
        """
        if node not in self._row_of:
            raise UnknownNodeError(f"unknown node {node!r}")
        return self._row_of[node]

    def save(self, folder: str | Path) -> None:
        """Write the artifact atomically, in place of an earlier one.

        Raises:
            ConfigError: ``folder`` holds something else than an artifact.
        """
        refuse_foreign(folder, RECORD)
        with atomic_directory(folder) as target:
            columns: dict[str, Any] = {"node_id": [str(node) for node in self.ids]}
            if self.texts is not None:
                columns["text"] = list(self.texts)
            pq.write_table(pa.table(columns), target / "nodes.parquet")
            if self.edges is not None:
                ends = {"source": self.edges[:, 0], "target": self.edges[:, 1]}
                texts = {"relation": self.relations, "text": self.edge_texts}
                named = {name: list(values) for name, values in texts.items() if values is not None}
                pq.write_table(pa.table({**ends, **named}), target / "edges.parquet")
            if self.tokenizer is not None:
                self.tokenizer.save(target / "tokenizer")
            record: dict[str, Any] = {
                "format": FORMAT,
                "version": self.version,
                "task": self.task,
                "model": None,
                "wordings": {k: list(v) for k, v in self.wordings.items()},
                "threshold": self.threshold,
            }
            if isinstance(self.reader, CompletionReader):
                record |= {"model": self.reader.save(target / "model"), "candidates": None}
            elif self.reader is not None:
                nodes = self.reader.model.shape.node_candidates
                record["model"] = save_reader(self.reader, target / "model")
                record["candidates"] = None if nodes else list(self.candidates)
            (target / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False))

    @classmethod
    def load(cls, folder: str | Path) -> GraphArtifact:
        """Load an artifact that :meth:`save` wrote.

        Raises:
            ConfigError: it is missing, damaged or of another format.
        """
        folder = Path(folder)
        try:
            record = json.loads((folder / RECORD).read_text())
            if record["format"] != FORMAT:
                raise ConfigError(f"{folder}: format {record['format']} is not {FORMAT}")
            nodes = pq.read_table(folder / "nodes.parquet")
            ids = nodes["node_id"].to_pylist()
            texts = nodes["text"].to_pylist() if "text" in nodes.column_names else None
            tokenizer = NodeTokenizer.load(folder / "tokenizer") if (folder / "tokenizer").exists() else None
            candidates = record.get("candidates") or ids
            reader: Reader | CompletionReader | None = None
            if record["model"] is not None and record["model"].get("kind") == "completion":
                reader = CompletionReader.load(folder / "model", record["model"])
            elif record["model"] is not None:
                reader = load_reader(folder / "model", record["model"], texts, candidates)
            edges, relations, edge_texts = None, None, None
            if (folder / "edges.parquet").exists():
                given = pq.read_table(folder / "edges.parquet")
                edges = np.stack([given["source"].to_numpy(), given["target"].to_numpy()], axis=1)
                relations, edge_texts = (
                    given[name].to_pylist() if name in given.column_names else None for name in ("relation", "text")
                )
            return cls(
                record["task"], record["version"], ids, texts, candidates, tokenizer, reader, edges, relations,
                record["wordings"], float(record["threshold"]), edge_texts,
            )  # fmt: skip
        except SetRecError:
            raise
        except (
            OSError, KeyError, ValueError, RuntimeError, TypeError, ValidationError, SafetensorError, pa.ArrowException,
        ) as error:  # fmt: skip
            raise ConfigError(f"{folder}: graph cannot be loaded: {first_line(error)}") from error


def artifact(task: Task, reader: Reader | CompletionReader | None, texts: Sequence[str] | None = None) -> GraphArtifact:
    """Return the artifact of a task; its version is a hash of the anchor distances and the weights of the model."""
    digest = hashlib.sha256(np.ascontiguousarray(task.table).tobytes())
    if reader is not None:
        own = reader.tensors() if isinstance(reader, CompletionReader) else own_weights(reader.model)
        for name, value in sorted(own.items()):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        if isinstance(reader, Reader) and has_base(reader.model.settings):
            digest.update(base_sha256(reader.model.lm).encode())
    ids = [str(task.graph.id(row)) for row in range(len(task.graph))]
    known = texts or task.node_texts or task.graph.texts
    names: Sequence[str] = ids if task.node_candidates else task.candidates
    edges, relations = _edges(task)
    threshold = 0.0 if reader is None else confidence_threshold(reader, task)
    prompts: Mapping[str, Sequence[str]] = {t: () for part in (task.valid, task.test) for t in part.prompts.texts}
    return GraphArtifact(
        task.name, digest.hexdigest()[:16], ids, known, names, task.tokenizer, reader, edges, relations,
        task.wordings or prompts, threshold, task.edge_texts,
    )  # fmt: skip


def confidence_threshold(reader: Reader | CompletionReader, task: Task, refused: float = 0.03) -> float:
    """Return the threshold of the answers' probabilities that best separates right from wrong answers to validation
    questions, of those that refuse at most a share ``refused`` of them."""
    best, right = [], []
    for scores, part in reader.scores(task.valid):
        best.append(torch.from_numpy(scores).softmax(dim=1).amax(dim=1).numpy())
        right.append(scores.argmax(axis=1) == part.targets)
    chances, correct = np.concatenate(best), np.concatenate(right)
    order = np.argsort(chances, kind="stable")[: 1 + int(refused * len(chances))]
    gain = np.where(correct, -1 / max(1, correct.sum()), 1 / max(1, (~correct).sum()))[order].cumsum()
    return float(chances[order][np.argmax([0.0, *gain[:-1]])])


def _edges(task: Task) -> tuple[np.ndarray, list[str] | None]:
    """Return the edges of a task, int64 (E, 2), each once, and the names of their relations, if any."""
    if task.facts is not None and task.relation_names:
        node, kind, neighbour = task.facts.T
        own = (kind >= 1) & (kind <= len(task.relation_names))
        return np.stack([node[own], neighbour[own]], axis=1), [task.relation_names[r - 1] for r in kind[own]]
    source, target = task.graph.undirected.arcs()
    return np.stack([source, target], axis=1)[source < target].astype(np.int64), None
