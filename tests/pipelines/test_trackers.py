"""What TensorBoard and MLflow are told is what the run's own files say."""

import json
import struct
import sys

import pytest
import yaml
from tensorboardX.proto.event_pb2 import Event

from pipelines.common import trackers
from pipelines.common.run_directory import Run
from pipelines.common.trackers import Trackers, tracking
from pipelines.config.job import load_config
from pipelines.features import preparation
from setrec.errors import ConfigError

CURVE = [{"epoch": e, "epochs": 3, "loss": 1 / e, "ndcg@10": e / 10, "seconds": float(e)} for e in (1, 2, 3)]
ROWS = [
    {"system": system, "history": "removed", "group": "all", "metric": "ndcg@10", "value": value}
    for system, value in (("SETRec", 0.25), ("Popularity", 0.125))
]


@pytest.fixture
def run(qwen3_run, tmp_path) -> Run:
    own = Run(tmp_path / "run")
    own.root.mkdir()
    own.config.write_text(qwen3_run.config.read_text())
    return own


def events(run: Run, system: str) -> list[Event]:
    """All events of a system, file by file; a file is records of length, checksum, content, checksum."""
    found = []
    for path in sorted(
        (run.root / "logs" / "tensorboard" / system).iterdir(), key=lambda path: path.stat().st_mtime_ns
    ):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack("<Q", content[at : at + 8])
            found.append(Event.FromString(content[at + 12 : at + 12 + length]))
            at += length + 16
    return found


def scalars(run: Run, system: str) -> dict[tuple[str, int], float]:
    found = {}
    for event in events(run, system):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found[value.tag, event.step] = value.simple_value
    return found


def follow(run: Run, *sets: str, curve=CURVE) -> None:
    with tracking(run, load_config(run.config, list(sets))) as followed:
        for record in curve:
            followed.epoch("SETRec", record)
    with tracking(run, load_config(run.config, list(sets))) as followed:
        followed.metrics(ROWS)


def test_tensorboard_holds_curves_metrics_configuration_and_environment(run):
    follow(run)
    expected = {
        (name.replace("@", "_at_"), r["epoch"]): r[name] for r in CURVE for name in ("loss", "ndcg@10", "seconds")
    }
    assert scalars(run, "SETRec") == pytest.approx({**expected, ("test/all/removed/ndcg_at_10", 0): 0.25})
    assert scalars(run, "Popularity") == {("test/all/removed/ndcg_at_10", 0): 0.125}
    texts = {
        v.tag: v.tensor.string_val[0].decode()
        for e in events(run, "SETRec")
        for v in e.summary.value
        if v.tensor.string_val
    }
    told = yaml.safe_load("".join(line[4:] for line in texts["configuration/text_summary"].splitlines(keepends=True)))
    assert told == load_config(run.config).model_dump(mode="json")
    assert "torch" in texts["environment/text_summary"]


def test_epochs_that_a_resumed_training_repeats_replace_the_earlier_ones(run):
    follow(run)
    again = [{**record, "loss": 9.0} for record in CURVE[1:]]
    follow(run, curve=again)
    assert scalars(run, "SETRec")["loss", 1] == 1.0
    assert scalars(run, "SETRec")["loss", 2] == 9.0
    marks = [event.step for event in events(run, "SETRec") if event.session_log.status]
    assert 2 in marks
    trackers.forget(run)
    assert not (run.root / "logs" / "tensorboard").exists()


def test_nothing_is_written_where_nothing_is_asked_for(run):
    follow(run, "tracking.tensorboard=false")
    assert not (run.root / "logs").exists()


def test_training_and_evaluation_tell_the_same_as_their_files(qwen3_run):
    curve = [json.loads(line) for line in (qwen3_run.root / "curves.jsonl").read_text().splitlines()]
    own = [record for record in curve if record["system"] == "SASRec"]
    expected = {("loss", r["epoch"]): r["loss"] for r in own} | {("ndcg_at_10", r["epoch"]): r["ndcg@10"] for r in own}
    found = {key: value for key, value in scalars(qwen3_run, "SASRec").items() if key[0] in ("loss", "ndcg_at_10")}
    assert found == pytest.approx(expected)


def test_mlflow_holds_the_same_in_one_run_for_training_and_evaluation(run, tmp_path, monkeypatch):
    client = pytest.importorskip("mlflow.tracking").MlflowClient
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow would rather have a database
    uri = f"file:{tmp_path / 'store'}"
    follow(run, f"tracking.mlflow={uri}", "tracking.experiment=trial", "tracking.tensorboard=false")
    found = client(tracking_uri=uri)
    (only,) = found.search_runs([found.get_experiment_by_name("trial").experiment_id])
    history = found.get_metric_history(only.info.run_id, "SETRec/ndcg_at_10")
    assert [(m.step, m.value) for m in history] == [(r["epoch"], r["ndcg@10"]) for r in CURVE]
    assert only.data.metrics["Popularity/test/all/removed/ndcg_at_10"] == 0.125
    assert only.data.params["training.epochs"] == "2"
    assert only.data.tags["run"] == str(run.root)
    assert only.info.status == "FINISHED"
    text = (tmp_path / "store").rglob("config.yaml")
    assert yaml.safe_load(next(text).read_text())["training"]["epochs"] == 2
    assert not (run.root / "logs" / "tensorboard").exists()


def test_mlflow_that_is_missing_or_out_of_reach_is_said_in_one_line_before_anything_starts(run, monkeypatch):
    with pytest.raises(ConfigError, match=r"tracking\.mlflow: nothing://here cannot be used: [^\n]+$"):
        follow(run, "tracking.mlflow=nothing://here")
    monkeypatch.setitem(sys.modules, "mlflow.entities", None)
    with pytest.raises(ConfigError, match=r"needs the package mlflow-skinny \(pip install mlflow-skinny\)$"):
        follow(run, "tracking.mlflow=file:store")


def test_a_tracker_that_fails_on_the_way_is_given_up_and_the_job_goes_on(run):
    class Full:
        calls = 0

        def scalars(self, *_):
            self.calls += 1
            raise OSError("no space left on device")

        def close(self):
            raise AssertionError("given up before")

    full = Full()
    followed = Trackers(run, [full])
    for record in CURVE:
        followed.epoch("SETRec", record)
    followed.close()
    assert full.calls == 1
    line = json.loads((run.root / "logs" / "run.jsonl").read_text())
    assert (line["event"], line["tracker"], line["reason"]) == ("tracker given up", "Full", "no space left on device")


def test_a_run_says_with_which_seeds_it_was_made(run):
    run.note_seconds("ingest", 1.5)
    run.note(seeds=preparation.seeds(load_config(run.config, ["training.seed=7"])))
    found = run.read_json("environment.json")
    assert found["seconds"] == {"ingest": 1.5}
    assert found["seeds"] == {"data": 0, "training": 7, "evaluation": 0, "tune": 0, "retriever": 0}
    assert found["libraries"]["torch"]
