"""Routes for the catalogue and the model."""

from typing import Annotated

from fastapi import FastAPI, Query
from starlette.concurrency import run_in_threadpool

from serving.api.access.tokens import READ
from serving.api.schemas.catalogue import FoundItem, FoundItems, ModelAnswer, RecallAnswer
from serving.api.schemas.recommendations import error_responses
from serving.runtime.models import Live

_VALUES = 50
_INVALID = "a parameter is missing or out of range (`invalid_request`)."


def add_catalogue_routes(app: FastAPI, live: Live) -> None:
    """Add ``GET /v1/items`` and ``GET /v1/model``."""

    @app.get(
        "/v1/items",
        response_model=FoundItems,
        responses=error_responses(None, _INVALID),
        tags=["catalogue"],
        dependencies=[READ],
    )
    async def search(
        query: Annotated[str, Query(min_length=1, max_length=200, description="A part of the title, in any case.")],
        limit: Annotated[int, Query(ge=1, le=100, description="How many items.")] = 20,
    ) -> FoundItems:
        """Search items by title."""
        engine = live.engine
        found = await run_in_threadpool(engine.search, query, limit)
        items = [FoundItem(item_id=item_id, title=title, attributes=attributes) for item_id, title, attributes in found]
        return FoundItems(model_version=engine.bundle.model_version, items=items)

    @app.get(
        "/v1/model",
        response_model=ModelAnswer,
        responses=error_responses(None, _INVALID),
        tags=["catalogue"],
        dependencies=[READ],
    )
    async def model() -> ModelAnswer:
        """Describe the served model, the names that requests may use, and the recall of answers."""
        return await run_in_threadpool(_model, live)


def _model(live: Live) -> ModelAnswer:
    engine, bundle = live.engine, live.engine.bundle
    agreement = bundle.manifest.agreement
    with engine.lock:
        state = engine.state
        alive, new = state.index.alive, state.new
        return ModelAnswer(
            model_version=bundle.model_version,
            created=bundle.manifest.created,
            items=int(alive.sum()),
            new_items=int((alive & new).sum()),
            live_items=len(state.fields),
            users=len(bundle.histories),
            retriever=bundle.retriever.kind,
            terms=list(engine.terms),
            attributes=state.attributes.common(_VALUES),
            rules=sorted(state.rules),
            recall=RecallAnswer(
                at_export=None if agreement is None else agreement.recall,
                low=None if agreement is None else agreement.low,
                high=None if agreement is None else agreement.high,
                queries=0 if agreement is None else agreement.queries,
                live=live.auditor.recall,
            ),
        )
