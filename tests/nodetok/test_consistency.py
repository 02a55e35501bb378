import numpy as np
import pytest
import torch
from nodetok_helpers import planted, reader, task

from nodetok.language.consistency import consistency_loss, disagreement, draw
from nodetok.language.input_ablation import ablate
from nodetok.language.settings import TOKENS, ConsistencySettings, GraphModelSettings, GraphTrainingSettings
from nodetok.language.training import fit
from nodetok.settings import AnchorSettings, TokenizerSettings
from nodetok.tasks.classification import classification

SMALL = GraphModelSettings(position_tokens=1, neighbours=0, feature_restart=0.2, feature_dropout=0.5, dropout=0.3)


@pytest.fixture(scope="module")
def planted_task():
    return task()


def test_passes_that_agree_and_are_sure_cost_nothing_and_any_other_pair_costs_more():
    sure = torch.tensor([[[30.0, 0.0, 0.0]]]).expand(2, 1, 3)
    apart = torch.tensor([[[4.0, 0.0, 0.0]], [[0.0, 4.0, 0.0]]])
    together = torch.tensor([[[4.0, 0.0, 0.0]], [[4.0, 0.0, 0.0]]])
    assert float(disagreement(sure, 0.5)) < 1e-6 < float(disagreement(together, 0.5)) < float(disagreement(apart, 0.5))


def test_the_target_is_the_sharpened_mean_and_lets_no_gradient_through():
    scores = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    disagreement(scores, 0.5).backward()
    said = scores.detach().softmax(dim=-1)
    target = said.mean(dim=0) ** 2
    target = target / target.sum(dim=-1, keepdim=True)
    # Cross-entropy to a constant has the gradient softmax - target.
    torch.testing.assert_close(scores.grad, (said - target) / 10)


def test_a_sure_target_stays_finite_in_scores_and_gradients():
    scores = torch.tensor([[[300.0, 0.0, -300.0]], [[250.0, 0.0, -200.0]]]).requires_grad_()
    loss = disagreement(scores, 0.5)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(scores.grad).all()


def test_training_on_it_makes_passes_agree(planted_task):
    made = reader(planted_task, neighbours=0, dropout=0.3, feature_dropout=0.5)
    model, batch = made.model.train(), made.encoder(planted_task.unlabelled)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    torch.manual_seed(0)
    losses = []
    for _ in range(12):
        loss = consistency_loss(model, batch, made.data, 0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.05


def test_every_pass_loses_features_of_its_own(planted_task):
    made = reader(planted_task, neighbours=0, feature_dropout=0.5)
    model, batch = made.model.train(), made.encoder(planted_task.unlabelled)
    with torch.no_grad():
        torch.manual_seed(0)
        said = [model.scores(batch, made.data) for _ in range(2)]
        torch.manual_seed(0)
        loss = consistency_loss(model, batch, made.data, 0.5)
    torch.testing.assert_close(loss, disagreement(torch.stack(said), 0.5))
    assert (said[0] - said[1]).abs().max() > 1e-3


def test_no_label_of_an_unlabelled_node_is_read():
    graph, kind = planted()
    features = (np.random.default_rng(1).random((60, 12)) < 0.2).astype(np.float32)
    split = ["train" if i < 30 else "valid" if i < 40 else "test" if i < 55 else "" for i in range(60)]
    labels = np.array([f"class {chr(97 + k)}" for k in kind], dtype=object)
    wrong = labels.copy()
    wrong[40:] = "class a"
    learning = GraphTrainingSettings(
        epochs=2, precision="float32", consistency=ConsistencySettings(weight=1.0, nodes=16)
    )
    weights = []
    for said in (labels, wrong):
        of = classification(graph, said.tolist(), split, features, TokenizerSettings(anchors=AnchorSettings(count=8)))
        assert of.unlabelled.nodes[:, 0].tolist() == list(range(30, 60))
        once = next(of.draw(np.random.default_rng(0)))[0].take(np.arange(30))
        of.draw = lambda _, examples=once: iter([(examples, None)])
        weights.append(fit(of, ablate(of, TOKENS, SMALL), learning).model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_weight_rises_to_its_end_and_the_same_step_draws_the_same_nodes(planted_task):
    settings = ConsistencySettings(weight=2.0, nodes=8, ramp=3)
    assert [settings.at(step) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert ConsistencySettings(weight=2.0, ramp=0).at(0) == 2.0
    first, again, later = (draw(planted_task.unlabelled, settings, 0, step).nodes for step in (4, 4, 5))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, later)
    assert len(np.unique(first)) == 8
