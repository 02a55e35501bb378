"""The stance task of ExplaGraphs: whether an argument supports or counters a belief, given a graph of concepts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from nodetok.language.interface import Examples, Task
from nodetok.language.prompts import SLOT, Prompts
from nodetok.settings import TokenizerSettings
from nodetok.tasks.small_graphs import Small, side_by_side, split_task
from setrec.errors import DataError

Encode = Callable[[Sequence[str]], np.ndarray]


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
    """Return the stance task of ExplaGraphs (Saha et al. 2021).

    Belief and argument are nodes without edges, in addition to the concepts. The prompt contains belief, argument and
    every triple, each node with its words, the relations as words; ``encode`` adds feature vectors of the texts as
    tokens.
    """
    small, texts, words, concepts, counts = [], [], [], [], []
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
        edges_text = " ; ".join(f"[[{place[h]}]] {relation} [[{place[t]}]]" for h, relation, t in triples)
        texts.append(f"belief : [[0]] argument : [[1]] graph : {edges_text} . stance ? answer :")
        words.append(" ".join([belief, argument, *(part for triple in triples for part in triple)]))
        concepts += [belief, argument, *names]
        counts.append(2 + len(names))
        begin += 2 + len(names)
    graph, table, starts = side_by_side(small, settings)
    rows = np.full((len(texts), max(counts)), -1, dtype=np.int64)
    for row, (count, start) in enumerate(zip(counts, starts[:-1], strict=True)):
        rows[row, :count] = np.arange(start, start + count)
    names = sorted(set(stances))
    examples = Examples(Prompts(texts, rows), np.array([names.index(s) for s in stances]))
    task = split_task("stance", graph, table, starts, names, examples, split, [*texts, *words], seed)
    source, target = graph.arcs()
    kinds_of = [relations.get(arc, 0) for arc in zip(source.tolist(), target.tolist(), strict=True)]
    task.facts = np.stack([source, np.array(kinds_of, dtype=np.int64), target], axis=1)
    task.relation_names = kinds
    task.node_texts, task.show_classes = concepts, True
    task.features = None if encode is None else encode(concepts)
    return task


def _triples(graph: str, row: int) -> list[tuple[str, str, str]]:
    """Parse ``(head; relation; tail)(...)`` into triples."""
    pattern = re.compile(r"\(([^()]*)\)")
    triples = [tuple(part.strip() for part in body.split(";")) for body in pattern.findall(graph)]
    bad = any(len(triple) != 3 or not all(triple) for triple in triples)
    if bad or pattern.sub("", graph).strip(" \t\r\n,;"):
        raise DataError("a triple is not (head; relation; tail)", row=row + 1, column="graph")
    return [(h, SLOT.sub(r"\1", r), t) for h, r, t in triples]  # a slot in words would stand for a node
