"""Rule sets, availability, search, similar items and explanations over HTTP, on replicas that share a store."""

import time

import pytest
from serving_helpers import ITEMS, FakeText, codes, fake_bundle, hybrid_parts, load_fake
from starlette.testclient import TestClient

from serving.api.application import create_app
from serving.bundle.reader import Bundle
from serving.engine.engine import Engine
from serving.runtime.models import Live
from serving.runtime.settings import ServingSettings
from serving.stores import open_store
from setrec.scoring.hybrid import HybridWeights

WEIGHTS = HybridWeights(slots={"collaborative": 1.0, "semantic": 0.5}, components={"transitions_near": 3.0})
HISTORY = {"history": ["item-3", "item-5"]}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    out = tmp_path_factory.mktemp("product") / "b"
    fake_bundle(out, item_codes=codes(), **hybrid_parts(WEIGHTS))
    return Bundle.open(out, load_fake)


@pytest.fixture
def replicas(bundle, tmp_path):
    """Two clients of two engines over one store, and the engines."""
    store = open_store(str(tmp_path / "live.db"))
    engines = [Engine(bundle, store=store, encode=FakeText(), max_k=50) for _ in range(2)]
    settings = ServingSettings(auth="off")
    yield [TestClient(create_app(Live(engine, store), settings)) for engine in engines], engines
    store.close()


def ids(response):
    assert response.status_code == 200, response.text
    return [item["item_id"] for item in response.json()["items"]]


def code_of(response, status):
    assert response.status_code == status, response.text
    return response.json()["error"]["code"]


def test_a_rule_set_is_put_applied_by_every_replica_listed_and_removed(replicas):
    (one, other), (_, second) = replicas
    plain = ids(one.post("/v1/recommend", json=HISTORY))
    body = {"pins": [{"item_id": "item-50", "position": 2}], "boosts": [{"amount": -99, "items": [plain[0]]}]}
    assert one.put("/v1/rules/sale", json=body).json() == {"name": "sale", "created": True}
    assert one.put("/v1/rules/sale", json=body).json() == {"name": "sale", "created": False}
    second.catch_up()
    for client in (one, other):
        found = ids(client.post("/v1/recommend", json=HISTORY | {"rules": "sale"}))
        assert (found[0], found[1]) == (plain[1], "item-50")
        assert plain[0] not in found
        assert ids(client.post("/v1/recommend", json=HISTORY)) == plain  # named in a request, or default
    listed = other.get("/v1/rules").json()["rules"]["sale"]
    assert listed["pins"] == body["pins"]
    assert one.put("/v1/rules/copy", json=listed).status_code == 200
    assert other.delete("/v1/rules/sale").json() == {"name": "sale"}
    assert code_of(other.delete("/v1/rules/sale"), 404) == "unknown_rules"
    assert code_of(other.post("/v1/recommend", json=HISTORY | {"rules": "sale"}), 422) == "invalid_request"


def test_the_default_rule_set_holds_unless_a_request_says_otherwise_and_outlives_a_restart(replicas, bundle):
    (one, _), (first, _) = replicas
    plain = ids(one.post("/v1/recommend", json=HISTORY))
    one.put("/v1/rules/default", json={"boosts": [{"amount": 50, "filter": {"attribute": "genre", "equals": "b"}}]})
    fresh = TestClient(create_app(Live(Engine(bundle, store=first.store), first.store), ServingSettings(auth="off")))
    for client in (one, fresh):
        boosted = client.post("/v1/recommend", json=HISTORY).json()["items"]
        assert all("b" in item["attributes"]["genre"] and item["shares"]["rules"] == 50 for item in boosted)
        assert ids(client.post("/v1/recommend", json=HISTORY | {"rules": None})) == plain


@pytest.mark.parametrize(
    "body",
    [
        {"pins": [{"item_id": "a", "position": 0}]},
        {"boosts": [{"amount": 1}]},
        {"boosts": [{"amount": "much", "items": ["a"]}]},
        {"limits": [{"attribute": "genre", "most": 0}]},
        {"nothing": []},
    ],
)
def test_a_rule_that_means_nothing_is_refused(replicas, body):
    assert code_of(replicas[0][0].put("/v1/rules/bad", json=body), 422) == "invalid_request"
    assert replicas[0][0].get("/v1/rules").json() == {"rules": {}}


