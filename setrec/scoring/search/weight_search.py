"""Search for the weights of a hybrid score, on validation users only.

Weights are chosen on two halves of the validation users. With a split per user, the validation events of the other half
are available while one is ranked, as all are at test time. With a split by global time they are not: they belong to the
period that is ranked and contain its new and popular items, while the data available at test time is older.

1. Weights of the model's slot kinds: over a grid, those with the best NDCG@10 of the model alone, a leg's share last.
2. The temperature at which the model's scores are log-probabilities, so that one grid of weights suits every model;
   without a model that of the components' sum.
3. Components, greedily: the one with the largest gain in addition to those chosen so far is added, as long as the gain
exceeds a standard error (over users) of the paired difference; then every weight is searched again given the others,
and a component that no longer gains that much is removed. In between, the weight of each slot kind is searched again
given the components, which may know the same: an answer learned from transitions is worth less beside their counts.
4. Items without training interactions. If validation has too few of them, a quarter of the other items replaces them,
scored by their content only. First the ratio of model and content that ranks them best among themselves is chosen; then
factors and levels. With a split by global time, those with the best NDCG@10 over all items are chosen, users who chose
new items counting more: new items are rarer right after training, in the validation period, than later
(:data:`GROWTH`). Otherwise, of those within a standard error of the best, the one with the best NDCG@10 on new items is
chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from setrec.data.catalog import TRAIN, VALID, Histories
from setrec.evaluation import ranking
from setrec.models.item_tokens import COLLABORATIVE
from setrec.models.setrec_model import SetRecModel
from setrec.ragged import Ragged
from setrec.scoring import registry
from setrec.scoring.hybrid import MODEL, HybridScorer, HybridWeights, NewItemWeights
from setrec.scoring.model_scores import ModelOnly, ModelScores, slot_weight_grid
from setrec.scoring.search.table import Part, SearchTable
from setrec.scoring.search.temperature import fit_temperature
from setrec.scoring.text_similarity import TextFeatures

USERS = 2500
"""Number of users of each half on which weights are chosen."""
CALIBRATED = 2000
"""Number of users on which the temperature is fitted."""
REFINED = (0.0, 0.5, 0.71, 1.0, 1.41, 2.0)
"""Factors of a chosen weight in the second search; 0 removes the component."""
NEW_RATIOS = ((1.0, 0.0), (1.0, 2.5), (1.0, 5.0), (1.0, 10.0), (1.0, 20.0), (1.0, 40.0), (0.5, 40.0), (0.0, 20.0))
"""Weights of model and content for new items, up to a common factor."""
NEW_FACTORS = (0.25, 0.5, 1.0, 2.0)
NEW_LEVELS = (-12.0, -10.0, -8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)
GROWTH = 3.0
"""Growth of the share of new items among chosen items from validation to test, if both periods are equally long and the
share is proportional to the time since training ended: the ratio of its means over the two periods."""
MOST_NEW = 0.5
"""Maximum of the expected share, unless validation's share is larger."""
ENOUGH = 100
"""Minimum number of validation truths without training interactions for choosing the weights of new items on them."""
PRETENDED = 0.25
"""Share of the items that replace new ones if there are too few."""


@dataclass(frozen=True)
class Found:
    """Result of a search: ``weights``, their NDCG@10 on validation (``valid``), the gain of each component in addition
    to the others (``gains``: name, weight, gain, standard_error), and all candidates that were ``tried``."""

    weights: HybridWeights
    valid: float
    gains: list[dict[str, Any]] = field(default_factory=list)
    tried: list[dict[str, Any]] = field(default_factory=list)


def halves(histories: Histories, *, timed: bool, users: int = USERS) -> list[Part]:
    """Return two halves of the validation users, up to ``users`` each. ``timed``: the split is by global time."""
    asked, parts = ranking.case_users(histories, VALID)[0], []
    half = np.random.default_rng(0).permutation(len(asked)) % 2 == 0
    for ranked in (half, ~half):
        last = np.full(len(histories), TRAIN, np.int8)
        if not timed:
            last[asked[~ranked]] = VALID
        own = asked[ranked]
        cases = ranking.Cases.at(histories, VALID, own[ranking.drawn(len(own), users, 0)])
        parts.append(Part(cases, histories.events(last), timed))
    return parts


