"""Items that training never saw, added by their text over HTTP: are they recommended to those who choose them next?

*MovieLens-100K*: a fifth of the films is unknown to the training run (``cold_films.py``). They are put over HTTP, films
of users are sent as events, and the endpoint is asked for each user whose next film was one of them: is it among the
first ten of the whole catalogue, the user's own films left out? Opponents rank the same candidates; *among new films*
asks with ``allow``, as for a shelf of new releases.

*Amazon Beauty and Toys* (``--beauty``, ``--toys``): runs split in time, prepared, trained and evaluated, whose cold
items are left out of the bundle and put over HTTP; test users are asked for by their history. Cold recall@10 is the
share of the cold items chosen next that are among ten of the cold ones alone, histories kept.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import torch
import uvicorn
from bench_serving import keep
from cold_films import ColdFilms, Question, train
from rich.console import Console
from rich.table import Table

from pipelines.common.run_directory import Run
from pipelines.config.job import JobConfig, load_config
from pipelines.data import directory
from pipelines.evaluation.scorer import load_weights
from pipelines.features import item_features
from pipelines.jobs.datasets import packaged_encoder
from serving.api.application import create_app
from serving.bundle.reader import Bundle
from serving.bundle.writer import write_bundle
from serving.engine.acceptance import examine
from serving.engine.engine import Engine
from serving.runtime.models import Live
from serving.runtime.settings import ServingSettings
from serving.stores import open_store
from setrec.data.catalog import TEST, VALID, Catalog, Histories
from setrec.evaluation.intervals import bootstrap_means, paired_difference
from setrec.models.item_tokens import text_center, unit_rows
from setrec.models.setrec_model import SetRecModel
from setrec.ragged import Ragged
from setrec.scoring.hybrid import build_components
from setrec.scoring.registry import Sources
from setrec.scoring.text_features import TextFeaturizer
from setrec.scoring.text_similarity import TextFeatures
from setrec.text.encoder import TextEncoder

K, SEEN_AT_ONCE, MOST_ALLOWED = 10, 500, 100_000
OURS, SIMILAR = "SETRec", "Texts like those of the last 10 films"
HEADLINES = ("whole_minus_text_low", "cold_recall_beauty", "cold_recall_toys")


def main() -> None:
    """Train where nothing is trained yet, measure, write ``results/live_items.json``."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--films", type=Path, default=Path("runs/live_items"), help="run without some of its films")
    options.add_argument("--beauty", type=Path, default=Path("runs/beauty_time"), help="Beauty, split in time")
    options.add_argument("--toys", type=Path, default=Path("runs/toys_time"), help="Toys, split in time")
    asked = options.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = dict(films(Run(asked.films)))
    for name in ("beauty", "toys"):
        run = Run(getattr(asked, name))
        if (run.root / "scorer.json").exists():
            figures |= {f"{key}_{name}": value for key, value in cold_items(run).items()}
        else:
            print(f"{run.root}: not evaluated; cold_recall_{name} is left out")
    keep("live_items", figures, tuple(name for name in HEADLINES if name in figures))
    print(json.dumps(figures, indent=2))


def films(run: Run) -> dict[str, float]:
    """The films held out, by the endpoint and by opponents."""
    if not (run.root / "scorer.json").exists():
        train(run)
    held = ColdFilms.load(run)
    questions = held.test_questions()
    new = np.flatnonzero(~held.known)
    with TemporaryDirectory() as folder, served(run, *held.warm(), Path(folder)) as client:
        seconds = put_items(client, held.catalog, new)
        answers = ask(client, held, questions)
    hits, shelf = {OURS: answers[0]}, {OURS: answers[1]}
    for name, scores in opponents(held, questions).items():
        hits[name], shelf[name] = found(scores, held, questions)
    candidates = np.array([len(held.catalog) - len(set(q.history)) for q in questions])
    figures = {"questions": float(len(questions)), "new films": float(len(new)), "median seconds per film put": seconds}
    figures |= report("whole catalogue", hits, float(np.mean(K / candidates)))
    figures |= report("among new films", shelf, K / len(new))
    return figures | {"whole_minus_text_low": figures[f"whole catalogue, ours minus {SIMILAR}, low"]}


