"""Training: seeds, time, batches, and the estimate of a large softmax."""

import numpy as np
import pytest
import torch
from nodetok_helpers import few, reader, task

from nodetok.language.input_ablation import ablate
from nodetok.language.prompts import Prompts
from nodetok.language.settings import TOKENS, GraphModelSettings, GraphTrainingSettings
from nodetok.language.training import _alike, fit
from setrec.errors import ConfigError
from setrec.models.settings import BackboneSettings

SMALL = {"position_tokens": 1, "neighbours": 2}


@pytest.fixture(scope="module")
def small_task():
    return few(task())


def learned(of, family="qwen3", **changes):
    settings = GraphModelSettings(backbone=BackboneSettings(family=family), **SMALL)
    learning = GraphTrainingSettings(**{"epochs": 2, "batch": 32, "precision": "float32", **changes})
    return fit(of, ablate(of, TOKENS, settings), learning)


@pytest.mark.parametrize("family", ["qwen3", "t5"])
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(small_task, family):
    one, two, other = (learned(small_task, family, seed=seed, epochs=1).model.state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["queries"], other["queries"])


@pytest.mark.parametrize("family", ["qwen3", "t5"])
def test_training_lowers_the_loss_from_epoch_to_epoch(small_task, family):
    losses = [record["loss"] for record in learned(small_task, family, epochs=4).curve]
    assert losses[-1] < losses[0]


def test_training_ends_when_its_time_is_over_and_can_still_be_asked(small_task):
    made = learned(small_task, epochs=1000, minutes=0.5 / 60)
    assert len(made.curve) < 1000
    assert not made.model.training
    assert made.evaluate(small_task, small_task.test)["accuracy"].shape == (len(small_task.test),)


def test_training_that_diverges_says_so_in_one_line():
    of = few(task())
    measure = of.measure
    of.measure = lambda *asked: {name: np.full(len(v), np.inf) for name, v in measure(*asked).items()}
    with pytest.raises(ConfigError, match=r"^training diverged in epoch 1: try a lower learning\.learning_rate$"):
        learned(of)


def test_the_weights_kept_are_those_of_the_best_validation(small_task):
    made = learned(small_task, epochs=6, learning_rate=0.02)
    kept = made.evaluate(small_task, small_task.valid)["accuracy"].mean()
    assert kept == pytest.approx(max(record["value"] for record in made.curve))


def test_patience_ends_training_that_gets_no_better(small_task):
    made = learned(small_task, epochs=30, patience=2, learning_rate=1e-9)
    assert len(made.curve) == 3


def test_every_example_is_in_one_batch_of_examples_of_about_its_length():
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 60, size=1003)
    batches = _alike(lengths, 32, rng)
    assert sorted(np.concatenate(batches).tolist()) == list(range(1003))
    assert max(map(len, batches)) <= 32
    padding = sum(len(b) * lengths[b].max() for b in batches) / lengths.sum()
    assert padding < 1.1


def test_a_sampled_loss_estimates_the_sum_over_all_wrong_candidates():
    of = task()
    made = reader(of)
    model, batch = made.model, made.encoder(Prompts(["what is [[0]] ?"] * 3, np.array([[1], [2], [3]])))
    made.model.shape = type(model.shape)(**{**vars(model.shape), "candidates": 200})
    model.identity = torch.nn.Embedding(200, model.settings.identity)
    with torch.no_grad():
        model.identity.weight.mul_(0.1)  # a few candidates that outweigh all others would need very many draws
    targets = torch.tensor([0, 9, 150])
    with torch.no_grad():
        scores = model.scores(batch, made.data).double()
        own = scores.gather(1, targets[:, None])
        torch.manual_seed(0)
        # exp(loss) - 1 is the wrong mass over the right one, whose estimate has no bias; one row at a time.
        for row in range(3):
            one = made.encoder(Prompts(["what is [[0]] ?"], np.array([[row + 1]])))
            drawn = [float(model.loss(one, targets[row : row + 1], made.data, 50)) for _ in range(300)]
            exact = float((scores[row] - own[row]).exp().sum() - 1)
            assert np.mean(np.expm1(drawn)) == pytest.approx(exact, rel=0.1)
        full = float(model.loss(batch, targets, made.data))
        assert full == pytest.approx(float((scores.logsumexp(dim=1) - own[:, 0]).mean()), rel=1e-4)
        assert float(model.loss(batch, targets, made.data, 200)) == pytest.approx(full, rel=1e-6)
