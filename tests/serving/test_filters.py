"""Filters: as users write them, what is refused, and what they allow against the definition in plain Python."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from serving.retrieval.filters import (
    MAX_DEPTH,
    MAX_PREDICATES,
    MAX_VALUES,
    AttributeIndex,
    Equals,
    Filter,
    FilterError,
    Not,
)
from setrec.errors import SetRecError

FILTER = TypeAdapter(Filter)
NAMES = ("genre", "year")
VALUES = ("a", "b", "1989", "1990", "1990.0", "-3", "2e3", "nan", "inf", "")
DRAMA = {"attribute": "genre", "equals": "Drama"}

names = st.sampled_from(NAMES)
values = st.sampled_from((*VALUES, "absent", 1990, -3))
bounds = st.dictionaries(st.sampled_from(("gte", "gt", "lte", "lt")), st.sampled_from((-3, 0, 1989.5, 1990, 2000)))
leaves = st.one_of(
    st.builds(lambda n, v: {"attribute": n, "equals": v}, names, values),
    st.builds(lambda n, v: {"attribute": n, "in": v}, names, st.lists(values, min_size=1, max_size=4)),
    st.builds(lambda n, b: {"attribute": n, "range": b}, names, bounds.filter(bool)),
)
filters = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(lambda part: {"not": part}, inner),
        st.builds(
            lambda key, parts: {key: parts}, st.sampled_from(("and", "or")), st.lists(inner, min_size=1, max_size=3)
        ),
    ),
    max_leaves=8,
).filter(lambda raw: depth(raw) <= MAX_DEPTH)
items = st.lists(
    st.fixed_dictionaries({name: st.lists(st.sampled_from(VALUES), max_size=3) for name in NAMES}), max_size=12
)


def parse(raw):
    return FILTER.validate_python(raw)


def depth(raw):
    below = [raw["not"]] if "not" in raw else raw.get("and", raw.get("or", []))
    return 1 + max(map(depth, below), default=0)


def holds(raw, item):
    """What a filter says of one item, {name: values}, straight from the words of the documentation."""
    if "not" in raw:
        return not holds(raw["not"], item)
    if "and" in raw:
        return all(holds(part, item) for part in raw["and"])
    if "or" in raw:
        return any(holds(part, item) for part in raw["or"])
    own = item[raw["attribute"]]
    if "equals" in raw:
        return str(raw["equals"]) in own
    if "in" in raw:
        return any(str(value) in own for value in raw["in"])
    return any(inside(raw["range"], float(value)) for value in own if value not in ("a", "b", "", "nan", "inf"))


def inside(wanted, number):
    compare = {
        "gte": lambda bound: number >= bound,
        "gt": lambda bound: number > bound,
        "lte": lambda bound: number <= bound,
        "lt": lambda bound: number < bound,
    }
    return all(compare[key](bound) for key, bound in wanted.items())


def index_of(rows):
    return AttributeIndex({name: [row[name] for row in rows] for name in NAMES}, len(rows))


def nested(levels):
    raw = DRAMA
    for _ in range(levels - 1):
        raw = {"not": raw}
    return raw


@settings(max_examples=200)
@given(raw=filters, rows=items)
def test_a_filter_allows_what_plain_python_allows(raw, rows):
    assert index_of(rows).rows(parse(raw)).tolist() == [holds(raw, row) for row in rows]


@settings(max_examples=100)
@given(raw=filters, rows=items, start=st.integers(0, 12))
def test_rows_appended_are_rows_there_from_the_start(raw, rows, start):
    index, wanted = index_of(rows[:start]), parse(raw)
    for row in rows[start:]:
        index.rows(wanted)  # what is remembered must be forgotten
        index.append(row)
    assert len(index) == len(rows)
    assert index.rows(wanted).tolist() == index_of(rows).rows(wanted).tolist()


@settings(max_examples=100)
@given(raw=filters, rows=items)
def test_a_filter_written_out_and_read_back_allows_the_same(raw, rows):
    again = FILTER.validate_json(FILTER.dump_json(parse(raw), by_alias=True, exclude_none=True))
    assert index_of(rows).rows(again).tolist() == [holds(raw, row) for row in rows]


def test_different_filters_are_not_taken_for_each_other():
    rows = [{"genre": ["a"], "year": ["1990"]}, {"genre": ["b"], "year": []}]
    index, parts = index_of(rows), [{"attribute": "genre", "equals": value} for value in "ab"]
    asked = [{"and": parts}, {"or": parts}, {"not": {"or": parts}}, *parts, {"not": parts[0]}]
    for raw in asked * 2:
        assert index.rows(parse(raw)).tolist() == [holds(raw, row) for row in rows], raw


def test_what_is_remembered_cannot_be_written_to():
    mask = index_of([{"genre": ["a"], "year": []}]).rows(parse(DRAMA))
    with pytest.raises(ValueError, match="read-only"):
        mask[0] = True


def test_the_memory_of_filters_is_bounded(monkeypatch):
    index = index_of([{"genre": ["a"], "year": []}] * 10)
    monkeypatch.setattr("serving.retrieval.filters._CACHE_BYTES", 50)
    for value in range(20):
        index.rows(parse({"attribute": "genre", "equals": value}))
    assert len(index._cache) == 5


class TestUnknownAttributes:
    """A name no item has is a mistake of the caller's, wherever in the filter it stands."""

    @pytest.mark.parametrize("wrap", [lambda f: f, lambda f: {"not": f}, lambda f: {"or": [DRAMA, f]}])
    @pytest.mark.parametrize("asked", [{"equals": "x"}, {"in": ["x"]}, {"range": {"lt": 3}}])
    def test_is_one_clear_line(self, wrap, asked):
        index = index_of([{"genre": ["Drama"], "year": []}])
        with pytest.raises(FilterError) as caught:
            index.rows(parse(wrap({"attribute": "colour", **asked})))
        assert str(caught.value) == "no item has an attribute 'colour'"
        assert isinstance(caught.value, SetRecError)

    def test_becomes_known_with_the_first_item_that_has_it(self):
        index, wanted = index_of([{"genre": ["a"], "year": []}]), parse({"attribute": "colour", "equals": "red"})
        index.append({"colour": ["red", "red"]})
        assert index.rows(wanted).tolist() == [False, True]
        assert index.rows(Not(negated=wanted)).tolist() == [True, False]


