"""The slice end to end on small data through the jobs' functions, and the command line on its result."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from pipelines.common.run_directory import Run
from pipelines.config.job import load_config
from pipelines.data import directory
from pipelines.evaluation import evaluate
from pipelines.evaluation.scorer import hybrid_scorer, load_weights
from pipelines.evaluation.system_names import ALONE, OURS, WITHOUT
from pipelines.features import item_features, preparation
from pipelines.jobs import export
from serving.bundle.reader import Bundle
from serving.engine.engine import Engine, Request
from setrec.data import catalog as catalog_module
from setrec.data.catalog import TEST, VALID
from setrec.errors import ConfigError, DataError
from setrec.evaluation import ranking
from setrec.models.setrec_model import SetRecModel
from setrec.scoring import registry
from setrec.scoring.hybrid import HybridWeights
from setrec.scoring.item_graph import GraphComponent, ItemGraph, Reading
from setrec.scoring.kernels import pairs
from setrec.scoring.model_scores import model_scorer
from setrec.scoring.search.weight_search import TIE_BREAK


@pytest.fixture(params=["qwen3_run", "t5_run"], ids=["qwen3-structural", "t5"])
def run(request) -> Run:
    """A trained, evaluated, exported run; see conftest.py."""
    return request.getfixturevalue(request.param)


def test_metrics_have_every_system_protocol_group_and_metric_once(run):
    rows = run.read_json("metrics.json")
    keys = {(r["system"], r["history"], r["group"], r["metric"]) for r in rows}
    assert len(keys) == len(rows) == 6 * 2 * 3 * 9
    assert {r["system"] for r in rows} == {"Popularity", "ItemKNN", "SASRec", OURS, ALONE, WITHOUT}
    assert {r["group"] for r in rows} == {"all", "warm", "cold"}
    for r in rows:
        assert 0 <= r["low"] <= r["value"] <= r["high"] <= 1


def test_the_table_repeats_from_the_saved_model_and_weights(run):
    catalog, histories = directory.load(run.data)
    model, weights = SetRecModel.from_pretrained(run.model).eval(), load_weights(run)
    texts, trained = item_features.text_features(run, catalog), histories.trained(len(catalog))
    without = HybridWeights.model_validate(run.read_json("scorer.json")["without_model"]["weights"])
    known = histories.upto(VALID)
    scorers = {
        OURS: hybrid_scorer(model, weights, known, trained, texts),
        ALONE: model_scorer(model, weights.of_model_alone),
        WITHOUT: hybrid_scorer(None, without, known, trained, texts),
    }
    cases = ranking.Cases.of(histories, TEST)
    for system, scorer in scorers.items():
        where = (system, "removed", "all", "ndcg@10")
        row = next(
            r for r in run.read_json("metrics.json") if (r["system"], r["history"], r["group"], r["metric"]) == where
        )
        assert row["value"] == pytest.approx(ranking.mean_metric(scorer, cases), abs=1e-6)
    assert len(catalog) == 31


def test_weights_and_everything_that_was_tried_are_kept(run):
    found = run.read_json("scorer.json")
    kinds = SetRecModel.from_pretrained(run.model).kinds
    assert tuple(found["weights"]["slots"]) == kinds
    steps = {row["step"]: row for row in found["tried"]}
    assert set(steps["slots"]["weights"]) == set(kinds)
    together, chosen = steps["slots and components"]["weights"], found["weights"]
    if not any(together[kind] for kind in kinds):  # the model adds nothing to the transitions of the ring
        together |= {kind: TIE_BREAK * steps["slots"]["weights"][kind] for kind in kinds}
    assert list(together) == [*kinds, *registry.kinds()]
    fitted = {name: weight / chosen["temperature"] for name, weight in together.items()}
    assert chosen["slots"] | chosen["components"] == pytest.approx(
        {name: weight for name, weight in fitted.items() if name in kinds or name in chosen["components"]}
    )
    assert {gain["name"] for gain in found["components"]} == set(found["weights"]["components"])
    assert found["weights"]["components"]  # the ring is what transitions know
    assert all(gain["gain"] > 0 for gain in found["components"])


def test_components_that_are_not_wanted_take_no_part(run, tmp_path):
    again = Run(tmp_path / "again")
    shutil.copytree(run.root, again.root)
    config = load_config(again.config, ["evaluation.components=[]"])
    evaluate.evaluate(again, config)
    assert load_weights(again).used == ()
    bundle = export.export(again, config, tmp_path / "bundle")
    assert not (bundle / "components").exists()
    with pytest.raises(ConfigError, match=r"evaluation\.components: no 'nothing'"):
        evaluate.evaluate(again, load_config(again.config, ["evaluation.components=[nothing]"]))


def test_a_ranking_that_ends_early_leaves_the_earlier_results(qwen3_run, tmp_path, monkeypatch):
    again = Run(tmp_path / "again")
    shutil.copytree(qwen3_run.root, again.root)

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "_rank", stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(again, load_config(again.config, ["evaluation.components=[]"]))
    for name in ("metrics.json", "scorer.json"):
        assert again.read_json(name) == qwen3_run.read_json(name)
    assert (again.root / "report.html").is_file()


def test_table_and_bundle_are_the_same_with_histories_on_disk_and_of_few_users_if_asked(run, tmp_path, monkeypatch):
    for module, name in ((catalog_module, "BLOCK"), (ranking, "BLOCK"), (pairs, "_ENTRIES")):
        monkeypatch.setattr(module, name, 50)
    again = Run(tmp_path / "again")
    shutil.copytree(run.root, again.root)
    config = load_config(again.config)
    evaluate.evaluate(again, config)
    assert again.read_json("metrics.json") == run.read_json("metrics.json")
    bundle = export.export(again, config)
    assert isinstance(Bundle.open(bundle).histories.items.values.base, np.memmap)
    assert (bundle / "checks.json").read_text() == (run.bundle / "checks.json").read_text()
    few = ["evaluation.users=9", "evaluation.components=[]", "evaluation.opponents=[popularity]"]
    evaluate.evaluate(again, load_config(again.config, few))
    assert pd.read_parquet(again.root / "per_user.parquet")["user_id"].nunique() == 9


@pytest.fixture
def followers():
    """A component of this test's own: what followed the last item, as often as it did."""

    def build(sources):
        rows, user = sources.histories.values, sources.histories.row_of_value
        same = user[:-1] == user[1:]
        counts = sp.coo_matrix((np.ones(same.sum()), (rows[:-1][same], rows[1:][same])), (sources.items,) * 2)
        return GraphComponent(ItemGraph.of(counts.tocsr()), Reading(last=1))

    yield registry.register(registry.ComponentKind("followers", build))
    registry.unregister("followers")


