"""Settings of the endpoint."""

from __future__ import annotations

from pydantic import Field

from setrec.settings import Settings


class ServingSettings(Settings):
    """Where the endpoint listens, how it batches, and what it refuses.

    ``replicas``: processes with a model and an index each (about 0.5 GB), ``threads`` of torch in each, ``cpus``
    reserved by Ray for each. A batch takes what waits, up to ``max_batch_size``, after at most ``batch_wait_seconds``;
    0 never makes a lone request wait, and under load batches form while the one before is computed.
    ``max_ongoing_requests`` are inside a replica, ``max_queued_requests`` wait in front of them, the rest is told 503
    at once. Limits of a request: ``max_body_bytes`` (413), ``max_history`` items and ``max_k`` (422).
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    replicas: int = Field(default=1, ge=1)
    threads: int = Field(default=1, ge=1)
    cpus: float = Field(default=1.0, ge=0)
    max_batch_size: int = Field(default=32, ge=1)
    batch_wait_seconds: float = Field(default=0.0, ge=0, le=1)
    max_ongoing_requests: int = Field(default=128, ge=1)
    max_queued_requests: int = Field(default=256, ge=1)
    max_body_bytes: int = Field(default=64 * 1024, ge=1)
    max_history: int = Field(default=1000, ge=1)
    max_k: int = Field(default=100, ge=1)
    start_timeout_seconds: float = Field(default=120.0, gt=0)
