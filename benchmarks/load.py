"""A load generator that is never the bottleneck: raw HTTP/1.1 over keep-alive connections, requests encoded beforehand.

One process and one event loop; a request costs it about 40 microseconds, so it drives thousands a second while the
servers measured here answer hundreds. It talks to this machine only, and every run is bounded in time.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any
from urllib.parse import urlsplit

import numpy as np

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass
class Load:
    """What came back: seconds of every answered request by status; ``broken`` connections; ``elapsed`` seconds."""

    latencies: dict[int, list[float]] = field(default_factory=dict)
    broken: int = 0
    unsent: int = 0
    elapsed: float = 0.0

    def add(self, status: int, seconds: float) -> None:
        """Count one answer."""
        self.latencies.setdefault(status, []).append(seconds)

    @property
    def statuses(self) -> Counter[int]:
        """Answers by status."""
        return Counter({status: len(times) for status, times in self.latencies.items()})

    @property
    def rps(self) -> float:
        """Good answers a second."""
        return len(self.latencies.get(200, ())) / self.elapsed

    @property
    def failed(self) -> int:
        """Requests that got an answer of the server's own fault other than 503, or none."""
        return self.broken + sum(n for status, n in self.statuses.items() if status >= 500 and status != 503)

    def percentile(self, q: float, status: int = 200) -> float:
        """The ``q``-th percentile of the latency, in milliseconds."""
        times = self.latencies.get(status)
        return 1000 * float(np.percentile(times, q)) if times else float("nan")

    def describe(self) -> dict[str, float]:
        """Rate and percentiles."""
        return {"rps": round(self.rps, 1)} | {f"p{q}_ms": round(self.percentile(q), 2) for q in (50, 95, 99)}


def encode(url: str, body: Any = None, headers: dict[str, str] | None = None, method: str = "POST") -> bytes:
    """A whole HTTP/1.1 request."""
    at = urlsplit(url)
    data = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {at.path or '/'} HTTP/1.1", f"Host: {at.netloc}", f"Content-Length: {len(data)}"]
    lines += ["Content-Type: application/json"] if data else []
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + data


class Connection:
    """One keep-alive connection, opened when first used and again after it broke."""

    def __init__(self, host: str, port: int) -> None:
        if host not in LOOPBACK:
            raise ValueError(f"{host}: load goes to this machine only")
        self.host, self.port = host, port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes, timeout: float = 30.0) -> tuple[int, bytes]:
        """Status and body of the answer.

        Raises:
            OSError, EOFError, TimeoutError: there was none.
        """
        try:
            return await asyncio.wait_for(self._ask(request), timeout)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Drop the connection."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def _ask(self, request: bytes) -> tuple[int, bytes]:
        if self._reader is None or self._writer is None or self._reader.at_eof():
            self._reader, self._writer = await asyncio.open_connection(self.host, self.port)
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        status = int(head[9:12])
        if b"transfer-encoding: chunked" in head:
            return status, await self._chunks(self._reader)
        at = head.find(b"content-length:")
        size = int(head[at + 15 : head.index(b"\r\n", at)]) if at >= 0 else 0
        body = await self._reader.readexactly(size)
        if b"connection: close" in head:
            self.close()
        return status, body

    async def _chunks(self, reader: asyncio.StreamReader) -> bytes:
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
        return body


def closed_loop(requests: Sequence[bytes], url: str, concurrency: int, seconds: float) -> Load:
    """``concurrency`` clients, each asking again as soon as it is answered, for ``seconds``."""
    return asyncio.run(_closed(requests, url, concurrency, seconds))


def open_loop(requests: Sequence[bytes], url: str, rate: float, seconds: float, connections: int = 512) -> Load:
    """``rate`` requests a second whether or not earlier ones were answered, over at most ``connections``.

    A request that finds no free connection is not sent; ``unsent`` counts them.
    """
    return asyncio.run(_open(requests, url, rate, seconds, connections))


async def _closed(requests: Sequence[bytes], url: str, concurrency: int, seconds: float) -> Load:
    at, load, began = urlsplit(url), Load(), time.perf_counter()

    async def client(number: int) -> None:
        connection = Connection(at.hostname or "", at.port or 80)
        own = cycle(requests[number % len(requests) :] + requests[: number % len(requests)])
        while time.perf_counter() - began < seconds:
            await _one(connection, next(own), load)
        connection.close()

    await asyncio.gather(*(client(number) for number in range(concurrency)))
    load.elapsed = time.perf_counter() - began
    return load


async def _open(requests: Sequence[bytes], url: str, rate: float, seconds: float, connections: int) -> Load:
    at, load, began = urlsplit(url), Load(), time.perf_counter()
    free = [Connection(at.hostname or "", at.port or 80) for _ in range(connections)]
    running: set[asyncio.FitTask[None]] = set()
    source = cycle(requests)

    async def send(connection: Connection, request: bytes) -> None:
        await _one(connection, request, load)
        free.append(connection)

    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        if not free:
            load.unsent += 1
            continue
        task = asyncio.create_task(send(free.pop(), next(source)))
        running.add(task)
        task.add_done_callback(running.discard)
    load.elapsed = time.perf_counter() - began
    await asyncio.gather(*running)
    for connection in free:
        connection.close()
    return load


async def _one(connection: Connection, request: bytes, load: Load) -> None:
    began = time.perf_counter()
    try:
        status, _ = await connection.ask(request)
    except (OSError, EOFError, TimeoutError, asyncio.IncompleteReadError):
        load.broken += 1
        await asyncio.sleep(0.01)
        return
    load.add(status, time.perf_counter() - began)
