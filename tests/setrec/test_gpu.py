"""On a GPU: the curves, scores and checkpoints of the processor. Skipped where there is no GPU."""

import group
import numpy as np
import pytest
import torch
from small_models import ITEMS, small_model

from setrec.data.catalog import TRAIN, VALID, Histories
from setrec.models.sasrec import scorer
from setrec.models.settings import SasRecSettings
from setrec.ragged import Ragged
from setrec.scoring.model_scores import ModelScores, model_scorer
from setrec.training.sasrec_trainer import train_sasrec
from setrec.training.settings import ObjectiveSettings
from setrec.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

SAME = 1e-3
"""Relative tolerance of float32 sums in another order, over three epochs of training."""


def on_gpu(trainer: Trainer) -> Trainer:
    torch.nn.Module.to(trainer.model, "cuda")
    return trainer


@pytest.mark.parametrize("family", ["qwen3", "t5"])
@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "recompute": True}])
def test_training_follows_the_curve_of_the_processor(family, options):
    here, there = (
        group.trainer(0, 1, "none", family, **options),
        on_gpu(group.trainer(0, 1, "none", family, **options)),
    )
    for _ in range(3):
        a, b = here.epoch(), there.epoch()
        np.testing.assert_allclose([a["loss"], a["ndcg@10"]], [b["loss"], b["ndcg@10"]], rtol=SAME)
        assert a["targets"] == b["targets"]


def test_everything_that_a_model_can_have_learns_in_bf16(features):
    """Carried codes, raised returns, forgotten items, and a sampled softmax."""
    model = small_model(
        features, "qwen3", "fused", max_items=8, history_skip=(0.0, 0.8, 1.0), repeat_bias=True, id_dropout=0.3
    )
    torch.nn.Module.to(model, "cuda")
    given = group.trainer(0, 1, "none")
    loss = ObjectiveSettings(slots=0.0, fused=1.0, sampled_above=8, samples=16)
    settings = given.settings.model_copy(update={"precision": "auto", "epochs": 8, "patience": 8})
    trainer = Trainer(model, group.histories(), lambda _: [0.0], settings, loss)
    losses = [trainer.epoch()["loss"] for _ in range(8)]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.9 * losses[0]


def test_a_checkpoint_of_a_gpu_is_gone_on_from_without_one(tmp_path):
    there = on_gpu(group.trainer(0, 1, "none"))
    there.epoch()
    there.save(tmp_path)
    here = group.trainer(0, 1, "none")
    here.load(tmp_path)
    np.testing.assert_allclose(here.epoch()["loss"], there.epoch()["loss"], rtol=SAME)


@pytest.mark.parametrize("family", ["qwen3", "t5"])
def test_scores_are_those_of_the_processor(features, family):
    model = small_model(features, family, "set", max_items=8, history_skip=(0.0, 0.8), repeat_bias=True).eval()
    histories, weights = Ragged.of([[1, 2, 3], [4], list(range(12))]), dict.fromkeys(model.kinds, 1.0)
    here, by_kind = (
        model_scorer(model, weights)(histories),
        ModelScores(model, dict.fromkeys(model.kinds, 1.0)).by_kind(histories),
    )
    torch.nn.Module.to(model, "cuda")
    np.testing.assert_allclose(model_scorer(model, weights)(histories), here, rtol=1e-3, atol=1e-3)
    for kind, scores in ModelScores(model, dict.fromkeys(model.kinds, 1.0)).by_kind(histories).items():
        np.testing.assert_allclose(scores, by_kind[kind], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("negatives", [0, 16])
def test_sasrec_learns_there_and_comes_back(negatives):
    rng = np.random.default_rng(0)
    rows = [(s + np.arange(9)) % ITEMS for s in rng.integers(0, ITEMS, 60)]
    splits = np.tile([TRAIN] * 8 + [VALID], len(rows)).astype(np.int8)
    histories = Histories([str(n) for n in range(len(rows))], Ragged.of(rows), splits)
    text = rng.normal(size=(ITEMS, 12)).astype(np.float32)
    settings = SasRecSettings(epochs=25, patience=25, targets_per_batch=64, negatives=negatives, id_dropout=0.1)
    curve: list[dict] = []
    model = train_sasrec(
        histories, ITEMS, settings, features=text, report=curve.append, device="cuda"
    )  # fmt: skip
    assert curve[-1]["loss"] < 0.7 * curve[0]["loss"]
    assert model.items.weight.device.type == "cpu"
    scores = scorer(model)(Ragged.of([[3, 4, 5]]))
    assert scores.shape == (1, ITEMS)
    assert np.isfinite(scores).all()
