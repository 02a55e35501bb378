import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from pipelines.benchmark.remembered import _Events, _Model, positions
from pipelines.benchmark.weighing import halves
from setrec.transitions import unit_rows

from pipelines.benchmark import fits, problem, recommender, roster
from pipelines.benchmark.entrant import Clock
from pipelines.benchmark.job import benchmark, protocol_of
from pipelines.benchmark.recommender import PUBLISHED, Recommender, RecommenderSettings, _principal
from pipelines.benchmark.run import BenchmarkSettings
from pipelines.runs import Run
from setrec.catalog import VALID
from setrec.errors import ConfigError
from setrec.ragged import Ragged

SYSTEMS = ("Popularity", "ItemKNN", "SASRec", roster.OURS)
SMALL = BenchmarkSettings(minutes=0.4, tries=2, seeds=2, systems=SYSTEMS)


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
    assert best[roster.OURS] > best["Popularity"] + 0.1, "circles can be learned"


def test_the_table_is_the_mean_over_seeds_of_every_users_metrics(finished):
    run, found = finished
    users = pd.read_parquet(run.root / "per_user.parquet")
    mine = users[(users["system"] == roster.OURS) & (users["history"] == "kept") & (users["group"] == "all")]
    assert sorted(mine["seed"].unique()) == [0, 1]
    row = next(
        r for r in found["rows"]
        if (r["system"], r["history"], r["group"], r["metric"]) == (roster.OURS, "kept", "all", "recall@10")
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
    told = next(s for s in found["systems"] if s["system"] == roster.OURS)
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
            "setrec benchmark --data circles --protocol setrec --minutes 0.4 --tries 2 --seeds 2 "
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
    with pytest.raises(ConfigError, match="no system 'Oracle'"):
        benchmark(world, "setrec", Run(tmp_path / "new"), SMALL.model_copy(update={"systems": ("Oracle",)}))
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_share_of_a_gpu_that_is_not_there_is_refused(finished, world):
    run, _ = finished
    with pytest.raises(ConfigError, match=r"a fit is to have 0\.5 of a GPU, and the cluster has no GPU"):
        benchmark(world, "setrec", run, SMALL.model_copy(update={"gpu": 0.5, "seeds": 3}))


def test_principal_directions_keep_cosines_lengths_and_empty_texts():
    rng = np.random.default_rng(0)
    rows = unit_rows(np.vstack([rng.normal(size=(50, 5)) @ rng.normal(size=(5, 40)), np.zeros((2, 40))]))
    few = _principal(rows, 8)
    assert few.shape == (52, 8)
    np.testing.assert_allclose(few @ few.T, rows @ rows.T, atol=1e-5)
    assert not few[50:].any()
    np.testing.assert_allclose(np.linalg.norm(_principal(rows, 2)[:50], axis=1), 1, atol=1e-5)
    assert _principal(rows, 40) is rows


@pytest.mark.parametrize("table", ["random", "sasrec"])
def test_a_fit_ends_with_its_time(prepared, monkeypatch, table):
    monkeypatch.setitem(recommender.SAMPLED, "epochs", 10_000)
    monkeypatch.setitem(recommender.SAMPLED, "patience", 10_000)
    clock, endless = Clock(0.05), RecommenderSettings(epochs=10_000, patience=10_000, table=table)
    fitted = Recommender("x", endless).fit(problem.load(prepared), endless.model_dump(mode="json"), 0, clock)
    assert fitted.curve
    assert clock.seconds < 20


def test_the_published_design_trains(prepared):
    given = problem.load(prepared)
    settings = PUBLISHED.model_copy(update={"family": "t5", "epochs": 2, "text": "all"})
    fitted = Recommender("x", settings).fit(given, settings.model_dump(mode="json"), 0, Clock(1.0))
    assert set(fitted.weights) == {"collaborative", "semantic"}
    assert sum(fitted.weights.values()) == pytest.approx(1.0)


def test_positions_of_one_pass_are_those_of_one_history_after_the_other(prepared, model):
    weights = dict.fromkeys(model.kinds, 1.0)
    model.eval()
    histories = Ragged.of([[1, 2, 3, 4], [5], [6, 7, 8]])
    codes, items = positions(model, histories, weights)
    assert sorted(items.tolist()) == [2, 3, 4, 7, 8]
    for history, item in (([1], 2), ([1, 2], 3), ([1, 2, 3], 4), ([6], 7), ([6, 7], 8)):
        alone = model.user_codes(Ragged.of([history]), weights).numpy()[0]
        np.testing.assert_allclose(codes[items.tolist().index(item)], alone, atol=1e-5)
    later = positions(model, histories, weights, np.array([2, 0, 2]))[1]
    assert sorted(later.tolist()) == [3, 4, 8]


def test_fits_are_kept_apart_by_system_setting_seed_and_minutes(tmp_path):
    tasks = [fits.Task("A b", n, s, m) for n in (0, 1) for s in (0, 1) for m in (1.0, 2.5)]
    assert len({task.folder(tmp_path) for task in tasks}) == 8
    assert fits.done(tmp_path, tasks[0]) is None


def test_model_forgets_in_training_alone(features):
    from setrec.tokens import TableTokenizer

    table = TableTokenizer(len(features), 64, 16, trainable=True, id_dropout=0.5)
    table.fill(features.collaborative, features.trained)
    hidden = (table.train().codes() == 0).all(dim=1).numpy()
    assert hidden[~features.trained].all()
    assert 0.2 < hidden[features.trained].mean() < 0.8
    assert not (table.eval().codes() == 0).all(dim=1).numpy()[features.trained].any()


def test_an_unknown_protocol_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="there are setrec and leave-one-out"):
        protocol_of("holdout")


