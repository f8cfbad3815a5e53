"""BERT and RoBERTa: what `save_pretrained` writes comes in, and goes out bit for bit."""

import dataclasses
import json

import numpy as np
import pytest
import transformers

from alm_jax.encoders.text.bert import NANO
from alm_jax.interop.bert import BERT, ROBERTA
from alm_jax.interop.format import arrays_to_variables, variables_to_arrays
from alm_jax.interop.safetensors_io import read_safetensors

NANO_BERT = dataclasses.replace(NANO, positions="bert", num_token_types=2, pad_id=0, kernel_init="normal")
NANO_ROBERTA = dataclasses.replace(NANO, kernel_init="normal")


@pytest.mark.parametrize(("layout", "config"), [(BERT, NANO_BERT), (ROBERTA, NANO_ROBERTA)])
def test_export_of_an_import_is_the_saved_model_bit_for_bit(layout, config, tmp_path):
    fields = layout.write_config(config)
    theirs = transformers.AutoConfig.for_model(**fields)
    getattr(transformers, layout.architectures[0])(theirs).save_pretrained(tmp_path)
    saved = read_safetensors(tmp_path / "model.safetensors")

    assert layout.read_config(json.loads((tmp_path / "config.json").read_text())) == config
    variables = arrays_to_variables(layout, config, saved)
    back = variables_to_arrays(layout, config, variables)
    assert back.keys() == saved.keys()
    for key, value in saved.items():
        np.testing.assert_array_equal(back[key], value, strict=True)
