"""Export of a trained run for serving: one bundle directory."""

from __future__ import annotations

from pathlib import Path

from nodetok.asking.artifact import GraphArtifact
from pipelines.common.progress import bar
from pipelines.common.run_directory import Run
from pipelines.config.job import JobConfig
from pipelines.data import directory
from pipelines.evaluation.reranker import load_reranker
from pipelines.evaluation.scorer import load_weights
from pipelines.features import item_features, lineage
from pipelines.features.item_features import text_encoder
from serving.bundle.writer import write_bundle
from serving.engine.acceptance import examine
from setrec.models.setrec_model import SetRecModel
from setrec.scoring.hybrid import build_components
from setrec.scoring.registry import Sources
from setrec.scoring.reranking import components_of
from setrec.scoring.text_features import TextFeaturizer


def export(
    run: Run, config: JobConfig, out: Path | None = None, graph: Path | None = None, *, encoder: bool = True
) -> Path:
    """Write the bundle of ``run`` to ``out`` (default: the run's own ``bundle/``) and return its path.

    ``graph``: the folder of a graph run, whose ``graph/`` is included in the bundle. ``encoder``: whether to include
    the sentence encoder; without it the bundle is smaller and no items can be added while serving.

    Raises:
        ConfigError: a step of the run, or the graph, is missing or cannot be loaded.
    """
    if graph is not None:
        GraphArtifact.load(graph / "graph")
    lineage.require_model(run, config)
    if out is None or out.resolve() == run.bundle.resolve():
        run.claim("bundle")
    out = out or run.bundle
    with bar("Export bundle") as progress:
        catalog, histories = directory.load(run.data)
        model = SetRecModel.from_pretrained(run.model).eval()
        weights, texts = load_weights(run), item_features.text_features(run, catalog)
        sources = Sources(histories.items, len(catalog), texts)
        second = load_reranker(run, weights)
        reranker = second[0] if second and second[1] else None
        sentences = text_encoder(run, config) if encoder else None
        lexical = item_features.load_lexical(run) if encoder else None
        write_bundle(
            out,
            model_dir=run.model,
            catalog=catalog,
            histories=histories,
            item_codes=model.item_codes().numpy(),
            scorer=weights,
            components=build_components(components_of(weights, reranker), sources),
            reranker=reranker,
            featurizer=TextFeaturizer(lexical, sentences) if lexical or sentences else None,
            text_features=texts,
            text_center=item_features.sentence_center(run),
            retriever=config.retriever,
            graph_dir=None if graph is None else graph / "graph",
            event_weights=config.data.event_weights,
            examine=examine,
        )
        size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
        progress.update(1, 1, f"{len(catalog)} items, {size / 1e6:.1f} MB")
    return out
