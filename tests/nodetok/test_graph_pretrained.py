import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nodetok_helpers import task
from safetensors.torch import load_file, save_file
from stored_checkpoints import stored_checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from nodetok.asking.artifact import GraphArtifact, artifact
from nodetok.language.input_ablation import ablate
from nodetok.language.language_model import build_language_model, from_config, load_tokenizer
from nodetok.language.prompts import NEIGHBOUR, POSITION, WORD, PromptEncoder, Prompts, PromptText
from nodetok.language.settings import TOKENS, GraphModelSettings, GraphTrainingSettings
from nodetok.language.training import build, fit
from setrec.errors import ConfigError
from setrec.models.backbones import load_backbone
from setrec.models.settings import BackboneSettings, LoraSettings

ONE_STEP = GraphTrainingSettings(epochs=1, minutes=1e-9, batch=32, precision="float32")


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
    made = fit(planted_task, ablate(planted_task, TOKENS, settings), ONE_STEP)
    assert np.isfinite(made.curve[-1]["loss"])
    artifact(planted_task, made).save(tmp_path / "saved")
    if tuning == "full":
        assert json.loads((tmp_path / "saved" / "model" / "config.json").read_text())["dtype"] == "float32"
    again = GraphArtifact.load(tmp_path / "saved").reader
    for reader in (made, again):
        assert {p.dtype for p in reader.model.parameters()} == {torch.float32}
    (before, _), (after, _) = (next(reader.scores(planted_task.test)) for reader in (made, again))
    np.testing.assert_array_equal(after, before)
    some = planted_task.test.take(np.arange(4))
    assert again.write(some, 3) == made.write(some, 3)


@pytest.mark.parametrize("tuning", ["full", "lora", "frozen"])
def test_training_beside_a_pretrained_backbone_starts_near_chance_with_vectors_of_the_words_scale(
    planted_task, family, tuning, tmp_path
):
    model_path = stored_checkpoint(tmp_path / "hub", family)
    backbone = BackboneSettings(pretrained=model_path)
    settings = GraphModelSettings(backbone=backbone, tuning=tuning, position_tokens=2, neighbours=2, dropout=0.0)
    made = build(planted_task, ablate(planted_task, TOKENS, settings), ONE_STEP)
    examples = planted_task.test
    batch, model = made.encoder(examples.prompts), made.model.eval()
    with torch.no_grad():
        loss = float(model.loss(batch, torch.from_numpy(examples.targets), made.data))
        vectors = model.vectors(batch, made.data)
    assert loss == pytest.approx(np.log(len(planted_task.candidates)), abs=0.3)
    norms = {kind: float(vectors[batch.kinds == kind].norm(dim=-1).mean()) for kind in (WORD, POSITION, NEIGHBOUR)}
    assert max(norms.values()) < 1.5 * min(norms.values())


def test_a_pretrained_model_scores_other_classes_by_their_names(planted_task, family, tmp_path):
    plain = replace(planted_task, features=None)
    settings = GraphModelSettings(
        backbone=BackboneSettings(pretrained=stored_checkpoint(tmp_path / "hub", family)),
        profile="sorted", position_tokens=2, neighbours=2, identity=0, class_words=0,
    )  # fmt: skip
    made = build(plain, ablate(plain, TOKENS, settings), ONE_STEP)
    turned = made.on(replace(plain, candidates=plain.candidates[::-1]))
    (own, _), (other, _) = (next(reader.scores(plain.test)) for reader in (made, turned))
    np.testing.assert_allclose(other[:, ::-1], own, rtol=1e-4, atol=1e-5)
    assert next(made.on(replace(plain, candidates=("dog", "a cat"))).scores(plain.test))[0].shape[1] == 2


