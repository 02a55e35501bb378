"""The choice of an index for a catalogue, and its search effort."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from setrec.settings import Seed, Settings

Kind = Literal["exact", "ivf", "ivf_sq8", "ivf_pq"]

EXACT_BYTES = 80_000_000
"""Maximum size of codes that one query reads in full: 100 thousand items of 192 numbers are 77 MB."""


class RetrieverSettings(Settings):
    """Settings of the index. Every kind ends in the same exact re-scoring.

    ``auto`` is exact search while a query reads at most 80 MB of codes (100 thousand items of 192 numbers), or if
    ``recall_target`` is 1. Above that, ``ivf_pq``, the fastest and smallest (40 bytes an item of 192 numbers and the
    centroids, against 203 of ``ivf_sq8`` and 777 of ``ivf``), if it is measured to reach the target on held-out queries
    by scanning less than a third of the items; else the next larger kind, and finally ``exact``.

    ``recall_target``: minimum recall@10; the number of cells probed and of candidates re-scored are tuned to reach it,
    unless they are set here. Under filters it holds for random filters; a wide filter that is correlated with the codes
    may have a lower recall. ``oversample``: candidates re-scored per requested item. ``nlist``: number of cells
    (``null``: 4 sqrt(I), at most 8,192; build time is proportional to it), ``nprobe`` of which are searched. ``seed``:
    of k-means and of samples. ``tune_queries``: held-out queries for tuning, and as many again for the audit.
    ``shards``: number of parts of the index, each over a range of items, which the endpoint may search in processes of
    their own.
    """

    kind: Literal["auto"] | Kind = "auto"
    recall_target: float = Field(default=0.99, gt=0, le=1)
    oversample: int | None = Field(default=None, ge=1, le=100)
    nlist: int | None = Field(default=None, ge=1)
    nprobe: int | None = Field(default=None, ge=1)
    seed: Seed = 0
    tune_queries: int = Field(default=500, ge=10)
    shards: int = Field(default=1, ge=1, le=256)


class SearchPlan(Settings):
    """Search parameters of an index. ``effort``: number of cells probed. ``filtered``: (selectivity, effort) pairs with
    descending selectivity; between two of them the greater effort applies, below the last one exact search is
    faster."""

    kind: Kind
    effort: int = 1
    oversample: int = 4
    filtered: tuple[tuple[float, int], ...] = ()
    reason: str = ""

    def effort_at(self, selectivity: float) -> int | None:
        """Return the effort under a filter that a share ``selectivity`` of the items passes; ``None`` means exact
        search."""
        return next((effort for share, effort in self.filtered if share <= selectivity), None)


def candidates(settings: RetrieverSettings, items: int, width: int) -> tuple[tuple[Kind, str], ...]:
    """Return the kinds to try in order, each with its reason; the last one is used at any recall."""
    if settings.kind != "auto":
        return ((settings.kind, "set in the configuration"),)
    size = 4 * items * width
    if size <= EXACT_BYTES or settings.recall_target == 1:
        why = "the recall target is 1" if settings.recall_target == 1 else f"{size / 1e6:.1f} MB are read at once"
        return (("exact", why),)
    return (
        ("ivf_pq", "reaches the target with the least memory and time"),
        ("ivf_sq8", "4 bits for each component missed the target"),
        ("ivf", "8 bits a number missed the target"),
        ("exact", "no index reached the target by scanning less than a third"),
    )
