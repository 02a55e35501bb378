"""Atomic writing of bundles."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from safetensors.numpy import save_file

from serving.bundle.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    SUFFIXES,
    Agreement,
    EncoderEntry,
    FileEntry,
    Manifest,
    sha256,
)
from serving.bundle.reader import CHECKS, Bundle, Checks, EncoderLoader, UserEncoder, load_setrec
from serving.bundle.texts import BundleTexts, TextRule
from serving.retrieval import shards
from serving.retrieval.index_codes import IndexCodes
from serving.retrieval.retriever import Retriever, RetrieverSettings, is_exact
from setrec.atomic import atomic_directory
from setrec.data.catalog import Catalog, Histories
from setrec.data.events import read
from setrec.errors import BundleError
from setrec.scoring import registry
from setrec.scoring.hybrid import HybridWeights
from setrec.scoring.registry import Component
from setrec.scoring.reranking import Reranker, components_of
from setrec.scoring.text_features import TextFeaturizer
from setrec.scoring.text_similarity import TextFeatures
from setrec.text.encoder import TextEncoder

_LIBRARIES = ("setrec", "torch", "transformers", "faiss-cpu", "numpy", "pyarrow", "safetensors")
_BATCH = 64

Examine = Callable[[Bundle], tuple[Checks, Agreement]]
"""Answers requests from an opened bundle; returns the checks to store, and the agreement with the dense route."""


def write_bundle(
    out: str | Path,
    *,
    model_dir: str | Path,
    catalog: Catalog,
    histories: Histories,
    item_codes: np.ndarray,
    scorer: HybridWeights,
    components: Mapping[str, Component] = MappingProxyType({}),
    featurizer: TextFeaturizer | None = None,
    text_features: TextFeatures | None = None,
    text_center: np.ndarray | None = None,
    retriever: RetrieverSettings | None = None,
    model_version: str | None = None,
    load_encoder: EncoderLoader = load_setrec,
    graph_dir: Path | None = None,
    event_weights: Mapping[str, float] = MappingProxyType({}),
    reranker: Reranker | None = None,
    examine: Examine,
) -> Manifest:
    """Write a bundle atomically; a bundle already at ``out`` stays until the end.

    ``item_codes`` float32 (I, D). ``components``: those with a weight in ``scorer``, by name; others are left out.
    ``featurizer``: the encoder of the items' text vectors; without it no items can be added to the served bundle.
    ``text_features``: those of the catalogue's texts, around ``text_center`` float32 (w,). Only files with suffixes in
    :data:`serving.bundle.manifest.SUFFIXES` are copied: from ``model_dir`` JSON and safetensors, from ``graph_dir`` and
    its sub-folders also Parquet and NumPy files. ``examine``: :func:`serving.engine.acceptance.examine`, a parameter
    because it depends on the engine. ``event_weights``: those of the histories. ``reranker``: the second stage, whose
    components are among ``components``.

    Raises:
        BundleError: ``out`` exists and is not a bundle, or the parts do not fit together.
    """
    out = Path(out)
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"{out}: exists and is not a bundle; not replaced")
    if not (len(item_codes) == len(catalog) > histories.items.values.max(initial=-1)):
        raise BundleError(f"{out}: item codes, catalogue and histories are not of the same items")
    with atomic_directory(out) as target:
        _copy(Path(model_dir).glob("*"), Path(model_dir), target / "model")
        if graph_dir is not None:
            _copy(Path(graph_dir).rglob("*"), Path(graph_dir), target / "graph")
        encoder = None if featurizer is None else _save_featurizer(featurizer, target)
        catalog.save(target / "items.parquet")
        histories.save(target / "histories.parquet")
        model, counts = load_encoder(target / "model"), histories.train_counts(len(catalog))
        codes = np.array(item_codes, dtype=np.float32, order="C")
        if max(stop for _, stop in model.code_columns.values()) != codes.shape[1]:
            raise BundleError("the slots do not cover the codes")
        if set(scorer.slots) != set(model.kinds):
            raise BundleError("slots and weights are of different kinds")
        save_file({"codes": codes}, target / "codes.safetensors")
        save_file({"counts": counts}, target / "popularity.safetensors")
        names = components_of(scorer, reranker)
        _save_components(names, components, target)
        if featurizer is not None and text_features is not None and any(registry.kinds()[n].of_content for n in names):
            BundleTexts(text_features, text_center).save(target)
        queries = partial(_queries, model, histories, scorer.slots, codes)
        _save_index(codes, counts == 0, IndexCodes(scorer.new_items), retriever or RetrieverSettings(), queries, target)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            created=datetime.now(UTC),
            model_version=model_version or _version_of(target, scorer, reranker),
            libraries={name: found for name in _LIBRARIES if (found := _version(name))},
            kinds=tuple(model.kinds),
            code_columns=dict(model.code_columns),
            scorer=scorer,
            counts={"items": len(catalog), "users": len(histories), "interactions": len(histories.items.values)},
            files=_files(target),
            encoder=encoder,
            text=TextRule.of(catalog),
            event_weights=dict(event_weights),
            reranker=reranker,
        )
        manifest = _with_checks(target, manifest, load_encoder, examine)
        _sync(target)
    _sync_one(out.parent)
    return manifest


def _save_featurizer(featurizer: TextFeaturizer, target: Path) -> EncoderEntry | None:
    """Write ``lexical/`` and ``encoder/``; return the manifest entry of the latter."""
    if featurizer.lexical is not None:
        featurizer.lexical.save(target / "lexical")
    sentence = featurizer.sentence
    if sentence is None:
        return None
    if not isinstance(sentence, TextEncoder):
        raise BundleError("a bundle needs a sentence encoder that is a directory of files")
    _copy(sentence.files, sentence.directory, target / "encoder")
    return EncoderEntry(max_length=sentence.max_length)


def _save_components(names: Iterable[str], components: Mapping[str, Component], target: Path) -> None:
    if missing := sorted(set(names) - components.keys()):
        raise BundleError(f"component '{missing[0]}' has a weight but is missing")
    for name in names:
        (target / "components").mkdir(exist_ok=True)
        components[name].save(target / "components" / f"{name}.safetensors")


def _save_index(
    codes: np.ndarray,
    new: np.ndarray,
    space: IndexCodes,
    settings: RetrieverSettings,
    queries: Callable[[int], np.ndarray],
    target: Path,
) -> None:
    """Build and write the index: over the codes, or over transformed ones if it is approximate and new items have
    separate weights. Items added later are new even if none of the bundle's is."""
    if space.is_trivial or is_exact(settings, codes):
        shards.build(codes, settings, queries, target)
        return
    other = space.of_items(codes, new)
    built = shards.build(other, settings, lambda count: space.of_users(queries(count)), target)
    if built.kind == "exact":
        Retriever.build(codes, settings.model_copy(update={"kind": "exact"})).save(target)
    else:
        space.save(target, other)


