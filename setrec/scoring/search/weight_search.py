"""Search for the weights of a hybrid score, on validation users only.

Weights are chosen on two halves of the validation users. With a split per user, the validation events of the other half
are available while one is ranked, as all are at test time. With a split by global time they are not: they belong to the
period that is ranked and contain its new and popular items, while the data available at test time is older.

1. Weights of the model's slot kinds, for the model alone, and of slot kinds and components together, each fitted to the
candidates with training interactions (:mod:`setrec.scoring.search.fit`).
2. A component without which NDCG@10 is at least as high is removed.
3. Weights are divided by the temperature at which scores are log-probabilities, so that one grid of weights for new
items suits every model.
4. Items without training interactions. If validation has too few of them, a quarter of the other items replaces them,
scored by their content only. First the ratio of model and content that ranks them best among themselves is chosen; then
factors and levels. With a split by global time, those with the best NDCG@10 over all items are chosen, users who chose
new items counting more: new items are rarer right after training, in the validation period, than later
(:data:`GROWTH`). Otherwise, of those that cost the other items at most a share :data:`MOST_LOST` of their NDCG@10, that
with the best NDCG@10 on new items is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from setrec.data.catalog import TRAIN, VALID, Histories
from setrec.evaluation import ranking
from setrec.evaluation.intervals import standard_error
from setrec.models.setrec_model import SetRecModel
from setrec.ragged import Ragged
from setrec.scoring import registry
from setrec.scoring.hybrid import MODEL, HybridScorer, HybridWeights, NewItemWeights
from setrec.scoring.model_scores import ModelScores
from setrec.scoring.search.candidates import CandidateTerms
from setrec.scoring.search.fit import fit, without
from setrec.scoring.search.table import Part, SearchTable
from setrec.scoring.search.temperature import fit_temperature
from setrec.scoring.text_similarity import TextFeatures

USERS = 2500
"""Number of users of each half on which weights are chosen."""
CALIBRATED = 1000
"""Maximum number of users on which a temperature is fitted."""
NEW_RATIOS = ((1.0, 0.0), (1.0, 2.5), (1.0, 5.0), (1.0, 10.0), (1.0, 20.0), (1.0, 40.0), (0.5, 40.0), (0.0, 20.0))
"""Weights of model and content for new items, up to a common factor."""
NEW_FACTORS = (0.25, 0.5, 1.0, 2.0)
NEW_LEVELS = (-12.0, -10.0, -8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)
GROWTH = 3.0
"""Growth of the share of new items among chosen items from validation to test, if both periods are equally long and the
share is proportional to the time since training ended: the ratio of its means over the two periods."""
MOST_NEW = 0.5
"""Maximum of the expected share, unless validation's share is larger."""
TIE_BREAK = 0.01
"""Share of its weights alone that a model keeps which adds nothing: it orders the items that no component knows."""
MOST_LOST = 0.05
"""Share of the NDCG@10 of other items that new items may cost if the split is not one of global time."""
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
    term = None if model is None else ModelScores(model, dict.fromkeys(model.kinds, 1.0))
    table = SearchTable(term, asked, trained, texts, list(registry.kinds()) if names is None else list(names))
    progress("candidates")
    # New items get weights of their own below; if no other item is a truth, all take part.
    among = CandidateTerms.of(table, trained) or CandidateTerms.of(table, np.ones_like(trained))
    if among is None:
        return Found(_untuned(model), 0.0)
    progress("weights")
    tried: list[dict[str, Any]] = []
    alone = _fitted(among.of_terms(tuple(table.slots)), tried, "slots") if table.slots else {}
    if not any(alone.values()):
        alone = dict.fromkeys(alone, 1.0)
    whole, gains = _components(among, table, tried) if table.kinds else (alone, [])
    if not any(whole[kind] for kind in table.slots):
        whole |= {kind: TIE_BREAK * weight for kind, weight in alone.items()}
    components = {name: weight for name, weight in whole.items() if name in table.kinds}
    slots = {kind: whole[kind] for kind in table.slots}
    temperature = _temperature(table, term, slots, components)
    slots = {kind: weight / temperature for kind, weight in slots.items()}
    components = {name: weight / temperature for name, weight in components.items()}
    for row in gains:
        row["weight"] /= temperature
    slots_alone: dict[str, float] = {}
    if components and term is not None:
        heat = _temperature(table, term, alone, {})
        slots_alone = {kind: weight / heat for kind, weight in alone.items()}
    weights = HybridWeights(slots=slots, slots_alone=slots_alone, temperature=temperature, components=components)
    for kind, weight in slots.items():
        table.scale(kind, weight)
    progress("new items")
    (values,) = table.ndcg(lambda batch: {"all": table.total(components, batch)}, [{"all": 1.0}])
    new_items, each = _new_items(table, components, values[0], tried, timed=asked[0].timed)
    return Found(weights.model_copy(update={"new_items": new_items}), float(np.nanmean(each)), gains, tried)


