"""Attention against PyTorch's scaled_dot_product_attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from alm_jax.ops.attention import attend

RNG = np.random.default_rng(0)
BATCH, QUERIES, KEYS, HEADS, SIZE = 3, 5, 7, 2, 8


def draw(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.fixture
def qkv() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        draw(BATCH, QUERIES, HEADS, SIZE),
        draw(BATCH, KEYS, HEADS, SIZE),
        draw(BATCH, KEYS, HEADS, SIZE),
    )


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_mask", [False, True])
def test_equals_pytorch(qkv, with_bias, with_mask):
    bias = draw(1, HEADS, QUERIES, KEYS) if with_bias else None
    mask = RNG.random((BATCH, 1, 1, KEYS)) < 0.6 if with_mask else None
    added = torch.zeros(BATCH, HEADS, QUERIES, KEYS)
    if bias is not None:
        added = added + torch.tensor(bias)
    if mask is not None:
        mask[..., 0] = True
        added = added.masked_fill(~torch.tensor(mask), -torch.inf)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(torch.tensor(x).transpose(1, 2) for x in qkv), attn_mask=added
    ).transpose(1, 2)
    actual = attend(
        *map(jnp.asarray, qkv),
        bias=None if bias is None else jnp.asarray(bias),
        mask=None if mask is None else jnp.asarray(mask),
    )
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_leading_axes_are_free(qkv):
    query, key, value = map(jnp.asarray, qkv)
    nested = attend(query[None], key[None], value[None])
    alone = attend(query[0], key[0], value[0])
    np.testing.assert_allclose(nested[0, 0], alone, atol=1e-6)


def test_fully_masked_query_is_finite_and_so_is_its_gradient(qkv):
    query, key, value = map(jnp.asarray, qkv)
    mask = jnp.zeros((BATCH, 1, 1, KEYS), jnp.bool_)
    out = attend(query, key, value, mask=mask)
    np.testing.assert_allclose(out[:, 0], jnp.mean(value, axis=1), atol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(attend(*x, mask=mask) ** 2)))
    gradients = gradient((query, key, value))
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in gradients)


def test_bfloat16_keeps_the_softmax_in_float32(qkv):
    """The weights of 4096 equal keys are 1/4096: a sum in bfloat16 would stop growing at 256."""
    query = jnp.zeros((1, 1, 1, 8), jnp.bfloat16)
    key, value = jnp.zeros((1, 4096, 1, 8), jnp.bfloat16), jnp.ones((1, 4096, 1, 8), jnp.bfloat16)
    out = attend(query, key, value)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(out, np.float32), 1.0)


def test_dropout_keeps_the_mean_and_is_off_without_a_key(qkv):
    query, key, value = map(jnp.asarray, qkv)
    plain = attend(query, key, value)
    np.testing.assert_array_equal(attend(query, key, value, dropout_rate=0.5), plain)

    def dropped(dropout_key):
        return attend(query, key, value, dropout_rate=0.5, dropout_key=dropout_key)

    samples = np.asarray(jax.jit(jax.vmap(dropped))(jax.random.split(jax.random.key(0), 1000)))
    error = samples.std(axis=0) / 1000**0.5
    assert (np.abs(samples.mean(axis=0) - plain) / error).max() < 5
    assert samples.std(axis=0).min() > 0.01
