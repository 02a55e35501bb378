"""Relation paths against plain loops, and the model made of them: what it learns, weighs, saves and says."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch

from nodetok.kge import filtered_ranks
from nodetok.knowledge.completer import Completer, CompletionSettings, Knowledge, choose_weights, train
from nodetok.knowledge.fusion import Fusion, Sample
from nodetok.knowledge.neighbours import centred, lexical_neighbours, lexical_vectors, neighbours
from nodetok.knowledge.paths import PathModel, Paths, PathSettings, Rules
from nodetok.knowledge.reader import CompletionReader
from nodetok.knowledge.similar import RIDGE, SimilarEntities
from nodetok.language.interface import Examples
from nodetok.language.prompts import Prompts
from setrec.errors import SetRecError
from setrec.ragged import Ragged

ENTITIES, RELATIONS = 14, 2
EVERYTHING = PathSettings(fanout=1000, support=1, least=1e-9)
ASK = [
    [f"[[0]] {name} ?" for name in ("likes", "knows", "meets")],
    [f"? {name} [[0]]" for name in ("likes", "knows", "meets")],
]


@pytest.fixture
def triples():
    rng = np.random.default_rng(0)
    drawn = np.stack([rng.integers(0, n, 40) for n in (ENTITIES, RELATIONS, ENTITIES)], axis=1)
    return np.unique(drawn[drawn[:, 0] != drawn[:, 2]], axis=0)


@pytest.fixture
def texts():
    return np.random.default_rng(1).permuted(np.tile(np.arange(ENTITIES), (ENTITIES, 1)), axis=1)[:, :2]


def plain_walks(paths, start):
    """(labels, end) of every path without a repeated entity; text once at most and not in paths of three arcs."""
    out = defaultdict(list)
    for source, label, end in zip(paths.arcs.source(), paths.arcs.label, paths.arcs.end, strict=True):
        out[int(source)].append((int(label), int(end)))
    found, work = set(), [((), (start,))]
    while work:
        labels, visited = work.pop()
        for label, end in out[visited[-1]]:
            more = (*labels, label)
            by_text = sum(bool(paths.of_text[one]) for one in more)
            if end not in visited and by_text <= (0 if len(more) == 3 else 1):
                found.add((more, end))
                if len(more) < 3:
                    work.append((more, (*visited, end)))
    return found


def labels_of(paths, body):
    labels = []
    while body:
        labels.append(int(body % paths.base) - 1)
        body //= paths.base
    return tuple(reversed(labels))


@pytest.mark.parametrize("with_text", [False, True])
def test_walks_are_all_paths_without_a_repeated_entity(triples, texts, with_text):
    paths = Paths(triples, ENTITIES, RELATIONS, [texts] if with_text else [], EVERYTHING)
    starts = np.array([3, 0, 7])
    place, body, end = paths.walk(starts)
    for i, start in enumerate(starts):
        own = [(labels_of(paths, b), int(e)) for b, e in zip(body[place == i], end[place == i], strict=True)]
        assert len(own) == len(set(own))
        assert set(own) == plain_walks(paths, int(start))


def test_confidence_is_how_often_a_path_holds_where_its_start_has_the_relation(triples):
    paths = Paths(triples, ENTITIES, RELATIONS, [], EVERYTHING)
    rules = Rules.mine(paths, EVERYTHING)
    holds = {(int(h), int(r), int(t)) for h, r, t in triples} | {(int(t), int(r) + 2, int(h)) for h, r, t in triples}
    held, could = defaultdict(int), defaultdict(int)
    for start in range(ENTITIES):
        for labels, end in plain_walks(paths, start):
            for label in {r for h, r, _ in holds if h == start}:
                could[label, labels] += 1
                held[label, labels] += (start, label, end) in holds and labels != (label,)
    expected = {key: held[key] / (could[key] + EVERYTHING.smoothing) for key in could if held[key]}
    found = {
        (int(key // paths.bodies), labels_of(paths, key % paths.bodies)): value
        for key, value in zip(rules.keys, rules.confidence, strict=True)
    }
    assert found == pytest.approx(expected)


def test_a_fanout_bounds_the_arcs_in_the_middle_and_keeps_all_at_the_start(triples):
    paths = Paths(triples, ENTITIES, RELATIONS, [], PathSettings(fanout=1))
    assert (np.diff(paths.within.begin) <= 1).all()
    whole = Paths(triples, ENTITIES, RELATIONS, [], EVERYTHING)
    assert np.array_equal(paths.arcs.end, whole.arcs.end)


def composed(people=120, seed=0):
    """Everybody has a city, cities a country; who lives in a city lives in its country. Half of that is held out."""
    rng = np.random.default_rng(seed)
    cities, countries = people + np.arange(12), people + 12 + np.arange(4)
    city, country = rng.integers(0, 12, people), rng.integers(0, 4, 12)
    lives = np.stack([np.arange(people), np.zeros(people, dtype=int), cities[city]], axis=1)
    lies = np.stack([cities, np.ones(12, dtype=int), countries[country]], axis=1)
    citizen = np.stack([np.arange(people), np.full(people, 2), countries[country[city]]], axis=1)
    half = people // 2
    return np.concatenate([lives, lies, citizen[:half]]), citizen[half : half + 20], citizen[half + 20 :], people + 16


SMALL = CompletionSettings.model_validate({"embedding": {"width": 16, "epochs": 3, "batch": 64}, "sample": 40})


@pytest.fixture(scope="module")
def made():
    known, valid, test, entities = composed()
    data = Knowledge(known, valid, entities, 3, tokens=np.random.default_rng(0).random((entities, 8), dtype=np.float32))
    return train(data, 60.0, 0, SMALL), data, test


def test_a_composed_relation_is_found_and_answers_new_questions(made):
    model, _, test = made
    asked = np.stack([test[:, 0], test[:, 1], np.zeros(len(test), dtype=int)], axis=1)
    scores = model.scores(asked)
    assert (scores.argmax(axis=1) == test[:, 2]).all()


def test_the_same_seed_makes_the_same_model(made):
    model, data, test = made
    again = train(data, 60.0, 0, SMALL)
    asked = np.stack([test[:, 0], test[:, 1], np.zeros(len(test), dtype=int)], axis=1)
    assert again.fusion.weights == model.fusion.weights
    assert np.array_equal(again.scores(asked), model.scores(asked))


def test_scores_of_paths_are_logarithms_of_probabilities(made):
    model, data, _ = made
    found = model.paths.scores(np.array([0, 5, 121]), np.array([2, 0, 1]))
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1.0, rtol=1e-4)
    assert found.shape == (3, data.entities)


def test_triples_that_no_path_explains_leave_frequencies():
    triples = np.array([[0, 0, 1], [2, 0, 1], [3, 1, 4]])
    paths = Paths(triples, 6, 2, [], PathSettings(support=99))
    model = PathModel(paths, Rules.mine(paths, PathSettings(support=99)), None)
    model.train_weights(PathSettings(), 60.0)
    found = model.scores(np.array([5, 0]), np.array([0, 1]))
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1.0, rtol=1e-4)


def test_training_raises_the_probability_of_answers():
    known, _, _, entities = composed()
    paths = Paths(known, entities + 1200, 3, [], PathSettings())  # most without any triple
    model = PathModel(paths, Rules.mine(paths, PathSettings()), None)
    own = known[known[:, 1] == 2]
    before = model.scores(own[:, 0], own[:, 1])[np.arange(len(own)), own[:, 2]].mean()
    model.train_weights(PathSettings(), 60.0)
    assert model.scores(own[:, 0], own[:, 1])[np.arange(len(own)), own[:, 2]].mean() > before


def test_weights_are_fitted_to_validation_and_a_part_that_brings_nothing_is_not_used(made):
    model, data, _ = made
    same = replace(model, fusion=None)
    best = choose_weights(same, data, 40, 0)
    assert set(same.fusion.weights) == {"paths", "embedding", "similar_entities", "similar_answers", "tokens"}
    alone = replace(model, embedding=None, tokens=None)
    assert choose_weights(alone, data, 40, 0) <= best
    silent = replace(alone, tokens=torch.ones(data.entities, 2))
    choose_weights(silent, data, 40, 0)
    assert silent.fusion.weights["tokens"] == 0.0


def test_a_part_weighs_more_for_the_relations_that_it_answers():
    rng = np.random.default_rng(0)
    label, answers = np.arange(400) % 2, rng.integers(0, 20, 400)
    parts = {name: rng.normal(size=(400, 20)).astype(np.float32) for name in ("first", "second")}
    for row, (own, answer) in enumerate(zip(label, answers, strict=True)):
        parts["second" if own else "first"][row, answer] += 3.0
    known = Ragged(answers, np.arange(401))
    traits = np.zeros((400, 1), dtype=np.float32)
    sample = Sample.of(parts, sum(parts.values()), answers, known, label, traits)
    fusion = Fusion(list(parts), [1.0, 1.0], 2, 1)
    before = fusion.mean_reciprocal_rank(sample)
    assert fusion.fit(sample) > before + 0.05
    mixed = fusion.mix(parts, label, traits)
    assert fusion.fit(sample) == pytest.approx((1 / filtered_ranks(mixed, answers, known)).mean(), abs=0.01)
    of_label = fusion(torch.tensor([0, 1]), torch.zeros(2, 1))
    assert of_label[0, 0] > 2 * of_label[0, 1]
    assert of_label[1, 1] > 2 * of_label[1, 0]


def test_similar_entities_score_as_the_ridge_regression_over_facts(triples):
    similar = SimilarEntities.fit(triples, ENTITIES, RELATIONS, 0)
    facts = np.zeros((ENTITIES, 2 * RELATIONS, ENTITIES))
    for head, relation, tail in triples:
        facts[head, relation, tail] = facts[tail, relation + RELATIONS, head] = 1.0
    rows = facts.reshape(ENTITIES, -1)
    count = rows.sum(axis=0)
    weighed = rows * np.where(count > 1, np.sqrt(np.log(ENTITIES / np.maximum(count, 1))), 0.0)
    inner = weighed @ weighed.T
    fit = inner @ np.linalg.inv(inner + RIDGE * np.trace(inner) / ENTITIES * np.eye(ENTITIES))
    left_out = fit / (1 - np.diag(fit))[:, None]
    found = similar.scores(np.array([[3, 1, 0], [5, 0, 1]]))
    for row, (known, label) in enumerate([(3, 1), (5, RELATIONS)]):
        expected = left_out[known] @ facts[:, label]
        np.testing.assert_allclose(found["similar_entities"][row], expected, atol=1e-3)
        np.testing.assert_allclose(found["similar_answers"][row], left_out @ facts[known, label], atol=1e-3)


def test_texts_help_an_entity_that_has_no_triples():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 6, 90)
    vectors = rng.normal(size=(6, 12))[groups] + 0.1 * rng.normal(size=(90, 12))
    vectors = np.concatenate([vectors, rng.normal(size=(6, 12))]).astype(np.float32)
    triples = np.stack([np.arange(90), np.zeros(90, dtype=int), 90 + groups], axis=1)
    train_part, valid, test = np.split(triples, [60, 75])
    model = train(Knowledge(train_part, valid, 96, 1, vectors), 60.0, 0, SMALL)
    scores = model.scores(np.stack([test[:, 0], test[:, 1], np.zeros(15, dtype=int)], axis=1))
    assert (scores.argmax(axis=1) == test[:, 2]).mean() > 0.9


def test_neighbours_are_the_most_similar_rows_and_never_the_row_itself():
    vectors = centred(np.random.default_rng(0).normal(size=(70, 8)))
    exact = vectors @ vectors.T
    np.fill_diagonal(exact, -np.inf)
    found = neighbours(vectors, 3, rows=16)
    best = np.take_along_axis(exact, found, axis=1)
    np.testing.assert_allclose(best, -np.sort(-exact, axis=1)[:, :3], atol=0.02)
    texts = ["red fox runs", "a red fox", "blue whale swims", "the blue whale", ""]
    assert lexical_neighbours(texts, 1)[:4, 0].tolist() == [1, 0, 3, 2]
    assert lexical_neighbours(["", ""], 1).shape == (2, 0)
    assert lexical_vectors(texts).shape[0] == 5
    assert not lexical_vectors(["", ""]).any()


def test_what_is_saved_is_what_is_loaded(made, tmp_path):
    model, _, test = made
    reader = CompletionReader(model, ASK)
    loaded = CompletionReader.load(tmp_path / "m", reader.save(tmp_path / "m"))
    asked = np.stack([test[:, 0], test[:, 1], np.ones(len(test), dtype=int)], axis=1)
    assert np.array_equal(loaded.made.scores(asked), model.scores(asked))
    assert loaded.curve == model.curve
    alone = CompletionReader(Completer(None, None, None, torch.eye(4), 3), ASK)
    again = CompletionReader.load(tmp_path / "t", alone.save(tmp_path / "t"))
    assert np.array_equal(
        again.made.scores(asked[:, :1] % 4 * [1, 0, 0]), alone.made.scores(asked[:, :1] % 4 * [1, 0, 0])
    )


def test_a_reader_answers_the_tasks_questions_and_no_others(made):
    reader = CompletionReader(made[0], ASK)
    examples = Examples(Prompts(["? knows [[0]]", "[[0]] likes ?"], np.array([[3], [5]])), np.array([0, 0]))
    assert reader.questions(examples).tolist() == [[3, 1, 1], [5, 0, 0]]
    wrong = Examples(Prompts(["who is [[0]] ?"], np.array([[3]])), np.array([0]))
    with pytest.raises(SetRecError, match="answers questions such as") as caught:
        reader.questions(wrong)
    assert "\n" not in str(caught.value)
