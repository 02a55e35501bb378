"""A run is known as a run, held by one job at a time, and made of parts that belong together."""

import shutil

import pytest
import yaml

from pipelines.common.locks import exclusive
from pipelines.common.run_directory import LOCK, Run
from pipelines.config.job import load_config
from pipelines.features import lineage, preparation
from pipelines.jobs import export, stages
from pipelines.training import train
from setrec.errors import ConfigError


@pytest.fixture
def own(t5_run, tmp_path) -> Run:
    """A trained, evaluated and exported run that a test may change."""
    shutil.copytree(t5_run.root, tmp_path / "own")
    return Run(tmp_path / "own")


@pytest.fixture
def config_file(t5_run):
    return t5_run.root.parent / "config.yaml"


def told(result) -> str:
    code, said = result
    assert code == 2, said
    assert len(said.strip().splitlines()) == 1, said
    return said


def test_preparing_in_a_folder_of_somebody_elses_is_refused_and_leaves_everything(tmp_path, config_file, commanded):
    place = tmp_path / "project"
    for name in ("model", "bundle", "checkpoints"):
        (place / name).mkdir(parents=True)
        (place / name / "mine.txt").write_text("mine")
    before = sorted(place.rglob("*"))
    assert "holds no run" in told(commanded("prepare", "--config", config_file, "--run", place))
    assert sorted(place.rglob("*")) == before


def test_what_a_job_did_not_write_stays_and_is_not_written_over(tmp_path, config_file, own):
    run, config = Run(tmp_path / "run"), load_config(config_file)
    preparation.prepare(run, config)
    (run.root / "bundle").mkdir()
    (run.root / "bundle" / "mine.txt").write_text("mine")
    preparation.prepare(run, config)
    assert (run.root / "bundle" / "mine.txt").read_text() == "mine"
    shutil.copytree(own.model, run.model)
    with pytest.raises(ConfigError, match="bundle was not written by a job"):
        export.export(run, config)


def test_preparing_anew_over_a_trained_run_says_what_goes_and_wants_force(own, config_file, commanded):
    said = told(commanded("prepare", "--config", config_file, "--run", own.root))
    for name in ("model", "metrics.json", "bundle", "--force"):
        assert name in said
    assert own.model.exists()
    assert commanded("prepare", "--config", config_file, "--run", own.root, "--force")[0] == 0
    assert not own.model.exists()


@pytest.mark.parametrize("command", ["train", "evaluate", "export", "ablate"])
def test_a_second_job_over_a_run_is_refused_in_one_line(own, commanded, command):
    with exclusive(own.root / LOCK):
        assert "another job is under way (process" in told(commanded(command, "--run", own.root))


def test_a_job_removes_what_a_killed_one_left_half_written(own):
    (own.root / ".metrics.json.abc.tmp").write_text("half")
    (own.features / ".text.safetensors.abc.tmp").write_text("half")
    work = own.root / ".bundle.abc.tmp"
    work.mkdir()
    (work / ".held").touch()
    own.bundle.rename(work / "old")
    (own.root / ".bundle.mine").touch()
    with own.job():
        assert own.bundle.is_dir(), "killed between the two renames: the old one is put back"
    assert {p.name for p in own.root.glob(".*")} == {LOCK, ".bundle.mine"}
    assert not list(own.features.glob(".*"))


@pytest.fixture
def failing(monkeypatch):
    def fail(*_, **__):
        raise ConfigError("no more")

    monkeypatch.setattr(train, "_fit", fail)


def test_after_a_training_that_failed_the_earlier_model_is_neither_ranked_nor_exported(
    own, commanded, failing, without_ray_train
):
    code, said = commanded("train", "--run", own.root, "--set", "training.epochs=3")
    assert (code, said.splitlines()[-1]) == (2, "setrec: no more")
    for command in ("evaluate", "export"):
        assert "the last one did not end" in told(commanded(command, "--run", own.root))


def test_training_again_leaves_no_result_of_the_earlier_model(own, commanded, without_ray_train):
    assert own.bundle.exists()
    sets = ("--set", "training.epochs=1", "--set", "sasrec.epochs=1")
    code, said = commanded("train", "--run", own.root, *sets)
    assert code == 0, said
    assert not {"metrics.json", "report.html", "scorer.json", "bundle"} & {p.name for p in own.root.iterdir()}
    assert "run `setrec evaluate" in told(commanded("export", "--run", own.root))
    code, said = commanded("evaluate", "--run", own.root, "--set", "evaluation.opponents=[]")
    assert code == 0, said
    assert commanded("export", "--run", own.root)[0] == 0


def test_a_training_with_more_epochs_is_followed_by_another_refit(own, commanded, without_ray_train):
    def refits(*options):
        code, said = commanded("train", "--run", own.root, "--set", "sasrec.epochs=1", *options)
        assert code == 0, said
        return {place.name for place in (own.checkpoints / "refit").glob("checkpoint-*")}

    first = refits("--set", "training.epochs=1")
    assert first
    assert refits("--resume", "--set", "training.epochs=1") == first, "nothing was left to train"
    assert not first & refits("--resume", "--set", "training.epochs=2")


def test_weights_chosen_for_another_model_are_not_exported(own):
    found = own.read_json("scorer.json")
    assert set(found["made_from"]) == {"model", "data"}
    own.write_json("scorer.json", {**found, "made_from": {**found["made_from"], "model": "other"}})
    with pytest.raises(ConfigError, match=r"scorer\.json was made from another model: run `setrec evaluate"):
        export.export(own, load_config(own.config))


def test_a_configuration_edited_after_training_is_not_taken_for_the_models(own):
    lineage.end_training(own, load_config(own.config))
    values = yaml.safe_load(own.config.read_text())
    values["training"]["learning_rate"] = 0.5
    own.config.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match="other settings of training"):
        stages.assess(own, load_config(own.config))


@pytest.mark.parametrize(
    ("command", "override", "would"),
    [
        ("train", "data.min_rating=4", "setrec prepare --config CONFIG"),
        ("train", "evaluation.ks=[5]", "setrec evaluate"),
        ("evaluate", "model.dropout=0.1", "setrec train"),
        ("export", "evaluation.ks=[5]", "setrec evaluate"),
    ],
)
def test_an_override_that_cannot_take_effect_is_refused_with_the_command_that_would(
    own, commanded, command, override, would
):
    said = told(commanded(command, "--run", own.root, "--set", override))
    assert f"`{would}" in said
    assert f"--set {override}` would" in said
