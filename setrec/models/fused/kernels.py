"""Compiled loops of :mod:`setrec.models.fused.layers`: each reads and writes its tables once, all float32."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def scale_rows_backward(rows, gain, eps, given, by_rows, by_gain):  # type: ignore[no-untyped-def]
    """Write the gradients of :func:`setrec.models.inference.kernels.scale_rows` at ``given`` (T, d) to ``by_rows``
    (T, d), and add those of the gain to ``by_gain`` (d,)."""
    width = rows.shape[1]
    for t in range(len(rows)):
        own, grad, to = rows[t], given[t], by_rows[t]
        squares, product = np.float32(0.0), np.float32(0.0)
        for i in range(width):
            squares += own[i] * own[i]
            product += grad[i] * gain[i] * own[i]
        scale = np.float32(1.0) / np.sqrt(squares / np.float32(width) + np.float32(eps))
        along = product * scale * scale * scale / np.float32(width)
        for i in range(width):
            to[i] = grad[i] * gain[i] * scale - along * own[i]
            by_gain[i] += grad[i] * own[i] * scale


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def turn_heads(rows, gain, eps, cos, sin, out):  # type: ignore[no-untyped-def]
    """Write the heads of ``rows`` (B, S, H, c), normalised with ``gain`` (c,) and rotated by the angles of ``cos`` and
    ``sin`` (B or 1, S, c), of which both halves are equal, to ``out`` (B, H, S, c)."""
    batch, length, heads, width = rows.shape
    half = width // 2
    for b in range(batch):
        p = b if len(cos) > 1 else 0
        for s in range(length):
            c, d = cos[p, s], sin[p, s]
            for h in range(heads):
                own, to = rows[b, s, h], out[b, h, s]
                total = np.float32(0.0)
                for j in range(width):
                    total += own[j] * own[j]
                scale = np.float32(1.0) / np.sqrt(total / np.float32(width) + np.float32(eps))
                for j in range(half):
                    x, y = own[j] * scale * gain[j], own[half + j] * scale * gain[half + j]
                    to[j], to[half + j] = x * c[j] - y * d[j], y * c[j] + x * d[j]


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def turn_heads_backward(rows, gain, eps, cos, sin, given, by_rows, by_gain):  # type: ignore[no-untyped-def]
    """Write the gradients of :func:`turn_heads` at ``given`` (B, H, S, c) to ``by_rows`` (B, S, H, c), and add those of
    the gain to ``by_gain`` (c,)."""
    batch, length, heads, width = rows.shape
    half = width // 2
    for b in range(batch):
        p = b if len(cos) > 1 else 0
        for s in range(length):
            c, d = cos[p, s], sin[p, s]
            for h in range(heads):
                own, grad, to = rows[b, s, h], given[b, h, s], by_rows[b, s, h]
                squares, product = np.float32(0.0), np.float32(0.0)
                for j in range(half):
                    x, y = grad[j] * c[j] + grad[half + j] * d[j], grad[half + j] * c[j] - grad[j] * d[j]
                    to[j], to[half + j] = x, y
                    squares += own[j] * own[j] + own[half + j] * own[half + j]
                    product += x * gain[j] * own[j] + y * gain[half + j] * own[half + j]
                scale = np.float32(1.0) / np.sqrt(squares / np.float32(width) + np.float32(eps))
                along = product * scale * scale * scale / np.float32(width)
                for j in range(width):
                    by_gain[j] += to[j] * own[j] * scale
                    to[j] = to[j] * gain[j] * scale - along * own[j]
