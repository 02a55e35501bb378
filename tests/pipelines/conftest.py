"""What is made once for all tests: runs trained on a tiny catalogue, to be read only, and a Ray session."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from s3_server import KEYS
from safetensors.numpy import save_file
from stored_checkpoints import stored_checkpoint

from pipelines.cli import app
from pipelines.common.cluster import ray_session
from pipelines.common.progress import Bar
from pipelines.common.run_directory import PREPARED, TRAINED, Run
from pipelines.common.trackers import Trackers
from pipelines.config.job import JobConfig, load_config
from pipelines.data import directory
from pipelines.evaluation import evaluate
from pipelines.features import item_features
from pipelines.ingest import ingest
from pipelines.jobs import export, run_report
from pipelines.training import train
from pipelines.training.worker import work
from setrec.models.setrec_model import SetRecModel
from setrec.training.trainer import Trainer

CONFIG = """
data:
  interactions: {folder}/interactions.csv
  items: {folder}/items.csv
  columns: {{position: position, attributes: [genre]}}
structural: {{enabled: {structural}, anchors: 12}}
sasrec: {{epochs: 2, layers: 1, width: 16, heads: 1}}
model:
  {{table: sasrec, max_items: 10, hidden: [32, 16], text_slot: 8, backbone: {backbone}}}
training: {{epochs: 2, targets_per_batch: 256, precision: float32}}
evaluation: {{resamples: 50, examples: 2, opponents: [popularity, item_knn, sasrec]}}
"""


def trained_run(folder: Path, backbone: dict[str, str], structural: bool) -> Run:
    """A trained, evaluated, exported run. Text vectors are made up, and Ray is left out: other tests cover them."""
    rng = np.random.default_rng(0)
    rows = [
        (f"u{u}", f"i{(start + step) % 30}", step)
        for u, start in enumerate(rng.integers(0, 30, 60))
        for step in range(int(rng.integers(5, 15)))
    ]
    # One item is only ever chosen last: cold.
    rows += [("u_cold", f"i{step}", step) for step in range(5)] + [("u_cold", "i_cold", 5)]
    pd.DataFrame(rows, columns=["user_id", "item_id", "position"]).to_csv(folder / "interactions.csv", index=False)
    items = [f"i{i}" for i in range(30)] + ["i_cold"]
    genres = [f"genre {row % 5}" for row in range(len(items))]
    table = pd.DataFrame({"item_id": items, "title": [f"Film {i}" for i in items], "genre": genres})
    table.to_csv(folder / "items.csv", index=False)
    text = CONFIG.format(folder=folder, backbone=json.dumps(backbone), structural=structural)
    (folder / "config.yaml").write_text(text)
    run, config = Run(folder / "run"), load_config(folder / "config.yaml")
    run.claim(*TRAINED, *PREPARED)
    ingest.ingest(config.data, run.data)
    config.save(run.config)
    if structural:
        item_features.place_items(run, config)
    item_features.train_collaborative(run, config)
    catalog, histories = directory.load(run.data)
    save_file({"text": rng.normal(size=(len(catalog), 24)).astype(np.float32)}, run.features / "text.safetensors")
    item_features.encode_words(run, config)
    torch.manual_seed(0)
    model = SetRecModel.build(config.model, item_features.load_features(run, config, histories.trained(len(catalog))))
    trainer = Trainer(model, histories.upto(0), lambda _: [0.5], config.training, config.loss)
    trainer.epoch()
    model.eval().save_pretrained(run.model)
    evaluate.evaluate(run, config)
    run_report.write_report(run.root)
    export.export(run, config)
    return run


@pytest.fixture(scope="session")
def qwen3_run(tmp_path_factory) -> Run:
    """With a Qwen backbone, from a checkpoint in bf16 as hubs have them, and structural slots. To be read only."""
    stored = stored_checkpoint(tmp_path_factory.mktemp("checkpoint"), "qwen3")
    return trained_run(tmp_path_factory.mktemp("qwen3"), {"pretrained": stored}, True)


@pytest.fixture(scope="session")
def t5_run(tmp_path_factory) -> Run:
    """With a T5 backbone. To be read only."""
    return trained_run(tmp_path_factory.mktemp("t5"), {"family": "t5"}, False)


CORES = 4
"""That the Ray session of a test process says it has, however many there are."""
_session = ExitStack()


@pytest.fixture(scope="module")
def ray_here() -> None:
    """The Ray session of this process, one for all tests of this folder; its workers know the keys of ``s3_server``."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        _session.enter_context(ray_session(cpus=CORES))


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """End the session behind the last test of this folder: serving starts its own, with a proxy that this one lacks."""
    if nextitem is None or Path(__file__).parent not in nextitem.path.parents:
        _session.close()


@pytest.fixture
def commanded(monkeypatch, capfd) -> Callable[..., tuple[int, str]]:
    """Runs the command line in this process; returns the exit code and what was said beside the results."""

    def run(*given: str | Path) -> tuple[int, str]:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["setrec", *map(str, given)])
        code = 0
        try:
            app.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, capfd.readouterr().err

    return run


@contextmanager
def trained_here() -> Iterator[None]:
    """Jobs train in this process in place of a Ray worker: the same work, without the half minute of starting one."""

    def fit(run: Run, config: JobConfig, progress: Bar, follow: Trackers, *, refit: bool) -> None:
        def log(record: dict[str, Any]) -> None:
            system = "SETRec, refit" if refit else "SETRec"
            run.log("epoch", system=system, **record)
            follow.epoch(system, record)

        work(run, config, 0, 1, torch.device("cpu"), refit=refit, on_epoch=log)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "_fit", fit)
        patch.setattr(train, "ray_session", lambda *_: nullcontext())
        yield


@pytest.fixture(scope="module")
def without_ray_train() -> Iterator[None]:
    """All tests of a module that asks for this train in this process."""
    with trained_here():
        yield
