"""Attention masks of language models: written out, and through attention."""

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.ops.attention import attend
from alm_jax.ops.attention_masks import causal_mask, prefix_lm_mask


def test_masks_written_out() -> None:
    mask = jnp.array([[True, True, True, True, False]])
    prefix = jnp.array([[True, True, False, False, False]])
    causal = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0]]
    np.testing.assert_array_equal(causal_mask(mask)[0, 0], np.array(causal, bool))
    np.testing.assert_array_equal(
        prefix_lm_mask(mask, prefix)[0, 0], np.array([[1, 1, 0, 0, 0], *causal[1:]], bool)
    )


def test_what_a_token_depends_on() -> None:
    """By the gradient of each output with respect to each input."""
    length, prefix_length = 6, 3
    x = jax.random.normal(jax.random.key(0), (2, length, 1, 4))
    mask = jnp.ones((2, length), bool)
    prefix = jnp.arange(length)[None, :] < jnp.array([prefix_length, 0])[:, None]

    def outputs(x):
        return attend(x, x, x, mask=prefix_lm_mask(mask, prefix)).sum(axis=(2, 3))

    depends = np.abs(jax.jacobian(outputs)(x)).sum(axis=(4, 5)) > 0  # [row, query, row, key]
    want = np.tril(np.ones((length, length), bool))
    np.testing.assert_array_equal(depends[1, :, 1], want)
    want[:prefix_length, :prefix_length] = True
    np.testing.assert_array_equal(depends[0, :, 0], want)
