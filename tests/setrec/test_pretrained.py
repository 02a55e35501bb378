import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import ITEMS
from stored_checkpoints import stored_checkpoint

from setrec.errors import ConfigError
from setrec.models import backbones
from setrec.models.backbones import build_backbone, load_backbone, scratch_config
from setrec.models.setrec_model import SetRecModel
from setrec.models.settings import BackboneSettings, LoraSettings, ModelSettings
from setrec.ragged import Ragged
from setrec.scoring.model_scores import model_scorer
from setrec.training.settings import ObjectiveSettings, TrainingSettings
from setrec.training.trainer import Trainer

HISTORIES = Ragged.of([[i % ITEMS for i in range(s, s + 6)] for s in range(0, ITEMS, 5)])
ONE_EPOCH = TrainingSettings(epochs=1, learning_rate=3e-3, targets_per_batch=64, precision="float32")


def dtypes(model: torch.nn.Module) -> set[torch.dtype]:
    """Of all floating-point weights and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return {tensor.dtype for tensor in tensors if tensor.is_floating_point()}


def built(features, path, lora=None) -> SetRecModel:
    torch.manual_seed(7)
    backbone = BackboneSettings(pretrained=path, lora=lora)
    return SetRecModel.build(ModelSettings(backbone=backbone, semantic_tokens=1, hidden=(24,)), features)


def trained_and_reloaded(model: SetRecModel, folder) -> SetRecModel:
    """The model saved after one epoch and read again, after checks that both are float32 and score alike."""
    assert dtypes(model) == {torch.float32}
    record = Trainer(model, HISTORIES, lambda _: [0.1], ONE_EPOCH, ObjectiveSettings()).epoch()
    assert np.isfinite(record["loss"])
    model.eval().save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    assert (saved["dtype"], saved["backbone"]["dtype"]) == ("float32", "float32")
    again = SetRecModel.from_pretrained(folder).eval()
    assert dtypes(again) == {torch.float32}
    np.testing.assert_array_equal(model_scorer(again)(HISTORIES), model_scorer(model)(HISTORIES))
    return again


def test_a_checkpoint_stored_in_bf16_trains_in_float32_and_scores_the_same_once_reloaded(features, family, tmp_path):
    path = stored_checkpoint(tmp_path / "hub", family)
    stored = load_file(tmp_path / "hub" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    model = built(features, path)
    own = model.backbone.model.state_dict()
    shared = [name for name in own if name in stored or f"model.{name}" in stored]
    assert len(shared) > 10
    for name in shared:
        if own[name].shape[0] > 1:  # the table of words is cut to a single row
            assert torch.equal(own[name], stored.get(name, stored.get(f"model.{name}")).float()), name
    again = trained_and_reloaded(model, tmp_path / "saved").backbone.model.state_dict()
    learned = [again[name] for name in shared]
    assert any(not torch.equal(value, value.bfloat16().float()) for value in learned), "steps too small for bf16"


def test_adapters_of_a_bf16_checkpoint_are_float32_as_well(features, tmp_path):
    model = built(features, stored_checkpoint(tmp_path / "hub", "qwen3"), LoraSettings(rank=2))
    trained_and_reloaded(model, tmp_path / "saved")


@pytest.mark.parametrize("query_mode", ["item", "learned"])
def test_training_starts_at_chance_whatever_the_scale_of_a_checkpoint(features, family, tmp_path, query_mode):
    if family == "t5" and query_mode == "item":
        pytest.skip("needs a causal backbone")
    path = tmp_path / "hub"
    stored_checkpoint(path, family, torch.float32)
    weights = load_file(path / "model.safetensors")
    last = [name for name in weights if "final_layer_norm" in name or name.endswith("model.norm.weight")]
    assert last
    save_file(
        {n: w * (20 if n in last else 1) for n, w in weights.items()}, path / "model.safetensors", {"format": "pt"}
    )
    settings = ModelSettings(
        backbone=BackboneSettings(pretrained=str(path)),
        hidden=(24,),
        history_skip=(),
        query_mode=query_mode,
        dropout=0.0,
        collaborative_leg=None,  # its loss would be added, and it is never pretrained
    )
    torch.manual_seed(7)
    model = SetRecModel.build(settings, features)
    still = ONE_EPOCH.model_copy(update={"learning_rate": 1e-9})
    loss = Trainer(model, HISTORIES, lambda _: [0.1], still, ObjectiveSettings()).epoch()["loss"]
    assert loss == pytest.approx(np.log(features.trained.sum()), rel=0.15)


@pytest.mark.parametrize("speaking", [False, True])
def test_a_checkpoint_stored_in_fp16_is_read_as_float32(family, tmp_path, speaking):
    model = load_backbone(stored_checkpoint(tmp_path, family, torch.float16), speaking=speaking)
    assert (dtypes(model), model.config.dtype) == ({torch.float32}, torch.float32)


def test_a_backbone_is_float32_whatever_its_configuration_was_stored_with(family, tmp_path):
    config = load_backbone(stored_checkpoint(tmp_path, family), dtype=torch.bfloat16).config
    assert config.dtype == torch.bfloat16
    assert dtypes(build_backbone(config)) == {torch.float32}


def test_quantised_weights_are_refused_in_one_line(tmp_path):
    path = tmp_path / "quantised"
    stored_checkpoint(path, "qwen3")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ConfigError, match=r"^backbone '[^']*' cannot be loaded: it is stored quantised \(gptq\); name one in bf16"
    ):
        load_backbone(str(path))


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
def test_a_pretrained_backbone_learns_at_a_rate_of_its_own(features, tmp_path, lora):
    model = built(features, stored_checkpoint(tmp_path / "hub", "qwen3"), lora)
    for given, expected in ((None, 1 / 50 if lora is None else 1 / 5), (0.5, 0.5)):
        trainer = Trainer(
            model, HISTORIES, None, ONE_EPOCH.model_copy(update={"backbone_share": given}), ObjectiveSettings()
        )
        rates = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
        for name, parameter in trainer.parameters:
            share = expected if name.startswith("backbone.") else 1.0
            assert rates[id(parameter)] == pytest.approx(share * ONE_EPOCH.learning_rate), name


def test_a_reloaded_model_has_the_same_trainable_parameters(features, family, tmp_path):
    path = stored_checkpoint(tmp_path / "hub", family)
    settings = ModelSettings(
        backbone=BackboneSettings(pretrained=path, lora=LoraSettings(rank=2)), hidden=(24,), trainable_table=False
    )
    model = SetRecModel.build(settings, features)
    model.save_pretrained(tmp_path / "saved")
    again = SetRecModel.from_pretrained(tmp_path / "saved")
    trainable = [{name for name, p in m.named_parameters() if p.requires_grad} for m in (model, again)]
    assert trainable[0] == trainable[1]
    assert all("lora_" in name for name in trainable[0] if name.startswith("backbone."))
    assert not any(name.endswith("table") for name in trainable[0])


def test_an_instruction_of_many_words_is_read_once_for_a_batch_with_the_same_states_and_gradients(monkeypatch):
    torch.manual_seed(3)
    backbone = build_backbone(scratch_config("qwen2", "tiny", 0.0))
    instruction, items = torch.randn(18, 128, requires_grad=True), torch.randn(3, 5, 128, requires_grad=True)
    wanted, tokens, results = torch.randn(3, 23, 128), [], []
    hook = backbone.model.layers[0].register_forward_pre_hook(lambda _, args: tokens.append(args[0][..., 0].numel()))
    for limit in (backbones.SHARED, 99):
        monkeypatch.setattr(backbones, "SHARED", limit)
        learned = [instruction, items, *(p for p in backbone.parameters() if p.requires_grad)]
        states = backbone.read(instruction, items)
        results.append([states, *torch.autograd.grad((states * wanted).sum(), learned)])
    hook.remove()
    assert tokens == [18, 3 * 5, 3 * 23]
    for once, every in zip(*results, strict=True):
        torch.testing.assert_close(once, every, rtol=1e-4, atol=1e-4)
