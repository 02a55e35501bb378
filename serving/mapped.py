"""Tables of a bundle as they lie on disk: paged in where they are read, and shared by all replicas of a machine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def mapped(file: Path, name: str) -> np.ndarray:
    """The float32 tensor ``name`` of a safetensors file whose content has been checked, read-only and not copied.

    Raises:
        KeyError: the file holds no such tensor.
        ValueError: the tensor is not of float32, or the header cannot be read.
    """
    with open(file, "rb") as content:
        length = int.from_bytes(content.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError(f"{file}: not a safetensors file")
        entry = json.loads(content.read(length))[name]
    if entry["dtype"] != "F32":
        raise ValueError(f"{file}: '{name}' is {entry['dtype']}, not F32")
    shape = tuple(entry["shape"])
    if 0 in shape:
        return np.empty(shape, np.float32)
    return np.memmap(file, np.float32, "r", 8 + length + entry["data_offsets"][0], shape).view(np.ndarray)
