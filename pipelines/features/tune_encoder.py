"""Fine-tuning of a run's sentence encoder on training histories, before item texts are encoded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pipelines.common.progress import bar
from pipelines.common.run_directory import Run
from pipelines.config.job import JobConfig
from pipelines.data import directory
from pipelines.features import lineage, warm
from setrec.atomic import atomic_directory
from setrec.text.encoder import TextEncoder
from setrec.text.upper_layers import UpperLayers
from setrec.training.encoder.tuning import fine_tune
from setrec.training.encoder.two_towers import TwoTowers

ENCODER, RECORD = "encoder", "encoder_tuning.json"
_STATES = "states"


def tune_encoder(run: Run, config: JobConfig) -> bool:
    """Make ``run.encoder`` the fine-tuned sentence encoder, and write recall@10 and NDCG@10 of its two towers on
    validation, before and after, to ``encoder_tuning.json``; without ``encoder.finetune.epochs`` remove both. Return
    whether anything changed.

    A warm start continues to use the encoder of its source, whose vectors its model reads.

    Raises:
        ConfigError: the encoder cannot be loaded or fine-tuned, or the source of the warm start is not usable.
    """
    if not config.encoder.finetune.epochs:
        there = run.encoder.exists()
        run.discard(ENCODER, RECORD)
        return there
    parts = lineage.of_encoder(run, config)
    if lineage.fits(run, ENCODER, parts):
        return False
    run.claim(ENCODER, RECORD)
    source = warm.sentence_encoder(config.warm_start)
    with atomic_directory(run.encoder) as folder:
        if source is None:
            found = _tuned(run, config, folder)
        else:
            shutil.copytree(source, folder, dirs_exist_ok=True)
            found = {"warm_start": str(config.warm_start)}
    run.write_json(RECORD, found)
    run.log("encoder", **{key: found[key] for key in found if key != "epochs"})
    run.note_made_from(ENCODER, **parts)
    return True


def _tuned(run: Run, config: JobConfig, folder: Path) -> dict[str, Any]:
    """Write the fine-tuned encoder into ``folder``; return its record."""
    s, tuning = config.encoder, config.encoder.finetune
    catalog, histories = directory.load(run.data)

    def report(record: dict[str, Any]) -> None:
        run.log("epoch", system="text encoder", **record)
        progress.update(record["epoch"], record["epochs"], f"validation recall@10 {record['recall@10']:.4f}")

    with bar("Fine-tune text encoder") as progress:
        encoder = TextEncoder(str(s.path), batch_size=s.batch_size, max_length=s.max_length)
        states = folder / _STATES
        items = UpperLayers(encoder, tuning.layers, catalog.texts, states, lambda done, _: progress.update(0, done))
        found = fine_tune(TwoTowers(items, tuning.latest, tuning.temperature), histories, tuning, report)
        states.unlink()
        items.save(folder)
        before, after = (found[name]["recall@10"] for name in ("before", "after"))
        progress.update(1, 1, f"validation recall@10 {before:.4f} before, {after:.4f} after")
    return found
