import subprocess
import sys

import pytest

from setrec import atomic
from setrec.atomic import atomic_directory, atomic_file, recover


def write_half(path):
    path.write_text("half")
    raise OSError("disk full")


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "x.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_earlier_file_and_no_litter(tmp_path):
    (tmp_path / "x.txt").write_text("old")
    with pytest.raises(OSError, match="disk full"), atomic_file(tmp_path / "x.txt") as temporary:
        write_half(temporary)
    assert (tmp_path / "x.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_directory_is_replaced_as_a_whole(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with atomic_directory(tmp_path / "out") as new:
        (new / "new").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert len(list(tmp_path.iterdir())) == 1


def test_an_error_leaves_the_earlier_directory_and_no_litter(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(OSError, match="disk full"), atomic_directory(tmp_path / "out") as new:
        write_half(new / "new")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["old"]
    assert len(list(tmp_path.iterdir())) == 1


def test_killed_between_its_two_renames_the_old_directory_is_put_back_by_the_next_writer(tmp_path, monkeypatch):
    """On a file system that cannot exchange two names."""
    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    code = f"""
import os
from pathlib import Path
from setrec import atomic
atomic._exchange = lambda *_: False
rename = Path.rename
def once(self, target):
    rename(self, target)
    os._exit(9)
Path.rename = once
with atomic.atomic_directory({str(tmp_path / "out")!r}) as new:
    (new / "new").touch()
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert not (tmp_path / "out").exists()
    with pytest.raises(OSError, match="disk full"), atomic_directory(tmp_path / "out") as new:
        write_half(new / "new")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["old"]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("moment", range(6))
def test_after_a_kill_at_any_moment_the_old_directory_or_the_new_one_is_there(tmp_path, moment):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    code = f"""
import os, sys
from setrec import atomic
seen = 0
def trace(frame, event, arg):
    global seen
    if frame.f_code.co_filename == atomic.__file__ and frame.f_code.co_name in ("_put_in_place", "_exchange"):
        seen += event == "line"
        if seen > {moment}:
            os._exit(9)
    return trace
sys.settrace(trace)
with atomic.atomic_directory({str(tmp_path / "out")!r}) as new:
    (new / "new").touch()
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] in (["old"], ["new"])
    recover(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folders_of_other_origin_and_of_living_processes_stay(tmp_path):
    (tmp_path / ".out.mine.tmp").mkdir()
    with atomic_directory(tmp_path / "out") as first:
        with atomic_directory(tmp_path / "out") as second:
            (second / "two").touch()
        assert first.exists()
        (first / "one").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.mine.tmp"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["one"]


def test_a_file_is_not_replaced_by_a_directory(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(NotADirectoryError), atomic_directory(tmp_path / "out"):
        pass
    assert (tmp_path / "out").read_text() == "mine"
