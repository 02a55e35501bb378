"""Free questions: which question, which nodes, what the answer rests on, and when there is none."""

from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import yaml
from nodetok_helpers import reader, task
from scipy import sparse

from nodetok.asking.answering import GraphAnswerer
from nodetok.asking.artifact import artifact, confidence_threshold
from nodetok.asking.nodes import AmbiguousNodeError, NodeFinder
from nodetok.asking.questions import _REVERSED, QuestionMatcher, _plain, by_meaning
from nodetok.asking.subgraph import retrieve
from nodetok.asking.wordings import CLASSIFICATION, EDGE_CLASSIFICATION, OUTSIDE, STRUCTURE, TEMPLATES, Wordings
from nodetok.language.interface import Examples
from setrec.errors import UnknownNodeError

WORDINGS = {TEMPLATES[name]: Wordings.split(texts) for name, texts in STRUCTURE.items()}


@pytest.fixture(scope="module")
def matcher():
    return QuestionMatcher(WORDINGS)


def test_every_question_has_a_dozen_wordings_to_learn_from_and_others_to_be_tested_with():
    for given in [*WORDINGS.values(), Wordings.split(CLASSIFICATION), Wordings.split(EDGE_CLASSIFICATION)]:
        assert len(given.train) >= 12
        assert len(given.test) >= 4
        assert len(set(given.every)) == len(given.every)
        learned, held_out = (
            {by_meaning(text) for text in texts} for texts in (given.train, (*given.valid, *given.test))
        )
        assert not learned & held_out, "held-out wordings are no synonyms of training ones"


def test_unseen_wordings_are_recognised_and_other_questions_are_not(matcher):
    right = [matcher.match(text).template == template for template, w in WORDINGS.items() for text in w.test]
    assert np.mean(right) >= 0.9
    others = [
        "who is the manager of [[0]] ?", "What is the capital of Spain?", "is [[0]] richer than [[1]] ?", "...",
        "[[0]]",
        "which of [[1]] and [[2]] paints better than [[0]] ?", "how many votes did [[0]] get ?", "hops", "",
    ]  # fmt: skip
    assert [text for text in others if matcher.match(text).template] == []
    assert sum(bool(matcher.match(text).template) for text in OUTSIDE) <= 0.05 * len(OUTSIDE)


@pytest.mark.parametrize(
    "text",
    [
        "which of [[1]] and [[2]] is further away from [[0]] ?", "is [[1]] or [[2]] less near to [[0]] ?",
        "is there no path between [[0]] and [[1]] ?", "are [[0]] and [[1]] not neighbours ?",
        "aren't [[0]] and [[1]] connected ?", "are [[0]] and [[1]] disconnected ?",
        "what is the length of the longest path from [[0]] to [[1]] ?", "is [[0]] unreachable from [[1]] ?",
        "who are the common neighbours of [[0]] and [[1]] ?", "why are [[0]] and [[1]] neighbours ?",
        "which nodes are on the shortest path from [[0]] to [[1]] ?",
    ],
)  # fmt: skip
def test_a_question_that_reverses_or_varies_a_known_one_is_none(matcher, text):
    assert matcher.match(text).template == ""


@pytest.mark.parametrize(
    "text",
    [
        "how many routes exist between [[0]] and [[1]] ?", "how many shortest routes join [[0]] to [[1]] ?",
        "how many authors do [[0]] and [[1]] share ?", "is the number of hops between [[0]] and [[1]] prime ?",
        "is the distance from [[0]] to [[1]] even ?", "what is the second shortest path from [[0]] to [[1]] ?",
        "are [[0]] and [[1]] at least five hops apart ?", "is the distance between [[0]] and [[1]] at most 4 ?",
        "what is the sum of the degrees of [[0]] and [[1]] ?", "was [[0]] ever connected to [[1]] ?",
        "which neighbour of [[0]] is closest to [[1]] ?", "list the nodes adjacent to both [[0]] and [[1]]",
        "give me a path from [[0]] to [[1]]", "connect [[0]] to [[1]]", "[[0]] and [[1]]",
        "how much closer is [[1]] than [[2]] to [[0]] ?", "would [[0]] and [[1]] be connected without [[2]] ?",
    ],
)  # fmt: skip
def test_a_question_of_another_kind_about_the_same_things_is_none(matcher, text):
    assert matcher.match(text).template == ""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Hi, could you please tell me how far [[0]] is from [[1]]?", "hops"),
        ("What's the shortest route length from [[0]] to [[1]], please", "hops"),
        ("can you check whether [[0]] and [[1]] are adjacent ?", "adjacent"),
        ("I'd like to know if [[0]] is a direct neighbour of [[1]], thanks", "adjacent"),
        ("how many vertices touch [[0]] as well as [[1]] ?", "common"),
    ],
)
def test_polite_words_and_synonyms_do_not_change_a_question(matcher, text, name):
    assert matcher.match(text).template == TEMPLATES[name]


