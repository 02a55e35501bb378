"""Compiled loops of :mod:`setrec.models.inference` over packed tokens, all float32."""

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
def place_heads(rows, source, offsets, at, position, gain, eps, cos, sin, out):  # type: ignore[no-untyped-def]
    """Write the heads of each token to ``out`` (B, heads, S, c): those of token i of history b, ``rows[source[t]]``, at
    place ``at[b] + i``; normalised with ``gain`` (c,), if not empty, and rotated to ``position[b] + i`` by ``cos`` and
    ``sin`` (P, c / 2), if not empty."""
    heads, width = out.shape[1], out.shape[3]
    half = width // 2
    for b in range(len(offsets) - 1):
        for t in range(offsets[b], offsets[b + 1]):
            row, i = source[t], t - offsets[b]
            for h in range(heads):
                own, to = rows[row, h * width : (h + 1) * width], out[b, h, at[b] + i]
                if len(cos) == 0:
                    for j in range(width):
                        to[j] = own[j]
                    continue
                scale = np.float32(1.0)
                if len(gain):
                    total = np.float32(0.0)
                    for j in range(width):
                        total += own[j] * own[j]
                    scale = np.float32(1.0) / np.sqrt(total / np.float32(width) + np.float32(eps))
                c, s = cos[position[b] + i], sin[position[b] + i]
                for j in range(half):
                    x, y = own[j] * scale, own[j + half] * scale
                    if len(gain):
                        x, y = x * gain[j], y * gain[j + half]
                    to[j], to[j + half] = x * c[j] - y * s[j], y * c[j] + x * s[j]


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
