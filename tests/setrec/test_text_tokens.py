"""The text slot's principal directions."""

import numpy as np
from threadpoolctl import threadpool_limits

from setrec.models.item_tokens import TextTokenizer


def directions(threads: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    texts = (rng.normal(size=(40, 10)) @ rng.normal(size=(10, 256))).astype(np.float32)
    tokenizer = TextTokenizer(40, 256, 16, 8)
    with threadpool_limits(threads):
        tokenizer.fill(texts)
    return tokenizer.directions.numpy()


def test_directions_in_which_no_text_differs_are_zero():
    norms = np.linalg.norm(directions(1), axis=0)
    assert np.allclose(norms[norms > 0], 1, atol=1e-5)
    assert 9 <= (norms > 0).sum() <= 10


def test_directions_are_the_same_for_every_number_of_threads():
    assert np.array_equal(directions(1), directions(4))
