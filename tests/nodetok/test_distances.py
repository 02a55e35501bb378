"""Distances against NetworkX, walks against their definition, updates against measuring anew."""

import os
import subprocess
import sys

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from nodetok.distances import UNREACHABLE, distances, hops, reached, relax, walks
from nodetok.graph import Graph
from nodetok.settings import DistanceSettings
from setrec.errors import ConfigError

NODES = 12
MANY = settings(max_examples=60)
directions = st.sampled_from(["ignored", "to", "from", "both"])


@st.composite
def graphs(draw, weighted=False):
    """Often disconnected; lengths are whole, 0 among them, so that sums are exact in any order."""
    ends = draw(st.lists(st.tuples(st.integers(0, NODES - 1), st.integers(0, NODES - 1)), max_size=30))
    pairs = np.array(ends, dtype=np.int64).reshape(-1, 2)
    lengths = draw(st.lists(st.integers(0, 20), min_size=len(ends), max_size=len(ends))) if weighted else None
    weights = None if lengths is None else np.array(lengths)
    return Graph.from_arrays(pairs[:, 0], pairs[:, 1], NODES, weights=weights, directed=draw(st.booleans()))


def as_networkx(graph: Graph) -> nx.Graph:
    made = nx.DiGraph() if graph.directed else nx.Graph()
    made.add_nodes_from(range(len(graph)))
    source, target = graph.arcs()
    lengths = np.ones(len(source)) if graph.weights is None else graph.weights
    made.add_weighted_edges_from(zip(source.tolist(), target.tolist(), lengths.tolist(), strict=True))
    return made


def by_networkx(graph: Graph, anchors, direction: str, weight: str | None) -> np.ndarray:
    """Lengths of paths, infinite where there is none, one search of NetworkX from each node."""
    given = as_networkx(graph)
    if direction == "ignored" or not graph.directed:
        loose = nx.Graph()
        loose.add_nodes_from(given)
        for a, b, length in given.edges(data="weight"):
            loose.add_edge(a, b, weight=min(length, loose.get_edge_data(a, b, {"weight": length})["weight"]))
        ways = [loose]
    else:
        ways = {"to": [given], "from": [given.reverse()], "both": [given, given.reverse()]}[direction]
    blocks = []
    for way in ways:
        found = dict(nx.all_pairs_dijkstra_path_length(way, weight=weight or (lambda a, b, d: 1)))
        blocks.append([[found[row].get(anchor, np.inf) for anchor in anchors] for row in range(len(graph))])
    return np.concatenate([np.array(block) for block in blocks], axis=1)


@MANY
@given(graph=graphs(), direction=directions, anchors=st.lists(st.integers(0, NODES - 1), min_size=1, max_size=5))
def test_hops_are_those_of_networkx(graph, direction, anchors):
    found = distances(graph, np.array(anchors), DistanceSettings(direction=direction))
    expected = by_networkx(graph, anchors, direction, None)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert np.array_equal(np.where(found == UNREACHABLE, np.inf, found), expected)


@MANY
@given(graph=graphs(weighted=True), direction=directions)
def test_lengths_are_those_of_networkx(graph, direction):
    anchors = [0, 3, NODES - 1]
    found = distances(graph, np.array(anchors), DistanceSettings(kind="weighted", direction=direction))
    assert found.dtype == np.float32
    assert np.array_equal(found, by_networkx(graph, anchors, direction, "weight"))


@MANY
@given(graph=graphs(weighted=True))
def test_hops_do_not_see_weights_and_weights_of_one_are_hops(graph):
    source, target = graph.arcs()
    plain = Graph.from_arrays(source, target, NODES, directed=graph.directed)
    anchors = np.arange(NODES)
    found = distances(plain, anchors, DistanceSettings(direction="to"))
    assert np.array_equal(found, distances(graph, anchors, DistanceSettings(direction="to")))
    lengths = distances(plain, anchors, DistanceSettings(kind="weighted", direction="to"))
    assert np.array_equal(lengths, np.where(found == UNREACHABLE, np.inf, found))


