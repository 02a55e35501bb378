"""Requests made at random from the OpenAPI document never make the application fail."""

import pytest
from fuzz import fuzz
from serving_helpers import SLOTS, fake_bundle, hybrid_parts, load_fake

from serving.api.access.authentication import OPEN
from serving.api.access.tokens import SCOPES
from serving.api.application import build
from serving.runtime.settings import ServingSettings
from setrec.scoring.hybrid import HybridWeights
from setrec.scoring.reranking import Reranker

WEIGHTS = HybridWeights(slots=SLOTS, components={"transitions_near": 3.0, "text_similarity": 2.0})
LEARNED = Reranker(weights={"score": 1.0, "attributes": 0.3, "popularity": -0.1}, candidates=20)


@pytest.fixture(scope="module")
def application(tmp_path_factory):
    """With a store, releases, an exposure log, components and a second stage, so that every route and step is there."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "releases").mkdir()
    parts = hybrid_parts(WEIGHTS) | {"reranker": LEARNED, "event_weights": {"view": 1.0, "purchase": 3.0}}
    fake_bundle(folder / "bundle", **parts)
    fake_bundle(folder / "releases" / "other", model_version="other", **parts)
    settings = ServingSettings(
        auth="off", store=str(folder / "live.db"), releases=folder / "releases", exposures=folder / "log",
        experiment={"name": "autumn", "bundle": "other", "share": 0.5},
    )  # fmt: skip
    return build(folder / "bundle", settings, load_fake)


def test_no_request_made_from_the_document_makes_the_application_fail(application, request):
    cases = request.config.getoption("--fuzz-cases")
    statuses, failures = fuzz(application, cases)
    assert failures == []
    assert statuses.total() >= cases
    assert {200, 404, 422} <= set(statuses)
    print(f"{statuses.total()} requests: {dict(sorted(statuses.items()))}")


def test_every_route_asks_for_a_scope_or_is_one_of_those_open_to_all(application):
    asked = {}
    for route in application.routes:
        scopes = {getattr(d.dependency, "scope", None) for d in getattr(route, "dependencies", [])} & set(SCOPES)
        asked[route.path] = asked.get(route.path, set()) | scopes
    assert {path for path, scopes in asked.items() if not scopes} == OPEN
    assert asked["/v1/admin/release"] == {"admin"}
    assert asked["/metrics"] == {"metrics"}
    assert asked["/v1/events"] == {"write"}
