import datetime
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from setrec.errors import DataError
from setrec.formats import RawTable, read_raw
from setrec.schema import Schema
from setrec.tables import interactions_of, items_of, read_interactions, read_items

USERS, ITEMS, TIMES = ["u1", "u2", "u1"], ["a", "a", "b"], [3, 1, 2]


def write_table(path, columns):
    """The same columns in any of the formats."""
    frame = pd.DataFrame(columns)
    match path.suffix:
        case ".parquet":
            pq.write_table(pa.table(columns), path)
        case ".csv":
            frame.to_csv(path, index=False)
        case ".jsonl":
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case _:
            kinds = {"timestamp": "float", "rating": "float", "title": "token_seq", "genres": "token_seq"}
            frame.columns = [f"{name}:{kinds.get(name, 'token')}" for name in columns]
            frame.to_csv(path, index=False, sep="\t")
    return path


@pytest.fixture(params=[".parquet", ".csv", ".jsonl", ".inter"])
def interactions(request, tmp_path):
    columns = {"user_id": USERS, "item_id": ITEMS, "rating": [4.5, 1.0, 3.0], "timestamp": TIMES}
    return write_table(tmp_path / f"data{request.param}", columns)


def refusal(call, *arguments):
    with pytest.raises(DataError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def text(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_every_format_gives_the_same_interactions(interactions):
    frame = read_interactions(interactions, Schema(rating="rating"))
    assert frame.index.tolist() == [1, 2, 3]
    assert frame["user"].tolist() == USERS
    assert frame["item"].tolist() == ITEMS
    assert frame["time"].tolist() == TIMES
    assert frame["rating"].tolist() == [4.5, 1.0, 3.0]


def test_a_missing_column_is_named_with_those_there(interactions):
    message = refusal(read_interactions, interactions, Schema(item="asin"))
    assert message.startswith(f"{interactions}, column 'asin': missing column")
    assert "user_id, item_id, rating, timestamp" in message


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_every_format_gives_the_same_items(tmp_path, suffix):
    columns = {"item_id": ["7", "007"], "title": ["Toy  Story", ""], "brand": ["x", ""], "genres": ["A|B|A", "C| "]}
    path = write_table(tmp_path / f"items{suffix}", columns)
    catalog = read_items(path, Schema(attributes=("genres", "brand"), separators={"genres": "|"}))
    assert catalog.item_ids == ["7", "007"]
    assert catalog.titles == ["Toy Story", "007"]
    assert catalog.attributes == {"genres": [["A", "B"], ["C"]], "brand": [["x"], []]}
    assert catalog.texts == ["Toy Story. Genres: A, B. Brand: x", "Genres: C"]


def test_the_types_of_an_atomic_file_tell_texts_from_attributes(tmp_path):
    header = "item_id:token\ttitle:token_seq\tyear:token\tgenres:token_seq\tprice:float\n"
    path = text(tmp_path, "x.item", header + '1\tA "quoted\t1995\tDrama War\t9.5\n')
    catalog = read_items(path, Schema())
    assert catalog.titles == ['A "quoted']
    assert catalog.attributes == {"year": [["1995"]], "genres": [["Drama", "War"]]}


def test_lists_of_attributes_and_texts_are_read_from_parquet_and_json(tmp_path):
    columns = {"item_id": [1, 2], "title": ["A.", None], "tags": [["x", None, " "], None], "words": [["p", "q"], []]}
    for suffix in (".parquet", ".jsonl"):
        path = write_table(tmp_path / f"items{suffix}", columns)
        catalog = read_items(path, Schema(text=("title", "words"), attributes=("tags",)))
        assert catalog.item_ids == ["1", "2"]
        assert catalog.texts == ["A. p, q. Tags: x", ""]
        assert catalog.attributes == {"tags": [["x"], []]}


def test_the_id_never_reaches_the_text_of_an_item(tmp_path):
    path = text(tmp_path, "x.csv", "item_id,title\nB0001,\n")
    assert read_items(path, Schema()).texts == [""]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_iso_timestamps_are_ordered_as_instants(tmp_path, suffix):
    stamps = ["2020-01-01T00:00:00", "2020-01-01T00:30:00+02:00", "2020-01-01T00:00:00.5"]
    columns = {"user_id": USERS, "item_id": ITEMS, "timestamp": stamps}
    times = read_interactions(write_table(tmp_path / f"x{suffix}", columns), Schema())["time"]
    assert np.argsort(times).tolist() == [1, 0, 2]


def test_dates_and_instants_of_parquet_are_times(tmp_path):
    days = [datetime.datetime(2020, 1, day, tzinfo=datetime.UTC) for day in (3, 1, 2)]
    for kind in (pa.timestamp("ns", "UTC"), pa.timestamp("s"), pa.date32()):
        values = pa.array([day.replace(tzinfo=None) for day in days], pa.timestamp("us")).cast(kind)
        path = write_table(tmp_path / "x.parquet", {"user_id": USERS, "item_id": ITEMS, "timestamp": values})
        assert np.argsort(read_interactions(path, Schema())["time"]).tolist() == [1, 2, 0]


def test_nanosecond_epochs_keep_their_last_digit(tmp_path):
    stamps = [1_700_000_000_000_000_001, 1_700_000_000_000_000_000, 1_700_000_000_000_000_002]
    for suffix in (".csv", ".parquet", ".jsonl"):
        columns = {"user_id": USERS, "item_id": ITEMS, "timestamp": stamps}
        frame = read_interactions(write_table(tmp_path / f"x{suffix}", columns), Schema())
        assert frame["time"].tolist() == stamps


def test_a_position_orders_where_there_is_no_timestamp(tmp_path):
    path = text(tmp_path, "x.csv", "user_id,item_id,position\nu,a,1\nu,b,0\n")
    assert read_interactions(path, Schema())["time"].tolist() == [1, 0]
    assert "column 'timestamp': missing column" in refusal(read_interactions, path, Schema(timestamp="timestamp"))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.csv", "user_id,item_id,timestamp\nu,a,1\nu,b,soon\n", "row 2, column 'timestamp': 'soon' is no timestamp"),
        ("x.csv", "user_id,item_id,timestamp\nu,a,2020-01-01\nu,b,1\nu,b,x\n", "row 2, column 'timestamp': '1' is no"),
        ("x.csv", "user_id,item_id,timestamp\nu,a,1\nu,b,inf\n", "row 2, column 'timestamp': 'inf' is no timestamp"),
        ("x.csv", "user_id,item_id,timestamp\nu,a,nan\n", "row 1, column 'timestamp': 'nan' is no timestamp"),
        ("x.csv", "user_id,item_id,timestamp\nu,a,\n", "row 1, column 'timestamp': '' is no timestamp"),
        ("x.csv", "user_id,item_id,timestamp\nu,a,1\n\nu,b\n", "row 2: 2 values where the header has 3 columns"),
        ("x.csv", "user_id,item_id,timestamp\nu,a,1\n ,b,2\n", "row 2, column 'user_id': the id is blank"),
        ("x.csv", "user_id,item_id,user_id\nu,a,1\n", "column 'user_id': the column name repeats"),
        ("x.csv", "user_id,item_id,timestamp\n", "x.csv: holds no rows"),
        ("x.csv", "", "x.csv: the file is empty"),
        ("x.csv", b"user_id,item_id,timestamp\nu,a,1\nu,\xff,2\n", "row 2: not UTF-8 text"),
        ("x.csv", b"\xffuser_id,item_id\nu,a\n", "x.csv: not UTF-8 text"),
        ("x.inter", "user_id:token\titem_id\n1\t2\n", "column 'item_id': header must be name:type"),
        ("x.inter", "user_id:token\titem_id:token\ttimestamp:float\n1\t2\t3\n1\t2\n", "row 2: 2 values where"),
        ("x.jsonl", '{"user_id": 1, "item_id": 2, "timestamp": 3}\n\n{"user_id": 1,\n', "row 2: malformed JSON"),
        ("x.jsonl", "[1, 2]\n", "row 1: expected a JSON object, found list"),
        ("x.jsonl", '{"user_id": 1, "item_id": 2, "timestamp": 3}\n{"user_id": "x"}\n', "row 2, column 'user_id'"),
        ("x.jsonl", '{"user_id": "u", "timestamp": 3, "item_id": "a"}\n{"user_id": "u"}\n', "row 2, column 'item_id'"),
        ("x.jsonl", b'{"user_id": "\xff", "item_id": "a", "timestamp": 3}\n', "row 1: not UTF-8 text"),
        ("x.jsonl", '{"user_id": "u", "item_id": "a", "timestamp": NaN}\n', "row 1, column 'timestamp': "),
        ("x.jsonl", '{"user_id": "\\ud800", "item_id": "a", "timestamp": 1}\n', "row 1"),
        ("x.jsonl", '{"user_id": 1.5, "item_id": "a", "timestamp": 1}\n', "column 'user_id': wrong type: double"),
        ("x.txt", "u a 1\n", "unknown format '.txt'"),
    ],
)  # fmt: skip
def test_a_bad_text_file_is_refused_in_one_line_naming_the_place(tmp_path, name, content, expected):
    message = refusal(read_interactions, text(tmp_path, name, content), Schema())
    assert message.startswith(str(tmp_path))
    assert expected in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"user_id": ["u", None, "v"]}, "row 2, column 'user_id': the id is missing"),
        ({"user_id": [1.0, 2.0, 3.0]}, "column 'user_id': wrong type: double"),
        ({"item_id": [["a"], ["b"], ["c"]]}, "column 'item_id': wrong type: list"),
        ({"timestamp": [1.0, float("nan"), 2.0]}, "row 2, column 'timestamp': nan is no finite number"),
        ({"timestamp": [1.0, 2.0, float("inf")]}, "row 3, column 'timestamp': inf is no finite number"),
        ({"timestamp": [1, None, 2]}, "row 2, column 'timestamp': the timestamp is missing"),
        ({"timestamp": [True, False, True]}, "column 'timestamp': wrong type: bool"),
        ({"timestamp": pa.array([2**64 - 1, 0, 0], pa.uint64())}, "column 'timestamp': a number is out of range"),
        ({"rating": ["5", "good", "1"]}, "row 2, column 'rating': 'good' is no number"),
        ({"split": ["train", "test", "later"]}, "row 3, column 'split': 'later' is no split"),
        ({"split": ["train", None, "test"]}, "row 2, column 'split': the split is missing"),
    ],
)
def test_a_bad_value_in_parquet_is_refused_with_its_place(tmp_path, changes, expected):
    columns = {"user_id": USERS, "item_id": ITEMS, "timestamp": TIMES, **changes}
    schema = Schema(**{name: name for name in ("rating", "split") if name in changes})
    message = refusal(read_interactions, write_table(tmp_path / "x.parquet", columns), schema)
    assert expected in message


