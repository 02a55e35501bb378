"""Answers to free-text questions, with their supporting subgraph, or a refusal with its reason."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from scipy import sparse

from nodetok.asking.artifact import GraphArtifact
from nodetok.asking.nodes import AmbiguousNodeError, NodeFinder
from nodetok.asking.questions import SLOT, QuestionMatcher
from nodetok.asking.subgraph import retrieve
from nodetok.asking.wordings import STRUCTURE, Wordings
from nodetok.knowledge.reader import CompletionReader
from nodetok.language.interface import Examples
from nodetok.language.prompts import Prompts
from nodetok.language.training import Reader
from setrec.errors import SetRecError
from setrec.rows import top_k

NAME = re.compile(r"\"[^\"]+\"|\b[^\W\d_]+[-_]?\d\w*")
"""What looks like a node's name: quoted words, and letters followed by digits."""
SHOWN = 8
"""Maximum number of known questions in the reason for a refusal."""


@dataclass(frozen=True)
class GroundedAnswer:
    """An answer: ``answer`` is the best candidate, ``None`` if the question is refused; ``sentence``: question and
    answer in words. ``nodes`` and ``edges`` ([source, target] or [source, relation, target]) by id, those of the
    question first. ``confidence``: probability of the answer, or, if none was computed, of the match to a known
    question. ``ranked``: candidates with probabilities, best first."""

    answer: str | None
    sentence: str
    nodes: list[str]
    edges: list[list[str]]
    confidence: float
    refused: bool
    reason: str = ""
    ranked: list[tuple[str, float]] = field(default_factory=list)


