"""An offset is a fixed part of the logits: what it explains, the model need not learn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import ITEMS, small_model

from setrec.data.offsets import Offsets
from setrec.data.source import MemorySource
from setrec.errors import DataError
from setrec.models.grounding import LogitBias
from setrec.ragged import Ragged
from setrec.training import losses, softmax
from setrec.training.sampled_softmax import Candidates, LogUniformSampler, sampled_cross_entropy
from setrec.training.settings import ObjectiveSettings, TrainingSettings
from setrec.training.softmax import catalogue_cross_entropy
from setrec.training.stream import Stream
from setrec.training.trainer import Trainer

ROWS, WIDTH = 24, 8
SETTINGS = TrainingSettings(epochs=2, targets_per_batch=64, precision="float32", clip=1e9)


def trainable(features, family="qwen3", **changes):
    return small_model(features, family, "fused", offset=True, **changes)


def histories(users: int = 30) -> Ragged:
    rng, ring = np.random.default_rng(0), np.array([i for i in range(ITEMS) if i % 10 != 9])
    return Ragged.of([ring[(s + np.arange(1 + s % 12)) % len(ring)] for s in rng.integers(0, len(ring), users)])


def offsets_of(rows: Ragged, shards: np.ndarray, listed, folder) -> Offsets:
    """Offsets of the positions that are targets; ``listed`` returns items and values of one."""
    user, parts = rows.row_of_value, []
    for position in np.random.default_rng(1).permutation(len(user)):
        if position > rows.offsets[user[position]]:
            items, values = listed(int(position))
            parts.append((np.array([position]), Ragged.of([items]), np.array(values)))
    folder.mkdir()
    Offsets.save(folder, shards, parts)
    return Offsets.load(folder)


@pytest.mark.parametrize("at_once", [64, 1 << 20])
@pytest.mark.parametrize("samples", [None, 20, ITEMS])
def test_the_loss_with_an_offset_is_the_formula_written_out(monkeypatch, at_once, samples):
    monkeypatch.setattr(softmax, "LOGITS_AT_ONCE", at_once)
    torch.manual_seed(0)
    users, codes = torch.randn(ROWS, WIDTH, requires_grad=True), torch.randn(ITEMS, WIDTH, requires_grad=True)
    targets, weights = torch.randint(ITEMS, (ROWS,)), torch.rand(ROWS, 1)
    by, scale = torch.tensor(-1.5, requires_grad=True), torch.tensor(0.7, requires_grad=True)
    repeated, listed = torch.rand(ROWS, ITEMS) < 0.1, torch.rand(ROWS, ITEMS) < 0.3
    listed[torch.arange(0, ROWS, 2), targets[::2]] = True
    fixed = 3 * torch.rand(ROWS, ITEMS) * listed
    biases = [
        LogitBias(*repeated.nonzero(as_tuple=True), by),
        LogitBias(*listed.nonzero(as_tuple=True), scale, fixed[listed]),
    ]
    logits = users @ codes.T + repeated * by + scale * fixed
    own = logits[torch.arange(ROWS), targets]
    if samples is None:
        ours, others = catalogue_cross_entropy(users, codes, targets, biases, weights), logits
        written = F.cross_entropy(others, targets, reduction="none")
    else:
        counts = np.random.default_rng(1).integers(0, 100, ITEMS)
        drawn = LogUniformSampler(counts, np.ones(ITEMS, bool), samples).draw(torch.Generator().manual_seed(4))
        ours = sampled_cross_entropy(users, codes, targets, drawn, biases, weights)
        others = (logits[:, drawn.rows] - drawn.log_counts).masked_fill(drawn.rows == targets[:, None], float("-inf"))
        written = torch.logsumexp(torch.cat([own[:, None], others], 1), 1) - own
    written = (written * weights[:, 0]).sum()
    torch.testing.assert_close(ours, written)
    of = users, codes, by, scale
    for a, b in zip(torch.autograd.grad(2 * ours, of), torch.autograd.grad(2 * written, of), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_gradients_of_an_item_that_the_offset_explains_are_smaller():
    torch.manual_seed(0)
    users, codes = 0.3 * torch.randn(1, WIDTH), torch.randn(ITEMS, WIDTH, requires_grad=True)
    scale, target = torch.ones(()), torch.tensor([3])

    def gradient(*biases: LogitBias) -> torch.Tensor:
        return torch.autograd.grad(catalogue_cross_entropy(users, codes, target, biases), codes)[0].norm(dim=1)

    explained = gradient(LogitBias(torch.tensor([0]), target, scale, torch.tensor([6.0])))
    assert (explained < 0.5 * gradient()).all()


def test_all_items_sampled_give_the_loss_and_the_scale_the_gradient_of_the_full_softmax(features, family):
    model, settings = trainable(features, family, max_items=6), ObjectiveSettings(slots=0.3)
    items, targets = torch.tensor([[3, 5, 7], [2, 0, 0]]), torch.tensor([[5, 7, 8], [1, -1, -1]])
    visible, rows = torch.tensor([[1, 2, 3], [1, 0, 0]]), torch.arange(5)
    offset = torch.tensor([0, 0, 2, 3]), torch.tensor([5, 11, 2, 30]), torch.tensor([2.0, 1.0, 0.5, 4.0])
    trained = model.trained.nonzero()[:, 0]
    drawn = Candidates(trained, torch.zeros(len(trained)))
    found = []
    for candidates, given in ((None, offset), (drawn, offset), (None, None)):
        terms = losses.batch_terms(model, items, visible, targets, settings, rows, candidates, offset=given)
        value = losses.total(terms, settings, 1)
        gradient = torch.autograd.grad(value, model.log_offset_scale, allow_unused=True)[0]
        found.append((value, gradient))
    torch.testing.assert_close(found[0], found[1])
    assert abs(float(found[0][0].detach() - found[2][0].detach())) > 0.1
    assert float(found[0][1]) != 0


@pytest.mark.parametrize("samples", ["one_pass", "per_prefix"])
def test_every_target_of_a_batch_has_the_offset_of_its_position(samples, tmp_path):
    rows = histories(40)
    parts = [rows.take(part) for part in np.array_split(np.arange(40), 5)]
    shards = rows.offsets[[0, 8, 16, 24, 32, 40]]
    offsets = offsets_of(rows, shards, lambda p: ([rows.values[p]] * (p % 3), [p % 100] * (p % 3)), tmp_path / "o")

    class Shards(MemorySource):
        def __len__(self) -> int:
            return len(parts)

        def read(self, shard: int) -> Ragged:
            return parts[shard]

    stream = Stream(Shards(rows), 6, 40, 3, samples, window=2, world=3, rank=1, offsets=offsets)
    steps, met = list(stream.steps(0)), 0
    for batch in (batch for step in steps for batch in step.parts):
        targets, (row, items, values) = batch.targets[batch.targets >= 0], batch.offset
        np.testing.assert_array_equal(items, targets[row])
        assert (np.diff(row) >= 0).all()
        assert all(len(np.unique(values[row == r])) <= 1 for r in row)
        met += len(items)
    assert met > 20
    every = replace(stream, world=1, rank=0).steps(0)
    assert sum(len(b.offset[1]) for s in every for b in s.parts) == len(offsets.items)


def test_an_offset_without_entries_leaves_training_as_it_is_bit_for_bit(features, tmp_path):
    rows = histories()
    none = offsets_of(rows, rows.offsets[[0, -1]], lambda position: ([], []), tmp_path / "o")
    assert none.take(np.arange(3))[1].size == 0
    models = []
    for model, offsets in ((small_model(features, history="fused"), None), (trainable(features), none)):
        trainer = Trainer(model, rows, None, SETTINGS, ObjectiveSettings(slots=0.2), offsets=offsets)
        models.append((trainer.epoch()["loss"], model.state_dict()))
    (loss, plain), (other, fixed) = models
    assert loss == other
    assert fixed.keys() - plain.keys() == {"log_offset_scale"}
    assert fixed["log_offset_scale"] == 0
    assert all(torch.equal(plain[name], fixed[name]) for name in plain)


def test_the_scale_grows_where_the_offset_is_right_and_falls_where_it_is_wrong(features, tmp_path):
    rows, scales = histories(), []
    rows = Ragged(rows.values % 9, rows.offsets)
    for wrong in (0, 1):
        listed = ((rows.values + wrong) % 9).tolist()
        fixed = offsets_of(
            rows, rows.offsets[[0, -1]], lambda p, items=listed: ([items[p]], [2.0]), tmp_path / f"{wrong}"
        )
        model = trainable(features)
        Trainer(model, rows, None, SETTINGS, ObjectiveSettings(), offsets=fixed).epoch()
        scales.append(float(model.offset_scale.detach()))
    assert scales[0] > 1 > scales[1] > 0


def test_a_damaged_file_of_offsets_is_refused(tmp_path):
    rows = histories(5)
    offsets_of(rows, rows.offsets[[0, -1]], lambda position: ([1], [1.0]), tmp_path / "o")
    (tmp_path / "o" / "values").write_bytes(b"12")
    with pytest.raises(DataError, match="damaged"):
        Offsets.load(tmp_path / "o")
    (tmp_path / "o" / "items").unlink()
    with pytest.raises(DataError, match="holds no offsets"):
        Offsets.load(tmp_path / "o")