@pytest.mark.parametrize("cut", [3, 40, 200])
def test_a_truncated_parquet_file_is_refused(tmp_path, cut):
    path = write_table(tmp_path / "x.parquet", {"user_id": USERS, "item_id": ITEMS, "timestamp": TIMES})
    path.write_bytes(path.read_bytes()[:-cut])
    assert "not a readable Parquet file" in refusal(read_interactions, path, Schema())


def test_missing_files_and_directories_are_refused(tmp_path):
    assert "no such file" in refusal(read_items, tmp_path / "x.parquet", Schema())
    (tmp_path / "y.parquet").mkdir()
    assert "is a directory" in refusal(read_items, tmp_path / "y.parquet", Schema())


def test_a_duplicate_item_names_both_rows(tmp_path):
    path = text(tmp_path, "x.csv", "item_id,title\na,A\nb,B\na,C\n")
    assert (
        refusal(read_items, path, Schema())
        == f"{path}, row 3, column 'item_id': duplicate item id 'a' (first in row 1)"
    )


def test_a_text_column_of_the_wrong_type_is_refused(tmp_path):
    path = write_table(tmp_path / "x.parquet", {"item_id": ["a"], "title": [{"en": "A"}]})
    assert "column 'title': wrong type: struct" in refusal(read_items, path, Schema())


