"""Greedy coverage against brute force and a plain greedy; the other strategies against their definitions."""

from itertools import combinations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from nodetok.anchors import choose
from nodetok.distances import UNREACHABLE, hops
from nodetok.graph import Graph
from nodetok.settings import AnchorSettings
from setrec.errors import ConfigError

STRATEGIES = ["coverage", "paper", "degree", "random", "k_centre"]
MANY = settings(max_examples=60)


@st.composite
def graphs(draw, most=9):
    nodes = draw(st.integers(1, most))
    ends = draw(st.lists(st.tuples(st.integers(0, nodes - 1), st.integers(0, nodes - 1)), max_size=2 * nodes))
    pairs = np.array(ends, dtype=np.int64).reshape(-1, 2)
    return Graph.from_arrays(pairs[:, 0], pairs[:, 1], nodes, directed=draw(st.booleans()))


def balls(graph, radius):
    """(V, V): whether a node lies within ``radius`` hops of another."""
    return hops(graph.undirected, np.arange(len(graph))) <= radius


def assert_greedy(graph, chosen, radius, exclude=False):
    """Every anchor covers as many new nodes as the best candidate would, until none covers any."""
    near = balls(graph, radius)
    covered = np.zeros(len(graph), dtype=bool)
    for row, said in zip(chosen.rows, chosen.gains, strict=True):
        gain = (near & ~covered[:, None]).sum(axis=0)
        gain[covered if exclude else []] = 0
        assert said == gain.max() == (gain[row] if said else 0)
        covered |= near[:, row]


def sparse_graph(nodes=400, seed=0, edges=None):
    return Graph.from_networkx(nx.gnm_random_graph(nodes, edges or int(1.2 * nodes), seed=seed))


@MANY
@given(graph=graphs(), count=st.integers(1, 4), radius=st.integers(1, 3))
def test_greedy_covers_the_promised_share_of_the_best_coverage(graph, count, radius):
    near, count = balls(graph, radius), min(count, len(graph))
    best = max(near[:, list(rows)].any(axis=1).sum() for rows in combinations(range(len(graph)), count))
    chosen = choose(graph, AnchorSettings(count=count, radius=radius))
    covered = near[:, chosen.rows].any(axis=1).sum()
    assert covered >= (1 - 1 / np.e) * best
    assert covered == chosen.gains.sum() == round(chosen.coverage * len(graph))


@MANY
@given(graph=graphs(most=30), count=st.integers(1, 30), radius=st.integers(1, 4), strategy=st.sampled_from(STRATEGIES))
def test_anchors_are_distinct_as_many_as_asked_and_their_gains_are_what_they_cover_first(
    graph, count, radius, strategy
):
    chosen = choose(graph, AnchorSettings(strategy=strategy, count=count, radius=radius))
    count = min(count, len(graph))
    assert len(set(chosen.rows.tolist())) == len(chosen.rows) == len(chosen.gains)
    assert len(chosen.rows) == count or (strategy == "paper" and chosen.coverage == 1)
    near, covered = balls(graph, radius), np.zeros(len(graph), dtype=bool)
    for row, gain in zip(chosen.rows, chosen.gains, strict=True):
        assert (near[:, row] & ~covered).sum() == gain
        covered |= near[:, row]


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("radius", [1, 2, 3, 16])
@pytest.mark.parametrize("edges", [150, 480, 6000])
def test_the_lazy_greedy_is_the_plain_greedy(edges, radius, exclude):
    graph = sparse_graph(200, edges, edges)
    strategy = "paper" if exclude else "coverage"
    assert_greedy(graph, choose(graph, AnchorSettings(strategy=strategy, count=60, radius=radius)), radius, exclude)


def test_more_walks_than_a_word_can_count_do_not_mislead_the_search():
    """A dense block has more walks of 16 steps than 64 bits hold, and still the longer tail is worth more."""
    given = nx.disjoint_union(nx.complete_graph(20), nx.path_graph(33))
    for size in range(20, 45):
        graph = Graph.from_networkx(nx.disjoint_union(given, nx.complete_graph(size)))
        assert_greedy(graph, choose(graph, AnchorSettings(count=3, radius=16)), 16)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_graph_and_settings_give_the_same_anchors(strategy):
    settings = AnchorSettings(strategy=strategy, count=40, seed=3)
    first, second = (choose(sparse_graph(), settings) for _ in range(2))
    assert np.array_equal(first.rows, second.rows)
    assert np.array_equal(first.gains, second.gains)


def test_only_random_anchors_and_ties_of_coverage_depend_on_the_seed():
    for strategy in STRATEGIES:
        one, two = (choose(sparse_graph(), AnchorSettings(strategy=strategy, count=20, seed=s)) for s in (0, 1))
        assert np.array_equal(one.rows, two.rows) if strategy in ("degree", "k_centre") else True
        assert not np.array_equal(one.rows, two.rows) if strategy == "random" else True
        assert strategy == "random" or one.gains[0] == two.gains[0]


