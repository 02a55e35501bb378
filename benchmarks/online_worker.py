"""CPU seconds a request over the ASGI application of whatever version of the packages is first on the path."""

import argparse
import asyncio
import json
import time
from pathlib import Path

try:  # versions in which `serving` was one folder; the newest is asked last, as an installed one stands in for it
    from serving.replica import build
    from serving.settings import ServingSettings
except ImportError:
    from serving.api.application import build
    from serving.runtime.settings import ServingSettings


async def call(app, body: bytes) -> bytes:
    """The body of the answer to one POST, without sockets."""
    sent: list[bytes] = []
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": "/v1/recommend",
        "raw_path": b"/v1/recommend", "query_string": b"", "scheme": "http", "server": ("x", 80), "client": ("x", 1),
        "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    asked = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive():
        return next(asked, {"type": "http.disconnect"})

    async def send(message):
        if message["type"] == "http.response.start":
            assert message["status"] == 200, message
        sent.append(message.get("body", b""))

    await app(scope, receive, send)
    return b"".join(sent)


async def measure(app, bodies: list[bytes], at_once: int) -> float:
    """CPU seconds of this process a request, ``at_once`` requests at a time."""
    began = time.process_time()
    for start in range(0, len(bodies), at_once):
        await asyncio.gather(*(call(app, body) for body in bodies[start : start + at_once]))
    return (time.process_time() - began) / len(bodies)


async def run(options: argparse.Namespace) -> list[float]:
    """One figure for each repeat."""
    app = build(Path(options.bundle), ServingSettings(auth="off"))
    more = json.loads(options.more)
    bodies = [json.dumps({"user_id": user, "k": 10, **more}).encode() for user in options.users.split(",")]
    await measure(app, bodies, options.at_once)
    return [await measure(app, bodies, options.at_once) for _ in range(options.repeats)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("users")
    parser.add_argument("--more", default="{}")
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    print(json.dumps(asyncio.run(run(parser.parse_args()))))
