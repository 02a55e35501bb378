"""What a graph run leaves: nodes, their tokenizer and, once trained, a model that answers; one folder, no pickle.

- ``graph.json``: format, version, task, settings, sizes, candidates that are no nodes
- ``nodes.parquet``: ids and texts of the nodes, in row order
- ``tokenizer/``: the node tokenizer
- ``model/``: weights, the language model's configuration, its words; ``data.safetensors``: what it reads of the nodes
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from transformers import AutoTokenizer

from nodetok.knowledge.reader import CompletionReader
from nodetok.learning import Reader
from nodetok.model import GraphLanguageModel, GraphModelSettings, NodeData, Shape, from_config, tune
from nodetok.prompts import Neighbourhoods, PromptEncoder, Prompts
from nodetok.tasks import Examples, Task
from nodetok.tokenizer import NodeTokenizer
from setrec.atomic import atomic_directory
from setrec.errors import ConfigError, SetRecError, UnknownNodeError

FORMAT = 1
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
    reader: Reader | CompletionReader | None = None

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
        if isinstance(reader, CompletionReader):
            return reader.write(examples, longest)[0], nodes
        if not reader.model.settings.text_loss and reader.model.settings.backbone.pretrained is None:
            raise SetRecError("this model was not trained to answer in words: train with --set model.text_loss=1")
        return reader.write(examples, longest)[0], nodes

    def _prepared(self, question: str) -> tuple[Reader | CompletionReader, Examples, list[str]]:
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
            if isinstance(self.reader, CompletionReader):
                record |= {"model": self.reader.save(target / "model"), "candidates": None}
            elif self.reader is not None:
                nodes = self.reader.model.shape.node_candidates
                record["model"] = self._save_reader(self.reader, target / "model")
                record["candidates"] = None if nodes else list(self.candidates)
            (target / "graph.json").write_text(json.dumps(record, indent=2, ensure_ascii=False))

    def _save_reader(self, reader: Reader, folder: Path) -> dict[str, Any]:
        folder.mkdir()
        model, encoder = reader.model, reader.encoder
        save_model(model, str(folder / "model.safetensors"))
        reader.tokenizer.save_pretrained(folder / "words")
        (folder / "config.json").write_text(model.lm.config.to_json_string(use_diff=False))
        tensors = {"table": reader.data.table}
        if reader.data.features is not None:
            tensors["features"] = reader.data.features
        if encoder.neighbourhoods is not None:
            tensors["neighbours"] = torch.from_numpy(encoder.neighbourhoods.rows)
            tensors["relations"] = torch.from_numpy(encoder.neighbourhoods.relations)
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "data.safetensors")
        return {
            "settings": model.settings.model_dump(mode="json"),
            "shape": asdict(model.shape),
            "raw": reader.data.raw,
            "plain": encoder.plain,
            "precision": reader.precision,
        }

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
            reader: Reader | CompletionReader | None = None
            if record["model"] is not None:
                of_paths = record["model"].get("kind") == "completion"
                reader = (CompletionReader.load if of_paths else _load_reader)(folder / "model", record["model"])
            candidates = record.get("candidates") or ids
            return cls(record["task"], record["version"], ids, texts, candidates, tokenizer, reader)
        except SetRecError:
            raise
        except (
            OSError, KeyError, ValueError, RuntimeError, TypeError, ValidationError, SafetensorError, pa.ArrowException,
        ) as error:  # fmt: skip
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(f"{folder}: graph cannot be loaded: {reason}") from error


def _load_reader(folder: Path, record: dict[str, Any]) -> Reader:
    settings, shape = GraphModelSettings.model_validate(record["settings"]), Shape(**record["shape"])
    lm = from_config(json.loads((folder / "config.json").read_text()))
    model = GraphLanguageModel(settings, shape, tune(lm, settings.backbone, settings.tuning))
    load_model(model, str(folder / "model.safetensors"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "words", local_files_only=True)
    tensors = load_file(folder / "data.safetensors")
    beside = None
    if "neighbours" in tensors:
        beside = Neighbourhoods(tensors["neighbours"].numpy(), tensors["relations"].numpy())
    encoder = PromptEncoder(
        tokenizer, settings.position_tokens, shape.feature_tokens, beside, plain=bool(record["plain"])
    )  # fmt: skip
    data = NodeData(tensors["table"], tensors.get("features"), bool(record["raw"]))
    return Reader(model.eval(), encoder, data, tokenizer, record.get("precision", "auto"))


def artifact(task: Task, reader: Reader | CompletionReader | None, texts: Sequence[str] | None = None) -> GraphArtifact:
    """The artefact of a task; its version is a hash of the anchors' distances and the model's weights."""
    digest = hashlib.sha256(np.ascontiguousarray(task.table).tobytes())
    if reader is not None:
        own = reader.tensors() if isinstance(reader, CompletionReader) else reader.model.state_dict()
        for name, value in sorted(own.items()):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    ids = [str(task.graph.id(row)) for row in range(len(task.graph))]
    known = texts if texts is not None else task.graph.texts
    names = cast(Sequence[str], ids if task.node_candidates else task.candidates)
    return GraphArtifact(task.name, digest.hexdigest()[:16], ids, known, names, task.tokenizer, reader)
