"""Graphs of other libraries, and weights, that are easily given by mistake: read as meant, or refused in one line."""

import networkx as nx
import numpy as np
import pytest
import torch
from torch_geometric.data import Data, HeteroData

from nodetok.distances import distances
from nodetok.files import GraphData
from nodetok.graph import Graph
from nodetok.settings import AnchorSettings, DistanceSettings, TokenizerSettings
from nodetok.tokenizer import NodeTokenizer
from nodetok.transform import AddAnchorDistances
from setrec.errors import ConfigError, DataError

EDGES = torch.tensor([[0, 1, 2], [1, 2, 3]])
NAN = float("nan")


def data(**more):
    return Data(**{"edge_index": EDGES, "num_nodes": 4, **more})


def test_a_missing_label_or_text_is_no_word():
    assert GraphData.from_pyg(data(y=torch.tensor([0.0, NAN, 1.0, 1.0]))).labels == ["0.0", "", "1.0", "1.0"]
    assert GraphData.from_pyg(data(y=["a", None, "b", "b"])).labels == ["a", "", "b", "b"]
    assert Graph.from_pyg(data(text=["a", None, NAN, "d"])).texts == ["a", "", "", "d"]
    assert Graph.from_pyg(data(text=np.array(["a", "b", "c", "d"]))).texts == ["a", "b", "c", "d"]
    given = nx.path_graph(3)
    given.nodes[0]["title"], given.nodes[1]["title"] = None, "film"
    assert Graph.from_networkx(given, text="title").texts == ["", "film", ""]
    with pytest.raises(DataError, match="no node has an attribute 'titel'"):
        Graph.from_networkx(given, text="titel")


def test_a_mask_is_a_mask_and_a_node_is_in_one_part():
    first, second = torch.tensor([True, True, False, False]), torch.tensor([False, False, True, False])
    assert GraphData.from_pyg(data(train_mask=first, valid_mask=second)).split == ["train", "train", "valid", ""]
    with pytest.raises(DataError, match="node 1 is in the masks of two parts: train and test"):
        GraphData.from_pyg(data(train_mask=first, test_mask=torch.tensor([False, True, True, False])))
    for bad in (torch.tensor([3, 1, 2, 0]), torch.tensor([NAN, 1.0, 0.0, 0.0])):
        with pytest.raises(DataError, match="train_mask holds other values"):
            GraphData.from_pyg(data(train_mask=bad))


def test_tensors_of_any_type_and_layout_are_read():
    assert Graph.from_pyg(data(edge_attr=torch.ones(3, dtype=torch.bfloat16))).weights.tolist() == [1.0] * 3
    assert GraphData.from_pyg(data(x=torch.eye(4).to_sparse())).features.tolist() == np.eye(4).tolist()


def test_an_attribute_that_is_named_must_be_there():
    for convert in (Graph.from_pyg, lambda given, weight: AddAnchorDistances(2, weight=weight)(given)):
        with pytest.raises(DataError, match="no edge attribute 'length'"):
            convert(data(edge_attr=torch.ones(3)), weight="length")
    films = HeteroData()
    films["film"].num_nodes = 2
    films["film", "next", "film"].edge_index = torch.tensor([[0], [1]])
    with pytest.raises(DataError, match="no edge attribute 'length'"):
        Graph.from_pyg(films, weight="length")
    for read in (GraphData.from_pyg, AddAnchorDistances(2)):
        with pytest.raises(DataError, match="to_homogeneous"):
            read(films)


def test_lengths_that_differ_by_direction_make_a_graph_directed():
    ways = Data(num_nodes=2, edge_index=torch.tensor([[0, 1], [1, 0]]), edge_weight=torch.tensor([1.0, 5.0]))
    graph = Graph.from_pyg(ways)
    assert graph.directed
    assert graph.weights.tolist() == [1.0, 5.0]
    assert not Graph.from_pyg(Data(num_nodes=2, edge_index=ways.edge_index, edge_weight=torch.ones(2))).directed


def test_positions_beside_whole_numbers_stay_fractions():
    found = AddAnchorDistances(4, attr_name=None)(data(x=torch.ones(4, 2, dtype=torch.long))).x
    assert ((found > 0) & (found < 1)).any()


def test_lengths_that_float32_cannot_hold_are_refused_and_tiny_units_are_not():
    def chain(*weights):
        ends = np.arange(len(weights))
        return Graph.from_arrays(ends, ends + 1, len(weights) + 1, weights=np.array(weights))

    lengths, walks = DistanceSettings(kind="weighted"), DistanceSettings(kind="walks")
    with pytest.raises(ConfigError, match="longer than float32 can hold"):
        distances(chain(3e38, 3e38), np.array([0]), lengths)
    with pytest.raises(DataError, match="edge 1 has weight 1e-60"):
        chain(1e-60, 1.0)
    settings = TokenizerSettings(anchors=AnchorSettings(count=2), distances=lengths)
    for scale in (1e-37, 1.0, 1e37):
        assert np.isfinite(NodeTokenizer.fit(chain(scale, 2 * scale, scale), settings).transform()).all()
    small, plain = (distances(chain(*(unit * np.array([1, 2, 3]))), np.array([0]), walks) for unit in (1e-9, 1.0))
    assert np.allclose(small, plain, rtol=1e-5)


@pytest.mark.parametrize("missing", [None, NAN])
def test_a_missing_id_is_no_node(missing):
    with pytest.raises(DataError, match="a node id is missing"):
        Graph.from_edges([(missing, missing)])
    with pytest.raises(DataError, match="a node id is missing"):
        Graph.from_edges([(1.0, missing), (2.0, missing)])


def test_a_graph_that_has_become_directed_is_refused_where_columns_would_not_fit():
    graph = Graph.from_edges([(i, i + 1) for i in range(9)])
    ways = Graph.from_edges([(i, i + 1) for i in range(9)], directed=True)
    settings = TokenizerSettings(anchors=AnchorSettings(count=3), distances=DistanceSettings(direction="both"))
    for fitted, grown in ((graph, ways), (ways, graph)):
        with pytest.raises(ConfigError, match="only one is directed"):
            NodeTokenizer.fit(fitted, settings).update(grown, np.empty(0, int), np.empty(0, int))


def test_rows_are_a_list_and_features_are_numbers():
    tokenizer = NodeTokenizer.fit(Graph.from_edges([(i, i + 1) for i in range(9)]), TokenizerSettings())
    assert tokenizer.transform(np.array([])).shape == tokenizer.transform([]).shape == (0, 10)
    with pytest.raises(ConfigError, match="a list of rows"):
        tokenizer.transform(3)
    with pytest.raises(ConfigError, match="a list of rows"):
        tokenizer.transform_new([3])
    with pytest.raises(ConfigError, match="k is -1"):
        tokenizer.nearest(0, -1)
    with pytest.raises(DataError, match="x of node 2 holds"):
        GraphData.from_pyg(data(x=torch.tensor([[1.0], [2.0], [NAN], [3.0]])))
