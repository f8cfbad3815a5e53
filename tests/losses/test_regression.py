"""The regression of latents against PyTorch and its float64 formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from alm_jax.losses.regression import cosine_distance, latent_regression


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


def test_cosine_distance_is_pytorchs_and_what_does_not_count_has_no_say():
    rng = np.random.default_rng(3)
    prediction, target = (rng.normal(size=(2, 5, 7)).astype(np.float32) for _ in range(2))
    mask = rng.random((2, 5)) < 0.6
    cosine = torch.cosine_similarity(torch.tensor(prediction), torch.tensor(target), dim=-1).numpy()
    prediction[~mask] = np.nan
    target[~mask] = 0
    run = jax.value_and_grad(
        lambda x: cosine_distance(x, jnp.asarray(target), mask=jnp.asarray(mask)), has_aux=True
    )
    (total, weight), grad = run(jnp.asarray(prediction))
    np.testing.assert_allclose(total, (1 - cosine)[mask].sum(), rtol=1e-6)
    assert weight == mask.sum()
    assert np.isfinite(grad).all()
    assert not grad[~mask].any()
    # Of vectors of length 1, half the squared distance.
    a, b = (
        jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), jnp.float32)
        for x in rng.normal(size=(2, 1, 4, 3))
    )
    halves = np.square(a - b).sum() / 2
    np.testing.assert_allclose(cosine_distance(a, b)[0], halves, rtol=1e-5)
