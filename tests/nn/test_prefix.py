"""A prefix of a causal language model: read in both directions, with a cache and without."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.encoders import family
from alm_jax.encoders.text import gpt2, llama
from alm_jax.nn.kv_cache import make_cache

SMALL = {"vocab_size": 50, "width": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 16, "max_positions": 16}
MODELS = {
    "gpt2": (gpt2.FAMILY, dataclasses.replace(gpt2.NANO, **SMALL)),
    "qwen2": (llama.QWEN2, dataclasses.replace(llama.QWEN2_NANO, num_kv_heads=1, **SMALL)),
}
# Two rows: a prefix of five and three tokens, padding behind the second.
MASK = jnp.asarray([[True] * 8, [True] * 6 + [False] * 2])
PREFIX = jnp.arange(8)[None, :] < jnp.asarray([[5], [3]])
IDS = jax.random.randint(jax.random.key(1), (2, 8), 0, 50)


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    """Variables and (ids, mask, options) -> states, compiled."""
    kind, config = MODELS[request.param]
    variables = family.init(kind, config, jax.random.key(0))
    read = jax.jit(functools.partial(family.apply, kind, config, output="states"))
    return config, variables, functools.partial(read, variables)


def changed(before, after):
    """Whether each token's state is another."""
    return np.abs(np.asarray(before) - np.asarray(after)).max(axis=-1) > 1e-4


def test_a_later_token_of_the_prefix_changes_an_earlier_state_and_no_other_does(model):
    _, _, read = model
    other = IDS.at[:, 2].add(1)
    np.testing.assert_array_equal(changed(read(IDS, MASK), read(other, MASK))[:, :2], np.zeros((2, 2), bool))
    assert changed(read(IDS, MASK, prefix=PREFIX), read(other, MASK, prefix=PREFIX))[:, :2].all()
    # An answer is still written from left to right, and read by nothing before it.
    other = IDS.at[0, 6].add(1).at[1, 4].add(1)
    found = changed(read(IDS, MASK, prefix=PREFIX), read(other, MASK, prefix=PREFIX))
    np.testing.assert_array_equal(found, np.asarray([[0] * 6 + [1, 1], [0] * 4 + [1] * 4], bool) & found)
    assert found[0, 6]
    assert found[1, 4]


def test_no_prefix_is_causal(model):
    _, _, read = model
    np.testing.assert_allclose(read(IDS, MASK, prefix=jnp.zeros_like(MASK)), read(IDS, MASK), atol=1e-5)


def test_a_prompt_in_the_cache_is_read_as_without_one(model):
    config, _, read = model
    whole = read(IDS, MASK, prefix=PREFIX)
    cache = make_cache(config.cache_shape, 2, 9, jnp.float32)
    # The first pass takes five tokens, of which two of the second row are its answer already.
    start, cache = read(IDS[:, :5], MASK[:, :5], prefix=PREFIX[:, :5], cache=cache)
    np.testing.assert_allclose(start, whole[:, :5], atol=1e-5)
    rest, _ = read(IDS[:, 5:], MASK[:, 5:], cache=cache)
    np.testing.assert_allclose(
        np.where(MASK[:, 5:, None], rest, 0), np.where(MASK[:, 5:, None], whole[:, 5:], 0), atol=1e-5
    )
