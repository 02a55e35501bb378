"""Recommendations without a server: the options of all requests, and one answer from a bundle."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from serving.bundle.reader import Bundle
from serving.engine.engine import Engine, Request
from serving.retrieval.filters import Filter
from setrec.errors import ConfigError


@dataclass(frozen=True)
class AnswerOptions:
    """The options of all rows. ``unknown_items`` of a given history are refused or skipped; ``popular``: whether a user
    without a known history gets popular items, or is rejected; ``filter``: as for the endpoint, in JSON."""

    k: int = 10
    exclude_history: bool = True
    unknown_items: Literal["refuse", "skip"] = "refuse"
    popular: bool = True
    filter: str | None = None

    def parsed_filter(self) -> Filter | None:
        """Return the parsed filter.

        Raises:
            ConfigError: it is not a filter.
        """
        if self.filter is None:
            return None
        try:
            return TypeAdapter[Filter](Filter).validate_json(self.filter)
        except ValidationError as error:
            raise ConfigError(f"--filter: {error.errors()[0]['msg']}") from error


def recommend_once(bundle: Path, request: Request, *, clip: bool = False) -> dict[str, Any]:
    """Return one answer from a bundle, as the endpoint does; ``clip``: return all items if the catalogue is smaller
    than ``k``.

    Raises:
        UnknownUserError: the bundle does not contain the user. The endpoint returns popular items instead; here users
            cannot be new, so the id is wrong.
    """
    opened = Bundle.open(bundle)
    if clip:
        request = replace(request, k=min(request.k, len(opened.catalog)))
    if request.user_id is not None:
        opened.histories.row(request.user_id)
    return asdict(Engine(opened).recommend_one(request))
