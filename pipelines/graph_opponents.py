"""The opponents of the graph language model, trained in the same run on the same data."""

from __future__ import annotations

import numpy as np

from nodetok.tasks import Task
from pipelines.graph_config import GraphConfig

Results = dict[str, list[dict[str, np.ndarray]]]


def run(task: Task, config: GraphConfig) -> Results:
    """Per-example metrics by system and seed; empty where a task has no opponent."""
    return {}
