"""A Ray cluster of several nodes on this machine: each a tree of processes that can be lost at once, like a machine."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    # A node that refuses connections counts as lost after three quarters of a second; one that is merely slow does not.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "250",
    "RAY_health_check_failure_threshold": "3",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONWARNINGS": "ignore",
}
"""For all processes of the cluster, and for the drivers that join it."""
MEMORY = 100 << 20
"""Bytes of a node's object store."""


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def lives(process: psutil.Process) -> bool:
    """Whether it runs; who is dead and only waits to be noticed does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(fulfilled: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Wait, at most ``seconds``.

    Raises:
        TimeoutError: in vain; with the words of ``otherwise``.
    """
    until = time.monotonic() + seconds
    while not fulfilled():
        if time.monotonic() > until:
            raise TimeoutError(otherwise)
        time.sleep(0.01)


class Node:
    """What one ``ray start --block`` has started, and its folder."""

    def __init__(self, cpus: int, *options: str, environment: Mapping[str, str]) -> None:
        # Paths of sockets may have 107 letters: no folder deep down.
        self.folder = Path(tempfile.mkdtemp(prefix="node-", dir="/tmp"))
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--num-cpus={cpus}"),
            *("--disable-usage-stats", f"--temp-dir={self.folder}", f"--object-store-memory={MEMORY}"),
            *("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0", *options),
        ]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT, **environment}, **quiet)

    def tree(self) -> list[psutil.Process]:
        """All of its processes that live, the first one first."""
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        return []

    def kill(self) -> None:
        """End all of it at once, without a farewell."""
        members = self.tree()
        for member in members:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        self.process.wait(30)
        wait_until(lambda: not any(map(lives, members)), 30, "processes outlive their node")
        shutil.rmtree(self.folder, ignore_errors=True)


class RayNodes:
    """A head, where drivers run, and nodes that come and go; leaving the block ends them all.

    ``environment``: what is set in all their processes.
    """

    def __init__(self, head_cpus: int = 1, environment: Mapping[str, str] | None = None) -> None:
        port = free_port()
        head = (f"--port={port}", f"--ray-client-server-port={free_port()}", "--include-dashboard=false")
        self.address = f"127.0.0.1:{port}"
        self.environment = dict(environment or {})
        self.nodes = [Node(head_cpus, "--head", *head, environment=self.environment)]

    def __enter__(self) -> RayNodes:
        try:
            wait_until(self._answers, 120, "the head of the cluster did not start")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in reversed(self.nodes):
            node.kill()

    def add(self, cpus: int = 1) -> Node:
        """Start a node; it joins within seconds."""
        self.nodes.append(Node(cpus, f"--address={self.address}", environment=self.environment))
        return self.nodes[-1]

    def lose(self, node: Node) -> None:
        """Kill a node and all that runs on it."""
        self.nodes.remove(node)
        node.kill()

    def _answers(self) -> bool:
        if self.nodes[0].process.poll() is not None:
            raise RuntimeError("the head of the cluster ended at once")
        host, port = self.address.split(":")
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return True
        return False
