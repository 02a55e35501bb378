"""SQL that converts cells of a scan to ids, numbers and instants, and gives the reason for those it cannot use."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.data.engine import literal
from setrec.errors import DataError

MAX_ID = 256
"""Maximum number of characters of an id; no route of the endpoint accepts longer ones."""
_NUMBER = r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*"
_ZONE = r"\s*(Z|z|UTC|[+-][0-9]{2}(:?[0-9]{2})?)?"
_ISO = (
    rf"\s*[+-]?[0-9]{{4,6}}-[0-9]{{1,2}}-[0-9]{{1,2}}([T ][0-9]{{1,2}}:[0-9]{{2}}(:[0-9]{{2}}(\.[0-9]+)?)?{_ZONE})?\s*"
)
_BLANK, _CONTROL = r"[\s\p{Z}]*", r"[\x00-\x1f\x7f]"
_LARGEST = "9223372036854775807"
_INSTANTS = {
    "d": "DATE '1970-01-01' + {}::INTEGER", "s": "make_timestamp({} * 1000000)", "ms": "make_timestamp({} * 1000)",
    "us": "make_timestamp({})", "ns": "make_timestamp_ns({})",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A column of a scan. ``sql``: its expression; ``kind``: ``text``, ``json`` (values of any type as JSON),
    ``whole``, ``real``, ``instant`` (whole numbers of ``unit``) or ``other``; ``type``: the file's name for its type.

    ``file`` and ``column`` are for messages.
    """

    file: str
    column: str
    sql: str
    kind: str
    type: str = ""
    unit: str = ""

    @property
    def text(self) -> str:
        """Return the expression of the value as text; NULL if it is missing."""
        return f"({self.sql} ->> '$')" if self.kind == "json" else f"CAST({self.sql} AS VARCHAR)"

    def missing(self, text: str) -> str:
        """Return the condition under which there is no value; ``text`` names the cell's text in the query."""
        # Numbers and dates need not be converted to text for this.
        return f"{text if self.kind == 'json' else self.sql} IS NULL"

    def wrong(self, expected: str) -> DataError:
        """Return the error for a column of an unusable type."""
        return DataError(f"wrong type: {self.type or self.kind} where {expected} are expected", file=self.file,
                         column=self.column)  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """A condition under which a row cannot be used, and the reason; both are expressions of SQL."""

    column: str
    when: str
    reason: str


def first_fault(faults: list[Fault]) -> str:
    """Return the expression of a row's first fault, a struct of column ``c`` and reason ``r``; the scan's comes
    first."""
    cases = " ".join(
        f"WHEN {fault.when} THEN struct_pack(c := {literal(fault.column)}, r := {fault.reason})" for fault in faults
    )
    return f"CASE WHEN fault IS NOT NULL THEN struct_pack(c := NULL::VARCHAR, r := fault) {cases} END"


def _matches(text: str, pattern: str) -> str:
    return f"regexp_full_match({text}, {literal(pattern)})"


def _shown(text: str) -> str:
    """Return a value for messages: quoted, on one line, truncated."""
    return f"('''' || regexp_replace(left({text}, 100), '[\\x00-\\x1f]', '?', 'g') || '''')"


def _wrong_json(cell: Cell, name: str, kinds: tuple[str, ...], expected: str) -> list[Fault]:
    if cell.kind != "json":
        return []
    listed = ", ".join(map(literal, kinds))
    reason = f"'wrong type: ' || lower(json_type({cell.sql})) || ' where {expected} are expected'"
    return [Fault(name, f"json_type({cell.sql}) IN ({listed})", reason)]


