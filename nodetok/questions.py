"""Questions about many small graphs, one each: NLGraph's problems and ExplaGraphs' stances.

All graphs stand side by side in one; each has anchors of its own, so column k of the table is the distance to the
k-th anchor of a node's own graph.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nodetok import anchors
from nodetok.distances import UNREACHABLE, DistanceSettings, distances
from nodetok.graph import Graph
from nodetok.prompts import Prompts
from nodetok.tasks import Chunk, Examples, Task, accuracy
from nodetok.tokenizer import TokenizerSettings
from setrec.errors import DataError

Problem = Literal["connectivity", "cycle", "shortest_path"]
Encode = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True, eq=False)
class Small:
    """One graph: its number of nodes, edges int (E, 2) and their lengths."""

    nodes: int
    edges: np.ndarray
    weights: np.ndarray | None = None


def side_by_side(graphs: Sequence[Small], settings: TokenizerSettings) -> tuple[Graph, np.ndarray, np.ndarray]:
    """The graphs as one, the table (V, K) of distances inside each, and where each begins, int64 (graphs + 1,).

    K is the number of anchors asked for; a graph with fewer nodes uses all of them, in order, and leaves the rest
    unreachable.
    """
    starts = np.concatenate([[0], np.cumsum([g.nodes for g in graphs])])
    ends = np.concatenate([g.edges + start for g, start in zip(graphs, starts[:-1], strict=True)])
    lengths = [g.weights for g in graphs if g.weights is not None]
    weighted = len(lengths) == len(graphs)
    weights = np.concatenate(lengths) if weighted else None
    whole = Graph.from_arrays(ends[:, 0], ends[:, 1], int(starts[-1]), weights=weights)
    wanted = settings.anchors.count or max(g.nodes for g in graphs)
    kind = DistanceSettings(kind="weighted") if weighted else settings.distances
    blank: float = UNREACHABLE if kind.kind == "hops" else np.inf
    table = np.full((len(whole), wanted), blank, dtype=np.uint8 if kind.kind == "hops" else np.float32)
    for small, start in zip(graphs, starts[:-1], strict=True):
        own = Graph.from_arrays(small.edges[:, 0], small.edges[:, 1], small.nodes, weights=small.weights)
        few = small.nodes <= wanted
        rows = np.arange(small.nodes) if few else anchors.choose(own, settings.anchors).rows
        table[start : start + small.nodes, : len(rows)] = distances(own, rows, kind)
    return whole, table, starts


def nlgraph(
    questions: Sequence[str],
    answers: Sequence[str],
    split: Sequence[str],
    problem: Problem,
    settings: TokenizerSettings,
    seed: int = 0,
    *,
    rows: Sequence[int] | None = None,
) -> Task:
    """NLGraph (Wang et al. 2023): is there a path, is there a cycle, how long is the shortest path?

    Answers are yes or no, or the shortest path's total length (the published metric asks for the path itself). A tenth
    of the training part is for validation. The text-only control reads the problem as it is printed, graph and all.
    ``rows``: where in the table the questions stand, for errors.

    Raises:
        DataError: a question that cannot be parsed.
    """
    places = range(len(questions)) if rows is None else rows
    read = [_parse(q, a, problem, row) for q, a, row in zip(questions, answers, places, strict=True)]
    graph, table, starts = side_by_side([small for small, _, _ in read], settings)
    names = sorted({answer for _, _, answer in read}, key=lambda name: (len(name), name))
    nodes = [list(range(small.nodes)) if problem == "cycle" else asked for small, asked, _ in read]
    width = max(map(len, nodes))
    shown = np.full((len(read), width), -1, dtype=np.int64)
    for row, (asked, start) in enumerate(zip(nodes, starts[:-1], strict=True)):
        shown[row, : len(asked)] = np.array(asked) + start
    texts = [_question(problem, len(asked)) for asked in nodes]
    plain = [" ".join(q.split()) + " answer :" for q in questions]
    examples = Examples(Prompts(texts, shown, plain=plain), np.array([names.index(answer) for _, _, answer in read]))
    return _split(f"nlgraph {problem}", graph, table, starts, names, examples, split, [*plain, *texts], seed)


def stance(
    beliefs: Sequence[str],
    arguments: Sequence[str],
    stances: Sequence[str],
    graphs: Sequence[str],
    split: Sequence[str],
    encode: Encode | None,
    settings: TokenizerSettings,
    seed: int = 0,
) -> Task:
    """ExplaGraphs (Saha et al. 2021): does the argument support or counter the belief, given a graph of concepts?

    Belief and argument are nodes without edges beside the concepts; ``encode`` gives texts their feature vectors, which
    then stand for the words.
    """
    small, texts, plain, concepts, counts = [], [], [], [], []
    triples_of = [_triples(graph, row) for row, graph in enumerate(graphs)]
    kinds = sorted({relation for triples in triples_of for _, relation, _ in triples})
    relations: dict[tuple[int, int], int] = {}
    begin = 0
    for belief, argument, triples in zip(beliefs, arguments, triples_of, strict=True):
        names = list(dict.fromkeys(end for head, _, tail in triples for end in (head, tail)))
        place = {name: 2 + row for row, name in enumerate(names)}
        edges = np.array([(place[h], place[t]) for h, _, t in triples], dtype=np.int64).reshape(-1, 2)
        for head, relation, tail in triples:
            a, b, kind = begin + place[head], begin + place[tail], kinds.index(relation)
            relations[a, b], relations[b, a] = kind + 1, kind + 1 + len(kinds)
        small.append(Small(2 + len(names), edges))
        said = f"belief : {belief} argument : {argument} [[0]] [[1]]"
        slots = " ".join(f"[[{slot}]]" for slot in range(2, 2 + len(names)))
        # Two thousand examples are learned by heart from their words: with features, words are left out.
        shown = "belief [[0]] argument [[1]]" if encode else said
        texts.append(f"{shown} concepts {slots} stance ? answer :")
        plain.append(f"{said} stance ? answer :")
        concepts += [belief, argument, *names]
        counts.append(2 + len(names))
        begin += 2 + len(names)
    graph, table, starts = side_by_side(small, settings)
    rows = np.full((len(texts), max(counts)), -1, dtype=np.int64)
    for row, (count, start) in enumerate(zip(counts, starts[:-1], strict=True)):
        rows[row, :count] = np.arange(start, start + count)
    names = sorted(set(stances))
    examples = Examples(Prompts(texts, rows, plain=plain), np.array([names.index(s) for s in stances]))
    task = _split("stance", graph, table, starts, names, examples, split, texts, seed)
    source, target = graph.arcs()
    kinds_of = [relations.get(arc, 0) for arc in zip(source.tolist(), target.tolist(), strict=True)]
    task.facts = np.stack([source, np.array(kinds_of, dtype=np.int64), target], axis=1)
    task.relation_names = kinds
    task.features = None if encode is None else encode(concepts)
    return task


def _split(
    name: str, graph: Graph, table: np.ndarray, starts: np.ndarray, names: Sequence[str], examples: Examples,
    split: Sequence[str], words: Sequence[str], seed: int,
) -> Task:  # fmt: skip
    """``test`` (or ``dev``) is the test part; of ``train`` a tenth validates, unless there is a ``valid`` part."""
    part = np.array(split)
    test = np.flatnonzero((part == "test") | (part == "dev"))
    train = np.random.default_rng(seed).permutation(np.flatnonzero(part == "train"))
    valid = np.flatnonzero(part == "valid")
    if not len(valid):
        valid, train = train[: len(train) // 10], train[len(train) // 10 :]
    if not (len(train) and len(valid) and len(test)):
        raise DataError(f"{name}: the split needs a training and a test part")

    def draw(rng: np.random.Generator) -> Iterator[Chunk]:
        yield examples.take(rng.permutation(train)), None

    learned = set(train.tolist())
    seen = [word for row, word in enumerate(words) if row % len(examples) in learned]
    return Task(
        name, graph, table, names, draw, examples.take(valid), examples.take(test), accuracy, "accuracy",
        [*seen, *names], starts=starts,
    )  # fmt: skip


def _question(problem: Problem, nodes: int) -> str:
    if problem == "cycle":
        return f"is there a cycle among {' '.join(f'[[{slot}]]' for slot in range(nodes))} ? answer :"
    if problem == "connectivity":
        return "is there a path between [[0]] and [[1]] ? answer :"
    return "what is the total weight of the shortest path from [[0]] to [[1]] ? answer :"


def _parse(question: str, answer: str, problem: Problem, row: int) -> tuple[Small, list[int], str]:
    """The graph, the nodes asked for, and the answer."""
    body, _, asked = question.partition("Q:")
    weighted = re.findall(r"between node (\d+) and node (\d+) with weight (\d+)", body)
    pairs = weighted or re.findall(r"\((\d+),\s*(\d+)\)", body)
    ends = np.array([pair[:2] for pair in pairs], dtype=np.int64).reshape(-1, 2)
    weights = np.array([float(pair[2]) for pair in weighted]) if weighted else None
    two = [int(n) for n in re.findall(r"node (\d+)", asked)]
    if (problem != "cycle" and len(two) != 2) or (problem == "shortest_path" and weights is None):
        raise DataError(f"not a {problem} problem of NLGraph's form", row=row + 1, column="question")
    said = re.search(r"total weight of (\d+)" if problem == "shortest_path" else r"\b(yes|no)\b", answer.lower())
    if said is None:
        raise DataError(f"no answer of NLGraph's form to a {problem} problem", row=row + 1, column="answer")
    numbered = re.search(r"numbered from 0 to (\d+)", body)
    last = max([int(ends.max(initial=0)), *two, int(numbered[1]) if numbered else 0])
    return Small(last + 1, ends, weights), two, said[1]


def _triples(graph: str, row: int) -> list[tuple[str, str, str]]:
    """``(head; relation; tail)(...)`` to triples."""
    found = [tuple(part.strip() for part in body.split(";")) for body in re.findall(r"\(([^()]*)\)", graph)]
    if any(len(triple) != 3 for triple in found) or (graph.strip() and not found):
        raise DataError("a triple is not (head; relation; tail)", row=row + 1, column="graph")
    return [(h, r, t) for h, r, t in found]
