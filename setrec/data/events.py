"""Weights of events, with the same meaning in training and at the endpoint.

An event has the weight of its type: view 1, purchase 5, dislike -1. Events with larger weights count more, as training
targets and in histories; equal weights are the same as none. A user avoids an item if its last event has a negative
weight: none of its events is read, it is not a target, and it lowers the scores that it would otherwise raise.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from setrec.ragged import Ragged


def weigh_differently(weights: Mapping[str, float]) -> bool:
    """Return whether types of events have different weights; types of weight 0 are ignored."""
    return len({weight for weight in weights.values() if weight}) > 1


def read(events: Ragged) -> Ragged:
    """Return the events that models read: those of positive weight, without those of avoided items."""
    if events.weights is None or (events.weights > 0).all():
        return events
    return events.where((events.weights > 0) & ~_last(events)[1])


def avoided(events: Ragged) -> Ragged | None:
    """Return the avoided items, each once, in the order of their last events, with positive weights; ``None`` if no row
    has any."""
    if events.weights is None or (events.weights > 0).all():
        return None
    is_last, against = _last(events)
    last = events.where(is_last & against)
    return Ragged(last.values, last.offsets, -events.weights[is_last & against]) if len(last.values) else None


def _last(events: Ragged) -> tuple[np.ndarray, np.ndarray]:
    """Return for every event whether it is the last of its item in its row, and whether that last one has a negative
    weight."""
    assert events.weights is not None
    key = events.row_of_value * (int(events.values.max(initial=0)) + 1) + events.values
    _, first, of = np.unique(key[::-1], return_index=True, return_inverse=True)
    last = len(key) - 1 - first
    is_last = np.zeros(len(key), dtype=bool)
    is_last[last] = True
    return is_last, (events.weights[last] < 0)[of][::-1]
