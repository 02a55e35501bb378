"""The live index against an exact index built anew from all rows, at every step of random lives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_helpers import codes

from serving.retrieval.live_index import _LISTED, LiveIndex
from serving.retrieval.retriever import Retriever, RetrieverSettings

WIDTH = 8


def live_over(table, **changes):
    return LiveIndex(Retriever.build(table, RetrieverSettings(**changes)))


def every(live):
    return live.codes(np.arange(len(live)))


def check(live, table, alive, queries, k, excluded=None, allowed=None):
    """Same rows and scores as the definition: all scores in float64, sorted by score and then by row."""
    for b, hits in enumerate(live.search(queries, k, excluded, allowed)):
        left = alive.copy()
        if excluded is not None:
            left[excluded[b]] = False
        if allowed is not None and allowed[b] is not None:
            left &= allowed[b]
        scores = table.astype(np.float64) @ queries[b].astype(np.float64)
        order = [r for r in np.lexsort((np.arange(len(table)), -scores)) if left[r]][:k]
        assert hits.rows.tolist() == order
        np.testing.assert_allclose(hits.scores, scores[order], rtol=1e-12, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), items=st.integers(1, 30), steps=st.integers(1, 30), k=st.integers(1, 12))
def test_a_random_life_is_the_same_index_built_anew(seed, items, steps, k):
    """Codes of small whole numbers, so that nearly everything ties: the smaller row goes first, fresh or not."""
    rng = np.random.default_rng(seed)
    table = rng.integers(-1, 2, size=(items, 3)).astype(np.float32)
    live, alive = live_over(table), np.ones(items, dtype=bool)
    for _ in range(steps):
        if rng.random() < 0.6:
            code = rng.integers(-1, 2, size=3).astype(np.float32)
            assert live.add(code) == len(table)
            table, alive = np.vstack([table, code]), np.append(alive, True)
        else:
            row = int(rng.integers(len(table)))
            live.remove(row)
            alive[row] = False
    assert len(live) == len(table)
    np.testing.assert_array_equal(every(live), table)
    np.testing.assert_array_equal(live.alive, alive)
    queries = rng.integers(-1, 2, size=(3, 3)).astype(np.float32)
    excluded = [np.flatnonzero(rng.random(len(table)) < share) for share in (0, 0.3, 0.9)]
    allowed = [None, rng.random(len(table)) < 0.5, rng.random(len(table)) < 0.1]
    check(live, table, alive, queries, k)
    check(live, table, alive, queries, k, excluded)
    check(live, table, alive, queries, k, allowed=allowed)
    check(live, table, alive, queries, k, excluded, allowed)


@pytest.mark.parametrize("gone", [0, 10, _LISTED, _LISTED + 1, 900])
def test_however_many_are_removed_the_rest_is_searched(gone):
    rng = np.random.default_rng(gone)
    table, fresh, queries = codes(1000, WIDTH), codes(50, WIDTH, seed=2), codes(5, WIDTH, seed=1)
    live, alive = live_over(table), np.ones(1050, dtype=bool)
    for code in fresh:
        live.add(code)
    for row in [*rng.permutation(1000)[:gone].tolist(), 1003, 1049]:
        live.remove(row)
        alive[row] = False
    rows = np.vstack([table, fresh])
    excluded = [rng.permutation(1050)[: 200 * b] for b in range(5)]
    allowed = [None, rng.random(1050) < 0.5, rng.random(1050) < 0.02, np.zeros(1050, bool), np.arange(1050) >= 1000]
    check(live, rows, alive, queries, 10)
    check(live, rows, alive, queries, 10, excluded, allowed)


@pytest.mark.parametrize("kind", ["ivf", "ivf_sq8", "ivf_pq"])
def test_over_an_approximate_base_answers_are_as_many_as_are_left_with_exact_scores(kind, monkeypatch):
    rng = np.random.default_rng(4)
    table, fresh, queries = codes(1500, 16), codes(60, 16, seed=2), codes(20, 16, seed=1)
    # Otherwise a filter of so few rows is always searched exactly.
    monkeypatch.setattr("serving.retrieval.ivf._FIXED", 0)
    live = live_over(table, kind=kind, tune_queries=50)
    for code in fresh:
        live.add(code)
    alive = np.ones(1560, dtype=bool)
    for row in rng.permutation(1560)[:400].tolist():
        live.remove(row)
        alive[row] = False
    rows, found = np.vstack([table, fresh]), []
    for share in (1.0, 0.5, 0.1, 0.005, 0.0):
        allowed = [rng.random(1560) < share for _ in queries]
        excluded = [rng.permutation(1560)[:100] for _ in queries]
        for query, mask, banned, hits in zip(
            queries, allowed, excluded, live.search(queries, 10, excluded, allowed), strict=True
        ):
            left = mask & alive
            left[banned] = False
            assert len(hits.rows) == len(set(hits.rows.tolist())) == min(10, left.sum())
            assert left[hits.rows].all()
            scores = rows.astype(np.float64) @ query.astype(np.float64)
            np.testing.assert_allclose(hits.scores, scores[hits.rows], rtol=1e-12, atol=1e-12)
            if len(hits.rows):
                found.append((hits.scores >= np.sort(scores[left])[-len(hits.rows)] - 1e-9).mean())
    assert np.mean(found) > 0.95


def test_each_query_may_ask_for_another_number():
    live = live_over(codes(40, WIDTH))
    live.add(codes(1, WIDTH, seed=3)[0])
    queries, ks = codes(4, WIDTH, seed=1), [0, 1, 41, 99]
    for query, k, hits in zip(queries, ks, live.search(queries, ks), strict=True):
        (alone,) = live.search(query[None], k)
        assert hits.rows.tolist() == alone.rows.tolist()
        assert len(hits.rows) == min(k, 41)


def test_removing_twice_is_removing_once():
    live, queries = live_over(codes(30, WIDTH)), codes(3, WIDTH, seed=1)
    fresh = live.add(codes(1, WIDTH, seed=3)[0])
    for row in (4, fresh):
        live.remove(row)
    once = live.search(queries, 30)
    for row in (4, fresh, 4):
        live.remove(row)
    for a, b in zip(once, live.search(queries, 30), strict=True):
        assert a.rows.tolist() == b.rows.tolist()
    assert live.alive.sum() == 29


def test_when_all_are_removed_nothing_is_found():
    live = live_over(codes(20, WIDTH))
    live.add(codes(1, WIDTH, seed=3)[0])
    for row in range(21):
        live.remove(row)
    assert [len(hits.rows) for hits in live.search(codes(3, WIDTH, seed=1), 5)] == [0, 0, 0]


def test_a_fresh_row_of_large_norm_does_not_blur_the_others():
    live, queries = live_over(codes(50, WIDTH)), codes(5, WIDTH, seed=1)
    rows = [*codes(50, WIDTH), *codes(30, WIDTH, seed=2)]
    rows.append(1000 * rows[3])
    for code in rows[50:]:
        live.add(code)
    check(live, np.array(rows), np.ones(81, dtype=bool), queries, 10)


class TestMemory:
    """Whatever comes or goes, the base's codes are neither copied nor written to, and room grows by steps."""

    def test_adding_leaves_the_base_as_it_was(self):
        table = codes(100, WIDTH)
        table.setflags(write=False)  # as a memory-mapped one is
        live = live_over(table)
        live.add(np.ones(WIDTH, np.float32))
        live.remove(3)
        assert len(live.base) == 100
        assert np.shares_memory(live.base.codes, table)
        assert np.shares_memory(live.exact.base.codes, table)
        assert len(live.table._table) < 2000

    def test_exact_search_stays_as_it_was_when_rows_come(self):
        live, query = live_over(codes(100, WIDTH)), np.ones(WIDTH, np.float32)
        before = live.exact
        best = before.best(query, 3)
        for _ in range(1500):
            live.add(9 * np.ones(WIDTH, np.float32))
        np.testing.assert_array_equal(before.best(query, 3).rows, best.rows)
        assert live.exact.best(query, 3).rows.tolist() == [100, 101, 102]

    def test_rows_survive_every_growth_and_growths_are_few(self):
        table, fresh = codes(100, WIDTH), codes(5000, WIDTH, seed=2)
        live, rooms = live_over(table), set()
        for at, code in enumerate(fresh):
            live.add(code)
            if at % 7 == 0:
                live.remove(100 + at)
            rooms.add(live.table._table.ctypes.data)
        np.testing.assert_array_equal(every(live), np.vstack([table, fresh]))
        np.testing.assert_array_equal(live.alive, [row < 100 or (row - 100) % 7 != 0 for row in range(5100)])
        assert len(rooms) <= 4
        assert len(live.table._table) < 2.5 * len(live)
        check(live, every(live), live.alive, codes(3, WIDTH, seed=1), 10)


