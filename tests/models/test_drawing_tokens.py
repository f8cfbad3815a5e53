"""What is drawn, and how often: against transformers' filters and exact probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from scipy import stats

from alm_jax.errors import UserError
from alm_jax.models.sampling import Sample, draw, filter_logits

LOGITS = np.random.default_rng(0).normal(0, 2, (4, 60)).astype(np.float32)


@pytest.mark.parametrize(
    "sample",
    [
        Sample(temperature=0.6),
        Sample(top_k=7),
        Sample(top_k=100),
        Sample(top_p=0.8),
        Sample(top_p=1e-6),
        Sample(temperature=1.7, top_k=20, top_p=0.6),
    ],
    ids=str,
)
def test_filters_are_transformers_warpers(sample):
    expected = torch.tensor(LOGITS)
    if sample.temperature != 1.0:
        expected = transformers.TemperatureLogitsWarper(sample.temperature)(None, expected)
    if sample.top_k is not None:
        expected = transformers.TopKLogitsWarper(sample.top_k)(None, expected)
    if sample.top_p is not None:
        expected = transformers.TopPLogitsWarper(sample.top_p)(None, expected)
    actual = np.asarray(filter_logits(jnp.asarray(LOGITS), sample))
    np.testing.assert_array_equal(np.isfinite(actual), np.isfinite(expected.numpy()))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_words_of_equal_logits_share_a_place_among_the_k_likeliest():
    """As in transformers."""
    logits = np.array([[1.0, 3.0, 2.0, 2.0, 0.0]], np.float32)
    expected = transformers.TopKLogitsWarper(2)(None, torch.tensor(logits))
    actual = filter_logits(jnp.asarray(logits), Sample(top_k=2))
    np.testing.assert_array_equal(actual, expected)


def test_words_are_drawn_as_often_as_their_probability_says():
    """Chi-square over 20,000 draws of each of two rows; the key is fixed, and so the outcome."""
    count, sample = 20000, Sample(temperature=1.5, top_k=12, top_p=0.9)

    @jax.jit
    def draw_many(row):
        return draw(jax.random.key(0), jnp.broadcast_to(row, (count, row.size)), sample)

    for row in LOGITS[:2]:
        drawn = np.bincount(np.asarray(draw_many(jnp.asarray(row))), minlength=row.size)
        probabilities = np.exp(np.asarray(filter_logits(jnp.asarray(row)[None], sample)[0], np.float64))
        possible = probabilities > 0
        assert 1 < possible.sum() <= 12
        assert not drawn[~possible].any()
        expected = count * probabilities[possible] / probabilities.sum()
        assert stats.chisquare(drawn[possible], expected).pvalue > 0.01


@pytest.mark.parametrize("field", [{"temperature": 0.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_what_cannot_be_drawn_from_is_refused(field):
    with pytest.raises(UserError, match=next(iter(field))):
        Sample(**field)
