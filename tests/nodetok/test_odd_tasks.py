"""Inputs of tasks that are easily made by mistake: each is read as meant, or refused in one line."""

import networkx as nx
import numpy as np
import pytest

from nodetok.asking.answering import GraphAnswerer
from nodetok.asking.artifact import GraphArtifact, artifact
from nodetok.asking.questions import QuestionMatcher
from nodetok.asking.wordings import Wordings
from nodetok.files import read_edges, read_triples
from nodetok.graph import Graph
from nodetok.language.input_ablation import ablate
from nodetok.language.settings import TOKENS, GraphModelSettings, GraphTrainingSettings
from nodetok.language.training import build
from nodetok.settings import AnchorSettings, GraphDataSettings, RandomSplit, TokenizerSettings
from nodetok.tasks.classification import classification
from nodetok.tasks.completion import completion
from nodetok.tasks.links import links
from nodetok.tasks.nlgraph import nlgraph
from nodetok.tasks.stance import stance
from nodetok.tokenizer import NodeTokenizer
from setrec.errors import ConfigError, DataError

SETTINGS = TokenizerSettings(anchors=AnchorSettings(count=4))


def stances(split, graph="(a; causes; b)"):
    graphs = graph if isinstance(graph, list) else [graph] * len(split)
    said = ["support", "counter"] * len(split)
    few = [f"belief {row}" for row in range(len(split))]
    return stance(few, few, said[: len(split)], graphs, split, None, SETTINGS)


def test_parts_of_a_split_have_the_names_that_they_have_elsewhere():
    made = stances(["Train"] * 12 + ["val"] * 2 + ["TEST"] * 3)
    assert (len(made.valid), len(made.test)) == (2, 3)
    with_test = stances(["train"] * 12 + ["dev"] * 2 + ["test"] * 3)
    assert (len(with_test.valid), len(with_test.test)) == (2, 3)
    assert len(stances(["train"] * 4 + ["dev"] * 2).valid) == 1
    with pytest.raises(DataError, match=r"row 5, column 'split': 'holdout' is not a part"):
        stances(["train"] * 4 + ["holdout", "dev"])


@pytest.mark.parametrize("graph", ["(a; b; c) (d; e; f", "(a; b; )", "(;;)", "(a; b; c) and more", "(a (x); b; c)"])
def test_no_triple_of_a_stance_is_dropped_or_has_a_blank_end(graph):
    with pytest.raises(DataError, match=r"row 2, column 'graph'"):
        stances(["train"] * 4 + ["dev"], ["(a; b; c)", graph, *["(a; b; c)"] * 3])


def test_brackets_in_the_words_of_a_relation_stand_for_no_node():
    made = stances(["train"] * 4 + ["dev"], "(a; is [[9]] of; b)")
    build(made, ablate(made, TOKENS, GraphModelSettings()), GraphTrainingSettings()).encoder(made.test.prompts)
    assert "is 9 of" in made.test.prompts.texts[0]


@pytest.mark.parametrize("weight", ["2.5", "-2", "12.75", "1e3"])
def test_weights_of_a_question_are_not_cut_off(weight):
    question = f"between node 0 and node 1 with weight {weight},\nQ: the shortest path from node 0 to node 1?"
    with pytest.raises(DataError, match=r"row 1, column 'question'.*whole number"):
        nlgraph([question], ["total weight of 2"], ["train"], "shortest_path", SETTINGS)
    with pytest.raises(DataError, match=r"column 'answer'"):
        nlgraph([question.replace(weight, "3")], ["total weight of 2.5."], ["train"], "shortest_path", SETTINGS)


def test_a_held_out_edge_of_a_directed_graph_is_in_neither_direction_in_what_is_read():
    given = nx.gnp_random_graph(30, 0.3, seed=1, directed=True)
    graph = Graph.from_networkx(given)
    made = links(graph, None, SETTINGS)
    for part in (made.valid, made.test):
        pairs = part.prompts.nodes[part.targets == 1]
        assert (made.graph.find(*pairs.T) < 0).all()
        assert (made.graph.find(*pairs.T[::-1]) < 0).all()


