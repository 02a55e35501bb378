"""Cells of words worked out a column at a time: the same catalogue as one by one, whatever the cells hold."""

import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.ingest import plain_cells
from pipelines.ingest.catalogue import catalogue_table
from setrec.data.item_texts import TextColumns

WORDS = TextColumns(("title", "notes"), ("genre", "details.maker_name"), (None, "|"))
PIECES = [
    "a",
    "Ab",
    " ",
    "  ",
    "|",
    ".",
    "..",
    ", ",
    '"',
    "\\",
    "\n",
    "\x1c",
    "\u00a0",
    "é",
    "\u3000",
    "漢",
    "<b>",
    "&amp;",
    "7",
]
TEXT = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)
VALUE = st.one_of(
    st.none(), TEXT, TEXT, st.integers(-10, 2000), st.floats(allow_nan=False, allow_infinity=False), st.booleans()
)
CELL = st.one_of(
    VALUE, st.lists(TEXT, max_size=4), st.lists(VALUE, max_size=3), st.dictionaries(st.sampled_from("ab"), VALUE)
)


def batch_of(rows, spaced=False):
    """Ids i0, i1 ... and the cells of each row as JSON."""
    separators = (", ", ": ") if spaced else (",", ":")

    def cell(value):
        return None if value is None else json.dumps(value, ensure_ascii=False, separators=separators)

    columns = [pa.array([cell(row[at]) for row in rows], pa.string()) for at in range(4)]
    return pa.record_batch([pa.array([f"i{n}" for n in range(len(rows))]), *columns], names=["id", *"wxyz"])


def tables(batch, words, monkeypatch):
    """The catalogue by columns where cells are plain, and with no cell taken for plain."""
    names = [*words.text, *words.attributes]
    quick = catalogue_table(batch, words, names, bare=False)
    with monkeypatch.context() as patch:
        patch.setattr(plain_cells, "rows", lambda cells, words, count: pa.array([False] * len(batch), pa.bool_()))
        return quick, catalogue_table(batch, words, names, bare=False)


@pytest.mark.parametrize("strip_html", [False, True])
@given(rows=st.lists(st.tuples(CELL, CELL, CELL, CELL), max_size=8), spaced=st.booleans())
@settings(max_examples=150, deadline=None)
def test_columns_at_a_time_and_one_by_one_make_the_same_catalogue(strip_html, rows, spaced):
    words = TextColumns(WORDS.text, WORDS.attributes, WORDS.separators, strip_html)
    with pytest.MonkeyPatch.context() as monkeypatch:
        quick, one_by_one = tables(batch_of(rows, spaced), words, monkeypatch)
    assert quick.schema == one_by_one.schema
    assert quick.to_pylist() == one_by_one.to_pylist()


def test_ordinary_titles_and_lists_are_plain_and_make_the_text_in_order():
    batch = batch_of([("Toy Story...", None, ["Comedy", "Children", "Comedy"], "Pixar"), (1995, "", "Drama", "A|B")])
    cells = dict(zip([*WORDS.text, *WORDS.attributes], batch.columns[1:], strict=True))
    assert plain_cells.rows(cells, WORDS, 2).to_pylist() == [True, False]
    table = catalogue_table(batch, WORDS, list(cells), bare=False)
    assert table["text"].to_pylist() == [
        "Toy Story. Genre: Comedy, Children. Maker name: Pixar", "1995. Genre: Drama. Maker name: A, B",
    ]  # fmt: skip
    assert table["attribute:genre"].to_pylist() == [["Comedy", "Children"], ["Drama"]]


def test_items_without_columns_of_words_are_ids_with_titles_and_no_text():
    batch = batch_of([("a", "b", "c", "d")]).select(["id"])
    table = catalogue_table(batch, TextColumns(), [], bare=False)
    assert table.to_pylist() == [{"item_id": "i0", "title": "i0", "text": ""}]
