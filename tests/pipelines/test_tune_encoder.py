"""The fine-tuned encoder in a run: where it is used, and what notices that it changed."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from small_models import WORDS, tiny_bert

from pipelines.common.run_directory import Run
from pipelines.config.job import validate
from pipelines.features import lineage, preparation, tune_encoder
from pipelines.jobs import export, stages
from pipelines.nightly import loop, release_store
from serving.bundle.reader import Bundle
from serving.engine.engine import Engine
from serving.runtime import edits
from serving.stores import open_store
from serving.stores.item_changes import ItemChange, ItemFields
from setrec.data.catalog import Catalog
from setrec.errors import ConfigError
from setrec.text.encoder import TextEncoder

TITLES = [f"{first} {a} {b}" for first in WORDS[:6] for a in WORDS[6:] for b in WORDS[6:]]
FINETUNE = {"epochs": 1, "users": 16, "learning_rate": 1e-2, "latest": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tables of users who go to and fro between two first words of titles, and a tiny encoder."""
    place, rng = tmp_path_factory.mktemp("tables"), np.random.default_rng(0)
    rows = [
        (f"u{user}", f"i{row}", step)
        for user, first in enumerate(rng.integers(6, size=60))
        for step, row in enumerate(rng.permutation(16)[:6] + 16 * (first ^ (np.arange(6) % 2)))
    ]
    pd.DataFrame(rows, columns=["user_id", "item_id", "position"]).to_csv(place / "interactions.csv", index=False)
    items = pd.DataFrame({"item_id": [f"i{row}" for row in range(len(TITLES))], "title": TITLES})
    items.to_csv(place / "items.csv", index=False)
    tiny_bert(place / "tiny")
    return place


def config_of(folder, warm=None, **finetune):
    return validate(
        {
            "data": {
                "interactions": str(folder / "interactions.csv"), "items": str(folder / "items.csv"),
                "columns": {"position": "position"},
            },
            "encoder": {"path": str(folder / "tiny"), "lexical": False, "finetune": finetune},
            "warm_start": warm,
            "model": {"max_items": 5, "hidden": [16, 8], "text_slot": 8},
            "training": {"epochs": 1, "refit_epochs": 0, "targets_per_batch": 256, "precision": "float32"},
            "cluster": {"threads": 1},
            "evaluation": {"resamples": 10, "examples": 1, "opponents": []},
        },
        "test",
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory, without_ray_train):
    """A trained, evaluated and exported run with a fine-tuned encoder. To be read only."""
    run, config = Run(tmp_path_factory.mktemp("done") / "run"), config_of(folder, **FINETUNE)
    preparation.prepare(run, config)
    stages.fit(run, config)
    stages.assess(run, config)
    export.export(run, config)
    return run


def vectors(run):
    return load_file(run.features / "text.safetensors")["text"]


def texts(run):
    return Catalog.load(run.data / "items.parquet").texts


def test_items_are_encoded_by_the_tuned_encoder_and_its_gain_is_written_down(done, folder):
    tuned, plain = TextEncoder(done.encoder, device="cpu"), TextEncoder(folder / "tiny", device="cpu")
    np.testing.assert_allclose(vectors(done), tuned.encode(texts(done)), atol=1e-6)
    assert np.abs(vectors(done) - plain.encode(texts(done))).max() > 0.05
    found = done.read_json("encoder_tuning.json")
    assert found["after"]["recall@10"] > found["before"]["recall@10"]
    assert {"before", "after", "best_epoch", "epochs"} == found.keys()
    assert {path.name for path in done.encoder.iterdir()} >= {"modules.json", "model.safetensors", "tokenizer.json"}
    assert not (done.encoder / "states").exists()
    assert '"event": "encoder"' in (done.root / "logs" / "run.jsonl").read_text()


