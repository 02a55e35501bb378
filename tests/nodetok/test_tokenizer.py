"""One object from graph to positions: updates, new nodes, renumbered graphs, and what is on disk."""

import json
from concurrent.futures import ThreadPoolExecutor

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from nodetok.distances import UNREACHABLE, hops, relax
from nodetok.graph import Graph
from nodetok.settings import AnchorSettings, DistanceSettings, PositionSettings, TokenizerSettings
from nodetok.tokenizer import NodeTokenizer
from setrec.errors import ConfigError, SetRecError, UnknownNodeError

NODES = 10
MANY = settings(max_examples=60)


def asked(count=4, positions=None, **distances):
    return TokenizerSettings(
        anchors=AnchorSettings(count=count),
        distances=DistanceSettings(**distances),
        positions=positions or PositionSettings(),
    )


def ring(nodes=60, seed=0, ids=None):
    given = nx.connected_watts_strogatz_graph(nodes, 4, 0.2, seed=seed)
    return Graph.from_networkx(given if ids is None else nx.relabel_nodes(given, dict(enumerate(ids))))


@st.composite
def growing(draw):
    """A graph, and edges with new nodes to add to it; lengths are whole, so that sums are exact in any order."""
    old = st.tuples(st.integers(0, NODES - 1), st.integers(0, NODES - 1))
    more = draw(st.integers(0, 3))
    new = st.tuples(st.integers(0, NODES + more - 1), st.integers(0, NODES + more - 1))
    ends = [np.array(draw(st.lists(pair, max_size=18)), dtype=np.int64).reshape(-1, 2) for pair in (old, new)]
    weighted, directed = draw(st.booleans()), draw(st.booleans())
    lengths = [
        np.array(draw(st.lists(st.integers(0, 9), min_size=len(e), max_size=len(e)))) if weighted else None
        for e in ends
    ]
    names = [f"n{row}" for row in range(NODES + more)]
    graph = Graph.from_arrays(*ends[0].T, NODES, weights=lengths[0], directed=directed, ids=names[:NODES])
    return graph, graph.with_edges(*ends[1].T, lengths[1], new_ids=names[NODES:]), ends[1]


@MANY
@given(
    grows=growing(),
    kind=st.sampled_from(["hops", "weighted", "walks"]),
    direction=st.sampled_from(["ignored", "to", "from", "both"]),
)
def test_updating_is_measuring_the_grown_graph_anew(grows, kind, direction):
    graph, grown, added = grows
    tokenizer = NodeTokenizer.fit(graph, asked(kind=kind, direction=direction))
    before = tokenizer.table.copy()
    after = tokenizer.update(grown, added[:, 0], added[:, 1])
    assert np.array_equal(after.table, tokenizer.measure(grown))
    assert np.array_equal(tokenizer.table, before)
    assert (len(after), after.anchor_ids) == (len(grown), tokenizer.anchor_ids)
    after.check(grown)


def test_updating_a_large_graph_edge_by_edge_stays_exact():
    graph = ring(300)
    tokenizer = NodeTokenizer.fit(graph, asked(70))
    for source, target in np.random.default_rng(0).integers(0, 300, (10, 2, 1)):
        graph = graph.with_edges(source, target)
        tokenizer = tokenizer.update(graph, source, target)
    assert np.array_equal(tokenizer.table, tokenizer.measure(graph))


def test_updating_a_long_path_stays_exact_beyond_what_a_byte_can_count():
    path = Graph.from_networkx(nx.path_graph(600)).without(np.array([[400, 401]]))
    tokenizer = NodeTokenizer.fit(path, asked(3))
    for ends in ([400, 401], [0, 350], [10, 599]):
        source, target = (np.array([end]) for end in ends)
        path = path.with_edges(source, target)
        tokenizer = tokenizer.update(path, source, target)
        assert np.array_equal(tokenizer.table, tokenizer.measure(path))


@pytest.mark.parametrize("kind", ["hops", "weighted", "walks"])
@pytest.mark.parametrize("directed", [False, True])
def test_the_order_of_nodes_does_not_matter_to_a_fitted_tokenizer(kind, directed):
    rng = np.random.default_rng(1)
    source, target = rng.integers(0, 80, (2, 160))
    lengths = rng.integers(1, 9, 160) if kind == "weighted" else None
    names = [f"n{row}" for row in range(80)]
    order = rng.permutation(80)
    place = np.argsort(order)
    graph = Graph.from_arrays(source, target, 80, weights=lengths, directed=directed, ids=names)
    renumbered = Graph.from_arrays(
        place[source], place[target], 80, weights=lengths, directed=directed, ids=[names[row] for row in order]
    )
    tokenizer = NodeTokenizer.fit(graph, asked(9, kind=kind, direction="both"))
    np.testing.assert_allclose(tokenizer.measure(renumbered), tokenizer.table[order], rtol=1e-5)
    assert np.array_equal(tokenizer.measure(graph), tokenizer.table)
    with pytest.raises(ConfigError, match="another graph"):
        tokenizer.check(renumbered)


