"""Another bundle takes the place of the one in use: checked, swapped under load, followed by others, withdrawn."""

import fcntl
import hashlib
import json
import shutil
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving_helpers import codes, fake_bundle, load_fake
from starlette.testclient import TestClient

from serving.api.access.tokens import issue
from serving.api.application import build
from serving.bundle.reader import Bundle
from serving.engine.engine import Engine, Request
from serving.runtime.models import Live, Loader
from serving.runtime.replica import open_live
from serving.runtime.rollout import Releases, UnderWayError
from serving.runtime.settings import ServingSettings
from serving.stores import StoreError, open_store
from setrec.errors import BundleError

BODY = {"history": ["item-1", "item-2", "item-3"], "k": 5}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three bundles that answer differently, made once."""
    folder = tmp_path_factory.mktemp("bundles")
    for seed, name in enumerate(("first", "second", "third")):
        fake_bundle(folder / name, item_codes=codes(seed=seed), model_version=f"version-{name}")
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A folder with what the endpoint is started with, ``first``, and ``releases/`` with the two others."""
    monkeypatch.setattr("serving.runtime.rollout._LOOK_SECONDS", 0.05)
    shutil.copytree(made / "first", tmp_path / "first")
    for name in ("second", "third"):
        shutil.copytree(made / name, tmp_path / "releases" / name)
    return tmp_path


def settings_of(place, **changes):
    return ServingSettings(**{"auth": "off", "releases": place / "releases", "max_in_flight": 64} | changes)


@pytest.fixture
def client(place):
    with TestClient(build(place / "first", settings_of(place), load_fake)) as client:
        yield client


def expected(bundle):
    answer = Engine(Bundle.open(bundle, load_fake)).recommend_one(Request(tuple(BODY["history"]), k=BODY["k"]))
    return [item.item_id for item in answer.items]


def post(client, name):
    return client.post("/v1/admin/release", json={"bundle": name})


def refused(response, status, code):
    assert response.status_code == status, response.text
    assert response.json()["error"]["code"] == code
    return response.json()["error"]["message"]


def alter(bundle, name, change):
    """Change a file and say so in the manifest, as somebody would who knows how."""
    (bundle / name).write_text(change((bundle / name).read_text()))
    manifest = json.loads((bundle / "manifest.json").read_text())
    content = (bundle / name).read_bytes()
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_releases_under_load_fail_no_request_and_every_answer_is_of_one_model(client, place):
    wanted = {f"version-{name}": expected(place / at / name) for at, name in (("", "first"), ("releases", "second"))}
    assert len({tuple(ids) for ids in wanted.values()}) == 2
    done, found, seen = threading.Event(), Counter(), set()

    def ask():
        while not done.is_set():
            response = client.post("/v1/recommend", json=BODY)
            found[response.status_code] += 1
            body = response.json()
            seen.add((body["model_version"], tuple(item["item_id"] for item in body["items"])))

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(ask)
        for name in ("second", None, "second", None, "second"):
            time.sleep(0.1)
            assert post(client, name).status_code == 200
        time.sleep(0.1)
        done.set()
    assert set(found) == {200}
    assert found[200] > 50
    assert {version: list(ids) for version, ids in seen} == wanted
    assert client.post("/v1/recommend", json=BODY).json()["model_version"] == "version-second"


def test_what_is_served_is_told_and_null_returns_to_the_start(client):
    assert client.get("/v1/admin/release").json()["bundle"] is None
    told = post(client, "second").json()
    assert (told["status"], told["bundle"], told["model_version"]) == ("serving", "second", "version-second")
    assert post(client, "third").json()["before"] == "second"
    assert client.get("/v1/admin/release").json()["model_version"] == "version-third"
    assert post(client, None).json()["model_version"] == "version-first"


def test_to_release_what_is_served_already_loads_nothing(client, monkeypatch):
    post(client, "second")
    monkeypatch.setattr(Loader, "load", lambda *_, **__: pytest.fail("loaded again"))
    assert post(client, "second").json()["model_version"] == "version-second"


def test_a_damaged_bundle_is_refused_with_the_file_and_the_old_one_goes_on(client, place):
    before = client.post("/v1/recommend", json=BODY).json()
    damaged = place / "releases" / "second" / "codes.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    message = refused(post(client, "second"), 422, "release_refused")
    assert "second/codes.safetensors: altered" in message
    assert str(place) not in message
    assert client.post("/v1/recommend", json=BODY).json()["items"] == before["items"]
    told = client.get("/v1/admin/release").json()
    assert (told["bundle"], told["refused"]["bundle"]) == (None, "second")
    assert post(client, "third").json()["refused"] is None


def test_a_bundle_that_answers_its_stored_requests_otherwise_is_refused(client, place):
    def other_scores(text):
        checks = json.loads(text)
        checks["checks"][0]["scores"] = [score + 1 for score in checks["checks"][0]["scores"]]
        return json.dumps(checks)

    def other_items(text):
        checks = json.loads(text)
        ids = checks["checks"][0]["item_ids"]
        checks["checks"][0]["item_ids"] = ids[::-1]
        return json.dumps(checks)

    alter(place / "releases" / "second", "checks.json", other_scores)
    assert "other scores" in refused(post(client, "second"), 422, "release_refused")
    alter(place / "releases" / "third", "checks.json", other_items)
    assert "is missing" in refused(post(client, "third"), 422, "release_refused")


