"""GPT-2: what `save_pretrained` writes comes in, and goes out bit for bit."""

import dataclasses
import json

import numpy as np
import pytest
import transformers

from alm_jax.encoders.text.gpt2 import NANO, SMALL
from alm_jax.errors import UserError
from alm_jax.interop.format import arrays_to_variables, variables_to_arrays
from alm_jax.interop.gpt2 import GPT2, GPT2_MODEL, read_gpt2_config
from alm_jax.interop.safetensors_io import read_safetensors

PUBLISHED_NANO = dataclasses.replace(NANO, kernel_init="normal")


@pytest.mark.parametrize("layout", [GPT2, GPT2_MODEL], ids=["lm_head", "model"])
def test_export_of_an_import_is_the_saved_model_bit_for_bit(layout, tmp_path):
    theirs = transformers.AutoConfig.for_model(**layout.write_config(PUBLISHED_NANO))
    getattr(transformers, layout.architectures[0])(theirs).save_pretrained(tmp_path)
    saved = read_safetensors(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in saved

    assert layout.read_config(json.loads((tmp_path / "config.json").read_text())) == PUBLISHED_NANO
    variables = arrays_to_variables(layout, PUBLISHED_NANO, saved)
    back = variables_to_arrays(layout, PUBLISHED_NANO, variables)
    assert back.keys() == saved.keys()
    for key, value in saved.items():
        np.testing.assert_array_equal(back[key], value, strict=True)


def test_defaults_are_those_of_transformers():
    assert read_gpt2_config({}) == read_gpt2_config(transformers.GPT2Config().to_dict()) == SMALL


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"attn_pdrop": 0.0}, "one rate"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
    ],
)
def test_models_that_ours_does_not_compute_are_refused(fields, match):
    with pytest.raises(UserError, match=match):
        read_gpt2_config(fields)
