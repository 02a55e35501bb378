"""The layers around every route, on a small application: who gets in, what is refused, what is written down."""

import asyncio
import io
import json
import threading

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.testclient import TestClient

from serving.api.access import middleware
from serving.api.access.authentication import RateLimit, protect
from serving.api.access.tokens import ADMIN, READ, WRITE, issue
from serving.api.routes.probes import add_metrics_route
from serving.runtime.settings import ServingSettings
from serving.telemetry import logs
from serving.telemetry.metrics import REQUESTS
from setrec.errors import ConfigError

LIMITS = {"max_body_bytes": 1000, "max_header_bytes": 1000, "max_in_flight": 2, "retry_after_seconds": 3}


@pytest.fixture
def issued(tmp_path):
    file = tmp_path / "tokens.json"
    return file, {scope: issue(file, f"the-{scope}", [scope]) for scope in ("read", "write", "admin", "metrics")}


def application(settings, request_ids=True):
    app = FastAPI()
    hold = threading.Event()

    @app.get("/v1/users/{user_id}", dependencies=[READ])
    async def user(user_id: str):
        return {"user": user_id}

    @app.post("/v1/echo", dependencies=[WRITE])
    async def echo(request: Request):
        return {"bytes": len(await request.body())}

    @app.get("/v1/slow", dependencies=[READ])
    async def slow():
        await asyncio.to_thread(hold.wait, 10)

    @app.get("/v1/broken", dependencies=[ADMIN])
    async def broken():
        raise RuntimeError("a secret")

    @app.get("/health/live")
    async def live():
        return {}

    add_metrics_route(app)
    protect(app, settings, request_ids=request_ids)
    app.state.hold = hold
    return app


def client_of(settings=None, **changes):
    return TestClient(
        application(settings or ServingSettings(auth="off", **{**LIMITS, **changes})), raise_server_exceptions=False
    )


