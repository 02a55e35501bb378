"""Settings of the endpoint."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, StringConstraints, field_validator, model_validator

from serving.runtime.release_state import BundleName
from setrec.settings import LocalPath, Settings

EventType = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]


class ExperimentSettings(Settings):
    """A ``share`` of the users, by hash of their id, is answered by ``bundle`` of the folder of releases. Another
    ``name`` draws other users."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    bundle: BundleName
    share: float = Field(gt=0, lt=1)


class ServingSettings(Settings):
    """Where the endpoint listens, how it batches, whom it answers and what it refuses.

    ``replicas``: processes with a model and an index each (about 0.5 GB), ``threads`` of torch in each, ``cpus``
    reserved by Ray for each; with ``max_replicas`` Serve adds replicas up to that many while more than half of
    ``max_in_flight`` are in each. A batch takes what waits, up to ``max_batch_size``.

    ``max_in_flight`` requests are inside a replica, computed or waiting; the next is told 503 at once, with
    ``Retry-After: retry_after_seconds``. Divided by a replica's requests a second it is the longest wait: 64 at 500 a
    second are 0.13 s. Limits of a request: ``max_body_bytes`` (413), ``max_header_bytes`` (431), ``max_history`` items,
    ``max_k`` and ``max_events`` (422).

    ``auth``: ``tokens`` asks for a bearer token with the scope of the route; ``off`` answers anyone and is refused but
    on a loopback address. ``tokens``: the file of token hashes; ``null`` reads the variable ``SETREC_TOKENS``.
    ``rate_limit`` per token (per address with ``auth`` off), as "100/second" or "5000/minute" (429), is counted in
    ``rate_limit_storage``: ``memory://`` is a replica's own, so n replicas let n times as much through;
    ``redis://HOST:PORT`` is shared and costs a round trip per request.

    ``store`` holds events, item changes and erasures: the path of an SQLite file, for the replicas of one machine, or a
    Redis URL, for those of several; ``null`` serves the bundle's own histories alone. ``releases``: a directory of
    bundles that ``POST /v1/admin/release`` may switch to; it is written to (``.state``), and must be shared where
    replicas are on several machines. ``follow``: a URI such as ``s3://bucket/nightly/releases``; what becomes current
    there is brought into ``releases`` and served, without a request; for ``setrec serve``. ``audit_share``: how many of
    the answers are compared with scores of all items, for the metric ``setrec_recall``, unless search is exact anyway;
    each takes a tenth of a second of a core, when it is free, at a million items.

    ``event_weights`` by type of event, beside those of the bundle and before these; see
    :mod:`setrec.data.events`. 0 passes events over, types that neither names weigh 1, and a ``dislike`` -1.

    ``verify_key``: a public key; bundles whose manifests its private key did not sign are refused, at start and at a
    release. ``exposures``: a directory in which answers and feedback are logged as Parquet files; ``null`` logs none.
    ``experiment``: a second bundle for a share of the users; it takes the memory of a second model.

    ``log``: ``errors`` writes failures alone, ``requests`` one JSON line per request; without ``log_ids`` no line holds
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
        return "off" if value is False else value  # what YAML makes of a bare `off`

    @model_validator(mode="after")
    def _parts_agree(self) -> ServingSettings:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError("max_replicas is less than replicas")
        if self.experiment is not None and self.releases is None:
            raise ValueError("experiment: its bundle is one of `releases`, which is not set")
        if self.follow is not None and self.releases is None:
            raise ValueError("follow: bundles are brought into `releases`, which is not set")
        if self.auth == "off" and not is_loopback(self.host):
            raise ValueError(f"auth off is for a loopback address, and {self.host} is none: make a token instead")
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``; names but ``localhost`` are not looked up and count as no."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
