"""What to read and what to make of it: the section ``data`` of a configuration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipelines.storage import is_uri
from setrec.interactions import Keep, Ties
from setrec.schema import Schema
from setrec.settings import Settings
from setrec.splits import GlobalTime, LeaveOneOut, SplitSettings


def _located(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if re.match(r"[^:]+://[^/@]*:[^/@]*@", value):
        raise ValueError(
            "keys do not belong in a configuration: leave them to the environment (AWS_ACCESS_KEY_ID, ...)"
        )
    return value if is_uri(value) else Path(value)


Location = Annotated[Path | str, BeforeValidator(_located)]
"""A local path or a URI (``pipelines.storage``); text that is no URI becomes a path."""


class StreamingSettings(Settings):
    """How inputs that no process should hold at once are ingested, with Ray.

    ``enabled``: ``null`` streams where one of the tables is a folder or a URI; ``true`` also single Parquet files.
    ``bucket_rows``: interactions a bucket is meant to hold; ``block_rows``: rows read at a time. They bound what a
    process needs whatever the size of the input: with these defaults no more than 0.6 GB, measured on ten million
    interactions with a million items. The rows of one user stay together, however many they are.
    ``scratch``: a folder or URI for the buckets, about the size of the input, that every machine of the cluster
    reaches; ``null`` is beside the data directory.
    """

    enabled: bool | None = None
    bucket_rows: int = Field(default=1_000_000, ge=1)
    block_rows: int = Field(default=500_000, ge=1)
    scratch: Location | None = None


class DataSettings(Settings):
    """What to read and what to make of it.

    ``interactions`` and ``items`` are files of any format of ``setrec.formats``, or Parquet at a URI, or folders of
    Parquet files, which are read in the order of their names (see ``pipelines.storage`` for URIs).

    The steps, in this order: ratings below ``min_rating`` go; interactions with items that ``items`` does not hold
    are refused or dropped; each user's are sorted by time, equal times by the rule ``ties`` (see
    ``setrec.interactions.chronological``); of a user's repeated contacts with one item ``deduplicate`` keeps the
    first, the last or all (a repeat cannot be found by a ranking without the user's own history); users and items
    with fewer interactions than the minima go, until none is left (with 0, items nobody met stay as cold items);
    the rest is split. Last, ``cold_share`` of the items lose their training interactions and so become cold: a cold
    group to measure on, at the price of about that much training data. ``seed`` gives out the item rows, the order of
    shuffled ties and the items that become cold.

    ``rejected_share``: rows that cannot be used go to ``rejected/`` with the reason, as long as they are no larger a
    share of a table than this; ``null`` is 0.01 for streamed inputs, while others are refused at the first such row.
    """

    interactions: Location
    items: Location | None = None
    columns: Schema = Field(default_factory=Schema)
    min_rating: float | None = None
    unknown_items: Literal["refuse", "drop"] = "refuse"
    ties: Ties = "file"
    deduplicate: Keep = "first"
    user_min_count: int = Field(default=0, ge=0)
    item_min_count: int = Field(default=0, ge=0)
    split: SplitSettings = LeaveOneOut()
    cold_share: float = Field(default=0.0, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)
    rejected_share: float | None = Field(default=None, ge=0, lt=1)
    streaming: StreamingSettings = StreamingSettings()

    @model_validator(mode="after")
    def _columns_for_what_is_asked(self) -> DataSettings:
        if self.min_rating is not None and self.columns.rating is None:
            raise ValueError("min_rating needs columns.rating, the column of ratings")
        if self.split.kind == "column" and self.columns.split is None:
            raise ValueError("a split by column needs columns.split, the column of splits")
        if isinstance(self.split, GlobalTime) and self.columns.position is not None:
            raise ValueError("a split by global time needs timestamps; positions only order one user's interactions")
        return self

    @property
    def schema_in_use(self) -> Schema:
        """The columns; a split by global time insists on timestamps."""
        if isinstance(self.split, GlobalTime) and self.columns.timestamp is None:
            return self.columns.model_copy(update={"timestamp": "timestamp"})
        return self.columns
