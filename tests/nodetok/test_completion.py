"""Knowledge-graph completion against plain loops over triples, and distances against NetworkX."""

from collections import Counter

import networkx as nx
import numpy as np
import pytest

from nodetok.distances import UNREACHABLE
from nodetok.graph import Graph
from nodetok.language.interface import Examples
from nodetok.language.prompts import NEIGHBOUR, Neighbourhoods, PromptEncoder, Prompts
from nodetok.language.vocabulary import train_tokenizer
from nodetok.settings import AnchorSettings, TokenizerSettings
from nodetok.tasks.completion import FOLDS, answers, completion, facts, ranked
from setrec.errors import DataError

ENTITIES, RELATIONS = 14, ("_part_of", "_alike", "_kind")
TAIL = [f"{name} of [[0]] is ? answer :" for name in ("part of", "alike", "kind")]
HEAD = [f"[[0]] is {name} of ? answer :" for name in ("part of", "alike", "kind")]


def triples(count, seed):
    rng = np.random.default_rng(seed)
    return np.stack(
        [rng.integers(ENTITIES, size=count), rng.integers(3, size=count), rng.integers(ENTITIES, size=count)], 1
    )


# Among the random ones: two relations between the same two, one both ways, one twice over, and one to itself.
TRAIN = np.concatenate([triples(24, 0), [[0, 0, 1], [0, 1, 1], [2, 1, 3], [3, 1, 2], [4, 2, 5], [4, 2, 5], [6, 1, 6]]])
VALID, TEST = triples(6, 1), triples(8, 2)


def graph_of(rows):
    return Graph.from_arrays(rows[:, 0], rows[:, 2], ENTITIES)


@pytest.fixture(scope="module")
def task():
    settings = TokenizerSettings(anchors=AnchorSettings(count=5))
    return completion(graph_of(TRAIN), TRAIN, VALID, TEST, RELATIONS, None, settings)


def asked_of(examples):
    """(triple, whether its tail is asked for) of every example, from its words alone."""
    for text, node, answer in zip(examples.prompts.texts, examples.prompts.nodes[:, 0], examples.targets, strict=True):
        tail = text in TAIL
        relation = (TAIL if tail else HEAD).index(text)
        yield ((int(node), relation, int(answer)) if tail else (int(answer), relation, int(node))), tail


@pytest.mark.parametrize("levels", [3, 1000])
def test_filtered_ranks_are_those_of_a_plain_loop_over_all_candidates(task, levels):
    true = {tuple(row) for row in np.concatenate([TRAIN, VALID, TEST]).tolist()}
    scores = np.random.default_rng(levels).integers(levels, size=(len(task.test), ENTITIES)).astype(np.float32)
    expected = []
    for own, ((head, relation, tail), asks_tail) in zip(scores, asked_of(task.test), strict=True):
        right, rank = (tail if asks_tail else head), 1.0
        for other in range(ENTITIES):
            said = (head, relation, other) if asks_tail else (other, relation, tail)
            if other != right and said not in true:
                rank += 1.0 if own[other] > own[right] else 0.5 if own[other] == own[right] else 0.0
        expected.append(rank)
    found = task.measure(scores, task.test)
    np.testing.assert_allclose(1 / found["MRR"], expected)
    for k in (1, 3, 10):
        assert found[f"Hits@{k}"].tolist() == [float(rank <= k) for rank in expected]


def test_both_ends_of_every_test_triple_are_asked_for_once(task):
    asked = list(asked_of(task.test))
    for way in (True, False):
        assert [triple for triple, tail in asked if tail == way] == [tuple(row) for row in TEST.tolist()]


def test_a_model_that_finds_all_entities_alike_is_ranked_in_the_middle():
    known = answers(np.array([[0, 0, 1], [0, 0, 2]]), [TAIL, HEAD])
    examples = Examples(Prompts([TAIL[0]], np.array([[0]])), np.array([1]))
    # Of ten entities one is right and one is another right answer: eight tie, half of them count before.
    assert 1 / ranked(np.zeros((1, 10)), examples, known)["MRR"][0] == 5.0


def test_scores_that_are_not_numbers_never_rank_first(task):
    found = task.measure(np.full((len(task.test), ENTITIES), np.nan), task.test)
    assert found["MRR"].max() <= 1 / ENTITIES
    assert not found["Hits@1"].any()


def test_a_folds_distances_are_those_of_a_graph_of_all_other_triples(task):
    seen = Counter()
    for examples, table in task.draw(np.random.default_rng(3)):
        asked = list(asked_of(examples))
        assert Counter(t for t, tail in asked if tail) == Counter(t for t, tail in asked if not tail)
        fold = Counter(t for t, tail in asked if tail)
        seen += fold
        left = nx.Graph()
        left.add_nodes_from(range(ENTITIES))
        left.add_edges_from((h, t) for h, _, t in (Counter(map(tuple, TRAIN.tolist())) - fold).elements())
        for column, anchor in enumerate(task.tokenizer.anchors.rows):
            reached = nx.single_source_shortest_path_length(left, int(anchor))
            assert table[:, column].tolist() == [reached.get(row, UNREACHABLE) for row in range(ENTITIES)]
    assert seen == Counter(map(tuple, TRAIN.tolist()))


def test_an_epoch_hides_some_edges_for_good_and_keeps_those_that_another_fold_makes_too(task):
    whole = task.table
    tables = [table for _, table in task.draw(np.random.default_rng(0))]
    assert len(tables) == FOLDS
    assert any((table != whole).any() for table in tables)
    assert all((table.astype(int) >= whole).all() for table in tables)


def test_what_is_asked_for_is_not_shown_beside_the_known_entity_and_everything_else_is(task):
    words = train_tokenizer(task.words)
    beside = Neighbourhoods.sample(ENTITIES, task.facts, 100, np.random.default_rng(0))
    encoder = PromptEncoder(words, 1, 0, beside)
    loops = 0
    for examples, _ in task.draw(np.random.default_rng(0)):
        batch = encoder(examples.prompts)
        for row, ((head, relation, tail), asks_tail) in enumerate(asked_of(examples)):
            known = head if asks_tail else tail
            others = [t for t in map(tuple, TRAIN.tolist()) if t != (head, relation, tail)]
            expected = [(t, r + 1) for h, r, t in others if h == known]
            expected += [(h, r + 1 + len(RELATIONS)) for h, r, t in others if t == known]
            here = batch.kinds[row] == NEIGHBOUR
            shown = zip(batch.values[row][here].tolist(), batch.relations[row][here].tolist(), strict=True)
            assert sorted(shown) == sorted(expected)
            loops += head == tail
    assert loops >= 2


def test_test_questions_show_all_that_training_triples_say(task):
    assert task.test.prompts.hidden is None
    rows = facts(TRAIN, len(RELATIONS)).tolist()
    assert len(rows) == 2 * len(TRAIN)
    assert [6, 2, 6] in rows
    assert [6, 2 + len(RELATIONS), 6] in rows


@pytest.mark.parametrize("missing", ["train", "valid", "test"])
def test_a_split_without_one_of_its_parts_is_refused_in_one_line(missing):
    parts = {"train": TRAIN, "valid": VALID, "test": TEST, missing: TRAIN[:0]}
    with pytest.raises(DataError, match=f"no triple in the {missing} part") as caught:
        completion(graph_of(TRAIN), *parts.values(), RELATIONS, None, TokenizerSettings())
    assert "\n" not in str(caught.value)
