"""EnCodec: what the test of every format does not see of its files."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers

from alm_jax.encoders.audio.encodec import NANO
from alm_jax.errors import UserError
from alm_jax.interop.encodec import ENCODEC
from alm_jax.interop.format import arrays_to_variables, variables_to_arrays
from alm_jax.interop.safetensors_io import read_safetensors


def test_every_buffer_and_residual_unit_goes_in_and_out_bit_for_bit(tmp_path):
    """The test of every format has one unit a step, and averages that are all zero."""
    config = dataclasses.replace(NANO, num_residual_layers=2, strides=(3,), bandwidths_kbps=(100.0,))
    fields = ENCODEC.write_config(config)
    theirs = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    module = transformers.EncodecModel(theirs)
    generator = torch.Generator().manual_seed(0)
    for buffer in module.quantizer.buffers():
        buffer.normal_(generator=generator)
    module.save_pretrained(tmp_path)
    saved = read_safetensors(tmp_path / "model.safetensors")

    back = variables_to_arrays(ENCODEC, config, arrays_to_variables(ENCODEC, config, saved))
    assert back.keys() == saved.keys()
    for key, value in saved.items():
        np.testing.assert_array_equal(back[key], value, strict=True)
    old = {
        key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for key, value in saved.items()
    }
    assert old.keys() != saved.keys()
    again = variables_to_arrays(ENCODEC, config, arrays_to_variables(ENCODEC, config, old))
    assert again.keys() == saved.keys()


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"norm_type": "time_group_norm"}, "'weight_norm' alone"), ({"codebook_dim": 3}, "one for both")],
)
def test_what_we_do_not_compute_is_refused(changes, match):
    with pytest.raises(UserError, match=match):
        ENCODEC.read_config(ENCODEC.write_config(NANO) | changes)
