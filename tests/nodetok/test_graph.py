"""Graphs from arrays, pairs, NetworkX and PyTorch Geometric; bad input is refused in one line."""

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Data, HeteroData
from torch_geometric.utils import from_networkx, to_undirected

from nodetok.graph import Graph
from setrec.errors import DataError, UnknownNodeError

pairs_of_nodes = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=20)


def arcs(graph):
    """Every arc by the ids of its ends, with its length."""
    source, target = graph.arcs()
    lengths = np.ones(len(source)) if graph.weights is None else graph.weights
    triples = zip(source, target, lengths, strict=True)
    return {(graph.id(a), graph.id(b)): float(length) for a, b, length in triples}


def built(pairs, directed=False, **changes):
    ends = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return Graph.from_arrays(ends[:, 0], ends[:, 1], 8, directed=directed, **changes)


def refusal(call, *arguments, **named):
    with pytest.raises(DataError) as caught:
        call(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@given(pairs=pairs_of_nodes, directed=st.booleans(), weighted=st.booleans(), data=st.data())
def test_arcs_are_those_of_networkx(pairs, directed, weighted, data):
    lengths = data.draw(st.lists(st.integers(0, 9), min_size=len(pairs), max_size=len(pairs))) if weighted else None
    graph = built(pairs, directed, weights=None if lengths is None else np.array(lengths))
    expected = {}
    for (a, b), length in zip(pairs, lengths or [1] * len(pairs), strict=True):
        for arc in ((a, b),) if directed else ((a, b), (b, a)):
            if a != b:
                expected[arc] = min(length, expected.get(arc, length))
    assert arcs(graph) == expected
    assert graph.edges == len(expected) // (1 if directed else 2)
    assert graph.loops == sum(a == b for a, b in pairs)
    assert graph.parallels + graph.loops + graph.edges == len(pairs)
    assert all((np.diff(graph.neighbours(row)) > 0).all() for row in range(8))
    assert (graph.indptr.dtype, graph.indices.dtype) == (np.int64, np.int32)
    assert arcs(graph.reverse) == {(b, a): length for (a, b), length in expected.items()}
    assert arcs(graph.reverse.reverse) == expected
    both = {(a, b): min(expected.get((a, b), np.inf), expected.get((b, a), np.inf)) for a, b in expected}
    assert arcs(graph.undirected) == both | {(b, a): length for (a, b), length in both.items()}


@given(pairs=pairs_of_nodes, directed=st.booleans())
def test_components_are_those_of_networkx(pairs, directed):
    numbers = built(pairs, directed).components
    plain = nx.Graph(pairs)
    plain.add_nodes_from(range(8))
    for component in nx.connected_components(plain):
        assert len({numbers[row] for row in component}) == 1
    assert len(set(numbers)) == nx.number_connected_components(plain)


@given(pairs=pairs_of_nodes, gone=pairs_of_nodes, directed=st.booleans(), weighted=st.booleans())
def test_without_edges_is_the_graph_that_never_had_them(pairs, gone, directed, weighted):
    lengths = np.arange(len(pairs)) if weighted else None
    graph = built(pairs, directed, weights=lengths, ids=list("abcdefgh"), texts=list("ABCDEFGH"))
    before = arcs(graph)
    smaller = graph.without(np.array(gone, dtype=np.int32).reshape(-1, 2))
    names = {("abcdefgh"[a], "abcdefgh"[b]) for a, b in gone}
    names |= set() if directed else {(b, a) for a, b in names}
    assert arcs(smaller) == {arc: length for arc, length in before.items() if arc not in names}
    assert (smaller.ids, smaller.texts, smaller.directed) == (graph.ids, graph.texts, directed)
    assert arcs(graph) == before


@given(old=pairs_of_nodes, new=pairs_of_nodes, directed=st.booleans(), weighted=st.booleans())
def test_with_edges_is_the_graph_that_always_had_them(old, new, directed, weighted):
    first, second = (np.arange(len(pairs)) + 1.5 if weighted else None for pairs in (old, new))
    ends = np.array(new, dtype=np.int64).reshape(-1, 2)
    grown = built(old, directed, weights=first).with_edges(ends[:, 0], ends[:, 1], second)
    whole = built(old + new, directed, weights=None if first is None else np.concatenate([first, second]))
    assert arcs(grown) == arcs(whole)


def test_new_nodes_follow_the_old_and_bring_their_ids_and_texts():
    graph = Graph.from_edges([("x", "y")], texts=["an x", "a y"])
    grown = graph.with_edges(np.array([0]), np.array([2]), new_ids=["z"], new_texts=["a z"])
    assert (grown.ids, grown.texts) == (["x", "y", "z"], ["an x", "a y", "a z"])
    assert grown.with_edges(np.array([]), np.array([]), new_ids=["w"]).texts[-1] == ""
    assert arcs(grown).keys() == {("x", "y"), ("y", "x"), ("x", "z"), ("z", "x")}
    unnamed = Graph.from_arrays(np.array([0]), np.array([1]), 2, weights=np.array([0.5]))
    assert arcs(unnamed.with_edges(np.array([1]), np.array([2]), new_ids=[2]))[1, 2] == 1
    assert "named 2" in refusal(unnamed.with_edges, np.array([1]), np.array([2]), new_ids=["z"])
    assert "repeats" in refusal(graph.with_edges, np.array([0]), np.array([2]), new_ids=["x"])
    assert "no weights" in refusal(graph.with_edges, np.array([0]), np.array([1]), np.array([2.0]))


@pytest.mark.parametrize(
    "ids",
    [["b", "a", "c"], [30, 10, 20], [(0, "x"), (0, "y"), (1, "x")], [frozenset("a"), frozenset("b"), frozenset()]],
)
def test_ids_of_any_hashable_type_are_kept(ids):
    graph = Graph.from_edges([(ids[0], ids[1]), (ids[1], ids[2])], nodes=ids)
    assert [graph.id(row) for row in range(3)] == ids
    assert graph.rows(reversed(ids)).tolist() == [2, 1, 0]
    assert [graph.id(row) for row in graph.neighbours(graph.row(ids[1]))] == [ids[0], ids[2]]
    with pytest.raises(UnknownNodeError, match="'nobody'"):
        graph.row("nobody")


def test_ids_in_an_array_are_ids():
    graph = Graph.from_arrays(np.array([0]), np.array([1]), 2, ids=np.array([70, 80]))
    assert (graph.row(80), graph.id(0)) == (1, 70)


def test_nodes_without_ids_are_named_by_row():
    graph = built([(0, 1)])
    assert (graph.row(7), graph.row(np.int64(3)), graph.id(np.int32(3))) == (7, 3, 3)
    for absent in (8, -1, "0", 1.0):
        with pytest.raises(UnknownNodeError):
            graph.row(absent)


def test_without_a_list_of_nodes_rows_follow_first_sight():
    assert Graph.from_edges([("q", "c"), ("a", "q")]).ids == ["q", "c", "a"]


def test_networkx_nodes_may_be_tuples_and_keep_their_order():
    grid = nx.grid_2d_graph(3, 4)
    graph = Graph.from_networkx(grid)
    assert list(graph.ids) == list(grid)
    assert {frozenset(arc) for arc in arcs(graph)} == {frozenset(edge) for edge in grid.edges}


def test_networkx_brings_directions_lengths_texts_loops_and_parallels():
    given = nx.MultiDiGraph()
    given.add_node("a", text="first")
    given.add_node("b")
    given.add_weighted_edges_from([("a", "b", 3), ("a", "b", 2), ("b", "a", 5), ("b", "b", 1)], weight="km")
    graph = Graph.from_networkx(given, weight="km", text="text")
    assert graph.directed
    assert arcs(graph) == {("a", "b"): 2, ("b", "a"): 5}
    assert (graph.loops, graph.parallels, graph.texts) == (1, 1, ["first", ""])
    assert Graph.from_networkx(given).weights is None
    assert "'a' to 'b' has no attribute 'mile'" in refusal(Graph.from_networkx, given, weight="mile")
    given.add_edge("a", "b", km="far")
    assert "'km' of edge 'a' to 'b' is not a number: 'far'" in refusal(Graph.from_networkx, given, weight="km")
    assert "no nodes" in refusal(Graph.from_networkx, nx.Graph())


def test_pyg_data_says_itself_whether_it_is_directed():
    path = nx.path_graph(5)
    both_ways = from_networkx(path)
    graph = Graph.from_pyg(both_ways)
    assert not graph.directed
    assert arcs(graph) == arcs(Graph.from_networkx(path))
    one_way = Data(edge_index=torch.tensor([[0, 1], [1, 2]]), num_nodes=4)
    assert arcs(Graph.from_pyg(one_way)).keys() == {(0, 1), (1, 2)}
    assert Graph.from_pyg(one_way, directed=False).edges == 2
    assert len(Graph.from_pyg(one_way)) == 4
    ends, weight = to_undirected(one_way.edge_index, torch.tensor([2.0, 0.5]))
    assert arcs(Graph.from_pyg(Data(edge_index=ends, edge_weight=weight, num_nodes=3)))[2, 1] == 0.5


def test_pyg_data_that_cannot_be_used_is_refused():
    assert "no edge_index" in refusal(Graph.from_pyg, Data())
    assert "shape (2, edges)" in refusal(Graph.from_pyg, Data(edge_index=torch.zeros(3, 4, dtype=torch.long)))
    assert "integers" in refusal(Graph.from_pyg, Data(edge_index=torch.rand(2, 4), num_nodes=3), directed=True)
    assert "no nodes" in refusal(Graph.from_pyg, Data(edge_index=torch.zeros(2, 0, dtype=torch.long), num_nodes=0))
    outside = Data(edge_index=torch.tensor([[0], [9]]), num_nodes=3)
    assert "edge 1 ends at node 9" in refusal(Graph.from_pyg, outside, directed=True)


def people_and_books():
    data = HeteroData()
    data["person"].num_nodes, data["book"].num_nodes = 3, 2
    data["person", "reads", "book"].edge_index = torch.tensor([[0, 1, 2], [0, 0, 1]])
    data["person", "knows", "person"].edge_index = torch.tensor([[0, 1], [1, 0]])
    return data


def test_nodes_of_hetero_data_are_named_by_type_and_row():
    data = people_and_books()
    graph = Graph.from_pyg(data)
    assert not graph.directed
    assert set(graph.ids) == {("person", 0), ("person", 1), ("person", 2), ("book", 0), ("book", 1)}
    assert {frozenset(arc) for arc in arcs(graph)} == {
        frozenset({("person", 0), ("book", 0)}),
        frozenset({("person", 1), ("book", 0)}),
        frozenset({("person", 2), ("book", 1)}),
        frozenset({("person", 0), ("person", 1)}),
    }
    directed = arcs(Graph.from_pyg(data, directed=True))
    assert (("person", 0), ("book", 0)) in directed
    assert (("book", 0), ("person", 0)) not in directed


def test_weights_of_one_type_of_edges_leave_the_others_at_one():
    data = people_and_books()
    data["person", "reads", "book"].edge_weight = torch.tensor([0.25, 2.0, 3.0])
    found = arcs(Graph.from_pyg(data))
    assert found[("person", 0), ("book", 0)] == 0.25
    assert found[("book", 1), ("person", 2)] == 3.0
    assert found[("person", 0), ("person", 1)] == 1.0


def test_edges_of_hetero_data_that_leave_their_type_are_refused():
    data = people_and_books()
    data["person", "reads", "book"].edge_index[1, 0] = 2
    assert "outside the 2 nodes of type 'book'" in refusal(Graph.from_pyg, data)
    data["person", "sees", "film"].edge_index = torch.tensor([[0], [0]])
    data["person", "reads", "book"].edge_index[1, 0] = 1
    assert "'film'" in refusal(Graph.from_pyg, data)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nodes": 0}, "no nodes"),
        ({"nodes": 2**31}, "more than a graph can hold"),
        ({"source": [0, 5]}, "edge 2 ends at node 5, outside 0 .. 2"),
        ({"target": [-1, 0]}, "edge 1 ends at node -1"),
        ({"source": [0]}, "as many sources as targets"),
        ({"source": [[0, 1]], "target": [[1, 2]]}, "as many sources as targets"),
        ({"source": [0.0, 1.0]}, "must be rows (integers), not float64"),
        ({"source": ["a", "b"]}, "must be rows (integers)"),
        ({"weights": [1.0]}, "1 weights for 2 edges"),
        ({"weights": [1.0, -0.5]}, "edge 2 has weight -0.5"),
        ({"weights": [np.nan, 1.0]}, "edge 1 has weight nan"),
        ({"weights": [1.0, np.inf]}, "edge 2 has weight inf"),
        ({"weights": [1.0, 1e300]}, "edge 2 has weight 1e+300"),
        ({"ids": ["a", "b"]}, "2 ids for 3 nodes"),
        ({"ids": ["a", "b", "a"]}, "node id 'a' repeats"),
        ({"ids": ["a", "b", 1]}, "different types: int, str"),
        ({"texts": ["a"]}, "1 texts for 3 nodes"),
    ],
)
def test_arrays_that_are_no_graph_are_refused(change, said):
    given = {"source": [0, 1], "target": [1, 2], "nodes": 3, **change}
    arrays = [np.array(given.pop(name)) for name in ("source", "target")]
    assert said in refusal(Graph.from_arrays, *arrays, **given)


