"""The second stage of a run: learned on validation, kept where it gains there, in the table and in the bundle."""

import json
import shutil

import numpy as np
import pytest

from pipelines.common.run_directory import Run
from pipelines.config.job import load_config
from pipelines.data import directory
from pipelines.evaluation import evaluate, reranker
from pipelines.evaluation.scorer import load_weights
from pipelines.evaluation.system_names import OURS, RERANKED
from pipelines.features import item_features
from pipelines.jobs import export
from serving.bundle.reader import Bundle
from serving.engine.engine import Engine, Request
from setrec.errors import ConfigError
from setrec.models.setrec_model import SetRecModel
from setrec.ragged import Ragged

USERS, CANDIDATES = 300, 20


def table(column):
    """Users whose chosen candidate has a high score (0), or a high ``hint`` (1), which the score does not know."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(USERS * CANDIDATES, 2))
    utility = (2 * values[:, column] + rng.gumbel(size=len(values))).reshape(USERS, CANDIDATES)
    truths = np.zeros((USERS, CANDIDATES), bool)
    truths[np.arange(USERS), utility.argmax(axis=1)] = True
    rows = Ragged(np.arange(len(values)), CANDIDATES * np.arange(USERS + 1))
    return reranker.Table(["score", "hint"], values, rows, truths.ravel(), np.ones(USERS, int))


def test_what_candidates_tell_is_learned_and_noise_is_not_kept():
    found = reranker.learn(table(1))
    assert found["kept"]
    assert found["gain"] > 0.2
    weights = found["reranker"]["weights"]
    assert weights["hint"] > 10 * abs(weights["score"])
    assert not reranker.learn(table(0))["kept"]


@pytest.fixture
def run(t5_run, tmp_path) -> Run:
    shutil.copytree(t5_run.root, tmp_path / "run")
    return Run(tmp_path / "run")


def test_a_run_is_evaluated_and_served_with_the_second_stage_it_keeps(run, commanded):
    assert commanded("train-reranker", "--run", run.root)[0] == 0
    config, weights = load_config(run.config), load_weights(run)
    record = run.read_json("reranker.json")
    rows = evaluate.evaluate(run, config)
    assert {OURS, RERANKED} <= {row["system"] for row in rows}
    for kept in (False, True):
        (run.root / "reranker.json").write_text(json.dumps({**record, "kept": kept}))
        export.export(run, config)
        assert (Bundle.open(run.bundle).manifest.reranker is not None) == kept
    second, _ = reranker.load_reranker(run, weights)
    catalog, histories = directory.load(run.data)
    model, trained = SetRecModel.from_pretrained(run.model).eval(), histories.trained(len(catalog))
    texts = item_features.text_features(run, catalog)
    base = reranker.reranking_base(model, weights, histories.items, trained, texts)
    scorer = reranker.reranking_scorer(second, base, catalog, histories)
    engine = Engine(Bundle.open(run.bundle))
    history = histories.items.take(np.array([0]))
    scores = scorer(history)[0]
    for item in engine.recommend_one(Request(user_id=histories.user_ids[0], k=5)).items:
        assert item.score == pytest.approx(scores[catalog.find(item.item_id)], abs=1e-3)
    assert reranker.load_reranker(run, weights.model_copy(update={"temperature": 2.0})) is None


def test_a_run_without_weights_is_told_to_be_evaluated(run):
    run.discard("scorer.json")
    with pytest.raises(ConfigError, match="evaluate"):
        reranker.train_reranker(run, load_config(run.config))
