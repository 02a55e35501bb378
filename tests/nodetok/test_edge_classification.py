"""Edge classification: what a prompt shows and hides, the metrics, and questions about edges."""

import networkx as nx
import numpy as np
import pytest
from nodetok_helpers import reader
from sklearn.metrics import accuracy_score, f1_score

from nodetok.asking.answering import GraphAnswerer
from nodetok.asking.artifact import GraphArtifact, artifact
from nodetok.files import EdgeData, GraphData
from nodetok.graph import Graph
from nodetok.language.input_ablation import TEXT, TOKENS, TOKENS_ONLY, ablations
from nodetok.language.prompts import NEIGHBOUR, POSITION, WORD
from nodetok.settings import AnchorSettings, TokenizerSettings
from nodetok.tasks.edge_classification import edge_classification, metrics
from setrec.errors import DataError

SETTINGS = TokenizerSettings(anchors=AnchorSettings(count=8))
PARTS = ["train", "train", "valid", "test"]


def roads(**changes) -> EdgeData:
    """A small network of roads and railways; the text of an edge says which it is."""
    edges = list(nx.connected_watts_strogatz_graph(30, 4, 0.3, seed=0).edges)
    names = [f"n{i}" for i in range(30)]
    graph = Graph.from_arrays(*np.array(edges).T, 30, ids=names, texts=[f"town {i}" for i in range(30)])
    labels = ["road" if (a + b) % 3 else "rail" for a, b in edges]
    given = {
        "labels": labels, "split": [PARTS[i % 4] for i in range(len(edges))],
        "texts": [f"speed {i} ; built of {label}" for i, label in enumerate(labels)], **changes,
    }  # fmt: skip
    nodes = GraphData(graph, texts=list(graph.texts))
    return EdgeData(nodes, np.array(edges), given["labels"], given["split"], given["texts"])


@pytest.fixture(scope="module")
def task():
    return edge_classification(roads(), None, SETTINGS)


def test_each_labelled_edge_is_asked_in_its_part_with_its_class(task):
    data = roads()
    drawn = next(task.draw(np.random.default_rng(0)))[0]
    for name, examples in (("train", drawn), ("valid", task.valid), ("test", task.test)):
        asked = {
            (*pair, task.candidates[target], text)
            for pair, target, text in zip(
                examples.prompts.nodes.tolist(), examples.targets, examples.prompts.edge_texts, strict=True
            )
        }
        rows = [row for row, part in enumerate(data.split) if part == name]
        assert asked == {(*data.ends[row].tolist(), data.labels[row], data.texts[row]) for row in rows}
    part = ["", *data.split[1:]]
    assert len(edge_classification(roads(split=part, labels=["", *data.labels[1:]]), None, SETTINGS).test) == len(
        task.test
    )


def test_a_prompt_shows_the_classes_of_other_training_edges_but_not_its_own_end(task):
    made = reader(task, neighbours=30)
    data = roads()
    learned = {frozenset(ends): label for ends, label, part in
               zip(data.ends.tolist(), data.labels, data.split, strict=True) if part == "train"}  # fmt: skip
    relations = len(task.relation_names)
    prompts = task.test.prompts
    for row in range(len(prompts)):
        batch = made.encoder(prompts.take(np.array([row])))
        ends = prompts.nodes[row].tolist()
        shown = (batch.kinds == NEIGHBOUR)[0]
        # Of both ends, whose sets of tokens have one position each, neither is a neighbour of the other.
        places = batch.places[0][(batch.kinds == POSITION)[0]].unique().tolist()
        for end, place, other in zip(ends, places, reversed(ends), strict=True):
            own = shown & (batch.places[0] == place)
            assert other not in batch.values[0][own].tolist()
            for neighbour, relation in zip(
                batch.values[0][own].tolist(), batch.relations[0][own].tolist(), strict=True
            ):
                label = task.relation_names[(relation - 1) % relations]
                assert label == learned.get(frozenset((end, neighbour)), "")