class TestAudit:
    """Recall of live queries, over base and fresh rows together."""

    def test_exact_search_finds_everything(self):
        live = live_over(codes(100, WIDTH))
        live.add(codes(1, WIDTH, seed=3)[0])
        live.remove(7)
        audit = live.audit(codes(9, WIDTH, seed=1), 10)
        assert (audit.recall, audit.queries, audit.k) == (1.0, 9, 10)

    def test_what_a_poor_index_misses_is_counted(self):
        table, queries = codes(1500, 16), codes(30, 16, seed=1)
        live = live_over(table, kind="ivf", nlist=20, nprobe=1, oversample=1, tune_queries=10)
        live.add(codes(1, 16, seed=3)[0])
        shares = []
        for query, hits in zip(queries, live.search(queries, 10), strict=True):
            shares.append(np.isin(np.argsort(-(every(live) @ query))[:10], hits.rows).mean())
        assert np.mean(shares) < 0.9
        assert live.audit(queries, 10).recall == pytest.approx(np.mean(shares))


@pytest.mark.parametrize("kind", ["ivf", "ivf_sq8", "ivf_pq"])
def test_added_rows_are_indexed_in_blocks_beside_an_approximate_base(kind, monkeypatch):
    """All cells are probed and many candidates re-scored, so that answers are exact; only the last rows are scanned."""
    monkeypatch.setattr("serving.retrieval.live_index.BLOCK", 64)
    rng = np.random.default_rng(4)
    table, fresh, queries = codes(400, WIDTH), codes(150, WIDTH, seed=2), codes(5, WIDTH, seed=1)
    live, alive = live_over(table, kind=kind, nlist=4, nprobe=4, oversample=50), np.ones(550, dtype=bool)
    for code in fresh:
        live.add(code)
    for row in (3, 401, 470, 549):
        live.remove(row)
        alive[row] = False
    rows = np.vstack([table, fresh])
    check(live, rows, alive, queries, 5)
    assert (len(live._indexed), len(live._last.codes)) == (128, 22)
    excluded = [rng.permutation(550)[: 100 * b] for b in range(5)]
    allowed = [None, rng.random(550) < 0.5, rng.random(550) < 0.02, np.zeros(550, bool), np.arange(550) >= 400]
    check(live, rows, alive, queries, 5, excluded, allowed)
    everything = live.exact
    live.add(codes(1, WIDTH, seed=3)[0])
    assert len(everything.fresh.codes) == 150
