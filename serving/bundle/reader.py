"""Bundles, the directories from which models are served, with a manifest, versions and checksums.

File by file:

- ``manifest.json``: format, model version, libraries, weights of the score, size and sha256 of every other file
- ``model/``: the recommender (config.json, model.safetensors)
- ``codes.safetensors``: folded item codes, float32 (I, D)
- ``popularity.safetensors``: training interactions of each item, int64 (I,)
- ``items.parquet``: the catalogue; ``histories.parquet``: the known users
- ``components/NAME.safetensors``: each component of the score that has a weight
- ``index.faiss``, ``retriever.json``: the candidate index; of each shard in ``shards/NUMBER/``, if it has several;
``index_codes.safetensors``: the indexed codes, if they differ from the item codes
- ``lexical/``, ``encoder/``, if any: the encoders of the items' text vectors, for items added later
- ``texts.safetensors``, if text similarity is used: the features of the items' texts, to compare added items with
- ``checks.json``: requests with their answers at export
- ``graph/``, if any: a graph, its node tokenizer and the model that reads them, in sub-folders

No file can contain code: all are Parquet, JSON, safetensors, NumPy arrays without Python objects, tokenizer
vocabularies or in FAISS's own format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import FiniteFloat, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

from serving.bundle.manifest import FORMAT_VERSION, MANIFEST, Manifest, line, verify
from serving.bundle.texts import BundleTexts, TextRule
from serving.retrieval import shards
from serving.retrieval.index_codes import load_index_codes
from serving.retrieval.retriever import Retriever
from serving.retrieval.shards import ShardOpener
from setrec.data.catalog import Catalog, Histories
from setrec.errors import BundleError, DataError
from setrec.mapped import mapped
from setrec.models.inference import stored_model
from setrec.ragged import Ragged
from setrec.scoring import registry
from setrec.scoring.hybrid import load_components
from setrec.scoring.item_graph import GraphComponent
from setrec.scoring.reranking import AttributeVectors
from setrec.scoring.text_features import TextFeaturizer
from setrec.settings import Settings
from setrec.text.encoder import TextEncoder
from setrec.text.lexical import LexicalEncoder

__all__ = ["FORMAT_VERSION", "MANIFEST", "Bundle", "Checks", "EncoderLoader", "UserEncoder", "load_setrec", "verify"]

CHECKS = "checks.json"


class UserEncoder(Protocol):
    """Interface of a served model, which maps histories to folded user codes."""

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
        """Maximum number of items of a history, the latest, that are read."""
        ...

    def user_codes(self, histories: Ragged, weights: Mapping[str, float], codes: Tensor) -> Tensor:
        """Return folded user codes, float32 (B, D), in one pass; ``histories`` contain rows of the item codes
        ``codes``."""
        ...

    def repeat_bias(self, weights: Mapping[str, float]) -> float:
        """Return the bias on the scores of items in the history, at given weights of the slot kinds."""
        ...

    def text_codes(self, vectors: Tensor) -> Tensor:
        """Return codes, float32 (rows, D), of new items from their text vectors (rows, width); columns that do not
        depend on text are zero.

        Raises:
            ConfigError: the model reads no text, or not vectors of that width.
        """
        ...


EncoderLoader = Callable[[Path], UserEncoder]


def load_setrec(path: Path) -> UserEncoder:
    """Load the recommender from a ``model/`` directory, in evaluation mode, from safetensors without network access."""
    if (stored := stored_model.load(path)) is not None:
        return stored
    from setrec.models.setrec_model import SetRecModel

    model: UserEncoder = SetRecModel.from_pretrained(path, use_safetensors=True, local_files_only=True).eval()
    return model


class Check(Settings):
    """A request, and the ids and scores of its answer at export."""

    request: dict[str, Any]
    item_ids: tuple[str, ...]
    scores: tuple[FiniteFloat, ...]


class Checks(Settings):
    """The content of ``checks.json``."""

    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: ``codes`` float32 (I, D), memory-mapped, ``popularity`` int64 (I,), ``components`` by name, and
    ``texts``: the features of the items' texts, if text similarity is used."""

    path: Path
    manifest: Manifest
    model: UserEncoder
    catalog: Catalog
    histories: Histories
    codes: np.ndarray
    popularity: np.ndarray
    retriever: Retriever
    components: Mapping[str, GraphComponent] = field(default_factory=dict)
    texts: BundleTexts | None = None
    checks: list[tuple[dict[str, Any], tuple[str, ...], tuple[float, ...]]] = field(default_factory=list)

    @classmethod
    def open(
        cls, path: str | Path, load_encoder: EncoderLoader = load_setrec, open_shard: ShardOpener | None = None
    ) -> Bundle:
        """Verify every file against the manifest, then load the bundle; ``open_shard`` opens the shards of its index
        in other processes.

        Raises:
            BundleError: not a bundle, a newer format, or a missing, unexpected, truncated or altered file.
        """
        path = Path(path)
        manifest = verify(path)
        try:
            codes = mapped(path / "codes.safetensors", "codes")
            popularity = load_file(path / "popularity.safetensors")["counts"]
            catalog, histories = Catalog.load(path / "items.parquet"), Histories.load(path / "histories.parquet")
            retriever = shards.load(path, load_index_codes(path, codes), open_shard)
            model = load_encoder(path / "model")
            components, texts = _components(path, manifest), BundleTexts.load(path)
            checks = _read_checks(path)
        except (DataError, SafetensorError, KeyError, OSError, ValueError, RuntimeError) as error:
            raise BundleError(f"{path}: cannot be loaded: {line(error)}") from error
        bundle = cls(path, manifest, model, catalog, histories, codes, popularity, retriever, components, texts, checks)
        bundle._check()
        return bundle

    @property
    def model_version(self) -> str:
        """Version of the model."""
        return self.manifest.model_version

    @property
    def graph_path(self) -> Path | None:
        """The ``graph/`` folder, if the bundle contains one."""
        return self.path / "graph" if any(name.startswith("graph/") for name in self.manifest.files) else None

    @property
    def new(self) -> np.ndarray:
        """Mask of the items without training interactions, bool (I,)."""
        new: np.ndarray = self.popularity == 0
        return new

    @cached_property
    def attribute_vectors(self) -> AttributeVectors:
        """Items as vectors over attribute values, computed on first use."""
        return AttributeVectors(self.catalog.attributes, len(self.catalog))

    def featurizer(self) -> TextFeaturizer | None:
        """Return the bundle's text encoders, ``None`` without any; the sentence encoder is loaded on first use."""
        entry, lexical = self.manifest.encoder, self.path / "lexical"
        words = LexicalEncoder.load(lexical) if lexical.is_dir() else None
        sentence = None
        if entry is not None:
            sentence = TextEncoder(self.path / "encoder", max_length=entry.max_length, device="cpu")
        return None if words is None and sentence is None else TextFeaturizer(words, sentence)

    @property
    def text_rule(self) -> TextRule:
        """Rule for composing item texts."""
        return self.manifest.text or TextRule.of(self.catalog)

    def _check(self) -> None:
        """Check that the parts belong to one catalogue and one model, which checksums do not ensure."""
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
            "slots and weights are of different kinds": set(self.manifest.scorer.slots) != set(self.manifest.kinds),
            "texts and codes differ in length": self.texts is not None and len(self.texts.features) != items,
        }
        wrong |= {
            f"component '{name}' and codes differ in length": len(component.arcs) != items
            for name, component in self.components.items()
        }
        for reason, is_wrong in wrong.items():
            if is_wrong:
                raise BundleError(f"{self.path}: {reason}")


