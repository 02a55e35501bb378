"""Graphs and triples from tables; every complaint is one line with file, row and column."""

import os
import time
from datetime import date
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch_geometric.data import Data

from nodetok.files import GraphData, read_edges, read_graph, read_triples
from nodetok.settings import GraphDataSettings, RandomSplit
from setrec.errors import DataError

EDGES = {"source": ["b", "a", "c"], "target": ["a", "c", "c"]}
NODES = {"node_id": ["a", "b", "c", "d"], "label": ["x", "y", None, "x"], "split": ["train", "validation", "", "test"]}
TRIPLES = {
    "head": ["cat", "dog", "cat", "ant", "dog"],
    "relation": ["isa", "isa", "eats", "near", "near"],
    "tail": ["pet", "pet", "ant", "pet", "cat"],
}
PARTS = ["train", "train", "dev", "valid", "test"]


def write(folder, suffix=".parquet", **tables):
    for name, columns in tables.items():
        path = folder / f"{name}{suffix}"
        if suffix == ".parquet":
            pq.write_table(pa.table(columns), path)
        elif suffix == ".csv":
            pd.DataFrame(columns).to_csv(path, index=False)
        else:
            pd.DataFrame(columns).to_json(path, orient="records", lines=True)
    return folder


def refusal(read, folder):
    with pytest.raises(DataError) as caught:
        read(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(folder))
    return message.removeprefix(f"{folder}/")


def links(graph):
    source, target = graph.arcs()
    return {(graph.id(a), graph.id(b)) for a, b in zip(source, target, strict=True)}


