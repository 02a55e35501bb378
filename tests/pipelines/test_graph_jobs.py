import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from starlette.testclient import TestClient

from nodetok.asking.answering import GraphAnswerer
from nodetok.asking.artifact import GraphArtifact
from nodetok.graph import Graph
from nodetok.language.training import fit
from pipelines.graph import jobs, service
from pipelines.graph.config import DEFAULTS, graph_config
from pipelines.graph.tasks import LOADERS, load_task
from serving.api.access.authentication import protect
from serving.api.routes.graph import add_graph_routes
from serving.runtime.settings import ServingSettings
from setrec.errors import ConfigError, DataError, SetRecError, UnknownNodeError

QUICK = [
    "learning.epochs=1", "evaluation.seeds=1", "evaluation.resamples=20", "learning.precision=float32",
    "tokenizer.anchors.count=6",
]  # fmt: skip


def ring_and_hub(nodes: int = 40) -> list[tuple[int, int]]:
    """A ring with a hub, and a triangle apart from it."""
    ring = [(i, (i + 1) % (nodes - 4)) for i in range(nodes - 4)]
    return [*ring, *((nodes - 4, i) for i in range(0, nodes - 4, 6)), *[(37, 38), (38, 39), (39, 37)]]


@pytest.fixture(scope="module")
def graph_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("graph")
    edges = np.array(ring_and_hub())
    table = pd.DataFrame({"source": edges[:, 0], "target": edges[:, 1]})
    table["label"] = np.where(table.index % 3 == 0, "road", "rail")
    table["text"], table["length"] = "built of " + table["label"], table.index / 7
    table.to_parquet(folder / "edges.parquet")
    part = ["train", "valid", "test", "train"] * 10
    nodes = pd.DataFrame({"node_id": range(40), "label": ["even", "odd"] * 20, "split": part})
    nodes["words"] = [[i % 2, 2 + i % 3] for i in range(40)]
    nodes.to_parquet(folder / "nodes.parquet")
    return folder


@pytest.fixture(scope="module")
def triple_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("triples")
    rng = np.random.default_rng(0)
    rows = [(f"e{i}", f"_r{i % 2}", f"e{(i * 3 + 1) % 30}", "train") for i in range(30)]
    rows += [(f"e{rng.integers(30)}", "_r0", f"e{rng.integers(30)}", p) for p in ("valid", "test") for _ in range(4)]
    pd.DataFrame(rows, columns=["head", "relation", "tail", "split"]).to_parquet(folder / "triples.parquet")
    pd.DataFrame({"entity_id": [f"e{i}" for i in range(30)]}).to_parquet(folder / "entities.parquet")
    return folder


@pytest.fixture(scope="module")
def question_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    rows = []
    for i in range(24):
        split = "test" if i % 4 == 3 else "train"
        body = "Graph: (0,1) (2,3)" + (" (1,2)" if i % 2 else "") + (" (3,0)" if i % 2 else "")
        said = "The answer is yes." if i % 2 else "The answer is no."
        ask = "Q: Is there a path between node 0 and node 3?\nA:"
        rows.append(("connectivity", split, f"Note that (i,j) is an edge.\n{body}\n{ask}", said))
        rows.append(("cycle", split, f"{body}\nQ: Is there a cycle in this graph?\nA:", "Yes." if i % 2 else "No."))
        weights = "an edge between node 0 and node 1 with weight 2,\nan edge between node 1 and node 2 with weight 1."
        rows.append(
            ("shortest_path", split, f"{weights}\nQ: Give the shortest path from node 0 to node 2.\nA:",
             "The shortest path from node 0 to node 2 is 0,1,2 with a total weight of 3")
        )  # fmt: skip
    pd.DataFrame(rows, columns=["task", "split", "question", "answer"]).to_parquet(folder / "questions.parquet")
    examples = [
        (f"belief {i}", f"argument {i}", "support" if i % 2 else "counter", "(a; is; b)(b; not; c)",
         "dev" if i % 4 == 3 else "train")
        for i in range(24)
    ]  # fmt: skip
    columns = ["belief", "argument", "stance", "graph", "split"]
    pd.DataFrame(examples, columns=columns).to_parquet(folder / "examples.parquet")
    return folder


