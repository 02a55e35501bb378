"""Fixtures shared by all tests: a small catalogue with features, and small models on it. No network anywhere."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import numpy as np
import pytest
import torch

from setrec.backbone import BackboneSettings
from setrec.model import ModelSettings, SetRecModel
from setrec.tokens import ItemFeatures

torch.set_num_threads(1)

ITEMS = 40
FAMILIES = ("qwen3", "qwen2", "t5")


def pytest_addoption(parser):
    parser.addoption("--fuzz-cases", type=int, default=200, help="requests of tests/serving/test_fuzz.py")


@pytest.fixture(scope="session")
def features() -> ItemFeatures:
    rng = np.random.default_rng(0)
    return ItemFeatures(
        trained=np.arange(ITEMS) % 10 != 9,
        collaborative=rng.normal(size=(ITEMS, 64)).astype(np.float32),
        text=rng.normal(size=(ITEMS, 32)).astype(np.float32),
        extra={"structural": rng.normal(size=(ITEMS, 8)).astype(np.float32)},
    )


def small_model(features: ItemFeatures, family: str = "qwen3", history: str = "set", **changes) -> SetRecModel:
    """A two-layer model in evaluation mode, the same weights at every call."""
    torch.manual_seed(7)
    settings = ModelSettings(
        backbone=BackboneSettings(family=family), history=history, semantic_tokens=3, hidden=(48, 24), **changes
    )
    model = SetRecModel.build(settings, features).eval()
    # Biases start at zero, where a forgotten constant would go unnoticed.
    with torch.no_grad():
        for name, parameter in model.tokens.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
        model.queries.normal_(std=1.0)
    return model


@pytest.fixture(scope="session", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="session", params=["set", "fused"])
def history(request) -> str:
    return request.param


@pytest.fixture
def model(features, family, history) -> SetRecModel:
    return small_model(features, family, history)
