"""The nightly loop for real: killed and gone on with, passed over, warm-started, held back by the gate."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from s3_server import s3_server
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.common import fingerprints
from pipelines.common.run_directory import Run
from pipelines.config.job import load_config
from pipelines.nightly import bundle_checks, loop, release_store
from pipelines.nightly.last_release import rank_again
from pipelines.nightly.loop import NAMES
from pipelines.nightly.steps import HeldBackError
from pipelines.remote import lease, mirror
from pipelines.training import train
from pipelines.training.worker import trainer_of
from serving.bundle.reader import Bundle
from serving.retrieval.recall_audit import Audit
from setrec.atomic import atomic_directory
from setrec.errors import ConfigError

CONFIG = """
data: {interactions: FOLDER/interactions.csv, items: FOLDER/items.csv, columns: {position: position}}
sasrec: {epochs: 1, layers: 1, width: 16, heads: 1}
model: {max_items: 10, hidden: [16, 8], dropout: 0.0, id_dropout: 0.0, backbone: {dropout: 0.0}}
training: {epochs: 6, patience: 6, targets_per_batch: 64, precision: float32}
cluster: {threads: 1}
evaluation: {resamples: 50, examples: 1}
"""


def interactions(folder, users=60):
    rng = np.random.default_rng(0)
    rows = [
        (f"u{u}", f"i{(start + step) % 30}", step)
        for u, start in enumerate(rng.integers(0, 30, users))
        for step in range(int(rng.integers(6, 20)))
    ]
    pd.DataFrame(rows, columns=["user_id", "item_id", "position"]).to_csv(folder / "interactions.csv", index=False)


def made(folder):
    """Inputs and a configuration; the root of the loop is ``nightly`` beside them."""
    interactions(folder)
    items = pd.DataFrame({"item_id": [f"i{row}" for row in range(30)], "title": [f"Film {row}" for row in range(30)]})
    items.to_csv(folder / "items.csv", index=False)
    (folder / "config.yaml").write_text(CONFIG.replace("FOLDER", str(folder)))
    return folder


def killed(place):
    """The first night, killed outright in the middle of training."""
    log, began = place / "nightly" / "run" / "logs" / "run.jsonl", time.monotonic()
    process = subprocess.Popen(
        command(place), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        while not (log.exists() and '"system": "SETRec"' in log.read_text()):
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() - began < 800, "no epoch in time"
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def released(tmp_path_factory, without_ray_train):
    """A first night."""
    place = made(tmp_path_factory.mktemp("nightly"))
    return place, loop.run(place / "config.yaml", place / "nightly", say=lambda _: None)


def command(place):
    """The command line in a process of its own; at the end it says which heavy libraries it has imported."""
    arguments = ["setrec", "pipeline", "run", str(place / "config.yaml"), "--root", str(place / "nightly")]
    code = f"""
import sys
from pipelines.cli import app
from pipelines.common import fingerprints
fingerprints.of_code = lambda: "unchanged"
sys.argv = {arguments!r}
app.main()
print(sorted({{"torch", "ray", "transformers", "faiss", "pandas"}} & set(sys.modules)))
"""
    return [sys.executable, "-c", code]


@pytest.fixture(scope="module", autouse=True)
def same_code():
    """Somebody may be editing this project while its tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprints, "of_code", lambda: "unchanged")
        yield


def again(place, *overrides, **options):
    lines = []
    done = loop.run(place / "config.yaml", place / "nightly", overrides, say=lines.append, **options)
    return done["ran"], lines


