"""SQL that reads files of interactions into checked rows of the table ``raw`` and selects those that count.

Both engines execute it, one over whole tables, the other over parts.
"""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction

import numpy as np
import pandas as pd

from pipelines.data import scans
from pipelines.data.cells import Cell, Fault, Time, first_fault, identifier, instant_text, moment, number, words_of
from pipelines.data.engine import DuckDbEngine, literal
from pipelines.data.files import EmptyFileError, File, on_this_machine
from pipelines.data.settings import DataSettings
from setrec.data.schema import Schema
from setrec.data.splits import NAMES

UNITS = {"d": 86_400_000_000_000, "s": 1_000_000_000, "ms": 1_000_000, "us": 1000, "ns": 1}
"""Nanoseconds per unit of time, the finest last."""


_EPOCHS = (("s", 1e11), ("ms", 1e14), ("us", 1e17))
"""Upper bounds of numbers in each unit: until the year 5138 seconds have at most 11 digits, and those with 10 start in
the year 2001 in any unit; larger numbers are nanoseconds."""


@dataclass
class Loaded:
    """Facts about all rows. ``rows`` of each file, int64; ``rejected``: whether any cannot be used; ``time``: the
    expression of a time; ``unit`` of it; ``instants``: whether times are dates; ``mixed``: whether some differ from
    ``instants``; ``finer``: units of dates and their factors to ``unit``; ``column``: the column of times."""

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
        """Return the number of rows before each file, int64."""
        before: np.ndarray = np.cumsum(self.rows) - self.rows
        return before


def time_column(schema: Schema, names: list[str]) -> tuple[str, bool]:
    """Return the column of times or positions, as configured or inferred from the ``names`` of columns; and whether it
    contains positions."""
    by_name = schema.timestamp is None and "timestamp" not in names and "position" in names
    if schema.position is not None or by_name:
        return schema.position or "position", True
    return schema.timestamp or "timestamp", False


def create(engine: DuckDbEngine, config: DataSettings) -> None:
    """Make the empty table ``raw`` for all rows read, with their ``fault`` if any.

    ``real`` holds times that ``time`` cannot; ``instant``: whether a time is a date, then of ``unit``, which is
    ``position`` for a column of positions. ``rating``, ``weight`` and ``split`` exist if the settings use them.
    """
    # A constant column costs as much to write as any other.
    counted = "".join(f", {name} {type_}" for name, type_ in _counted(config).items())
    engine.run(f"CREATE TYPE time_unit AS ENUM ({', '.join(map(literal, (*UNITS, 'position')))})")
    engine.run(
        "CREATE TABLE raw (file INTEGER, user VARCHAR, item VARCHAR, time BIGINT, real DOUBLE, instant BOOLEAN, "
        f"unit time_unit{counted}, fault STRUCT(c VARCHAR, r VARCHAR))"
    )


def _counted(config: DataSettings) -> dict[str, str]:
    """Return the columns of ``raw`` that only some settings need, with their types."""
    wanted = {
        "rating": config.schema_in_use.rating is not None or config.events is not None,
        "weight": config.events is not None,
        "split": config.split.kind == "column",
    }
    types = {"rating": "DOUBLE", "weight": "DOUBLE", "split": "TINYINT"}
    return {name: types[name] for name, counts in wanted.items() if counts}


def read(engine: DuckDbEngine, config: DataSettings, files: list[File], *, alone: bool) -> None:
    """Append a row to ``raw`` for every row of the files, in their order; ``alone``: they are the whole table in one
    file, which must not be empty.

    Raises:
        DataError: a file cannot be read, or a column is missing or of a wrong type.
    """
    for alike in scans.alike(files):
        with (
            nullcontext() if alone else suppress(EmptyFileError),
            on_this_machine(alike[0], engine.scratch) as local,
        ):
            _read(engine, config, scans.layout(local, alike[1:]))


def _read(engine: DuckDbEngine, config: DataSettings, layout: scans.Layout) -> None:
    schema = config.schema_in_use
    time, position = time_column(schema, layout.names)
    optional = [schema.rating, schema.event, schema.split if config.split.kind == "column" else None]
    wanted = [schema.user, schema.item, time, *(name for name in optional if name is not None)]
    if layout.names and (lacking := layout.lacking(wanted)):
        raise layout.missing(lacking[0])

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
    """Return the expressions of a row of ``raw`` between file and fault; and all faults in order of precedence."""
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
"""The query of a part of ``raw`` for :func:`time_facts`."""


def time_facts(config: DataSettings, counts: pd.DataFrame, files: int) -> Loaded:
    """Return the facts from the ``counts`` of all parts of ``raw`` (see :data:`COUNTS`).

    Times are all numbers or all dates, like the majority; dates of all files get the finest of their units.
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
    """Convert the times of ``raw``, a part or all of it, to the unit of ``found``; others are marked as faults."""
    if found.mixed:
        dates = " ".join(f"WHEN {literal(unit)} THEN {instant_text('time', unit)}" for unit in UNITS)
        number = "COALESCE(real::VARCHAR, time::VARCHAR)"
        shown = number if found.instants else f"COALESCE(CASE unit::VARCHAR {dates} END, {number})"
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


def row_condition(config: DataSettings, found: Loaded) -> str:
    """Return the condition under which a row of ``raw`` counts, independent of its item."""
    return " AND ".join(["fault IS NULL", *(f"({condition})" for condition in filters(config, found).values())])


def cuts(config: DataSettings, found: Loaded) -> str:
    """Return the query of how many rows of ``raw`` each filter drops, after the previous ones, and how many are
    left."""
    counts, before = [], "fault IS NULL"
    for reason, condition in filters(config, found).items():
        counts.append(f"count(*) FILTER ({before} AND NOT ({condition})) AS {reason}")
        before = f"{before} AND ({condition})"
    return f"SELECT {', '.join([*counts, f'count(*) FILTER ({before}) AS kept'])} FROM raw"


def unknown_item(config: DataSettings, items: str) -> str:
    """Return the expression of the fault of a row whose item is not in the table ``items``."""
    reason = (
        f"'unknown item ''' || raw.item || ''': ' || {literal(items)} || ' does not hold it "
        "(data.unknown_items: refuse; drop leaves such rows out)'"
    )
    return f"struct_pack(c := {literal(config.columns.item)}, r := {reason})"


def facts(config: DataSettings, found: Loaded) -> str:
    """Return the columns :func:`fact_names` of an interaction: expressions over ``raw``."""
    expressions = {"time": found.time, "split": "raw.split", "strength": "raw.rating", "weight": "raw.weight::FLOAT"}
    return ", ".join(f"{expressions[name]} AS {name}" for name in fact_names(config))


def fact_names(config: DataSettings) -> list[str]:
    """Return the names of the columns of an interaction other than user, item and row."""
    wanted = {
        "split": config.split.kind == "column",
        "strength": config.deduplicate == "strongest",
        "weight": config.weighs_events,
    }
    return ["time", *(name for name, counts in wanted.items() if counts)]


def filters(config: DataSettings, found: Loaded) -> dict[str, str]:
    """Return the conditions under which an interaction counts, by the reason why others are dropped."""
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
    """Return an instant as an exact number of the unit; a bound between two numbers is rounded up."""
    if not isinstance(instant, str):
        return repr(instant)
    since = datetime.fromisoformat(instant) - datetime.fromisoformat("1970-01-01T00:00:00+00:00")
    microseconds = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    number = Fraction(microseconds * 1000, UNITS[unit])
    return str(number.numerator // number.denominator if number.denominator == 1 else float(number))
