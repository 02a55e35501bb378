"""A small catalogue, its histories, and a ten-line encoder to serve them with; a small graph, likewise."""

import re

import numpy as np
import torch

from serving.bundle.writer import write_bundle
from serving.engine.acceptance import examine
from serving.runtime.graph_service import AnchorDistance, GraphAnswer, NearNode, NodeDescription, ScoredAnswer
from setrec.data.catalog import TEST, TRAIN, VALID, Catalog, Histories
from setrec.data.events import read
from setrec.errors import SetRecError, UnknownNodeError
from setrec.models.item_tokens import text_center, unit_rows
from setrec.ragged import Ragged
from setrec.scoring.hybrid import HybridScorer, HybridWeights, build_components
from setrec.scoring.registry import Sources
from setrec.scoring.text_features import TextFeaturizer
from setrec.scoring.text_similarity import TextFeatures
from setrec.text.lexical import LexicalEncoder

SLOTS = {"collaborative": 1.0, "semantic": 0.5}
ITEMS, COLUMNS = 60, {"collaborative": (0, 6), "semantic": (6, 14)}


class FakeEncoder:
    """The mean code of the latest five items, each kind's columns times its weight."""

    kinds = tuple(COLUMNS)
    code_columns = COLUMNS
    max_items = 5
    repeat_logit = 0.0

    def repeat_bias(self, weights):
        return self.repeat_logit * sum(weights.values())

    def text_codes(self, vectors):
        semantic = torch.relu(vectors[:, -4:] @ torch.linspace(-1, 1, 4 * 8).reshape(4, 8))
        return torch.cat([torch.zeros(len(vectors), 6), semantic], dim=1)

    def user_codes(self, histories, weights, codes):
        means = torch.stack([codes[torch.from_numpy(h[-5:].astype(np.int64))].mean(dim=0) for h in histories])
        scale = torch.cat([torch.full((b - a,), float(weights[kind])) for kind, (a, b) in COLUMNS.items()])
        return means * scale


class FakeSentences:
    """A vector of four numbers from a text's words: texts that share words have vectors that point alike."""

    identity, width = "fake-text", 4

    def encode(self, texts):
        return np.stack([sum((self._word(w) for w in text.split()), np.zeros(4)) for text in texts]).astype(np.float32)

    def _word(self, word):
        return np.random.default_rng(list(word.encode())).normal(size=4)


class FakeText(TextFeaturizer):
    """Words of the catalogue beside vectors of words."""

    def __init__(self):
        super().__init__(LexicalEncoder.fit([f"text {r % 20} {r % 7}" for r in range(ITEMS)], width=3), FakeSentences())


def text_codes(texts):
    """The semantic columns that live items of these texts get."""
    return FakeEncoder().text_codes(torch.from_numpy(FakeText().encode(texts))).numpy()[:, 6:]


def load_fake(path):
    assert (path / "config.json").is_file()
    return FakeEncoder()


def catalog(items=ITEMS):
    return Catalog(
        [f"item-{r}" for r in range(items)],
        [f"Title «{r}»" for r in range(items)],
        [f"text {r}" for r in range(items)],
        {"genre": [["a"] if r % 2 else ["a", "b"] for r in range(items)]},
    )


def histories(items=ITEMS):
    rng = np.random.default_rng(1)
    rows = [rng.permutation(items)[: rng.integers(3, 12)] for _ in range(8)] + [np.empty(0, int)]
    splits = [[TRAIN] * (len(r) - 2) + [VALID, TEST] if len(r) else [] for r in rows]
    return Histories([f"user-{u}" for u in range(len(rows))], Ragged.of(rows), Ragged.of(splits, np.int8).values)


def codes(items=ITEMS, width=14, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(items, width)) * np.exp(0.5 * rng.normal(size=(items, 1)))).astype(np.float32)


def model_dir(path):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text("{}")
    return path


def fake_bundle(out, retriever=None, **changes):
    parts = {"catalog": catalog(), "histories": histories(), "item_codes": codes()}
    parts |= {"scorer": HybridWeights(slots=SLOTS), "load_encoder": load_fake, "retriever": retriever}
    return write_bundle(out, model_dir=model_dir(out.parent / "trained"), examine=examine, **(parts | changes))


