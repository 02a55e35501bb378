"""The ranking evaluation against a brute-force ranking, an independent library, and its own laws."""

from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from setrec.data.catalog import TEST, TRAIN, VALID, Histories
from setrec.errors import DataError
from setrec.evaluation import rank_kernels, ranking
from setrec.evaluation.intervals import bootstrap_means, paired_difference
from setrec.ragged import Ragged

KS = (5, 10, 20)


def brute_rank(scores: np.ndarray, item: int, allowed: np.ndarray) -> int:
    """Sort everything, smaller row first among equals, and look the item up."""
    if not allowed[item]:
        return ranking.NO_RANK
    order = np.lexsort((np.arange(len(scores)), -scores))
    return int(np.flatnonzero(order[allowed[order]] == item)[0])


def brute_metrics(ranks: list[int], k: int) -> dict[str, float]:
    """The three definitions, user by user, in plain Python."""
    hits = [rank for rank in ranks if rank < k]
    ideal = sum(1 / np.log2(place + 2) for place in range(min(k, len(ranks))))
    return {
        f"recall@{k}": len(hits) / len(ranks),
        f"ndcg@{k}": sum(1 / np.log2(rank + 2) for rank in hits) / ideal,
        f"mrr@{k}": 1 / (min(hits) + 1) if hits else 0.0,
    }


@pytest.fixture
def ranx(monkeypatch) -> ModuleType:
    """Interpreted: compiling its loops takes a minute, running these few rankings uncompiled no time. Numba compiles
    nothing meanwhile, ours neither."""
    numba = pytest.importorskip("numba")
    ranking.ranks(np.zeros((1, 1), dtype=np.float32), Ragged.of([[0]]))
    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)
    return pytest.importorskip("ranx")


def random_cases(seed: int, users: int = 30, items: int = 50, overlap: bool = False) -> ranking.Cases:
    """Histories of 3-9 items and 1-6 truths, apart unless ``overlap``."""
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(items) for _ in range(users)]
    cut = [(int(rng.integers(3, 10)), int(rng.integers(1, 7))) for _ in range(users)]
    history = Ragged.of([d[:h] for d, (h, _) in zip(drawn, cut, strict=True)])
    truth = Ragged.of([d[h - overlap : h + t] for d, (h, t) in zip(drawn, cut, strict=True)])
    return ranking.Cases(np.arange(users), history, truth)


class Table:
    """A scorer that looks scores up; it knows a user by the history. Counts what it was asked."""

    def __init__(self, cases: ranking.Cases, scores: np.ndarray) -> None:
        self.of = {tuple(history): row for history, row in zip(cases.history, scores, strict=True)}
        assert len(self.of) == len(cases)
        self.asked = 0

    def __call__(self, history: Ragged) -> np.ndarray:
        self.asked += len(history)
        return np.stack([self.of[tuple(row)] for row in history])


@pytest.mark.parametrize("removed", [False, True], ids=["kept", "removed"])
def test_metrics_agree_with_ranx(removed, ranx):
    cases = random_cases(1)
    scores = np.random.default_rng(2).random((30, 50)).astype(np.float32)
    run = {}
    for user, history in enumerate(cases.history):
        shown = set(range(50)) - (set(history.tolist()) if removed else set())
        run[f"u{user:02}"] = {str(item): float(scores[user, item]) for item in shown}
    qrels = {f"u{user:02}": dict.fromkeys(map(str, truth.tolist()), 1) for user, truth in enumerate(cases.truth)}
    names = [f"{metric}@{k}" for metric in ("recall", "ndcg", "mrr") for k in KS]
    theirs = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), names, return_mean=False)
    every = np.ones(50, dtype=bool)
    found = ranking.evaluate(Table(cases, scores), cases, [ranking.Group("all", every, every)], ks=KS)
    ours = found.tables["removed" if removed else "kept", "all"]
    for name in names:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-12, err_msg=name)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_counting_ranks_equals_sorting_even_with_ties(data):
    rows, items = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 12))
    few = st.lists(st.integers(-2, 2), min_size=items, max_size=items)
    scores = np.array(data.draw(st.lists(few, min_size=rows, max_size=rows)), dtype=np.float32)
    subset = st.lists(st.integers(0, items - 1), max_size=items, unique=True)
    truth = Ragged.of(data.draw(st.lists(subset, min_size=rows, max_size=rows)))
    seen = Ragged.of(data.draw(st.lists(subset, min_size=rows, max_size=rows)))
    pool = np.isin(np.arange(items), data.draw(subset))
    allowed = np.tile(pool, (rows, 1))
    for row, items_seen in enumerate(seen):
        allowed[row, items_seen] = False
    expected = [brute_rank(scores[row], item, allowed[row]) for row, t in enumerate(truth) for item in t]
    assert ranking.ranks(scores, truth, seen, pool).tolist() == expected


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_ranks_depend_on_the_order_of_the_scores_alone(seed):
    cases = random_cases(seed, users=5)
    scores = np.random.default_rng(seed).integers(-20, 20, (5, 50)).astype(np.float32)
    before = ranking.ranks(scores, cases.truth, cases.history)
    assert (ranking.ranks(np.exp(scores / 10) - 3, cases.truth, cases.history) == before).all()


