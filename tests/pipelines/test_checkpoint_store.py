"""Checkpoints are complete or absent, tried again, and the last good one is always there."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from s3_server import s3_server

from pipelines.training.checkpoint_store import MANIFEST, CheckpointStore, CheckpointStoreError
from pipelines.training.checkpoint_writer import CheckpointWriter


def checkpoint(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "weights").write_text(content)
    (folder / "progress").write_text("1")
    return folder


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    made = CheckpointStore(tmp_path / "store", patience=5)
    made.create()
    return made


def fetched(store: CheckpointStore, into: Path) -> str | None:
    return None if store.latest(into) is None else (into / "weights").read_text()


def test_the_latest_comes_back_and_older_ones_go(store, tmp_path):
    for number in range(4):
        store.put(checkpoint(tmp_path / str(number), f"w{number}"), f"{number:06d}")
    assert fetched(store, tmp_path / "back") == "w3"
    assert (tmp_path / "back" / "progress").read_text() == "1"
    assert [name.split("-")[1] for name in store.names()] == ["000002", "000003"]


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_a_uri_is_a_place_too(tmp_path, kind):
    with s3_server() if kind == "s3" else nullcontext(lambda name: (tmp_path / name).as_uri()) as uri:
        store = CheckpointStore(uri("store"), patience=5)
        assert store.names() == []
        store.create()
        for number in range(3):
            store.put(checkpoint(tmp_path / str(number), f"w{number}"), f"{number:06d}")
        assert len(store.names()) == 2
        assert fetched(store, tmp_path / "back") == "w2"
        store.clear()
        assert store.names() == []


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "manifest"])
def test_a_damaged_checkpoint_is_passed_over_and_later_ones_count_again(store, tmp_path, damage):
    for number in range(2):
        store.put(checkpoint(tmp_path / str(number), f"w{number}"), f"{number:06d}")
    weights = tmp_path / "store" / store.names()[-1] / "weights"
    if damage == "missing":
        weights.unlink()
    elif damage == "manifest":
        (weights.parent / MANIFEST).write_text("{")
    else:
        weights.write_text("w" if damage == "cut" else "xx")
    assert fetched(store, tmp_path / "back") == "w0"
    store.put(checkpoint(tmp_path / "again", "again"), "000002")
    assert fetched(store, tmp_path / "back") == "again"


def test_a_checkpoint_whose_writer_died_does_not_count(store, tmp_path, monkeypatch):
    store.put(checkpoint(tmp_path / "a", "good"), "000000")
    monkeypatch.setattr(store, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.put(checkpoint(tmp_path / "b", "torn"), "000001")
    monkeypatch.undo()
    assert fetched(store, tmp_path / "back") == "good"
    store.put(checkpoint(tmp_path / "c", "next"), "000002")
    assert len(list((tmp_path / "store").glob("checkpoint-*"))) == 2


def lose(tmp_path: Path) -> None:
    """The store vanishes: a mount that is lost."""
    (tmp_path / "store").rename(tmp_path / "lost")


def bring_back(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "store", ignore_errors=True)
    (tmp_path / "lost").rename(tmp_path / "store")


@contextmanager
def away(tmp_path: Path, seconds: float) -> Iterator[None]:
    """The store is lost and comes back while the block waits for it."""
    lose(tmp_path)
    thread = threading.Timer(seconds, bring_back, [tmp_path])
    thread.start()
    yield
    thread.join()


def test_a_store_out_of_reach_for_a_while_is_waited_for_in_either_direction(store, tmp_path):
    store.put(checkpoint(tmp_path / "a", "first"), "000000")
    store.patience = 60
    with away(tmp_path, 0.7):
        assert fetched(store, tmp_path / "back") == "first"
    with away(tmp_path, 0.7):
        store.put(checkpoint(tmp_path / "b", "second"), "000001")
    assert fetched(store, tmp_path / "back") == "second"


def test_a_store_out_of_reach_for_too_long_is_an_error_of_one_line_and_loses_nothing(store, tmp_path):
    store.put(checkpoint(tmp_path / "a", "first"), "000000")
    store.patience = 0.5
    lose(tmp_path)
    with pytest.raises(CheckpointStoreError, match="could not store a checkpoint within 0 s") as caught:
        store.put(checkpoint(tmp_path / "b", "second"), "000001")
    assert "\n" not in str(caught.value)
    bring_back(tmp_path)
    assert fetched(store, tmp_path / "back") == "first"


def test_training_goes_on_while_a_checkpoint_waits_and_the_newest_one_arrives(store, tmp_path):
    store.patience = 60
    lose(tmp_path)
    with CheckpointWriter(store) as writer:
        for number in range(5):
            writer.hand_over(checkpoint(tmp_path / str(number), f"w{number}"), f"{number:06d}")
        bring_back(tmp_path)  # who has come here has waited for no store
    assert fetched(store, tmp_path / "back") == "w4"
    assert not [path for path in tmp_path.iterdir() if path.name.isdigit()]


def test_a_checkpoint_that_could_not_be_stored_is_told_at_the_next_one(store, tmp_path):
    store.patience = 0.0
    (tmp_path / "store" / "store.json").unlink()
    with pytest.raises(CheckpointStoreError), CheckpointWriter(store) as writer:
        writer.hand_over(checkpoint(tmp_path / "a", "w"), "000000")
