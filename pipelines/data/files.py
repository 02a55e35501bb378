"""The files of a table in any location: their names, compression and format."""

from __future__ import annotations

import fnmatch
import glob
import gzip
import os
import shutil
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.common import storage
from pipelines.data.settings import ReaderSettings
from setrec.errors import DataError

_FORMATS = {
    ".csv": ("csv", ","), ".tsv": ("csv", "\t"), ".dat": ("csv", None), ".txt": ("csv", None), ".json": ("jsonl", None),
    ".jsonl": ("jsonl", None), ".ndjson": ("jsonl", None), ".parquet": ("parquet", None), ".pq": ("parquet", None),
    ".inter": ("atomic", "\t"), ".item": ("atomic", "\t"), ".user": ("atomic", "\t"), ".kg": ("atomic", "\t"),
    ".link": ("atomic", "\t"),
}  # fmt: skip
_TRIES = 3
"""Attempts to fetch a file from its store before it counts as unreadable."""
_PACKED = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}


@dataclass(frozen=True)
class File:
    """One file of a table. ``shown``: its name in messages; ``path``: its path on this machine, ``None`` for one in a
    store; ``packed``: ``gzip``, ``zstd`` or nothing; ``delimiter``: as implied by its name."""

    number: int
    shown: str
    path: Path | None
    source: str
    format: str
    packed: str = ""
    delimiter: str | None = None
    settings: ReaderSettings = field(default_factory=ReaderSettings)

    def open(self) -> Any:
        """Return the unpacked bytes of a local file, a binary stream.

        Raises:
            OSError: it cannot be opened.
        """
        assert self.path is not None
        if self.packed == "gzip":
            return gzip.open(self.path, "rb")
        if self.packed == "zstd":
            return pa.CompressedInputStream(pa.OSFile(str(self.path)), "zstd")
        return open(self.path, "rb")


class EmptyFileError(DataError):
    """A file of text without any content. Jobs that write a table in parts leave such files."""

    def __init__(self, file: File) -> None:
        super().__init__("the file is empty", file=file.shown)


UNREADABLE = (OSError, EOFError, zlib.error, pa.ArrowException)
"""Errors raised by reading a damaged file."""


def unreadable(file: File, error: BaseException) -> DataError:
    """Return the one-line error for a file that cannot be read."""
    lines = str(error).strip().splitlines()
    return DataError(f"cannot be read ({lines[0] if lines else type(error).__name__})", file=file.shown)


def files_of(places: list[Path | str], settings: ReaderSettings) -> list[File]:
    """Return all files of a table: place by place, inside a folder or pattern in the order of their names.

    Raises:
        DataError: a place contains no files, or files whose format is unknown or differs.
    """
    found = [file for place in places for file in _files(place, settings)]
    return [replace(file, number=number) for number, file in enumerate(found)]


def _files(place: Path | str, settings: ReaderSettings) -> Iterator[File]:
    shown = storage.shown(place)
    try:
        names, single = _listed(place)
    except OSError as error:
        raise DataError(f"cannot be read ({str(error).splitlines()[0]})", file=shown) from error
    if not names:
        raise DataError("no such file or folder", file=shown)
    known = [name for name in names if single or settings.format is not None or _kind(name, settings)[0] is not None]
    if not known:
        raise DataError(f"no file of a known format is there (known: {', '.join(_FORMATS)})", file=shown)
    formats = {_kind(name, settings)[0] for name in known}
    if len(formats) > 1:
        kinds = ", ".join(sorted(map(str, formats)))
        raise DataError(f"holds files of several formats ({kinds}): name the files by a pattern", file=shown)
    for name in known:
        format_, packed, delimiter = _kind(name, settings)
        if format_ is None:
            raise DataError(f"unknown format '{Path(name).suffix}' (known: {', '.join(_FORMATS)})", file=name)
        remote = storage.is_uri(place)
        yield File(0, name, None if remote else Path(name), str(place), format_, packed, delimiter, settings)


