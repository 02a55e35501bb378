"""Consistency training: predictions for an unlabelled node should not depend on dropout.

After GRAND (Feng et al., "Graph Random Neural Networks for Semi-Supervised Learning on Graphs", NeurIPS 2020,
arXiv:2005.11079): several passes with different dropout over the same unlabelled nodes, with the sharpened mean as the
target of every pass. It differs from GRAND in two points: passes differ by the model's own dropout, not by dropping
whole nodes, and the distance is a cross-entropy, not a squared error.

Labels of these nodes are not read. Their features and positions are, including those of validation and test nodes, as
in graph convolutions (transductive learning).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nodetok.language.model import GraphLanguageModel
from nodetok.language.prompts import NodeData, PromptBatch, Prompts
from nodetok.language.settings import ConsistencySettings

PASSES = 2


def draw(unlabelled: Prompts, settings: ConsistencySettings, seed: int, step: int) -> Prompts:
    """Sample the unlabelled nodes of a step, deterministic for a seed and step."""
    rng = np.random.default_rng([seed, step, 29])
    return unlabelled.take(rng.choice(len(unlabelled), min(settings.nodes, len(unlabelled)), replace=False))


def consistency_loss(model: GraphLanguageModel, batch: PromptBatch, data: NodeData, temperature: float) -> Tensor:
    """Return the divergence of several passes over a batch from their sharpened mean; the model must be in training
    mode.

    The passes are separate calls: within one call a repeated node is projected once, so both would drop the same
    features.
    """
    codes = model.codes(data).float()
    scores = [model.folded(batch, data).float() @ codes.T for _ in range(PASSES)]
    return disagreement(torch.stack(scores), temperature)


def disagreement(scores: Tensor, temperature: float) -> Tensor:
    """Return the mean cross-entropy of the passes' softmax, scores (P, B, C), against their mean raised to 1 /
    ``temperature`` and normalised. The mean is a target: no gradient runs through it."""
    log_p = scores.log_softmax(dim=-1)
    with torch.no_grad():
        target = (log_p.exp().mean(dim=0).log() / temperature).softmax(dim=-1)
    return -(target * log_p).sum(dim=-1).mean()
