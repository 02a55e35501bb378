import numpy as np
import torch
from nodetok_helpers import planted, task

from nodetok.graph import Graph
from nodetok.language.input_ablation import ablate, ablations, diffused, eigenvectors
from nodetok.language.settings import SHUFFLED, TEXT, TOKENS, GraphModelSettings


def test_diffused_features_are_those_of_a_dense_solve():
    graph, _ = planted()
    features = np.random.default_rng(0).normal(size=(60, 5))
    adjacency = (graph.undirected.matrix.toarray() != 0) + np.eye(60)
    scale = adjacency.sum(axis=1) ** -0.5
    near = scale[:, None] * adjacency * scale
    for restart in (0.1, 0.5, 0.99):
        dense = restart * np.linalg.solve(np.eye(60) - (1 - restart) * near, features)
        found = diffused(graph, features, restart)
        assert np.linalg.norm(found - dense) < 2e-3 * np.linalg.norm(dense)


def test_diffused_features_belong_to_another_node_when_shuffled_and_to_none_in_text_alone():
    of, settings = task(), GraphModelSettings(neighbours=0, feature_restart=0.2)
    own, shuffled, text = (ablate(of, name, settings).read(None).features for name in (TOKENS, SHUFFLED, TEXT))
    assert own.shape[1] == shuffled.shape[1] == 2
    assert text.shape[1] == 1
    for shown in (shuffled, text):
        torch.testing.assert_close(shown[:, 0], own[:, 0])
    assert (shuffled[:, 1] - own[:, 1]).abs().max() > 0.1
    torch.testing.assert_close(shuffled[:, 1].sum(dim=0), own[:, 1].sum(dim=0))


def test_an_edge_of_no_length_is_an_edge_to_diffusion_and_eigenvectors():
    graph, _ = planted()
    source, target = graph.arcs()
    lengths = np.random.default_rng(0).integers(2, size=len(source)).astype(np.float32)
    once = source < target
    measured = Graph.from_arrays(source[once], target[once], 60, weights=lengths[once])
    assert (measured.weights == 0).any()
    features = np.random.default_rng(0).normal(size=(60, 5))
    np.testing.assert_array_equal(diffused(measured, features, 0.2), diffused(graph, features, 0.2))
    np.testing.assert_array_equal(eigenvectors(measured, 6), eigenvectors(graph, 6))


def test_eigenvectors_are_those_of_the_dense_normalised_laplacian():
    graph, _ = planted()
    degree = graph.degrees.astype(float)
    laplacian = np.eye(60) - graph.adjacency.toarray() / np.sqrt(np.outer(degree, degree))
    found = eigenvectors(graph, 5).astype(np.float64)
    values = np.linalg.eigvalsh(laplacian)[:5]
    np.testing.assert_allclose((found**2).mean(axis=0), 1.0, rtol=1e-3)
    np.testing.assert_allclose(np.einsum("ik,ij,jk->k", found, laplacian, found) / 60, values, atol=1e-3)
    few = eigenvectors(Graph.from_arrays(np.array([0, 1]), np.array([1, 2]), 3), 4)
    assert few.shape == (3, 4)
    assert not few[:, 1:].any()


def test_node_tokens_come_first_as_the_budget_of_opponents_is_their_time():
    assert ablations(task(), (SHUFFLED, TEXT, TOKENS)) == [TOKENS, SHUFFLED, TEXT]
