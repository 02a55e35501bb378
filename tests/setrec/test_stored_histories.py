"""Histories larger than a block are read a block at a time: the same numbers, in a fraction of the memory."""

import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp

from setrec.data import catalog
from setrec.data.catalog import TEST, TRAIN, VALID, Histories
from setrec.evaluation import ranking
from setrec.evaluation.ranking import Cases
from setrec.ragged import Ragged
from setrec.scoring import baselines
from setrec.scoring.item_graph import Reading
from setrec.scoring.kernels import pairs
from setrec.scoring.search.weight_search import halves
from setrec.scoring.transitions import TransitionSettings, transition_component, transition_probabilities

ITEMS = 60


def some_histories(users: int = 300, length: int = 12, weighted: bool = False) -> Histories:
    rng = np.random.default_rng(0)
    items = Ragged.of([rng.integers(0, ITEMS, rng.integers(0, 2 * length)) for _ in range(users)])
    weights = rng.choice([1, 5, -1], len(items.values)).astype(np.float32) if weighted else None
    splits = np.sort(rng.integers(0, 3, len(items.values))).astype(np.int8)
    splits = np.where(rng.random(len(splits)) < 0.2, rng.integers(0, 3, len(splits)), TRAIN).astype(np.int8)
    return Histories([f"u{u}" for u in rng.permutation(users)], Ragged(items.values, items.offsets, weights), splits)


@pytest.fixture
def small_blocks(monkeypatch):
    def use() -> None:
        for module, name in ((catalog, "BLOCK"), (ranking, "BLOCK"), (pairs, "_ENTRIES"), (baselines, "_PRODUCTS")):
            monkeypatch.setattr(module, name, 100)

    return use


def plain(rows: Ragged) -> tuple:
    return rows.values.tolist(), rows.offsets.tolist(), None if rows.weights is None else rows.weights.tolist()


def on_disk(array: np.ndarray) -> bool:
    return isinstance(array.base, np.memmap)


@pytest.mark.parametrize("weighted", [False, True])
def test_histories_of_several_row_groups_are_on_disk_and_as_they_were(tmp_path, small_blocks, weighted):
    small_blocks()
    histories = some_histories(weighted=weighted)
    for number in range(2):
        histories.save(tmp_path / f"{number}.parquet")
    found = Histories.load(tmp_path / "0.parquet", tmp_path / "1.parquet")
    assert plain(found.items) == plain(Ragged.joined([histories.items] * 2))
    assert found.splits.tolist() == histories.splits.tolist() * 2
    assert found.user_ids == histories.user_ids * 2
    assert on_disk(found.items.values)
    assert on_disk(found.splits)
    once = Histories.load(tmp_path / "0.parquet")
    assert [once.row(user) for user in histories.user_ids] == list(range(len(histories)))


def measured(histories: Histories) -> dict[str, object]:
    """Everything that is read from all histories at once."""
    known = histories.events(VALID)
    parts = [part for timed in (False, True) for part in halves(histories, timed=timed, users=40)]
    cases = [Cases.of(histories, VALID), Cases.of(histories, TEST, 50, 1), *(part.cases for part in parts)]
    graphs = [
        transition_component(known, ITEMS, TransitionSettings(reach=8, fade=0.8, arcs=20), Reading()),
        transition_component(known, ITEMS, TransitionSettings(reach=2, backward=0.0, shrink=30.0), Reading()),
    ]
    nearest = baselines.ItemKnn(histories, ITEMS, baselines.ItemKnnSettings(neighbours=9)).similar
    nearest.sort_indices()
    return {
        "counts": histories.train_counts(ITEMS).tolist(),
        "splits": [plain(rows) for rows in (histories.upto(TRAIN), histories.of(TEST), known)],
        "known in parts": [plain(part.known) for part in parts],
        "cases": [(c.users.tolist(), plain(c.history), plain(c.truth), c.skipped) for c in cases],
        "graphs": [(plain(graph.arcs.targets), graph.arcs.shares.tolist()) for graph in graphs],
        "neighbours": (nearest.indptr.tolist(), nearest.indices.tolist(), nearest.data.tolist()),
    }


@pytest.mark.parametrize("weighted", [False, True])
def test_blocks_change_no_digit(small_blocks, weighted):
    histories = some_histories(weighted=weighted)
    whole = measured(histories)
    small_blocks()
    assert on_disk(histories.events(VALID).values)
    for name, value in measured(histories).items():
        assert value == whole[name], name


def test_a_sample_of_cases_is_built_as_it_is_drawn_from_all(small_blocks):
    small_blocks()
    histories = some_histories()
    every = Cases.of(histories, TEST)
    drawn, built = every.sample(30, 3), Cases.of(histories, TEST, 30, 3)
    assert len(built) == 30 < len(every)
    assert built.users.tolist() == drawn.users.tolist()
    assert (plain(built.history), plain(built.truth)) == (plain(drawn.history), plain(drawn.truth))
    assert Cases.of(histories, TEST, 10_000).users.tolist() == every.users.tolist()


@pytest.mark.parametrize("settings", [TransitionSettings(reach=8, fade=0.8, backward=0.3), TransitionSettings()])
def test_transitions_by_rows_are_those_of_all_pairs_at_once_to_the_last_digit(small_blocks, settings):
    small_blocks()
    rows, s = some_histories().upto(TRAIN), settings
    arcs, user = sp.csr_matrix((ITEMS, ITEMS)), rows.row_of_value
    for distance in range(1, s.reach + 1):
        i, j = rows.values[:-distance], rows.values[distance:]
        some = (user[:-distance] == user[distance:]) & (i != j)
        weight = np.full(some.sum(), s.fade ** (distance - 1))
        arcs = arcs + sp.csr_matrix((weight, (i[some], j[some])), (ITEMS, ITEMS))
    both = (arcs + s.backward * arcs.T).tocsr()
    left = np.asarray(both.sum(axis=1)).ravel()
    both.data *= np.repeat(1.0 / np.where(left > 0, left + s.shrink, 1.0), np.diff(both.indptr))
    assert transition_probabilities(rows, ITEMS, s).toarray().tolist() == both.toarray().tolist()


def test_memory_of_what_reads_all_histories_is_a_few_bytes_an_interaction(tmp_path, monkeypatch):
    histories = some_histories(2000, 100)
    for module, name in ((catalog, "BLOCK"), (ranking, "BLOCK"), (pairs, "_ENTRIES")):
        monkeypatch.setattr(module, name, 5000)
    histories.save(tmp_path / "h.parquet")
    transition_component(histories.part(0, 5).items, ITEMS, TransitionSettings(), Reading())  # compiles
    interactions = len(histories.items.values)
    del histories
    tracemalloc.start()
    try:
        read = Histories.load(tmp_path / "h.parquet")
        parts = halves(read, timed=False, users=20)
        Cases.of(read, TEST, 50)
        read.train_counts(ITEMS)
        transition_component(parts[0].known, ITEMS, TransitionSettings(), Reading())
        transition_component(read.events(VALID), ITEMS, TransitionSettings(), Reading())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Places and ends of users take 5; held in memory as arrays, the histories alone would take as much.
    assert peak < 10 * interactions
