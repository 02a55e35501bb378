"""The search for settings, on a real Ray session: curves are a training's own, and a killed search goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from pipelines.cli.options import config_of
from pipelines.common.run_directory import Run
from pipelines.config.job import load_config
from pipelines.config.search_space import TuneSettings
from pipelines.features.item_features import train_collaborative
from pipelines.jobs import stages
from pipelines.training.halving import STOP, Halving
from pipelines.training.train import trainer_of
from pipelines.training.trials import METRIC, Trial, Trials
from setrec.errors import ConfigError

SPACE = {
    "training.learning_rate": {"kind": "choice", "values": [1e-9, 1e-2]},
    "model.dropout": {"kind": "uniform", "low": 0.0, "high": 0.2},
}
SEARCH = {"trials": 3, "grace_epochs": 1, "reduction": 2, "space": SPACE, "seed": 3}
EPOCHS = 5


def ready(run: Run, folder: Path) -> Run:
    """A run that is prepared and nothing more, with a configuration that searches beside it."""
    own = Run(folder / "run")
    own.root.mkdir(parents=True)
    shutil.copytree(run.data, own.data)
    own.features.mkdir()
    for name in ("text", "structural"):
        shutil.copy(run.features / f"{name}.safetensors", own.features)
    values = yaml.safe_load(run.config.read_text())
    values["training"] |= {"epochs": EPOCHS, "patience": EPOCHS}
    values["cluster"] |= {"threads": 1}
    values["tune"] = SEARCH
    for path in (own.config, folder / "tune.yaml"):
        path.write_text(yaml.safe_dump(values))
    return own


@pytest.fixture(scope="module")
def searched(ray_here, qwen3_run, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("tune")
    run = ready(qwen3_run, folder)
    stages.search(run, load_config(folder / "tune.yaml"))
    return run


def values(curve: list[dict]) -> list[tuple]:
    return [(record["epoch"], record["loss"], record[METRIC]) for record in curve]


def test_every_trial_is_told_with_settings_curve_and_end(searched):
    trials = searched.read_json("trials.json")
    assert [trial["number"] for trial in trials] == [0, 1, 2]
    assert trials[0]["settings"] == {}
    for trial in trials[1:]:
        assert set(trial["settings"]) == set(SPACE)
        assert 0 <= trial["settings"]["model.dropout"] <= 0.2
    for trial in trials:
        assert trial["epochs"] == len(trial["curve"]) > 0
        assert trial["best"] == max(record[METRIC] for record in trial["curve"])
        assert trial["seconds"] > 0
        assert (trial["stop"], trial["epochs"] == EPOCHS) in {("finished", True), ("halved", False)}
    assert (searched.root / "logs" / "tensorboard" / "trial-0001").exists()
    assert not (searched.root / "tuning").exists()


def test_the_best_on_validation_is_a_configuration_to_train_with(searched):
    trials = searched.read_json("trials.json")
    best = max(trials, key=lambda trial: trial["best"])
    config = config_of(searched.root, "train", None, searched.root / "best.yaml")
    own = load_config(searched.config)
    expected = {"training.learning_rate": own.training.learning_rate, "model.dropout": own.model.dropout}
    expected |= best["settings"]
    assert config.training.learning_rate == expected["training.learning_rate"]
    assert config.model.dropout == expected["model.dropout"]
    assert config.tune == own.tune
    other = yaml.safe_load((searched.root / "best.yaml").read_text())
    other["data"]["item_min_count"] = 1
    (searched.root / "other.yaml").write_text(yaml.safe_dump(other))
    with pytest.raises(ConfigError, match="its section data is not the run's"):
        config_of(searched.root, "train", None, searched.root / "other.yaml")


def test_a_trials_curve_is_that_of_a_training_with_its_settings(searched, qwen3_run, tmp_path):
    trial = max(searched.read_json("trials.json"), key=lambda trial: trial["epochs"])
    alone = ready(qwen3_run, tmp_path)
    sets = [f"{key}={value}" for key, value in trial["settings"].items()]
    config = load_config(alone.config, sets)
    train_collaborative(alone, config)
    trainer = trainer_of(alone, config)
    for _ in range(trial["epochs"]):
        trainer.epoch()
    np.testing.assert_allclose(values(trainer.progress.curve), values(trial["curve"]), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_a_search_killed_outright_goes_on_where_it_was(ray_here, searched, qwen3_run, tmp_path):
    run = ready(qwen3_run, tmp_path)
    command = [sys.executable, "-m", "pipelines.cli.app", "tune", "--config", tmp_path / "tune.yaml", "--run", run.root]
    command += ["--force"]  # the run is a trained one
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, env=_own_ray()
    )
    until = time.monotonic() + 800
    while sum(len(trial["curve"]) for trial in run.read_json("trials.json") or []) < 3:
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < until, "no epoch in time"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = run.read_json("trials.json")
    assert not (run.root / "best.yaml").exists()
    trials = stages.search(run, load_config(tmp_path / "tune.yaml"), resume=True)
    unbroken = searched.read_json("trials.json")
    for trial, was, other in zip(trials, before, unbroken, strict=True):
        assert trial.curve[: len(was["curve"])] == was["curve"]
        assert trial.settings == other["settings"]
        assert trial.stop in ("finished", "halved")
        same = min(len(trial.curve), len(other["curve"]))
        np.testing.assert_allclose(values(trial.curve[:same]), values(other["curve"][:same]), rtol=1e-5)
        assert [record["epoch"] for record in trial.curve] == list(range(1, len(trial.curve) + 1))
    assert (run.root / "best.yaml").exists()


@pytest.mark.slow
def test_a_trial_that_fails_is_told_and_does_not_end_the_search(ray_here, qwen3_run, tmp_path):
    run = ready(qwen3_run, tmp_path)
    space = {"sasrec.learning_rate": {"kind": "choice", "values": [1e30]}}
    sets = [f"tune.space={json.dumps(space)}", "tune.trials=2", "training.epochs=1", "model.table=sasrec"]
    own, bad = stages.search(run, load_config(tmp_path / "tune.yaml", sets))
    assert (own.stop, len(own.curve)) == ("finished", 1)
    assert (bad.stop, bad.curve) == ("failed", [])
    assert "scores contain a NaN" in bad.reason
    assert load_config(run.root / "best.yaml").sasrec == load_config(run.config).sasrec


def _own_ray() -> dict[str, str]:
    """The child starts a Ray of its own and does not join this test's."""
    return {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}


