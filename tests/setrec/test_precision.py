"""``precision: auto`` is bf16 where that is faster."""

import pytest
import torch

from setrec import precision


@pytest.mark.parametrize(
    ("bf16", "matrix_units", "chosen"),
    [
        (False, False, {128: "float32", 512: "float32"}),
        (True, False, {128: "bf16", 512: "bf16"}),
        (True, True, {128: "float32", 512: "bf16"}),
    ],
)
def test_a_processor_with_matrix_units_computes_narrow_models_in_float32(monkeypatch, bf16, matrix_units, chosen):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: matrix_units, raising=False)
    cpu = torch.device("cpu")
    assert {width: precision.resolve("auto", cpu, width) for width in chosen} == chosen
    assert precision.resolve("bf16", cpu, 128) == "bf16"
    assert precision.resolve("float32", cpu, 512) == "float32"


def test_a_build_without_the_probes_computes_in_float32(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert precision.resolve("auto", torch.device("cpu"), 512) == "float32"
