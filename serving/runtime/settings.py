"""Settings of the endpoint."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, StringConstraints, field_validator, model_validator

from serving.runtime.release_state import BundleName
from setrec.settings import LocalPath, Settings

EventType = Annotated[str, StringConstraints(pattern=r"^[^\s\x00-\x1f\x7f]{1,64}$")]


class ExperimentSettings(Settings):
    """Settings of an experiment: ``bundle`` of the folder of releases answers a ``share`` of the users, by hash of
    their id. Another ``name`` selects other users."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    bundle: BundleName
    share: float = Field(gt=0, lt=1)


class ServingSettings(Settings):
    """Settings of the endpoint: address, replicas, batching, access and limits.

    ``replicas``: processes with a model and an index each (about 0.5 GB), ``threads`` of torch in each, ``cpus``
    reserved by Ray for each; with ``max_replicas`` Serve adds replicas up to that many while more than half of
    ``max_in_flight`` are in each. A batch consists of the waiting requests, up to ``max_batch_size``.

    ``max_in_flight``: maximum number of requests in a replica, computed or waiting; further ones get 503 immediately,
    with ``Retry-After: retry_after_seconds``. Divided by a replica's requests a second it is the longest wait: 64 at
    500 a second are 0.13 s. Limits of a request: ``max_body_bytes`` (413), ``max_header_bytes`` (431), ``max_history``
    items, ``max_k`` and ``max_events`` (422).

    ``user_cache_bytes``: size of a cache, in each replica, of what the model has read of users' histories, so that a
    request reads only newer items; 0 for none. Only for a causal backbone; an experiment's bundle has another cache.

    ``shard_processes``: whether each shard of an index (``retriever.shards``) is searched in a process of its own, for
    each replica, on the machines of the Ray cluster in turn, and not in the replica.

    ``auth``: ``tokens`` requires a bearer token with the scope of the route; ``off`` answers all callers and is only
    allowed on a loopback address. ``tokens``: the file of token hashes; ``null`` reads the variable ``SETREC_TOKENS``.
    ``rate_limit`` per token (per address with ``auth`` off), as "100/second" or "5000/minute" (429), is counted in
    ``rate_limit_storage``: ``memory://`` is separate for each replica, so n replicas allow n times as much;
    ``redis://HOST:PORT`` is shared and costs a round trip per request.

    ``store`` stores events, item changes and erasures: the path of an SQLite file, for the replicas of one machine, or
    a Redis URL, for those of several; ``null`` serves the bundle's histories only. ``releases``: a directory of bundles
    that ``POST /v1/admin/release`` may switch to; it must be writable (``.state``), and shared if replicas are on
    several machines. ``follow``: a URI such as ``s3://bucket/nightly/releases``; the current release there is copied
    into ``releases`` and served automatically; for ``setrec serve``. ``audit_share``: share of the answers that are
    compared with scores of all items, for the metric ``setrec_recall``, unless search is exact; each takes a tenth of a
    second of an idle core at a million items.

    ``event_weights`` by type of event, in addition to those of the bundle, with precedence; see
    :mod:`setrec.data.events`. Events of weight 0 are ignored; types in neither weigh 1, and a ``dislike`` -1.

    ``verify_key``: a public key; bundles whose manifests are not signed with its private key are refused, at start and
    at a release. ``exposures``: a directory in which answers and feedback are logged as Parquet files; ``null`` logs
    none.
    ``experiment``: a second bundle for a share of the users, with the memory of a second model.

    ``log``: ``errors`` logs failures only, ``requests`` one JSON line per request; without ``log_ids`` no line contains
    an id of a user or item.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    replicas: int = Field(default=1, ge=1)
    max_replicas: int | None = Field(default=None, ge=1)
    threads: int = Field(default=1, ge=1)
    cpus: float = Field(default=1.0, ge=0)
    max_batch_size: int = Field(default=32, ge=1)
    max_in_flight: int = Field(default=64, ge=1)
    retry_after_seconds: int = Field(default=1, ge=1)
    max_body_bytes: int = Field(default=64 * 1024, ge=1)
    max_header_bytes: int = Field(default=8 * 1024, ge=256)
    max_history: int = Field(default=1000, ge=1)
    max_k: int = Field(default=100, ge=1)
    max_events: int = Field(default=500, ge=1)
    user_cache_bytes: int = Field(default=0, ge=0)
    shard_processes: bool = False
    auth: Literal["tokens", "off"] = "tokens"
    tokens: LocalPath | None = None
    rate_limit: str | None = None
    rate_limit_storage: str = Field(default="memory://", pattern=r"^(memory|rediss?)://")
    log: Literal["errors", "requests"] = "errors"
    log_ids: bool = False
    store: str | None = Field(default=None, min_length=1)
    releases: LocalPath | None = None
    follow: str | None = Field(default=None, pattern=r"^[a-zA-Z][a-zA-Z0-9+.-]+://.")
    verify_key: LocalPath | None = None
    event_weights: dict[EventType, FiniteFloat] = Field(default_factory=dict)
    exposures: LocalPath | None = None
    experiment: ExperimentSettings | None = None
    audit_share: float = Field(default=0.001, ge=0, le=1)
    start_timeout_seconds: float = Field(default=120.0, gt=0)

    @field_validator("auth", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML's value of a bare `off`

    @model_validator(mode="after")
    def _parts_agree(self) -> ServingSettings:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError("max_replicas is less than replicas")
        if self.experiment is not None and self.releases is None:
            raise ValueError("experiment: its bundle is one of `releases`, which is not set")
        if self.follow is not None and self.releases is None:
            raise ValueError("follow: bundles are brought into `releases`, which is not set")
        if self.auth == "off" and not is_loopback(self.host):
            raise ValueError(f"auth off requires a loopback address, unlike {self.host}: create a token instead")
        return self


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach ``host``; false for names other than ``localhost``, without a
    lookup."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
