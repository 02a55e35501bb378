"""Memory-mapped tables of safetensors files, loaded on access and shared by a machine's processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
