"""Processing of plain cells of words by column in Arrow: the same result as one by one, about twenty times faster.

A cell is plain if it is missing, a whole number, a string, or a list of strings, each without escapes, without blanks
at its ends or two in a row, and, if it is split into values, without markup or separators.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from setrec.data.item_texts import TextColumns, label

_OTHER = r"\x{a1}-\x{167f}\x{3001}-\x{d7ff}"
"""Beyond ASCII: letters of most scripts, without blanks."""
_SIGN = rf"[!#-\[\]-~{_OTHER}]"
_SIGN_WITHOUT_MARKUP = rf"[!#-%'-;=-\[\]-~{_OTHER}]"


def rows(cells: Mapping[str, pa.Array], words: TextColumns, count: int) -> pa.BooleanArray:
    """Return whether every cell of a row is plain, bool (count,)."""
    sign = _SIGN_WITHOUT_MARKUP if words.strip_html else _SIGN
    string = f'"{sign}+( {sign}+)*"'
    pattern = rf"^(-?[0-9]{{1,15}}|{string}|\[{string}(, ?{string})*\])$"
    plain = pa.array(np.ones(count, bool))
    separators = dict(zip(words.attributes, words.separators, strict=True))
    for name, cell in cells.items():
        fits = pc.match_substring_regex(cell, pattern)
        if separator := separators.get(name):
            parted = pc.and_(pc.match_substring(cell, separator), pc.invert(pc.starts_with(cell, "[")))
            fits = pc.and_(fits, pc.invert(parted))
        plain = pc.and_(plain, pc.fill_null(fits, True))
    return plain


def table(ids: pa.Array, cells: Mapping[str, pa.Array], words: TextColumns) -> pa.Table:
    """Return the rows of a catalogue whose ``cells`` are all plain."""
    values = {name: _distinct(_strings(cell)) for name, cell in cells.items()}
    lines = {name: pc.binary_join(each, ", ") for name, each in values.items()}
    title = lines[words.text[0]] if words.text else ids
    parts = [_unless_empty(lines[name], pc.utf8_rtrim(lines[name], ".")) for name in words.text]
    parts += [
        _unless_empty(lines[name], pc.binary_join_element_wise(f"{label(name)}: ", lines[name], ""))
        for name in words.attributes
    ]
    text = pa.nulls(len(ids), pa.string())
    for part in parts:  # null_handling="skip" loses rows in which all are null
        text = pc.coalesce(pc.binary_join_element_wise(text, part, ". "), text, part)
    columns = {"item_id": ids, "title": pc.if_else(pc.equal(title, ""), ids, title), "text": pc.fill_null(text, "")}
    return pa.table(columns | {f"attribute:{name}": values[name] for name in words.attributes})


def _unless_empty(line: pa.Array, part: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(line, ""), pa.scalar(None, pa.string()), part)


def _strings(cell: pa.Array) -> pa.ListArray:
    """Return the strings of each cell: those of its list, its single one, or none if it is missing."""
    inner = pc.utf8_slice_codeunits(cell, 1, -1)
    text = pc.case_when(
        pc.make_struct(pc.starts_with(cell, "["), pc.starts_with(cell, '"')),
        pc.utf8_slice_codeunits(cell, 2, -2), inner, cell,
    )  # fmt: skip
    parted = pc.split_pattern_regex(pc.cast(text, pa.string()), '", ?"')
    lengths = pc.fill_null(pc.list_value_length(parted), 0).to_numpy()
    return pa.ListArray.from_arrays(pa.array(np.r_[0, np.cumsum(lengths)], pa.int32()), parted.flatten())


def _distinct(lists: pa.ListArray) -> pa.ListArray:
    """Return lists without duplicates."""
    lengths = pc.list_value_length(lists).to_numpy()
    codes = lists.values.dictionary_encode().indices.to_numpy()
    row = np.repeat(np.arange(len(lists), dtype=np.int64), lengths)
    _, first = np.unique(row * (len(codes) + 1) + codes, return_index=True)
    if len(first) == len(codes):
        return lists
    first.sort()
    offsets = np.r_[0, np.cumsum(np.bincount(row[first], minlength=len(lists)))]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), lists.values.take(pa.array(first)))
