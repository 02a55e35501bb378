"""The engine leaves what a few dozen lines of plain Python leave, whatever the rows and settings."""

import csv
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from data_reference import ingest as plain_ingest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pipelines.ingest.histories
from pipelines.data.directory import load
from pipelines.data.settings import DataSettings
from pipelines.ingest.ingest import ingest
from setrec.data.splits import ByColumn, GlobalTime, LeaveOneOut
from setrec.errors import DataError

COLUMNS = ("user_id", "item_id", "timestamp", "rating", "part")
NUMBERS = [str(number) for number in range(-3, 7)]
TIMES = st.sampled_from([*NUMBERS * 3, "1.5", "2.0", "1e1", "noon", "", "nan", "007"])
ROW = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from([*"abcé" * 4, " "]),
        "item_id": st.sampled_from([*"pqrstu" * 3, "v", "x y", ""]),
        "timestamp": TIMES,
        "rating": st.sampled_from(["1", "2", "3.5", "4"] * 4 + ["good"]),
        "part": st.sampled_from(["train", "valid", "test", "train"] * 4 + ["later"]),
    }
)
SPLITS = st.one_of(
    st.integers(1, 2).map(lambda least: LeaveOneOut(min_history=least)),
    st.sampled_from([GlobalTime(valid=0.2, test=0.2), GlobalTime(valid=0.1, test=0.3), ByColumn()]),
)
SETTINGS = st.fixed_dictionaries(
    {
        "split": SPLITS,
        "min_rating": st.sampled_from([None, 2.0]),
        "unknown_items": st.sampled_from(["refuse", "drop"]),
        "ties": st.sampled_from(["file", "shuffle"]),
        "deduplicate": st.sampled_from(["first", "last", "all", "strongest"]),
        "user_min_count": st.sampled_from([0, 0, 2, 3]),
        "item_min_count": st.sampled_from([0, 0, 1, 2, 3]),
        "cold_share": st.sampled_from([0.0, 0.3]),
        "seed": st.integers(0, 3),
    }
)


def written(rows, items, fields, folder):
    with open(folder / "i.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    if items is not None:
        (folder / "items.csv").write_text("item_id,title\n" + "".join(f"{item},{item}\n" for item in items))
    return DataSettings(
        interactions=folder / "i.csv", items=None if items is None else folder / "items.csv", rejected_share=0.999999,
        columns={"rating": "rating", "split": "part"}, **fields,
    )  # fmt: skip


def found(out):
    catalog, histories = load(out)
    ends = histories.items.offsets
    held = {
        user: [
            (catalog.item_ids[item], int(label))
            for item, label in zip(histories.items[row], histories.splits[ends[row] : ends[row + 1]], strict=True)
        ]
        for row, user in enumerate(histories.user_ids)
    }
    folder = out / "rejected"
    rejected = pq.read_table(folder).to_pylist() if folder.exists() else []
    return held, catalog.item_ids, sorted((row["row"], row["column"]) for row in rejected)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(ROW, min_size=12, max_size=60),
    st.sampled_from([None, "pqrstuvw", "pqrst"]),
    SETTINGS,
    st.sampled_from([3, 1_000_000]),
)
def test_the_engine_leaves_what_plain_python_leaves(rows, items, fields, block_rows):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        # Small blocks: users that begin in one and end in another.
        patch.setattr(pipelines.ingest.histories, "SHARD_ROWS", block_rows)
        folder = Path(name)
        config = written(rows, items, fields, folder)
        if fields["split"].kind != "column":  # the column is read only where it splits
            rows = [{**row, "part": "train"} for row in rows]
        histories, item_ids, rejected, dropped = plain_ingest(rows, items, config)
        if not any(label == 0 for history in histories.values() for _, label in history):
            with pytest.raises(DataError):
                ingest(config, folder / "out")
            return
        summary = ingest(config, folder / "out")
        assert found(folder / "out") == (histories, item_ids, rejected)
        if not rejected and not any(dropped.values()):  # users stand in the order in which the table has them
            assert list(found(folder / "out")[0]) == list(histories)
        assert {name: summary["dropped"].get(name, 0) for name in dropped} == dropped
        assert summary["rows"]["interactions"] == len(rows)
        assert summary["rejected"]["interactions"] == len(rejected)
        assert sum(summary["dropped"].values()) + len(rejected) + summary["interactions"] == len(rows)
