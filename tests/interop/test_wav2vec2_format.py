"""wav2vec 2.0 and HuBERT: what `save_pretrained` writes comes in, and goes out bit for bit."""

import dataclasses
import json

import numpy as np
import pytest
import transformers

from alm_jax.encoders.audio.wav2vec2 import NANO
from alm_jax.errors import UserError
from alm_jax.interop.format import arrays_to_variables, variables_to_arrays
from alm_jax.interop.safetensors_io import read_safetensors
from alm_jax.interop.wav2vec2 import HUBERT, WAV2VEC2

MICRO = dataclasses.replace(NANO, width=32, mlp_dim=64, compat=True, has_mask_embed=True)
LARGE = dataclasses.replace(MICRO, conv_norm="layer", conv_bias=True, pre_norm=True, has_mask_embed=False)


@pytest.mark.parametrize(
    ("layout", "config"), [(WAV2VEC2, MICRO), (WAV2VEC2, LARGE), (HUBERT, MICRO), (HUBERT, LARGE)]
)
def test_export_of_an_import_is_the_saved_model_bit_for_bit(layout, config, tmp_path):
    fields = layout.write_config(config)
    theirs = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    getattr(transformers, layout.architectures[0])(theirs).save_pretrained(tmp_path)
    saved = read_safetensors(tmp_path / "model.safetensors")

    assert layout.read_config(json.loads((tmp_path / "config.json").read_text())) == config
    back = variables_to_arrays(layout, config, arrays_to_variables(layout, config, saved))
    assert back.keys() == saved.keys()
    for key, value in saved.items():
        np.testing.assert_array_equal(back[key], value, strict=True)


@pytest.mark.parametrize(
    "changes", [{"hidden_act": "relu"}, {"conv_pos_batch_norm": True}, {"add_adapter": True}]
)
def test_what_we_do_not_compute_is_refused(changes):
    with pytest.raises(UserError, match="alone"):
        HUBERT.read_config(HUBERT.write_config(MICRO) | changes)
