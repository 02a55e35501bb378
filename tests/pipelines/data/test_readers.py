"""Files as people have them, through configuration alone; and files that are not as they should be."""

import gzip
import json
import shutil
from decimal import Decimal
from functools import partial
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from s3_server import s3_server

from pipelines.common import storage
from pipelines.data import files, parquet, scans
from pipelines.data.directory import load
from pipelines.data.settings import DataSettings
from pipelines.ingest.ingest import ingest
from setrec.errors import DataError

ROWS = [("u1", "a", 3), ("u1", "b", 1), ("u2", "a", 2), ("u1", "c", 2)]
HEAD = "user_id,item_id,timestamp\n"
zstd = partial(pa.compress, codec="zstd", asbytes=True)


def lines(delimiter=",", end="\n"):
    return "".join(delimiter.join(map(str, row)) + end for row in ROWS)


def jsonl():
    return "".join(json.dumps(dict(zip(("user_id", "item_id", "timestamp"), row, strict=True))) + "\n" for row in ROWS)


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def histories(out):
    catalog, found = load(out)
    return {user: [catalog.item_ids[i] for i in rows] for user, rows in zip(found.user_ids, found.items, strict=True)}


def rejected(out):
    return [(row["row"], row["column"], row["reason"]) for row in pq.read_table(out / "rejected").to_pylist()]


