"""Streamed ingest leaves what ingest in one process leaves, whatever the pieces, buckets, losses and stores."""

import os
import signal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import s3_server

from pipelines import buckets, partition, storage
from pipelines.data_settings import StreamingSettings
from pipelines.ingest import DataSettings, history_shards, ingest, load
from setrec.catalog import Histories
from setrec.errors import DataError
from setrec.schema import Schema
from setrec.splits import ByColumn, GlobalTime

SMALL = StreamingSettings(enabled=True, bucket_rows=100, block_rows=70)
COLUMNS = Schema(rating="rating", split="part", text=("title", "note"), attributes=("genre",))


@pytest.fixture(scope="module", autouse=True)
def store(ray_here):
    """An S3 server that workers can use; yields URIs of paths in it."""
    with s3_server() as uri:
        yield uri


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """400 interactions of 30 users with 40 items, popular ones more often, many at equal times; as one file, and as
    a folder of three files of several row groups; items of one file and as a folder."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    item = (40 * rng.random(400) ** 2).astype(int)
    frame = pd.DataFrame({"user_id": [f"u{u}" for u in rng.integers(0, 30, 400)], "item_id": [f"i{i}" for i in item]})
    frame["timestamp"] = rng.integers(0, 25, 400)
    frame["rating"] = rng.integers(1, 6, 400)
    frame["part"] = rng.choice(["train", "train", "valid", "test"], 400)
    items = pd.DataFrame({"item_id": [f"i{i}" for i in range(43)], "title": [f"Title {i}" for i in range(43)]})
    items["note"], items["genre"] = (
        [f"about {i}" if i % 3 else None for i in range(43)],
        [[f"g{i % 4}"] for i in range(43)],
    )
    frame.to_parquet(folder / "inter.parquet")
    items.to_parquet(folder / "items.parquet")
    parts(folder / "inter", frame, (150, 151, 390), 40)
    parts(folder / "items", items, (20,), 7)
    return folder


def parts(folder, frame, cuts, rows):
    folder.mkdir()
    for name, (start, end) in enumerate(zip((0, *cuts), (*cuts, len(frame)), strict=True)):
        frame[start:end].to_parquet(folder / f"{name}.parquet", row_group_size=rows, index=False)
    (folder / "_SUCCESS").touch()


def whole(folder, **changes):
    """Settings for one process, and the same streamed."""
    fields = {"items": folder / "items.parquet", "columns": COLUMNS, **changes}
    single = DataSettings(interactions=folder / "inter.parquet", **fields)
    many = {"interactions": folder / "inter", "streaming": SMALL}
    many |= {"items": folder / "items"} if fields["items"] is not None else {}
    return single, single.model_copy(update=many)


def held(out):
    """Everything of a data directory but the order of users."""
    catalog, histories = load(out)
    ends = histories.items.offsets
    return catalog, {
        user: (histories.items[row].tolist(), histories.splits[ends[row] : ends[row + 1]].tolist())
        for row, user in enumerate(histories.user_ids)
    }


def facts(summary):
    return {key: value for key, value in summary.items() if key not in ("settings", "inputs")}


CASES = {
    "plain": {},
    "no items file": {"items": None, "columns": Schema(), "deduplicate": "last"},
    "shuffled ties and repeats kept": {"ties": "shuffle", "deduplicate": "all", "seed": 3},
    "minimum counts and ratings": {"user_min_count": 8, "item_min_count": 3, "min_rating": 2},
    "global time": {"split": GlobalTime(valid=0.15, test=0.2), "cold_share": 0.2},
    "a column and cold items": {"split": ByColumn(), "cold_share": 0.3, "item_min_count": 1, "seed": 5},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_streamed_and_single_process_ingest_are_the_same(world, tmp_path, changes):
    single, streamed = whole(world, **changes)
    one, many = ingest(single, tmp_path / "one"), ingest(streamed, tmp_path / "many")
    assert facts(one) == facts(many)
    assert held(tmp_path / "one") == held(tmp_path / "many")
    shards = [Histories.load(shard) for shard in history_shards(tmp_path / "many")]
    assert len(shards) == 4
    assert not any(tmp_path.glob(".*"))


def spoilt(world):
    """The interactions with eight rows that cannot be used, and the columns that say so."""
    frame = pd.read_parquet(world / "inter.parquet").astype({"timestamp": "object", "rating": "object"})
    frame = frame.astype({"timestamp": "str", "rating": "str"})
    bad = {3: "user_id", 77: "item_id", 152: "timestamp", 153: "rating", 200: "part", 388: "user_id", 395: "item_id"}
    for row, column in bad.items():
        frame.loc[row, column] = {"user_id": None, "item_id": "  ", "timestamp": "noon", "rating": "good"}.get(
            column, "x"
        )
    frame.loc[399, "item_id"] = "i99"
    return frame, {**bad, 399: "item_id"}


def test_bad_rows_are_put_aside_with_their_place_and_reason_as_in_one_process(world, tmp_path):
    frame, bad = spoilt(world)
    parts(tmp_path / "inter", frame, (150, 151, 390), 40)
    frame.to_parquet(tmp_path / "inter.parquet")
    items = pd.read_parquet(world / "items.parquet")
    items.loc[[1, 30], "item_id"] = [None, "i29"]
    items.to_parquet(tmp_path / "items.parquet")
    parts(tmp_path / "items", items, (20,), 7)
    single, streamed = whole(tmp_path, rejected_share=0.2, min_rating=2)
    one, many = ingest(single, tmp_path / "one"), ingest(streamed, tmp_path / "many")
    assert facts(one) == facts(many)
    assert held(tmp_path / "one") == held(tmp_path / "many")
    told, found = (pq.read_table(tmp_path / name / "rejected").to_pandas() for name in ("one", "many"))
    assert many["rejected"]["items"] == 2
    lost = frame["item_id"].isin(["i1", "i30"]) & (frame["rating"] != "1")  # the catalogue lacks these items now
    expected = bad | dict.fromkeys(np.flatnonzero(lost), "item_id")
    starts = {f"{number}.parquet": start for number, start in enumerate((0, 150, 151, 390))}
    mine = found[~found["file"].str.contains("/items/")]
    rows = [starts[file.rpartition("/")[2]] + row - 1 for file, row in zip(mine["file"], mine["row"], strict=True)]
    assert dict(zip(rows, mine["column"], strict=True)) == expected
    plain = [sorted(table["reason"].str.replace("/items.parquet", "/items")) for table in (told, found)]
    assert plain[0] == plain[1]
    assert "'noon' is no timestamp" in plain[1]


def test_too_many_bad_rows_fail_the_job_and_leave_what_was_there(world, tmp_path):
    _, streamed = whole(world)
    ingest(streamed, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    parts(tmp_path / "inter", spoilt(world)[0], (150, 151, 390), 40)
    with pytest.raises(DataError, match=r"inter: 7 of 400 rows cannot be used, a larger share .* = 0.01 .*row 4, col"):
        ingest(streamed.model_copy(update={"interactions": tmp_path / "inter"}), tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inter", "out"]


def test_rows_of_unknown_items_are_refused_beyond_the_share_too(world, tmp_path):
    items = pd.read_parquet(world / "items.parquet")
    items[items["item_id"] != "i0"].to_parquet(tmp_path / "items.parquet")
    single, streamed = whole(world)
    with pytest.raises(DataError, match=r"cannot be used.*unknown item 'i0': .*items.parquet does not hold it"):
        ingest(streamed.model_copy(update={"items": tmp_path / "items.parquet"}), tmp_path / "out")
    dropping = {"items": tmp_path / "items.parquet", "unknown_items": "drop"}
    one = ingest(single.model_copy(update=dropping), tmp_path / "one")
    assert facts(ingest(streamed.model_copy(update=dropping), tmp_path / "many")) == facts(one)
    assert one["dropped"]["unknown_item"] > 0


@pytest.mark.parametrize(("module", "name"), [(partition, "partition"), (buckets, "order")])
def test_a_task_that_dies_is_run_again_to_the_same_result(world, tmp_path, monkeypatch, module, name):
    single, streamed = whole(world)
    marker, task = str(tmp_path / "died"), getattr(module, name)

    def dies_once(*given):
        if not os.path.exists(marker):
            open(marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return task(*given)

    monkeypatch.setattr(module, name, dies_once)
    assert facts(ingest(streamed, tmp_path / "many")) == facts(ingest(single, tmp_path / "one"))
    assert os.path.exists(marker)
    assert held(tmp_path / "one") == held(tmp_path / "many")


def test_a_store_is_read_and_used_for_the_buckets_like_a_folder(world, tmp_path, store):
    for file in (*(world / "inter").glob("*.parquet"), *(world / "items").glob("*.parquet")):
        with storage.atomic_stream(storage.join(store("in"), file.parent.name, file.name)) as stream:
            stream.write(file.read_bytes())
    single, streamed = whole(world)
    scratch = StreamingSettings(bucket_rows=200, scratch=store("scratch"))
    places = {"interactions": store("in/inter"), "items": store("in/items"), "streaming": scratch}
    many = ingest(streamed.model_copy(update=places), tmp_path / "many")
    assert facts(many) == facts(ingest(single, tmp_path / "one"))
    assert held(tmp_path / "one") == held(tmp_path / "many")
    assert storage.files(store("scratch")) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "one"]


@pytest.mark.parametrize("times", ["fractions late", "iso"])
def test_times_in_text_mean_in_every_block_what_they_mean_in_the_whole(world, tmp_path, times):
    frame = pd.read_parquet(world / "inter.parquet")
    if times == "iso":
        frame["timestamp"] = pd.to_datetime(frame["timestamp"], unit="D").astype("str")
    else:
        # Beyond 2^53 whole numbers that differ become equal as soon as one of them all is a fraction.
        frame["timestamp"] = (frame["timestamp"] + 2**55).astype("str")
        frame.loc[398, "timestamp"] = "24.5"
    frame.to_parquet(tmp_path / "inter.parquet", row_group_size=40)
    single, _ = whole(world, split=GlobalTime())
    single = single.model_copy(update={"interactions": tmp_path / "inter.parquet"})
    many = single.model_copy(update={"streaming": SMALL})
    assert facts(ingest(single, tmp_path / "one")) == facts(ingest(many, tmp_path / "many"))
    assert held(tmp_path / "one") == held(tmp_path / "many")


def test_the_cuts_of_fractions_and_of_numbers_below_zero_are_those_of_the_sorted_times():
    rng = np.random.default_rng(0)
    for times in (rng.normal(size=1000), rng.integers(-50, 50, 1000), np.array([0.0, -0.0, -1.5, np.float64(2**60)])):
        keys = buckets.sortable(times)
        assert (np.sort(times) == times[np.argsort(keys, kind="stable")]).all()
        assert ((keys[:, None] >= keys) == (times[:, None] >= times)).all()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no such file or folder"),
        ({"a.csv": None}, "no Parquet file is there"),
        ({"a.parquet": {"user_id": ["u"], "item_id": ["i"]}}, "column 'timestamp': missing column"),
        (
            {
                "a.parquet": {"user_id": ["u"], "item_id": ["i"], "timestamp": [1]},
                "b.parquet": {"user_id": ["u"], "item_id": ["i"], "timestamp": ["1"]},
            },
            "b.parquet, column 'timestamp': .*string where",
        ),
        ({"a.parquet": {"user_id": [1.5], "item_id": ["i"], "timestamp": [1]}}, "'user_id': wrong type: double"),
        ({"a.parquet": {"user_id": [], "item_id": [], "timestamp": []}}, "holds no rows"),
    ],
)
def test_folders_that_cannot_be_read_are_refused_by_name(tmp_path, files, message):
    for name, columns in files.items():
        (tmp_path / "in").mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), tmp_path / "in" / name) if columns else (tmp_path / "in" / name).touch()
    with pytest.raises(DataError, match=message):
        ingest(DataSettings(interactions=tmp_path / "in", streaming=SMALL), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_streaming_says_nothing_of_its_own(world, tmp_path, capfd):
    ingest(whole(world)[1], tmp_path / "out")
    said = capfd.readouterr()
    assert said.out == ""
    assert [line for line in said.err.splitlines() if line.strip()] == [said.err.splitlines()[-1]]
    assert "Ingest and split" in said.err
