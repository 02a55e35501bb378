"""A step of training on one core: share of the rate of one large matrix product, and where the rest of the time goes.

    python bench_training_ceiling.py --data DIR [--before TREE]

``DIR`` holds ``interactions.parquet`` with ``user_id``, ``item_id`` and ``position``, the last two interactions of each
user are left out; texts are random vectors of width 384, since speed does not depend on them. Model, objective and
batches are the defaults, for every size of the backbone, in float32 and in bfloat16, and in
float32 without the collaborative leg. Each variant is a process of its own with one thread, in which large matrix
products and the same steps take turns.

*Work* of a step are its floating-point operations, forward and backward, by PyTorch's count. *share* is work by CPU
seconds over the rate of the product of two 2,048 x 2,048 matrices in the precision of the step, ``of_float32`` over
that in float32. *outside*: the share of CPU seconds that is neither the model, its loss, nor the optimiser: batches,
negatives, the schedule. Groups are those of PyTorch's profiler, by wall-clock time of operations; a backward operation
belongs to the group of its forward operation.

``--before`` measures an earlier checkout in turn, with the leg, and gives the ratios of CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice, product
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import torch
from harness import median, previous, write_results
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface

from setrec import precision
from setrec.models import attention
from setrec.models.item_tokens import ItemFeatures, ItemTokens
from setrec.models.setrec_model import SetRecModel
from setrec.models.settings import BackboneSettings, LegSettings, ModelSettings
from setrec.ragged import Ragged
from setrec.training import trainer as training
from setrec.training.settings import ObjectiveSettings, TrainingSettings
from setrec.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
SIZES = ("tiny", "small", "base")
KINDS = (("leg", "float32"), ("leg", "bf16"), ("no leg", "float32"))
SIDE, STEPS, WARM_UP, ROUNDS = 2048, 4, 2, 3
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
CODES, ATTENTION, LOSS, OPTIMIZER = "item codes", "attention", "softmax and loss", "optimiser"
REGIONS = (CODES, ATTENTION, LOSS, OPTIMIZER)
OTHER_PRODUCTS, ELEMENTWISE, HOST = "other matrix products", "other elementwise and copies", "Python between operations"


def histories(data: Path) -> tuple[Ragged, int]:
    """Training histories of the data, items in random order of rows, and the number of items."""
    table = pq.read_table(data / "interactions.parquet", columns=["user_id", "item_id", "position"]).to_pandas()
    table = table.sort_values(["user_id", "position"])
    items = table["item_id"].astype("category").cat.codes.to_numpy()
    count = int(items.max()) + 1
    items = np.random.default_rng(0).permutation(count)[items]
    starts = np.flatnonzero(table["user_id"].to_numpy()[1:] != table["user_id"].to_numpy()[:-1]) + 1
    return Ragged.of([own[:-2] for own in np.split(items, starts)]), count


def trainer_of(rows: Ragged, items: int, size: Any, leg: bool, asked: Any) -> Trainer:
    """The trainer of the default model over random features."""
    rng = np.random.default_rng(0)
    features = ItemFeatures(
        trained=np.bincount(rows.values, minlength=items) > 0,
        collaborative=0.1 * rng.standard_normal((items, 64), dtype=np.float32),
        text=rng.standard_normal((items, 384), dtype=np.float32),
    )
    torch.manual_seed(0)
    settings = ModelSettings(backbone=BackboneSettings(size=size), collaborative_leg=LegSettings() if leg else None)
    model = SetRecModel.build(settings, features)
    return Trainer(model, rows, None, TrainingSettings(precision=asked), ObjectiveSettings())


def product_rate(dtype: torch.dtype) -> float:
    """Floating-point operations per CPU second of one large matrix product."""
    a, b = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
    a @ b
    return 2 * SIDE**3 / _cpu(lambda: a @ b)


def _cpu(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


@contextmanager
def regions() -> Iterator[None]:
    """Mark the regions that the profiler does not know by name."""

    def marked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with record_function(name):
                return function(*args, **kwargs)

        return call

    clip = mock.patch.object(torch.nn.utils, "clip_grad_norm_", marked(OPTIMIZER, torch.nn.utils.clip_grad_norm_))
    codes = mock.patch.object(ItemTokens, "codes", marked(CODES, ItemTokens.codes))
    AttentionInterface.register(attention.NAME, marked(ATTENTION, attention.set_attention))
    try:
        with clip, codes:
            yield
    finally:
        AttentionInterface.register(attention.NAME, attention.set_attention)


def _region(event: Any) -> str | None:
    """The region an operation is in by its own name or that of an operation around it."""
    while event is not None:
        if event.name in REGIONS:
            return str(event.name)
        if "CrossEntropy" in event.name:
            return LOSS
        if event.name.startswith("Optimizer."):
            return OPTIMIZER
        event = event.cpu_parent
    return None


def groups(worker: Trainer, steps: list[Any]) -> dict[str, float]:
    """Shares of the time of steps by group."""
    with regions(), profile(activities=[ProfilerActivity.CPU]) as found:
        began = time.perf_counter()
        for step in steps:
            worker._step(step)
        whole = time.perf_counter() - began
    events = list(found.events() or [])
    forward = {e.sequence_nr: region for e in events if e.sequence_nr >= 0 and e.scope == 0 and (region := _region(e))}

    def region_of(event: Any) -> str | None:
        own, at = _region(event), event
        while own is None and at is not None:
            own = forward.get(at.sequence_nr) if at.scope == 1 else None
            at = at.cpu_parent
        return own

    seconds: dict[str, float] = defaultdict(float)
    for event in events:
        plain = OTHER_PRODUCTS if event.name in PRODUCTS else ELEMENTWISE
        seconds[region_of(event) or plain] += event.self_cpu_time_total / 1e6
    seconds[HOST] = max(0.0, whole - sum(seconds.values()))
    return {name: round(value / whole, 3) for name, value in seconds.items()}


def variant(data: Path, size: str, leg: bool, asked: str) -> dict[str, Any]:
    """The figures of one variant, in this process."""
    torch.set_num_threads(1)
    rows, items = histories(data)
    worker = trainer_of(rows, items, size, leg, asked)
    worker.wrapped.train()
    steps = list(islice(worker.stream.steps(0), WARM_UP + STEPS))
    for step in steps[:WARM_UP]:
        worker._step(step)
    steps = steps[WARM_UP:]
    with FlopCounterMode(display=False) as counter:
        for step in steps:
            worker._step(step)
    work = counter.get_total_flops() / STEPS
    kinds = {"float32": torch.float32, precision.resolve(worker.settings.precision, torch.device("cpu")): None}
    kinds = {name: torch.bfloat16 if name == "bf16" else torch.float32 for name in kinds}
    prepared = sum(1 for _ in worker.stream.steps(1))
    batches = _cpu(lambda: sum(1 for _ in worker.stream.steps(1))) / prepared
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    taken: list[float] = []
    inside: list[float] = []
    for _ in range(ROUNDS):
        for name, dtype in kinds.items():
            rates[name].append(product_rate(dtype))
        own, part = _timed(worker, steps)
        taken.append(own + batches)
        inside.append(part)
    seconds, (plain, own_rate) = median(taken), (median(rates["float32"]), median(list(rates.values())[-1]))
    return {
        "precision": list(kinds)[-1],
        "gflop": round(work / 1e9, 2),
        "ms": round(1000 * seconds, 1),
        "ceiling_gflops": round(own_rate / 1e9),
        "share": round(work / seconds / own_rate, 3),
        "share_of_float32": round(work / seconds / plain, 3),
        "outside": round(1 - median(inside) / seconds, 4),
        "groups": groups(worker, steps),
    }


def _timed(worker: Trainer, steps: list[Any]) -> tuple[float, float]:
    """CPU seconds of a step, and of the model, its loss and the optimiser in it."""
    inside = 0.0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            began = time.process_time()
            found = function(*args, **kwargs)
            inside += time.process_time() - began
            return found

        return call

    optimizer = worker.optimizer
    with (
        mock.patch.object(worker, "_backward", counted(worker._backward)),
        mock.patch.object(training.torch.nn.utils, "clip_grad_norm_", counted(torch.nn.utils.clip_grad_norm_)),
        mock.patch.object(optimizer, "step", counted(optimizer.step)),
        mock.patch.object(optimizer, "zero_grad", counted(optimizer.zero_grad)),
    ):
        whole = _cpu(lambda: [worker._step(step) for step in steps])
    return whole / len(steps), inside / len(steps)


def in_process(tree: Path, *arguments: str) -> dict[str, Any]:
    """The figures of a variant in a process that imports the checkout ``tree``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree)}
    command = [sys.executable, __file__, *arguments]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