IDS = {
    "floats": [1.0, 2.0], "decimals": pa.array([Decimal(1), Decimal(2)], pa.decimal128(38, 9)), "bytes": [b"1", b"2"],
    "category of floats": pa.array([1.0, 2.0]).dictionary_encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", IDS)
def test_ids_of_any_physical_type_are_the_same_ids(tmp_path, name):
    write(tmp_path, edges={"source": IDS[name], "target": [2, 1]})
    assert list(read_graph(tmp_path).graph.ids) == ["1", "2"]


def test_uuids_are_ids_and_a_missing_or_too_large_float_is_none(tmp_path):
    write(tmp_path, edges={"source": pa.array([UUID(int=1).bytes], pa.uuid()), "target": ["b"]})
    assert read_graph(tmp_path).graph.ids[0] == str(UUID(int=1))
    for value, said in ((float("nan"), "the id is missing"), (2.0**60, "is beyond 2^53"), (0.5, "wrong type: double")):
        write(tmp_path, edges={"source": [1.0, value], "target": [1, 2]})
        assert said in refusal(read_graph, tmp_path)


def test_columns_that_nobody_asks_for_may_hold_anything_and_repeat(tmp_path):
    (tmp_path / "nodes.jsonl").write_text(
        '{"node_id": 1, "label": "x", "x": 1, "y": {}}\n{"node_id": "b", "label": 2, "x": "a", "y": []}\n'
    )
    bad = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
    columns = {"source": ["1"], "target": ["b"], "text": bad}
    write(tmp_path, edges=columns)
    data = read_graph(tmp_path)
    assert (data.graph.ids, data.labels) == (["1", "b"], ["x", "2"])
    assert "column 'text': not UTF-8 text" in refusal(read_edges, write(tmp_path, edges=columns | {"label": ["x"]}))
    table = pa.Table.from_arrays([pa.array([n]) for n in ("1", "b", "x", "y")], ["source", "target", "x", "x"])
    pq.write_table(table, tmp_path / "edges.parquet")
    assert read_graph(tmp_path).graph.edges == 1
    (tmp_path / "edges.parquet").unlink()
    (tmp_path / "edges.csv").write_text("source,target,,\n1,b,,\n")
    assert read_graph(tmp_path).graph.edges == 1
    (tmp_path / "edges.csv").write_text("source,target,target\n1,b,b\n")
    assert "column 'target': the column name repeats" in refusal(read_graph, tmp_path)


def test_labels_may_be_dates_or_lists_of_what_looks_like_dates(tmp_path):
    (tmp_path / "edges.jsonl").write_text('{"source": "2014-01-01", "target": "b"}\n')
    (tmp_path / "nodes.jsonl").write_text(
        '{"node_id": "2014-01-01", "label": ["2015-01-01"]}\n{"node_id": "b", "label": []}\n'
    )
    assert read_graph(tmp_path).labels == ["2015-01-01", ""]
    (tmp_path / "nodes.jsonl").unlink()
    write(tmp_path, nodes={"node_id": ["2014-01-01", "b"], "label": [date(2015, 1, 1), None]})
    assert read_graph(tmp_path).labels == ["2015-01-01", ""]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_every_format_gives_the_same_graph(tmp_path, suffix):
    texts = {"text": ["An  a", "", "c", "d"]}
    data = read_graph(write(tmp_path, suffix, nodes=NODES | texts, edges=EDGES | {"weight": [2, 0.5, 1]}))
    assert list(data.graph.ids) == ["a", "b", "c", "d"]
    assert links(data.graph) == {("a", "b"), ("b", "a"), ("a", "c"), ("c", "a")}
    assert data.graph.weights.tolist() == [2, 0.5, 2, 0.5]
    assert data.graph.loops == 1
    assert data.labels == ["x", "y", "", "x"]
    assert data.split == ["train", "valid", "", "test"]
    assert data.texts == list(data.graph.texts) == ["An a", "", "c", "d"]
    assert data.features is None


def test_directions_are_kept_where_asked_for(tmp_path):
    write(tmp_path, edges=EDGES)
    assert links(read_graph(tmp_path, directed=True).graph) == {("b", "a"), ("a", "c")}
    assert not read_graph(tmp_path).graph.directed


def test_edges_alone_are_a_graph_and_what_is_not_there_is_none(tmp_path):
    data = read_graph(write(tmp_path, edges=EDGES))
    assert set(data.graph.ids) == {"a", "b", "c"}
    assert (data.labels, data.split, data.texts, data.features, data.graph.texts) == (None,) * 5
    write(tmp_path, nodes={"node_id": ["c", "b", "a"]})
    data = read_graph(tmp_path)
    assert list(data.graph.ids) == ["c", "b", "a"]
    assert (data.labels, data.split, data.texts, data.features, data.graph.weights) == (None,) * 5


def test_whole_numbers_are_ids_as_text(tmp_path):
    write(tmp_path, nodes={"node_id": [7, 10]}, edges={"source": ["10"], "target": ["7"]})
    assert links(read_graph(tmp_path).graph) == {("7", "10"), ("10", "7")}
    write(tmp_path, ".csv", nodes={"node_id": ["007", "7"]}, edges={"source": ["007"], "target": ["7"]})
    (tmp_path / "nodes.parquet").unlink()
    (tmp_path / "edges.parquet").unlink()
    assert list(read_graph(tmp_path).graph.ids) == ["007", "7"]


def test_words_become_a_bag_of_words(tmp_path):
    words = [[4, 0, 4], None, [], [2]]
    features = read_graph(write(tmp_path, nodes=NODES | {"words": words}, edges=EDGES)).features
    assert features.dtype == np.float32
    assert features.tolist() == [[1, 0, 0, 0, 1], [0] * 5, [0] * 5, [0, 0, 1, 0, 0]]
    assert read_graph(write(tmp_path, nodes=NODES | {"words": [[]] * 4}, edges=EDGES)).features.shape == (4, 0)
    unsigned = pa.array([[3], [], [], [0]], type=pa.large_list(pa.uint64()))
    assert read_graph(write(tmp_path, nodes=NODES | {"words": unsigned}, edges=EDGES)).features.sum() == 2


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_every_format_gives_the_same_triples(tmp_path, suffix):
    entities = {"entity_id": ["pet", "cat", "dog", "ant", "elk"], "text": ["a pet", "a cat", "", "an ant", "an elk"]}
    data = read_triples(write(tmp_path, suffix, entities=entities, triples=TRIPLES | {"split": PARTS}))
    assert data.ids == entities["entity_id"]
    assert data.texts == entities["text"]
    assert data.relations == ["eats", "isa", "near"]
    named = {
        part: [(data.ids[h], data.relations[r], data.ids[t]) for h, r, t in getattr(data, part)]
        for part in ("train", "valid", "test")
    }
    rows = list(zip(*TRIPLES.values(), strict=True))
    assert named == {"train": rows[:2], "valid": rows[2:4], "test": rows[4:]}
    assert data.train.dtype == np.int64
    assert links(data.graph) == {("cat", "pet"), ("pet", "cat"), ("dog", "pet"), ("pet", "dog")}
    assert (len(data.graph), data.graph.directed) == (5, False)


def test_triples_alone_are_all_for_training(tmp_path):
    data = read_triples(write(tmp_path, triples=TRIPLES))
    assert sorted(data.ids) == ["ant", "cat", "dog", "pet"]
    assert data.texts is None
    assert (data.train.shape, data.valid.shape, data.test.shape) == ((5, 3), (0, 3), (0, 3))
    assert data.graph.edges == 5


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        (
            {"edges": {"source": ["a", "z"], "target": ["b", "a"]}},
            "edges.parquet, row 2, column 'source': no such node",
        ),
        ({"edges": {"source": ["a"], "target": ["z"]}}, "row 1, column 'target': no such node 'z'"),
        ({"edges": {"source": ["a", None], "target": ["b", "a"]}}, "row 2, column 'source': the id is missing"),
        ({"edges": {"source": ["a"], "target": [" "]}}, "row 1, column 'target': the id is blank"),
        ({"edges": {"source": [0.5], "target": [1.5]}}, "column 'source': wrong type: double"),
        ({"edges": {"source": ["a"]}}, "column 'target': missing column (the file has: source)"),
        ({"edges": EDGES | {"weight": [1.0, -2.0, 3.0]}}, "row 2, column 'weight': -2.0 is negative"),
        ({"edges": EDGES | {"weight": [1.0, 2.0, float("inf")]}}, "row 3, column 'weight': inf is not a finite"),
        ({"edges": EDGES | {"weight": [float("nan"), 2.0, 1.0]}}, "row 1, column 'weight': nan is not a finite"),
        ({"edges": EDGES | {"weight": [1.0, None, 1.0]}}, "row 2, column 'weight': the number is missing"),
        ({"edges": EDGES | {"weight": ["1", "far", "1"]}}, "row 2, column 'weight': 'far' is not a number"),
        ({"edges": EDGES | {"weight": [1.0, 1.0, 1e300]}}, "row 3, column 'weight': 1e+300 is too large"),
        ({"edges": {"source": pa.array([], pa.string()), "target": pa.array([], pa.string())}}, "holds no rows"),
        ({"nodes": {"node_id": ["a", "b", "a", "c"]}}, "nodes.parquet, row 3, column 'node_id': duplicate id 'a'"),
        ({"nodes": {"id": ["a", "b", "c"]}}, "column 'node_id': missing column"),
        ({"nodes": NODES | {"split": ["train", "exam", "", ""]}}, "row 2, column 'split': 'exam' is not a part"),
        ({"nodes": NODES | {"label": [{"is": "x"}] * 4}}, "column 'label': wrong type: struct"),
        ({"nodes": NODES | {"words": ["1 2", "", "", ""]}}, "column 'words': wrong type: string"),
        ({"nodes": NODES | {"words": [[0.5], [], [], []]}}, "column 'words': wrong type: list<"),
        ({"nodes": NODES | {"words": [[], [1], [2, -3], []]}}, "row 3, column 'words': [2, -3] are not word indices"),
        ({"nodes": NODES | {"words": [[], [1, None], [], []]}}, "row 2, column 'words': [1, None] are not word"),
        ({"nodes": NODES | {"words": [[], [], [], [10**9]]}}, "row 4, column 'words': [1000000000] are not word"),
    ],
)
def test_tables_that_are_no_graph_are_refused(tmp_path, tables, said):
    message = refusal(read_graph, write(tmp_path, **({"nodes": NODES, "edges": EDGES} | tables)))
    assert said in message


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"triples": TRIPLES | {"tail": ["pet", "pet", "ant", "pet", "elk"]}}, "row 5, column 'tail': no such node"),
        ({"triples": TRIPLES | {"relation": ["isa", None, "a", "b", "c"]}}, "row 2, column 'relation': the id is mis"),
        (
            {"triples": TRIPLES | {"split": ["train", "", "test", "dev", "dev"]}},
            "row 2, column 'split': '' is not a",
        ),
        ({"triples": TRIPLES | {"split": ["train", "test", "eval", "dev", "dev"]}}, "row 3, column 'split': 'eval'"),
        ({"triples": {"head": ["cat"], "tail": ["dog"]}}, "column 'relation': missing column"),
        ({"entities": {"entity_id": ["cat", "cat"]}}, "entities.parquet, row 2, column 'entity_id': duplicate id"),
    ],
)
def test_tables_that_are_no_triples_are_refused(tmp_path, tables, said):
    entities = {"entity_id": ["pet", "cat", "dog", "ant"]}
    message = refusal(read_triples, write(tmp_path, **({"entities": entities, "triples": TRIPLES} | tables)))
    assert said in message


