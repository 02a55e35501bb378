"""Features of the items before the recommender is trained: text, collaborative vectors, positions in a graph."""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from transformers.utils import logging as transformers_logging

from nodetok.distances import distances
from nodetok.graph import Graph
from nodetok.settings import DistanceSettings
from pipelines.common.progress import Bar, bar
from pipelines.common.run_directory import Run
from pipelines.common.trackers import TrackingSettings, tracking
from pipelines.config.job import JobConfig
from pipelines.data import directory
from pipelines.features import item_graph, lineage
from pipelines.features.distances import distances_on_cluster
from pipelines.features.warm import begin_sasrec
from setrec.atomic import atomic_file
from setrec.data.catalog import Catalog
from setrec.errors import ConfigError, DataError
from setrec.models.item_tokens import ItemFeatures, text_center, unit_rows
from setrec.models.sasrec import SasRec
from setrec.scoring.text_similarity import TextFeatures
from setrec.text.encoder import TextEncoder
from setrec.text.lexical import LexicalEncoder
from setrec.training.sasrec_trainer import train_sasrec

transformers_logging.disable_progress_bar()

LEXICAL = "lexical"
"""Folder of the lexical encoder, below the features."""
TABLE_START = 0.1
"""Standard deviation of a randomly initialised collaborative table."""


def text_encoder(run: Run, config: JobConfig) -> TextEncoder | None:
    """Return the sentence encoder of the run, fine-tuned if configured so, or ``None``."""
    s = config.encoder
    path = run.require(run.encoder, "prepare --config CONFIG") if s.finetune.epochs else s.path
    return None if path is None else TextEncoder(path, batch_size=s.batch_size, max_length=s.max_length)


def place_items(run: Run, config: JobConfig) -> None:
    """Compute every item's position in the item graph, from content and training interactions only.

    With ``structural.block`` the distances are computed by Ray tasks; the positions are the same.
    """
    catalog, histories = directory.load(run.data)
    with bar("Place items in their graph") as progress, _scratch(run) as scratch:
        graph = item_graph.build(catalog, histories, config.structural)
        out = Path(scratch) / "distances.npy"
        measure = distances if config.structural.block is None else _in_blocks(out, config, progress)
        table = item_graph.positions(graph, len(catalog), config.structural, measure)
        progress.update(1, 1, f"{len(graph)} nodes, {graph.edges} edges, {table.shape[1]} anchors")
    with atomic_file(run.features / "structural.safetensors") as path:
        save_file({item_graph.STRUCTURAL: table}, path)


def _scratch(run: Run) -> tempfile.TemporaryDirectory[str]:
    run.features.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=".distances.", dir=run.features)


def _in_blocks(out: Path, config: JobConfig, progress: Bar) -> item_graph.Measure:
    """Return a function that computes distances by Ray tasks over blocks of anchors; ``out`` stores them."""

    def measure(graph: Graph, anchors: np.ndarray, settings: DistanceSettings) -> np.ndarray:
        block = config.structural.block or len(anchors)
        return distances_on_cluster(graph, anchors, settings, out, block, config.cluster.address, progress)

    return measure


def encode_words(run: Run, config: JobConfig, lexical: LexicalEncoder | None = None) -> None:
    """Write the lexical encoder of the catalogue's texts and every item's vector; nothing if no item has a text.

    ``lexical``: an encoder fitted earlier, whose vectors a warm start continues to use.
    """
    texts = Catalog.load(run.data / "items.parquet").texts
    if not config.encoder.lexical or not any(texts):
        return
    with bar("Fit word vectors") as progress:
        warm, lexical = lexical is not None, lexical or LexicalEncoder.fit(texts)
        lexical.save(run.features / LEXICAL)
        with atomic_file(run.features / "words.safetensors") as path:
            save_file({"words": lexical.vectors(texts)}, path)
        run.note_made_from(lineage.WORDS, **({"warm_start": str(config.warm_start)} if warm else {}))
        progress.update(1, 1, f"{len(lexical.vocabulary)} words, {lexical.width} numbers each")


def train_sasrec_opponent(run: Run, config: JobConfig) -> None:
    """Train SASRec into ``run.sasrec``: an opponent in the table and, with ``model.table: sasrec``, the source of the
    collaborative vectors."""
    run.claim("sasrec", "curves.jsonl")
    catalog, histories = directory.load(run.data)
    records: list[dict[str, Any]] = []

    def report(record: dict[str, Any]) -> None:
        records.append(record)
        run.log("epoch", system="SASRec", **record)
        follow.epoch("SASRec", record)
        progress.update(record["epoch"], record["epochs"], f"validation NDCG@10 {record['ndcg@10']:.4f}")

    with bar("Train SASRec") as progress, tracking(run, config) as follow:
        begin = partial(begin_sasrec, path=config.warm_start, item_ids=catalog.item_ids)
        model = train_sasrec(
            histories, len(catalog), config.sasrec, report=report, seed=config.training.seed, begin=begin
        )
    run.write_curve("SASRec", records)
    model.save(run.sasrec)
    run.note_made_from("sasrec", **lineage.of_sasrec(run, config))


def train_collaborative(run: Run, config: JobConfig) -> None:
    """Train SASRec and write its vectors, which initialise the collaborative table, if ``model.table`` requires it."""
    if config.model.table != "sasrec":
        return
    train_sasrec_opponent(run, config)
    table = np.ascontiguousarray(load_sasrec(run).item_embeddings().numpy(), dtype=np.float32)
    run.features.mkdir(parents=True, exist_ok=True)
    with atomic_file(run.features / "collaborative.safetensors") as path:
        save_file({"collaborative": table}, path)
    run.note_made_from(lineage.COLLABORATIVE, **lineage.of_sasrec(run, config))


