"""Routes for rule sets."""

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from serving.api.access.middleware import error_body
from serving.api.access.tokens import READ, WRITE
from serving.api.schemas.recommendations import error_responses
from serving.api.schemas.rules import RulesList, RulesName, RulesPut, RulesRemoved
from serving.engine.rules import RuleSet
from serving.runtime import edits
from serving.runtime.models import Live

_INVALID = "a rule is malformed (`invalid_request`)."
_NO_STORE = "The endpoint was started without a store (`no_store`)"


def add_rules_routes(app: FastAPI, live: Live) -> None:
    """Add ``/v1/rules``."""
    place = "/v1/rules/{name}"

    @app.get(
        "/v1/rules",
        response_model=RulesList,
        responses=error_responses(None, _INVALID),
        tags=["rules"],
        dependencies=[READ],
    )
    async def listed() -> JSONResponse:
        """List all rule sets."""
        engine = live.engine
        with engine.lock:
            sets = dict(engine.state.rules)
        return JSONResponse(
            {"rules": {name: rules.model_dump(mode="json", by_alias=True) for name, rules in sets.items()}}
        )

    @app.put(
        place,
        response_model=RulesPut,
        responses=error_responses(None, _INVALID, f"{_NO_STORE}, or there are too many rule sets (`too_many_items`)."),
        tags=["rules"],
        dependencies=[WRITE],
    )
    async def put(name: RulesName, body: RuleSet) -> JSONResponse:
        """Store a rule set, replacing any of the same name. Idempotent."""
        created = await run_in_threadpool(edits.put_rules, live.engine, name, body)
        return JSONResponse({"name": name, "created": created})

    @app.delete(
        place,
        response_model=RulesRemoved,
        responses=error_responses("There is no such rule set (`unknown_rules`).", _INVALID, f"{_NO_STORE}."),
        tags=["rules"],
        dependencies=[WRITE],
    )
    async def remove(name: RulesName) -> JSONResponse:
        """Remove a rule set."""
        if not await run_in_threadpool(edits.remove_rules, live.engine, name):
            return JSONResponse(error_body("unknown_rules", f"there is no rule set '{name}'"), 404)
        return JSONResponse({"name": name})