@pytest.mark.parametrize(("read", "name"), [(read_graph, "edges"), (read_triples, "triples")])
def test_absent_empty_and_damaged_files_are_refused(tmp_path, read, name):
    assert f"no {name}.parquet (or .csv, .jsonl) there" in refusal(read, tmp_path)
    assert "there" in refusal(read, tmp_path / "nowhere")
    (tmp_path / f"{name}.csv").touch()
    assert refusal(read, tmp_path) == f"{name}.csv: the file is empty"
    (tmp_path / f"{name}.csv").write_text("source,target\na,b,c\n")
    assert refusal(read, tmp_path).startswith(f"{name}.csv, row 1: ")
    (tmp_path / f"{name}.parquet").write_bytes(b"PAR1 and no more")
    assert "truncated or damaged" in refusal(read, tmp_path)


def real(name):
    folder = Path(os.environ.get("SETREC_DATA", "absent")) / name
    if not folder.is_dir():
        pytest.skip(f"SETREC_DATA names no folder that holds {name}")
    return folder


def test_cora_is_read_whole():
    folder = real("cora")
    data = read_graph(folder)
    edges, nodes = (pd.read_parquet(folder / f"{name}.parquet") for name in ("edges", "nodes"))
    assert (len(data.graph), data.graph.edges) == (len(nodes), len(edges))
    assert data.labels == nodes["label"].astype(str).tolist()
    assert [sum(part == name for part in data.split) for name in ("train", "valid", "test")] == [140, 500, 1000]
    assert data.features.shape == (len(nodes), 1433)
    assert data.features.sum() == sum(len(set(words)) for words in nodes["words"])


