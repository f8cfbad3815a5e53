"""Several texts in a row of a language model: each is read as if it were alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.encoders import family
from alm_jax.encoders.text import gpt2, llama
from alm_jax.errors import UserError
from alm_jax.nn.kv_cache import count_segment_positions, make_cache

SIZES = {"vocab_size": 50, "width": 32, "num_layers": 2, "num_heads": 4, "mlp_dim": 48, "max_positions": 16}
LENGTHS = (5, 1, 7)
SEGMENTS = np.repeat([0, 1, 2, 0], [*LENGTHS, 3])
MASK = np.arange(16) < sum(LENGTHS)
IDS = np.random.default_rng(0).integers(0, 50, (2, 16)).astype(np.int32)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        pytest.param(gpt2.FAMILY, gpt2.Gpt2Config(kernel_init="fan_in", **SIZES), marks=pytest.mark.slow),
        (llama.FAMILY, llama.LlamaConfig(num_kv_heads=2, kernel_init="fan_in", **SIZES)),
    ],
    ids=["gpt2", "llama"],
)
def test_packed_texts_do_not_see_each_other(kind, config):
    variables = family.init(kind, config, jax.random.key(0))
    mask = np.broadcast_to(MASK, IDS.shape)

    @jax.jit
    def read(ids, mask, segments):
        return family.apply(kind, config, variables, ids, mask, segments=segments)

    segments = np.broadcast_to(SEGMENTS, IDS.shape)
    packed = np.asarray(read(IDS, mask, segments))
    start = 0
    for length in LENGTHS:
        own = slice(start, start + length)
        alone = np.roll(IDS, -start, axis=1)
        logits = read(alone, np.broadcast_to(np.arange(16) < length, IDS.shape), np.zeros_like(segments))
        np.testing.assert_allclose(packed[:, own], logits[:, :length], atol=1e-5)
        # Another text in its place: the others stay what they were, to the last bit.
        changed = IDS.copy()
        changed[:, own] = (changed[:, own] + 1) % 50
        moved = np.abs(np.asarray(read(changed, mask, segments)) - packed).max(axis=(0, 2)) > 0
        assert moved[own].all()
        assert not moved[:start].any()
        assert not moved[start + length : sum(LENGTHS)].any()
        start += length


def test_positions_begin_anew_and_padding_takes_none():
    segments = np.array([[0, 0, 0, 1, 1, 3, 3, 3]])
    mask = np.array([[True, False, True, True, True, False, True, True]])
    positions = count_segment_positions(jnp.asarray(mask), jnp.asarray(segments))
    assert np.asarray(positions)[mask].tolist() == [0, 1, 0, 1, 0, 1]


def test_segments_and_a_cache_are_refused():
    config = llama.LlamaConfig(num_kv_heads=2, **SIZES)
    cache = make_cache(config.cache_shape, 1, 4, jnp.float32)
    ids, mask = jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
    variables = family.abstract(llama.FAMILY, config)
    with pytest.raises(UserError, match="segments"):
        jax.eval_shape(
            lambda v: family.apply(llama.FAMILY, config, v, ids, mask, segments=ids, cache=cache), variables
        )
