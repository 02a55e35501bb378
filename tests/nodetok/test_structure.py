"""Structural questions answered again by NetworkX; held-out pairs; balance."""

from collections import Counter

import networkx as nx
import numpy as np
import pytest
import torch

from nodetok.asking.artifact import GraphArtifact, artifact
from nodetok.asking.wordings import TEMPLATES
from nodetok.distances import hops
from nodetok.graph import Graph
from nodetok.language.input_ablation import ablate
from nodetok.language.pair_distances import path_lengths, refined
from nodetok.language.prompts import Neighbourhoods
from nodetok.language.settings import TOKENS, GraphModelSettings, GraphTrainingSettings
from nodetok.language.training import fit
from nodetok.settings import AnchorSettings, TokenizerSettings
from nodetok.tasks.links import links
from nodetok.tasks.structure import FARTHER, FARTHEST, structure
from setrec.errors import ConfigError, DataError

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
    lengths = nx.single_source_shortest_path_length(given, nodes[0])
    ways = [lengths.get(other, np.inf) for other in nodes[1:]]
    if name == "hops":
        return "no path" if ways[0] == np.inf else str(ways[0]) if ways[0] <= FARTHEST else FARTHER
    return "neither" if ways[0] == ways[1] else "first" if ways[0] < ways[1] else "second"


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
    assert set(count["hops"]) == {*(str(n) for n in range(1, FARTHEST + 1)), FARTHER, "no path"}
    assert len(set(count["hops"].values())) == 1
    assert count["connected"]["yes"] == count["connected"]["no"]
    assert set(count["nearer"].values()) == {2048 // 5 // 3}
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


@pytest.mark.parametrize("seed", range(3))
def test_lists_of_neighbours_make_pair_distances_and_common_neighbours_exact(seed):
    given = nx.gnm_random_graph(40, 60, seed=seed)
    graph = Graph.from_networkx(given)
    facts = np.stack([graph.arcs()[0], np.zeros(2 * 60, dtype=np.int64), graph.arcs()[1]], axis=1)
    near = torch.from_numpy(Neighbourhoods.sample(40, facts, 40, np.random.default_rng(0)).rows)
    # Anchors that lie on few shortest paths: on their own they are wrong about most pairs.
    table = torch.from_numpy(hops(graph, np.argsort(graph.degrees)[:12]))
    rows = torch.arange(40)[None]
    rough = path_lengths(rows, table)
    lengths, shared = refined(rows, rough, table, near)
    exact = dict(nx.all_pairs_shortest_path_length(given))
    pairs = [(i, j) for i in range(40) for j in range(40) if i != j]
    right = [float(lengths[0, i, j]) == exact[i].get(j, np.inf) for i, j in pairs]
    close = [(i, j) for i, j in pairs if exact[i].get(j, 99) <= 2]
    assert all(float(lengths[0, i, j]) == exact[i][j] for i, j in close)
    assert np.mean(right) > np.mean([float(rough[0, i, j]) == exact[i].get(j, np.inf) for i, j in pairs])
    assert all(int(shared[0, i, j]) == len(list(nx.common_neighbors(given, i, j))) for i, j in pairs)


def test_lists_of_neighbours_are_refused_where_a_task_hides_edges():
    graph = Graph.from_networkx(nx.gnm_random_graph(60, 120, seed=0))
    task = links(graph, None, SETTINGS)
    settings = GraphModelSettings(position_tokens=1, neighbours=0, pair_neighbours=4)
    with pytest.raises(ConfigError, match="pair_neighbours"):
        fit(task, ablate(task, TOKENS, settings), GraphTrainingSettings(epochs=1))


def test_a_model_reads_the_pairs_of_a_graph_that_it_was_not_trained_on(both, tmp_path):
    _, task = both
    other = made(nx.barabasi_albert_graph(150, 2, seed=0))
    settings = GraphModelSettings(profile="sorted", position_tokens=1, neighbours=0, pair_neighbours=8, dropout=0.0)
    reader = fit(task, ablate(task, TOKENS, settings), GraphTrainingSettings(epochs=2, batch=64, precision="float32"))
    known = np.nanmean(reader.evaluate(task, task.test)["adjacent accuracy"])
    unseen = np.nanmean(reader.on(other).evaluate(other, other.test)["adjacent accuracy"])
    assert min(known, unseen) > 0.9
    artifact(task, reader).save(tmp_path / "graph")
    loaded = GraphArtifact.load(tmp_path / "graph").reader
    few = task.test.take(np.arange(20))
    np.testing.assert_allclose(next(loaded.scores(few))[0], next(reader.scores(few))[0], atol=1e-5)
