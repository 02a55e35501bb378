"""Compiled loops of :mod:`setrec.models.inference.history_pass` over packed tokens, all float32."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def scale_rows(rows, gain, eps, out):  # type: ignore[no-untyped-def]
    """Write ``rows`` (T, d), divided by the root of their mean square plus ``eps`` and times ``gain`` (d,), to
    ``out``."""
    width = rows.shape[1]
    for t in range(len(rows)):
        total = np.float32(0.0)
        for i in range(width):
            total += rows[t, i] * rows[t, i]
        scale = np.float32(1.0) / np.sqrt(total / np.float32(width) + np.float32(eps))
        for i in range(width):
            out[t, i] = rows[t, i] * scale * gain[i]


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def place_heads(  # type: ignore[no-untyped-def]
    rows, source, offsets, first, query_gain, key_gain, eps, cos, sin, queries, keys, values
):
    """Write the heads of each token, normalised and rotated.

    Token i of history b is ``rows[source[offsets[b] + i]]``: its query heads, key heads and value heads. They are
    written to ``queries[b, :, i]``, and to ``keys`` and ``values[b, :, first[b] + i]``, of (B, heads, S, c), where
    ``first[b] + i`` is its position; a table without histories is left out, and so are its heads in ``rows``.
    """
    start = 0
    if len(queries):
        for b in range(len(offsets) - 1):
            for t in range(offsets[b], offsets[b + 1]):
                i = t - offsets[b]
                _turn(rows[source[t]], start, query_gain, eps, cos[first[b] + i], sin[first[b] + i], queries[b, :, i])
        start = queries.shape[1] * queries.shape[3]
    if len(keys):
        width = keys.shape[3]
        for b in range(len(offsets) - 1):
            for t in range(offsets[b], offsets[b + 1]):
                row, at = rows[source[t]], first[b] + t - offsets[b]
                _turn(row, start, key_gain, eps, cos[at], sin[at], keys[b, :, at])
                for h in range(keys.shape[1]):
                    own, to = row[start + (keys.shape[1] + h) * width :], values[b, h, at]
                    for j in range(width):
                        to[j] = own[j]


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _turn(row, start, gain, eps, cos, sin, out):  # type: ignore[no-untyped-def]
    """Write the heads from ``row[start]`` on, normalised with ``gain`` (c,) unless it is empty and rotated by the
    angles of ``cos`` and ``sin`` (c / 2,), to ``out`` (heads, c)."""
    width = out.shape[1]
    half = width // 2
    for h in range(len(out)):
        own, to, scale = row[start + h * width :], out[h], np.float32(1.0)
        if len(gain):
            total = np.float32(0.0)
            for j in range(width):
                total += own[j] * own[j]
            scale /= np.sqrt(total / np.float32(width) + np.float32(eps))
        for j in range(half):
            x, y = own[j] * scale, own[half + j] * scale
            if len(gain):
                x, y = x * gain[j], y * gain[half + j]
            to[j], to[half + j] = x * cos[j] - y * sin[j], y * cos[j] + x * sin[j]


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def add_skip(codes, rows, offsets, decays, gains, bounds, out):  # type: ignore[no-untyped-def]
    """Add the decayed means of the ``codes`` (U, D) of each history's ``rows`` to ``out`` (B, D): ``gains``
    (kinds, decays) times the mean at each decay, in the columns ``bounds`` of each kind."""
    for b in range(len(offsets) - 1):
        count = offsets[b + 1] - offsets[b]
        share = gains.copy()
        for d in range(len(decays)):
            total, weight = 0.0, 1.0
            for _ in range(count):
                total += weight
                weight *= decays[d]
            share[:, d] /= max(total, 1e-9)
        weights = np.ones(len(decays))
        for t in range(offsets[b + 1] - 1, offsets[b] - 1, -1):
            for k in range(len(gains)):
                factor = 0.0
                for d in range(len(decays)):
                    factor += share[k, d] * weights[d]
                by, start, stop = np.float32(factor), bounds[k], bounds[k + 1]
                own, to = codes[rows[t], start:stop], out[b, start:stop]
                for i in range(len(own)):
                    to[i] += by * own[i]
            for d in range(len(decays)):
                weights[d] *= decays[d]