def curve(place):
    lines = (place / "nightly/run/curves.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["system"] == "SETRec"]


# The first of this file: the others train in this process.
@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_a_night_killed_in_the_middle_of_training_is_gone_on_with(tmp_path, ray_here):
    place = made(tmp_path)
    killed(place)
    assert again(place)[0] == list(NAMES[2:])
    events = [json.loads(line) for line in (place / "nightly/run/logs/run.jsonl").read_text().splitlines()]
    assert sum(e["event"] == "started" and e["step"] == "setrec" for e in events) == 2
    assert sum(e["event"] == "epoch" and e["system"] == "SETRec" and e["epoch"] == 1 for e in events) == 1
    assert [record["epoch"] for record in curve(place)] == [1, 2, 3, 4, 5, 6]


def test_what_was_released_can_be_served_and_is_current(released):
    place, done = released
    assert done["ran"] == list(NAMES)
    bundle = Bundle.open(place / "nightly" / "releases" / "current")
    assert done["release"].endswith(bundle.model_version)
    gate = json.loads((place / "nightly/run/gate.json").read_text())
    assert gate["passed"]
    assert "nothing was released before" in gate["reason"]
    assert json.loads((place / "nightly/run/audit.json").read_text())["recall"] == 1.0


def test_a_second_night_without_news_does_nothing_and_says_so_at_once(released):
    place, done = released
    said = subprocess.run(command(place), capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    *answer, imported = said.stdout.splitlines()
    assert json.loads("".join(answer)) == {"ran": [], "release": done["release"]}
    assert said.stderr.strip() == "Nothing has changed, nothing was done."
    assert imported == "[]", "these take seconds"
    shown = CliRunner().invoke(app.app, ["pipeline", "status", "--root", str(place / "nightly")])
    found = json.loads(shown.stdout)
    assert found["release"] == done["release"]
    assert list(found["steps"]) == list(NAMES)
    assert all(step["seconds"] >= 0 for step in found["steps"].values())


def test_a_root_in_a_store_goes_on_on_any_machine(released, tmp_path, monkeypatch, capfd):
    place, _ = released
    monkeypatch.setenv(mirror.WORK, str(tmp_path / "one"))
    monkeypatch.setattr(lease, "SETTLED", 0.0)
    with s3_server() as uri:
        root = uri("nightly")
        with mirror.mirrored(root) as copy:
            shutil.copytree(place / "nightly", copy, symlinks=True, dirs_exist_ok=True)
        for machine, overrides, ran in (("two", [], []), ("three", ["--set", "gate.margin=0.4"], ["gate", "export"])):
            monkeypatch.setenv(mirror.WORK, str(tmp_path / machine))
            arguments = ["pipeline", "run", str(place / "config.yaml"), "--root", root, *overrides]
            done = CliRunner().invoke(app.app, arguments, catch_exceptions=False)
            assert json.loads(done.stdout)["ran"][:2] == ran, capfd.readouterr().err
        monkeypatch.setenv(mirror.WORK, str(tmp_path / "four"))
        found = json.loads((mirror.fetched(root) / "state" / "gate.json").read_text())
        assert found["inputs"] != json.loads((place / "nightly" / "state" / "gate.json").read_text())["inputs"]


def test_a_step_runs_where_its_own_section_changed_and_the_release_stays_where_the_bundle_does(released):
    place, _ = released
    ran, lines = again(place, "gate.margin=0.2")
    assert ran == ["gate", "export", "audit", "release"]
    assert "gate: runs, because the configuration changed" in lines
    assert again(place, "gate.margin=0.2", "cluster.workers=2")[0] == []
    assert again(place)[0] == ["gate", "export", "audit", "release"]


def test_a_bundle_that_is_damaged_or_finds_too_little_is_held_back(released, tmp_path, monkeypatch):
    place, _ = released
    whole = place / "nightly/run/bundle"
    shutil.copytree(whole, tmp_path / "bundle")
    (tmp_path / "bundle" / "codes.safetensors").write_bytes(b"x")
    with pytest.raises(HeldBackError, match=r"^held back: .*codes\.safetensors: 1 bytes where"):
        bundle_checks.audit(tmp_path / "bundle")
    opened = Bundle.open(whole)
    monkeypatch.setattr(bundle_checks.Bundle, "open", lambda _: opened)
    for recall, high, passes in ((0.98, 0.991, True), (0.97, 0.989, False)):
        opened.retriever.built_audit = Audit(recall, recall - 0.01, high, 500, 10)
        if passes:
            assert bundle_checks.audit(whole)["recall"] == recall
        else:
            with pytest.raises(HeldBackError, match=r"recall of the index is 0\.9700 .* the target is 0\.99"):
                bundle_checks.audit(whole)


def test_new_data_is_trained_on_from_the_last_release(released):
    place, _ = released
    before, cold = release_store.current(place / "nightly")[0], curve(place)[0]
    interactions(place, users=70)
    ran, lines = again(place, "training.epochs=4")
    assert ran == list(NAMES)
    assert f"train: starts from {before}" in lines
    assert any(line.startswith("gate: passed") and before in line for line in lines)
    assert curve(place)[0]["loss"] < 0.95 * cold["loss"]
    assert release_store.current(place / "nightly")[0] != before


def test_a_worse_model_is_held_back_by_the_gate_and_the_last_release_stays(released, monkeypatch):
    place, _ = released
    before = release_store.current(place / "nightly")
    # What is served would be as good without a model: on these histories transitions alone say what comes next.
    unlearned = ("training.epochs=1", "training.seed=7", "evaluation.components=[]")

    def untrained(run, config, **_):
        """Training that has learned nothing, in no time."""
        with atomic_directory(run.model) as target:
            trainer_of(run, config).model.save_pretrained(target)
        return {}

    monkeypatch.setattr(train, "train", untrained)
    with pytest.raises(HeldBackError, match=r"^held back: NDCG at 10 is 0\.\d+, \d\.\d+ for .* is allowed$"):
        again(place, *unlearned, cold=True)
    gate = json.loads((place / "nightly/run/gate.json").read_text())
    assert (gate["passed"], gate["paired"], gate["release"]) == (False, True, before[0])
    assert gate["high"] < gate["allowed"] < 0
    assert release_store.current(place / "nightly") == before
    arguments = [part for change in unlearned for part in ("--set", change)]
    arguments = ["pipeline", "run", str(place / "config.yaml"), "--root", str(place / "nightly"), *arguments]
    assert CliRunner().invoke(app.app, arguments).exit_code == 3
    lines = []
    with pytest.raises(HeldBackError):
        loop.run(place / "config.yaml", place / "nightly", unlearned, say=lines.append)
    assert lines == ["gate: runs, because what evaluate made changed"], "all that came before it stands"


def test_the_last_release_ranked_again_on_its_own_night_has_the_metrics_of_its_night(tmp_path_factory, released):
    place, _ = released
    again(place)
    root = place / "nightly"
    record = release_store.current(root)[1]
    config = load_config(place / "config.yaml")
    found = pd.read_parquet(rank_again(Run(root / "run"), config, record))
    before = pd.read_parquet(record / "per_user.parquet")
    keys = ["system", "history", "user_id"]
    both = found.merge(before[before["group"] == "all"], on=keys, suffixes=("", "_before"))
    assert len(both) == len(found) > 0
    for metric in ("ndcg@10", "recall@10"):
        np.testing.assert_allclose(both[metric], both[f"{metric}_before"], atol=1e-5)


def test_far_less_data_is_held_back_before_training_told_and_may_be_approved(released):
    place, _ = released
    root = place / "nightly"
    again(place)
    shutil.copy(place / "interactions.csv", place / "all.csv")
    try:
        interactions(place, users=20)
        with pytest.raises(HeldBackError, match=r"held back: 20 users, \d+ for .*: less than gate\.volume"):
            again(place)
        found = json.loads(CliRunner().invoke(app.app, ["pipeline", "status", "--root", str(root)]).stdout)["held_back"]
        assert found["step"] == "train"
        assert "gate.volume" in found["reason"]
        assert CliRunner().invoke(app.app, ["pipeline", "approve", "--root", str(root)]).exit_code == 0
        ran, lines = again(place, "gate.margin=1")
        assert "train: approved: 20 users" in lines
        assert "train" in ran
    finally:
        shutil.copy(place / "all.csv", place / "interactions.csv")


def test_a_release_or_current_that_is_missing_is_put_back(released):
    place, _ = released
    root = place / "nightly"
    again(place, "gate.margin=1")
    name = release_store.current(root)[0]
    shutil.rmtree(root / "releases" / name)
    ran, _ = again(place, "gate.margin=1")
    assert ran == ["release"]
    assert release_store.current(root)[0] == name
    Bundle.open(root / "releases" / "current")
    (root / "releases" / "current").unlink()
    assert again(place, "gate.margin=1")[0] == ["release"]
    assert (root / "releases" / "current").resolve().name == name


def test_an_unchanged_model_is_not_released_again_and_a_withdrawn_one_stays_out(released):
    place, _ = released
    root = place / "nightly"
    again(place, "gate.margin=1")
    name = release_store.current(root)[0]
    assert "export" in again(place, "gate.margin=1", "release.keep=4", first="export")[0]
    assert release_store.current(root)[0] == name
    earlier = release_store.released(root)[0]
    assert earlier < name
    done = CliRunner().invoke(app.app, ["pipeline", "rollback", earlier, "--root", str(root)])
    assert done.exit_code == 0, done.output
    again(place, "gate.margin=1", "release.keep=4")
    assert release_store.current(root)[0] == earlier
    assert again(place, "gate.margin=1", "release.keep=4")[0] == []
    shown = json.loads(CliRunner().invoke(app.app, ["pipeline", "history", "--root", str(root)]).stdout)
    assert shown["current"] == earlier
    assert shown["events"][-1]["event"] == "rolled back"
    with pytest.raises(ConfigError, match=f"there are {earlier}"):
        release_store.rollback(root, "20200101T000000000-none")


def test_how_many_processes_work_changes_nothing_and_forces_no_cold_start(released):
    place, _ = released
    sets = ("gate.margin=1", "release.keep=4")
    assert again(place, *sets, "encoder.actors=3", "encoder.batch_size=7", "cluster.workers=2")[0] == []
    interactions(place, users=72)
    _, lines = again(place, *sets, "encoder.actors=3", "encoder.batch_size=7", "training.epochs=1", "gate.volume=0")
    assert any(line.startswith("train: starts from") for line in lines)


def test_two_runs_of_one_root_exclude_each_other_and_a_killed_one_does_not(tmp_path):
    code = f"""
import sys, time
from pathlib import Path
from pipelines.common.locks import exclusive
with exclusive(Path({str(tmp_path / "lock.json")!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    from pipelines.common.locks import exclusive

    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"process {holder.pid} on"), exclusive(tmp_path / "lock.json"):
            pass
    finally:
        holder.kill()
        holder.wait()
    with exclusive(tmp_path / "lock.json"):
        pass
