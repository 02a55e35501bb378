"""Embeddings of knowledge graphs: scores against the library's, losses against the plain softmax."""

import numpy as np
import pytest
import torch
from torch_geometric.nn import ComplEx, DistMult

from nodetok import kge
from nodetok.kge import (
    KgeRanker,
    KgeSettings,
    Questions,
    filtered_mrr,
    side_by_side,
    train_ensemble,
    train_kge,
)
from setrec.errors import DataError
from setrec.ragged import Ragged

ENTITIES, RELATIONS = 12, 2


def ring():
    """Relation 0 leads to the next of twelve entities, relation 1 to the opposite one."""
    here = np.arange(ENTITIES)
    steps = [np.stack([here, np.full(ENTITIES, r), (here + by) % ENTITIES], axis=1) for r, by in ((0, 1), (1, 6))]
    return np.concatenate(steps)


def untrained(kind="distmult"):
    torch.manual_seed(0)
    ranker = KgeRanker(ENTITIES, RELATIONS, 8, kind)
    with torch.no_grad():
        for weight in ranker.parameters():
            weight.normal_()
    return ranker


def library(ranker):
    """PyTorch Geometric's model with the same parameters."""
    if ranker.kind == "distmult":
        model = DistMult(ENTITIES, RELATIONS, 8)
        tables = {"node_emb": ranker.entity.weight, "rel_emb": ranker.relation.weight}
    else:
        model = ComplEx(ENTITIES, 2 * RELATIONS, 4)
        (node, node_im), (rel, rel_im) = ranker.entity.weight.chunk(2, 1), ranker.relation.weight.chunk(2, 1)
        tables = {"node_emb": node, "node_emb_im": node_im, "rel_emb": rel, "rel_emb_im": rel_im}
    model.load_state_dict({f"{name}.weight": table.detach() for name, table in tables.items()})
    return model