@pytest.mark.parametrize("overlap", [False, True], ids=["new", "repeated"])
def test_every_group_and_protocol_comes_from_one_pass_and_equals_brute_force(overlap):
    cases, rng = random_cases(3, overlap=overlap), np.random.default_rng(4)
    scores = rng.integers(0, 25, (30, 50)).astype(np.float32)
    trained = rng.random(50) < 0.7
    groups = ranking.warm_cold_groups(trained) + ranking.popularity_groups(rng.integers(0, 30, 50))
    scorer = Table(cases, scores)
    found = ranking.evaluate(scorer, cases, groups, ks=KS, batch=7)
    assert scorer.asked == len(cases)
    for group in groups:
        for protocol in ranking.HISTORIES:
            for user, (history, truth) in enumerate(zip(cases.history, cases.truth, strict=True)):
                allowed = group.candidates.copy()
                if protocol == "removed":
                    allowed[history] = False
                counted = [brute_rank(scores[user], item, allowed) for item in truth if group.truths[item]]
                for k in KS:
                    expected = brute_metrics(counted, k) if counted else {f"ndcg@{k}": np.nan}
                    for name, value in expected.items():
                        assert found.tables[protocol, group.name][name][user] == pytest.approx(value, nan_ok=True)


def test_neither_the_batch_nor_the_blocks_change_a_result(monkeypatch):
    cases = random_cases(5)
    scores = np.random.default_rng(6).integers(0, 9, (30, 50)).astype(np.float32)
    groups = ranking.warm_cold_groups(np.arange(50) % 3 > 0)
    whole = ranking.evaluate(Table(cases, scores), cases, groups, batch=256)
    monkeypatch.setattr(rank_kernels, "BLOCK", 7)
    monkeypatch.setattr(rank_kernels, "ROWS", 2)
    steps: list[tuple[int, int]] = []
    parts = ranking.evaluate(Table(cases, scores), cases, groups, batch=11, progress=lambda *s: steps.append(s))
    for key, metrics in whole.tables.items():
        for name, values in metrics.items():
            np.testing.assert_array_equal(values, parts.tables[key][name])
    assert steps == [(11, 30), (22, 30), (30, 30)]


def test_removing_the_history_never_lowers_a_metric_when_nothing_is_met_twice():
    cases = random_cases(7)
    scores = np.random.default_rng(8).random((30, 50)).astype(np.float32)
    found = ranking.evaluate(Table(cases, scores), cases, ranking.warm_cold_groups(np.ones(50, dtype=bool)))
    for name, kept in found.tables["kept", "all"].items():
        removed = found.tables["removed", "all"][name]
        assert (removed >= kept).all()
        assert (removed <= 1).all()
    for metric in ("recall", "mrr"):
        values = [found.mean(f"{metric}@{k}") for k in KS]
        assert values == sorted(values)


def test_a_score_that_is_not_a_number_is_refused():
    cases = random_cases(9, users=2)
    scores = np.zeros((2, 50), dtype=np.float32)
    scores[1, 3] = np.nan
    with pytest.raises(DataError, match="NaN"):
        ranking.ranks(scores, cases.truth)


