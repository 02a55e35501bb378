"""Events, histories and items over HTTP, on one replica and on two that share a store."""

import gzip
import re
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_helpers import ITEMS, FakeText, catalog, codes, fake_bundle, histories, load_fake, text_codes
from starlette.testclient import TestClient

from serving.api.application import create_app
from serving.bundle.reader import Bundle
from serving.engine.engine import Engine
from serving.runtime.follower import Follower
from serving.runtime.models import Live
from serving.runtime.settings import ServingSettings
from serving.stores import StoreError, open_store

OPEN = ServingSettings(auth="off", max_events=4, max_history=100)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    out, table = tmp_path_factory.mktemp("routes") / "b", codes()
    table[:, 6:14] = text_codes(catalog().texts)
    fake_bundle(out, item_codes=table)
    return Bundle.open(out, load_fake)


def replica(bundle, store, encode=None):
    live = Live(Engine(bundle, store=store, encode=encode), store)
    return TestClient(create_app(live, OPEN), raise_server_exceptions=False), live


@pytest.fixture(scope="module")
def shared(bundle, tmp_path_factory):
    """One replica for the tests that leave it as it was, or use names of their own."""
    store = open_store(str(tmp_path_factory.mktemp("store") / "live.db"))
    yield replica(bundle, store, FakeText())[0]
    store.close()


def refused(response, status, code):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == code, error
    assert "\n" not in error["message"]
    assert error["message"]
    return error["message"]


