"""Which index a catalogue gets, and how hard it searches."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from setrec.settings import Settings

Kind = Literal["exact", "hnsw", "ivf", "ivf_sq8", "ivf_pq"]

EXACT_BYTES = 80_000_000
"""Codes that one query may read in full: 100 thousand items of 192 numbers are 77 MB."""


class RetrieverSettings(Settings):
    """How candidates are found. Every kind ends in the same exact re-scoring.

    ``auto`` is exact search while a query reads at most 80 MB of codes (100 thousand items of 192 numbers), or where
    ``recall_target`` is 1. Beyond, ``ivf_pq``, the fastest and smallest (62 bytes an item of 192 numbers, against 203
    of ``ivf_sq8`` and 777 of ``ivf``), if it is measured to reach the target on held-out queries by scanning less than
    a third of the items; else the next larger kind, at last ``exact``.
    ``hnsw`` is never chosen: at equal recall it takes longer, a kilobyte an item, and the longest to build.

    ``recall_target``: share of the ten best that is to be found; cells probed, ``ef_search`` and how many candidates
    are re-scored are chosen to reach it, unless set here; under filters, random ones: a wide filter that goes with the
    codes and takes away what lies nearest may find less. ``oversample``: candidates re-scored per item asked for.
    HNSW: ``m`` links per item (8 m bytes each), ``ef_construction`` build effort, ``ef_search`` search effort. IVF:
    ``nlist`` cells (``null``: 4 sqrt(I); building takes time in proportion), ``nprobe`` of them searched. ``seed``: of
    k-means, of samples, and of the order in which items enter HNSW. ``tune_queries`` are held out for the choice, as
    many again for the audit.
    """

    kind: Literal["auto", "exact", "hnsw", "ivf", "ivf_sq8", "ivf_pq"] = "auto"
    recall_target: float = Field(default=0.99, gt=0, le=1)
    oversample: int | None = Field(default=None, ge=1, le=100)
    m: int = Field(default=32, ge=2, le=256)
    ef_construction: int = Field(default=200, ge=8)
    ef_search: int | None = Field(default=None, ge=1)
    nlist: int | None = Field(default=None, ge=1)
    nprobe: int | None = Field(default=None, ge=1)
    seed: int = 0
    tune_queries: int = Field(default=500, ge=10)


class SearchPlan(Settings):
    """What was chosen for an index. ``effort``: cells probed or ef_search. ``filtered``: (selectivity, effort) pairs,
    falling; between two of them the greater effort holds, below the last one exact search is the faster."""

    kind: Kind
    effort: int = 1
    oversample: int = 4
    filtered: tuple[tuple[float, int], ...] = ()
    reason: str = ""

    def effort_at(self, selectivity: float) -> int | None:
        """Effort where a filter lets ``selectivity`` of the items through; ``None``: search exactly."""
        return next((effort for share, effort in self.filtered if share <= selectivity), None)


def candidates(settings: RetrieverSettings, items: int, width: int) -> tuple[tuple[Kind, str], ...]:
    """The kinds to try, in order, each with the reason for it; the last one is taken whatever it reaches."""
    if settings.kind != "auto":
        return ((settings.kind, "asked for"),)
    size = 4 * items * width
    if size <= EXACT_BYTES or settings.recall_target == 1:
        why = "a recall of 1 is asked for" if settings.recall_target == 1 else f"{size / 1e6:.1f} MB are read at once"
        return (("exact", why),)
    return (
        ("ivf_pq", "reaches the target with the least memory and time"),
        ("ivf_sq8", "4 bits for two numbers missed the target"),
        ("ivf", "8 bits a number missed the target"),
        ("exact", "no index reached the target by scanning less than a third"),
    )