def test_columns_that_nobody_asks_for_may_hold_anything(tmp_path):
    path = text(tmp_path, "x.jsonl", '{"item_id": "a", "title": "A", "x": [1, 2]}\n{"item_id": "b", "title": "B"}\n')
    assert read_items(path, Schema()).item_ids == ["a", "b"]


def test_a_schema_refuses_what_contradicts_itself():
    for wrong in (
        {"timestamp": "t", "position": "p"},
        {"attributes": ("a",), "separators": {"b": "|"}},
        {"separators": {"a": ""}},
        {"colour": "c"},
    ):
        with pytest.raises(ValueError, match="validation error"):
            Schema.model_validate(wrong)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".inter"])
def test_whatever_bytes_are_damaged_the_file_is_read_or_refused_in_one_line(tmp_path, suffix):
    columns = {"user_id": USERS, "item_id": ["a", "é", "b"], "rating": [4.5, 1.0, 3.0], "timestamp": TIMES}
    path = write_table(tmp_path / f"x{suffix}", columns)
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), []
    for _ in range(150):
        data = bytearray(whole)
        place = rng.integers(len(data))
        data[place : place + rng.integers(3)] = rng.choice(list(b'",\n\t{}\\\x00\xff-e1'), rng.integers(1, 4)).tolist()
        path.write_bytes(data)
        try:
            read_interactions(path, Schema(rating="rating"))
        except DataError as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert all(message.startswith(str(path)) and "\n" not in message for message in refused)


