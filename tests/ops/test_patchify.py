"""Patches against ViT-MAE's in transformers, and back."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from alm_jax.ops.patchify import patchify, unpatchify


def test_patches_are_those_of_vit_mae_and_make_the_spectrogram_again():
    features = np.random.default_rng(0).normal(size=(2, 24, 12)).astype(np.float32)
    with torch.device("meta"):
        model = transformers.ViTMAEForPreTraining(
            transformers.ViTMAEConfig(
                image_size=16, patch_size=4, num_channels=1, hidden_size=8, num_attention_heads=1,
                num_hidden_layers=1, decoder_hidden_size=8, decoder_num_hidden_layers=1, decoder_num_attention_heads=1,
            )
        )  # fmt: skip
    want = model.patchify(torch.tensor(features)[:, None], interpolate_pos_encoding=True).numpy()
    got = patchify(jnp.asarray(features), 4)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(unpatchify(got, 4, 12), features)


@pytest.mark.parametrize("shape", [(1, 10, 8), (1, 8, 10)])
def test_spectrograms_that_do_not_divide_are_refused(shape):
    with pytest.raises(ValueError, match="multiples of the patch size 4"):
        patchify(jnp.zeros(shape), 4)


@pytest.mark.parametrize(("shape", "num_bins"), [((1, 5, 16), 8), ((1, 6, 16), 10), ((1, 6, 12), 8)])
def test_patches_that_make_no_spectrogram_are_refused(shape, num_bins):
    with pytest.raises(ValueError, match="do not make frames"):
        unpatchify(jnp.zeros(shape), 4, num_bins)