def test_wn18rr_is_read_whole_and_fast():
    folder = real("wn18rr")
    start = time.process_time()
    data = read_triples(folder)
    assert time.process_time() - start < 2
    triples = pd.read_parquet(folder / "triples.parquet")
    sizes = triples["split"].value_counts()
    assert [len(part) for part in (data.train, data.valid, data.test)] == [
        sizes[name] for name in ("train", "valid", "test")
    ]
    assert len(data.relations) == triples["relation"].nunique() == 11
    assert len(data.ids) == len(data.texts) == len(data.graph)
    pairs = {frozenset(pair) for pair in data.train[:, [0, 2]].tolist()}
    assert data.graph.edges == sum(len(pair) == 2 for pair in pairs)


def test_columns_of_other_names_are_read_as_what_they_are_called(tmp_path):
    write(tmp_path, nodes={"id": ["a", "b"], "class": ["x", "y"]}, edges={"from": ["a"], "to": ["b"], "source": ["?"]})
    settings = GraphDataSettings(columns={"source": "from", "target": "to", "node_id": "id", "label": "class"})
    data = read_graph(tmp_path, settings)
    assert links(data.graph) == {("a", "b"), ("b", "a")}
    assert data.labels == ["x", "y"]
    write(tmp_path, triples={"h": ["a"], "r": ["is"], "t": ["b"]})
    assert read_triples(tmp_path, GraphDataSettings(columns={"head": "h", "relation": "r", "tail": "t"})).ids == [
        "a",
        "b",
    ]
    with pytest.raises(DataError, match="missing column"):
        read_graph(write(tmp_path, edges={"from": ["a"], "to": ["b"]}), GraphDataSettings(columns={"target": "to"}))