class GraphAnswerer:
    """Answers questions with a trained artifact.

    A question is matched to one of the prompts that the model was trained on, and read as that prompt, so that its
    wording does not change the answer.
    """

    def __init__(self, artifact: GraphArtifact) -> None:
        self.artifact = artifact

    @cached_property
    def matcher(self) -> QuestionMatcher:
        """Matcher of free questions to the prompts of the artifact."""
        return QuestionMatcher({prompt: Wordings.split(texts) for prompt, texts in self.artifact.wordings.items()})

    @cached_property
    def _finder(self) -> NodeFinder:
        texts = [text for group in STRUCTURE.values() for text in group]
        texts += [text for prompt, group in self.artifact.wordings.items() for text in (prompt, *group)]
        reserved = {word for text in texts for word in SLOT.sub(" ", text).split()}
        return NodeFinder(self.artifact.ids, self.artifact.texts, reserved)

    @cached_property
    def _adjacency(self) -> sparse.csr_matrix:
        edges, nodes = self.artifact.edges, len(self.artifact.ids)
        if edges is None:
            return sparse.csr_matrix((nodes, nodes), dtype=np.float32)
        half = sparse.coo_matrix((np.ones(len(edges), dtype=np.float32), edges.T), shape=(nodes, nodes)).tocsr()
        return ((half + half.T) > 0).astype(np.float32)

    def ask(self, question: str, k: int = 5, *, written: bool = False) -> GroundedAnswer:
        """Answer a question whose nodes are named by id, title or ``[[id]]``: the best candidate, or generated text if
        ``written``.

        Raises:
            UnknownNodeError: an id in double brackets is not in the graph.
            SetRecError: nothing was trained, the question is empty, or the model was not trained to write.
        """
        reader = self.artifact.reader
        if reader is None:
            raise SetRecError("this graph has node tokens but no trained model to ask")
        if written:
            _refuse_unless_written(reader)
        if not question.strip():
            raise SetRecError("the question is empty")
        try:
            text, rows = self._finder.find(question)
        except AmbiguousNodeError as error:
            return self._refusal([], 0.0, str(error))
        prompt, order, certain = self._prompt(text)
        if prompt is None:
            return self._refusal(rows, certain, self._scope(rows, text))
        rows = [rows[place] for place in order]
        if unknown := [self.artifact.ids[row] for row in rows if self._is_unknown(row)]:
            return self._refusal(rows, certain, f"nothing is known about {unknown[0]}: it has no edge and no text")
        edge = None
        if self.artifact.edge_texts is not None:
            edge = self.artifact.edge(*rows)
            if edge is None:
                first, second = (self.artifact.ids[row] for row in rows)
                return self._refusal(rows, certain, f"there is no edge between {first} and {second}")
            rows = self.artifact.ends(edge)
        examples = self._examples(prompt, rows, edge)
        ranked = self._ranked(examples, k)
        best, chance = ranked[0]
        if chance < self.artifact.threshold:
            reason = (
                f"the best answer has a score of {chance:.2f}, below the {self.artifact.threshold:.2f} of validation"
            )
            return self._refusal(rows, chance, reason, ranked)
        around, edges = retrieve(self._adjacency, rows, extra=4 if len(rows) == 1 else 0)
        named = reader.write(examples)[0] if written else self._named(best, rows)
        return GroundedAnswer(
            named, f"{self._spoken(prompt, rows)} {named}", [self.artifact.ids[row] for row in around],
            [self._edge(edge) for edge in edges], chance, False, "", ranked,
        )  # fmt: skip

    def _is_unknown(self, row: int) -> bool:
        """Return whether a model whose answers depend on what is known of a node has nothing to read of this one."""
        if self.artifact.task not in ("completion", "classification") or self._adjacency[[row]].nnz:
            return False
        if self.artifact.texts is not None and (self.artifact.texts[row] or "").strip():
            return False
        data = getattr(self.artifact.reader, "data", None)
        return data is None or data.features is None or not bool(data.features[row].any())

    def _examples(self, prompt: str, rows: list[int], edge: int | None) -> Examples:
        nodes = np.array([rows], dtype=np.int64).reshape(1, -1)
        prompts = Prompts([prompt], nodes)
        if edge is not None and self.artifact.edge_texts is not None:
            hidden = np.stack([nodes[:, ::-1], np.full_like(nodes, -1)], axis=2)
            prompts = Prompts([prompt], nodes, hidden, edge_texts=[self.artifact.edge_texts[edge]])
        return Examples(prompts, np.zeros(1, dtype=np.int64))

    def _prompt(self, text: str) -> tuple[str | None, tuple[int, ...], float]:
        """Return the prompt that a question matches (or ``None``), the order of its nodes in the slots, and the
        probability of the match."""
        match = self.matcher.match(text)
        return match.template or None, match.order, match.probability

    def _ranked(self, examples: Examples, k: int) -> list[tuple[str, float]]:
        assert self.artifact.reader is not None
        scores, _ = next(self.artifact.reader.scores(examples))
        chances = torch.softmax(torch.from_numpy(scores[0]), dim=0).numpy()
        best = top_k(chances[None], k)[0]
        return [(self.artifact.candidates[row], float(chances[row])) for row in best]

    def _scope(self, rows: list[int], text: str) -> str:
        """Return the reason for refusing a question; words with digits and quoted ones look like names of nodes."""
        known = [" ".join(SLOT.sub("…", prompt.removesuffix("answer :")).split()) for prompt in self.artifact.wordings]
        more = ["…"] if len(known) > SHOWN else []
        missing = "".join(f"no node is named {name}; " for name in NAME.findall(SLOT.sub(" ", text)))
        return (
            f"{missing}with {len(rows)} node{'' if len(rows) == 1 else 's'} named, this is not one of the questions"
            f" that the model was trained on: {'; '.join(known[:SHOWN] + more)}"
        )

    def _refusal(
        self, rows: list[int], certain: float, reason: str, ranked: Sequence[tuple[str, float]] = ()
    ) -> GroundedAnswer:
        nodes = [self.artifact.ids[row] for row in rows]
        return GroundedAnswer(None, f"No answer: {reason}.", nodes, [], certain, True, reason, list(ranked))

    def _named(self, best: str, rows: list[int]) -> str:
        """Return the answer, with the node's id after ``first`` and ``second``."""
        place = {"first": 1, "second": 2}.get(best)
        return best if place is None or len(rows) != 3 else f"{best} ({self.artifact.ids[rows[place]]})"

    def _spoken(self, prompt: str, rows: list[int]) -> str:
        question = SLOT.sub(lambda match: self.artifact.ids[rows[int(match[1])]], prompt.removesuffix("answer :"))
        return " ".join(question.split()).replace(" ?", "?").replace(" ,", ",")

    def _edge(self, edge: tuple[int, int]) -> list[str]:
        source, target = (self.artifact.ids[row] for row in edge)
        name = self.artifact.relation_of(*edge)
        return [source, target] if name is None else [source, name, target]


def _refuse_unless_written(reader: Reader | CompletionReader) -> None:
    """Raise a SetRecError if a model cannot generate text."""
    if isinstance(reader, CompletionReader):
        raise SetRecError("this model ranks entities and does not answer in words")
    s = reader.model.settings
    if s.frozen_layers or (not s.text_loss and s.backbone.pretrained is None):
        raise SetRecError("this model was not trained to answer in words: train with --set model.text_loss=1")
