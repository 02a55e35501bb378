"""A disk that is full, a folder that may not be written, a file in a folder's place: one line with the path, exit 2."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from safetensors import SafetensorError

from pipelines.common.failures import readable_error
from pipelines.common.run_directory import Run
from pipelines.training.checkpoint_store import CheckpointStore, CheckpointStoreError
from setrec.atomic import atomic_directory, atomic_file
from setrec.errors import ConfigError


@pytest.fixture
def own(t5_run, tmp_path) -> Run:
    shutil.copytree(t5_run.root, tmp_path / "own")
    return Run(tmp_path / "own")


def one_line(result, path) -> None:
    code, said = result
    assert code == 2, said
    last = said.strip().splitlines()[-1]
    assert last.startswith("setrec: ")
    assert str(path) in last
    assert "Traceback" not in said


@pytest.mark.parametrize("writing", [atomic_file, atomic_directory])
@pytest.mark.parametrize(
    "raised",
    [
        lambda: OSError(errno.ENOSPC, "No space left on device"),
        lambda: SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_an_error_while_writing_names_the_place_and_leaves_no_part(tmp_path, writing, raised):
    with pytest.raises(OSError, match="No space left") as caught, writing(tmp_path / "x"):
        raise raised()
    assert caught.value.filename == str(tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["train", "evaluate", "export", "ablate"])
def test_a_full_disk_ends_every_command_in_one_line(own, commanded, monkeypatch, command, tmp_path):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    one_line(commanded(command, "--run", own.root), own.root)


def test_a_full_disk_ends_prepare_in_one_line(t5_run, commanded, monkeypatch, tmp_path):
    real = os.replace

    def full(source, target):
        if Path(target).name == "data.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    config = t5_run.root.parent / "config.yaml"
    one_line(commanded("prepare", "--config", config, "--run", tmp_path / "run"), tmp_path / "run")


@pytest.mark.parametrize("command", ["train", "evaluate", "export", "prepare", "tune", "ablate"])
def test_a_file_where_the_runs_folder_is_meant_is_one_line(t5_run, tmp_path, commanded, command):
    (tmp_path / "file").write_text("mine")
    config = ("--config", t5_run.root.parent / "config.yaml") if command in ("prepare", "tune") else ()
    one_line(commanded(command, *config, "--run", tmp_path / "file"), tmp_path / "file")
    one_line(commanded(command, *config, "--run", tmp_path / "file" / "run"), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_where_a_bundle_is_meant_is_one_line_and_stays(own, commanded, tmp_path):
    (tmp_path / "file").write_text("mine")
    one_line(commanded("export", "--run", own.root, "--out", tmp_path / "file"), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_may_not_be_written_is_one_line(own, commanded, monkeypatch):
    real = os.open

    def refused(path, flags, *rest, **named):
        if flags & os.O_CREAT and str(path).startswith(str(own.root)):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", refused)
    one_line(commanded("evaluate", "--run", own.root), own.root)


def test_a_checkpoint_that_a_full_disk_refuses_leaves_no_part_and_is_not_waited_for(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path / "store", patience=1e6)
    store.create()
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "weights").write_bytes(b"x" * 100)
    before = sorted(tmp_path.rglob("*"))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipelines.training.checkpoint_store._copy", full)
    with pytest.raises(CheckpointStoreError, match=r"store: could not store a checkpoint: .*No space left"):
        store.put(tmp_path / "made", "1")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_cause_of_a_failed_task_is_told_and_not_the_hint_behind_it():
    text = "ray::task()\n  File x\nValueError: column 'time' of a.parquet: out of range\nSet max_retries to retry."
    assert str(readable_error(RuntimeError(text), "ingest")) == (
        "ingest failed: ValueError: column 'time' of a.parquet: out of range"
    )
    assert isinstance(readable_error(RuntimeError(""), "ingest"), ConfigError)
