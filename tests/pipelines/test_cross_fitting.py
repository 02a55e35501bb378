"""Offsets are scores of components that do not know the user, and training uses and validates with them."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from pipelines.common.run_directory import Run
from pipelines.config.job import JobConfig, load_config
from pipelines.evaluation.system_names import ALONE, OURS, WITHOUT
from pipelines.features import preparation
from pipelines.jobs import stages
from pipelines.training import cross_fitting, train
from pipelines.training.cross_fitting import cross_fitted, listed, training_offset
from pipelines.training.worker import trainer_of
from setrec.data.catalog import TRAIN, VALID, Histories
from setrec.models.setrec_model import SetRecModel
from setrec.ragged import Ragged
from setrec.scoring.hybrid import HybridScorer, HybridWeights
from setrec.scoring.model_scores import model_scorer
from setrec.scoring.registry import Sources
from setrec.training.settings import OffsetSettings

ITEMS = 30
ON_RAY = {name: getattr(train, name) for name in ("_fit", "ray_session")}  # before a test replaces them
WEIGHTS = {"transitions_near": 2.0, "transitions_forward": 0.5}


def histories_of(rows: list[list[int]]) -> Histories:
    items = Ragged.of(rows)
    return Histories([f"u{u}" for u in range(len(rows))], items, np.zeros(len(items.values), np.int8))


def walks(users: int = 12) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, ITEMS, int(rng.integers(1, 9))).tolist() for _ in range(users)]


def offsets_by_position(histories: Histories, **settings) -> dict[int, dict[int, float]]:
    parts = cross_fitted(
        histories, TRAIN, None, ITEMS, WEIGHTS, OffsetSettings(enabled=True, **{"folds": 3, "top": 5, **settings}), 4
    )
    found = {}
    for positions, rows, values in parts:
        each = np.split(values, rows.offsets[1:-1])
        found |= {int(p): dict(zip(i.tolist(), v, strict=True)) for p, i, v in zip(positions, rows, each, strict=True)}
    return found


def test_an_offset_depends_on_what_other_users_did_and_on_the_own_history_before_it_alone():
    rows = walks()
    rows[2] = [1, 2, 3, 4, 5]
    rows[-1] = [0, *rows[-1]]
    before = offsets_by_position(histories_of(rows))
    start = sum(map(len, rows[:2]))
    again = [*rows[:2], [1, 2, 3, 4, 5, 3, 4, 3, 4], *rows[3:]]  # the transition to the target at `start + 3`
    after = offsets_by_position(histories_of(again))
    assert before[start + 3]
    assert all(after[position] == before[position] for position in range(start + 1, start + 5))
    of_others = [*again[:5], [3, 4, 3, 4], *again[6:]]
    assert offsets_by_position(histories_of(of_others))[start + 3] != before[start + 3]


def test_every_position_but_the_first_of_a_user_has_the_dense_scores_of_the_other_folds_minus_the_floor():
    histories, rows = histories_of(walks()), Ragged.of(walks())
    found = offsets_by_position(histories, top=ITEMS)
    assert sorted(found) == sorted(set(range(len(rows.values))) - set(rows.offsets[:-1].tolist()))
    fold = np.random.default_rng(4).permutation(len(rows)) % 3
    for position, offsets in found.items():
        user = rows.row_of_value[position]
        known = histories.items.take(np.flatnonzero(fold != fold[user]))
        scorer = HybridScorer.build(
            None, HybridWeights(components=WEIGHTS), np.zeros(ITEMS, bool), Sources(known, ITEMS)
        )
        dense = scorer(Ragged.of([rows.values[rows.offsets[user] : position]]))[0]
        written = {item: dense[item] for item in np.flatnonzero((dense > 0) & np.isin(range(ITEMS), rows.values))}
        assert offsets == pytest.approx(written, rel=1e-5)


def test_items_that_are_not_stored_keep_their_probability_together():
    rng = np.random.default_rng(0)
    table = rng.gamma(1.0, 2.0, (7, 40)) * (rng.random((7, 40)) < 0.6)
    table[3], trained = 0, np.arange(40) % 8 > 0
    rows, values = listed(sp.csr_matrix(table), trained, 10)
    assert rows.lengths.tolist() == [10, 10, 10, 0, 10, 10, 10]
    for row, (items, own) in enumerate(zip(rows, np.split(values, rows.offsets[1:-1]), strict=True)):
        assert set(items) == set(np.argsort(-table[row] * trained, kind="stable")[: len(items)])
        offset = np.zeros(40)
        offset[items] = own
        assert (own >= 0).all()
        assert np.isfinite(listed(sp.csr_matrix(1e4 * table), trained, 10)[1]).all()
        true, ours = (np.where(trained, np.exp(scores), 0) for scores in (table[row], offset))
        np.testing.assert_allclose((ours / ours.sum())[items], (true / true.sum())[items])


CONFIG = """
data: {{interactions: {folder}/interactions.csv, items: {folder}/items.csv, columns: {{position: position}}}}
model: {{max_items: 10, hidden: [32, 16], text_slot: 8}}
training:
  {{epochs: 3, targets_per_batch: 64, precision: float32, refit_epochs: null, offset: {{enabled: true, top: 8}}}}
