"""The regression of latents against PyTorch and its float64 formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from alm_jax.losses.regression import latent_regression


@pytest.mark.parametrize(("l1_weight", "l2_weight"), [(1.0, 0.0), (0.0, 1.0), (0.3, 1.7)])
def test_value_and_gradient(l1_weight, l2_weight):
    rng = np.random.default_rng(0)
    prediction, target = rng.normal(size=(2, 3, 5, 8)).astype(np.float32)
    mask = np.arange(5)[None, :] < np.array([[5], [2], [0]])
    leaf = torch.tensor(prediction, dtype=torch.float64, requires_grad=True)
    real = torch.tensor(mask)
    kept, wanted = leaf[real], torch.tensor(target).double()[real]
    want = l1_weight * torch.nn.functional.l1_loss(kept, wanted)
    want = want + l2_weight * torch.nn.functional.mse_loss(kept, wanted)
    want.backward()

    def mean(x):
        total, weight = latent_regression(
            x, jnp.asarray(target), l1_weight=l1_weight, l2_weight=l2_weight, mask=jnp.asarray(mask)
        )
        return total / weight, weight

    prediction[~mask], target[~mask] = np.nan, np.inf
    (value, weight), grad = jax.jit(jax.value_and_grad(mean, has_aux=True))(prediction)
    assert float(weight) == 7
    np.testing.assert_allclose(value, want.item(), rtol=1e-6)
    np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-5, atol=1e-7)


def test_without_a_mask_every_frame_counts():
    prediction, target = np.random.default_rng(1).normal(size=(2, 2, 3, 4)).astype(np.float32)
    loss = jax.jit(functools.partial(latent_regression, l1_weight=2.0, l2_weight=0.5))
    total, weight = loss(prediction, target)
    error = prediction.astype(np.float64) - target
    np.testing.assert_allclose(total / weight, np.mean(2 * np.abs(error) + error**2 / 2), rtol=1e-6)
