"""Precision: bf16 on devices with native bf16 products, float32 elsewhere."""

from __future__ import annotations

from typing import Literal

import torch

from setrec.settings import Precision


def resolve(asked: Precision, device: torch.device) -> Literal["bf16", "float32"]:
    """Return the precision on this device, resolving ``auto``."""
    if asked != "auto":
        return asked
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_bf16()
    return "bf16" if native else "float32"


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the autocast context of a forward pass."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=resolve(precision, device) == "bf16")


def _cpu_bf16() -> bool:
    """Return whether the CPU has bf16 products; otherwise they are emulated, and slower than float32."""
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe is not None and probe())
