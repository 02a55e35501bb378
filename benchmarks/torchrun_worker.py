"""One training worker under torchrun: what a Ray worker does, without Ray. ``torchrun ... torchrun_worker.py RUN``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from pipelines.common.run_directory import Run
from pipelines.config.job import load_config
from pipelines.training.worker import store_of, work


def main() -> None:
    """Train the run with as many workers as were started; worker 0 leaves the curve in ``curve.json``."""
    run = Run(Path(sys.argv[1]))
    config = load_config(run.config)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(config.cluster.threads or max(1, (os.cpu_count() or 1) // world))
    if rank == 0:
        store_of(run, config).create()
    dist.barrier()
    trainer = work(run, config, rank, world, torch.device("cpu"))
    if rank == 0:
        (run.root / "curve.json").write_text(json.dumps(trainer.progress.curve))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
