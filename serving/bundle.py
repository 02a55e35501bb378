"""The one thing training hands to serving: a directory with a manifest, versions and checksums.

File by file:

- ``manifest.json``: format, model version, libraries, slot weights, size and sha256 of every other file
- ``model/``: the recommender (config.json, model.safetensors)
- ``codes.safetensors``: folded item codes, float32 (I, D)
- ``popularity.safetensors``: training interactions of each item, int64 (I,)
- ``items.parquet``: the catalogue; ``histories.parquet``: the known users
- ``transitions.safetensors``, where it helped: which item followed which, and how much that adds to a score
- ``index.faiss``, ``retriever.json``: the candidate index
- ``encoder/``, where there is one: the sentence encoder that made the items' text vectors, for items to come
- ``newcomers.safetensors``, where there is one: how items that training never saw get their code
- ``checks.json``: requests with the answers they got when the bundle was written
- ``graph/``, where there is one: a graph, its node tokenizer and the model that reads them, in sub-folders

No file can carry code: Parquet, JSON, safetensors, NumPy arrays without Python objects, words of a tokenizer and
FAISS's own format are all there is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import FiniteFloat, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

from serving.manifest import FORMAT_VERSION, MANIFEST, Manifest, line, verify
from serving.newcomers import Estimate
from serving.retriever import Retriever
from serving.texts import TextRule
from setrec.catalog import Catalog, Histories
from setrec.encoder import TextEncoder
from setrec.errors import BundleError, DataError
from setrec.mapped import mapped
from setrec.ragged import Ragged
from setrec.settings import Settings
from setrec.walk import Walk

__all__ = ["FORMAT_VERSION", "MANIFEST", "Bundle", "Checks", "EncoderLoader", "UserEncoder", "load_setrec", "verify"]

CHECKS = "checks.json"
TRANSITIONS = "transitions.safetensors"


class UserEncoder(Protocol):
    """What serving asks of a model: histories in, folded user codes out."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of slots, in the order of the code's columns."""
        ...

    @property
    def code_columns(self) -> dict[str, tuple[int, int]]:
        """Columns (start, stop) of the folded code by kind."""
        ...

    @property
    def max_items(self) -> int:
        """How many items of a history are read, the latest."""
        ...

    def user_codes(self, histories: Ragged, weights: Mapping[str, float], codes: Tensor) -> Tensor:
        """Folded user codes, float32 (B, D), in one pass; ``histories`` hold rows of the item codes ``codes``."""
        ...

    def return_bias(self, weights: Mapping[str, float]) -> float:
        """What is added to the scores of the items that were read, at these weights of the slot kinds."""
        ...

    def text_codes(self, vectors: Tensor) -> Tensor:
        """The semantic columns of item codes, float32 (rows, S), from text vectors (rows, width) of new items.

        Raises:
            ConfigError: the model cannot place an item by its text, or not by vectors of that width.
        """
        ...


EncoderLoader = Callable[[Path], UserEncoder]


def load_setrec(path: Path) -> UserEncoder:
    """The recommender from a ``model/`` directory, in evaluation mode; safetensors only, nothing from the network."""
    from setrec.model import SetRecModel

    return SetRecModel.from_pretrained(path, use_safetensors=True, local_files_only=True).eval()


class Check(Settings):
    """A request, and the ids and scores of its answer when the bundle was written."""

    request: dict[str, Any]
    item_ids: tuple[str, ...]
    scores: tuple[FiniteFloat, ...]


