"""Bootstrap intervals against SciPy's, their coverage, and scores that belong together."""

import numpy as np
import pytest
import scipy.stats

from alm_jax.evaluation.metrics.bootstrap import Scores, bootstrap_interval


def alone(values):
    return Scores(np.asarray(values, np.float64), np.arange(len(values)))


def test_equals_the_percentile_interval_of_scipy(rng):
    values = rng.random(200)
    found = bootstrap_interval(alone(values), num_draws=20_000)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=rng
    ).confidence_interval
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert found == bootstrap_interval(alone(values), num_draws=20_000)


def test_covers_the_truth_as_often_as_it_says(rng):
    inside = 0
    for _ in range(200):
        low, high = bootstrap_interval(alone(rng.random(80) < 0.7), num_draws=400)
        inside += low <= 0.7 <= high
    # 190 of 200 are expected; fewer than 178 or more than 199 happen once in ten thousand times.
    assert 178 <= inside <= 199


def test_captions_of_a_recording_are_drawn_together(rng):
    """Five equal scores a recording are one observation, and not five."""
    of_clips = rng.random(60)
    together = Scores(np.repeat(of_clips, 5), np.repeat(np.arange(60), 5) * 3)
    np.testing.assert_allclose(bootstrap_interval(together), bootstrap_interval(alone(of_clips)), atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_scores_have_an_interval_of_one_point(value):
    assert bootstrap_interval(alone(np.full(10, value))) == (value, value)