@pytest.mark.parametrize(
    "shape", [nx.grid_2d_graph(40, 40), nx.path_graph(2000), nx.cycle_graph(1000), nx.balanced_tree(3, 6)]
)
def test_anchors_of_equal_coverage_spread_over_the_graph(shape):
    graph = Graph.from_networkx(shape)
    farthest = {
        strategy: np.mean([
            hops(graph, choose(graph, AnchorSettings(strategy=strategy, count=32, seed=seed)).rows).min(axis=1).mean()
            for seed in range(3)
        ])
        for strategy in ("coverage", "random")
    }  # fmt: skip
    assert farthest["coverage"] < farthest["random"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_directions_do_not_matter(strategy):
    source, target = np.random.default_rng(0).integers(0, 100, (2, 150))
    settings = AnchorSettings(strategy=strategy, count=12)
    both = [choose(Graph.from_arrays(source, target, 100, directed=way), settings).rows for way in (False, True)]
    assert np.array_equal(*both)


def test_coverage_covers_at_least_what_its_opponents_do():
    graph = sparse_graph()
    covered = {s: choose(graph, AnchorSettings(strategy=s, count=30)).coverage for s in STRATEGIES}
    assert covered["coverage"] == max(covered.values())
    assert covered["coverage"] > covered["random"] + 0.1


@MANY
@given(graph=graphs(most=40), radius=st.integers(1, 3))
def test_the_papers_anchors_never_cover_one_another(graph, radius):
    rows = choose(graph, AnchorSettings(strategy="paper", count=None, coverage=1.0, radius=radius)).rows
    near = balls(graph, radius)[np.ix_(rows, rows)]
    assert np.array_equal(near, np.eye(len(rows), dtype=bool))


@MANY
@given(graph=graphs(most=40), ratio=st.floats(0.05, 1), radius=st.integers(1, 3), strategy=st.sampled_from(STRATEGIES))
def test_anchors_are_added_until_the_coverage_is_reached_and_no_longer(graph, ratio, radius, strategy):
    chosen = choose(graph, AnchorSettings(strategy=strategy, count=None, coverage=ratio, radius=radius))
    assert chosen.coverage >= ratio - 1e-9
    assert chosen.gains[:-1].sum() / len(graph) < ratio
    assert balls(graph, radius)[:, chosen.rows].any(axis=1).mean() == pytest.approx(chosen.coverage)


def test_a_count_ends_what_a_coverage_would_go_on_with():
    graph = sparse_graph()
    chosen = choose(graph, AnchorSettings(count=5, coverage=0.9))
    assert len(chosen.rows) == 5
    assert chosen.coverage < 0.9
    assert np.array_equal(chosen.rows, choose(graph, AnchorSettings(count=5)).rows)


def test_anchors_left_after_all_is_covered_cover_it_again():
    graph = Graph.from_networkx(nx.star_graph(9))
    chosen = choose(graph, AnchorSettings(count=4, radius=1))
    assert chosen.rows[0] == 0
    assert chosen.gains.tolist() == [10, 0, 0, 0]
    assert sorted(choose(graph, AnchorSettings(count=99)).rows) == list(range(10))
    two_stars = Graph.from_networkx(nx.disjoint_union(nx.barbell_graph(5, 0), nx.star_graph(9)))
    rows = choose(two_stars, AnchorSettings(count=4, radius=2)).rows
    components = two_stars.components[rows]
    assert components[0] != components[1]
    assert components[2] != components[3]


def test_degree_takes_the_best_linked_and_the_lowest_row_of_equals():
    graph = sparse_graph()
    rows = choose(graph, AnchorSettings(strategy="degree", count=25)).rows
    by_hand = sorted(range(len(graph)), key=lambda row: (-len(graph.neighbours(row)), row))[:25]
    assert rows.tolist() == by_hand


@MANY
@given(graph=graphs(), count=st.integers(1, 4))
def test_k_centre_is_at_most_twice_as_far_from_the_farthest_node_as_the_best_choice(graph, count):
    table = hops(graph.undirected, np.arange(len(graph))).astype(int)
    count = min(count, len(graph))
    best = min(table[:, list(rows)].min(axis=1).max() for rows in combinations(range(len(graph)), count))
    rows = choose(graph, AnchorSettings(strategy="k_centre", count=count)).rows
    farthest = table[:, rows].min(axis=1).max()
    assert farthest == UNREACHABLE if best == UNREACHABLE else farthest <= 2 * best
    for i in range(1, count):
        nearest = table[:, rows[:i]].min(axis=1)
        assert nearest[rows[i]] == nearest.max()


def test_settings_that_say_nothing_or_nonsense_are_refused():
    with pytest.raises(ConfigError, match="count or a coverage") as caught:
        choose(sparse_graph(), AnchorSettings(count=None))
    assert "\n" not in str(caught.value)
    for wrong in ({"count": 0}, {"coverage": 0.0}, {"coverage": 1.1}, {"radius": 0}, {"strategy": "best"}):
        with pytest.raises(ValidationError):
            AnchorSettings(**wrong)