def identifier(cell: Cell, text: str, what: str = "id") -> tuple[str, list[Fault]]:
    """Return the expression of an id, and its faults; ``text`` names the cell's text in the query.

    Whole numbers are ids, also as floats: ``12.0``, as pandas writes it, is the id 12.

    Raises:
        DataError: the type of the column cannot contain ids.
    """
    if cell.kind not in ("text", "json", "whole", "real"):
        raise cell.wrong("text or whole numbers")
    column = cell.column
    floating = f"suffix({text}, '.0') AND {_matches(text, '-?[0-9]+[.]0')}"
    value = f"CASE WHEN {floating} THEN left({text}, length({text}) - 2) ELSE {text} END"
    faults = [
        Fault(column, cell.missing(text), f"'the {what} is missing'"),
        *_wrong_json(cell, column, ("ARRAY", "OBJECT", "BOOLEAN"), "text or whole numbers"),
    ]
    if cell.kind == "real":
        number = f"CAST({cell.sql} AS DOUBLE)"
        value = f"CAST(TRY_CAST({number} AS BIGINT) AS VARCHAR)"
        faults.append(Fault(column, f"isnan({number})", f"'the {what} is missing'"))
        whole = f"isfinite({number}) AND {number} = trunc({number}) AND abs({number}) <= 9007199254740992"
        faults.append(
            Fault(column, f"NOT ({whole})", f"{_shown(text)} || ' is not a valid {what}: a fraction, or beyond 2^53'")
        )
    elif cell.kind == "json":
        fraction = f"json_type({cell.sql}) = 'DOUBLE' AND NOT {_matches(text, '-?[0-9]+([.]0)?')}"
        faults.append(
            Fault(column, fraction, f"{_shown(text)} || ' is not a valid {what}: a fraction, or beyond 2^53'")
        )
    if cell.kind in ("text", "json"):
        blank, long = _matches(text, _BLANK), f"length({text}) > {MAX_ID}"
        control = f"regexp_matches({text}, {literal(_CONTROL)})"
        reason = (
            f"CASE WHEN {blank} THEN 'the {what} is blank' WHEN {long} THEN 'the {what} has more than {MAX_ID} "
            f"characters' ELSE {_shown(text)} || ' holds a control character' END"
        )
        # One pattern excludes the three faults for nearly all ids.
        usual = _matches(text, f"[!-~]{{1,{MAX_ID}}}")
        faults.append(Fault(column, f"NOT {usual} AND ({blank} OR {long} OR {control})", reason))
        faults.append(Fault(column, f"{text} IN ('.', '..')", f"{_shown(text)} || ' cannot be part of a URL'"))
    return value, faults


def instant_text(sql: str, unit: str) -> str:
    """Return the expression of an instant, a whole number of ``unit``, as text; NULL beyond the years of DuckDB."""
    return f"TRY(({_INSTANTS[unit].format(sql)})::VARCHAR)"


def words_of(cell: Cell, text: str, words: dict[str, str], what: str) -> tuple[str, list[Fault]]:
    """Return the expression of a word in any case, replaced by its SQL expression in ``words``; and its faults."""
    word = f"lower(trim({text}))"
    cases = " ".join(f"WHEN {literal(name)} THEN {value}" for name, value in words.items())
    value = f"CASE {word} {cases} END"
    return value, [
        Fault(cell.column, cell.missing(text), f"'the {what} is missing'"),
        Fault(cell.column, f"{value} IS NULL", f"{_shown(text)} || ' is not a valid {what} (train, valid, test)'"),
    ]


def number(cell: Cell, text: str) -> tuple[str, list[Fault]]:
    """Return the expression of a finite number, a double, and its faults.

    Raises:
        DataError: the type of the column cannot contain numbers.
    """
    missing = Fault(cell.column, cell.missing(text), "'the number is missing'")
    if cell.kind in ("whole", "real"):
        value = f"CAST({cell.sql} AS DOUBLE)"
        return value, [missing, Fault(cell.column, f"NOT isfinite({value})", f"{text} || ' is not a finite number'")]
    if cell.kind not in ("text", "json"):
        raise cell.wrong("numbers")
    value = f"CASE WHEN {_matches(text, _NUMBER)} THEN TRY_CAST({text} AS DOUBLE) END"
    bad = f"{value} IS NULL OR NOT isfinite({value})"
    return value, [missing, Fault(cell.column, bad, f"{_shown(text)} || ' is not a number'")]


