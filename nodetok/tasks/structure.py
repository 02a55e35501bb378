"""Structural questions on any graph: hop count, nearer node, connectivity, common neighbours and adjacency."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np

from nodetok.asking.questions import QuestionMatcher
from nodetok.asking.wordings import STRUCTURE, TEMPLATES, Wordings
from nodetok.distances import UNREACHABLE, hops, reached
from nodetok.graph import Graph
from nodetok.language.interface import Chunk, Examples, Task
from nodetok.language.prompts import Prompts
from nodetok.settings import TokenizerSettings
from nodetok.tokenizer import NodeTokenizer
from setrec.errors import DataError

FARTHEST = 6
FARTHER = f"{FARTHEST + 1} or more"
ANSWERS = (
    *(str(n) for n in range(FARTHEST + 1)), FARTHER, "no path", "3 or more", "first", "second", "neither", "yes", "no",
)  # fmt: skip
TRAIN, VALID, TEST = (0, 1, 2, 3, 4, 5, 6, 7), (8,), (9,)


def structure(
    graph: Graph, settings: TokenizerSettings, per_epoch: int = 32_768, held_out: int = 2_000, seed: int = 0
) -> Task:
    """Return the task of structural questions with exact answers, resampled every epoch.

    Pairs of nodes are held out: a tenth for validation, a tenth for the test, never seen in training in either order.
    Answers are balanced, as far as the graph has pairs for each: 1 to 6 hops, more, and no path; nearer, farther, and
    as far; chance is 1/8, 1/3, 1/2, 1/4, 1/2. Accuracy is also reported in unseen wordings: it is multiplied by the
    share of a question's test wordings that are recognised (:mod:`nodetok.asking.questions`).

    Raises:
        DataError: the graph has too few pairs of nodes for questions and held-out parts.
    """
    view = graph.undirected
    rng = np.random.default_rng(seed)
    asker = _Asker(view, rng)
    refusal = DataError(f"too few pairs of nodes to ask of: {len(graph)} nodes, {graph.edges} edges")
    if not asker.kinds:
        raise refusal
    tokenizer = NodeTokenizer.fit(graph, settings)

    def ask(count: int, parts: tuple[int, ...], rng: np.random.Generator) -> Examples:
        kinds = asker.kinds
        made = [make(count // len(kinds), parts, rng) for make in kinds.values()]
        nodes, targets = np.concatenate([n for n, _ in made]), np.concatenate([t for _, t in made])
        texts = [text for name, (n, _) in zip(kinds, made, strict=True) for text in [TEMPLATES[name]] * len(n)]
        order = rng.permutation(len(targets))
        return Examples(Prompts([texts[i] for i in order], nodes[order]), targets[order])

    def draw(rng: np.random.Generator) -> Iterator[Chunk]:
        yield ask(per_epoch, TRAIN, rng), None

    wordings = {TEMPLATES[name]: STRUCTURE[name] for name in asker.kinds}
    words = [*(TEMPLATES[name] for name in asker.kinds), *ANSWERS]
    valid, test = (ask(held_out * len(asker.kinds), part, rng) for part in (VALID, TEST))
    some = ask(64 * len(asker.kinds), TRAIN, np.random.default_rng(seed))
    if not (len(valid) and len(test) and len(some)):
        raise refusal
    return Task(
        "structure", graph, tokenizer.table, ANSWERS, draw, valid, test, _Measure(wordings), "mean accuracy", words,
        tokenizer=tokenizer, wordings=wordings,
    )  # fmt: skip


class _Measure:
    """Accuracy of all questions, of each kind, and of all in the held-out wordings."""

    def __init__(self, wordings: Mapping[str, Sequence[str]]) -> None:
        self._wordings = wordings

    @cached_property
    def _recognised(self) -> dict[str, float]:
        """Return the share of a question's test wordings that are matched to it, with the nodes in their slots."""
        split = {template: Wordings.split(texts) for template, texts in self._wordings.items()}
        matcher = QuestionMatcher(split)
        shares = {}
        for template, given in split.items():
            matches = [matcher.match(text) for text in given.test]
            # Questions about two nodes are symmetric; of three the first is compared with the others.
            slots = tuple(range(matcher.slots[template]))
            right = [m.template == template and (len(slots) < 3 or m.order == slots) for m in matches]
            shares[template] = float(np.mean(right))
        return shares

    def __call__(self, scores: np.ndarray, examples: Examples) -> dict[str, np.ndarray]:
        right = (scores.argmax(axis=1) == examples.targets).astype(np.float64)
        metrics = {"mean accuracy": right}
        for name, text in TEMPLATES.items():
            mine = np.array([t == text for t in examples.prompts.texts])
            if mine.any():
                metrics[f"{name} accuracy"] = np.where(mine, right, np.nan)
        share = np.array([self._recognised[text] for text in examples.prompts.texts])
        return {**metrics, "accuracy in unseen wording": right * share}


