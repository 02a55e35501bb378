import numpy as np
import torch
import torch.nn.functional as F
from nodetok_helpers import planted, reader, task

from nodetok.graph import Graph
from nodetok.language.input_ablation import ablate, diffused
from nodetok.language.settings import LAPLACIAN, SHUFFLED, TEXT, TOKENS, GraphModelSettings
from nodetok.language.walks import FeatureWalks

ROWS = torch.arange(60)


def walks(restart: float, count: int, starts: np.ndarray | None = None) -> FeatureWalks:
    return FeatureWalks.over(planted()[0], np.arange(60) if starts is None else starts, restart, count)


def test_the_average_over_many_walks_is_the_exact_one():
    torch.manual_seed(0)
    features = torch.rand(60, 5, generator=torch.Generator().manual_seed(0)) - 0.3
    for restart in (0.1, 0.6):
        exact = F.normalize(torch.from_numpy(diffused(planted()[0], features.numpy(), restart)), dim=1)
        found = walks(restart, 20_000).averages(ROWS, features)
        assert (exact * found).sum(dim=1).min() > 0.995
        few = walks(restart, 4).averages(ROWS, features)
        assert (exact * few).sum(dim=1).mean() < 0.97


def test_a_walk_stays_in_its_component_and_on_a_node_without_edges():
    graph = Graph.from_arrays(np.array([0, 1]), np.array([1, 2]), 4)
    ends = FeatureWalks.over(graph, np.arange(4), 0.1, 200).ends(torch.arange(4))
    assert set(ends[3].tolist()) == {3}
    assert set(ends[0].tolist()) == {0, 1, 2}


def test_walks_of_a_shuffled_node_leave_from_the_node_whose_average_it_shows():
    of, settings = task(), GraphModelSettings(neighbours=0, feature_restart=0.2, feature_walks=20_000)
    for name in (TOKENS, SHUFFLED, LAPLACIAN):
        data = ablate(of, name, settings).read(None)
        found = data.walks.averages(ROWS, data.features[:, 0])
        assert (data.features[:, 1] * found).sum(dim=1).min() > 0.995
    assert ablate(of, TEXT, settings).read(None).walks is None


def test_training_reads_other_walks_in_every_pass_and_evaluation_reads_the_exact_average():
    of = task()
    exact, sampled = (reader(of, neighbours=0, feature_walks=count) for count in (0, 3))
    batch, before = exact.encoder(of.valid.prompts), sampled.data.features.clone()
    scores = [made.model.scores(batch, made.data) for made in (exact, sampled)]
    torch.testing.assert_close(*scores)
    sampled.model.train()
    torch.manual_seed(0)
    first, second = (sampled.model.scores(batch, sampled.data) for _ in range(2))
    torch.manual_seed(0)
    again = sampled.model.scores(batch, sampled.data)
    assert (first - second).abs().max() > 1e-3
    torch.testing.assert_close(first, again)
    torch.testing.assert_close(sampled.data.features, before)
