import json

import numpy as np
import pytest

from pipelines.benchmark.analysis.significance import RESAMPLES, significance
from setrec.evaluation.intervals import bootstrap_means, paired_difference, two_sided_p
from setrec.evaluation.ranking import PerUser

USERS = 300
BASE = np.random.default_rng(7).random(USERS)


def system(seed: int, shift: float = 0.0) -> PerUser:
    """A system around the same users' values; half of the users have no cold truth."""
    rng = np.random.default_rng(seed)
    tables = {}
    for history in ("kept", "removed"):
        values = BASE + shift + 0.1 * rng.standard_normal(USERS)
        cold = np.where(np.arange(USERS) % 2, values, np.nan)
        tables[history, "all"] = {"ndcg@10": values, "recall@10": values**2}
        tables[history, "cold"] = {"ndcg@10": cold, "recall@10": cold**2}
        tables[history, "nobody"] = {"ndcg@10": np.full(USERS, np.nan), "recall@10": np.full(USERS, np.nan)}
    return PerUser(np.arange(USERS), tables)


def only(rows, **where):
    (row,) = (row for row in rows if all(row[key] == value for key, value in where.items()))
    return row


def test_a_known_difference_is_found_and_none_is_not():
    others = {"worse": system(1, -0.05), "alike": system(2), "better": system(3, 0.05)}
    rows = significance("ours", system(0), others)
    assert len(rows) == 3 * 2 * 2 * 2
    json.dumps(rows, allow_nan=False)
    for group, users in (("all", USERS), ("cold", USERS // 2)):
        told = {name: only(rows, against=name, history="kept", group=group, metric="ndcg@10") for name in others}
        assert told["worse"]["p"] < 0.05 < told["alike"]["p"]
        assert told["better"]["p"] < 0.05
        assert told["better"]["high"] < 0 < told["worse"]["low"]
        assert told["alike"]["low"] < 0 < told["alike"]["high"]
        assert {row["users"] for row in told.values()} == {users}


def test_each_row_is_the_paired_difference_and_p_value_of_its_columns():
    ours, other = system(0), system(4, 0.01)
    for row in significance("ours", ours, {"other": other}):
        a, b = (one.tables[row["history"], row["group"]][row["metric"]] for one in (ours, other))
        some = ~np.isnan(a)
        found = paired_difference(a[some], b[some], RESAMPLES, 0)
        assert (row["difference"], row["low"], row["high"]) == pytest.approx(found)
        assert (
            row["p"]
            == row["p_alone"]
            == pytest.approx(two_sided_p(bootstrap_means((a - b)[some][:, None], RESAMPLES, 0))[0])
        )
        assert (row["system"], row["against"], row["seed"]) == ("ours", "other", "mean")


def test_seeds_are_compared_one_by_one_and_by_their_mean_and_a_single_run_with_each():
    ours, theirs, lone = [system(s) for s in (0, 1, 2)], [system(s, 0.03) for s in (3, 4, 5)], system(6)
    rows = significance("ours", ours, {"theirs": theirs, "lone": lone}, resamples=200)
    assert {(row["seed"], row["against"]) for row in rows} == {
        (seed, name) for seed in (0, 1, 2, "mean") for name in ("theirs", "lone")
    }
    asked = {"history": "removed", "group": "all", "metric": "ndcg@10"}
    by_seed = [only(rows, seed=s, against="theirs", **asked)["difference"] for s in (0, 1, 2)]
    assert only(rows, seed="mean", against="theirs", **asked)["difference"] == pytest.approx(np.mean(by_seed))
    wide, narrow = (only(rows, seed=s, against="lone", **asked) for s in (0, "mean"))
    assert narrow["high"] - narrow["low"] < wide["high"] - wide["low"]


def test_the_correction_is_for_the_number_of_opponents():
    alone = significance("ours", system(0), {"a": system(1, 0.01)}, resamples=999)
    three = significance("ours", system(0), {n: system(1, 0.01) for n in "abc"}, resamples=999)
    for row in alone:
        same = only(three, against="a", **{key: row[key] for key in ("history", "group", "metric")})
        assert same["p_alone"] == row["p"]
        assert same["p"] == pytest.approx(min(1.0, 3 * row["p"]))


def test_systems_of_other_users_are_refused():
    ours, other = system(0), system(1)
    with pytest.raises(ValueError, match="same users"):
        significance("ours", ours, {"other": PerUser(other.users + 1, other.tables)}, resamples=10)
    other.tables["kept", "cold"]["ndcg@10"][:2] = [0.5, np.nan]
    with pytest.raises(ValueError, match="same users of cold"):
        significance("ours", ours, {"other": other}, resamples=10)