@pytest.mark.parametrize("tuning", ["lora", "frozen"])
def test_an_artefact_names_its_checkpoint_and_does_not_hold_it(planted_task, family, tuning, tmp_path):
    path = stored_checkpoint(tmp_path / "hub", family)
    settings = GraphModelSettings(
        backbone=BackboneSettings(pretrained=path, layers=1), tuning=tuning, position_tokens=2, neighbours=2
    )
    made = fit(planted_task, ablate(planted_task, TOKENS, settings), ONE_STEP)
    artifact(planted_task, made).save(tmp_path / "saved")
    held = load_file(tmp_path / "saved" / "model" / "model.safetensors")
    assert all("lora_" in name for name in held if name.startswith("lm."))
    assert any(name.startswith("lm.") for name in held) == (tuning == "lora")
    again = GraphArtifact.load(tmp_path / "saved").reader
    (before, _), (after, _) = (next(reader.scores(planted_task.test)) for reader in (made, again))
    np.testing.assert_array_equal(after, before)
    torch.manual_seed(7)
    weights = load_file(Path(path) / "model.safetensors")
    save_file({k: v + 1 for k, v in weights.items()}, Path(path) / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="other weights than those that this model was trained on"):
        GraphArtifact.load(tmp_path / "saved")


def test_the_first_layers_alone_are_kept_and_more_than_there_are_are_refused(family, tmp_path):
    path = stored_checkpoint(tmp_path, family)
    whole, first = (
        build_language_model(BackboneSettings(pretrained=path, layers=layers), "full", 0) for layers in (None, 1)
    )
    assert first.config.num_hidden_layers == 1
    of_whole = whole.state_dict()
    assert all(torch.equal(value, of_whole[name]) for name, value in first.state_dict().items())
    with pytest.raises(ConfigError, match=r"^backbone\.layers=3: .*only 2 layers$"):
        build_language_model(BackboneSettings(pretrained=path, layers=3), "full", 0)
    assert build_language_model(BackboneSettings(layers=1), "full", 50).config.num_hidden_layers == 1


def test_frozen_lower_layers_are_those_of_the_whole_model_and_read_each_prompt_once(planted_task, tmp_path):
    path = stored_checkpoint(tmp_path, "qwen3")
    ids, places = torch.tensor([4, 7, 9, 5]), torch.arange(4)
    made = {}
    for frozen in (0, 1):
        settings = GraphModelSettings(
            backbone=BackboneSettings(pretrained=path), tuning="frozen", frozen_layers=frozen, position_tokens=1
        )
        made[frozen] = build(planted_task, ablate(planted_task, TOKENS, settings), ONE_STEP)
    whole, upper = (made[frozen].model.eval().lm.base_model for frozen in (0, 1))
    lower = made[1].model.lm.lower
    with torch.no_grad():
        expected = whole(input_ids=ids[None]).last_hidden_state[0]
        states = lower([ids, ids[:2]], [places, places[:2]])
        found = upper(inputs_embeds=states[0][None], position_ids=places[None]).last_hidden_state[0]
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)  # states are kept in bf16
    torch.testing.assert_close(states[1], states[0][:2], atol=1e-2, rtol=1e-2)
    # Once read, a prompt's states come from the cache alone.
    lower._lower = None
    assert torch.equal(lower([ids], [places])[0], states[0])


def test_frozen_lower_layers_learn_save_and_load_and_are_refused_where_they_would_train(planted_task, tmp_path):
    path = stored_checkpoint(tmp_path / "hub", "qwen3")
    settings = GraphModelSettings(
        backbone=BackboneSettings(pretrained=path), tuning="lora", frozen_layers=1, position_tokens=2, neighbours=2
    )
    made = fit(planted_task, ablate(planted_task, TOKENS, settings), ONE_STEP)
    artifact(planted_task, made).save(tmp_path / "saved")
    again = GraphArtifact.load(tmp_path / "saved").reader
    (before, _), (after, _) = (next(reader.scores(planted_task.test)) for reader in (made, again))
    np.testing.assert_array_equal(after, before)
    with pytest.raises(ConfigError, match=r"model\.tuning=lora or frozen"):
        build_language_model(settings.backbone, "full", 0, 1)
    with pytest.raises(ConfigError, match="only 2 layers"):
        build_language_model(settings.backbone, "lora", 0, 2)
    with pytest.raises(ConfigError, match="needs a Qwen backbone"):
        build_language_model(BackboneSettings(pretrained=stored_checkpoint(tmp_path / "t5", "t5")), "lora", 0, 1)