def some_histories() -> Histories:
    """Four users: an ordinary one, one that repeats itself, one that only trains, one that begins at test time."""
    items = Ragged.of([[0, 1, 2, 3, 4], [5, 6, 6, 7, 6, 7], [1, 2], [3]])
    splits = [TRAIN, TRAIN, TRAIN, VALID, TEST, TRAIN, TRAIN, VALID, VALID, TEST, TEST, TRAIN, TRAIN, TEST]
    return Histories(["a", "b", "c", "d"], items, np.array(splits, dtype=np.int8))


def test_validation_cases_know_the_training_items_and_test_cases_both():
    valid, test = (ranking.Cases.of(some_histories(), split) for split in (VALID, TEST))
    assert valid.users.tolist() == test.users.tolist() == [0, 1]
    assert [h.tolist() for h in valid.history] == [[0, 1, 2], [5, 6]]
    assert [h.tolist() for h in test.history] == [[0, 1, 2, 3], [5, 6, 6, 7]]
    assert [t.tolist() for t in valid.truth] == [[3], [6, 7]]
    assert (valid.skipped, test.skipped) == (0, 1)


def test_a_sample_of_cases_is_some_of_them_whole_and_the_same_for_a_seed():
    cases = random_cases(20)
    some = cases.sample(9, seed=1)
    assert len(set(some.users.tolist())) == len(some) == 9
    for user, history, truth in zip(some.users, some.history, some.truth, strict=True):
        np.testing.assert_array_equal(history, cases.history[user])
        np.testing.assert_array_equal(truth, cases.truth[user])
    assert (cases.sample(9, seed=1).users == some.users).all()
    assert cases.sample(30, seed=1) is cases


def test_an_item_met_twice_is_one_truth_so_a_perfect_ranking_scores_one():
    items = Ragged.of([[0, 5, 5, 6, 5]])
    histories = Histories(["a"], items, np.array([TRAIN, TEST, TEST, TEST, TEST], dtype=np.int8))
    cases = ranking.Cases.of(histories, TEST)
    assert cases.truth[0].tolist() == [5, 6]
    scores = np.array([[0, 0, 0, 0, 0, 3, 2]], dtype=np.float32)
    found = ranking.user_metrics(Ragged(ranking.ranks(scores, cases.truth), cases.truth.offsets), KS)
    assert all(values.tolist() == [1.0] for values in found.values())


def test_popularity_groups_part_the_catalogue_at_thirds_of_the_interactions():
    counts = np.random.default_rng(10).zipf(1.5, 300).clip(max=60)
    groups = ranking.popularity_groups(counts)
    assert (sum(group.truths.astype(int) for group in groups) == 1).all()
    shares = [counts[group.truths].sum() / counts.sum() for group in groups]
    np.testing.assert_allclose(shares, 1 / 3, atol=counts.max() / counts.sum())
    head, mid, tail = (counts[group.truths] for group in groups)
    assert head.min() >= mid.max() >= mid.min() >= tail.max()
    assert all(group.candidates.all() for group in groups)


def test_a_group_without_users_has_no_row_and_every_other_row_is_complete():
    cases = random_cases(11)
    groups = ranking.warm_cold_groups(np.ones(50, dtype=bool))
    scores = np.random.default_rng(12).random((30, 50)).astype(np.float32)
    rows = ranking.evaluate(Table(cases, scores), cases, groups, ks=(5, 10)).rows("X", resamples=200)
    assert {row["group"] for row in rows} == {"all", "warm"}
    assert len(rows) == 2 * 2 * 6
    assert {row["history"] for row in rows} == set(ranking.HISTORIES)
    for row in rows:
        assert row.keys() == {"system", "history", "group", "metric", "value", "low", "high", "users"}
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
        assert row["users"] == 30


def test_without_cases_there_are_no_rows_and_no_mean():
    nobody = ranking.Cases(np.empty(0, np.int64), Ragged.of([]), Ragged.of([]))
    found = ranking.evaluate(lambda h: np.zeros((len(h), 5)), nobody, ranking.warm_cold_groups(np.ones(5, bool)))
    assert found.rows("X") == []
    assert np.isnan(found.mean())
    assert np.isnan(ranking.mean_metric(lambda h: np.zeros((len(h), 5)), nobody))


