"""Interactions of any size into one table: read, checked, filtered, numbered and in chronological order."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction

from pipelines.data import scans
from pipelines.data.cells import Cell, Fault, Time, first_fault, identifier, moment, number, words_of
from pipelines.data.engine import Engine, literal
from pipelines.data.files import File, on_this_machine
from pipelines.data.settings import DataSettings
from pipelines.ingest.rejects import Rejects
from setrec.data.schema import Schema
from setrec.data.splits import NAMES
from setrec.errors import DataError

UNITS = {"d": 86_400_000_000_000, "s": 1_000_000_000, "ms": 1_000_000, "us": 1000, "ns": 1}
"""Nanoseconds of each unit of time, the finest last."""


@dataclass
class Loaded:
    """Interactions as they were read. ``time``: the expression of a time over the table ``raw``; ``unit`` of it;
    ``rows``: how many there are, faulty ones among them; ``column``: which holds the times."""

    rows: int = 0
    time: str = "time"
    unit: str | None = None
    column: str = ""
    position: bool = False
    units: dict[int, str] = field(default_factory=dict)


def time_column(schema: Schema, names: list[str]) -> tuple[str, bool]:
    """The column of times or positions, stated or told by the ``names`` of a table's columns; and whether it is the
    latter."""
    by_name = schema.timestamp is None and "timestamp" not in names and "position" in names
    if schema.position is not None or by_name:
        return schema.position or "position", True
    return schema.timestamp or "timestamp", False


def load(engine: Engine, config: DataSettings, files: list[File], rejects: Rejects) -> Loaded:
    """Read all files into the table ``raw``, a row for every row of them.

    Raises:
        DataError: a file cannot be read, a column is missing or of a wrong type, there is no row, or too many cannot
            be used.
    """
    engine.run(
        "CREATE TABLE raw (file INTEGER, user VARCHAR, item VARCHAR, time BIGINT, real DOUBLE, instant BOOLEAN, "
        "rating DOUBLE, weight DOUBLE, split TINYINT, fault STRUCT(c VARCHAR, r VARCHAR))"
    )
    found = Loaded()
    for file in files:
        with on_this_machine(file, engine.scratch) as local:
            _load_file(engine, config, scans.layout(local), found)
    found.rows = engine.one("SELECT count(*) FROM raw")[0]
    if not found.rows:
        raise DataError("holds no rows", file=rejects.table)
    _one_sort_of_times(engine, found, config.columns.time_unit)
    rejects.collect("raw", found.rows)
    rejects.check()
    return found


def _load_file(engine: Engine, config: DataSettings, layout: scans.Layout, found: Loaded) -> None:
    schema = config.schema_in_use
    time, found.position = time_column(schema, layout.names)
    found.column = time
    optional = [schema.rating, schema.event, schema.split if config.split.kind == "column" else None]
    wanted = [schema.user, schema.item, time, *(name for name in optional if name is not None)]
    for name in wanted:
        if layout.path(name) is None and layout.names:
            raise layout.missing(name)
    file = layout.file.number

    def use(relation: str, cells: dict[str, Cell]) -> None:
        text = {column: f"t{at}" for at, column in enumerate(cells)}
        moments = moment(cells[time], text[time], schema.time_format, found.position)
        if moments.instant == "true":
            found.units[file] = cells[time].unit or "us"
        values, faults = _values(config, schema, cells, text, moments, time)
        texts = ", ".join(f"{cell.text} AS {text[column]}" for column, cell in cells.items())
        query = f"(SELECT *, {texts} FROM {relation})"
        for alias, step in moments.steps:
            query = f"(SELECT *, {step} AS {alias} FROM {query})"
        engine.run(f"INSERT INTO raw SELECT {file}, {values}, {first_fault(faults)} FROM {query}")

    scans.scan(engine, layout, list(dict.fromkeys(wanted)), use)


def _values(
    config: DataSettings, schema: Schema, cells: dict[str, Cell], text: dict[str, str], time: Time, time_name: str
) -> tuple[str, list[Fault]]:
    """The expressions of a row of ``raw`` between file and fault; and all faults, the first to be told first."""
    user, faults = identifier(cells[schema.user], text[schema.user])
    item, more = identifier(cells[schema.item], text[schema.item])
    faults = [*faults, *more, *time.faults]
    rating, weight, split = "NULL", "1", "0"
    if schema.rating is not None:
        rating, more = number(cells[schema.rating], text[schema.rating])
        faults += more
    if schema.event is not None and config.events is not None:
        event, more = identifier(cells[schema.event], text[schema.event], "event")
        cases = " ".join(f"WHEN {literal(name)} THEN {value!r}" for name, value in config.events.items())
        weight, faults = f"CASE {event} {cases} END", faults + more
        rating = weight if schema.rating is None else rating
    if schema.split is not None and schema.split in cells:
        words = {name: str(value) for name, value in NAMES.items()}
        split, more = words_of(cells[schema.split], text[schema.split], words, "split")
        faults += more
    return f"{user}, {item}, {time.whole}, {time.real}, {time.instant}, {rating}, {weight}, {split}", faults


def _one_sort_of_times(engine: Engine, found: Loaded, stated: str | None) -> None:
    """Times are all numbers or all dates, as most are; the others cannot be used. Dates of all files get one unit."""
    dates, numbers, first, reals, size = engine.one(
        "SELECT count(*) FILTER (instant), count(*) FILTER (NOT instant), arg_min(instant, rowid), count(real), "
        "median(abs(COALESCE(real, time::DOUBLE))) FROM raw WHERE fault IS NULL"
    )
    instants = dates > numbers or (dates == numbers and bool(first))
    if dates and numbers:
        shown = "make_timestamp(time)::VARCHAR" if not instants else "COALESCE(real::VARCHAR, time::VARCHAR)"
        hint = f" is no timestamp (most are {'dates' if instants else 'numbers'})"
        _refuse(engine, found, f"instant <> {str(instants).lower()}", f"'''' || {shown} || '''' || {literal(hint)}")
        reals = 0 if instants else reals
    if instants:
        read = engine.all("SELECT DISTINCT file FROM raw WHERE fault IS NULL")
        found.unit = max({found.units.get(file, "us") for (file,) in read}, key=list(UNITS).index)
        for file, unit in found.units.items():
            if (factor := UNITS[unit] // UNITS[found.unit]) > 1:
                where = f"file = {file} AND abs(time::HUGEINT) > {(2**63 - 1) // factor}"
                _refuse(
                    engine, found, where, f"'a date is out of range for the unit {found.unit}: ' || time || ' {unit}'"
                )
                engine.run(f"UPDATE raw SET time = time * {factor} WHERE file = {file} AND fault IS NULL")
    elif not found.position and size is not None:
        # Until the year 5138 seconds have no more than 11 digits, and 10 of them are the year 2001 in any unit.
        found.unit = stated or ("s" if size < 1e11 else "ms" if size < 1e14 else "us" if size < 1e17 else "ns")
    if reals:
        found.time = "COALESCE(real, time::DOUBLE)"


def _refuse(engine: Engine, found: Loaded, where: str, reason: str) -> None:
    fault = f"struct_pack(c := {literal(found.column)}, r := {reason})"
    engine.run(f"UPDATE raw SET fault = {fault} WHERE fault IS NULL AND {where}")


def order(engine: Engine, config: DataSettings, found: Loaded, rejects: Rejects) -> dict[str, int]:
    """Make the table ``users`` (``id``, in the order in which they are met; the code of a user is its ``rowid``) and
    the table ``ordered`` (``user`` and ``item`` codes, ``time``, ``split``, ``strength``, ``row``): what is left of
    ``raw``, by user and time. Returns how many interactions were dropped for which reason.

    Raises:
        DataError: items are unknown and to be refused.
    """
    engine.run(
        "CREATE TABLE users AS SELECT user AS id, min(rowid) AS met FROM raw WHERE fault IS NULL "
        "GROUP BY user ORDER BY met"
    )
    filters = _filters(config, found)
    counts, passed = [], "fault IS NULL"
    for condition in filters.values():
        counts.append(f"count(*) FILTER ({passed} AND NOT ({condition}))")
        passed = f"{passed} AND ({condition})"
    *cut, kept = engine.one(f"SELECT {''.join(f'{count}, ' for count in counts)}count(*) FILTER ({passed}) FROM raw")
    dropped = dict(zip(filters, cut, strict=True))
    strength = "raw.rating" if config.deduplicate == "strongest" else "NULL::DOUBLE"
    engine.run(
        "CREATE TABLE ordered AS SELECT users.rowid::INTEGER AS user, items.rowid::INTEGER AS item, "
        f"{found.time} AS time, raw.split AS split, {strength} AS strength, raw.rowid AS row "
        f"FROM raw JOIN users ON raw.user = users.id JOIN items ON raw.item = items.id WHERE {passed} "
        "ORDER BY 1, 3, raw.rowid"
    )
    dropped["unknown_item"] = unknown = kept - engine.one("SELECT count(*) FROM ordered")[0]
    if unknown and config.unknown_items == "refuse":
        dropped["unknown_item"] = 0
        reason = (
            f"'unknown item ''' || raw.item || ''': ' || {literal(rejects.items)} || ' does not hold it "
            "(data.unknown_items: refuse; drop leaves such rows out)'"
        )
        fault = f"struct_pack(c := {literal(config.columns.item)}, r := {reason})"
        unheld = f"{passed} AND NOT EXISTS (SELECT 1 FROM items WHERE items.id = raw.item)"
        rejects.collect("raw", found.rows, fault, unheld)
        rejects.check()
    engine.run("DROP TABLE raw")
    return dropped


def _filters(config: DataSettings, found: Loaded) -> dict[str, str]:
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
