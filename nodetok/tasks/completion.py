"""Knowledge-graph completion: prediction of the missing entity of (head, relation, ?) and (?, relation, tail)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from nodetok import kge
from nodetok.distances import distances
from nodetok.graph import Graph
from nodetok.knowledge.completer import Completer, CompletionSettings, Knowledge, choose_weights
from nodetok.knowledge.completer import train as train_completer
from nodetok.knowledge.neighbours import centred, lexical_vectors
from nodetok.knowledge.reader import CompletionReader
from nodetok.language.input_ablation import eigenvectors
from nodetok.language.interface import Chunk, Examples, Task
from nodetok.language.prompts import SLOT, Prompts
from nodetok.language.settings import LAPLACIAN, SHUFFLED, TEXT
from nodetok.settings import TokenizerSettings
from nodetok.tokenizer import NodeTokenizer
from setrec.errors import DataError
from setrec.ragged import Ragged

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
    texts_of: Sequence[str] | None = None,
    minutes: float | None = None,
) -> Task:
    """Return the task of ranking all entities for both directions of every triple [head, relation, tail].

    ``graph``: undirected, from the training triples. The answer of a training triple is hidden: each epoch splits the
    triples into random folds, a fold is trained with distances without the edges that only its triples have, and the
    given entity does not show the triple's own fact among its neighbours. Other triples of the same two entities stay,
    as for test triples. Metrics are filtered: other known answers do not count as wrong; half of the tied candidates
    count as ranked before the answer.

    With ``minutes`` of CPU time the task trains its own model (:mod:`nodetok.knowledge.completer`) on the triples, the
    ``features`` and ``texts_of`` the entities; without, the language model is trained.

    Raises:
        DataError: a part without triples, or two relations of the same name.
    """
    for part, given in (("train", train), ("valid", valid), ("test", test)):
        if not len(given):
            raise DataError(f"completion: no triple in the {part} part")
    tokenizer = NodeTokenizer.fit(graph, settings)
    names = _spoken(relation_names)
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

    def distmult(seed: int, seconds: float) -> dict[str, np.ndarray]:
        settings = None if minutes is None else CompletionSettings().embedding.model_copy(update={"kind": "distmult"})
        model = kge.train_kge(train, len(graph), len(names), valid, seed, settings, seconds=seconds)
        directions = np.repeat([0, 1], len(test))
        relation = np.tile(test[:, 1], 2)
        queries = np.stack([everything.prompts.nodes[:, 0], relation, directions], axis=1)
        parts = np.array_split(np.arange(len(queries)), max(1, len(queries) // 256))
        parts_measured = [measure(model.scores(queries[rows]), everything.take(rows)) for rows in parts]
        return {name: np.concatenate([part[name] for part in parts_measured]) for name in parts_measured[0]}

    everything = ask(test, hide=False)
    rng = np.random.default_rng(seed)
    sample = valid[rng.permutation(len(valid))[:valid_sample]]
    entities = [str(graph.id(row)) for row in range(len(graph))]
    return Task(
        "completion", graph, tokenizer.table, entities, draw, ask(sample, hide=False), everything, measure,
        "MRR", [text for way in texts for text in way],
        features, facts(train, len(names)), names, node_candidates=True, tokenizer=tokenizer,
        opponents={"DistMult": distmult}, wordings={way[r]: () for way in texts for r in np.unique(train[:, 1])},
        train=None if minutes is None else trainer(
            Knowledge(train, valid, len(graph), len(names), features, texts_of, tokenizer.transform()), texts, graph,
            60 * minutes,
        ),
    )  # fmt: skip


def _spoken(relations: Sequence[str]) -> list[str]:
    """Return the names of relations as questions contain them.

    Raises:
        DataError: two of them are the same there, in any case and spacing.
    """
    names = [SLOT.sub(r"\1", name.strip("_").replace("_", " ")) for name in relations]
    first: dict[str, str] = {}
    for relation, name in zip(relations, names, strict=True):
        other = first.setdefault(" ".join(name.lower().split()), relation)
        if other != relation:
            raise DataError(f"relations {other!r} and {relation!r} are the same in a question: rename one of them")
    return names


def trainer(
    data: Knowledge, texts: Sequence[Sequence[str]], graph: Graph, seconds: float
) -> Callable[[str, Any, Any], CompletionReader]:
    """Return the function that trains the task's own model for an input ablation. Models of one seed differ in their
    tokens only and share all other trained parts; ``text only`` uses text similarity without the graph."""
    trained: dict[int, Completer] = {}

    def run(ablation: str, learning: Any, on_step: Any) -> CompletionReader:
        def say(share: float, what: str) -> None:
            if on_step is not None:
                on_step(int(1000 * share), 1000, what)

        seed = learning.seed
        if ablation == TEXT:
            vectors = data.vectors if data.vectors is not None else lexical_vectors(data.texts or [""] * data.entities)
            made = Completer(None, None, None, torch.from_numpy(centred(vectors)), data.relations)
        else:
            if seed not in trained:
                trained[seed] = train_completer(data, seconds, seed, on_step=say)
            tokens = data.tokens
            if ablation == SHUFFLED and tokens is not None:
                tokens = tokens[np.random.default_rng([seed, 17]).permutation(len(tokens))]
            elif ablation == LAPLACIAN and tokens is not None:
                tokens = eigenvectors(graph, tokens.shape[1], seed)
            made = replace(trained[seed], tokens=None if tokens is None else torch.from_numpy(tokens))
        value = choose_weights(made, data, 1_000, seed)
        made.curve = [{**record, "value": value} for record in made.curve] or [
            {"epoch": 1, "loss": 0.0, "value": value, "seconds": 0.0}
        ]
        return CompletionReader(made, texts)

    return run


def ranked(scores: np.ndarray, examples: Examples, known: dict[tuple[str, int], np.ndarray]) -> dict[str, np.ndarray]:
    """Return filtered reciprocal rank and hits at 1, 3 and 10 of every example."""
    nodes = examples.prompts.nodes[:, 0].tolist()
    answers = [known[key] for key in zip(examples.prompts.texts, nodes, strict=True)]
    rank = kge.filtered_ranks(scores.copy(), examples.targets, Ragged.of(answers))
    return {"MRR": 1 / rank, **{f"Hits@{k}": (rank <= k).astype(np.float64) for k in (1, 3, 10)}}


def answers(triples: np.ndarray, texts: Sequence[Sequence[str]]) -> dict[tuple[str, int], np.ndarray]:
    """Return the known answers by question and given entity; ``texts``: the questions for tails and for heads."""
    rows_of: dict[tuple[str, int], list[int]] = {}
    for head, relation, tail in triples.tolist():
        rows_of.setdefault((texts[0][relation], head), []).append(tail)
        rows_of.setdefault((texts[1][relation], tail), []).append(head)
    return {key: np.unique(rows) for key, rows in rows_of.items()}


def facts(triples: np.ndarray, relations: int) -> np.ndarray:
    """Return the facts of each entity, int64 (2T, 3): its tails by relation r + 1, its heads by relation r + 1 + R."""
    head, relation, tail = triples.astype(np.int64).T
    at_head = np.stack([head, relation + 1, tail], axis=1)
    at_tail = np.stack([tail, relation + 1 + relations, head], axis=1)
    return np.concatenate([at_head, at_tail])