def _value(told):
    """NDCG@10 on validation of the memory that was chosen."""
    kept = told["memory"]["weight"], told["memory"]["temperature"]
    (value,) = [one["ndcg@10"] for one in told["memory_tried"] if (one["weight"], one["temperature"]) == kept]
    return value


def test_a_memory_is_kept_where_it_helps_and_its_figures_stand_beside_those_without(finished):
    run, found = finished
    told = next(s for s in found["systems"] if s["system"] == roster.OURS)["chosen"][0]
    assert told["memory"]["weight"] == 0 or _value(told) == max(one["ndcg@10"] for one in told["memory_tried"])
    for variant in ("without memory", "model alone"):
        assert f"{roster.OURS}, {variant}" in {row["system"] for row in found["rows"]}
    events = problem.load(run.root / "problem").histories
    assert told["events"] == int((np.maximum(events.upto(1).lengths, 1) - 1).sum())


def test_validation_is_not_read_from_a_memory_that_holds_its_answers(finished):
    _, found = finished
    told = next(s for s in found["systems"] if s["system"] == roster.OURS)
    assert told["valid"] == pytest.approx(np.mean([_value(chosen) for chosen in told["chosen"]]))
    for chosen in told["chosen"]:
        alone = next(one["ndcg@10"] for one in chosen["memory_tried"] if one["weight"] == 0)
        same = [
            one["ndcg@10"]
            for one in chosen["evidence_tried"]
            if {name: one[name] for name in chosen["evidence"]} == chosen["evidence"]
        ]
        assert alone == pytest.approx(same[-1])


@pytest.mark.parametrize("protocol", ["setrec", "leave-one-out"])
def test_no_half_of_validation_knows_what_followed_for_its_own_users_or_what_is_of_the_same_time(
    prepared, model, protocol
):
    given = replace(problem.load(prepared), protocol=protocol)
    parts, others = halves(given)
    events = _Events.of(_Model(model, dict.fromkeys(model.kinds, 1.0)), given, others)
    together = np.concatenate([part.cases.users for part in parts])
    assert sorted(together.tolist()) == sorted(given.valid.users.tolist())
    for part, other, memory in zip(parts, others, events.halves, strict=True):
        assert not set(part.cases.users.tolist()) & set(other.tolist())
        assert len(other) == len(together) - len(part.cases)
        longer = part.known.lengths > given.train.lengths
        assert not longer[part.cases.users].any()
        assert longer.sum() == (0 if protocol == "setrec" else len(other))
        assert len(memory) == int((np.maximum(part.known.lengths, 1) - 1).sum())
    assert len(events.every) == int((given.histories.upto(VALID).lengths - 1).sum())
