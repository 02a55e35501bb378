"""Questions of many small graphs: literal examples read, answers against NetworkX, tables against each graph alone."""

from itertools import pairwise
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pytest

from nodetok.distances import UNREACHABLE
from nodetok.language.input_ablation import ablate
from nodetok.language.prompts import NEIGHBOUR, POSITION, WORD
from nodetok.language.settings import TEXT, TOKENS, TOKENS_ONLY, GraphModelSettings, GraphTrainingSettings
from nodetok.language.training import build
from nodetok.settings import AnchorSettings, TokenizerSettings
from nodetok.tasks.nlgraph import nlgraph
from nodetok.tasks.small_graphs import Small, side_by_side
from nodetok.tasks.stance import stance
from setrec.errors import DataError

DATA = Path(__file__).parents[3] / "shared" / "data" / "nlgraph" / "questions.parquet"
SETTINGS = TokenizerSettings(anchors=AnchorSettings(count=4))
CONNECTED = (
    "Determine if there is a path between two nodes in the graph. Note that (i,j) means that node i and node j are "
    "connected with an undirected edge.\nGraph: (0,1) (1,2) (3,4)\nQ: Is there a path between node {} and node {}?\nA:"
)
CYCLE = (
    "In an undirected graph, (i,j) means that node i and node j are connected with an undirected edge.\n"
    "The nodes are numbered from 0 to 5, and the edges are: (0,1) (1,2) (2,0) (3,4)\n"
    "Q: Is there a cycle in this graph?\nA:"
)
SHORTEST = (
    "In an undirected graph, the nodes are numbered from 0 to 4, and the edges are:\n"
    "an edge between node 0 and node 1 with weight 2,\nan edge between node 1 and node 2 with weight 12,\n"
    "an edge between node 0 and node 2 with weight 3.\nQ: Give the shortest path from node 1 to node 2.\nA:"
)
SPLIT = ["train", "train", "train", "test"] * 5


def several(*pairs):
    """Twenty questions of the given kinds in turn, so that every part of the split has some."""
    texts, answers = zip(*(pairs[i % len(pairs)] for i in range(20)), strict=True)
    return list(texts), list(answers)


def edges_of(task, number):
    begin, end = task.starts[number : number + 2]
    source, target = task.graph.arcs()
    mine = (source >= begin) & (source < end) & (source < target)
    return sorted(zip((source[mine] - begin).tolist(), (target[mine] - begin).tolist(), strict=True))


def first_examples(task, examples, text):
    """Nodes within their graphs, and answers in words, of the examples with this prompt in words."""
    found = []
    for plain, nodes, target in zip(examples.prompts.plain, examples.prompts.nodes, examples.targets, strict=True):
        if plain == text:
            own = nodes[nodes >= 0]
            begin = task.starts[np.searchsorted(task.starts, own[0], side="right") - 1]
            found.append(((own - begin).tolist(), task.candidates[target]))
    return found


def every(task):
    """All examples of a task, training ones drawn once."""
    return [next(task.draw(np.random.default_rng(0)))[0], task.valid, task.test]


def test_a_connectivity_problem_is_read_as_printed():
    yes, no = CONNECTED.format(0, 2), CONNECTED.format(2, 5)
    task = nlgraph(*several((yes, "The answer is yes."), (no, "The answer is no.")), SPLIT, "connectivity", SETTINGS)
    assert task.candidates == ["no", "yes"]
    assert edges_of(task, 0) == [(0, 1), (1, 2), (3, 4)]
    # The second asks for node 5, which no edge mentions.
    assert np.diff(task.starts)[:2].tolist() == [5, 6]
    for text, expected in ((yes, ([0, 2], "yes")), (no, ([2, 5], "no"))):
        plain = " ".join(text.split()) + " answer :"
        asked = [example for part in every(task) for example in first_examples(task, part, plain)]
        assert asked == [expected] * 10
    assert set(task.test.prompts.texts) == {"is there a path between [[0]] and [[1]] ? answer :"}


