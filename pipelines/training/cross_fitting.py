"""The offset of the training softmax: the scores of the components, cross-fitted, at every training position.

A model that is trained alone spends its gradients on what the components of the score count anyway. With
``training.offset`` their scores are a fixed part of the logits, and the model learns the rest.

**Cross-fitting** (Chernozhukov et al. 2018, arXiv 1608.00060). Components built from a user's own history contain the
transition that is to be predicted, and would be trusted too much. Users are therefore divided into folds at random, and
the positions of a fold are scored by components that were built from the other folds. Weights are those of the
components without the model, from validation; a model learns one further factor of them all.

**Floor.** Of each position the ``top`` largest scores are stored. All other items count as if their score were

    f = log(mean of exp(c_i) over the other items i),

so that together they keep their probability under a model to which they are equal. A softmax does not change if a
constant is subtracted from all logits: the offset of a stored item is c_i - f, and that of all others is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from pipelines.common.fingerprints import of_code, of_value
from pipelines.common.run_directory import Run
from pipelines.config.job import JobConfig
from pipelines.data import directory
from pipelines.features import item_features, lineage
from pipelines.training.shard_source import ShardSource
from setrec.atomic import atomic_directory, atomic_file
from setrec.data.catalog import TRAIN, Histories
from setrec.data.offsets import Offsets
from setrec.ragged import Ragged
from setrec.rows import top_k
from setrec.scoring import registry
from setrec.scoring.hybrid import HybridScorer, HybridWeights, build_components, load_components
from setrec.scoring.registry import Component, Sources
from setrec.scoring.search.weight_search import halves, search
from setrec.scoring.text_similarity import TextFeatures
from setrec.training.settings import OffsetSettings

WEIGHTS, COMPONENTS = "weights.json", "components"
_BATCH = 256
Progress = Callable[[float, float, str], None]
Part = tuple[np.ndarray, Ragged, np.ndarray]
"""Positions, a row of items for each, and the items' offsets."""


def training_offset(
    run: Run, config: JobConfig, upto: int = TRAIN, progress: Progress = lambda done, total, note: None
) -> tuple[Offsets, HybridScorer] | tuple[None, None]:
    """Return the offsets of a training on the events up to the split ``upto``, and, for ranking validation users, the
    components at the same weights, built from the training events of all users; ``None`` if it is not configured.

    They are made if the run does not have those of this data, these settings and this code. Making them holds all
    histories.
    """
    if not config.training.offset.enabled:
        return None, None
    folder = run.offset / _key(run, config)
    positions = folder / f"upto-{upto}"
    if not positions.is_dir():
        _make(run, config, upto, folder, progress)
    weights = HybridWeights.model_validate_json((folder / WEIGHTS).read_text())
    components = load_components(weights.used, folder / COMPONENTS)
    none_new = np.zeros(directory.catalog_size(run.data), dtype=bool)
    return Offsets.load(positions), HybridScorer(None, components, weights, none_new)


def _key(run: Run, config: JobConfig) -> str:
    texts = [run.hash_of(run.features / name) for name in (item_features.LEXICAL, "text.safetensors")]
    settings = config.training.offset.model_dump(), config.training.seed, config.evaluation.components
    return of_value([lineage.of_data(run), texts, settings, of_code()])[:16]


def _make(run: Run, config: JobConfig, upto: int, folder: Path, progress: Progress) -> None:
    catalog, histories = directory.load(run.data)
    texts, items = item_features.text_features(run, catalog), len(catalog)
    if not (folder / WEIGHTS).is_file():
        progress(0, 1, "weights")
        found = search(
            None, halves(histories, timed=config.timed), histories.trained(items), texts,
            names=config.evaluation.components,
        )  # fmt: skip
        weights = HybridWeights(components=found.weights.components)
        sources = Sources(histories.events(TRAIN), items, texts)
        with atomic_directory(folder / COMPONENTS) as new:
            for name, component in build_components(weights.used, sources).items():
                component.save(new / f"{name}.safetensors")
        with atomic_file(folder / WEIGHTS) as path:
            path.write_text(weights.model_dump_json())
    weights = HybridWeights.model_validate_json((folder / WEIGHTS).read_text())
    source = ShardSource(directory.history_shards(run.data), items)
    users = np.cumsum([0, *(source.users(shard) for shard in range(len(source)))])
    shards = histories.upto(upto).offsets[users]
    scored = cross_fitted(histories, upto, texts, items, weights.components, config.training.offset,
                          config.training.seed, progress)  # fmt: skip
    with atomic_directory(folder / f"upto-{upto}") as new:
        Offsets.save(new, shards, scored)


