"""Synthetic interactions of any size, with what makes real ones hard: few popular items, topics, sessions, repeats.

Items belong to topics; of a topic's items the r-th is chosen with a probability that falls as r^-0.9, about what films
and goods show, and topics themselves fall as the square root of their rank. A user likes three topics, comes in
sessions a few days apart, and stays in a session with one topic, a minute or so between items; one choice in ten is of
any topic. Lengths of histories are log-normal, at least three.

Files are months, as logs are kept: ``interactions/month-00.parquet`` ... with ``user_id``, ``item_id``, ``timestamp``
(seconds), each holding row groups of users' blocks, so that a user's rows lie in many files; and
``items/part-00000.parquet`` ... with ``item_id``, ``title``, ``genre``. A block of users is held at a time, about
50 MB; 10 million interactions take half a minute on one core. The same arguments write the same files.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

EXPONENT = 0.9
MONTHS = 12
BLOCK = 50_000
_START, _MONTH, _DAY = 1_700_000_000, 30 * 86_400, 86_400
_NOUNS = ("river", "winter", "station", "garden", "letter", "island", "engine", "mirror", "harbour", "orchard")
_ADJECTIVES = ("silent", "golden", "last", "hidden", "paper", "northern", "broken", "second", "wild", "small")


@dataclass(frozen=True)
class World:
    """How much to write. ``length``: mean interactions of a user, before repeats are found."""

    users: int
    items: int
    length: float = 10.0
    topics: int = 100
    seed: int = 0


def write(world: World, folder: Path) -> Path:
    """Write the two folders below ``folder``, as a whole; what is there already for the same world is kept."""
    stamp = folder / "world.json"
    if stamp.exists() and json.loads(stamp.read_text()) == asdict(world):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    _write_items(world, folder / "items")
    _write_interactions(world, folder / "interactions")
    stamp.write_text(json.dumps(asdict(world)))
    return folder


def _write_interactions(world: World, folder: Path) -> None:
    folder.mkdir(parents=True)
    schema = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("timestamp", pa.int64())])
    with ExitStack() as stack:
        names = [folder / f"month-{month:02d}.parquet" for month in range(MONTHS)]
        writers = [stack.enter_context(pq.ParquetWriter(name, schema, compression="zstd")) for name in names]
        for users, items, times in blocks(world):
            month = np.minimum((times - _START) // _MONTH, MONTHS - 1)
            for at, writer in enumerate(writers):
                mine = np.flatnonzero(month == at)
                mine = mine[np.argsort(times[mine], kind="stable")]
                ids = _named("u", users[mine]), _named("i", items[mine])
                writer.write_table(pa.table([*ids, pa.array(times[mine])], schema=schema))


def blocks(world: World) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Users, items and times (seconds), int64, of :data:`BLOCK` users at a time, grouped by user, oldest first."""
    for start in range(0, world.users, BLOCK):
        rng = np.random.default_rng([world.seed, start])
        count = min(BLOCK, world.users - start)
        sigma = 0.8
        lengths = rng.lognormal(np.log(max(world.length - 3, 1)) - sigma**2 / 2, sigma, count).round().astype(int) + 3
        users = np.repeat(np.arange(start, start + count), lengths)
        first = np.concatenate([[True], users[1:] != users[:-1]])
        new_session = first | (rng.random(len(users)) < 0.3)
        yield users, _items(world, rng, users - start, new_session), _times(rng, users - start, first, new_session)


def _items(world: World, rng: np.random.Generator, users: np.ndarray, new_session: np.ndarray) -> np.ndarray:
    topics = min(world.topics, world.items)
    liked = _zipf(rng.random((users[-1] + 1, 3)), topics, 0.5)
    session = np.cumsum(new_session) - 1
    of_session = liked[users[new_session], rng.integers(0, 3, new_session.sum())]
    stray = rng.random(len(users)) < 0.1
    topic = np.where(stray, _zipf(rng.random(len(users)), topics, 0.5), of_session[session])
    # Items of topic t are t, t + topics, t + 2 topics ...
    of_topic = (world.items - topic - 1) // topics + 1
    return topic + topics * _zipf(rng.random(len(users)), of_topic, EXPONENT)


def _zipf(uniform: np.ndarray, count: np.ndarray | int, exponent: float) -> np.ndarray:
    """Ranks from 0 to before ``count`` whose frequency falls as rank^-exponent: the inverse of its integral."""
    power = 1 - exponent
    ranks = ((np.power(np.asarray(count) + 1.0, power) - 1) * uniform + 1) ** (1 / power) - 1
    return np.minimum(ranks.astype(np.int64), np.asarray(count) - 1)


def _times(rng: np.random.Generator, users: np.ndarray, first: np.ndarray, new_session: np.ndarray) -> np.ndarray:
    gaps = np.where(new_session, rng.exponential(12 * _DAY, len(users)), rng.exponential(60, len(users)))
    gaps[first] = rng.random(first.sum()) * 9 * _MONTH
    run = np.cumsum(gaps)
    starts = (run - gaps)[first]
    return (_START + run - starts[users]).astype(np.int64)


def _write_items(world: World, folder: Path) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng([world.seed, 1])
    topics = min(world.topics, world.items)
    for number, start in enumerate(range(0, world.items, BLOCK)):
        rows = np.arange(start, min(start + BLOCK, world.items))
        a, b = rng.integers(0, 10, (2, len(rows)))
        titles = [
            f"The {_ADJECTIVES[x]} {_NOUNS[y]} of {_NOUNS[row % topics % 10]} {row // topics}"
            for x, y, row in zip(a.tolist(), b.tolist(), rows.tolist(), strict=True)
        ]
        genres = pa.array([[f"topic {row % topics}", f"shelf {row % topics // 10}"] for row in rows.tolist()])
        table = pa.table({"item_id": _named("i", rows), "title": titles, "genre": genres})
        pq.write_table(table, folder / f"part-{number:05d}.parquet", compression="zstd")


def _named(letter: str, numbers: np.ndarray) -> pa.Array:
    return pa.array(np.char.add(letter, numbers.astype(str)), pa.string())


def main() -> None:
    """Write a world of the size asked for."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--users", type=int, default=10_000)
    options.add_argument("--items", type=int, default=10_000)
    options.add_argument("--length", type=float, default=10.0)
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    write(World(asked.users, asked.items, asked.length, seed=asked.seed), asked.folder)


if __name__ == "__main__":
    main()
