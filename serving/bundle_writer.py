"""Writes a bundle: all of it or nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from serving.bundle import CHECKS, TRANSITIONS, Bundle, Check, Checks, EncoderLoader, UserEncoder, load_setrec
from serving.engine import Engine
from serving.manifest import FORMAT_VERSION, MANIFEST, SUFFIXES, EncoderEntry, FileEntry, Manifest, sha256
from serving.newcomers import Estimate, NewcomerSettings
from serving.requests import Answer, Request
from serving.retriever import Retriever, RetrieverSettings
from serving.texts import TextRule
from setrec.atomic import atomic_directory
from setrec.catalog import Catalog, Histories
from setrec.encoder import TextEncoder
from setrec.errors import BundleError
from setrec.walk import Walk

_LIBRARIES = ("setrec", "torch", "transformers", "faiss-cpu", "numpy", "pyarrow", "safetensors")
_CHECKED = 16  # requests whose answers are stored
_BATCH = 64


def write_bundle(
    out: str | Path,
    *,
    model_dir: str | Path,
    catalog: Catalog,
    histories: Histories,
    item_codes: np.ndarray,
    weights: Mapping[str, float],
    retriever: RetrieverSettings | None = None,
    newcomers: NewcomerSettings | None = None,
    encoder: TextEncoder | None = None,
    walk: Walk | None = None,
    model_version: str | None = None,
    load_encoder: EncoderLoader = load_setrec,
    graph_dir: Path | None = None,
) -> Manifest:
    """Write a bundle: as a whole or, after an error, not at all; a bundle already at ``out`` stays until the end.

    ``item_codes`` float32 (I, D). ``encoder``: the sentence encoder whose vectors the items' texts have; without it no
    item can be added to what is served. ``walk``: what transitions add to the scores. Of every folder only the kinds of
    files in :data:`serving.manifest.SUFFIXES` are taken: of ``model_dir`` JSON and safetensors, of ``graph_dir`` and
    its sub-folders also Parquet and NumPy files.

    Raises:
        BundleError: ``out`` holds something that is no bundle, or the parts do not fit together.
    """
    out = Path(out)
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"{out}: exists and is no bundle; not replaced")
    if not (len(item_codes) == len(catalog) > histories.items.values.max(initial=-1)):
        raise BundleError(f"{out}: item codes, catalogue and histories are not of the same items")
    with atomic_directory(out) as target:
        _copy(Path(model_dir).glob("*"), Path(model_dir), target / "model")
        if graph_dir is not None:
            _copy(Path(graph_dir).rglob("*"), Path(graph_dir), target / "graph")
        if encoder is not None:
            _copy(encoder.directory.glob("*"), encoder.directory, target / "encoder")
        catalog.save(target / "items.parquet")
        histories.save(target / "histories.parquet")
        model, newcomers = load_encoder(target / "model"), newcomers or NewcomerSettings()
        codes, counts = _codes(item_codes, model, histories, newcomers, target)
        save_file({"codes": codes}, target / "codes.safetensors")
        save_file({"counts": counts}, target / "popularity.safetensors")
        if walk is not None:
            walk.save(target / TRANSITIONS)
        queries = partial(_queries, model, histories, weights, codes)
        Retriever.build(codes, retriever or RetrieverSettings(), queries).save(target)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            created=datetime.now(UTC),
            model_version=model_version or _version_of(target, weights),
            libraries={name: found for name in _LIBRARIES if (found := _version(name))},
            kinds=tuple(model.kinds),
            code_columns=dict(model.code_columns),
            weights=dict(weights),
            counts={"items": len(catalog), "users": len(histories), "interactions": len(histories.items.values)},
            files=_files(target),
            encoder=None if encoder is None else EncoderEntry(max_length=encoder.max_length),
            text=TextRule.of(catalog),
            newcomers=newcomers,
        )
        manifest = _with_checks(target, manifest, load_encoder)
        _sync(target)
    _sync_one(out.parent)
    return manifest


def _codes(
    item_codes: np.ndarray, model: UserEncoder, histories: Histories, settings: NewcomerSettings, target: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Item codes and training counts; items of which nothing collaborative is known are coded as live items are."""
    codes = np.array(item_codes, dtype=np.float32, order="C")
    counts, columns = histories.train_counts(len(codes)), model.code_columns
    if max(stop for _, stop in columns.values()) != codes.shape[1]:
        raise BundleError("the slots do not cover the codes")
    estimate = Estimate.fit(codes, counts, columns, settings)
    if estimate is not None:
        estimate.save(target)
        estimate.complete(codes, counts == 0, columns)
    return codes, counts


def _queries(
    model: UserEncoder, histories: Histories, weights: Mapping[str, float], codes: np.ndarray, count: int
) -> np.ndarray:
    """What up to ``count`` users ask of the index, float32 (Q, D): what it is tuned for and audited with."""
    known = np.flatnonzero(histories.items.lengths)
    users = known[np.linspace(0, len(known) - 1, min(count, len(known))).astype(int)] if len(known) else known
    table, found = torch.from_numpy(codes), [np.empty((0, codes.shape[1]), np.float32)]
    with torch.inference_mode():
        for start in range(0, len(users), _BATCH):
            rows = histories.items.take(users[start : start + _BATCH])
            found.append(model.user_codes(rows, weights, table).float().cpu().numpy())
    return np.concatenate(found)


def _with_checks(path: Path, manifest: Manifest, load_encoder: EncoderLoader) -> Manifest:
    """Open what was written, store answers to some of its users, and list them in the manifest, which is written."""
    (path / MANIFEST).write_text(manifest.model_dump_json(indent=2))
    bundle = Bundle.open(path, load_encoder)
    lengths = np.flatnonzero(bundle.histories.items.lengths)
    users = lengths[np.linspace(0, len(lengths) - 1, min(_CHECKED, len(lengths))).astype(int)] if len(lengths) else []
    requests = [Request(user_id=bundle.histories.user_ids[user]) for user in users]
    answers = [answer for answer in Engine(bundle).recommend(requests) if isinstance(answer, Answer)]
    checks = tuple(
        Check(
            request={"user_id": request.user_id},
            item_ids=tuple(item.item_id for item in answer.items),
            scores=tuple(float(f"{item.score:.7g}") for item in answer.items),
        )
        for request, answer in zip(requests, answers, strict=True)
    )
    (path / CHECKS).write_text(Checks(checks=checks).model_dump_json(indent=1))
    manifest = manifest.model_copy(update={"files": _files(path)})
    (path / MANIFEST).write_text(manifest.model_dump_json(indent=2))
    return manifest


def _files(path: Path) -> dict[str, FileEntry]:
    return {
        p.relative_to(path).as_posix(): FileEntry(sha256=sha256(p), bytes=p.stat().st_size)
        for p in sorted(path.rglob("*"))
        if p.is_file() and p != path / MANIFEST
    }


def _version_of(path: Path, weights: Mapping[str, float]) -> str:
    """A name that depends on content alone; the checks are no part of it, they follow from the rest."""
    content = json.dumps([[[name, entry.sha256] for name, entry in _files(path).items()], sorted(weights.items())])
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _copy(files: Iterable[Path], source: Path, target: Path) -> None:
    """Copy what ``target``, named for its kind, may consist of; sub-folders keep their names."""
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
    """Files and directory entries must be on disk before the rename is, or a power cut leaves an empty bundle."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
