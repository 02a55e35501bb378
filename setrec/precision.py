"""Precision: bf16 on devices with native bf16 products, float32 elsewhere."""

from __future__ import annotations

from typing import Literal

import torch

from setrec.settings import Precision

NARROW = 512
"""Models of less width are faster in float32 on a CPU with matrix units (AMX): these speed up the products alone, which
are then less than the conversions around them (a step of width 128 takes 1.5 times as long in bf16, of 256 as long, of
512 half as long; see ``benchmarks/bench_training_ceiling.py``)."""


def resolve(asked: Precision, device: torch.device, width: int = NARROW) -> Literal["bf16", "float32"]:
    """Return the precision for a model of this ``width`` on this device, resolving ``auto``."""
    if asked != "auto":
        return asked
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_bf16(width)
    return "bf16" if native else "float32"


def autocast(device: torch.device, precision: Precision, width: int = NARROW) -> torch.autocast:
    """Return the autocast context of a forward pass of a model of this ``width``."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=resolve(precision, device, width) == "bf16")


def _cpu_bf16(width: int) -> bool:
    """Return whether the CPU has bf16 products, which are otherwise emulated, and slower than float32, and whether they
    pay at this width."""
    has = {name: getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile")}
    return has["avx512_bf16"] and (width >= NARROW or not has["amx_tile"])
