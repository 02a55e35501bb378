"""The programs of docs/clients.md against a live endpoint."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from served import Served
from serving_helpers import fake_bundle, hybrid_parts, load_fake

from serving.api.access.tokens import issue
from serving.api.application import build
from serving.runtime.settings import ServingSettings
from setrec.scoring.hybrid import HybridWeights

DOCUMENT = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
PROGRAMS = dict(re.findall(r"```(bash|python|javascript)\n(.*?)```", DOCUMENT, re.DOTALL))
RUN = {"bash": ("curl", ["bash", "-c"]), "python": (sys.executable, [sys.executable, "-c"])}
RUN["javascript"] = "node", ["node", "-e"]
USERS = {"bash": "ann", "python": "bob", "javascript": "eve"}
WEIGHTS = HybridWeights(slots={"collaborative": 1.0, "semantic": 0.5}, components={"transitions_near": 3.0})


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    """Address and token of an endpoint with tokens, a store and an exposure log."""
    place = tmp_path_factory.mktemp("clients")
    fake_bundle(place / "b", **hybrid_parts(WEIGHTS))
    token = issue(place / "tokens.json", "shop", ["read", "write"])
    settings = ServingSettings(tokens=place / "tokens.json", store=str(place / "live.db"), exposures=place / "log")
    served = Served(build(place / "b", settings, load_fake))
    yield served.url, token
    served.close()


@pytest.mark.parametrize("language", list(RUN))
def test_a_program_of_the_documentation_gets_recommendations_and_tells_of_a_click(endpoint, language):
    needed, command = RUN[language]
    if shutil.which(needed) is None:
        pytest.skip(f"there is no {needed}")
    url, token = endpoint
    environment = {**os.environ, "SETREC_URL": url, "SETREC_TOKEN": token}
    done = subprocess.run([*command, PROGRAMS[language]], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    bearer = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=url, headers=bearer) as client:
        answer = client.post("/v1/recommend", json={"user_id": USERS[language], "k": 3}).json()
        past = client.get(f"/v1/users/{USERS[language]}/history").json()["items"]
    assert done.stdout.split() == [item["item_id"] for item in answer["items"]]
    assert {(item["item_id"], item["type"]) for item in past} == {("item-3", "view"), ("item-8", "purchase")}


@pytest.mark.parametrize("language", list(RUN))
def test_a_program_says_that_it_was_refused(endpoint, language):
    needed, command = RUN[language]
    if shutil.which(needed) is None:
        pytest.skip(f"there is no {needed}")
    environment = {**os.environ, "SETREC_URL": endpoint[0], "SETREC_TOKEN": "wrong"}
    done = subprocess.run([*command, PROGRAMS[language]], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "401" in done.stderr


def test_every_request_of_the_documentation_is_one_that_the_endpoint_describes(endpoint):
    paths = json.loads(httpx.get(f"{endpoint[0]}/openapi.json").text)["paths"]
    asked = set(re.findall(r'["L](/v1/[a-z/]+)"', "".join(PROGRAMS.values())))
    assert asked == {"/v1/events", "/v1/recommend", "/v1/feedback"}
    assert asked <= set(paths)
