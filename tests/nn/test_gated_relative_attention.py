"""Gated relative attention against a formula in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.nn.gated_relative_attention import GatedRelativeAttention

FLOAT32 = jnp.dtype("float32")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_equals_the_formula():
    rng = np.random.default_rng(0)
    x, bias = rng.normal(size=(2, 5, 12)), rng.normal(size=(1, 3, 5, 5))
    mask = np.array([[True] * 5, [True] * 3 + [False] * 2])
    module = GatedRelativeAttention(3, FLOAT32)
    shapes = nn.unbox(
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(x.shape), bias=jnp.zeros(bias.shape))
    )
    p = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes["params"])

    qkv = np.einsum("bnd,dshk->sbhnk", x, p["qkv"]["kernel"])
    query, key, value = qkv + p["qkv"]["bias"][:, None, :, None]
    gates = np.einsum("bhnk,kgs->bhngs", query, p["gate"]["kernel"]) + p["gate"]["bias"]
    a, b = np.moveaxis(sigmoid(gates.sum(-1)), -1, 0)
    gate = a * (b * p["gate_scale"][None, :, None] - 1) + 2
    scores = np.einsum("bhnk,bhmk->bhnm", query, key) / np.sqrt(4) + gate[..., None] * bias
    weights = np.exp(scores) * mask[:, None, None]
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("bhnm,bhmk,hkd->bnd", weights, value, p["out"]["kernel"]) + p["out"]["bias"]

    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), p)
    actual = module.apply(
        {"params": single}, jnp.asarray(x, FLOAT32), bias=jnp.asarray(bias, FLOAT32), mask=jnp.asarray(mask)
    )
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def test_the_gain_is_of_value_and_output_alone():
    """N(0, 2 / (inputs + outputs)) for query and key, times the gain for the others."""
    width = 256
    init = jax.jit(
        lambda key: GatedRelativeAttention(4, FLOAT32, gain=0.25).init(
            key, jnp.zeros((1, 1, width)), bias=jnp.zeros((1, 4, 1, 1))
        )
    )
    params = nn.unbox(init(jax.random.key(0)))["params"]
    deviation = np.std(params["qkv"]["kernel"], axis=(0, 2, 3)) * width**0.5
    np.testing.assert_allclose(deviation, [1, 1, 0.25], rtol=0.02)
    np.testing.assert_allclose(np.std(params["out"]["kernel"]) * width**0.5, 0.25, rtol=0.02)