def cold_items(run: Run) -> dict[str, float]:
    """``cold_recall`` at ten of a run split in time, over HTTP."""
    catalog, histories = directory.load(run.data)
    trained = histories.trained(len(catalog))
    cold, row_of = np.flatnonzero(~trained), np.cumsum(trained) - 1
    before, after = histories.upto(VALID), histories.of(TEST)
    warm = before.where(trained[before.values])
    splits = histories.splits[(histories.splits <= VALID) & trained[histories.items.values]]
    known = Histories(histories.user_ids, Ragged(row_of[warm.values].astype(np.int32), warm.offsets), splits)
    allow, shares = [catalog.item_ids[row] for row in cold], []
    with (
        TemporaryDirectory() as folder,
        served(run, catalog.take(np.flatnonzero(trained)), known, Path(folder)) as client,
    ):
        seconds = put_items(client, catalog, cold)
        for history, truth in zip(before, after, strict=True):
            wanted = {catalog.item_ids[row] for row in truth if not trained[row]}
            if not wanted or not len(history):
                continue
            body = {"history": [catalog.item_ids[row] for row in history], "k": K, "allow": allow,
                    "exclude_history": False}  # fmt: skip
            answer = client.post("/v1/recommend", json=body).raise_for_status().json()
            shares.append(len(wanted & {item["item_id"] for item in answer["items"]}) / len(wanted))
    return {"cold_recall": float(np.mean(shares)), "cold_users": float(len(shares)), "cold_items": float(len(cold)),
            "seconds_per_item": seconds}  # fmt: skip


@contextmanager
def served(run: Run, catalog: Catalog, histories: Histories, folder: Path) -> Iterator[httpx.Client]:
    """An endpoint over a bundle of these items alone, by the model and the weights of a run that may hold more."""
    config = load_config(run.config)
    model = SetRecModel.from_pretrained(run.model).eval()
    whole = Catalog.load(run.data / "items.parquet")
    rows, weights = whole.rows(list(catalog.item_ids)), load_weights(run)
    featurizer, texts, center = text_parts(run, config, catalog, rows)
    write_bundle(
        folder / "bundle",
        model_dir=run.model,
        catalog=catalog,
        histories=histories,
        item_codes=model.item_codes().numpy()[rows],
        scorer=weights,
        components=build_components(weights.used, Sources(histories.items, len(catalog), texts)),
        featurizer=featurizer,
        text_features=texts,
        text_center=center,
        examine=examine,
    )
    store = open_store(str(folder / "live.db"))
    live = Live(Engine(Bundle.open(folder / "bundle"), store=store, max_k=K, threads=1), store)
    limits = ServingSettings(auth="off", max_body_bytes=1 << 24, max_history=MOST_ALLOWED)
    server = uvicorn.Server(uvicorn.Config(create_app(live, limits), log_level="error"))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=60, trust_env=False) as c:
            yield c
    finally:
        server.should_exit = True
        thread.join()
        live.close()


def text_parts(
    run: Run, config: JobConfig, catalog: Catalog, rows: np.ndarray
) -> tuple[TextFeaturizer | None, TextFeatures | None, np.ndarray | None]:
    """Featurizer, features and centre of a run's texts, of some ``rows`` of its catalogue."""
    lexical, sentence = item_features.load_lexical(run), item_features.text_encoder(run, config)
    if lexical is None:
        return (None if sentence is None else TextFeaturizer(None, sentence)), None, None
    vectors = item_features.text_vectors(run)
    sentences = None if sentence is None or vectors is None else vectors[rows, lexical.width :]
    unit = None if sentences is None else unit_rows(sentences)
    center = None if sentences is None else text_center(sentences)
    return TextFeaturizer(lexical, sentence), TextFeatures(lexical.rows(catalog.texts), unit), center


