"""The graph networks to beat: their layers against dense formulas, what they read and what they must not read."""

import warnings

import numpy as np
import pytest
import torch
from nodetok_helpers import planted

from nodetok.baselines.gnn import CLASSIFIERS, GnnSettings, TwoLayers, Words, _adjacency, classify_nodes
from setrec.errors import ConfigError, DataError

KINDS = list(CLASSIFIERS.values())
FEW = GnnSettings(epochs=15)


@pytest.fixture(scope="module")
def data():
    graph, kind = planted(90)
    source, target = graph.arcs()
    edges = np.stack([source, target])[:, source < target]
    features = (np.random.default_rng(1).random((90, 20)) < 0.3).astype(np.float32)
    rows = np.arange(90)
    return features, edges, kind, rows < 30, (rows >= 30) & (rows < 45)


@pytest.mark.parametrize("kind", KINDS)
def test_two_layers_are_the_published_formula_on_dense_matrices(data, kind):
    features, edges, *_ = data
    model = TwoLayers(kind, 20, 3, GnnSettings()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    x = torch.from_numpy(features)
    adjacency = torch.zeros(90, 90)
    adjacency[edges[0], edges[1]] = adjacency[edges[1], edges[0]] = 1.0
    looped = adjacency + torch.eye(90)
    scale = looped.sum(dim=1) ** -0.5
    mean = adjacency / adjacency.sum(dim=1, keepdim=True).clamp(min=1)

    def layer(own, z):
        if kind == "gcn":
            return scale[:, None] * looped * scale @ (z @ own.lin.weight.T) + own.bias
        if kind == "sage":
            return mean @ z @ own.lin_l.weight.T + own.lin_l.bias + z @ own.lin_r.weight.T
        return z @ own.weight.T + own.bias

    with torch.no_grad(), torch.sparse.check_sparse_tensor_invariants(True):
        found = model(x, _adjacency(edges, 90))
        expected = layer(model.second, layer(model.first, x).relu())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_dropped_words_are_scaled_zeros_stay_and_rows_sum_to_one():
    features = np.array([[0.0, 2.0, 2.0], [0.0, 0.0, 0.0], [5.0, 0.0, 0.0]], dtype=np.float32)
    words = Words(features, 0.5)
    torch.manual_seed(0)
    assert words.whole.tolist() == [[0, 0.5, 0.5], [0, 0, 0], [1, 0, 0]]
    draws = torch.stack([words.dropped().clone() for _ in range(2000)])
    assert set(draws[:, 0, 1].tolist()) == {0.0, 1.0}
    assert not draws[:, words.whole == 0].any()
    torch.testing.assert_close(draws.mean(dim=0), words.whole, atol=0.05, rtol=0)
    assert words.whole.tolist() == [[0, 0.5, 0.5], [0, 0, 0], [1, 0, 0]]


def test_graph_networks_find_planted_classes_that_words_do_not_tell(data):
    features, edges, kind, train, valid = data
    test = ~(train | valid)
    right = {
        name: (classify_nodes(name, features, edges, kind, train, valid, 0, GnnSettings(epochs=60)) == kind)[
            test
        ].mean()
        for name in KINDS
    }
    assert min(right["gcn"], right["sage"]) > 0.6
    assert right["mlp"] < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_labels_outside_training_and_validation_are_not_read_and_the_seed_decides(data, kind):
    features, edges, labels, train, valid = data
    hidden = np.where(train | valid, labels, -1)
    first, again, blind = (
        classify_nodes(kind, features, edges, known, train, valid, 5, FEW) for known in (labels, labels, hidden)
    )
    assert first.shape == (90,)
    assert np.array_equal(first, again)
    assert np.array_equal(first, blind)


def test_only_graph_networks_read_edges(data):
    features, edges, labels, train, valid = data
    others = np.random.default_rng(0).integers(90, size=edges.shape)
    for kind in KINDS:
        one, two = (classify_nodes(kind, features, ends, labels, train, valid, 0, FEW) for ends in (edges, others))
        assert np.array_equal(one, two) == (kind == "mlp")


@pytest.mark.parametrize("kind", KINDS)
def test_training_says_nothing_that_a_user_would_wonder_about(data, kind):
    features, edges, labels, train, valid = data
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            classify_nodes(kind, features, edges, labels, train, valid, 0, GnnSettings(epochs=2))
    finally:
        torch.set_warn_always(False)
    assert [str(w.message) for w in said] == []


def test_what_does_not_fit_together_is_refused_in_one_line(data):
    features, edges, labels, train, valid = data
    wrong = [
        (ConfigError, "unknown kind", ("gat", features, edges, labels, train, valid)),
        (DataError, "are expected", ("gcn", features[0], edges, labels, train, valid)),
        (DataError, "are expected", ("gcn", features, edges.T, labels, train, valid)),
        (DataError, "edges must hold", ("gcn", features, edges + 1, labels, train, valid)),
        (DataError, "labels", ("gcn", features, edges, labels[:-1], train, valid)),
        (DataError, "train", ("gcn", features, edges, labels, train.astype(int), valid)),
        (DataError, "no labelled node", ("gcn", features, edges, labels, train, np.zeros(90, dtype=bool))),
    ]
    for error, said, arguments in wrong:
        with pytest.raises(error, match=said) as caught:
            classify_nodes(*arguments, 0, FEW)
        assert "\n" not in str(caught.value)