def test_a_checkpoints_chat_template_stands_around_the_prompt(planted_task, tmp_path):
    path = stored_checkpoint(tmp_path, "qwen3")
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} : {{ m.content }} ; {% endfor %}the answer is"
    tokenizer.save_pretrained(path)
    read = {}
    for chat in (True, False):
        settings = GraphModelSettings(backbone=BackboneSettings(pretrained=path), chat_template=chat)
        made = build(planted_task, ablate(planted_task, TOKENS, settings), ONE_STEP)
        batch = made.encoder(planted_task.test.prompts.take(np.arange(1)))
        read[chat] = made.encoder.text.template
        assert batch.lengths[0] == batch.places[batch.kinds != 0].max() + 1
    assert read[False] == ("", "")
    assert read[True][1].endswith("the answer is")
    assert "user :" in read[True][0]


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


class Letters:
    """A tokenizer with a token per letter, spaces included."""

    bos_token_id = None

    def __call__(self, text: str, **_: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}


def test_one_space_stands_before_the_words_of_a_node():
    encoder = PromptEncoder(Letters(), 1, 0, None, text=PromptText(["bees", "make honey"]))
    batch = encoder(Prompts(["belief : [[0]] argument : [[1]] . answer :"], np.array([[0, 1]])))
    letters = batch.values[batch.kinds == WORD]
    assert "".join(map(chr, letters.tolist())) == "belief : bees argument : make honey . answer :"


def small_checkpoint(folder, kind, **changes):
    """The path of a small checkpoint of any type, with the tokenizer of the others."""
    path = stored_checkpoint(folder, "qwen2", torch.float32)
    words = AutoConfig.from_pretrained(path).vocab_size
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if kind in ("bart", "gpt2"):
        sizes = {}
    config = AutoConfig.for_model(kind, vocab_size=words, **sizes, **changes)
    made = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    made.from_config(config).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("phi3", {"num_key_value_heads": 2, "pad_token_id": 0}, "'phi3' model has no q_proj"),
        ("gpt2", {"n_embd": 32, "n_layer": 1, "n_head": 2}, "'gpt2' model has no q_proj"),
        ("bloom", {"n_layer": 1, "n_head": 2}, "takes no positions"),
        ("bart", {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1}, "only T5 can be used, not 'bart'"),
    ],
)
def test_a_checkpoint_of_a_type_that_cannot_be_adapted_or_read_is_refused(kind, changes, said, tmp_path):
    settings = BackboneSettings(pretrained=small_checkpoint(tmp_path, kind, **changes))
    with pytest.raises(ConfigError, match=said):
        build_language_model(settings, "lora", 0)


def test_a_checkpoint_with_missing_or_damaged_weights_or_without_a_tokenizer_is_refused(tmp_path):
    path = Path(stored_checkpoint(tmp_path / "model", "qwen2", torch.float32))
    file, settings = path / "model.safetensors", BackboneSettings(pretrained=str(path))
    whole = file.read_bytes()
    weights = load_file(file)
    lost = next(name for name in weights if name.endswith("q_proj.weight"))
    save_file({name: value for name, value in weights.items() if name != lost}, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=f"lacks 1 weights, among them .*{lost[-12:]}"):
        build_language_model(settings, "full", 0)
    file.write_bytes(whole[:-50])
    with pytest.raises(ConfigError, match="cannot be loaded"):
        build_language_model(settings, "full", 0)
    for words in path.glob("tokenizer*"):
        words.unlink()
    with pytest.raises(ConfigError, match="no usable tokenizer"):
        load_tokenizer(str(path))
    for load in (load_tokenizer, load_backbone):
        with pytest.raises(ConfigError, match="no such folder"):
            load(str(tmp_path / "nowhere"))
