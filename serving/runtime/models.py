"""The model in use, and its replacement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from serving.bundle.reader import Bundle, EncoderLoader, load_setrec
from serving.bundle.signature import require_signature
from serving.engine.acceptance import accept
from serving.engine.engine import Engine
from serving.engine.live_audit import Auditor
from serving.engine.requests import Answer, Request
from serving.retrieval.shards import ShardOpener
from serving.runtime.experiments.exposures import Arm, ExposureLog
from serving.runtime.experiments.split import Experiment
from serving.runtime.graph_service import GraphAnswer, GraphLoader, GraphService, Mode, NodeDescription
from serving.runtime.release_state import ReleaseState
from serving.runtime.settings import ServingSettings
from serving.stores import LiveStore
from serving.telemetry import metrics
from setrec.errors import BundleError, SetRecError


class Follows(Protocol):
    """Interface of the thread that applies the store's changes to the engine in use."""

    def wait_until(self, seq: int, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds and return whether the change numbered ``seq`` is applied."""
        ...


class MakesReleases(Protocol):
    """Interface for releasing a bundle in all replicas."""

    @property
    def state(self) -> ReleaseState:
        """The current release."""
        ...

    def release(self, live: Live, name: str | None) -> ReleaseState:
        """Serve the bundle ``name``; see :meth:`serving.runtime.rollout.Releases.release`."""
        ...


@dataclass(frozen=True)
class Model:
    """The engine of one bundle and, if any, its graph."""

    engine: Engine
    graph: GraphService | None = None


@dataclass(frozen=True)
class Loader:
    """Loads a :class:`Model` from a bundle, with the settings and the store of this process."""

    settings: ServingSettings
    store: LiveStore | None = None
    load_encoder: EncoderLoader = load_setrec
    graph_loader: GraphLoader | None = None
    open_shard: ShardOpener | None = None

    def load(self, path: Path, *, tested: bool = False) -> Model:
        """Load the model at ``path``: verify every file, run the slow first pass, and apply live changes.

        ``tested``: it must also answer the stored requests as at export, and no live change may be missing; otherwise a
        store that cannot be read yet is not an error.

        Raises:
            BundleError: the bundle cannot be used, is not signed as the settings require, or has other answers.
            StoreError: ``tested``, and the store cannot be read.
        """
        settings = self.settings
        if settings.verify_key is not None:
            require_signature(path, settings.verify_key)
        bundle = Bundle.open(path, self.load_encoder, self.open_shard)
        engine = Engine(
            bundle,
            store=self.store,
            max_k=settings.max_k,
            threads=settings.threads,
            replay=not tested,
            event_weights=settings.event_weights,
            user_cache_bytes=settings.user_cache_bytes,
        )
        if tested:
            accept(engine)
            engine.catch_up()
        graph = self.graph_loader(bundle.graph_path) if self.graph_loader and bundle.graph_path else None
        return Model(engine, graph)


class Live:
    """The engine in use, which can be replaced while requests are answered.

    Each request reads ``engine`` once and uses only that one, so that an answer comes from a single model.
    """

    def __init__(
        self,
        engine: Engine,
        store: LiveStore | None = None,
        graph: GraphService | None = None,
        *,
        audit_share: float = 0.0,
    ) -> None:
        """A share ``audit_share`` of the answers is compared with the dense route, by :class:`Auditor`."""
        self.engine, self.store, self.graph = engine, store, graph
        self.auditor = Auditor(audit_share)
        self.auditor.begin(engine.bundle)
        self.follower: Follows | None = None
        self.releases: MakesReleases | None = None
        self.experiment: Experiment | None = None
        self.exposures: ExposureLog | None = None
        self._closing: list[Callable[[], None]] = [self.auditor.close]

    @property
    def model_version(self) -> str:
        """Version of the model in use."""
        return self.engine.bundle.model_version

    @property
    def engines(self) -> tuple[Engine, ...]:
        """All engines: the one in use and that of an experiment."""
        return (self.engine,) if self.experiment is None else (self.engine, self.experiment.engine)

    def arm(self, user_id: str | None) -> Arm:
        """Return the experiment's arm for a user."""
        return Arm() if self.experiment is None else self.experiment.arm(user_id)

    def recommend(self, requests: Sequence[Request]) -> list[Answer | SetRecError]:
        """Return answers, each from a single engine."""
        if self.experiment is None:
            return self.engine.recommend(requests, self.auditor)
        return self.experiment.split(requests, self.engine, lambda engine, own: engine.recommend(own, self.auditor))

    def swap(self, model: Model) -> Model:
        """Use ``model`` from the next request on; return the previous one, still usable.

        Raises:
            BundleError: the model has no graph and there are routes that need one.
        """
        if self.graph is not None and model.graph is None:
            raise BundleError("the bundle has no graph, but a graph is served")
        before = Model(self.engine, self.graph)
        self.engine = model.engine
        before.engine.retire()
        self.auditor.begin(model.engine.bundle)
        if self.graph is not None:
            self.graph = model.graph
        metrics.serves(model.engine.bundle.model_version, before.engine.bundle.model_version)
        return before

    def on_close(self, close: Callable[[], None]) -> None:
        """Register ``close`` to be called by :meth:`close`, the latest first."""
        self._closing.append(close)

    def close(self) -> None:
        """Stop background threads, then close the store."""
        while self._closing:
            self._closing.pop()()
        if self.store is not None:
            self.store.close()


class GraphInUse:
    """The graph of the model in use, as a ``GraphService``."""

    def __init__(self, live: Live) -> None:
        self._live = live

    @property
    def model_version(self) -> str:
        """See :class:`serving.runtime.graph_service.GraphService`."""
        return self._graph.model_version

    @property
    def count(self) -> int:
        """See :class:`serving.runtime.graph_service.GraphService`."""
        return self._graph.count

    @property
    def tasks(self) -> tuple[str, ...]:
        """See :class:`serving.runtime.graph_service.GraphService`."""
        return self._graph.tasks

    @property
    def can_ask(self) -> bool:
        """See :class:`serving.runtime.graph_service.GraphService`."""
        return self._graph.can_ask

    def ask(self, question: str, k: int, mode: Mode) -> GraphAnswer:
        """See :class:`serving.runtime.graph_service.GraphService`."""
        return self._graph.ask(question, k, mode)

    def nodes(self, ids: Sequence[str], k: int) -> list[NodeDescription]:
        """See :class:`serving.runtime.graph_service.GraphService`."""
        return self._graph.nodes(ids, k)

    @property
    def _graph(self) -> GraphService:
        graph = self._live.graph
        assert graph is not None
        return graph
