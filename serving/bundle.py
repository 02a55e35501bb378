"""The one thing training hands to serving: a directory with a manifest, versions and checksums.

File by file:

- ``manifest.json``: format, model version, libraries, slot weights, size and sha256 of every other file
- ``model/``: the recommender (config.json, model.safetensors)
- ``codes.safetensors``: folded item codes, float32 (I, D)
- ``popularity.safetensors``: training interactions of each item, int64 (I,)
- ``items.parquet``: the catalogue; ``histories.parquet``: the known users
- ``index.faiss``, ``retriever.json``: the candidate index
- ``graph/``, where there is one: a graph, its node tokenizer and the model that reads them, in sub-folders

No file can carry code: Parquet, JSON, safetensors, NumPy arrays without Python objects and FAISS's own format are all
there is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
from pydantic import Field, FiniteFloat, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from serving.retriever import Retriever, RetrieverSettings
from setrec.atomic import atomic_directory
from setrec.catalog import Catalog, Histories
from setrec.errors import BundleError, DataError
from setrec.ragged import Ragged
from setrec.settings import Settings

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_LIBRARIES = ("setrec", "torch", "transformers", "faiss-cpu", "numpy", "pyarrow", "safetensors")
_SUFFIXES = {"model": (".json", ".safetensors"), "graph": (".json", ".safetensors", ".parquet", ".npy")}


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

    def user_codes(self, histories: Ragged, weights: Mapping[str, float], codes: Tensor) -> Tensor:
        """Folded user codes, float32 (B, D), in one pass; ``codes`` (I, D) are the item codes, computed once."""
        ...


EncoderLoader = Callable[[Path], UserEncoder]


def load_setrec(path: Path) -> UserEncoder:
    """The recommender from a ``model/`` directory, in evaluation mode; safetensors only, nothing from the network."""
    from setrec.model import SetRecModel

    return SetRecModel.from_pretrained(path, use_safetensors=True, local_files_only=True).eval()


class FileEntry(Settings):
    """Size and checksum of one file."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Manifest(Settings):
    """What ``manifest.json`` says. ``created`` is UTC; ``model_version`` defaults to a hash of all other files."""

    format_version: int = Field(strict=True, ge=1)
    created: datetime
    model_version: str = Field(min_length=1, max_length=200)
    libraries: dict[str, str]
    kinds: tuple[str, ...]
    code_columns: dict[str, tuple[int, int]]
    weights: dict[str, FiniteFloat]
    counts: dict[str, int]
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: ``codes`` float32 (I, D), ``popularity`` int64 (I,), everything else as its type says."""

    path: Path
    manifest: Manifest
    model: UserEncoder
    catalog: Catalog
    histories: Histories
    codes: np.ndarray
    popularity: np.ndarray
    retriever: Retriever

    @classmethod
    def open(cls, path: str | Path, load_encoder: EncoderLoader = load_setrec) -> Bundle:
        """Check every file against the manifest, then load.

        Raises:
            BundleError: no bundle, a newer format, or a missing, unexpected, truncated or altered file.
        """
        path = Path(path)
        manifest = verify(path)
        try:
            codes = np.ascontiguousarray(load_file(path / "codes.safetensors")["codes"], dtype=np.float32)
            popularity = load_file(path / "popularity.safetensors")["counts"]
            catalog, histories = Catalog.load(path / "items.parquet"), Histories.load(path / "histories.parquet")
            retriever = Retriever.load(path, codes)
            model = load_encoder(path / "model")
        except (DataError, SafetensorError, KeyError, OSError, ValueError, RuntimeError) as error:
            raise BundleError(f"{path}: cannot be loaded: {_line(error)}") from error
        bundle = cls(path, manifest, model, catalog, histories, codes, popularity, retriever)
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
            "slots and weights are of different kinds": set(self.manifest.weights) != set(self.manifest.kinds),
        }
        for reason, is_wrong in wrong.items():
            if is_wrong:
                raise BundleError(f"{self.path}: {reason}")


def write_bundle(
    out: str | Path,
    *,
    model_dir: str | Path,
    catalog: Catalog,
    histories: Histories,
    item_codes: np.ndarray,
    weights: Mapping[str, float],
    retriever: RetrieverSettings | None = None,
    model_version: str | None = None,
    load_encoder: EncoderLoader = load_setrec,
    graph_dir: Path | None = None,
) -> Manifest:
    """Write a bundle: as a whole or, after an error, not at all; a bundle already at ``out`` stays until the end.

    ``item_codes`` float32 (I, D). Of ``model_dir`` only JSON and safetensors files are taken, of ``graph_dir`` and
    its sub-folders also Parquet and NumPy files.

    Raises:
        BundleError: ``out`` holds something that is no bundle, or the parts do not fit together.
    """
    out = Path(out)
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"{out}: exists and is no bundle; not replaced")
    if not (len(item_codes) == len(catalog) > histories.items.values.max(initial=-1)):
        raise BundleError(f"{out}: item codes, catalogue and histories are not of the same items")
    codes = np.ascontiguousarray(item_codes, dtype=np.float32)
    with atomic_directory(out) as target:
        _copy(Path(model_dir).glob("*"), Path(model_dir), target / "model")
        if graph_dir is not None:
            _copy(Path(graph_dir).rglob("*"), Path(graph_dir), target / "graph")
        catalog.save(target / "items.parquet")
        histories.save(target / "histories.parquet")
        save_file({"codes": codes}, target / "codes.safetensors")
        save_file({"counts": histories.train_counts(len(catalog))}, target / "popularity.safetensors")
        Retriever.build(codes, retriever or RetrieverSettings()).save(target)
        manifest = _describe(target, load_encoder(target / "model"), catalog, histories, weights, model_version)
        (target / MANIFEST).write_text(manifest.model_dump_json(indent=2))
        Bundle.open(target, load_encoder)
        _sync(target)
    _sync_one(out.parent)
    return manifest


def verify(path: Path) -> Manifest:
    """The manifest of the bundle at ``path``, after every file has been compared with it.

    Raises:
        BundleError: see :meth:`Bundle.open`.
    """
    manifest = _read_manifest(path)
    _require_safe_names(path, manifest)
    present = {p.relative_to(path).as_posix(): p for p in path.rglob("*") if p.is_symlink() or not p.is_dir()}
    for name in sorted(present.keys() - manifest.files.keys() - {MANIFEST}):
        raise BundleError(f"{path / name}: not listed in the manifest")
    for name, entry in sorted(manifest.files.items()):
        file = present.get(name)
        if file is None:
            raise BundleError(f"{path / name}: missing")
        if file.is_symlink() or not file.is_file():
            raise BundleError(f"{file}: not a regular file")
        if (size := file.stat().st_size) != entry.bytes:
            raise BundleError(f"{file}: {size} bytes where the manifest says {entry.bytes} (truncated or altered)")
        if _sha256(file) != entry.sha256:
            raise BundleError(f"{file}: altered (its sha256 is not the manifest's)")
        if file.suffix == ".npy":
            _require_plain_array(file)
    return manifest


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    if not file.is_file():
        raise BundleError(f"{path}: not a bundle (no {MANIFEST})")
    try:
        raw = json.loads(file.read_bytes())
        found = raw["format_version"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise BundleError(f"{file}: damaged (not a manifest)") from error
    if isinstance(found, int) and found > FORMAT_VERSION:
        raise BundleError(f"{file}: format {found} is newer than {FORMAT_VERSION}, the newest this version reads")
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise BundleError(f"{file}: damaged ({'.'.join(map(str, first['loc']))}: {first['msg']})") from error


def _require_safe_names(path: Path, manifest: Manifest) -> None:
    for name in manifest.files:
        pure = PurePosixPath(name)
        inside = not pure.is_absolute() and ".." not in pure.parts and "\\" not in name and str(pure) == name
        if not inside or not pure.parts or name == MANIFEST:
            raise BundleError(f"{path / MANIFEST}: {name!r} is not a path inside the bundle")
        if (kind := pure.parts[0]) in _SUFFIXES and pure.suffix not in _SUFFIXES[kind]:
            raise BundleError(f"{path / MANIFEST}: {name!r} is not a kind of file a {kind} may consist of")


def _require_plain_array(file: Path) -> None:
    """A NumPy array of Python objects is a pickle; its header says so, and a header is all that is read here."""
    try:
        np.lib.format.open_memmap(file, mode="r")
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise BundleError(f"{file}: not an array of numbers: {_line(error)}") from error


def _describe(
    path: Path,
    model: UserEncoder,
    catalog: Catalog,
    histories: Histories,
    weights: Mapping[str, float],
    model_version: str | None,
) -> Manifest:
    files = {
        p.relative_to(path).as_posix(): FileEntry(sha256=_sha256(p), bytes=p.stat().st_size)
        for p in sorted(path.rglob("*"))
        if p.is_file()
    }
    content = json.dumps([[[name, entry.sha256] for name, entry in files.items()], sorted(weights.items())])
    return Manifest(
        format_version=FORMAT_VERSION,
        created=datetime.now(UTC),
        model_version=model_version or hashlib.sha256(content.encode()).hexdigest()[:12],
        libraries={name: found for name in _LIBRARIES if (found := _version(name))},
        kinds=tuple(model.kinds),
        code_columns=dict(model.code_columns),
        weights=dict(weights),
        counts={"items": len(catalog), "users": len(histories), "interactions": len(histories.items.values)},
        files=files,
    )


def _copy(files: Iterable[Path], source: Path, target: Path) -> None:
    """Copy what ``target``, named for its kind, may consist of; sub-folders keep their names."""
    target.mkdir()
    for file in sorted(files):
        if file.is_file() and file.suffix in _SUFFIXES[target.name]:
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    if not any(target.iterdir()):
        raise BundleError(f"{source}: holds no {target.name}")


def _tile(columns: Mapping[str, tuple[int, int]], width: int) -> bool:
    """Whether the spans lie side by side from 0 to ``width``."""
    spans = sorted(columns.values())
    return [0, *(stop for _, stop in spans)] == [*(start for start, _ in spans), width]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