def test_nine_of_ten_questions_never_looked_at_are_recognised_and_nine_of_ten_without_an_answer_are_not(matcher):
    given = yaml.safe_load((Path(__file__).parent / "unseen_questions.yaml").read_text())
    right = [
        matcher.match(text).template == TEMPLATES[name] for name, texts in given["answerable"].items() for text in texts
    ]
    refused = [matcher.match(text).template == "" for text in given["unanswerable"]]
    assert (len(right), len(refused)) == (60, 100)
    assert np.mean(right) >= 0.9
    assert np.mean(refused) >= 0.9


def test_no_wording_holds_a_word_that_reverses_it(matcher):
    for texts in (*STRUCTURE.values(), CLASSIFICATION, EDGE_CLASSIFICATION):
        assert [text for text in texts if _REVERSED.search(_plain(text))] == []
    assert matcher.match("are [[0]] and [[1]] adjacent or not ?").template == TEMPLATES["adjacent"]


def test_a_model_without_other_wordings_answers_its_own_questions_only():
    exact = QuestionMatcher(
        {"r0 of [[0]] is ? answer :": Wordings((), (), ()), "[[0]] is r0 of ? answer :": Wordings((), (), ())}
    )
    assert exact.match("R0 of [[0]] is?").template == "r0 of [[0]] is ? answer :"
    for text in ("r0 of [[0]] is [[1]] ?", "what is the capital of France ?", "", "r1 of [[0]] is ?"):
        assert exact.match(text).template == ""


@pytest.mark.parametrize(
    "text", ["how many hops are between [[0]] ?", "how far are [[0]] and [[1]] from [[2]] and [[3]] ?"]
)
def test_a_question_with_too_few_or_too_many_nodes_is_none(matcher, text):
    assert matcher.match(text).template == ""


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("which is nearer to [[0]] , the first [[1]] or the second [[2]] ?", (0, 1, 2)),
        ("is [[0]] or [[1]] closer to [[2]] ?", (2, 0, 1)),
        ("of [[0]] and [[1]] , which is nearer to [[2]] ?", (2, 0, 1)),
        ("is [[0]] closer to [[1]] or to [[2]] ?", (0, 1, 2)),
        ("is [[0]] nearer than [[1]] to [[2]] ?", (2, 0, 1)),
    ],
)
def test_the_node_that_two_are_compared_to_is_found_by_what_joins_the_two(matcher, text, order):
    found = matcher.match(text)
    assert (found.template, found.order) == (TEMPLATES["nearer"], order)


IDS = ["bob", "n-7", "35", "x1", "x2"]
TEXTS = [
    "Bob Stone, head of engineering", "Ann Lee, keeps the Kubernetes clusters running", "Paper on genetic search",
    "Sam, recruiter", "Sam, accountant",
]  # fmt: skip


@pytest.mark.parametrize(
    ("question", "text", "rows"),
    [
        ("how far is [[bob]] from [[ 35 ]] ?", "how far is [[0]] from [[1]] ?", [0, 2]),
        ("how far is Bob from 35?", "how far is [[0]] from [[1]] ?", [0, 2]),
        ("how far is Bob Stone from N-7 and bob?", "how far is [[0]] from [[1]] and [[0]] ?", [0, 1]),
        ("how far is the Kubernetes clusters person ?", "how far is the [[0]] person ?", [1]),
        ("how far is it ?", "how far is it ?", []),
        ("[[]] how far", "[[]] how far", []),
    ],
)
def test_nodes_are_found_by_brackets_id_title_and_words_of_their_text(question, text, rows):
    finder = NodeFinder(IDS, TEXTS, {"how", "far", "from", "person"})
    found, at = finder.find(question)
    assert " ".join(found.replace("?", " ?").split()) == text
    assert at == rows


def test_unknown_and_ambiguous_nodes_are_told():
    finder = NodeFinder(IDS, TEXTS, {"how", "far"})
    with pytest.raises(UnknownNodeError, match="'nobody'"):
        finder.find("how far is [[nobody]] ?")
    with pytest.raises(AmbiguousNodeError, match="names 2 nodes"):
        finder.find("how far is Sam ?")


