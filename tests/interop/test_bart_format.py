"""BART: what `save_pretrained` writes comes in, and goes out bit for bit."""

import dataclasses
import json

import numpy as np
import pytest

from alm_jax.encoders.text.bart import NANO
from alm_jax.errors import UserError
from alm_jax.interop.bart import BART, BART_LM, build_oracle, read_bart_config, write_bart_config
from alm_jax.interop.format import arrays_to_variables, variables_to_arrays
from alm_jax.interop.safetensors_io import read_safetensors

CONFIG = dataclasses.replace(NANO, num_decoder_layers=3, kernel_init="normal")


@pytest.mark.parametrize("layout", [BART, BART_LM], ids=lambda layout: layout.name)
def test_export_of_an_import_is_the_saved_model_bit_for_bit(layout, tmp_path):
    build_oracle(layout, CONFIG).save_pretrained(tmp_path)
    saved = read_safetensors(tmp_path / "model.safetensors")

    assert layout.read_config(json.loads((tmp_path / "config.json").read_text())) == CONFIG
    variables = arrays_to_variables(layout, CONFIG, saved)
    back = variables_to_arrays(layout, CONFIG, variables)
    assert back.keys() == saved.keys()
    for key, value in saved.items():
        np.testing.assert_array_equal(back[key], value, strict=True)


def test_a_bias_of_the_logits_that_is_not_zero_is_refused(tmp_path):
    build_oracle(BART_LM, CONFIG).save_pretrained(tmp_path)
    saved = read_safetensors(tmp_path / "model.safetensors")
    saved["final_logits_bias"][0, 3] = 1.0
    with pytest.raises(UserError, match="final_logits_bias is not what the config implies"):
        arrays_to_variables(BART_LM, CONFIG, saved)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("activation_function", "relu", "activation_function is 'relu'; our BART computes 'gelu'"),
        ("scale_embedding", True, "scale_embedding is True"),
        ("decoder_ffn_dim", 7, "encoder_ffn_dim is 256 and decoder_ffn_dim is 7"),
        ("encoder_attention_heads", 2, "encoder_attention_heads is 2 and decoder_attention_heads is 4"),
    ],
)
def test_another_model_is_refused(field, value, message):
    with pytest.raises(UserError, match=message):
        read_bart_config(write_bart_config(NANO) | {field: value})