class TestForms:
    """JSON as users write it."""

    @pytest.mark.parametrize(
        ("text", "allowed"),
        [
            ('{"attribute": "genre", "equals": "Drama"}', [True, False, True]),
            ('{"attribute": "genre", "in": ["Comedy", "Horror"]}', [False, True, True]),
            ('{"attribute": "year", "range": {"gte": 1990, "lt": 2000}}', [True, False, False]),
            ('{"attribute": "year", "equals": 1990}', [True, False, False]),
            ('{"not": {"attribute": "year", "range": {"gt": 0}}}', [False, False, True]),
            ('{"and": [{"attribute": "genre", "equals": "Drama"}, {"attribute": "genre", "equals": "Comedy"}]}', [2]),
        ],
    )
    def test_are_read(self, text, allowed):
        genres, years = [["Drama"], ["Comedy"], ["Drama", "Comedy"]], [["1990"], ["2000"], ["unknown"]]
        mask = AttributeIndex({"genre": genres, "year": years}, 3).rows(FILTER.validate_json(text))
        expected = allowed if len(allowed) == 3 else [row in allowed for row in range(3)]
        assert mask.tolist() == expected

    def test_python_objects_are_filters_too(self):
        assert FILTER.validate_python(Not(negated=Equals(attribute="genre", equals="Drama"))) == parse({"not": DRAMA})

    @pytest.mark.parametrize(
        "bad",
        [
            None,
            "genre",
            [],
            {},
            {"attribute": "genre"},
            {"equals": "Drama"},
            {"attribute": "", "equals": "Drama"},
            {"attribute": 3, "equals": "Drama"},
            {"attribute": "genre", "equals": None},
            {"attribute": "genre", "equals": True},
            {"attribute": "genre", "equals": 1.5},
            {"attribute": "genre", "equals": ["Drama"]},
            {"attribute": "genre", "equals": "x" * 1001},
            {"attribute": "genre", "equals": 2**63},
            {"attribute": "genre", "in": []},
            {"attribute": "genre", "in": "Drama"},
            {"attribute": "genre", "in": {"Drama": 1}},
            {"attribute": "genre", "in": [None]},
            {"attribute": "genre", "values": ["Drama"]},
            {"attribute": "genre", "equals": "Drama", "in": ["Drama"]},
            {"attribute": "genre", "equals": "Drama", "more": 1},
            {"attribute": "year", "range": {}},
            {"attribute": "year", "range": {"gte": None}},
            {"attribute": "year", "range": {"from": 1990}},
            {"attribute": "year", "range": [1990, 2000]},
            {"attribute": "year", "range": {"gte": "many"}},
            {"attribute": "year", "range": {"gte": float("nan")}},
            {"attribute": "year", "range": {"gte": float("inf")}},
            {"and": []},
            {"or": []},
            {"or": DRAMA},
            {"or": [None]},
            {"not": [DRAMA]},
            {"not": None},
            {"not": DRAMA, "and": [DRAMA]},
            {"negated": DRAMA},
        ],
    )
    def test_others_are_refused(self, bad):
        with pytest.raises(ValidationError):
            parse(bad)

    def test_the_error_says_what_a_filter_is(self):
        with pytest.raises(ValidationError, match="exactly one of the keys equals, in, range, not, and, or"):
            parse({"not": {"genre": "Drama"}})


class TestBounds:
    """The largest that is taken, and the next that is not."""

    def test_depth(self):
        assert index_of([{"genre": ["Drama"], "year": []}]).rows(parse(nested(MAX_DEPTH))).tolist() == [False]
        for levels in (MAX_DEPTH + 1, 200):
            with pytest.raises(ValidationError, match="at most 8 deep"):
                parse(nested(levels))

    def test_depth_costs_no_stack(self):
        with pytest.raises(ValidationError, match="at most 8 deep"):
            parse(nested(100_000))

    def test_predicates(self):
        parse({"or": [DRAMA] * MAX_PREDICATES})
        half = {"or": [DRAMA] * (MAX_PREDICATES // 2)}
        for many in ({"or": [DRAMA] * (MAX_PREDICATES + 1)}, {"and": [half, half, DRAMA]}):
            with pytest.raises(ValidationError, match="at most 64 predicates"):
                parse(many)

    def test_values(self):
        def among(count):
            return {"attribute": "genre", "in": ["x"] * count}

        parse(among(MAX_VALUES))
        for many in (among(MAX_VALUES + 1), {"or": [among(MAX_VALUES // 2)] * 2 + [DRAMA]}):
            with pytest.raises(ValidationError, match="1000 values"):
                parse(many)


def test_rows_of_an_empty_catalogue_are_none():
    assert np.array_equal(index_of([]).rows(parse(DRAMA)), np.empty(0, bool))
