import json

import pandas as pd
import pytest
import torch

from pipelines import recipes
from pipelines.benchmark import fits, registry
from pipelines.benchmark.base import problem
from pipelines.benchmark.base.system import Clock
from pipelines.benchmark.job import benchmark, protocol_of
from pipelines.benchmark.opponents import setrec_system
from pipelines.benchmark.opponents.setrec_system import SetRecSystem
from pipelines.benchmark.run import BenchmarkSettings
from pipelines.common.run_directory import Run
from pipelines.features import item_features, preparation
from pipelines.jobs import stages
from setrec.errors import ConfigError
from setrec.evaluation import ranking

SYSTEMS = ("Popularity", "ItemKNN", "SASRec", registry.OURS)
TINY = {"model": {"hidden": [32, 16], "max_items": 8}, "training": {"epochs": 2, "precision": "float32"}}
"""Overrides for the sake of time."""
SMALL = BenchmarkSettings(minutes=0.4, tries=2, seeds=2, opponent_seeds=1, systems=SYSTEMS)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("benchmark") / "circles")
    return run, benchmark(world, "setrec", run, SMALL)


def test_every_system_stands_in_the_table_with_intervals(finished):
    _, found = finished
    for name in SYSTEMS:
        row = next(
            r for r in found["rows"]
            if (r["system"], r["history"], r["group"], r["metric"]) == (name, "removed", "all", "ndcg@10")
        )  # fmt: skip
        assert row["low"] <= row["value"] <= row["high"]
    best = {
        r["system"]: r["value"]
        for r in found["rows"]
        if (r["history"], r["group"], r["metric"]) == ("removed", "all", "ndcg@10")
    }
    assert best[registry.OURS] > best["Popularity"] + 0.1, "circles can be learned"


def test_the_table_is_the_mean_over_seeds_of_every_users_metrics(finished):
    run, found = finished
    users = pd.read_parquet(run.root / "per_user.parquet")
    mine = users[(users["system"] == registry.OURS) & (users["history"] == "kept") & (users["group"] == "all")]
    assert sorted(mine["seed"].unique()) == [0, 1]
    assert set(users[users["system"] == "SASRec"]["seed"]) == {0}
    row = next(
        r for r in found["rows"]
        if (r["system"], r["history"], r["group"], r["metric"]) == (registry.OURS, "kept", "all", "recall@10")
    )  # fmt: skip
    assert row["value"] == pytest.approx(mine["recall@10"].mean())
    assert row["users"] == mine["user_id"].nunique()


def test_ours_is_told_apart_from_each_opponent(finished):
    _, found = finished
    against = {c["against"] for c in found["comparisons"]}
    assert {"Popularity", "ItemKNN", "SASRec"} <= against
    for c in found["comparisons"]:
        assert c["low"] <= c["difference"] <= c["high"]
        assert 0 <= c["p"] <= 1


def test_a_finished_benchmark_is_not_done_again(finished, world, monkeypatch):
    run, found = finished

    def refuse(*args, **kwargs):
        raise AssertionError("nothing is left to fit")

    monkeypatch.setattr("pipelines.benchmark.run.fan_out", refuse)
    again = benchmark(world, "setrec", run, SMALL)
    assert again["rows"] == found["rows"]


def test_the_setting_that_is_best_on_validation_is_fitted(finished):
    run, found = finished
    told = next(s for s in found["systems"] if s["system"] == registry.OURS)
    tried = [json.loads(path.read_text()) for path in run.root.glob("tries/setrec-ours/*/record.json")]
    assert len(tried) == 2
    assert told["setting"] == max(tried, key=lambda record: (record["valid"], -record["number"]))["number"]


def test_every_row_names_commit_data_seconds_and_command(finished):
    _, found = finished
    for told in found["systems"]:
        assert told["commit"]
        assert told["data"] == found["hash"]
        assert all(seconds >= 0 for seconds in told["seconds"])
        assert told["command"] == (
            f"setrec benchmark --data circles --protocol setrec --minutes 0.4 --tries 2 --seeds {len(told['seeds'])} "
            f"--only '{told['system']}'"
        )


def test_the_report_shows_table_and_differences(finished):
    run, _ = finished
    html = (run.root / "report.html").read_text()
    for name in SYSTEMS:
        assert name in html
    assert "Differences over the same users" in html


def test_a_folder_of_another_benchmark_is_refused(finished, world):
    run, _ = finished
    with pytest.raises(ConfigError, match="holds a benchmark of circles under setrec"):
        benchmark(world, "leave-one-out", run, SMALL)


def test_an_unknown_system_is_named_before_anything_is_prepared(world, tmp_path):
    with pytest.raises(ConfigError, match="unknown system 'Oracle'"):
        benchmark(world, "setrec", Run(tmp_path / "new"), SMALL.model_copy(update={"systems": ("Oracle",)}))
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_share_of_a_gpu_that_is_not_there_is_refused(finished, world):
    run, _ = finished
    with pytest.raises(ConfigError, match=r"a fit needs 0\.5 of a GPU, and the cluster has none"):
        benchmark(world, "setrec", run, SMALL.model_copy(update={"gpu": 0.5, "seeds": 3}))


