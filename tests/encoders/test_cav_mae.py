"""CAV-MAE's audio branch: what is special to it. Equality with the equations: PARITY in alm_jax/interop/cav_mae.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from alm_jax.encoders import family
from alm_jax.encoders.audio.cav_mae import (
    FAMILY,
    LTU,
    VARIANTS,
    CavMae,
    CavMaeConfig,
    compute_prompt_mask,
)
from alm_jax.errors import UserError
from alm_jax.interop.parity import load_oracle

MICRO = CavMaeConfig(
    num_frames=128, num_mels=32, width=16, num_layers=2, num_heads=2, mlp_dim=32, prompt_width=12
)
FLOAT32 = jnp.dtype("float32")


@pytest.mark.parametrize("name", list(VARIANTS))
def test_every_variant_has_the_parameters_of_the_reference(name):
    with torch.device("meta"):
        reference = load_oracle("cav_mae").Ltu(VARIANTS[name])
    ours = sum(leaf.size for leaf in jax.tree.leaves(family.abstract(FAMILY, VARIANTS[name])["params"]))
    assert ours == sum(parameter.numel() for parameter in reference.parameters())


def test_the_published_prompt():
    """8 x 64 patches, 32 vectors of Llama's width, and padding of 5.081 / 4.4849."""
    assert LTU.grid == (8, 64)
    variables = family.abstract(FAMILY, LTU)
    features = jax.ShapeDtypeStruct((2, 1024, 128), jnp.float32)
    prompt = jax.eval_shape(CavMae(LTU, FLOAT32).apply, variables, features)
    assert prompt.shape == (2, 32, 4096)
    assert -FAMILY.frontend.mean / (FAMILY.frontend.num_std * FAMILY.frontend.std) == pytest.approx(
        1.1329, abs=1e-4
    )


@pytest.fixture(scope="module")
def variables() -> dict:
    """Weights drawn by NumPy."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), family.abstract(FAMILY, MICRO)
    )


def test_padding_changes_nothing(variables):
    """A clip of 64 frames and some alone, and followed by anything under the mask: vectors of whole real columns."""
    features = jnp.asarray(np.random.default_rng(1).normal(size=(2, 128, 32)), jnp.float32)
    mask = jnp.arange(128)[None, :] < jnp.asarray([[128], [70]])
    filled = jnp.where(mask[:, :, None], features, 77.0)

    encode = jax.jit(CavMae(MICRO, FLOAT32).apply)
    prompt = encode(variables, filled, mask=mask)
    alone = encode(variables, features[1:2, :64])
    assert compute_prompt_mask(MICRO, mask).sum(axis=1).tolist() == [4, 2]
    np.testing.assert_allclose(prompt[1, :2], alone[0], atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 144, 32), (1, 16, 32), (1, 120, 32), (1, 128, 16)])
def test_features_that_do_not_fit_are_refused(variables, shape):
    with pytest.raises(UserError, match="multiple of 16 from 32 to 128 frames of 32"):
        CavMae(MICRO, FLOAT32).apply(variables, jnp.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"num_heads": 3}, "multiple of num_heads"), ({"num_mels": 20}, "multiples of patch_size")],
)
def test_shapes_that_do_not_fit_are_refused(changes, match):
    with pytest.raises(UserError, match=match):
        dataclasses.replace(MICRO, **changes)