@pytest.mark.parametrize("count", [1, 63, 64, 65, 128, 150])
def test_any_number_of_anchors_gives_the_columns_of_single_anchors(count):
    graph = Graph.from_networkx(nx.gnm_random_graph(150, 190, seed=1))
    anchors = np.random.default_rng(0).permutation(150)[:count]
    found = hops(graph, anchors)
    expected = by_networkx(graph, anchors.tolist(), "ignored", None)
    assert np.array_equal(np.where(found == UNREACHABLE, np.inf, found), expected)
    assert np.array_equal(found[:, -1:], hops(graph, anchors[-1:]))


def test_the_same_anchor_twice_gives_the_same_column_twice():
    graph = Graph.from_networkx(nx.path_graph(6))
    found = hops(graph, np.array([2, 4, 2]))
    assert np.array_equal(found[:, 0], found[:, 2])


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_paths_beyond_the_limit_count_as_none(limit):
    graph = Graph.from_networkx(nx.gnm_random_graph(60, 70, seed=3))
    anchors = np.arange(5)
    whole = hops(graph, anchors)
    assert np.array_equal(hops(graph, anchors, limit), np.where(whole > limit, UNREACHABLE, whole))


@pytest.mark.parametrize("nodes", [255, 256, 300, 70_000])
def test_paths_of_any_length_are_counted(nodes):
    path = Graph.from_arrays(np.arange(nodes - 1), np.arange(1, nodes), nodes)
    row = np.arange(nodes)
    found = hops(path, np.array([0, nodes - 1]))
    assert np.array_equal(found, np.stack([row, nodes - 1 - row], axis=1))
    assert found.dtype == (np.uint8 if nodes == 255 else np.int32)
    cut = hops(path.without(np.array([[nodes - 10, nodes - 9]])), np.array([0]))[:, 0]
    assert np.array_equal(reached(cut), row <= nodes - 10)
    assert np.array_equal(cut[reached(cut)], row[: nodes - 9])


def test_a_limit_below_a_bytes_end_keeps_bytes():
    path = Graph.from_networkx(nx.path_graph(300))
    found = hops(path, np.array([0]), limit=253)
    assert found.dtype == np.uint8
    assert np.array_equal(reached(found)[:, 0], np.arange(300) <= 253)


def test_a_matrix_of_bytes_to_be_filled_refuses_paths_it_cannot_hold():
    path = Graph.from_networkx(nx.path_graph(300))
    with pytest.raises(ConfigError, match="longer than the 254 hops"):
        hops(path, np.array([0]), out=np.empty((300, 1), dtype=np.uint8))
    wide = hops(path, np.array([0]), out=np.empty((300, 1), dtype=np.int32))
    assert np.array_equal(wide[:, 0], np.arange(300))


def test_hops_can_be_written_to_a_file(tmp_path):
    graph = Graph.from_networkx(nx.cycle_graph(20))
    out = np.lib.format.open_memmap(tmp_path / "hops.npy", mode="w+", dtype=np.uint8, shape=(20, 3))
    hops(graph, np.array([0, 5, 9]), out=out)
    out.flush()
    assert np.array_equal(np.load(tmp_path / "hops.npy"), hops(graph, np.array([0, 5, 9])))


@MANY
@given(graph=graphs(weighted=True), direction=st.sampled_from(["ignored", "to", "from"]), steps=st.integers(1, 10))
def test_the_ends_of_a_walk_are_certain_to_be_somewhere(graph, direction, steps):
    settings = DistanceSettings(kind="walks", direction=direction, steps=steps)
    chances = np.exp(-distances(graph, np.arange(NODES), settings).astype(np.float64))
    np.testing.assert_allclose(chances.sum(axis=1), 1.0, atol=1e-5)
    some = np.exp(-distances(graph, np.array([1, 4]), settings).astype(np.float64))
    assert (some.sum(axis=1) <= 1 + 1e-5).all()
    np.testing.assert_allclose(some, chances[:, [1, 4]], rtol=1e-5)


