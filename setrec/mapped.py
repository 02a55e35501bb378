"""Memory-mapped arrays: tables of safetensors files, shared by a machine's processes, and parts written to disk."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np

_KINDS: dict[Any, str] = {np.float32: "F32", np.int32: "I32", np.int64: "I64"}


def mapped(file: Path, name: str, kind: type = np.float32) -> np.ndarray:
    """Return the tensor ``name`` of a safetensors file with verified content, read-only and not copied.

    Raises:
        KeyError: the file does not contain the tensor.
        ValueError: the tensor is not of that ``kind`` (float32, int32 or int64), or the header cannot be read.
    """
    with open(file, "rb") as content:
        length = int.from_bytes(content.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError(f"{file}: not a safetensors file")
        entry = json.loads(content.read(length))[name]
    if entry["dtype"] != _KINDS[kind]:
        raise ValueError(f"{file}: '{name}' is {entry['dtype']}, not {_KINDS[kind]}")
    shape = tuple(entry["shape"])
    if 0 in shape:
        return np.empty(shape, kind)
    return np.memmap(file, kind, "r", 8 + length + entry["data_offsets"][0], shape).view(np.ndarray)


def on_disk(parts: Iterable[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """Concatenate the arrays of all parts column by column, with one part in memory at a time.

    The results are read-only and memory-mapped from nameless files in the folder for temporary files (``TMPDIR``), so
    the system can drop their pages. A single part is returned as it is; ``parts`` has at least one.
    """
    each = iter(parts)
    first, second = next(each), next(each, None)
    if second is None:
        return first
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in first]
        for part in chain((first, second), each):
            for file, array in zip(files, part, strict=True):
                _append(file, array)
        return tuple(
            np.memmap(file, array.dtype, "r").view(np.ndarray) if file.tell() else np.empty(0, array.dtype)
            for file, array in zip(files, first, strict=True)
        )


def _append(file: IO[bytes], array: np.ndarray) -> None:
    try:
        file.write(np.ascontiguousarray(array).data)
        file.flush()
    except OSError as error:
        error.filename = error.filename or tempfile.gettempdir()
        raise