def main() -> None:
    """Measure and write ``results/training_ceiling.json``."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="folder with interactions.parquet")
    options.add_argument("--before", type=Path, metavar="TREE", help="an earlier checkout to compare with")
    options.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    options.add_argument("--variant", nargs=3, help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.variant:
        size, leg, kind = asked.variant
        print(json.dumps(variant(asked.data, size, leg == "leg", kind)))
        return
    trees = {"now": ROOT} | ({} if asked.before is None else {"before": asked.before.resolve()})
    found: dict[str, Any] = dict(previous("training_ceiling").get("variants", {}))
    for size, (leg, kind) in product(asked.sizes, KINDS):
        each = {
            name: in_process(tree, "--data", str(asked.data.resolve()), "--variant", size, leg, kind)
            for name, tree in trees.items()
            if name == "now" or leg == "leg"
        }
        record = each["now"]
        if "before" in each:
            record |= {f"{key}_before": each["before"][key] for key in ("ms", "share", "groups")}
            record["time_over_before"] = round(record["ms"] / record["ms_before"], 3)
        found[f"{size}, {leg}, {kind}"] = record
        print(size, leg, kind, json.dumps(record), flush=True)
        write_results("training_ceiling", {"data": asked.data.name, "variants": found})


if __name__ == "__main__":
    main()
