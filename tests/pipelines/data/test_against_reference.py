"""The engines leave what a few dozen lines of plain Python leave, whatever the rows and settings."""

import csv
import json
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_reference import ingest as plain_ingest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipelines.data.directory import load
from pipelines.data.settings import DataSettings
from pipelines.ingest import histories, on_duckdb, on_ray
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


CASES = (
    st.lists(ROW, min_size=12, max_size=60),
    st.sampled_from([None, "pqrstuvw", "pqrst"]),
    SETTINGS,
    st.sampled_from([3, 20, 1_000_000]),
    st.sampled_from([1, 3]),
)


def written(rows, items, fields, folder, files):
    """The settings that read ``rows``, written as so many files; and the number of the first row of each."""
    starts = {}
    (folder / "in").mkdir()
    for start, stop in pairwise(len(rows) * part // files for part in range(files + 1)):
        path = folder / "in" / f"{len(starts)}.csv"
        starts[str(path)] = start
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows[start:stop])
    if items is not None:
        (folder / "items.csv").write_text("item_id,title\n" + "".join(f"{item},{item}\n" for item in items))
    config = DataSettings(
        interactions=folder / "in", items=None if items is None else folder / "items.csv", rejected_share=0.999999,
        columns={"rating": "rating", "split": "part"}, **fields,
    )  # fmt: skip
    return config, starts


def found(out, starts):
    catalog, held = load(out)
    ends = held.items.offsets
    users = {
        user: [
            (catalog.item_ids[item], int(label))
            for item, label in zip(held.items[row], held.splits[ends[row] : ends[row + 1]], strict=True)
        ]
        for row, user in enumerate(held.user_ids)
    }
    folder = out / "rejected"
    rejected = pq.read_table(folder).to_pylist() if folder.exists() else []
    assert all(row["reason"] for row in rejected)
    return users, catalog.item_ids, sorted((starts[row["file"]] + row["row"], row["column"]) for row in rejected)


def contents(out):
    """All files, and the summary without the engine's name."""
    summary = json.loads((out / "data.json").read_text())
    del summary["settings"]["engine"]
    files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.parquet")}
    return files, summary


def compared(engines, rows, items, fields, shard_rows, files):
    """All engines leave what the reference says, and the very same files."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        # Small shards and blocks: users that begin in one and end in another.
        for module in (histories, on_duckdb, on_ray):
            patch.setattr(module, "SHARD_ROWS", shard_rows)
        folder = Path(name)
        config, starts = written(rows, items, fields, folder, files)
        if fields["split"].kind != "column":  # the column is read only where it splits
            rows = [{**row, "part": "train"} for row in rows]
        expected, item_ids, rejected, dropped = plain_ingest(rows, items, config)
        left = {}
        for engine in engines:
            out, asked = folder / engine, config.model_copy(update={"engine": engine})
            if not any(label == 0 for history in expected.values() for _, label in history):
                with pytest.raises(DataError) as refused:
                    ingest(asked, out)
                left[engine] = str(refused.value)
                continue
            summary = ingest(asked, out)
            left[engine] = contents(out)
            assert found(out, starts) == (expected, item_ids, rejected)
            assert list(found(out, starts)[0]) == list(expected)  # in the order in which users are met
            assert {name: summary["dropped"].get(name, 0) for name in dropped} == dropped
            assert summary["rows"]["interactions"] == len(rows)
            assert summary["rejected"]["interactions"] == len(rejected)
            assert sum(summary["dropped"].values()) + len(rejected) + summary["interactions"] == len(rows)
        assert all(one == left[engines[0]] for one in left.values())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(*CASES)
def test_the_engine_leaves_what_plain_python_leaves(rows, items, fields, shard_rows, files):
    compared(["duckdb"], rows, items, fields, shard_rows, files)


def drawn(seed, count):
    """Rows as :data:`ROW` has them, without a search for small ones."""
    rng = np.random.default_rng(seed)
    columns = {
        "user_id": "abcdé",
        "item_id": "pqrstu",
        "timestamp": [*NUMBERS, "1.5", "noon"],
        "rating": ["1", "2", "4"],
    }
    values = {**columns, "part": ["train", "valid", "test"]}
    return [{name: str(rng.choice(list(among))) for name, among in values.items()} for _ in range(count)]


def test_a_cluster_leaves_the_files_that_one_process_leaves(ray_here):
    fields = {
        "split": GlobalTime(valid=0.2, test=0.2), "unknown_items": "drop", "ties": "shuffle",
        "deduplicate": "strongest", "item_min_count": 2, "seed": 1,
    }  # fmt: skip
    compared(["duckdb", "ray"], drawn(0, 60), "pqrst", fields, 40, 2)


@pytest.mark.slow
def test_a_cluster_refuses_what_one_process_refuses_in_the_same_words(ray_here, tmp_path):
    good = "user_id,item_id,timestamp\n" + "".join(f"u,i{row},{row}\n" for row in range(5))
    for name, text in (("row", good + "u,,7\n"), ("column", good.replace("timestamp", "when")), ("unknown", good)):
        (tmp_path / f"{name}.csv").write_text(text)
        (tmp_path / "items.csv").write_text("item_id,title\ni0,Zero\n")
        said = []
        for engine in ("duckdb", "ray"):
            items = tmp_path / "items.csv" if name == "unknown" else None
            with pytest.raises(DataError) as refused:
                ingest(
                    DataSettings(interactions=tmp_path / f"{name}.csv", items=items, engine=engine), tmp_path / "out"
                )
            said.append(str(refused.value))
        assert said[0] == said[1]
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.reuse, Phase.generate])
@given(*CASES)
def test_both_engines_leave_what_plain_python_leaves(ray_here, rows, items, fields, shard_rows, files):
    compared(["duckdb", "ray"], rows, items, fields, max(shard_rows, 20), files)
