"""What goes wrong under load, and what it costs: requests that failed, acknowledged events that were lost.

A request fails that gets no answer, or one of 500 or more. Of those the answers 503 are counted apart: they say "not
now". Clients never repeat a request, so every failure shows. An event is lost that was acknowledged and is not stored.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
from bench_serving import free_port, keep, settings_of
from harness import RESULTS
from load import Connection, encode
from serving_bundle import ITEMS, USERS, make_bundle

from serving.deployment import ray_app
from serving.stores import Event, open_store

CLIENTS, BEFORE, AFTER = 8, 2.0, 6.0


@dataclass
class Told:
    """What clients were told: answers by status, requests without one, acknowledged events by user."""

    statuses: dict[int, int] = field(default_factory=dict)
    broken: int = 0
    acknowledged: dict[str, int] = field(default_factory=dict)
    slowest: float = 0.0

    def add(self, status: int, seconds: float) -> None:
        """Count one answer."""
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.slowest = max(self.slowest, seconds)

    def describe(self, store: str) -> dict[str, Any]:
        """The figures, with the events that ``store`` does not hold."""
        failed = self.broken + sum(number for status, number in self.statuses.items() if status >= 500)
        return {
            "requests": self.broken + sum(self.statuses.values()),
            "failed_requests": failed,
            "of_these_503": self.statuses.get(503, 0),
            "without_answer": self.broken,
            "acknowledged_events": sum(self.acknowledged.values()),
            "lost_events": lost(self.acknowledged, store),
            "slowest_ms": round(1000 * self.slowest, 1),
        }


def lost(acknowledged: dict[str, int], place: str) -> int:
    """Acknowledged events that the store does not hold, asked anew."""
    store = open_store(place)
    try:
        kept = {user: len(store.page(user, number + 1000)) for user, number in acknowledged.items()}
    finally:
        store.close()
    return sum(max(0, number - kept[user]) for user, number in acknowledged.items())


def under_load(url: str, fault: Callable[[], None], after: float = AFTER) -> Told:
    """Have clients ask and write events, alternately, while ``fault`` happens."""
    told, over = Told(), threading.Event()
    clients = threading.Thread(target=lambda: asyncio.run(_clients(url, told, over)))
    clients.start()
    try:
        time.sleep(BEFORE)
        fault()
        time.sleep(after)
    finally:
        over.set()
        clients.join()
    return told


async def _clients(url: str, told: Told, over: threading.Event) -> None:
    await asyncio.gather(*(_client(url, told, over, number) for number in range(CLIENTS)))


async def _client(url: str, told: Told, over: threading.Event, number: int) -> None:
    at = urlsplit(url)
    connection, user, turn = Connection(at.hostname or "", at.port or 80), f"writer-{number}", 0
    while not over.is_set():
        turn += 1
        event = {"user_id": user, "item_id": str(turn % ITEMS), "key": f"{number}-{turn}"}
        if await _ask(connection, encode(f"{url}/v1/events", {"events": [event]}), told) == 200:
            told.acknowledged[user] = told.acknowledged.get(user, 0) + 1
        await _ask(connection, encode(f"{url}/v1/recommend", {"user_id": str(turn % USERS)}), told)
    connection.close()


async def _ask(connection: Connection, request: bytes, told: Told) -> int:
    began = time.perf_counter()
    try:
        status, _ = await connection.ask(request, 15)
    except (OSError, EOFError, TimeoutError):
        told.broken += 1
        await asyncio.sleep(0.01)
        return 0
    told.add(status, time.perf_counter() - began)
    return status


def kill(name: str) -> None:
    """End at once the first process of this Ray session whose title begins so."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it may just have ended
            if " ".join(process.cmdline()).startswith(f"ray::{name}"):
                process.send_signal(signal.SIGKILL)
                return
    raise RuntimeError(f"no process is called {name}")


def gone_everywhere(url: str, item: str = "7") -> float:
    """Seconds after an item's removal was acknowledged until no replica knew it any more."""
    httpx.delete(f"{url}/v1/items/{item}", trust_env=False).raise_for_status()
    began = last = time.perf_counter()
    in_a_row = 0
    while in_a_row < 40:  # each on a connection of its own, so that both replicas are asked
        unknown = httpx.get(f"{url}/v1/items/{item}", trust_env=False).status_code == 404
        in_a_row, last = (in_a_row + 1, last) if unknown else (0, time.perf_counter())
    return round(last - began, 3)


