"""The transform for PyTorch Geometric against the tokenizer and NetworkX."""

import networkx as nx
import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.transforms import Compose
from torch_geometric.utils import from_networkx

from nodetok.graph import Graph
from nodetok.settings import TokenizerSettings
from nodetok.tokenizer import NodeTokenizer
from nodetok.transform import AddAnchorDistances
from setrec.errors import DataError


def test_positions_are_the_tokenizers():
    data = from_networkx(nx.connected_watts_strogatz_graph(80, 4, 0.1, seed=1))
    found = AddAnchorDistances(16)(data)
    settings = TokenizerSettings.model_validate({"anchors": {"count": 16}})
    assert np.array_equal(found.anchor_pe.numpy(), NodeTokenizer.fit(Graph.from_pyg(data), settings).transform())
    assert "anchor_pe" not in data
    appended = AddAnchorDistances(16, attr_name=None)(Data(x=torch.ones(80, 3), edge_index=data.edge_index))
    assert torch.equal(appended.x[:, 3:], found.anchor_pe)


def test_raw_distances_are_networkxs():
    given = nx.disjoint_union(nx.path_graph(6), nx.cycle_graph(4))
    found = AddAnchorDistances(3, raw=True)(from_networkx(given)).anchor_pe
    lengths = dict(nx.all_pairs_shortest_path_length(given))
    for column in found.T.tolist():
        anchor = column.index(0.0)
        assert column == [lengths[anchor].get(node, float("inf")) for node in range(10)]


def test_lengths_of_edges_count_where_they_are_named():
    given = nx.Graph()
    given.add_weighted_edges_from([(0, 1, 3.0), (1, 2, 5.0)])
    found = AddAnchorDistances(3, raw=True, weight="infer")(from_networkx(given)).anchor_pe
    assert sorted(set(found.flatten().tolist())) == [0.0, 3.0, 5.0, 8.0]


def test_graphs_of_different_sizes_are_batched():
    transform = Compose([AddAnchorDistances(8)])
    graphs = [transform(from_networkx(nx.path_graph(n))) for n in (3, 12)]
    batch = next(iter(DataLoader(graphs, batch_size=2)))
    assert batch.anchor_pe.shape == (15, 8)
    assert not batch.anchor_pe[:3, 3:].any()


def test_data_without_edges_or_with_features_for_lengths_is_refused():
    with pytest.raises(DataError, match="no edge_index"):
        AddAnchorDistances(4)(Data(x=torch.ones(3, 1)))
    wide = Data(edge_index=torch.tensor([[0], [1]]), edge_attr=torch.ones(1, 4), num_nodes=2)
    with pytest.raises(DataError, match="edge_attr"):
        AddAnchorDistances(2, weight="infer")(wide)
    assert AddAnchorDistances(2)(wide).anchor_pe.shape == (2, 2)
