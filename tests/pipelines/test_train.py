"""Training under Ray for real: a killed run resumes to the same end, two workers follow one worker's curve, and
data that cannot be used end a run at once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.common.run_directory import Run
from pipelines.config.job import load_config
from pipelines.data import directory
from pipelines.features import preparation
from pipelines.features.item_features import train_collaborative
from pipelines.features.warm import Source
from pipelines.jobs import stages
from pipelines.training import train
from pipelines.training.worker import Validation, refit_trainer, trainer_of
from setrec.data.catalog import VALID
from setrec.errors import ConfigError
from setrec.evaluation.ranking import Cases
from setrec.models.setrec_model import SetRecModel

CONFIG = """
data: {interactions: interactions.csv, columns: {position: position}}
sasrec: {epochs: 1, layers: 1, width: 16, heads: 1}
model: {table: sasrec, max_items: 10, dropout: 0.0, id_dropout: 0.0, backbone: {dropout: 0.0}}
training: {epochs: 8, patience: 8, targets_per_batch: 64, precision: float32}
cluster: {threads: 1}
"""
SAME = 1e-4
"""Relative tolerance of "the same metrics": the order of float32 sums is all that may differ."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A run with data and collaborative vectors, ready to train the recommender."""
    folder = tmp_path_factory.mktemp("train")
    rng = np.random.default_rng(0)
    rows = [
        (f"u{u}", f"i{(start + step) % 30}", step)
        for u, start in enumerate(rng.integers(0, 30, 80))
        for step in range(int(rng.integers(5, 25)))
    ]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "position"])
    frame.to_csv(folder / "interactions.csv", index=False)
    (folder / "config.yaml").write_text(CONFIG.replace("interactions.csv", str(folder / "interactions.csv")))
    run = Run(folder / "run")
    config = load_config(folder / "config.yaml")
    preparation.prepare(run, config)
    train_collaborative(run, config)
    return run.root


def arguments(root: Path, *options: str) -> list[str]:
    # --resume before there is a checkpoint keeps the collaborative vectors and starts the recommender afresh.
    return ["train", "--run", str(root), "--resume", *options]


def curve(root: Path) -> list[dict]:
    records = [json.loads(line) for line in (root / "curves.jsonl").read_text().splitlines()]
    return [r for r in records if r["system"] == "SETRec"]


@pytest.fixture(scope="module")
def whole(prepared) -> tuple[list[dict], SetRecModel]:
    """The curve and the refitted model of one process that Ray has no part in."""
    root = prepared.parent / "unbroken"
    shutil.copytree(prepared, root)
    run, config = Run(root), load_config(root / "config.yaml")
    first = trainer_of(run, config)
    while not first.finished:
        first.epoch()
    second = refit_trainer(first.restore_best(), run, config)
    while not second.finished:
        second.epoch()
    return first.progress.curve, second.restore_best()


@pytest.fixture(scope="module")
def unbroken(whole) -> list[dict]:
    return whole[0]


def ranks_alike(one: SetRecModel, other: SetRecModel, root: Path, tolerance: float) -> None:
    judge = Validation(Cases.of(directory.load(Run(root).data)[1], VALID))
    assert judge(one.eval()) == pytest.approx(judge(other.eval()), rel=tolerance)


def same(found: list[dict], expected: list[dict], tolerance: float) -> None:
    assert [r["epoch"] for r in found] == [r["epoch"] for r in expected]
    for key in ("loss", "ndcg@10"):
        np.testing.assert_allclose([r[key] for r in found], [r[key] for r in expected], rtol=tolerance)


@pytest.mark.parametrize(
    ("workers", "sharding"),
    [pytest.param(1, "none", marks=pytest.mark.slow), (2, "none"), pytest.param(2, "fsdp", marks=pytest.mark.slow)],
)
def test_a_run_learns_on_one_worker_or_two_as_in_one_process_and_leaves_a_model(
    ray_here, prepared, whole, workers, sharding
):
    root = prepared.parent / f"{workers}-{sharding}"
    shutil.copytree(prepared, root)
    overrides = [f"cluster.workers={workers}", f"cluster.sharding={sharding}"]
    stages.fit(Run(root), load_config(root / "config.yaml", overrides), resume=True)
    records, tolerance = curve(root), SAME if workers == 1 else 10 * SAME
    same(records, whole[0], tolerance)
    assert len(records) == 8
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]
    files = {"config.json", "model.safetensors"}
    assert {p.name for p in (root / "model").iterdir()} == {*files, "validated"}
    assert {p.name for p in (root / "model" / "validated").iterdir()} == files
    source = Source.at(root)
    assert (source.model, source.beginning) == (root / "model", root / "model" / "validated")
    ranks_alike(SetRecModel.from_pretrained(root / "model"), whole[1], root, tolerance)
    best = max(record["ndcg@10"] for record in records)
    judge = Validation(Cases.of(directory.load(Run(root).data)[1], VALID))
    assert judge(SetRecModel.from_pretrained(Run(root).validated).eval()) == pytest.approx([best], rel=tolerance)