def on_ray(folder: Path, bundle: Path, only: Sequence[str]) -> dict[str, Any]:
    """Two replicas on one SQLite file; of the faults those in ``only``, in its order."""
    store, releases = str(folder / "live.db"), folder / "releases"
    bad = make_bundle(releases, "bad", seed=1)
    (bad / "codes.safetensors").write_bytes((bad / "codes.safetensors").read_bytes()[:-1] + b"?")
    good = make_bundle(releases, "good", seed=2)
    url = ray_app.start(bundle, settings_of(free_port(), replicas=2, store=store, releases=releases))
    found: dict[str, Any] = {}
    try:

        def release(name: str, status: int) -> Callable[[], None]:
            def ask() -> None:
                answer = httpx.post(f"{url}/v1/admin/release", json={"bundle": name}, timeout=60, trust_env=False)
                if answer.status_code != status:
                    raise RuntimeError(f"{name}: {answer.text}")

            return ask

        faults = {
            "bundle_corrupted": release(bad.name, 422),
            "bundle_released": release(good.name, 200),
            "replica_killed": lambda: kill("ServeReplica"),
            "controller_killed": lambda: kill("ServeController"),
        }
        found["item_removed"] = {"seconds_until_gone_everywhere": gone_everywhere(url)}
        print(found, flush=True)
        for name, fault in ((name, faults[name]) for name in only):
            told = under_load(url, fault)
            found[name] = told.describe(store)
            print(name, found[name], flush=True)
            time.sleep(8 if name == "replica_killed" else 1)  # until there are two again
    finally:
        ray_app.stop()
    return found


class Alone:
    """The application on uvicorn in a process of its own."""

    def __init__(self, bundle: Path, store: str) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        command = [sys.executable, __file__, "--alone", str(bundle), str(port), store]
        self.process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        for _ in range(600):
            try:
                if httpx.get(f"{self.url}/health/live", trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        raise RuntimeError("the application did not start")

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(10)


def alone(bundle: Path, port: int, store: str) -> None:
    """What :class:`Alone` starts."""
    import uvicorn

    from serving.api.application import build

    application = build(bundle, settings_of(port, store=store))
    uvicorn.run(application, host="127.0.0.1", port=port, log_level="error", access_log=False)


def redis_restarted(folder: Path, bundle: Path) -> dict[str, Any]:
    """Redis is killed, two seconds later started on its append-only file."""
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes", "--save", ""]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)

    server = [start()]
    time.sleep(0.5)
    store = f"redis://127.0.0.1:{port}/0"

    def restart() -> None:
        server[0].kill()
        server[0].wait()
        time.sleep(2)
        server[0] = start()

    try:
        with Alone(bundle, store) as served:
            return under_load(served.url, restart).describe(store)
    finally:
        server[0].kill()


def disk_full(folder: Path, bundle: Path) -> dict[str, Any]:
    """The store's file system, 64 MB in memory, is filled up and later emptied."""
    place = folder / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], check=True)
    store, ballast = str(place / "live.db"), place / "ballast"

    def fill() -> None:
        with open(ballast, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                time.sleep(3)
        ballast.unlink()

    try:
        with Alone(bundle, store) as served:
            told = under_load(served.url, fill)
        return told.describe(store)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def long_history(folder: Path, bundle: Path) -> dict[str, Any]:
    """A user with 100 thousand events is asked about, again and again, beside the others."""
    store = str(folder / "long.db")
    kept = open_store(store)
    for start in range(0, 100_000, 5000):
        kept.append([Event("long", str(n % ITEMS), float(n)) for n in range(start, start + 5000)])
    kept.close()
    times: list[float] = []

    with Alone(bundle, store) as served, httpx.Client(base_url=served.url, trust_env=False) as client:

        def ask() -> None:
            while len(times) < 200:
                began = time.perf_counter()
                client.post("/v1/recommend", json={"user_id": "long"}).raise_for_status()
                times.append(time.perf_counter() - began)

        found = under_load(served.url, ask, after=0).describe(store)
    return found | {"asked": len(times), "p99_ms": round(1000 * sorted(times)[int(0.99 * len(times))], 1)}


ALONE = {
    "redis_restarted": redis_restarted,
    "disk_full": disk_full,
    "history_of_100_thousand": long_history,
}
ON_RAY = ("bundle_corrupted", "bundle_released", "replica_killed", "controller_killed")


def run(only: Sequence[str]) -> dict[str, Any]:
    """The faults in ``only``."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = make_bundle(folder)
        found: dict[str, Any] = {}
        for key in (key for key in ALONE if key in only):
            found[key] = ALONE[key](folder, bundle)
            print(key, found[key], flush=True)
        with_ray = [key for key in ON_RAY if key in only]
        return found | (on_ray(folder, bundle, with_ray) if with_ray else {})


def main() -> None:
    """Measure and write ``results/faults.json``; what is not measured anew stays as it was."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--alone", nargs=3, metavar=("BUNDLE", "PORT", "STORE"), help=argparse.SUPPRESS)
    options.add_argument("--only", nargs="+", choices=[*ALONE, *ON_RAY], default=[*ALONE, *ON_RAY])
    asked = options.parse_args()
    if asked.alone:
        alone(Path(asked.alone[0]), int(asked.alone[1]), asked.alone[2])
        return
    file = RESULTS / "faults.json"
    before = json.loads(file.read_text())["figures"] if file.exists() else {}
    found = before | run(asked.only)
    keep("faults", found, tuple(key for key in found if key in (*ALONE, *ON_RAY)))


if __name__ == "__main__":
    main()
