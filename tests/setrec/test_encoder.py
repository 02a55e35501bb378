import shutil
import threading

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
from small_models import tiny_bert
from transformers import (
    BertModel,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5Model,
)

from setrec.errors import ConfigError
from setrec.text.encoder import TextEncoder
from setrec.text.vector_store import VectorCache

TEXTS = ["toy story", "heat", "", "the war of the stars", "heat", "drama " * 40, "unheard words"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def encoder(tiny):
    return TextEncoder(tiny, batch_size=3, device="cpu")


def never(*_):
    raise AssertionError("the model was asked although the cache knows")


def test_a_batch_gives_what_each_text_alone_gives(encoder):
    together = encoder.encode(TEXTS)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    assert together.dtype == np.float32
    assert together.shape == (len(TEXTS), 16)
    np.testing.assert_allclose(together, alone, atol=1e-5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15, deadline=None)
@given(st.permutations(range(len(TEXTS))))
def test_the_order_of_the_texts_changes_nothing(encoder, order):
    assert np.array_equal(encoder.encode([TEXTS[row] for row in order]), encoder.encode(TEXTS)[list(order)])


def test_pooling_is_the_mean_over_real_tokens_of_the_models_last_states(encoder, tiny):
    model = BertModel.from_pretrained(tiny).eval()
    ids = torch.tensor([[2, 4, 5, 3]])  # [CLS] toy story [SEP]
    with torch.inference_mode():
        mean = model(ids).last_hidden_state.mean(1)
    expected = torch.nn.functional.normalize(mean, dim=-1).numpy()
    np.testing.assert_allclose(encoder.encode(["Toy story", "the war of the stars"])[:1], expected, atol=1e-5)
    raw = TextEncoder(tiny, normalize=False, device="cpu").encode(["toy story"])
    np.testing.assert_allclose(raw, mean.numpy(), atol=1e-5)


@pytest.mark.parametrize("family", ["t5", "qwen3"])
def test_other_families_encode_batched_as_alone(tiny, tmp_path, family):
    torch.manual_seed(0)
    if family == "t5":
        model = T5Model(T5Config(vocab_size=14, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2))
    else:
        sizes = {"vocab_size": 14, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
        model = Qwen3Model(Qwen3Config(**sizes, **heads, pad_token_id=0))
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    encoder = TextEncoder(tmp_path, device="cpu")
    together = encoder.encode(TEXTS)
    assert together.shape == (len(TEXTS), encoder.width) == (len(TEXTS), 16)
    np.testing.assert_allclose(together, np.concatenate([encoder.encode([text]) for text in TEXTS]), atol=1e-5)


def test_texts_are_cut_at_the_shorter_of_both_limits(tiny):
    short = TextEncoder(tiny, max_length=4, device="cpu")
    assert np.array_equal(short.encode(["heat war of stars"]), short.encode(["heat war"]))
    TextEncoder(tiny, max_length=500, device="cpu").encode(["war " * 500])  # the model has 32 positions


def test_no_texts_give_no_vectors(encoder):
    assert encoder.encode([]).shape == (0, 16)


def test_cached_vectors_are_those_computed_and_need_no_model(tiny, tmp_path, monkeypatch):
    first = TextEncoder(tiny, batch_size=3, device="cpu").encode(TEXTS, tmp_path)
    again = TextEncoder(tiny, batch_size=3, device="cpu")
    monkeypatch.setattr(again, "_batch", never)
    assert np.array_equal(again.encode(TEXTS[::-1], tmp_path), first[::-1])
    assert "model" not in vars(again)


def test_the_cache_grows_by_new_texts_only(tiny, tmp_path):
    encoder, seen = TextEncoder(tiny, device="cpu"), []
    encoder.encode(TEXTS[:2], tmp_path)
    encoder.encode(TEXTS, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 6), (6, 6)]


def test_settings_and_weights_have_caches_of_their_own(tiny, tmp_path):
    changed = tmp_path / "changed"
    model = BertModel.from_pretrained(tiny)
    model.embeddings.word_embeddings.weight.data[4] += 1
    model.save_pretrained(changed)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (changed / name).write_bytes((tiny / name).read_bytes())
    variants = [TextEncoder(tiny), TextEncoder(tiny, max_length=8), TextEncoder(tiny, normalize=False)]
    assert len({encoder.identity for encoder in [*variants, TextEncoder(changed)]}) == 4
    assert TextEncoder(tiny, batch_size=7).identity == TextEncoder(tiny).identity


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data[:-1] + b"x"]
)
def test_a_damaged_cache_is_computed_again(tiny, tmp_path, damage):
    encoder = TextEncoder(tiny, batch_size=3, device="cpu")
    expected = encoder.encode(TEXTS, tmp_path)
    (shard,) = tmp_path.rglob("*.safetensors")
    shard.write_bytes(damage(shard.read_bytes()))
    assert np.array_equal(encoder.encode(TEXTS, tmp_path), expected)
    assert np.array_equal(encoder.encode(TEXTS, tmp_path), expected)


def test_many_writers_at_once_leave_a_whole_cache(tmp_path):
    vectors = {bytes([row]) * 32: np.full(4, row, dtype=np.float32) for row in range(40)}
    parts = [dict(list(vectors.items())[start : start + 20]) for start in (0, 5, 10, 15, 20, 20)]
    threads = [threading.Thread(target=VectorCache(tmp_path).write, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    known = VectorCache(tmp_path).read(vectors)
    assert known.keys() == vectors.keys()
    assert all(np.array_equal(known[key], vectors[key]) for key in vectors)
    assert not list(tmp_path.glob("*.tmp"))


def test_an_encoder_that_is_not_there_or_damaged_is_refused_in_one_line(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in tiny.iterdir():
        (broken / path.name).write_bytes(path.read_bytes()[: 200 if path.suffix == ".safetensors" else None])
    for place in (tmp_path / "nowhere", tmp_path, broken):
        with pytest.raises(ConfigError, match="text encoder") as caught:
            TextEncoder(place, device="cpu").encode(["a"])
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def dense(tiny, tmp_path_factory):
    """The tiny encoder with pooling by its first token and a dense layer, as sentence-transformers saves it."""
    path = tmp_path_factory.mktemp("dense")
    torch.manual_seed(1)
    parts = [Transformer(str(tiny)), Pooling(16, pooling_mode="cls"), Dense(16, 8)]
    SentenceTransformer(modules=parts, device="cpu").save(str(path))
    return path


def test_pooling_and_dense_layers_are_those_of_the_checkpoint(dense, tiny):
    encoder = TextEncoder(dense, normalize=False, device="cpu")
    layer = load_file(next(dense.glob("*_Dense")) / "model.safetensors")
    with torch.inference_mode():
        first = BertModel.from_pretrained(tiny).eval()(torch.tensor([[2, 4, 5, 3]])).last_hidden_state[:, 0]
        expected = torch.tanh(first @ layer["linear.weight"].T + layer["linear.bias"])
    assert encoder.width == 8
    np.testing.assert_allclose(encoder.encode(["toy story"]), expected.numpy(), atol=1e-5)


def test_a_dense_layer_counts_for_the_cache_and_no_pickle_is_read(dense, tmp_path):
    shutil.copytree(dense, tmp_path / "copy")
    encoder = TextEncoder(tmp_path / "copy", device="cpu")
    assert encoder.identity == TextEncoder(dense, device="cpu").identity
    weights = next((tmp_path / "copy").glob("*_Dense")) / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    assert TextEncoder(tmp_path / "copy", device="cpu").identity != encoder.identity
    with pytest.raises(ConfigError, match="is a pickle"):
        encoder.encode(["a"])
