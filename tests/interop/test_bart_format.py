"""BART: what is refused. (Files in and out: test_formats.py.)"""

import pytest

from alm_jax.encoders.text.bart import NANO
from alm_jax.errors import UserError
from alm_jax.interop.bart import BART_LM, build_oracle, read_bart_config, write_bart_config
from alm_jax.interop.format import arrays_to_variables
from alm_jax.interop.safetensors_io import read_safetensors


def test_a_bias_of_the_logits_that_is_not_zero_is_refused(tmp_path):
    build_oracle(BART_LM, NANO).save_pretrained(tmp_path)
    saved = read_safetensors(tmp_path / "model.safetensors")
    saved["final_logits_bias"][0, 3] = 1.0
    with pytest.raises(UserError, match="final_logits_bias is not what the config implies"):
        arrays_to_variables(BART_LM, NANO, saved)


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