def _read_checks(path: Path) -> list[tuple[dict[str, Any], tuple[str, ...], tuple[float, ...]]]:
    """Read the stored requests as keywords of ``serving.engine.requests.Request``, with ids and scores."""
    if not (path / CHECKS).exists():  # a bundle that is being written
        return []
    try:
        found = Checks.model_validate_json((path / CHECKS).read_bytes()).checks
    except ValidationError as error:
        raise BundleError(f"{path / CHECKS}: damaged ({error.errors()[0]['msg']})") from error
    lists = [{k: tuple(v) if isinstance(v, list) else v for k, v in check.request.items()} for check in found]
    return [(request, check.item_ids, check.scores) for request, check in zip(lists, found, strict=True)]


def _components(path: Path, manifest: Manifest) -> dict[str, GraphComponent]:
    """Load the components with a weight in the score or in its second stage."""
    weights = manifest.scorer
    named = {name for name, weight in (*weights.components.items(), *weights.new_items.components.items()) if weight}
    for name in sorted(named - registry.kinds().keys()):
        raise BundleError(f"{path}: component '{name}' is unknown in this version")
    found = {}
    for name, component in load_components(manifest.components, path / "components").items():
        if not isinstance(component, GraphComponent):
            raise BundleError(f"{path}: component '{name}' is not an item graph and cannot be served")
        found[name] = component
    return found


def _tile(columns: Mapping[str, tuple[int, int]], width: int) -> bool:
    """Return whether the spans are adjacent and cover 0 to ``width``."""
    spans = sorted(columns.values())
    return [0, *(stop for _, stop in spans)] == [*(start for start, _ in spans), width]


def open_shard(path: Path, number: int) -> Retriever:
    """Open a shard of the index of the bundle at ``path``, which was verified by another process."""
    return shards.load_shard(path, load_index_codes(path, mapped(path / "codes.safetensors", "codes")), number)