@pytest.mark.parametrize("seed", range(4))
def test_a_retrieved_subgraph_joins_the_nodes_of_the_question_wherever_a_path_does(seed):
    given = nx.disjoint_union(nx.gnm_random_graph(60, 80, seed=seed), nx.path_graph(4))
    adjacency = sparse.csr_matrix(nx.to_scipy_sparse_array(given))
    rows = [0, 7, 31, 61, 63]
    nodes, edges = retrieve(adjacency, rows)
    assert nodes[:5] == rows
    assert all(given.has_edge(*edge) for edge in edges)
    assert {end for edge in edges for end in edge} <= set(nodes)
    found = nx.Graph(edges)
    found.add_nodes_from(rows)
    for other in rows[1:]:
        assert nx.has_path(found, 0, other) == nx.has_path(given, 0, other)
    assert retrieve(adjacency, []) == ([], [])


@pytest.fixture(scope="module")
def answerer():
    of = task()
    return GraphAnswerer(artifact(of, reader(of)))


def test_an_answer_is_the_same_in_other_words_and_rests_on_edges_of_the_graph(answerer):
    answerer.artifact.threshold = 0.0
    found = answerer.ask("what is the class of [[n7]] ?")
    assert answerer.ask("Under which category would you file n7?") == found
    assert not found.refused
    assert found.nodes[0] == "n7"
    known = {
        frozenset((answerer.artifact.ids[a], answerer.artifact.ids[b])) for a, b in answerer.artifact.edges.tolist()
    }
    assert found.edges
    assert all(frozenset(edge) in known for edge in found.edges)


@pytest.mark.parametrize("question", ["What is the capital of France?", "who manages n7 ?", "classify n7 and n8", "n7"])
def test_what_the_model_was_not_trained_for_is_refused_with_the_reason(answerer, question):
    found = answerer.ask(question)
    assert (found.answer, found.refused, found.edges) == (None, True, [])
    assert "what is the class of" in found.reason


def test_a_name_that_no_node_has_is_told(answerer):
    found = answerer.ask("what is the class of n7 and of zzz9 ?")
    assert found.reason.startswith("no node is named zzz9; with 1 node named")


def test_an_answer_of_a_score_below_that_of_validation_is_refused(answerer):
    answerer.artifact.threshold = 1.1
    found = answerer.ask("what is the class of [[n7]] ?")
    assert (found.answer, found.refused) == (None, True)
    assert "below" in found.reason


class Scored:
    """A reader whose answers have the given probabilities, the first of which are wrong."""

    def __init__(self, chances, wrong):
        self.chances, self.wrong = np.array(chances), wrong

    def scores(self, examples):
        rows = np.arange(len(self.chances))
        logits = np.log(np.stack([self.chances, 1 - self.chances], axis=1))
        yield np.where(rows[:, None] >= 0, logits, 0), Examples(examples.prompts, (rows < self.wrong).astype(np.int64))


@pytest.mark.parametrize(
    ("wrong", "expected"), [(0, 0.6), (2, 0.62), (50, 0.63)], ids=["all right", "two wrong", "half wrong"]
)
def test_the_threshold_separates_wrong_from_right_validation_answers_and_refuses_few(wrong, expected):
    chances = 0.6 + 0.01 * np.minimum(np.arange(100), 30)
    assert confidence_threshold(Scored(chances, wrong), task()) == pytest.approx(expected)


def test_a_name_is_that_of_another_node_neither_by_its_signs_nor_by_blanks_or_brackets():
    finder = NodeFinder(["-5", "7", "C++", " a", "[b]", "x\ny"], None, ["how", "far", "is", "from"])
    assert finder.find("how far is -5 from 7?")[1] == [0, 1]
    assert finder.find("how far is 5 from -7?")[1] == []
    assert finder.find("how far is C++ from c#")[1] == [2]
    assert finder.find("how far is 7, from C++?")[1] == [1, 2]
    for mention, row in (("[[ a]]", 3), ("[[[b]]]", 4), ("[[x\ny]]", 5), ("[[ 7 ]]", 1)):
        assert finder.find(f"how far is {mention}")[1] == [row]
    with pytest.raises(UnknownNodeError, match="'a'"):
        finder.find("how far is [[a]]")
    titled = NodeFinder(["x", "y"], ["The Class, a film", "Word"], ["what", "is", "the", "class", "of"])
    assert titled.find("what is the class of word?")[1] == [1]
