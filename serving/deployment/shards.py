"""Shards of an index in processes of their own, which Ray spreads over the machines.

They belong to the replica that opened them: they end with it, or when it drops the bundle. A shard that dies is started
again, and what was asked of it is asked again. The bundle must be at the same path on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from serving.retrieval.exact import Hits
from serving.retrieval.shards import Answer, Masks

_RETRIES = 3


class ShardProcess:
    """The actor: an opened shard."""

    def __init__(self, bundle: str, number: int) -> None:
        from setrec.collection import without_collection

        with without_collection():
            from serving.bundle.reader import open_shard

            self._retriever = open_shard(Path(bundle), number)

    def search(self, queries: np.ndarray, *arguments: Any) -> list[Hits]:
        """See :meth:`serving.retrieval.retriever.Retriever.search`."""
        return self._retriever.search(queries, *arguments)


class RemoteShard:
    """A shard in another process; see :class:`serving.retrieval.shards.Shard`."""

    def __init__(self, bundle: Path, number: int) -> None:
        # Without CPUs of its own: the machines that hold the replicas have none to spare.
        kind: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=_RETRIES)(ShardProcess)
        self.actor: Any = kind.options(scheduling_strategy="SPREAD").remote(str(bundle.resolve()), number)

    def start(self, queries: np.ndarray, ks: list[int], excluded: Sequence[np.ndarray], allowed: Masks) -> Answer:
        """See :meth:`serving.retrieval.shards.Shard.start`."""
        asked = self.actor.search.remote(queries, ks, excluded, allowed)
        return lambda: list(ray.get(asked))
