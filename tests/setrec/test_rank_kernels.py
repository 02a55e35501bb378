"""Compiled counting against comparing tables in torch: equal ranks, to the last one."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch_ranking
from hypothesis import given, settings
from hypothesis import strategies as st

from setrec.errors import DataError
from setrec.evaluation import rank_kernels, ranking
from setrec.ragged import Ragged

MANY = settings(max_examples=60, deadline=None)
ITEMS = 40


def rows_of(rng: np.random.Generator, rows: int, longest: int, *, distinct: bool) -> Ragged:
    lengths = rng.integers(0, longest + 1, rows)
    return Ragged.of([rng.choice(ITEMS, n, replace=not distinct) for n in lengths])


@st.composite
def asked(draw):
    """Truths, histories that repeat themselves and may hold truths, and groups whose pools overlap; some are empty."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    rows = draw(st.integers(1, 5))
    truth, seen = rows_of(rng, rows, 6, distinct=True), rows_of(rng, rows, 12, distinct=False)
    pools = [np.ones(ITEMS, bool), rng.random(ITEMS) < 0.6, np.zeros(ITEMS, bool), np.ones(ITEMS, bool)]
    groups = [ranking.Group(str(n), rng.random(ITEMS) < 0.7, pool) for n, pool in enumerate(pools)]
    return rng, truth, seen, groups


def table(rng: np.random.Generator, rows: int, kind: str) -> np.ndarray:
    """Scores full of ties, infinities, zeros of both signs, or neighbours that differ in the last bit."""
    if kind == "plain":
        return rng.standard_normal((rows, ITEMS), dtype=np.float32)
    if kind == "ties":
        return rng.integers(-2, 3, (rows, ITEMS)).astype(np.float32)
    if kind == "infinite":
        return rng.choice(np.array([-np.inf, -np.inf, 0.0, -0.0, 1.0, np.inf], np.float32), (rows, ITEMS))
    one = np.float32(1)
    return rng.choice(
        np.array([one, np.nextafter(one, np.float32(2)), np.nextafter(one, np.float32(0))]), (rows, ITEMS)
    )


KINDS = st.sampled_from(["plain", "ties", "infinite", "close"])
GRID = [{"a": 0.3, "b": 0.7}, {"a": 0.0, "b": 1.0}, {"b": 0.1, "c": 0.2, "a": 0.7}, {"c": -1.0}, {"a": 0.1, "b": 0.9}]


@MANY
@given(asked(), KINDS, st.sampled_from([np.float32, np.float64, np.float16, np.int64]))
def test_every_group_and_protocol_has_the_ranks_of_torch(given_, kind, dtype):
    rng, truth, seen, groups = given_
    scores = table(rng, len(truth), kind)
    if dtype is np.int64:
        scores = np.nan_to_num(scores, posinf=9, neginf=-9)
    scores = scores.astype(dtype)
    ours = ranking.batch_ranks(lambda h: scores, seen, truth, groups)
    theirs = torch_ranking.batch_ranks(lambda h: scores, seen, truth, groups)
    assert ours.keys() == theirs.keys()
    for key, expected in theirs.items():
        np.testing.assert_array_equal(ours[key].values, expected.values)
        np.testing.assert_array_equal(ours[key].offsets, expected.offsets)
        assert ours[key].values.dtype == expected.values.dtype
    for gone in (None, seen):
        for pool in (None, groups[1].candidates):
            expected = torch_ranking.ranks(scores, truth, gone, pool)
            np.testing.assert_array_equal(ranking.ranks(scores, truth, gone, pool), expected)


@MANY
@given(asked(), st.sampled_from(["plain", "ties", "close"]))
def test_every_weighting_has_the_ranks_of_torch_whatever_the_order_of_its_kinds(given_, kind):
    rng, truth, seen, _ = given_
    kinds = {name: table(rng, len(truth), kind) for name in "abc"}
    kinds["c"][rng.random(kinds["c"].shape) < 0.2] = -np.inf
    ours = ranking.weighted_ranks(lambda h: kinds, seen, truth, GRID)
    theirs = torch_ranking.weighted_ranks(lambda h: kinds, seen, truth, GRID)
    for mine, expected in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine.values, expected.values)
        np.testing.assert_array_equal(mine.offsets, expected.offsets)


