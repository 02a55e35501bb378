import numpy as np
import pytest
import torch
from small_models import ITEMS, small_model

from setrec.errors import ConfigError
from setrec.ragged import Ragged
from setrec.training.settings import ObjectiveSettings, TrainingSettings
from setrec.training.trainer import Trainer

SETTINGS = TrainingSettings(epochs=6, patience=6, targets_per_batch=64, learning_rate=3e-3, precision="float32")


def chains() -> Ragged:
    """Users who walk the ring of trained items one step at a time."""
    rng = np.random.default_rng(0)
    ring = np.array([i for i in range(ITEMS) if i % 10 != 9])
    return Ragged.of([ring[(s + np.arange(12)) % len(ring)] for s in rng.integers(0, len(ring), 30)])


def trainer(features, family="qwen3", **options) -> Trainer:
    """A trainer whose validation metric always improves."""
    model = small_model(features, family, "fused", max_items=8)
    values = iter(np.linspace(0.1, 0.2, 100))
    settings, loss = options.pop("settings", SETTINGS), options.pop("loss", ObjectiveSettings(alpha=0.5, slots=0.2))
    return Trainer(model, chains(), lambda _: [float(next(values))], settings, loss, **options)


def test_training_lowers_the_loss_on_every_backbone(features, family):
    t = trainer(features, family)
    losses = [t.epoch()["loss"] for _ in range(6)]
    assert losses[-1] < 0.9 * losses[0]


def test_without_validation_the_last_epoch_is_the_best(features):
    model = small_model(features, "qwen3", "fused", max_items=8)
    t = Trainer(model, chains(), None, SETTINGS.model_copy(update={"epochs": 3, "patience": 1}), ObjectiveSettings())
    while not t.finished:
        assert "ndcg@10" not in t.epoch()
    assert t.progress.epoch == t.progress.best_epoch == 3
    last = {name: value.clone() for name, value in model.state_dict().items()}
    for name, value in t.restore_best().state_dict().items():
        assert torch.equal(value, last[name]), name


def test_time_ends_an_epoch_with_a_rate_that_has_come_down(features):
    used, rates = iter(np.linspace(0, 1, 7)), []
    now = [next(used)]
    long = SETTINGS.model_copy(update={"epochs": 100, "warmup": 0.2, "targets_per_batch": 8})
    t = trainer(features, settings=long, spent=lambda: now[0])

    def step(_: float) -> None:
        rates.append(t.optimizer.param_groups[0]["lr"])
        now[0] = next(used)

    record = t.epoch(on_step=step)
    assert len(rates) == 6, "a step at a sixth of the time each, of a far longer epoch"
    assert record["epoch"] == 1
    assert t.progress.epoch == 1
    assert rates[0] < rates[1]
    assert np.all(np.diff(rates[2:]) < 0)
    expected = [0.5 + 0.5 * np.cos(np.pi * (k / 6 - 0.2) / 0.8) for k in range(2, 6)]
    np.testing.assert_allclose(np.array(rates[2:]) / long.learning_rate, expected)


