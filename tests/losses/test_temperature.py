"""The three temperatures against their closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.losses.contrastive import sigmoid_loss
from alm_jax.losses.contrastive.temperature import (
    LOG_SCALE_INIT,
    LOG_SCALE_MAX,
    SIGMOID_BIAS_INIT,
    SIGMOID_LOG_SCALE_INIT,
    clamp_log_scale,
    clamp_tau,
    inverse_tau,
    logit_scale,
    scale_and_bias,
)


def test_initial_and_largest_scale() -> None:
    np.testing.assert_allclose(logit_scale(jnp.float32(LOG_SCALE_INIT)), 1 / 0.07, rtol=1e-6)
    np.testing.assert_allclose(logit_scale(jnp.float32(LOG_SCALE_MAX)), 100.0, rtol=1e-6)


def test_bfloat16_parameter_is_exponentiated_in_float32() -> None:
    assert logit_scale(jnp.bfloat16(2.0)).dtype == jnp.float32


@pytest.mark.parametrize(("before", "after"), [(-0.5, 0.0), (0.0, 0.0), (3.25, 3.25), (9.0, np.log(100.0))])
def test_clamp(before: float, after: float) -> None:
    np.testing.assert_allclose(clamp_log_scale(jnp.float32(before)), after, rtol=1e-6)


def test_a_parameter_at_the_bound_keeps_its_gradient() -> None:
    bound = clamp_log_scale(jnp.float32(7.0))
    np.testing.assert_allclose(jax.grad(logit_scale)(bound), 100.0, rtol=1e-6)


def test_tau_divides_and_is_clamped() -> None:
    np.testing.assert_allclose(inverse_tau(jnp.float32(0.07)), 1 / 0.07, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(inverse_tau)(jnp.float32(0.5)), -4.0, rtol=1e-6)
    clamped = [clamp_tau(jnp.float32(tau), 0.001, 0.5) for tau in (1e-9, 0.2, 3.0)]
    np.testing.assert_allclose(clamped, [0.001, 0.2, 0.5], rtol=1e-6)


def test_the_sigmoid_loss_begins_as_siglip_says() -> None:
    """Orthogonal embeddings: log(1 + e^10) for the positive, and log(1 + e^-10) for each of the others."""
    scale, bias = scale_and_bias(jnp.float32(SIGMOID_LOG_SCALE_INIT), jnp.float32(SIGMOID_BIAS_INIT))
    eye = jnp.eye(8)
    total, weight = sigmoid_loss(eye[:4], eye[4:], scale, bias)
    np.testing.assert_allclose(total / weight, np.log1p(np.exp(10)) + 3 * np.log1p(np.exp(-10)), rtol=1e-6)
