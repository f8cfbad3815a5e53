"""T5's buckets of distances and their bias against transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Attention

from alm_jax.nn.relative_bias import RelativeBias


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (16, 20), (64, 250)])
def test_bias_of_every_offset_equals_the_reference(num_buckets, max_distance, bidirectional):
    """Offsets far beyond the last bucket, and every border of two buckets, where rounding decides."""
    reference = T5Attention(
        T5Config(
            d_model=8,
            num_heads=2,
            d_kv=4,
            relative_attention_num_buckets=num_buckets,
            relative_attention_max_distance=max_distance,
            is_decoder=not bidirectional,
        ),
        has_relative_attention_bias=True,
        layer_idx=0,
    )
    length = 2 * max_distance
    with torch.no_grad():
        expected = reference.compute_bias(length, length)
    embedding = reference.relative_attention_bias.weight.detach().numpy()
    module = RelativeBias(2, num_buckets, max_distance, bidirectional, jax.nn.initializers.zeros)
    positions = jnp.arange(length)[None, :]
    actual = module.apply({"params": {"embedding": jnp.asarray(embedding)}}, positions, positions)
    np.testing.assert_array_equal(actual, expected)


def test_positions_may_differ_by_row():
    """A row that starts two tokens later than the other sees each key as the other sees the key two earlier."""
    module = RelativeBias(2, 8, 16, False, jax.nn.initializers.normal(1.0))
    keys = jnp.broadcast_to(jnp.arange(6), (2, 6))
    bias, _ = module.init_with_output(jax.random.key(0), jnp.asarray([[3, 4], [1, 2]]), keys)
    np.testing.assert_array_equal(bias[0, :, :, 2:], bias[1, :, :, :-2])
    assert not np.array_equal(bias[0], bias[1])
