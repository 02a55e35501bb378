"""Synthetic item codes and user queries with the structure of real ones, at any size.

A code is 64 collaborative numbers beside 128 rectified semantic ones, as ``setrec.models.item_tokens`` makes them. Both
are linear maps of one latent space of 24 dimensions, few of which matter: areas hold topics, topics hold items, topic
sizes follow a power law, norms of the collaborative part are log-normal. A user follows up to three topics; a query is
that interest, seen through the pseudo-inverse maps, so that its inner product with codes finds items of those topics.
Semantic numbers are much longer than collaborative ones and queries weigh them less, so distances between codes say
little of what queries ask: that is hard for an index. ``describe`` computes what can be compared with real codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.retrieval.recall_audit import intrinsic_dimension

COLLABORATIVE, SEMANTIC, LATENT = 64, 128, 24
ITEMS_PER_TOPIC = 100
_WITHIN, _OWN = 0.45, 0.3
"""Spread of items around their topic, and of the collaborative part around what both parts share."""
_CHUNK = 1 << 16
_DESCRIBED = 1_000_000


@dataclass(frozen=True)
class World:
    """``codes`` float32 (I, 192), ``queries`` float32 (Q, 192) of users, ``topic`` int (I,)."""

    codes: np.ndarray
    queries: np.ndarray
    topic: np.ndarray

    def describe(self) -> dict[str, float]:
        """Spread of norms, share of semantic numbers above zero, intrinsic dimension (nearest 20), of the first
        million items."""
        codes = self.codes[:_DESCRIBED]
        norms = np.linalg.norm(codes, axis=1)
        collaborative, semantic = codes[:, :COLLABORATIVE], codes[:, COLLABORATIVE:]
        lengths = [float(np.linalg.norm(part, axis=1).mean()) for part in (collaborative, semantic)]
        return {
            "norm, deviation over mean": round(float(norms.std() / norms.mean()), 3),
            "norm, largest over median": round(float(norms.max() / np.median(norms)), 3),
            "norm, semantic over collaborative": round(lengths[1] / lengths[0], 2),
            "semantic numbers above zero": round(float((semantic > 0).mean()), 3),
            "intrinsic dimension": intrinsic_dimension(codes) or 0.0,
        }


def stored(folder: Path, items: int, queries: int) -> World:
    """Return the world with these numbers, whose codes are memory-mapped, from the files in ``folder``, or draw it."""
    folder = folder / f"{items}-{queries}"
    names = ("codes", "queries", "topic")
    if not (folder / "topic.npy").exists():
        folder.mkdir(parents=True, exist_ok=True)
        shape = (items, COLLABORATIVE + SEMANTIC)
        codes = np.lib.format.open_memmap(folder / "codes.npy", "w+", np.float32, shape)
        drawn = world(items, queries, codes=codes)
        np.save(folder / "queries.npy", drawn.queries)
        np.save(folder / "topic.npy", drawn.topic)
    return World(*(np.load(folder / f"{name}.npy", mmap_mode="r" if name == "codes" else None) for name in names))


def world(items: int, queries: int, seed: int = 0, codes: np.ndarray | None = None) -> World:
    """Draw ``items`` codes, into ``codes`` if given, and the queries of as many users as asked for."""
    rng = np.random.default_rng(seed)
    spectrum = np.arange(1, LATENT + 1) ** -0.7
    topics = max(8, items // ITEMS_PER_TOPIC)
    areas = rng.normal(size=(max(4, round(topics**0.5)), LATENT)) * spectrum
    centres = areas[rng.integers(0, len(areas), topics)] + 0.7 * rng.normal(size=(topics, LATENT)) * spectrum
    sizes = np.arange(1, topics + 1) ** -0.6
    topic = rng.choice(topics, items, p=sizes / sizes.sum())
    maps = _Maps(rng)
    codes = np.empty((items, COLLABORATIVE + SEMANTIC), np.float32) if codes is None else codes
    for start in range(0, items, _CHUNK):
        part = topic[start : start + _CHUNK]
        latent = centres[part] + _WITHIN * rng.normal(size=(len(part), LATENT)) * spectrum
        codes[start : start + len(part)] = maps.codes(latent, rng)
    chosen = centres[rng.choice(topic, (queries, 3))]
    shares = rng.dirichlet((4.0, 1.0, 0.5), queries)  # the first topic is followed most
    interest = np.einsum("qt,qtl->ql", shares, chosen) + _WITHIN * rng.normal(size=(queries, LATENT)) * spectrum
    return World(codes, maps.queries(interest / spectrum, rng), topic)


class _Maps:
    """From the latent space to codes, and from interests to queries whose inner product with codes finds them."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._collaborative = rng.normal(size=(LATENT, COLLABORATIVE))
        self._semantic = rng.normal(size=(LATENT, SEMANTIC))
        self._bias = 1.6 * rng.normal(size=SEMANTIC) + 1.2

    def codes(self, latent: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        items = len(latent)
        own = latent + _OWN * rng.normal(size=latent.shape)
        collaborative = _unit(own @ self._collaborative + 2 * rng.normal(size=(items, COLLABORATIVE)))
        collaborative *= np.exp(0.1 * rng.normal(size=(items, 1)))
        semantic = np.maximum(latent @ self._semantic + self._bias, 0)
        return np.hstack([collaborative, semantic]).astype(np.float32)

    def queries(self, interest: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        # As much noise as has about one cell in ten probed for 0.99 of the ten best, at 12 thousand items; with
        # published embeddings of Amazon Beauty it is one in twenty, with noise of 0.1 one in three.
        parts = []
        for matrix, length in ((self._collaborative, 5.5), (self._semantic, 0.4)):
            seen = interest @ np.linalg.pinv(matrix).T
            parts.append(length * _unit(seen + 0.02 * rng.normal(size=seen.shape)))
        return np.hstack(parts).astype(np.float32)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
