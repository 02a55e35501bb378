"""The losses: cross-entropy over the catalogue per slot, over the fused score, and the autoencoder's error."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from setrec.models import grounding
from setrec.models.grounding import LogitBias
from setrec.models.item_tokens import ItemTokens
from setrec.models.recommender import SHARPNESS
from setrec.models.setrec_model import Answers, SetRecModel
from setrec.training.sampled_softmax import Candidates, sampled_cross_entropy
from setrec.training.settings import ObjectiveSettings
from setrec.training.softmax import catalogue_cross_entropy


def batch_terms(
    model: SetRecModel,
    items: Tensor,
    visible: Tensor,
    targets: Tensor,
    settings: ObjectiveSettings,
    rows: Tensor,
    candidates: Candidates | None = None,
    wrapped: nn.Module | None = None,
    weights: Tensor | None = None,
    offset: tuple[Tensor, Tensor, Tensor] | None = None,
    words: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return loss terms of query blocks with targets int (B, Q), -1 where there is none; see :func:`loss`.

    ``rows``: items whose text vectors are reconstructed. With ``candidates`` only the codes of items read, targets and
    candidates are computed. ``wrapped``: the model with DDP around it. ``weights`` of targets: (T, 1). ``offset``: rows
    of targets, items and values, (P,) each, of the fixed part of the logits, for a model with an ``offset_scale``.
    ``words``: shares of the key words of ``rows`` (J, V), for a model that predicts them.
    """
    asked = targets >= 0
    targets = targets[asked].long()
    met = None
    if candidates is not None:
        met = torch.unique(torch.cat([items.flatten().long(), targets, candidates.rows]))
        items, targets = torch.searchsorted(met, items.long()), torch.searchsorted(met, targets)
        candidates = candidates._replace(rows=torch.searchsorted(met, candidates.rows))
    answers: Answers = (wrapped or model)(
        items, visible, asked, met, rows if settings.alpha else None, None if words is None else (rows, words)
    )
    fixed = None
    if offset is not None and answers.offset_scale is not None:
        fixed = LogitBias(offset[0], offset[1], answers.offset_scale, offset[2])
        fixed = fixed if met is None else fixed.among(met)
    return loss(model.tokens, answers, targets, settings, model.trained, candidates, weights, fixed)


def loss(
    tokens: ItemTokens,
    answers: Answers,
    targets: Tensor,
    settings: ObjectiveSettings,
    trained: Tensor,
    candidates: Candidates | None = None,
    weights: Tensor | None = None,
    offset: LogitBias | None = None,
) -> dict[str, Tensor]:
    """Return loss terms, each a sum over targets (``slots``, ``fused``) or a mean (``reconstruction``, ``words``).

    With a collaborative leg ``fused`` is the sum of the cross-entropies of both legs, each over its own score.

    Shapes: targets int64 (T,), rows of ``answers.codes``; trained bool (I,). ``candidates``: a sample that replaces the
    catalogue; ``answers.codes``, ``targets``, the sample and the biases may then number a part of the items.
    ``weights`` float32 (T, 1): weight of each target, 1 by default. ``offset``: see :mod:`setrec.data.offsets`.
    """
    codes, shared = answers.codes, [] if offset is None else [offset]
    biases = [[*shared, repeats] for repeats in answers.repeats or ()] or [shared, shared]
    if candidates is None and settings.negatives == "trained":
        # Positions among the remaining items; targets are training items, hence always among them.
        place = torch.cumsum(trained, dim=0) - 1
        targets, codes = place[targets], codes[trained]
        rows = trained.nonzero()[:, 0]
        biases = [[bias.among(rows) for bias in of_leg] for of_leg in biases]

    def cross_entropy(users: Tensor, table: Tensor, leg: int = 0) -> Tensor:
        if candidates is None:
            return catalogue_cross_entropy(users, table, targets, biases[leg], weights)
        return sampled_cross_entropy(users, table, targets, candidates, biases[leg], weights)

    terms = {}
    if settings.slots:
        pairs = zip(answers.slots, tokens.slots, strict=True)
        each = [cross_entropy(u, codes[:, s.start : s.stop]) for u, s in pairs]
        terms["slots"] = torch.stack(each).mean()
    if settings.fused:
        whole = grounding.joined(tokens, answers.slots, dict.fromkeys(tokens.kinds, 1 / len(tokens.read)))
        start = tokens.read[0].start
        terms["fused"] = cross_entropy(whole[:, start:], codes[:, start:])
        if start:  # the collaborative leg
            terms["fused"] = terms["fused"] + cross_entropy(SHARPNESS * whole[:, :start], codes[:, :start], 1)
    if answers.reconstruction is not None:
        terms["reconstruction"] = answers.reconstruction
    if answers.words is not None:
        terms["words"] = answers.words
    return terms


def total(terms: dict[str, Tensor], settings: ObjectiveSettings, count: float) -> Tensor:
    """Return the total loss: (slots + fused) per target, the means by their weights; targets of weight ``count`` share
    the sums."""
    weights = {"slots": settings.slots / count, "fused": settings.fused / count}
    weights |= {"reconstruction": settings.alpha, "words": settings.words_weight}
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()