def test_stored_requests_are_compared_without_what_users_did_since(place):
    store = str(place / "live.db")
    with TestClient(build(place / "first", settings_of(place, store=store), load_fake)) as client:
        event = {"user_id": "user-0", "item_id": "item-5", "time": 1.0}
        assert client.post("/v1/events", json={"events": [event]}).status_code == 200
        assert client.delete("/v1/users/user-1").status_code == 200
        assert client.delete("/v1/items/item-7").status_code == 200
        assert post(client, "second").status_code == 200
        body = client.post("/v1/recommend", json={"history": ["item-1"], "k": 60}).json()
    assert body["model_version"] == "version-second"
    ids = {item["item_id"] for item in body["items"]}
    assert len(ids) > 50
    assert "item-7" not in ids


def test_while_the_store_cannot_be_read_nothing_is_released(place, monkeypatch):
    store = str(place / "live.db")
    with TestClient(build(place / "first", settings_of(place, store=store), load_fake)) as client:

        def fail(self, after, limit=500):
            raise StoreError("gone")

        monkeypatch.setattr(type(open_store(store)), "changes", fail)
        assert "gone" in refused(post(client, "second"), 422, "release_refused")
        assert client.post("/v1/recommend", json=BODY).json()["model_version"] == "version-first"


@pytest.mark.parametrize("name", ["..", ".state", "../first", "/etc", "a/b", "", "x" * 101, "second\n", "a\x00", 1])
def test_a_name_that_is_no_plain_name_never_reaches_the_file_system(client, name, monkeypatch):
    monkeypatch.setattr(Releases, "_path", lambda *_: pytest.fail("a path was made of it"))
    refused(post(client, name), 422, "invalid_request")


def test_unknown_bundles_links_and_files_are_no_bundles(client, place):
    (place / "releases" / "link").symlink_to(place / "first")
    (place / "releases" / "file").write_text("x")
    for name in ("nothing", "link", "file"):
        refused(post(client, name), 404, "unknown_bundle")


def test_only_one_release_is_made_at_a_time(client, place):
    with open(place / "releases" / ".state" / "lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(post(client, "second"), 409, "release_under_way")
    assert post(client, "second").status_code == 200


def test_releasing_takes_the_admin_scope(place):
    file = place / "tokens.json"
    tokens = {scope: issue(file, scope, [scope]) for scope in ("read", "write", "admin")}
    settings = settings_of(place, auth="tokens", tokens=file)
    client = TestClient(build(place / "first", settings, load_fake))
    for scope, status in (("read", 403), ("write", 403), ("admin", 200)):
        headers = {"Authorization": f"Bearer {tokens[scope]}"}
        assert client.get("/v1/admin/release", headers=headers).status_code == status
        response = client.post("/v1/admin/release", json={"bundle": "second"}, headers=headers)
        assert response.status_code == status


def eventually(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def release_when_free(live, name):
    """As a caller does who is told that another is under way: a replica serves before it lets go of its turn."""

    def made():
        try:
            live.releases.release(live, name)
        except UnderWayError:
            return False
        return True

    eventually(made)


@pytest.fixture
def replicas(place):
    """Two replicas of one endpoint; the second cannot load what ``bad`` names."""
    bad = set()

    def picky(path):
        if path.parent.name in bad:
            raise BundleError(f"{path}: not here")
        return load_fake(path)

    settings = settings_of(place)
    lives = [open_live(place / "first", settings, load) for load in (load_fake, picky)]
    yield (*lives, bad)
    for live in lives:
        live.close()


def test_other_replicas_follow_a_release(replicas):
    one, two, _ = replicas
    one.releases.release(one, "second")
    eventually(lambda: two.model_version == "version-second")
    release_when_free(two, "third")
    eventually(lambda: one.model_version == "version-third")
    assert one.releases.state == two.releases.state


def test_where_one_replica_cannot_follow_all_return(replicas):
    one, two, bad = replicas
    bad.add("second")
    one.releases.release(one, "second")
    assert one.model_version == "version-second"
    eventually(lambda: one.model_version == "version-first")
    assert two.model_version == "version-first"
    assert (one.releases.state.refused.bundle, one.releases.state.bundle) == ("second", None)
    assert "not here" in one.releases.state.refused.reason


def test_a_replica_that_starts_later_serves_what_was_released_and_survives_its_loss(replicas, place):
    one, _, _ = replicas
    one.releases.release(one, "second")
    later = open_live(place / "first", settings_of(place), load_fake)
    assert later.model_version == "version-second"
    later.close()
    shutil.rmtree(place / "releases" / "second")
    last = open_live(place / "first", settings_of(place), load_fake)
    assert last.model_version == "version-first"
    last.close()


def test_an_endpoint_started_with_another_bundle_does_not_heed_an_earlier_ones_release(replicas, place):
    one, _, _ = replicas
    one.releases.release(one, "second")
    other = open_live(place / "releases" / "third", settings_of(place), load_fake)
    assert other.model_version == "version-third"
    other.close()


def test_a_state_that_is_damaged_stops_nobody(place):
    (place / "releases" / ".state").mkdir()
    (place / "releases" / ".state" / "release.json").write_text("{")
    live = open_live(place / "first", settings_of(place), load_fake)
    assert live.model_version == "version-first"
    live.close()


def test_a_model_without_a_graph_does_not_take_the_place_of_one_with_a_graph(made):
    with_graph = Live(Engine(Bundle.open(made / "first", load_fake)), graph=object())
    model = Loader(ServingSettings(), load_encoder=load_fake).load(made / "second")
    with pytest.raises(BundleError, match="no graph"):
        with_graph.swap(model)
    assert with_graph.model_version == "version-first"