def test_edges_that_end_at_no_node_are_refused_dropped_or_bring_the_node(tmp_path):
    write(tmp_path, nodes=NODES | {"words": [[0], [1], [], []]}, edges={"source": ["b", "a"], "target": ["a", "e"]})
    assert "no such node 'e'" in refusal(read_graph, tmp_path)
    dropped = read_graph(tmp_path, GraphDataSettings(dangling="drop"))
    assert (links(dropped.graph), dropped.dropped) == ({("a", "b"), ("b", "a")}, 1)
    added = read_graph(tmp_path, GraphDataSettings(dangling="add"))
    assert ("a", "e") in links(added.graph)
    assert (added.labels[-1], added.split[-1], added.features[-1].tolist()) == ("", "", [0, 0])
    write(tmp_path, entities={"entity_id": ["pet", "cat", "dog"], "text": ["p", "c", "d"]}, triples=TRIPLES)
    assert len(read_triples(tmp_path, GraphDataSettings(dangling="drop")).train) == 3
    everything = read_triples(tmp_path, GraphDataSettings(dangling="add"))
    assert (everything.ids[-1], everything.texts[-1], len(everything.train)) == ("ant", "", 5)


@pytest.mark.parametrize("word", ["val", "Train", "VALIDATION", "dev", "Test"])
def test_parts_have_the_words_that_splits_of_interactions_have(tmp_path, word):
    data = read_graph(write(tmp_path, nodes=NODES | {"split": [word] * 4}, edges=EDGES))
    expected = {"val": "valid", "train": "train", "validation": "valid", "dev": "valid", "test": "test"}
    assert data.split == [expected[word.lower()]] * 4


def test_nodes_without_a_split_are_dealt_by_the_seed_within_each_class(tmp_path):
    labels = ["x"] * 60 + ["y"] * 30 + [""] * 10
    write(
        tmp_path,
        nodes={"node_id": [f"n{i}" for i in range(100)], "label": labels},
        edges={"source": ["n1"], "target": ["n2"]},
    )
    one, two, other = (
        read_graph(tmp_path, GraphDataSettings(split=RandomSplit(valid=0.1, test=0.2, seed=seed))).split
        for seed in (0, 0, 1)
    )
    assert one == two != other
    for name, count in (("x", 60), ("y", 30)):
        own = [part for part, label in zip(one, labels, strict=True) if label == name]
        assert [own.count(part) for part in ("train", "valid", "test")] == [0.7 * count, 0.1 * count, 0.2 * count]
    assert one[90:] == [""] * 10
    stated = read_graph(write(tmp_path, nodes=NODES, edges=EDGES), GraphDataSettings(split=RandomSplit()))
    assert stated.split == ["train", "valid", "", "test"]


def test_triples_without_a_split_are_dealt_so_that_training_shows_every_entity_and_relation(tmp_path):
    rng = np.random.default_rng(0)
    columns = {name: [f"{name[0]}{i}" for i in rng.integers(0, size, 300)] for name, size in (("relation", 4),)}
    columns |= {name: [f"e{i}" for i in rng.integers(0, 60, 300)] for name in ("head", "tail")}
    data = read_triples(write(tmp_path, triples=columns), GraphDataSettings(split=RandomSplit()))
    assert (len(data.test), len(data.valid)) == (60, 30)
    assert set(np.unique(data.train[:, [0, 2]])) == set(range(len(data.ids)))
    assert set(data.train[:, 1]) == set(range(len(data.relations)))


def test_several_graphs_stand_side_by_side(tmp_path):
    nodes = {"node_id": ["a", "b", "a", "b"], "graph_id": ["g", "g", "h", "h"], "label": ["x", "y", "x", "y"]}
    edges = {"source": ["a", "b"], "target": ["b", "a"], "graph_id": ["g", "h"]}
    settings = GraphDataSettings(split=RandomSplit(valid=0.25, test=0.25, by="graph"))
    data = read_graph(write(tmp_path, nodes=nodes, edges=edges), settings)
    assert data.graph_ids == ["g", "h"]
    assert data.member.tolist() == [0, 0, 1, 1]
    assert (data.graph.components == data.member).all()
    assert data.graph.row(("h", "a")) == 2
    assert data.split[0] == data.split[1]
    assert data.split[2] == data.split[3]
    del nodes["graph_id"]
    assert "column 'graph_id': missing column" in refusal(read_graph, write(tmp_path, nodes=nodes, edges=edges))


