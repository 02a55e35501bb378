"""Ids of many users, as an Arrow array in place of Python strings."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class UserIds(Sequence[str]):
    """Ids in ``column``, a chunked array of strings: the bytes of an id and 4 more, and 8 more once one is searched."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.column = column

    @classmethod
    def of(cls, ids: Sequence[str]) -> UserIds:
        """Pack ``ids``."""
        return ids if isinstance(ids, UserIds) else cls(pa.chunked_array([pa.array(ids, pa.string())]))

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> UserIds: ...
    def __getitem__(self, row: int | slice) -> str | UserIds:
        if isinstance(row, slice):
            return UserIds(self.column[row])
        found: str = self.column[int(row)].as_py()
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def find(self, user_id: str) -> int | None:
        """Return the row of an id, ``None`` if it is not there."""
        at = bisect_left(self._order, user_id, key=lambda row: self[row])
        return int(self._order[at]) if at < len(self) and self[self._order[at]] == user_id else None

    @cached_property
    def _order(self) -> np.ndarray:
        return np.asarray(pc.sort_indices(self.column))
