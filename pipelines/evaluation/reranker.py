"""``setrec train-reranker``: the second stage of a run, learned on validation and kept if it gains there."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.common.fingerprints import of_value
from pipelines.common.progress import bar
from pipelines.common.run_directory import Run
from pipelines.config.job import JobConfig
from pipelines.data import directory
from pipelines.evaluation.scorer import load_weights
from pipelines.features import item_features, lineage
from setrec.data.catalog import Catalog, Histories
from setrec.errors import ConfigError, DataError
from setrec.evaluation.intervals import standard_error
from setrec.models.setrec_model import SetRecModel
from setrec.ragged import Ragged
from setrec.scoring import registry
from setrec.scoring.hybrid import HybridScorer, HybridWeights, build_components
from setrec.scoring.model_scores import ModelScores
from setrec.scoring.registry import Sources
from setrec.scoring.reranking import (
    CANDIDATES,
    AttributeVectors,
    CatalogFacts,
    Reranker,
    RerankingScorer,
    best,
    features,
    standardized,
)
from setrec.scoring.search.table import Part
from setrec.scoring.search.weight_search import halves
from setrec.scoring.text_similarity import TextFeatures

RERANKER = "reranker.json"
DRAWS, FOLDS = 3, 5
"""Partitions of the validation users, and parts of each: a user is ranked by a model fitted on the other parts."""
_BATCH = 128


def train_reranker(run: Run, config: JobConfig) -> dict[str, Any]:
    """Learn the order of the best candidates from validation, write ``reranker.json`` and return its content.

    It is kept, and included in the bundle, if NDCG@10 of validation users not used for fitting rises by more than a
    standard error. Run ``setrec evaluate`` before, for the weights of the score, and after, for its row.

    Raises:
        ConfigError: the run has not been evaluated, or no candidate of validation is a truth.
    """
    weights = load_weights(run)
    run.claim(RERANKER)
    catalog, histories = directory.load(run.data)
    texts, trained = item_features.text_features(run, catalog), histories.trained(len(catalog))
    model = SetRecModel.from_pretrained(run.validated).eval()
    facts = CatalogFacts(histories.train_counts(len(catalog)), AttributeVectors(catalog.attributes, len(catalog)))
    with bar("Train re-ranker") as progress:
        parts = [part for part in halves(histories, timed=config.timed) if len(part.cases)]
        tables = [
            _table(part, reranking_base(model, weights, part.known, trained, texts), facts, weights) for part in parts
        ]
        if not tables or not any(table.truths.any() for table in tables):
            raise ConfigError(f"{run.data}: no validation item is among the best {CANDIDATES}: nothing to learn from")
        found = learn(Table.joined(tables))
        progress.update(1, 1, f"validation NDCG@10 {found['gain']:+.4f}, standard error {found['standard_error']:.4f}")
    record = {**found, "made_from": _made_from(run, weights)}
    run.write_json(RERANKER, record)
    return record


def load_reranker(run: Run, weights: HybridWeights) -> tuple[Reranker, bool] | None:
    """Return the run's re-ranker and whether it is kept; ``None`` if there is none for this model and these weights.

    Raises:
        DataError: the file is damaged.
    """
    record = run.read_json(RERANKER)
    try:
        if record is None or record["made_from"] != _made_from(run, weights):
            return None
        return Reranker.model_validate(record["reranker"]), bool(record["kept"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError("holds no re-ranker; train it again", file=run.root / RERANKER) from error


def reranking_scorer(reranker: Reranker, base: HybridScorer, catalog: Catalog, histories: Histories) -> RerankingScorer:
    """Return the second stage over a scorer with all components."""
    counts = histories.train_counts(len(catalog))
    return RerankingScorer(base, reranker, CatalogFacts(counts, AttributeVectors(catalog.attributes, len(catalog))))


def reranking_base(
    model: SetRecModel, weights: HybridWeights, known: Ragged, trained: np.ndarray, texts: TextFeatures | None
) -> HybridScorer:
    """Return the scorer at these weights, including the components without a weight."""
    components = build_components(tuple(registry.kinds()), Sources(known, len(trained), texts))
    return HybridScorer(ModelScores(model, weights.slots), components, weights, ~trained)


class Table:
    """Candidates of validation users: ``values`` (n, f) of the features ``names``, ``rows`` with the candidates of each
    user, best first, and whether each is a truth, bool (n,); ``possible`` (u,): truths of each user."""

    def __init__(
        self, names: list[str], values: np.ndarray, rows: Ragged, truths: np.ndarray, possible: np.ndarray
    ) -> None:
        self.names, self.values, self.rows, self.truths, self.possible = names, values, rows, truths, possible

    @classmethod
    def joined(cls, parts: list[Table]) -> Table:
        """Return the users of all parts."""
        each = [np.concatenate([getattr(p, name) for p in parts]) for name in ("values", "truths", "possible")]
        return cls(parts[0].names, each[0], Ragged.joined([p.rows for p in parts]), each[1], each[2])

    def ndcg(self, scores: np.ndarray) -> np.ndarray:
        """Return the NDCG@10 of every user with the candidates in the order of ``scores``."""
        order = np.lexsort((np.arange(len(scores)), -scores, self.rows.row_of_value))
        ranks = np.empty(len(scores), dtype=np.int64)
        ranks[order] = np.arange(len(scores)) - self.rows.offsets[:-1][self.rows.row_of_value]
        gains = np.where(self.truths & (ranks < 10), 1 / np.log2(ranks + 2.0), 0.0)
        ideal = np.cumsum(1 / np.log2(np.arange(10) + 2.0))[np.clip(self.possible, 1, 10) - 1]
        values: np.ndarray = np.bincount(self.rows.row_of_value, gains, len(self.rows)) / ideal
        return values


def _table(part: Part, scorer: HybridScorer, facts: CatalogFacts, weights: HybridWeights) -> Table:
    tables = []
    for start in range(0, len(part.cases), _BATCH):
        history, truth = part.cases.batch(start, _BATCH)
        entries = scorer.entries(history)
        rows = best(scorer(history, entries), history, CANDIDATES)
        found = features(scorer, history, rows, entries, facts)
        pairs = [one.row_of_value * len(scorer.new) + one.values for one in (rows, truth)]
        values = np.stack(list(found.values()), axis=1)
        tables.append(Table(list(found), values, rows, np.isin(*pairs), truth.lengths))
    return Table.joined(tables)


def learn(table: Table) -> dict[str, Any]:
    """Return the re-ranker fitted to a table, its ``gain`` in NDCG@10 on users not used for fitting, and whether the
    gain exceeds a standard error, so that it is ``kept``."""
    z, users = standardized(table.values, table.rows), len(table.rows)
    before, gains = table.ndcg(table.values[:, table.names.index("score")]), np.zeros(users)
    for draw in range(DRAWS):
        fold, scores = np.random.default_rng(draw).permutation(users) % FOLDS, np.zeros(len(z))
        for number in range(FOLDS):
            asked = (fold == number)[table.rows.row_of_value]
            scores[asked] = z[asked] @ _fitted(z, table, ~asked)
        gains += (table.ndcg(scores) - before) / DRAWS
    weights = dict(zip(table.names, _fitted(z, table, np.ones(len(z), bool)).tolist(), strict=True))
    gain, error = float(gains.mean()), standard_error(gains)
    return {
        "reranker": Reranker(weights={name: w for name, w in weights.items() if w}).model_dump(mode="json"),
        "before": float(before.mean()),
        "gain": gain,
        "standard_error": error,
        "kept": gain > error,
    }


def _fitted(z: np.ndarray, table: Table, asked: np.ndarray) -> np.ndarray:
    """Return the coefficients of the logistic regression over the candidates ``asked`` of users with a truth among
    them."""
    from sklearn.linear_model import LogisticRegression

    row = table.rows.row_of_value
    some = asked & (np.bincount(row, table.truths, len(table.rows)) > 0)[row]
    if not table.truths[some].any():
        return np.zeros(z.shape[1])
    return np.asarray(LogisticRegression(max_iter=500).fit(z[some], table.truths[some]).coef_[0])


def _made_from(run: Run, weights: HybridWeights) -> dict[str, str]:
    return {
        "model": run.hash_of(run.model),
        "data": lineage.of_data(run),
        "weights": of_value(weights.model_dump(mode="json")),
    }
