"""Requests made at random from the OpenAPI document, sound and unsound, against the application in this process."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any

import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

# What the document promises; a 503 says "not now" where the document says so.
_ALLOWED = range(200, 500)


def fuzz(app: Any, cases: int, seed: int = 0) -> tuple[Counter[int], list[str]]:
    """Ask ``app`` about at least ``cases`` requests, half of them against the schema of their operation.

    Returns how often each status came, and the requests that were answered with 500 or more.
    """
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    operations = [found.ok() for found in schema.get_all_operations()]
    statuses: Counter[int] = Counter()
    failures: list[str] = []
    while statuses.total() < cases:  # operations without parameters have few cases, so one round is not enough
        share = -(-(cases - statuses.total()) // (2 * len(operations)))
        for operation in operations:
            for mode in GenerationMode.POSITIVE, GenerationMode.NEGATIVE:
                _ask(operation, mode, share, seed, statuses, failures)
        seed += 1
    return statuses, failures


def _ask(
    operation: Any, mode: GenerationMode, examples: int, seed: int, statuses: Counter[int], failures: list[str]
) -> None:
    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        response = case.call()
        statuses[response.status_code] += 1
        if response.status_code not in _ALLOWED:
            failures.append(f"{response.status_code} {case.as_curl_command()[:500]}")

    with suppress(Unsatisfiable):  # there is no wrong request of an operation that takes nothing
        ask()
