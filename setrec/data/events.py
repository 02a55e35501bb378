"""What the weights of events mean, in training and at the endpoint alike.

An event weighs what its type does: view 1, purchase 5, dislike -1. What weighs more counts more, as a target of
training and in a history that is read; equal weights are the same as none. Where the last event of an item weighs less
than 0 a user avoids the item: none of its events is read, it is no target, and it lowers what it would otherwise raise.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from setrec.ragged import Ragged


def weigh_differently(weights: Mapping[str, float]) -> bool:
    """Whether types of events differ in what they weigh; a type of weight 0 leaves no event."""
    return len({weight for weight in weights.values() if weight}) > 1


def read(events: Ragged) -> Ragged:
    """What of histories is read: events of weight above 0, without those of avoided items."""
    if events.weights is None or (events.weights > 0).all():
        return events
    return events.where((events.weights > 0) & ~_last(events)[1])


def avoided(events: Ragged) -> Ragged | None:
    """The items that are avoided, each once, in the order of their last events, with weights above 0; ``None`` where
    there are none in any row."""
    if events.weights is None or (events.weights > 0).all():
        return None
    is_last, against = _last(events)
    found = events.where(is_last & against)
    return Ragged(found.values, found.offsets, -events.weights[is_last & against]) if len(found.values) else None


def _last(events: Ragged) -> tuple[np.ndarray, np.ndarray]:
    """Of every event whether it is the last of its item in its row, and whether that last one weighs less than 0."""
    assert events.weights is not None
    key = events.row_of_value * (int(events.values.max(initial=0)) + 1) + events.values
    _, first, of = np.unique(key[::-1], return_index=True, return_inverse=True)
    last = len(key) - 1 - first
    is_last = np.zeros(len(key), dtype=bool)
    is_last[last] = True
    return is_last, (events.weights[last] < 0)[of][::-1]
