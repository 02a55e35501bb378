"""An outage writes a few lines, not one per request."""

import logging

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from serving.api.errors import add_errors
from serving.stores import StoreError
from serving.telemetry import logs


@pytest.fixture(autouse=True)
def _unconfigured(monkeypatch):
    monkeypatch.setattr(logs._LOGGER, "propagate", True)  # whatever application was made before


def lines(caplog):
    return [(record.getMessage(), record.fields) for record in caplog.records if record.name == logs._LOGGER.name]


def test_of_like_warnings_one_is_written_in_some_seconds_and_says_how_many_were_left_out(caplog):
    now = [100.0]
    seldom = logs.Seldom(5.0, lambda: now[0])
    for second in range(100, 111):
        now[0] = float(second)
        seldom.warning("away", "refused")
        if second == 103:
            seldom.warning("away", "disk full")
    assert lines(caplog) == [
        ("away", {"error": "refused"}),
        ("away", {"error": "disk full"}),
        ("away", {"error": "refused", "left_out": 4}),
        ("away", {"error": "refused", "left_out": 4}),
    ]


def test_errors_that_never_say_the_same_thing_twice_are_few_lines_too(caplog):
    seldom = logs.Seldom(5.0, lambda: 0.0)
    for number in range(10_000):
        seldom.warning("away", f"error {number}")
    assert len(caplog.records) < 100


def test_requests_refused_while_the_store_is_away_share_a_line(caplog, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(logs, "Seldom", lambda kind=logs.Seldom: kind(clock=lambda: now[0]))
    app = FastAPI()
    add_errors(app, retry_after=1)

    @app.get("/events")
    async def events():
        raise StoreError("/place: disk full")

    client = TestClient(app)
    with caplog.at_level(logging.WARNING):
        assert {client.get("/events").status_code for _ in range(50)} == {503}
        now[0] = 60.0
        client.get("/events")
    said = {"error": "/place: disk full"}
    assert [fields for _, fields in lines(caplog)] == [said, said | {"left_out": 49}]
