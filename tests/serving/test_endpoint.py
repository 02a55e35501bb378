"""The endpoint over real HTTP: Ray Serve on a free port, tokens asked for, a store, a bundle of a real small model."""

import asyncio
import json
import re
import socket
import subprocess
import sys

import httpx
import psutil
import pytest
import serving_helpers
from serving_helpers import catalog, graph_dir, histories, load_fake_graph
from small_models import ITEMS, small_model

from serving.api.access.tokens import SCOPES, issue
from serving.api.routes.recommend import AnswerResponse
from serving.bundle.reader import Bundle
from serving.bundle.writer import write_bundle
from serving.deployment import ingress, ray_app
from serving.engine.acceptance import examine
from serving.engine.engine import Engine, Request
from serving.runtime.settings import ServingSettings
from setrec.errors import BundleError, ConfigError
from setrec.scoring.hybrid import HybridWeights

REPLICA_PORTS = range(30000, 31001)  # Ray's default
LIMITS = {"max_body_bytes": 4096, "max_history": 100, "max_k": 30}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def place(features, tmp_path_factory):
    """``bundle/``, and another in ``releases/other``."""
    folder = tmp_path_factory.mktemp("endpoint")
    model = small_model(features)
    model.save_pretrained(folder / "model")
    parts = {"model_dir": folder / "model", "catalog": catalog(ITEMS), "histories": histories(ITEMS)}
    parts |= {"item_codes": model.item_codes().numpy(), "graph_dir": graph_dir(folder / "graph")}
    for out, weight in ((folder / "bundle", 1.0), (folder / "releases" / "other", 0.5)):
        slots = {kind: weight if kind == "semantic" else 1.0 for kind in model.kinds}
        write_bundle(out, scorer=HybridWeights(slots=slots), examine=examine, **parts)
    return folder


@pytest.fixture(scope="module")
def engine(place):
    return Engine(Bundle.open(place / "bundle"), max_k=30)


@pytest.fixture(scope="module")
def client(place):
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(serving_helpers)  # replicas cannot import what lies among the tests
    file = place / "tokens.json"
    token = issue(file, "all", SCOPES)
    settings = ServingSettings(
        port=free_port(), tokens=file, store=str(place / "live.db"), releases=place / "releases", **LIMITS
    )
    url = ray_app.start(place / "bundle", settings, graph_loader=load_fake_graph)
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=url, timeout=30, trust_env=False, headers=headers) as client:
        yield client
    ray_app.stop()
    cloudpickle.unregister_pickle_by_value(serving_helpers)


def refused(response, status, code):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == code
    assert error["message"]
    assert "\n" not in error["message"]
    assert len(error["message"]) <= 300
    assert "Traceback" not in response.text
    return error["message"]


def ids(answer):
    return [item["item_id"] for item in answer["items"]]


def test_the_endpoint_answers_what_the_engine_answers(client, engine):
    body = {"history": ["item-1", "item-2", "item-3"], "k": 5}
    response = client.post("/v1/recommend", json=body)
    assert response.status_code == 200, response.text
    expected = engine.recommend_one(Request(history=("item-1", "item-2", "item-3"), k=5))
    given_back = response.json()
    assert given_back["model_version"] == engine.bundle.model_version
    assert ids(given_back) == [item.item_id for item in expected.items]
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


def test_an_event_counts_for_the_next_recommendation_and_is_kept_once(client, engine):
    known = {"user_id": "user-2", "k": 5}
    before = ids(client.post("/v1/recommend", json=known).json())
    event = {"user_id": "user-2", "item_id": before[0], "key": "click-1"}
    sent = [client.post("/v1/events", json={"events": [event]}).json() for _ in range(2)]
    assert sent == [{"accepted": 1, "duplicates": 0}, {"accepted": 0, "duplicates": 1}]
    rows = engine.bundle.histories.items[engine.bundle.histories.row("user-2")]
    history = [*(engine.bundle.catalog.item_ids[row] for row in rows), before[0]]
    expected = engine.recommend_one(Request(history=tuple(history), k=5))
    assert ids(client.post("/v1/recommend", json=known).json()) == [item.item_id for item in expected.items]
    assert client.get("/v1/users/user-2/history").json()["items"][0]["item_id"] == before[0]


