"""The systems of the ranking table in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from pipelines.common.run_directory import Run
from pipelines.config.job import JobConfig
from pipelines.data import directory
from pipelines.evaluation.reranker import reranking_base, reranking_scorer
from pipelines.evaluation.scorer import hybrid_scorer, known_at_test
from pipelines.evaluation.system_names import ALONE, OURS, RERANKED, SASREC, WITHOUT
from pipelines.features import item_features
from setrec.evaluation import ranking
from setrec.models import sasrec
from setrec.models.setrec_model import SetRecModel
from setrec.ragged import Ragged
from setrec.scoring.hybrid import HybridWeights
from setrec.scoring.model_scores import ModelOnly, ModelScores
from setrec.scoring.reranking import Reranker


class Systems:
    """``scorers`` by name, ready to rank batches of cases in ``groups``."""

    def __init__(self, scorers: Mapping[str, ranking.Scorer], groups: Sequence[ranking.Group]) -> None:
        self.scorers, self.groups = dict(scorers), groups

    @classmethod
    def load(
        cls,
        root: Path,
        config: JobConfig,
        given: Mapping[str, ranking.Scorer],
        groups: Sequence[ranking.Group],
        weights: HybridWeights,
        without: HybridWeights,
        reranker: Reranker | None = None,
    ) -> Systems:
        """Load the opponents ``given``, SASRec if configured, then the run's own scorer at ``weights``, its model
        alone, its components without the model at their own weights, and the ``reranker``, if any.

        Raises:
            ConfigError: the run has not been trained.
        """
        run, scorers = Run(root), dict(given)
        catalog, histories = directory.load(run.data)
        texts, trained = item_features.text_features(run, catalog), histories.trained(len(catalog))
        if "sasrec" in config.evaluation.opponents:
            scorers[SASREC] = sasrec.scorer(item_features.load_sasrec(run))
        model = SetRecModel.from_pretrained(run.require(run.model, "train"))
        if config.cluster.gpu:
            torch.nn.Module.to(model, "cuda")
        known = known_at_test(histories)
        scorers[OURS] = hybrid_scorer(model, weights, known, trained, texts)
        scorers[ALONE] = ModelOnly(ModelScores(model, weights.of_model_alone))
        scorers[WITHOUT] = hybrid_scorer(None, without, known, trained, texts)
        if reranker is not None:
            base = reranking_base(model, weights, known, trained, texts)
            scorers[RERANKED] = reranking_scorer(reranker, base, catalog, histories)
        return cls(scorers, groups)

    @property
    def names(self) -> list[str]:
        """Return the names of all systems, the opponents first."""
        return list(self.scorers)

    def rank(self, history: Ragged, truth: Ragged, name: str) -> ranking.Ranks:
        """Return the ranks of one batch's truths by one system."""
        return ranking.batch_ranks(self.scorers[name], history, truth, self.groups, lists=True)
