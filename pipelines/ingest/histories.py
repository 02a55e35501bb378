"""Interactions in chronological order to histories: repeats, minimum counts, split, and the shards on disk."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.data.directory import SHARD_ROWS, shard_name
from pipelines.data.engine import Engine
from pipelines.data.settings import DataSettings
from setrec.data.catalog import Histories
from setrec.data.interactions import chronological, distinct, tied
from setrec.data.splits import TEST, TRAIN, VALID, GlobalTime, LeaveOneOut, held_out_items, leave_one_out
from setrec.ragged import Ragged

_COLUMNS = ("user", "item", "time", "split", "strength", "row")


@dataclass(frozen=True)
class Block:
    """Interactions of whole users, chronological. ``user``, ``item`` codes, ``time``, ``split``, ``strength``,
    ``row``: arrays of one length."""

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    split: np.ndarray
    strength: np.ndarray
    row: np.ndarray


def blocks(engine: Engine, config: DataSettings) -> Iterator[Block]:
    """The table ``ordered`` (see ``pipelines.ingest.interactions``) in blocks of about ``SHARD_ROWS`` interactions."""
    held: list[pa.RecordBatch] = []
    for batch in engine.batches(f"SELECT {', '.join(_COLUMNS)} FROM ordered", SHARD_ROWS):
        users = batch.column(0).to_numpy()
        # The last user may go on in the next batch.
        cut = int(np.searchsorted(users, users[-1])) if len(users) else 0
        if cut:
            yield _block([*held, batch.slice(0, cut)], config)
            held = []
        elif held and len(users) and users[-1] != held[-1].column(0)[-1].as_py():
            yield _block(held, config)
            held = []
        held.append(batch.slice(cut))
    if held:
        yield _block(held, config)


def _block(batches: list[pa.RecordBatch], config: DataSettings) -> Block:
    table = pa.Table.from_batches(batches)
    block = Block(*(table[name].to_numpy() for name in _COLUMNS))
    if config.ties == "file":  # the engine has put them in this order
        return block
    order = chronological(block.user, block.time, config.ties, config.seed, block.row + 1)
    return Block(*(getattr(block, name)[order] for name in _COLUMNS))


def drop_repeats(engine: Engine, config: DataSettings) -> int:
    """Leave of a user's repeated contacts with an item the one that ``config.deduplicate`` keeps; returns how many
    went."""
    if config.deduplicate == "all":
        return 0
    schema = pa.schema([("row", pa.int64())])
    engine.run("CREATE TABLE repeated (row BIGINT)")

    def repeats() -> Iterator[pa.RecordBatch]:
        for block in blocks(engine, config):
            kept = distinct(block.user, block.item, config.deduplicate, block.strength)
            yield pa.record_batch([pa.array(block.row[~kept])], schema=schema)

    engine.insert("repeated", repeats(), schema)
    return _delete(engine, "row IN (SELECT row FROM repeated)")


def drop_rare(engine: Engine, config: DataSettings) -> int:
    """Leave the largest part in which users and items have their minimum counts; returns how many went.

    Removing one may push another below its minimum, so the rule is applied until nothing changes.
    """
    dropped, round_ = 0, 1
    while round_:
        round_ = 0
        for column, least in (("item", config.item_min_count), ("user", config.user_min_count)):
            if least > 1:  # whoever occurs at all occurs once
                few = f"SELECT {column} FROM ordered GROUP BY {column} HAVING count(*) < {least}"
                round_ += _delete(engine, f"{column} IN ({few})")
        dropped += round_
    return dropped


def _delete(engine: Engine, where: str) -> int:
    return int(engine.one(f"DELETE FROM ordered WHERE {where}")[0])


def item_counts(engine: Engine, items: int) -> np.ndarray:
    """Interactions of each item code, int64 (I,)."""
    counts = np.zeros(items, dtype=np.int64)
    for batch in engine.batches("SELECT item, count(*) FROM ordered GROUP BY item", SHARD_ROWS):
        counts[batch.column(0).to_numpy()] = batch.column(1).to_numpy()
    return counts


@dataclass
class Split:
    """Labels of interactions. ``cuts``: of a split by global time, the instants of validation and test; ``cold``, bool
    (I,): items held out of training."""

    config: DataSettings
    cuts: tuple[float, float] | None
    cold: np.ndarray

    @classmethod
    def of(cls, engine: Engine, config: DataSettings, items: int) -> Split:
        """Find the cuts, and choose the items to hold out."""
        cuts = None
        if isinstance(split := config.split, GlobalTime):
            total = engine.one("SELECT count(*) FROM ordered")[0]
            # The elements of the sorted times that setrec.data.splits.global_time takes.
            ranks = [total - math.ceil(total * share - 1e-9) for share in (split.valid + split.test, split.test)]
            valid, test = (
                engine.one(f"SELECT time FROM ordered ORDER BY time LIMIT 1 OFFSET {rank}")[0] for rank in ranks
            )
            cuts = (valid, test)
        found = cls(config, cuts, np.zeros(items, dtype=bool))
        if config.cold_share:
            trained = np.zeros(items, dtype=bool)
            for block in blocks(engine, config):
                trained[block.item[found.labels(block) == TRAIN]] = True
            found.cold = held_out_items(trained, config.cold_share, config.seed)
        return found

    def labels(self, block: Block) -> np.ndarray:
        """The label of each interaction, int8."""
        if self.cuts is not None:
            valid, test = self.cuts
            return np.where(block.time >= test, TEST, np.where(block.time >= valid, VALID, TRAIN)).astype(np.int8)
        if isinstance(self.config.split, LeaveOneOut):
            starts = np.flatnonzero(np.r_[True, block.user[1:] != block.user[:-1]])
            return leave_one_out(np.r_[starts, len(block.user)], self.config.split.min_history)
        return block.split.astype(np.int8)


@dataclass
class Written:
    """Counts over the shards. ``splits`` (3,); ``trained`` bool (I,): items that occur in training."""

    trained: np.ndarray
    users: int = 0
    held: int = 0
    tied: int = 0
    tied_last: int = 0
    splits: np.ndarray = field(default_factory=lambda: np.zeros(3, dtype=np.int64))


def write(engine: Engine, config: DataSettings, split: Split, row_of: np.ndarray, folder: Path) -> Written:
    """Write ``folder/part-*.parquet``, each of whole users; ``row_of`` int32 (I,): the catalogue's row of each code."""
    folder.mkdir(exist_ok=True)
    found, number = Written(np.zeros(len(row_of), dtype=bool)), 0
    for block in blocks(engine, config):
        labels = split.labels(block)
        keep = ~((labels == TRAIN) & split.cold[block.item])
        users, items, labels = block.user[keep], block.item[keep], labels[keep]
        found.held += int((~keep).sum())
        if not len(users):
            continue
        ends = np.flatnonzero(np.r_[users[1:] != users[:-1], True]) + 1
        offsets = np.r_[0, ends].astype(np.int64)
        histories = Histories(_names(engine, users[ends - 1]), Ragged(row_of[items], offsets), labels)
        histories.save(folder / shard_name(number))
        ties = tied(users, block.time[keep])
        found.users, number = found.users + len(ends), number + 1
        found.tied, found.tied_last = found.tied + int(ties.sum()), found.tied_last + int(ties[ends - 1].sum())
        found.splits += np.bincount(labels, minlength=3)
        found.trained[items[labels == TRAIN]] = True
    return found


def _names(engine: Engine, codes: np.ndarray) -> list[str]:
    query = f"SELECT id FROM users WHERE rowid BETWEEN {codes[0]} AND {codes[-1]} ORDER BY rowid"
    ids = pa.chunked_array([batch.column(0) for batch in engine.batches(query, SHARD_ROWS)])
    return ids.take(pa.array(codes - codes[0])).to_pylist()