def test_sums_are_rounded_kind_by_kind_as_the_sum_of_tables_is():
    """Six kinds whose sums depend on the order of the terms: a fused or reordered sum would part what ties."""
    rng = np.random.default_rng(0)
    kinds = {str(n): (rng.standard_normal((3, ITEMS)) * 10.0**n).astype(np.float32) for n in range(6)}
    grid = [dict(zip(kinds, rng.random(6), strict=True)) for _ in range(20)]
    for weights in grid:
        mixed = np.sum([np.float32(w) * kinds[kind] for kind, w in weights.items()], axis=0)
        table = np.array([list(weights.values())], dtype=np.float32)
        found = rank_kernels._mixed_at(np.stack(list(kinds.values())), table, 1, np.arange(ITEMS))
        np.testing.assert_array_equal(found[0], mixed[1])


def test_a_catalogue_of_many_blocks_has_the_ranks_of_torch_with_any_number_of_threads():
    rng, items = np.random.default_rng(1), 3 * rank_kernels.BLOCK + 5
    scores = np.round(rng.standard_normal((70, items), dtype=np.float32), 2)
    truth = Ragged.of([rng.choice(items, n, replace=False) for n in rng.integers(0, 9, 70)])
    edge = rank_kernels.BLOCK
    truth = Ragged.joined([truth.take(np.arange(69)), Ragged.of([[0, edge - 1, edge, 2 * edge, items - 1]])])
    seen = Ragged.of([rng.integers(0, items, 30) for _ in range(70)])
    expected = torch_ranking.ranks(scores, truth, seen)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            np.testing.assert_array_equal(ranking.ranks(scores, truth, seen), expected)
    finally:
        torch.set_num_threads(before)


def test_scores_that_are_not_contiguous_or_may_not_be_written_to_are_ranked_alike():
    rng = np.random.default_rng(2)
    scores = rng.standard_normal((2 * ITEMS, 4), dtype=np.float32)[::2].T
    truth = rows_of(rng, 4, 5, distinct=True)
    expected = ranking.ranks(np.ascontiguousarray(scores), truth)
    scores.setflags(write=False)
    np.testing.assert_array_equal(ranking.ranks(scores, truth), expected)


@pytest.mark.parametrize("row", [0, 3])
def test_a_mixture_that_is_no_number_is_refused_even_in_a_row_without_truths(row):
    kinds = {"a": np.zeros((4, ITEMS), np.float32), "b": np.zeros((4, ITEMS), np.float32)}
    kinds["a"][row, 7], kinds["b"][row, 7] = np.inf, -np.inf
    truth, seen = Ragged.of([[1], [2], [3], []]), Ragged.of([[], [], [], []])
    assert len(ranking.weighted_ranks(lambda h: kinds, seen, truth, [{"a": 0.5, "b": -0.5}])) == 1
    for weights in ({"a": 0.5, "b": 0.5}, {"a": 0.0, "b": -1.0}):
        with pytest.raises(DataError, match="NaN"):
            ranking.weighted_ranks(lambda h: kinds, seen, truth, [{"a": 0.5, "b": -0.5}, weights])


def test_what_does_not_fit_together_is_refused_before_compiled_code_runs():
    scores = np.zeros((2, ITEMS), np.float32)
    with pytest.raises(ValueError, match="outside the catalogue"):
        ranking.ranks(scores, Ragged.of([[1], [ITEMS]]))
    with pytest.raises(ValueError, match="outside the catalogue"):
        ranking.ranks(scores, Ragged.of([[1], [2]]), seen=Ragged.of([[-1], []]))
    with pytest.raises(ValueError, match="same rows"):
        ranking.ranks(scores, Ragged.of([[1], [2], [3]]))


def test_numba_is_not_imported_before_something_is_ranked():
    code = "import sys, setrec.evaluation.ranking; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
