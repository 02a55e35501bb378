"""Clusters that cannot be joined: one line, in time, and nothing of the run is touched."""

import shutil
import socket

import pytest

from pipelines.common import cluster
from pipelines.common.cluster import ray_session
from pipelines.common.run_directory import Run
from setrec.errors import ConfigError


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(cluster, "REACH_SECONDS", 0.5)
    monkeypatch.setattr("ray.is_initialized", lambda: False)


def test_an_address_that_answers_nobody_is_one_line_and_not_kept_in_the_run(t5_run, tmp_path, commanded):
    shutil.copytree(t5_run.root, tmp_path / "own")
    own = Run(tmp_path / "own")
    before = own.config.read_text()
    code, said = commanded("train", "--run", own.root, "--address", "127.0.0.1:9")
    assert code == 2
    assert said.startswith("setrec: cannot join a Ray cluster at 127.0.0.1:9: no answer")
    assert len(said.strip().splitlines()) == 1
    assert own.config.read_text() == before
    assert (own.root / "metrics.json").exists()


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_a_port_that_accepts_and_says_nothing_is_no_cluster(form):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = form.format(server.getsockname()[1])
        with pytest.raises(ConfigError, match="no answer"), ray_session(address):
            pass


@pytest.mark.parametrize(
    ("address", "said"), [(None, "Ray did not start on this machine"), ("auto", "cannot join a Ray cluster at auto")]
)
def test_whatever_ray_raises_at_the_start_is_one_line(monkeypatch, address, said):
    def fail(**_):
        raise RuntimeError("The current node timed out during startup.\nSee the logs.")

    monkeypatch.setattr("ray.init", fail)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    with pytest.raises(ConfigError, match=said) as caught, ray_session(address):
        pass
    assert "timed out during startup" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_start_that_took_too_long_is_tried_again(monkeypatch):
    results = iter([RuntimeError("The current node timed out during startup."), None])

    def start(**_):
        if (error := next(results)) is not None:
            raise error

    monkeypatch.setattr("ray.init", start)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    with ray_session():
        assert next(results, "none left") == "none left"
