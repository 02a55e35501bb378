"""A pruned walk on transitions against the whole one and sums done by hand."""

import json

import numpy as np
import pytest
import scipy.sparse as sp
from safetensors.numpy import save_file

from setrec import walk, walk_kernels
from setrec.ragged import Ragged
from setrec.transitions import Transitions, TransitionSettings, transition_graph
from setrec.walk import Walk, Walked, WalkSettings

ITEMS = 30
rng = np.random.default_rng(0)
ROWS = Ragged.of([rng.integers(ITEMS, size=rng.integers(2, 9)) for _ in range(200)])
READ = Ragged.of([[1, 2, 3], [], [4], [5, 5, 6, 5]])
WIDE = WalkSettings(arcs=ITEMS, weight=2.0)


def of(settings: WalkSettings) -> Walk:
    return Walk.of(ROWS, ITEMS, settings)


def zeros(history: Ragged) -> np.ndarray:
    return np.zeros((len(history), ITEMS), dtype=np.float32)


def test_with_nothing_left_out_it_is_the_walk_of_the_opponent():
    s = TransitionSettings(**WIDE.model_dump(include=set(TransitionSettings.model_fields)), hops=2, text=0.0)
    whole = Transitions(transition_graph(ROWS, ITEMS, s), None, s)(READ)
    whole[READ.row_of_value, READ.values] = 0.0
    np.testing.assert_allclose(of(WIDE).table(READ), np.sqrt(whole), rtol=1e-5, atol=1e-7)


def test_an_item_of_the_history_and_a_user_without_one_get_nothing():
    roots = of(WIDE).table(READ)
    assert not roots[READ.row_of_value, READ.values].any()
    assert not roots[1].any()
    assert (roots[[0, 2, 3]].sum(axis=1) > 0).all()


def test_the_history_it_reads_stays_as_it_was():
    values, offsets = READ.values.copy(), READ.offsets.copy()
    of(WIDE).roots(READ)
    np.testing.assert_array_equal(READ.values, values)
    np.testing.assert_array_equal(READ.offsets, offsets)


def test_a_row_of_a_batch_is_what_it_is_alone():
    made = of(WalkSettings(arcs=5))
    together = made.table(READ)
    for number, row in enumerate(READ):
        np.testing.assert_array_equal(together[number], made.table(Ragged.of([row]))[0])


@pytest.mark.parametrize("damping", [0.0, 0.4])
def test_a_row_of_the_table_is_two_steps_with_the_most_likely_arcs_alone(damping):
    settings = WIDE.model_copy(update={"arcs": 3, "damping": damping})
    graph = walk.largest(transition_graph(ROWS, ITEMS, settings), 3).toarray()
    both = graph + damping * graph @ graph
    np.fill_diagonal(both, 0.0)
    made = of(settings)
    assert made.arcs.lengths.max() == 3
    for row, whole in enumerate(both):
        start, end = made.arcs.offsets[row : row + 2]
        np.testing.assert_allclose(made.shares[start:end], whole[made.arcs[row]], rtol=1e-6)
        np.testing.assert_allclose(
            np.sort(made.shares[start:end])[::-1], np.sort(whole)[::-1][: end - start], rtol=1e-6
        )
        assert end - start == min(3, np.count_nonzero(whole))


@pytest.mark.parametrize("count", [1, 2, 100])
def test_the_largest_of_a_row_are_kept_and_of_equal_ones_the_first(count):
    table = np.array([[3.0, 1.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0], [0.0, 5.0, 0.0, 0.0]])
    expected = {1: [[3, 0, 0, 0], [0] * 4, [0, 5, 0, 0]], 2: [[3, 0, 3, 0], [0] * 4, [0, 5, 0, 0]], 100: table}[count]
    np.testing.assert_array_equal(walk.largest(sp.csr_matrix(table), count).toarray(), expected)


