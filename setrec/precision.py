"""bf16 where the device multiplies it natively, float32 elsewhere."""

from __future__ import annotations

from typing import Literal

import torch

from setrec.settings import Precision


def resolve(asked: Precision, device: torch.device) -> Literal["bf16", "float32"]:
    """What ``auto`` means on this device."""
    if asked != "auto":
        return asked
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_bf16()
    return "bf16" if native else "float32"


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which a forward pass runs."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=resolve(precision, device) == "bf16")


def _cpu_bf16() -> bool:
    """Whether the processor has bf16 products; without them they are emulated, and slower than float32."""
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe is not None and probe())
