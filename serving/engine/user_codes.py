"""User codes from the model, with a cache of what it has read of each user's history."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from serving.bundle.reader import Bundle
from serving.retrieval.code_table import CodeTable
from serving.telemetry import metrics
from setrec.data.events import read
from setrec.models.inference.history_pass import InferencePass, States, can_read
from setrec.ragged import Ragged

_INPUT_BYTES = 1 << 26
"""Bytes of the items' inputs to the model up to which they are held, 64 MiB; of larger catalogues they are computed for
every request, a third more of the time to read a history."""


class _Entry(NamedTuple):
    """Item ``rows``, int32 (k,), as the model has read them, and their ``states``: keys and values."""

    rows: np.ndarray
    states: States

    @property
    def bytes(self) -> int:
        return self.rows.nbytes + sum(own.nbytes for own in self.states)

    def first(self, items: int) -> States:
        """Return the keys and values of the first ``items``."""
        rest = len(self.rows) - items
        return tuple(own[:, :, : own.shape[2] - rest] for own in self.states)


class UserCodes:
    """Reads histories. With a cache, only the items of a user's history that follow those read before are read.

    The cache has one entry per user, and the least recently used ones are dropped. An entry serves any history with the
    same first rows: keys and values depend on rows in their order only, because an item put again gets a new row. The
    rest is read, so a history that a late event, an erased event or the window of ``max_items`` has changed in an early
    place is read whole. Not thread-safe: the engine's lock protects it.
    """

    def __init__(self, bundle: Bundle, cache_bytes: int = 0) -> None:
        """``cache_bytes``: size of the cache, 0 for none; there is none if :class:`InferencePass` cannot read with the
        model."""
        self._model, self._weights = bundle.model, bundle.manifest.scorer.slots
        self._pass = InferencePass(bundle.model, self._weights) if can_read(bundle.model) else None
        self._limit = 0 if self._pass is None else cache_bytes
        held = self._pass is not None and len(bundle.codes) * self._pass.input_bytes <= _INPUT_BYTES
        self._codes = np.asarray(bundle.codes)
        self._inputs = self._pass.inputs(self._codes.copy()) if self._pass is not None and held else None
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._erased: set[str] = set()
        self._bytes = 0

    def of(self, histories: Ragged, table: CodeTable, users: Sequence[str | None] = ()) -> np.ndarray:
        """Return user codes, float32 (B, D), of histories of rows of ``table``.

        ``users``: whose histories they are, to read and write the cache; ``None`` or none at all: of no user. The model
        receives only the codes of the histories' items, not the whole table.
        """
        latest = Ragged.of([rows[-self._model.max_items :] for rows in read(histories)])
        if self._inputs is not None and latest.values.max(initial=-1) < len(self._codes):
            codes, own, inputs = self._codes, latest, self._inputs
        else:
            rows, place = np.unique(latest.values, return_inverse=True)
            codes, own, inputs = table.take(rows), Ragged(place, latest.offsets), None
        if self._pass is None:
            with torch.inference_mode():
                return self._model.user_codes(own, self._weights, torch.from_numpy(codes)).float().numpy()
        if not self._limit or all(user is None for user in users):
            return self._pass.user_codes(own, codes, inputs=inputs)[0]
        known = [self._known(user, history) for user, history in zip(users, latest, strict=True)]
        found, states = self._pass.user_codes(own, codes, known, keep=True, inputs=inputs)
        for user, history, whole, before in zip(users, latest, states, known, strict=True):
            if user is not None:
                metrics.USER_CACHE.labels("miss" if before is None else "hit").inc()
                self._put(user, _Entry(history.copy(), whole))
        return found

    def erase(self, user: str) -> None:
        """Drop what was read of a user. A request under way may still hold the history, so no more of it is cached."""
        self._erased.add(user)
        self._drop(user)

    def clear(self) -> None:
        """Drop everything: rows have new numbers."""
        for user in list(self._entries):
            self._drop(user)

    def close(self) -> None:
        """Drop everything, and cache no more."""
        self._limit = 0
        self.clear()

    def _known(self, user: str | None, rows: np.ndarray) -> States | None:
        """Return the keys and values of the first of ``rows``, but the last; ``None`` if there are none of half of
        them: a long rest beside short ones would make a batch longer than reading it whole does."""
        entry = None if user is None else self._entries.get(user)
        if entry is None:
            return None
        both = min(len(entry.rows), len(rows) - 1)
        same = int(np.append(entry.rows[:both] == rows[:both], False).argmin())
        return entry.first(same) if len(rows) <= 2 * same else None

    def _put(self, user: str, entry: _Entry) -> None:
        self._drop(user)
        if user in self._erased or entry.bytes > self._limit:
            return
        self._entries[user] = entry
        self._count(entry.bytes)
        while self._bytes > self._limit:
            self._drop(next(iter(self._entries)))

    def _drop(self, user: str) -> None:
        entry = self._entries.pop(user, None)
        if entry is not None:
            self._count(-entry.bytes)

    def _count(self, bytes_: int) -> None:
        self._bytes += bytes_
        metrics.USER_CACHE_BYTES.inc(bytes_)
