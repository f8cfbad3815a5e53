"""The cache against attention over the same tokens in one piece, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.errors import UserError
from alm_jax.nn.kv_cache import CACHE_AXES, CacheShape, append, make_cache, read, reserve

SHAPE = CacheShape(num_layers=2, num_heads=3, head_dim=4)


def test_positions_and_visibility_of_padded_prompts_and_steps():
    """A row padded left, one padded right, one whole; then one token, which the second row has not."""
    cache = make_cache(SHAPE, 3, 6, jnp.float32)
    prompt = jnp.asarray([[False, True, True], [True, False, False], [True, True, True]])
    cache, positions, visible = reserve(cache, prompt)
    np.testing.assert_array_equal(positions, [[0, 0, 1], [0, 0, 0], [0, 1, 2]])
    expected = np.tril(np.ones((3, 6), bool))[None] & np.pad(prompt, ((0, 0), (0, 3)))[:, None, :]
    np.testing.assert_array_equal(visible[:, 0], expected)
    assert int(cache.length) == 3

    cache, positions, visible = reserve(cache, jnp.asarray([[True], [False], [True]]))
    np.testing.assert_array_equal(positions, [[2], [1], [3]])
    np.testing.assert_array_equal(visible[0, 0, 0], [False, True, True, True, False, False])
    np.testing.assert_array_equal(visible[1, 0, 0], [True, False, False, False, False, False])
    np.testing.assert_array_equal(visible[2, 0, 0], [True, True, True, True, False, False])


def test_each_layer_reads_what_it_wrote():
    rng = np.random.default_rng(0)
    keys, values = jnp.asarray(rng.normal(size=(2, 2, 2, 4, 3, 4)), jnp.float32)  # [layer B L H K] each
    cache = make_cache(SHAPE, 2, 5, jnp.float32)
    for start, stop in ((0, 3), (3, 4)):
        cache, _, _ = reserve(cache, jnp.ones((2, stop - start), bool))
        for layer in range(2):
            cache, key, value = append(
                cache, jnp.int32(layer), keys[layer, :, start:stop], values[layer, :, start:stop]
            )
            for read_back, written in ((key, keys), (value, values)):
                np.testing.assert_array_equal(read_back[:, :stop], written[layer, :, :stop])
                np.testing.assert_array_equal(read_back[:, stop:], 0.0)
    np.testing.assert_array_equal(read(cache, jnp.int32(0))[0][:, :4], keys[0])


def test_a_donated_cache_is_written_in_place():
    """The compiler's memory: no second stack beside the one that goes in and comes out."""
    cache = jax.eval_shape(lambda: make_cache(CacheShape(8, 2, 64), 2, 512, jnp.bfloat16))
    token = jax.ShapeDtypeStruct((2, 1, 2, 64), jnp.bfloat16)

    def step(cache, key, value):
        cache, _, visible = reserve(cache, jnp.ones((2, 1), bool))

        def layer(carry, index):
            cache, total = carry
            cache, keys, values = append(cache, index, key, value)
            seen = jnp.where(visible[:, 0, 0, :, None, None], keys + values, 0)
            return (cache, total + jnp.sum(seen, dtype=jnp.float32)), None

        (cache, total), _ = jax.lax.scan(layer, (cache, jnp.float32(0)), jnp.arange(8))
        return cache, total

    memory = jax.jit(step, donate_argnums=0).lower(cache, token, token).compile().memory_analysis()
    stack = 8 * 2 * 512 * 2 * 64 * 2
    assert memory.alias_size_in_bytes >= 2 * stack
    assert memory.temp_size_in_bytes < stack


def test_every_array_has_named_axes():
    cache = make_cache(SHAPE, 1, 2, jnp.float32)._asdict()
    assert {name: len(axes) for name, axes in CACHE_AXES.items()} == {
        name: array.ndim for name, array in cache.items()
    }


def test_a_prompt_longer_than_the_cache_is_refused():
    with pytest.raises(UserError, match="5 tokens do not fit into a cache of 4 slots"):
        reserve(make_cache(SHAPE, 1, 4, jnp.float32), jnp.ones((1, 5), bool))
