"""The manifest of a bundle, and the verification of its files."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from pathlib import Path, PurePosixPath

import numpy as np
from pydantic import Field, FiniteFloat, ValidationError

from serving.bundle.texts import TextRule
from setrec.errors import BundleError
from setrec.scoring.hybrid import HybridWeights
from setrec.scoring.reranking import Reranker, components_of
from setrec.settings import Settings

FORMAT_VERSION = 4
MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
SUFFIXES = {
    "model": (".json", ".safetensors"),
    "graph": (".json", ".safetensors", ".parquet", ".npy"),
    "encoder": (".json", ".safetensors", ".txt", ".model"),
    "lexical": (".json", ".safetensors"),
    "components": (".safetensors",),
    "shards": (".json", ".faiss"),
}
"""Suffixes of the files that each folder of a bundle may contain."""


class FileEntry(Settings):
    """Size and checksum of one file."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class EncoderEntry(Settings):
    """Settings of the sentence encoder in ``encoder/``: texts are truncated at ``max_length`` tokens."""

    max_length: int = Field(ge=1)


class Agreement(Settings):
    """Share of the dense route's ``k`` best items in the answers to ``queries`` users, with a 95% interval."""

    recall: float
    low: float
    high: float
    queries: int
    k: int


class Manifest(Settings):
    """The content of ``manifest.json``. ``created`` is UTC; ``model_version`` defaults to a hash of the content.

    ``scorer``: the weights of the hybrid score. ``encoder``: settings of the sentence encoder, if any. ``text``: the
    rule for composing item texts. ``agreement``: the audit of the bundle's answers at export. ``event_weights``: the
    weights in training by type of event. ``reranker``: the second stage, if any.
    """

    format_version: int = Field(strict=True, ge=1)
    created: datetime
    model_version: str = Field(min_length=1, max_length=200)
    libraries: dict[str, str]
    kinds: tuple[str, ...]
    code_columns: dict[str, tuple[int, int]]
    scorer: HybridWeights
    counts: dict[str, int]
    files: dict[str, FileEntry]
    encoder: EncoderEntry | None = None
    text: TextRule | None = None
    agreement: Agreement | None = None
    event_weights: dict[str, FiniteFloat] = Field(default_factory=dict)
    reranker: Reranker | None = None

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the components in the bundle."""
        return components_of(self.scorer, self.reranker)


def verify(path: Path) -> Manifest:
    """Verify every file of the bundle at ``path`` against its manifest, and return the manifest.

    Raises:
        BundleError: see :meth:`Bundle.open`.
    """
    manifest = _read_manifest(path)
    _require_safe_names(path, manifest)
    present = {p.relative_to(path).as_posix(): p for p in path.rglob("*") if p.is_symlink() or not p.is_dir()}
    for name in sorted(present.keys() - manifest.files.keys() - {MANIFEST, SIGNATURE}):
        raise BundleError(f"{path / name}: not listed in the manifest")
    for name, entry in sorted(manifest.files.items()):
        file = present.get(name)
        if file is None:
            raise BundleError(f"{path / name}: missing")
        if file.is_symlink() or not file.is_file():
            raise BundleError(f"{file}: not a regular file")
        if (size := file.stat().st_size) != entry.bytes:
            raise BundleError(f"{file}: {size} bytes where the manifest says {entry.bytes} (truncated or altered)")
        if sha256(file) != entry.sha256:
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
    if isinstance(found, int) and found < FORMAT_VERSION:
        raise BundleError(
            f"{file}: format {found} is older than {FORMAT_VERSION}, the oldest this version reads: export again"
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise BundleError(f"{file}: damaged ({'.'.join(map(str, first['loc']))}: {first['msg']})") from error


def _require_safe_names(path: Path, manifest: Manifest) -> None:
    for name in manifest.files:
        pure = PurePosixPath(name)
        inside = not pure.is_absolute() and ".." not in pure.parts and "\\" not in name and str(pure) == name
        if not inside or not pure.parts or name in (MANIFEST, SIGNATURE):
            raise BundleError(f"{path / MANIFEST}: {name!r} is not a path inside the bundle")
        if (kind := pure.parts[0]) in SUFFIXES and pure.suffix not in SUFFIXES[kind]:
            raise BundleError(f"{path / MANIFEST}: {name!r} is not a kind of file a {kind} may consist of")


def _require_plain_array(file: Path) -> None:
    """Refuse NumPy arrays of Python objects, which are pickles; only the header is read."""
    try:
        np.lib.format.open_memmap(file, mode="r")
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise BundleError(f"{file}: not an array of numbers: {line(error)}") from error


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def line(error: BaseException) -> str:
    """Return an error's message in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