def test_a_live_item_is_encoded_by_the_tuned_encoder_of_the_bundle(done, tmp_path):
    bundle, tuned = Bundle.open(done.bundle), TextEncoder(done.encoder, device="cpu")
    assert bundle.featurizer().sentence.identity == tuned.identity
    store = open_store(str(tmp_path / "live.db"))
    edits.put_item(Engine(bundle, store=store), "new", ItemFields(title="toy stars peace"))
    (change,) = (ItemChange.read(change.payload) for change in store.changes(0))
    np.testing.assert_allclose(change.unpacked(), tuned.encode(["toy stars peace"])[0], atol=1e-6)
    store.close()


def test_without_it_nothing_is_trained_and_vectors_are_those_of_the_encoder(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tune_encoder, "fine_tune", None)
    run, before = Run(tmp_path / "run"), torch.get_rng_state()
    preparation.prepare(run, config_of(folder))
    assert torch.equal(torch.get_rng_state(), before)
    assert not run.encoder.exists()
    expected = TextEncoder(folder / "tiny", device="cpu").encode(texts(run))
    np.testing.assert_allclose(vectors(run), expected, atol=1e-6)
    assert "encoder" not in lineage._of_training(run, config_of(folder))


def test_a_changed_setting_is_noticed_by_later_jobs_and_tuned_again(done, folder, tmp_path, monkeypatch):
    for other in (config_of(folder, **FINETUNE | {"seed": 1}), config_of(folder)):
        with pytest.raises(ConfigError, match="other settings of encoder"):
            lineage.require_model(done, other)
    run = Run(tmp_path / "run")
    preparation.prepare(run, config_of(folder, **FINETUNE))
    assert np.array_equal(vectors(run), vectors(done))
    assert not tune_encoder.tune_encoder(run, config_of(folder, **FINETUNE)), "nothing changed"
    preparation.tokenise(run, config_of(folder, **FINETUNE | {"seed": 1}))
    assert not np.array_equal(vectors(run), vectors(done))
    preparation.tokenise(run, config_of(folder))
    assert not run.encoder.exists()
    assert run.read_json("encoder_tuning.json") is None


def test_a_warm_start_goes_on_with_the_encoder_that_its_model_reads(done, folder, tmp_path):
    run, config = Run(tmp_path / "run"), config_of(folder, str(done.root), **FINETUNE | {"seed": 1})
    preparation.prepare(run, config)
    assert TextEncoder(run.encoder).identity == TextEncoder(done.encoder).identity
    assert np.array_equal(vectors(run), vectors(done))
    assert run.read_json("encoder_tuning.json") == {"warm_start": str(done.root)}
    assert "encoder" in release_store.KEPT


def test_training_an_encoder_that_is_not_there_is_refused(folder):
    raw = config_of(folder).model_dump(mode="json")
    raw["encoder"] |= {"path": None, "finetune": {"epochs": 1}}
    with pytest.raises(ConfigError, match=r"encoder: .*finetune needs a sentence encoder"):
        validate(raw, "test")


@pytest.mark.slow
def test_nights_go_on_with_the_encoder_of_the_last_release_and_a_cold_one_tunes_again(
    folder, tmp_path, without_ray_train
):
    def night(**options):
        said = []
        done = loop.run(tmp_path / "config.yaml", tmp_path / "nightly", ["gate.margin=1"], say=said.append, **options)
        return done, "\n".join(said), run.hash_of(run.encoder)

    run, config = Run(tmp_path / "nightly" / "run"), config_of(folder, **FINETUNE)
    config.save(tmp_path / "config.yaml")
    _, _, first = night()
    assert night()[0]["ran"] == []
    table = pd.read_csv(folder / "interactions.csv")
    table[table["user_id"] != "u0"].to_csv(tmp_path / "interactions.csv", index=False)
    changed = config.data.model_copy(update={"interactions": tmp_path / "interactions.csv"})
    config.model_copy(update={"data": changed}).save(tmp_path / "config.yaml")
    done, said, second = night()
    assert done["ran"] == list(loop.NAMES)
    assert second == first
    assert "compared by its recorded metrics" not in said
    _, said, third = night(force=True, cold=True)
    assert third != first
    assert "compared by its recorded metrics, because encoder has changed" in said
