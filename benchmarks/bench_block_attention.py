"""Long histories in training: attention by blocks against a dense mask, for 512 to 16,384 items of one history.

    python bench_block_attention.py [--size tiny]
    python bench_block_attention.py --run RUN

A step is the forward and backward pass of the model's backbone over one history (one token an item, dropout .1, one
thread), in a process of its own, which also gives its peak memory; the variants take turns. ``dense``: a mask over all
pairs; ``blocks``: ``setrec.models.block_attention``; ``4 blocks``: with ``read_blocks: 4``. Dense steps end at
:data:`DENSE` items, for their memory. The catalogue, its softmax and the skip connection are not part of a step.

``--run``, which leaves out the steps, is a trained and evaluated run: for its test users with more than 256 items, all
of which the model reads, which ten items are recommended with ``read_blocks`` and without, and NDCG@10 of both.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import median, previous, write_results

from pipelines.common.run_directory import Run
from pipelines.data import directory
from pipelines.evaluation.scorer import load_weights
from setrec.data.catalog import TEST
from setrec.evaluation import ranking
from setrec.models import backbones
from setrec.models.backbones import CausalBackbone, build_backbone, scratch_config
from setrec.models.block_attention import BLOCK
from setrec.models.setrec_model import SetRecModel
from setrec.ragged import Ragged

LENGTHS, DENSE = (512, 1024, 2048, 4096, 8192, 16384), 4096
VARIANTS: dict[str, int | None] = {"dense": None, "blocks": None, "4 blocks": 4, "16 blocks": 16}
REPEATS = 3


def step(size: str, length: int, variant: str) -> None:
    """Print CPU milliseconds of a step, the second, and peak memory in 1e9 bytes above that before the first."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = scratch_config("qwen3", size, 0.1)
    config.max_position_embeddings = 2 * length
    backbone = build_backbone(config).train()
    assert isinstance(backbone, CausalBackbone)
    backbone.read_blocks = VARIANTS[variant]
    backbones.LONG = 1 << 30 if variant == "dense" else 0
    items, start = torch.randn(1, length, backbone.width, requires_grad=True), torch.zeros(0, backbone.width)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        begun = time.process_time()
        backbone.read(start, items).square().mean().backward()  # type: ignore[no-untyped-call]
        took = time.process_time() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"ms": 1000 * took, "gb": peak * 1024 / 1e9}))


def steps(size: str) -> dict[str, dict[str, Any]]:
    """Medians by length and variant."""
    found: dict[str, dict[str, Any]] = {}
    for length in LENGTHS:
        each: dict[str, list[dict[str, float]]] = {v: [] for v in VARIANTS if v != "dense" or length <= DENSE}
        for _ in range(REPEATS if length <= DENSE else 1):
            for variant, values in each.items():
                command = [sys.executable, __file__, "--step", size, str(length), variant]
                values.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        found[str(length)] = {
            variant: {key: round(median([value[key] for value in values]), 2) for key in ("ms", "gb")}
            for variant, values in each.items()
        }
        print(length, json.dumps(found[str(length)]), flush=True)
    return found


def agreement(run: Run) -> dict[str, Any]:
    """Share of ten items that are the same as without a limit, and NDCG@10, by ``read_blocks``."""
    histories = directory.load(run.data)[1]
    model, weights = SetRecModel.from_pretrained(run.model).eval(), load_weights(run).slots
    model.config.max_items = LENGTHS[-1]
    codes, cases = model.item_codes(), ranking.Cases.of(histories, TEST)
    rows = np.flatnonzero(cases.history.lengths > 2 * BLOCK)
    known, truth = [cases.history[r] for r in rows], [cases.truth[r] for r in rows]
    found, whole = {"users": len(rows)}, np.empty(0)
    backbone = model.backbone
    assert isinstance(backbone, CausalBackbone)
    for limit in (None, 1, 2, 4):
        backbone.read_blocks = limit
        scores = np.concatenate(
            [(model.user_codes(Ragged.of([own]), weights, codes) @ codes.T).numpy() for own in known]
        )
        for own, history in zip(scores, known, strict=True):
            own[history] = -np.inf
        best = np.argsort(-scores, axis=1, kind="stable")[:, :10]
        whole = best if limit is None else whole
        same = np.mean([np.isin(one, other).mean() for one, other in zip(best, whole, strict=True)])
        places = [np.flatnonzero(np.isin(one, own)) for one, own in zip(best, truth, strict=True)]
        ndcg = np.mean([1 / np.log2(place[0] + 2) if len(place) else 0.0 for place in places])
        found[f"read_blocks {limit}"] = {"top10_agreement": round(float(same), 4), "ndcg@10": round(float(ndcg), 4)}
    return found


def main() -> None:
    """Measure and write ``results/block_attention.json``."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--size", choices=list(backbones.SIZES), default="tiny")
    options.add_argument("--run", type=Path, help="a trained and evaluated run")
    options.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.step:
        step(asked.step[0], int(asked.step[1]), asked.step[2])
        return
    found: dict[str, Any] = previous("block_attention")
    if not asked.run:
        found |= {"size": asked.size, "steps": steps(asked.size)}
    else:
        found["agreement"] = agreement(Run(asked.run))
        print(json.dumps(found["agreement"], indent=1))
    write_results("block_attention", found)


if __name__ == "__main__":
    main()
