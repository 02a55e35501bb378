"""Training with key words to predict, as a run does it."""

import numpy as np
import pandas as pd
import pytest

from pipelines.common.run_directory import Run
from pipelines.config.job import JobConfig, load_config
from pipelines.features import preparation
from pipelines.jobs import stages
from pipelines.training.worker import trainer_of
from setrec.errors import ConfigError
from setrec.models.setrec_model import SetRecModel
from setrec.training.settings import KEY_WORDS_WEIGHT

ITEMS = 30
CONFIG = """
data: {{interactions: {folder}/interactions.csv, items: {folder}/items.csv, columns: {{position: position}}}}
model: {{semantic_tokens: 2, hidden: [32, 16], text_slot: 16, max_items: 8}}
loss: {{words: 0.5}}
sasrec: {{epochs: 1}}
training: {{epochs: 2, targets_per_batch: 64, checkpoint_minutes: 0}}
cluster: {{threads: 1}}
evaluation: {{resamples: 10, opponents: [popularity]}}
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Run, JobConfig]:
    """Items of six series, of which every user chooses one."""
    folder = tmp_path_factory.mktemp("words")
    rng = np.random.default_rng(0)
    rows = [
        (f"u{u}", f"i{item}", step)
        for u in range(60)
        for step, item in enumerate(u % 6 * 5 + rng.permutation(5)[: int(rng.integers(4, 6))])
    ]
    pd.DataFrame(rows, columns=["user_id", "item_id", "position"]).to_csv(folder / "interactions.csv", index=False)
    items = pd.DataFrame({"item_id": [f"i{i}" for i in range(ITEMS)]})
    items.assign(title=[f"film of series{i // 5}" for i in range(ITEMS)]).to_csv(folder / "items.csv", index=False)
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder))
    run, config = Run(folder / "run"), load_config(folder / "config.yaml")
    preparation.prepare(run, config)
    return run, config


def test_a_run_learns_the_words_of_its_items_from_their_codes(prepared):
    run, _config = prepared
    trainer = trainer_of(
        run, load_config(run.config, ["training.epochs=30", "training.patience=30", "training.learning_rate=0.01"])
    )
    shares = trainer.words.toarray()
    assert shares.shape == (ITEMS, 6)

    def found(model: SetRecModel) -> float:
        semantic = model.tokens.semantic
        return float((semantic.words(semantic.codes()).argmax(1).numpy() == shares.argmax(1)).mean())

    while not trainer.finished:
        trainer.epoch()
    assert found(trainer.model.eval()) > 0.9


def test_such_a_model_is_refitted_saved_and_evaluated_as_any(without_ray_train, prepared):
    run, config = prepared
    stages.fit(run, config)
    assert SetRecModel.from_pretrained(run.model).tokens.semantic.words.out_features == 6
    assert len(stages.assess(run, config)) > 0


@pytest.mark.parametrize("setting", ["model.semantic_tokens=0", "encoder.lexical=false"])
def test_words_without_a_slot_or_an_encoder_of_words_are_refused(prepared, setting, tmp_path):
    run, _ = prepared
    changed = load_config(run.config, [setting])
    if setting.startswith("encoder"):
        run = Run(tmp_path / "run")
        preparation.prepare(run, changed)
    with pytest.raises(ConfigError, match=r"loss\.words needs key words"):
        trainer_of(run, changed)
    by_default = trainer_of(run, load_config(run.config, [setting, "loss.words=null"]))
    assert by_default.words is None
    assert by_default.model.config.words == 0


def test_they_are_predicted_by_default_at_their_weight(prepared):
    run, _ = prepared
    trainer = trainer_of(run, load_config(run.config, ["loss.words=null"]))
    assert trainer.words is not None
    assert trainer.loss.words_weight == KEY_WORDS_WEIGHT
