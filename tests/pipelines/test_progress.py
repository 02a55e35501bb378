"""Off a terminal progress is lines that tell step, share and time left, and are never wrapped."""

import io
import re
import time

import pytest
from rich.console import Console

from pipelines.common import progress
from pipelines.common.run_directory import environment
from setrec import __version__


@pytest.fixture
def said(monkeypatch):
    """What is written to a stream that is no terminal."""
    stream = io.StringIO()
    monkeypatch.setattr(progress, "console", progress.console_on(stream))
    return stream


def test_a_step_says_how_far_it_is_at_intervals_and_its_end(said, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
    with progress.bar("Train SETRec") as shown:
        shown.update(1, 4, "epoch 2")
        until = time.monotonic() + 30
        while said.getvalue().count("\n") < 2 and time.monotonic() < until:
            time.sleep(0.01)
        shown.update(4, 4, "best NDCG@10 0.1234")
    lines = said.getvalue().splitlines()
    assert re.fullmatch(r"… Train SETRec, 25%, 0:00 so far, about 0:0\d left, epoch 2", lines[0])
    assert re.fullmatch(r"✓ Train SETRec +\d+\.\d s  best NDCG@10 0\.1234", lines[-1])


def test_where_no_step_speaks_the_command_does(said, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
    with progress.alive("setrec evaluate"):
        until = time.monotonic() + 30
        while said.getvalue().count("\n") < 3 and time.monotonic() < until:
            time.sleep(0.01)
    assert re.fullmatch(r"(… setrec evaluate, 0:00 so far\n){3,}", said.getvalue())


def test_colours_that_are_forced_draw_no_bar_into_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with (tmp_path / "log").open("w") as stream:
        monkeypatch.setattr(progress, "console", progress.console_on(stream))
        with progress.bar("Train") as shown:
            shown.update(1, 2)
    assert (tmp_path / "log").read_text().count("Train") == 1


def test_what_is_not_known_yet_is_not_said():
    assert progress._line("Ingest", progress.Bar(), 75.0) == "Ingest, 1:15 so far"
    shown = progress.Bar()
    shown.update(1, 2)
    assert progress._line("Ingest", shown, 3700.0) == "Ingest, 50%, 1:01:40 so far, about 1:01:40 left"


def test_long_lines_are_wrapped_at_a_terminal_alone(said):
    progress.console.print("word " * 100)
    assert said.getvalue().count("\n") == 1
    assert isinstance(progress.results(), Console)


def test_the_version_is_told(commanded, capfd, monkeypatch):
    from pipelines.cli import app

    monkeypatch.setattr("sys.argv", ["setrec", "--version"])
    app.main()
    assert capfd.readouterr().out == f"setrec {__version__}\n"


def test_a_runs_environment_holds_the_version():
    assert environment()["setrec"] == __version__


def test_the_last_line_of_a_training_tells_the_best_epoch(t5_run, tmp_path, commanded, without_ray_train):
    import shutil

    shutil.copytree(t5_run.root, tmp_path / "run")
    code, said = commanded("train", "--run", tmp_path / "run", "--set", "training.epochs=1", "--set", "sasrec.epochs=1")
    assert code == 0, said
    found = re.search(r"Train SETRec +\d+\.\d s  best NDCG@10 (0\.\d{4}) at epoch 1 of 1", said)
    assert found is not None, said
    assert float(found[1]) > 0