@pytest.mark.parametrize(("epochs", "rate"), [("null", 1.0), ("2", 0.5)], ids=["anew", "continued"])
def test_a_refit_learns_items_that_validation_events_bring(prepared, epochs, rate):
    run, config = Run(prepared), load_config(prepared / "config.yaml", [f"training.refit_epochs={epochs}"])
    _, histories = directory.load(run.data)
    only = ~histories.trained(30) & np.isin(np.arange(30), histories.of(VALID).values)
    model = trainer_of(run, config).model
    before = model.trained.clone()
    trainer = refit_trainer(model, run, config)
    assert (trainer.model is model) == (epochs == "2")
    np.testing.assert_array_equal(trainer.model.trained.numpy(), before.numpy() | only)
    assert trainer.epoch()["targets"] == len(histories.upto(VALID).values) - len(histories)
    assert not trainer.finished
    assert trainer.settings.learning_rate == rate * config.training.learning_rate


def test_a_refit_is_as_long_as_was_best_on_validation(prepared):
    run, config = Run(prepared), load_config(prepared / "config.yaml", ["training.refit_epochs=null"])
    first = trainer_of(run, config)
    scores = iter([0.1, 0.3, 0.2, 0.2])
    first.evaluate = lambda model: [next(scores)]
    for _ in range(4):
        first.epoch()
    second, schedule = refit_trainer(first.restore_best(), run, config), []
    while not second.finished:
        second.epoch()
        schedule.append(second.optimizer.param_groups[0]["lr"])
    assert len(schedule) == 2
    assert schedule[-1] > 0.5 * config.training.learning_rate, "the schedule of eight epochs, not of two"


@pytest.mark.slow
def test_a_refit_that_was_broken_off_goes_on_from_its_last_epoch(ray_here, prepared, whole):
    root = prepared.parent / "refit"
    shutil.copytree(prepared, root)
    config = load_config(root / "config.yaml")
    stages.fit(Run(root), config, resume=True)
    shutil.rmtree(root / "model")
    Run(root).set_unfinished(True)
    first, second = sorted((root / "checkpoints" / "refit").glob("checkpoint-*"))
    shutil.rmtree(second)
    stages.fit(Run(root), config, resume=True)
    assert first.is_dir(), "begun with, not trained again"
    ranks_alike(SetRecModel.from_pretrained(root / "model"), whole[1], root, SAME)


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_a_run_killed_outright_resumes_to_the_same_metrics(ray_here, prepared, unbroken):
    root = prepared.parent / "killed"
    shutil.copytree(prepared, root)
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli.app", *arguments(root)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 800
    while len(list((root / "checkpoints").rglob("progress.json"))) < 2:
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < until, "no checkpoint in time"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (root / "model").exists()
    stages.fit(Run(root), load_config(root / "config.yaml"), resume=True)
    same(curve(root), unbroken, SAME)


@pytest.mark.slow
def test_data_that_cannot_be_used_end_training_at_once_however_often_faults_may_be_retried(
    prepared, ray_here, commanded
):
    root = prepared.parent / "damaged"
    shutil.copytree(prepared, root)
    features = root / "features" / "collaborative.safetensors"
    features.write_bytes(features.read_bytes()[:100])
    code, said = commanded(*arguments(root, "--set", "cluster.max_failures=-1"))
    assert code == 2
    assert "collaborative.safetensors" in said.strip().splitlines()[-1]
    assert not (root / "model").exists()


def test_training_before_preparing_is_refused_by_the_command_to_run(tmp_path, commanded):
    code, said = commanded(*arguments(tmp_path / "none"))
    assert code == 2
    assert "setrec prepare" in said
    assert len(said.strip().splitlines()) == 1


def test_resuming_without_a_checkpoint_is_refused(prepared):
    with pytest.raises(ConfigError, match="no checkpoint"):
        train.train(Run(prepared), load_config(prepared / "config.yaml"), resume=True)
