"""The item graph and positions in it, against loops over the definition; the structural slot's features in a run."""

from collections import Counter
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from pipelines.common.run_directory import Run
from pipelines.config.job import validate
from pipelines.config.sections import StructuralSettings
from pipelines.data import directory
from pipelines.features import item_features, item_graph, preparation
from setrec.data.catalog import TEST, TRAIN, VALID, Catalog, Histories
from setrec.errors import ConfigError, DataError
from setrec.ragged import Ragged

ITEMS, COLD, ALONE = 24, 22, 23
"""Items 0 to 10 are red and chosen together, 11 to 21 blue; COLD is blue and never trained on, ALONE has nothing."""
SETTINGS = StructuralSettings(anchors=12, neighbours=4)


def catalog() -> Catalog:
    colours = [["red"] if item < 11 else ["blue"] for item in range(ITEMS)]
    colours[ALONE] = []
    names = [f"i{item}" for item in range(ITEMS)]
    years = [[f"{item}"] for item in range(ITEMS)]
    return Catalog(names, names, names, {"colour": colours, "year": years})


def histories(seed: int = 0, held_out: int = 0) -> Histories:
    """Users who stay in one half. ``seed`` draws the training part, ``held_out`` the two items after it."""
    rng, later = np.random.default_rng(seed), np.random.default_rng([held_out, 1])
    rows = [
        [*(rng.permutation(11)[: 5 + user % 3] + 11 * (user % 2)), *later.permutation(ITEMS)[:2]] for user in range(20)
    ]
    splits = [[TRAIN] * (len(row) - 2) + [VALID, TEST] for row in rows]
    return Histories([f"u{user}" for user in range(20)], Ragged.of(rows), Ragged.of(splits, np.int8).values)


def arcs(graph):
    return {frozenset((graph.id(a), graph.id(b))) for a, b in zip(*graph.arcs(), strict=True)}


def test_items_are_the_first_rows_in_the_order_of_the_catalogue():
    graph = item_graph.build(catalog(), histories(), SETTINGS)
    assert [graph.id(row) for row in range(ITEMS)] == [("item", f"i{item}") for item in range(ITEMS)]
    assert {graph.id(row) for row in range(ITEMS, len(graph))} == {("attribute", "colour", c) for c in ("red", "blue")}


def test_attribute_edges_are_those_of_the_catalogue_without_values_of_a_single_item():
    only = SETTINGS.model_copy(update={"edges": ("attributes",)})
    expected = {
        frozenset((("item", name), ("attribute", "colour", value)))
        for name, values in zip(catalog().item_ids, catalog().attributes["colour"], strict=True)
        for value in values
    }
    assert arcs(item_graph.build(catalog(), histories(), only)) == expected


def slow_interaction_edges(training, window, neighbours):
    """Meetings counted pair by pair, each item's strongest by cosine, ties by row."""
    meetings = Counter()
    for row in training:
        for (i, a), (j, b) in combinations(enumerate(row.tolist()), 2):
            if j - i <= window and a != b:
                meetings[a, b] += 1
                meetings[b, a] += 1
    total = Counter()
    for (a, _), count in meetings.items():
        total[a] += count
    chosen = set()
    for item in list(total):
        others = [(-count / np.sqrt(total[a] * total[b]), b) for (a, b), count in meetings.items() if a == item]
        chosen |= {(item, other) for _, other in sorted(others)[:neighbours]}
    return chosen


@pytest.mark.parametrize(("window", "neighbours"), [(1, 2), (3, 4), (50, 100)])
def test_interaction_edges_equal_the_count_pair_by_pair(window, neighbours):
    rng = np.random.default_rng(2)  # with repeats, an empty history and a history of one
    training = Ragged.of([rng.integers(0, 12, length) for length in [0, 1, *rng.integers(2, 9, 15)]])
    settings = StructuralSettings(window=window, neighbours=neighbours)
    found = item_graph.interaction_edges(training, ITEMS, settings)
    assert set(map(tuple, found.tolist())) == slow_interaction_edges(training, window, neighbours)
    assert np.bincount(found[:, 0]).max() <= neighbours


