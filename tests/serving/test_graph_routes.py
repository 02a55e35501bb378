"""The graph in the bundle and its routes, on a graph small enough to check by eye."""

import asyncio
import json
import threading

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from serving_helpers import FakeGraph, fake_bundle, graph_dir, load_fake, load_fake_graph

from serving.api.application import build, create_app
from serving.api.routes.graph import AskResponse, NodesResponse
from serving.bundle.reader import Bundle
from serving.engine.engine import Engine
from serving.runtime.models import Live
from serving.runtime.settings import ServingSettings
from setrec.errors import BundleError

KEPT = ["arcs.npy", "model/config.json", "nodes.parquet", "tokenizer/tables.safetensors"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    out = tmp_path_factory.mktemp("graph") / "b"
    fake_bundle(out)
    return Engine(Bundle.open(out, load_fake))


def client_of(engine, graph, **changes):
    return TestClient(
        create_app(Live(engine), ServingSettings(auth="off", **changes), graph=graph), raise_server_exceptions=False
    )


@pytest.fixture(scope="module")
def client(engine):
    return client_of(engine, FakeGraph())


@pytest.fixture
def bundle(tmp_path):
    fake_bundle(tmp_path / "b", graph_dir=graph_dir(tmp_path / "graph"))
    return tmp_path / "b"


def refused(response, status, code):
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"code", "message"}
    assert error["code"] == code
    return error["message"]


def test_grounded_answers_come_with_scores_and_the_nodes_mentioned(client):
    response = client.post("/v1/graph/ask", json={"question": "What is next to [[b]] and [[a]]?"})
    assert response.status_code == 200, response.text
    assert response.json() == {
        "model_version": "graph-1",
        "mode": "grounded",
        "nodes": ["b", "a"],
        "edges": [],
        "refused": False,
        "reason": "",
        "answers": [{"answer": "c", "score": 1.0}, {"answer": "d", "score": 0.5}],
    }
    AskResponse.model_validate_json(response.content, strict=True)


def test_generated_answers_have_no_score(client):
    answer = client.post("/v1/graph/ask", json={"question": "[[a]]?", "k": 1, "mode": "text"}).json()
    assert (answer["mode"], answer["answers"]) == ("text", [{"answer": "b", "score": None}])


def test_nodes_are_described_in_the_order_asked_for(client):
    response = client.post("/v1/graph/nodes", json={"node_ids": ["d", "b", "d"], "k": 1})
    assert response.status_code == 200, response.text
    NodesResponse.model_validate_json(response.content, strict=True)
    assert response.json()["model_version"] == "graph-1"
    d, b, again = response.json()["nodes"]
    assert d == again
    assert d["text"] is None
    assert d["anchors"] == [{"node_id": "a", "distance": None}]
    assert b == {
        "node_id": "b",
        "text": "text of b",
        "token": [0.25, -1.0],
        "nearest": [{"node_id": "a", "similarity": 0.5}],
        "anchors": [{"node_id": "a", "distance": 1.0}],
    }
    assert client.post("/v1/graph/nodes", json={"node_ids": ["a"], "k": 0}).json()["nodes"][0]["nearest"] == []
    assert len(client.post("/v1/graph/nodes", json={"node_ids": ["a"]}).json()["nodes"][0]["nearest"]) == 3


BAD = [
    ("ask", {"question": "[[a]] or [[nope]]?"}, 404, "unknown_node", "'nope'"),
    ("ask", {"question": "Which?"}, 422, "invalid_request", "mentions no node"),
    ("ask", {"question": ""}, 422, "invalid_request", "question"),
    ("ask", {"question": "[[a]]" + "x" * 3996}, 422, "invalid_request", "question"),
    ("ask", {"question": 5}, 422, "invalid_request", "question"),
    ("ask", {}, 422, "invalid_request", "question"),
    ("ask", {"question": "[[a]]", "k": 0}, 422, "invalid_request", "k"),
    ("ask", {"question": "[[a]]", "k": 101}, 422, "invalid_request", "k"),
    ("ask", {"question": "[[a]]", "k": True}, 422, "invalid_request", "k"),
    ("ask", {"question": "[[a]]", "mode": "guess"}, 422, "invalid_request", "mode"),
    ("ask", {"question": "[[a]]", "surprise": 1}, 422, "invalid_request", "surprise"),
    ("ask", [], 422, "invalid_request", ""),
    ("nodes", {"node_ids": ["a", "nope"]}, 404, "unknown_node", "'nope'"),
    ("nodes", {"node_ids": []}, 422, "invalid_request", "node_ids"),
    ("nodes", {"node_ids": ["a"] * 101}, 422, "invalid_request", "node_ids"),
    ("nodes", {"node_ids": [1]}, 422, "invalid_request", "node_ids"),
    ("nodes", {"node_ids": "a"}, 422, "invalid_request", "node_ids"),
    ("nodes", {"node_ids": ["a"], "k": -1}, 422, "invalid_request", "k"),
    ("nodes", {"node_ids": ["a"], "k": 101}, 422, "invalid_request", "k"),
    ("nodes", {"node_ids": ["a"], "mode": "text"}, 422, "invalid_request", "mode"),
]