@pytest.mark.parametrize("direction", [0, 1])
@pytest.mark.parametrize("kind", ["distmult", "complex"])
def test_scores_are_the_librarys_for_tails_and_for_heads(kind, direction):
    ranker = untrained(kind)
    model = library(ranker)
    known, relation, every = np.array([0, 5, 11]), np.array([1, 0, 1]), torch.arange(ENTITIES)
    queries = np.stack([known, relation, np.full(3, direction)], axis=1)
    found = ranker.scores(queries)
    rows = ranker.relation_of(torch.from_numpy(queries))
    assert rows.tolist() == [r + direction * RELATIONS * (kind == "complex") for r in relation]
    for row, (node, r) in enumerate(zip(known, rows.tolist(), strict=True)):
        own, rel = torch.full((ENTITIES,), int(node)), torch.full((ENTITIES,), r)
        with torch.no_grad():
            # The question for the head has a relation of its own in ComplEx, and the score is symmetric in DistMult.
            expected = model(own, rel, every)
        np.testing.assert_allclose(found[row], expected.numpy(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["distmult", "complex"])
def test_cubed_norms_are_the_sum_over_moduli(kind):
    ranker, triples = untrained(kind), torch.tensor([[0, 1, 5], [3, 0, 3]])
    with torch.no_grad():
        found = float(ranker.cubed_norms(*triples.T))
        rows = [ranker.entity(triples[:, 0]), ranker.relation(triples[:, 1]), ranker.entity(triples[:, 2])]
    flat = torch.cat(rows).numpy().astype(np.float64)
    moduli = np.abs(flat) if kind == "distmult" else np.abs(flat[:, :4] + 1j * flat[:, 4:])
    assert found == pytest.approx((moduli**3).sum(), rel=1e-5)


def test_complex_distinguishes_directions_and_distmult_does_not():
    here = np.arange(ENTITIES)
    triples = np.stack([here, np.zeros(ENTITIES, dtype=int), (here + 1) % ENTITIES], axis=1)
    asked = np.stack([here, np.zeros(ENTITIES, dtype=int), np.zeros(ENTITIES, dtype=int)], axis=1)
    right = {}
    for kind in ("distmult", "complex"):
        settings = KgeSettings(kind=kind, width=16, epochs=40, patience=40, decay=0.0)
        made = train_kge(triples, ENTITIES, 1, triples, 0, settings)
        right[kind] = (made.scores(asked).argmax(axis=1) == triples[:, 2]).mean()
    assert right["complex"] == 1.0
    assert right["distmult"] < 0.8


def test_every_question_stands_once_with_all_its_answers():
    triples = np.array([[0, 1, 2], [0, 1, 3], [4, 1, 2], [0, 0, 2]])
    made = Questions.of(triples)
    found = {tuple(a): sorted(own.tolist()) for a, own in zip(made.rows.tolist(), made.answers, strict=True)}
    assert found == {
        (0, 1, 0): [2, 3], (4, 1, 0): [2], (0, 0, 0): [2], (2, 1, 1): [0, 4], (3, 1, 1): [0], (2, 0, 1): [0],
    }  # fmt: skip
    loose = Questions.of(np.array([[0, 1, 2], [2, 1, 3]]), directed=False)
    found = {tuple(a): sorted(own.tolist()) for a, own in zip(loose.rows.tolist(), loose.answers, strict=True)}
    assert found == {(0, 1, 0): [2], (2, 1, 0): [0, 3], (3, 1, 0): [2]}
    np.testing.assert_array_equal(made.take(np.array([2, 0])).rows, made.rows[[2, 0]])


@pytest.mark.parametrize("at_once", [1, 1 << 20])
def test_the_loss_of_several_right_answers_and_its_gradients_are_the_plain_softmaxs(monkeypatch, at_once):
    monkeypatch.setattr(kge, "LOGITS_AT_ONCE", at_once)
    torch.manual_seed(0)
    owner, answer = torch.tensor([0, 0, 1, 3, 3, 3]), torch.tensor([4, 1, 4, 0, 1, 2])
    queries, entities = (torch.randn(4, 6, requires_grad=True), torch.randn(7, 6, requires_grad=True))
    loss = kge._AnswersCrossEntropy.apply(queries, entities, owner, answer, torch.float32)
    found = (loss, *torch.autograd.grad(3 * loss, (queries, entities)))
    plain = -(queries @ entities.T).log_softmax(dim=1)[owner, answer].sum()
    for own, expected in zip(found, (plain, *torch.autograd.grad(3 * plain, (queries, entities))), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


def test_filtered_ranks_are_those_of_a_plain_loop():
    ranker = untrained()
    with torch.no_grad():
        for weight in ranker.parameters():
            weight.copy_(weight.round())
    asked = np.array([[0, 0, 0], [3, 1, 0], [7, 0, 1]])
    right = np.array([1, 9, 6])
    also = [[1, 4], [9], [6, 0, 2]]
    scores, expected = ranker.scores(asked), []
    for own, answer, known in zip(scores, right, also, strict=True):
        others = [own[c] for c in range(ENTITIES) if c not in known]
        expected.append(1 / (1 + sum(s > own[answer] for s in others) + 0.5 * sum(s == own[answer] for s in others)))
    assert filtered_mrr(ranker, asked, right, Ragged.of(also)) == pytest.approx(np.mean(expected))
    with torch.no_grad():
        ranker.entity.weight.fill_(float("nan"))
    assert filtered_mrr(ranker, asked, right, Ragged.of(also)) <= 1 / (ENTITIES - 2)


def test_a_ring_is_learned_by_heart_and_the_same_seed_gives_the_same_weights():
    triples = ring()
    settings = KgeSettings(width=16, epochs=30, dropout=0.0, decay=0.0, precision="float32")
    one, two = (train_kge(triples, ENTITIES, RELATIONS, triples[:8], 3, settings) for _ in range(2))
    states = [ranker.state_dict() for ranker in (one, two)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    found = one.scores(np.array([[h, r, 0] for h, r, _ in triples.tolist()]))
    # It cannot tell the next entity from the one before: both are answers to one question.
    top = np.argsort(-found[:ENTITIES], axis=1)[:, :2]
    assert np.mean([t in own for t, own in zip(triples[:ENTITIES, 2], top, strict=True)]) > 0.9


def test_decay_keeps_embeddings_small():
    norms = []
    for decay in (0.0, 1.0):
        settings = KgeSettings(width=16, epochs=10, patience=10, decay=decay)
        ranker = train_kge(ring(), ENTITIES, RELATIONS, ring()[:8], 3, settings)
        norms.append(float(ranker.entities.norm().detach()))
    assert norms[1] < norms[0]


def test_no_time_ends_the_training_and_leaves_a_model():
    triples, told = ring(), []
    settings = KgeSettings(width=8, epochs=500, patience=500)
    made = train_kge(
        triples, ENTITIES, RELATIONS, triples[:4], 0, settings, lambda *said: told.append(said), seconds=0.0
    )
    assert len(told) == 1
    assert np.isfinite(made.scores(np.array([[0, 0, 0]]))).all()


def test_the_epoch_of_the_best_validation_is_kept_and_told():
    triples, told = ring(), []
    settings = KgeSettings(width=8, epochs=6, patience=2)
    train_kge(triples, ENTITIES, RELATIONS, triples[:4], 0, settings, lambda *said: told.append(said))
    assert told == [(epoch, 6) for epoch in range(1, len(told) + 1)]
    told.clear()
    train_kge(triples, ENTITIES, RELATIONS, triples[:0], 0, settings, lambda *said: told.append(said))
    assert len(told) == 6


def test_what_cannot_be_used_is_refused_in_one_line():
    triples = ring()
    wrong = [
        ("no triples", (triples[:0], ENTITIES, RELATIONS, triples, 0)),
        ("triples must lie within", (triples, 5, RELATIONS, triples, 0)),
        ("validation triples must be", (triples, ENTITIES, RELATIONS, triples[:, :2], 0)),
        ("triples must be integers", (triples * 1.0, ENTITIES, RELATIONS, triples, 0)),
    ]
    for said, arguments in wrong:
        with pytest.raises(DataError, match=said) as caught:
            train_kge(*arguments)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="queries must lie within"):
        untrained().scores(np.array([[0, 0, 2]]))


@pytest.mark.parametrize("kind", ["distmult", "complex"])
def test_embeddings_side_by_side_score_like_the_mean_of_their_scores(kind):
    members = []
    for seed in range(3):
        ranker = untrained(kind)
        with torch.no_grad():
            for weight in ranker.parameters():
                weight.add_(seed)
        members.append(ranker)
    queries = np.array([[0, 1, 0], [3, 0, 1]])
    expected = np.mean([member.scores(queries) for member in members], axis=0)
    np.testing.assert_allclose(side_by_side(members).scores(queries), expected, rtol=1e-5, atol=1e-5)


def test_an_ensemble_has_as_many_members_as_time_allows():
    s = KgeSettings(kind="complex", width=8, epochs=3)
    valid = ring()[:2]
    made = train_ensemble(ring(), ENTITIES, RELATIONS, valid, 0, s, members=3)
    assert made.width == 24
    alone = train_kge(ring(), ENTITIES, RELATIONS, valid, 0, s)
    torch.testing.assert_close(made.entities[:, :4], alone.entities[:, :4])
    assert not torch.equal(made.entities[:, :4], made.entities[:, 4:8])
    assert train_ensemble(ring(), ENTITIES, RELATIONS, valid, 0, s, members=3, seconds=0.0).width == 8
