"""Structural questions answered again by NetworkX; held-out pairs; balance."""

from collections import Counter

import networkx as nx
import numpy as np
import pytest

from nodetok.asking.wordings import TEMPLATES
from nodetok.graph import Graph
from nodetok.settings import AnchorSettings, TokenizerSettings
from nodetok.tasks.structure import FARTHEST, structure
from setrec.errors import DataError

SETTINGS = TokenizerSettings(anchors=AnchorSettings(count=8))
NAMES = {text: name for name, text in TEMPLATES.items()}


def two_parts(weighted=False):
    """A sparse part with long ways beside a denser one; with lengths, many of them zero."""
    given = nx.disjoint_union(
        nx.gnm_random_graph(120, 140, seed=3), nx.connected_watts_strogatz_graph(60, 6, 0.3, seed=1)
    )
    if weighted:
        lengths = np.random.default_rng(0).integers(3, size=given.number_of_edges())
        nx.set_edge_attributes(given, {e: int(w) for e, w in zip(given.edges, lengths, strict=True)}, "length")
    return given


def made(given, **sizes):
    weight = "length" if nx.get_edge_attributes(given, "length") else None
    return structure(
        Graph.from_networkx(given, weight=weight), SETTINGS, **{"per_epoch": 2048, "held_out": 100, **sizes}
    )


def questions(task, examples):
    """Name of the question, the nodes, and the right answer in words."""
    for text, nodes, target in zip(examples.prompts.texts, examples.prompts.nodes, examples.targets, strict=True):
        yield NAMES[text], nodes[nodes >= 0].tolist(), task.candidates[target]


def by_networkx(given, name, nodes):
    if name == "connected":
        return "yes" if nx.has_path(given, *nodes) else "no"
    if name == "adjacent":
        return "yes" if given.has_edge(*nodes) else "no"
    if name == "common":
        shared = len(list(nx.common_neighbors(given, *nodes)))
        return str(shared) if shared < 3 else "3 or more"
    ways = [nx.shortest_path_length(given, nodes[0], other) for other in nodes[1:]]
    if name == "hops":
        return str(ways[0])
    assert ways[0] != ways[1]
    return "first" if ways[0] < ways[1] else "second"


@pytest.fixture(scope="module")
def both():
    given = two_parts()
    return given, made(given)


@pytest.mark.parametrize("weighted", [False, True])
def test_every_answer_is_networkxs(both, weighted):
    given, task = both
    if weighted:
        given = two_parts(weighted=True)
        task = made(given)
    drawn = next(task.draw(np.random.default_rng(0)))[0]
    kinds = Counter()
    for examples in (task.valid, task.test, drawn):
        for name, nodes, answer in questions(task, examples):
            assert answer == by_networkx(given, name, nodes), (name, nodes)
            kinds[name] += 1
    assert set(kinds) == set(TEMPLATES)


def test_no_pair_that_is_held_out_is_asked_in_training_in_either_order(both):
    _, task = both

    def pairs(examples):
        return {frozenset((nodes[0], other)) for _, nodes, _ in questions(task, examples) for other in nodes[1:]}

    valid, test = pairs(task.valid), pairs(task.test)
    trained = set().union(*(pairs(next(task.draw(np.random.default_rng(s)))[0]) for s in range(4)))
    assert len(valid) > 100
    assert len(test) > 100
    assert not valid & test
    assert not trained & (valid | test)
    ordered = {tuple(nodes[:2]) for _, nodes, _ in questions(task, task.test)}
    assert any((b, a) in ordered for a, b in ordered), "both orders of a pair are asked"


def test_answers_of_each_kind_are_about_equally_frequent(both):
    _, task = both
    drawn = next(task.draw(np.random.default_rng(0)))[0]
    count = {name: Counter() for name in TEMPLATES}
    for name, _, answer in questions(task, drawn):
        count[name][answer] += 1
    assert set(count["hops"]) == {str(n) for n in range(1, FARTHEST + 1)}
    assert len(set(count["hops"].values())) == 1
    assert count["connected"]["yes"] == count["connected"]["no"]
    first, second = count["nearer"]["first"], count["nearer"]["second"]
    assert abs(first - second) < 4 * np.sqrt(first + second)
    assert set(count["common"]) == {"0", "1", "2", "3 or more"}
    assert max(count["common"].values()) == 2048 // 5 // 4
    assert abs(count["adjacent"]["yes"] - count["adjacent"]["no"]) <= 6


def test_the_same_generator_draws_the_same_questions_and_another_one_others(both):
    _, task = both
    one, again, other = (next(task.draw(np.random.default_rng(seed)))[0].prompts.nodes for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_accuracies_count_only_questions_of_their_kind(both):
    _, task = both
    right = np.eye(len(task.candidates))[task.test.targets]
    names = np.array([NAMES[text] for text in task.test.prompts.texts])
    right[names == "hops"] = np.roll(right[names == "hops"], 1, axis=1)
    found = task.measure(right, task.test)
    for name in TEMPLATES:
        assert np.array_equal(np.isnan(found[f"{name} accuracy"]), names != name)
        assert np.nanmean(found[f"{name} accuracy"]) == (name != "hops")
    unseen = found["accuracy in unseen wording"]
    assert np.all((unseen > 0.5) & (unseen <= 1) == (found["mean accuracy"] == 1))
    assert (unseen[names == "adjacent"] >= 0.8).all(), "the order of two nodes does not matter"
    assert found["mean accuracy"].mean() == pytest.approx((names != "hops").mean())


def test_a_connected_graph_is_not_asked_whether_it_is():
    task = made(nx.connected_watts_strogatz_graph(60, 4, 0.1, seed=0), per_epoch=300, held_out=40)
    assert {name for name, _, _ in questions(task, task.test)} == {"hops", "nearer", "common", "adjacent"}
    assert TEMPLATES["connected"] not in task.words


@pytest.mark.parametrize("given", [nx.empty_graph(4), nx.path_graph(2), nx.complete_graph(6), nx.path_graph(3)])
def test_a_graph_with_nothing_to_ask_is_refused_in_one_line(given):
    with pytest.raises(DataError, match="too few") as caught:
        made(given)
    assert "\n" not in str(caught.value)
