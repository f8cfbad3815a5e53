"""Whisper's encoder: what is special to it. Equality with transformers is in alm_jax/interop/whisper.py's PARITY."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from alm_jax.encoders import family
from alm_jax.encoders.audio.whisper import (
    FAMILY,
    VARIANTS,
    WhisperEncoder,
    WhisperEncoderConfig,
    compute_sinusoids,
    compute_token_mask,
)
from alm_jax.errors import UserError
from alm_jax.interop.format import get_array
from alm_jax.interop.whisper import whisper_encoder_entries

MICRO = WhisperEncoderConfig(num_mels=12, max_positions=20, width=16, num_layers=2, num_heads=2, mlp_dim=32)
FLOAT32 = jnp.dtype("float32")


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("tiny", 8.2e6),
        ("base", 20.6e6),
        ("small", 88.2e6),
        ("medium", 307.2e6),
        ("large", 636.8e6),
        ("large_v3", 637.0e6),
        ("qwen2_audio", 637.0e6),
        ("nano", None),
    ],
)
def test_every_variant_has_the_parameters_of_the_reference(name, published):
    config = VARIANTS[name]
    with torch.device("meta"):
        reference = transformers.models.qwen2_audio.modeling_qwen2_audio.Qwen2AudioEncoder(
            qwen2_config(config)
        )
    ours = sum(leaf.size for leaf in jax.tree.leaves(family.abstract(FAMILY, config)["params"]))
    assert ours == sum(parameter.numel() for parameter in reference.parameters())
    if published:
        np.testing.assert_allclose(ours, published, atol=0.05e6)


def qwen2_config(config: WhisperEncoderConfig) -> transformers.PreTrainedConfig:
    return transformers.Qwen2AudioEncoderConfig(
        num_mel_bins=config.num_mels,
        encoder_layers=config.num_layers,
        encoder_attention_heads=config.num_heads,
        encoder_ffn_dim=config.mlp_dim,
        d_model=config.width,
        max_source_positions=config.max_positions,
        attn_implementation="eager",
    )


@pytest.fixture(scope="module")
def variables() -> dict:
    """Weights drawn by NumPy."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), family.abstract(FAMILY, MICRO)
    )


@pytest.fixture(scope="module")
def features() -> jax.Array:
    """Three clips as long as the encoder takes."""
    return jnp.asarray(np.random.default_rng(1).normal(size=(3, 40, 12)), jnp.float32)


def test_masks_and_pooling_are_those_of_qwen2_audio(variables, features):
    """Its encoder takes the mask of the states after the convolutions, which see the padding."""
    config = dataclasses.replace(MICRO, pool_size=2, compat=True)
    reference = transformers.models.qwen2_audio.modeling_qwen2_audio.Qwen2AudioEncoder(
        qwen2_config(config)
    ).eval()
    entries = whisper_encoder_entries(config, prefix="", path=("params",))
    state = {
        entry.key: torch.tensor(
            entry.to_disk(np.asarray(get_array(variables, entry.path))[*entry.index, ...])
        )
        for entry in entries
    }
    reference.load_state_dict(state)
    lengths = torch.tensor([40, 27, 14])
    num_states, num_tokens = reference._get_feat_extract_output_lengths(lengths)
    is_padding = torch.arange(20)[None, :] >= num_states[:, None]
    scores = torch.zeros(3, 1, 20, 20).masked_fill(is_padding[:, None, None, :], -torch.inf)
    with torch.no_grad():
        expected = reference(torch.tensor(np.asarray(features)).mT, attention_mask=scores).last_hidden_state
    mask = jnp.arange(40)[None, :] < jnp.asarray(lengths)[:, None]
    actual = jax.jit(WhisperEncoder(config, FLOAT32).apply)(variables, features, mask=mask)
    is_real = np.asarray(compute_token_mask(config, mask))
    np.testing.assert_array_equal(is_real.sum(axis=1), num_tokens)
    np.testing.assert_allclose(actual[is_real], expected.numpy()[is_real], atol=1e-5)


def test_a_masked_clip_is_encoded_as_if_it_ended(variables, features):
    config = dataclasses.replace(MICRO, pool_size=2)
    mask = jnp.arange(40)[None, :] < jnp.asarray([[40], [27], [14]])
    filled = jnp.where(mask[:, :, None], features, 77.0)
    encode = jax.jit(WhisperEncoder(config, FLOAT32).apply)
    tokens, is_real = encode(variables, filled, mask=mask), np.asarray(compute_token_mask(config, mask))
    alone = jax.jit(WhisperEncoder(config, FLOAT32, "clip").apply)(variables, features[1:2, :27])
    assert is_real.sum(axis=1).tolist() == [10, 7, 3]
    np.testing.assert_allclose(tokens[1, :7].mean(axis=0), alone[0], atol=1e-5)
    moved = encode(variables, filled.at[1, 27:].set(-5.0), mask=mask)
    np.testing.assert_allclose(moved[1, :7], tokens[1, :7], atol=1e-6)


def test_positions_are_the_sinusoids_of_the_reference():
    theirs = transformers.models.whisper.modeling_whisper.sinusoids(1500, 64)
    # float32 angles up to 1500 in the reference: 1500 * 2^-24 = 9e-5.
    np.testing.assert_allclose(compute_sinusoids(1500, 64), theirs, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 41, 12), (1, 0, 12), (1, 40, 13)])
def test_features_that_do_not_fit_are_refused(variables, shape):
    with pytest.raises(UserError, match="1 to 40 frames of 12"):
        WhisperEncoder(MICRO, FLOAT32).apply(variables, jnp.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "match"), [({"num_heads": 3}, "multiple of num_heads"), ({"pool_size": 0}, "in 1..20")]
)
def test_shapes_that_do_not_fit_are_refused(changes, match):
    with pytest.raises(UserError, match=match):
        dataclasses.replace(MICRO, **changes)