def test_probes_documentation_and_the_front_door_are_open_and_tell_a_stranger_nothing(client, engine):
    stranger = httpx.Client(base_url=client.base_url, trust_env=False)
    assert stranger.get("/health/live").json() == {"status": "live"}
    assert stranger.get("/health/ready").json() == {"status": "ready"}
    ready = client.get("/health/ready").json()
    assert (ready["status"], ready["items"]) == ("ready", ITEMS)
    assert stranger.get("/docs").status_code == 200
    assert "<title>setrec</title>" in stranger.get("/").text
    document = stranger.get("/openapi.json").json()
    assert {"401", "403", "413", "422", "429", "503"} <= set(document["paths"]["/v1/recommend"]["post"]["responses"])
    assert document["components"]["schemas"]["RecommendRequest"]["properties"]["k"]["maximum"] == 30
    for path in ("/v1/recommend", "/metrics", "/v1/admin/release", "/v1/users/user-1/history"):
        refused(stranger.get(path), 401, "unauthorized")


def test_figures_of_the_stages_are_there_to_be_scraped(client):
    client.post("/v1/recommend", json={"user_id": "user-1"})
    text = client.get("/metrics").text
    for stage in ("read_history", "generate", "retrieve", "rescore"):
        assert f'setrec_stage_seconds_count{{stage="{stage}"}}' in text
    assert re.search(r"^setrec_recall(\{.*\})? 1\.0$", text, re.MULTILINE)  # so few items are searched exactly
    assert 'setrec_requests_total{method="POST",route="/v1/recommend",status="200"}' in text
    assert "user-1" not in text


def test_sixteen_at_once_get_what_each_gets_alone(client, engine):
    requests = [Request(user_id=f"user-{u % 8}", k=1 + u) for u in range(16) if u % 8 != 2]

    async def all_at_once():
        headers = dict(client.headers)
        async with httpx.AsyncClient(base_url=client.base_url, timeout=30, trust_env=False, headers=headers) as many:
            bodies = [{"user_id": r.user_id, "k": r.k} for r in requests]
            bodies[5] = {"history": ["nope"]}
            return await asyncio.gather(*(many.post("/v1/recommend", json=body) for body in bodies))

    for u, response in enumerate(asyncio.run(all_at_once())):
        if u == 5:
            refused(response, 422, "unknown_item")
        else:
            expected = engine.recommend_one(requests[u])
            assert ids(response.json()) == [i.item_id for i in expected.items]


BAD = [
    ({"history": ["item-1", "nope"]}, "unknown_item", "'nope'"),
    ({"history": []}, "invalid_request", "history"),
    ({}, "invalid_request", "history and user_id"),
    ({"history": ["item-1"], "user_id": "user-1"}, "invalid_request", "history and user_id"),
    ({"user_id": "user-1", "k": 0}, "invalid_request", "k"),
    ({"user_id": "user-1", "k": 31}, "invalid_request", "k"),
    ({"user_id": "user-1", "k": 10**400}, "invalid_request", "k"),
    ({"user_id": "user-1", "k": True}, "invalid_request", "k"),
    ({"user_id": "user-1", "k": "10"}, "invalid_request", "k"),
    ({"history": [1, 2]}, "invalid_request", "history"),
    ({"history": ["item-1"] * 101}, "invalid_request", "history"),
    ({"history": "item-1"}, "invalid_request", "history"),
    ({"user_id": "user-1", "surprise": 1}, "invalid_request", "surprise"),
    ([], "invalid_request", ""),
    (None, "invalid_request", ""),
]


@pytest.mark.parametrize(("body", "code", "said"), BAD)
def test_a_bad_request_is_refused_with_a_reason(client, body, code, said):
    assert said in refused(client.post("/v1/recommend", json=body), 422, code)


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
    assert response.status_code in (400, 422)
    refused(response, response.status_code, response.json()["error"]["code"])