def test_rows_with_faults_are_noted_and_left_out_and_the_rest_is_as_it_would_be_alone(tmp_path):
    columns = {
        "user_id": ["a", None, "b", "c", "d", "e"], "item_id": ["x", "y", " ", "z", "x", "y"],
        "timestamp": ["9007199254740993", "1", "2", "noon", None, "4"], "rating": [1, 2, 3, 4, 5, 6],
        "split": ["train", "test", "train", "test", "train", "later"],
    }  # fmt: skip
    schema = Schema(rating="rating", split="split")
    raw = read_raw(write_table(tmp_path / "x.parquet", columns))
    faults = {}
    frame = interactions_of(raw, schema, faults)
    assert {row: column for row, (column, _) in faults.items()} == {
        1: "user_id", 2: "item_id", 3: "timestamp", 4: "timestamp", 5: "split",
    }  # fmt: skip
    assert faults[3][1] == "'noon' is no timestamp"
    assert frame.index.tolist() == [1]
    alone = interactions_of(RawTable(raw.file, raw.table[:1]), schema)
    assert frame["time"].tolist() == alone["time"].tolist() == [9007199254740993]
    assert frame["split"].tolist() == alone["split"].tolist()


def test_items_with_faults_are_left_out_and_duplicates_keep_the_first(tmp_path):
    columns = {"item_id": ["a", None, "b", "a"], "title": ["A", "none", "B", "again"]}
    faults = {}
    catalog = items_of(read_raw(write_table(tmp_path / "x.parquet", columns)), Schema(), faults)
    assert catalog.titles == ["A", "B"]
    assert {row: reason for row, (_, reason) in faults.items()} == {1: "the id is missing", 3: "duplicate item id 'a'"}