def refused(response, status, code):
    assert response.status_code == status, response.text
    assert response.json()["error"]["code"] == code
    assert response.json()["error"]["message"]
    return response


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def test_without_a_known_token_nothing_but_probes_is_answered_and_the_body_is_not_read(issued):
    client = client_of(ServingSettings(tokens=issued[0], **LIMITS))
    for headers in ({}, bearer("x"), {"Authorization": issued[1]["read"]}, {"Authorization": "Basic eDp5"}):
        response = refused(client.get("/v1/users/u", headers=headers), 401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
        refused(client.get("/metrics", headers=headers), 401, "unauthorized")
        refused(client.get("/nothing", headers=headers), 401, "unauthorized")
    refused(client.post("/v1/echo", content=b"x" * 5000), 401, "unauthorized")  # not 413: nobody looked
    assert client.get("/health/live").status_code == 200


def test_a_token_opens_the_routes_of_its_scope_and_no_others(issued):
    client = client_of(ServingSettings(tokens=issued[0], **LIMITS))
    routes = {"read": ("GET", "/v1/users/u"), "write": ("POST", "/v1/echo"), "metrics": ("GET", "/metrics")}
    for scope, token in issued[1].items():
        for wanted, (method, path) in routes.items():
            expected = 200 if wanted == scope else 403
            assert client.request(method, path, headers=bearer(token)).status_code == expected, (scope, path)


def test_the_rate_is_limited_for_each_token_by_itself(issued):
    client = client_of(ServingSettings(tokens=issued[0], rate_limit="3/minute", **LIMITS))
    reads = [client.get("/v1/users/u", headers=bearer(issued[1]["read"])) for _ in range(4)]
    assert [response.status_code for response in reads] == [200, 200, 200, 429]
    assert 1 <= int(refused(reads[-1], 429, "too_many_requests").headers["retry-after"]) <= 60
    assert client.post("/v1/echo", headers=bearer(issued[1]["write"])).status_code == 200


def test_an_outage_of_the_shared_counter_refuses_nobody():
    client = client_of(rate_limit="1/minute", rate_limit_storage="redis://127.0.0.1:1")
    assert [client.get("/v1/users/u").status_code for _ in range(3)] == [200] * 3


def test_a_rate_limit_that_makes_no_sense_is_refused_at_the_start():
    with pytest.raises(ConfigError, match="often"):
        RateLimit("often", "memory://")


def test_a_long_body_and_long_headers_are_refused():
    client = client_of()
    assert client.post("/v1/echo", content=b"x" * 1000).json() == {"bytes": 1000}
    refused(client.post("/v1/echo", content=b"x" * 1001), 413, "body_too_large")
    refused(client.post("/v1/echo", content=iter([b"x" * 600] * 2)), 413, "body_too_large")
    refused(client.post("/v1/echo", content=b"", headers={"Content-Length": "9" * 30}), 413, "body_too_large")
    for headers, path in (({"X-Long": "x" * 1000}, "/health/live"), ({}, "/v1/users/" + "x" * 1000)):
        refused(client.get(path, headers=headers), 431, "headers_too_large")


def test_beyond_capacity_the_answer_is_503_at_once_and_those_inside_are_served():
    app = application(ServingSettings(auth="off", **LIMITS))

    async def crowd():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            inside = [asyncio.create_task(client.get("/v1/slow")) for _ in range(2)]
            await asyncio.sleep(0.1)
            shed = [await client.get("/v1/users/u") for _ in range(20)]
            probe = await client.get("/health/live")
            waiting = [not task.done() for task in inside]
            app.state.hold.set()
            return [await task for task in inside], shed, waiting, probe, await client.get("/v1/users/u")

    inside, shed, waiting, probe, after = asyncio.run(crowd())
    assert {response.status_code for response in inside} == {200}
    for response in shed:
        assert refused(response, 503, "overloaded").headers["retry-after"] == "3"
    assert waiting == [True, True]  # nobody waited for those inside
    assert probe.status_code == 200
    assert after.status_code == 200


def test_every_answer_carries_the_headers_that_browsers_and_caches_heed():
    client = client_of()
    for response in (client.get("/v1/users/u"), client.get("/nothing"), client.get("/v1/broken")):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert response.headers["x-request-id"]


@pytest.fixture
def lines(monkeypatch):
    """What is written to standard error, line by line, since last asked."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(logs._LOGGER, "handlers", [])
    monkeypatch.setattr(logs._LOGGER, "propagate", True)
    monkeypatch.setattr(logs._LOGGER, "level", logs._LOGGER.level)
    logs.configure("requests")

    def read():
        text = stream.getvalue()
        stream.seek(0)
        stream.truncate()
        return [json.loads(line) for line in text.splitlines()]

    return read


def test_a_log_line_names_the_route_and_the_caller_and_holds_no_id_and_no_token(issued, lines):
    token = issued[1]["read"]
    client = client_of(ServingSettings(tokens=issued[0], **LIMITS))
    client.get("/v1/users/alice", headers={**bearer(token), "X-Request-Id": "r-1"})
    (line,) = lines()
    assert (line["route"], line["status"], line["caller"]) == ("/v1/users/{user_id}", 200, "the-read")
    assert line["request_id"] == "r-1"
    assert "alice" not in json.dumps(line)
    assert token not in json.dumps(line)
    client_of(ServingSettings(tokens=issued[0], log_ids=True, **LIMITS)).get("/v1/users/alice", headers=bearer(token))
    assert lines()[0]["route"] == "/v1/users/alice"


def test_a_failure_inside_is_a_plain_500_outside_and_a_traceback_in_the_log(lines):
    response = refused(client_of().get("/v1/broken"), 500, "internal")
    assert "secret" not in response.text
    failure, request = lines()
    assert "a secret" in failure["traceback"]
    assert (request["event"], request["status"]) == ("request", 500)


def test_a_caller_cannot_write_lines_or_long_words_into_the_log(lines):
    client = client_of(ServingSettings(auth="off", **LIMITS))
    client.get("/v1/users/u", headers={"X-Request-Id": "x" * 900})
    app = application(ServingSettings(auth="off", **LIMITS), request_ids=False)
    TestClient(app).get("/v1/users/u", headers={"X-Request-Id": "x" * 900})
    assert [len(line["request_id"]) <= 64 for line in lines()] == [True, True]


def count(method, route, status):
    return REQUESTS.labels(method, route, status)._value.get()


def test_answers_are_counted_by_route_and_paths_nobody_knows_are_one_series():
    client = client_of()
    known, unknown = count("GET", "/v1/users/{user_id}", 200), count("GET", "none", 404)
    for number in range(3):
        client.get(f"/v1/users/u{number}")
        client.get(f"/nothing/{number}")
    assert count("GET", "/v1/users/{user_id}", 200) == known + 3
    assert count("GET", "none", 404) == unknown + 3
    text = client.get("/metrics").text
    assert 'setrec_requests_total{method="GET",route="/v1/users/{user_id}",status="200"}' in text
    assert "nothing" not in text


def test_an_error_message_is_one_printable_line_of_bounded_length():
    body = middleware.error_body("code", "a\nb\r\n\tc \ud800 " + "x" * 1000)
    message = body["error"]["message"]
    assert message.startswith("a b c ? xxx")
    assert len(message) == 300
