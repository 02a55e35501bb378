"""A sample stands for the catalogue: exact as it becomes all of it, unbiased in the normaliser before."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import small_model

from setrec.training import softmax
from setrec.training.losses import batch_terms
from setrec.training.sampled_softmax import Candidates, LogUniformSampler, sampled_cross_entropy
from setrec.training.settings import ObjectiveSettings

ITEMS, ROWS, WIDTH = 60, 24, 8


@pytest.fixture
def table() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    users = torch.randn(ROWS, WIDTH, requires_grad=True)
    return users, torch.randn(ITEMS, WIDTH, requires_grad=True), torch.randint(ITEMS, (ROWS,))


def sampler(samples: int, eligible: np.ndarray | None = None) -> LogUniformSampler:
    counts = np.random.default_rng(1).integers(0, 100, ITEMS)
    return LogUniformSampler(counts, np.ones(ITEMS, bool) if eligible is None else eligible, samples)


def test_with_as_many_draws_as_items_it_is_the_full_softmax(table):
    users, codes, targets = table
    full = F.cross_entropy(users @ codes.T, targets, reduction="sum")
    ours = sampled_cross_entropy(users, codes, targets, sampler(ITEMS).draw(torch.Generator()))
    torch.testing.assert_close(ours, full)
    for a, b in zip(torch.autograd.grad(ours, (users, codes)), torch.autograd.grad(full, (users, codes)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("at_once", [64, 1 << 20])
def test_loss_and_gradients_equal_the_formula_written_out(table, monkeypatch, at_once):
    monkeypatch.setattr(softmax, "LOGITS_AT_ONCE", at_once)
    users, codes, targets = table
    drawn = sampler(30).draw(torch.Generator().manual_seed(4))
    logits = users @ codes.T
    corrected = logits[:, drawn.rows] - drawn.log_counts
    corrected = corrected.masked_fill(drawn.rows[None] == targets[:, None], float("-inf"))
    own = logits[torch.arange(ROWS), targets]
    written = (torch.logsumexp(torch.cat([own[:, None], corrected], 1), 1) - own).sum()
    ours = sampled_cross_entropy(users, codes, targets, drawn)
    torch.testing.assert_close(ours, written)
    for a, b in zip(
        torch.autograd.grad(3 * ours, (users, codes)), torch.autograd.grad(3 * written, (users, codes)), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_expected_counts_are_how_often_items_are_met():
    drawing, generator, rounds = sampler(20), torch.Generator().manual_seed(0), 4000
    met, expected = torch.zeros(ITEMS), torch.zeros(ITEMS)
    for _ in range(rounds):
        drawn = drawing.draw(generator)
        met[drawn.rows] += 1
        expected[drawn.rows] = drawn.log_counts.exp()
    error = (expected * (1 - expected) / rounds).sqrt()
    assert ((met / rounds - expected).abs() <= 5 * error + 1e-9).all()
    assert (expected[drawing.order].diff() < 0).all()


def averaged(users, codes, targets, draws: int, rounds: int) -> tuple[torch.Tensor, float, torch.Tensor]:
    """Normaliser of each row, loss and gradient of the codes, averaged over samples."""
    drawing, generator = sampler(draws), torch.Generator().manual_seed(0)
    logits = (users @ codes.T).detach().double()
    own = logits[torch.arange(ROWS), targets]
    normaliser, loss, gradient = torch.zeros(ROWS, dtype=torch.float64), 0.0, torch.zeros_like(codes)
    for _ in range(rounds):
        drawn = drawing.draw(generator)
        value = sampled_cross_entropy(users, codes, targets, drawn)
        gradient += torch.autograd.grad(value, codes)[0] / rounds
        loss += float(value.detach()) / rounds
        each = (logits[:, drawn.rows] - drawn.log_counts).exp()
        each = each.masked_fill(drawn.rows[None] == targets[:, None], 0.0)
        normaliser += (each.sum(1) + own.exp()) / rounds
    return normaliser, loss, gradient


def test_the_normaliser_is_met_on_average_and_the_gradient_the_closer_the_larger_the_sample(table):
    users, codes, targets = table
    users = 0.5 * users.detach()
    full = F.cross_entropy(users @ codes.T, targets, reduction="sum")
    exact = torch.autograd.grad(full, codes)[0]
    errors = []
    for draws in (15, 55):
        normaliser, loss, gradient = averaged(users, codes, targets, draws, 1000)
        np.testing.assert_allclose(normaliser, (users @ codes.T).detach().exp().sum(1), rtol=0.1)
        assert loss < float(full.detach())
        errors.append(float((gradient - exact).norm() / exact.norm()))
    assert errors[1] < 0.1 < errors[0] < 0.4
    assert loss == pytest.approx(float(full.detach()), rel=0.04)


def test_only_eligible_items_are_drawn():
    eligible = np.arange(ITEMS) % 3 == 0
    drawn = sampler(10, eligible).draw(torch.Generator())
    assert (drawn.rows % 3 == 0).all()
    assert (drawn.rows.diff() > 0).all()


def test_the_model_asked_about_all_items_as_candidates_answers_as_without(features, family):
    model, settings = small_model(features, family, "fused", max_items=6), ObjectiveSettings(negatives="trained")
    items, targets = torch.tensor([[3, 5, 7], [2, 0, 0]]), torch.tensor([[5, 7, 8], [1, -1, -1]])
    visible, rows = torch.tensor([[1, 2, 3], [1, 0, 0]]), torch.arange(5)
    trained = model.trained.nonzero()[:, 0]
    full = batch_terms(model, items, visible, targets, settings, rows)
    drawn = Candidates(trained, torch.zeros(len(trained)))
    ours = batch_terms(model, items, visible, targets, settings, rows, drawn)
    for name, value in full.items():
        torch.testing.assert_close(ours[name], value)
    assert math.isfinite(float(ours["fused"]))
