"""Hand a trained run to serving: one bundle directory."""

from __future__ import annotations

from pathlib import Path

from nodetok.artifact import GraphArtifact
from pipelines import ingest
from pipelines.config import JobConfig
from pipelines.features import text_encoder
from pipelines.progress import bar
from pipelines.runs import Run
from serving.bundle_writer import write_bundle
from setrec.model import SetRecModel
from setrec.walk import Walk, WalkSettings


def export(
    run: Run, config: JobConfig, out: Path | None = None, graph: Path | None = None, *, encoder: bool = True
) -> Path:
    """Write the bundle of ``run`` to ``out`` (default: the run's own ``bundle/``) and return its path.

    ``graph``: the folder of a graph run, whose ``graph/`` goes into the bundle. ``encoder``: whether the sentence
    encoder goes with it; without it the bundle is that much smaller and no item can be added to what is served.

    Raises:
        ConfigError: a step of the run, or the graph, is missing or cannot be loaded.
    """
    if graph is not None:
        GraphArtifact.load(graph / "graph")
    run.require(run.model, "train")
    run.require(run.root / "weights.json", "evaluate")
    out = out or run.bundle
    with bar("Export bundle") as progress:
        catalog, histories = ingest.load(run.data)
        model = SetRecModel.from_pretrained(run.model).eval()
        found = run.read_json("weights.json")
        added = found.get("transitions")
        write_bundle(
            out,
            model_dir=run.model,
            catalog=catalog,
            histories=histories,
            item_codes=model.item_codes().numpy(),
            weights=found["weights"],
            walk=None if added is None else Walk.of(histories.items, len(catalog), WalkSettings(**added)),
            retriever=config.retriever,
            newcomers=config.newcomers,
            encoder=text_encoder(config) if encoder else None,
            graph_dir=None if graph is None else graph / "graph",
        )
        size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
        progress.update(1, 1, f"{len(catalog)} items, {size / 1e6:.1f} MB")
    return out
