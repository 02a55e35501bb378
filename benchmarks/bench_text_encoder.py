"""What fine-tuning on next items adds to a sentence encoder alone: recall@10 and NDCG@10 of its two towers.

``--data`` is a folder with ``interactions.parquet`` and ``items.parquet``. Leave-one-out, all items ranked, history
removed; early stopping on validation. ``--set`` changes a setting of ``encoder.finetune``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
import yaml
from harness import write_results
from rich.console import Console
from rich.table import Table

from pipelines.benchmark.base.problem import settings_of
from pipelines.data import directory
from pipelines.ingest import ingest
from pipelines.jobs.datasets import packaged_encoder
from setrec.data.catalog import TEST
from setrec.evaluation import ranking
from setrec.text.encoder import TextEncoder
from setrec.text.upper_layers import UpperLayers
from setrec.training.encoder.tuning import fine_tune, measure
from setrec.training.encoder.two_towers import TwoTowers
from setrec.training.settings import EncoderTuningSettings

EPOCHS = 5


def main() -> None:
    """Fine-tune, print the table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", default=None, help="Directory or hub id; default: the packaged one.")
    parser.add_argument("--max-length", type=int, default=256, help="Tokens of a text.")
    parser.add_argument("--set", nargs="*", default=[], help="For example epochs=3 learning_rate=1.0e-4.")
    asked = parser.parse_args()
    given = {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in asked.set)}
    settings = EncoderTuningSettings(**{"epochs": EPOCHS, **given})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ingest.ingest(settings_of(asked.data, "leave-one-out"), folder / "data")
        catalog, histories = directory.load(folder / "data")
        encoder = TextEncoder(asked.encoder or packaged_encoder(), max_length=asked.max_length, device="cpu")
        began = time.process_time()
        items = UpperLayers(encoder, settings.layers, catalog.texts, folder / "states")
        towers, stored = TwoTowers(items, settings.latest, settings.temperature), time.process_time()
        test = ranking.Cases.of(histories, TEST)
        before, untimed = measure(towers, test), time.process_time() - stored
        record = fine_tune(towers, histories, settings, report=lambda epoch: print(epoch, flush=True))
        minutes = {"states": (stored - began) / 60, "training": (time.process_time() - stored - untimed) / 60}
        found = {
            "validation": {"before": record["before"], "after": record["after"]},
            "test": {"before": before, "after": measure(towers, test)},
        }
    table = Table("", "", "recall@10", "NDCG@10", title=f"{asked.data.name}: {len(test)} users, {len(catalog)} items")
    for split, when in ((split, when) for split in found for when in ("before", "after")):
        table.add_row(split, when, *(f"{found[split][when][metric]:.4f}" for metric in ("recall@10", "ndcg@10")))
    Console().print(table, f"CPU minutes: {minutes}; epoch {record['best_epoch']} of {len(record['epochs'])}")
    figures = {**found, "cpu_minutes": minutes, "settings": settings.model_dump(), "epochs": record["epochs"]}
    write_results(f"text_encoder_{asked.data.name.replace('-', '_')}", figures)


if __name__ == "__main__":
    main()