@dataclass(frozen=True)
class Time:
    """Expressions of a time: ``whole`` (int64), ``real`` if int64 cannot hold it, ``instant``: whether it is a date.

    They refer to the names of ``steps``, expressions to evaluate in this order.
    """

    whole: str
    real: str
    instant: str
    faults: list[Fault]
    steps: tuple[tuple[str, str], ...] = ()


def moment(cell: Cell, text: str, pattern: str | None, position: bool) -> Time:
    """Return a time: a number, an instant of the file's own type, or text that is a number, ISO 8601 or of ``pattern``.

    Raises:
        DataError: the type of the column cannot contain times.
    """
    what = "number" if position else "timestamp"
    missing = Fault(cell.column, cell.missing(text), f"'the {what} is missing'")
    if cell.kind == "instant" and not position:
        return Time(cell.sql, "NULL::DOUBLE", "true", [missing])
    if cell.kind == "whole":
        value = f"TRY_CAST({cell.sql} AS BIGINT)"
        beyond = Fault(cell.column, f"{value} IS NULL", f"'a number is out of range: ' || {text}")
        return Time(value, "NULL::DOUBLE", "false", [missing, beyond])
    if cell.kind == "real":
        return Time(
            *_exact("x_real"), "false", [missing, *_within(cell, text)], (("x_real", f"CAST({cell.sql} AS DOUBLE)"),)
        )
    if cell.kind not in ("text", "json"):
        raise cell.wrong("numbers or dates")
    faults = [missing, *_wrong_json(cell, cell.column, ("ARRAY", "OBJECT", "BOOLEAN"), "numbers or dates")]
    if pattern is not None and not position:
        reason = f"{_shown(text)} || {literal(' is not a timestamp of the pattern ' + pattern)}"
        unfit = Fault(cell.column, f"x_date IS NULL OR abs(x_date) = {_LARGEST}", reason)
        date = f"epoch_us(try_strptime({text}, {literal(pattern)}))"
        return Time("x_date", "NULL::DOUBLE", "true", [*faults, unfit], (("x_date", date),))
    return _time_of_text(cell, text, position, faults)


def _time_of_text(cell: Cell, text: str, position: bool, faults: list[Fault]) -> Time:
    integer = f"TRY_CAST({text} AS BIGINT)"
    real = f"CASE WHEN x_whole IS NULL AND {_matches(text, _NUMBER)} THEN TRY_CAST({text} AS DOUBLE) END"
    iso = f"x_whole IS NULL AND x_real IS NULL AND {_matches(text, _ISO)}"
    date = f"CASE WHEN {iso} THEN epoch_us(TRY_CAST({text} AS TIMESTAMPTZ)) END"
    steps = (
        ("x_whole", f"CASE WHEN CAST({integer} AS VARCHAR) = {text} THEN {integer} END"),
        ("x_real", real),
        ("x_date", "NULL::BIGINT" if position else date),
    )
    hint = " is not a number" if position else " is not a timestamp (a number or ISO 8601)"
    unfit = Fault(
        cell.column, "COALESCE(x_whole::DOUBLE, x_real, x_date::DOUBLE) IS NULL", f"{_shown(text)} || {literal(hint)}"
    )
    whole, rest = _exact("x_real")
    instant = "x_whole IS NULL AND x_real IS NULL"
    return Time(f"COALESCE(x_whole, {whole}, x_date)", rest, instant, [*faults, unfit, *_within(cell, text)], steps)


def _exact(real: str) -> tuple[str, str]:
    """Return a double as a whole number if int64 holds it exactly, otherwise the double."""
    exact = f"{real} = trunc({real}) AND abs({real}) <= 9007199254740992"
    return f"CASE WHEN {exact} THEN TRY_CAST({real} AS BIGINT) END", f"CASE WHEN NOT ({exact}) THEN {real} END"


def _within(cell: Cell, text: str) -> list[Fault]:
    return [
        Fault(cell.column, "NOT isfinite(x_real)", f"{text} || ' is not a finite number'"),
        Fault(cell.column, f"abs(x_real) >= {_LARGEST}", f"'a number is out of range: ' || {text}"),
    ]
