"""The compiled norms and attention inputs of a backbone give the states and gradients of transformers' own modules."""

import copy

import pytest
import torch

from setrec.models import backbones
from setrec.models.backbones import build_backbone, scratch_config

FUSED = {"qwen3": ("FusedQwen3RMSNorm", "FusedQwen3Attention"), "qwen2": ("FusedQwen2RMSNorm",)}


def both(monkeypatch, family):
    """A backbone with compiled layers, and one with transformers' own and equal weights."""
    torch.manual_seed(0)
    config = scratch_config(family, "tiny", 0.0)
    fused = build_backbone(config)
    monkeypatch.setattr(backbones, "fuse", lambda model: None)
    plain = build_backbone(config)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    plain.load_state_dict(fused.state_dict())
    names = {type(module).__name__ for module in fused.modules()}
    assert names.issuperset(FUSED[family])
    assert not any(type(module).__name__.startswith("Fused") for module in plain.modules())
    return fused, plain


def passed(backbone, dtype=torch.float32, shared=99, monkeypatch=None):
    """States, and gradients of inputs and weights, by name."""
    monkeypatch.setattr(backbones, "SHARED", shared)
    generator = torch.Generator().manual_seed(1)
    start, items = (
        torch.randn(*shape, backbone.width, generator=generator).requires_grad_() for shape in ((4,), (5, 9))
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        states = backbone.read(start, items)
    states.backward(torch.randn(states.shape, generator=generator))
    weights = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
    return {"states": states.detach(), "start": start.grad, "items": items.grad, **weights}


@pytest.mark.parametrize("family", ["qwen3", "qwen2"])
@pytest.mark.parametrize("shared", [99, 1], ids=["at once", "instruction first"])
def test_states_and_gradients_are_those_of_the_plain_modules(monkeypatch, family, shared):
    fused, plain = (passed(own, shared=shared, monkeypatch=monkeypatch) for own in both(monkeypatch, family))
    assert fused.keys() == plain.keys()
    for name, expected in plain.items():
        tolerance = 1e-5 * float(expected.abs().max())
        torch.testing.assert_close(fused[name], expected, rtol=1e-4, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def test_in_bf16_they_differ_by_its_rounding(monkeypatch):
    fused, plain = (passed(own, torch.bfloat16, monkeypatch=monkeypatch) for own in both(monkeypatch, "qwen3"))
    for name, expected in plain.items():
        assert float((fused[name] - expected).norm() / expected.norm()) < 0.02, name


def test_a_copied_backbone_computes_with_its_own_weights(monkeypatch):
    fused, _ = both(monkeypatch, "qwen3")
    copied = copy.deepcopy(fused)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.zero_()
    start, items = torch.zeros(0, fused.width), torch.randn(2, 3, fused.width)
    assert copied.read(start, items).any()
    assert not fused.read(start, items).any()
