"""What answers just now, and how another model takes its place."""

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
from serving.runtime.experiments.exposures import Arm, ExposureLog
from serving.runtime.experiments.split import Experiment
from serving.runtime.graph_service import GraphAnswer, GraphLoader, GraphService, Mode, NodeDescription
from serving.runtime.release_state import ReleaseState
from serving.runtime.settings import ServingSettings
from serving.stores import LiveStore
from serving.telemetry import metrics
from setrec.errors import BundleError, SetRecError


class Follows(Protocol):
    """What applies the store's changes to the engine in use, beside the requests."""

    def wait_until(self, seq: int, timeout: float) -> bool:
        """Whether the change numbered ``seq`` is applied, after at most ``timeout`` seconds."""
        ...


class MakesReleases(Protocol):
    """What puts another bundle in the place of the one in use, in all replicas."""

    @property
    def state(self) -> ReleaseState:
        """Which bundle is released."""
        ...

    def release(self, live: Live, name: str | None) -> ReleaseState:
        """Serve the bundle ``name``; see :meth:`serving.runtime.rollout.Releases.release`."""
        ...


@dataclass(frozen=True)
class Model:
    """All that comes from one bundle: the engine and, where there is one, the graph."""

    engine: Engine
    graph: GraphService | None = None


@dataclass(frozen=True)
class Loader:
    """Makes a :class:`Model` of a bundle, with the settings and the store of this process."""

    settings: ServingSettings
    store: LiveStore | None = None
    load_encoder: EncoderLoader = load_setrec
    graph_loader: GraphLoader | None = None

    def load(self, path: Path, *, tested: bool = False) -> Model:
        """The model at ``path``: every file checked, the first slow pass behind it, live changes applied.

        ``tested``: it must also answer the stored requests as at export, and no live change may be missing; otherwise
        a store that cannot be read yet is no obstacle.

        Raises:
            BundleError: the bundle cannot be used, is not signed as the settings ask, or answers otherwise.
            StoreError: ``tested``, and the store cannot be read.
        """
        settings = self.settings
        if settings.verify_key is not None:
            require_signature(path, settings.verify_key)
        bundle = Bundle.open(path, self.load_encoder)
        engine = Engine(
            bundle,
            store=self.store,
            max_k=settings.max_k,
            threads=settings.threads,
            replay=not tested,
            event_weights=settings.event_weights,
        )
        if tested:
            accept(engine)
            engine.catch_up()
        graph = self.graph_loader(bundle.graph_path) if self.graph_loader and bundle.graph_path else None
        return Model(engine, graph)


class Live:
    """Holds the engine in use, so that another can take its place while requests are answered.

    Whoever answers a request reads ``engine`` once and keeps to it: an answer comes from one model as a whole.
    """

    def __init__(
        self,
        engine: Engine,
        store: LiveStore | None = None,
        graph: GraphService | None = None,
        *,
        audit_share: float = 0.0,
    ) -> None:
        """``audit_share`` of the answers are compared with the dense route, by :class:`Auditor`."""
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
        """Name of the model in use."""
        return self.engine.bundle.model_version

    @property
    def engines(self) -> tuple[Engine, ...]:
        """All engines that answer: the one in use and that of an experiment."""
        return (self.engine,) if self.experiment is None else (self.engine, self.experiment.engine)

    def arm(self, user_id: str | None) -> Arm:
        """Which side of the experiment answers for a user."""
        return Arm() if self.experiment is None else self.experiment.arm(user_id)

    def recommend(self, requests: Sequence[Request]) -> list[Answer | SetRecError]:
        """Answers, each from one engine as a whole."""
        if self.experiment is None:
            return self.engine.recommend(requests, self.auditor)
        return self.experiment.split(requests, self.engine, lambda engine, own: engine.recommend(own, self.auditor))

    def swap(self, model: Model) -> Model:
        """Put ``model`` in use from the next request on; the one before is returned, still usable.

        Raises:
            BundleError: the model has no graph and there are routes that ask for one.
        """
        if self.graph is not None and model.graph is None:
            raise BundleError("the bundle holds no graph, and one is served")
        before = Model(self.engine, self.graph)
        self.engine = model.engine
        self.auditor.begin(model.engine.bundle)
        if self.graph is not None:
            self.graph = model.graph
        metrics.serves(model.engine.bundle.model_version, before.engine.bundle.model_version)
        return before

    def on_close(self, close: Callable[[], None]) -> None:
        """Have ``close`` called, the last given first, when this ends."""
        self._closing.append(close)

    def close(self) -> None:
        """End what runs beside the engine, then the store."""
        while self._closing:
            self._closing.pop()()
        if self.store is not None:
            self.store.close()


class GraphInUse:
    """The graph of the model in use, as a ``GraphService``; made where one is served."""

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
