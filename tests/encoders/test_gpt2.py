"""GPT-2: its sizes, its cache, and the text vector of MS-CLAP 2023."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from alm_jax.encoders import family
from alm_jax.encoders.text.gpt2 import FAMILY, VARIANTS, Gpt2Config
from alm_jax.errors import UserError
from alm_jax.interop.gpt2 import write_gpt2_config
from alm_jax.nn.kv_cache import make_cache

PUBLISHED = {
    "small": 124_439_808,
    "medium": 354_823_168,
    "large": 774_030_080,
    "xl": 1_557_611_200,
}
MICRO = Gpt2Config(vocab_size=40, width=16, num_layers=2, num_heads=2, mlp_dim=32, max_positions=12)
LENGTH = 9


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_size_has_the_parameters_of_the_reference(name):
    fields = write_gpt2_config(VARIANTS[name])
    with torch.device("meta"):
        reference = transformers.GPT2LMHeadModel(transformers.GPT2Config(**fields))
    ours = sum(leaf.size for leaf in jax.tree.leaves(family.abstract(FAMILY, VARIANTS[name])))
    assert ours == PUBLISHED[name] == sum(parameter.numel() for parameter in reference.parameters())


@pytest.fixture(scope="module")
def variables() -> dict:
    """Weights drawn by NumPy."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32), family.abstract(FAMILY, MICRO)
    )


@pytest.fixture(scope="module")
def ids() -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).integers(1, MICRO.vocab_size, (3, LENGTH)), jnp.int32)


@pytest.fixture(scope="module")
def whole(variables):
    """Logits of whole texts."""
    return jax.jit(lambda ids: family.apply(FAMILY, MICRO, variables, ids, jnp.ones((3, LENGTH), bool)))


@pytest.fixture(scope="module")
def step(variables):
    """A pass over a prompt or one token."""
    return jax.jit(lambda ids, mask, cache: family.apply(FAMILY, MICRO, variables, ids, mask, cache=cache))


@pytest.fixture(scope="module")
def states(variables):
    """States of texts whose real tokens the mask says."""
    return jax.jit(lambda ids, mask: family.apply(FAMILY, MICRO, variables, ids, mask, output="states"))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_prompt_and_steps_give_the_logits_of_the_whole_text(ids, whole, step, side):
    """Prompts of 5, 3 and 1 tokens, with one token after the other behind them."""
    prompt_lengths = np.array([5, 3, 1])
    expected = np.asarray(whole(ids))
    slots = np.arange(5)[None, :] - (5 - prompt_lengths[:, None] if side == "left" else 0)
    mask = (slots >= 0) & (slots < prompt_lengths[:, None])
    prompt = np.where(mask, np.take_along_axis(np.asarray(ids), np.maximum(slots, 0), axis=1), 7)
    cache = make_cache(MICRO.cache_shape, 3, 9, jnp.float32)
    logits, cache = step(jnp.asarray(prompt), jnp.asarray(mask), cache)
    for row, own in enumerate(mask):
        np.testing.assert_allclose(logits[row][own], expected[row, : own.sum()], atol=1e-4)
    for t in range(4):
        following = jnp.take_along_axis(ids, jnp.asarray(prompt_lengths + t)[:, None], axis=1)
        logits, cache = step(following, jnp.ones((3, 1), bool), cache)
        for row, start in enumerate(prompt_lengths):
            np.testing.assert_allclose(logits[row, 0], expected[row, start + t], atol=1e-4)


def test_the_text_vector_is_the_state_of_the_last_real_token(variables, ids, states):
    mask = jnp.asarray(np.arange(LENGTH)[None, :] < np.array([[9], [5], [2]]))
    last = jax.jit(lambda v, i, m: family.apply(FAMILY, MICRO, v, i, m, output="last"))(variables, ids, mask)
    np.testing.assert_allclose(last, np.asarray(states(ids, mask))[np.arange(3), [8, 4, 1]], atol=1e-6)


def test_compat_counts_ids_as_ms_clap_does(variables, ids, states):
    """Padding is id 0, "!"; the second caption has one of its own, and its vector comes from a token too early."""
    mask = np.arange(LENGTH)[None, :] < np.array([[9], [5], [2]])
    padded = np.where(mask, ids, 0)
    padded[1, 2] = 0
    compat = dataclasses.replace(MICRO, compat=True)
    inputs = jnp.asarray(padded), jnp.asarray(mask)
    last = jax.jit(lambda v, i, m: family.apply(FAMILY, compat, v, i, m, output="last"))(variables, *inputs)
    np.testing.assert_allclose(last, np.asarray(states(*inputs))[np.arange(3), [8, 3, 1]], atol=1e-6)


def test_dropout_acts_in_training_alone(variables, ids):
    mask = jnp.ones((3, LENGTH), bool)
    run = jax.jit(
        lambda key: family.apply(FAMILY, MICRO, variables, ids, mask, train=True, rngs={"dropout": key})
    )
    one, again, other = run(jax.random.key(0)), run(jax.random.key(0)), run(jax.random.key(1))
    np.testing.assert_array_equal(one, again)
    assert float(jnp.max(jnp.abs(one - other))) > 1e-3
    with pytest.raises(Exception, match="dropout"):
        family.apply(FAMILY, MICRO, variables, ids, mask, train=True)


def test_texts_longer_than_the_positions_are_refused(variables, ids):
    with pytest.raises(UserError, match="texts of 13 tokens"):
        family.apply(FAMILY, MICRO, variables, jnp.ones((1, 13), jnp.int32), jnp.ones((1, 13), bool))
    cache = make_cache(MICRO.cache_shape, 3, 13, jnp.float32)
    with pytest.raises(UserError, match="or the cache"):
        family.apply(FAMILY, MICRO, variables, ids, jnp.ones((3, LENGTH), bool), cache=cache)
    with pytest.raises(UserError, match="multiple of num_heads"):
        dataclasses.replace(MICRO, num_heads=3)