def test_a_cycle_problem_is_read_as_printed_and_shows_all_nodes():
    task = nlgraph(
        *several((CYCLE, "Yes, there is a cycle."), (CYCLE, "No, there is no cycle in this graph.")),
        SPLIT,
        "cycle",
        SETTINGS,
    )
    assert edges_of(task, 0) == [(0, 1), (0, 2), (1, 2), (3, 4)]
    assert np.diff(task.starts).tolist() == [6] * 20
    asked = [e for part in every(task) for e in first_examples(task, part, " ".join(CYCLE.split()) + " answer :")]
    assert sorted(asked) == [([0, 1, 2, 3, 4, 5], "no")] * 10 + [([0, 1, 2, 3, 4, 5], "yes")] * 10
    assert task.test.prompts.texts[0] == "is there a cycle among [[0]] [[1]] [[2]] [[3]] [[4]] [[5]] ? answer :"


def test_a_shortest_path_problem_has_lengths_and_asks_for_the_total():
    said = "The shortest path from node 1 to node 2 is 1,0,2 with a total weight of 5."
    task = nlgraph(*several((SHORTEST, said)), SPLIT, "shortest_path", SETTINGS)
    assert edges_of(task, 3) == [(0, 1), (0, 2), (1, 2)]
    assert task.candidates == ["5"]
    asked = [e for part in every(task) for e in first_examples(task, part, " ".join(SHORTEST.split()) + " answer :")]
    assert asked == [([1, 2], "5")] * 20
    begin = task.starts[7]
    # Four anchors asked for of five nodes: three of them are anchors of this part, by length and not by hops.
    assert task.table.dtype == np.float32
    own = task.table[begin : begin + 3]
    assert {5.0, 2.0, 3.0} >= set(own[np.isfinite(own) & (own > 0)].tolist())
    assert 5.0 in own


@pytest.mark.parametrize(
    ("problem", "question", "answer"),
    [
        ("connectivity", "Graph: (0,1)\nQ: Is there a path?\nA:", "The answer is yes."),
        ("connectivity", CONNECTED.format(0, 1), "The answer is 7."),
        ("cycle", CYCLE, "Perhaps."),
        ("shortest_path", CONNECTED.format(0, 2), "a total weight of 2"),
        ("shortest_path", SHORTEST, "The answer is yes."),
    ],
)
def test_a_problem_of_another_form_is_refused_with_its_row(problem, question, answer):
    good = {
        "connectivity": (CONNECTED.format(0, 1), "yes"),
        "cycle": (CYCLE, "yes"),
        "shortest_path": (SHORTEST, "total weight of 5"),
    }
    texts, answers = several(good[problem])
    texts[2], answers[2] = question, answer
    with pytest.raises(DataError, match="row 3") as caught:
        nlgraph(texts, answers, SPLIT, problem, SETTINGS)
    assert "\n" not in str(caught.value)


def test_a_tenth_of_training_validates_unless_there_is_a_part_for_it():
    texts, answers = several((CYCLE, "yes"), (CYCLE, "no"))
    task = nlgraph(texts, answers, ["train"] * 15 + ["test"] * 5, "cycle", SETTINGS)
    drawn = next(task.draw(np.random.default_rng(0)))[0]
    assert (len(drawn), len(task.valid), len(task.test)) == (14, 1, 5)
    begins = [set(e.prompts.nodes[:, 0].tolist()) for e in (drawn, task.valid, task.test)]
    assert len(set.union(*begins)) == 20
    own = nlgraph(texts, answers, ["train"] * 10 + ["valid"] * 4 + ["dev"] * 6, "cycle", SETTINGS)
    assert own.valid.prompts.nodes[:, 0].tolist() == own.starts[10:14].tolist()
    assert own.test.prompts.nodes[:, 0].tolist() == own.starts[14:20].tolist()
    with pytest.raises(DataError, match="training and a test part"):
        nlgraph(texts, answers, ["train"] * 20, "cycle", SETTINGS)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("count", [3, None])