@pytest.mark.parametrize(("route", "body", "status", "code", "said"), BAD, ids=range(len(BAD)))
def test_a_bad_request_is_refused_with_a_reason(client, route, body, status, code, said):
    assert said in refused(client.post(f"/v1/graph/{route}", json=body), status, code)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe\x00", b'{"question": "\\ud800"}'])
def test_a_body_that_makes_no_sense_is_refused(client, body):
    response = client.post("/v1/graph/ask", content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    refused(response, response.status_code, response.json()["error"]["code"])


def test_the_largest_requests_allowed_are_answered_and_longer_bodies_are_not(client):
    longest = "[[a]]" + "é" * 3995
    assert client.post("/v1/graph/ask", json={"question": longest, "k": 100}).status_code == 200
    assert client.post("/v1/graph/nodes", json={"node_ids": ["a"] * 100, "k": 100}).status_code == 200
    refused(client.post("/v1/graph/ask", json={"question": "x" * 70_000}), 413, "body_too_large")


def test_without_a_model_to_ask_nodes_are_described_all_the_same(engine):
    class Mute(FakeGraph):
        can_ask = False

    client = client_of(engine, Mute())
    assert "without a model" in refused(
        client.post("/v1/graph/ask", json={"question": "[[a]]"}), 422, "invalid_request"
    )
    assert client.post("/v1/graph/nodes", json={"node_ids": ["a"]}).status_code == 200
    assert client.get("/health/ready").json()["graph"]["can_ask"] is False


def test_a_failure_inside_shows_no_stack(engine):
    class Broken(FakeGraph):
        def ask(self, question, k, mode):
            raise RuntimeError("secret")

        def nodes(self, ids, k):
            return [self._describe("a", k).__class__("a", None, [float("nan")], (), ())]

    client = client_of(engine, Broken())
    for route, body in (("ask", {"question": "[[a]]"}), ("nodes", {"node_ids": ["a"]})):
        response = client.post(f"/v1/graph/{route}", json=body)
        refused(response, 500, "internal")
        assert "secret" not in response.text


def test_without_a_graph_the_routes_do_not_exist(engine):
    client = client_of(engine, None)
    for route in ("ask", "nodes"):
        refused(client.post(f"/v1/graph/{route}", json={"question": "[[a]]", "node_ids": ["a"]}), 404, "not_found")
    assert "graph" not in client.get("/health/ready").json()
    assert not [path for path in client.get("/openapi.json").json()["paths"] if "graph" in path]


def test_readiness_says_how_many_nodes_and_recommendations_go_on(client, engine):
    ready = client.get("/health/ready").json()
    assert ready["graph"] == {"model_version": "graph-1", "nodes": 4, "tasks": ["next", "kind"], "can_ask": True}
    assert ready["model_version"] == engine.bundle.model_version
    assert client.post("/v1/recommend", json={"user_id": "user-1"}).status_code == 200


def test_the_openapi_document_states_routes_limits_and_errors(client):
    document = client.get("/openapi.json").json()
    for route in ("ask", "nodes"):
        described = document["paths"][f"/v1/graph/{route}"]["post"]
        assert {"200", "400", "401", "403", "404", "413", "422", "429", "431", "503"} == set(described["responses"])
        assert "`unknown_node`" in described["responses"]["404"]["description"]
        assert described["tags"] == ["graph"]
        assert described["description"]
    ask, nodes = (document["components"]["schemas"][name]["properties"] for name in ("AskRequest", "NodesRequest"))
    assert (ask["question"]["minLength"], ask["question"]["maxLength"]) == (1, 4000)
    assert (ask["k"]["minimum"], ask["k"]["maximum"], ask["k"]["default"]) == (1, 100, 5)
    assert (ask["mode"]["enum"], ask["mode"]["default"]) == (["grounded", "text"], "grounded")
    assert (nodes["node_ids"]["minItems"], nodes["node_ids"]["maxItems"]) == (1, 100)
    assert (nodes["k"]["minimum"], nodes["k"]["maximum"], nodes["k"]["default"]) == (0, 100, 5)


def test_the_graph_works_on_one_thread_of_its_own_while_probes_are_answered(engine):
    started, release, threads, inside = threading.Event(), threading.Event(), set(), []

    class Slow(FakeGraph):
        def ask(self, question, k, mode):
            return self._slowly(super().ask, question, k, mode)

        def nodes(self, ids, k):
            return self._slowly(super().nodes, ids, k)

        def _slowly(self, work, *arguments):
            threads.add(threading.get_ident())
            inside.append(1)
            started.set()
            assert release.wait(30)
            assert len(inside) == 1
            inside.pop()
            return work(*arguments)

    async def together():
        transport = httpx.ASGITransport(create_app(Live(engine), ServingSettings(auth="off"), graph=Slow()))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            bodies = [("ask", {"question": "[[a]]"}), ("nodes", {"node_ids": ["a"]})] * 3
            waiting = [asyncio.create_task(client.post(f"/v1/graph/{route}", json=body)) for route, body in bodies]
            await asyncio.to_thread(started.wait, 30)
            live = await client.get("/health/live")
            recommended = await client.post("/v1/recommend", json={"user_id": "user-1"})
            done_early = [task.done() for task in waiting]
            release.set()
            return live, recommended, done_early, await asyncio.gather(*waiting)

    live, recommended, done_early, answers = asyncio.run(together())
    assert live.status_code == recommended.status_code == 200
    assert not any(done_early)
    assert [answer.status_code for answer in answers] == [200] * 6
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_a_bundle_carries_the_graph_and_only_files_a_graph_may_consist_of(bundle, tmp_path):
    opened = Bundle.open(bundle, load_fake)
    assert opened.graph_path == bundle / "graph"
    assert sorted(p.relative_to(opened.graph_path).as_posix() for p in opened.graph_path.rglob("*.*")) == KEPT
    for name in KEPT:
        assert (opened.graph_path / name).read_bytes() == (tmp_path / "graph" / name).read_bytes()
        assert f"graph/{name}" in opened.manifest.files
    plain = fake_bundle(tmp_path / "plain")
    assert plain.format_version == opened.manifest.format_version
    assert plain.model_version != opened.model_version


def test_a_bundle_without_a_graph_says_so_even_beside_an_empty_folder(tmp_path):
    fake_bundle(tmp_path / "b")
    (tmp_path / "b" / "graph").mkdir()
    assert Bundle.open(tmp_path / "b", load_fake).graph_path is None


def test_a_folder_that_holds_no_graph_is_refused(tmp_path):
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph" / "notes.txt").write_text("notes")
    for folder in ("graph", "nowhere"):
        with pytest.raises(BundleError, match="holds no graph"):
            fake_bundle(tmp_path / "b", graph_dir=tmp_path / folder)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", KEPT)
def test_a_graph_file_that_is_missing_truncated_or_altered_is_refused_by_name(bundle, name):
    file = bundle / "graph" / name
    whole = file.read_bytes()
    for content, reason in ((whole[:-1], "truncated"), (bytes([whole[0] ^ 1]) + whole[1:], "sha256")):
        file.write_bytes(content)
        with pytest.raises(BundleError, match=reason) as refusal:
            Bundle.open(bundle, load_fake)
        assert name in str(refusal.value)
    file.unlink()
    with pytest.raises(BundleError, match="missing"):
        Bundle.open(bundle, load_fake)


def test_a_graph_file_that_is_not_listed_or_of_another_kind_is_refused(bundle):
    extra = bundle / "graph" / "model" / "extra.json"
    extra.write_text("{}")
    with pytest.raises(BundleError, match=r"extra\.json: not listed"):
        Bundle.open(bundle, load_fake)
    extra.unlink()
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["graph/model/weights.bin"] = {"sha256": "0" * 64, "bytes": 1}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="a graph may consist of"):
        Bundle.open(bundle, load_fake)