ROADS = {
    "from": ["b", "a", "c", "a", "z"], "to": ["a", "c", "a", "b", "a"], "kind": ["x", "y", "y", None, "x"],
    "text": ["long", "", "", "", "gone"], "toll": [1.23456, 2, 2, None, 1],
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_edges_are_read_with_labels_parts_and_attributes_in_words_and_repeated_ones_once(tmp_path, suffix):
    write(tmp_path, suffix, nodes=NODES, edges=ROADS | {"split": ["train", "val", "test", "", "train"]})
    settings = GraphDataSettings(
        columns={"source": "from", "target": "to", "label": "kind"}, dangling="drop", edge_attributes=("toll",)
    )
    data = read_edges(tmp_path, settings)
    ends = [tuple(data.nodes.graph.id(row) for row in pair) for pair in data.ends.tolist()]
    # In an undirected graph (c, a, y) repeats (a, c, y); the unlabelled edge from a to b is another edge.
    assert ends == [("b", "a"), ("a", "c"), ("a", "b")]
    assert data.labels == ["x", "y", ""]
    assert data.split == ["train", "valid", ""]
    assert data.texts == ["toll 1.235 ; long", "toll 2", ""]
    assert len(read_edges(tmp_path, settings, directed=True).ends) == 4
    assert data.nodes.graph.edges == 2


def test_edges_without_a_split_are_dealt_by_the_seed_within_each_class(tmp_path):
    pairs = np.array([(i, j) for i in range(20) for j in range(i)])
    labels = ["x" if i % 3 else "y" for i in range(180)] + [""] * 10
    write(tmp_path, edges={"source": pairs[:, 0], "target": pairs[:, 1], "label": labels})
    one, two, other = (
        read_edges(tmp_path, GraphDataSettings(split=RandomSplit(valid=0.1, test=0.2, seed=seed))).split
        for seed in (0, 0, 1)
    )
    assert one == two != other
    for name, count in (("x", 120), ("y", 60)):
        own = [part for part, label in zip(one, labels, strict=True) if label == name]
        assert [own.count(part) for part in ("train", "valid", "test")] == [0.7 * count, 0.1 * count, 0.2 * count]
    assert set(one[180:]) == {""}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "column 'label': missing column"),
        ({"label": ["x", "y", "x"], "split": ["train", "exam", ""]}, "row 2, column 'split': 'exam' is not a part"),
        ({"label": [[{"a": 1}], None, None]}, "column 'label': wrong type"),
    ],
)
def test_edges_that_cannot_be_labelled_are_refused(tmp_path, changes, said):
    assert said in refusal(read_edges, write(tmp_path, nodes=NODES, edges=EDGES | changes))


def test_an_attribute_that_edges_lack_is_refused(tmp_path):
    write(tmp_path, edges=EDGES | {"label": ["x", "y", "x"]})
    settings = GraphDataSettings(edge_attributes=("toll",))
    assert "column 'toll': missing column" in refusal(lambda folder: read_edges(folder, settings), tmp_path)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("column", ["head", "relation", "tail"])
def test_a_triple_without_an_end_or_a_relation_is_refused_with_its_row(tmp_path, suffix, column):
    broken = TRIPLES | {column: [*TRIPLES[column][:3], None, TRIPLES[column][4]]}
    message = refusal(read_triples, write(tmp_path, suffix, triples=broken))
    assert f"row 4, column '{column}'" in message or f"row 4, column {column}" in message


def test_labels_masks_features_and_texts_of_pytorch_geometric_are_carried():
    data = Data(
        x=torch.rand(4, 2), edge_index=torch.tensor([[0, 1], [1, 2]]), y=torch.tensor([1, 0, 1, 2]),
        train_mask=torch.tensor([True, False, False, False]), val_mask=torch.tensor([False, True, False, False]),
        test_mask=torch.tensor([False, False, True, False]), text=["a", "b", "c", "d"],
    )  # fmt: skip
    found = GraphData.from_pyg(data)
    assert found.labels == ["1", "0", "1", "2"]
    assert found.split == ["train", "valid", "test", ""]
    assert found.texts == list(found.graph.texts) == ["a", "b", "c", "d"]
    assert np.array_equal(found.features, data.x.numpy())
    bare = GraphData.from_pyg(Data(edge_index=data.edge_index, num_nodes=3))
    assert (bare.labels, bare.split, bare.texts, bare.features) == (None,) * 4
    with pytest.raises(DataError, match="y has the shape"):
        GraphData.from_pyg(Data(edge_index=data.edge_index, num_nodes=3, y=torch.zeros(2)))
