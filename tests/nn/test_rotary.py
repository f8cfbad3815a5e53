"""Rotary positions against transformers' and against what they are for."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from alm_jax.errors import UserError
from alm_jax.nn.rotary import RopeScaling, inverse_frequencies, rotary_tables, rotate


def build_config(**rope) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=1, max_position_embeddings=131072, rope_parameters=rope
    )


def test_rotation_equals_transformers():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, 64)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3, 4], [0, 0, 7, 100, 2047]], np.int32)
    embedding = LlamaRotaryEmbedding(build_config(rope_type="default", rope_theta=10000.0))
    cos, sin = embedding(torch.tensor(x), torch.tensor(positions))
    expected, _ = apply_rotary_pos_emb(torch.tensor(x), torch.tensor(x), cos, sin, unsqueeze_dim=2)
    tables = rotary_tables(jnp.asarray(positions), inverse_frequencies(64, 10000.0), jnp.float32)
    actual = rotate(jnp.asarray(x), tables)
    # An angle of 2047 radians has 1.2e-4 between two neighbours in float32, and a frequency's last bit moves it by one.
    np.testing.assert_allclose(actual[0], expected[0], atol=2e-6)
    np.testing.assert_allclose(actual[1], expected[1], atol=1e-3)


def test_scaled_frequencies_equal_transformers():
    """Llama 3.2's factor, so that all three kinds of frequencies occur: kept, interpolated and divided."""
    scaling = RopeScaling(factor=32.0)
    theirs = build_config(
        rope_type="llama3",
        rope_theta=500000.0,
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs)
    actual, plain = inverse_frequencies(64, 500000.0, scaling), inverse_frequencies(64, 500000.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    np.testing.assert_allclose(actual[0], plain[0])
    np.testing.assert_allclose(actual[-1], plain[-1] / 32)
    assert np.any((actual < plain * 0.99) & (actual > plain / 32 * 1.01))


def test_scores_depend_on_the_distance_alone():
    query, key = (
        jnp.asarray(x) for x in np.random.default_rng(0).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    )
    frequencies = inverse_frequencies(8, 100.0)

    def score(query_position: int, key_position: int) -> float:
        turned = [
            rotate(x, rotary_tables(jnp.full((1, 1), position), frequencies, jnp.float32))
            for x, position in ((query, query_position), (key, key_position))
        ]
        return float(jnp.sum(turned[0] * turned[1]))

    np.testing.assert_allclose(score(9, 4), score(25, 20), atol=1e-5)
    assert abs(score(9, 4) - score(9, 5)) > 1e-2


def test_heads_of_an_odd_size_are_refused():
    with pytest.raises(UserError, match="even size, not 7"):
        inverse_frequencies(7, 10000.0)
    with pytest.raises(UserError, match="must be above"):
        RopeScaling(low_freq_factor=4.0)