def test_a_graph_without_an_anchor_cannot_be_measured():
    tokenizer = NodeTokenizer.fit(ring(ids=[f"n{i}" for i in range(60)]), asked())
    with pytest.raises(UnknownNodeError):
        tokenizer.measure(ring(ids=[f"m{i}" for i in range(60)]))
    with pytest.raises(ConfigError, match="another graph"):
        tokenizer.check(ring(ids=[f"m{i}" for i in range(60)]))


@MANY
@given(
    beside=st.lists(st.lists(st.integers(0, NODES - 1), max_size=4, unique=True), min_size=1, max_size=3),
    data=st.data(),
)
def test_a_new_node_is_where_a_graph_that_has_it_puts_it(beside, data):
    ends = data.draw(st.lists(st.tuples(st.integers(0, NODES - 1), st.integers(0, NODES - 1)), max_size=12))
    source, target = np.array(ends, dtype=np.int64).reshape(-1, 2).T
    kind = data.draw(st.sampled_from(["hops", "weighted"]))
    graph = Graph.from_arrays(source, target, NODES)
    tokenizer = NodeTokenizer.fit(graph, asked(kind=kind))
    found = tokenizer.transform_new([np.array(rows, dtype=np.int64) for rows in beside])
    for rows, position in zip(beside, found, strict=True):
        links = np.full(len(rows), NODES)
        grown = tokenizer.update(graph.with_edges(links, np.array(rows), new_ids=[NODES]), links, np.array(rows))
        assert np.array_equal(grown.transform()[NODES], position)


def test_a_path_that_grows_beyond_what_a_byte_holds_is_still_counted():
    path = Graph.from_networkx(nx.path_graph(255))
    tokenizer = NodeTokenizer.fit(path, asked(1, PositionSettings(tau=0.01)))
    tokenizer = tokenizer.update(path.without(np.array([[0, 1]])), np.array([]), np.array([]))
    anchor = int(tokenizer.anchors.rows[0])
    tokenizer = tokenizer.update(path, np.array([0]), np.array([1]))
    for node in range(255, 255 + 260):
        links, beside = np.array([node]), np.array([node - 1])
        found = tokenizer.transform_new([beside])
        path = path.with_edges(links, beside, new_ids=[node])
        tokenizer = tokenizer.update(path, links, beside)
        assert np.array_equal(found, tokenizer.transform(links))
        assert tokenizer.table[node, 0] == node - anchor
    assert np.array_equal(tokenizer.table, tokenizer.measure(path))
    assert tokenizer.table.dtype == np.int32


@pytest.mark.parametrize("kind", ["hops", "weighted"])
@pytest.mark.parametrize("direction", ["ignored", "both"])
def test_updating_after_a_removal_is_measuring_anew(kind, direction):
    rng = np.random.default_rng(3)
    source, target = rng.integers(0, 80, (2, 130))
    graph = Graph.from_arrays(source, target, 80, weights=rng.integers(1, 9, 130), directed=direction == "both")
    tokenizer = NodeTokenizer.fit(graph, asked(8, kind=kind, direction=direction))
    cut = graph.without(np.stack(graph.arcs(), axis=1)[5:25])
    more = rng.integers(0, 80, (2, 4))
    grown = cut.with_edges(*more)
    assert not np.array_equal(tokenizer.measure(cut), tokenizer.table)
    assert np.array_equal(tokenizer.update(grown, *more).table, tokenizer.measure(grown))
    none = np.array([], dtype=np.int64)
    again = tokenizer.update(cut, none, none)
    assert np.array_equal(again.table, tokenizer.measure(cut))
    assert np.array_equal(again.update(grown, *more).table, tokenizer.measure(grown))


