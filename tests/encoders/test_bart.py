"""BART: sizes as published, generation over a cache, and what it refuses. (Outputs: `alm zoo --parity`.)"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from alm_jax.encoders import family
from alm_jax.encoders.text.bart import FAMILY, NANO, VARIANTS
from alm_jax.errors import UserError
from alm_jax.interop.bart import write_bart_config
from alm_jax.nn.kv_cache import make_cache

MICRO = dataclasses.replace(
    NANO, vocab_size=40, width=16, num_heads=2, mlp_dim=24, num_decoder_layers=3, max_positions=8
)


@pytest.mark.parametrize(
    ("name", "published"), [("bart_base", 139.42e6), ("bart_large", 406.29e6), ("nano", None)]
)
def test_every_variant_has_the_parameters_of_the_reference(name, published):
    with torch.device("meta"):
        fields = write_bart_config(VARIANTS[name])
        reference = transformers.BartForConditionalGeneration(transformers.AutoConfig.for_model(**fields))
    ours = sum(leaf.size for leaf in jax.tree.leaves(family.abstract(FAMILY, VARIANTS[name])))
    assert ours == sum(parameter.numel() for parameter in reference.parameters())
    if published:
        np.testing.assert_allclose(ours, published, rtol=1e-4)


@pytest.fixture(scope="module")
def variables() -> dict:
    """Weights drawn by NumPy."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32), family.abstract(FAMILY, MICRO)
    )


def test_step_by_step_equals_the_whole_text(variables):
    """A prompt of three slots, then two steps; the second text is padded on the left by 2."""
    rng = np.random.default_rng(0)
    source_mask = jnp.asarray(np.arange(6)[None, :] < np.array([[6], [4]]))
    mask = jnp.asarray(np.arange(5)[None, :] >= np.array([[0], [2]]))
    source_ids, ids = (jnp.asarray(rng.integers(0, 40, m.shape)) for m in (source_mask, mask))

    @jax.jit
    def whole(variables):
        """States of the source, logits, and logits of the same source as embeddings."""
        table = variables["params"]["token_embed"]["embedding"]
        embeds = {"embeds": table[source_ids], "method": "encode"}
        source = family.apply(FAMILY, MICRO, variables, source_ids, source_mask, method="encode")
        same = family.apply(FAMILY, MICRO, variables, source_ids * 0, source_mask, **embeds)
        return source, same, family.apply(FAMILY, MICRO, variables, source_ids, source_mask, ids, mask)

    @jax.jit
    def decode(variables, ids, mask, cache, **source):
        return family.apply(FAMILY, MICRO, variables, ids, mask, method="decode", cache=cache, **source)

    source, same, expected = whole(variables)
    np.testing.assert_allclose(source, same, atol=1e-6)
    empty = make_cache(MICRO.cache_shape, 2, 7, jnp.float32)
    first, cache = decode(variables, ids[:, :3], mask[:, :3], empty, source=source, source_mask=source_mask)
    steps = [first]
    for i in (3, 4):
        step, cache = decode(variables, ids[:, i : i + 1], mask[:, i : i + 1], cache)
        steps.append(step)
    real = np.asarray(mask)
    np.testing.assert_allclose(np.concatenate(steps, axis=1)[real], np.asarray(expected)[real], atol=1e-4)
    assert int(cache.text.length) == 5


def test_what_it_cannot_compute_is_refused(variables):
    nine = jnp.zeros((1, 9), jnp.int32), jnp.ones((1, 9), bool)
    with pytest.raises(UserError, match="9 tokens; this BART has positions for 8"):
        family.apply(FAMILY, MICRO, variables, *nine, method="encode")
    ten = make_cache(MICRO.cache_shape, 1, 10, jnp.float32)
    read = {"method": "decode", "source": jnp.zeros((1, 2, 16)), "cache": ten}
    with pytest.raises(
        UserError, match="10 tokens; this BART has positions for 8: shorten the text or the cache"
    ):
        family.apply(FAMILY, MICRO, variables, nine[0][:, :1], nine[1][:, :1], **read)
    with pytest.raises(UserError, match="give states with the prompt"):
        family.apply(FAMILY, MICRO, variables, *nine, method="decode")
    with pytest.raises(UserError, match="width 16 is not a multiple of num_heads 3"):
        dataclasses.replace(MICRO, num_heads=3)
