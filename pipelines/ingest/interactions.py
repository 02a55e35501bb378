"""Files of interactions to rows of the table ``raw``, checked; and which of them count. All of it in SQL.

Both engines execute this, one over whole tables, the other over parts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction

import numpy as np
import pandas as pd

from pipelines.data import scans
from pipelines.data.cells import Cell, Fault, Time, first_fault, identifier, moment, number, words_of
from pipelines.data.engine import DuckDbEngine, literal
from pipelines.data.files import File, on_this_machine
from pipelines.data.settings import DataSettings
from setrec.data.schema import Schema
from setrec.data.splits import NAMES

UNITS = {"d": 86_400_000_000_000, "s": 1_000_000_000, "ms": 1_000_000, "us": 1000, "ns": 1}
"""Nanoseconds of each unit of time, the finest last."""


_EPOCHS = (("s", 1e11), ("ms", 1e14), ("us", 1e17))
"""Numbers of which size are taken for which unit: until the year 5138 seconds have no more than 11 digits, and 10 of
them are the year 2001 in any unit; larger ones are nanoseconds."""


@dataclass
class Loaded:
    """What all rows together say. ``rows`` of each file, int64; ``rejected``: whether any cannot be used; ``time``: the
    expression of a time; ``unit`` of it; ``instants``: whether times are dates; ``mixed``: whether some are not what
    ``instants`` says; ``finer``: units of dates and what brings them to ``unit``; ``column``: which holds the times."""

    rows: np.ndarray
    rejected: bool = False
    time: str = "time"
    unit: str | None = None
    instants: bool = False
    mixed: bool = False
    finer: dict[str, int] = field(default_factory=dict)
    column: str = ""

    @property
    def bases(self) -> np.ndarray:
        """How many rows come before each file, int64."""
        before: np.ndarray = np.cumsum(self.rows) - self.rows
        return before


def time_column(schema: Schema, names: list[str]) -> tuple[str, bool]:
    """The column of times or positions, stated or told by the ``names`` of a table's columns; and whether it is the
    latter."""
    by_name = schema.timestamp is None and "timestamp" not in names and "position" in names
    if schema.position is not None or by_name:
        return schema.position or "position", True
    return schema.timestamp or "timestamp", False


def create(engine: DuckDbEngine, config: DataSettings) -> None:
    """Make the table ``raw``, empty: a row will be there for every row read, with its ``fault`` where it has one.

    ``real`` holds times that ``time`` cannot; ``instant``: whether a time is a date, then of ``unit``, which is
    ``position`` where the column holds positions. ``rating``, ``weight`` and ``split`` are there where they count.
    """
    # A column that says the same in every row costs as much to write as one that does not.
    counted = "".join(f", {name} {type_}" for name, type_ in _counted(config).items())
    engine.run(f"CREATE TYPE time_unit AS ENUM ({', '.join(map(literal, (*UNITS, 'position')))})")
    engine.run(
        "CREATE TABLE raw (file INTEGER, user VARCHAR, item VARCHAR, time BIGINT, real DOUBLE, instant BOOLEAN, "
        f"unit time_unit{counted}, fault STRUCT(c VARCHAR, r VARCHAR))"
    )


def _counted(config: DataSettings) -> dict[str, str]:
    """The columns of ``raw`` that only some settings want, with their types."""
    wanted = {
        "rating": config.schema_in_use.rating is not None or config.events is not None,
        "weight": config.events is not None,
        "split": config.split.kind == "column",
    }
    types = {"rating": "DOUBLE", "weight": "DOUBLE", "split": "TINYINT"}
    return {name: types[name] for name, counts in wanted.items() if counts}


def read(engine: DuckDbEngine, config: DataSettings, files: list[File]) -> None:
    """Append a row to ``raw`` for every row of the files, in their order.

    Raises:
        DataError: a file cannot be read, or a column is missing or of a wrong type.
    """
    for alike in scans.alike(files):
        with on_this_machine(alike[0], engine.scratch) as local:
            _read(engine, config, scans.layout(local, alike[1:]))


def _read(engine: DuckDbEngine, config: DataSettings, layout: scans.Layout) -> None:
    schema = config.schema_in_use
    time, position = time_column(schema, layout.names)
    optional = [schema.rating, schema.event, schema.split if config.split.kind == "column" else None]
    wanted = [schema.user, schema.item, time, *(name for name in optional if name is not None)]
    for name in wanted:
        if layout.path(name) is None and layout.names:
            raise layout.missing(name)

    def use(relation: str, cells: dict[str, Cell]) -> None:
        text = {column: f"t{at}" for at, column in enumerate(cells)}
        moments = moment(cells[time], text[time], schema.time_format, position)
        unit = "position" if position else cells[time].unit or "us"
        values, faults = _values(config, schema, cells, text, moments, unit)
        texts = ", ".join(f"{cell.text} AS {text[column]}" for column, cell in cells.items())
        query = f"(SELECT *, {texts} FROM {relation})"
        for alias, step in moments.steps:
            query = f"(SELECT *, {step} AS {alias} FROM {query})"
        engine.run(f"INSERT INTO raw SELECT file, {values}, {first_fault(faults)} FROM {query}")

    scans.scan(engine, layout, list(dict.fromkeys(wanted)), use)


def _values(
    config: DataSettings, schema: Schema, cells: dict[str, Cell], text: dict[str, str], time: Time, unit: str
) -> tuple[str, list[Fault]]:
    """The expressions of a row of ``raw`` between file and fault; and all faults, the first to be told first."""
    user, faults = identifier(cells[schema.user], text[schema.user])
    item, more = identifier(cells[schema.item], text[schema.item])
    faults = [*faults, *more, *time.faults]
    counted: dict[str, str] = {}
    if schema.rating is not None:
        counted["rating"], more = number(cells[schema.rating], text[schema.rating])
        faults += more
    if schema.event is not None and config.events is not None:
        event, more = identifier(cells[schema.event], text[schema.event], "event")
        cases = " ".join(f"WHEN {literal(name)} THEN {value!r}" for name, value in config.events.items())
        counted["weight"], faults = f"CASE {event} {cases} END", faults + more
        counted.setdefault("rating", counted["weight"])
    if schema.split is not None and schema.split in cells:
        words = {name: str(value) for name, value in NAMES.items()}
        counted["split"], more = words_of(cells[schema.split], text[schema.split], words, "split")
        faults += more
    values = [user, item, time.whole, time.real, time.instant, literal(unit), *(counted[n] for n in _counted(config))]
    return ", ".join(values), faults


COUNTS = (
    "SELECT file, unit, count(*) AS rows, count(*) FILTER (fault IS NULL) AS usable, "
    "count(*) FILTER (fault IS NULL AND instant) AS dates, count(real) FILTER (fault IS NULL) AS reals"
    + "".join(
        f", count(*) FILTER (fault IS NULL AND NOT instant AND abs(COALESCE(real, time::DOUBLE)) < {size}) AS {unit}"
        for unit, size in _EPOCHS
    )
    + " FROM raw GROUP BY file, unit"
)
"""What a part of ``raw`` tells :func:`settled`."""


def settled(config: DataSettings, counts: pd.DataFrame, files: int) -> Loaded:
    """What the ``counts`` of all parts of ``raw`` (see :data:`COUNTS`) say together.

    Times are all numbers or all dates, as most are; dates of all files get the finest of their units.
    """
    total = counts.drop(columns=["file", "unit"]).sum()
    found = Loaded(counts.groupby("file")["rows"].sum().reindex(range(files), fill_value=0).to_numpy(np.int64))
    dates, numbers = int(total["dates"]), int(total["usable"] - total["dates"])
    position = "position" in set(counts["unit"])
    found.column = time_column(config.schema_in_use, ["position" if position else "timestamp"])[0]
    found.instants, found.mixed = dates >= numbers and dates > 0, bool(dates and numbers)
    if found.instants:
        units = sorted(set(counts["unit"][counts["dates"] > 0]), key=list(UNITS).index)
        found.unit = units[-1]
        found.finer = {unit: UNITS[unit] // UNITS[found.unit] for unit in units[:-1]}
    elif not position and numbers:
        most = (unit for unit, _ in _EPOCHS if 2 * total[unit] > numbers)
        found.unit = config.columns.time_unit or next(most, "ns")
    if total["reals"] and not found.instants:
        found.time = "COALESCE(real, time::DOUBLE)"
    found.rejected = bool(total["usable"] < total["rows"]) or found.mixed or bool(found.finer)
    return found


def settle(engine: DuckDbEngine, found: Loaded) -> None:
    """Bring the times of ``raw``, a part or all of it, to what was found; those that cannot be are faults."""
    if found.mixed:
        shown = "make_timestamp(time)::VARCHAR" if not found.instants else "COALESCE(real::VARCHAR, time::VARCHAR)"
        hint = f" is not a timestamp (most are {'dates' if found.instants else 'numbers'})"
        wrong = f"instant <> {str(found.instants).lower()}"
        _refuse(engine, found, wrong, f"'''' || {shown} || '''' || {literal(hint)}")
    for unit, factor in found.finer.items():
        where = f"unit = {literal(unit)} AND abs(time::HUGEINT) > {(2**63 - 1) // factor}"
        _refuse(engine, found, where, f"'a date is out of range for the unit {found.unit}: ' || time || ' {unit}'")
        engine.run(f"UPDATE raw SET time = time * {factor} WHERE unit = {literal(unit)} AND fault IS NULL")


def _refuse(engine: DuckDbEngine, found: Loaded, where: str, reason: str) -> None:
    fault = f"struct_pack(c := {literal(found.column)}, r := {reason})"
    engine.run(f"UPDATE raw SET fault = {fault} WHERE fault IS NULL AND {where}")


def passed(config: DataSettings, found: Loaded) -> str:
    """The condition under which a row of ``raw`` counts, whatever its item."""
    return " AND ".join(["fault IS NULL", *(f"({condition})" for condition in filters(config, found).values())])


def cuts(config: DataSettings, found: Loaded) -> str:
    """The query of how many rows of ``raw`` are dropped by each filter, those before it left out, and are left."""
    counts, before = [], "fault IS NULL"
    for reason, condition in filters(config, found).items():
        counts.append(f"count(*) FILTER ({before} AND NOT ({condition})) AS {reason}")
        before = f"{before} AND ({condition})"
    return f"SELECT {', '.join([*counts, f'count(*) FILTER ({before}) AS kept'])} FROM raw"


def unknown_item(config: DataSettings, items: str) -> str:
    """The expression of the fault of a row whose item the table ``items`` does not hold."""
    reason = (
        f"'unknown item ''' || raw.item || ''': ' || {literal(items)} || ' does not hold it "
        "(data.unknown_items: refuse; drop leaves such rows out)'"
    )
    return f"struct_pack(c := {literal(config.columns.item)}, r := {reason})"


def facts(config: DataSettings, found: Loaded) -> str:
    """The columns :func:`fact_names` of an interaction: expressions over ``raw``."""
    expressions = {"time": found.time, "split": "raw.split", "strength": "raw.rating", "weight": "raw.weight::FLOAT"}
    return ", ".join(f"{expressions[name]} AS {name}" for name in fact_names(config))


def fact_names(config: DataSettings) -> list[str]:
    """What counts of an interaction beside its user, item and row."""
    wanted = {
        "split": config.split.kind == "column",
        "strength": config.deduplicate == "strongest",
        "weight": config.weighs_events,
    }
    return ["time", *(name for name, counts in wanted.items() if counts)]


def filters(config: DataSettings, found: Loaded) -> dict[str, str]:
    """The conditions under which an interaction counts, by the reason why others are dropped."""
    filters = {}
    if config.min_rating is not None:
        filters["rating_below_minimum"] = f"COALESCE(rating >= {config.min_rating!r}, false)"
    if config.max_rating is not None:
        filters["rating_above_maximum"] = f"COALESCE(rating <= {config.max_rating!r}, false)"
    if config.events is not None:
        filters["event_type"] = "COALESCE(weight <> 0, false)"
    window, unit = config.time_window, found.unit or "s"
    if window.start is not None:
        filters["before_time_window"] = f"{found.time} >= {_in_unit(window.start, unit)}"
    if window.end is not None:
        filters["after_time_window"] = f"{found.time} < {_in_unit(window.end, unit)}"
    return filters


def _in_unit(instant: float | str, unit: str) -> str:
    """An instant as a number of the unit, exactly; a bound between two numbers is the upper one."""
    if not isinstance(instant, str):
        return repr(instant)
    since = datetime.fromisoformat(instant) - datetime.fromisoformat("1970-01-01T00:00:00+00:00")
    microseconds = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    number = Fraction(microseconds * 1000, UNITS[unit])
    return str(number.numerator // number.denominator if number.denominator == 1 else float(number))
