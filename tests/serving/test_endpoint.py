"""The endpoint over real HTTP: Ray Serve on a free port, a bundle of a real small model."""

import asyncio
import json
import socket
import subprocess
import sys

import httpx
import pytest
import serving_helpers
from conftest import ITEMS, small_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_helpers import catalog, graph_dir, histories, load_fake_graph

from serving import app
from serving.bundle import Bundle
from serving.bundle_writer import write_bundle
from serving.engine import Engine, Request
from serving.http import create_app
from serving.settings import ServingSettings
from setrec.errors import BundleError

LIMITS = {"max_body_bytes": 4096, "max_history": 100, "max_k": 30}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def bundle(features, tmp_path_factory):
    folder = tmp_path_factory.mktemp("endpoint")
    model = small_model(features)
    model.save_pretrained(folder / "model")
    write_bundle(
        folder / "bundle",
        model_dir=folder / "model",
        catalog=catalog(ITEMS),
        histories=histories(ITEMS),
        item_codes=model.item_codes().numpy(),
        weights=dict.fromkeys(model.kinds, 1.0),
        graph_dir=graph_dir(folder / "graph"),
    )
    return folder / "bundle"


@pytest.fixture(scope="module")
def engine(bundle):
    return Engine(Bundle.open(bundle), max_k=30)


@pytest.fixture(scope="module")
def client(bundle):
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(serving_helpers)  # replicas cannot import what lies among the tests
    url = app.start(bundle, ServingSettings(port=free_port(), **LIMITS), graph_loader=load_fake_graph)
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        yield client
    app.stop()
    cloudpickle.unregister_pickle_by_value(serving_helpers)


@pytest.fixture(scope="module")
def bare(engine):
    """The same application without Ray, called in this process."""
    return create_app(engine, ServingSettings(**LIMITS))