cluster: {{threads: 1}}
evaluation: {{resamples: 20, examples: 1}}
"""


@pytest.fixture
def prepared(tmp_path) -> tuple[Run, JobConfig]:
    """Users who walk a ring of 30 items, one or two at a time, which transitions know."""
    rng = np.random.default_rng(0)
    rows = [
        (f"u{u}", f"i{at % ITEMS}", step)
        for u, start in enumerate(rng.integers(0, ITEMS, 60))
        for step, at in enumerate(start + np.cumsum(rng.choice([1, 1, 2], int(rng.integers(5, 15)))))
    ]
    pd.DataFrame(rows, columns=["user_id", "item_id", "position"]).to_csv(tmp_path / "interactions.csv", index=False)
    items = pd.DataFrame({"item_id": [f"i{i}" for i in range(ITEMS)]})
    items.assign(title=[f"film of year {i // 6}" for i in range(ITEMS)]).to_csv(tmp_path / "items.csv", index=False)
    (tmp_path / "config.yaml").write_text(CONFIG.format(folder=tmp_path))
    run, config = Run(tmp_path / "run"), load_config(tmp_path / "config.yaml")
    preparation.prepare(run, config)
    return run, config


def test_a_run_is_trained_with_an_offset_goes_on_with_the_stored_one_and_is_evaluated_as_any(
    without_ray_train, prepared, monkeypatch
):
    run, config = prepared
    made, keep_trained = [], train._keep_trained
    original = cross_fitting._make
    monkeypatch.setattr(cross_fitting, "_make", lambda *given: made.append(given[2]) or original(*given))

    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "_keep_trained", broken)
    with pytest.raises(KeyboardInterrupt):
        stages.fit(run, config)
    assert made == [TRAIN, VALID]
    monkeypatch.setattr(train, "_keep_trained", keep_trained)
    stages.fit(run, config, resume=True)
    assert made == [TRAIN, VALID]
    assert not run.offset.exists(), "nobody needs it after training"
    validated, final = (SetRecModel.from_pretrained(path) for path in (run.validated, run.model))
    assert len({1.0, *(float(model.offset_scale.detach()) for model in (validated, final))}) == 3
    rows = stages.assess(run, config)
    assert {row["system"] for row in rows} >= {OURS, ALONE, WITHOUT}


def test_validation_ranks_by_the_sum_that_the_loss_is_taken_of(prepared):
    run, config = prepared
    trainer = trainer_of(run, config)
    _, components = training_offset(run, config)
    assert components.weights.used
    model, history = trainer.model.eval(), Ragged.of([[1, 2, 3], [7]])
    model.log_offset_scale.data.fill_(0.3)
    alike = dict.fromkeys(model.kinds, 1 / len(model.tokens.read))
    written = model_scorer(model, alike)(history) + np.exp(0.3) * components(history)
    np.testing.assert_allclose(np.exp(0.3) * trainer.evaluate._scorers(model)["whole"](history), written, atol=1e-4)
    plain = load_config(run.config, ["training.offset.enabled=false"])
    assert trainer_of(run, plain).model.offset_scale is None


def test_another_setting_or_seed_has_another_offset(prepared):
    run, config = prepared
    keys = {
        cross_fitting._key(run, load_config(run.config, list(overrides)))
        for overrides in (
            (), ("training.offset.top=9",), ("training.offset.folds=5",), ("training.seed=1",),
            ("evaluation.components=[text_similarity]",), ("training.epochs=9",),
        )
    }  # fmt: skip
    assert len(keys) == 5
    assert cross_fitting._key(run, config) in keys


@pytest.mark.slow
def test_two_workers_train_with_an_offset_as_one_does(ray_here, prepared, monkeypatch):
    for name, original in ON_RAY.items():
        monkeypatch.setattr(train, name, original)
    run, _ = prepared
    parts = ("model", "model.backbone", "model.collaborative_leg")
    still = [*(f"{part}.dropout=0.0" for part in parts), "model.id_dropout=0.0", "cluster.workers=2"]
    alone = trainer_of(run, load_config(run.config, still))
    while not alone.finished:
        alone.epoch()
    stages.fit(run, load_config(run.config, still))
    records = [json.loads(line) for line in (run.root / "curves.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(
        [r["loss"] for r in records if r["system"] == "SETRec"],
        [r["loss"] for r in alone.progress.curve], rtol=1e-3,
    )  # fmt: skip
