"""The current release of all replicas, as stored on disk, and the errors of releases."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from setrec.errors import SetRecError
from setrec.settings import Settings

# A plain name cannot lead out of the folder: no separator, no dot in front.
BundleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class ReleaseError(SetRecError):
    """A failed release; the previous model stays in use."""


class UnderWayError(ReleaseError):
    """Another release is in progress, here or in other replicas."""


class UnknownBundleError(ReleaseError):
    """The folder contains no bundle of that name."""


class Refusal(Settings):
    """The bundle of a failed release, and the reason."""

    bundle: BundleName | None
    reason: str


class ReleaseState(Settings):
    """The current release of all replicas: ``bundle`` of the folder, ``None`` for the one the endpoint was started
    with.

    ``number`` increases with every change. ``over``: version of the model the endpoint was started with; a state over
    another version is left from an earlier endpoint and is ignored.
    """

    over: str
    number: int = Field(default=0, ge=0)
    bundle: BundleName | None = None
    version: str
    before: BundleName | None = None
    refused: Refusal | None = None