def test_a_body_too_long_is_refused_announced_or_not(client):
    long = json.dumps({"history": ["item-1"] * 2000}).encode()
    headers = {"content-type": "application/json"}
    for content in (long, iter([long[:3000], long[3000:]])):
        refused(client.post("/v1/recommend", content=content, headers=headers), 413, "body_too_large")


def test_paths_and_methods_that_do_not_exist_are_refused_in_the_same_shape(client):
    refused(client.get("/v1/nothing"), 404, "not_found")
    refused(client.get("/v1/recommend"), 405, "method_not_allowed")


def test_every_answer_has_one_request_id_and_a_callers_plain_one_is_kept(client):
    assert client.get("/health/live", headers={"X-Request-Id": "abc-1"}).headers.get_list("x-request-id") == ["abc-1"]
    assert len(client.post("/v1/recommend", json={}).headers.get_list("x-request-id")) == 1


def raw(client, head):
    """The first line of the answer to bytes that no client library would send."""
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as connection:
        connection.sendall(head)
        return connection.recv(4096).split(b"\r\n")[0]


@pytest.mark.parametrize("name", [b"X-Request-Id", b"serve_multiplexed_model_id", b"Authorization", b"X-Session-Id"])
def test_headers_that_are_no_text_do_not_break_a_replica(client, name):
    if name != b"Authorization" and not ingress.is_installed():
        pytest.skip("without HAProxy, Ray itself answers 500 here")
    head = b"GET /health/live HTTP/1.1\r\nHost: x\r\n" + name + b": \xff\xfe\r\nConnection: close\r\n\r\n"
    assert raw(client, head) == b"HTTP/1.1 200 OK"


def test_another_bundle_is_released_while_requests_are_answered(client, place, engine):
    other = Bundle.open(place / "releases" / "other").model_version
    assert other != engine.bundle.model_version
    released = client.post("/v1/admin/release", json={"bundle": "other"})
    assert released.json()["model_version"] == other, released.text
    assert client.post("/v1/recommend", json={"user_id": "user-1"}).json()["model_version"] == other
    refused(client.post("/v1/admin/release", json={"bundle": "../bundle"}), 422, "invalid_request")
    assert client.post("/v1/admin/release", json={"bundle": None}).json()["model_version"] != other


def test_what_cannot_be_started_is_refused_in_one_line(client, place, tmp_path):
    settings = {"auth": "off", "port": free_port()}
    with pytest.raises(ray_app.ServingError, match="in use") as taken:
        ray_app.start(place / "bundle", ServingSettings(**settings | {"port": client.base_url.port}))
    assert "\n" not in str(taken.value)
    with pytest.raises(ConfigError, match="no tokens: make one"):
        ray_app.start(place / "bundle", ServingSettings(port=free_port()))
    with pytest.raises(ray_app.ServingError, match="already runs"):
        ray_app.start(place / "bundle", ServingSettings(**settings))
    with pytest.raises(BundleError, match="not a bundle"):
        ray_app.start(tmp_path, ServingSettings(**settings))
    assert client.get("/health/ready").status_code == 200


def test_haproxy_and_the_replicas_own_server_are_for_this_machine_alone(client):
    """Other ports of Ray are Ray's to guard, and a network's (docs/security.md)."""
    if not ingress.is_installed():
        pytest.skip("without HAProxy replicas have no server of their own")
    found = {}
    for process in psutil.Process().children(recursive=True):
        for place in process.net_connections("tcp"):
            is_ours = "haproxy" in process.name() or place.laddr.port in REPLICA_PORTS
            if place.status == psutil.CONN_LISTEN and is_ours:
                found[place.laddr.port] = place.laddr.ip
    assert client.base_url.port in found
    assert len(found) >= 2
    assert set(found.values()) == {"127.0.0.1"}


def test_the_application_and_its_settings_import_without_ray():
    code = "import sys, serving.deployment.ray_app, serving.api.application; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_answers_hold_finite_numbers_alone_whatever_their_titles_say():
    written = {"title": "Infinity, NaN", "score": 0.5}
    assert json.loads(AnswerResponse(written).body) == written
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            AnswerResponse({"score": wrong})