@pytest.mark.parametrize("name", list(DEFAULTS))
def test_every_task_is_evaluated_with_its_controls_and_opponents(
    name, graph_folder, triple_folder, question_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("nodetok.tasks.structure.structure.__defaults__", (256, 60, 0))
    folder = {
        "structure": graph_folder,
        "classification": graph_folder,
        "edge_classification": graph_folder,
        "links": graph_folder,
        "completion": triple_folder,
    }
    overrides = [*QUICK, "model.neighbours=2", "model.position_tokens=1", "data.edge_attributes=[length]"]
    config = graph_config(name, overrides=overrides)
    rows = jobs.evaluate(folder.get(name, question_folder), tmp_path / "rows.json", config)
    assert json.loads((tmp_path / "rows.json").read_text()) == rows
    systems = {row["system"] for row in rows}
    assert {"node tokens", "text only", "shuffled tokens", "Laplacian eigenvectors"} <= systems
    assert {"node tokens minus text only", "node tokens minus shuffled tokens"} <= systems
    expected = {
        "classification": {"GCN", "GraphSAGE", "MLP on words"}, "completion": {"DistMult"},
        "edge_classification": {"tokens only", "majority class", "logistic regression"},
    }  # fmt: skip
    assert expected.get(name, set()) <= systems
    for row in rows:
        assert row["low"] <= row["value"] + 1e-9
        assert row["value"] <= row["high"] + 1e-9
    page = (tmp_path / "rows.html").read_text()
    assert "<script" not in page
    assert "shuffled tokens" in page


def test_an_evaluation_writes_rows_as_they_are_earned_and_goes_on_where_it_was_cut_off(
    graph_folder, tmp_path, monkeypatch
):
    overrides = [*QUICK, "evaluation.seeds=2", "evaluation.ablations=['node tokens', 'text only']"]
    config, out = graph_config("classification", overrides=overrides), tmp_path / "rows.json"
    whole = jobs.evaluate(graph_folder, tmp_path / "whole" / "rows.json", config)
    calls = []

    def cut_off(task, shown, *more):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(shown.name)
        return fit(task, shown, *more)

    monkeypatch.setattr(jobs, "fit", cut_off)
    with pytest.raises(KeyboardInterrupt):
        jobs.evaluate(graph_folder, out, config)
    early = json.loads(out.read_text())
    assert {row["system"]: row["seeds"] for row in early if " minus " not in row["system"]} == {
        "node tokens": 2, "text only": 1,
    }  # fmt: skip
    calls.clear()
    rows = jobs.evaluate(graph_folder, out, config)
    assert calls == ["text only"]

    def plain(rows):
        return [{key: value for key, value in row.items() if key != "cpu_seconds"} for row in rows]

    assert plain(rows) == plain(whole)
    assert all(row["cpu_seconds"] > 0 for row in rows if row["system"] == "node tokens")


def test_a_model_trained_on_one_graph_answers_structural_questions_on_another(graph_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("nodetok.tasks.structure.structure.__defaults__", (256, 60, 0))
    ring = np.array([(i, (i + 1) % 50) for i in range(50)] + [(60, 61), (61, 62), (62, 60)])
    other = tmp_path / "other"
    other.mkdir()
    pd.DataFrame({"source": ring[:, 0], "target": ring[:, 1]}).to_parquet(other / "edges.parquet")
    shown = ["evaluation.ablations=['node tokens']", f"evaluation.transfer={other}"]
    rows = jobs.evaluate(graph_folder, tmp_path / "rows.json", graph_config("structure", overrides=[*QUICK, *shown]))
    assert {"mean accuracy", "mean accuracy, other graph"} <= {row["metric"] for row in rows}
    bound = graph_config("structure", overrides=[*QUICK, *shown, "model.profile=anchors"])
    with pytest.raises(ConfigError, match=r"model\.profile=sorted"):
        jobs.evaluate(graph_folder, tmp_path / "bound.json", bound)


def shop(folder: Path, classes: dict[str, str], seed: int) -> Path:
    """A graph of texts: each names two things of its class's description, and nodes of a class are joined."""
    folder.mkdir()
    rng, names = np.random.default_rng(seed), list(classes)
    label = [names[i % len(names)] for i in range(60)]
    texts = [" ".join(rng.choice(classes[name].split(), 2, replace=False)) for name in label]
    part = ["train", "valid", "test"]
    nodes = {"node_id": range(60), "text": texts, "label": label, "split": [part[i // 4 % 3] for i in range(60)]}
    pd.DataFrame(nodes).to_parquet(folder / "nodes.parquet")
    edges = {"source": range(60), "target": [(i + len(names)) % 60 for i in range(60)]}
    pd.DataFrame(edges).to_parquet(folder / "edges.parquet")
    pd.DataFrame(classes.items(), columns=["label", "description"]).to_parquet(folder / "classes.parquet")
    return folder


def test_a_classifier_of_described_classes_chooses_among_classes_that_it_was_not_trained_on(tmp_path):
    own = shop(tmp_path / "own", {"tools": "hammer saw drill pliers", "toys": "doll puzzle kite ball"}, 0)
    unseen = {"food": "bread cheese apple soup", "music": "violin flute drum guitar", "sea": "boat sail anchor pier"}
    other = shop(tmp_path / "other", unseen, 1)
    shown = [*QUICK, "learning.consistency.weight=0", "evaluation.ablations=['node tokens']"]
    shown.append(f"evaluation.transfer={other}")
    rows = jobs.evaluate(own, tmp_path / "rows.json", graph_config("classification", overrides=shown))
    value = {(row["system"], row["metric"]): row["value"] for row in rows}
    assert value["node tokens", "accuracy, other graph"] > 0.9
    assert value["text similarity", "accuracy"] > 0.9
    GraphAnswerer(GraphArtifact.load(tmp_path / "rows.graph")).ask("what is the class of [[7]] ?")
    bound = graph_config("classification", overrides=[*shown, "model.identity=64"])
    with pytest.raises(ConfigError, match=r"model\.identity=0"):
        jobs.evaluate(own, tmp_path / "bound.json", bound)


@pytest.fixture(scope="module")
def trained(graph_folder, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("run")
    overrides = [*QUICK, "model.text_loss=0.5", "learning.epochs=2"]
    jobs.train(graph_folder, run, graph_config("classification", overrides=overrides))
    return run


def test_a_trained_graph_answers_the_same_after_saving_and_loading(trained, tmp_path):
    GraphArtifact.load(trained / "graph").save(tmp_path / "again")
    made, again = (GraphAnswerer(GraphArtifact.load(folder)) for folder in (trained / "graph", tmp_path / "again"))
    question = "What is the class of [[7]] ?"
    found = made.ask(question, 2)
    assert found == again.ask(question, 2)
    assert made.ask(question, written=True) == again.ask(question, written=True)
    assert found.nodes[0] == "7"
    assert {text for text, _ in found.ranked} == {"even", "odd"}
    assert sum(score for _, score in found.ranked) == pytest.approx(1.0, abs=1e-5)
    assert made.ask("to which category does 7 belong ?", 2) == found


def test_a_trained_completer_answers_the_same_after_loading_and_refuses_what_it_cannot_answer(triple_folder, tmp_path):
    found = jobs.train(triple_folder, tmp_path, graph_config("completion", overrides=QUICK))
    made = GraphArtifact.load(tmp_path / "graph")
    made.threshold = 0.0
    made.save(tmp_path / "again")
    again = GraphArtifact.load(tmp_path / "again")
    assert (made.version, again.version) == (found["version"], found["version"])
    first, second = (GraphAnswerer(one).ask("r0 of [[e4]] is ?", 30) for one in (made, again))
    assert first == second
    assert {entity for entity, _ in first.ranked} == {f"e{i}" for i in range(30)}
    assert first.nodes[0] == "e4"
    for question in ("who is [[e4]] ?", "who is it ?", "r0 of [[e4]] is [[e5]] ?"):
        refused = GraphAnswerer(again).ask(question)
        assert (refused.answer, refused.refused) == (None, True)
        assert "r0 of … is ?" in refused.reason
    with pytest.raises(SetRecError, match="does not answer in words"):
        GraphAnswerer(made).ask("r0 of [[e4]] is ?", written=True)
    (tmp_path / "again" / "model" / "completion.safetensors").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        GraphArtifact.load(tmp_path / "again")


def test_the_language_model_completes_where_no_minutes_are_given(triple_folder, tmp_path):
    overrides = [*QUICK, "learning.minutes=null", "evaluation.ablations=['node tokens']", "learning.sampled=0"]
    rows = jobs.evaluate(triple_folder, tmp_path / "rows.json", graph_config("completion", overrides=overrides))
    assert {"node tokens", "DistMult"} <= {row["system"] for row in rows}
    assert (tmp_path / "rows.graph" / "model" / "model.safetensors").is_file()


def test_unknown_nodes_empty_questions_and_damage_are_one_clear_line(trained, tmp_path, graph_folder):
    made = GraphArtifact.load(trained / "graph")
    with pytest.raises(UnknownNodeError, match="'nowhere'"):
        GraphAnswerer(made).ask("what is [[nowhere]] ?")
    with pytest.raises(SetRecError, match="empty"):
        GraphAnswerer(made).ask("  ")
    made.save(tmp_path / "graph")
    (tmp_path / "graph" / "model" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        GraphArtifact.load(tmp_path / "graph")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        GraphArtifact.load(tmp_path / "nothing")
    for task, given in (("colouring", []), ("structure", ["name=colouring"])):
        with pytest.raises(ConfigError, match="unknown task"):
            graph_config(task, overrides=given)
    assert list(DEFAULTS) == list(LOADERS)
    with pytest.raises(ConfigError, match=r"model\.colour"):
        graph_config("structure", overrides=["model.colour=red"])
    with pytest.raises(DataError, match=r"entities|triples"):
        jobs.evaluate(graph_folder, tmp_path / "x.json", graph_config("completion"))


@pytest.mark.parametrize(
    ("overrides", "shown"),
    [
        ([], 32),
        (["encoder.path=E"], 0),
        (["encoder.path=E", "model.node_words=16"], 16),
        (["encoder.path=E", "model.backbone.pretrained=Q"], 32),
    ],
)
def test_a_new_stance_model_reads_words_unless_it_has_vectors_of_them(overrides, shown):
    assert graph_config("stance", overrides=overrides).model.node_words == shown


def test_a_setting_of_the_data_leaves_the_random_split_as_it_is(graph_folder, tmp_path):
    edges = pd.read_parquet(graph_folder / "edges.parquet").rename(columns={"label": "kind"})
    edges.to_parquet(tmp_path / "edges.parquet")
    config = graph_config("edge_classification", overrides=[*QUICK, "data.columns={label: kind}"])
    task = load_task(tmp_path, config, tmp_path)
    assert len(task.test) == round(0.2 * len(edges))
    without = graph_config("edge_classification", overrides=[*QUICK, "data.columns={label: kind}", "data.split=null"])
    with pytest.raises(DataError, match="no labelled edge"):
        load_task(tmp_path, without, tmp_path)


def test_a_question_that_cannot_be_read_is_named_by_file_and_row_of_the_whole_table(question_folder, tmp_path):
    table = pd.read_parquet(question_folder / "questions.parquet")
    row = table.index[table["task"] == "shortest_path"][2]
    table.loc[row, "answer"] = "nobody knows"
    table.to_parquet(tmp_path / "questions.parquet")
    with pytest.raises(DataError, match=rf"questions\.parquet, row {row + 1}, column 'answer'"):
        jobs.evaluate(tmp_path, tmp_path / "x.json", graph_config("shortest_path"))


def test_tokenize_writes_tokens_that_can_be_served_but_not_asked(graph_folder, tmp_path):
    # The eighth anchor is the first in the triangle, which has no place without one.
    overrides = [*QUICK, "tokenizer.anchors.strategy=coverage", "tokenizer.anchors.count=8"]
    found = jobs.tokenize(graph_folder, tmp_path, graph_config("structure", overrides=overrides))
    assert found["nodes"] == 40
    assert found["components"] == 2
    assert (tmp_path / "report.html").stat().st_size > 5_000
    served = service.load(tmp_path / "graph")
    assert not served.can_ask
    described = served.nodes(["0", "39"], 3)
    hops = Graph.from_edges(ring_and_hub(), nodes=list(range(40)))
    assert {near.node_id for near in described[1].nearest} == {"37", "38"}  # no other node can be reached
    reached = [a for a in described[1].anchors if a.distance is not None]
    assert {hops.components[int(a.node_id)] for a in reached} <= {hops.components[39]}
    with pytest.raises(SetRecError, match="no trained model"):
        served.ask("what is [[0]] ?", 1, "grounded")


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_triples_of_every_format_are_tokenised(triple_folder, tmp_path, suffix):
    table = pd.read_parquet(triple_folder / "triples.parquet")
    write = {"parquet": table.to_parquet, "csv": lambda path: table.to_csv(path, index=False),
             "jsonl": lambda path: table.to_json(path, orient="records", lines=True)}  # fmt: skip
    write[suffix](tmp_path / f"triples.{suffix}")
    found = jobs.tokenize(tmp_path, tmp_path / "run", graph_config("structure", overrides=QUICK))
    assert found["nodes"] == 30


def test_the_endpoint_answers_what_the_command_line_answers(trained):
    from fastapi import FastAPI

    app = FastAPI()
    add_graph_routes(app, service.load(trained / "graph"))
    protect(app, ServingSettings(auth="off"), request_ids=False)
    client = TestClient(app)
    question = "what is the class of [[7]] ?"
    body = client.post("/v1/graph/ask", json={"question": question, "k": 2}).json()
    own = jobs.answer(trained, question, 2, "grounded")
    assert [a["answer"] for a in body["answers"]] == [a["answer"] for a in own["answers"]]
    written = client.post("/v1/graph/ask", json={"question": question, "mode": "text"}).json()
    assert written["answers"][0]["answer"] == jobs.answer(trained, question, 1, "text")["answers"][0]["answer"]
    nodes = client.post("/v1/graph/nodes", json={"node_ids": ["7"], "k": 2}).json()["nodes"]
    assert len(nodes[0]["nearest"]) == 2
    assert len(nodes[0]["token"]) == 6


def test_the_command_line_says_in_one_line_what_is_wrong(tmp_path, commanded):
    given = ["graph", "evaluate", "--task", "structure", "--data", str(tmp_path), "--out", str(tmp_path / "x.json")]
    code, said = commanded(*given)
    assert code == 2
    assert said.strip().splitlines()[-1].startswith("setrec: ")
    assert "edges.parquet" in said
