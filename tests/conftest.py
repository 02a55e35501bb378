"""Fixtures shared by all tests: a small catalogue with features, and small models on it. No network anywhere."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does
# Ray's workers give way to everything else unless told not to, and beside other work would hardly ever run.
os.environ.setdefault("RAY_worker_niceness", "0")
# Nor does a session start workers before there is work for them.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")

import hypothesis
import numpy as np
import pytest
import torch
from small_models import ITEMS, small_model

from setrec.models.item_tokens import ItemFeatures
from setrec.models.setrec_model import SetRecModel

torch.set_num_threads(1)
# No example has a time limit: beside other work any of them can be slow once.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# The two Qwens differ in little but where they normalise.
FAMILIES = ("qwen3", pytest.param("qwen2", marks=pytest.mark.slow), "t5")


def pytest_addoption(parser):
    parser.addoption("--fuzz-cases", type=int, default=50, help="requests of tests/serving/test_fuzz.py")


@pytest.fixture(scope="session")
def features() -> ItemFeatures:
    rng = np.random.default_rng(0)
    return ItemFeatures(
        trained=np.arange(ITEMS) % 10 != 9,
        collaborative=rng.normal(size=(ITEMS, 64)).astype(np.float32),
        text=rng.normal(size=(ITEMS, 32)).astype(np.float32),
        extra={"structural": rng.normal(size=(ITEMS, 8)).astype(np.float32)},
    )


@pytest.fixture(scope="session", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="session", params=["set", "fused"])
def history(request) -> str:
    return request.param


@pytest.fixture
def model(features, family, history) -> SetRecModel:
    return small_model(features, family, history)


@pytest.fixture(scope="module")
def store():
    """``uri(path)``, the URI of a path in an object store on loopback."""
    from s3_server import s3_server

    with s3_server() as uri:
        yield uri


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Where copies of what lies in a store are made; another name is another machine."""
    from pipelines.remote import lease, mirror

    monkeypatch.setenv(mirror.WORK, str(tmp_path / "work"))
    monkeypatch.setattr(lease, "SETTLED", 0.0)
    return lambda name: monkeypatch.setenv(mirror.WORK, str(tmp_path / name))
