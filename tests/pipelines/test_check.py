"""What is wrong with a configuration and its data is told before time goes into it, all at once."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from pipelines.config.job import load_config
from pipelines.config.problems import SettingsError
from pipelines.jobs.check import check

BAD = {
    "evaluation.ks": ("evaluation: {ks: [0, 10]}", "0: must be at least 1"),
    "training.epochs": ("training: {epochs: 0}", "0: must be at least 1"),
    "training.learning_rate": ("training: {learning_rate: -1}", "-1: must be more than 0"),
    "training.clip": ("training: {clip: .nan}", "nan: must be more than 0"),
    "sasrec.heads": ("sasrec: {heads: 3}", "3: width, 64, must be a multiple of it"),
    "model.max_items": ("model: {max_items: 0}", "0: must be at least 1"),
    "training.patience": ("training: {patience: 0}", "0: must be at least 1"),
    "model.id_dropout": ("model: {id_dropout: 1.5}", "1.5: must be at least 0 and less than 1"),
    "encoder.path": ("encoder: {path: [a, b]}", "['a', 'b']: must be text"),
    "warm_start": ("warm_start: [a]", "['a']: must be one path"),
    "structural.anchors": ("structural: {anchors: 1.5}", "1.5: must be a whole number, at least 1"),
    "serving.releases": ("serving: {releases: 's3://b/x'}", "'s3://b/x': must be a path on this machine, not a URI"),
    "training.seed": ("training: {seed: 18446744073709551616}", "must be at least 0 and less than 4294967296"),
    "data.split": ("data: {interactions: x.csv, split: loo}", "'loo': must be a section of keys"),
    "evaluation.opponents": ("evaluation: {opponents: sasrec}", "'sasrec': must be a list"),
    "evaluation.components": ("evaluation: {components: [near]}", "'near': must be one of transitions_"),
    "tune.space.training.epoch": (
        "tune: {space: {training.epoch: {kind: integer, low: 1, high: 2}}}",
        "the nearest is training.epochs",
    ),
    "model": ("model: 5", "5: must be a section of keys"),
    "name": ("name: ../x", "'../x': must be a name"),
    "training.epocs": ("training: {epocs: 3}", "no such setting; the nearest is training.epochs"),
    "learning_rate": ("learning_rate: 1", "no such setting; the nearest is training.learning_rate"),
    "model.backbone.size": ("model: {backbone: {size: huge}}", "'huge': must be 'tiny', 'small' or 'base'"),
}


@pytest.fixture
def table(tmp_path):
    """Ten users with five interactions each, one of them repeated, and one that cannot be used."""
    rows = [(f"u{u}", f"i{(u + s) % 7}", s) for u in range(10) for s in range(5)]
    rows += [("u0", "i0", 9), ("u0", "i1", None)]
    path = tmp_path / "interactions.csv"
    pd.DataFrame(rows, columns=["user_id", "item_id", "position"]).to_csv(path, index=False)
    return path


def config(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("key", BAD)
def test_a_bad_setting_is_told_with_key_value_range_and_the_nearest_known_key(tmp_path, key):
    text, said = BAD[key]
    data = "" if text.startswith("data") else "data: {interactions: x.csv}\n"
    with pytest.raises(SettingsError) as caught:
        load_config(config(tmp_path, f"{data}{text}\n"), agree=True)
    assert [problem.key for problem in caught.value.problems] == [key]
    assert said in caught.value.problems[0].message


def test_all_of_them_are_told_at_once(tmp_path):
    text = "data: {interactions: x.csv, seed: -1}\ntraining: {epochs: 0, patience: 0}\nname: x\nmodel: {x: 1}\n"
    found = check(config(tmp_path, text), ["evaluation.ks=[0]"])
    assert [e["key"] for e in found["errors"]] == [
        "data.seed", "model.x", "training.epochs", "training.patience", "evaluation.ks", "gate.metric",
    ]  # fmt: skip


def test_a_gate_on_a_cut_off_that_is_not_ranked_is_told(tmp_path, table):
    found = check(config(tmp_path, f"data: {{interactions: {table}, rejected_share: 0.5}}"), ["evaluation.ks=[5]"])
    assert found["errors"] == [
        {"key": "gate.metric", "message": "'ndcg@10': its cut-off must be in evaluation.ks, [5]"}
    ]


@pytest.mark.parametrize("command", [("prepare", "--run"), ("tune", "--run"), ("pipeline", "run", "--root")])
def test_every_command_that_reads_a_configuration_tells_all_of_it(tmp_path, commanded, command):
    file = config(tmp_path, "data: {interactions: x.csv}\nevaluation: {ks: [5]}\ntraining: {patience: 0}\n")
    *words, place = command
    given = [file] if words[0] == "pipeline" else ["--config", file]
    code, said = commanded(*words, *given, place, tmp_path / "run")
    assert code == 2
    assert "2 settings cannot be used" in said
    assert "training.patience: 0: must be at least 1" in said
    assert "gate.metric: 'ndcg@10': its cut-off must be in evaluation.ks, [5]" in said
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("text", ["name: a\nname: b\n", "training: {epochs: 1, epochs: 2}\n"])
def test_a_key_that_stands_twice_is_refused(tmp_path, text):
    found = check(config(tmp_path, f"data: {{interactions: x.csv}}\n{text}"), [])
    assert "appears twice" in found["errors"][0]["message"]


def test_the_data_is_profiled(tmp_path, table):
    found = check(config(tmp_path, f"data: {{interactions: {table}, rejected_share: 0.1}}"), [])
    assert (found["rows"], found["users"], found["items"], found["rejected"]) == (52, 10, 7, 1)
    assert found["splits"] == {"train": 30, "valid": 10, "test": 10}
    assert found["duplicates"] == 1
    assert found["errors"] == []


def test_what_later_jobs_refuse_is_told(tmp_path):
    frame = pd.DataFrame({"user_id": ["a", "b"], "item_id": ["x", "y"], "position": [1, 1]})
    frame.to_csv(tmp_path / "one.csv", index=False)
    found = check(config(tmp_path, f"data: {{interactions: {tmp_path}/one.csv}}"), [])
    assert [e["key"] for e in found["errors"]] == ["data.split", "data.split"]
    assert "validation" in found["errors"][0]["message"]
    assert "test" in found["errors"][1]["message"]


def test_data_that_is_refused_is_an_error_with_its_place(tmp_path):
    found = check(config(tmp_path, f"data: {{interactions: {tmp_path}/none.csv}}"), [])
    assert found["errors"] == [{"key": "data", "message": f"{tmp_path}/none.csv: no such file or folder"}]


def test_the_command_needs_no_torch_and_its_exit_code_says_whether_there_are_errors(tmp_path, table):
    path = config(tmp_path, f"data: {{interactions: {table}, rejected_share: 0.1}}")
    code = f"""
import sys
sys.argv = ["setrec", "check", {str(path)!r}, "--json", "--set", "training.epochs=2"]
from pipelines.cli.app import main
main()
assert not {{"torch", "transformers", "ray", "faiss"}} & set(sys.modules), sorted(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) >= {"errors", "rows", "users", "items", "rejected", "splits"}


def test_errors_make_the_exit_code_2(tmp_path, commanded):
    assert commanded("check", config(tmp_path, "data: {interactions: x.csv}\nname: [a]\n"))[0] == 2