@pytest.mark.parametrize("row", [-1, 60, 5000, 10**6, 10**9, 0.5])
def test_rows_outside_the_graph_are_refused_and_nothing_is_written(row):
    graph = ring()
    tokenizer = NodeTokenizer.fit(graph, asked(6))
    before, wrong, right = tokenizer.table.copy(), np.array([row]), np.array([0])
    for attempt in (
        lambda: tokenizer.update(graph, wrong, right),
        lambda: tokenizer.update(graph, right, wrong),
        lambda: relax(graph, tokenizer.table, wrong, weighted=False),
        lambda: tokenizer.transform(wrong),
        lambda: tokenizer.transform_new([right, wrong]),
        lambda: tokenizer.nearest(row, 3),
        lambda: hops(graph, wrong),
        lambda: graph.without(np.array([[0, row]])),
        lambda: graph.with_edges(right, wrong),
    ):
        with pytest.raises(SetRecError, match="integers" if row == 0.5 else str(row)) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert np.array_equal(tokenizer.table, before)


def test_an_update_that_does_not_belong_to_the_graph_is_refused():
    tokenizer = NodeTokenizer.fit(ring(), asked(6))
    with pytest.raises(ConfigError, match="no edge from 0 to 31"):
        tokenizer.update(ring(), np.array([0]), np.array([31]))
    with pytest.raises(ConfigError, match="as many sources as targets"):
        tokenizer.update(ring(), np.array([0, 1]), np.array([1]))
    with pytest.raises(ConfigError, match="cannot have grown"):
        tokenizer.update(ring(30), np.array([0]), np.array([1]))


def test_two_threads_may_fit_at_once():
    graph = ring(3000)
    expected = NodeTokenizer.fit(graph, asked(70)).table
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: NodeTokenizer.fit(graph, asked(70)).table, range(8)))
    assert all(np.array_equal(table, expected) for table in found)


def test_the_nearest_are_found_without_computing_all_positions_again(monkeypatch):
    tokenizer = NodeTokenizer.fit(ring(), asked(6))
    first = tokenizer.nearest(7, 5)
    monkeypatch.setattr(type(tokenizer), "transform", None)
    assert np.array_equal(tokenizer.nearest(7, 5)[0], first[0])


def test_walks_of_a_new_node_are_those_of_a_pendant_node_with_a_step_to_spare():
    graph = ring(30)
    settings = asked(5, kind="walks", steps=12)
    tokenizer = NodeTokenizer.fit(graph, settings)
    beside = np.array([3, 17])
    directed = Graph.from_arrays(*graph.arcs(), 30, directed=True).with_edges(
        np.array([30, 30]), beside, new_ids=[30]
    )  # a node that walks leave and never enter
    longer = tokenizer.settings.distances.model_copy(update={"steps": 13, "direction": "to"})
    other = NodeTokenizer.fit(directed, settings.model_copy(update={"distances": longer}))
    other.anchor_ids = tokenizer.anchor_ids
    with torch.no_grad():
        expected = tokenizer.positions(torch.from_numpy(other.measure(directed)[30:])).numpy()
    np.testing.assert_allclose(tokenizer.transform_new([beside]), expected, rtol=1e-4)


def test_positions_of_some_rows_are_rows_of_all_positions():
    tokenizer = NodeTokenizer.fit(ring(), asked(6))
    rows = np.array([5, 0, 5])
    assert tokenizer.transform().shape == (60, tokenizer.width) == (60, 6)
    assert np.array_equal(tokenizer.transform(rows), tokenizer.transform()[rows])
    assert tokenizer.transform(np.array([], dtype=np.int64)).shape == (0, 6)
    expected = np.exp(-2.0 * np.where(tokenizer.table == UNREACHABLE, np.inf, tokenizer.table.astype(float)))
    np.testing.assert_allclose(tokenizer.transform(), expected, rtol=1e-5)


def test_fitting_again_gives_the_same_positions():
    learned = PositionSettings(steps=20, batch=64, pivots=8)
    one, two = (NodeTokenizer.fit(ring(), asked(6, learned)) for _ in range(2))
    assert np.array_equal(one.transform(), two.transform())


def test_the_nearest_nodes_are_those_of_highest_similarity():
    tokenizer = NodeTokenizer.fit(ring(), asked(6))
    z = torch.from_numpy(tokenizer.transform())
    rows, scores = tokenizer.nearest(7, 5)
    with torch.no_grad():
        every = {row: float(tokenizer.positions.similarity(z[7], z[row])) for row in range(60) if row != 7}
    np.testing.assert_allclose(scores, [every[row] for row in rows], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores, sorted(every.values(), reverse=True)[:5], rtol=1e-4, atol=1e-6)
    everyone, _ = tokenizer.nearest(7, 1000)
    assert sorted(everyone) == [row for row in range(60) if row != 7]


