import json
import re

import pytest

from pipelines.common.run_directory import Run
from pipelines.jobs.run_report import write_report
from pipelines.reports.terminal import answer_table, example_table, ranking_table

NASTY = "<script>alert(1)</script> & [red]x"


def row(system, value, group="all", metric="ndcg@10", history="removed"):
    interval = {"value": value, "low": value - 0.01, "high": value + 0.01}
    return {"system": system, "history": history, "group": group, "metric": metric, "users": 9, **interval}


@pytest.fixture
def run(tmp_path) -> Run:
    run = Run(tmp_path)
    systems = {"Popularity": 0.03, "ItemKNN": 0.09, "SASRec": 0.1, "SETRec": 0.12}
    rows = [
        row(s, v, g, m, h)
        for s, v in systems.items()
        for g in ("all", "warm", "cold")
        for m in ("ndcg@10", "recall@10")
        for h in ("removed", "kept")
    ]
    run.write_json("metrics.json", rows)
    run.write_json("popularity_groups.json", [row(s, v, "popularity:head", "recall@10") for s, v in systems.items()])
    difference = {"history": "removed", "metric": "ndcg@10", "difference": 0.02, "low": 0.01, "high": 0.03}
    run.write_json("comparisons.json", [{"system": "SETRec", "against": "ItemKNN", **difference}])
    run.write_curve("SETRec", [{"epoch": e, "loss": 7.0 - e, "ndcg@10": 0.1, "seconds": 1.0} for e in (1, 2, 3)])
    new = {"model": 1.0, "components": {}, "level": 0.0}
    weights = {"slots": {"semantic": 1.0}, "temperature": 1.0, "components": {"text_similarity": 2.5}, "new_items": new}
    gain = {"name": "text_similarity", "weight": 2.5, "gain": 0.0123, "standard_error": 0.001}
    run.write_json("scorer.json", {"components": [gain], "weights": weights, "valid": 0.1, "tried": [{}] * 7})
    film = {"item_id": "1", "title": NASTY, "attributes": {"genre": ["Comedy"]}}
    found = [{**film, "score": 1.0, "hit": True}]
    run.write_json("examples.json", [{"user_id": "u", "history": [film], "recommendations": found, "held_out": [film]}])
    run.write_json("data.json", {"users": 9, "items": 3, "interactions": 30})
    run.note_seconds("train", 12.0)
    run.config.write_text("name: x\n")
    return run


def test_the_report_needs_nothing_outside_itself_and_escapes_what_it_is_given(run):
    html = write_report(run.root).read_text()
    assert not re.search(r"""(src|href)=["'](?!#)|@import|url\((?!#)""", html)
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    for said in ("0.1200", "above ItemKNN by +0.0200", "chosen next", "Validation NDCG@10", "popularity", "name: x"):
        assert said in html, said


def test_the_report_shows_the_weights_of_components_where_there_are_any(run):
    html = " ".join(write_report(run.root).read_text().split())
    assert "<td>text_similarity</td><td>2.5</td><td>+0.0123</td><td>0.0010</td>" in html
    assert "(7 tried)" in html
    scorer = run.read_json("scorer.json")
    run.write_json("scorer.json", {**scorer, "components": []})
    assert "text_similarity" not in write_report(run.root).read_text()


def test_a_run_that_is_not_evaluated_yet_still_has_a_report(tmp_path):
    assert "<h1>" in write_report(tmp_path).read_text()


def test_a_curve_replaces_the_same_system_and_leaves_the_others(run):
    run.write_curve("SASRec", [{"epoch": 1}])
    run.write_curve("SETRec", [{"epoch": 9}])
    records = [json.loads(line) for line in (run.root / "curves.jsonl").read_text().splitlines()]
    assert records == [{"system": "SASRec", "epoch": 1}, {"system": "SETRec", "epoch": 9}]


def test_tables_show_markup_in_titles_as_text(run):
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    example = run.read_json("examples.json")[0]
    console.print(ranking_table(run.read_json("metrics.json")))
    console.print(example_table(example))
    both = ({"a": 1.0}, {"a": 0.25, "b": 0.75})
    items = [{**example["history"][0], "score": 1.0, "shares": shares} for shares in both]
    console.print(answer_table({"model_version": "v", "items": items}))
    text = console.export_text()
    assert "+0.75" in text
    assert text.count(NASTY) >= 3
    assert "0.1200" in text


def test_the_table_has_the_cut_offs_that_were_ranked():
    rows = [
        {"system": "A", "history": "removed", "group": "all", "users": 3, "metric": f"{name}@{k}", "value": 0.5,
         "low": 0, "high": 1}
        for name in ("ndcg", "recall") for k in (1, 5)
    ]  # fmt: skip
    table = ranking_table(rows)
    assert [column.header for column in table.columns][3:] == ["NDCG@5", "Recall@5"]
    assert "0.5000" in str(list(table.columns[3].cells))


def test_clearing_a_run_removes_what_runs_leave_and_nothing_else(run):
    keep = run.root / "notes.txt"
    keep.write_text("mine")
    run.write_json("run.json", {"format": 1, "wrote": [p.name for p in run.root.iterdir() if p != keep]})
    (run.root / "model").mkdir()
    run.clear()
    assert {p.name for p in run.root.iterdir()} == {"notes.txt", "model", "run.json"}


def test_the_log_is_one_json_object_a_line_in_order(run):
    run.log("started", step="x")
    run.log("finished", step="x", seconds=1.5)
    lines = [json.loads(line) for line in (run.root / "logs" / "run.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["started", "finished"]
    assert lines[1]["seconds"] == 1.5
