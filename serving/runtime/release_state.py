"""Which bundle all replicas serve, as it is kept on disk, and why a release may fail."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from setrec.errors import SetRecError
from setrec.settings import Settings

# A plain name cannot lead out of the folder: no separator, no dot in front.
BundleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class ReleaseError(SetRecError):
    """A release that was not made; the model before is in use."""


class UnderWayError(ReleaseError):
    """Another release is being made, or other replicas still take one up."""


class UnknownBundleError(ReleaseError):
    """The folder holds no bundle of that name."""


class Refusal(Settings):
    """What was not released, and why."""

    bundle: BundleName | None
    reason: str


class ReleaseState(Settings):
    """What all replicas serve: ``bundle`` of the folder, ``None`` for the one the endpoint was started with.

    ``number`` grows with every change. ``over``: version of the model the endpoint was started with; a state over
    another one was left by an earlier endpoint and means nothing.
    """

    over: str
    number: int = Field(default=0, ge=0)
    bundle: BundleName | None = None
    version: str
    before: BundleName | None = None
    refused: Refusal | None = None
