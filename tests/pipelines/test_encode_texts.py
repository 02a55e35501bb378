"""Item texts to vectors: an actor pool gives what one process gives, and no text is encoded twice."""

import json
import os
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file
from small_models import WORDS, tiny_bert

from pipelines.common.run_directory import Run
from pipelines.config.job import validate
from pipelines.features import encode_texts as module
from pipelines.features.encode_texts import Texts, encode_texts
from setrec.data.catalog import Catalog
from setrec.errors import ConfigError
from setrec.text.encoder import TextEncoder
from setrec.text.vector_store import VectorTable


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("tiny"))


def texts(count, seed=0):
    """Texts of one to eight words, some of them equal, one of them empty."""
    rng = np.random.default_rng(seed)
    return ["", *(" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(count - 3)), "heat", "heat"]


def prepared(root, given) -> Run:
    """A run whose items have these texts, several row groups of them."""
    run = Run(root / "run")
    ids = [f"i{row}" for row in range(len(given))]
    Catalog(ids, ids, given, {}).save(run.data / "items.parquet")
    table = pq.read_table(run.data / "items.parquet")
    pq.write_table(table, run.data / "items.parquet", row_group_size=37)
    return run


def config(tiny, **changes):
    encoder = {"path": str(tiny), "batch_size": 4, **changes}
    return validate({"data": {"interactions": "x.csv"}, "encoder": encoder, "cluster": {"threads": 1}}, "test")


def encoded(run) -> dict:
    lines = [json.loads(line) for line in (run.root / "logs" / "run.jsonl").read_text().splitlines()]
    return next(line for line in reversed(lines) if line["event"] == "encoded")


def vectors(run) -> np.ndarray:
    return load_file(run.features / "text.safetensors")["text"]


@pytest.mark.slow
def test_actors_give_what_one_process_gives_though_one_of_them_dies(ray_here, tmp_path, tiny, monkeypatch):
    given, marker, honest = texts(150), tmp_path / "died", module._Encoder

    class DiesOnce(honest):
        def __call__(self, batch):
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return honest.__call__(self, batch)

    alone, pool = prepared(tmp_path / "a", given), prepared(tmp_path / "b", given)
    encode_texts(alone, config(tiny))
    monkeypatch.setattr(module, "_Encoder", DiesOnce)
    encode_texts(pool, config(tiny, actors=2))
    assert marker.exists()
    assert np.array_equal(vectors(alone), vectors(pool))
    np.testing.assert_allclose(vectors(pool), TextEncoder(tiny, device="cpu").encode(given), atol=1e-5)
    for run in (alone, pool):
        assert encoded(run)["items"] == 150
        assert encoded(run)["encoded"] == encoded(run)["texts"] == len(set(given))


def test_only_texts_that_no_run_has_met_are_encoded(tmp_path, tiny, monkeypatch):
    asked = []
    encode = TextEncoder.encode
    monkeypatch.setattr(
        TextEncoder, "encode", lambda self, some, *rest: asked.extend(some) or encode(self, some, *rest)
    )
    first, second = prepared(tmp_path, texts(60)), Run(tmp_path / "other")
    encode_texts(first, config(tiny))
    assert sorted(asked) == sorted(set(texts(60)))
    asked.clear()
    encode_texts(first, config(tiny))
    assert asked == []
    assert encoded(first)["encoded"] == 0
    grown = [*reversed(texts(60)), "peace of peace and war"]
    Catalog([str(row) for row in range(len(grown))], grown, grown, {}).save(second.data / "items.parquet")
    encode_texts(second, config(tiny))
    assert asked == ["peace of peace and war"]
    np.testing.assert_array_equal(vectors(second)[:-1], vectors(first)[::-1])
    encode_texts(second, config(tiny, max_length=8))
    assert encoded(second)["encoded"] == len(set(grown)), "vectors of texts cut elsewhere are other vectors"


@pytest.mark.slow
def test_an_encoder_that_fails_is_told_in_one_line_and_leaves_no_file(ray_here, tmp_path, tiny, monkeypatch):
    class Fails:
        def __init__(self, *_):
            pass

        def __call__(self, batch):
            raise ConfigError("gives numbers that are not finite")

    run = prepared(tmp_path, texts(100))
    monkeypatch.setattr(module, "_Encoder", Fails)
    with pytest.raises(ConfigError, match="not finite") as error:
        encode_texts(run, config(tiny, actors=2))
    assert "\n" not in str(error.value)
    assert not list(run.features.iterdir())


def test_texts_are_read_by_row_whatever_the_row_groups(tmp_path):
    given = texts(100)
    read = Texts(prepared(tmp_path, given).data / "items.parquet")
    rows = np.array([0, 1, 36, 37, 38, 74, 99])
    assert read.read(rows) == [given[row] for row in rows]


def test_a_table_filled_in_any_order_is_a_file_that_safetensors_reads(tmp_path):
    expected = np.random.default_rng(0).random((9, 3)).astype(np.float32)
    with VectorTable(tmp_path / "t.safetensors", "text", 10, 3) as table:
        for rows in ([7, 5, 6, 2], [], [0, 1, 8], [3, 4]):
            table.write(np.array(rows, dtype=np.int64), expected[rows])
        np.testing.assert_array_equal(table.read(np.array([8, 2, 8])), expected[[8, 2, 8]])
    found = load_file(tmp_path / "t.safetensors")["text"]
    np.testing.assert_array_equal(found, np.concatenate([expected, np.zeros((1, 3))]))