def texts_of(catalog):
    """Features of a catalogue's texts and their centre, as an export makes them."""
    featurizer = FakeText()
    sentences = featurizer.encode(catalog.texts)[:, 3:]
    return TextFeatures(featurizer.lexical.rows(catalog.texts), unit_rows(sentences)), text_center(sentences)


def hybrid_parts(scorer, items=ITEMS):
    """What a bundle with these weights is made of, but for a featurizer that goes into no bundle."""
    features, _ = texts_of(catalog(items))
    return {
        "scorer": scorer,
        "components": build_components(scorer.used, Sources(histories(items).items, items, features)),
    }


def coded_items():
    """Codes whose semantic columns come from the texts; every tenth item has never been trained on."""
    table, counts = codes(), histories().train_counts(ITEMS)
    table[:, 6:14] = text_codes(catalog().texts)
    table[counts == 0, :6] = 0
    return {"item_codes": table}


class MeanScores:
    """The term of :class:`FakeEncoder` over all items, by the definition."""

    def __init__(self, table, bias=0.0):
        self.table, self.repeat_bias = table.astype(np.float64), bias

    def users(self, history):
        scale = np.r_[np.full(6, SLOTS["collaborative"]), np.full(8, SLOTS["semantic"])]
        return np.stack([self.table[h[-5:]].mean(axis=0) * scale for h in read(history)])

    def dense(self, history):
        return (self.users(history) @ self.table.T).astype(np.float32)

    def parts(self, history, rows):
        products = self.users(history)[rows.row_of_value] * self.table[rows.values]
        return {kind: products[:, a:b].sum(axis=1) for kind, (a, b) in COLUMNS.items()}


def offline(parts, items=ITEMS, table=None, bias=0.0):
    """The scorer that an evaluation ranks with, from the same weights and components."""
    new = histories(items).train_counts(items) == 0
    term = MeanScores(codes(items) if table is None else table, bias)
    return HybridScorer(term, parts["components"], parts["scorer"], new)


class FakeGraph:
    """Three nodes in a row, a - b - c, and d on its own; answers are the nodes that the question does not mention."""

    model_version, count, tasks, can_ask = "graph-1", 4, ("next", "kind"), True

    def ask(self, question, k, mode):
        mentioned = tuple(re.findall(r"\[\[(.*?)\]\]", question))
        self._require(mentioned)
        if not mentioned:
            raise SetRecError("the question mentions no node")
        others = [node for node in "abcd" if node not in mentioned][:k]
        scores = [None if mode == "text" else 1 / (1 + rank) for rank in range(len(others))]
        return GraphAnswer(tuple(map(ScoredAnswer, others, scores)), mode, mentioned)

    def nodes(self, ids, k):
        self._require(ids)
        return [self._describe(node, k) for node in ids]

    def _describe(self, node, k):
        near = tuple(NearNode(other, 0.5) for other in "abcd" if other != node)[:k]
        anchors = (AnchorDistance("a", None if node == "d" else float("abc".index(node))),)
        return NodeDescription(node, None if node == "d" else f"text of {node}", [0.25, -1.0], near, anchors)

    def _require(self, ids):
        for node in ids:
            if node not in "abcd":
                raise UnknownNodeError(f"unknown node {node!r}")


def load_fake_graph(path):
    assert (path / "model" / "config.json").is_file()
    return FakeGraph()


def graph_dir(path):
    """One file of each kind a graph may consist of, and two that it may not."""
    for folder in ("tokenizer", "model"):
        (path / folder).mkdir(parents=True, exist_ok=True)
    np.save(path / "arcs.npy", np.arange(6))
    (path / "nodes.parquet").write_bytes(b"parquet")
    (path / "model" / "config.json").write_text('{"layers": 2}')
    (path / "tokenizer" / "tables.safetensors").write_bytes(b"tables")
    (path / "model" / "pytorch_model.bin").write_bytes(b"pickle")
    (path / "notes.txt").write_text("notes")
    return path