def test_distances_side_by_side_are_those_of_each_graph_alone(weighted, count):
    rng = np.random.default_rng(0)
    given = [nx.gnm_random_graph(n, n, seed=n) for n in (2, 5, 9)]
    graphs = []
    for own in given:
        ends = np.array(own.edges, dtype=np.int64).reshape(-1, 2)
        lengths = rng.integers(1, 9, len(ends)).astype(float)
        nx.set_edge_attributes(own, {tuple(e): w for e, w in zip(ends.tolist(), lengths, strict=True)}, "length")
        graphs.append(Small(len(own), ends, lengths if weighted else None))
    whole, table, starts = side_by_side(graphs, TokenizerSettings(anchors=AnchorSettings(count=count)))
    assert starts.tolist() == [0, 2, 7, 16]
    assert table.shape == (16, count or 9)
    assert whole.edges == sum(len(g.edges) for g in graphs)
    none = np.inf if weighted else UNREACHABLE
    for own, (begin, end) in zip(given, pairwise(starts), strict=True):
        block = table[begin:end]
        ways = dict(nx.all_pairs_dijkstra_path_length(own, weight="length" if weighted else lambda *_: 1))
        columns = [[ways[row].get(anchor, none) for row in own] for anchor in own]
        used = min(len(own), count or 9)
        assert [block[:, k].tolist() in columns for k in range(used)] == [True] * used
        assert (block[:, used:] == none).all()