def test_rows_and_roots_are_the_entries_of_the_table():
    made = of(WIDE)
    found, roots = made.roots(READ)
    table = made.table(READ)
    assert len(found) == len(READ)
    for row, items in enumerate(found):
        np.testing.assert_array_equal(items, np.flatnonzero(table[row]))
    np.testing.assert_array_equal(roots, table[table > 0])
    nothing, none = made.roots(Ragged.of([[]]))
    assert len(nothing) == 1
    assert not len(none)


def test_a_graph_sorted_in_parts_is_the_graph(monkeypatch):
    whole = of(WalkSettings(arcs=4)).table(READ)
    monkeypatch.setattr(walk, "_ROWS", 7)
    monkeypatch.setattr(walk_kernels, "_ROWS", 4)
    np.testing.assert_array_equal(of(WalkSettings(arcs=4)).table(READ), whole)


def test_sums_by_sorting_are_those_by_a_table(monkeypatch):
    made = of(WIDE)
    tables = []
    for dense in (0, 1_000_000):
        monkeypatch.setattr(walk, "_DENSE", dense)
        tables.append(made.table(READ))
    np.testing.assert_array_equal(*tables)


def test_what_it_adds_is_its_weight_times_the_roots():
    made = of(WIDE)
    scores = Walked(lambda h: zeros(h) + np.arange(ITEMS, dtype=np.float32), made)(READ)
    np.testing.assert_allclose(scores, np.arange(ITEMS) + 2.0 * made.table(READ), rtol=1e-6)
    assert scores.dtype == np.float32


def test_a_saved_walk_is_the_walk(tmp_path):
    made = of(WIDE)
    made.save(tmp_path / "walk.safetensors")
    loaded = Walk.load(tmp_path / "walk.safetensors")
    assert loaded.settings == WIDE
    np.testing.assert_array_equal(loaded.table(READ), made.table(READ))
    empty = Walk.of(Ragged.of([[]]), 3, WIDE)
    empty.save(tmp_path / "empty.safetensors")
    assert not Walk.load(tmp_path / "empty.safetensors").table(Ragged.of([[0, 1]])).any()


@pytest.mark.parametrize(
    "damage",
    [
        {"items": np.array([0, ITEMS], dtype=np.int32)},
        {"items": np.array([0, -1], dtype=np.int32)},
        {"items": np.array([0, 1], dtype=np.int64)},
        {"items": np.array([0], dtype=np.int32)},
        {"shares": np.array([0.5, np.nan], dtype=np.float32)},
        {"shares": np.array([0.5, -0.5], dtype=np.float32)},
        {"offsets": np.array([], dtype=np.int64)},
        {"offsets": np.r_[np.full(ITEMS, 3), 2]},
        {"offsets": np.r_[0, 2**63 - 1, -2, np.zeros(ITEMS - 3, dtype=np.int64), 2]},
        {"settings": WIDE.model_copy(update={"arcs": 1})},
        {"settings": WIDE.model_copy(update={"weight": float("inf")})},
        {"settings": WIDE.model_copy(update={"decay": 1e300})},
    ],
)
def test_a_file_that_holds_no_walk_is_refused(tmp_path, damage):
    whole = {
        "offsets": np.r_[np.zeros(ITEMS, dtype=np.int64), 2],
        "items": np.array([0, 1], dtype=np.int32),
        "shares": np.array([0.5, 0.5], dtype=np.float32),
    }
    save_file(whole, tmp_path / "whole.safetensors", {"settings": WIDE.model_dump_json()})
    assert len(Walk.load(tmp_path / "whole.safetensors")) == ITEMS
    settings = damage.pop("settings", WIDE)
    save_file(whole | damage, tmp_path / "damaged.safetensors", {"settings": json.dumps(settings.model_dump())})
    with pytest.raises(ValueError, match=r"damaged\.safetensors|WalkSettings"):
        Walk.load(tmp_path / "damaged.safetensors")
    save_file(whole, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="JSON"):
        Walk.load(tmp_path / "none.safetensors")