def ask_bare(application, **request):
    async def ask():
        transport = httpx.ASGITransport(application, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.request(**request)

    return asyncio.run(ask())


def refused(response, status, code):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == code
    assert error["message"]
    assert "\n" not in error["message"]
    assert len(error["message"]) <= 300
    assert "Traceback" not in response.text
    return error["message"]


def test_the_endpoint_answers_what_the_engine_answers(client, engine):
    body = {"history": ["item-1", "item-2", "item-3"], "k": 5}
    response = client.post("/v1/recommend", json=body)
    assert response.status_code == 200, response.text
    expected = engine.recommend_one(Request(history=("item-1", "item-2", "item-3"), k=5))
    given_back = response.json()
    assert given_back["model_version"] == engine.bundle.model_version
    assert [item["item_id"] for item in given_back["items"]] == [item.item_id for item in expected.items]
    for item, known in zip(given_back["items"], expected.items, strict=True):
        assert item["title"] == known.title
        assert item["attributes"] == known.attributes
        assert item["score"] == pytest.approx(known.score, abs=1e-4)
        assert sum(item["shares"].values()) == pytest.approx(item["score"], abs=1e-6)


def test_the_bundles_graph_is_served_beside_the_catalogue(client):
    assert client.get("/health/ready").json()["graph"]["nodes"] == 4
    body = {"question": "What is next to [[b]]?", "k": 2, "mode": "text"}
    answer = client.post("/v1/graph/ask", json=body).json()
    assert [found["answer"] for found in answer["answers"]] == ["a", "c"]
    refused(client.post("/v1/graph/nodes", json={"node_ids": ["z"]}), 404, "unknown_node")


def test_a_known_user_can_be_asked_for_by_id(client, engine):
    items = client.post("/v1/recommend", json={"user_id": "user-2", "exclude_history": False}).json()["items"]
    expected = engine.recommend_one(Request(user_id="user-2", exclude_history=False))
    assert [item["item_id"] for item in items] == [item.item_id for item in expected.items]


def test_probes_documentation_and_the_front_door(client, engine):
    assert client.get("/health/live").json() == {"status": "live"}
    ready = client.get("/health/ready").json()
    assert (ready["status"], ready["items"], ready["retriever"]) == ("ready", ITEMS, "exact")
    assert ready["model_version"] == engine.bundle.model_version
    assert client.get("/docs").status_code == 200
    assert client.get("/", follow_redirects=False).headers["location"].endswith("docs")
    document = client.get("/openapi.json").json()
    assert {"400", "404", "413", "422", "503"} <= set(document["paths"]["/v1/recommend"]["post"]["responses"])
    assert document["components"]["schemas"]["RecommendRequest"]["properties"]["k"]["maximum"] == 30


def test_sixteen_at_once_get_what_each_gets_alone(client, engine):
    requests = [Request(user_id=f"user-{u % 8}", k=1 + u) for u in range(16)]

    async def all_at_once():
        async with httpx.AsyncClient(base_url=str(client.base_url), timeout=30, trust_env=False) as many:
            bodies = [{"user_id": r.user_id, "k": r.k} for r in requests]
            bodies[5] = {"history": ["nope"]}
            return await asyncio.gather(*(many.post("/v1/recommend", json=body) for body in bodies))

    for u, response in enumerate(asyncio.run(all_at_once())):
        if u == 5:
            refused(response, 422, "unknown_item")
        else:
            expected = engine.recommend_one(requests[u])
            assert [i["item_id"] for i in response.json()["items"]] == [i.item_id for i in expected.items]


BAD = [
    ({"history": ["item-1", "nope"]}, 422, "unknown_item", "'nope'"),
    ({"user_id": "nobody"}, 404, "unknown_user", "'nobody'"),
    ({"history": []}, 422, "invalid_request", "history"),
    ({"user_id": "user-8"}, 422, "invalid_request", "empty"),
    ({}, 422, "invalid_request", "history or user_id"),
    ({"history": ["item-1"], "user_id": "user-1"}, 422, "invalid_request", "history or user_id"),
    ({"user_id": "user-1", "k": 0}, 422, "invalid_request", "k"),
    ({"user_id": "user-1", "k": 31}, 422, "invalid_request", "k"),
    ({"user_id": "user-1", "k": 10**400}, 422, "invalid_request", "k"),
    ({"user_id": "user-1", "k": True}, 422, "invalid_request", "k"),
    ({"user_id": "user-1", "k": "10"}, 422, "invalid_request", "k"),
    ({"history": [1, 2]}, 422, "invalid_request", "history"),
    ({"history": ["item-1"] * 101}, 422, "invalid_request", "history"),
    ({"history": "item-1"}, 422, "invalid_request", "history"),
    ({"user_id": "user-1", "surprise": 1}, 422, "invalid_request", "surprise"),
    ([], 422, "invalid_request", ""),
    (None, 422, "invalid_request", ""),
]


@pytest.mark.parametrize(("body", "status", "code", "said"), BAD)
def test_a_bad_request_is_refused_with_a_reason(client, body, status, code, said):
    assert said in refused(client.post("/v1/recommend", json=body), status, code)


MALFORMED = [
    b"",
    b"{",
    b"\xff\xfe\x00",
    b'{"history": ["item-1"], "k": 1e999}',
    b'{"history": ["item-1"], "k": NaN}',
    b'{"history": ["\\ud800"]}',
    b'{"\\ud800": 1}',
    b'{"user_id": "\\u0000"}',
    b"[" * 4000,
    b'{"history": ["item-1"], "k": ' + b"9" * 4000 + b"}",
    b'{"user_id": "' + b"x" * 4000 + b'"}',
]


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
def test_a_body_that_makes_no_sense_is_refused_with_a_reason(client, body):
    response = client.post("/v1/recommend", content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 404, 422)
    refused(response, response.status_code, response.json()["error"]["code"])


def test_a_body_too_long_is_refused_announced_or_not(client, bare):
    long = json.dumps({"history": ["item-1"] * 2000}).encode()
    headers = {"content-type": "application/json"}
    refused(client.post("/v1/recommend", content=long, headers=headers), 413, "body_too_large")

    async def pieces():
        for at in range(0, len(long), 500):
            yield long[at : at + 500]

    refused(
        client.post("/v1/recommend", content=iter([long[:3000], long[3000:]]), headers=headers), 413, "body_too_large"
    )
    chunked = ask_bare(bare, method="POST", url="/v1/recommend", content=pieces(), headers=headers)
    refused(chunked, 413, "body_too_large")


def test_paths_and_methods_that_do_not_exist_are_refused_in_the_same_shape(client):
    refused(client.get("/v1/nothing"), 404, "not_found")
    refused(client.get("/v1/recommend"), 405, "method_not_allowed")


def test_every_answer_has_one_request_id_and_a_callers_plain_one_is_kept(client, bare):
    assert client.get("/health/live", headers={"X-Request-Id": "abc-1"}).headers.get_list("x-request-id") == ["abc-1"]
    assert len(client.post("/v1/recommend", json={}).headers.get_list("x-request-id")) == 1
    odd = ask_bare(bare, method="GET", url="/health/live", headers={"X-Request-Id": "a b\tc" * 50})
    assert odd.headers["x-request-id"].isalnum()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["item-1", "user-1"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.fixed_dictionaries({}, optional=dict.fromkeys(("history", "user_id", "k", "exclude_history", "x"), JSON))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.one_of(st.binary(max_size=200), (JSON | FIELDS).map(lambda value: json.dumps(value).encode())))
def test_no_body_makes_the_server_fail(bare, body):
    headers = {"content-type": "application/json"}
    response = ask_bare(bare, method="POST", url="/v1/recommend", content=body, headers=headers)
    assert response.status_code in (200, 400, 404, 422), response.text


def test_a_failure_inside_shows_no_stack(engine):
    async def broken(request):
        raise RuntimeError("secret")

    application = create_app(engine, ServingSettings(), broken)
    response = ask_bare(application, method="POST", url="/v1/recommend", json={"user_id": "user-1"})
    refused(response, 500, "internal")
    assert "secret" not in response.text


def test_a_taken_port_a_second_start_and_a_damaged_bundle_are_refused_in_one_line(client, bundle, tmp_path):
    with pytest.raises(app.ServingError, match="in use") as taken:
        app.start(bundle, ServingSettings(port=client.base_url.port))
    assert "\n" not in str(taken.value)
    with pytest.raises(app.ServingError, match="already runs"):
        app.start(bundle, ServingSettings(port=free_port()))
    with pytest.raises(BundleError, match="not a bundle"):
        app.start(tmp_path, ServingSettings(port=free_port()))
    assert client.get("/health/ready").status_code == 200


def test_the_application_and_its_settings_import_without_ray():
    code = "import sys, serving.app, serving.http; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