def refusal(tmp_path, **fields):
    with pytest.raises(DataError) as caught:
        ingest(DataSettings.model_validate(fields), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


FILES = {
    "x.csv": (HEAD + lines(), {}),
    "x.CSV": (HEAD + lines(end="\r\n"), {}),
    "x.tsv": (HEAD.replace(",", "\t") + lines("\t"), {}),
    "x.dat": (lines("::"), {"delimiter": "::", "columns": ["user_id", "item_id", "timestamp"]}),
    "y.dat": (lines("<=====>"), {"delimiter": "<=====>", "columns": ["user_id", "item_id", "timestamp"]}),
    "x.txt": (HEAD.replace(",", ";") + lines(";"), {"delimiter": ";"}),
    "x.csv.gz": (gzip.compress((HEAD + lines()).encode()), {}),
    "x.csv.zst": (zstd((HEAD + lines()).encode()), {}),
    "x.json": (jsonl(), {}),
    "x.jsonl.gz": (gzip.compress(jsonl().encode()), {}),
    "x.ndjson.zst": (zstd(jsonl().encode()), {}),
    "utf16.csv": ((HEAD + lines()).encode("utf-16"), {"encoding": "utf-16"}),
    "quotes.csv": (HEAD.replace(",", "|") + lines("|").replace("u1", "'u1'"), {"delimiter": "|", "quote": "'"}),
    "bom.csv": (b"\xef\xbb\xbf" + (HEAD + lines()).encode(), {}),
    "blank lines.csv": (HEAD + "\n" + lines(end="\n\n"), {}),
    "blank first.csv": ("\n" + HEAD + lines(), {}),
    "mixed ends.csv": (HEAD + lines(end="\r\n") + "u9,a,1\n", {}),
    "odd [name]*.csv": (HEAD + lines(), {}),
    "unnamed": (HEAD + lines(), {"format": "csv", "delimiter": ","}),
}


@pytest.mark.parametrize("name", FILES)
def test_any_format_packing_and_dialect_gives_the_same_histories(tmp_path, name):
    content, reader = FILES[name]
    path = put(tmp_path / name, content)
    summary = ingest(DataSettings(interactions=path, reader=reader), tmp_path / "out")
    found = histories(tmp_path / "out")
    found.pop("u9", None)
    assert found == {"u1": ["b", "c", "a"], "u2": ["a"]}
    assert summary["rejected"] == {"interactions": 0, "items": 0}
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_folders_patterns_and_several_places_are_read_in_order(tmp_path, monkeypatch):
    put(tmp_path / "in/b.csv", HEAD + "u1,c,1\n")
    put(tmp_path / "in/a.csv", HEAD + "u1,b,1\nu2,b,1\n")
    put(tmp_path / "in/notes.md", "nothing to read")
    put(tmp_path / "more/x.json", '{"user_id": "u1", "item_id": "a", "timestamp": 0}\n')
    monkeypatch.setenv("SETREC_TEST_FOLDER", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = {"u1": ["b", "c"], "u2": ["b"]}
    for places, expected in (
        (tmp_path / "in", folder),
        (f"{tmp_path}/in/*.csv", folder),
        ("${SETREC_TEST_FOLDER}/in", folder),
        ("~/in/?.csv", folder),
        ([tmp_path / "in", tmp_path / "more"], {"u1": ["a", "b", "c"], "u2": ["b"]}),
    ):
        ingest(DataSettings(interactions=places), tmp_path / "out")
        assert histories(tmp_path / "out") == expected
    with pytest.raises(ValidationError, match="the environment has no variable NOWHERE"):
        DataSettings(interactions="${NOWHERE}/x.csv")


def test_a_store_is_read_like_a_folder_and_one_out_of_reach_is_told(tmp_path):
    with s3_server() as uri:
        for name, text in (("a.csv", "u1,b,1\nu2,b,1\n"), ("b.csv", "u1,c,1\n")):
            with storage.atomic_stream(storage.join(uri("in"), name)) as stream:
                stream.write((HEAD + text).encode())
        head, mark, options = uri("in").partition("?")
        for place in (uri("in"), f"{head}/*.csv{mark}{options}"):
            ingest(DataSettings(interactions=place, reader={"format": "csv"}), tmp_path / "out")
            assert histories(tmp_path / "out") == {"u1": ["b", "c"], "u2": ["b"]}
    nowhere = "s3://bucket/in?endpoint_override=127.0.0.1%3A1&scheme=http&region=us-east-1"
    with pytest.raises(DataError, match="s3://bucket/in: cannot be read"):
        ingest(DataSettings(interactions=nowhere), tmp_path / "out")


def test_a_store_that_fails_in_between_is_asked_again(tmp_path, monkeypatch):
    failures = [OSError("connection reset"), OSError("connection reset")]
    copied = shutil.copyfileobj

    def failing(source, target, size):
        if failures:
            target.write(b"half of a")
            raise failures.pop()
        copied(source, target, size)

    monkeypatch.setattr(files.shutil, "copyfileobj", failing)
    monkeypatch.setattr(files.time, "sleep", lambda _: None)
    put(tmp_path / "x.csv", HEAD + lines())
    ingest(DataSettings(interactions=f"file://{tmp_path}/x.csv"), tmp_path / "out")
    assert histories(tmp_path / "out") == {"u1": ["b", "c", "a"], "u2": ["a"]}
    failures[:] = [OSError("connection reset")] * 3
    assert "x.csv: cannot be read (connection reset)" in refusal(
        tmp_path / "again", interactions=f"file://{tmp_path}/x.csv"
    )


BAD = {
    "extra.csv": (HEAD + lines() + "u3,a,1,9\n", (5, None, "4 values where the header has 3 columns")),
    "short.csv": (HEAD + lines() + "u3,a\n", (5, None, "2 values where the header has 3 columns")),
    "open.csv": (HEAD + 'u3,"a,1\n' + lines(), (1, None, "a quote is not closed")),
    "after.csv": (HEAD + 'u3,"a"b,1\n' + lines(), (1, None, "text after a closing quote")),
    "bytes.csv": ((HEAD + lines()).encode() + b"u3,\xff,1\n", (5, None, "not UTF-8 text")),
    "noon.csv": (HEAD + "u3,a,noon\n" + lines(), (1, "timestamp", "'noon' is not a timestamp (a number or ISO 8601)")),
    "date.csv": (HEAD + "u3,a,2020-01-01\n" + lines(),
        (1, "timestamp", "'2020-01-01 00:00:00' is not a timestamp (most are numbers)")),
    "huge.csv": (HEAD + lines() + "u3,a,9223372036854775808\n",
        (5, "timestamp", "a number is out of range: 9223372036854775808")),
    "blank.csv": (HEAD + " ,a,1\n" + lines(), (1, "user_id", "the id is blank")),
    "null.csv": (HEAD + "u3,,1\n" + lines(), (1, "item_id", "the id is missing")),
    "control.csv": (HEAD + "u\x013,a,1\n" + lines(), (1, "user_id", "'u?3' holds a control character")),
    "dots.csv": (HEAD + "..,a,1\n" + lines(), (1, "user_id", "'..' cannot be part of a URL")),
    "long.csv": (HEAD + "u" * 257 + ",a,1\n" + lines(), (1, "user_id", "the id has more than 256 characters")),
    "broken.json": (jsonl() + '{"user_id": \n', (5, None, "malformed JSON (Expecting value at character 13)")),
    "list.json": ("[1]\n" + jsonl(), (1, None, "expected a JSON object, found list")),
    "half.json": ('{"user_id": "\\ud800", "item_id": "a", "timestamp": 1}\n' + jsonl(),
        (1, None, "half of a character (a lone surrogate)")),
    "type.json": ('{"user_id": [1], "item_id": "a", "timestamp": 1}\n' + jsonl(),
        (1, "user_id", "wrong type: array where text or whole numbers are expected")),
    "fraction.json": ('{"user_id": 1.5, "item_id": "a", "timestamp": 1}\n' + jsonl(),
        (1, "user_id", "'1.5' is not a valid id: a fraction, or beyond 2^53")),
    "nan.json": ('{"user_id": "u", "item_id": "a", "timestamp": NaN}\n' + jsonl(),
        (1, "timestamp", "'NaN' is not a timestamp (a number or ISO 8601)")),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_row_is_refused_with_its_place_or_rejected_alone(tmp_path, name):
    content, (row, column, reason) = BAD[name]
    path = put(tmp_path / name, content)
    place = f"{path}, row {row}" + (f", column '{column}'" if column else "")
    assert refusal(tmp_path, interactions=path) == f"{place}: {reason}"
    assert "1 of 5 rows cannot be used" in refusal(tmp_path, interactions=path, rejected_share=0.1)
    summary = ingest(DataSettings(interactions=path, rejected_share=0.2), tmp_path / "out")
    assert rejected(tmp_path / "out") == [(row, column, reason)]
    assert histories(tmp_path / "out") == {"u1": ["b", "c", "a"], "u2": ["a"]}
    assert summary["rows"]["interactions"] == 5
    assert sum(summary["rejected_reasons"]["interactions"].values()) == 1


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.csv", "", "the file is empty"),
        ("x.csv", b"\xef\xbb\xbf\n \n", "the file is empty"),
        ("x.csv.gz", gzip.compress(b"", mtime=0), "the file is empty"),
        ("x.csv", HEAD, "holds no rows"),
        ("x.csv", "user_id,item_id,user_id\nu,a,1\n", "column 'user_id': the column name repeats"),
        ("x.csv", b"\xffuser_id,item_id\nu,a\n", "the header cannot be read (not UTF-8 text)"),
        ("x.csv", "user_id,item_id\nu,a\n", "column 'timestamp': missing column (the file has: user_id, item_id)"),
        ("x.jsonl", '{"user_id": "u", "timestamp": 1}\n', "column 'item_id': missing column"),
        ("x.inter", "user_id:token\titem_id\n1\t2\n", "column 'item_id': header must be name:type"),
        ("x.csv.gz", gzip.compress(HEAD.encode() + b"u,a,1\n" * 999, mtime=0)[:-12], "cannot be read"),
        ("x.csv.gz", HEAD + "u,a,1\n", "cannot be read"),
        ("x.csv.zst", HEAD + "u,a,1\n", "cannot be read"),
        ("x.dat", "u a 1\n", "its name does not imply a delimiter"),
        ("x.doc", "u a 1\n", "unknown format '.doc'"),
        ("x.parquet", "PAR1", "not a readable Parquet file"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_refused_by_name(tmp_path, name, content, expected):
    path = put(tmp_path / name, content)
    message = refusal(tmp_path, interactions=path, rejected_share=0.9)
    assert message.startswith(str(path))
    assert expected in message


def test_row_by_row_and_in_one_go_are_the_same(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    words = ["a", "b c", 'say "x"', "one, two", "é", "x\ny", "1.0", ""]
    rows = [[f"u{rng.integers(9)}", words[rng.integers(8)], str(rng.integers(99))] for _ in range(3000)]
    quoted = "".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) + "\n" for row in rows)
    objects = "".join(
        json.dumps(dict(zip(("user_id", "item_id", "timestamp"), row, strict=True))) + "\n" for row in rows
    )
    for path in (put(tmp_path / "x.csv", HEAD + quoted), put(tmp_path / "x.jsonl", objects)):
        config = DataSettings(interactions=path, rejected_share=0.5)
        found = []
        for _ in range(2):
            ingest(config, tmp_path / "out")
            found.append((histories(tmp_path / "out"), rejected(tmp_path / "out")))
            monkeypatch.setattr(scans, "_starts_blank", lambda _: True)
        monkeypatch.undo()
        assert found[0] == found[1]
        assert len(found[0][1]) > 100


TYPES = {
    "text": (pa.string(), ["1", "2"]), "large": (pa.large_string(), ["1", "2"]), "view": (pa.string_view(), ["1", "2"]),
    "bytes": (pa.binary(), [b"1", b"2"]), "whole": (pa.int8(), [1, 2]), "unsigned": (pa.uint64(), [1, 2]),
    "float": (pa.float64(), [1.0, 2.0]), "single": (pa.float32(), [1.0, 2.0]),
    "category": (pa.dictionary(pa.int32(), pa.string()), ["1", "2"]),
    "category of numbers": (pa.dictionary(pa.int8(), pa.int64()), [1, 2]),
    "decimal": (pa.decimal128(38, 9), [Decimal(1), Decimal(2)]),
}  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
def test_ids_of_any_physical_type_are_the_same_ids(tmp_path, name):
    kind, (one, two) = TYPES[name]
    ids = pa.array([one, two, one], kind.value_type if name.startswith("category") else kind)
    ids = ids.dictionary_encode() if name.startswith("category") else ids
    pq.write_table(pa.table({"user_id": ids, "item_id": ids, "timestamp": [1, 2, 3]}), tmp_path / "x.parquet")
    ingest(DataSettings(interactions=tmp_path / "x.parquet", deduplicate="all"), tmp_path / "out")
    assert histories(tmp_path / "out") == {"1": ["1", "1"], "2": ["2"]}
    assert parquet.ids(ids) == ["1", "2", "1"]  # as recommend --batch reads them
    assert parquet.lists_of_ids(pa.chunked_array([pa.ListArray.from_arrays([0, 3], ids)])) == [["1", "2", "1"]]


def test_ids_of_a_batch_may_be_missing_or_invalid_text():
    assert parquet.ids(pa.array([1.0, None, float("nan"), 1.5, float("inf")])) == ["1", None, None, "1.5", "inf"]
    assert parquet.ids(pa.array([b"a", b"\xff"])) == ["a", "\ufffd"]
    assert parquet.ids(pa.array([UUID(int=5).bytes], pa.uuid())) == [str(UUID(int=5))]
    assert parquet.lists_of_ids(pa.chunked_array([pa.nulls(2)])) == [None, None]
    assert parquet.lists_of_ids(pa.chunked_array([[[2.0, float("nan")], None, []]])) == [["2", None], None, []]


def test_uuids_are_ids(tmp_path):
    users = pa.array([UUID(int=5).bytes], pa.uuid())
    pq.write_table(pa.table({"user_id": users, "item_id": ["a"], "timestamp": [1]}), tmp_path / "x.parquet")
    ingest(DataSettings(interactions=tmp_path / "x.parquet"), tmp_path / "out")
    assert histories(tmp_path / "out") == {str(UUID(int=5)): ["a"]}


def test_of_columns_whose_names_differ_in_case_the_named_one_is_read(tmp_path):
    rows = {"Rating": [1.0, 1.0], "user_id": ["u", "u"], "User_ID": ["x", "x"], "item_id": ["a", "b"],
            "timestamp": [1, 2], "rating": [5.0, 5.0]}  # fmt: skip
    pq.write_table(pa.table(rows), tmp_path / "x.parquet")
    put(tmp_path / "x.csv", "Rating,user_id,User_ID,item_id,timestamp,rating\n1,u,x,a,1,5\n1,u,x,b,2,5\n")
    for path in (tmp_path / "x.parquet", tmp_path / "x.csv"):
        config = {"interactions": path, "columns": {"rating": "rating"}, "min_rating": 2}
        ingest(DataSettings.model_validate(config), tmp_path / "out")
        assert histories(tmp_path / "out") == {"u": ["a", "b"]}


def test_names_that_nobody_asks_for_may_repeat(tmp_path, monkeypatch):
    put(tmp_path / "x.csv", "user_id,item_id,timestamp,,,x,x\nu,a,1,,,1,2\n")
    columns = [pa.array(["u"]), pa.array(["a"]), pa.array([1]), pa.array([1]), pa.array([2])]
    table = pa.Table.from_arrays(columns, ["user_id", "item_id", "timestamp", "x", "x"])
    pq.write_table(table, tmp_path / "x.parquet")
    monkeypatch.setattr(scans.lines, "rows_of_text", None)  # and the fast reader reads them
    for path in (tmp_path / "x.csv", tmp_path / "x.parquet"):
        ingest(DataSettings(interactions=path), tmp_path / "out")
        assert histories(tmp_path / "out") == {"u": ["a"]}


def test_a_name_may_first_occur_in_any_line_or_file_of_json(tmp_path):
    put(tmp_path / "x.jsonl", jsonl())
    bare = "".join(json.dumps({"item_id": f"{n}", "title": "T"}) + "\n" for n in range(1100))
    put(tmp_path / "items" / "1.jsonl", '{"item_id": "b", "title": "T"}\n')
    put(tmp_path / "items" / "2.jsonl", bare + '{"item_id": "a", "details": {"brand": "B"}}\n')
    fields = {
        "interactions": tmp_path / "x.jsonl", "items": tmp_path / "items", "unknown_items": "drop",
        "columns": {"attributes": ["details.brand"]},
    }  # fmt: skip
    ingest(DataSettings.model_validate(fields), tmp_path / "out")
    catalog, _ = load(tmp_path / "out")
    assert catalog.attributes["details.brand"][catalog.item_ids.index("a")] == ["B"]
    shutil.rmtree(tmp_path / "out")
    fields["columns"] = {"attributes": ["brand"]}
    assert "1.jsonl, column 'brand': missing column" in refusal(tmp_path, **fields)
    put(tmp_path / "x.jsonl", bare.replace("item_id", "user_id") + jsonl().replace("}", ', "rating": 3}'))
    rated = {"interactions": tmp_path / "x.jsonl", "rejected_share": 0.999, "columns": {"rating": "rating"}}
    ingest(DataSettings.model_validate(rated), tmp_path / "out")
    assert histories(tmp_path / "out") == {"u1": ["b", "c", "a"], "u2": ["a"]}


def test_invalid_text_inside_a_list_rejects_its_row(tmp_path):
    put(tmp_path / "x.csv", HEAD + lines())
    words = pa.ListArray.from_arrays([0, 1, 1, 2], pa.array([b"ok", b"\xff"]))
    pq.write_table(pa.table({"item_id": ["a", "b", "c"], "title": words}), tmp_path / "items.parquet")
    fields = {"interactions": tmp_path / "x.csv", "items": tmp_path / "items.parquet"}
    assert refusal(tmp_path, **fields) == f"{tmp_path}/items.parquet, row 3: not UTF-8 text"
    ingest(DataSettings(**fields, rejected_share=0.5, unknown_items="drop"), tmp_path / "out")
    assert load(tmp_path / "out")[0].titles == ["ok", "b"]


def test_an_empty_file_among_several_has_no_rows(tmp_path):
    for table in ("x", "items"):
        put(tmp_path / table / "0.csv", "")
        put(tmp_path / table / "2.csv.gz", gzip.compress(b""))
    fields = {"interactions": tmp_path / "x", "items": tmp_path / "items"}
    assert refusal(tmp_path, **fields) == f"{tmp_path}/items: holds no rows"
    put(tmp_path / "items" / "1.csv", "item_id,title\na,A\nb,B\nc,C\n")
    assert refusal(tmp_path, **fields) == f"{tmp_path}/x: holds no rows"
    put(tmp_path / "x" / "1.csv", HEAD + lines())
    put(tmp_path / "x" / "3.csv", HEAD + "u3,a,noon\n")
    summary = ingest(DataSettings(**fields, rejected_share=0.5), tmp_path / "out")
    assert histories(tmp_path / "out") == {"u1": ["b", "c", "a"], "u2": ["a"]}
    assert summary["rows"] == {"interactions": 5, "items": 3}
    assert pq.read_table(tmp_path / "out" / "rejected")["file"].to_pylist() == [str(tmp_path / "x" / "3.csv")]


def test_words_that_are_nested_too_deeply_are_refused(tmp_path):
    put(tmp_path / "x.csv", HEAD + "u,a,1\n")
    put(tmp_path / "items.jsonl", '{"item_id": "a", "title": ' + "[" * 2000 + "]" * 2000 + "}\n")
    fields = {"interactions": tmp_path / "x.csv", "items": tmp_path / "items.jsonl"}
    assert "column 'title': holds a list or object that is nested too deeply" in refusal(tmp_path, **fields)


LIMITS = [
    (pa.timestamp("s"), [2**63 - 1, 0, -(2**63)]), (pa.timestamp("ms"), [17_000_000_000_000_000, 2, 1]),
    (pa.timestamp("us"), [2**63 - 1, 0, -(2**63) + 1]), (pa.timestamp("ns"), [2**63 - 1, 1, 0]),
    (pa.date32(), [2**31 - 1, 0, -(2**31)]), (pa.int64(), [2**63 - 1, 2**63 - 2, -(2**63)]),
    (pa.uint64(), [2**63 - 1, 2, 1]), (pa.float64(), [1e18, 0.5, -1e18]), (pa.timestamp("us", "Asia/Tokyo"), [2, 1, 0]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "values"), LIMITS, ids=[str(kind) for kind, _ in LIMITS])
def test_times_at_the_limits_of_a_type_order_as_they_are(tmp_path, kind, values):
    numbers = pa.array(
        values,
        pa.int32()
        if kind == pa.date32()
        else None
        if pa.types.is_floating(kind)
        else pa.uint64()
        if kind == pa.uint64()
        else pa.int64(),
    )
    try:
        table = pa.table({"user_id": ["u"] * 3, "item_id": list("cba"), "timestamp": numbers.view(kind)})
        pq.write_table(table, tmp_path / "x.parquet")
    except pa.ArrowInvalid:
        pytest.skip("Parquet holds no such time")
    ingest(DataSettings(interactions=tmp_path / "x.parquet"), tmp_path / "out")
    assert histories(tmp_path / "out") == {"u": ["a", "b", "c"]}


@pytest.mark.parametrize(("kind", "bad"), [(pa.uint64(), 2**63), (pa.float64(), 2.0**63), (pa.float64(), float("nan"))])
def test_times_beyond_the_limits_are_rejected_not_wrapped(tmp_path, kind, bad):
    times = pa.array([bad, 2, 1], kind)
    pq.write_table(pa.table({"user_id": ["u"] * 3, "item_id": list("cba"), "timestamp": times}), tmp_path / "x.parquet")
    ingest(DataSettings(interactions=tmp_path / "x.parquet", rejected_share=0.5), tmp_path / "out")
    assert [row[:2] for row in rejected(tmp_path / "out")] == [(1, "timestamp")]
    assert histories(tmp_path / "out") == {"u": ["a", "b"]}


def test_dates_of_files_of_different_units_are_brought_to_the_finest_or_rejected(tmp_path):
    (tmp_path / "in").mkdir()
    for name, unit, values in (("a", "ms", [1000, 2**62]), ("b", "ns", [1, 10**9 + 1])):
        columns = {"user_id": ["u"] * 2, "item_id": [name + "0", name + "1"]}
        times = pa.array(values, pa.int64()).view(pa.timestamp(unit))
        pq.write_table(pa.table({**columns, "timestamp": times}), tmp_path / f"in/{name}.parquet")
    ingest(DataSettings(interactions=tmp_path / "in", rejected_share=0.5), tmp_path / "out")
    assert histories(tmp_path / "out") == {"u": ["b0", "a0", "b1"]}
    assert [row[:2] for row in rejected(tmp_path / "out")] == [(2, "timestamp")]


@pytest.mark.parametrize(
    ("kind", "value", "shown"),
    [
        (pa.timestamp("ms"), 1_500_000_000_000, "2017-07-14 02:40:00"), (pa.date32(), 3, "1970-01-04"),
        (pa.timestamp("ns"), 1_500_000_000 * 10**9, "2017-07-14 02:40:00"),
        (pa.timestamp("us"), 2**63 - 1, str(2**63 - 1)),
    ],
)  # fmt: skip
def test_a_date_among_numbers_is_told_as_it_is(tmp_path, kind, value, shown):
    for name, times in (("a", pa.array([1, 2, 3])), ("b", pa.array([value], pa.int32() if value == 3 else pa.int64()))):
        ids = [f"{name}{n}" for n in range(len(times))]
        times = times.cast(kind) if name == "b" else times
        put(tmp_path / "x" / "none", "")
        pq.write_table(
            pa.table({"user_id": ids, "item_id": ids, "timestamp": times}), tmp_path / "x" / f"{name}.parquet"
        )
    ingest(DataSettings(interactions=tmp_path / "x", rejected_share=0.5), tmp_path / "out")
    assert rejected(tmp_path / "out") == [(1, "timestamp", f"'{shown}' is not a timestamp (most are numbers)")]


def test_a_pattern_and_a_window_and_events_choose_interactions(tmp_path):
    text = "who,what,when,how\nu,a,31/12/2019 23:59,view\nu,b,01/01/2020 00:00,view\nu,c,02/01/2020 00:00,buy\n"
    path = put(
        tmp_path / "x.csv", text + "u,d,02/02/2020 00:00,buy\nu,b,03/01/2020 00:00,buy\nu,e,03/01/2020 00:00,cart\n"
    )
    columns = {"user": "who", "item": "what", "timestamp": "when", "event": "how", "time_format": "%d/%m/%Y %H:%M"}
    config = DataSettings(
        interactions=path, columns=columns, events={"view": 1, "buy": 5}, deduplicate="strongest",
        time_window={"start": "2020-01-01", "end": "2020-02-01T00:00:00"},
    )  # fmt: skip
    summary = ingest(config, tmp_path / "out")
    assert histories(tmp_path / "out") == {"u": ["c", "b"]}
    assert summary["dropped"] == {
        "event_type": 1, "before_time_window": 1, "after_time_window": 1, "unknown_item": 0, "repeated": 1,
        "below_minimum_count": 0,
    }  # fmt: skip
    wrong = config.model_copy(update={"columns": config.columns.model_copy(update={"time_format": "%Q"})})
    with pytest.raises(ValueError, match="time_format"):
        ingest(wrong, tmp_path / "out")


@pytest.mark.parametrize(("unit", "scale"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_the_unit_of_epochs_is_told_by_their_size(tmp_path, unit, scale):
    days = [18_261, 18_262, 18_263]  # 2019-12-31 ...
    text = HEAD + "".join(f"u,i{day},{day * 86_400 * scale}\n" for day in days)
    path = put(tmp_path / "x.csv", text)
    for stated in (None, unit):
        config = DataSettings(interactions=path, columns={"time_unit": stated}, time_window={"start": "2020-01-01"})
        ingest(config, tmp_path / "out")
        assert histories(tmp_path / "out") == {"u": ["i18262", "i18263"]}


def test_words_of_a_split_have_aliases_in_any_case_and_others_are_rejected(tmp_path):
    words = ["train", "VAL", "Validation", " valid ", "Test", "dev"]
    text = "user_id,item_id,timestamp,part\n" + "".join(f"u,i{row},{row},{word}\n" for row, word in enumerate(words))
    fields = {"interactions": put(tmp_path / "x.csv", text), "split": {"kind": "column"}, "columns": {"split": "part"}}
    ingest(DataSettings.model_validate({**fields, "rejected_share": 0.5}), tmp_path / "out")
    assert load(tmp_path / "out")[1].splits.tolist() == [0, 1, 1, 1, 2]
    assert rejected(tmp_path / "out") == [(6, "part", "'dev' is not a valid split (train, valid, test)")]


def test_ratings_sessions_and_float_ids(tmp_path):
    text = "user_id,session,item_id,timestamp,rating\n1.0,s1,7.0,1,5\n1.0,s2,8.0,2,1\n1.0,s2,9,3,3\n"
    path = put(tmp_path / "x.csv", text)
    columns = {"rating": "rating", "session": "session"}
    ingest(DataSettings(interactions=path, columns=columns, unit="session"), tmp_path / "out")
    assert histories(tmp_path / "out") == {"s1": ["7"], "s2": ["8", "9"]}
    ingest(DataSettings(interactions=path, columns=columns, min_rating=2, max_rating=4), tmp_path / "out")
    assert histories(tmp_path / "out") == {"1": ["9"]}


def test_words_and_attributes_of_items_of_any_type(tmp_path):
    put(tmp_path / "x.csv", HEAD + "u,a,1\nu,b,2\n")
    rows = [
        {
            "item_id": "a",
            "title": "A <b>bold</b> &amp; new",
            "d": {"Brand": "X", "n": 1},
            "c": ["p", "q"],
            "unasked": 1,
        },
        {"item_id": "b", "title": None, "d": {}, "c": "p", "year": 1995.0, "unasked": "-"},
    ]
    put(tmp_path / "i.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    columns = {"text": ["title"], "attributes": ["d.Brand", "c", "year", "d"], "strip_html": True}
    fields = {"interactions": tmp_path / "x.csv", "items": tmp_path / "i.jsonl", "columns": columns}
    ingest(DataSettings.model_validate(fields), tmp_path / "out")
    catalog, _ = load(tmp_path / "out")
    catalog = catalog.take(catalog.rows(["a", "b"]))
    assert catalog.titles == ["A bold & new", "b"]
    assert catalog.texts == ["A bold & new. Brand: X. C: p, q. D: Brand: X, n: 1", "C: p. Year: 1995"]
    assert catalog.attributes["c"] == [["p", "q"], ["p"]]


def test_duplicate_items_keep_the_first(tmp_path):
    put(tmp_path / "x.csv", HEAD + "u,a,1\nu,b,2\n")
    fields = {
        "interactions": tmp_path / "x.csv",
        "items": put(tmp_path / "i.csv", "item_id,title\na,A\nb,B\na,C\n,D\n"),
    }
    assert "row 3, column 'item_id': duplicate item id 'a' (first in row 1)" in refusal(tmp_path, **fields)
    summary = ingest(DataSettings(**fields, rejected_share=0.5), tmp_path / "out")
    assert rejected(tmp_path / "out") == [
        (3, "item_id", "duplicate item id 'a' (first in row 1)"), (4, "item_id", "the id is missing"),
    ]  # fmt: skip
    assert summary["rejected"]["items"] == 2
    assert sorted(load(tmp_path / "out")[0].titles) == ["A", "B"]


def test_too_little_memory_is_told_in_one_line(tmp_path):
    path = put(tmp_path / "x.csv", HEAD + "".join(f"u{i},i{i % 97},{i}\n" for i in range(200_000)))
    fields = {"interactions": path, "memory_limit": "1MB", "scratch_limit": "1MB"}
    with pytest.raises(ValueError, match=r"data\.memory_limit = 1MB") as caught:
        ingest(DataSettings.model_validate(fields), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["x.csv"]
