"""Start without the garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Suspend garbage collection in the block, and never search for cycles among the objects that it leaves.

    Imports create a million objects that stay. Looking for cycles among them again and again took 40% of the CPU time
    of ``setrec recommend``, and would interrupt a server's requests.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
