"""Reading of text files line by line, with a reason for each unusable row, for files that DuckDB's readers refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import TextIOWrapper
from itertools import islice
from typing import Any

from pipelines.data.files import File

Row = tuple[list[Any] | None, str]
"""The fields of a row, or the reason why it cannot be used."""
LONGEST = 16_000_000
"""Maximum characters of a line; also of all lines of a quoted field together."""
_OPEN_LINES = 10_000
"""Maximum lines of a quoted field."""
BAD_TEXT = "not UTF-8 text"


def lines(file: File) -> Iterator[str]:
    """Yield the non-empty lines without their ends. Each character represents a byte, so invalid UTF-8 is included.

    A line of more than :data:`LONGEST` characters is cut, so that it cannot be mistaken for a whole one.
    """
    with file.open() as source, TextIOWrapper(source, encoding="latin-1") as text:
        first = True
        while line := text.readline(LONGEST + 1):
            rest = line
            while len(rest) > LONGEST and not rest.endswith("\n"):
                rest = text.readline(LONGEST + 1)
            if first:
                line, first = line.removeprefix("\xef\xbb\xbf"), False
            if line := line.removesuffix("\n"):
                yield line


def decoded(text: str) -> str | None:
    """Return bytes represented as characters, decoded as UTF-8; ``None`` if they are invalid."""
    if text.isascii():
        return text
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return None


def delimited(file: File, delimiter: str, quote: str | None) -> Iterator[Row]:
    """Yield the records of a file of delimited text, including the header; fields are bytes represented as characters.

    A quote that is not closed invalidates only its own line; reading continues with the next.
    """
    delimiter = delimiter.encode().decode("latin-1")
    waiting: list[str] = []
    source = lines(file)
    while (line := waiting.pop() if waiting else next(source, None)) is not None:
        if len(line) > LONGEST:
            yield None, f"a line of more than {LONGEST} characters"
            continue
        if quote is None or quote not in line:
            yield line.split(delimiter), ""
            continue
        fields, reason = split(line, delimiter, quote), ""
        taken: list[str] = []
        size = len(line)
        while fields is None and size <= LONGEST and len(taken) < _OPEN_LINES:  # a quoted field may hold line breaks
            more = waiting.pop() if waiting else next(source, None)
            if more is None:
                break
            taken.append(more)
            size += len(more)
            if quote in more:
                fields = split("\n".join([line, *taken]), delimiter, quote)
        if fields is None or isinstance(fields, str):
            reason = fields or "a quote is not closed"
            waiting.extend(reversed(taken))
            yield None, reason
        else:
            yield fields, ""


def split(record: str, delimiter: str, quote: str) -> list[str] | str | None:
    """Return the fields of a record; ``None`` if a quote is open at its end; a reason if the record is invalid."""
    fields, at = [], 0
    while True:
        if record.startswith(quote, at):
            at, parts = at + 1, []
            while True:
                end = record.find(quote, at)
                if end < 0:
                    return None
                parts.append(record[at:end])
                at = end + 1
                if not record.startswith(quote, at):
                    break
                parts.append(quote)
                at += 1
            fields.append("".join(parts))
            if at == len(record):
                return fields
            if not record.startswith(delimiter, at):
                return "text after a closing quote"
        else:
            end = record.find(delimiter, at)
            if end < 0:
                return [*fields, record[at:]]
            fields.append(record[at:end])
            at = end
        at += len(delimiter)


def rows_of_text(file: File, delimiter: str, quote: str | None, names: list[str], header: bool, wanted: list[str]
) -> Iterator[Row]:  # fmt: skip
    """Yield the ``wanted`` fields of each data row, as text; an empty one is ``None``."""
    at = [names.index(name) for name in wanted]
    there = "the header has" if header else "there are"
    for fields, reason in islice(delimited(file, delimiter, quote), int(header), None):
        if fields is None:
            yield None, reason
            continue
        if len(fields) == len(names) + 1 and not fields[-1]:
            fields.pop()  # a delimiter at the end of the line, which DuckDB also accepts
        if len(fields) != len(names):
            yield None, f"{len(fields)} values where {there} {len(names)} columns"
            continue
        values = [decoded(fields[i]) for i in at]
        yield (None, BAD_TEXT) if None in values else ([value or None for value in values], "")


def rows_of_json(file: File, wanted: list[str]) -> Iterator[Row]:
    """Yield the ``wanted`` members of the object on each line, as JSON; a missing one is ``None``."""
    for line in lines(file):
        if not line.strip():
            continue
        yield _object(line, wanted)


def _object(line: str, wanted: list[str]) -> Row:
    text = decoded(line)
    if text is None:
        return None, BAD_TEXT
    if len(line) > LONGEST:
        return None, f"a line of more than {LONGEST} characters"
    try:
        record = json.loads(text, parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        return None, f"malformed JSON ({error.msg} at character {error.pos + 1})"
    except (RecursionError, ValueError) as error:
        return None, f"malformed JSON ({type(error).__name__})"
    if not isinstance(record, dict):
        return None, f"expected a JSON object, found {type(record).__name__}"
    try:
        values = [None if record.get(name) is None else json.dumps(record[name], ensure_ascii=False) for name in wanted]
        "".join(value for value in values if value is not None).encode()
    except UnicodeEncodeError:
        return None, "half of a character (a lone surrogate)"
    return values, ""
