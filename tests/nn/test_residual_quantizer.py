"""Residual quantisation against a float64 formula."""

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.nn.residual_quantizer import dequantize, quantize


def test_codes_are_the_nearest_entries_and_decode_to_their_sum():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3))
    codebooks = rng.normal(size=(4, 8, 3)) / np.arange(1, 5)[:, None, None]
    rest, expected = x.copy(), []
    for entries in codebooks[:3]:
        distance = ((rest[:, :, None] - entries[None, None]) ** 2).sum(-1)
        # No tie that float32 could decide otherwise.
        assert np.diff(np.sort(distance, -1)[..., :2]).min() > 1e-5
        expected.append(distance.argmin(-1))
        rest = rest - entries[expected[-1]]
    books = jnp.asarray(codebooks, jnp.float32)
    codes = jax.jit(quantize)(jnp.asarray(x, jnp.float32), books[:3])
    np.testing.assert_array_equal(codes, np.stack(expected, axis=1))
    np.testing.assert_allclose(dequantize(codes, books), x - rest, atol=1e-6)


def test_ties_go_to_the_first():
    book = jnp.zeros((1, 4, 2))
    assert quantize(jnp.ones((1, 1, 2)), book).tolist() == [[[0]]]