def test_a_resumed_run_ends_where_the_unbroken_one_ends(features, tmp_path):
    unbroken = trainer(features)
    for _ in range(4):
        unbroken.epoch()
    first = trainer(features)
    for _ in range(2):
        first.epoch()
    first.save(tmp_path)
    second = trainer(features)
    second.load(tmp_path)
    for _ in range(2):
        second.epoch()
    assert second.progress.epoch == unbroken.progress.epoch
    assert [r["loss"] for r in second.progress.curve] == [r["loss"] for r in unbroken.progress.curve]
    for (name, a), b in zip(unbroken.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_run_resumed_within_an_epoch_ends_where_the_unbroken_one_ends(features, tmp_path):
    """Dropout is on: its draws, too, depend on seed and position alone."""
    unbroken = trainer(features).epoch()["loss"]
    every_step = SETTINGS.model_copy(update={"checkpoint_steps": 1})
    first, folders = trainer(features, settings=every_step), []

    def keep() -> None:
        folders.append(tmp_path / str(len(folders)))
        first.save(folders[-1])

    assert first.epoch(on_checkpoint=keep)["loss"] == unbroken
    assert len(folders) > 3
    for folder in folders:
        second = trainer(features)
        second.load(folder)
        record = second.epoch()
        assert (record["loss"], record["targets"]) == (unbroken, first.progress.curve[0]["targets"])
        for (name, a), b in zip(first.model.named_parameters(), second.model.parameters(), strict=True):
            assert torch.equal(a, b), name


def test_checkpoints_come_when_the_minutes_are_over(features):
    settings = SETTINGS.model_copy(update={"checkpoint_minutes": 1e-9, "targets_per_batch": 12})
    t, calls = trainer(features, settings=settings), []
    t.epoch(on_checkpoint=lambda: calls.append(t.progress.position.step))
    assert calls
    assert all(step % 10 == 0 for step in calls)


def test_recomputing_layers_on_the_way_back_changes_no_gradient(features, family):
    """Dropout is on: what was left out is left out again."""
    plain, again = (trainer(features, family, settings=SETTINGS.model_copy(update={"recompute": r})) for r in (0, 1))
    for t in (plain, again):
        t.model.train()
        t.optimizer.step = lambda: None
        t.optimizer.zero_grad = lambda set_to_none: None
        t._step(next(t.stream.steps(0)))
    assert any(m.gradient_checkpointing for m in again.model.modules() if hasattr(m, "gradient_checkpointing"))
    for (name, p), q in zip(plain.parameters, (q for _, q in again.parameters), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-6, rtol=1e-5, msg=name)


def test_training_on_a_sample_of_the_catalogue_learns(features):
    loss = ObjectiveSettings(sampled_above=10, samples=16)
    t = trainer(features, loss=loss)
    assert t.sampler is not None
    losses = [t.epoch()["loss"] for _ in range(6)]
    assert losses[-1] < 0.9 * losses[0]


def test_a_line_of_the_curve_says_how_much_was_padding_and_waiting(features):
    record = trainer(features).epoch()
    assert 0 <= record["padding_share"] < 0.3
    assert 0 <= record["loading_share"] < 0.5
    assert record["tokens_per_second"] > 0


def test_two_workers_sum_to_the_gradient_of_one_and_so_do_two_passes(features):
    """DDP averages the workers' gradients; done by hand here, the average must be the single worker's gradient."""
    one, two = trainer(features), [trainer(features, rank=r, world=2) for r in range(2)]
    passes = trainer(features, settings=SETTINGS.model_copy(update={"accumulate": 2}))

    def gradient(t):
        t.model.eval()
        t.optimizer.step = lambda: None
        t.optimizer.zero_grad = lambda set_to_none: None
        t._step(next(t.stream.steps(0)))
        return {n: p.grad for n, p in t.parameters}

    torch.nn.utils.clip_grad_norm_, kept = (lambda *_: None), torch.nn.utils.clip_grad_norm_
    try:
        alone, halves, summed = gradient(one), [gradient(t) for t in two], gradient(passes)
    finally:
        torch.nn.utils.clip_grad_norm_ = kept
    for name, g in alone.items():
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, g, atol=1e-5, rtol=1e-3, msg=name)
        torch.testing.assert_close(summed[name], g, atol=1e-5, rtol=1e-3, msg=name)


def test_training_stops_when_validation_no_longer_improves_and_restores_the_best(features):
    values = iter([0.1, 0.3, 0.2, 0.2, 0.2])
    settings = SETTINGS.model_copy(update={"patience": 2, "epochs": 10})
    t = Trainer(
        small_model(features, history="fused"), chains(), lambda _: [next(values)], settings, ObjectiveSettings()
    )
    kept = None
    while not t.finished:
        t.epoch()
        if t.progress.epoch == 2:
            kept = t.model.queries.detach().clone()
    assert (t.progress.epoch, t.progress.best_epoch) == (4, 2)
    assert not torch.equal(t.model.queries, kept)
    assert torch.equal(t.restore_best().queries, kept)


def test_a_damaged_checkpoint_is_refused_in_one_line(features, tmp_path):
    t = trainer(features)
    t.epoch()
    t.save(tmp_path)
    (tmp_path / "optimizer.safetensors").write_bytes(b"short")
    with pytest.raises(ConfigError, match="cannot be resumed") as caught:
        t.load(tmp_path)
    assert "\n" not in str(caught.value)
