"""A scan of item codes rounded to 13 bits, half of the bytes and a fraction of the time, with a bound of its error.

Code i is ``scale_i * (units * q_i)`` with ``q_i`` int16 (D,) and one unit per column; a user code is rounded to 16 bits
or less, so a score is one inner product of integers that fits 32 bits. Exact scores follow for the rows that the bound
does not exclude. With 8 bits an item it excludes too few: codes of rectified numbers have long tails.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

_ROWS = 1 << 12
_FLOAT = 1e-6
"""Bound of the relative rounding error of the float32 products."""
_MOST = 4095
"""The largest integer of a row, of 13 bits with its sign."""
_TILE = 512
"""Number of rows that stay in a core's cache for all users."""


@dataclass(frozen=True)
class RoundedCodes:
    """``rows`` int16 (I, D), ``scales`` float32 (I,), ``units`` float32 (D,).

    ``error``: the largest norm of what rounding changes in a row, in units; ``largest``: the largest norm of a rounded
    row; ``longest``: that of its integers.
    """

    rows: np.ndarray
    scales: np.ndarray
    units: np.ndarray
    error: float
    largest: float
    longest: float

    @classmethod
    def of(cls, codes: np.ndarray) -> RoundedCodes:
        """Round codes, float32 (I, D)."""
        units = np.sqrt(np.mean(np.square(codes, dtype=np.float64), axis=0)).astype(np.float32)
        units[units == 0] = 1.0
        rows, scales = np.empty(codes.shape, np.int16), np.empty(len(codes), np.float32)
        error = largest = longest = 0.0
        for start in range(0, len(codes), _ROWS):
            part = codes[start : start + _ROWS] / units
            scale = np.maximum(np.abs(part).max(axis=1), np.float32(1e-30)) / np.float32(_MOST)
            near = np.rint(part / scale[:, None])
            rows[start : start + _ROWS], scales[start : start + _ROWS] = near, scale
            back = near * scale[:, None]
            longest = max(longest, float(np.linalg.norm(near, axis=1).max(initial=0.0)))
            error = max(error, float(np.linalg.norm(back.astype(np.float64) - part, axis=1).max(initial=0.0)))
            largest = max(largest, float(np.linalg.norm(back.astype(np.float64), axis=1).max(initial=0.0)))
        return cls(rows, scales, units, error, largest, longest)

    def scores(self, users: np.ndarray, out: np.ndarray) -> None:
        """Write the scores of all codes for ``users`` float32 (B, D) to ``out`` float32 (B, I or more)."""
        near, steps, _ = self._rounded(users)
        _scan(self.rows, self.scales, near.astype(np.int16), steps.astype(np.float32), out)

    def errors(self, users: np.ndarray) -> np.ndarray:
        """Return upper bounds of the errors of the scores for ``users``, float64 (B,)."""
        near, steps, wide = self._rounded(users)
        size, lost = np.linalg.norm(wide, axis=1), np.linalg.norm(near * steps[:, None] - wide, axis=1)
        bounds: np.ndarray = size * self.error + (lost + _FLOAT * size) * self.largest
        return bounds

    def _rounded(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return user codes in steps, the steps, and the codes in units of the columns."""
        wide = users.astype(np.float64) * self.units
        # By Cauchy-Schwarz no sum of products exceeds the product of the norms, which fits 32 bits.
        room = max(1.0, (2**31 - 1) / max(1.0, self.longest) - users.shape[1] ** 0.5)
        steps = np.maximum(np.linalg.norm(wide, axis=1) / room, np.abs(wide).max(axis=1) / 32767)
        steps = np.maximum(steps, 1e-30)
        return np.rint(wide / steps[:, None]), steps, wide


@njit(cache=True, nogil=True)
def _scan(rows, scales, users, steps, out):  # type: ignore[no-untyped-def]
    for start in range(0, len(rows), _TILE):
        stop = min(start + _TILE, len(rows))
        for b in range(len(users)):
            user, step = users[b], steps[b]
            for item in range(start, stop):
                row, total = rows[item], np.int32(0)
                for j in range(len(row)):  # the casts keep Numba from 64 bits, which take twice as long
                    total = np.int32(total + np.int32(np.int32(row[j]) * np.int32(user[j])))
                out[b, item] = np.float32(total) * (scales[item] * step)
