"""Search of items by title."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serving.engine.state import State


class TitleSearch:
    """Case-insensitive search of texts in titles; the bundle's titles are one Arrow array."""

    def __init__(self, titles: list[str], counts: np.ndarray) -> None:
        """``counts``: training interactions of each item, which order the results."""
        self._titles, self._counts = pa.array(titles, pa.large_string()), counts

    def find(self, state: State, text: str, limit: int) -> list[int]:
        """Return up to ``limit`` rows of current items, live ones first, then those with most interactions."""
        wanted = text.casefold()
        live = [state.items.find(item_id) for item_id, item in state.fields.items() if wanted in item.title.casefold()]
        found = [row for row in reversed(live) if row is not None][:limit]
        matches = pc.match_substring(self._titles, text, ignore_case=True).to_numpy(zero_copy_only=False)
        matches &= state.index.alive[: len(matches)]
        rows = np.flatnonzero(matches)
        rows = rows[np.argsort(-self._counts[rows], kind="stable")]
        others: list[int] = rows[: limit - len(found)].tolist()
        return found + others
