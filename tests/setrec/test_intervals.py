"""Bootstrap p-values beside their intervals, under no difference and under one; Holm's rule against its definition."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from setrec.evaluation.intervals import bootstrap_means, holm, paired_difference, two_sided_p


def paired_p(a, b, resamples=1000):
    """The p-value beside `paired_difference`, from the same resamples."""
    return two_sided_p(bootstrap_means((a - b)[:, None], resamples, 0))[0]


def test_p_values_are_near_uniform_where_there_is_no_difference():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((120, 600)) * rng.uniform(0.1, 5, 600)
    p = two_sided_p(bootstrap_means(values, 999, seed=1))
    for level in (0.05, 0.1, 0.3, 0.5, 0.8):
        # One draw of users for all columns; columns are independent, so shares spread as binomial ones do.
        assert abs((p <= level).mean() - level) < 4 * np.sqrt(level * (1 - level) / 600) + 0.01


def test_a_difference_has_a_small_p_value_and_none_has_one():
    rng = np.random.default_rng(1)
    users = rng.random(400)
    better = users + 0.03 + 0.1 * rng.standard_normal(400)
    assert paired_p(better, users) < 0.01
    assert paired_p(users, better) == paired_p(better, users)
    assert paired_p(users, users) == 1.0


def test_a_p_value_is_below_a_twentieth_just_where_the_interval_leaves_zero_out():
    rng, disagreed = np.random.default_rng(2), 0
    for _ in range(200):
        a, b = rng.standard_normal(40) + rng.uniform(0, 0.8), rng.standard_normal(40)
        _, low, high = paired_difference(a, b, 999)
        disagreed += (paired_p(a, b, 999) < 0.05) != (low > 0 or high < 0)
    assert disagreed <= 2


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_its_definition(p):
    order, expected, worst = sorted(range(len(p)), key=lambda i: p[i]), [0.0] * len(p), 0.0
    for place, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - place) * p[i]))
        expected[i] = worst
    np.testing.assert_allclose(holm(np.array(p)), expected)
    np.testing.assert_allclose(holm(np.array([p, p]).T), np.array([expected, expected]).T)
