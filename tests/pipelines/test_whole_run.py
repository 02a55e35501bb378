"""The slice end to end on small data through the jobs' functions, and the command line on its result."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from setrec.walk import Walk, Walked, WalkSettings

from pipelines import evaluate, export, ingest, jobs
from pipelines.config import load_config
from pipelines.runs import Run
from pipelines.system_names import ALONE, OURS
from serving.bundle import Bundle
from serving.engine import Engine, Request
from setrec import ranking
from setrec.catalog import TEST, TRAIN, VALID
from setrec.errors import DataError
from setrec.model import SetRecModel
from setrec.scoring.model_scores import model_scorer


@pytest.fixture(params=["qwen3_run", "t5_run"], ids=["qwen3-structural", "t5"])
def run(request) -> Run:
    """A trained, evaluated, exported run; see conftest.py."""
    return request.getfixturevalue(request.param)


def test_metrics_have_every_system_protocol_group_and_metric_once(run):
    rows = run.read_json("metrics.json")
    keys = {(r["system"], r["history"], r["group"], r["metric"]) for r in rows}
    assert len(keys) == len(rows) == 5 * 2 * 3 * 9
    assert {r["system"] for r in rows} == {"Popularity", "ItemKNN", "SASRec", "SETRec", "SETRec without transitions"}
    assert {r["group"] for r in rows} == {"all", "warm", "cold"}
    for r in rows:
        assert 0 <= r["low"] <= r["value"] <= r["high"] <= 1


def test_the_table_repeats_from_the_saved_model_and_weights(run):
    catalog, histories = ingest.load(run.data)
    model = SetRecModel.from_pretrained(run.model).eval()
    found = run.read_json("weights.json")
    alone = model_scorer(model, found["weights"])
    walk = Walk.of(histories.upto(TRAIN), len(catalog), WalkSettings(**found["transitions"]))
    for system, scorer in ((ALONE, alone), (OURS, Walked(alone, walk))):
        row = next(
            r
            for r in run.read_json("metrics.json")
            if (r["system"], r["history"], r["group"], r["metric"]) == (system, "removed", "all", "ndcg@10")
        )
        value = ranking.mean_metric(scorer, ranking.Cases.of(histories, TEST))
        assert row["value"] == pytest.approx(value, abs=1e-6)
    assert len(catalog) == 31


def test_chosen_weights_are_the_best_of_their_grid_on_validation(run):
    found = run.read_json("weights.json")
    best = max(g["ndcg@10"] for g in found["grid"])
    assert next(g for g in found["grid"] if g["weights"] == found["weights"])["ndcg@10"] == best
    tried = found["transitions_tried"]
    chosen = next(one for one in tried if one.items() >= found["transitions"].items())
    assert chosen["ndcg@10"] == max(one["ndcg@10"] for one in tried) > tried[0]["ndcg@10"]
    assert tried[0]["weight"] == 0
    assert tried[0]["ndcg@10"] == pytest.approx(best, abs=1e-6)


def test_no_transitions_are_weighed_where_they_are_not_wanted(run, tmp_path):
    again = Run(tmp_path / "again")
    shutil.copytree(run.root, again.root)
    config = load_config(again.config, ["evaluation.transitions=false"])
    rows = evaluate.evaluate(again, config)
    assert {r["system"] for r in rows} == {"Popularity", "ItemKNN", "SASRec", "SETRec"}
    assert again.read_json("weights.json")["transitions"] is None
    assert Bundle.open(export.export(again, config, tmp_path / "bundle")).walk is None


def test_weights_range_over_every_kind_of_slot_and_come_from_the_same_scores(run):
    kinds = {"collaborative", "semantic"} | ({"structural"} if load_config(run.config).structural.enabled else set())
    found = run.read_json("weights.json")
    assert len(found["grid"]) == {2: 5, 3: 15}[len(kinds)]
    assert {tuple(sorted(g["weights"])) for g in found["grid"]} == {tuple(sorted(kinds))}
    cases = ranking.Cases.of(ingest.load(run.data)[1], VALID)
    model = SetRecModel.from_pretrained(run.model).eval()
    for g in found["grid"][1::4]:
        again = ranking.mean_metric(model_scorer(model, g["weights"]), cases)
        assert g["ndcg@10"] == pytest.approx(again, abs=1e-6)


def test_the_bundle_answers_as_the_evaluation_ranks(run):
    found = run.read_json("weights.json")
    assert_same_ranking(run, found["weights"], run.bundle, WalkSettings(**found["transitions"]))


def test_so_it_does_where_every_kind_of_slot_has_a_weight(run, tmp_path):
    kinds = SetRecModel.from_pretrained(run.model).kinds
    weights = dict(zip(kinds, (0.25, 0.35, 0.4), strict=False))
    again = Run(tmp_path / "again")
    shutil.copytree(run.root, again.root)
    again.write_json("weights.json", {"weights": weights})
    assert_same_ranking(again, weights, export.export(again, load_config(again.config), tmp_path / "bundle"))


def assert_same_ranking(
    run: Run, weights: dict[str, float], bundle: Path, transitions: WalkSettings | None = None
) -> None:
    """The engine on the bundle against the evaluator's scorer on the run's model, among the items trained on: of the
    others the bundle estimates the collaborative columns. What is served knows what followed what in all histories."""
    engine, (catalog, histories) = Engine(Bundle.open(bundle)), ingest.load(run.data)
    model = SetRecModel.from_pretrained(run.model).eval()
    score, new = model_scorer(model, weights), np.flatnonzero(~histories.trained(len(catalog)))
    if transitions is not None:
        score = Walked(score, Walk.of(histories.items, len(catalog), transitions))
    deny = tuple(catalog.item_ids[row] for row in new)
    for user in range(0, len(histories), 9):
        history = histories.items.take(np.array([user]))
        scores = score(history)[0]
        scores[np.concatenate([history[0], new])] = -np.inf
        best = [catalog.item_ids[r] for r in np.argsort(-scores, kind="stable")[:5]]
        answer = engine.recommend_one(Request(user_id=histories.user_ids[user], k=5, deny=deny))
        assert [item.item_id for item in answer.items] == best
        for item in answer.items:
            assert set(item.shares) - {"transitions"} == set(weights)
            assert sum(item.shares.values()) == pytest.approx(item.score, abs=1e-4)


def test_a_cold_item_can_be_recommended(run):
    answer = Engine(Bundle.open(run.bundle)).recommend_one(Request(history=("i1", "i2"), k=31, exclude_history=False))
    assert "i_cold" in {item.item_id for item in answer.items}


def test_preparing_again_leaves_no_model_of_the_old_data_and_refused_data_leaves_everything(run, tmp_path):
    again = Run(tmp_path / "again")
    shutil.copytree(run.root, again.root)
    config = load_config(again.config)
    with pytest.raises(DataError):
        jobs.prepare(again, load_config(again.config, ["data.columns.position=nothing"]))
    assert again.model.exists()
    jobs.prepare(again, config)
    made = {"structural.safetensors"} if config.structural.enabled else set()
    assert {p.name for p in again.features.glob("*")} == made
    assert {p.name for p in again.root.iterdir()} - {"features"} == {
        "data", "data.json", "config.yaml", "environment.json", "logs",
    }  # fmt: skip


def setrec(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_line_recommends_without_a_server(run):
    done = setrec("recommend", "--bundle", run.bundle, "--history", "i1,i2", "-k", "3", "--json")
    assert done.returncode == 0, done.stderr
    found = [item["item_id"] for item in json.loads(done.stdout)["items"]]
    assert len(found) == 3
    assert not {"i1", "i2"} & set(found)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("recommend", "--bundle", "{bundle}", "--history", "i1,nothing"), "nothing"),
        (("recommend", "--bundle", "{bundle}"), "one of --history"),
        (("recommend", "--bundle", "{bundle}", "--user", "nobody"), "nobody"),
        (("recommend", "--bundle", "{bundle}/nowhere", "--user", "u1"), "nowhere"),
        (("prepare", "--config", "{bundle}/missing.yaml", "--run", "{bundle}/../other"), "missing.yaml"),
        (("export", "--run", "{bundle}/../nothing"), "setrec prepare"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line_and_exit_code_2(t5_run, arguments, said):
    done = setrec(*(a.format(bundle=t5_run.bundle) for a in arguments))
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
