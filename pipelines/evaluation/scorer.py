"""The hybrid scorer of a run: its weights are searched on validation and stored in ``scorer.json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError

from pipelines.common.run_directory import Run
from pipelines.features import lineage
from setrec.data.catalog import VALID, Histories
from setrec.errors import ConfigError, DataError, SetRecError
from setrec.models.setrec_model import SetRecModel
from setrec.ragged import Ragged
from setrec.scoring.hybrid import HybridScorer, HybridWeights
from setrec.scoring.model_scores import ModelScores
from setrec.scoring.registry import Sources
from setrec.scoring.search.weight_search import Found, halves, search
from setrec.scoring.text_similarity import TextFeatures

SCORER = "scorer.json"


def search_weights(
    model: SetRecModel | None,
    histories: Histories,
    texts: TextFeatures | None,
    items: int,
    *,
    timed: bool,
    components: Sequence[str] | None = None,
) -> Found:
    """Search the weights of a run's scorer on validation; ``timed``: the split is one of global time."""
    trained = histories.trained(items)
    parts = halves(histories, timed=timed)
    return search(model, parts, trained, texts, names=components)


def record(found: Found) -> dict[str, Any]:
    """Return a search as plain values: ``components`` with the gain of each on validation, ``weights``, validation
    NDCG@10 (``valid``) and all weights that were ``tried``."""
    return {
        "components": found.gains,
        "weights": found.weights.model_dump(mode="json"),
        "valid": None if np.isnan(found.valid) else found.valid,
        "tried": found.tried,
    }


def load_weights(run: Run) -> HybridWeights:
    """Return the weights that ``setrec evaluate`` chose for the run's model.

    Raises:
        ConfigError: the run has not been evaluated with this model and this data.
        DataError: the file is damaged.
    """
    path = run.require(run.root / SCORER, "evaluate")
    try:
        made_from = run.read_json(SCORER).get("made_from", {})
        for part, now in (("model", run.hash_of(run.model)), ("data", lineage.of_data(run))):
            if made_from.get(part, now) != now:
                raise ConfigError(f"{path} was made from another {part}: run `setrec evaluate --run {run.root}` first")
        return HybridWeights.model_validate(run.read_json(SCORER)["weights"])
    except SetRecError:
        raise
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise DataError("holds no weights; evaluate again", file=path) from error


def known_at_test(histories: Histories) -> Ragged:
    """Return the histories known when the test items are ranked: training and validation items of all users."""
    return histories.events(VALID)


def hybrid_scorer(
    model: SetRecModel | None, weights: HybridWeights, known: Ragged, trained: np.ndarray, texts: TextFeatures | None
) -> HybridScorer:
    """Return the scorer at these weights, with components built from the histories ``known``."""
    term = None if model is None else ModelScores(model, weights.slots)
    return HybridScorer.build(term, weights, ~trained, Sources(known, len(trained), texts))
