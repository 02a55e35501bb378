"""The hybrid score: its components against their definitions, its two routes against each other."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import small_model

from setrec.models.item_tokens import unit_rows
from setrec.ragged import Ragged
from setrec.scoring import registry
from setrec.scoring.hybrid import HybridScorer, HybridWeights, NewItemWeights, load_components
from setrec.scoring.item_graph import GraphComponent, ItemGraph, Reading, scatter
from setrec.scoring.model_scores import ModelScores, model_scorer
from setrec.scoring.registry import ComponentKind, Sources
from setrec.scoring.text_similarity import TextFeatures, text_component
from setrec.scoring.transitions import TransitionSettings, transition_component, transition_probabilities

ITEMS = 40
HISTORIES = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=12), min_size=1, max_size=4)


def random_graph(seed: int, density: float = 0.2) -> sp.csr_matrix:
    return sp.random(ITEMS, ITEMS, density, random_state=seed, dtype=np.float64).tocsr()


def defined(graph: np.ndarray, reading: Reading, history: list[int]) -> np.ndarray:
    """The component by its definition, float (I,)."""
    near = history[-reading.last :]
    weights = np.array([reading.decay ** (len(near) - 1 - a) for a in range(len(near))])
    total = np.zeros(len(graph))
    for item, weight in zip(near, weights / weights.sum() if len(near) else weights, strict=True):
        total += weight * graph[item]
    total[history] = 0.0
    return total ** (1 / reading.power)


@given(HISTORIES, st.sampled_from([Reading(last=3, decay=0.5), Reading(power=4), Reading(last=1, power=1)]))
def test_a_graph_component_is_the_power_mean_of_its_arcs_and_nothing_for_items_of_the_history(rows, reading):
    matrix = random_graph(1)
    component = GraphComponent(ItemGraph.of(matrix), reading)
    plain = matrix.toarray()
    np.fill_diagonal(plain, 0.0)
    table = scatter(*component.entries(Ragged.of(rows)), ITEMS)
    expected = np.stack([defined(plain, reading, row) for row in rows])
    np.testing.assert_allclose(table, expected, atol=1e-6)


def test_transitions_are_one_and_two_steps_of_the_probabilities():
    rng = np.random.default_rng(0)
    rows = Ragged.of([rng.integers(0, ITEMS, rng.integers(0, 9)) for _ in range(50)])
    s = TransitionSettings(reach=3, fade=0.5, shrink=2.0, damping=0.5, arcs=ITEMS)
    p = transition_probabilities(rows, ITEMS, s).toarray()
    whole = p + 0.5 * p @ p
    np.fill_diagonal(whole, 0.0)
    component = transition_component(rows, ITEMS, s, Reading())
    targets, shares = component.arcs.take(np.arange(ITEMS))
    np.testing.assert_allclose(scatter(targets, shares, ITEMS), whole, atol=1e-6)
    kept = transition_component(rows, ITEMS, s.model_copy(update={"arcs": 4}), Reading())
    assert kept.arcs.take(np.arange(ITEMS))[0].lengths.max() <= 4


def test_text_similarity_is_nearer_to_one_item_that_matches_than_to_all_that_match_a_little():
    lexical = sp.csr_matrix(np.array([[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [0.5, 0.5, 0.7071]], np.float32))
    component = text_component(TextFeatures(lexical))
    scores = scatter(*component.entries(Ragged.of([[0, 1]])), 4)[0]
    assert scores[2] == pytest.approx(0.5**0.25)
    assert scores[3] == pytest.approx(0.5)
    assert scores[0] == scores[1] == 0
    with_sentences = TextFeatures(lexical, unit_rows(np.eye(4, 5, dtype=np.float32)))
    assert len(text_component(with_sentences, kept=1).arcs.take(np.arange(4))[0].values) <= 4


@pytest.fixture(scope="module")
def scorer(features) -> HybridScorer:
    model = small_model(features, "qwen3", "fused", max_items=6, repeat_bias=True, history_skip=(0.5,))
    model.repeat_logit.data.fill_(-0.2)
    components = {
        "transitions_near": GraphComponent(ItemGraph.of(random_graph(2)), Reading(last=4, decay=0.8)),
        "text_similarity": GraphComponent(ItemGraph.of(random_graph(3)), Reading(power=4)),
    }
    weights = HybridWeights(
        slots=dict.fromkeys(model.kinds, 0.7),
        components={"transitions_near": 3.0},
        new_items=NewItemWeights(model=0.5, components={"text_similarity": 6.0}, level=-1.5),
    )
    return HybridScorer(ModelScores(model, weights.slots), components, weights, np.arange(ITEMS) % 7 == 0)


@given(rows=HISTORIES)
@settings(max_examples=50)
def test_both_routes_give_the_same_scores_whoever_else_is_in_the_batch(scorer, rows):
    history = Ragged.of(rows)
    dense = scorer(history)
    everything = Ragged.of([range(ITEMS)] * len(rows))
    np.testing.assert_allclose(scorer.at(history, everything).reshape(dense.shape), dense, rtol=1e-4, atol=1e-3)
    alone = np.concatenate([scorer(Ragged.of([row])) for row in rows])
    np.testing.assert_allclose(alone, dense, rtol=1e-4, atol=1e-3)
    few = Ragged.of([[5, 0], *[[]] * (len(rows) - 1)])
    np.testing.assert_allclose(scorer.at(history, few), dense[0, [5, 0]], rtol=1e-4, atol=1e-3)


def test_the_score_is_the_sum_of_its_terms(scorer):
    history, items = Ragged.of([[1, 2, 2, 14]]), Ragged.of([range(ITEMS)])
    parts = scorer.parts(history, items)
    new = scorer.new
    assert set(parts) == {*scorer.model.model.kinds, *scorer.components, "new_item", "repeats"}
    assert (parts["text_similarity"][~new] == 0).all()  # its weight is that of new items alone
    assert (parts["new_item"] == np.where(new, -1.5, 0.0)).all()
    assert np.flatnonzero(parts["repeats"]).tolist() == [1, 2, 14]
    plain = model_scorer(scorer.model.model, scorer.weights.slots)(history)[0]
    own = sum(parts[kind] for kind in scorer.model.model.kinds) + parts["repeats"]
    np.testing.assert_allclose(own[~new], plain[~new], rtol=1e-4, atol=1e-3)


def test_without_a_model_only_components_score(scorer):
    bare = HybridScorer(None, scorer.components, scorer.weights, scorer.new)
    history = Ragged.of([[1, 2], []])
    rows = Ragged.of([range(ITEMS)] * 2)
    np.testing.assert_allclose(bare.at(history, rows).reshape(2, ITEMS), bare(history), atol=1e-5)
    assert (bare(history)[1] == np.where(scorer.new, -1.5, 0)).all()


def test_components_come_back_from_files_and_damage_is_refused(tmp_path, scorer):
    for name, component in scorer.components.items():
        component.save(tmp_path / f"{name}.safetensors")
    again = load_components(tuple(scorer.components), tmp_path)
    history = Ragged.of([[1, 2, 3], [], [39]])
    for name, component in scorer.components.items():
        (places, values), (expected, theirs) = again[name].entries(history), component.entries(history)
        assert places.values.tolist() == expected.values.tolist()
        assert values.tolist() == theirs.tolist()
    broken = ItemGraph(Ragged(np.array([99], np.int32), np.array([0, 1], np.int64)), np.ones(1, np.float32))
    GraphComponent(broken, Reading()).save(tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match="not a table of arcs"):
        GraphComponent.load(tmp_path / "broken.safetensors")


def test_one_more_component_takes_part_once_it_is_registered():
    kind = ComponentKind(
        "always_next", lambda s: GraphComponent(ItemGraph.of(sp.eye(s.items, k=1).tocsr()), Reading(last=1))
    )
    registry.register(kind)
    try:
        weights = HybridWeights(components={"always_next": 2.0})
        scorer = HybridScorer.build(None, weights, np.zeros(5, bool), Sources(Ragged.of([]), 5))
        assert scorer(Ragged.of([[0, 2]]))[0].tolist() == [0, 0, 0, 2, 0]
        with pytest.raises(ValueError, match="always_next"):
            registry.register(kind)
    finally:
        registry.unregister("always_next")


def test_a_long_history_pads_only_histories_of_similar_length(features):
    model = small_model(features, "qwen3", "fused", max_items=40)
    histories = Ragged.of([[row % ITEMS for row in range(40 if user == 5 else 1 + user % 3)] for user in range(200)])
    read, pad = [], model.whole
    model.whole = lambda rows: read.append(pad(rows)[0].numel()) or pad(rows)
    term = ModelScores(model, dict.fromkeys(model.kinds, 1.0))
    scores = term.dense(histories)
    assert sum(read) < 200 * 40 / 3
    alone = np.stack([term.dense(histories.take(np.array([user])))[0] for user in range(0, 200, 19)])
    np.testing.assert_allclose(scores[::19], alone, atol=1e-4)