@MANY
@given(graph=graphs(weighted=True), restart=st.floats(0.05, 0.9), steps=st.integers(1, 6))
def test_walks_are_the_powers_of_the_walk_matrix(graph, restart, steps):
    """Forward: spread the mass of every start, and let the share that stops stay; the code goes backward."""
    moves = np.zeros((NODES, NODES))
    source, target = graph.arcs()
    moves[source, target] = 1 / np.maximum(graph.weights, 1e-6)
    total = moves.sum(axis=1, keepdims=True)
    stop = np.where(total[:, 0] > 0, restart, 1.0)
    moves = np.divide(moves, total, out=np.zeros_like(moves), where=total > 0)
    mass, ended = np.eye(NODES), np.zeros((NODES, NODES))
    for _ in range(steps):
        ended += mass * stop
        mass = (mass * (1 - stop)) @ moves
    ended += mass
    found = walks(graph, np.arange(NODES), restart, steps)
    np.testing.assert_allclose(np.exp(-found.astype(np.float64)), ended, rtol=1e-4, atol=1e-6)


def test_walks_tell_apart_what_hops_do_not():
    """Two nodes one hop from the anchor, one of them by its only arc."""
    graph = Graph.from_edges([("anchor", "leaf"), ("anchor", "hub"), *(("hub", f"n{i}") for i in range(5))])
    rows = graph.rows(["leaf", "hub"])
    anchor = graph.rows(["anchor"])
    near, far = distances(graph, anchor)[rows, 0]
    assert near == far == 1
    leaf, hub = distances(graph, anchor, DistanceSettings(kind="walks"))[rows, 0]
    assert leaf < hub


def test_a_symmetric_graph_is_the_same_in_every_direction():
    both = nx.gnm_random_graph(40, 60, seed=5).to_directed()
    graph, anchors = Graph.from_networkx(both), np.arange(7)
    expected = distances(graph, anchors)
    for direction in ("to", "from"):
        assert np.array_equal(distances(graph, anchors, DistanceSettings(direction=direction)), expected)
    twice = distances(graph, anchors, DistanceSettings(direction="both"))
    assert np.array_equal(twice, np.concatenate([expected, expected], axis=1))


@pytest.mark.parametrize("weighted", [False, True])
def test_relaxing_a_table_of_nothing_but_the_anchors_finds_all_paths(weighted):
    rng = np.random.default_rng(0)
    source, target = rng.integers(0, 80, (2, 160))
    weights = rng.integers(0, 9, 160) if weighted else None
    graph = Graph.from_arrays(source, target, 80, weights=weights, directed=True)
    anchors = np.arange(5)
    settings = DistanceSettings(kind="weighted" if weighted else "hops", direction="to")
    expected = distances(graph, anchors, settings)
    table = np.full_like(expected, np.inf if weighted else UNREACHABLE)
    table[anchors, np.arange(5)] = 0
    assert np.array_equal(relax(graph, table, np.arange(80), weighted=weighted), expected)


def test_anchors_and_settings_that_cannot_be_used_are_refused():
    graph = Graph.from_networkx(nx.path_graph(4))
    with pytest.raises(ConfigError, match="at least one anchor"):
        distances(graph, np.array([], dtype=np.int64))
    for row in (-1, 4):
        with pytest.raises(ConfigError, match=f"node {row} lies outside the graph"):
            distances(graph, np.array([0, row]))
    for wrong in ({"kind": "miles"}, {"direction": "up"}, {"restart": 1.0}, {"restart": -0.1}, {"steps": 0}):
        with pytest.raises(ValidationError):
            DistanceSettings(**wrong)


def test_a_parallel_loop_leaves_the_number_of_threads_of_pytorch_alone():
    # In a process of its own: numba's pool starts once.
    code = """if True:
        import numpy as np, torch
        from nodetok.distances import hops
        from nodetok.graph import Graph
        torch.set_num_threads(1)
        assert torch.get_num_threads() == 1
        source, target = np.random.default_rng(0).integers(1000, size=(2, 8000))
        hops(Graph.from_arrays(source, target, 1000), np.arange(64))
        assert torch.get_num_threads() == 1, torch.get_num_threads()
    """
    environment = {**os.environ, "NUMBA_NUM_THREADS": "2", "NUMBA_THREADING_LAYER": "omp"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