def test_a_rule_set_survives_the_compaction_of_live_items(replicas, monkeypatch):
    (one, _), (engine, _) = replicas
    monkeypatch.setattr("serving.engine.state._SPARE_ROWS", 1)
    one.put("/v1/rules/sale", json={"pins": [{"item_id": "item-50", "position": 1}]})
    for n in range(6):
        one.put("/v1/items/fresh", json={"title": f"Title {n}"})
    assert len(engine.state.items) < ITEMS + 6
    assert list(engine.state.rules) == ["sale"]


def test_a_live_item_is_answered_only_while_it_is_available(replicas):
    client, now = replicas[0][0], time.time()
    windows = {"now": (now - 5, now + 900), "later": (now + 900, None), "over": (None, now - 5), "always": (None, None)}
    for name, (start, end) in windows.items():
        body = {"title": "Title", "available_from": start, "available_until": end}
        assert client.put(f"/v1/items/{name}", json=body).status_code == 200
    found = ids(client.post("/v1/recommend", json=HISTORY | {"allow": list(windows)}))
    assert sorted(found) == ["always", "now"]
    turned = {"title": "Title", "available_from": 2000.0, "available_until": 1000.0}
    assert code_of(client.put("/v1/items/turned", json=turned), 422) == "invalid_request"


def test_items_are_found_by_a_part_of_their_title(replicas):
    client = replicas[0][0]
    found = client.get("/v1/items", params={"query": "«1", "limit": 5}).json()["items"]
    assert len(found) == 5
    assert all("«1" in item["title"] for item in found)
    client.put("/v1/items/fresh", json={"title": "A title of LETTERS"})
    assert ids(client.get("/v1/items", params={"query": "Letters"})) == ["fresh"]
    client.delete("/v1/items/fresh")
    assert ids(client.get("/v1/items", params={"query": "Letters"})) == []
    assert ids(client.get("/v1/items", params={"query": "(.*"})) == []  # a text, not a pattern


def test_the_model_says_what_requests_may_name(replicas):
    client = replicas[0][0]
    client.put("/v1/rules/sale", json={})
    model = client.get("/v1/model").json()
    assert model["terms"] == ["collaborative", "semantic", "transitions_near"]
    assert model["attributes"] == {"genre": ["a", "b"]}
    assert (model["items"], model["rules"], model["recall"]["at_export"]) == (ITEMS, ["sale"], 1.0)
    factors = dict.fromkeys(model["terms"], 0.0)
    scores = [
        item["score"] for item in client.post("/v1/recommend", json=HISTORY | {"factors": factors}).json()["items"]
    ]
    assert set(scores) == {0.0}


def test_explanations_and_similar_items_come_over_http(replicas):
    client = replicas[0][0]
    plain, told = (client.post("/v1/recommend", json=HISTORY | {"explain": flag}).json() for flag in (False, True))
    assert "slots" not in plain
    assert "because" not in plain["items"][0]
    assert [{k: v for k, v in item.items() if k != "because"} for item in told["items"]] == plain["items"]
    assert {effect["item_id"] for item in told["items"] for effect in item["because"]} <= set(HISTORY["history"])
    assert set(told["slots"]) == {"collaborative", "semantic"}
    answer = client.get("/v1/items/item-7/similar", params={"k": 3, "by": "semantic"}).json()
    assert (len(answer["items"]), answer["item_id"], answer["by"]) == (3, "item-7", "semantic")
    assert code_of(client.get("/v1/items/nothing/similar"), 404) == "unknown_item"
    assert code_of(client.get("/v1/items/item-7/similar", params={"by": "colour"}), 422) == "invalid_request"


@pytest.mark.parametrize(
    "more",
    [
        {"diversity": 1.5},
        {"diversity": -0.1},
        {"diversity": True},
        {"factors": {"semantic": -1}},
        {"factors": {"x": 1}},
    ],
)
def test_settings_of_an_answer_that_make_no_sense_are_refused(replicas, more):
    assert code_of(replicas[0][0].post("/v1/recommend", json=HISTORY | more), 422) == "invalid_request"
