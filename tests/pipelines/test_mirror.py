"""Folders in an object store: worked on here, stored again."""

import json
import os
import time

import pytest

from pipelines.common import storage
from pipelines.remote import lease, mirror
from setrec.errors import ConfigError

pytestmark = pytest.mark.usefixtures("work")


def write(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def names(uri):
    return sorted(mirror.Mirror(uri, None, None)._there())


def content(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file() and not p.is_symlink()}


def test_what_a_job_leaves_is_found_on_another_machine(store, work):
    uri = store("runs/a")
    with mirror.mirrored(uri) as folder:
        write(folder, model__weights="1", gone="x", config="y")
        (folder / "current").symlink_to("model")
    work("other")
    with mirror.mirrored(uri) as folder:
        assert content(folder) == {"model/weights": "1", "gone": "x", "config": "y"}
        assert os.readlink(folder / "current") == "model"
        (folder / "gone").unlink()
        write(folder, model__weights="22")
    assert names(uri) == ["config", "current.link", "model/weights"]
    work("work")
    assert content(mirror.fetched(uri)) == {"model/weights": "22", "config": "y"}
    assert content(mirror.fetched(storage.join(uri, "current"))) == {"weights": "22"}


def test_a_job_that_is_cut_off_has_stored_nothing_that_points_to_what_is_missing(store, work, monkeypatch):
    uri, stored = store("runs/b"), []
    real = mirror.Mirror._store
    with mirror.mirrored(uri) as folder:
        write(folder, pointer="first", z__weights="1")

    def breaks(self, name):
        stored.append(name)
        if len(stored) == 2:
            raise OSError("the line is cut")
        real(self, name)

    def second_night():
        with mirror.mirrored(uri) as folder:
            write(folder, z__weights="2", z__more="2")
            time.sleep(0.01)
            write(folder, pointer="second")
            monkeypatch.setattr(mirror.Mirror, "_store", breaks)

    with pytest.raises(ConfigError, match=r"^s3://bucket/runs/b: cannot be written to: the line is cut$"):
        second_night()
    monkeypatch.setattr(mirror.Mirror, "_store", real)
    assert "pointer" not in stored
    work("other")
    assert content(mirror.fetched(uri))["pointer"] == "first"


def test_only_what_changed_is_copied(store, monkeypatch):
    uri, copied = store("runs/c"), []
    with mirror.mirrored(uri) as folder:
        write(folder, one="1", two="2")
    real = mirror.Mirror._copy
    monkeypatch.setattr(mirror.Mirror, "_copy", staticmethod(lambda *a: (copied.append(a[0]), real(*a))))
    with mirror.mirrored(uri) as folder:
        write(folder, two="22")
    assert [name.rpartition("/")[2] for name in copied] == ["two"]


def test_small_files_alone_are_read_to_tell_a_state_and_nothing_else_is_touched(store, monkeypatch):
    uri = store("runs/d")
    with mirror.mirrored(uri) as folder:
        write(folder, state="ok", weights="x" * 100)
    with mirror.mirrored(uri, largest=10) as folder:
        assert content(folder) == {"state": "ok"}
        write(folder, state="changed")
    assert names(uri) == ["state", "weights"]
    assert content(mirror.fetched(uri, largest=10)) == {"state": "changed"}


def test_two_jobs_at_one_folder_exclude_each_other_and_a_killed_one_does_not(store, work, monkeypatch):
    uri = store("runs/e")
    for machine in ("work", "other"):
        with mirror.mirrored(uri):
            work(machine)
            with pytest.raises(ConfigError, match="another job is under way"), mirror.mirrored(uri):
                pass
    assert names(uri) == []
    monkeypatch.setattr(lease, "SECONDS", -1.0)
    with mirror.mirrored(uri):
        work("third")
        with mirror.mirrored(uri) as folder:
            write(folder, taken="over")
    assert names(uri) == ["taken"]


def test_of_two_that_begin_at_once_the_first_to_write_gives_up(store, monkeypatch):
    uri = store("runs/f")
    system, path = storage.filesystem(f"{uri.partition('?')[0]}/{lease.NAME}?{uri.partition('?')[2]}")

    def another(_):
        with system.open_output_stream(path) as stream:
            stream.write(json.dumps({"holder": "other", "host": "h", "pid": 1, "time": time.time()}).encode())

    monkeypatch.setattr(lease.time, "sleep", another)
    with pytest.raises(ConfigError, match=r"another job is under way \(process 1 on h\)"), mirror.mirrored(uri):
        pass


def test_what_is_missing_is_told_by_the_name_that_was_given(store, commanded):
    code, said = commanded("train", "--run", store("runs/g"))
    assert code == 2
    where = "s3://bucket/runs/g"
    command = f"setrec prepare --config CONFIG --run {where}"
    assert said == f"setrec: {where}/config.yaml is missing: run `{command}` first\n"
    assert names(store("runs/g")) == []


def test_a_missing_folder_is_one_line(store):
    with pytest.raises(ConfigError, match=r"^s3://bucket/runs/nothing: no such folder$"):
        mirror.fetched(store("runs/nothing"))


@pytest.mark.slow
def test_a_store_out_of_reach_is_one_line_without_its_keys(store):
    away = "s3://key:hush@bucket/x?endpoint_override=127.0.0.1%3A9&scheme=http&region=us-east-1"
    with pytest.raises(ConfigError, match=r"^s3://bucket/x: cannot be read: ") as caught:
        mirror.fetched(away)
    assert "hush" not in str(caught.value)