def test_equally_near_nodes_come_by_row():
    star = Graph.from_networkx(nx.star_graph(9))
    rows, scores = NodeTokenizer.fit(star, asked(1)).nearest(4, 5)
    assert rows.tolist() == [0, 1, 2, 3, 5]
    assert scores[0] > scores[1] == scores[4]


def test_a_description_says_what_the_tokenizer_is():
    directed = Graph.from_arrays(np.arange(9), np.arange(1, 10), 10, directed=True)
    said = NodeTokenizer.fit(directed, asked(3, direction="both")).describe()
    assert (said["anchors"], said["columns"], said["width"]) == (3, 6, 6)
    assert said["coverage"] == 1.0
    json.dumps(said)


IDS = {
    "rows": None,
    "text": [f"n{i}" for i in range(60)],
    "tuples": [("part", (i, "x")) for i in range(60)],
    "numbers": np.arange(100, 160),
}


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize(
    "settings",
    [
        asked(6),
        asked(6, kind="walks"),
        asked(6, kind="weighted", direction="both"),
        asked(6, PositionSettings(steps=3, batch=64, pivots=8)),
    ],
)
def test_what_is_saved_is_what_is_loaded(tmp_path, settings, ids):
    graph = ring(ids=None if IDS[ids] is None else list(IDS[ids]))
    tokenizer = NodeTokenizer.fit(graph, settings)
    tokenizer.save(tmp_path / "t")
    loaded = NodeTokenizer.load(tmp_path / "t")
    assert loaded.settings == settings
    assert loaded.anchor_ids == tokenizer.anchor_ids
    assert loaded.table.dtype == tokenizer.table.dtype
    assert np.array_equal(loaded.table, tokenizer.table)
    assert np.array_equal(loaded.transform(), tokenizer.transform())
    assert loaded.describe() == tokenizer.describe()
    loaded.check(graph)
    assert np.array_equal(loaded.measure(graph), tokenizer.table)


def test_ids_that_json_cannot_hold_are_refused_and_leave_nothing_behind(tmp_path):
    tokenizer = NodeTokenizer.fit(Graph.from_edges([(0.5, 1.5)]), asked(1))
    with pytest.raises(ConfigError, match="cannot be saved"):
        tokenizer.save(tmp_path / "t")
    assert not list(tmp_path.iterdir())


def damage_json(**changes):
    def damage(folder):
        record = json.loads((folder / "tokenizer.json").read_text())
        for key, value in changes.items():
            if value is None:
                del record[key]
            else:
                record[key] = value
        (folder / "tokenizer.json").write_text(json.dumps(record))

    return damage


def damage_tensors(drop=None, **changes):
    def damage(folder):
        tensors = load_file(folder / "tokenizer.safetensors")
        tensors.pop(drop, None)
        save_file(tensors | changes, folder / "tokenizer.safetensors")

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / "tokenizer.safetensors").unlink(),
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        lambda folder: (folder / "tokenizer.json").write_text("[]"),
        lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff\xfe"),
        lambda folder: (folder / "tokenizer.safetensors").write_bytes(b"not tensors"),
        lambda folder: (folder / "tokenizer.safetensors").write_bytes(
            (folder / "tokenizer.safetensors").read_bytes()[:-20]
        ),
        damage_json(format=2),
        damage_json(format=None),
        damage_json(settings={"anchors": {"count": -1}}),
        damage_json(settings=None),
        damage_json(anchor_ids=None),
        damage_json(anchor_ids=5),
        damage_json(anchor_ids=["n1"]),
        damage_json(anchor_ids=[{"a": 1}] * 6),
        damage_json(nodes=61),
        damage_tensors(drop="table"),
        damage_tensors(drop="gains"),
        damage_tensors(drop="positions.log_tau"),
        damage_tensors(extra=torch.zeros(1)),
        damage_tensors(gains=torch.zeros(5, dtype=torch.int64)),
        damage_tensors(table=torch.zeros(60, 5, dtype=torch.uint8)),
        damage_tensors(table=torch.zeros(60, 6)),
        damage_tensors(table=torch.zeros(60, dtype=torch.uint8)),
        damage_tensors(anchors=torch.full((6,), 60)),
    ],
)
def test_a_damaged_tokenizer_is_refused_in_one_line(tmp_path, damage):
    NodeTokenizer.fit(ring(), asked(6)).save(tmp_path / "t")
    damage(tmp_path / "t")
    with pytest.raises(ConfigError, match="node tokenizer cannot be loaded") as caught:
        NodeTokenizer.load(tmp_path / "t")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "t"))
