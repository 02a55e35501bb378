"""Blocks of anchors on a Ray cluster give the numbers that one process gives."""

import os
import signal
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from nodetok.distances import distances
from nodetok.graph import Graph
from nodetok.settings import DistanceSettings
from pipelines.common.run_directory import Run
from pipelines.config.job import validate
from pipelines.features import distances as cluster_distances
from pipelines.features import item_features
from pipelines.features.distances import distances_on_cluster
from setrec.data.catalog import Catalog, Histories
from setrec.errors import ConfigError
from setrec.ragged import Ragged

NODES = 300
ANCHORS = np.random.default_rng(1).permutation(NODES)[:23]


pytestmark = pytest.mark.usefixtures("ray_here")


def made(directed: bool = False, weighted: bool = False) -> Graph:
    """A sparse graph, some of whose nodes no path leads to."""
    source, target = np.random.default_rng(0).integers(0, NODES, (2, 400))
    weights = np.random.default_rng(2).random(400) if weighted else None
    ids = [f"n{row}" for row in range(NODES)]
    return Graph.from_arrays(source, target, NODES, weights=weights, directed=directed, ids=ids)


class Shown:
    """Stands in for a bar."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, float]] = []

    def update(self, done: float, total: float, note: str = "") -> None:
        self.calls.append((done, total))


@pytest.mark.parametrize(
    ("kind", "directed", "direction"),
    [
        ("hops", False, "ignored"),
        ("hops", True, "both"),
        ("weighted", False, "ignored"),
        ("weighted", True, "both"),
        ("walks", True, "to"),
    ],
)
def test_blocks_equal_one_process(tmp_path, kind, directed, direction):
    graph, settings = made(directed, kind != "hops"), DistanceSettings(kind=kind, direction=direction)
    shown, out = Shown(), tmp_path / "new" / "table.npy"
    found = distances_on_cluster(graph, ANCHORS, settings, out, block=8, progress=shown)
    whole = distances(graph, ANCHORS, settings)
    assert found.dtype == whole.dtype
    assert np.array_equal(found, whole)
    assert isinstance(found, np.memmap)
    assert np.array_equal(np.load(out), whole)
    assert [path.name for path in out.parent.iterdir()] == ["table.npy"]
    tasks = 6 if direction == "both" else 3
    assert shown.calls == [(done, tasks) for done in range(tasks + 1)]


def test_blocks_with_paths_of_more_hops_than_a_byte_holds_widen_the_matrix(tmp_path):
    path = Graph.from_arrays(np.arange(399), np.arange(1, 400), 401)
    anchors = np.array([200, 0, 399])
    found = distances_on_cluster(path, anchors, DistanceSettings(), tmp_path / "table.npy", block=1)
    assert found.dtype == np.int32
    assert np.array_equal(found, distances(path, anchors))
    assert [file.name for file in tmp_path.iterdir()] == ["table.npy"]


def test_writing_to_the_matrix_leaves_the_file_alone(tmp_path):
    found = distances_on_cluster(made(), ANCHORS, DistanceSettings(), tmp_path / "table.npy")
    before = int(found[0, 0])
    found[0, 0] = before + 1
    assert np.load(tmp_path / "table.npy")[0, 0] == before


def test_cores_that_another_job_holds_are_not_waited_for(tmp_path):
    import ray

    class Holder:
        def ready(self):
            return True

    holder = ray.remote(num_cpus=1)(Holder).remote()
    assert ray.get(holder.ready.remote())
    total = ray.cluster_resources()["CPU"]
    while ray.available_resources().get("CPU", 0) >= total:  # reports lag behind
        time.sleep(0.05)
    try:
        found = distances_on_cluster(made(), ANCHORS, DistanceSettings(), tmp_path / "table.npy")
    finally:
        ray.kill(holder)
    assert np.array_equal(found, distances(made(), ANCHORS))


def test_a_block_whose_worker_dies_is_measured_again(tmp_path, monkeypatch):
    marker = str(tmp_path / "died")

    def dies_once(view, anchors, settings, threads):
        if not os.path.exists(marker):
            open(marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return distances(view, anchors, settings)

    monkeypatch.setattr(cluster_distances, "_measure", dies_once)
    found = distances_on_cluster(made(), ANCHORS, DistanceSettings(), tmp_path / "table.npy", block=12)
    assert os.path.exists(marker)
    assert np.array_equal(found, distances(made(), ANCHORS))


def test_a_block_that_fails_leaves_no_file(tmp_path, monkeypatch):
    def fails(view, anchors, settings, threads):
        raise ValueError("out of luck")

    monkeypatch.setattr(cluster_distances, "_measure", fails)
    with pytest.raises(ConfigError, match="distances failed: out of luck"):
        distances_on_cluster(made(), ANCHORS, DistanceSettings(), tmp_path / "table.npy", block=12)
    assert not list(tmp_path.iterdir())


def test_the_positions_of_items_are_the_same_where_their_distances_are_measured_in_blocks(tmp_path, monkeypatch):
    catalog, histories = catalogue()
    monkeypatch.setattr(item_features.directory, "load", lambda _: (catalog, histories))
    found = []
    for block in (None, 5):
        run = Run(tmp_path / str(block))
        structural = {"enabled": True, "anchors": 12, "block": block}
        item_features.place_items(run, validate({"data": {"interactions": "x.csv"}, "structural": structural}, "test"))
        assert [path.name for path in run.features.iterdir()] == ["structural.safetensors"]
        found.append(load_file(run.features / "structural.safetensors")["structural"])
    assert found[0].shape == (40, 12)
    assert np.array_equal(*found)


def catalogue():
    """Forty items of five genres, in the histories of thirty users."""
    ids = [f"i{row}" for row in range(40)]
    rows = np.random.default_rng(0).integers(0, 40, (30, 8))
    histories = Histories([f"u{row}" for row in range(30)], Ragged.of(rows), np.zeros(240, dtype=np.int8))
    return Catalog(ids, ids, ids, {"genre": [[f"g{row % 5}"] for row in range(40)]}), histories


@pytest.mark.parametrize(
    ("anchors", "block", "message"),
    [([], 64, "at least one anchor"), ([NODES], 64, "outside the graph"), ([-1], 64, "outside"), ([0], 0, "block")],
)
def test_what_cannot_be_measured_is_refused(tmp_path, anchors, block, message):
    with pytest.raises(ConfigError, match=message):
        distances_on_cluster(
            made(), np.array(anchors, dtype=np.int64), DistanceSettings(), tmp_path / "t.npy", block=block
        )
    assert not list(tmp_path.iterdir())