def search(
    model: SetRecModel | None,
    parts: Sequence[Part],
    trained: np.ndarray,
    texts: TextFeatures | None,
    *,
    slot_step: float = 0.1,
    names: Sequence[str] | None = None,
    progress: Callable[[str], None] = lambda note: None,
) -> Found:
    """Search the weights for a model (``None``: for the components without one).

    ``trained`` bool (I,): items with training interactions. ``names``: the components that take part, all by default.
    NDCG@10 is over all items, the user's history removed.
    """
    asked = [part for part in parts if len(part.cases)]
    if not asked:
        return Found(_untuned(model), float("nan"))
    term: ModelScores | None = None
    tried: list[dict[str, Any]] = []
    slots: dict[str, float] = {}
    temperature = 1.0
    if model is not None:
        progress("slot weights")
        slots, tried = _slot_weights(model, asked, slot_step)
        cases = _sampled(asked, CALIBRATED)
        temperature = fit_temperature(ModelOnly(ModelScores(model, slots)), cases)
        slots = {kind: weight / temperature for kind, weight in slots.items()}
        term = ModelScores(model, slots)
    table = SearchTable(term, asked, trained, texts, list(registry.kinds()) if names is None else list(names))
    progress("components")
    components, factors, values, gains = _components(table, tried)
    if term is None and components:
        # Ranks do not change with the scale of all scores, but the grids for new items are in log-probabilities.
        scorer = HybridScorer(
            None, {name: table.parts[0][name] for name in components}, HybridWeights(components=components),
            np.zeros(len(trained), bool),
        )  # fmt: skip
        heat = fit_temperature(scorer, asked[0].cases.sample(CALIBRATED, 0))
        components = {name: weight / heat for name, weight in components.items()}
    alone = slots if any(factor != 1 for factor in factors.values()) else {}
    slots = {kind: weight * factors.get(kind, 1.0) for kind, weight in slots.items()}
    weights = HybridWeights(slots=slots, slots_alone=alone, temperature=temperature, components=components)
    progress("new items")
    new_items, values = _new_items(table, components, values, tried, timed=asked[0].timed)
    return Found(weights.model_copy(update={"new_items": new_items}), float(np.nanmean(values)), gains, tried)


def _untuned(model: SetRecModel | None) -> HybridWeights:
    return HybridWeights(slots={} if model is None else dict.fromkeys(model.kinds, 1.0))


