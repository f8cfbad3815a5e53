"""Whisper: OpenAI's archives beside transformers' files."""

import jax
import numpy as np
import pytest
import transformers

from alm_jax.encoders.audio.whisper import WhisperEncoderConfig
from alm_jax.encoders.text.whisper_decoder import WhisperConfig
from alm_jax.errors import UserError
from alm_jax.interop.format import arrays_to_variables
from alm_jax.interop.safetensors_io import read_safetensors
from alm_jax.interop.whisper import WHISPER, WHISPER_ARCHIVE

MICRO = WhisperConfig(
    encoder=WhisperEncoderConfig(
        num_mels=12, max_positions=20, width=64, num_layers=2, num_heads=1, mlp_dim=32
    ),
    vocab_size=30,
    num_layers=3,
    max_text_positions=12,
)


def test_openai_archive_holds_the_same_model(tmp_path):
    """transformers' own script renames its keys (`convert_openai_to_hf.py`); here backwards."""
    fields = WHISPER.write_config(MICRO)
    theirs = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    transformers.WhisperModel(theirs).save_pretrained(tmp_path)
    saved = read_safetensors(tmp_path / "model.safetensors")
    archive = {}
    for key, value in saved.items():
        for theirs, openai in (
            ("encoder.layer_norm", "encoder.ln_post"),
            ("decoder.layer_norm", "decoder.ln"),
            ("embed_positions.weight", "positional_embedding"),
            ("embed_tokens", "token_embedding"),
            ("layers", "blocks"),
            ("encoder_attn_layer_norm", "cross_attn_ln"),
            ("self_attn_layer_norm", "attn_ln"),
            ("final_layer_norm", "mlp_ln"),
            ("encoder_attn", "cross_attn"),
            ("self_attn", "attn"),
            ("fc1", "mlp.0"),
            ("fc2", "mlp.2"),
            ("k_proj", "key"),
            ("q_proj", "query"),
            ("v_proj", "value"),
            ("out_proj", "out"),
        ):
            key = key.replace(theirs, openai)
        archive[key] = value
    assert WHISPER_ARCHIVE.infer_config({key: array.shape for key, array in archive.items()}) == MICRO
    ours = arrays_to_variables(WHISPER_ARCHIVE, MICRO, archive)
    jax.tree.map(np.testing.assert_array_equal, ours, arrays_to_variables(WHISPER, MICRO, saved))


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"activation_function": "relu"}, "'gelu' alone"), ({"decoder_ffn_dim": 64}, "same in both")],
)
def test_what_we_do_not_compute_is_refused(changes, match):
    with pytest.raises(UserError, match=match):
        WHISPER.read_config(WHISPER.write_config(MICRO) | changes)
