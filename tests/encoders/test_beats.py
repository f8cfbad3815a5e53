"""BEATs: published size, the buckets of its distances, its masks, and the config of an archive.

That its numbers are those of the equations in PyTorch is shown by tests/interop/test_parity.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from alm_jax.encoders import family
from alm_jax.encoders.audio.beats import AUDIOSET, BASE, FAMILY, NANO, Beats, BeatsConfig, compute_patch_mask
from alm_jax.errors import UserError
from alm_jax.interop.beats import BEATS_ARCHIVE
from alm_jax.interop.format import arrays_to_variables, variables_to_arrays
from alm_jax.interop.parity import load_oracle

FLOAT32 = jnp.dtype("float32")
MICRO = BeatsConfig(
    num_mels=8,
    patch_size=4,
    patch_width=6,
    width=8,
    num_layers=2,
    num_heads=2,
    mlp_dim=16,
    position_window=4,
    position_groups=2,
    num_buckets=8,
    max_distance=16,
)


@pytest.mark.parametrize("config", [BASE, AUDIOSET])
def test_full_sizes_have_the_parameters_of_the_oracle(config):
    """About 90 M, as published. PyTorch counts the shared table once."""
    with torch.device("meta"):
        oracle = load_oracle("beats").build(config)
    ours = sum(leaf.size for leaf in jax.tree.leaves(family.abstract(FAMILY, config)["params"]))
    assert ours == sum(parameter.numel() for parameter in oracle.parameters())
    np.testing.assert_allclose(ours, 90e6, rtol=0.01)


def test_residuals_are_enlarged_as_published():
    np.testing.assert_allclose(BASE.residual_scale, 2.2134, atol=1e-4)
    np.testing.assert_allclose(BASE.init_gain, 0.3195, atol=1e-4)


def test_an_archive_says_its_config_and_repeats_its_table():
    config = dataclasses.replace(NANO, num_mels=128, max_distance=800, num_classes=7, compat=True)
    arrays = {key: tensor.numpy() for key, tensor in load_oracle("beats").build(config).state_dict().items()}
    assert BEATS_ARCHIVE.infer_config({key: array.shape for key, array in arrays.items()}) == config
    back = variables_to_arrays(BEATS_ARCHIVE, config, arrays_to_variables(BEATS_ARCHIVE, config, arrays))
    assert back.keys() == arrays.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(back[key], array, strict=True, err_msg=key)


@pytest.fixture(scope="module")
def run():
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), family.abstract(FAMILY, MICRO)
    )
    return jax.jit(lambda features, mask: Beats(MICRO, FLOAT32).apply(variables, features, mask=mask))


def test_padding_has_no_say(run):
    """A clip of 22 frames, 20 of them in whole patches, alone and followed by what is no audio."""
    rng = np.random.default_rng(1)
    features = jnp.asarray(rng.normal(size=(2, 40, 8)), jnp.float32)
    mask = jnp.arange(40)[None] < jnp.asarray([[22], [40]])
    alone = run(features[:1, :22], None)
    padded = run(features, mask)
    np.testing.assert_allclose(padded[:1], alone, atol=1e-5)
    assert float(jnp.max(jnp.abs(run(features, None)[0] - alone[0]))) > 1e-2


def test_visible_patches_keep_their_places_and_the_others_are_not_heard():
    """All in another order is the whole; the first steps of time alone are what padding after them leaves."""
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), family.abstract(FAMILY, MICRO)
    )
    features = jnp.asarray(rng.normal(size=(2, 24, 8)), jnp.float32)

    @jax.jit
    def encode(features, visible_ids, mask):
        module = Beats(MICRO, FLOAT32, "tokens")
        return module.apply(variables, features, visible_ids=visible_ids, mask=mask)

    whole = encode(features, None, None)
    order = jnp.asarray(np.stack([rng.permutation(12) for _ in range(2)]), jnp.int32)
    permuted = encode(features, order, None)
    expected = jnp.take_along_axis(whole, order[:, :, None], axis=1)
    np.testing.assert_allclose(permuted, expected, atol=1e-5)

    padded = encode(features, None, jnp.arange(24)[None].repeat(2, axis=0) < 16)[:, :8]
    first = jnp.arange(8, dtype=jnp.int32)[None].repeat(2, axis=0)
    alone = encode(features, first, None)
    np.testing.assert_allclose(alone, padded, atol=1e-5)
    assert float(jnp.max(jnp.abs(alone - whole[:, :8]))) > 1e-2
    other = features.at[:, 16:].set(5.0)
    np.testing.assert_array_equal(encode(other, first, None), alone)


def test_the_released_mask_hands_frames_to_patches_in_reading_order():
    """24 frames of 12 patches: two frames each, a patch real where one of them is."""
    mask = jnp.arange(24)[None] < 13
    compat = dataclasses.replace(MICRO, compat=True)
    assert compute_patch_mask(compat, mask)[0].tolist() == [True] * 7 + [False] * 5
    assert compute_patch_mask(MICRO, mask)[0].tolist() == [True] * 6 + [False] * 6


def test_what_does_not_fit_is_refused(run):
    with pytest.raises(UserError, match="at least 4 frames of 8"):
        run(jnp.zeros((1, 3, 8)), None)
    with pytest.raises(UserError, match="no classifier"):
        Beats(MICRO, FLOAT32, "logits").apply({"params": {}}, jnp.zeros((1, 8, 8)))
    with pytest.raises(UserError, match="position_groups"):
        dataclasses.replace(MICRO, position_groups=3)
    with pytest.raises(UserError, match="even"):
        dataclasses.replace(MICRO, num_buckets=7)
