"""AudioMAE's archives: of pre-training, with either decoder, and of fine-tuning."""

import dataclasses

import jax
import numpy as np
import pytest

from alm_jax.encoders import family
from alm_jax.encoders.audio.audio_mae import FAMILY, AudioMaeConfig
from alm_jax.errors import UserError
from alm_jax.interop.audio_mae import FINE_TUNED, PRETRAINED
from alm_jax.interop.format import arrays_to_variables, variables_to_arrays
from alm_jax.models.masked_autoencoder import MASKED_AUTOENCODER, MaskedAutoencoderConfig
from alm_jax.models.patch_decoders import GlobalDecoderConfig, LocalDecoderConfig
from alm_jax.ops.frontends import AstSpec, published_clip

ENCODER = AudioMaeConfig(num_frames=64, width=64, num_layers=2, num_heads=1, mlp_dim=32, compat=True)
LOCAL = MaskedAutoencoderConfig(
    frontend=AstSpec(clip=published_clip(64), padded_frames=64),
    encoder=ENCODER,
    decoder=LocalDecoderConfig(width=32, num_layers=4, num_heads=2, mlp_dim=48, bias_dim=8),
)
GLOBAL = dataclasses.replace(LOCAL, decoder=GlobalDecoderConfig(width=32, num_layers=2, mlp_dim=48))


def shapes(arrays: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {key: array.shape for key, array in arrays.items()}


@pytest.mark.parametrize("config", [LOCAL, GLOBAL], ids=["local", "global"])
def test_an_archive_says_its_config_and_buffers_of_swin_blocks_are_passed_over(config):
    variables = jax.tree.map(np.asarray, MASKED_AUTOENCODER.init(config, jax.random.key(0)))
    arrays = variables_to_arrays(PRETRAINED, config, variables)
    assert PRETRAINED.infer_config(shapes(arrays)) == config
    mask = {"decoder_blocks.1.attn_mask": np.zeros((2, 16, 16), np.float32)}
    back = arrays_to_variables(PRETRAINED, config, arrays | mask)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    with pytest.raises(UserError, match="pos_embed is not what the config implies"):
        arrays_to_variables(
            PRETRAINED,
            dataclasses.replace(config, encoder=dataclasses.replace(ENCODER, compat=False)),
            arrays,
        )


def test_a_fine_tuned_archive_is_the_encoder_without_its_classifier():
    variables = jax.tree.map(np.asarray, family.init(FAMILY, ENCODER, jax.random.key(0)))
    arrays = variables_to_arrays(FINE_TUNED, ENCODER, variables)
    assert "fc_norm.weight" in arrays
    assert FINE_TUNED.infer_config(shapes(arrays)) == ENCODER
    head = {"head.weight": np.zeros((50, 64), np.float32), "head.bias": np.zeros(50, np.float32)}
    back = arrays_to_variables(FINE_TUNED, ENCODER, arrays | head)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_patches_of_no_grid_are_refused():
    variables = jax.tree.map(np.asarray, family.init(FAMILY, ENCODER, jax.random.key(0)))
    arrays = variables_to_arrays(FINE_TUNED, ENCODER, variables)
    with pytest.raises(UserError, match="say the config"):
        FINE_TUNED.infer_config(shapes(arrays) | {"pos_embed": (1, 32, 64)})