def test_a_component_that_a_module_registers_is_evaluated_exported_and_served(run, tmp_path, followers):
    again = Run(tmp_path / "again")
    shutil.copytree(run.root, again.root)
    config = load_config(again.config, ["evaluation.components=[followers]"])
    evaluate.evaluate(again, config)
    assert load_weights(again).used == ("followers",)
    engine = Engine(Bundle.open(export.export(again, config, tmp_path / "bundle")))
    answer = engine.recommend_one(Request(history=("i3", "i4"), k=1))
    assert answer.items[0].item_id == "i5"
    assert answer.items[0].shares["followers"] > 0


def test_the_bundle_answers_as_the_evaluation_ranks(run):
    """The engine on the bundle against the dense route; what is served knows all histories."""
    engine, (catalog, histories) = Engine(Bundle.open(run.bundle)), directory.load(run.data)
    model = SetRecModel.from_pretrained(run.model).eval()
    texts, trained = item_features.text_features(run, catalog), histories.trained(len(catalog))
    score = hybrid_scorer(model, load_weights(run), histories.items, trained, texts)
    for user in range(0, len(histories), 9):
        history = histories.items.take(np.array([user]))
        scores = score(history)[0]
        scores[history[0]] = -np.inf
        best = [catalog.item_ids[r] for r in np.argsort(-scores, kind="stable")[:5]]
        answer = engine.recommend_one(Request(user_id=histories.user_ids[user], k=5))
        assert [item.item_id for item in answer.items] == best
        for item in answer.items:
            assert sum(item.shares.values()) == pytest.approx(item.score, abs=1e-4)


def test_a_cold_item_can_be_recommended(run):
    answer = Engine(Bundle.open(run.bundle)).recommend_one(Request(history=("i1", "i2"), k=31, exclude_history=False))
    assert "i_cold" in {item.item_id for item in answer.items}


def test_preparing_again_leaves_no_model_of_the_old_data_and_refused_data_leaves_everything(run, tmp_path):
    again = Run(tmp_path / "again")
    shutil.copytree(run.root, again.root)
    config = load_config(again.config)
    with pytest.raises(DataError):
        preparation.prepare(again, load_config(again.config, ["data.columns.position=nothing"]))
    assert again.model.exists()
    preparation.prepare(again, config)
    made = {"words.safetensors", "lexical"} | ({"structural.safetensors"} if config.structural.enabled else set())
    assert {p.name for p in again.features.glob("*")} == made
    assert {p.name for p in again.root.iterdir()} - {"features"} == {
        "data", "data.json", "config.yaml", "environment.json", "logs", "run.json",
    }  # fmt: skip


def setrec(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pipelines.cli.app", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_line_recommends_without_a_server(run):
    done = setrec("recommend", "--bundle", run.bundle, "--history", "i1,i2", "-k", "3", "--json")
    assert done.returncode == 0, done.stderr
    found = [item["item_id"] for item in json.loads(done.stdout)["items"]]
    assert len(found) == 3
    assert not {"i1", "i2"} & set(found)


def test_all_of_a_small_catalogue_will_do_where_no_number_is_asked_for(t5_run, monkeypatch, capfd):
    from pipelines.cli import app, serving

    monkeypatch.setattr(serving, "DEFAULT_K", 1000)
    monkeypatch.setattr(sys, "argv", ["setrec", "recommend", "--bundle", str(t5_run.bundle), "--user", "u1", "--json"])
    app.main()
    assert len(json.loads(capfd.readouterr().out)["items"]) <= 31


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
def test_mistakes_on_the_command_line_are_one_line_and_exit_code_2(t5_run, commanded, arguments, said):
    code, error = commanded(*(a.format(bundle=t5_run.bundle) for a in arguments))
    assert code == 2
    assert said in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1
