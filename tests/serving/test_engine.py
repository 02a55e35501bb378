import numpy as np
import pytest
from serving_helpers import ITEMS, codes, fake_bundle, histories, load_fake
from setrec.walk import Walk, Walked, WalkSettings

from serving.bundle import Bundle
from serving.engine import Answer, Engine, Request, RequestError
from setrec.errors import UnknownItemError
from setrec.ragged import Ragged


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    out = tmp_path_factory.mktemp("engine") / "b"
    fake_bundle(out)
    return Engine(Bundle.open(out, load_fake), max_k=50)


@pytest.fixture(scope="module")
def walking(tmp_path_factory):
    """An engine whose bundle has transitions."""
    out = tmp_path_factory.mktemp("walking") / "b"
    fake_bundle(out, walk=Walk.of(histories().items, ITEMS, WalkSettings(weight=3.0, arcs=12, shrink=0.5)))
    return Engine(Bundle.open(out, load_fake), max_k=50)


def ids(answer):
    return [item.item_id for item in answer.items]


def test_the_answer_is_the_definition_worked_out_by_hand(engine):
    table, rows = codes().astype(np.float64), [3, 5, 8]
    weights = np.r_[np.full(6, 1.0), np.full(8, 0.5)]
    scores = table @ (table[rows].mean(axis=0) * weights)
    scores[rows] = -np.inf
    answer = engine.recommend_one(Request(history=("item-3", "item-5", "item-8"), k=7))
    best = np.argsort(-scores)[:7]
    assert ids(answer) == [f"item-{row}" for row in best]
    np.testing.assert_allclose([item.score for item in answer.items], scores[best], rtol=1e-5)
    assert answer.items[0].title == f"Title «{best[0]}»"
    assert answer.items[0].attributes == {"genre": ["a"] if best[0] % 2 else ["a", "b"]}
    assert answer.model_version == engine.bundle.model_version


def test_shares_of_the_slot_kinds_sum_to_the_score(engine):
    for item in engine.recommend_one(Request(user_id="user-1", k=50)).items:
        assert set(item.shares) == {"collaborative", "semantic"}
        assert sum(item.shares.values()) == pytest.approx(item.score, abs=1e-9)


def test_a_known_user_is_their_whole_history(engine):
    for user, rows in zip(histories().user_ids, histories().items, strict=True):
        if len(rows):
            spelled_out = Request(history=tuple(f"item-{row}" for row in rows))
            assert ids(engine.recommend_one(Request(user_id=user))) == ids(engine.recommend_one(spelled_out))


def test_the_history_is_left_out_or_not_as_asked(engine):
    history = tuple(f"item-{row}" for row in range(20))
    assert not set(ids(engine.recommend_one(Request(history=history, k=40)))) & set(history)
    assert set(ids(engine.recommend_one(Request(history=history, k=50, exclude_history=False)))) & set(history)


@pytest.mark.parametrize("bias", [-0.7, 0.7])
def test_items_of_the_history_are_scored_with_what_the_model_adds_for_them(engine, bias, monkeypatch):
    monkeypatch.setattr(engine.bundle.model, "returns", bias / 1.5, raising=False)
    table, rows = codes().astype(np.float64), [1, 2, 30, 31, 32, 33, 34]
    read, weights = rows[-5:], np.r_[np.full(6, 1.0), np.full(8, 0.5)]
    scores = table @ (table[read].mean(axis=0) * weights)
    scores[read] += bias
    scores[31] = -np.inf  # denied
    history = tuple(f"item-{row}" for row in rows)
    answer = engine.recommend_one(Request(history=history, k=12, exclude_history=False, deny=("item-31",)))
    best = np.argsort(-scores)[:12]
    assert ids(answer) == [f"item-{row}" for row in best]
    np.testing.assert_allclose([item.score for item in answer.items], scores[best], rtol=1e-5)
    for item in answer.items:
        assert sum(item.shares.values()) == pytest.approx(item.score, abs=1e-9)
        assert ("returns" in item.shares) == (int(item.item_id[5:]) in read)