class _Asker:
    """Samples questions from pools of pairs by distance, from all or many sources."""

    def __init__(self, view: Graph, rng: np.random.Generator, pool: int = 200_000) -> None:
        n = len(view)
        self.view = view
        self.sources = rng.permutation(n)[: max(1, min(n, 3_000, 10**9 // n))]
        self.table = hops(view, self.sources)
        self.pools: dict[int, np.ndarray] = {}
        groups = np.where(reached(self.table), np.minimum(self.table, FARTHEST + 1), UNREACHABLE)
        for distance in (*range(1, FARTHEST + 2), UNREACHABLE):
            flat = np.flatnonzero(groups == distance)
            if len(flat):
                flat = flat if len(flat) <= pool else np.unique(rng.choice(flat, pool))
                self.pools[distance] = np.stack([self.sources[flat % len(self.sources)], flat // len(self.sources)], 1)
        self.parts = {d: self._part(pairs) for d, pairs in self.pools.items()}

    @property
    def kinds(self) -> dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]]:
        """Kinds of questions with more than one answer on this graph."""
        near = [d for d in self.pools if d != UNREACHABLE]
        questions: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {}
        if len(near) > 1:
            questions |= {"hops": self.hops, "nearer": self.nearer, "common": self.common}
            if 1 in self.pools:
                questions["adjacent"] = self.adjacent
        if UNREACHABLE in self.pools and near:
            questions["connected"] = self.connected
        return questions

    def _part(self, pairs: np.ndarray) -> np.ndarray:
        """Return the tenth to which an unordered pair belongs, by a hash of its rows."""
        low, high = pairs.min(axis=1).astype(np.uint64), pairs.max(axis=1).astype(np.uint64)
        mixed = (low * np.uint64(len(self.view)) + high) * np.uint64(0x9E3779B97F4A7C15)
        part: np.ndarray = ((mixed >> np.uint64(33)) % np.uint64(10)).astype(np.int64)
        return part

    def _pick(self, distance: int, count: int, parts: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        mine = np.flatnonzero(np.isin(self.parts[distance], parts))
        if not len(mine):
            return np.empty((0, 2), dtype=np.int64)
        pairs = self.pools[distance][rng.choice(mine, count)]
        turned: np.ndarray = np.where(rng.random(count)[:, None] < 0.5, pairs, pairs[:, ::-1])
        return turned

    def hops(self, count: int, parts: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        answers = {d: d if d <= FARTHEST else ANSWERS.index(FARTHER) for d in self.pools}
        answers |= {UNREACHABLE: ANSWERS.index("no path")}
        made = [self._pick(d, count // len(self.pools), parts, rng) for d in self.pools]
        targets = np.concatenate([np.full(len(pairs), answers[d]) for d, pairs in zip(self.pools, made, strict=True)])
        return _padded(np.concatenate(made)), targets

    def connected(self, count: int, parts: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        near = [d for d in self.pools if d != UNREACHABLE]
        yes = np.concatenate([self._pick(d, count // 2 // len(near), parts, rng) for d in near])
        no = self._pick(UNREACHABLE, len(yes), parts, rng)
        targets = np.repeat([ANSWERS.index("yes"), ANSWERS.index("no")], [len(yes), len(no)])
        return _padded(np.concatenate([yes, no])), targets

    def adjacent(self, count: int, parts: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Sample as many adjacent pairs as others, half of the latter two hops apart where possible."""
        yes = self._pick(1, count // 2, parts, rng)
        far = [d for d in self.pools if d not in (1, 2)]
        near = len(yes) // 2 if 2 in self.pools and far else len(yes) * (2 in self.pools)
        no = [self._pick(2, near, parts, rng)] if near else []
        no += [self._pick(d, (len(yes) - near) // len(far), parts, rng) for d in far]
        pairs = [yes, *no]
        targets = np.full(sum(map(len, pairs)), ANSWERS.index("no"))
        targets[: len(yes)] = ANSWERS.index("yes")
        return _padded(np.concatenate(pairs)), targets

    def nearer(self, count: int, parts: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Sample two pairs of the same part, whose distances mostly differ by one hop or not at all."""
        draws = 200 * count // len(parts)
        of = rng.integers(len(self.sources), size=draws)
        j, k = rng.integers(len(self.view), size=(2, draws))
        a, b, source = self.table[j, of], self.table[k, of], self.sources[of]
        row = np.flatnonzero((j != source) & (k != source) & (j != k))
        first, second = (self._part(np.stack([source[row], x[row]], 1)) for x in (j, k))
        row = row[np.isin(first, parts) & np.isin(second, parts)]
        equal, less = (a == b)[row], (a < b)[row]
        kinds = {"first": less, "second": ~less & ~equal, "neither": equal}
        drawn = {answer: row[np.flatnonzero(mine)[: count // 3]] for answer, mine in kinds.items()}
        targets = np.repeat([ANSWERS.index(answer) for answer in drawn], [len(rows) for rows in drawn.values()])
        row = np.concatenate(list(drawn.values()))
        return np.stack([source[row], j[row], k[row]], axis=1), targets

    def common(self, count: int, parts: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Sample pairs, most of them one to three hops apart, with answers balanced as far as possible."""
        pairs = np.concatenate([self._pick(d, 4 * count if d <= 3 else count, parts, rng) for d in self.pools])
        pairs = pairs[rng.permutation(len(pairs))]
        adjacency = self.view.adjacency
        shared = np.asarray(adjacency[pairs[:, 0]].multiply(adjacency[pairs[:, 1]]).sum(axis=1)).ravel()
        group = np.minimum(shared, 3).astype(np.int64)
        keep = np.concatenate([np.flatnonzero(group == g)[: count // 4] for g in range(4)])
        many = ANSWERS.index("3 or more")
        return _padded(pairs[keep]), np.where(group[keep] == 3, many, group[keep])


def _padded(pairs: np.ndarray) -> np.ndarray:
    return np.concatenate([pairs, np.full((len(pairs), 1), -1)], axis=1).astype(np.int64)
