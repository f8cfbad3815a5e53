"""The clamped exponential temperature against its closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.losses.contrastive.temperature import LOG_SCALE_INIT, LOG_SCALE_MAX, clamp_log_scale, logit_scale


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
