"""Patch masks against ViT-MAE's in transformers, and their structure and shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEEmbeddings

from alm_jax.ops.patch_masking import (
    keep_lowest,
    mask_structured,
    mask_unstructured,
    num_kept,
    take_patches,
)

GRID = (64, 8)


def test_the_same_noise_masks_as_vit_mae():
    config = transformers.ViTMAEConfig(image_size=4, patch_size=1, hidden_size=8, mask_ratio=0.8)
    rng = np.random.default_rng(0)
    patches, noise = rng.normal(size=(3, 512, 8)).astype(np.float32), rng.random((3, 512)).astype(np.float32)
    visible, hidden, restore = ViTMAEEmbeddings(config).random_masking(
        torch.tensor(patches), torch.tensor(noise)
    )
    got = keep_lowest(jnp.asarray(noise), num_kept(512, 0.8))
    np.testing.assert_array_equal(take_patches(jnp.asarray(patches), got.visible_ids), visible.numpy())
    np.testing.assert_array_equal(got.hidden, hidden.numpy() == 1)
    np.testing.assert_array_equal(got.restore_ids, restore.numpy())


def check_consistent(mask, num_patches: int) -> None:
    """Visible ids, hidden and restore ids tell the same story."""
    visible = np.sort(np.asarray(mask.visible_ids), axis=1)
    for row, ids in enumerate(visible):
        np.testing.assert_array_equal(np.flatnonzero(~np.asarray(mask.hidden)[row]), ids)
    np.testing.assert_array_equal(
        np.sort(mask.restore_ids, axis=1), np.tile(np.arange(num_patches), (len(visible), 1))
    )
    # A decoder's sequence: the visible ones as the encoder saw them, then placeholders.
    tokens = np.full(mask.hidden.shape, -1)
    tokens[:, : visible.shape[1]] = mask.visible_ids
    on_grid = np.take_along_axis(tokens, np.asarray(mask.restore_ids), axis=1)
    np.testing.assert_array_equal(on_grid, np.where(mask.hidden, -1, np.arange(num_patches)[None]))


@pytest.fixture(scope="module")
def unstructured():
    """AudioMAE's pre-training masks of 64 clips."""
    return jax.jit(mask_unstructured, static_argnums=(1, 2, 3))(jax.random.key(0), 64, 512, 0.8)


def test_unstructured_masks_keep_102_of_512(unstructured):
    assert unstructured.visible_ids.shape == (64, 102)
    assert (unstructured.visible_ids.dtype, unstructured.hidden.dtype) == (jnp.int32, bool)
    check_consistent(unstructured, 512)
    # Every clip has its own, and no patch is favoured: 102 / 512 of 64 clips, binomial.
    assert len({row.tobytes() for row in np.asarray(unstructured.hidden)}) == 64
    shares = np.mean(~np.asarray(unstructured.hidden), axis=0)
    assert abs(np.corrcoef(shares, np.arange(512))[0, 1]) < 4 / np.sqrt(512)
    assert np.abs(shares - 102 / 512).max() < 5 * np.sqrt(0.2 * 0.8 / 64)


def test_a_key_is_a_mask(unstructured):
    draw = jax.jit(mask_unstructured, static_argnums=(1, 2, 3))
    np.testing.assert_array_equal(draw(jax.random.key(0), 64, 512, 0.8).hidden, unstructured.hidden)
    assert np.any(draw(jax.random.key(1), 64, 512, 0.8).hidden != unstructured.hidden)


@pytest.mark.parametrize(
    ("time_ratio", "freq_ratio", "steps", "bands"), [(0.2, 0.2, 51, 6), (0.8, 0.0, 12, 8), (0.0, 0.5, 64, 4)]
)
def test_structured_masks_hide_whole_steps_and_bands(time_ratio, freq_ratio, steps, bands):
    draw = jax.jit(mask_structured, static_argnums=(1, 2), static_argnames=("time_ratio", "freq_ratio"))
    mask = draw(jax.random.key(0), 16, GRID, time_ratio=time_ratio, freq_ratio=freq_ratio)
    assert mask.visible_ids.shape == (16, steps * bands)
    check_consistent(mask, 512)
    assert (np.diff(mask.visible_ids, axis=1) > 0).all()
    visible = ~np.asarray(mask.hidden).reshape(16, *GRID)
    in_time, in_freq = visible.any(axis=2), visible.any(axis=1)
    np.testing.assert_array_equal(visible, in_time[:, :, None] & in_freq[:, None, :])
    assert (in_time.sum(1) == steps).all()
    assert (in_freq.sum(1) == bands).all()
    if time_ratio > 0 and freq_ratio > 0:
        assert len({row.tobytes() for row in in_time}) == 16
        assert len({row.tobytes() for row in in_freq}) > 4


@pytest.mark.parametrize(
    ("size", "ratio", "kept"), [(512, 0.8, 102), (64, 0.2, 51), (8, 0.2, 6), (8, 0.0, 8)]
)
def test_shares_are_cut_as_published(size, ratio, kept):
    assert num_kept(size, ratio) == kept


@pytest.mark.parametrize("ratio", [-0.1, 0.9, 1.0])
def test_a_ratio_that_leaves_nothing_is_refused(ratio):
    with pytest.raises(ValueError, match="leaves some"):
        num_kept(8, ratio)
