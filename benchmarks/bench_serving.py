"""The endpoint under load: Ray Serve against bare uvicorn, batches against one at a time, four times too much.

The bundle has the demonstration's size and random weights (``serving_bundle``); the client runs on the same machine.
``--before TREE`` measures only this: CPU time a request of the server's process on bare uvicorn, in turn with an
earlier checkout, loaded by Debian's ``wrk``; ``rps_over_before`` is the ratio of requests per CPU second. Its bundles
have no collaborative leg, which checkouts before it cannot read; with ``--leg`` they have one, and all figures are
called ``leg_...``.
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
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
from harness import RESULTS, measure, median, previous, print_table, write_results
from load import Load, closed_loop, encode, open_loop
from serving_bundle import ITEMS, USERS, make_bundle

from serving.deployment import ray_app
from serving.runtime.settings import ServingSettings
from setrec.atomic import atomic_file

CROWD, TIMES = 32, 4
ROOT = Path(__file__).resolve().parents[1]
SIZES = {"films": ITEMS, "beauty": 12_101}
"""Items of the catalogues of ``--before``."""
_WRK = """
local n = 0
request = function()
  n = n + 7
  return wrk.format("POST", "/v1/recommend", {["Content-Type"] = "application/json"},
                    string.format('{"user_id": "%d", "k": 10}', n % USERS))
end
done = function(summary, latency, requests)
  io.write(string.format("FOUND %d %d %d %d\\n", summary.requests, summary.errors.status, latency:percentile(50),
                         latency:percentile(99)))
end
"""
HEADLINES = ("rps", "p99_ms", "serve_over_uvicorn", "batched_over_single", "overload_goodput_share")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def settings_of(port: int, **changes: Any) -> ServingSettings:
    return ServingSettings(port=port, auth="off", **changes)


@contextmanager
def on_uvicorn(bundle: Path, batch: int = 32, tree: Path = ROOT) -> Iterator[str]:
    with server(bundle, batch, tree) as (url, _):
        yield url


@contextmanager
def server(bundle: Path, batch: int = 32, tree: Path = ROOT) -> Iterator[tuple[str, psutil.Process]]:
    """The address and the process of the endpoint of the checkout ``tree`` on uvicorn, once it is ready."""
    port = free_port()
    command = [sys.executable, str(ROOT / "benchmarks" / "bare_server.py"), str(bundle), str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree)}
    process = subprocess.Popen([*command, str(batch)], env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                if httpx.get(f"{url}/health/ready", trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield url, psutil.Process(process.pid)
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


def cpu_seconds(process: psutil.Process) -> float:
    """CPU seconds of a process so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def wrk(url: str, connections: int, seconds: int, script: Path) -> tuple[int, float, float]:
    """The number of answers to wrk in ``seconds``, and p50 and p99 of the latency in milliseconds."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), url]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    answers, failed, p50, p99 = map(int, output.split("FOUND ")[1].split())
    if failed:
        raise RuntimeError(f"{failed} requests failed")
    return answers, p50 / 1000, p99 / 1000


def against(tree: Path, sizes: list[str], seconds: int, repeats: int, *, leg: bool) -> dict[str, Any]:
    """Figures beside those of the checkout ``tree``, both servers in turn."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        script = folder / "requests.lua"
        script.write_text(_WRK.replace("USERS", str(USERS)))
        for size in sizes:
            bundle = make_bundle(folder, size, items=SIZES[size], leg=leg)
            servers = {v: stack.enter_context(server(bundle, tree=t)) for v, t in {"before": tree, "now": ROOT}.items()}
            found |= {f"{size}_ready_cpu_s_{v}": round(cpu_seconds(p), 2) for v, (_, p) in servers.items()}
            for crowd in (1, CROWD):
                walls: dict[str, list[tuple[float, float]]] = {version: [] for version in servers}

                def cpu(version: str, crowd: int = crowd, servers: Any = servers, walls: Any = walls) -> float:
                    url, process = servers[version]
                    began = cpu_seconds(process)
                    answers, *latency = wrk(url, crowd, seconds, script)
                    walls[version].append(latency)
                    return 1e6 * (cpu_seconds(process) - began) / answers

                cpus = measure({version: partial(cpu, version) for version in servers}, repeats)
                print_table(f"{size}, {crowd} at a time", "CPU us a request", cpus, "before")
                for version, values in cpus.items():
                    at = f"{version}_at_{crowd}"
                    found[f"{size}_cpu_us_{at}"] = round(median(values))
                    for q, column in (("p50", 0), ("p99", 1)):
                        found[f"{size}_{q}_ms_{at}"] = round(median([own[column] for own in walls[version][1:]]), 2)
                before, now = (found[f"{size}_cpu_us_{version}_at_{crowd}"] for version in ("before", "now"))
                found[f"{size}_rps_over_before_at_{crowd}"] = round(before / now, 2)
    found["rps_over_before"] = found[f"{sizes[-1]}_rps_over_before_at_{CROWD}"]
    p50 = [found[f"{sizes[-1]}_p50_ms_{version}_at_1"] for version in ("now", "before")]
    found["p50_over_before"] = round(p50[0] / p50[1], 3)
    return {f"leg_{name}": value for name, value in found.items()} if leg else found


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
    options.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    options.add_argument("--before", type=Path, metavar="TREE", help="an earlier checkout to compare with")
    options.add_argument("--leg", action="store_true", help="--before with the collaborative leg")
    options.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="of --before; headlines: last")
    options.add_argument("--repeats", type=int, default=3, help="of each load of --before")
    asked = options.parse_args()
    if asked.before is not None:
        found = against(asked.before.resolve(), asked.sizes, round(asked.seconds), asked.repeats, leg=asked.leg)
        every = previous("serving") | found
        keep("serving", every, tuple(name for name in ("rps_over_before", "p50_over_before") if name in every))
        print(json.dumps(found, indent=2))
        return
    found = run(asked.seconds)
    keep("serving", found, HEADLINES)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