@pytest.mark.skipif(not DATA.exists(), reason="the data set is not at hand")
@pytest.mark.parametrize("problem", ["connectivity", "cycle", "shortest_path"])
def test_the_published_answers_are_what_networkx_finds_in_the_graphs_that_were_read(problem):
    rows = pd.read_parquet(DATA)
    rows = rows[rows["task"] == problem].iloc[::20].reset_index(drop=True)
    texts, answers = rows["question"].tolist(), rows["answer"].tolist()
    task = nlgraph(
        texts, answers, ["train", "valid", "test"] * (len(rows) // 3) + ["train"] * (len(rows) % 3), problem, SETTINGS
    )
    checked = 0
    weights = task.graph.weights
    lengths = np.ones(len(task.graph.indices)) if weights is None else weights
    source, target = task.graph.arcs()
    whole = nx.Graph()
    whole.add_nodes_from(range(len(task.graph)))
    whole.add_weighted_edges_from(zip(source.tolist(), target.tolist(), lengths.tolist(), strict=True))
    for examples in every(task):
        for nodes, right in zip(examples.prompts.nodes, examples.targets, strict=True):
            own = nodes[nodes >= 0].tolist()
            if problem == "connectivity":
                expected = "yes" if nx.has_path(whole, *own) else "no"
            elif problem == "cycle":
                part = whole.subgraph(own)
                expected = "no" if nx.is_forest(part) else "yes"
            else:
                expected = str(int(nx.dijkstra_path_length(whole, *own)))
            assert task.candidates[right] == expected
            checked += 1
    assert checked == len(rows)


GRAPHS = [
    "(cannabis; synonym of; marijuana)(legal; causes; more available)(marijuana; capable of; good thing)",
    "(a; causes; b)",
    "(b; not desires; a)(b; causes; c)",
]


def stances(graphs=None, encode=None, **changes):
    given = {
        "beliefs": [f"belief {i}" for i in range(20)],
        "arguments": [f"argument {i}" for i in range(20)],
        "stances": ["support", "counter"] * 10,
        "split": SPLIT,
        **changes,
    }
    graphs = [GRAPHS[i % 3] for i in range(20)] if graphs is None else graphs
    return stance(given["beliefs"], given["arguments"], given["stances"], graphs, given["split"], encode, SETTINGS)


def test_a_stance_is_read_as_concepts_relations_belief_and_argument():
    task = stances(encode=lambda texts: np.array([[len(text)] for text in texts], dtype=np.float32))
    assert task.candidates == ["counter", "support"]
    assert list(task.relation_names) == ["capable of", "causes", "not desires", "synonym of"]
    # Belief and argument stand alone; concepts follow in the order in which they are first named.
    names = ["belief 0", "argument 0", "cannabis", "marijuana", "legal", "more available", "good thing", "belief 1"]
    assert task.features[:8, 0].tolist() == [len(name) for name in names]
    assert edges_of(task, 0) == [(2, 3), (3, 6), (4, 5)]
    assert np.diff(task.starts)[:3].tolist() == [7, 4, 5]
    beside = {tuple(fact) for fact in task.facts.tolist() if fact[0] < 7}
    assert beside == {(2, 4, 3), (3, 8, 2), (4, 2, 5), (5, 6, 4), (3, 1, 6), (6, 5, 3)}
    triples = "[[2]] synonym of [[3]] ; [[4]] causes [[5]] ; [[3]] capable of [[6]]"
    assert task.test.prompts.texts[0] == f"belief : [[0]] argument : [[1]] graph : {triples} . stance ? answer :"
    assert task.node_texts[:8] == names
    begin = int(task.starts[3])
    assert task.test.prompts.nodes[0].tolist() == list(range(begin, begin + 7))
    assert [task.candidates[row] for row in task.test.targets[:2]] == ["counter", "counter"]


def words_read(task, name):
    settings = GraphModelSettings(position_tokens=1, neighbours=2, class_words=8)
    made = build(task, ablate(task, name, settings), GraphTrainingSettings())
    batch = made.encoder(task.test.prompts.take(np.array([0])))
    return made.tokenizer.decode(batch.values[batch.kinds == WORD].tolist()), set(batch.kinds.unique().tolist())


@pytest.mark.parametrize("encode", [None, lambda texts: np.ones((len(texts), 2), dtype=np.float32)])
def test_words_of_concepts_relations_and_classes_are_read_with_and_without_feature_vectors(encode):
    task = stances(encode=encode)
    said = (
        "classes : counter ; support . belief : belief 3 argument : argument 3 graph : cannabis synonym of marijuana ;"
    )
    both, kinds = words_read(task, TOKENS)
    assert both.startswith(said)
    assert both.endswith("legal causes more available ; marijuana capable of good thing . stance ? answer :")
    assert {POSITION, NEIGHBOUR} <= kinds
    alone, kinds = words_read(task, TEXT)
    assert (alone, kinds & {POSITION, NEIGHBOUR}) == (both, set())
    tokens, kinds = words_read(task, TOKENS_ONLY)
    assert "marijuana" not in tokens
    assert POSITION in kinds


def test_node_words_keep_to_their_budget():
    task = stances()
    settings = GraphModelSettings(node_words=1)
    made = build(task, ablate(task, TOKENS, settings), GraphTrainingSettings())
    batch = made.encoder(task.test.prompts.take(np.array([0])))
    read = made.tokenizer.decode(batch.values[batch.kinds == WORD].tolist())
    assert "belief : belief argument : argument graph : cannabis" in read


def test_words_of_test_questions_are_not_learned():
    task = stances(beliefs=[f"only{i}" for i in range(20)])
    learned = " ".join(task.words)
    assert "only0 " in learned
    assert "only3 " not in learned


@pytest.mark.parametrize("wrong", ["(a; causes)", "(a, causes, b)", "(a; causes; b; c)", "nothing"])
def test_a_graph_that_is_no_list_of_triples_is_refused_with_its_row(wrong):
    with pytest.raises(DataError, match="row 5") as caught:
        stances(graphs=[*GRAPHS, GRAPHS[0], wrong, *([GRAPHS[1]] * 15)])
    assert "\n" not in str(caught.value)