@pytest.mark.timeout(60)
def test_a_graph_without_pairs_that_have_no_edge_is_refused():
    with pytest.raises(DataError, match="too few pairs of nodes without an edge"):
        links(Graph.from_networkx(nx.complete_graph(20)), None, SETTINGS)


def test_tables_of_which_every_row_is_dropped_are_split_into_nothing(tmp_path):
    settings = GraphDataSettings(dangling="drop", split=RandomSplit())
    (tmp_path / "edges.csv").write_text("source,target,label\na,b,c\n")
    (tmp_path / "nodes.csv").write_text("node_id\nx\n")
    assert read_edges(tmp_path, settings).labels == []
    (tmp_path / "triples.csv").write_text("head,relation,tail\na,r,b\n")
    (tmp_path / "entities.csv").write_text("entity_id\nx\n")
    assert read_triples(tmp_path, settings).dropped == 1


def knowledge(relations=("born in", "lives in"), extra=()):
    """Ten entities; entity 9 has no training triple, and the last relation is in a test triple only."""
    rng = np.random.default_rng(0)
    train = np.stack([rng.integers(0, 9, 40), rng.integers(0, len(relations) - 1, 40), rng.integers(0, 9, 40)], axis=1)
    test = np.array([[0, len(relations) - 1, 1], [9, 0, 1]])
    graph = Graph.from_arrays(train[:, 0], train[:, 2], 10, ids=[f"e{i}" for i in range(10)])
    return completion(graph, train, train[:3], test, relations, None, SETTINGS, minutes=0.01)


def test_of_relations_and_entities_without_training_nothing_is_answered():
    task = knowledge()
    answerer = GraphAnswerer(artifact(task, task.train(TOKENS, GraphTrainingSettings(), None)))
    assert answerer.ask("born in of e1 is ?").ranked
    untrained = answerer.ask("lives in of e1 is ?")
    assert untrained.refused
    assert "not one of the questions" in untrained.reason
    unknown = answerer.ask("born in of e9 is ?")
    assert unknown.refused
    assert "nothing is known about e9" in unknown.reason


@pytest.mark.parametrize("names", [("born_in", "born in"), ("R", "r")])
def test_relations_that_are_the_same_in_a_question_are_refused(names):
    with pytest.raises(DataError, match="are the same in a question"):
        knowledge((*names, "other"))


def test_questions_that_differ_in_punctuation_only_are_not_taken_for_one_another():
    matcher = QuestionMatcher({f"{name} of [[0]] is ? answer :": Wordings.split(()) for name in ("a/b", "a.b")})
    assert matcher.match("a/b of [[0]] is ?").template.startswith("a/b")
    assert matcher.match("a.b of [[0]] is ?").template.startswith("a.b")
    assert matcher.match("a b of [[0]] is ?").template == ""


def test_of_a_node_without_edges_and_texts_no_class_is_guessed():
    graph = Graph.from_edges([(f"n{i}", f"n{i + 1}") for i in range(20)], nodes=[f"n{i}" for i in range(22)])
    split = (["train", "valid", "test"] * 8)[:22]
    task = classification(graph, ["a", "b"] * 11, split, None, SETTINGS)
    made = build(task, ablate(task, TOKENS, GraphModelSettings()), GraphTrainingSettings())
    found = GraphAnswerer(artifact(task, made)).ask("what is the class of n21 ?")
    assert found.refused
    assert "nothing is known about n21" in found.reason


def test_a_folder_of_other_files_is_not_replaced(tmp_path):
    tokenizer = NodeTokenizer.fit(Graph.from_edges([(1, 2)]), SETTINGS)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    made = GraphArtifact("none", "", ["1", "2"], None, (), tokenizer)
    for place in ("notes", "file"):
        for save in (tokenizer.save, made.save):
            with pytest.raises(ConfigError, match="not replaced"):
                save(tmp_path / place)
    assert (tmp_path / "notes" / "mine.txt").read_text() == "mine"
    for save in (tokenizer.save, tokenizer.save):
        save(tmp_path / "own")
    assert len(NodeTokenizer.load(tmp_path / "own")) == 2
