"""A model begins where an older one ended, its catalogue grown, shrunk and renumbered."""

import numpy as np
import pytest
import torch

from setrec.errors import ConfigError
from setrec.models.item_tokens import ItemFeatures
from setrec.models.sasrec import SasRec
from setrec.models.setrec_model import SetRecModel
from setrec.models.settings import ModelSettings, SasRecSettings
from setrec.ragged import Ragged
from setrec.training.warm_start import NEW, old_rows, warm_start, warm_start_sasrec

OLD = [f"i{row}" for row in range(20)]
GROWN = ["new1", *(OLD[row] for row in np.random.default_rng(3).permutation(20) if row not in (4, 5)), "new2"]
SETTINGS = ModelSettings(semantic_tokens=2, hidden=(32, 16), max_items=8)
HISTORIES = [["i1", "i2", "i3"], ["i9"], ["i0", "i19", "i7", "i8"]]


def features(ids, seed=0, cold=(), scale=1.0):
    """Text that belongs to the id, collaborative vectors that do not: those of another night."""
    text = np.stack([np.random.default_rng(sum(map(ord, item))).normal(size=24) for item in ids]) * scale
    table = np.random.default_rng(seed).normal(size=(len(ids), 16))
    trained = np.array([item not in cold for item in ids])
    return ItemFeatures(trained, table.astype(np.float32), text.astype(np.float32))


def built(ids, settings=SETTINGS, seed=0, **changes) -> SetRecModel:
    torch.manual_seed(seed)
    return SetRecModel.build(settings, features(ids, seed, **changes)).eval()


@pytest.fixture
def old():
    """A model whose weights are not those it was built with."""
    model = built(OLD, cold=("i3",))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def scores(model, ids, wanted):
    """Scores (B, wanted items) of the histories, all named by id."""
    row_of = {item: row for row, item in enumerate(ids)}
    histories = Ragged.of([[row_of[item] for item in history] for history in HISTORIES])
    codes = model.item_codes()
    user = model.user_codes(histories, dict.fromkeys(model.kinds, 1.0), codes)
    return (user @ codes[[row_of[item] for item in wanted]].T).numpy()


def test_known_items_are_scored_as_before_whatever_their_rows_are_now(old):
    model = built(GROWN, seed=1, cold=("i3",))
    shared = [item for item in OLD if item in GROWN]
    assert np.abs(scores(model, GROWN, shared) - scores(old, OLD, shared)).max() > 0.1
    assert warm_start(model, old, old_rows(OLD, GROWN), features(GROWN).text) == 17
    np.testing.assert_allclose(scores(model, GROWN, shared), scores(old, OLD, shared), atol=1e-4)


def test_a_model_with_an_offset_begins_with_the_scale_of_the_older_one_or_with_one(old):
    model = SetRecModel.build(SETTINGS, features(OLD), offset=True)
    model.log_offset_scale.data.fill_(0.5)
    other = SetRecModel.build(SETTINGS, features(OLD), offset=True)
    warm_start(other, model, np.arange(20))
    assert other.log_offset_scale == 0.5
    warm_start(model, old, np.arange(20))
    assert model.log_offset_scale == 0


def test_new_items_keep_what_they_were_built_with(old):
    fresh, model = built(GROWN, seed=1, cold=("i3",)), built(GROWN, seed=1, cold=("i3",))
    warm_start(model, old, old_rows(OLD, GROWN), features(GROWN).text)
    for row in (GROWN.index("new1"), GROWN.index("new2")):
        before, after = fresh.tokens.table("collaborative"), model.tokens.table("collaborative")
        assert torch.equal(before.table[row], after.table[row])
        raw = [
            m.tokens.semantic.features[row] * m.tokens.semantic.scale + m.tokens.semantic.center for m in (fresh, model)
        ]
        torch.testing.assert_close(*raw)


def test_an_item_that_only_one_of_the_models_has_trained_on_keeps_what_it_was_built_with(old):
    model = built(OLD, seed=1)
    built_with = model.tokens.table("collaborative").table[3].clone()
    assert warm_start(model, old, old_rows(OLD, OLD)) == 19
    assert torch.equal(model.tokens.table("collaborative").table[3], built_with)


def test_vectors_that_do_not_learn_are_those_of_the_new_data(old):
    model = built(OLD, SETTINGS.model_copy(update={"trainable_table": False}), seed=1)
    table = model.tokens.table("collaborative").table.clone()
    assert warm_start(model, old, old_rows(OLD, OLD)) == 0
    assert torch.equal(model.tokens.table("collaborative").table, table)


def test_a_text_that_changed_is_read_anew(old):
    model = built(OLD, scale=2.0, cold=("i3",))
    texts = features(OLD, scale=2.0).text
    warm_start(model, old, old_rows(OLD, OLD), texts)
    given = torch.from_numpy(texts)
    semantic = old.tokens.semantic
    torch.testing.assert_close(model.tokens.semantic.features, (given - semantic.center) / semantic.scale)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"semantic_tokens": 3}, "queries"),
        ({"hidden": (32, 8)}, "semantic"),
        ({"instruction": 2}, "instruction"),
        ({"backbone": {"family": "t5", "size": "tiny"}}, "backbone"),
        ({"backbone": {"family": "qwen3", "size": "small"}}, "(4, 256)"),
    ],
)
def test_another_shape_is_refused_in_one_line_that_names_it_and_nothing_is_touched(old, changes, named):
    model = built(OLD, ModelSettings.model_validate({**SETTINGS.model_dump(), **changes}), seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match="do not fit") as error:
        warm_start(model, old, old_rows(OLD, OLD))
    assert named in str(error.value)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_collaborative_vectors_keep_their_meaning():
    settings = SasRecSettings(width=16, layers=1, heads=1, max_items=8)
    torch.manual_seed(0)
    old, model = SasRec(20, settings).eval(), SasRec(len(GROWN), settings).eval()
    rows = old_rows(OLD, GROWN)
    kept = model.items.weight[GROWN.index("new1")].clone()
    assert warm_start_sasrec(model, old, rows) == 18
    assert torch.equal(model.items.weight[GROWN.index("new1")], kept)
    row_of = {item: row for row, item in enumerate(GROWN)}
    history = ["i1", "i2", "i3"]
    ours = model.user_vectors(Ragged.of([[row_of[item] for item in history]]))
    torch.testing.assert_close(ours, old.user_vectors(Ragged.of([[1, 2, 3]])))
    wide = SasRec(20, settings.model_copy(update={"width": 32}))
    with pytest.raises(ConfigError, match="do not fit"):
        warm_start_sasrec(wide, old, rows)


def test_rows_are_found_by_id():
    assert old_rows(["a", "b", "c"], ["c", "x", "a"]).tolist() == [2, NEW, 0]
