"""Figures for Prometheus, at ``/metrics``.

Replicas on one machine write them to memory-mapped files in the folder that ``PROMETHEUS_MULTIPROC_DIR`` names, and
whichever replica is asked adds them up. Every machine of a cluster has its own: scrape each.

Histograms, not averages; labels are few and never an id, so the number of series is bounded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

# The library decides on memory-mapped files when first imported, and wants the folder to be there.
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
LATENCY = Histogram("setrec_request_seconds", "From headers read to answer sent.", ["route"], buckets=_SECONDS)
STAGES = Histogram("setrec_stage_seconds", "A stage of answering a batch.", ["stage"], buckets=_SECONDS)
BATCH = Histogram("setrec_batch_size", "Requests answered together.", buckets=(1, 2, 4, 8, 16, 32, 64))
IN_FLIGHT = Gauge("setrec_in_flight", "Requests inside, computed or waiting.", multiprocess_mode="livesum")
QUEUE = Gauge("setrec_queue_length", "Requests that wait for a batch.", multiprocess_mode="livesum")
REFUSED = Counter("setrec_refused_total", "Requests refused unread: capacity, rate, token.", ["reason"])
FALLBACKS = Counter("setrec_fallbacks_total", "Answers that did not come from the model as asked.", ["reason"])
EVENTS = Counter("setrec_events_written_total", "Events acknowledged.")
RECALL = Gauge(
    "setrec_recall",
    "Of the exact best, the share that the latest audited answers held.",
    multiprocess_mode="mostrecent",
)
AUDITS = Counter("setrec_audits_total", "Answers drawn for an audit, compared or dropped.", ["outcome"])
MODEL = Gauge(
    "setrec_model_info", "Replicas that serve a model version.", ["model_version"], multiprocess_mode="livesum"
)
SHOWN = Counter("setrec_shown_total", "Items answered, by whether they have training interactions.", ["kind"])
SHOWN_POPULARITY = Histogram(
    "setrec_shown_popularity",
    "Mean place by training interactions of what a batch is answered with, from 0, the most popular, to 1.",
    buckets=(0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0),
)
CATALOGUE_SHOWN = Gauge(
    "setrec_catalogue_shown",
    "Share of the bundle's items that were answered since the model was loaded.",
    multiprocess_mode="mostrecent",
)
EXPOSURES = Counter("setrec_exposures_total", "Rows of the exposure log: answers, feedback, dropped.", ["kind"])
RELEASES = Counter("setrec_releases_total", "Changes of the model, by outcome.", ["outcome"])


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Time a block as one stage, and what it marked as parts (:func:`stages.part`) as stages beside it."""
    began = perf_counter()
    with stages.timed() as parts:
        try:
            yield
        finally:
            STAGES.labels(name).observe(perf_counter() - began - sum(parts.values()))
            for other, seconds in parts.items():
                STAGES.labels(other).observe(seconds)


def serves(model_version: str, before: str | None = None) -> None:
    """Say which model this replica serves, and which it served before."""
    if before is not None:
        MODEL.labels(before).set(0)
    MODEL.labels(model_version).set(1)


def exposition() -> tuple[bytes, str]:
    """All figures of the replicas on this machine in Prometheus's text format, and its media type."""
    return generate_latest(_registry()), CONTENT_TYPE_LATEST


def _registry() -> CollectorRegistry:
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return REGISTRY
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return registry
