import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from pipelines.benchmark import fits
from pipelines.benchmark.analysis import analysis
from pipelines.benchmark.base.problem import Problem
from pipelines.benchmark.base.system import Fitted
from setrec.data.catalog import TEST, TRAIN, VALID, Catalog, Histories
from setrec.evaluation import ranking
from setrec.ragged import Ragged

ITEMS, USERS, COLD = 50, 240, 8
WANTED = {"system", "history", "group", "metric", "value", "low", "high", "users"}


@pytest.fixture(scope="module")
def given() -> Problem:
    """Histories of 1 to 20 items, one validation item, one to three test items; the last items are cold."""
    rng = np.random.default_rng(0)
    rows, splits = [], []
    for _ in range(USERS):
        train, test = int(rng.integers(1, 20)), int(rng.integers(1, 4))
        tested = rng.choice(
            ITEMS, test, replace=False, p=np.r_[np.ones(ITEMS - COLD), 4 * np.ones(COLD)] / (ITEMS + 3 * COLD)
        )
        rows.append(np.r_[rng.integers(0, ITEMS - COLD, train + 1), tested])
        splits += [TRAIN] * train + [VALID] + [TEST] * test
    ids = [str(i) for i in range(ITEMS)]
    histories = Histories([str(u) for u in range(USERS)], Ragged.of(rows), np.array(splits, dtype=np.int8))
    return Problem("noise", "setrec", Catalog(ids, ids, ids, {}), histories, None, "")


def scorer(history: Ragged) -> np.ndarray:
    """Scores without ties that depend on the last item."""
    table = np.random.default_rng(1).standard_normal((ITEMS, ITEMS), dtype=np.float32)
    return table[history.values[history.offsets[1:] - 1]]


@pytest.fixture(scope="module")
def found(given) -> ranking.PerUser:
    return ranking.evaluate(scorer, given.test, fits.groups(given), ks=(5, 10), lists=True)


def kinds(history: Ragged) -> dict[str, np.ndarray]:
    scores = scorer(history)
    return {"collaborative": scores, "same": 2 * scores + 1, "opposite": -scores}


def test_users_are_grouped_by_the_length_of_their_history(given, found):
    rows = analysis.by_history_length("x", found, given)
    lengths = given.test.history.lengths
    values = found.tables["kept", "all"]["ndcg@10"]
    parts = {
        "1-3": lengths <= 3,
        "4-7": (lengths > 3) & (lengths < 8),
        "8-15": (lengths > 7) & (lengths < 16),
        "16+": lengths > 15,
    }
    assert {row["group"] for row in rows} == {f"length:{name}" for name in parts}
    for row in rows:
        assert row.keys() == WANTED
        own = parts[row["group"].removeprefix("length:")]
        assert row["users"] == own.sum()
        if row["metric"] == "ndcg@10":
            assert row["value"] == pytest.approx(values[own].mean())


def test_users_are_grouped_by_how_many_of_their_truths_are_cold(given, found):
    rows = [row for row in analysis.by_cold_share("x", found, given) if row["metric"] == "ndcg@10"]
    cold = [(~given.trained[truth]).mean() for truth in given.test.truth]
    expected = {"warm": [c == 0 for c in cold], "mixed": [0 < c < 1 for c in cold], "cold": [c == 1 for c in cold]}
    assert {row["group"]: row["users"] for row in rows} == {f"truths:{n}": sum(own) for n, own in expected.items()}
    whole = sum(row["value"] * row["users"] for row in rows) / len(given.test)
    assert whole == pytest.approx(found.mean("ndcg@10", "all", "kept"))


def test_users_are_grouped_by_whether_anybody_went_where_they_went(given, found):
    rows = [row for row in analysis.by_seen_transition("x", found, given) if row["metric"] == "ndcg@10"]
    arcs = {
        (a, b)
        for row in given.histories.upto(VALID)
        for step in (1, 2, 3)
        for a, b in zip(row[:-step], row[step:], strict=True)
    }
    seen = [
        any((h[-1], t) in arcs for t in truth) for h, truth in zip(given.test.history, given.test.truth, strict=True)
    ]
    expected = {"next:seen": sum(seen), "next:unseen": len(seen) - sum(seen)}
    assert {row["group"]: row["users"] for row in rows} == {name: n for name, n in expected.items() if n}


def test_popularity_keeps_its_groups_alone(found):
    rows = analysis.by_popularity("x", found, "kept")
    assert {(row["history"], row["group"]) for row in rows} == {
        ("kept", f"popularity:{n}") for n in ("head", "mid", "tail")
    }


def test_kinds_that_rank_alike_share_everything_and_the_opposite_nothing(given):
    rows = {(row["group"], row["metric"]): row["value"] for row in analysis.overlap("x", kinds, given.test, batch=100)}
    assert rows["collaborative, same", "common@10"] == 1
    assert rows["collaborative, same", "spearman"] == pytest.approx(1)
    assert rows["collaborative, opposite", "common@10"] < 0.2


def test_correlations_are_those_of_scipy_with_the_history_last_and_ties_sharing_ranks(given):
    def noisy(history):
        scores = scorer(history)
        return {"a": scores, "b": np.round(scores + np.roll(scores, 1, axis=1))}

    cases = given.test.sample(20, 5)
    rows = {row["metric"]: row["value"] for row in analysis.overlap("x", noisy, cases, k=5)}
    expected, common = [], []
    for history, a, b in zip(cases.history, *noisy(cases.history).values(), strict=True):
        a, b = a.copy(), b.copy()
        a[history] = b[history] = -np.inf
        expected.append(spearmanr(a, b).statistic)
        best = [set(np.lexsort((np.arange(ITEMS), -s))[:5]) for s in (a, b)]
        common.append(len(best[0] & best[1]) / 5)
    assert rows["spearman"] == pytest.approx(np.mean(expected))
    assert rows["common@5"] == pytest.approx(np.mean(common))


def test_renumbering_changes_nothing_without_ties(given):
    groups = ranking.warm_cold_groups(given.trained)
    rows = analysis.shuffled_rows_check("x", scorer, given.test, groups, ks=(5, 10), batch=70)
    assert {row["group"] for row in rows} == {"all", "warm", "cold"}
    for row in rows:
        assert row["shuffled"] == row["value"]
        assert row["inside"]


def test_a_system_that_lives_on_ties_is_told():
    """All scores are equal, and truths have the smallest row numbers."""
    history = Ragged.of([[ITEMS - 1]] * 60)
    cases = ranking.Cases(np.arange(60), history, Ragged.of([[u % 5] for u in range(60)]))
    every = np.ones(ITEMS, dtype=bool)
    group = [ranking.Group("all", every, every)]
    rows = analysis.shuffled_rows_check("x", lambda h: np.zeros((len(h), ITEMS), np.float32), cases, group)
    assert all(row["value"] == 1.0 for row in rows if row["metric"] == "recall@10")
    assert not any(row["inside"] for row in rows if row["metric"] == "recall@10")


def test_everything_together_is_plain_data_that_json_holds(given, found):
    told = analysis.analyse(Fitted(scorer, kinds=kinds), given, found, "x")
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert set(told) == {"popularity", "length", "cold", "transition", "beyond", "calibration", "overlap", "shuffled"}
    assert all(told.values())
    assert all(row["system"] == "x" for rows in told.values() for row in rows)
    assert analysis.analyse(Fitted(scorer), given, found)["overlap"] == []
