import pytest
import torch
import torch.nn.functional as F

from setrec.models.grounding import LogitBias
from setrec.training import softmax


@pytest.mark.parametrize("at_once", [64, 1 << 20])
def test_loss_and_gradients_equal_plain_cross_entropy_whatever_the_chunk(monkeypatch, at_once):
    monkeypatch.setattr(softmax, "LOGITS_AT_ONCE", at_once)
    torch.manual_seed(0)
    users = (3 * torch.randn(37, 8)).requires_grad_()
    codes = torch.randn(50, 8, requires_grad=True)
    targets = torch.randint(50, (37,))
    ours = softmax.catalogue_cross_entropy(users, codes, targets)
    plain = F.cross_entropy(users @ codes.T, targets, reduction="sum")
    torch.testing.assert_close(ours, plain)
    for a, b in zip(
        torch.autograd.grad(2 * ours, (users, codes)), torch.autograd.grad(2 * plain, (users, codes)), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_large_logits_do_not_overflow():
    users, codes = torch.full((2, 4), 1e3), torch.randn(9, 4)
    assert torch.isfinite(softmax.catalogue_cross_entropy(users, codes, torch.tensor([1, 2])))


def test_under_autocast_the_result_is_close_to_float32():
    torch.manual_seed(0)
    users, codes, targets = torch.randn(20, 16), torch.randn(30, 16), torch.randint(30, (20,))
    exact = softmax.catalogue_cross_entropy(users, codes, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = softmax.catalogue_cross_entropy(users, codes, targets)
    assert narrow.dtype == torch.float32
    assert abs(narrow - exact) / exact < 0.01


def test_a_worker_without_a_row_adds_nothing():
    users, codes = torch.empty(0, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    none, by = torch.empty(0, dtype=torch.int64), torch.ones((), requires_grad=True)
    loss = softmax.catalogue_cross_entropy(users, codes, none, [LogitBias(none, none, by)])
    loss.backward()
    assert loss == 0
    assert not codes.grad.any()
    assert by.grad == 0
