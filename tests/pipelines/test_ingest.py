import hashlib
import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from pipelines.data.directory import history_shards, load, write_histories
from pipelines.data.settings import DataSettings
from pipelines.ingest.ingest import ingest
from pipelines.jobs import datasets
from setrec.data.catalog import TEST, TRAIN, VALID, Histories
from setrec.data.schema import Schema
from setrec.data.splits import ByColumn, GlobalTime
from setrec.errors import DataError


def movielens(**changes):
    try:
        return datasets.movielens_100k(**changes)
    except DataError as absent:
        pytest.skip(str(absent))


@pytest.fixture
def tables(tmp_path):
    """Random interactions of 12 users with 20 items, of which two are met by nobody."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"user_id": [f"u{row // 8}" for row in range(96)]})
    frame["item_id"] = [f"i{item}" for _ in range(12) for item in rng.permutation(18)[:8]]
    frame["timestamp"] = rng.integers(0, 5, 96)
    frame["rating"] = rng.integers(1, 6, 96)
    frame["part"] = rng.choice(["train", "train", "valid", "test"], 96)
    frame = frame.sample(frac=1, random_state=0)
    frame.to_csv(tmp_path / "inter.csv", index=False)
    items = pd.DataFrame({"item_id": [f"i{i}" for i in range(20)], "title": [f"Title {i}" for i in range(20)]})
    items.to_parquet(tmp_path / "items.parquet")
    return DataSettings(interactions=tmp_path / "inter.csv", items=tmp_path / "items.parquet")


def frame_of(config):
    return pd.read_csv(config.interactions)


def contents(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def pairs(out, split=None):
    """What a data directory holds, as (user id, item id) pairs in order."""
    catalog, histories = load(out)
    rows = histories.items if split is None else histories.of(split)
    return [(u, catalog.item_ids[i]) for u, items in zip(histories.user_ids, rows, strict=True) for i in items]


def test_histories_equal_a_stable_sort_of_the_file(tables, tmp_path):
    ingest(tables, tmp_path / "out")
    frame = frame_of(tables).sort_values("timestamp", kind="stable")
    expected = {user: group["item_id"].tolist() for user, group in frame.groupby("user_id")}
    catalog, histories = load(tmp_path / "out")
    found = {
        u: [catalog.item_ids[i] for i in items] for u, items in zip(histories.user_ids, histories.items, strict=True)
    }
    assert found == expected


def test_item_rows_are_a_seeded_random_order(tables, tmp_path):
    orders = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        ingest(tables.model_copy(update={"seed": seed}), tmp_path / name)
        orders.append(load(tmp_path / name)[0].item_ids)
        assert load(tmp_path / name)[0].titles == [f"Title {item[1:]}" for item in orders[-1]]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0]) != orders[2]


def test_items_nobody_met_stay_as_cold_items_unless_a_minimum_removes_them(tables, tmp_path):
    summary = ingest(tables, tmp_path / "out")
    catalog, histories = load(tmp_path / "out")
    assert len(catalog) == 20 == summary["items"]
    assert not histories.trained(20)[catalog.rows(["i18", "i19"])].any()
    assert summary["cold_items"] == 20 - histories.trained(20).sum() >= 2
    ingest(tables.model_copy(update={"item_min_count": 1}), tmp_path / "out")
    assert {"i18", "i19"}.isdisjoint(load(tmp_path / "out")[0].item_ids)


def test_minimum_counts_hold_after_filtering_and_drops_are_counted(tables, tmp_path):
    config = tables.model_copy(
        update={"user_min_count": 4, "item_min_count": 3, "min_rating": 2, "columns": Schema(rating="rating")}
    )
    summary = ingest(config, tmp_path / "out")
    kept = pd.DataFrame(pairs(tmp_path / "out"), columns=["user", "item"])
    assert kept.groupby("user").size().min() >= 4
    assert kept.groupby("item").size().min() >= 3
    assert summary["dropped"]["below_minimum_count"] > 0
    assert sum(summary["dropped"].values()) + summary["interactions"] == len(frame_of(tables))
    assert summary["dropped"]["rating_below_minimum"] == (frame_of(tables)["rating"] < 2).sum()


def test_repeats_are_removed_by_the_stated_rule(tmp_path):
    (tmp_path / "x.csv").write_text("user_id,item_id,timestamp\nu,b,2\nu,a,1\nu,a,3\nu,c,4\n")
    for rule, expected in (("first", "abc"), ("last", "bac"), ("all", "abac")):
        ingest(DataSettings(interactions=tmp_path / "x.csv", deduplicate=rule), tmp_path / "out")
        assert "".join(item for _, item in pairs(tmp_path / "out")) == expected


def test_without_an_items_file_ids_are_titles_and_no_text(tables, tmp_path):
    summary = ingest(tables.model_copy(update={"items": None}), tmp_path / "out")
    catalog, _ = load(tmp_path / "out")
    assert catalog.titles == catalog.item_ids
    assert sorted(catalog.item_ids) == sorted(frame_of(tables)["item_id"].unique())
    assert summary["items_without_text"] == len(catalog)


def test_an_unknown_item_is_refused_or_dropped(tables, tmp_path):
    with open(tables.interactions, "a") as file:
        file.write("u0,i99,7,5,train\n")
    row = len(frame_of(tables))
    with pytest.raises(DataError) as caught:
        ingest(tables, tmp_path / "out")
    assert str(caught.value).startswith(f"{tables.interactions}, row {row}, column 'item_id': unknown item 'i99'")
    summary = ingest(tables.model_copy(update={"unknown_items": "drop"}), tmp_path / "out")
    assert summary["dropped"]["unknown_item"] == 1


def test_leave_one_out_tests_the_last_and_validates_the_one_before(tables, tmp_path):
    ingest(tables, tmp_path / "out")
    _, histories = load(tmp_path / "out")
    for row, items in enumerate(histories.items):
        assert histories.of(TEST)[row].tolist() == items[-1:].tolist()
        assert histories.of(VALID)[row].tolist() == items[-2:-1].tolist()


def test_global_time_labels_equal_those_of_the_times(tables, tmp_path):
    summary = ingest(tables.model_copy(update={"split": GlobalTime(valid=0.2, test=0.2)}), tmp_path / "out")
    frame = frame_of(tables).set_index(["user_id", "item_id"])["timestamp"]
    latest = [frame.loc[pairs(tmp_path / "out", split)] for split in (TRAIN, VALID, TEST)]
    assert latest[0].max() < latest[1].min() <= latest[1].max() < latest[2].min()
    assert summary["splits"] == {name: len(part) for name, part in zip(("train", "valid", "test"), latest, strict=True)}


def test_a_given_column_splits(tables, tmp_path):
    ingest(tables.model_copy(update={"split": ByColumn(), "columns": Schema(split="part")}), tmp_path / "out")
    frame = frame_of(tables)
    for name, split in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        part = frame[frame["part"] == name]
        assert sorted(pairs(tmp_path / "out", split)) == sorted(zip(part["user_id"], part["item_id"], strict=True))


def test_settings_that_lack_their_column_are_refused(tables, tmp_path):
    base = {"interactions": tables.interactions}
    for wrong in (
        {"min_rating": 3},
        {"split": {"kind": "column"}},
        {"split": {"kind": "global_time"}, "columns": {"position": "p"}},
        {"split": {"kind": "global_time", "min_history": 2}},
        {"sead": 1},
    ):
        with pytest.raises(ValidationError):
            DataSettings.model_validate(base | wrong)
    (tmp_path / "x.csv").write_text("user_id,item_id,position\nu,b,2\n")
    with pytest.raises(DataError, match="column 'timestamp': missing column"):
        ingest(DataSettings(interactions=tmp_path / "x.csv", split=GlobalTime()), tmp_path / "out")


def test_nothing_left_is_refused(tables, tmp_path):
    with pytest.raises(DataError, match="no interactions are left after filtering"):
        ingest(tables.model_copy(update={"user_min_count": 99}), tmp_path / "out")
    (tmp_path / "x.csv").write_text("user_id,item_id,timestamp\nu,b,2\nu,a,2\n")
    with pytest.raises(DataError, match="leaves no interaction to train on"):
        ingest(DataSettings(interactions=tmp_path / "x.csv", split=GlobalTime()), tmp_path / "out")


def test_a_failed_run_leaves_an_earlier_output_untouched_and_no_litter(tables, tmp_path, monkeypatch):
    out = tmp_path / "runs" / "data"
    ingest(tables, out)
    before = contents(out)
    monkeypatch.setattr("setrec.data.catalog.Histories.save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        ingest(tables, out)
    with pytest.raises(DataError):
        ingest(tables.model_copy(update={"columns": Schema(user="who")}), out)
    assert contents(out) == before
    assert list(out.parent.iterdir()) == [out]


def test_a_failed_first_run_leaves_nothing(tables, tmp_path):
    with pytest.raises(DataError):
        ingest(tables.model_copy(update={"columns": Schema(user="who")}), tmp_path / "runs" / "data")
    assert not (tmp_path / "runs").exists()


def test_a_foreign_directory_is_never_replaced(tables, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(DataError, match="is not a data directory"):
        ingest(tables, tmp_path / "home")
    assert (tmp_path / "home" / "thesis.tex").exists()


def test_the_summary_states_settings_and_hashes_of_the_inputs(tables, tmp_path):
    summary = ingest(tables, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "data.json").read_text()) == summary
    assert DataSettings.model_validate(summary["settings"]) == tables
    digest = hashlib.sha256(tables.interactions.read_bytes()).hexdigest()
    assert summary["inputs"][str(tables.interactions)] == digest


def test_a_data_directory_that_does_not_belong_together_is_refused(tables, tmp_path):
    ingest(tables, tmp_path / "out")
    catalog, _ = load(tmp_path / "out")
    catalog.take(range(3)).save(tmp_path / "out" / "items.parquet")
    with pytest.raises(DataError, match="item rows that the catalogue does not have"):
        load(tmp_path / "out")


def test_shards_hold_whole_users_and_are_the_histories_in_order(tables, tmp_path):
    ingest(tables, tmp_path / "out")
    _, histories = load(tmp_path / "out")
    write_histories(tmp_path / "out" / "histories", [histories], rows=20)
    shards = [Histories.load(shard) for shard in history_shards(tmp_path / "out")]
    assert len(shards) == 4
    assert [user for shard in shards for user in shard.user_ids] == histories.user_ids
    assert max(len(shard.items.values) for shard in shards) < 20 + 8
    again = load(tmp_path / "out")[1]
    assert [row.tolist() for row in again.items] == [row.tolist() for row in histories.items]
    assert again.splits.tolist() == histories.splits.tolist()


def test_a_data_directory_of_the_first_format_is_read_and_one_without_histories_names_the_command(tables, tmp_path):
    ingest(tables, tmp_path / "out")
    histories = load(tmp_path / "out")[1]
    shutil.rmtree(tmp_path / "out" / "histories")
    with pytest.raises(DataError, match="holds no histories: run `setrec prepare` again"):
        load(tmp_path / "out")
    histories.save(tmp_path / "out" / "histories.parquet")
    assert load(tmp_path / "out")[1].user_ids == histories.user_ids
    ingest(tables, tmp_path / "out")
    assert not (tmp_path / "out" / "histories.parquet").exists()


def test_keys_in_a_configuration_are_refused_and_uris_stay_as_they_are():
    assert DataSettings(interactions="s3://bucket/folder?region=x").interactions == "s3://bucket/folder?region=x"
    with pytest.raises(ValidationError, match="keys do not belong in a configuration"):
        DataSettings(interactions="s3://key:secret@bucket/folder")


def test_movielens_100k_is_read_as_it_is_known(tmp_path):
    summary = ingest(movielens(), tmp_path / "out")
    assert (summary["users"], summary["items"], summary["interactions"]) == (943, 1682, 100_000)
    assert summary["splits"] == {"train": 98_114, "valid": 943, "test": 943}
    assert summary["tied_share"] == pytest.approx(0.5056, abs=1e-4)
    catalog, _ = load(tmp_path / "out")
    toy = catalog.rows(["1"])[0]
    assert catalog.titles[toy] == "Toy Story"
    assert catalog.texts[toy] == "Toy Story. Release year: 1995. Class: Animation, Children's, Comedy"
    assert catalog.attributes["class"][toy] == ["Animation", "Children's", "Comedy"]
    assert "recbole" not in sys.modules


def test_the_types_of_movielens_tell_what_its_settings_say(tmp_path):
    config = movielens()
    ingest(config, tmp_path / "stated")
    ingest(config.model_copy(update={"columns": Schema()}), tmp_path / "told")
    assert load(tmp_path / "stated")[0] == load(tmp_path / "told")[0]


def test_file_order_of_movielens_ties_is_neutral_to_item_ids():
    config = movielens()
    frame = pd.read_csv(config.interactions, sep="\t").set_axis(["user", "item", "rating", "time"], axis=1)
    frame = frame.sort_values(["user", "time"], kind="stable")
    tied = (frame[["user", "time"]] == frame[["user", "time"]].shift()).all(axis=1)
    rises = (frame["item"] > frame["item"].shift())[tied].mean()
    assert rises == pytest.approx(0.5, abs=0.01)


def test_items_held_out_of_training_become_cold_and_everything_else_stays(tables, tmp_path):
    whole = ingest(tables, tmp_path / "whole")
    held = ingest(tables.model_copy(update={"cold_share": 0.25}), tmp_path / "held")
    for split in (VALID, TEST):
        assert pairs(tmp_path / "held", split) == pairs(tmp_path / "whole", split)
    kept, every = (pairs(tmp_path / name, TRAIN) for name in ("held", "whole"))
    cold = {item for _, item in every} - {item for _, item in kept}
    assert len(cold) == round(0.25 * whole["warm_items"]) == held["cold_items"] - whole["cold_items"]
    assert kept == [(user, item) for user, item in every if item not in cold]
    assert held["dropped"]["held_out_item"] == len(every) - len(kept) > 0
    assert "held_out_item" not in whole["dropped"]
    assert held["items"] == whole["items"]


@pytest.mark.parametrize("engine", ["duckdb", "ray"])
def test_types_that_weigh_differently_weigh_so_in_the_histories_and_dislikes_are_not_held_out(
    tmp_path, request, engine
):
    if engine == "ray":
        request.getfixturevalue("ray_here")
    told = [("u", "a", "view"), ("v", "a", "dislike"), ("u", "b", "dislike"), ("u", "b", "buy"), ("u", "c", "buy")]
    told += [("u", "d", "dislike"), ("u", "e", "view"), ("u", "f", "dislike"), ("u", "g", "scroll"), ("v", "b", "view")]
    frame = pd.DataFrame(told, columns=["user_id", "item_id", "event"])
    frame.assign(timestamp=range(len(told))).to_csv(tmp_path / "events.csv", index=False)

    def made(**events):
        config = DataSettings(
            interactions=tmp_path / "events.csv", columns={"event": "event"}, events=events, engine=engine
        )
        ingest(config, tmp_path / "out")
        return load(tmp_path / "out")

    catalog, histories = made(view=1, buy=4, dislike=-1)
    events = histories.items
    assert [catalog.item_ids[i] for i in events[0]] == ["a", "b", "b", "c", "d", "e", "f"]
    assert events.weights.tolist() == [1, -1, 4, 4, -1, 1, -1, -1, 1]
    assert histories.splits.tolist() == [TRAIN, TRAIN, TRAIN, VALID, VALID, TEST, TEST, TRAIN, TRAIN]
    assert json.loads((tmp_path / "out" / "data.json").read_text())["warm_items"] == 2
    assert made(view=2, buy=2)[1].items.weights is None


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ({"view": 1, "scroll": 0}, {"view": 1.0, "scroll": 0.0}),
        ({"view": 2, "dislike": 2}, {"view": 1.0, "dislike": 1.0}),
        ({"view": 1, "dislike": -1, "scroll": 0}, {"view": 1.0, "dislike": -1.0, "scroll": 0.0}),
    ],
)
def test_the_endpoint_is_told_of_each_type_what_histories_make_of_it(events, expected):
    config = DataSettings(interactions="x.csv", events=events, columns={"event": "event"})
    assert config.event_weights == expected
    assert DataSettings(interactions="x.csv").event_weights == {}
