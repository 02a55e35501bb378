"""The nightly loop's folder of releases, and the endpoint that is told of a new one."""

import json
import shutil
import threading
import time

import httpx
import pytest
from serving_helpers import codes, fake_bundle, load_fake
from starlette.testclient import TestClient

from pipelines.nightly import release_store
from pipelines.nightly.release_store import KEPT, current, name_of
from pipelines.nightly.steps import HeldBackError
from serving.api.application import build
from serving.bundle.reader import Bundle
from serving.runtime.settings import ServingSettings
from setrec.errors import ConfigError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Five bundles that answer differently."""
    folder = tmp_path_factory.mktemp("bundles")
    for seed in range(5):
        fake_bundle(folder / f"b{seed}", item_codes=codes(seed=seed))
        time.sleep(0.01)
    return folder


@pytest.fixture
def place(tmp_path):
    """A root with a run in it."""
    for part in KEPT:
        path = tmp_path / "run" / part
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(part) if "." in part else (path.mkdir(), (path / "config.json").write_text(part))
    return tmp_path


def release(bundle, place, keep=3, environment=None):
    return release_store.release(bundle, place / "run", place, place / "releases", keep, environment or {})["release"]


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def test_a_release_is_a_whole_bundle_that_current_leads_to_with_a_record_beside_it(made, place):
    assert current(place) is None
    name = release(made / "b0", place)
    for path in (place / "releases" / name, place / "releases" / "current"):
        assert Bundle.open(path, load_fake).model_version == Bundle.open(made / "b0", load_fake).model_version
    assert current(place) == (name, place / "records" / name)
    assert (place / "records" / name / "data" / "items.parquet").read_text() == "data/items.parquet"
    assert (place / "records" / name / "model" / "config.json").read_text() == "model"
    assert name == name_of(made / "b0")


def test_releasing_twice_is_releasing_once(made, place):
    name = release(made / "b0", place)
    before = (place / "releases" / name / "manifest.json").stat().st_ino
    assert release(made / "b0", place) == name
    assert (place / "releases" / name / "manifest.json").stat().st_ino == before
    assert names(place / "records") == [name]


def test_only_the_last_ones_stay_and_foreign_folders_and_what_an_endpoint_serves_are_left_alone(made, place):
    (place / "releases" / "by-hand").mkdir(parents=True)
    first = release(made / "b0", place, keep=2)
    (place / "releases" / ".state").mkdir()
    (place / "releases" / ".state" / "release.json").write_text(json.dumps({"bundle": first, "before": None}))
    kept = [release(made / f"b{seed}", place, keep=2) for seed in range(1, 5)][-2:]
    assert names(place / "releases") == sorted([first, *kept, "by-hand", "current"])
    assert names(place / "records") == sorted([first, *kept])


def test_a_release_killed_half_way_is_finished_by_the_next_run(made, place, monkeypatch):
    first = release(made / "b0", place)

    def killed(*_):
        raise KeyboardInterrupt

    for name in ("_copy", "tell", "_point", "_prune"):
        with monkeypatch.context() as patch:
            patch.setattr(release_store, name, killed)
            with pytest.raises(KeyboardInterrupt):
                release(made / "b1", place, environment={"SETREC_RELEASE_URL": "http://x"} if name == "tell" else {})
        assert Bundle.open(place / "releases" / "current", load_fake).path.resolve().name in (
            first,
            name_of(made / "b1"),
        )
    assert release(made / "b1", place) == name_of(made / "b1")
    assert current(place)[0] == name_of(made / "b1")
    assert (place / "releases" / "current").resolve().name == name_of(made / "b1")


@pytest.fixture
def endpoint(made, place, monkeypatch):
    """A real application over the folder of releases, reached without a socket."""
    (place / "releases").mkdir()
    settings = ServingSettings(auth="off", releases=place / "releases")
    monkeypatch.setattr(release_store, "_PAUSE_SECONDS", 0.05)
    with TestClient(build(made / "b0", settings, load_fake), base_url="http://endpoint") as client:

        class Borrowed:
            def __init__(self, **_):
                pass

            def __enter__(self):
                return client

            def __exit__(self, *_):
                pass

        monkeypatch.setattr(httpx, "Client", Borrowed)
        yield client


TOLD = {"SETREC_RELEASE_URL": "http://endpoint/"}


def test_an_endpoint_serves_what_was_released_once_it_was_told(made, place, endpoint):
    name = release(made / "b1", place, environment=TOLD)
    found = endpoint.get("/v1/admin/release").json()
    assert (found["bundle"], found["status"]) == (name, "serving")


def test_what_the_endpoint_refuses_is_held_back_and_the_pointers_stay(made, place, endpoint):
    first = release(made / "b1", place, environment=TOLD)
    shutil.copytree(made / "b2", place / "damaged")
    (place / "damaged" / "codes.safetensors").write_bytes(b"x")
    with pytest.raises(HeldBackError, match=r"codes\.safetensors"):
        release(place / "damaged", place, environment=TOLD)
    assert current(place)[0] == first
    assert (place / "releases" / "current").resolve().name == first
    assert endpoint.get("/v1/admin/release").json()["bundle"] == first


def test_while_another_release_is_under_way_the_loop_waits(made, place, endpoint):
    import fcntl

    with open(place / "releases" / ".state" / "lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        timer = threading.Timer(0.3, fcntl.flock, (lock, fcntl.LOCK_UN))
        timer.start()
        name = release(made / "b1", place, environment=TOLD)
        timer.join()
    assert endpoint.get("/v1/admin/release").json()["bundle"] == name


def test_an_endpoint_that_cannot_be_reached_is_told_in_one_line_and_nothing_is_current(made, place):
    with pytest.raises(ConfigError, match="run again") as error:
        release(made / "b1", place, environment={"SETREC_RELEASE_URL": "http://127.0.0.1:9"})
    assert "\n" not in str(error.value)
    assert current(place) is None
