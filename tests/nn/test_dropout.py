"""Dropout and stochastic depth: what is dropped, and that the mean stays."""

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.nn.dropout import drop_path, dropout


def test_dropout_drops_elements():
    out = np.asarray(dropout(jnp.ones((200, 500)), 0.2, jax.random.key(0)))
    np.testing.assert_allclose(np.unique(out), [0.0, 1.25])
    # 100,000 draws of probability 0.8: the standard deviation of the mean is 0.0016 after scaling.
    np.testing.assert_allclose(out.mean(), 1.0, atol=0.006)


def test_drop_path_drops_whole_examples():
    out = np.asarray(drop_path(jnp.ones((4000, 3, 2)), 0.25, jax.random.key(0)))
    assert {tuple(np.unique(example)) for example in out} == {(np.float32(0),), (np.float32(4 / 3),)}
    # 4,000 draws: the standard deviation of the mean is 0.009.
    np.testing.assert_allclose(out.mean(), 1.0, atol=0.04)


def test_nothing_is_dropped_without_a_key():
    x = jnp.ones((2, 3))
    assert dropout(x, 0.5, None) is x
    assert drop_path(x, 0.5, None) is x
