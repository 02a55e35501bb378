import json

import numpy as np
import pytest
import torch
from nodetok_helpers import task
from stored_checkpoints import stored_checkpoint

from nodetok.artifact import GraphArtifact, artifact
from nodetok.learning import LearningSettings, fit
from nodetok.model import GraphModelSettings, build_language_model, from_config
from nodetok.views import TOKENS, view
from setrec.errors import ConfigError
from setrec.models.settings import BackboneSettings, LoraSettings

ONE_STEP = LearningSettings(epochs=1, minutes=1e-9, batch=32, precision="float32")


@pytest.fixture(scope="module")
def planted_task():
    return task()


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_graph_model_on_a_bf16_checkpoint_learns_in_float32_and_answers_the_same_once_reloaded(
    planted_task, family, tuning, tmp_path
):
    backbone = BackboneSettings(pretrained=stored_checkpoint(tmp_path / "hub", family))
    settings = GraphModelSettings(
        backbone=backbone, tuning=tuning, position_tokens=2, neighbours=2, feature_restart=0.2, text_loss=1.0
    )
    made = fit(planted_task, view(planted_task, TOKENS, settings), ONE_STEP)
    assert np.isfinite(made.curve[-1]["loss"])
    artifact(planted_task, made).save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "model" / "config.json").read_text())["dtype"] == "float32"
    again = GraphArtifact.load(tmp_path / "saved").reader
    for reader in (made, again):
        assert {p.dtype for p in reader.model.parameters()} == {torch.float32}
    (before, _), (after, _) = (next(reader.scores(planted_task.test)) for reader in (made, again))
    np.testing.assert_array_equal(after, before)
    assert again.write(planted_task.test, 3) == made.write(planted_task.test, 3)


def test_a_graph_model_saved_with_a_bf16_configuration_is_built_in_float32(family, tmp_path):
    stored_checkpoint(tmp_path, family)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert {p.dtype for p in from_config(config).parameters()} == {torch.float32}


@pytest.mark.parametrize("tuning", ["full", "frozen"])
def test_adapters_that_the_tuning_would_leave_out_are_refused(tuning):
    settings = BackboneSettings(family="qwen2", lora=LoraSettings(rank=8))
    with pytest.raises(ConfigError, match=r"^model\.backbone\.lora .*model\.tuning") as refused:
        build_language_model(settings, tuning, 100)
    assert "\n" not in str(refused.value)


def test_adapters_have_the_rank_of_the_backbones_section():
    model = build_language_model(BackboneSettings(family="qwen2", lora=LoraSettings(rank=3)), "lora", 100)
    assert {len(p) for name, p in model.named_parameters() if "lora_A" in name} == {3}