class Checks(Settings):
    """What ``checks.json`` holds."""

    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: ``codes`` float32 (I, D), memory-mapped, and ``popularity`` int64 (I,)."""

    path: Path
    manifest: Manifest
    model: UserEncoder
    catalog: Catalog
    histories: Histories
    codes: np.ndarray
    popularity: np.ndarray
    retriever: Retriever
    newcomers: Estimate | None = None
    walk: Walk | None = None
    checks: list[tuple[dict[str, Any], tuple[str, ...], tuple[float, ...]]] = field(default_factory=list)

    @classmethod
    def open(cls, path: str | Path, load_encoder: EncoderLoader = load_setrec) -> Bundle:
        """Check every file against the manifest, then load.

        Raises:
            BundleError: no bundle, a newer format, or a missing, unexpected, truncated or altered file.
        """
        path = Path(path)
        manifest = verify(path)
        try:
            codes = mapped(path / "codes.safetensors", "codes")
            popularity = load_file(path / "popularity.safetensors")["counts"]
            catalog, histories = Catalog.load(path / "items.parquet"), Histories.load(path / "histories.parquet")
            retriever = Retriever.load(path, codes)
            model = load_encoder(path / "model")
            newcomers, checks = Estimate.load(path), _read_checks(path)
            walk = Walk.load(path / TRANSITIONS) if (path / TRANSITIONS).exists() else None
        except (DataError, SafetensorError, KeyError, OSError, ValueError, RuntimeError) as error:
            raise BundleError(f"{path}: cannot be loaded: {line(error)}") from error
        bundle = cls(path, manifest, model, catalog, histories, codes, popularity, retriever, newcomers, walk, checks)
        bundle._check()
        return bundle

    @property
    def model_version(self) -> str:
        """Name of what is served."""
        return self.manifest.model_version

    @property
    def graph_path(self) -> Path | None:
        """The ``graph/`` folder, where the bundle holds one."""
        return self.path / "graph" if any(name.startswith("graph/") for name in self.manifest.files) else None

    def text_encoder(self) -> TextEncoder | None:
        """The sentence encoder the bundle carries, ``None`` where it carries none; nothing of it is loaded yet."""
        entry = self.manifest.encoder
        return None if entry is None else TextEncoder(self.path / "encoder", max_length=entry.max_length, device="cpu")

    @property
    def text_rule(self) -> TextRule:
        """How an item's fields become its text."""
        return self.manifest.text or TextRule.of(self.catalog)

    def _check(self) -> None:
        """The parts must be of one catalogue and one model; checksums alone do not say that."""
        items, width = self.codes.shape
        columns = self.manifest.code_columns
        model = (tuple(self.model.kinds), dict(self.model.code_columns))
        wrong = {
            "the catalogue is empty": items == 0,
            "catalogue and codes differ in length": len(self.catalog) != items,
            "popularity and codes differ in length": self.popularity.shape != (items,),
            "item codes are not finite": not np.isfinite(self.codes).all(),
            "a history holds an item outside the catalogue": self.histories.items.values.max(initial=-1) >= items,
            "the model's slots are not the manifest's": model != (self.manifest.kinds, columns),
            "the slots do not cover the codes": not _tile(columns, width),
            "newcomers' codes are of another shape": not _fits(self.newcomers, columns),
            "transitions and codes differ in length": self.walk is not None and len(self.walk) != items,
            "slots and weights are of different kinds": set(self.manifest.weights) != set(self.manifest.kinds),
        }
        for reason, is_wrong in wrong.items():
            if is_wrong:
                raise BundleError(f"{self.path}: {reason}")


def _read_checks(path: Path) -> list[tuple[dict[str, Any], tuple[str, ...], tuple[float, ...]]]:
    """Stored requests as keywords of ``serving.requests.Request``, with ids and scores; none before format 2."""
    if not (path / CHECKS).exists():
        return []
    try:
        found = Checks.model_validate_json((path / CHECKS).read_bytes()).checks
    except ValidationError as error:
        raise BundleError(f"{path / CHECKS}: damaged ({error.errors()[0]['msg']})") from error
    lists = [{k: tuple(v) if isinstance(v, list) else v for k, v in check.request.items()} for check in found]
    return [(request, check.item_ids, check.scores) for request, check in zip(lists, found, strict=True)]


def _fits(estimate: Estimate | None, columns: Mapping[str, tuple[int, int]]) -> bool:
    """Whether an estimate leads from the semantic columns to the collaborative ones."""
    if estimate is None:
        return True
    widths = {kind: stop - start for kind, (start, stop) in columns.items()}
    shape = (widths.get("semantic"), widths.get("collaborative"))
    return estimate.weight.shape == shape and estimate.bias.shape == shape[1:]


def _tile(columns: Mapping[str, tuple[int, int]], width: int) -> bool:
    """Whether the spans lie side by side from 0 to ``width``."""
    spans = sorted(columns.values())
    return [0, *(stop for _, stop in spans)] == [*(start for start, _ in spans), width]