def test_what_cannot_be_resumed_is_said(searched, tmp_path):
    config = load_config(searched.config)
    with pytest.raises(ConfigError, match="without --resume one begins"):
        stages.search(Run(tmp_path), config, resume=True)
    with pytest.raises(ConfigError, match="another space"):
        stages.search(searched, load_config(searched.config, ["tune.seed=4"]), resume=True)
    with pytest.raises(ConfigError, match=r"tune\.space is empty"):
        stages.search(searched, load_config(searched.config, ["tune.space={}"]), resume=True)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"data.seed": {"kind": "integer", "low": 0, "high": 9}}, "'data.seed' is not a key of training, loss"),
        ({"training": {"kind": "choice", "values": [1]}}, "'training' is not a key"),
        ({"training.learning_rate": {"kind": "loguniform", "low": 0, "high": 1}}, "greater than 0"),
        ({"training.learning_rate": {"kind": "uniform", "low": 2, "high": 1}}, "low must lie below high"),
        ({"training.learning_rate": {"kind": "normal", "low": 2, "high": 1}}, "normal"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused_in_one_line(tmp_path, space, said):
    path = tmp_path / "tune.yaml"
    path.write_text(yaml.safe_dump({"data": {"interactions": "x.csv"}, "tune": {"space": space}}))
    with pytest.raises(ConfigError, match=said):
        load_config(path)


def test_draws_lie_within_bounds_and_repeat():
    space = {
        "training.learning_rate": {"kind": "loguniform", "low": 1e-4, "high": 1e-1},
        "model.semantic_tokens": {"kind": "integer", "low": 1, "high": 7, "step": 2},
        "loss.alpha": {"kind": "uniform", "low": 0.5, "high": 0.6},
        "model.history": {"kind": "choice", "values": ["set", "fused"]},
    }
    s = TuneSettings.model_validate({"space": space, "trials": 200})
    drawn = [s.draw(number) for number in range(1, 200)]
    assert drawn == [s.draw(number) for number in range(1, 200)]
    rates = np.array([d["training.learning_rate"] for d in drawn])
    assert rates.min() >= 1e-4
    assert rates.max() <= 1e-1
    assert 0.4 < (rates < 10**-2.5).mean() < 0.6
    assert {d["model.semantic_tokens"] for d in drawn} == {1, 3, 5, 7}
    assert {d["model.history"] for d in drawn} == {"set", "fused"}
    assert all(0.5 <= d["loss.alpha"] <= 0.6 for d in drawn)


def test_halving_told_of_an_earlier_search_judges_as_if_it_had_never_ended(tmp_path):
    rng = np.random.default_rng(0)
    curves = rng.random((9, 8)).tolist()
    order = [(trial, epoch) for epoch in range(8) for trial in rng.permutation(9).tolist()]
    unbroken, _ = _judge(tmp_path / "a", curves, order, restart=None)
    assert 0 < sum(stop for stop, _ in unbroken.values()) < 9
    for restart in (1, 10, 30):
        assert _judge(tmp_path / f"b{restart}", curves, order, restart=restart)[0] == unbroken


def _judge(folder: Path, curves, order, restart: int | None):
    """Whether and when each trial was stopped; with ``restart`` a new scheduler takes over after so many epochs."""
    run, s = Run(folder), TuneSettings(grace_epochs=1, reduction=2)
    book = Trials(run, [Trial(number, {}) for number in range(len(curves))])
    scheduler, ended = Halving(s, 8, book), {}
    for told, (number, epoch) in enumerate(order):
        if told == restart:
            book = Trials(run, Trials.read(run))
            scheduler = Halving(s, 8, book)
        trial = SimpleNamespace(config={"trial": {"number": number}}, trial_id=f"{restart}-{number}-{told}")
        if number not in ended:
            if epoch == 0 or told == restart:
                scheduler.on_trial_add(None, trial)
            record = {"epoch": epoch + 1, METRIC: curves[number][epoch], "seconds": 1.0}
            result = {**record, "record": json.dumps(record), "exhausted": epoch == 7}
            if scheduler.on_trial_result(None, trial, result) == STOP:
                ended[number] = (epoch < 7, epoch)
    assert {t["number"]: t["stop"] for t in json.loads((folder / "trials.json").read_text())} == {
        number: "halved" if halved else "finished" for number, (halved, _) in ended.items()
    }
    return ended, book
