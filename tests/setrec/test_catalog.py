import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from setrec.data.catalog import TEST, TRAIN, VALID, Catalog, Histories
from setrec.errors import DataError, UnknownItemError, UnknownUserError
from setrec.ragged import Ragged


def small_catalog():
    return Catalog(
        ["b", "a", "c"], ["B", "Ä", "c"], ["B. Tag: x", "", "C"], {"tag": [["x"], [], ["y", "z"]], "k": [[]] * 3}
    )


def small_histories():
    items = Ragged.of([[0, 1, 2], [], [2, 2]])
    return Histories(["u", "v", "w"], items, np.array([TRAIN, VALID, TEST, TRAIN, TRAIN], dtype=np.int8))


def test_rows_find_ids_in_the_order_asked_for():
    assert small_catalog().rows(["c", "b", "c"]).tolist() == [2, 0, 2]
    assert small_catalog().rows([]).dtype == np.int64


def test_the_first_unknown_item_is_named():
    with pytest.raises(UnknownItemError, match="unknown item 'nope'"):
        small_catalog().rows(["a", "nope", "neither"])


def test_a_saved_catalogue_loads_as_it_was(tmp_path):
    small_catalog().save(tmp_path / "items.parquet")
    assert Catalog.load(tmp_path / "items.parquet") == small_catalog()


def test_take_reorders_every_column():
    taken = small_catalog().take(np.array([2, 0]))
    assert taken == Catalog(["c", "b"], ["c", "B"], ["C", "B. Tag: x"], {"tag": [["y", "z"], ["x"]], "k": [[], []]})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=6), max_size=6))
def test_saved_histories_load_as_they_were(tmp_path, users):
    items = Ragged.of([[item for item, _ in user] for user in users])
    splits = np.array([label for user in users for _, label in user], dtype=np.int8)
    Histories([str(row) for row in range(len(users))], items, splits).save(tmp_path / "h.parquet")
    loaded = Histories.load(tmp_path / "h.parquet")
    assert loaded.user_ids == [str(row) for row in range(len(users))]
    assert loaded.items.values.dtype == np.int32
    assert loaded.splits.dtype == np.int8
    assert np.array_equal(loaded.items.values, items.values)
    assert np.array_equal(loaded.items.offsets, items.offsets)
    assert np.array_equal(loaded.splits, splits)
    assert loaded.items.values.flags.writeable


def test_histories_are_cut_at_a_split():
    histories = small_histories()
    assert [row.tolist() for row in histories.upto(TRAIN)] == [[0], [], [2, 2]]
    assert [row.tolist() for row in histories.upto(VALID)] == [[0, 1], [], [2, 2]]
    assert [row.tolist() for row in histories.of(TEST)] == [[2], [], []]


def test_an_item_is_warm_when_it_occurs_in_training():
    histories = small_histories()
    assert histories.train_counts(4).tolist() == [1, 0, 2, 0]
    assert histories.trained(4).tolist() == [True, False, True, False]


def test_users_are_found_by_id():
    assert small_histories().row("w") == 2
    with pytest.raises(UnknownUserError, match="unknown user 'x'"):
        small_histories().row("x")


@pytest.mark.parametrize("kind", [Catalog, Histories])
def test_a_truncated_file_is_refused_in_one_line(tmp_path, kind):
    path = tmp_path / "data.parquet"
    (small_catalog() if kind is Catalog else small_histories()).save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a readable Parquet file") as caught:
        kind.load(path)
    assert "\n" not in str(caught.value)


def test_missing_files_and_foreign_tables_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        Catalog.load(tmp_path / "nothing.parquet")
    pq.write_table(pa.table({"user_id": ["u"], "items": [[1.5]], "splits": [[0]]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="column 'items': expected large_list"):
        Histories.load(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="column 'item_id': missing column"):
        Catalog.load(tmp_path / "x.parquet")


def test_a_failed_save_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "items.parquet"
    small_catalog().save(path)
    with pytest.raises(pa.ArrowException):
        Catalog(["a"], ["A", "B"], ["A"], {}).save(path)
    assert Catalog.load(path) == small_catalog()
    assert [entry.name for entry in tmp_path.iterdir()] == ["items.parquet"]