def _queries(
    model: UserEncoder, histories: Histories, weights: Mapping[str, float], codes: np.ndarray, count: int
) -> np.ndarray:
    """Return the index queries of up to ``count`` users, float32 (Q, D), for tuning and audit."""
    known = np.flatnonzero(histories.items.lengths)
    users = known[np.linspace(0, len(known) - 1, min(count, len(known))).astype(int)] if len(known) else known
    table, found = torch.from_numpy(codes), [np.empty((0, codes.shape[1]), np.float32)]
    with torch.inference_mode():
        for start in range(0, len(users), _BATCH):
            rows = read(histories.items.take(users[start : start + _BATCH]))
            found.append(model.user_codes(rows, weights, table).float().cpu().numpy())
    return np.concatenate(found)


def _with_checks(path: Path, manifest: Manifest, load_encoder: EncoderLoader, examine: Examine) -> Manifest:
    """Open the written bundle, examine it, store the checks, and write the manifest that lists them."""
    (path / MANIFEST).write_text(manifest.model_dump_json(indent=2))
    checks, agreement = examine(Bundle.open(path, load_encoder))
    (path / CHECKS).write_text(checks.model_dump_json(indent=1))
    manifest = manifest.model_copy(update={"files": _files(path), "agreement": agreement})
    (path / MANIFEST).write_text(manifest.model_dump_json(indent=2))
    return manifest


def _files(path: Path) -> dict[str, FileEntry]:
    return {
        p.relative_to(path).as_posix(): FileEntry(sha256=sha256(p), bytes=p.stat().st_size)
        for p in sorted(path.rglob("*"))
        if p.is_file() and p != path / MANIFEST
    }


def _version_of(path: Path, scorer: HybridWeights, reranker: Reranker | None) -> str:
    """Return a version that depends on content only, without the checks, which follow from the rest."""
    parts = [[[name, entry.sha256] for name, entry in _files(path).items()], scorer.model_dump()]
    content = json.dumps(parts if reranker is None else [*parts, reranker.model_dump()], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _copy(files: Iterable[Path], source: Path, target: Path) -> None:
    """Copy the files that ``target``, named by its kind, may contain; sub-folders keep their names."""
    target.mkdir()
    for file in sorted(files):
        if file.is_file() and file.suffix in SUFFIXES[target.name]:
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    if not any(target.iterdir()):
        raise BundleError(f"{source}: holds no {target.name}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _sync(directory: Path) -> None:
    for path in directory.rglob("*"):
        _sync_one(path)
    _sync_one(directory)


def _sync_one(path: Path) -> None:
    """Flush a file or directory to disk: before the rename, or a power failure could leave an empty bundle."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
