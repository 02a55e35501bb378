import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from setrec.rows import top_k


@given(st.integers(0, 2**32 - 1), st.integers(1, 2000), st.integers(0, 12), st.booleans())
def test_the_largest_entries_are_the_first_of_a_stable_sort(seed, columns, k, ties):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-1, 3, size=(3, columns)) if ties else rng.normal(size=(3, columns))
    scores = np.where(rng.random(scores.shape) < 0.2, -np.inf, scores).astype(np.float32)
    np.testing.assert_array_equal(top_k(scores, k), np.argsort(-scores, axis=1, kind="stable")[:, :k])
