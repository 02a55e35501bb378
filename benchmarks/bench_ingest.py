"""Ingest of one to a hundred million generated interactions by both engines: seconds, peak memory, spilled bytes.

For each size a world of ``benchmarks/interactions.py`` (about ten interactions a user, an item for ten users, at most a
million) is written and ingested with the defaults, in a process of its own. ``seconds`` are those of the ingest without
the start of Python, on Ray with the start of a cluster of this machine; ``peak_gb`` is the most that the process and
all below it held (1e9 bytes, ``benchmarks/memory.py``), ``process_gb`` the most that one of them had to itself;
``spilled_gb`` the most that lay on disk, in DuckDB's folder or in Ray's. A CSV of two million rows is timed too, and
``engines_agree`` is 1 where both engines and the plain reference of the tests leave the same of random small tables.
``ray_hampered_1m``: a million on Ray with a small object store and tasks that are killed (see :func:`hampered`).

``--before CHECKOUT`` times the ingest of another checkout of this project on the same input of ten million, three times
in turn; ``over_before_10m`` is the median ratio. ``--engines duckdb`` leaves Ray out. Figures go to
results/ingest.json. With all sizes and worlds still to be written about half an hour on two cores, and 30 GB of disk.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from interactions import World, write
from memory import Sampler

HOME = Path(__file__).resolve().parents[1]
MILLION = 1_000_000
CSV_ROWS = 2 * MILLION
SMALL_STORE = 80 * 2**20
TURNS = 3


def child(settings: dict[str, Any], out: Path) -> dict[str, float]:
    """Ingest in this process; called in one that does nothing else."""
    try:
        from pipelines.ingest.ingest import DataSettings, ingest
    except ModuleNotFoundError:  # a checkout of before the engines
        from pipelines.data_settings import DataSettings  # type: ignore[import-not-found, no-redef]

        from pipelines.ingest import ingest  # type: ignore[no-redef]

    spilled, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            files = [*out.parent.glob(".*.spill/*"), *_spilled_by_ray()]
            spilled[0] = max(spilled[0], sum(map(_size, files)))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    began = time.perf_counter()
    summary = ingest(DataSettings.model_validate(settings), out)
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    return {
        "interactions": summary["interactions"],
        "users": summary["users"],
        "items": summary["items"],
        "seconds": round(seconds, 2),
        "spilled_gb": round(spilled[0] / 1e9, 3),
    }


def _spilled_by_ray() -> list[Path]:
    """The objects that the cluster of this process has on disk."""
    ray: Any = sys.modules.get("ray")
    if not hasattr(ray, "is_initialized") or not ray.is_initialized():  # beside its import, a part of it may be there
        return []
    session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
    return [file for folder in session.glob("*spill*") for file in folder.rglob("*")]


def hampered(folder: Path) -> dict[str, float]:
    """Ingest a million on Ray with an object store of :data:`SMALL_STORE` bytes, killing tasks now and then: what was
    spilled, how many were killed, and 1 where it left the files that DuckDB leaves."""
    import psutil
    import ray

    from pipelines.ingest.ingest import DataSettings, ingest
    from serving.deployment.quiet import quiet

    settings = {**world_of(folder, 1), "user_min_count": 5, "item_min_count": 5}
    ingest(DataSettings.model_validate(settings), folder / "same" / "duckdb")
    quiet()
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=SMALL_STORE, log_to_driver=False)
    spilled, killed, done = 0, 0, threading.Event()

    def harm() -> None:
        nonlocal spilled, killed
        for second in itertools.count(1):
            if done.wait(1):
                return
            spilled = max(spilled, sum(map(_size, _spilled_by_ray())))
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if second % 4 == 0 and killed < 5 and process.cmdline()[:1][0].startswith("ray::MapBatches"):
                        process.kill()
                        killed += 1
                        break

    watcher = threading.Thread(target=harm, daemon=True)
    watcher.start()
    ingest(DataSettings.model_validate({**settings, "engine": "ray"}), folder / "same" / "ray")
    done.set()
    watcher.join()
    left = [sorted((folder / "same" / name).rglob("*.parquet")) for name in ("duckdb", "ray")]
    same = [file.read_bytes() for file in left[0]] == [file.read_bytes() for file in left[1]]
    shutil.rmtree(folder / "same")
    return {"spilled_gb": round(spilled / 1e9, 3), "killed": killed, "same": int(same)}


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def measured(settings: dict[str, Any], folder: Path, checkout: Path = HOME) -> dict[str, float]:
    """What :func:`child` finds in a process of its own, with the packages of ``checkout``."""
    out = folder / "run" / "data"
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir(parents=True)
    path = os.pathsep.join([str(checkout), str(Path(__file__).parent)])
    command = [sys.executable, __file__, "--child", json.dumps(settings), str(out)]
    environment = {**os.environ, "PYTHONPATH": path}
    with (
        subprocess.Popen(command, env=environment, cwd=checkout, stdout=subprocess.PIPE, text=True) as process,
        Sampler(process.pid, pause=0.1) as sampler,
    ):
        said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"ingest failed: {settings}")
    shutil.rmtree(out.parent)
    _wait_for_ray()
    peaks = {"peak_gb": round(sampler.peak.total, 3), "process_gb": round(sampler.peak.largest, 3)}
    return {**json.loads(said.splitlines()[-1]), **peaks}


def _wait_for_ray() -> None:
    """A cluster goes on ending for seconds after its driver has; what is measured next is to be alone."""
    until = time.monotonic() + 30
    while time.monotonic() < until and any("ray" in process.name() for process in psutil.process_iter()):
        time.sleep(0.5)
    time.sleep(2)


def world_of(folder: Path, millions: int) -> dict[str, Any]:
    """Write a world of so many interactions; returns the settings that read it."""
    users = millions * MILLION // 10
    place = write(World(users, min(users, MILLION)), folder / f"world-{millions}m")
    columns = {"attributes": ["genre"]}
    return {"interactions": str(place / "interactions"), "items": str(place / "items"), "columns": columns}


def csv_of(folder: Path) -> dict[str, Any]:
    """Write a CSV of :data:`CSV_ROWS` interactions; returns the settings that read it."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    path, rng = folder / "interactions.csv", np.random.default_rng(0)
    if not path.exists():
        users, items = rng.integers(0, 200_000, CSV_ROWS), (50_000 * rng.random(CSV_ROWS) ** 2).astype(int)
        ids = {"user_id": np.char.add("u", users.astype(str)), "item_id": np.char.add("i", items.astype(str))}
        table = pa.table({**ids, "timestamp": rng.integers(1_500_000_000, 1_700_000_000, CSV_ROWS)})
        pa_csv.write_csv(table, path)
    return {"interactions": str(path)}