def _sampled(parts: Sequence[Part], users: int) -> ranking.Cases:
    return ranking.Cases.joined([part.cases.sample(users // len(parts), 0) for part in parts])


def _slot_weights(
    model: SetRecModel, parts: Sequence[Part], step: float
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    grid = slot_weight_grid(model.tokens.read_kinds, step)
    if len(grid) == 1 and model.leg is None:
        return grid[0], []
    term = ModelScores(model, dict.fromkeys(model.kinds, 1.0))
    cases = ranking.Cases.joined([part.cases for part in parts])
    best, tried = ranking.choose_weights(term.by_kind, cases, grid)
    if model.leg is not None:
        shares = np.arange(round(1 / step)) * step
        grid = [{COLLABORATIVE: float(p), **{k: float((1 - p) * w) for k, w in best.items()}} for p in shares]
        best, more = ranking.choose_weights(term.by_kind, cases, grid)
        tried += more
    return best, [{"step": "slots", **row} for row in tried]


def _components(
    table: SearchTable, tried: list[dict[str, Any]]
) -> tuple[dict[str, float], dict[str, float], np.ndarray, list[dict[str, Any]]]:
    """Return the weights of the chosen components, factors of the slots' weights, NDCG@10 by user with both, and the
    gain of each component."""
    chosen: dict[str, float] = {}
    (alone,) = table.ndcg(lambda batch: {MODEL: table.model(batch)}, [{MODEL: 1.0}])
    values = alone[0]
    while left := [name for name in table.kinds if name not in chosen]:
        best: tuple[float, str, float, np.ndarray] | None = None
        for name in left:
            weights = table.kinds[name].weights
            if not table.has_model and not chosen:  # alone, all weights rank alike
                weights = weights[len(weights) // 2 :][:1]
            each = table.ndcg_with(name, chosen, weights)
            tried += _rows("components", [{**chosen, name: weight} for weight in weights], each)
            at = int(np.argmax(np.nanmean(each, axis=1)))
            if best is None or np.nanmean(each[at]) > best[0]:
                best = float(np.nanmean(each[at])), name, weights[at], each[at]
        assert best is not None
        if not _gains(best[3], values):
            break
        chosen[best[1]], values = best[2], best[3]
    factors, values = _slots_beside(table, chosen, values, tried)
    gains = []
    for name in list(chosen):
        others = {other: weight for other, weight in chosen.items() if other != name}
        if not others and not table.has_model:
            gains.append(_gain(name, chosen[name], values, alone[0]))
            continue
        weights = tuple(factor * chosen[name] for factor in REFINED)
        each = table.ndcg_with(name, others, weights)
        tried += _rows("refined", [{**others, name: weight} for weight in weights], each)
        at = int(np.argmax(np.nanmean(each, axis=1)))
        if _gains(each[at], each[0]):
            chosen[name], values = weights[at], each[at]
            gains.append(_gain(name, weights[at], each[at], each[0]))
        else:
            del chosen[name]
            values = each[0]
    return chosen, factors, values, gains


def _slots_beside(
    table: SearchTable, components: Mapping[str, float], values: np.ndarray, tried: list[dict[str, Any]]
) -> tuple[dict[str, float], np.ndarray]:
    """Scale the weights of the model's slot kinds in ``table`` as is best beside ``components``; return the factors
    other than 1, and NDCG@10 by user."""
    factors: dict[str, float] = {}
    for kind in table.slots if components and len(table.slots) > 1 else ():
        each = table.ndcg_with(kind, components, REFINED)
        tried += _rows("slots beside components", [{**components, kind: factor} for factor in REFINED], each)
        at = int(np.argmax(np.nanmean(each, axis=1)))
        if _gains(each[at], values):
            factors[kind], values = REFINED[at], each[at]
            table.scale(kind, REFINED[at])
    return factors, values


def _new_items(
    table: SearchTable, components: Mapping[str, float], values: np.ndarray, tried: list[dict[str, Any]], *, timed: bool
) -> tuple[NewItemWeights, np.ndarray]:
    """Return weights for items without training interactions, and NDCG@10 by user with them."""
    content = {name: components.get(name, 0.0) for name, kind in table.kinds.items() if kind.of_content}
    if not content:
        return NewItemWeights(), values
    pretended = table.new_truths < ENOUGH
    if pretended:
        table.pretend(np.random.default_rng(0).random(table.items) < PRETENDED)
        if table.new_truths < ENOUGH:
            return NewItemWeights(), values
    whole = sum(content.values())
    shares = {name: weight / whole if whole else 1 / len(content) for name, weight in content.items()}
    new, zero = table.new, np.float32(0)

    def terms(batch: int) -> dict[str, np.ndarray]:
        model = table.model(batch)
        of_content = sum(np.float32(share) * table.component(name, batch) for name, share in shares.items())
        rest = np.where(new, zero, model + np.float32(whole) * of_content)
        for name, weight in components.items():
            if name not in content:
                rest += np.float32(weight) * table.component(name, batch)
        level = np.broadcast_to(new.astype(np.float32), model.shape).copy()
        return {"rest": rest, MODEL: np.where(new, model, zero), "content": np.where(new, of_content, zero),
                "level": level}  # fmt: skip

    def weights(model: float, of_content: float, level: float = 0.0) -> dict[str, float]:
        return {"rest": 1.0, MODEL: model, "content": of_content, "level": level}

    every = np.ones(table.items, dtype=bool)
    (among,) = table.ndcg(terms, [weights(*r) for r in NEW_RATIOS], [ranking.Group("new among new", new, new)])
    tried += _rows("new items among themselves", [weights(*ratio) for ratio in NEW_RATIOS], among)
    # Without a model every ratio ranks new items alike; the last one leaves the model out.
    at = int(np.argmax(np.nanmean(among, axis=1))) if table.has_model else -1
    model, of_content = NEW_RATIOS[at]
    grid = [weights(1.0, whole)]
    grid += [weights(f * model, f * of_content, level) for f, level in product(NEW_FACTORS, NEW_LEVELS)]
    overall, of_new = table.ndcg(terms, grid, [ranking.Group("all", every, every), ranking.Group("new", new, every)])
    tried += _rows("new items", grid, overall)
    if timed and not pretended:
        truths = Ragged.joined([truth for _, _, truth in table.batches])
        at = int(np.argmax(np.nansum(overall * expected(truths, new), axis=1)))
    else:
        means = np.nanmean(overall, axis=1)
        top = overall[int(np.argmax(means))]
        good = means >= means.max() - np.array([standard_error(top - one) for one in overall])
        at = int(np.argmax(np.where(good, np.nanmean(of_new, axis=1), -1.0)))
    values = values if pretended else overall[at]
    if at == 0:
        return NewItemWeights(), values
    chosen = grid[at]
    own = {name: chosen["content"] * share for name, share in shares.items()}
    return NewItemWeights(model=chosen[MODEL], components=own, level=chosen["level"]), values


def expected(truths: Ragged, new: np.ndarray) -> np.ndarray:
    """Return the weight of each user, float (users,), such that items that are ``new``, bool (I,), are as large a share
    of ``truths`` as is expected in the period after validation."""
    is_new = new[truths.values]
    own = np.bincount(truths.row_of_value, is_new, minlength=len(truths)) / truths.lengths.clip(1)
    share = float(is_new.mean())
    later = max(share, min(GROWTH * share, MOST_NEW))
    return np.asarray(own * later / max(share, 1e-9) + (1 - own) * (1 - later) / max(1 - share, 1e-9))


def standard_error(differences: np.ndarray) -> float:
    """Return the standard error of the mean of users' differences; users without one have NaN."""
    return float(np.nanstd(differences) / np.sqrt(max(1, np.sum(~np.isnan(differences)))))


def _gains(values: np.ndarray, before: np.ndarray) -> bool:
    """Return whether the mean rises by more than a standard error of the paired difference."""
    return bool(np.nanmean(values - before) > standard_error(values - before))


def _gain(name: str, weight: float, values: np.ndarray, before: np.ndarray) -> dict[str, Any]:
    difference = values - before
    return {"name": name, "weight": weight, "gain": float(np.nanmean(difference)),
            "standard_error": standard_error(difference)}  # fmt: skip


def _rows(step: str, grid: Sequence[Mapping[str, float]], values: np.ndarray) -> list[dict[str, Any]]:
    means = np.nanmean(values, axis=1)
    return [{"step": step, "weights": dict(w), "ndcg@10": float(v)} for w, v in zip(grid, means, strict=True)]