def test_an_array_that_hides_a_pickle_or_is_none_is_refused(tmp_path):
    folder = graph_dir(tmp_path / "graph")
    np.save(folder / "arcs.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(BundleError, match=r"arcs\.npy: not an array of numbers"):
        fake_bundle(tmp_path / "b", graph_dir=folder)
    (folder / "arcs.npy").write_bytes(b"no array")
    with pytest.raises(BundleError, match=r"arcs\.npy: not an array of numbers"):
        fake_bundle(tmp_path / "b", graph_dir=folder)
    np.save(folder / "arcs.npy", np.empty((0, 2)))
    fake_bundle(tmp_path / "b", graph_dir=folder)


def test_a_replica_serves_a_graph_only_from_a_bundle_that_holds_one_and_with_a_loader(bundle, tmp_path):
    fake_bundle(tmp_path / "plain")
    paths, anyone = {}, ServingSettings(auth="off")
    for name, path, loader in (("both", bundle, load_fake_graph), ("no loader", bundle, None)):
        paths[name] = build(path, anyone, load_fake, loader).openapi()["paths"]
    paths["no graph"] = build(tmp_path / "plain", anyone, load_fake, load_fake_graph).openapi()["paths"]
    served = {name: "/v1/graph/ask" in found and "/v1/graph/nodes" in found for name, found in paths.items()}
    assert served == {"both": True, "no loader": False, "no graph": False}
