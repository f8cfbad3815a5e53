"""GPT-2: the files of the hub, and config.json (tests/interop/test_formats.py has the rest)."""

import numpy as np
import pytest
import transformers

from alm_jax.encoders.text.gpt2 import NANO, SMALL
from alm_jax.errors import UserError
from alm_jax.interop.format import arrays_to_variables
from alm_jax.interop.gpt2 import GPT2_HUB, GPT2_MODEL, read_gpt2_config


def test_files_of_the_hub_come_in_without_their_masks():
    """Their keys have no prefix, and each layer has a triangle beside its weights."""
    rng = np.random.default_rng(0)
    arrays = {e.key: rng.normal(size=e.shape).astype(np.float32) for e in GPT2_MODEL.entries(NANO)}
    masks = {f"h.{i}.attn.bias": np.tril(np.ones((1, 1, 64, 64), np.float32)) for i in range(2)}
    variables = arrays_to_variables(GPT2_HUB, NANO, arrays | masks)
    np.testing.assert_array_equal(
        variables["params"]["blocks"]["attention"]["qkv"]["kernel"][1].reshape(128, 384),
        arrays["h.1.attn.c_attn.weight"],
    )
    with pytest.raises(UserError, match=r"unknown h\.0\.attn\.bias"):
        arrays_to_variables(GPT2_MODEL, NANO, arrays | masks)


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