def test_a_fit_ends_with_its_time(prepared):
    clock, endless = Clock(0.02), {"training": {"epochs": 10_000, "patience": 10_000}}
    fitted = SetRecSystem("x", recipes.merged(TINY, endless)).fit(problem.load(prepared), endless, 0, clock)
    assert fitted.curve
    assert len(fitted.curve) < 10_000


@pytest.mark.parametrize(("used", "refit_epochs"), [(0.1, None), (0.6, 2)])
def test_a_fit_continues_its_model_if_the_time_left_is_not_enough_for_a_new_one(
    prepared, monkeypatch, used, refit_epochs
):
    class Stopped(Clock):
        share = used

    given, refits, original = problem.load(prepared), [], setrec_system.refit_trainer

    def noted(model, run, config, **rest):
        refits.append(config.training.refit_epochs)
        return original(model, run, config, **rest)

    monkeypatch.setattr(setrec_system, "refit_trainer", noted)
    SetRecSystem("x", TINY).fit(given, TINY, 0, Stopped(1.0))
    assert refits == [refit_epochs]


def test_the_published_design_trains(prepared):
    given, quick = problem.load(prepared), {"training": {"epochs": 2}, "sasrec": {"epochs": 1}}
    settings = recipes.merged(recipes.load("published-t5"), quick)
    fitted = SetRecSystem("x", settings).fit(given, settings, 0, Clock(1.0))
    assert set(fitted.weights) == {"collaborative", "semantic"}
    assert fitted.variants == {}


def test_the_row_with_an_offset_trains_against_all_components(prepared):
    given, settings = problem.load(prepared), recipes.merged(TINY, recipes.load("ablation/with-offset"))
    fitted = SetRecSystem("x", settings).fit(given, settings, 0, Clock(1.0))
    assert float(fitted.scorer.model.model.offset_scale.detach()) != 1
    run = item_features.shared_view(given.run, recipes.applied(given.config, settings), prepared / "collaborative")
    assert item_features.text_features(run, given.catalog) is not None


def test_every_recipe_is_allowed_and_changes_something(prepared):
    config = problem.load(prepared).config
    for name in ("ours-t5", "published-t5", "published-qwen3", *recipes.ablations()):
        assert recipes.applied(config, recipes.load(name)) != config, name


@pytest.mark.slow
def test_a_fit_is_what_the_jobs_train_and_rank_to_the_last_digit(world, prepared, tmp_path):
    """`setrec benchmark` and `prepare`, `train`, `evaluate` are one recipe."""
    given = problem.load(prepared)
    fitted = SetRecSystem("x", TINY).fit(given, TINY, 42, Clock(60))
    run = Run(tmp_path / "run")
    config = recipes.applied(given.config, TINY, "training.seed=42", "cluster.threads=1", "evaluation.actors=1")
    preparation.prepare(run, config)
    stages.fit(run, config)
    stages.assess(run, config)
    rows = {
        r["history"]: r["value"]
        for r in run.read_json("metrics.json")
        if (r["system"], r["group"], r["metric"]) == ("SETRec", "all", "ndcg@10")
    }
    own, theirs = (
        pd.json_normalize(w).iloc[0] for w in (run.read_json("scorer.json")["weights"], fitted.chosen["weights"])
    )
    assert own.to_dict() == pytest.approx(theirs.to_dict(), rel=1e-4)  # temperatures are found by a minimiser
    for history, value in rows.items():
        assert value == ranking.mean_metric(fitted.scorer, given.test, history=history)


def test_fits_are_found_again_by_all_that_they_depend_on(tmp_path):
    system = SetRecSystem("A b", TINY, ({"training": {"epochs": 3}},))
    given = [(n, s, m, d, c) for n in (0, 1) for s in (0, 1) for m in (1.0, 2.5) for d in "xy" for c in "pq"]
    tasks = [fits.task(system, *one) for one in given]
    assert len({task.folder(tmp_path) for task in tasks}) == len(given)
    again = fits.task(SetRecSystem("A b", TINY, ({}, {})), *given[0])
    assert again.folder(tmp_path) == tasks[0].folder(tmp_path)
    other = fits.task(SetRecSystem("A b", {"training": {"epochs": 4}}), *given[0])
    assert other.folder(tmp_path) != tasks[0].folder(tmp_path)
    assert fits.done(tmp_path, tasks[0]) is None


def test_model_forgets_in_training_alone(features):
    from setrec.models.item_tokens import TableTokenizer

    table = TableTokenizer(len(features), 64, 16, trainable=True, id_dropout=0.5)
    table.fill(features.collaborative, features.trained)
    hidden = (table.train().codes() == 0).all(dim=1).numpy()
    assert hidden[~features.trained].all()
    assert 0.2 < hidden[features.trained].mean() < 0.8
    assert not (table.eval().codes() == 0).all(dim=1).numpy()[features.trained].any()


def test_an_unknown_protocol_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="known: setrec, leave-one-out"):
        protocol_of("holdout")
