"""The promise of continuous tokens: an item that training never saw is found by its text, added over HTTP."""

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from serving.api.application import create_app
from serving.bundle.reader import Bundle
from serving.bundle.writer import write_bundle
from serving.engine.acceptance import examine
from serving.engine.engine import Engine
from serving.runtime.models import Live
from serving.runtime.settings import ServingSettings
from serving.stores import open_store
from setrec.data.catalog import TRAIN, Catalog, Histories
from setrec.data.item_texts import compose
from setrec.evaluation.intervals import paired_difference
from setrec.models.item_tokens import ItemFeatures
from setrec.models.setrec_model import SetRecModel
from setrec.models.settings import BackboneSettings, ModelSettings
from setrec.ragged import Ragged
from setrec.scoring.hybrid import HybridWeights, build_components
from setrec.scoring.registry import Sources
from setrec.scoring.text_features import TextFeaturizer
from setrec.scoring.text_similarity import TextFeatures
from setrec.text.lexical import LexicalEncoder
from setrec.training.settings import ObjectiveSettings, TrainingSettings
from setrec.training.trainer import Trainer

GENRES, PER_GENRE, HELD_OUT, K = 12, 15, 3, 10
FILMS = [(f"film-{g}-{n}", f"Film {n}", {"genre": [f"genre{g}"]}) for g in range(GENRES) for n in range(PER_GENRE)]


def is_held_out(item_id):
    return int(item_id.rpartition("-")[2]) >= PER_GENRE - HELD_OUT


def watched(users, seed):
    """Users who stay with one genre: item ids, the last one held out, those before known."""
    rng, found = np.random.default_rng(seed), []
    for user in range(users):
        genre = user % GENRES
        known = rng.permutation(PER_GENRE - HELD_OUT)[:6]
        last = PER_GENRE - HELD_OUT + rng.integers(HELD_OUT)
        found.append([f"film-{genre}-{n}" for n in (*known, last)])
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model and a catalogue that know nothing of the held-out films, from a few seconds of training."""
    kept = [film for film in FILMS if not is_held_out(film[0])]
    texts = [compose([title], attributes) for _, title, attributes in kept]
    genres = {"genre": [attributes["genre"] for *_, attributes in kept]}
    catalog = Catalog([i for i, *_ in kept], [title for _, title, _ in kept], texts, genres)
    rows = Ragged.of([catalog.rows(films[:-1]) for films in watched(240, seed=1)])
    histories = Histories([f"user-{u}" for u in range(240)], rows, np.full(len(rows.values), TRAIN, np.int8))
    featurizer = TextFeaturizer(LexicalEncoder.fit(texts, width=32), None)
    torch.manual_seed(0)
    together = np.zeros((len(kept), len(kept)))
    for row in rows:
        together[np.ix_(row, row)] += 1
    left, size, _ = np.linalg.svd(together)
    features = ItemFeatures(
        trained=np.ones(len(kept), dtype=bool),
        collaborative=(left[:, :16] * np.sqrt(size[:16])).astype(np.float32),
        text=featurizer.encode(texts),
    )
    settings = ModelSettings(backbone=BackboneSettings(family="qwen3"), semantic_tokens=2, hidden=(32, 16), dropout=0.1)
    model = SetRecModel.build(settings, features)
    quick = TrainingSettings(epochs=6, patience=6, targets_per_batch=256, learning_rate=3e-3, precision="float32")
    trainer = Trainer(model, rows, lambda _: [0.1], quick, ObjectiveSettings())
    for _ in range(quick.epochs):
        trainer.epoch()
    folder = tmp_path_factory.mktemp("cold")
    model.eval().save_pretrained(folder / "model")
    return folder, catalog, histories, model.item_codes().numpy(), featurizer


def hits(trained, name, similarity, genre_of=lambda genre: genre):
    """Whether each user's next film, put over HTTP under ``genre_of`` its genre, is among the ten recommended;
    ``similarity``: the weight of text similarity."""
    folder, catalog, histories, codes, featurizer = trained
    scorer = HybridWeights(
        slots={"collaborative": 0.5, "semantic": 0.5, "text": 0.5}, components={"text_similarity": similarity}
    )
    features = TextFeatures(featurizer.lexical.rows(catalog.texts))
    components = build_components(scorer.used, Sources(histories.items, len(catalog), features))
    write_bundle(
        folder / name, model_dir=folder / "model", catalog=catalog, histories=histories, item_codes=codes,
        scorer=scorer, components=components, featurizer=featurizer, text_features=features, examine=examine,
    )  # fmt: skip
    store = open_store(str(folder / f"{name}.db"))
    live = Live(Engine(Bundle.open(folder / name), store=store), store)
    client = TestClient(create_app(live, ServingSettings(auth="off")))
    for item_id, title, attributes in filter(lambda film: is_held_out(film[0]), FILMS):
        genre = int(attributes["genre"][0].removeprefix("genre"))
        body = {"title": title, "attributes": {"genre": [f"genre{genre_of(genre)}"]}}
        assert client.put(f"/v1/items/{item_id}", json=body).status_code == 200
    found = []
    for number, films in enumerate(watched(120, seed=2)):
        events = [{"user_id": f"viewer-{number}", "item_id": item, "time": at} for at, item in enumerate(films[:-1])]
        assert client.post("/v1/events", json={"events": events}).json()["accepted"] == len(events)
        answer = client.post("/v1/recommend", json={"user_id": f"viewer-{number}", "k": K}).json()
        assert answer["fallback"] is None
        found.append(films[-1] in {item["item_id"] for item in answer["items"]})
    live.close()
    return np.array(found, dtype=float)


def test_films_training_never_saw_are_recommended_to_those_who_watch_them_next(trained):
    """Against chance, popularity, the same films under other genres, and the model without text similarity."""
    ours = hits(trained, "ours", 20.0)
    chance = K / (len(FILMS) - 6)
    popularity = np.zeros_like(ours)  # nobody has met these films yet, so they rank last of all
    wrong = hits(trained, "wrong", 20.0, genre_of=lambda genre: (genre + 5) % GENRES)
    alone = hits(trained, "alone", 0.0)
    for opponent in (np.full_like(ours, chance), popularity, wrong):
        difference, low, _ = paired_difference(ours, opponent)
        assert low > 0.1, (difference, low)
    assert ours.mean() >= alone.mean()
    assert wrong.mean() < 2 * chance
