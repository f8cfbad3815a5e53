"""What each policy computes again and what it keeps, in closed form and by the compiler."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from alm_jax.bench.counting import count
from alm_jax.bench.memory import memory_of
from alm_jax.encoders import family as zoo
from alm_jax.encoders.audio import cnn14
from alm_jax.encoders.text import bert

CONFIG = dataclasses.replace(bert.NANO, num_layers=4)
ROWS, LENGTH = 4, 64
REMATS = ("none", "dots", "block")


def differentiate(family, config, remat, params, *inputs):
    def loss(params):
        output = zoo.apply(family, config, params, *inputs, remat=remat)
        return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(output))

    return jax.value_and_grad(loss)(params)


@pytest.fixture(scope="module")
def arguments():
    """Shapes of the parameters, the token ids and their mask."""
    ids = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
    return zoo.abstract(bert.FAMILY, CONFIG), ids, jax.ShapeDtypeStruct(ids.shape, jnp.bool_)


def test_flops_are_those_of_what_is_computed_again(arguments):
    none, dots, block = (
        count(functools.partial(differentiate, bert.FAMILY, CONFIG, remat), *arguments).flops
        for remat in REMATS
    )
    tokens, width = ROWS * LENGTH, CONFIG.width
    attention = CONFIG.num_layers * 2 * (2 * tokens * LENGTH * width)
    weights = CONFIG.num_layers * 2 * tokens * (4 * width**2 + 2 * width * CONFIG.mlp_dim)
    assert dots - none == attention
    assert block - none == attention + weights


def test_memory_falls_from_policy_to_policy(arguments):
    none, dots, block = (
        memory_of(
            jax.jit(functools.partial(differentiate, bert.FAMILY, CONFIG, remat)).lower(*arguments).compile()
        ).temp_bytes
        for remat in REMATS
    )
    # One layer's arrays are alive whatever is kept of the others; float32.
    others, tokens = CONFIG.num_layers - 1, ROWS * LENGTH
    weights_of_attention = 4 * tokens * CONFIG.num_heads * LENGTH
    assert none - dots > others * weights_of_attention
    # Of queries, keys and values, of attention's output, and of both halves of the MLP.
    products = 4 * tokens * (5 * CONFIG.width + CONFIG.mlp_dim)
    assert dots - block > others * products


def test_convolutions_are_products_with_weights():
    """They are kept: only the moments and activations around them are computed again."""
    config = cnn14.FAMILY.variants["nano"]
    shapes = zoo.abstract(cnn14.FAMILY, config), *cnn14.FAMILY.example(config)
    none, dots, block = (
        count(functools.partial(differentiate, cnn14.FAMILY, config, remat), *shapes).flops
        for remat in REMATS
    )
    assert none == dots < block
