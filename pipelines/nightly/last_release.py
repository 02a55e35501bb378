"""Ranking of today's test items by the last release, so that a gate compares two models on the same night.

Its weights are those of the release; catalogue, text vectors, positions and histories are today's. Items without
training in that model are new items for it, as in serving.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from pipelines.common.progress import bar
from pipelines.common.run_directory import Run
from pipelines.config.job import JobConfig
from pipelines.data import directory
from pipelines.evaluation.evaluate import per_user_table
from pipelines.evaluation.scorer import SCORER, hybrid_scorer, known_at_test
from pipelines.evaluation.system_names import ALONE, OURS
from pipelines.features import item_features
from pipelines.features.warm import Source, lexical_encoder
from setrec.atomic import atomic_file
from setrec.data.catalog import TEST, Catalog
from setrec.evaluation import ranking
from setrec.models.item_tokens import COLLABORATIVE
from setrec.models.setrec_model import SetRecModel
from setrec.scoring.hybrid import HybridWeights
from setrec.scoring.model_scores import ModelOnly, ModelScores
from setrec.scoring.text_similarity import TextFeatures
from setrec.training.warm_start import NEW, warm_start

FILE = "last_release.parquet"


def rank_again(run: Run, config: JobConfig, record: Path) -> Path:
    """Rank today's test items with the model and the weights in ``record``; return the metrics per user.

    ``config``: today's, under which the model has the shape of the one in ``record``.

    Raises:
        ConfigError: the record cannot be used.
    """
    catalog, histories = directory.load(run.data)
    texts, similar = _texts(run, record, catalog)
    model, trained = _model(run, config, record, histories.trained(len(catalog)), catalog, texts)
    weights = HybridWeights.model_validate(json.loads((record / SCORER).read_text())["weights"])
    scorers: dict[str, ranking.Scorer] = {
        OURS: hybrid_scorer(model, weights, known_at_test(histories), trained, similar),
        ALONE: ModelOnly(ModelScores(model, weights.of_model_alone)),
    }
    every = np.ones(len(catalog), dtype=bool)
    groups = [ranking.Group("all", every, every)]
    with bar("Rank the last release"):
        s = config.evaluation
        cases = ranking.Cases.of(histories, TEST, s.users, s.seed)
        found = ranking.evaluate_each(scorers, cases, groups, ks=s.ks)
    run.claim(FILE)
    with atomic_file(run.root / FILE) as path:
        per_user_table(found, histories).to_parquet(path, index=False)
    return run.root / FILE


def _texts(run: Run, record: Path, catalog: Catalog) -> tuple[np.ndarray | None, TextFeatures | None]:
    """Return today's texts for the release: with its own words, and the existing sentence vectors."""
    lexical, sentences = lexical_encoder(record), item_features.sentence_vectors(run)
    words = None if lexical is None else lexical.vectors(catalog.texts)
    tables = [table for table in (words, sentences) if table is not None]
    joined = np.ascontiguousarray(np.concatenate(tables, axis=1)) if tables else None
    return joined, None if lexical is None else item_features.similarity_features(lexical, sentences, catalog)


def _model(
    run: Run, config: JobConfig, record: Path, trained: np.ndarray, catalog: Catalog, texts: np.ndarray | None
) -> tuple[SetRecModel, np.ndarray]:
    """Return the released model over today's catalogue, and which items it was trained on, bool (I,)."""
    source = Source.at(record)
    old = SetRecModel.from_pretrained(source.model, use_safetensors=True, local_files_only=True)
    rows = source.rows(catalog.item_ids)
    features = item_features.load_features(run, config, trained)
    model = SetRecModel.build(config.model, features)
    warm_start(model, old, rows, texts)
    table, before = model.tokens.table(COLLABORATIVE), old.tokens.table(COLLABORATIVE)
    trained = trained & (rows != NEW)
    if table is not None and before is not None:
        trained[trained] = before.known.cpu().numpy()[rows[trained]]
        with torch.no_grad():
            table.known.copy_(torch.from_numpy(trained))
            table.table.zero_()
            table.table[table.known] = before.table[torch.from_numpy(rows[trained])]
    return model.eval(), trained
