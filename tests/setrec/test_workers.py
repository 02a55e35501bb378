"""Several processes train as one does: DDP and FSDP over gloo, checkpoints that know nothing of workers."""

import json
import multiprocessing
import os
from multiprocessing import forkserver
from pathlib import Path

import group
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

SAME = 2e-4
"""Relative tolerance of "the same curve" with the same global batches; only the order of float32 sums differs."""
HERE = Path(__file__).parent
FORKED = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Processes are forked from one that has imported what they need, which takes longer than what they do."""
    paths = [str(HERE.parent), str(HERE), str(HERE.parents[1])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setenv("OMP_NUM_THREADS", "1")
        FORKED.set_forkserver_preload(["group"])
        forkserver.ensure_running()


def together(folder: Path, world: int, shard: str, **options) -> list[dict]:
    """The curve of ``world`` processes; the folder may hold a checkpoint to go on from."""
    folder.mkdir(exist_ok=True)
    (meeting := folder / "meeting").unlink(missing_ok=True)
    running = [
        FORKED.Process(target=group.member, args=(rank, world, meeting, shard, folder), kwargs=options)
        for rank in range(world)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(250)
    codes = [process.exitcode for process in running]
    for process in running:
        process.kill()
    assert codes == [0] * world, "what they said stands in the captured output"
    return json.loads((folder / "curve.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, tuple[Path, list[dict]]]:
    """By family, folder and curve of one process without a process group."""
    folders = {family: tmp_path_factory.mktemp(family) for family in ("qwen3", "t5")}
    return {f: (path, group.train(0, 1, "none", path, 3, f).progress.curve) for f, path in folders.items()}


def assert_same(curve: list[dict], other: list[dict]) -> None:
    for key in ("loss", "ndcg@10"):
        np.testing.assert_allclose([r[key] for r in curve], [r[key] for r in other], rtol=SAME)
    assert [r["targets"] for r in curve] == [r["targets"] for r in other]


@pytest.mark.parametrize(
    ("family", "shard", "options"),
    [("qwen3", "none", {"accumulate": 2}), ("qwen3", "fsdp", {"accumulate": 2, "recompute": 1}), ("t5", "fsdp", {})],
)
def test_two_workers_follow_the_curve_of_one(alone, family, shard, options, tmp_path):
    folder, curve = alone[family]
    assert_same(together(tmp_path, 2, shard, family=family, **options), curve)
    ours, one = (load_file(f / "weights.safetensors") for f in (tmp_path, folder))
    assert ours.keys() == one.keys()
    for name, value in one.items():
        torch.testing.assert_close(ours[name], value, atol=2e-4, rtol=2e-3, msg=name)


def test_a_run_goes_on_within_an_epoch_with_another_number_of_workers(alone, tmp_path):
    _, curve = alone["qwen3"]
    worker = group.trainer(0, 1, "none", checkpoint_steps=2)

    def stop() -> None:
        worker.save(tmp_path)
        raise KeyboardInterrupt

    worker.epoch()
    with pytest.raises(KeyboardInterrupt):
        worker.epoch(on_checkpoint=stop)
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert (progress["epoch"], progress["position"]["step"]) == (1, 2)
    assert_same(together(tmp_path, 2, "fsdp", until=2), curve[:2])
    worker = group.trainer(0, 1, "none")
    worker.load(tmp_path)
    worker.epoch()
    assert_same(worker.progress.curve, curve)
