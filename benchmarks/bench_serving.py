"""The endpoint under load: Ray Serve against bare uvicorn, batches against one at a time, four times too much.

The bundle has the demonstration's size and random weights (``serving_bundle``); the client runs on the same machine.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from harness import RESULTS, write_results
from load import Load, closed_loop, encode, open_loop
from serving_bundle import USERS, make_bundle

from serving.deployment import ray_app
from serving.runtime.settings import ServingSettings
from setrec.atomic import atomic_file

CROWD, TIMES = 32, 4
HEADLINES = ("rps", "p99_ms", "serve_over_uvicorn", "batched_over_single", "overload_goodput_share")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def settings_of(port: int, **changes: Any) -> ServingSettings:
    return ServingSettings(port=port, auth="off", **changes)


def bare(bundle: Path, port: int, batch: int) -> None:
    """The same application on uvicorn, in this process, until it is ended."""
    import uvicorn

    from serving.api.application import build

    application = build(bundle, settings_of(port, max_batch_size=batch))
    uvicorn.run(application, host="127.0.0.1", port=port, log_level="error", access_log=False)


@contextmanager
def on_uvicorn(bundle: Path, batch: int = 32) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, __file__, "--bare", str(bundle), str(port), str(batch)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                if httpx.get(f"{url}/health/ready", trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def on_serve(bundle: Path) -> Iterator[str]:
    url = ray_app.start(bundle, settings_of(free_port()))
    try:
        yield url
    finally:
        ray_app.stop()


def measured(url: str, seconds: float) -> dict[int, Load]:
    """One at a time, and a crowd; after a warm-up."""
    requests = requests_to(url)
    closed_loop(requests, url, CROWD, 2.0)
    return {crowd: closed_loop(requests, url, crowd, seconds) for crowd in (1, CROWD)}


def requests_to(url: str) -> list[bytes]:
    return [encode(f"{url}/v1/recommend", {"user_id": str(user), "k": 10}) for user in range(0, USERS, 7)]


def run(seconds: float) -> dict[str, Any]:
    """All figures; each server runs alone."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(Path(folder))
        with on_uvicorn(bundle, batch=1) as url:
            single = measured(url, seconds)
        with on_uvicorn(bundle) as url:
            uvicorn = measured(url, seconds)
        with on_serve(bundle) as url:
            serve = measured(url, seconds)
            peak = serve[CROWD].rps
            over = open_loop(requests_to(url), url, TIMES * peak, seconds)
            after = closed_loop(requests_to(url), url, CROWD, 2.0)
    for name, loads in (("uvicorn_single", single), ("uvicorn", uvicorn), ("serve", serve)):
        found |= {f"{name}_at_{crowd}": load.describe() for crowd, load in loads.items()}
    found["overload"] = over.describe() | {
        "asked_rps": round(TIMES * peak, 1),
        "statuses": {str(status): number for status, number in sorted(over.statuses.items())},
        "refused_p99_ms": round(over.percentile(99, 503), 2),
        "broken": over.broken,
        "unsent": over.unsent,
    }
    found["after_overload_rps"] = round(after.rps, 1)
    found["rps"], found["p99_ms"] = round(peak, 1), round(serve[CROWD].percentile(99), 2)
    found["serve_over_uvicorn"] = round(peak / uvicorn[CROWD].rps, 3)
    found["batched_over_single"] = round(uvicorn[CROWD].rps / single[CROWD].rps, 3)
    found["overload_goodput_share"] = round(over.rps / peak, 3)
    return found


def keep(name: str, found: dict[str, Any], headlines: tuple[str, ...]) -> None:
    """Write the results, the headlines also on top."""
    write_results(name, found)
    file = RESULTS / f"{name}.json"
    record = json.loads(file.read_text()) | {key: found[key] for key in headlines}
    with atomic_file(file) as path:
        path.write_text(json.dumps(record, indent=2))


def main() -> None:
    """Measure and write ``results/serving.json``."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--bare", nargs=3, metavar=("BUNDLE", "PORT", "BATCH"), help=argparse.SUPPRESS)
    options.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    asked = options.parse_args()
    if asked.bare:
        bare(Path(asked.bare[0]), int(asked.bare[1]), int(asked.bare[2]))
        return
    found = run(asked.seconds)
    keep("serving", found, HEADLINES)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
