"""Qwen2-Audio: what `save_pretrained` writes comes in, and goes out bit for bit."""

import dataclasses
import json

import numpy as np
import pytest
import transformers

from alm_jax.errors import UserError
from alm_jax.interop.format import arrays_to_variables, variables_to_arrays
from alm_jax.interop.qwen2_audio import QWEN2_AUDIO, read_qwen2_audio_config, write_qwen2_audio_config
from alm_jax.interop.safetensors_io import read_safetensors
from alm_jax.models.qwen2_audio import BASE, NANO

PUBLISHED_NANO = dataclasses.replace(
    NANO, language_model=dataclasses.replace(NANO.language_model, kernel_init="normal")
)


def test_export_of_an_import_is_the_saved_model_bit_for_bit(tmp_path):
    theirs = transformers.Qwen2AudioConfig(**QWEN2_AUDIO.write_config(PUBLISHED_NANO))
    transformers.Qwen2AudioForConditionalGeneration(theirs).save_pretrained(tmp_path)
    saved = read_safetensors(tmp_path / "model.safetensors")
    # In memory the class calls it "model.language_model.embed_tokens.weight".
    assert "language_model.model.embed_tokens.weight" in saved

    assert QWEN2_AUDIO.read_config(json.loads((tmp_path / "config.json").read_text())) == PUBLISHED_NANO
    variables = arrays_to_variables(QWEN2_AUDIO, PUBLISHED_NANO, saved)
    back = variables_to_arrays(QWEN2_AUDIO, PUBLISHED_NANO, variables)
    assert back.keys() == saved.keys()
    for key, value in saved.items():
        np.testing.assert_array_equal(back[key], value, strict=True)


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