def test_weights_are_those_whose_own_evaluation_is_best():
    cases, rng = random_cases(13), np.random.default_rng(14)
    kinds = {kind: rng.random((30, 50)).astype(np.float32) for kind in ("a", "b")}
    for user, truth in enumerate(cases.truth):
        kinds["a"][user, truth] += 0.4
    tables = {kind: Table(cases, scores) for kind, scores in kinds.items()}
    grid = [{"a": w / 4, "b": 1 - w / 4} for w in range(5)]
    best, tried = ranking.choose_weights(lambda h: {k: t(h) for k, t in tables.items()}, cases, grid, batch=8)
    alone = [ranking.mean_metric(lambda h, w=w: w["a"] * tables["a"](h) + w["b"] * tables["b"](h), cases) for w in grid]
    assert [row["ndcg@10"] for row in tried] == pytest.approx(alone)
    assert best == grid[int(np.argmax(alone))] == tried[int(np.argmax(alone))]["weights"]


def test_of_equal_weightings_the_first_in_the_grid_is_taken():
    cases = random_cases(15, users=4)
    scores = Table(cases, np.random.default_rng(16).random((4, 50)).astype(np.float32))
    best, _ = ranking.choose_weights(lambda h: {"a": scores(h)}, cases, [{"a": 0.5}, {"a": 1.0}, {"a": 2.0}])
    assert best == {"a": 0.5}


def test_bootstrap_intervals_have_the_width_that_theory_gives():
    values = np.random.default_rng(17).random((400, 2)) * [1.0, 3.0]
    means = bootstrap_means(values, 4000, seed=0)
    assert means.shape == (4000, 2)
    np.testing.assert_allclose(means.mean(axis=0), values.mean(axis=0), atol=3e-3)
    np.testing.assert_allclose(means.std(axis=0), values.std(axis=0) / 20, rtol=0.05)
    np.testing.assert_array_equal(means, bootstrap_means(values, 4000, seed=0))
    assert (means != bootstrap_means(values, 4000, seed=1)).any()


def test_resampling_in_pieces_is_resampling_at_once(monkeypatch):
    values = np.random.default_rng(18).random((30, 1))
    whole = bootstrap_means(values, 50, seed=3)
    monkeypatch.setattr("setrec.evaluation.intervals.CELLS_AT_ONCE", 70)
    np.testing.assert_allclose(bootstrap_means(values, 50, seed=3), whole)


def test_a_paired_difference_sees_what_two_separate_intervals_hide():
    rng = np.random.default_rng(19)
    users = rng.random(500)
    better = users + 0.02 + 0.01 * rng.standard_normal(500)
    difference, low, high = paired_difference(better, users)
    assert difference == pytest.approx(0.02, abs=2e-3)
    assert 0 < low < difference < high
    assert np.ptp(np.percentile(bootstrap_means(users[:, None], 1000, 0), [2.5, 97.5])) > 10 * (high - low)


def test_scorers_ranked_together_have_the_metrics_of_each():
    rng = np.random.default_rng(5)
    rows = [rng.integers(30, size=4) for _ in range(20)]
    cases = ranking.Cases(np.arange(20), Ragged.of(rows), Ragged.of([[rng.integers(30)] for _ in range(20)]))
    table = rng.normal(size=(30, 30)).astype(np.float32)

    def by_last_item(history: Ragged) -> np.ndarray:
        return table[history.values[history.offsets[1:] - 1]]

    scorers = {
        "one": by_last_item,
        "twice": lambda history: 2 * by_last_item(history),
        "other": lambda history: -by_last_item(history),
    }
    groups = ranking.warm_cold_groups(np.arange(30) < 20)
    together = ranking.evaluate_each(scorers, cases, groups, batch=7)
    for name, scorer in scorers.items():
        for key, metrics in ranking.evaluate(scorer, cases, groups, batch=7).tables.items():
            for metric, values in metrics.items():
                np.testing.assert_array_equal(together[name].tables[key][metric], values)
    means = {name: found.mean("ndcg@10", "all", "kept") for name, found in together.items()}
    assert means["one"] == means["twice"] != means["other"]
