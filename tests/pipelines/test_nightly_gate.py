"""The gate: what a new model may lose against the last one, user by user where the users are the same."""

import numpy as np
import pandas as pd
import pytest

from pipelines.config.sections import GateSettings
from pipelines.nightly.release_gate import judge
from setrec.errors import ConfigError
from setrec.evaluation.intervals import paired_difference

USERS = [f"u{row}" for row in range(400)]
OPTIONS = {"resamples": 300, "seed": 0}


def table(path, values, users=USERS, metric="ndcg@10", alone=None):
    """A run's metrics per user: those that count, and others that must not. ``alone``: of the model alone."""
    rows = [
        {"system": system, "history": history, "group": group, "user_id": user, metric: value * factor}
        for system, history, group, factor, of in [
            ("SETRec", "removed", "all", 1.0, values), ("SETRec", "kept", "all", 0.0, values),
            ("SETRec", "removed", "cold", np.nan, values), ("ItemKNN", "removed", "all", 0.5, values),
            ("SETRec: model alone", "removed", "all", 1.0, () if alone is None else alone),
        ]
        for user, value in zip(users, of, strict=of is values)
    ]  # fmt: skip
    pd.DataFrame(rows).to_parquet(path, index=False)
    return path


@pytest.fixture
def last():
    return np.random.default_rng(0).random(len(USERS))


def test_a_worse_model_is_held_back_and_an_equal_one_is_not(tmp_path, last):
    before, s = table(tmp_path / "last.parquet", last), GateSettings()
    for loss, passes in ((0.0, True), (0.04, True), (0.06, False), (-0.1, True)):
        verdict = judge(table(tmp_path / "new.parquet", last * (1 - loss)), before, "r1", s, **OPTIONS)
        assert verdict.passed is passes
        assert verdict.paired
        assert verdict.users == len(USERS)
        assert verdict.difference == pytest.approx(-loss * last.mean())
        assert verdict.allowed == pytest.approx(-0.05 * last.mean())
        assert "r1" in verdict.reason
        assert "\n" not in verdict.reason


def test_the_interval_is_that_of_the_paired_difference_whatever_the_order_of_the_users(tmp_path, last):
    new = np.clip(last + np.random.default_rng(1).normal(0, 0.05, len(USERS)), 0, 1)
    order = np.random.default_rng(2).permutation(len(USERS))
    shuffled = table(tmp_path / "new.parquet", new[order], [USERS[row] for row in order])
    verdict = judge(shuffled, table(tmp_path / "last.parquet", last), "r1", GateSettings(), **OPTIONS)
    assert (verdict.difference, verdict.low, verdict.high) == pytest.approx(paired_difference(new, last, 300, 0))


def test_by_interval_a_loss_must_be_ruled_out(tmp_path, last):
    noise = np.random.default_rng(1).normal(0, 0.5, len(USERS))
    new = last + noise - noise.mean()
    files = table(tmp_path / "new.parquet", new), table(tmp_path / "last.parquet", last), "r1"
    by_mean = judge(*files, GateSettings(margin=0.03), **OPTIONS)
    by_interval = judge(*files, GateSettings(margin=0.03, by="interval"), **OPTIONS)
    assert by_mean.low < by_mean.allowed < by_mean.difference
    assert (by_mean.passed, by_interval.passed) == (True, False)


def test_only_the_users_that_both_have_are_compared(tmp_path, last):
    users = [*USERS[:300], *(f"new{row}" for row in range(300))]
    new = table(tmp_path / "new.parquet", np.concatenate([last[:300], np.zeros(300)]), users)
    verdict = judge(new, table(tmp_path / "last.parquet", last), "r1", GateSettings(margin=0), **OPTIONS)
    assert (verdict.passed, verdict.paired, verdict.users, verdict.difference) == (True, True, 300, 0)


def test_where_few_users_are_the_same_means_are_compared_with_a_wider_interval(tmp_path, last):
    users = [*USERS[:100], *(f"new{row}" for row in range(300))]
    new = table(tmp_path / "new.parquet", last[::-1], users)
    verdict = judge(new, table(tmp_path / "last.parquet", last), "r1", GateSettings(), **OPTIONS)
    assert not verdict.paired
    assert verdict.difference == pytest.approx(0)
    spread = last.std() * np.sqrt(2 / len(USERS))
    assert verdict.high - verdict.low == pytest.approx(2 * 1.96 * spread, rel=0.2)


def test_a_first_model_passes_unless_it_is_below_the_minimum(tmp_path, last):
    new = table(tmp_path / "new.parquet", last)
    assert judge(new, None, None, GateSettings(), **OPTIONS).passed
    low = judge(new, None, None, GateSettings(minimum=0.9), **OPTIONS)
    assert not low.passed
    assert "minimum of 0.9" in low.reason


def test_a_model_cannot_hide_behind_the_components_beside_it(tmp_path, last):
    s = GateSettings()
    before = table(tmp_path / "last.parquet", last, alone=last * 0.9)
    same = judge(table(tmp_path / "new.parquet", last, alone=last * 0.87), before, "r1", s, **OPTIONS)
    assert (same.passed, same.system) == (True, "SETRec")
    hidden = judge(table(tmp_path / "new.parquet", last, alone=last * 0.1), before, "r1", s, **OPTIONS)
    assert (hidden.passed, hidden.system) == (False, "SETRec: model alone")
    assert hidden.difference == pytest.approx(-0.8 * last.mean())
    assert "SETRec: model alone is" in hidden.reason


def test_a_model_without_a_row_of_its_own_is_compared_as_it_is_served(tmp_path, last):
    s = GateSettings()
    plain, both = table(tmp_path / "a.parquet", last * 0.96), table(tmp_path / "b.parquet", last, alone=last * 0.8)
    assert judge(plain, both, "r1", s, **OPTIONS).passed
    assert not judge(table(tmp_path / "c.parquet", last, alone=last * 0.8), plain, "r1", s, **OPTIONS).passed


def test_a_metric_that_was_not_measured_is_refused_by_name(tmp_path, last):
    new = table(tmp_path / "new.parquet", last, metric="ndcg@5")
    with pytest.raises(ConfigError, match=r"new\.parquet: holds no ndcg@10"):
        judge(new, None, None, GateSettings(), **OPTIONS)
    with pytest.raises(ConfigError, match=r"missing\.parquet"):
        judge(tmp_path / "missing.parquet", None, None, GateSettings(), **OPTIONS)
