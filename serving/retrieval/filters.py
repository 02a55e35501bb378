"""Filters on item attributes: predicates, and an index that evaluates them.

Syntax::

    {"attribute": "genre", "equals": "Drama"}
    {"attribute": "genre", "in": ["Drama", "Comedy"]}
    {"attribute": "year", "range": {"gte": 1990, "lt": 2000}}
    {"not": FILTER}    {"and": [FILTER, ...]}    {"or": [FILTER, ...]}

An item may have several values of an attribute, or none; a predicate holds if it holds for any of them. So ``not
equals "Drama"`` allows the items that have no genre at all. Values are strings; a range reads them as numbers and
ignores other values.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, cast

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    StrictInt,
    StrictStr,
    Tag,
    model_validator,
)

from setrec.errors import SetRecError

MAX_DEPTH, MAX_PREDICATES, MAX_VALUES = 8, 64, 1000
_CACHE_BYTES = 64 * 2**20

Value = Annotated[StrictStr, Field(max_length=1000)] | Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)]
Name = Annotated[StrictStr, Field(min_length=1, max_length=200)]


class FilterError(SetRecError):
    """A filter on an attribute that no item has."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Equals(_Part):
    """Items with the value ``equals`` of ``attribute``; an integer matches its decimal digits."""

    attribute: Name
    equals: Value


class In(_Part):
    """Items with a value of ``attribute`` among ``in``."""

    attribute: Name
    values: tuple[Value, ...] = Field(alias="in", min_length=1, max_length=MAX_VALUES)


class Bounds(_Part):
    """Bounds of numbers, at least one."""

    gte: FiniteFloat | None = None
    gt: FiniteFloat | None = None
    lte: FiniteFloat | None = None
    lt: FiniteFloat | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Bounds:
        if all(bound is None for bound in (self.gte, self.gt, self.lte, self.lt)):
            raise ValueError("a range needs one of gte, gt, lte, lt")
        return self

    def hold(self, numbers: np.ndarray) -> np.ndarray:
        """Return the mask of ``numbers``, float64 (V,), inside the bounds; NaN is outside."""
        inside: np.ndarray = ~np.isnan(numbers)
        for bound, compare in (
            (self.gte, np.greater_equal),
            (self.gt, np.greater),
            (self.lte, np.less_equal),
            (self.lt, np.less),
        ):
            if bound is not None:
                inside &= compare(numbers, bound)
        return inside


class Range(_Part):
    """Items with a value of ``attribute`` that is a number in ``range``."""

    attribute: Name
    range: Bounds


class Not(_Part):
    """Items that the inner filter does not allow."""

    negated: Node = Field(alias="not")


class And(_Part):
    """Items that every filter of the list allows."""

    every: tuple[Node, ...] = Field(alias="and", min_length=1, max_length=MAX_PREDICATES)


class Or(_Part):
    """Items that any filter of the list allows."""

    some: tuple[Node, ...] = Field(alias="or", min_length=1, max_length=MAX_PREDICATES)


_KEYS = ("equals", "in", "range", "not", "and", "or")


def _kind(value: Any) -> str | None:
    """Return the kind of a filter by its characteristic key."""
    if isinstance(value, _Part):
        return next((key for cls, key in _KINDS.items() if isinstance(value, cls)), None)
    if not isinstance(value, Mapping):
        return None
    keys = [key for key in _KEYS if key in value]
    return keys[0] if len(keys) == 1 else None


Node = Annotated[
    Annotated[Equals, Tag("equals")]
    | Annotated[In, Tag("in")]
    | Annotated[Range, Tag("range")]
    | Annotated[Not, Tag("not")]
    | Annotated[And, Tag("and")]
    | Annotated[Or, Tag("or")],
    Discriminator(
        _kind,
        custom_error_type="filter",
        custom_error_message="a filter has exactly one of the keys equals, in, range, not, and, or",
    ),
]

_KINDS: dict[type[_Part], str] = {Equals: "equals", In: "in", Range: "range", Not: "not", And: "and", Or: "or"}
for _model in (Not, And, Or):
    _model.model_rebuild()


def _bounded(raw: Any) -> Any:
    """Reject filters that are too deep or too long before they are built; a loop, so that depth costs no stack."""
    level, predicates, values = [raw], 0, 0
    for _depth in range(MAX_DEPTH):
        below: list[Any] = []
        for part in level:
            if not isinstance(part, Mapping):
                continue
            predicates += "attribute" in part
            values += len(part["in"]) if isinstance(part.get("in"), Sequence) else 1
            for inner in (part.get("not"), part.get("and"), part.get("or")):
                below += inner if isinstance(inner, list | tuple) else [] if inner is None else [inner]
        if predicates > MAX_PREDICATES or len(below) > MAX_PREDICATES or values > MAX_VALUES:
            raise ValueError(f"a filter has at most {MAX_PREDICATES} predicates and {MAX_VALUES} values")
        if not below:
            return raw
        level = below
    raise ValueError(f"a filter is at most {MAX_DEPTH} deep")


