"""Streamed ingest leaves what ingest in one process leaves, whatever the pieces, buckets, losses and stores."""

import numpy as np
import pandas as pd
import pytest

from pipelines.cluster import ray_session
from pipelines.data_settings import StreamingSettings
from pipelines.ingest import DataSettings, history_shards, ingest, load
from setrec.catalog import Histories
from setrec.schema import Schema
from setrec.splits import ByColumn, GlobalTime

SMALL = StreamingSettings(enabled=True, bucket_rows=100, block_rows=70)
COLUMNS = Schema(rating="rating", split="part", text=("title", "note"), attributes=("genre",))


@pytest.fixture(scope="module", autouse=True)
def session():
    with ray_session(cpus=2):
        yield


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
