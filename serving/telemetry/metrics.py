"""Prometheus metrics, at ``/metrics``.

Replicas on one machine write them to memory-mapped files in the folder ``PROMETHEUS_MULTIPROC_DIR``, and the replica
that answers adds them up. Every machine of a cluster has separate metrics: scrape each.

Metrics are histograms, not averages; labels are few and never ids, so the number of series is bounded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from time import perf_counter

# The library chooses memory-mapped files when first imported, and requires the folder to exist.
if _folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
    Path(_folder).mkdir(mode=0o700, parents=True, exist_ok=True)

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from serving.telemetry import stages

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

REQUESTS = Counter("setrec_requests_total", "Answers, by route and status.", ["method", "route", "status"])
LATENCY = Histogram(
    "setrec_request_seconds", "Time from reading the headers to sending the answer.", ["route"], buckets=_SECONDS
)
STAGES = Histogram("setrec_stage_seconds", "Time of a stage of answering a batch.", ["stage"], buckets=_SECONDS)
BATCH = Histogram("setrec_batch_size", "Requests per batch.", buckets=(1, 2, 4, 8, 16, 32, 64))
IN_FLIGHT = Gauge("setrec_in_flight", "Requests in progress, computed or waiting.", multiprocess_mode="livesum")
QUEUE = Gauge("setrec_queue_length", "Requests waiting for a batch.", multiprocess_mode="livesum")
REFUSED = Counter("setrec_refused_total", "Requests refused without reading them: capacity, rate, token.", ["reason"])
FALLBACKS = Counter("setrec_fallbacks_total", "Answers with a fallback.", ["reason"])
EVENTS = Counter("setrec_events_written_total", "Events acknowledged.")
RECALL = Gauge(
    "setrec_recall",
    "Recall of the latest audited answers against exact search.",
    multiprocess_mode="mostrecent",
)
AUDITS = Counter("setrec_audits_total", "Answers sampled for an audit, compared or dropped.", ["outcome"])
MODEL = Gauge(
    "setrec_model_info", "Replicas that serve a model version.", ["model_version"], multiprocess_mode="livesum"
)
SHOWN = Counter("setrec_shown_total", "Items answered, by whether they have training interactions.", ["kind"])
SHOWN_POPULARITY = Histogram(
    "setrec_shown_popularity",
    "Mean popularity rank of the items in a batch's answers, from 0, the most popular, to 1.",
    buckets=(0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0),
)
CATALOGUE_SHOWN = Gauge(
    "setrec_catalogue_shown",
    "Share of the bundle's items in answers since the model was loaded.",
    multiprocess_mode="mostrecent",
)
USER_CACHE = Counter("setrec_user_cache_total", "Histories read with the cache of users: hit or miss.", ["outcome"])
USER_CACHE_BYTES = Gauge("setrec_user_cache_bytes", "Size of the cache of users.", multiprocess_mode="livesum")
EXPOSURES = Counter("setrec_exposures_total", "Rows of the exposure log: answers, feedback, dropped.", ["kind"])
RELEASES = Counter("setrec_releases_total", "Changes of the model, by outcome.", ["outcome"])


# A child is found again in a third of the time.
requests, latency, stage_seconds = cache(REQUESTS.labels), cache(LATENCY.labels), cache(STAGES.labels)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Time a block as one stage, and its parts (:func:`stages.part`) as separate stages."""
    began = perf_counter()
    with stages.timed() as parts:
        try:
            yield
        finally:
            stage_seconds(name).observe(perf_counter() - began - sum(parts.values()))
            for other, seconds in parts.items():
                stage_seconds(other).observe(seconds)


def serves(model_version: str, before: str | None = None) -> None:
    """Set the model version that this replica serves, and the previous one."""
    if before is not None:
        MODEL.labels(before).set(0)
    MODEL.labels(model_version).set(1)


def exposition() -> tuple[bytes, str]:
    """Return all metrics of the replicas on this machine in Prometheus's text format, and its media type."""
    return generate_latest(_registry()), CONTENT_TYPE_LATEST


def _registry() -> CollectorRegistry:
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return REGISTRY
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return registry
