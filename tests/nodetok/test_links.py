"""Link prediction: what is held out, what is hidden, and both metrics against scikit-learn and by hand."""

import networkx as nx
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from nodetok.asking.answering import GraphAnswerer
from nodetok.asking.artifact import artifact
from nodetok.distances import hops
from nodetok.graph import Graph
from nodetok.settings import AnchorSettings, TokenizerSettings
from nodetok.tasks.links import RANKED_AGAINST, TEXT, links
from setrec.errors import DataError

SETTINGS = TokenizerSettings(anchors=AnchorSettings(count=8))


@pytest.fixture(scope="module")
def both():
    given = nx.gnm_random_graph(120, 400, seed=1)
    return given, links(Graph.from_networkx(given), None, SETTINGS)


def test_edges_are_told_from_pairs_without_one_and_those_held_out_are_not_in_the_graph(both):
    given, task = both
    drawn = [examples for examples, _ in task.draw(np.random.default_rng(0))]
    parts = {"valid": [task.valid], "test": [task.test], "train": drawn}
    edges = {}
    for name, examples in parts.items():
        pairs = [(tuple(p), t) for e in examples for p, t in zip(e.prompts.nodes.tolist(), e.targets, strict=True)]
        assert all(given.has_edge(*pair) == (target == 1) for pair, target in pairs)
        edges[name] = {frozenset(pair) for pair, target in pairs if target == 1}
    assert [len(edges[name]) for name in ("valid", "test", "train")] == [20, 40, 340]
    assert len(set.union(*edges.values())) == 400
    source, target = task.graph.arcs()
    assert {frozenset(arc) for arc in zip(source.tolist(), target.tolist(), strict=True)} == edges["train"]


def test_no_edge_is_learned_from_distances_or_neighbours_that_hold_it(both):
    _, task = both
    examples, table = next(task.draw(np.random.default_rng(0)))
    fold = examples.prompts.nodes[examples.targets == 1]
    expected = hops(task.graph.without(fold), task.tokenizer.anchors.rows)
    assert np.array_equal(table, expected)
    assert np.array_equal(examples.prompts.hidden[:, :, 0], examples.prompts.nodes[:, ::-1])


def test_the_area_under_the_curve_is_scikit_learns_and_the_rank_is_by_hand(both):
    _, task = both
    scores = np.random.default_rng(0).normal(size=(len(task.test), 2)).round(1)
    found = task.measure(scores, task.test)
    margin, edge = scores[:, 1] - scores[:, 0], task.test.targets == 1
    assert np.nanmean(found["AUC"]) == pytest.approx(roc_auc_score(edge, margin))
    assert np.isnan(found["MRR"][~edge]).all()
    assert (~edge).sum() <= RANKED_AGAINST
    others = margin[~edge]
    for place in np.flatnonzero(edge)[:10]:
        rank = 1 + (others > margin[place]).sum() + (others == margin[place]).sum() / 2
        assert found["MRR"][place] == pytest.approx(1 / rank)


def test_a_question_that_is_none_about_an_edge_is_refused(both):
    answerer = GraphAnswerer(artifact(both[1], None))
    assert answerer.matcher.match("does an edge join [[0]] and [[1]] ?").template == TEXT
    for text in ("what is the capital of France ?", "how far is [[0]] from [[1]] ?", "is [[0]] older than [[1]] ?"):
        assert answerer.matcher.match(text).template == ""


def test_a_graph_with_too_few_edges_is_refused_in_one_line():
    with pytest.raises(DataError, match="too few edges"):
        links(Graph.from_networkx(nx.path_graph(5)), None, SETTINGS)
