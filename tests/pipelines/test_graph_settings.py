"""Settings of graph jobs that have no effect are refused, and files of the user are not replaced."""

import pytest
import yaml

from pipelines.graph import jobs
from pipelines.graph.config import graph_config
from pipelines.graph.tasks import load_task
from setrec.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("task", "overrides", "said"),
    [
        ("completion", ["directed=true"], "no directions"),
        ("stance", ["directed=true"], "no directions"),
        ("links", ["tokenizer.distances.direction=both"], "needs directed=true"),
        ("completion", ["tokenizer.distances.kind=weighted"], "no lengths"),
        ("connectivity", ["tokenizer.distances.kind=weighted"], "no lengths"),
        ("completion", ["model.backbone.pretrained=Q"], "learning.minutes=null"),
        ("links", ["data.columns={lable: kind}"], "'lable' is none of"),
        ("links", ["name=classification"], "the task is 'links', but 'name' is 'classification'"),
    ],
)
def test_a_setting_without_effect_is_refused(task, overrides, said):
    with pytest.raises(ConfigError, match=said):
        graph_config(task, overrides=overrides)


def test_the_task_of_a_file_is_that_of_the_command(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"name": "classification"}))
    assert graph_config("classification", file).name == graph_config(None, file).name == "classification"
    assert graph_config(None).name == "structure"
    with pytest.raises(ConfigError, match=r"but 'name' is 'classification' in .*config\.yaml"):
        graph_config("links", file)


def ring(folder, header="source,target"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "edges.csv").write_text(f"{header}\n" + "".join(f"{i},{(i + 1) % 30}\n" for i in range(30)))
    return folder


def test_columns_and_weights_that_are_not_there_are_named(tmp_path):
    folder = ring(tmp_path / "data")
    renamed = graph_config("links", overrides=["data.columns={weight: metres}"])
    with pytest.raises(DataError, match=r"edges\.csv: there is no column 'metres', which data\.columns names"):
        load_task(folder, renamed, tmp_path)
    weighted = graph_config("links", overrides=["tokenizer.distances.kind=weighted"])
    with pytest.raises(DataError, match=r"column 'weight'.*needs lengths"):
        load_task(folder, weighted, tmp_path)
    with pytest.raises(ConfigError, match="without directions"):
        load_task(folder, graph_config("structure", overrides=["directed=true"]), tmp_path)


def test_a_class_is_described_once(tmp_path):
    folder = ring(tmp_path / "data")
    rows = "".join(f"{i},{'ab'[i % 2]},{('train', 'valid', 'test')[i % 3]}\n" for i in range(30))
    (folder / "nodes.csv").write_text(f"node_id,label,split\n{rows}")
    (folder / "classes.csv").write_text("label,description\na,one\na,two\n")
    with pytest.raises(DataError, match=r"classes\.csv, row 2, column 'label'.*repeats"):
        load_task(folder, graph_config("classification"), tmp_path)


def test_data_in_the_folder_that_a_job_would_write_is_kept(tmp_path):
    folder = ring(tmp_path / "graph")
    before = (folder / "edges.csv").read_text()
    for job, task in ((jobs.tokenize, None), (jobs.train, "links")):
        with pytest.raises(ConfigError, match=r"graph: exists and holds no graph\.json; not replaced"):
            job(folder, tmp_path, graph_config(task))
    assert (folder / "edges.csv").read_text() == before


@pytest.mark.parametrize("name", ["rows.html", "rows.graph", "rows"])
def test_rows_are_not_written_where_the_report_or_the_model_goes(tmp_path, name):
    with pytest.raises(ConfigError, match=r"ends in \.json"):
        jobs.evaluate(ring(tmp_path / "data"), tmp_path / name, graph_config("links"))
