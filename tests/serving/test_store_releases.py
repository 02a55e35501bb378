"""Releases in an object store: listed and rolled back from anywhere, and followed by an endpoint."""

import json
import time

import pytest
from serving_helpers import codes, fake_bundle, load_fake
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.common import storage
from pipelines.jobs.serve_file import settings_of
from pipelines.nightly import release_store
from pipelines.remote import mirror
from pipelines.remote.follow import StoreFollower
from serving.engine.requests import Request
from serving.runtime.replica import open_live
from serving.runtime.settings import ServingSettings
from setrec.errors import ConfigError

pytestmark = pytest.mark.usefixtures("work")


def invoke(*arguments):
    done = CliRunner().invoke(app.app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture
def bundles(tmp_path):
    """Two bundles that answer differently, and the run they are said to come from."""
    for seed, name in enumerate(("first", "second")):
        fake_bundle(tmp_path / name, item_codes=codes(seed=seed), model_version=f"version-{name}")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("name: run")
    return tmp_path


def released(bundles, name, root):
    return release_store.release(bundles / name, bundles / "run", root, root / "releases", 3, {})["release"]


def test_releases_of_a_root_in_a_store_are_listed_and_rolled_back_there(store, work, bundles):
    uri = store("nightly")
    with mirror.mirrored(uri) as root:
        first, second = (released(bundles, name, root) for name in ("first", "second"))
    work("other")
    assert invoke("pipeline", "status", "--root", uri)["release"] == second
    assert invoke("pipeline", "history", "--root", uri)["releases"] == [first, second]
    assert invoke("pipeline", "rollback", first, "--root", uri)["bundle"] == f"releases/{first}"
    work("third")
    assert invoke("pipeline", "history", "--root", uri)["current"] == first
    assert mirror.leads_to(storage.join(uri, "releases", "current")) == first
    assert invoke("bundle", "inspect", storage.join(uri, "releases", "current"))["model_version"] == "version-first"


def test_an_endpoint_follows_what_is_current_in_a_store(store, bundles, tmp_path, monkeypatch):
    monkeypatch.setattr("serving.runtime.rollout._LOOK_SECONDS", 0.02)
    where, root, local = store("followed"), tmp_path / "nightly", tmp_path / "local"
    release = {"keep": 3, "environment": {}, "store": where}
    local.mkdir()

    def night(name):
        return release_store.release(bundles / name, bundles / "run", root, root / "releases", **release)["release"]

    night("first")
    bundle, settings = settings_of({"follow": where, "releases": str(local), "auth": "off"}, "options")
    live = open_live(bundle, settings, load_fake)
    follower = StoreFollower(bundle, settings)
    try:
        assert live.model_version == "version-first"
        second = night("second")
        assert follower.look() == second
        until = time.monotonic() + 30
        while live.model_version != "version-second" and time.monotonic() < until:
            time.sleep(0.02)
        assert live.engine.recommend_one(Request(("item-1",), k=3)).model_version == "version-second"
        assert follower.look() is None
        release_store.rollback(root, release_store.released(root)[0], {})
        assert follower.look() == release_store.released(root)[0]
    finally:
        live.close()


def test_to_follow_needs_a_folder_here_and_a_uri():
    with pytest.raises(ValueError, match="brought into `releases`"):
        ServingSettings(follow="s3://bucket/releases")
    with pytest.raises(ConfigError, match="follow"):
        settings_of({"follow": "releases", "releases": "x", "bundle": "b"}, "options")
