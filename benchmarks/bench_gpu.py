"""On a GPU: training in one pass and generation with backbones of T5-base's and Qwen2.5-0.5B's size, random weights.

bfloat16 under autocast. Attention by PyTorch's scaled-dot-product kernels with a table of who sees whom, as the package
does, and by flex attention's block-sparse mask (``flex.py``). Tokens are those of the instruction, the items and the
queries. Work is what the first variant's forward pass multiplies (PyTorch's own count), three times for training; its
rate is given as a share of what the device does in one large bfloat16 matrix product, measured here. Memory is the peak
of a step, weights and moments included. No dropout, since flex attention has none.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from flex import use_flex
from harness import write_results
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from setrec.models.configuration import SetRecConfig
from setrec.models.setrec_model import SetRecModel
from setrec.ragged import Ragged
from setrec.training.losses import batch_terms, total
from setrec.training.settings import ObjectiveSettings

ITEMS, K = 12_101, 10
T5_BASE: dict[str, Any] = {
    "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_decoder_layers": 12, "num_heads": 12,
    "feed_forward_proj": "gated-gelu", "dropout_rate": 0.0, "pad_token_id": 0, "eos_token_id": 0,
    "decoder_start_token_id": 0,
}  # fmt: skip
QWEN: dict[str, Any] = {
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "tie_word_embeddings": True,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
BACKBONES = {"T5-base": ("t5", T5_BASE), "Qwen-0.5B": ("qwen2", QWEN)}


@dataclass(frozen=True)
class Shape:
    """A step of ``rows`` histories of ``length`` items, each read as its set of five tokens or fused."""

    rows: int
    length: int
    history: str


SHAPES = (Shape(64, 50, "fused"), Shape(16, 200, "fused"), Shape(16, 50, "set"))


def build(name: str, shape: Shape, device: torch.device, changes: dict[str, int] | None = None) -> SetRecModel:
    """A model with random weights and random item features; ``changes`` shrink the backbone for a trial."""
    family, sizes = BACKBONES[name]
    torch.manual_seed(0)
    backbone = AutoConfig.for_model(family, vocab_size=1, **{**sizes, **(changes or {})}).to_dict()
    config = SetRecConfig(items=ITEMS, backbone=backbone, history=shape.history, max_items=shape.length, instruction=16)
    model = SetRecModel(config)
    with torch.no_grad():
        for part in model.tokens.parts.values():
            getattr(part, "table", getattr(part, "features", None)).normal_()
    return model.to(device)


def ceiling(device: torch.device, size: int = 8192) -> float:
    """Floating-point operations a second of a bfloat16 matrix product."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, device)


def seconds(run: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    """Median time of a call, warmed up three times (compilation included)."""
    for _ in range(3):
        run()
    found = []
    for _ in range(repeats):
        _wait(device)
        began = time.perf_counter()
        run()
        _wait(device)
        found.append(time.perf_counter() - began)
    return sorted(found)[len(found) // 2]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def tokens(model: SetRecModel, shape: Shape, blocks: int) -> int:
    """Tokens of a step in which every row has ``blocks`` blocks of queries."""
    per_row = model.config.instruction + shape.length * model.tokens_per_item + blocks * len(model.tokens.read)
    return shape.rows * per_row


def training(model: SetRecModel, shape: Shape, device: torch.device) -> Callable[[], object]:
    """A step of one-pass training: every item of every history is a target."""
    drawn = torch.randint(ITEMS, (shape.rows, shape.length + 1), device=device)
    visible = torch.arange(1, shape.length + 1, device=device).expand(shape.rows, -1)
    rows, settings = torch.arange(min(256, ITEMS), device=device), ObjectiveSettings()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    model.train()

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            terms = batch_terms(model, drawn[:, :-1], visible, drawn[:, 1:], settings, rows)
            value = total(terms, settings, drawn[:, 1:].numel())
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def generation(model: SetRecModel, shape: Shape, device: torch.device) -> Callable[[], object]:
    """Ten items for every row, the whole catalogue ranked."""
    rows = Ragged.of(list(torch.randint(ITEMS, (shape.rows, shape.length)).numpy()))
    model.eval()
    codes, weights = model.item_codes(), dict.fromkeys(model.kinds, 1.0)

    @torch.no_grad()
    def answer() -> object:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return torch.topk(model.user_codes(rows, weights, codes) @ codes.T, K)

    return answer


def forward_work(model: SetRecModel, shape: Shape, device: torch.device, *, train: bool) -> float:
    """Floating-point operations of the backbone's forward pass, with the table of who sees whom."""
    items = torch.zeros(shape.rows, shape.length, dtype=torch.long, device=device)
    blocks = torch.arange(1, shape.length + 1, device=device) if train else torch.tensor([shape.length], device=device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.outputs(items, blocks.expand(shape.rows, -1), model.item_codes())
    return float(counter.get_total_flops())


def compare(
    name: str, shape: Shape, device: torch.device, peak: float, changes: dict[str, int] | None = None
) -> dict[str, dict[str, float]]:
    """Both attentions, training and generation."""
    found: dict[str, dict[str, float]] = {}
    for kind in ("sdpa", "flex"):
        for job, make in (("training", training), ("generation", generation)):
            train = job == "training"
            if kind == "flex" and train and device.type != "cuda":
                continue  # PyTorch's flex attention has no gradients there
            model = build(name, shape, device, changes)
            work = forward_work(model, shape, device, train=train) * (3 if train else 1)
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            step = make(use_flex(model) if kind == "flex" else model, shape, device)
            took = seconds(step, device)
            found[f"{job}, {kind}"] = {
                "tokens_per_second": tokens(model, shape, shape.length if train else 1) / took,
                "histories_per_second": shape.rows / took,
                "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else float("nan"),
                "share_of_ceiling": work / took / peak,
            }
    return found


def gpu_figures(device: torch.device) -> dict[str, Any]:
    """All backbones and shapes; what is measured is written as it goes, so that a run cut short keeps it."""
    peak = ceiling(device)
    figures: dict[str, Any] = {"device": torch.cuda.get_device_name(device), "ceiling_tflops": peak / 1e12}
    for shape in SHAPES:
        for name in BACKBONES:
            key = f"{name}, {shape.rows} histories of {shape.length} items, {shape.history}"
            figures[key] = compare(name, shape, device, peak)
            print(key, figures[key], flush=True)
            write_results("gpu", figures)
    return figures


def main() -> None:
    """Measure, print and write ``results/gpu.json``."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench_gpu: no GPU found, nothing was measured")
    gpu_figures(torch.device("cuda"))


if __name__ == "__main__":
    main()
