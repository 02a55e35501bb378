"""Signals end a job with its exit code and a line on how to go on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

JOB = """
import atexit, sys, threading
from pathlib import Path
from pipelines.cli import app, options
from pipelines.common import signals
from pipelines.common.run_directory import Run
signals.GRACE_SECONDS = GRACE
root = Path(ROOT)

def wait() -> None:
    print("ready", flush=True)
    threading.Event().wait()

class Finalised:
    def __del__(self) -> None:
        wait()

@app.app.command()
def work() -> None:
    with options.locked_run(root, "half of it is kept") as run:
        run.claim("logs")
        if ENDING == "exits":
            atexit.register(wait)
            return
        if ENDING == "drops":
            Finalised()
        try:
            if ENDING != "drops":
                print("ready", flush=True)
            threading.Event().wait()
        finally:
            if ENDING == "hangs":
                threading.Event().wait()
            (root / "ended").touch()

sys.argv = ["setrec", "work"]
app.main()
"""


@pytest.fixture
def started(tmp_path):
    """Starts a job that waits; returns its process once it does."""
    running = []

    def start(grace, ending):
        given = f"GRACE, ROOT, ENDING = {grace}, {str(tmp_path / 'run')!r}, {ending!r}\n"
        command = [sys.executable, "-c", given + JOB]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_a_job_in_order_with_its_code_and_one_line(started, tmp_path, number, code, said):
    process = started(60, "ends")
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    assert process.stderr.read() == f"setrec: {said}: half of it is kept\n"
    assert (tmp_path / "run" / "ended").exists()


@pytest.mark.parametrize("ending", ["drops", "exits"])
def test_a_signal_inside_a_finaliser_or_while_python_ends_leaves_no_stack(started, ending):
    process = started(60, ending)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert process.stderr.read() == ("setrec: terminated: half of it is kept\n" if ending == "drops" else "")


def test_a_job_that_does_not_end_is_ended(started, tmp_path):
    process = started(0.2, "hangs")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert process.stderr.read() == "setrec: terminated: half of it is kept\n"
    assert not (tmp_path / "run" / "ended").exists()


@pytest.mark.slow
def test_an_endpoint_that_is_terminated_ends_with_143_and_no_stack(t5_run, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli.app", "serve", "--bundle", t5_run.bundle, "--no-auth", "--port", "8971"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert "Serving" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(timeout=60) == 143
        assert time.monotonic() - began < 30
        assert process.stderr.read().startswith("setrec: terminated: the endpoint has ended")
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_that_is_interrupted_says_how_to_go_on_and_goes_on(t5_run, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(t5_run.root, root)
    command = [sys.executable, "-m", "pipelines.cli.app", "train", "--run", str(root), "--set", "cluster.threads=1"]
    process = subprocess.Popen(
        [*command, "--set", "training.epochs=500", "--set", "training.patience=500"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = root / "logs" / "run.jsonl"
    try:
        while sum('"system": "SETRec"' in line for line in log.read_text().splitlines()) < 3:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        last = process.stderr.read().strip().splitlines()[-1]
        assert last == (
            f"setrec: interrupted: the last checkpoint is kept: `setrec train --run {root} --resume` continues from it"
        )
    finally:
        process.kill()
        process.wait()
    resumed = subprocess.run([*command, "--resume", "--set", "training.epochs=4"], capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["epoch"] >= 3
    assert os.path.isdir(root / "model")
