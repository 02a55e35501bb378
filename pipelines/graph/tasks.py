"""Loading of tasks from folders of tables; texts become feature vectors if an encoder is configured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from nodetok import files
from nodetok.graph import Graph
from nodetok.knowledge.neighbours import hashed_encoder
from nodetok.language.interface import Task
from nodetok.tasks.classification import classification
from nodetok.tasks.completion import completion
from nodetok.tasks.edge_classification import edge_classification
from nodetok.tasks.links import links
from nodetok.tasks.nlgraph import Problem, nlgraph
from nodetok.tasks.stance import stance
from nodetok.tasks.structure import structure
from pipelines.common.progress import bar
from pipelines.graph.config import GraphConfig
from setrec.data import columns
from setrec.data.columns import Column
from setrec.data.formats import read_raw
from setrec.errors import ConfigError, DataError
from setrec.text.encoder import TextEncoder

Loader = Callable[[Path, GraphConfig, Path], Task]
"""From a folder of tables, the settings and the folder of cached text vectors to a task."""


def load_task(folder: Path, config: GraphConfig, cache: Path) -> Task:
    """Load the task ``config.name`` from the tables in ``folder``, each Parquet, CSV or JSON lines. ``cache``: folder
    of text vectors.

    Raises:
        DataError: a file is missing or holds something that cannot be used.
    """
    return LOADERS[config.name](folder, config, cache)


def read_graph(folder: Path, config: GraphConfig) -> files.GraphData:
    """Read the graph in ``folder``.

    Raises:
        DataError: it cannot be used, or lacks the weights that ``tokenizer.distances.kind`` measures.
    """
    data = files.read_graph(folder, config.data, directed=config.directed)
    _need_weights(data.graph, config, folder)
    return data


def _need_weights(graph: Graph, config: GraphConfig, folder: Path) -> None:
    if config.tokenizer.distances.kind == "weighted" and graph.weights is None:
        reason = "tokenizer.distances.kind=weighted needs lengths of edges; for others name data.columns"
        raise DataError(reason, file=folder / "edges", column="weight")


def _structure(folder: Path, config: GraphConfig, cache: Path) -> Task:
    if config.directed:
        raise ConfigError("directed=true: structural questions are about the graph without directions")
    return structure(read_graph(folder, config).graph, config.tokenizer)


def _links(folder: Path, config: GraphConfig, cache: Path) -> Task:
    given = read_graph(folder, config)
    return links(given.graph, _features(given, config, cache), config.tokenizer)


def _classification(folder: Path, config: GraphConfig, cache: Path) -> Task:
    data = read_graph(folder, config)
    if data.labels is None or data.split is None:
        raise DataError("node classification needs the columns 'label' and 'split'", file=folder / "nodes")
    encode = None
    if config.model.identity == 0 and data.texts is not None:
        encode = _text_encoder(data.texts, config, cache)
    features = _features(data, config, cache) if encode is None or data.texts is None else encode(data.texts)
    descriptions = _descriptions(folder, data.labels)
    return classification(data.graph, data.labels, data.split, features, config.tokenizer, descriptions, encode)


def _edge_classification(folder: Path, config: GraphConfig, cache: Path) -> Task:
    data = files.read_edges(folder, config.data, directed=config.directed)
    _need_weights(data.nodes.graph, config, folder)
    features = _features(data.nodes, config, cache)
    return edge_classification(data, features, config.tokenizer, _descriptions(folder, data.labels))


def _completion(folder: Path, config: GraphConfig, cache: Path) -> Task:
    data = files.read_triples(folder, config.data)
    features = None if data.texts is None else _vectors(data.texts, config, cache)
    return completion(
        data.graph, data.train, data.valid, data.test, data.relations, features, config.tokenizer,
        texts_of=data.texts, minutes=config.learning.minutes,
    )  # fmt: skip


def _stance(folder: Path, config: GraphConfig, cache: Path) -> Task:
    names = ("belief", "argument", "stance", "graph", "split")
    encode = None if config.encoder.path is None else lambda texts: _needed(_vectors(texts, config, cache))
    with _in(path := files.require_table(folder, "examples")):
        belief, argument, stances, graph, split = _texts(path, *names)
        return stance(belief, argument, stances, graph, split, encode, config.tokenizer)


def _nlgraph(problem: Problem) -> Loader:
    def load(folder: Path, config: GraphConfig, cache: Path) -> Task:
        with _in(path := files.require_table(folder, "questions")):
            task, split, question, answer = _texts(path, "task", "split", "question", "answer")
            mine = [row for row, kind in enumerate(task) if kind == problem]
            if not mine:
                raise DataError(f"no question of the task '{problem}'")
            questions, answers, parts = ([column[r] for r in mine] for column in (question, answer, split))
            return nlgraph(questions, answers, parts, problem, config.tokenizer, rows=mine)

    return load


LOADERS: dict[str, Loader] = {
    "structure": _structure,
    "classification": _classification,
    "edge_classification": _edge_classification,
    "links": _links,
    "completion": _completion,
    "connectivity": _nlgraph("connectivity"),
    "cycle": _nlgraph("cycle"),
    "shortest_path": _nlgraph("shortest_path"),
    "stance": _stance,
}
"""Functions that read the tables of each task; the task's defaults are in :mod:`pipelines.graph.config`."""


def _descriptions(folder: Path, labels: Sequence[str]) -> dict[str, str] | None:
    """Return the descriptions of the classes from the optional table ``classes`` (``label``, ``description``)."""
    path = files.find_table(folder, "classes")
    if path is None:
        return None
    with _in(path):
        names, texts = _texts(path, "label", "description")
        known = set(labels)
        for row, name in enumerate(names):
            if name not in known:
                raise DataError(f"nothing has the class {name!r}", row=row + 1, column="label")
            if name in names[:row]:
                raise DataError(f"the class {name!r} repeats", row=row + 1, column="label")
    return dict(zip(names, texts, strict=True))


def _features(data: files.GraphData, config: GraphConfig, cache: Path) -> np.ndarray | None:
    """Return the features of the nodes, or vectors of their texts if an encoder is configured."""
    if data.features is not None or data.texts is None:
        return data.features
    return _vectors(data.texts, config, cache)


def _text_encoder(texts: Sequence[str], config: GraphConfig, cache: Path) -> Callable[[Sequence[str]], np.ndarray]:
    """Return the function to vectors of texts of nodes and classes; hashed words if no encoder is configured."""
    if config.encoder.path is None:
        return hashed_encoder(texts)
    return lambda given: _needed(_vectors(given, config, cache))


def _vectors(texts: Sequence[str], config: GraphConfig, cache: Path) -> np.ndarray | None:
    if config.encoder.path is None:
        return None
    settings = config.encoder
    encoder = TextEncoder(config.encoder.path, batch_size=settings.batch_size, max_length=settings.max_length)
    with bar("Encode node texts") as progress:
        return encoder.encode(list(texts), cache_dir=cache, progress=lambda d, t: progress.update(d, t))


def _needed(vectors: np.ndarray | None) -> np.ndarray:
    assert vectors is not None
    return vectors


def _texts(path: Path, *names: str) -> list[list[str]]:
    """Return columns of texts, with their line breaks."""
    raw = read_raw(path)
    return [columns.ids(Column(raw.file, name, raw.column(name)), what=name).tolist() for name in names]


@contextmanager
def _in(path: Path) -> Iterator[None]:
    """Add the path to errors about the content of a file."""
    try:
        yield
    except DataError as error:
        if str(path) in str(error):
            raise
        raise DataError(f"{path}, {error}") from None
