"""Files in any location: a local path, or a URI such as ``s3://bucket/folder`` or ``gs://bucket/folder``.

URIs have the form that pyarrow accepts: ``s3://KEY:SECRET@bucket/folder?region=eu-west-1``, for a private store
``?endpoint_override=127.0.0.1%3A9000&scheme=http&region=us-east-1``, for public data in Google's store
``gs://anonymous@bucket/folder``. Without keys in the URI those of the environment are used.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import pyarrow as pa
from pyarrow import fs

from setrec.errors import ConfigError

_URI = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
_SECRETS = re.compile(r"//[^/@]*@")


def is_uri(where: str | Path) -> bool:
    """Return whether ``where`` is a URI and not a local path."""
    return bool(_URI.match(str(where)))


def filesystem(where: str | Path) -> tuple[fs.FileSystem, str]:
    """Return the file system of a local path or a URI, and the path in it.

    Raises:
        ConfigError: the URI cannot be parsed, or its store cannot be reached to determine its region.
    """
    if not is_uri(where):
        return fs.LocalFileSystem(), os.path.abspath(where)
    try:
        system, path = fs.FileSystem.from_uri(str(where))
    except (pa.ArrowException, OSError, ValueError) as error:
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise ConfigError(f"{shown(where)}: not a usable URI ({_SECRETS.sub('//', reason)})") from error
    if not path.strip("/"):
        raise ConfigError(f"{shown(where)}: not a usable URI (it names no bucket and no folder)")
    return system, path.rstrip("/")


def shown(where: str | Path) -> str:
    """Return a path or URI for messages: without keys and options."""
    return _SECRETS.sub("//", str(where)).partition("?")[0] if is_uri(where) else str(where)


def join(where: str | Path, *names: str) -> str:
    """Return a path or URI below another; the options of a URI stay at its end."""
    if not is_uri(where):
        return os.path.join(where, *names)
    head, mark, options = str(where).partition("?")
    return "/".join([head.rstrip("/"), *names]) + mark + options


def exists(where: str | Path) -> bool:
    """Return whether a file or folder exists."""
    system, path = filesystem(where)
    return bool(system.get_file_info(path).type != fs.FileType.NotFound)


def is_folder(where: str | Path) -> bool:
    """Return whether a folder exists; in an object store, whether there are objects below that name."""
    system, path = filesystem(where)
    return bool(system.get_file_info(path).type == fs.FileType.Directory)


def files(where: str | Path, suffix: str = "") -> list[fs.FileInfo]:
    """Return all files below a folder whose names end in ``suffix``, sorted by path, or the file itself.

    Names of files or folders that begin with a dot or an underscore are left out, as every Parquet reader does: they
    are temporary files and markers. The list is empty if nothing exists there.
    """
    system, path = filesystem(where)
    info = system.get_file_info(path)
    if info.type == fs.FileType.File:
        return [info]
    found = system.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
    kept = [i for i in found if i.type == fs.FileType.File and i.path.endswith(suffix) and _visible(i.path, path)]
    return sorted(kept, key=lambda i: i.path)


def _visible(path: str, folder: str) -> bool:
    return not any(part.startswith((".", "_")) for part in path.removeprefix(folder).split("/"))


def make_folder(system: fs.FileSystem, path: str) -> None:
    """Make a folder and those above it, where a file system has folders."""
    if system.type_name not in ("s3", "gcs"):  # object stores have none
        system.create_dir(path, recursive=True)


@contextmanager
def atomic_stream(where: str | Path) -> Iterator[IO[bytes]]:
    """Open a stream to a temporary file next to ``where``, which is renamed when the block ends without an error.

    Readers see the old file or the new one, never a part. Missing parent folders are created. A file in S3 may have at
    most 5 GB, because larger ones cannot be renamed there.
    """
    system, path = filesystem(where)
    parent, _, name = path.rpartition("/")
    make_folder(system, parent)
    temporary = f"{parent}/.{name}.{uuid.uuid4().hex}.tmp"
    try:
        with system.open_output_stream(temporary) as stream:
            yield stream
        system.move(temporary, path)
    except BaseException:
        with suppress(OSError):
            system.delete_file(temporary)
        raise