def shared_view(run: Run, config: JobConfig, folder: Path) -> Run:
    """Return a run below ``folder`` with the data and features of ``run`` and, if ``model.table`` requires them, the
    collaborative vectors of ``config.sasrec``, trained if missing.

    If two processes make the same one at the same time, both are equal and the later one stays.
    """
    names = config.sasrec.model_dump_json() + str(config.training.seed)
    view = Run(folder / f"sasrec-{hashlib.sha256(names.encode()).hexdigest()[:12]}")
    view.claim()
    view.features.mkdir(parents=True, exist_ok=True)
    tables = (f"{name}.safetensors" for name in ("text", "words", "structural"))
    made = [run.data, *(run.features / name for name in (*tables, LEXICAL))]
    for path in made:
        with suppress(FileExistsError):
            if path.exists():
                (view.root / path.relative_to(run.root)).symlink_to(path.resolve())
    if not has_collaborative(view, config):
        train_collaborative(view, config.model_copy(update={"tracking": TrackingSettings(tensorboard=False)}))
    return view


def has_collaborative(run: Run, config: JobConfig) -> bool:
    """Return whether the vectors of :func:`train_collaborative` exist or are not required."""
    return config.model.table != "sasrec" or (run.features / "collaborative.safetensors").exists()


def load_features(run: Run, config: JobConfig, trained: np.ndarray) -> ItemFeatures:
    """Load the features of the run's catalogue; ``trained`` bool (I,).

    Raises:
        ConfigError: collaborative vectors, or positions that the structural slot needs, are missing.
        DataError: a file of vectors is damaged.
    """
    return ItemFeatures(
        trained=trained,
        collaborative=_collaborative(run, config, len(trained)),
        text=text_vectors(run),
        extra=_positions(run) if config.structural.enabled else {},
    )


def key_words(run: Run, config: JobConfig) -> sp.csr_matrix | None:
    """Return the shares of the items' key words, float32 (I, V), if training predicts them.

    Raises:
        ConfigError: ``loss.words`` is set, and there are no words to predict, or no slot to predict them from.
    """
    if not config.loss.words_weight:
        return None
    lexical = load_lexical(run) if config.model.semantic_tokens else None
    if lexical is not None:
        shares = lexical.key_words(Catalog.load(run.data / "items.parquet").texts)
        if shares.shape[1]:
            return shares
    if config.loss.words is None:
        return None
    raise ConfigError(
        "loss.words needs key words (encoder.lexical, words that several texts share) and model.semantic_tokens"
    )


def text_vectors(run: Run) -> np.ndarray | None:
    """Return the text vectors that models read, float32 (I, w): word vectors, then sentence vectors, if available."""
    tables = [("words", run.features / "words.safetensors"), ("text", run.features / "text.safetensors")]
    found = [_vectors(path)[name] for name, path in tables if path.exists()]
    return np.ascontiguousarray(np.concatenate(found, axis=1)) if found else None


def text_features(run: Run, catalog: Catalog) -> TextFeatures | None:
    """Return the features of text similarity; ``None`` if no item has a text, or no two texts share a word."""
    lexical = load_lexical(run)
    return None if lexical is None else similarity_features(lexical, sentence_vectors(run), catalog)


def similarity_features(lexical: LexicalEncoder, sentences: np.ndarray | None, catalog: Catalog) -> TextFeatures:
    """Return the features of text similarity of a catalogue; ``sentences`` (I, w) or ``None``."""
    return TextFeatures(lexical.rows(catalog.texts), None if sentences is None else unit_rows(sentences))


def sentence_vectors(run: Run) -> np.ndarray | None:
    """Return the sentence vectors of the items, float32 (I, w), or ``None``."""
    path = run.features / "text.safetensors"
    return _vectors(path)["text"] if path.exists() else None


def sentence_center(run: Run) -> np.ndarray | None:
    """Return the mean of the sentence vectors, float32 (w,), or ``None``."""
    vectors = sentence_vectors(run)
    return None if vectors is None else text_center(vectors)


def load_lexical(run: Run) -> LexicalEncoder | None:
    """Return the lexical encoder of the run, or ``None``.

    Raises:
        DataError: it is damaged.
    """
    folder = run.features / LEXICAL
    if not folder.exists():
        return None
    try:
        return LexicalEncoder.load(folder)
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise DataError("is damaged; make it again", file=folder) from error


def _collaborative(run: Run, config: JobConfig, items: int) -> np.ndarray | None:
    if config.model.table == "sasrec":
        path = run.require(run.features / "collaborative.safetensors", "train")
        return _vectors(path)["collaborative"]
    if not config.model.collaborative:
        return None
    rng = np.random.default_rng(config.training.seed)
    return rng.normal(0, TABLE_START, (items, config.model.collaborative)).astype(np.float32)


def _positions(run: Run) -> dict[str, np.ndarray]:
    path = run.features / "structural.safetensors"
    return _vectors(run.require(path, "prepare --config CONFIG --set structural.enabled=true"))


def _vectors(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DataError("is damaged; make it again", file=path) from error


def load_sasrec(run: Run) -> SasRec:
    """Load the collaborative model of the run."""
    return SasRec.load(run.require(run.sasrec, "evaluate --set evaluation.opponents=[sasrec]"))