def _untuned(model: SetRecModel | None) -> HybridWeights:
    return HybridWeights(slots={} if model is None else dict.fromkeys(model.kinds, 1.0))


def _fitted(candidates: CandidateTerms, tried: list[dict[str, Any]], step: str) -> dict[str, float]:
    """Return the fitted weights of all terms by name."""
    weights = fit(candidates)
    tried += _rows(step, [_named(candidates, weights)], candidates.ndcg(candidates.scores(weights))[None])
    return _named(candidates, weights)


def _named(candidates: CandidateTerms, weights: np.ndarray) -> dict[str, float]:
    return {name: float(weight) for name, weight in zip(candidates.names, weights, strict=True)}


def _components(
    candidates: CandidateTerms, table: SearchTable, tried: list[dict[str, Any]]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Return the weights of slot kinds and of those components that raise NDCG@10 beside the others, and the gain of
    each of these components."""
    chosen = _fitted(candidates, tried, "slots and components")
    while True:
        weights = np.array([chosen[name] for name in candidates.names])
        values, rows = candidates.ndcg(candidates.scores(weights)), []
        for term, name in enumerate(candidates.names):
            if name in table.kinds and chosen[name]:
                others = without(candidates, weights, term)
                tried += _rows(f"without {name}", [{**chosen, name: 0.0}], others[None])
                rows.append(_gain(name, chosen[name], values, others))
        if not rows or (least := min(rows, key=lambda row: row["gain"]))["gain"] > 0:
            kept = {name: weight for name, weight in chosen.items() if weight or name in table.slots}
            return kept, rows
        chosen[least["name"]] = 0.0


def _temperature(
    table: SearchTable, term: ModelScores | None, slots: Mapping[str, float], components: Mapping[str, float]
) -> float:
    """Return the temperature of the scores at these weights, on up to :data:`CALIBRATED` users of the first part."""
    model = None if term is None else ModelScores(term.model, slots, term.codes)
    if model is None and not components:
        return 1.0
    scorer = HybridScorer(
        model, {name: table.parts[0][name] for name in components}, HybridWeights(components=dict(components)),
        np.zeros(table.items, bool),
    )  # fmt: skip
    return fit_temperature(scorer, table.cases.sample(CALIBRATED, 0))


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
    groups = {"all": every, "new": new, "known": ~new}
    each = table.ndcg(terms, grid, [ranking.Group(name, truths, every) for name, truths in groups.items()])
    overall, of_new, of_known = each
    tried += _rows("new items", grid, overall)
    if timed and not pretended:
        truths = Ragged.joined([truth for _, _, truth in table.batches])
        at = int(np.argmax(np.nansum(overall * expected(truths, new), axis=1)))
    else:
        known = np.nansum(of_known, axis=1)
        at = int(np.argmax(np.where(known >= (1 - MOST_LOST) * known.max(), np.nansum(of_new, axis=1), -1.0)))
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


def _gain(name: str, weight: float, values: np.ndarray, before: np.ndarray) -> dict[str, Any]:
    difference = values - before
    return {"name": name, "weight": weight, "gain": float(np.nanmean(difference)),
            "standard_error": standard_error(difference)}  # fmt: skip


def _rows(step: str, grid: Sequence[Mapping[str, float]], values: np.ndarray) -> list[dict[str, Any]]:
    means = np.nanmean(values, axis=1)
    return [{"step": step, "weights": dict(w), "ndcg@10": float(v)} for w, v in zip(grid, means, strict=True)]
