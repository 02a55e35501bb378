"""Films that training never saw, added by title and genre over HTTP: are they recommended to those who watch them next?

A fifth of MovieLens-100K's films, and another tenth to choose settings on, are unknown to the training run
(``cold_films.py``). They are put over HTTP, users' films are sent as events, and the endpoint is asked for each user
whose next film was one of them: is it among the first ten of the whole catalogue, the user's own films left out?
Opponents rank the same candidates. ``among newcomers`` asks with ``allow``, as for a shelf of new releases.
"""

from __future__ import annotations

import socket
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import numpy as np
import torch
import uvicorn
from cold_films import ColdFilms, Question, train
from harness import write_results
from rich.console import Console
from rich.table import Table

from pipelines.datasets import packaged_encoder
from pipelines.runs import Run
from serving.bundle import Bundle
from serving.bundle_writer import write_bundle
from serving.engine import Engine
from serving.http import create_app
from serving.live import Live
from serving.newcomers import Estimate, NewcomerSettings
from serving.settings import ServingSettings
from serving.stores import open_store
from setrec.catalog import VALID
from setrec.encoder import TextEncoder
from setrec.intervals import bootstrap_means, paired_difference
from setrec.model import SetRecModel
from setrec.ragged import Ragged

K, SEEN_AT_ONCE = 10, 500
RIDGES, QUANTILES = (0.1, 0.3, 1.0, 3.0, 10.0), (0.5, 0.9, 0.95, 0.98, 1.0)
OURS, PLAIN = "SETRec", "SETRec without the estimate"


def main() -> None:
    """Train where nothing is trained yet, choose on the valid films, measure on the test films, write the figures."""
    torch.set_num_threads(1)
    run = Run(Path("runs/live_items"))
    if not (run.root / "weights.json").exists():
        train(run)
    films = ColdFilms.load(run)
    chosen = choose(run, films)
    figures = {f"valid, {name}": value for name, value in chosen.items()}
    questions = films.test_questions()
    hits, shelf, seconds = {}, {}, 0.0
    for name, settings in ((OURS, NewcomerSettings()), (PLAIN, NewcomerSettings(estimate=False))):
        with TemporaryDirectory() as folder, served(run, films, Path(folder), settings) as client:
            seconds = put_films(client, films)
            hits[name], shelf[name] = ask(client, films, questions)
    for name, scores in opponents(films, questions).items():
        hits[name], shelf[name] = found(scores, films, questions)
    candidates = np.array([len(films.catalog) - len(set(q.history)) for q in questions])
    held_out = int((~films.known).sum())
    figures |= {"questions": len(questions), "newcomers": held_out, "median seconds per film put": seconds}
    figures |= report("whole catalogue", hits, float(np.mean(K / candidates)))
    figures |= report("among newcomers", shelf, K / held_out)
    write_results("live_items", figures)


def choose(run: Run, films: ColdFilms) -> dict[str, float]:
    """Newcomers' settings, on the valid films alone: of those that show newcomers no more often than users chose them,
    the one that finds most. Says what the default gives, so that a default that is no longer the choice is seen."""
    bench = _Validation(run, films)
    rows = [(r, q, *bench.measure(NewcomerSettings(ridge=r, popularity=q))) for r in RIDGES for q in QUANTILES]
    fair = [row for row in rows if row[4] <= bench.share]
    ridge, quantile, *_ = max(fair, key=lambda row: row[2])
    table = Table(title=f"Valid films are {bench.share:.3f} of what users chose next")
    for name in ("ridge", "popularity", "recall@10 new", "recall@10 known", "share of answers"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.4g}" for value in row), style="bold" if row[:2] == (ridge, quantile) else None)
    Console().print(table)
    of_default, of_none = bench.measure(NewcomerSettings()), bench.measure(NewcomerSettings(estimate=False))
    return {
        "ridge": ridge,
        "popularity": quantile,
        "share of choices": bench.share,
        **dict(zip(("recall@10 new, default", "recall@10 known, default", "share, default"), of_default, strict=True)),
        **dict(zip(("recall@10 new, zero", "recall@10 known, zero", "share, zero"), of_none, strict=True)),
    }


