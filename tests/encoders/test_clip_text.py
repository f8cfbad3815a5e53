"""CLIP's text tower: sizes as published, which token is the end, and what it refuses. (Outputs: `alm zoo --parity`.)"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from alm_jax.encoders import family
from alm_jax.encoders.text.clip_text import FAMILY, NANO, VARIANTS, find_end
from alm_jax.errors import UserError
from alm_jax.interop.clip_text import write_clip_text_config


@pytest.mark.parametrize(
    ("name", "published"),
    [("clip_vit_b_32", 63.43e6), ("clip_vit_b_16", 63.43e6), ("clip_vit_l_14", 123.65e6), ("nano", None)],
)
def test_every_variant_has_the_parameters_of_the_reference(name, published):
    with torch.device("meta"):
        fields = write_clip_text_config(VARIANTS[name])
        reference = transformers.CLIPTextModelWithProjection(transformers.AutoConfig.for_model(**fields))
    ours = sum(leaf.size for leaf in jax.tree.leaves(family.abstract(FAMILY, VARIANTS[name])))
    assert ours == sum(parameter.numel() for parameter in reference.parameters())
    if published:
        np.testing.assert_allclose(ours, published, rtol=1e-4)


def test_the_end_is_the_largest_id_or_the_first_of_its_own():
    """Padding may repeat the end token, or be any id: what is not real is not the end."""
    ids = jnp.asarray([[9, 3, 7, 7, 7], [1, 7, 2, 9, 9], [1, 2, 3, 4, 5]])
    mask = jnp.asarray([[True] * 5, [True, True, True, False, False], [True] * 5])
    np.testing.assert_array_equal(find_end(NANO, ids, mask), [0, 1, 4])
    own = dataclasses.replace(NANO, end_id=7)
    np.testing.assert_array_equal(find_end(own, ids, mask), [2, 1, 0])


def test_what_it_cannot_compute_is_refused():
    long = jnp.zeros((1, 65), jnp.int32), jnp.ones((1, 65), bool)
    with pytest.raises(UserError, match="padded to 65 tokens; this tower has positions for 64"):
        jax.eval_shape(
            lambda: FAMILY.build(NANO, jnp.dtype("float32"), "none").init(jax.random.key(0), *long)
        )
    with pytest.raises(UserError, match="width 128 is not a multiple of num_heads 3"):
        dataclasses.replace(NANO, num_heads=3)
