import numpy as np
import pytest
import torch
from nodetok_helpers import few, reader, task

from nodetok.language import generation
from nodetok.language.input_ablation import ablate
from nodetok.language.prompts import NEIGHBOUR, PAD, Neighbourhoods, NodeData, PromptBatch, PromptEncoder, Prompts
from nodetok.language.settings import (
    ABLATIONS,
    LAPLACIAN,
    SHUFFLED,
    TEXT,
    TOKENS,
    GraphModelSettings,
    GraphTrainingSettings,
)
from nodetok.language.training import fit
from setrec.errors import ConfigError
from setrec.models.settings import BackboneSettings, LoraSettings

QUESTION = "is [[0]] like [[1]] ? answer :"


@pytest.fixture(scope="module")
def planted_task():
    return few(task())


def answers_to(made, prompts: Prompts) -> np.ndarray:
    with torch.no_grad():
        return made.model.answers(made.encoder(prompts), made.data).numpy()


def pairs(count: int, seed: int = 0) -> Prompts:
    nodes = np.random.default_rng(seed).integers(60, size=(count, 2))
    return Prompts([QUESTION] * count, nodes)


def test_the_order_of_a_nodes_neighbours_changes_nothing(planted_task, family):
    made = reader(planted_task, family)
    before = answers_to(made, pairs(6))
    beside = made.encoder.neighbourhoods
    turned = Neighbourhoods(beside.rows[:, ::-1].copy(), beside.relations[:, ::-1].copy())
    made.encoder = PromptEncoder(made.tokenizer, 2, 2, turned)
    np.testing.assert_allclose(answers_to(made, pairs(6)), before, atol=1e-5)


def test_the_order_of_two_different_nodes_in_a_prompt_does_change_something(planted_task, family):
    made = reader(planted_task, family)
    prompts = pairs(6)
    swapped = Prompts(prompts.texts, prompts.nodes[:, ::-1].copy())
    assert np.abs(answers_to(made, swapped) - answers_to(made, prompts)).max() > 1e-4


def test_a_prompt_alone_is_answered_as_in_a_batch_with_longer_ones(planted_task, family):
    made = reader(planted_task, family)
    short = Prompts(["what is [[0]] ?"], np.array([[5, -1]]))
    longer = Prompts(["what is [[0]] ?", QUESTION + " and so on and on"], np.array([[5, -1], [7, 9]]))
    np.testing.assert_allclose(answers_to(made, longer)[:1], answers_to(made, short), atol=1e-5)


def test_grounded_scores_are_the_sum_over_slots_of_the_unfolded_inner_products(planted_task, family):
    made = reader(planted_task, family)
    model, batch = made.model, made.encoder(pairs(5))
    scores = model.scores(batch, made.data).numpy()
    with torch.no_grad():
        answered = model.answers(batch, made.data)
        codes = {"identity": model.identity.weight}
        brute = sum(
            torch.einsum("bd,cd->bc", answered[:, k], codes[kind] @ model.answer_maps[kind].weight)
            for k, kind in enumerate(model.slots)
        )
    np.testing.assert_allclose(scores, brute.numpy(), atol=1e-4)


def test_node_tokens_that_are_shuffled_change_answers_and_text_alone_ignores_the_graph(planted_task):
    of = planted_task
    grounded, shuffled = reader(of), reader(of, name=SHUFFLED)
    shuffled.model.load_state_dict(grounded.model.state_dict())
    assert np.abs(answers_to(grounded, pairs(6)) - answers_to(shuffled, pairs(6))).max() > 1e-3
    alone = reader(of, name=TEXT)
    before = answers_to(alone, pairs(6))
    alone.data.table.zero_()
    np.testing.assert_array_equal(answers_to(alone, pairs(6)), before)


def test_a_hidden_neighbour_leaves_no_trace(planted_task):
    made = reader(planted_task)
    node = int(np.argmax(planted_task.graph.degrees))
    gone = int(made.encoder.neighbourhoods.rows[node, 0])
    hidden = Prompts(["what is [[0]] ?"], np.array([[node]]), np.array([[[gone, 0]]]))
    batch = made.encoder(hidden)
    assert gone not in batch.values[batch.kinds == NEIGHBOUR].tolist()
    shown = made.encoder(Prompts(hidden.texts, hidden.nodes))
    assert (shown.kinds != PAD).sum() == (batch.kinds != PAD).sum() + 1


def test_padding_is_never_seen_and_words_are_read_in_order():
    kinds, places = torch.tensor([[1, 1, 4, 4, 0]]), torch.tensor([[0, 1, 2, 2, 5]])
    batch = PromptBatch(kinds, torch.zeros_like(kinds), torch.zeros_like(kinds), places)
    causal, both = batch.sees(causal=True)[0], batch.sees(causal=False)[0]
    assert causal.int().tolist()[:4] == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0]]
    assert both.int().tolist()[:4] == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0]]
    assert batch.lengths.tolist() == [3]