def test_pairs_that_are_no_edges_are_refused():
    assert "edge 2 ends at 'c', which is not a node" in refusal(
        Graph.from_edges, [("a", "b"), ("b", "c")], nodes=["a", "b"]
    )
    assert "edge 1 has 3 ends" in refusal(Graph.from_edges, [("a", "b", 2.0)])
    assert "no nodes" in refusal(Graph.from_edges, [])
    assert "different types" in refusal(Graph.from_edges, [("a", 1)])


@pytest.mark.parametrize("group", [None, ["weight"]])
def test_lengths_that_pytorch_geometric_makes_of_networkx_are_kept(group):
    given = nx.Graph()
    given.add_weighted_edges_from([("a", "b", 3.0), ("b", "c", 5.0)])
    data = from_networkx(given, group_edge_attrs=group)
    graph = Graph.from_pyg(data)
    assert arcs(graph) == {(0, 1): 3.0, (1, 0): 3.0, (1, 2): 5.0, (2, 1): 5.0}
    assert Graph.from_pyg(data, weight=None).weights is None


def test_attributes_of_edges_that_are_no_lengths_are_refused_unless_left_out():
    data = Data(edge_index=torch.tensor([[0, 1], [1, 2]]), edge_attr=torch.ones(2, 3), num_nodes=3)
    assert "edge_attr of the data is float32 (2, 3), not one length" in refusal(Graph.from_pyg, data)
    assert Graph.from_pyg(data, weight=None).weights is None
    data.edge_attr = torch.tensor([1.0, -2.0])
    assert "weight -2.0" in refusal(Graph.from_pyg, data)


