"""The section ``data`` of a configuration: input files and their processing."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, FiniteFloat, model_validator

from pipelines.common.storage import is_uri
from setrec.data.events import weigh_differently
from setrec.data.interactions import Keep, Ties
from setrec.data.schema import Schema
from setrec.data.splits import GlobalTime, LeaveOneOut, SplitSettings
from setrec.settings import LocalPath, Seed, Settings

_VARIABLE = re.compile(r"\$\{(\w+)\}")


def _located(value: Any) -> Any:
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        return value
    if missing := [name for name in _VARIABLE.findall(value) if name not in os.environ]:
        raise ValueError(f"the environment has no variable {missing[0]}")
    value = os.path.expanduser(_VARIABLE.sub(lambda found: os.environ[found[1]], value))
    if re.match(r"[^:]+://[^/@]*:[^/@]*@", value):
        raise ValueError(
            "keys do not belong in a configuration: leave them to the environment (AWS_ACCESS_KEY_ID, ...)"
        )
    return value if is_uri(value) else Path(value)


Location = Annotated[Path | str, BeforeValidator(_located)]
"""A local path or a URI (``pipelines.common.storage``), ``~`` and ``${VAR}`` resolved; other text than a URI becomes a
path."""
Tables = Location | Annotated[tuple[Location, ...], Field(min_length=1)]
"""One table in one place or in several: files, folders, patterns such as ``logs/*.csv.gz``, URIs."""


def _one_byte(value: str) -> str:
    if len(value.encode()) != 1 or value in "\r\n\0":
        raise ValueError("one ASCII character is expected")
    return value


def _splits(value: str) -> str:
    if not value or set(value) & set("\r\n\0"):
        raise ValueError("a delimiter is one or more characters other than line breaks")
    return value


class ReaderSettings(Settings):
    """How to read the files of a table; settings left out are inferred from each file's name (see
    ``pipelines.data.files``).

    ``delimiter`` of fields, of any length (``"::"``). ``header``: whether the first line names the columns; with
    ``columns``, the names in the order of the file, there is none unless stated. ``quote`` encloses fields that contain
    delimiters or line breaks, doubled inside them; ``null``: quotes have no meaning. ``encoding``: any that Python
    supports.
    """

    format: Literal["csv", "jsonl", "parquet", "atomic"] | None = None
    delimiter: Annotated[str, AfterValidator(_splits)] | None = None
    header: bool | None = None
    columns: tuple[str, ...] | None = None
    quote: Annotated[str, AfterValidator(_one_byte)] | None = '"'
    encoding: str = "utf-8"

    @model_validator(mode="after")
    def _consistent(self) -> ReaderSettings:
        try:
            "".encode(self.encoding)
        except LookupError:
            raise ValueError(f"unknown encoding {self.encoding!r}") from None
        if self.columns is not None and len(set(self.columns)) < len(self.columns):
            raise ValueError("columns repeat a name")
        if self.columns is None and self.header is False:
            raise ValueError("without a header the columns must be named: columns")
        if self.quote is not None and self.quote == self.delimiter:
            raise ValueError("quote and delimiter are the same")
        return self


def _instant(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("a date (ISO 8601) or a number in the unit of the times is expected") from None
    if hasattr(value, "isoformat"):  # YAML converts dates itself
        value = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    return value


Instant = Annotated[int | float | str, BeforeValidator(_instant)]
"""A date (UTC where it states no offset), or a number in the unit of the column of times."""


class TimeWindow(Settings):
    """The period of interactions that count: from ``start`` to before ``end``."""

    start: Instant | None = None
    end: Instant | None = None


_SIZE = r"^\d+(\.\d+)?\s?([KMGT]i?B)$"


class DataSettings(Settings):
    """Input files and their processing.

    ``interactions`` and ``items``: see :data:`Tables`; ``reader`` and ``item_reader`` describe their files.

    The steps, in this order: drop ratings outside ``min_rating`` and ``max_rating``, types of events that ``events``
    does not list (``{view: 1, purchase: 5, dislike: -1}``, see :mod:`setrec.data.events` for the effect of weights;
    they also replace ratings if no column of ratings is named), and times outside ``time_window``; refuse or drop
    interactions with items that are not in ``items``; sort each user's interactions by time, equal times by the rule
    ``ties`` (see ``setrec.data.interactions.chronological``); of a user's repeated interactions with one item
    ``deduplicate`` keeps the first, the last, all, or the ``strongest`` (highest rating or weight, the first of
    equals); a ranking without the user's own history cannot find a repeat. Users and items with fewer interactions than
    the minima are removed, until none is left (with 0, items without interactions stay as cold items); the rest is
    split. Last, ``cold_share`` of the items lose their training interactions and so become cold: a cold group for
    evaluation, at the cost of about that share of the training data. ``seed`` determines the item rows, the order of
    shuffled ties and the items that become cold. With ``unit: session`` a history is one of ``columns.session``.

    ``rejected_share``: rows that cannot be used go to ``rejected/`` with the reason, up to this share of a table;
    ``null`` is 0.01 for tables of several files, while one file is refused at the first such row.

    ``engine``: ``duckdb`` works in this process, ``ray`` with Ray Data on the cluster at ``cluster.address``, one task
    per file; both write the same files.

    ``memory_limit``: memory of DuckDB before it spills to disk, in each task on Ray; the process needs about 0.5 GB
    more. It spills to a folder in ``scratch`` (``null``: next to the data directory), at most ``scratch_limit``.
    """

    interactions: Tables
    items: Tables | None = None
    reader: ReaderSettings = ReaderSettings()
    item_reader: ReaderSettings = ReaderSettings()
    columns: Schema = Field(default_factory=Schema)
    unit: Literal["user", "session"] = "user"
    min_rating: float | None = None
    max_rating: float | None = None
    events: dict[str, FiniteFloat] | None = None
    time_window: TimeWindow = TimeWindow()
    unknown_items: Literal["refuse", "drop"] = "refuse"
    ties: Ties = "file"
    deduplicate: Keep = "first"
    user_min_count: int = Field(default=0, ge=0)
    item_min_count: int = Field(default=0, ge=0)
    split: SplitSettings = LeaveOneOut()
    cold_share: float = Field(default=0.0, ge=0, lt=1)
    seed: Seed = 0
    rejected_share: float | None = Field(default=None, ge=0, lt=1)
    engine: Literal["duckdb", "ray"] = "duckdb"
    memory_limit: str = Field(default="2GB", pattern=_SIZE)
    scratch: Annotated[LocalPath, BeforeValidator(_located)] | None = None
    scratch_limit: str = Field(default="200GB", pattern=_SIZE)

    @model_validator(mode="after")
    def _columns_for_what_is_asked(self) -> DataSettings:
        rated = self.columns.rating is not None or self.events is not None
        if (self.min_rating is not None or self.max_rating is not None) and not rated:
            raise ValueError("min_rating and max_rating need columns.rating, the column of ratings, or events")
        if self.deduplicate == "strongest" and not rated:
            raise ValueError("deduplicate: strongest needs columns.rating or events")
        if (self.events is None) != (self.columns.event is None):
            raise ValueError("events and columns.event, the column of their types, need each other")
        if self.events is not None and max(self.events.values(), default=0) <= 0:
            raise ValueError("events: no type weighs more than 0, so there is nothing to learn from")
        if self.unit == "session" and self.columns.session is None:
            raise ValueError("unit: session needs columns.session")
        if self.split.kind == "column" and self.columns.split is None:
            raise ValueError("a split by column needs columns.split, the column of splits")
        timed = isinstance(self.split, GlobalTime) or self.time_window != TimeWindow()
        if timed and self.columns.position is not None:
            raise ValueError("a split by global time needs timestamps; positions only order one user's interactions")
        return self

    @property
    def weighs_events(self) -> bool:
        """Return whether types of events have different weights, so that histories contain weights."""
        return self.events is not None and weigh_differently(self.events)

    @property
    def event_weights(self) -> dict[str, float]:
        """Return the weights of types of events as histories have them: without weights, each event counts once, or not
        at all."""
        weights = self.events or {}
        return weights if self.weighs_events else {name: float(weight != 0) for name, weight in weights.items()}

    @property
    def schema_in_use(self) -> Schema:
        """Return the columns; a split by global time and a time window require timestamps."""
        schema = self.columns
        if self.unit == "session":
            schema = schema.model_copy(update={"user": schema.session})
        timed = isinstance(self.split, GlobalTime) or self.time_window != TimeWindow()
        if timed and schema.timestamp is None:
            return schema.model_copy(update={"timestamp": "timestamp"})
        return schema


def places(tables: Tables | None) -> list[Path | str]:
    """Return the places of a table; empty if there is no table."""
    if tables is None:
        return []
    return list(tables) if isinstance(tables, tuple) else [tables]
