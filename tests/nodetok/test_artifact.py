"""A trained reader on disk: the same answers, and one clear line where a file is damaged."""

import json

import numpy as np
import pytest
from nodetok_helpers import reader, task
from safetensors.torch import load_file, save_file

from nodetok.asking.answering import GraphAnswerer
from nodetok.asking.artifact import GraphArtifact, artifact
from setrec.errors import ConfigError, SetRecError


def asked(made, question, k=5, **changes):
    return GraphAnswerer(made).ask(question, k, **changes)


QUESTION = "what is the class of [[n7]] ?"


@pytest.fixture(scope="module")
def made():
    of = task()
    return artifact(of, reader(of, text_loss=1.0))


@pytest.fixture
def folder(made, tmp_path):
    made.save(tmp_path / "graph")
    return tmp_path / "graph"


def test_what_was_trained_answers_as_what_is_loaded(made, folder):
    loaded = GraphArtifact.load(folder)
    for written in (False, True):
        assert asked(loaded, QUESTION, 3, written=written) == asked(made, QUESTION, 3, written=written)
    assert (loaded.version, list(loaded.ids), loaded.texts) == (made.version, list(made.ids), made.texts)
    assert np.array_equal(loaded.tokenizer.table, made.tokenizer.table)
    # Half precision where training asked for whole would answer with other digits.
    assert loaded.reader.precision == made.reader.precision == "float32"


def test_answers_are_the_best_candidates_with_chances_that_sum_to_one(made):
    found = asked(made, QUESTION, 3)
    assert found.nodes[0] == "n7"
    chances = [chance for _, chance in found.ranked]
    assert chances == sorted(chances, reverse=True)
    assert sum(chances) == pytest.approx(1.0, abs=1e-5)
    assert asked(made, QUESTION, 1).ranked == found.ranked[:1]
    assert (found.answer, found.confidence) == found.ranked[0]


def test_the_version_is_that_of_the_weights_and_distances(made):
    of = task()
    assert artifact(of, reader(of, text_loss=1.0)).version == made.version
    of.table = np.minimum(of.table + 1, 255).astype(np.uint8)
    assert artifact(of, reader(of, text_loss=1.0)).version != made.version


def test_a_model_that_was_not_trained_to_write_says_so():
    of = task()
    with pytest.raises(SetRecError, match="not trained to answer in words"):
        asked(artifact(of, reader(of)), QUESTION, written=True)


def without(path, name):
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path)


def changed(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "graph.json").unlink(),
        lambda f: (f / "graph.json").write_text("{"),
        lambda f: (f / "graph.json").write_text("[]"),
        lambda f: changed(f / "graph.json", format=99),
        lambda f: changed(f / "graph.json", model={"settings": {"colour": 1}}),
        lambda f: (f / "nodes.parquet").write_bytes(b"no table"),
        lambda f: (f / "tokenizer" / "tokenizer.json").unlink(),
        lambda f: (f / "model" / "config.json").write_text("{}"),
        lambda f: (f / "model" / "model.safetensors").unlink(),
        lambda f: (f / "model" / "model.safetensors").write_bytes(
            (f / "model" / "model.safetensors").read_bytes()[:-9]
        ),
        lambda f: without(f / "model" / "model.safetensors", "queries"),
        lambda f: without(f / "model" / "data.safetensors", "table"),
        lambda f: (f / "model" / "words" / "tokenizer.json").write_text("{"),
        lambda f: (f / "model" / "words" / "tokenizer.json").write_text("{}"),
    ],
)
def test_a_damaged_artefact_is_refused_in_one_line(folder, damage):
    damage(folder)
    with pytest.raises(ConfigError) as caught:
        GraphArtifact.load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
