"""Pooling against float64 NumPy."""

import jax.numpy as jnp
import numpy as np

from alm_jax.nn.pooling import masked_mean


def test_mean_over_real_tokens_alone():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 5, 4)).astype(np.float32)
    mask = np.array([[True] * 5, [True, False, True, False, False], [False] * 5])
    x[~mask] = np.nan
    expected = [x[0].mean(0, dtype=np.float64), x[1, [0, 2]].mean(0, dtype=np.float64), np.zeros(4)]
    np.testing.assert_allclose(masked_mean(jnp.asarray(x), jnp.asarray(mask)), expected, atol=1e-6)


def test_bfloat16_is_summed_in_float32():
    """1,024 ones: a sum in bfloat16 stays at 256."""
    x = jnp.ones((1, 1024, 1), jnp.bfloat16)
    mean = masked_mean(x, jnp.ones((1, 1024), bool))
    assert mean.dtype == jnp.bfloat16
    assert float(mean[0, 0]) == 1.0
