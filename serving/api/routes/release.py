"""Routes for operators: query the served bundle, and release another one."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from serving.api.access.middleware import error_body
from serving.api.access.tokens import ADMIN
from serving.api.schemas.recommendations import ErrorResponse, error_responses
from serving.runtime.models import Live, MakesReleases
from serving.runtime.release_state import BundleName, Refusal, ReleaseError, UnderWayError, UnknownBundleError

_PATIENCE_SECONDS = 30.0  # less than HAProxy's time-out
_UNKNOWN = "There is no such bundle in the folder (`unknown_bundle`)."


class ReleaseRequest(BaseModel):
    """The name of a bundle folder; ``null`` returns to the bundle that the endpoint was started with."""

    model_config = ConfigDict(extra="forbid")

    bundle: BundleName | None = Field(examples=["2026-11-24"])


class ReleaseAnswer(BaseModel):
    """The bundle that this replica serves; the other replicas load it next, one at a time."""

    model_config = ConfigDict(protected_namespaces=())

    status: str = Field(description="`serving`, or `loading`: the new bundle is not in use yet; query again.")
    bundle: str | None = Field(description="`null`: the bundle that the endpoint was started with.")
    model_version: str
    before: str | None = Field(description="The bundle served before.")
    refused: Refusal | None = Field(description="The last failed release, if none succeeded since.")


def add_release_routes(app: FastAPI, live: Live, releases: MakesReleases) -> None:
    """Add ``/v1/admin/release``. A release runs on a separate thread, so that requests are answered meanwhile."""
    responses = error_responses(_UNKNOWN, "the release was refused, with the reason (`release_refused`).")
    responses[409] = {"model": ErrorResponse, "description": "Another release is under way (`release_under_way`)."}
    responses[202] = {"model": ReleaseAnswer, "description": "The bundle is still being loaded."}

    def answer(status: str) -> dict[str, object]:
        state = releases.state
        return ReleaseAnswer(
            status=status,
            bundle=state.bundle,
            model_version=live.model_version,
            before=state.before,
            refused=state.refused,
        ).model_dump()

    @app.get("/v1/admin/release", response_model=ReleaseAnswer, tags=["operations"], dependencies=[ADMIN])
    async def released() -> JSONResponse:
        """Return the served bundle."""
        return JSONResponse(answer("serving"))

    @app.post(
        "/v1/admin/release",
        response_model=ReleaseAnswer,
        responses=responses,
        tags=["operations"],
        dependencies=[ADMIN],
    )
    async def release(body: ReleaseRequest) -> JSONResponse:
        """Verify a bundle and serve it in place of the current one, which stays in use on any failure."""
        made = asyncio.create_task(asyncio.to_thread(releases.release, live, body.bundle))
        made.add_done_callback(lambda task: task.cancelled() or task.exception())  # reported by GET if no request waits
        try:
            await asyncio.wait_for(asyncio.shield(made), _PATIENCE_SECONDS)
        except TimeoutError:
            return JSONResponse(answer("loading"), 202)
        except ReleaseError as error:
            code, status = _code_and_status(error)
            return JSONResponse(error_body(code, str(error)), status)
        return JSONResponse(answer("serving"))


def _code_and_status(error: ReleaseError) -> tuple[str, int]:
    if isinstance(error, UnderWayError):
        return "release_under_way", 409
    return ("unknown_bundle", 404) if isinstance(error, UnknownBundleError) else ("release_refused", 422)
