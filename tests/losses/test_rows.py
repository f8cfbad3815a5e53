"""Losses by row: sum and weight of each row are those of the row alone, and add up to the batch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.losses.classification import cross_entropy
from alm_jax.losses.reconstruction import masked_label_prediction, masked_reconstruction
from alm_jax.losses.regression import cosine_distance

ROWS, PATCHES, WIDTH = 5, 7, 6


@pytest.mark.parametrize("name", ["squares", "absolute", "labels", "classes", "cosine"])
def test_a_row_has_the_sum_and_weight_of_itself_alone(rng, name):
    prediction, target = jnp.asarray(rng.normal(size=(2, ROWS, PATCHES, WIDTH)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, WIDTH, (ROWS, PATCHES)), jnp.int32)
    mask = jnp.asarray(rng.random((ROWS, PATCHES)) < 0.6).at[1].set(False)
    losses = {
        "squares": lambda rows, **options: masked_reconstruction(
            prediction[rows], target[rows], mask[rows], **options
        ),
        "absolute": lambda rows, **options: masked_reconstruction(
            prediction[rows], target[rows], mask[rows], distance="l1", **options
        ),
        "labels": lambda rows, **options: masked_label_prediction(
            prediction[rows], labels[rows], mask[rows], **options
        ),
        "classes": lambda rows, **options: cross_entropy(prediction[rows, 0], labels[rows, 0], **options),
        "cosine": lambda rows, **options: cosine_distance(
            prediction[rows], target[rows], mask=mask[rows], **options
        ),
    }
    loss = losses[name]
    total, weight = jax.device_get(loss(slice(None), by_row=True))
    assert total.shape == weight.shape == (ROWS,)
    alone = jax.device_get([loss(slice(row, row + 1)) for row in range(ROWS)])
    np.testing.assert_array_equal(np.stack([total, weight], axis=1), alone)
    np.testing.assert_allclose([total.sum(), weight.sum()], loss(slice(None)), rtol=1e-6)
