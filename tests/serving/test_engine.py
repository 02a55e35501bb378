import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_helpers import ITEMS, SLOTS, catalog, codes, fake_bundle, histories, hybrid_parts, load_fake, offline

from serving.bundle.reader import Bundle
from serving.engine.engine import Answer, Engine, Request, RequestError
from serving.retrieval.filters import Equals
from serving.retrieval.retriever import RetrieverSettings
from setrec.errors import UnknownItemError
from setrec.ragged import Ragged
from setrec.scoring.hybrid import HybridWeights, NewItemWeights

WEIGHTS = HybridWeights(
    slots=SLOTS,
    components={"transitions_near": 3.0, "transitions_forward": 1.0, "text_similarity": 2.0},
    new_items=NewItemWeights(model=0.5, components={"text_similarity": 4.0}, level=0.7),
)
PLAIN = WEIGHTS.model_copy(update={"new_items": NewItemWeights()})
MANY = 400  # items from which on a catalogue may have an index


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    out = tmp_path_factory.mktemp("engine") / "b"
    fake_bundle(out)
    return Engine(Bundle.open(out, load_fake), max_k=50)


def opened(folder, parts, items, kind):
    settings = RetrieverSettings(kind=kind, nlist=8, nprobe=8, tune_queries=20)
    more = {"catalog": catalog(items), "histories": histories(items), "item_codes": codes(items)}
    fake_bundle(folder / "b", settings, **more, **parts)
    return Engine(Bundle.open(folder / "b", load_fake), max_k=50)


@pytest.fixture(scope="module", params=["exact", "ivf", "exact, plain", "ivf, plain"])
def hybrid(request, tmp_path_factory):
    """An engine with all kinds of terms, by either route, and the parts it was made of."""
    kind, _, plain = request.param.partition(", ")
    parts = hybrid_parts(PLAIN if plain else WEIGHTS, MANY)
    return opened(tmp_path_factory.mktemp("hybrid"), parts, MANY, kind), parts


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """An engine over the small catalogue with all kinds of terms."""
    return opened(tmp_path_factory.mktemp("scored"), hybrid_parts(WEIGHTS), ITEMS, "exact")


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


@settings(max_examples=40)
@given(data=st.data())
def test_answers_are_the_ten_best_of_the_scorer_that_evaluates(hybrid, data):
    engine, parts = hybrid
    rows = data.draw(st.lists(st.integers(0, MANY - 1), min_size=1, max_size=12), label="history")
    rows += data.draw(st.lists(st.sampled_from(rows), max_size=4), label="again")
    bias = data.draw(st.sampled_from([0.0, -0.7, 0.7]), label="bias")
    kept, filtered = data.draw(st.booleans(), label="kept"), data.draw(st.booleans(), label="filtered")
    denied = data.draw(st.lists(st.integers(0, MANY - 1), max_size=3), label="denied")
    scorer, history = offline(parts, MANY, bias=bias), Ragged.of([rows], np.int64)
    exact = scorer.at(history, Ragged.of([np.arange(MANY)], np.int64))
    np.testing.assert_allclose(scorer(history)[0], exact, rtol=1e-4, atol=1e-4)
    may = np.ones(MANY, dtype=bool)
    may[denied] = False
    may[rows] &= kept
    may &= np.arange(MANY) % 2 == 0 if filtered else True
    best = np.lexsort((np.arange(MANY), np.where(may, -exact, np.inf)))[:10]
    request = Request(
        history=tuple(f"item-{row}" for row in rows), exclude_history=not kept,
        deny=tuple(f"item-{row}" for row in denied), filter=Equals(attribute="genre", equals="b") if filtered else None,
    )  # fmt: skip
    engine.state._bias = bias
    answer = engine.recommend_one(request)
    np.testing.assert_allclose([item.score for item in answer.items], exact[best], rtol=1e-4, atol=1e-5)
    assert ids(answer) == [f"item-{row}" for row in best]
    new = histories(MANY).train_counts(MANY) == 0
    for item in answer.items:
        row = int(item.item_id[5:])
        assert sum(item.shares.values()) == pytest.approx(item.score, abs=1e-9)
        assert ("repeats" in item.shares) == (bias != 0 and row in rows)
        assert ("new_item" in item.shares) == (bool(new[row]) and parts["scorer"].new_items.level != 0)
        assert set(item.shares) <= {*SLOTS, *parts["scorer"].used, "repeats", "new_item"}


def test_what_may_not_be_answered_is_not_brought_back_by_a_component(scored):
    rows = tuple(f"item-{row}" for row in histories().items[2])
    allowed = tuple(f"item-{row}" for row in range(0, ITEMS, 3))
    answer = scored.recommend_one(Request(history=rows, k=50, allow=allowed))
    assert set(ids(answer)) == set(allowed) - set(rows)
    assert any("transitions_near" in item.shares for item in answer.items)


def test_a_request_beside_others_gets_what_it_gets_alone(scored):
    requests = [Request(user_id=f"user-{user}", k=5) for user in range(8)]
    for request, answer in zip(requests, scored.recommend(requests), strict=True):
        assert ids(answer) == ids(scored.recommend_one(request))


def test_equal_scores_come_in_the_order_of_the_catalogue(tmp_path):
    table = codes()
    table[:] = table[0]
    fake_bundle(tmp_path / "b", item_codes=table)
    answer = Engine(Bundle.open(tmp_path / "b", load_fake)).recommend_one(Request(history=("item-3",), k=10))
    assert ids(answer) == [f"item-{row}" for row in (0, 1, 2, *range(4, 11))]


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
        (Request(), RequestError, "history and user_id"),
        (Request(history=("item-1",), user_id="user-1"), RequestError, "history and user_id"),
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
