"""Several Parquet files with the same columns, read at once: the same as one file after another."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data import scans
from pipelines.data.settings import DataSettings
from pipelines.ingest.ingest import ingest
from setrec.data.catalog import Histories
from setrec.errors import DataError

BAD_TEXT = pa.array([b"\xff\xfe", b"i1"], pa.binary()).cast(pa.string(), safe=False)


def write(folder, name, user, item, time, **more):
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({"user_id": user, "item_id": item, "timestamp": time, **more}), folder / name)


def contents(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.parquet")}


def one_by_one(monkeypatch):
    monkeypatch.setattr(scans, "alike", lambda files: ([file] for file in files))


def ingested(folder, out, **settings):
    return ingest(DataSettings(interactions=folder, rejected_share=0.9, **settings), out)


@pytest.mark.parametrize("ties", ["file", "shuffle"])
def test_files_read_at_once_leave_what_files_read_one_by_one_leave(tmp_path, monkeypatch, ties):
    rng = np.random.default_rng(0)
    folder = tmp_path / "events"
    for number in range(4):
        size = 50 + number
        users = [f"u{user}" for user in rng.integers(0, 9, size)]
        items = [None if item < 4 else f"i{item}" for item in rng.integers(0, 30, size)]
        # The third file has one column more, so it stands between two groups.
        more = {"rating": np.ones(size)} if number == 2 else {}
        write(folder, f"{number}.parquet", users, items, rng.integers(0, 20, size), **more)
    together = ingested(folder, tmp_path / "together", ties=ties)
    one_by_one(monkeypatch)
    assert ingested(folder, tmp_path / "apart", ties=ties) == together
    assert contents(tmp_path / "together") == contents(tmp_path / "apart")
    assert together["rejected"]["interactions"] > 4
    rejects = pq.read_table(tmp_path / "together" / "rejected").to_pylist()
    assert {row["file"][-9:] for row in rejects} == {f"{number}.parquet" for number in range(4)}
    assert max(row["row"] for row in rejects) <= 53


def test_a_bad_row_in_one_of_several_files_is_rejected_with_its_place_and_the_others_count(tmp_path):
    folder = tmp_path / "events"
    write(folder, "a.parquet", ["u", "u"], ["i1", "i2"], [1, 2])
    write(folder, "b.parquet", ["u", "u"], BAD_TEXT, [3, 4])
    write(folder, "c.parquet", ["u", "v"], ["i3", "i1"], [5, 6])
    ingested(folder, tmp_path / "out", deduplicate="all")
    (bad,) = pq.read_table(tmp_path / "out" / "rejected").to_pylist()
    assert bad["file"].endswith("b.parquet")
    assert bad["row"] == 1
    histories = Histories.load(tmp_path / "out" / "histories" / "part-00000.parquet")
    assert [len(items) for items in histories.items] == [4, 1]


def test_a_damaged_file_among_good_ones_is_refused_by_name(tmp_path):
    folder = tmp_path / "events"
    for name in "abc":
        write(folder, f"{name}.parquet", ["u", "u"], ["i1", "i2"], [1, 2])
    whole = (folder / "b.parquet").read_bytes()
    (folder / "b.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"b\.parquet"):
        ingested(folder, tmp_path / "out")


def test_a_column_of_the_name_that_tells_files_apart_is_a_column_like_others(tmp_path):
    folder = tmp_path / "events"
    for name in "ab":
        write(folder, f"{name}.parquet", ["u", None], ["i1", "i2"], [1, 2], file_index=[5, 7])
    ingested(folder, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "rejected").to_pylist()
    assert [row["file"][-9:] for row in rows] == ["a.parquet", "b.parquet"]
