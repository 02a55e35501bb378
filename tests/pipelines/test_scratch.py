"""Folders for what is on its way: gone with the block, and cleared after who was killed."""

import os
import signal
import subprocess
import sys
import tempfile

import pytest

from pipelines.common.scratch import scratch

HOLDER = """
import sys, time
from pipelines.common.scratch import scratch
with scratch("work") as folder:
    (folder / "half").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def long_ago(folder):
    os.utime(folder, (0, 0))


def test_a_folder_goes_with_its_block(place):
    with scratch("work") as folder:
        (folder / "half").write_text("x")
        assert folder.parent == place
    assert not list(place.iterdir())


def test_what_a_killed_process_left_is_cleared_and_what_a_living_one_holds_is_not(place):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(place)}
    )
    try:
        held = place / holder.stdout.readline().strip()
        long_ago(held)
        with scratch("work"):
            assert (held / "half").exists()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        long_ago(held)
        with scratch("work"):
            assert not held.exists()
    finally:
        holder.kill()
        holder.wait()


def test_a_folder_just_made_and_other_names_stay(place):
    for name in ("work-young", "other-old"):
        (place / name).mkdir()
    long_ago(place / "other-old")
    with scratch("work"):
        assert (place / "work-young").exists()
        assert (place / "other-old").exists()
