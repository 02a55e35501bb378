"""Prompts with node tokens: text in which ``[[0]]``, ``[[1]]`` ... stand for nodes.

A node is an order-agnostic **set**: its position tokens, its feature token, if any, and a token for each of some
neighbours. Tokens of one set share one position and do not see each other, like the tokens of an item in
``setrec.models.masks``, so permuting a node's neighbours changes nothing. The words of its text follow. A repeated node
has position tokens and text only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

PAD, WORD, POSITION, FEATURE, NEIGHBOUR = range(5)
SLOT = re.compile(r"\[\[(\d+)\]\]")
EDGE_TEXT = ("edge :", " .")
"""Words before and after the text of an edge."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts: ``texts`` (B,), and ``nodes`` int64 (B, S): the rows of [[0]] .. [[S - 1]], -1 for none.

    ``hidden`` int64 (B, S, 2) or ``None``: the neighbour and relation that the node in that slot must not show, because
    they are the answer; a relation of -1 stands for all. ``plain``: the whole prompt as text, if it is more than the
    words of the nodes; it is read by models without node tokens. ``edge_texts``: the text of the edge that a prompt is
    about, shown in words before it.
    """

    texts: Sequence[str]
    nodes: np.ndarray
    hidden: np.ndarray | None = None
    plain: Sequence[str] | None = None
    edge_texts: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: np.ndarray) -> Prompts:
        """Return the prompts at ``rows``."""
        hidden = None if self.hidden is None else self.hidden[rows]
        plain, edges = (None if t is None else [t[row] for row in rows] for t in (self.plain, self.edge_texts))
        return Prompts([self.texts[row] for row in rows], self.nodes[rows], hidden, plain, edges)


@dataclass(frozen=True, eq=False)
class Neighbourhoods:
    """Up to M neighbours of every node and the relation to each, from 1 (0: none): int64 (V, M), -1 if there are fewer.
    A neighbour by two relations occurs twice."""

    rows: np.ndarray
    relations: np.ndarray

    @classmethod
    def sample(cls, nodes: int, facts: np.ndarray, most: int, rng: np.random.Generator) -> Neighbourhoods:
        """Sample at most ``most`` facts of each node; ``facts`` int (A, 3): node, relation, neighbour."""
        node, relation, neighbour = facts[np.lexsort((rng.random(len(facts)), facts[:, 0]))].T
        degrees = np.bincount(node, minlength=nodes)
        rank = np.arange(len(node)) - (np.cumsum(degrees) - degrees)[node]
        keep = rank < most
        rows = np.full((nodes, int(min(most, degrees.max(initial=0)))), -1, dtype=np.int64)
        kinds = np.zeros_like(rows)
        rows[node[keep], rank[keep]] = neighbour[keep]
        kinds[node[keep], rank[keep]] = relation[keep]
        return cls(rows, kinds)


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """Input arrays of the model, int64 (B, H): the kind of every token, a word id or node row (row * tokens + number if
    a node has several), the relation of a neighbour, and the position, which the tokens of one set share."""

    kinds: Tensor
    values: Tensor
    relations: Tensor
    places: Tensor

    @property
    def lengths(self) -> Tensor:
        """Length of each prompt in positions, int64 (B,): the position of an answer."""
        return self.places.masked_fill(self.kinds == PAD, -1).amax(dim=1) + 1

    def rows(self, groups: int, features: int) -> Tensor:
        """Return the node row of each token, int64 (B, H); -1 for text and padding."""
        own = torch.where(self.kinds == POSITION, self.values // max(1, groups), self.values)
        own = torch.where(self.kinds == FEATURE, self.values // max(1, features), own)
        return own.masked_fill(self.kinds <= WORD, -1)

    def sees(self, *, causal: bool) -> Tensor:
        """Return the attention mask, bool (B, H, H): earlier positions (``causal``) or all other positions, and the
        token itself; never padding."""
        rows, columns = self.places[:, :, None], self.places[:, None, :]
        allowed = columns < rows if causal else columns != rows
        allowed = allowed & (self.kinds != PAD)[:, None, :]
        return allowed | torch.eye(self.places.shape[1], dtype=torch.bool, device=self.places.device)

    def asks(self, queries: int) -> Tensor:
        """Return the mask of ``queries`` queries, bool (B, S, H): all but padding."""
        return (self.kinds != PAD)[:, None, :].expand(-1, queries, -1)

    def to(self, device: torch.device) -> PromptBatch:
        """Return the batch on ``device``."""
        return PromptBatch(*(x.to(device) for x in (self.kinds, self.values, self.relations, self.places)))


@dataclass(frozen=True, eq=False)
class PromptText:
    """Texts in prompts.

    ``nodes``: the text of every node (``None``: no node has words), of which a prompt shows the first ``node_budget``
    tokens; likewise ``edge_budget`` for texts of edges. ``prefix``: the start of every prompt, for instance the classes
    to choose from. ``template``: text before and after the prompt, as in a checkpoint's chat template.
    """

    nodes: Sequence[str] | None = None
    node_budget: int = 32
    prefix: str = ""
    template: tuple[str, str] = ("", "")
    edge_budget: int = 0


class PromptEncoder:
    """Encodes prompts as arrays; the tokens of a text are cached.

    ``groups`` position tokens and ``features`` feature tokens per node (0: none).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        groups: int,
        features: int,
        neighbourhoods: Neighbourhoods | None,
        longest: int = 512,
        *,
        plain: bool = False,
        text: PromptText | None = None,
    ) -> None:
        self.tokenizer, self.groups, self.features = tokenizer, groups, features
        self.neighbourhoods, self.longest, self.plain = neighbourhoods, longest, plain
        self.text = text or PromptText()
        self._words = lru_cache(maxsize=200_000)(self._look_up)
        self._template = lru_cache(maxsize=50_000)(self._layout)
        before, after = self.text.template
        # If a tokenizer has a begin token (Gemma), its chat template contains it.
        begins = list(tokenizer("")["input_ids"])[:1] if not before else []
        self._before = begins if begins and begins[0] == tokenizer.bos_token_id else self._words(before)
        self._after = self._words(after)

    def __call__(self, prompts: Prompts) -> PromptBatch:
        """Assemble a batch; texts longer than ``longest`` tokens lose their beginning."""
        templates = self._templates(prompts)
        width = max(t.shape[1] for t in templates)
        packed = np.zeros((len(templates), 4, width), dtype=np.int64)
        packed[:, 3] = width
        for row, template in enumerate(templates):
            packed[row, :, : template.shape[1]] = template
        kinds, values, extra, places = packed.transpose(1, 0, 2)
        relations = np.zeros_like(values)
        if prompts.nodes.shape[1]:
            self._fill(prompts, kinds, values, extra, relations)
        order = np.argsort(kinds == PAD, axis=1, kind="stable")[:, : int((kinds != PAD).sum(axis=1).max())]
        arrays = (np.take_along_axis(x, order, axis=1) for x in (kinds, values, relations, places))
        return PromptBatch(*(torch.from_numpy(x) for x in arrays))

    def lengths(self, prompts: Prompts) -> np.ndarray:
        """Return an estimate of the number of tokens of each prompt, int64 (B,), hidden neighbours and repeated nodes
        included."""
        fixed = np.array([int((t[0] != NEIGHBOUR).sum()) for t in self._templates(prompts)], dtype=np.int64)
        if self.neighbourhoods is None:
            return fixed
        counts = (self.neighbourhoods.rows >= 0).sum(axis=1)
        total: np.ndarray = fixed + np.where(prompts.nodes >= 0, counts[prompts.nodes], 0).sum(axis=1)
        return total

    def _fill(
        self, prompts: Prompts, kinds: np.ndarray, values: np.ndarray, extra: np.ndarray, relations: np.ndarray
    ) -> None:
        """Replace slots by nodes; ``values`` holds slots, ``extra`` the group or the neighbour's number."""
        row, column = np.nonzero(kinds > WORD)
        kind, slot, number = kinds[row, column], values[row, column], extra[row, column]
        node = prompts.nodes[row, slot]
        tokens = np.where(kind == POSITION, self.groups, np.where(kind == FEATURE, self.features, 1))
        value = node * tokens + np.where(kind == NEIGHBOUR, 0, number)
        if self.neighbourhoods is not None and self.neighbourhoods.rows.shape[1]:
            is_neighbour = kind == NEIGHBOUR
            at = np.where(is_neighbour, number, 0)
            neighbour, relation = self.neighbourhoods.rows[node, at], self.neighbourhoods.relations[node, at]
            gone = neighbour < 0
            if prompts.hidden is not None:
                hidden, own = prompts.hidden[row, slot].T
                # A fact that relates a node to itself is a neighbour in both directions.
                gone |= (neighbour == hidden) & ((relation == own) | (own < 0) | (hidden == node))
            value = np.where(is_neighbour, neighbour, value)
            relations[row, column] = np.where(is_neighbour & ~gone, relation, 0)
            kind = np.where(is_neighbour & gone, PAD, kind)
        kinds[row, column], values[row, column] = kind, np.where(kind == PAD, 0, value)

    def _templates(self, prompts: Prompts) -> list[np.ndarray]:
        texts = prompts.plain if self.plain and prompts.plain is not None else prompts.texts
        rows = prompts.nodes.tolist() if self.text.nodes is not None else [[]] * len(texts)
        edges = [""] * len(texts) if prompts.edge_texts is None else prompts.edge_texts
        return [self._template(t, tuple(nodes), edge) for t, nodes, edge in zip(texts, rows, edges, strict=True)]

    def _look_up(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text.strip() else []

    def _layout(self, text: str, nodes: tuple[int, ...], edge: str) -> np.ndarray:
        """Return kinds, values (token ids or slots), numbers and positions of a text, int64 (4, H); ``nodes`` are the
        rows whose texts it includes, ``edge`` is the text of its edge."""
        columns: list[tuple[int, int, int, int]] = []
        place = 0
        named: set[int] = set()

        def put(words: Sequence[int]) -> None:
            nonlocal place
            columns.extend((WORD, word, 0, place + number) for number, word in enumerate(words))
            place += len(words)

        put(self._words(self.text.prefix))
        if shown := self._words(f" {edge}")[: self.text.edge_budget]:
            put([*self._words(EDGE_TEXT[0]), *shown, *self._words(EDGE_TEXT[1])])
        parts = SLOT.split(text)
        for index, part in enumerate(parts):
            if index % 2 == 0:
                # A node's text begins with a space; two in a row are a token of their own in a checkpoint's vocabulary.
                put(self._words(part.rstrip() if index < len(parts) - 1 else part))
                continue
            slot = int(part)
            columns += self._node(slot, place, again=slot in named)
            place += 1
            named.add(slot)
            if nodes and self.text.nodes is not None and nodes[slot] >= 0:
                put(self._words(f" {self.text.nodes[nodes[slot]]}")[: self.text.node_budget])
        room = max(0, self.longest - len(self._before) - len(self._after))
        columns = columns[max(0, len(columns) - room) :]
        shift = columns[0][3] if columns else 0
        body = [(kind, value, number, at - shift + len(self._before)) for kind, value, number, at in columns]
        end = (body[-1][3] if body else len(self._before) - 1) + 1
        whole = [
            *((WORD, word, 0, at) for at, word in enumerate(self._before)),
            *body,
            *((WORD, word, 0, end + at) for at, word in enumerate(self._after)),
        ]
        return np.array(whole, dtype=np.int64).reshape(-1, 4).T

    def _node(self, slot: int, place: int, *, again: bool) -> list[tuple[int, int, int, int]]:
        """Return the tokens of a node at a position; repeated nodes (``again``) have position tokens only."""
        columns = [(POSITION, slot, group, place) for group in range(self.groups)]
        if again:
            return columns
        columns += [(FEATURE, slot, hop, place) for hop in range(self.features)]
        if self.neighbourhoods is not None:
            columns += [(NEIGHBOUR, slot, m, place) for m in range(self.neighbourhoods.rows.shape[1])]
        return columns


@dataclass(frozen=True)
class Shape:
    """Sizes that follow from the graph and the task: distance columns, feature width and tokens, relations,
    candidates, whether candidates are nodes (then they carry features and positions as well), and whether they are
    ``described`` by vectors of texts in the space of the features."""

    columns: int
    features: int
    feature_tokens: int
    relations: int
    candidates: int
    node_candidates: bool
    words: int
    described: bool = False


@dataclass(frozen=True, eq=False)
class NodeData:
    """Data of the nodes: distances (V, columns) to the anchors, features (V, tokens, F) or ``None``.

    ``classes`` (C, F): vectors of the candidates' texts, if they are described; ``answers`` (C, d): vectors of other
    candidates' names than those of training, with a pretrained language model; ``unseen``: whether they are others.
    ``raw``: the table holds coordinates to
    be read as they are, such as eigenvectors, not distances. ``near`` int64 (V, M) or ``None``: neighbours of every
    node, -1 for none.
    """

    table: Tensor
    features: Tensor | None
    raw: bool = False
    near: Tensor | None = None
    classes: Tensor | None = None
    answers: Tensor | None = None
    unseen: bool = False

    def to(self, device: torch.device) -> NodeData:
        """Return the data on ``device``."""
        optional = (self.features, self.near, self.classes, self.answers)
        features, near, classes, answers = (None if x is None else x.to(device) for x in optional)
        return NodeData(self.table.to(device), features, self.raw, near, classes, answers, self.unseen)


def attach(
    table: np.ndarray, features: np.ndarray | None, classes: np.ndarray | None = None, *, raw: bool = False
) -> NodeData:
    """Convert the arrays of a graph to tensors."""
    own, texts = (
        None if x is None else torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)) for x in (features, classes)
    )
    return NodeData(torch.from_numpy(np.ascontiguousarray(table)), own, raw, classes=texts)
