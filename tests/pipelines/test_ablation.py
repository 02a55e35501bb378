"""The ablation on small data where attributes decide what comes next, so that slots have something to add."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from pipelines.cli.app import app
from pipelines.common.run_directory import Run
from pipelines.config.job import validate
from pipelines.data import directory
from pipelines.features import preparation
from pipelines.jobs import ablation, stages


@pytest.fixture(scope="module")
def run_and_config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    rng = np.random.default_rng(0)
    rows = [
        (f"u{u}", f"i{item + 20 * (u % 2)}", step)
        for u in range(40)
        for step, item in enumerate(rng.permutation(20)[:7])
    ]
    pd.DataFrame(rows, columns=["user_id", "item_id", "position"]).to_csv(folder / "inter.csv", index=False)
    items = pd.DataFrame({"item_id": [f"i{i}" for i in range(40)], "title": "film", "kind": ["a"] * 20 + ["b"] * 20})
    items.to_csv(folder / "items.csv", index=False)
    config = validate(
        {
            "data": {
                "interactions": str(folder / "inter.csv"), "items": str(folder / "items.csv"), "cold_share": 0.3,
                "columns": {"position": "position", "attributes": ["kind"]},
            },
            "structural": {"anchors": 6},
            "sasrec": {"epochs": 1, "layers": 1, "width": 16, "heads": 1},
            "model": {"semantic_tokens": 2, "hidden": [16, 8], "max_items": 8},
            "training": {"epochs": 2, "precision": "float32", "targets_per_batch": 64},
            "evaluation": {"resamples": 20},
        },
        "test",
    )  # fmt: skip
    run = Run(folder / "run")
    preparation.prepare(run, config)
    found = stages.ablate(run, config, seeds=2)
    return Run(run.root / "ablation"), config, found


def test_every_variant_has_the_slots_of_the_one_before_and_a_kind_more(run_and_config):
    _, _, found = run_and_config
    kinds = {record["system"]: tuple(record["weights"]) for record in found["trainings"]}
    assert kinds == {
        "Collaborative": ("collaborative",),
        "+ semantic": ("collaborative", "semantic", "text"),
        "+ structural": ("collaborative", "semantic", "text", "structural"),
    }
    assert [record["seed"] for record in found["trainings"]] == [42, 43] * 3
    for record in found["trainings"]:
        assert sum(record["weights"].values()) > 0
        assert len(record["validation"]) == 2


def test_warm_and_cold_items_are_told_apart_and_all_users_counted(run_and_config):
    run, _, found = run_and_config
    catalog, histories = directory.load(run.data)
    assert 0 < (~histories.trained(len(catalog))).sum() < len(catalog)
    users = {row["group"]: row["users"] for row in found["rows"]}
    assert users["all"] == users["warm"] + users["cold"] == 40
    assert run.read_json("ablation.json") == found


def test_differences_are_those_of_the_rows(run_and_config):
    _, _, found = run_and_config
    value = {(r["system"], r["group"], r["metric"], r["history"]): r["value"] for r in found["rows"]}
    assert len(found["differences"]) == 2 * 3 * 2
    for d in found["differences"]:
        ours, other = (value[name, d["group"], d["metric"], "removed"] for name in (d["system"], d["against"]))
        assert d["difference"] == pytest.approx(ours - other, abs=1e-9)
        assert d["low"] <= d["difference"] <= d["high"]


def test_the_command_prints_what_it_leaves_and_tables_for_people(run_and_config):
    run, _, _ = run_and_config
    command = ["ablate", "--run", str(run.root.parent), "--seeds", "1", "--set", "training.epochs=1"]
    said = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert said == run.read_json("ablation.json")
    assert [record["seed"] for record in said["trainings"]] == [42] * 3
    shown = CliRunner().invoke(app, command, env={"COLUMNS": "150"}).stdout
    for part in (
        "Full ranking",
        "Differences over the same users",
        "+ structural",
        f"{said['differences'][0]['difference']:+.4f}",
    ):
        assert part in shown


def test_without_texts_there_is_no_semantic_variant(run_and_config):
    _, config, _ = run_and_config
    found = ablation.variants(config, semantic=False)
    assert list(found) == ["Collaborative", "+ structural"]
    assert [own.structural.enabled for own in found.values()] == [False, True]