def test_whole_numbers_of_numpy_and_of_python_are_the_same_ids():
    graph = Graph.from_edges([(np.int64(1), 2), (2, np.int32(3))])
    assert list(graph.ids) == [1, 2, 3]
    assert graph.row(np.int64(3)) == graph.row(3) == 2
    assert len(graph.with_edges([0], [3], new_ids=[np.int64(9)])) == 4
    nested = Graph.from_edges([(("a", np.int64(1)), ("a", 2))])
    assert nested.row(("a", 1)) == 0
    assert "different types" in refusal(Graph.from_edges, [(1, "1")])


def test_the_digest_of_a_graph_is_the_sum_over_its_arcs_whatever_their_order():
    rng = np.random.default_rng(0)
    source, target = rng.integers(0, 40, (2, 90))
    lengths = rng.integers(1, 5, 90)
    graph = Graph.from_arrays(source, target, 40, weights=lengths)
    order = rng.permutation(90)
    assert graph.digest == Graph.from_arrays(source[order], target[order], 40, weights=lengths[order]).digest
    begin, end = graph.arcs()
    assert np.array_equal(graph.find(begin, end), np.arange(len(begin)))
    cut = graph.without(np.array([[begin[0], end[0]]]))
    assert cut.find(begin[:1], end[:1]).tolist() == [-1]
    gone = graph.find(np.array([begin[0], end[0]]), np.array([end[0], begin[0]]))
    assert (cut.digest + int(graph.digests(gone).sum(dtype=np.uint64))) % 2**64 == graph.digest
    longer = Graph.from_arrays(source, target, 40, weights=lengths + (np.arange(90) == 0))
    assert longer.digest != graph.digest or np.array_equal(longer.weights, graph.weights)
