"""The route for impressions and clicks."""

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from serving.api.access.middleware import error_body
from serving.api.access.tokens import WRITE
from serving.api.schemas.feedback import FeedbackAnswer, FeedbackBody
from serving.api.schemas.recommendations import error_responses
from serving.runtime.experiments.exposures import Feedback
from serving.runtime.models import Live

_ERRORS = error_responses(
    None,
    "a field is missing or out of range (`invalid_request`).",
    "The endpoint was started without `exposures` (`no_exposure_log`).",
)


def add_feedback_route(app: FastAPI, live: Live) -> None:
    """Add ``POST /v1/feedback``."""

    @app.post("/v1/feedback", response_model=FeedbackAnswer, responses=_ERRORS, tags=["live"], dependencies=[WRITE])
    async def feedback(body: FeedbackBody) -> JSONResponse:
        """Log which items of an answer were seen and clicked."""
        if live.exposures is None:
            return JSONResponse(error_body("no_exposure_log", "the endpoint was started without `exposures`"), 409)
        live.exposures.log_feedback(body.answer_id, [Feedback(event.type, event.item_id) for event in body.events])
        return JSONResponse({"accepted": len(body.events)})
