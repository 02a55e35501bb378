"""The completion model with the reader interface of tasks: it maps prompts to scores of all entities; with saving and
loading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from nodetok.kge import KgeRanker
from nodetok.knowledge.completer import Completer
from nodetok.knowledge.fusion import Fusion
from nodetok.knowledge.paths import PathModel, Paths, PathSettings, Rules
from nodetok.knowledge.similar import SimilarEntities
from setrec.errors import ConfigError, SetRecError

if TYPE_CHECKING:
    from nodetok.language.interface import Examples, Task


@dataclass(eq=False)
class CompletionReader:
    """Reads prompts with a completion model. ``texts``: the supported questions for tails and for heads, by
    relation."""

    made: Completer
    texts: Sequence[Sequence[str]]

    @property
    def curve(self) -> list[dict[str, Any]]:
        """Records of validation after training."""
        return self.made.curve

    @cached_property
    def _question_of(self) -> dict[str, tuple[int, int]]:
        return {_plain(text): (r, way) for way, texts in enumerate(self.texts) for r, text in enumerate(texts)}

    def questions(self, examples: Examples) -> np.ndarray:
        """Return the questions, int64 (B, 3), of prompts.

        Raises:
            SetRecError: a prompt is not one of the task's questions.
        """
        for text in examples.prompts.texts:
            if _plain(text) not in self._question_of:
                raise SetRecError(f"this model answers questions such as '{self.texts[0][0]}', not '{text}'")
        questions = np.array([self._question_of[_plain(text)] for text in examples.prompts.texts], dtype=np.int64)
        return np.concatenate([examples.prompts.nodes[:, :1], questions.reshape(-1, 2)], axis=1)

    def scores(self, examples: Examples, batch: int = 128) -> Iterator[tuple[np.ndarray, Examples]]:
        """Yield scores (b, V) of all entities with their examples, part by part."""
        questions = self.questions(examples)
        for rows in np.array_split(np.arange(len(examples)), max(1, -(-len(examples) // batch))):
            yield self.made.scores(questions[rows]), examples.take(rows)

    def evaluate(self, task: Task, examples: Examples) -> dict[str, np.ndarray]:
        """Return the task's metrics of every example, (B,) each."""
        measured = [task.measure(*part) for part in self.scores(examples)]
        return {name: np.concatenate([part[name] for part in measured]) for name in measured[0]}

    def write(self, examples: Examples, longest: int = 32) -> list[str]:
        """Raise an error: the model ranks entities and does not generate text."""
        raise SetRecError("this model ranks entities and does not answer in words")

    def on(self, task: Task, name: str = "", seed: int = 0) -> CompletionReader:
        """Raise an error: the candidates are the entities of the model's graph."""
        raise ConfigError("a model whose candidates are the entities of its graph cannot read another one")

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all trained and measured tensors."""
        made, stored = self.made, {}
        if made.paths is not None:
            walks = made.paths.paths
            stored = {"triples": torch.from_numpy(walks.triples), "rules": torch.from_numpy(made.paths.rules.keys)}
            stored["confidence"] = torch.from_numpy(made.paths.rules.confidence)
            stored |= {f"texts.{i}": torch.from_numpy(table) for i, table in enumerate(walks.texts)}
            stored |= {f"paths.{name}": value for name, value in made.paths.state_dict().items()}
        if made.similar is not None:
            stored |= {"triples": torch.from_numpy(made.similar.triples)}
            stored |= {f"similar.{n}": torch.from_numpy(getattr(made.similar, n)) for n in ("factors", "shares")}
        if made.fusion is not None:
            stored |= {f"fusion.{name}": value for name, value in made.fusion.state_dict().items()}
        if made.embedding is not None:
            stored |= {f"embedding.{name}": value for name, value in made.embedding.state_dict().items()}
        stored |= {} if made.tokens is None else {"tokens": made.tokens}
        return stored | ({} if made.vectors is None else {"vectors": made.vectors})

    def save(self, folder: Path) -> dict[str, Any]:
        """Write ``completion.safetensors`` and return the record for :meth:`load`."""
        folder.mkdir()
        save_file({n: value.contiguous() for n, value in self.tensors().items()}, folder / "completion.safetensors")
        made, walks = self.made, None if self.made.paths is None else self.made.paths.paths
        return {
            "kind": "completion", "texts": [list(texts) for texts in self.texts],
            "parts": [] if made.fusion is None else list(made.fusion.names),
            "paths": None if walks is None else walks.settings.model_dump(mode="json"),
            "entities": 0 if walks is None else walks.entities, "curve": made.curve,
            "width": 0 if made.embedding is None else made.embedding.width,
            "kind_of_embedding": None if made.embedding is None else made.embedding.kind,
        }  # fmt: skip

    @classmethod
    def load(cls, folder: Path, record: dict[str, Any]) -> CompletionReader:
        """Load what :meth:`save` wrote; errors are those of JSON, safetensors and shapes."""
        tensors = load_file(folder / "completion.safetensors")
        relations, vectors, paths, embedding = len(record["texts"][0]), tensors.get("vectors"), None, None
        similar, fusion = None, None

        def under(prefix: str) -> dict[str, torch.Tensor]:
            return {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}

        if record["paths"] is not None:
            settings = PathSettings.model_validate(record["paths"])
            tables = [value.numpy() for _, value in sorted(under("texts.").items())]
            walks = Paths(tensors["triples"].numpy(), record["entities"], relations, tables, settings)
            rules = Rules(tensors["rules"].numpy(), tensors["confidence"].numpy())
            paths = PathModel(walks, rules, None if vectors is None else vectors.numpy())
            paths.load_state_dict(under("paths."))
        if record["width"]:
            embedding = KgeRanker(record["entities"], relations, record["width"], record["kind_of_embedding"])
            embedding.load_state_dict(under("embedding."))
        if "similar.factors" in tensors:
            factors, shares = (tensors[f"similar.{name}"].numpy() for name in ("factors", "shares"))
            similar = SimilarEntities(factors, shares, tensors["triples"].numpy(), relations)
        if names := record["parts"]:
            stored = under("fusion.")
            fusion = Fusion(names, [1.0] * len(names), *(len(stored[name]) for name in ("by_label", "by_trait")))
            fusion.load_state_dict(stored)
        made = Completer(
            paths, embedding, tensors.get("tokens"), vectors, relations, similar, fusion, record["curve"]
        )  # fmt: skip
        return cls(made, record["texts"])


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
