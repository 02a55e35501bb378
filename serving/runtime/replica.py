"""Assembly of one serving process from the settings: bundle, warm engine, store and releases."""

from __future__ import annotations

from pathlib import Path

from serving.bundle.reader import EncoderLoader, load_setrec
from serving.retrieval.shards import ShardOpener
from serving.runtime.experiments.exposures import ExposureLog
from serving.runtime.experiments.split import Experiment
from serving.runtime.follower import Follower
from serving.runtime.graph_service import GraphLoader
from serving.runtime.models import Live, Loader
from serving.runtime.rollout import Releases
from serving.runtime.settings import ServingSettings
from serving.stores import open_store
from serving.telemetry import metrics


def open_live(
    path: Path,
    settings: ServingSettings,
    load_encoder: EncoderLoader = load_setrec,
    graph_loader: GraphLoader | None = None,
    open_shard: ShardOpener | None = None,
) -> Live:
    """Open the model in use, its store, and the threads that update it, for the bundle at ``path`` or the current
    release.

    Raises:
        BundleError: the bundle cannot be used.
        StoreError: the store's file cannot be used. A Redis that does not answer yet is not an error.
        ReleaseError: the folder of releases cannot be written to.
    """
    store = open_store(settings.store) if settings.store else None
    loader = Loader(settings, store, load_encoder, graph_loader, open_shard)
    releases = Releases(settings.releases, path, loader) if settings.releases else None
    model = releases.first_model() if releases else loader.load(path)
    live = Live(model.engine, store, model.graph, audit_share=settings.audit_share)
    if store is not None:
        live.follower = follower = Follower(live)
        live.on_close(follower.close)
    if settings.experiment is not None and settings.releases is not None:
        challenger = loader.load(settings.releases / settings.experiment.bundle, tested=True)
        live.experiment = Experiment(settings.experiment, challenger.engine)
        metrics.serves(challenger.engine.bundle.model_version)
    if settings.exposures is not None:
        live.exposures = ExposureLog(settings.exposures)
        live.on_close(live.exposures.close)
    if releases is not None:
        live.releases = releases
        releases.follow(live)
    return live
