"""The problems of NLGraph: connectivity, cycles and shortest paths of many small graphs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from nodetok.language.interface import Examples, Task
from nodetok.language.prompts import Prompts
from nodetok.settings import TokenizerSettings
from nodetok.tasks.small_graphs import Small, side_by_side, split_task
from setrec.errors import DataError

Problem = Literal["connectivity", "cycle", "shortest_path"]


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
    """Return a task of NLGraph (Wang et al. 2023): connectivity, cycle detection or shortest path length.

    Answers are yes or no, or the shortest path's total length (the published metric asks for the path itself). A tenth
    of the training part is for validation. The text-only control reads the problem's full text, including the graph.
    ``rows``: rows of the questions in the table, for error messages.

    Raises:
        DataError: a question that cannot be parsed.
    """
    places = range(len(questions)) if rows is None else rows
    read = [_parse(q, a, problem, row) for q, a, row in zip(questions, answers, places, strict=True)]
    graph, table, starts = side_by_side([small for small, _, _ in read], settings)
    names = sorted({answer for _, _, answer in read}, key=lambda name: (len(name), name))
    nodes = [list(range(small.nodes)) if problem == "cycle" else asked_nodes for small, asked_nodes, _ in read]
    width = max(map(len, nodes))
    shown = np.full((len(read), width), -1, dtype=np.int64)
    for row, (asked_nodes, start) in enumerate(zip(nodes, starts[:-1], strict=True)):
        shown[row, : len(asked_nodes)] = np.array(asked_nodes) + start
    texts = [_question(problem, len(asked_nodes)) for asked_nodes in nodes]
    plain = [" ".join(q.split()) + " answer :" for q in questions]
    examples = Examples(Prompts(texts, shown, plain=plain), np.array([names.index(answer) for _, _, answer in read]))
    return split_task(
        f"nlgraph {problem}", graph, table, starts, names, examples, split, [*plain, *texts], seed, places
    )


def _question(problem: Problem, nodes: int) -> str:
    if problem == "cycle":
        return f"is there a cycle among {' '.join(f'[[{slot}]]' for slot in range(nodes))} ? answer :"
    if problem == "connectivity":
        return "is there a path between [[0]] and [[1]] ? answer :"
    return "what is the total weight of the shortest path from [[0]] to [[1]] ? answer :"


def _parse(question: str, answer: str, problem: Problem, row: int) -> tuple[Small, list[int], str]:
    """Return the graph, the nodes of the question, and the answer."""
    body, _, tail = question.partition("Q:")
    weighted = re.findall(r"between node (\d+) and node (\d+) with weight (\d+)(?!\.?\w)", body)
    if len(weighted) != body.count(" with weight "):
        raise DataError("a weight is not a whole number from 0", row=row + 1, column="question")
    pairs = weighted or re.findall(r"\((\d+),\s*(\d+)\)", body)
    ends = np.array([pair[:2] for pair in pairs], dtype=np.int64).reshape(-1, 2)
    weights = np.array([float(pair[2]) for pair in weighted]) if weighted else None
    two = [int(n) for n in re.findall(r"node (\d+)", tail)]
    if (problem != "cycle" and len(two) != 2) or (problem == "shortest_path" and weights is None):
        raise DataError(f"not a {problem} problem of NLGraph's form", row=row + 1, column="question")
    answered = re.search(
        r"total weight of (\d+)(?!\.?\w)" if problem == "shortest_path" else r"\b(yes|no)\b", answer.lower()
    )
    if answered is None:
        raise DataError(f"no answer of NLGraph's form to a {problem} problem", row=row + 1, column="answer")
    numbered = re.search(r"numbered from 0 to (\d+)", body)
    last = max([int(ends.max(initial=0)), *two, int(numbered[1]) if numbered else 0])
    return Small(last + 1, ends, weights), two, answered[1]
