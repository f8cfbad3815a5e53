"""Qwen2-Audio: config.json (tests/interop/test_formats.py has the rest)."""

import dataclasses

import pytest

from alm_jax.errors import UserError
from alm_jax.interop.qwen2_audio import read_qwen2_audio_config, write_qwen2_audio_config
from alm_jax.models.qwen2_audio import BASE, NANO


def test_the_released_models_config_is_read():
    """The fields of Qwen2-Audio-7B's config.json that say something about its shape."""
    fields = {
        "audio_config": {
            "activation_function": "gelu",
            "d_model": 1280,
            "encoder_attention_heads": 20,
            "encoder_ffn_dim": 5120,
            "encoder_layers": 32,
            "max_source_positions": 1500,
            "num_mel_bins": 128,
            "scale_embedding": False,
        },
        "audio_token_index": 151646,
        "text_config": {
            "intermediate_size": 11008,
            "max_position_embeddings": 8192,
            "model_type": "qwen2",
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000,
            "vocab_size": 156032,
        },
    }
    assert read_qwen2_audio_config(fields) == BASE


def test_encoders_that_transformers_does_not_compute_are_refused():
    with pytest.raises(UserError, match="scale_embedding is True"):
        read_qwen2_audio_config({"audio_config": {"scale_embedding": True}})
    encoder = dataclasses.replace(NANO.encoder, compat=False)
    with pytest.raises(UserError, match="compat False"):
        write_qwen2_audio_config(dataclasses.replace(NANO, encoder=encoder))
