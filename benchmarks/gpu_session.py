"""Everything that wants a GPU in one run of some minutes: throughput, and pretrained against random layers.

    python gpu_session.py pack  --pretrained DIR --out PIECES [--layers 24]     where the checkpoint lies
    python gpu_session.py run   --run RUN --pieces PIECES --out FILE            where the GPU is

``pack`` writes the layers of a Qwen checkpoint as int8 with a scale for each row, in files below 60 MiB, without the
word embeddings, which a recommender does not need. ``run`` needs neither Ray nor FAISS. It trains the recommender on a
prepared run (``setrec prepare``) with the first 4, 8 and all layers, pretrained and from random weights of the same
shape, with LoRA and in full, the same steps each; the published design until its time is up; and it measures tokens a
second and the share of the device's matrix ceiling (``bench_gpu.py``), with and without ``torch.compile``. Each result
is written as soon as it is there, with the device's name; one that ``FILE`` holds is not measured again. ``--tiny``
tries one of everything on a CPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_gpu
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel

from pipelines import recipes
from pipelines.common.run_directory import Run
from pipelines.config.job import JobConfig, load_config
from pipelines.training.worker import trainer_of, wrapper
from setrec.atomic import atomic_directory, atomic_file

PIECE = 60 << 20
DEPTHS = (4, 8, 24)
EMBEDDINGS = ("embed_tokens", "lm_head")
T5_SMALL = {"family": "t5", "size": "base"}


def pack(pretrained: Path, out: Path, layers: int) -> None:
    """Write the first ``layers`` layers and the final normalisation of a checkpoint as int8 pieces."""
    config = AutoConfig.from_pretrained(pretrained)
    weights = {
        name.removeprefix("model."): value
        for file in sorted(pretrained.glob("*.safetensors"))
        for name, value in load_file(file).items()
        if not any(part in name for part in EMBEDDINGS)
    }
    kept = {name: value for name, value in weights.items() if _layer(name) < layers}
    config.num_hidden_layers, config.vocab_size = layers, 1
    config.layer_types = None if config.layer_types is None else config.layer_types[:layers]
    config.pad_token_id = config.bos_token_id = config.eos_token_id = None
    with atomic_directory(out) as target:
        (target / "config.json").write_text(json.dumps(config.to_diff_dict()))
        piece: dict[str, Tensor] = {}
        number = 0
        for name, value in sorted(kept.items()):
            one = _quantized(name, value)
            if piece and _bytes(piece) + _bytes(one) > PIECE:
                save_file(piece, target / f"layers-{number:03d}.safetensors")
                piece, number = {}, number + 1
            piece |= one
        save_file(piece, target / f"layers-{number:03d}.safetensors")


def _layer(name: str) -> int:
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "layers" else 0


def _quantized(name: str, value: Tensor) -> dict[str, Tensor]:
    value = value.float()
    if value.ndim < 2:
        return {name: value.to(torch.bfloat16)}
    scale = value.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
    return {name: (value / scale).round().to(torch.int8), f"{name}.scale": scale}


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in tensors.values())


def unpack(pieces: Path, out: Path) -> Path:
    """Write what :func:`pack` wrote as a bf16 checkpoint with one word."""
    fields = json.loads((pieces / "config.json").read_text())
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    model = AutoModel.from_config(config, dtype=torch.float32)
    stored: dict[str, Tensor] = {}
    for file in sorted(pieces.glob("layers-*.safetensors")):
        stored |= load_file(file)
    weights = {
        name: value.float() * stored[f"{name}.scale"] if f"{name}.scale" in stored else value.float()
        for name, value in stored.items() if not name.endswith(".scale")
    }  # fmt: skip
    missing, unexpected = model.load_state_dict(weights, strict=False)
    left = [name for name in missing if not any(part in name for part in EMBEDDINGS)]
    if left or unexpected:
        raise SystemExit(f"{pieces}: layers do not fit: {[*left, *unexpected][:3]}")
    model.to(torch.bfloat16).save_pretrained(out)
    return out


class Session:
    """Results by name, written as they come."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    def measure(self, name: str, work: Callable[[], Any]) -> None:
        """Do the work unless its result is there, and write it."""
        if name in self.found:
            return
        began = time.perf_counter()
        try:
            result = work()
        except (RuntimeError, ValueError) as error:  # as out of memory: the others are worth having
            result = {"error": str(error).splitlines()[0]}
        self.found[name] = {"result": result, "seconds": round(time.perf_counter() - began, 1)}
        print(name, self.found[name], flush=True)
        with atomic_file(self.file) as path:
            path.write_text(json.dumps(self.found, indent=2))