def test_one_step_lowers_the_loss_and_reaches_every_trained_part(planted_task, family):
    made = reader(planted_task, family, text_loss=1.0)
    model, of = made.model.train(), planted_task
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    examples = of.valid
    batch, targets = made.encoder(examples.prompts), torch.from_numpy(examples.targets)
    said = generation.answer_ids(made.tokenizer, [of.candidates[row] for row in examples.targets])
    losses = []
    for _ in range(4):
        loss = model.loss(batch, targets, made.data) + generation.text_loss(model, batch, made.data, said)
        optimizer.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    assert losses[-1] < losses[0]
    still = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    # Relations need a knowledge graph; T5's encoder-decoder attention has no bias table of its own.
    assert {name.split(".")[0] for name in still} <= {"relation"} or family == "t5"


@pytest.mark.parametrize("tuning", ["lora", "frozen"])
def test_a_frozen_backbone_keeps_its_weights_and_still_learns(planted_task, family, tuning):
    backbone = BackboneSettings(family=family, dropout=0.0, lora=LoraSettings(rank=2) if tuning == "lora" else None)
    settings = GraphModelSettings(backbone=backbone, tuning=tuning, position_tokens=2, neighbours=2, dropout=0.0)
    learned = fit(
        planted_task, ablate(planted_task, TOKENS, settings), GraphTrainingSettings(epochs=2, precision="float32")
    )
    fresh = reader(planted_task, family)
    trained = [n for n, p in learned.model.lm.named_parameters() if p.requires_grad]
    assert all("lora_" in name for name in trained)
    assert bool(trained) == (tuning == "lora")
    assert learned.curve[-1]["loss"] < 2.0
    assert len(learned.model.slots) == len(fresh.model.slots)


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_view_trains_and_evaluates(planted_task, name):
    settings = GraphModelSettings(position_tokens=1, neighbours=2)
    learned = fit(planted_task, ablate(planted_task, name, settings), GraphTrainingSettings(epochs=1))
    found = learned.evaluate(planted_task, planted_task.test)
    assert found["accuracy"].shape == (len(planted_task.test),)


def test_node_tokens_learn_planted_classes_that_text_cannot_tell():
    of = few(task(), 320)
    settings = GraphModelSettings(position_tokens=1, neighbours=4, dropout=0.0)
    learning = GraphTrainingSettings(epochs=6, batch=32, learning_rate=2e-3, warmup=20)
    score = {}
    for name in (TOKENS, TEXT):
        learned = fit(of, ablate(of, name, settings), learning)
        score[name] = learned.evaluate(of, of.test)["accuracy"].mean()
    assert score[TOKENS] > 0.8 > 0.6 > score[TEXT]


@pytest.mark.parametrize("family", ["qwen3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2", "t5"))])
def test_written_answers_are_the_same_alone_and_in_a_batch_and_learn_the_classes(family):
    of = few(task(), 320)
    settings = GraphModelSettings(
        backbone=BackboneSettings(family=family, dropout=0.0), position_tokens=1, neighbours=4, dropout=0.0,
        text_loss=1.0,
    )  # fmt: skip
    learning = GraphTrainingSettings(epochs=10, batch=32, learning_rate=1.5e-3, warmup=30)
    learned = fit(of, ablate(of, TOKENS, settings), learning)
    said = learned.write(of.test, longest=4)
    assert [learned.write(of.test.take(np.array([i])), longest=4)[0] for i in range(4)] == said[:4]
    right = np.mean([said[i] == of.candidates[row] for i, row in enumerate(of.test.targets)])
    assert right > 0.7


def test_writing_step_by_step_gives_the_words_that_teacher_forcing_finds_likeliest(planted_task, family):
    made = reader(planted_task, family, text_loss=1.0)
    prompts = planted_task.test.take(np.arange(3))
    batch = made.encoder(prompts.prompts)
    written = generation.write(made.model, batch, made.data, made.tokenizer, longest=3)
    ids = generation.answer_ids(made.tokenizer, written)
    with torch.no_grad():
        own = float(generation.text_loss(made.model, batch, made.data, ids[:, :1]))
        vocabulary = torch.arange(3, len(made.tokenizer))
        others = [float(generation.text_loss(made.model, batch, made.data, v.expand(3, 1))) for v in vocabulary]
    assert own <= min(others) + 1e-4 or not any(written)


def test_with_sorted_profiles_the_order_of_the_anchors_changes_nothing(planted_task, family):
    made = reader(planted_task, family, profile="sorted")
    before = answers_to(made, pairs(6))
    turned = made.data.table.flip(1)
    made.data = NodeData(turned, made.data.features)
    np.testing.assert_allclose(answers_to(made, pairs(6)), before, atol=1e-5)
    bound = reader(planted_task, family)
    before = answers_to(bound, pairs(6))
    bound.data = NodeData(turned, bound.data.features)
    assert np.abs(answers_to(bound, pairs(6)) - before).max() > 1e-4


def test_eigenvectors_stand_in_for_positions_without_anchor_distances(planted_task):
    shown = ablate(planted_task, LAPLACIAN, GraphModelSettings())
    table = shown.read(None).table.numpy()
    assert shown.read(None).raw
    assert table.shape == planted_task.table.shape
    np.testing.assert_allclose((table**2).mean(axis=0), 1.0, atol=0.05)


def test_candidates_without_any_token_are_refused(planted_task):
    with pytest.raises(ConfigError, match="identity"):
        reader(planted_task, identity=0)