def test_held_out_interactions_change_neither_graph_nor_positions_and_training_ones_do():
    made = [item_graph.build(catalog(), h, SETTINGS) for h in (histories(), histories(held_out=7), histories(seed=1))]
    tables = [item_graph.positions(graph, ITEMS, SETTINGS) for graph in made]
    assert (histories().items.values != histories(held_out=7).items.values).any()
    assert arcs(made[0]) == arcs(made[1]) != arcs(made[2])
    np.testing.assert_array_equal(tables[0], tables[1])
    assert not np.array_equal(tables[0], tables[2])


def test_a_cold_item_is_placed_by_its_content_next_to_its_like():
    table = item_graph.positions(item_graph.build(catalog(), histories(), SETTINGS), ITEMS, SETTINGS)
    near = table @ table[COLD]
    assert COLD not in histories().upto(TRAIN).values
    assert near[11:22].mean() > 0 > near[:11].mean()
    assert near[11:22].min() > near[:11].max()


def test_an_item_without_any_edge_has_no_place():
    table = item_graph.positions(item_graph.build(catalog(), histories(), SETTINGS), ITEMS, SETTINGS)
    assert not table[ALONE].any()
    assert table[:ALONE].any(axis=1).all()
    np.testing.assert_allclose(table[:ALONE].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(table[:ALONE].std(axis=0), 1, atol=1e-5)


def test_a_catalogue_without_any_edge_has_positions_of_nothing():
    nothing = SETTINGS.model_copy(update={"edges": ()})
    table = item_graph.positions(item_graph.build(catalog(), histories(), nothing), ITEMS, nothing)
    assert table.shape == (ITEMS, 1)
    assert not table.any()


def test_positions_are_powers_of_where_walks_end_up_to_centre_and_scale():
    graph = item_graph.build(catalog(), histories(), SETTINGS)
    table = item_graph.positions(graph, ITEMS, SETTINGS)
    adjacency = graph.matrix.toarray()
    step = adjacency / np.maximum(adjacency.sum(axis=1, keepdims=True), 1)
    at, ends = np.eye(len(graph)), np.zeros_like(adjacency)
    for _ in range(SETTINGS.steps):
        ends, at = ends + SETTINGS.restart * at, (1 - SETTINGS.restart) * at @ step
    expected = (ends + at)[:ALONE] ** SETTINGS.tau
    expected = (expected - expected.mean(axis=0)) / np.maximum(expected.std(axis=0), 1e-9)
    # Which nodes are anchors is nodetok's affair; each column must be that of some node.
    gaps = np.abs(table[:ALONE, :, None] - expected[:, None, :]).max(axis=0).min(axis=1)
    assert gaps.max() < 1e-3


def test_hops_can_stand_in_for_walks():
    hops = SETTINGS.model_copy(update={"kind": "hops"})
    table = item_graph.positions(item_graph.build(catalog(), histories(), hops), ITEMS, hops)
    assert table.shape == (ITEMS, 12)
    assert np.isfinite(table).all()


@pytest.fixture
def knowledge(tmp_path) -> StructuralSettings:
    """Films i0 and i1 share a director, i2 has one to itself; i0 is also the sequel of i3; nobody knows i99."""
    (tmp_path / "x.link").write_text("item_id:token\tentity_id:token\ni0\tm.0\ni1\tm.1\ni2\tm.2\ni3\tm.3\ni99\tm.99\n")
    (tmp_path / "x.kg").write_text(
        "head_id:token\trelation_id:token\ttail_id:token\n"
        "m.0\tdirected_by\tm.d\nm.1\tdirected_by\tm.d\nm.2\tdirected_by\tm.e\nm.0\tsequel\tm.3\nm.99\tsequel\tm.1\n"
    )
    return StructuralSettings(edges=("knowledge",), triples=tmp_path / "x.kg", links=tmp_path / "x.link")


def test_linked_entities_are_their_items_and_those_that_join_nothing_are_left_out(knowledge):
    found = arcs(item_graph.build(catalog(), histories(), knowledge))
    director = ("entity", "m.d")
    assert found == {
        frozenset((("item", "i0"), director)),
        frozenset((("item", "i1"), director)),
        frozenset((("item", "i0"), ("item", "i3"))),
    }


def test_an_entity_of_two_items_and_an_item_of_two_entities_lose_nothing(knowledge, tmp_path):
    (tmp_path / "x.link").write_text("item_id:token\tentity_id:token\ni0\tm.0\ni0\tm.0\ni1\tm.0\ni2\tm.2\ni2\tm.3\n")
    (tmp_path / "x.kg").write_text(
        "head_id:token\trelation_id:token\ttail_id:token\nm.0\tdirected_by\tm.d\nm.2\tin\tm.d\nm.0\tsequel\tm.3\n"
    )
    director = ("entity", "m.d")
    assert arcs(item_graph.build(catalog(), histories(), knowledge)) == {
        *(frozenset((("item", item), director)) for item in ("i0", "i1", "i2")),
        *(frozenset((("item", item), ("item", "i2"))) for item in ("i0", "i1")),
    }


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_triple_without_a_tail_is_refused_and_joins_nothing(knowledge, tmp_path, suffix):
    rows = {"csv": "head_id,tail_id\nm.0,\nm.1,\n", "jsonl": '{"head_id": "m.0", "tail_id": null}\n'}
    (tmp_path / f"x.{suffix}").write_text(rows[suffix])
    with pytest.raises(DataError, match="column 'tail_id': the id is"):
        item_graph.build(catalog(), histories(), knowledge.model_copy(update={"triples": tmp_path / f"x.{suffix}"}))


def test_items_are_linked_by_the_ids_that_ingest_gives_them(knowledge, tmp_path):
    items = Catalog(["12", "13"], ["A", "B"], ["", ""], {})
    (tmp_path / "l.csv").write_text("item_id,entity_id\n12.0,m.0\n13.0,m.3\n")
    settings = knowledge.model_copy(update={"links": tmp_path / "l.csv"})
    found = item_graph.knowledge_edges(
        items, item_graph.Nodes([("item", "12"), ("item", "13")]), settings.triples, settings.links
    )
    assert [0, 1] in found.tolist()


def test_knowledge_that_links_no_item_is_refused_by_its_file(knowledge, tmp_path):
    (tmp_path / "x.link").write_text("item_id:token\tentity_id:token\ni99\tm.99\n")
    with pytest.raises(DataError, match=r"x\.link: links no item"):
        item_graph.build(catalog(), histories(), knowledge)


@pytest.mark.parametrize("line", ["m.1\tdirected_by\t\n", "\tdirected_by\tm.d\n"])
def test_knowledge_without_an_end_is_refused_with_its_row(knowledge, tmp_path, line):
    with open(tmp_path / "x.kg", "a") as file:
        file.write(line)
    with pytest.raises(DataError, match=r"x\.kg, row 6.*(missing|blank)"):
        item_graph.build(catalog(), histories(), knowledge)


CONFIG = {"sasrec": {"epochs": 1, "layers": 1, "width": 16, "heads": 1}, "structural": {"anchors": 8}}


def prepared(folder, **structural):
    rng = np.random.default_rng(0)
    rows = [(f"u{u}", f"i{i}", step) for u in range(20) for step, i in enumerate(rng.permutation(18)[:6])]
    pd.DataFrame(rows, columns=["user_id", "item_id", "position"]).to_csv(folder / "inter.csv", index=False)
    raw = {**CONFIG, "data": {"interactions": str(folder / "inter.csv"), "columns": {"position": "position"}}}
    raw["structural"] = {**CONFIG["structural"], **structural}
    run, config = Run(folder / "run"), validate(raw, "test")
    preparation.prepare(run, config)
    return run, config


def test_a_prepared_run_holds_one_row_of_positions_per_item_only_where_the_slot_is_on(tmp_path):
    run, config = prepared(tmp_path, enabled=True)
    catalog, histories = directory.load(run.data)
    table = load_file(run.features / "structural.safetensors")["structural"]
    graph = item_graph.build(catalog, histories, config.structural)
    np.testing.assert_array_equal(table, item_graph.positions(graph, len(catalog), config.structural))
    assert (table.shape, table.dtype) == ((len(catalog), 8), np.float32)
    run, _ = prepared(tmp_path)
    assert not (run.features / "structural.safetensors").exists()


def test_features_without_positions_are_refused_with_the_command_that_makes_them(tmp_path):
    run, config = prepared(tmp_path)
    trained = np.ones(18, dtype=bool)
    assert item_features.load_features(run, config, trained).extra == {}
    on = config.model_copy(update={"structural": config.structural.model_copy(update={"enabled": True})})
    with pytest.raises(ConfigError, match=r"structural\.enabled=true"):
        item_features.load_features(run, on, trained)