def trained(run: Run, config: JobConfig, device: torch.device, steps: int, seconds: float = 1e9) -> dict[str, Any]:
    """Train for ``steps`` or ``seconds``; returns validation NDCG@10 by step and targets a second."""
    began, done, curve = time.perf_counter(), 0, []
    trainer = trainer_of(
        run, config, wrap=wrapper(config, 1, device),
        spent=lambda: max(done / steps, (time.perf_counter() - began) / seconds),
    )  # fmt: skip

    def count(_: float) -> None:
        nonlocal done
        done += 1

    targets = 0
    while not trainer.finished and trainer.spent() < 1:
        record = trainer.epoch(count)
        targets += record["targets"]
        curve.append({"step": done, "loss": record["loss"], "ndcg@10": record["ndcg@10"]})
    return {"curve": curve, "best": trainer.progress.best, "steps": done,
            "targets_per_second": targets / max(1e-9, trainer.progress.seconds)}  # fmt: skip


def backbones(config: JobConfig, checkpoint: Path, tiny: bool) -> Iterator[tuple[str, JobConfig]]:
    """The configurations to compare, by name."""
    there_are = AutoConfig.from_pretrained(checkpoint).num_hidden_layers
    for depth in sorted({min(depth, there_are) for depth in DEPTHS}):
        for tuning, lora in (("LoRA", {"rank": 16}), ("full", None)):
            for start in ("pretrained", "random"):
                if start == "random" and lora is not None:
                    continue  # adapters on random layers are no model of their own
                path = checkpoint if start == "pretrained" else checkpoint.with_name("random")
                backbone = {"pretrained": str(path), "layers": depth, "lora": lora}
                rate = {"learning_rate": 1e-3 if lora else 2e-4, "epochs": 1000, "patience": 1000}
                yield (
                    f"{start}, {depth} layers, {tuning}",
                    recipes.applied(config, {"model": {"backbone": backbone}, "training": rate}),
                )
                if tiny:
                    return


def run_all(given: argparse.Namespace, device: torch.device) -> None:
    """Measure everything that is not in the file."""
    session, run = Session(given.out), Run(given.run)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    session.measure("device", lambda: {"name": name, "torch": torch.__version__})
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = unpack(given.pieces, Path(scratch) / "pretrained")
        torch.manual_seed(0)
        random = AutoModel.from_config(AutoConfig.from_pretrained(checkpoint), dtype=torch.bfloat16)
        random.save_pretrained(Path(scratch) / "random")
        config = load_config(run.root / "config.yaml")
        for label, own in backbones(config, checkpoint, given.tiny):
            session.measure(f"recommender, {label}", lambda own=own: trained(run, own, device, given.steps))
        published = recipes.merged(recipes.load("published-t5"), {"model": {"table": "random", "backbone": T5_SMALL}})
        published = recipes.merged(published, {"training": {"epochs": 1000, "patience": 6}})
        session.measure(
            "published design, T5",
            lambda: trained(run, recipes.applied(config, published), device, 1_000_000, given.published_seconds),
        )
    peak = bench_gpu.ceiling(device, 256 if given.tiny else 8192)
    session.measure("ceiling_tflops", lambda: peak / 1e12)
    small = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4}
    for shape in bench_gpu.SHAPES[: 1 if given.tiny else None]:
        for backbone in ("Qwen-0.5B",) if given.tiny else bench_gpu.BACKBONES:
            for compiled in (False, True):
                wanted = replace(shape, rows=2) if given.tiny else shape
                label = f"{backbone}, {shape.rows} histories of {shape.length}, {shape.history}"
                session.measure(
                    f"training, {label}, {'compiled' if compiled else 'eager'}",
                    lambda b=backbone, s=wanted, c=compiled: throughput(
                        b, s, device, peak, compiled=c, changes=small if given.tiny else None
                    ),
                )


def throughput(
    name: str,
    shape: bench_gpu.Shape,
    device: torch.device,
    peak: float,
    *,
    compiled: bool,
    changes: dict[str, int] | None,
) -> dict[str, float]:
    """Tokens a second of a training step, and its share of the ceiling."""
    model = bench_gpu.build(name, shape, device, changes)
    work = 3 * bench_gpu.forward_work(model, shape, device, train=True)
    if compiled:
        model.backbone.compile(dynamic=False)
    took = bench_gpu.seconds(bench_gpu.training(model, shape, device), device, repeats=5)
    tokens = bench_gpu.tokens(model, shape, shape.length)
    return {"tokens_per_second": tokens / took, "share_of_ceiling": work / took / peak}


def main() -> None:
    """Pack, or run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(required=True, dest="action")
    packing, running = actions.add_parser("pack"), actions.add_parser("run")
    packing.add_argument("--pretrained", type=Path, required=True)
    packing.add_argument("--layers", type=int, default=24)
    packing.add_argument("--out", type=Path, required=True)
    running.add_argument("--run", type=Path, required=True)
    running.add_argument("--pieces", type=Path, required=True)
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--steps", type=int, default=400, help="of each comparison of backbones")
    running.add_argument("--published-seconds", type=float, default=120.0)
    running.add_argument("--tiny", action="store_true", help="one of everything, on whatever device there is")
    given = parser.parse_args()
    if given.action == "pack":
        pack(given.pretrained, given.out, given.layers)
        return
    if not given.tiny and not torch.cuda.is_available():
        raise SystemExit("gpu_session: no GPU found; --tiny tries the script on a CPU")
    run_all(given, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


if __name__ == "__main__":
    main()
