"""The jobs of ``setrec graph``: tokenize, train and evaluate. Each writes a self-contained folder."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nodetok import files, order
from nodetok.asking.answering import GraphAnswerer, GroundedAnswer
from nodetok.asking.artifact import RECORD, GraphArtifact, artifact
from nodetok.distances import reached
from nodetok.graph import Graph
from nodetok.language.input_ablation import ablate, ablations
from nodetok.language.interface import Task
from nodetok.language.settings import LAPLACIAN, TOKENS
from nodetok.language.training import build, fit
from nodetok.tasks.classification import UNTRAINED
from nodetok.tokenizer import NodeTokenizer
from pipelines.common.progress import Bar, bar
from pipelines.common.run_directory import environment
from pipelines.graph import report
from pipelines.graph.config import GraphConfig
from pipelines.graph.results import Result, ResultStore
from pipelines.graph.tasks import load_task, read_graph
from pipelines.reports import charts
from setrec.atomic import atomic_file, refuse_foreign
from setrec.errors import ConfigError, UnknownNodeError
from setrec.evaluation.intervals import bootstrap_means

CACHE = ".text_cache"


def tokenize(folder: Path, out: Path, config: GraphConfig) -> dict[str, Any]:
    """Fit a node tokenizer to the graph in ``folder`` and write it, with a report, to ``out``."""
    refuse_foreign(out / "graph", RECORD)
    with bar("Read graph") as progress:
        if files.find_table(folder, "triples"):
            triples = files.read_triples(folder, config.data)
            graph, labels = triples.graph, None
        else:
            data = read_graph(folder, config)
            graph, labels = data.graph, data.labels
        progress.update(1, 1, f"{len(graph):,} nodes, {graph.edges:,} edges")
    with bar("Anchors and distances") as progress:
        tokenizer = NodeTokenizer.fit(graph, config.tokenizer)
        progress.update(1, 1, f"{len(tokenizer.anchors.rows)} anchors cover {tokenizer.anchors.coverage:.1%}")
    table = [str(graph.id(row)) for row in range(len(graph))]
    GraphArtifact("none", "", table, graph.texts, (), tokenizer).save(out / "graph")
    with bar("Report"):
        _report(out, config, graph, tokenizer, [], [], labels)
    return {**tokenizer.describe(), **_describe(graph)}


def train(folder: Path, out: Path, config: GraphConfig) -> dict[str, Any]:
    """Train the graph language model on a task and write the artefact to ``out/graph``."""
    refuse_foreign(out / "graph", RECORD)  # not after hours of training
    task = _load(folder, out, config)
    with bar(f"Train on {task.name}") as progress:
        reader = fit(task, ablate(task, TOKENS, config.model, config.learning.seed), config.learning, progress.update)
        best = max(reader.curve, key=lambda record: record["value"])
        progress.update(1, 1, f"validation {task.goal} {best['value']:.4f}")
    made = artifact(task, reader)
    made.save(out / "graph")
    config.save(out / "config.yaml")
    with atomic_file(out / "curves.jsonl") as path:
        path.write_text("".join(json.dumps({"system": TOKENS, **record}) + "\n" for record in reader.curve))
    with bar("Test") as progress:
        test = {name: float(np.nanmean(values)) for name, values in reader.evaluate(task, task.test).items()}
        progress.update(1, 1, f"{task.goal} {test[task.goal]:.4f}")
    return {"task": task.name, "version": made.version, "validation": best["value"], "test": test}


def evaluate(folder: Path, out: Path, config: GraphConfig) -> list[dict[str, Any]]:
    """Train every input ablation and opponent with every seed, test them, and write the rows to ``out`` (a JSON file).

    ``out`` contains the rows so far after every run, and runs with a result in ``NAME.results`` next to it are not
    repeated. Opponents train for at most the CPU seconds that the model with node tokens took. The report is
    ``NAME.html`` next to it. Each row has ``task``, ``system``, ``metric``, ``value``, ``low`` and ``high`` (95%, over
    examples and seeds), ``seeds``, ``examples`` and ``cpu_seconds`` of training, the mean of the seeds; ``difference``
    rows compare the node tokens with each control, example by example.
    """
    if out.suffix != ".json" or out.is_dir():
        raise ConfigError(
            f"--out {out}: a file whose name ends in .json is expected; other files are written next to it"
        )
    refuse_foreign(out.with_suffix(".graph"), RECORD)
    task = _load(folder, out.parent, config)
    other = None if config.evaluation.transfer is None else _load(config.evaluation.transfer, out.parent, config)
    if other is not None:  # a model that cannot read it is refused before it is trained
        build(task, ablate(task, TOKENS, config.model, config.learning.seed), config.learning).on(other)
    run = _Evaluation(task, other, out, config, ResultStore(out.parent / f"{out.stem}.results", folder, config))
    for name in ablations(task, config.evaluation.ablations):
        run.model(name)
    for name in task.opponents if config.evaluation.opponents else ():
        run.opponent(name)
    with bar("Report"):
        _report(out, config, task.graph, task.tokenizer, run.rows, run.curves, task.node_labels)
    return run.rows


@dataclass(eq=False)
class _Evaluation:
    """The runs of an evaluation; ``other``: a task on another graph, on which the same models are tested too."""

    task: Task
    other: Task | None
    out: Path
    config: GraphConfig
    store: ResultStore
    results: dict[str, list[Result]] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def curves(self) -> list[dict[str, Any]]:
        """Learning curves of the first seeds."""
        first = ((name, runs[0]) for name, runs in self.results.items())
        return [{"system": name, **record} for name, result in first for record in result.curve]

    def _runs(self, name: str, budget: float | None, train: Callable[[int, Bar], Result]) -> None:
        """Train a system with every seed without a stored result, and write the rows after each."""
        own = self.results.setdefault(name, [])
        settings = self.config.evaluation
        with bar(name.capitalize()) as progress:
            for number in range(settings.seeds):
                seed = self.config.learning.seed + number
                result = self.store.get(name, seed, budget)
                if result is None:
                    result = train(number, progress)
                    self.store.put(result, name, seed, budget)
                own.append(result)
                progress.update(number + 1, settings.seeds, _summary(self.task, own))
                self._write()

    def model(self, name: str) -> None:
        """Run the language model under an input ablation."""

        def train(number: int, progress: Bar) -> Result:
            seed = self.config.learning.seed + number
            learning = self.config.learning.model_copy(update={"seed": seed})
            began = time.process_time()
            shown = ablate(self.task, name, self.config.model, seed)
            reader = fit(self.task, shown, learning, _part(progress, number, self.config))
            seconds = time.process_time() - began
            metrics = reader.evaluate(self.task, self.task.test)
            if self.other is not None and name != LAPLACIAN:
                metrics |= _elsewhere(reader.on(self.other, name, seed).evaluate(self.other, self.other.test))
            if name == TOKENS and number == 0:
                artifact(self.task, reader).save(self.out.parent / f"{self.out.stem}.graph")
            return Result(metrics, seconds, reader.curve)

        self._runs(name, None, train)

    def opponent(self, name: str) -> None:
        """Run a baseline for as many CPU seconds as the model with node tokens took."""
        budget = float(math.ceil(np.mean([run.seconds for run in self.results[TOKENS]])))

        def train(number: int, _: Bar) -> Result:
            began = time.process_time()
            seed = self.config.learning.seed + number
            metrics = self.task.opponents[name](seed, budget)
            if self.other is not None and name in UNTRAINED:
                metrics |= _elsewhere(self.other.opponents[name](seed, budget))
            return Result(metrics, time.process_time() - began, [])

        self._runs(name, budget, train)

    def _write(self) -> None:
        systems = {name: [run.metrics for run in runs] for name, runs in self.results.items()}
        self.rows = summarise(self.task, systems, self.config.evaluation.resamples)
        for row in self.rows:
            if row["system"] in self.results:
                row["cpu_seconds"] = round(float(np.mean([run.seconds for run in self.results[row["system"]]])), 1)
        with atomic_file(self.out) as path:
            path.write_text(json.dumps(self.rows, indent=2) + "\n")


def _elsewhere(metrics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{metric}, other graph": values for metric, values in metrics.items()}


def summarise(task: Task, systems: dict[str, list[dict[str, np.ndarray]]], resamples: int) -> list[dict[str, Any]]:
    """Return means over examples and seeds with 95% bootstrap intervals, in which seeds are resampled as well."""
    rows = []
    for system, runs in systems.items():
        for metric in runs[0]:
            values = np.stack([run[metric] for run in runs])
            rows.append({"task": task.name, "system": system, "metric": metric, **_interval(values, resamples)})
    ours = systems.get(TOKENS, [])
    for system, runs in systems.items() if ours else ():
        shared = [m for m in ours[0] if m in runs[0]] if system != TOKENS else []
        for metric in shared:
            both = min(len(ours), len(runs))
            values = np.stack([ours[i][metric] - runs[i][metric] for i in range(both)])
            label = f"{TOKENS} minus {system}"
            rows.append({"task": task.name, "system": label, "metric": metric, **_interval(values, resamples)})
    return rows


def _interval(values: np.ndarray, resamples: int) -> dict[str, Any]:
    """Return the interval of ``values`` (seeds, examples), NaN for excluded examples; seeds are resampled as well."""
    counted = ~np.isnan(values).all(axis=0)
    values = values[:, counted]
    means = values.mean(axis=1)
    over_examples = bootstrap_means(values.T, resamples, seed=0)
    rng = np.random.default_rng(1)
    drawn = rng.integers(len(values), size=(resamples, len(values)))
    spread = np.take_along_axis(over_examples, drawn, axis=1).mean(axis=1)
    low, high = np.percentile(spread, [2.5, 97.5])
    return {
        "value": float(means.mean()), "low": float(low), "high": float(high), "seeds": len(values),
        "examples": int(counted.sum()),
    }  # fmt: skip


def _load(folder: Path, out: Path, config: GraphConfig) -> Task:
    with bar("Read data, anchors, distances") as progress:
        task = load_task(folder, config, out / CACHE)
        progress.update(1, 1, f"{len(task.graph):,} nodes, {len(task.test):,} test questions")
    return task


def _part(progress: Any, number: int, config: GraphConfig) -> Any:
    def on_step(done: int, total: int, note: str) -> None:
        progress.update(number + done / total, config.evaluation.seeds, f"seed {number + 1}, {note}")

    return on_step


def _summary(task: Task, runs: Sequence[Result]) -> str:
    return f"{task.goal} {np.mean([np.nanmean(run.metrics[task.goal]) for run in runs]):.4f}"


def _describe(graph: Graph) -> dict[str, Any]:
    return {
        "nodes": len(graph), "edges": graph.edges, "components": int(graph.components.max()) + 1,
        "directed": graph.directed, "weighted": graph.weights is not None,
    }  # fmt: skip


def _report(
    out: Path, config: GraphConfig, graph: Graph, tokenizer: NodeTokenizer | None, rows: list[dict[str, Any]],
    curves: list[dict[str, Any]], labels: Sequence[str] | None,
) -> None:  # fmt: skip
    path = out / "report.html" if not rows else out.with_suffix(".html")
    picture, gains = None, np.empty(0)
    if tokenizer is not None:
        flat = charts.project(tokenizer.transform())
        groups = list(labels) if labels is not None else charts.degree_groups(graph.degrees)
        marked = np.zeros(len(graph), dtype=bool)
        marked[tokenizer.anchors.rows] = True
        picture = charts.scatter("Positions in two dimensions", flat[:, 0], flat[:, 1], groups, marked)
        gains = tokenizer.anchors.gains / tokenizer.anchors.nodes
    report.write_graph_report(
        path,
        title=f"Graph: {config.name}" if rows else "Node tokens",
        graph=_describe(graph),
        tokenizer={} if tokenizer is None else tokenizer.describe(),
        gains=gains.tolist(),
        order=[] if tokenizer is None else order_table(graph, tokenizer),
        rows=[row for row in rows if " minus " not in row["system"]],
        picture=picture,
        curves=curves,
        environment=environment(),
        config=json.dumps(config.model_dump(mode="json"), indent=2),
    )


def order_table(graph: Graph, tokenizer: NodeTokenizer, triplets: int = 50_000) -> list[dict[str, Any]]:
    """Return order accuracy and Kendall's tau of positions and of raw distances on held-out pivots."""
    hops = np.issubdtype(tokenizer.table.dtype, np.unsignedinteger)
    if not hops or len(graph) > 2_000_000 or tokenizer.table.shape[1] > len(graph):
        return []
    rng = np.random.default_rng(5)
    pivots = order.sample_pivots(graph.undirected, 200, rng, without=tokenizer.anchors.rows)
    if len(pivots) < 2:
        return []
    drawn = order.sample_triplets(graph.undirected, pivots, triplets, rng)
    raw = np.where(reached(tokenizer.table), np.minimum(tokenizer.table, 64), 64).astype(np.uint8)
    shown = {
        "raw distances, Euclidean": (order.euclidean, raw),
        "shortest way over an anchor": (order.min_sum, raw),
        "positions": (order.inner_product, tokenizer.transform()),
    }
    return [
        {
            "similarity": name,
            "order_accuracy": drawn.accuracy(similarity, positions),
            "kendall_tau": order.kendall(graph.undirected, pivots[:50], similarity, positions),
        }
        for name, (similarity, positions) in shown.items()
    ]


def answer(run: Path, question: str, k: int, mode: str) -> dict[str, Any]:
    """Return an answer of a trained artifact, as the endpoint does; ``answer`` is ``None`` for a refusal."""
    made = GraphArtifact.load(run / "graph")
    try:
        result = GraphAnswerer(made).ask(question, k, written=mode == "text")
    except UnknownNodeError as error:
        result = GroundedAnswer(None, f"No answer: {error}.", [], [], 0.0, True, str(error))
    return {
        "answer": result.answer,
        "nodes": result.nodes,
        "edges": result.edges,
        "confidence": round(result.confidence, 4),
        "refused": result.refused,
        "reason": result.reason,
        "sentence": result.sentence,
        "answers": _answers(result, mode),
    }


def _answers(result: GroundedAnswer, mode: str) -> list[dict[str, Any]]:
    if mode == "text" and not result.refused:
        return [{"answer": result.answer, "score": None}]
    return [{"answer": text, "score": round(score, 4)} for text, score in result.ranked]