Filter = Annotated[Node, BeforeValidator(_bounded)]


class AttributeIndex:
    """An inverted index of rows by attribute and value, for R items; rows can only be added."""

    def __init__(self, attributes: Mapping[str, Sequence[Sequence[str]]], rows: int) -> None:
        """Build from ``attributes``: by name the values of every item, ``rows`` lists of strings."""
        self._rows = rows
        self._columns = {name: _Column.of(values) for name, values in attributes.items()}
        self._cache: OrderedDict[str, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return self._rows

    def append(self, attributes: Mapping[str, Sequence[str]]) -> None:
        """Append a row with these values; a new name becomes an attribute."""
        for name, values in attributes.items():
            column = self._columns.setdefault(name, _Column({}, {}))
            for value in dict.fromkeys(values):
                column.append(value, self._rows)
        self._rows += 1
        self._cache.clear()

    def rows(self, filter: Filter) -> np.ndarray:
        """Return the mask of rows that ``filter`` allows, bool (R,), read-only.

        Raises:
            FilterError: no item has an attribute of that name.
        """
        key = filter.model_dump_json()
        mask = self._cache.pop(key, None)
        if mask is None:
            mask = self._evaluate(filter)
            mask.setflags(write=False)
        self._cache[key] = mask
        while len(self._cache) > max(1, _CACHE_BYTES // max(self._rows, 1)):
            self._cache.popitem(last=False)
        return mask

    def common(self, count: int) -> dict[str, list[str]]:
        """Return the most frequent values of each attribute, at most ``count``."""
        return {name: column.common(count) for name, column in self._columns.items()}

    def _evaluate(self, node: Node) -> np.ndarray:
        match node:
            case Not():
                return ~self._evaluate(node.negated)
            case And():
                every: np.ndarray = np.logical_and.reduce([self._evaluate(part) for part in node.every])
                return every
            case Or():
                some: np.ndarray = np.logical_or.reduce([self._evaluate(part) for part in node.some])
                return some
        column = self._columns.get(node.attribute)
        if column is None:
            raise FilterError(f"no item has an attribute {node.attribute!r}")
        mask = np.zeros(self._rows, dtype=bool)
        for rows in column.matching(node):
            mask[rows] = True
        return mask


class _Column:
    """Rows by value: an array of the initial ones, a list of added ones."""

    def __init__(self, first: dict[str, np.ndarray], later: dict[str, list[int]]) -> None:
        self._first, self._later = first, later
        self._numbers: tuple[list[str], np.ndarray] | None = None

    @classmethod
    def of(cls, values: Sequence[Sequence[str]]) -> _Column:
        vocabulary: dict[str, int] = {}
        codes = [vocabulary.setdefault(value, len(vocabulary)) for row in values for value in row]
        rows = np.repeat(np.arange(len(values), dtype=np.int32), [len(row) for row in values])
        order = np.argsort(np.array(codes, dtype=np.int32), kind="stable")
        ends = np.cumsum(np.bincount(codes, minlength=len(vocabulary))) if codes else np.empty(0, np.int64)
        return cls(dict(zip(vocabulary, np.split(rows[order], ends[:-1]), strict=False)), {})

    def append(self, value: str, row: int) -> None:
        if value not in self._first and value not in self._later:
            self._numbers = None
        self._later.setdefault(value, []).append(row)

    def common(self, count: int) -> list[str]:
        sizes = {value: len(rows) for value, rows in self._first.items()}
        for value, rows in self._later.items():
            sizes[value] = sizes.get(value, 0) + len(rows)
        return heapq.nlargest(count, sizes, key=lambda value: (sizes[value], value))

    def matching(self, node: Node) -> Iterable[np.ndarray | list[int]]:
        for value in self._values(node):
            yield self._first.get(value, [])
            yield self._later.get(value, [])

    def _values(self, node: Node) -> Iterable[str]:
        if isinstance(node, Range):
            names, numbers = self._parsed()
            return [names[at] for at in np.flatnonzero(node.range.hold(numbers))]
        values = (node.equals,) if isinstance(node, Equals) else cast(In, node).values
        return map(str, values)

    def _parsed(self) -> tuple[list[str], np.ndarray]:
        if self._numbers is None:
            names = list({**self._first, **self._later})
            self._numbers = names, np.array([_number(name) for name in names], dtype=np.float64)
        return self._numbers


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return np.nan
    return number if np.isfinite(number) else np.nan