def agree() -> int:
    """1 where both engines leave on random tables what the reference of the tests leaves."""
    test = HOME / "tests" / "pipelines" / "data" / "test_against_reference.py"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "slow or not slow", "-p", "no:cacheprovider", str(test)]
    return int(subprocess.run(command, cwd=HOME, stdout=subprocess.DEVNULL, check=False).returncode == 0)


def run(folder: Path, sizes: list[int], engines: list[str], before: Path | None) -> None:
    """Measure, and keep each figure as soon as it is there; those of other sizes and engines stay in the results."""
    from harness import previous, write_results  # brings torch, whose memory is none of a child's

    found = previous("ingest")
    found["csv_2m_seconds"] = measured(csv_of(folder), folder)["seconds"]
    for millions in sizes:
        settings = world_of(folder, millions)
        now = found.setdefault("sizes", {}).setdefault(str(millions), {})
        for engine in engines:
            now[engine] = measured({**settings, "engine": engine}, folder)
            print(f"{millions} million, {engine}: {now[engine]}", flush=True)
            write_results("ingest", found)
        if millions == 10 and before is not None:
            turns = [(measured(settings, folder, before), measured(settings, folder)) for _ in range(TURNS)]
            ratios = [old["seconds"] / new["seconds"] for old, new in turns]
            found["before_10m"], found["turns_10m"] = turns[0][0], turns
            found["over_before_10m"] = round(statistics.median(ratios), 2)
            print(f"before: {turns}", flush=True)
        if millions == 100 and "duckdb" in now:
            found["seconds_100m"], found["peak_gb_100m"] = now["duckdb"]["seconds"], now["duckdb"]["peak_gb"]
        write_results("ingest", found)
    if "ray" in engines:
        command = [sys.executable, __file__, "--hampered", str(folder)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found["ray_hampered_1m"] = json.loads(done.stdout.splitlines()[-1])
        write_results("ingest", found)
    found["engines_agree"] = agree()
    write_results("ingest", found)


def main() -> None:
    """Measure and write the results; or be the child that is measured."""
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(json.loads(sys.argv[2]), Path(sys.argv[3]))))
        return
    if sys.argv[1:2] == ["--hampered"]:
        print(json.dumps(hampered(Path(sys.argv[2]))))
        return
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sizes", type=int, nargs="+", default=[1, 10, 100], help="millions of interactions")
    options.add_argument("--engines", nargs="+", default=["duckdb", "ray"], help="duckdb, ray or both")
    options.add_argument("--before", type=Path, help="another checkout of this project")
    options.add_argument("--folder", type=Path, help="where worlds are kept; a temporary one by default")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        before = asked.before and asked.before.resolve()
        run(folder.resolve(), asked.sizes, asked.engines, before)


if __name__ == "__main__":
    main()