def words(task, name, **changes):
    made = reader(task, name=name, **changes)
    batch = made.encoder(task.test.prompts.take(np.array([0])))
    return made.tokenizer.decode(batch.values[0][(batch.kinds == WORD)[0]].tolist()), set(batch.kinds.unique().tolist())


def test_the_words_of_an_edge_are_read_within_their_budget_and_not_by_tokens_only(task):
    text = task.test.prompts.edge_texts[0].split(" ; ")[1]
    both, kinds = words(task, TOKENS)
    assert both.startswith("edge : speed 3 ; " + text)
    assert "town" in both
    assert POSITION in kinds
    assert words(task, TOKENS, edge_words=2)[0].startswith("edge : speed 3 . what is")
    assert words(task, TEXT) == (both, kinds - {POSITION, NEIGHBOUR})
    assert words(task, TOKENS_ONLY)[0] == "what is the class of the edge from to ? answer :"
    assert TOKENS_ONLY in ablations(task, [TOKENS, TOKENS_ONLY])


def test_baselines_are_right_where_the_words_tell_the_class(task):
    linear = task.opponents["logistic regression"](0, 60.0)
    assert linear["accuracy"].mean() == 1.0
    majority = task.opponents["majority class"](0, 60.0)
    assert majority["accuracy"].mean() == np.mean(task.test.targets == 1)
    assert majority["macro F1"].mean() < 0.5


@pytest.mark.parametrize("seed", range(4))
def test_metrics_are_scikit_learns_and_their_spread_is_that_of_resampled_metrics(seed):
    rng = np.random.default_rng(seed)
    targets = rng.choice(4, 400, p=[0.6, 0.2, 0.15, 0.05])
    predicted = np.where(rng.random(400) < 0.7, targets, rng.integers(4, size=400))
    found = metrics(predicted, targets)
    assert found["accuracy"].mean() == pytest.approx(accuracy_score(targets, predicted))
    assert found["macro F1"].mean() == pytest.approx(f1_score(targets, predicted, average="macro"))
    drawn = rng.integers(400, size=(300, 400))
    resampled = [f1_score(targets[rows], predicted[rows], average="macro") for rows in drawn]
    assert found["macro F1"].std() / 20 == pytest.approx(np.std(resampled), rel=0.25)
    unseen = metrics(np.array([0, 1]), np.array([-1, 1]))
    assert unseen["macro F1"].mean() == pytest.approx(1 / 3)


def test_an_edge_is_asked_about_in_other_words_and_where_there_is_none_the_question_is_refused(task, tmp_path):
    artifact(task, reader(task)).save(tmp_path / "graph")
    made = GraphArtifact.load(tmp_path / "graph")
    made.threshold = 0.0
    first, second = (made.ids[row] for row in task.test.prompts.nodes[0])
    answerer = GraphAnswerer(made)
    found = answerer.ask(f"what is the class of the edge from {first} to {second} ?")
    assert not found.refused
    # What is asked is what was tested: with the edge's words, and without its ends among their neighbours.
    scores, _ = next(made.reader.scores(task.test.take(np.array([0]))))
    chances = np.exp(scores[0] - scores[0].max())
    assert dict(found.ranked) == pytest.approx(
        dict(zip(task.candidates, chances / chances.sum(), strict=True)), abs=1e-5
    )
    assert answerer.ask(f"what type of relationship is there between {second} and {first} ?") == found
    other = next(i for i in made.ids if made.edge(made.row(first), made.row(i)) is None and i != first)
    refused = answerer.ask(f"what type of relationship is there between {first} and {other} ?")
    assert (refused.answer, refused.reason) == (None, f"there is no edge between {first} and {other}")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"split": ["train"] * 60}, "no labelled edge in the valid part"),
        ({"split": None}, "no labelled edge in the train part"),
        ({"labels": ["road"] * 60}, "two classes"),
    ],
)
def test_edges_that_cannot_be_learned_are_refused_in_one_line(changes, said):
    with pytest.raises(DataError, match=said) as caught:
        edge_classification(roads(**changes), None, SETTINGS)
    assert "\n" not in str(caught.value)
