"""What types of events count: read as history, passed over, or held against an item."""

import sqlite3
from dataclasses import replace

import numpy as np
import pytest
from serving_helpers import ITEMS, SLOTS, catalog, fake_bundle, histories, hybrid_parts, load_fake, offline, texts_of
from starlette.testclient import TestClient

from serving.api.application import create_app
from serving.bundle.reader import Bundle
from serving.engine.acceptance import accept
from serving.engine.engine import Engine, Request
from serving.runtime.models import Live
from serving.runtime.settings import ServingSettings
from serving.stores import Event, open_store
from setrec.ragged import Ragged
from setrec.scoring.hybrid import HybridWeights, build_components
from setrec.scoring.registry import Sources

WEIGHTS = HybridWeights(slots=SLOTS, components={"transitions_near": 3.0, "text_similarity": 2.0})
TYPES = {"dislike": -0.5, "view": 0.0}


@pytest.fixture(scope="module")
def parts():
    return hybrid_parts(WEIGHTS)


@pytest.fixture
def engine(tmp_path, parts):
    fake_bundle(tmp_path / "b", **parts)
    store = open_store(str(tmp_path / "live.db"))
    yield Engine(Bundle.open(tmp_path / "b", load_fake), store=store, max_k=ITEMS, event_weights=TYPES)
    store.close()


def tell(engine, *events):
    """Events of one user in the order given: an item's number and a type."""
    engine.store.append([Event("u", f"item-{n}", 1000.0 + at, None, type_) for at, (n, type_) in enumerate(events)])


def scores(answer):
    return {item.item_id: item.score for item in answer.items}


def test_types_that_are_not_named_are_read_and_those_of_weight_zero_are_passed_over(engine):
    tell(engine, (3, "purchase"), (4, "view"), (5, ""))
    given = engine.recommend_one(Request(history=("item-3", "item-5")))
    assert engine.recommend_one(Request(user_id="u")).items == given.items


def test_a_disliked_item_is_never_answered_and_what_is_like_it_sinks_by_its_components(engine, parts):
    tell(engine, (3, ""), (5, ""), (8, "dislike"))
    answer = engine.recommend_one(Request(user_id="u", k=ITEMS, exclude_history=False))
    found, scorer = scores(answer), offline(parts)
    assert "item-8" not in found
    every = Ragged.of([np.arange(ITEMS)], np.int64)
    plain = scorer.at(Ragged.of([[3, 5]], np.int64), every)
    like = scorer.parts(Ragged.of([[8]], np.int64), every)
    expected = plain - 0.25 * (  # half of one event against two that are read
        like["transitions_near"] + like["text_similarity"]
    )
    for item, score in found.items():
        assert score == pytest.approx(expected[int(item[5:])], abs=1e-4)
    assert any(item.shares.get("text_similarity", 0) < 0 for item in answer.items)


def test_the_last_event_of_an_item_decides(engine):
    tell(engine, (3, "dislike"), (5, ""), (3, "purchase"))
    answer = engine.recommend_one(Request(user_id="u"))
    assert answer.items == engine.recommend_one(Request(history=("item-5", "item-3"))).items


def test_one_who_only_dislikes_gets_popularity_without_those_items(engine):
    first = engine.recommend_one(Request(user_id="stranger", k=3)).items
    tell(engine, (int(first[0].item_id[5:]), "dislike"))
    answer = engine.recommend_one(Request(user_id="u", k=2))
    assert answer.fallback.source == "popularity"
    assert [item.item_id for item in answer.items] == [item.item_id for item in first[1:]]


def test_the_bundle_and_the_store_mean_the_same_by_a_type_as_an_evaluation_does(tmp_path):
    weights = {"view": 1.0, "purchase": 4.0, "dislike": -0.5}
    kinds = list(weights)
    rng, past = np.random.default_rng(2), histories()
    types = rng.choice(3, len(past.items.values), p=[0.5, 0.3, 0.2])
    events = Ragged(past.items.values, past.items.offsets, np.array(list(weights.values()), np.float32)[types])
    weighed = replace(past, items=events)
    sources = Sources(events, ITEMS, texts_of(catalog())[0])
    made = {"scorer": WEIGHTS, "components": build_components(WEIGHTS.used, sources)}
    fake_bundle(tmp_path / "b", **made, histories=weighed, event_weights=weights)
    store = open_store(str(tmp_path / "live.db"))
    engine = Engine(Bundle.open(tmp_path / "b", load_fake), store=store, max_k=ITEMS)
    accept(engine)
    scorer = offline(made)
    assert not np.allclose(scorer(events.take([0])), scorer(past.items.take([0])))
    for user in range(4):
        start, end = events.offsets[user], events.offsets[user + 1]
        told = [(int(item), kinds[kind]) for item, kind in zip(events[user], types[start:end], strict=True)]
        live = [Event(f"live-{user}", f"item-{n}", 9.0 + at, None, kind) for at, (n, kind) in enumerate(told)]
        store.append(live)
        answers = [
            engine.recommend_one(Request(user_id=name, k=ITEMS, exclude_history=False))
            for name in (f"user-{user}", f"live-{user}")
        ]
        assert answers[0].items == answers[1].items
        expected = scorer(events.take([user]))[0]
        against = {item for item, kind in dict(told).items() if kind == "dislike"}
        assert len(answers[0].items) == ITEMS - len(against)
        for item, score in scores(answers[0]).items():
            assert score == pytest.approx(expected[int(item[5:])], abs=1e-4)
    store.close()


def test_a_type_travels_over_http_into_the_history(engine):
    client = TestClient(create_app(Live(engine, engine.store), ServingSettings(auth="off")))
    events = [{"user_id": "u", "item_id": "item-3", "type": "purchase", "time": 5.0}, {"user_id": "u", "item_id": "x"}]
    assert client.post("/v1/events", json={"events": events}).status_code == 200
    past = client.get("/v1/users/u/history").json()["items"]
    assert [(item["item_id"], item["type"]) for item in past] == [("x", None), ("item-3", "purchase")]
    for kind in ("AddToCart", "add-to-cart", "5", "購入"):  # any that training may have named, except with blanks
        kept = client.post("/v1/events", json={"events": [{"user_id": "v", "item_id": "x", "type": kind}]})
        assert kept.status_code == 200
    bad = client.post("/v1/events", json={"events": [{"user_id": "u", "item_id": "x", "type": "Not a type"}]})
    assert bad.status_code == 422


def test_a_file_of_the_format_before_is_read_and_written_on(tmp_path):
    with sqlite3.connect(tmp_path / "old.db") as old:
        old.executescript(
            "CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, user_id TEXT NOT NULL, item_id TEXT NOT NULL,"
            " time REAL NOT NULL, key TEXT); CREATE INDEX history ON events (user_id, time, seq, item_id);"
            "CREATE UNIQUE INDEX once ON events (user_id, key) WHERE key IS NOT NULL;"
            "CREATE TABLE changes (seq INTEGER PRIMARY KEY AUTOINCREMENT, subject TEXT NOT NULL, id TEXT NOT NULL,"
            " kind TEXT NOT NULL, payload TEXT, UNIQUE (subject, id));"
            "INSERT INTO events (user_id, item_id, time) VALUES ('u', 'a', 1.0);"
            "PRAGMA user_version = 1; PRAGMA application_id = 1936028786;"
        )
    old.close()
    for _ in range(2):
        store = open_store(str(tmp_path / "old.db"))
        store.append([Event("u", "b", 2.0, "once", "dislike")])
        assert store.latest(["u"], 9)[0].events == [("a", ""), ("b", "dislike")]
        store.close()