def cross_fitted(
    histories: Histories,
    upto: int,
    texts: TextFeatures | None,
    items: int,
    weights: Mapping[str, float],
    s: OffsetSettings,
    seed: int,
    progress: Progress = lambda done, total, note: None,
) -> Iterator[Part]:
    """Yield the offsets of all positions of the events up to the split ``upto``, fold after fold; see the module.

    ``weights`` of components by name; ``seed`` draws the folds.
    """
    rows, events, kinds = histories.upto(upto), histories.events(upto), registry.kinds()
    user, begin = rows.row_of_value, np.repeat(rows.offsets[:-1], rows.lengths)
    fold = np.random.default_rng(seed).permutation(len(rows)) % s.folds
    trained = np.bincount(rows.values, minlength=items) > 0
    of_content = tuple(name for name in weights if kinds[name].of_content)
    others = tuple(name for name in weights if not kinds[name].of_content)
    shared, done = build_components(of_content, Sources(events, items, texts)), 0
    for number in range(s.folds):
        known = events.take(np.flatnonzero(fold != number))
        components = {**shared, **build_components(others, Sources(known, items, texts))}
        positions = np.flatnonzero((fold[user] == number) & (begin < np.arange(len(user))))
        for start in range(0, len(positions), _BATCH):
            at = positions[start : start + _BATCH]
            done += len(at)
            yield at, *listed(_scores(components, weights, _before(rows, begin[at], at), items), trained, s.top)
            progress(done, len(user), f"{done} positions")


def _before(rows: Ragged, begin: np.ndarray, end: np.ndarray) -> Ragged:
    """Return the values from ``begin`` to ``end`` of each part of a history."""
    lengths = end - begin
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    source = np.repeat(begin - offsets[:-1], lengths) + np.arange(offsets[-1])
    return Ragged(rows.values[source], offsets, None if rows.weights is None else rows.weights[source])


def _scores(
    components: Mapping[str, Component], weights: Mapping[str, float], history: Ragged, items: int
) -> sp.csr_matrix:
    """Return the weighted sum of the components' entries, float64 (b, I)."""
    total = sp.csr_matrix((len(history), items))
    for name, component in components.items():
        places, values = component.entries(history)
        total = total + weights[name] * sp.csr_matrix((values, places.values, places.offsets), total.shape)
    return total


def listed(scores: sp.csr_matrix, trained: np.ndarray, top: int) -> tuple[Ragged, np.ndarray]:
    """Return the items of the ``top`` largest positive scores of every row of ``scores`` (b, I), among the items
    ``trained``, bool (I,), and these scores minus the floor (see the module)."""
    some = trained[scores.indices]
    entries = Ragged(scores.indices, scores.indptr.astype(np.int64)).where(some)
    items, values = entries.pad()[0], Ragged(scores.data[some], entries.offsets).pad()[0]
    best = top_k(values, top)
    stored = np.take_along_axis(values, best, axis=1)
    np.put_along_axis(values, best, 0.0, axis=1)
    others = max(1, int(trained.sum()) - best.shape[1])
    # Zeros are the stored scores, padding and, if there are more other items than columns, items without an entry.
    most = values.max(axis=1, initial=0.0, keepdims=True)
    mass = np.exp(values - most).sum(axis=1, keepdims=True) + (others - values.shape[1]) * np.exp(-most)
    floor = most + np.log(mass / others)
    kept = stored > 0
    offsets = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
    return Ragged(np.take_along_axis(items, best, axis=1)[kept], offsets), (stored - floor)[kept]
