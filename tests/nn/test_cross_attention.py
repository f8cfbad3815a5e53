"""Attention of a decoder to an encoder's states against PyTorch's, layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from alm_jax.errors import UserError
from alm_jax.nn.cross_attention import CrossAttention, CrossKeyValue, Seq2SeqCache, check_source
from alm_jax.nn.kv_cache import CacheShape, make_cache

LAYERS, HEADS, SIZE, WIDTH = 3, 2, 4, 8
FLOAT32 = jnp.dtype("float32")


def test_each_layer_equals_pytorch():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, WIDTH)).astype(np.float32)
    states = rng.normal(size=(2, 7, WIDTH)).astype(np.float32)
    mask = np.arange(7)[None, :] < np.array([[7], [4]])
    references = [torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval() for _ in range(LAYERS)]
    weights = []
    for reference in references:
        with torch.no_grad():
            reference.in_proj_bias.normal_()
            reference.out_proj.bias.normal_()
        kernels = np.split(reference.in_proj_weight.detach().numpy(), 3)
        biases = np.split(reference.in_proj_bias.detach().numpy(), 3)
        weights.append(
            {
                name: {"kernel": kernel.T.reshape(WIDTH, HEADS, SIZE), "bias": bias.reshape(HEADS, SIZE)}
                for name, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True)
            }
        )
    stack = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *weights)
    params = {name: stack[name] for name in ("key", "value")}
    source = CrossKeyValue(LAYERS, HEADS, SIZE, FLOAT32).apply(
        {"params": params}, jnp.asarray(states), jnp.asarray(mask)
    )
    assert int(source.length) == 7
    for layer, reference in enumerate(references):
        expected, _ = reference(
            torch.tensor(x), torch.tensor(states), torch.tensor(states), key_padding_mask=torch.tensor(~mask)
        )
        out = {
            "kernel": jnp.asarray(reference.out_proj.weight.detach().numpy().T.reshape(HEADS, SIZE, WIDTH)),
            "bias": jnp.asarray(reference.out_proj.bias.detach().numpy()),
        }
        query = jax.tree.map(lambda leaf, layer=layer: leaf[layer], stack["query"])
        actual = CrossAttention(HEADS, SIZE, FLOAT32).apply(
            {"params": {"query": query, "out": out}},
            jnp.asarray(x),
            source.key[layer],
            source.value[layer],
            source.mask,
        )
        np.testing.assert_allclose(actual, expected.detach().numpy(), atol=2e-6)


def test_the_source_comes_exactly_once():
    cache = make_cache(CacheShape(LAYERS, HEADS, SIZE), 1, 4, jnp.float32)
    states = jnp.zeros((1, 2, WIDTH))
    check_source(states, None)
    check_source(states, cache)
    check_source(None, Seq2SeqCache(cache, cache))
    for given in ((None, None), (None, cache), (states, Seq2SeqCache(cache, cache))):
        with pytest.raises(UserError, match="give states with the prompt"):
            check_source(*given)
