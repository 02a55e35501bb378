"""What a graph run leaves: nodes, their tokenizer and, once trained, a model that answers; one folder, no pickle.

- ``graph.json``: format, version, task, settings, sizes, candidates that are no nodes
- ``nodes.parquet``: ids and texts of the nodes, in row order
- ``tokenizer/``: the node tokenizer
- ``model/``: weights (those beside a pretrained backbone's, where these stay as they are), tokenizer, and
  ``data.safetensors``: what the model reads of the nodes
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import ValidationError
from safetensors import SafetensorError

from nodetok.language.interface import Examples, Task
from nodetok.language.language_model import base_sha256
from nodetok.language.prompts import Prompts
from nodetok.language.reader_files import has_base, load_reader, own_weights, save_reader
from nodetok.language.training import Reader
from nodetok.tokenizer import NodeTokenizer
from setrec.atomic import atomic_directory
from setrec.errors import ConfigError, SetRecError, UnknownNodeError

FORMAT = 2
MENTION = re.compile(r"\[\[(.+?)\]\]")


@dataclass(eq=False)
class GraphArtifact:
    """An opened artefact; ``tokenizer`` is absent where every example has a graph of its own, ``reader`` where nothing
    was trained."""

    task: str
    version: str
    ids: Sequence[str]
    texts: Sequence[str] | None
    candidates: Sequence[str]
    tokenizer: NodeTokenizer | None = None
    reader: Reader | None = None

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {node: row for row, node in enumerate(self.ids)}

    def row(self, node: str) -> int:
        """Row of a node by its id.

        Raises:
            UnknownNodeError: there is none.
        """
        if node not in self._row_of:
            raise UnknownNodeError(f"unknown node {node!r}")
        return self._row_of[node]

    def ask(self, question: str, k: int = 5) -> tuple[list[tuple[str, float]], list[str]]:
        """The ``k`` best candidates with their probabilities, and the nodes the question mentions as ``[[id]]``.

        Raises:
            UnknownNodeError: a node is not in the graph.
            SetRecError: nothing was trained, or the question is empty.
        """
        reader, examples, nodes = self._prepared(question)
        scores, _ = next(reader.scores(examples))
        chances = torch.softmax(torch.from_numpy(scores[0]), dim=0).numpy()
        best = np.argsort(-chances, kind="stable")[:k]
        return [(self.candidates[row], float(chances[row])) for row in best], nodes

    def write(self, question: str, longest: int = 32) -> tuple[str, list[str]]:
        """The answer in words, and the nodes mentioned.

        Raises:
            SetRecError: as :meth:`ask`, or the model was not trained to write.
        """
        reader, examples, nodes = self._prepared(question)
        if not reader.model.settings.text_loss and reader.model.settings.backbone.pretrained is None:
            raise SetRecError("this model was not trained to answer in words: train with --set model.text_loss=1")
        return reader.write(examples, longest)[0], nodes

    def _prepared(self, question: str) -> tuple[Reader, Examples, list[str]]:
        if self.reader is None:
            raise SetRecError("this graph has node tokens but no trained model to ask")
        nodes: list[str] = []

        def slot(match: re.Match[str]) -> str:
            if match[1] not in nodes:
                nodes.append(match[1])
            return f" [[{nodes.index(match[1])}]] "

        text = " ".join(MENTION.sub(slot, question).split())
        if not text:
            raise SetRecError("the question is empty")
        text = text if text.lower().endswith("answer :") else f"{text} answer :"
        rows = np.array([[self.row(node) for node in nodes]], dtype=np.int64).reshape(1, -1)
        return self.reader, Examples(Prompts([text], rows), np.zeros(1, dtype=np.int64)), nodes

    def save(self, folder: str | Path) -> None:
        """Write everything, as a whole or not at all."""
        with atomic_directory(folder) as target:
            columns: dict[str, Any] = {"node_id": [str(node) for node in self.ids]}
            if self.texts is not None:
                columns["text"] = list(self.texts)
            pq.write_table(pa.table(columns), target / "nodes.parquet")
            if self.tokenizer is not None:
                self.tokenizer.save(target / "tokenizer")
            record = {"format": FORMAT, "version": self.version, "task": self.task, "model": None}
            if self.reader is not None:
                nodes = self.reader.model.shape.node_candidates
                record["model"] = save_reader(self.reader, target / "model")
                record["candidates"] = None if nodes else list(self.candidates)
            (target / "graph.json").write_text(json.dumps(record, indent=2, ensure_ascii=False))

    @classmethod
    def load(cls, folder: str | Path) -> GraphArtifact:
        """Read what :meth:`save` wrote.

        Raises:
            ConfigError: it is missing, damaged or of another format.
        """
        folder = Path(folder)
        try:
            record = json.loads((folder / "graph.json").read_text())
            if record["format"] != FORMAT:
                raise ConfigError(f"{folder}: format {record['format']} is not {FORMAT}")
            nodes = pq.read_table(folder / "nodes.parquet")
            ids = nodes["node_id"].to_pylist()
            texts = nodes["text"].to_pylist() if "text" in nodes.column_names else None
            tokenizer = NodeTokenizer.load(folder / "tokenizer") if (folder / "tokenizer").exists() else None
            reader = None if record["model"] is None else load_reader(folder / "model", record["model"], texts)
            candidates = record.get("candidates") or ids
            return cls(record["task"], record["version"], ids, texts, candidates, tokenizer, reader)
        except SetRecError:
            raise
        except (
            OSError, KeyError, ValueError, RuntimeError, TypeError, ValidationError, SafetensorError, pa.ArrowException,
        ) as error:  # fmt: skip
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(f"{folder}: graph cannot be loaded: {reason}") from error


def artifact(task: Task, reader: Reader | None, texts: Sequence[str] | None = None) -> GraphArtifact:
    """The artefact of a task; its version is a hash of the anchors' distances and the model's weights."""
    digest = hashlib.sha256(np.ascontiguousarray(task.table).tobytes())
    if reader is not None:
        for name, value in sorted(own_weights(reader.model).items()):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        if has_base(reader.model.settings):
            digest.update(base_sha256(reader.model.lm).encode())
    ids = [str(task.graph.id(row)) for row in range(len(task.graph))]
    known = texts or task.node_texts or task.graph.texts
    names = cast(Sequence[str], ids if task.node_candidates else task.candidates)
    return GraphArtifact(task.name, digest.hexdigest()[:16], ids, known, names, task.tokenizer, reader)