def recommend(client, **body):
    response = client.post("/v1/recommend", json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert re.fullmatch("[0-9a-f]{32}", answer.pop("answer_id"))  # another one every time
    return answer


def ids(answer):
    return [item["item_id"] for item in answer["items"]]


def event(user, item, **more):
    return {"user_id": user, "item_id": item, **more}


def test_an_event_is_seen_by_the_next_recommendation_for_its_user(shared):
    before = recommend(shared, user_id="u1")
    assert before["fallback"] == {"reason": "new_user", "source": "popularity"}
    events = [event("u1", "item-3", time=10), event("u1", "item-5", time=20.5)]
    assert shared.post("/v1/events", json={"events": events}).json() == {"accepted": 2, "duplicates": 0}
    after = recommend(shared, user_id="u1")
    assert after["fallback"] is None
    assert after["items"] == recommend(shared, history=["item-3", "item-5"])["items"]


def test_an_event_sent_again_under_its_key_counts_once(shared):
    own = {"events": [event("u2", "item-1", key="a"), event("u2", "item-2", key="b"), event("u3", "item-2", key="a")]}
    assert shared.post("/v1/events", json=own).json() == {"accepted": 3, "duplicates": 0}
    assert shared.post("/v1/events", json=own).json() == {"accepted": 0, "duplicates": 3}
    keyless, headers = {"events": [event("u2", "item-3"), event("u2", "item-4")]}, {"Idempotency-Key": "req-1"}
    assert shared.post("/v1/events", json=keyless, headers=headers).json() == {"accepted": 2, "duplicates": 0}
    assert shared.post("/v1/events", json=keyless, headers=headers).json() == {"accepted": 0, "duplicates": 2}
    assert shared.post("/v1/events", json=keyless).json() == {"accepted": 2, "duplicates": 0}


def test_a_history_comes_in_pages_that_make_up_the_whole_events_first_then_the_bundle(shared):
    for n in range(5):
        shared.post("/v1/events", json={"events": [event("user-2", f"item-{n}", time=100 + n // 2)]})
    whole, before = [], None
    for _ in range(20):
        query = {"limit": 3} | ({"before": before} if before else {})
        page = shared.get("/v1/users/user-2/history", params=query).json()
        assert page["user_id"] == "user-2"
        whole += page["items"]
        before = page["next"]
        if before is None:
            break
    trained = [f"item-{row}" for row in histories().items[2]][::-1]
    live = [{"item_id": f"item-{n}", "time": 100.0 + n // 2, "source": "live", "type": None} for n in (4, 3, 2, 1, 0)]
    assert whole == live + [{"item_id": item, "time": None, "source": "bundle", "type": None} for item in trained]
    assert shared.get("/v1/users/nobody/history").json()["items"] == []


def test_an_erased_user_has_no_history_left_and_is_a_new_one(shared):
    shared.post("/v1/events", json={"events": [event("user-4", "item-3")]})
    assert shared.delete("/v1/users/user-4").json() == {"user_id": "user-4", "events": 1}
    assert shared.delete("/v1/users/user-4").json() == {"user_id": "user-4", "events": 0}
    assert shared.get("/v1/users/user-4/history").json()["items"] == []
    assert recommend(shared, user_id="user-4")["fallback"]["reason"] == "new_user"


def test_an_item_put_is_recommended_described_filtered_for_and_removed(shared):
    body = {"title": "A «new» one", "text": "text 3", "attributes": {"genre": ["fresh"], "empty": []}}
    put = shared.put("/v1/items/shelf/new 1", json=body)
    assert put.status_code == 200, put.text
    assert put.json()["created"]
    assert not shared.put("/v1/items/shelf/new 1", json=body).json()["created"]
    found = recommend(shared, history=["item-3"], filter={"attribute": "genre", "equals": "fresh"})
    assert [(i["item_id"], i["title"], i["attributes"]) for i in found["items"]] == [
        ("shelf/new 1", "A «new» one", {"genre": ["fresh"]})
    ]
    described = shared.get("/v1/items/shelf/new 1").json()
    assert (described["source"], described["trained"], described["title"]) == ("live", False, "A «new» one")
    assert shared.get("/health/ready").json()["live_items"] == 1
    assert shared.delete("/v1/items/shelf/new 1").json()["item_id"] == "shelf/new 1"
    assert shared.delete("/v1/items/shelf/new 1").status_code == 200
    refused(shared.get("/v1/items/shelf/new 1"), 404, "unknown_item")
    assert recommend(shared, history=["item-3"], allow=["shelf/new 1"])["items"] == []


def test_an_item_of_the_bundle_is_described_and_one_that_never_was_is_not(shared):
    described = shared.get("/v1/items/item-1").json()
    assert described["attributes"] == {"genre": ["a"]}
    assert described["source"] == "bundle"
    refused(shared.get("/v1/items/never"), 404, "unknown_item")
    refused(shared.delete("/v1/items/never"), 404, "unknown_item")


def test_unknown_items_of_a_history_are_refused_or_skipped_as_asked(shared):
    body = {"history": ["item-1", "never", "item-2"]}
    assert "'never'" in refused(shared.post("/v1/recommend", json=body), 422, "unknown_item")
    skipped = recommend(shared, **body, unknown_items="skip")
    assert skipped["skipped"] == ["never"]
    assert skipped["items"] == recommend(shared, history=["item-1", "item-2"])["items"]


def stage_counts(client):
    text = client.get("/metrics").text
    return {name: float(n) for name, n in re.findall(r'setrec_stage_seconds_count\{stage="(\w+)"\} (\S+)', text)}


def test_each_stage_is_timed_once_a_batch_and_encoding_once_an_item(shared):
    met = [event("timed", f"item-{n}") for n in range(3)]
    assert shared.post("/v1/events", json={"events": met}).status_code == 200
    before = stage_counts(shared)
    recommend(shared, user_id="timed")
    after = stage_counts(shared)
    each = ("read_history", "generate", "components", "retrieve", "rescore")
    assert {name: after[name] - before.get(name, 0) for name in after} == dict.fromkeys(each, 1) | {
        name: 0 for name in after if name not in each
    }
    shared.put("/v1/items/timed", json={"title": "t", "text": "text 3"})
    assert stage_counts(shared) == after | {"encode": after.get("encode", 0) + 1}
    shared.delete("/v1/items/timed")


def test_every_replica_has_a_change_when_it_has_asked_the_store_once_more(bundle, tmp_path):
    stores = [open_store(str(tmp_path / "live.db")) for _ in range(2)]
    (one, _), (other, live) = (replica(bundle, store, FakeText()) for store in stores)
    follower = Follower(live)
    try:
        one.put("/v1/items/new", json={"title": "t", "text": "text 3"})
        one.delete("/v1/items/item-1")
        one.delete("/v1/users/user-1")
        # One poll may be under way when the last change is made; the next begins after it.
        last = follower.polls + 2
        while follower.polls < last:
            time.sleep(0.02)
        assert other.get("/v1/items/new").status_code == 200
        assert other.get("/v1/items/item-1").status_code == 404
        body = {"history": ["new"], "k": 50}
        assert recommend(one, **body) == recommend(other, **body)
        assert recommend(other, user_id="user-1")["fallback"]["reason"] == "new_user"
    finally:
        follower.close()
        for store in stores:
            store.close()


def test_without_an_encoder_and_without_a_store_changes_are_refused_with_the_reason(bundle, tmp_path):
    store = open_store(str(tmp_path / "live.db"))
    client, _ = replica(bundle, store)
    assert "no text encoder" in refused(client.put("/v1/items/new", json={"title": "t"}), 409, "cannot_encode")
    assert client.delete("/v1/items/item-1").status_code == 200
    store.close()
    client, _ = replica(bundle, None)
    refused(client.post("/v1/events", json={"events": [event("u", "item-1")]}), 409, "no_store")
    refused(client.put("/v1/items/new", json={"title": "t"}), 409, "no_store")
    refused(client.delete("/v1/items/item-1"), 409, "no_store")
    refused(client.delete("/v1/users/u"), 409, "no_store")
    assert len(client.get("/v1/users/user-2/history").json()["items"]) == len(histories().items[2])


def test_while_the_store_is_away_writes_say_try_again_and_recommendations_go_on(bundle, tmp_path):
    store = open_store(str(tmp_path / "live.db"))
    client, live = replica(bundle, store, FakeText())

    class Away:
        def __getattr__(self, name):
            def fails(*arguments):
                raise StoreError("/secret/place: away")

            return fails

    live.engine.store = Away()
    body = {"events": [event("u", "item-1")]}
    for response in (
        client.post("/v1/events", json=body),
        client.put("/v1/items/new", json={"title": "t"}),
        client.delete("/v1/users/u"),
        client.get("/v1/users/u/history"),
    ):
        assert "secret" not in refused(response, 503, "store_unavailable")
        assert int(response.headers["retry-after"]) >= 1
    answer = recommend(client, user_id="user-2")
    assert answer["fallback"] == {"reason": "store_unavailable", "source": "bundle_history"}
    store.close()


LONG = "x" * 257
BAD = [
    ("POST", "/v1/events", {"events": []}, "events"),
    ("POST", "/v1/events", {"events": [event("u", "item-1")] * 5}, "events"),
    ("POST", "/v1/events", {"events": [event("", "item-1")]}, "user_id"),
    ("POST", "/v1/events", {"events": [event(LONG, "item-1")]}, "user_id"),
    ("POST", "/v1/events", {"events": [event("u", "a\nb")]}, "item_id"),
    ("POST", "/v1/events", {"events": [event("..", "item-1")]}, "user_id"),
    ("POST", "/v1/events", {"events": [event("u", 7)]}, "item_id"),
    ("POST", "/v1/events", {"events": [event("u", "i", time=-1)]}, "time"),
    ("POST", "/v1/events", {"events": [event("u", "i", time=time.time() + 3600)]}, "time"),
    ("POST", "/v1/events", {"events": [event("u", "i", time="now")]}, "time"),
    ("POST", "/v1/events", {"events": [event("u", "i", time=10**400)]}, "time"),
    ("POST", "/v1/events", {"events": [event("u", "i", key="")]}, "key"),
    ("POST", "/v1/events", {"events": [event("u", "i", more=1)]}, "more"),
    ("GET", "/v1/users/u/history?limit=0", None, "limit"),
    ("GET", "/v1/users/u/history?before=live:1e999:3", None, "before"),
    ("GET", "/v1/users/u/history?before=live:1.0.0:3", None, "before"),
    ("GET", "/v1/users/u/history?before=yesterday", None, "before"),
    ("GET", f"/v1/users/{LONG}/history", None, "user_id"),
    ("DELETE", f"/v1/users/{LONG}", None, "user_id"),
    ("PUT", "/v1/items/i", {"title": " "}, "title"),
    ("PUT", "/v1/items/i", {"title": "x" * 501}, "title"),
    ("PUT", "/v1/items/i", {"title": "t", "text": "x" * 10_001}, "text"),
    ("PUT", "/v1/items/i", {"title": "t", "attributes": {"genre": "one"}}, "attributes"),
    ("PUT", "/v1/items/i", {"title": "t", "attributes": {str(n): [] for n in range(33)}}, "attributes"),
    ("PUT", "/v1/items/i", {"title": "t", "attributes": {"genre": ["x"] * 65}}, "attributes"),
    ("PUT", "/v1/items/a%09b", {"title": "t"}, "item_id"),
    ("POST", "/v1/recommend", {"history": ["item-1"], "unknown_items": "ask"}, "unknown_items"),
    ("POST", "/v1/recommend", {"history": ["item-1"], "deny": ["x"] * 101}, "deny"),
    ("POST", "/v1/recommend", {"history": ["item-1"], "filter": {"attribute": "genre"}}, "filter"),
]


@pytest.mark.parametrize(("method", "path", "body", "said"), BAD, ids=range(len(BAD)))
def test_what_cannot_be_is_refused_by_name(shared, method, path, body, said):
    assert said in refused(shared.request(method, path, json=body), 422, "invalid_request")


def test_a_filter_for_an_attribute_nobody_has_is_refused_by_name(shared):
    body = {"history": ["item-1"], "filter": {"attribute": "colour", "equals": "red"}}
    assert "'colour'" in refused(shared.post("/v1/recommend", json=body), 422, "unknown_attribute")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
IDS = st.text(max_size=12) | st.sampled_from(["item-1", "user-1", "u"])
EVENTS = st.fixed_dictionaries({"user_id": IDS, "item_id": IDS}, optional={"time": JSON, "key": JSON})
ASKED = {"user_id": IDS, "history": st.lists(IDS), "filter": JSON, "allow": JSON, "deny": JSON}
BODIES = st.one_of(
    JSON,
    st.fixed_dictionaries({"events": st.lists(EVENTS)}),
    st.fixed_dictionaries({"title": IDS}, optional={"text": IDS, "attributes": JSON}),
    st.fixed_dictionaries({}, optional=ASKED),
)
ROUTES = [("POST", "/v1/events"), ("POST", "/v1/recommend"), ("PUT", "/v1/items/{}"), ("DELETE", "/v1/items/{}"),
          ("GET", "/v1/items/{}"), ("GET", "/v1/users/{}/history"), ("DELETE", "/v1/users/{}")]  # fmt: skip


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(route=st.sampled_from(ROUTES), name=IDS, body=BODIES)
def test_no_request_makes_the_server_fail(shared, route, name, body):
    from json import dumps
    from urllib.parse import quote

    path = route[1].format(quote(name.encode("utf-8", "replace"), safe=""))
    content = None if route[0] in ("GET", "DELETE") else dumps(body).encode()
    response = shared.request(route[0], path, content=content, headers={"content-type": "application/json"})
    assert response.status_code < 500, response.text


def test_the_document_names_every_route_with_its_scope_and_its_errors(shared):
    document = shared.get("/openapi.json").json()
    live = {(m, p) for p, routes in document["paths"].items() for m in routes if p.startswith("/v1/")}
    assert {
        ("post", "/v1/events"),
        ("get", "/v1/users/{user_id}/history"),
        ("delete", "/v1/users/{user_id}"),
        ("put", "/v1/items/{item_id}"),
        ("delete", "/v1/items/{item_id}"),
        ("get", "/v1/items/{item_id}"),
        ("post", "/v1/recommend"),
    } <= live
    for method, path in live:
        route = document["paths"][path][method]
        assert route["security"], path
        assert {"401", "403", "422", "429", "503"} <= set(route["responses"]), path
    assert document["components"]["schemas"]["EventsBody"]["properties"]["events"]["maxItems"] == 4


def test_popularity_answers_what_the_filter_leaves(shared, bundle):
    answer = recommend(shared, user_id="nobody", filter={"attribute": "genre", "equals": "b"}, k=5)
    best = sorted(range(0, ITEMS, 2), key=lambda row: (-bundle.popularity[row], row))[:5]
    assert ids(answer) == [f"item-{row}" for row in best]
    np.testing.assert_array_equal([item["score"] for item in answer["items"]], bundle.popularity[best])


def test_values_of_attributes_have_blanks_as_those_of_the_catalogue(bundle, tmp_path):
    store = open_store(str(tmp_path / "live.db"))
    client, _ = replica(bundle, store, FakeText())
    attributes = {"genre": ["genre  1 ", "genre 1"], "colour": [" "]}
    assert client.put("/v1/items/padded", json={"title": "Film", "attributes": attributes}).status_code == 200
    assert client.get("/v1/items/padded").json()["attributes"] == {"genre": ["genre 1"]}
    store.close()


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "text/plain"])
def test_a_body_that_is_not_sent_as_json_is_refused_by_its_content_type(shared, kind):
    headers = {} if kind is None else {"content-type": kind}
    response = shared.post("/v1/recommend", content=b'{"history": ["item-1"]}', headers=headers)
    assert "content-type" in refused(response, 422, "invalid_json")


def test_a_compressed_body_and_one_in_another_encoding_are_refused_as_that(shared):
    headers = {"content-type": "application/json"}
    packed = gzip.compress(b'{"history": ["item-1"]}')
    response = shared.post("/v1/recommend", content=packed, headers={**headers, "content-encoding": "gzip"})
    assert "compressed (gzip)" in refused(response, 415, "compressed_body")
    latin = shared.post("/v1/recommend", content='{"user_id": "ä"}'.encode("latin-1"), headers=headers)
    assert "UTF-8" in refused(latin, 400, "invalid_json")
