"""Knowledge-graph completion: which entity completes (head, relation, ?) or (?, relation, tail)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from nodetok import kge
from nodetok.distances import distances
from nodetok.graph import Graph
from nodetok.language.interface import Chunk, Examples, Task
from nodetok.language.prompts import Prompts
from nodetok.tokenizer import NodeTokenizer, TokenizerSettings
from setrec.errors import DataError

FOLDS = 10


def completion(
    graph: Graph,
    train: np.ndarray,
    valid: np.ndarray,
    test: np.ndarray,
    relation_names: Sequence[str],
    features: np.ndarray | None,
    settings: TokenizerSettings,
    valid_sample: int = 1_000,
    seed: int = 0,
) -> Task:
    """Both directions of every triple [head, relation, tail], ranked among all entities.

    ``graph``: undirected, from the training triples. What a triple asks for is not told: triples are dealt into folds
    at random each epoch, a fold is trained with distances measured without the edges that nothing outside it makes, and
    the known entity does not show the triple's own fact among its neighbours. What other triples say of the same two
    entities stays, as it will for a test triple. Metrics are filtered: other known answers do not count as wrong;
    of equal scores half count before the right one.

    Raises:
        DataError: a part without triples.
    """
    for part, given in (("train", train), ("valid", valid), ("test", test)):
        if not len(given):
            raise DataError(f"completion: no triple in the {part} part")
    tokenizer = NodeTokenizer.fit(graph, settings)
    names = [name.strip("_").replace("_", " ") for name in relation_names]
    texts = [[f"{name} of [[0]] is ? answer :" for name in names], [f"[[0]] is {name} of ? answer :" for name in names]]
    known = answers(np.concatenate([train, valid, test]), texts)

    ends = np.sort(train[:, [0, 2]], axis=1)
    _, pair, joined = np.unique(ends, axis=0, return_inverse=True, return_counts=True)
    pair = pair.ravel()  # NumPy 2.0 gives a column

    def ask(triples: np.ndarray, *, hide: bool) -> Examples:
        head, relation, tail = triples.T
        known_end, answer = np.concatenate([head, tail]), np.concatenate([tail, head])
        prompts = [texts[0][r] for r in relation] + [texts[1][r] for r in relation]
        own = np.concatenate([relation + 1, relation + 1 + len(names)])
        hidden = np.stack([answer, own], axis=1)[:, None] if hide else None
        return Examples(Prompts(prompts, known_end[:, None], hidden), answer)

    def draw(rng: np.random.Generator) -> Iterator[Chunk]:
        for fold in np.array_split(rng.permutation(len(train)), FOLDS):
            triples = train[fold]
            alone = np.bincount(pair[fold], minlength=len(joined))[pair[fold]] == joined[pair[fold]]
            table = distances(graph.without(triples[alone][:, [0, 2]]), tokenizer.anchors.rows, settings.distances)
            examples = ask(triples, hide=True)
            yield examples.take(rng.permutation(len(examples))), table

    def measure(scores: np.ndarray, examples: Examples) -> dict[str, np.ndarray]:
        return ranked(scores, examples, known)

    def distmult(seed: int) -> dict[str, np.ndarray]:
        model = kge.train_kge("distmult", train, len(graph), len(names), valid, seed)
        directions = np.repeat([0, 1], len(test))
        relation = np.tile(test[:, 1], 2)
        queries = np.stack([everything.prompts.nodes[:, 0], relation, directions], axis=1)
        parts = np.array_split(np.arange(len(queries)), max(1, len(queries) // 256))
        found = [measure(model.scores(queries[rows]), everything.take(rows)) for rows in parts]
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    everything = ask(test, hide=False)
    rng = np.random.default_rng(seed)
    sample = valid[rng.permutation(len(valid))[:valid_sample]]
    entities = [str(graph.id(row)) for row in range(len(graph))]
    return Task(
        "completion", graph, tokenizer.table, entities, draw, ask(sample, hide=False), everything, measure,
        "MRR", [text for way in texts for text in way],
        features, facts(train, len(names)), names, node_candidates=True, tokenizer=tokenizer,
        opponents={"DistMult": distmult},
    )  # fmt: skip


def ranked(scores: np.ndarray, examples: Examples, known: dict[tuple[str, int], np.ndarray]) -> dict[str, np.ndarray]:
    """Filtered reciprocal rank and hits at 1, 3, 10 of every example."""
    rows = np.arange(len(scores))
    own = scores[rows, examples.targets].copy()
    kept = scores.copy()
    for row, (text, node) in enumerate(zip(examples.prompts.texts, examples.prompts.nodes[:, 0], strict=True)):
        kept[row, known[(text, int(node))]] = -np.inf
    # Not "kept > own": a score that is not a number would have nothing above it and rank first.
    above = (~(kept <= own[:, None])).sum(axis=1)
    level = (kept == own[:, None]).sum(axis=1)
    rank = 1 + above + level / 2
    return {"MRR": 1 / rank, **{f"Hits@{k}": (rank <= k).astype(np.float64) for k in (1, 3, 10)}}


def answers(triples: np.ndarray, texts: Sequence[Sequence[str]]) -> dict[tuple[str, int], np.ndarray]:
    """All known answers by question and known entity; ``texts``: the questions for tails and for heads."""
    found: dict[tuple[str, int], list[int]] = {}
    for head, relation, tail in triples.tolist():
        found.setdefault((texts[0][relation], head), []).append(tail)
        found.setdefault((texts[1][relation], tail), []).append(head)
    return {key: np.unique(rows) for key, rows in found.items()}


def facts(triples: np.ndarray, relations: int) -> np.ndarray:
    """What stands beside each entity, int64 (2T, 3): a tail by r + 1 at its head, a head by r + 1 + R at its tail."""
    head, relation, tail = triples.astype(np.int64).T
    at_head = np.stack([head, relation + 1, tail], axis=1)
    at_tail = np.stack([tail, relation + 1 + relations, head], axis=1)
    return np.concatenate([at_head, at_tail])
