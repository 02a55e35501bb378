"""The demonstration on MovieLens-100K: raw files, trained model, ranking table, bundle, endpoint, one request."""

from __future__ import annotations

import socket
import time
from typing import Any

import httpx
from rich.panel import Panel

from pipelines.common.cluster import ray_session
from pipelines.common.progress import bar, console, results
from pipelines.common.run_directory import Run
from pipelines.config.job import JobConfig, load_config, validate
from pipelines.data import directory
from pipelines.features import preparation
from pipelines.jobs import stages
from pipelines.jobs.datasets import movielens_100k, packaged_encoder
from pipelines.reports.terminal import answer_table, example_table, ranking_table
from serving.deployment import ray_app


def demo_config(port: int, overrides: list[str]) -> JobConfig:
    """Return the configuration: data and encoder from installed packages, one thread, and, to save
    time, six epochs and a refit that continues the model for two. All other settings are the defaults.

    Two threads train so small a model in three quarters of the time with half as much more work.
    """
    raw = {
        "name": "MovieLens-100K",
        "data": movielens_100k().model_dump(mode="json"),
        "encoder": {"path": str(packaged_encoder())},
        "cluster": {"threads": 1},
        "training": {"epochs": 6, "refit_epochs": 2},
        "evaluation": {"opponents": ["popularity", "item_knn"]},
        "serving": {"port": port, "auth": "off"},
    }
    return validate(raw, "demo", overrides)


def run_demo(run: Run, port: int, overrides: list[str]) -> None:
    """Run every step into ``run`` and print the results."""
    config, out, began = demo_config(_free(port), overrides), results(), time.perf_counter()
    _require_demo(run, config)
    run.clear()
    preparation.prepare(run, config)
    with ray_session(cpus=max(2, config.cluster.workers)):
        stages.fit(run, config)
        rows = stages.assess(run, config)
        stages.release(run, config)
        example = run.read_json("examples.json")[0]
        answer = _served_answer(run, config, _request(run, example["user_id"]))
    out.print(ranking_table(rows))
    out.print(example_table(example))
    out.print(
        answer_table(
            answer, title="The endpoint's answer to the whole history, the held-out film too, POST /v1/recommend"
        )
    )
    minutes = (time.perf_counter() - began) / 60
    out.print(
        Panel(
            f"Report     {run.root / 'report.html'}\n"
            f"Bundle     {run.bundle}\n"
            f"Figures    {run.root / 'metrics.json'}\n"
            f"Serve it   setrec serve --bundle {run.bundle} --no-auth\n"
            f"Ablation   setrec ablate --run {run.root}   (what each kind of token adds: three trainings)",
            title=f"Done in {minutes:.1f} minutes",
            expand=False,
        )
    )


def _require_demo(run: Run, config: JobConfig) -> None:
    """Refuse to replace a trained run that is not a demonstration."""
    if run.config.is_file() and load_config(run.config).data != config.data:
        preparation.require_force(run, False)


def _request(run: Run, user_id: str) -> dict[str, Any]:
    """Return a request for a user of the examples with the whole history. Asking for the held-out item would be unfair,
    because the bundle's transitions include all histories, also this user's."""
    catalog, histories = directory.load(run.data)
    history = histories.items[histories.row(user_id)]
    return {"history": [catalog.item_ids[row] for row in history], "k": 10}


def _served_answer(run: Run, config: JobConfig, body: dict[str, Any]) -> dict[str, Any]:
    with bar("Serve and ask") as progress:
        ray_app.start(run.bundle, config.serving)
        try:
            url = f"http://{config.serving.host}:{config.serving.port}/v1/recommend"
            httpx.post(url, json=body, timeout=30).raise_for_status()
            began = time.perf_counter()
            response = httpx.post(url, json=body, timeout=30)
            response.raise_for_status()
            progress.update(1, 1, f"{url} in {1000 * (time.perf_counter() - began):.0f} ms")
        finally:
            ray_app.stop()
    answer: dict[str, Any] = response.json()
    return answer


def _free(port: int) -> int:
    """Return ``port``, or any free one if ``port`` is in use."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) != 0:
            return port
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        chosen: int = any_port.getsockname()[1]
    console.print(f"[yellow]Port {port} is taken; the endpoint uses {chosen}.[/yellow]")
    return chosen