def walked_scores(rows, bias=0.0):
    """Scores of all items with transitions, by the scorer that rankings are made with."""
    table, weights = codes().astype(np.float64), np.r_[np.full(6, 1.0), np.full(8, 0.5)]

    def plain(history):
        scores = np.stack([table @ (table[h[-5:]].mean(axis=0) * weights) for h in history])
        for score, read in zip(scores, history, strict=True):
            score[read[-5:]] += bias
        return scores

    walk = Walk.of(histories().items, ITEMS, WalkSettings(weight=3.0, arcs=12, shrink=0.5))
    return Walked(plain, walk)(Ragged.of([rows]))[0]


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("bias", [0.0, -0.7])
def test_what_followed_what_is_added_as_in_a_ranking(walking, kept, bias, monkeypatch):
    monkeypatch.setattr(walking.bundle.model, "returns", bias / 1.5, raising=False)
    rows, denied = [int(row) for row in histories().items[2]], 7
    scores = walked_scores(rows, bias)
    scores[[denied] if kept else [denied, *rows]] = -np.inf
    request = Request(
        history=tuple(f"item-{row}" for row in rows), k=30, exclude_history=not kept, deny=(f"item-{denied}",)
    )
    answer = walking.recommend_one(request)
    best = np.argsort(-scores, kind="stable")[:30]
    assert ids(answer) == [f"item-{row}" for row in best]
    np.testing.assert_allclose([item.score for item in answer.items], scores[best], rtol=1e-4)
    assert sum("transitions" in item.shares for item in answer.items) >= 5
    for item in answer.items:
        assert sum(item.shares.values()) == pytest.approx(item.score, abs=1e-9)
        assert ("returns" in item.shares) == (bias != 0 and int(item.item_id[5:]) in rows[-5:])


def test_what_may_not_be_answered_is_not_brought_back_by_a_walk(walking):
    rows = tuple(f"item-{row}" for row in histories().items[2])
    allowed = tuple(f"item-{row}" for row in range(0, ITEMS, 3))
    answer = walking.recommend_one(Request(history=rows, k=50, allow=allowed))
    assert set(ids(answer)) == set(allowed) - set(rows)
    assert any("transitions" in item.shares for item in answer.items)


def test_a_request_beside_others_gets_what_it_gets_alone_with_transitions_too(walking):
    requests = [Request(user_id=f"user-{user}", k=5) for user in range(8)]
    for request, answer in zip(requests, walking.recommend(requests), strict=True):
        assert ids(answer) == ids(walking.recommend_one(request))


def test_k_items_come_when_k_exist_and_all_there_are_otherwise(engine):
    history = tuple(f"item-{row}" for row in range(ITEMS - 4))
    assert len(engine.recommend_one(Request(history=history, k=4)).items) == 4
    assert len(engine.recommend_one(Request(history=history, k=10)).items) == 4
    everything = tuple(f"item-{row}" for row in range(ITEMS))
    assert engine.recommend_one(Request(history=everything, k=10)).items == []


def test_a_repeated_item_is_excluded_once(engine):
    answer = engine.recommend_one(Request(history=("item-1",) * 500, k=50))
    assert len(set(ids(answer))) == 50
    assert "item-1" not in ids(answer)


@pytest.mark.parametrize(
    ("request_", "error", "said"),
    [
        (Request(history=("item-1", "nope", "nor this")), UnknownItemError, "'nope'"),
        (Request(history=()), RequestError, "empty"),
        (Request(), RequestError, "history or user_id"),
        (Request(history=("item-1",), user_id="user-1"), RequestError, "history or user_id"),
        (Request(user_id="user-1", k=0), RequestError, "between 1 and 50"),
        (Request(user_id="user-1", k=51), RequestError, "between 1 and 50"),
    ],
)
def test_a_request_that_cannot_be_answered_says_why_and_harms_no_other(engine, request_, error, said):
    good = Request(user_id="user-1")
    first, bad, last = engine.recommend([good, request_, good])
    assert isinstance(bad, error)
    assert said in str(bad)
    assert "\n" not in str(bad)
    assert isinstance(first, Answer)
    assert first == last == engine.recommend_one(good)
    assert isinstance(engine.recommend([request_])[0], error)


def test_a_batch_is_its_requests_one_by_one(engine):
    requests = [Request(user_id=f"user-{u % 8}", k=1 + u, exclude_history=u % 3 > 0) for u in range(40)]
    for alone, together in zip(map(engine.recommend_one, requests), engine.recommend(requests), strict=True):
        assert isinstance(together, Answer)
        assert ids(alone) == ids(together)
        np.testing.assert_allclose([i.score for i in alone.items], [i.score for i in together.items], rtol=1e-5)


def test_no_request_at_all_is_no_answer_at_all(engine):
    assert engine.recommend([]) == []


def test_k_is_bounded_by_the_catalogue(engine):
    assert Engine(engine.bundle, max_k=10_000).max_k == ITEMS