def put_items(client: httpx.Client, catalog: Catalog, rows: np.ndarray) -> float:
    """Add items by title, attributes and whatever else their texts say; the median of the seconds that each took."""
    seconds = []
    for row in rows.tolist():
        attributes = {name: values[row] for name, values in catalog.attributes.items() if values[row]}
        began = time.perf_counter()
        body = {"title": catalog.titles[row][:500], "attributes": attributes}
        client.put(f"/v1/items/{catalog.item_ids[row]}", json=body).raise_for_status()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def ask(client: httpx.Client, films: ColdFilms, questions: Sequence[Question]) -> tuple[np.ndarray, np.ndarray]:
    """Whether each film was among ten of the whole catalogue, and among ten new films; bool (questions,) each."""
    new = [films.catalog.item_ids[row] for row in np.flatnonzero(~films.known)]
    whole, shelf = [], []
    for number, q in enumerate(questions):
        user = f"viewer {number}"
        events = [{"user_id": user, "item_id": item, "time": float(at)} for at, item in enumerate(q.history)]
        for at in range(0, len(events), SEEN_AT_ONCE):
            client.post("/v1/events", json={"events": events[at : at + SEEN_AT_ONCE]}).raise_for_status()
        for found_in, more in ((whole, {}), (shelf, {"allow": new})):
            answer = client.post("/v1/recommend", json={"user_id": user, "k": K, **more}).raise_for_status().json()
            assert answer["fallback"] is None
            found_in.append(q.truth in {item["item_id"] for item in answer["items"]})
    return np.array(whole), np.array(shelf)


def opponents(films: ColdFilms, questions: Sequence[Question]) -> dict[str, np.ndarray]:
    """Scores (questions, I) by those who know the training data and the texts, and by one who knows more."""
    every = np.arange(len(films.catalog))
    vectors = text_vectors(films, every)
    counts = films.histories.train_counts(len(every)).astype(float)
    trained = np.where(films.known, counts, 0.0)
    like = vectors @ vectors[films.known].T
    nearest = np.argsort(-like, axis=1)[:, :20]
    alike = np.where(films.known, counts, counts[films.known][nearest].mean(axis=1))
    rows = [films.catalog.rows(q.history)[-10:] for q in questions]
    similar = np.stack([vectors[row].mean(axis=0) for row in rows]) @ vectors.T
    one = np.ones((len(questions), 1))
    return {
        "Popularity": one * trained,
        "Popularity of the 20 films most alike in text": one * alike,
        SIMILAR: similar,
        "Popularity, had the films been known": one * counts,
    }


def found(scores: np.ndarray, films: ColdFilms, questions: Sequence[Question]) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`ask`, from scores (questions, I); equal scores by smaller row, films unknown to training last."""
    order = np.argsort(~films.known, kind="stable")
    place = np.empty(len(order), dtype=int)
    place[order] = np.arange(len(order))
    scores = scores.copy()
    for row, q in zip(scores, questions, strict=True):
        row[films.catalog.rows(q.history)] = -np.inf
    truth = films.catalog.rows([q.truth for q in questions])
    return _hit(scores[:, order], place[truth]), _hit(np.where(films.known, -np.inf, scores)[:, order], place[truth])


def report(title: str, hits: dict[str, np.ndarray], chance: float) -> dict[str, float]:
    """Print recall@10 of each with its interval and ours minus each, and return them as figures."""
    table, figures = Table(title=f"Recall@10, {title}"), {f"{title}, chance": chance}
    for name in ("", "recall@10", "95% interval", "ours minus it"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row("Chance", f"{chance:.4f}")
    for name, hit in hits.items():
        low, high = np.percentile(bootstrap_means(hit[:, None].astype(float), 2000, 0), [2.5, 97.5])
        figures |= {f"{title}, {name}": hit.mean(), f"{title}, {name}, low": low, f"{title}, {name}, high": high}
        against = ""
        if name != OURS:
            d, d_low, d_high = paired_difference(hits[OURS].astype(float), hit.astype(float), 2000)
            against = f"{d:+.4f} ({d_low:+.4f} to {d_high:+.4f})"
            figures |= {f"{title}, ours minus {name}, low": d_low, f"{title}, ours minus {name}, high": d_high}
        table.add_row(name, f"{hit.mean():.4f}", f"{low:.4f} to {high:.4f}", against)
    Console().print(table)
    return {name: float(value) for name, value in figures.items()}


def text_vectors(films: ColdFilms, rows: np.ndarray) -> np.ndarray:
    """The encoder's vectors of some films' texts, float32 (rows, 384)."""
    texts = [films.catalog.texts[row] for row in rows]
    return TextEncoder(packaged_encoder()).encode(texts, cache_dir=Path("runs/.text_cache"))


def _hit(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Whether fewer than ten columns rank above ``truth``; equal scores by smaller column."""
    own = scores[np.arange(len(scores)), truth][:, None]
    earlier = np.arange(scores.shape[1])[None, :] < truth[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(axis=1) < K


if __name__ == "__main__":
    main()