class _Validation:
    """Scores of the valid films and of the known ones, for times when the next film was of either kind."""

    def __init__(self, run: Run, films: ColdFilms) -> None:
        model = SetRecModel.from_pretrained(run.model).eval()
        catalog, histories = films.warm()
        self.codes, self.counts = model.item_codes().numpy(), histories.train_counts(len(catalog))
        self.columns, weights = model.code_columns, run.read_json("weights.json")["weights"]
        rows = np.flatnonzero(films.valid)
        self.semantic = model.text_codes(torch.from_numpy(text_vectors(films, rows))).numpy()
        of = {films.catalog.item_ids[row]: at for at, row in enumerate(rows)}
        asked = films.valid_questions(2000)
        read = [[row for item in q.history if (row := catalog.find(item)) is not None] for q in asked]
        self.new = np.array([of[q.truth] for q in asked]), *self._users(model, weights, read)
        before, after = histories.upto(VALID - 1), histories.of(VALID)
        users = np.flatnonzero((before.lengths > 0) & (after.lengths > 0))
        known = [before[user].tolist() for user in users]
        self.known = np.array([after[user][0] for user in users]), *self._users(model, weights, known)
        items, splits = films.histories.items.values, films.histories.splits
        choices = items[(splits == VALID) & ~films.test[items]]
        self.share = float(films.valid[choices].mean())

    def _users(self, model, weights, histories) -> tuple[np.ndarray, np.ndarray]:
        parts = [Ragged.of(histories[at : at + 256]) for at in range(0, len(histories), 256)]
        codes = torch.from_numpy(self.codes)
        users = np.concatenate([model.user_codes(part, weights, codes).numpy() for part in parts])
        scores = users @ self.codes.T
        for row, history in zip(scores, histories, strict=True):
            row[history] = -np.inf
        return users, scores

    def measure(self, settings: NewcomerSettings) -> tuple[float, float, float]:
        """Recall@10 of the valid films and of the known ones, and how much of the answers to all are valid films."""
        added = np.zeros((len(self.semantic), self.codes.shape[1]), np.float32)
        (start, stop), (first, last) = self.columns["semantic"], self.columns["collaborative"]
        added[:, start:stop] = self.semantic
        estimate = Estimate.fit(self.codes, self.counts, self.columns, settings)
        if estimate is not None:
            added[:, first:last] = estimate(self.semantic)
        truth, users, known = self.new
        scores = np.concatenate([known, users @ added.T], axis=1)
        new = _hit(scores, truth + known.shape[1])
        truth, users, known = self.known
        scores = np.concatenate([known, users @ added.T], axis=1)
        top = np.argpartition(-scores, K, axis=1)[:, :K]
        return float(new.mean()), float(_hit(scores, truth).mean()), float((top >= known.shape[1]).mean())


@contextmanager
def served(run: Run, films: ColdFilms, folder: Path, settings: NewcomerSettings) -> Iterator[httpx.Client]:
    """An endpoint over a bundle that knows nothing of the held-out films, with a store and an encoder of its own."""
    catalog, histories = films.warm()
    write_bundle(
        folder / "bundle",
        model_dir=run.model,
        catalog=catalog,
        histories=histories,
        item_codes=SetRecModel.from_pretrained(run.model).eval().item_codes().numpy(),
        weights=run.read_json("weights.json")["weights"],
        newcomers=settings,
        encoder=TextEncoder(packaged_encoder()),
    )
    store = open_store(str(folder / "live.db"))
    live = Live(Engine(Bundle.open(folder / "bundle"), store=store), store)
    limits = ServingSettings(auth="off", max_body_bytes=1 << 20)
    server = uvicorn.Server(uvicorn.Config(create_app(live, limits), log_level="error"))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=30, trust_env=False) as c:
            yield c
    finally:
        server.should_exit = True
        thread.join()
        live.close()


def put_films(client: httpx.Client, films: ColdFilms) -> float:
    """Add the held-out films by title, year and genre; the median of the seconds that each took."""
    catalog, seconds = films.catalog, []
    for row in np.flatnonzero(~films.known):
        attributes = {name: values[row] for name, values in catalog.attributes.items()}
        began = time.perf_counter()
        put = client.put(
            f"/v1/items/{catalog.item_ids[row]}", json={"title": catalog.titles[row], "attributes": attributes}
        )
        put.raise_for_status()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def ask(client: httpx.Client, films: ColdFilms, questions: Sequence[Question]) -> tuple[np.ndarray, np.ndarray]:
    """Whether each film was among ten of the whole catalogue, and among ten newcomers; bool (questions,) each."""
    newcomers = [films.catalog.item_ids[row] for row in np.flatnonzero(~films.known)]
    whole, shelf = [], []
    for number, q in enumerate(questions):
        user = f"viewer {number}"
        events = [{"user_id": user, "item_id": item, "time": float(at)} for at, item in enumerate(q.history)]
        for at in range(0, len(events), SEEN_AT_ONCE):
            client.post("/v1/events", json={"events": events[at : at + SEEN_AT_ONCE]}).raise_for_status()
        for found_in, more in ((whole, {}), (shelf, {"allow": newcomers})):
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
        "Texts like those of the last 10 films": similar,
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