def _listed(place: Path | str) -> tuple[list[str], bool]:
    """Return the files of a place, and whether the place is itself a file."""
    text = str(place)
    magic = min((text.find(sign) for sign in "*?[" if sign in text), default=-1)
    if storage.is_uri(place):
        head, _, options = text.partition("?")
        if "*" not in head:
            infos = storage.files(place)
            path = storage.filesystem(place)[1]
            return [info.path for info in infos], [info.path for info in infos] == [path]
        folder = head[: head.index("*")].rpartition("/")[0] + (f"?{options}" if options else "")
        base, wanted = storage.filesystem(folder)[1], head[len(folder.partition("?")[0]) :]
        infos = storage.files(folder)
        return [i.path for i in infos if fnmatch.fnmatchcase(i.path.removeprefix(base), wanted)], False
    if magic >= 0 and not os.path.exists(text):
        return sorted(name for name in glob.glob(text, recursive=True) if os.path.isfile(name)), False
    if os.path.isdir(text):
        shown = os.path.abspath(text)
        return [os.path.join(text, os.path.relpath(info.path, shown)) for info in storage.files(text)], False
    return ([text] if os.path.exists(text) else []), True


def _kind(name: str, settings: ReaderSettings) -> tuple[str | None, str, str | None]:
    """Return format, compression and delimiter, from the settings or from the name."""
    stem, suffix = os.path.splitext(name.lower())
    packed = _PACKED.get(suffix, "")
    if packed:
        suffix = os.path.splitext(stem)[1]
    format_, delimiter = _FORMATS.get(suffix, (None, None))
    return settings.format or format_, packed, delimiter


@contextmanager
def on_this_machine(file: File, scratch: Path) -> Iterator[File]:
    """Provide the file as a local UTF-8 file: fetched from its store, and converted from another encoding.

    Files made for this are removed after the block.

    Raises:
        DataError: it cannot be read, or is empty.
    """
    local = file
    kept: list[Path] = []
    try:
        if file.path is None:
            local = replace(file, path=scratch / f"fetched-{file.number}{Path(file.shown).suffix}")
            kept.append(local.path)  # type: ignore[arg-type]
            _fetch(file, kept[-1])
        assert local.path is not None
        if local.path.stat().st_size == 0:
            raise EmptyFileError(file) if file.format != "parquet" else DataError("the file is empty", file=file.shown)
        if file.format != "parquet" and _codec(file.settings.encoding) != "utf-8":
            kept.append(scratch / f"utf8-{file.number}")
            _transcode(local, kept[-1])
            local = replace(local, path=kept[-1], packed="")
        yield local
    except UNREADABLE as error:
        raise unreadable(file, error) from error
    finally:
        for path in kept:
            path.unlink(missing_ok=True)


def _fetch(file: File, target: Path) -> None:
    system = storage.filesystem(file.source)[0]
    for attempt in range(1, _TRIES + 1):
        try:
            with system.open_input_stream(file.shown, compression=None) as source, open(target, "wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
            return
        except (FileNotFoundError, PermissionError):
            raise
        except OSError:
            if attempt == _TRIES:
                raise
            time.sleep(attempt)


def _codec(name: str) -> str:
    import codecs

    return codecs.lookup(name).name


def _transcode(file: File, target: Path) -> None:
    """Write the file as UTF-8; bytes that its encoding does not have stay invalid UTF-8, so that their row is
    rejected."""
    import codecs

    decoder: Any = codecs.getincrementaldecoder(file.settings.encoding)("surrogateescape")
    with file.open() as source, open(target, "wb") as out:
        while block := source.read(1 << 20):
            out.write(decoder.decode(block).encode("utf-8", "surrogatepass"))
        out.write(decoder.decode(b"", final=True).encode("utf-8", "surrogatepass"))
