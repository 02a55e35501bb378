import re
from pathlib import Path

import pytest
import yaml

from pipelines.config.job import JobConfig, load_config
from setrec.errors import ConfigError


@pytest.fixture
def config_file(tmp_path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("data:\n  interactions: x.parquet\ntraining:\n  epochs: 3\n")
    return path


def test_a_saved_configuration_reads_back_the_same(config_file, tmp_path):
    config = load_config(config_file, ["model.history=set", "model.backbone.family=t5"])
    config.save(tmp_path / "again.yaml")
    assert load_config(tmp_path / "again.yaml") == config


def test_an_override_enters_a_section_that_is_null_in_a_saved_configuration(config_file, tmp_path):
    load_config(config_file).save(tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml", ["model.backbone.lora.rank=4"]).model.backbone.lora.rank == 4


def test_overrides_win_over_the_file(config_file):
    config = load_config(config_file, ["training.epochs=7", "encoder.path=null", "evaluation.ks=[1,2]"])
    assert (config.training.epochs, config.encoder.path, config.evaluation.ks) == (7, None, (1, 2))


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("training.epocs=3", "training.epocs"),
        ("training.epochs=many", "training.epochs"),
        ("cluster.workers=0", "cluster.workers"),
        ("training", "section.key=value"),
        ("training.epochs.x=1", "not a section"),
        ("data.interactions=[", "not YAML"),
        ("structural.edges=[knowledge]", "triples and links"),
        ("structural.triples=x.kg", "triples and links"),
        ("structural.anchors=0", "structural.anchors"),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_name_in_one_line(config_file, override, named):
    with pytest.raises(ConfigError) as caught:
        load_config(config_file, [override])
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1", "training: {}\n"])
def test_a_file_that_is_no_configuration_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml") as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_every_key_that_the_documentation_of_the_pipelines_names_is_one(config_file):
    written = load_config(config_file).model_dump()
    text = (Path(__file__).parents[2] / "docs" / "pipelines.md").read_text()
    named = set(re.findall(rf"`((?:{'|'.join(written)})\.[a-z_.]+)[:`]", text))
    assert len(named) > 20
    for key in named:
        value = written
        for part in key.split("."):
            assert part in value, key
            value = value[part]


def test_every_key_of_the_written_configuration_is_one_that_is_read(config_file, tmp_path):
    load_config(config_file).save(tmp_path / "all.yaml")
    written = yaml.safe_load((tmp_path / "all.yaml").read_text())
    assert set(written) == set(JobConfig.model_fields)
