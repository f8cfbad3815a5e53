"""Llama and Qwen2: what `save_pretrained` writes comes in, and goes out bit for bit."""

import dataclasses
import json

import numpy as np
import pytest
import transformers

from alm_jax.encoders.text.llama import LLAMA3_2_1B, NANO, QWEN2_NANO
from alm_jax.errors import UserError
from alm_jax.interop.format import arrays_to_variables, variables_to_arrays
from alm_jax.interop.llama import LLAMA, read_llama_config
from alm_jax.interop.qwen2 import QWEN2, read_qwen2_config
from alm_jax.interop.safetensors_io import read_safetensors
from alm_jax.nn.rotary import RopeScaling

PUBLISHED_NANO = dataclasses.replace(NANO, kernel_init="normal")
SCALED = dataclasses.replace(PUBLISHED_NANO, rope_scaling=RopeScaling(factor=32.0), tied_head=True)
TIED_QWEN2 = dataclasses.replace(QWEN2_NANO, kernel_init="normal")


@pytest.mark.parametrize(
    ("layout", "config"),
    [
        (LLAMA, PUBLISHED_NANO),
        (LLAMA, SCALED),
        (QWEN2, TIED_QWEN2),
        (QWEN2, dataclasses.replace(TIED_QWEN2, tied_head=False)),
    ],
    ids=["llama", "llama3.2", "qwen2", "qwen2_untied"],
)
def test_export_of_an_import_is_the_saved_model_bit_for_bit(layout, config, tmp_path):
    theirs = transformers.AutoConfig.for_model(**layout.write_config(config))
    getattr(transformers, layout.architectures[0])(theirs).save_pretrained(tmp_path)
    saved = read_safetensors(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in saved) == (not config.tied_head)

    assert layout.read_config(json.loads((tmp_path / "config.json").read_text())) == config
    variables = arrays_to_variables(layout, config, saved)
    back = variables_to_arrays(layout, config, variables)
    assert back.keys() == saved.keys()
    for key, value in saved.items():
        np.testing.assert_array_equal(back[key], value, strict=True)


def test_a_file_that_repeats_a_tied_head_comes_in():
    arrays = {entry.key: np.zeros(entry.shape, np.float32) for entry in QWEN2.entries(TIED_QWEN2)}
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
    assert "head" not in arrays_to_variables(QWEN2, TIED_QWEN2, arrays)["params"]


def test_configs_of_before_transformers_5_are_read():
    """The fields of Llama 3.2 1B's config.json."""
    fields = {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "tie_word_embeddings": True,
        "vocab_size": 128256,
    }
    assert read_llama_config(fields) == LLAMA3_2_1B


@pytest.mark.parametrize(
    ("read", "fields", "match"),
    [
        (read_llama_config, {"attention_bias": True}, "attention_bias"),
        (read_llama_config, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        (read_llama_config, {"rope_parameters": {"partial_rotary_factor": 0.5}}, "whole heads"),
        (read_llama_config, {"head_dim": 64}, "head_dim is 64"),
        (read_qwen2_config, {"use_sliding_window": True}, "use_sliding_window"),
    ],
)
def test_models_that_ours_do_not_compute_are_refused(read, fields, match):
    with pytest.raises(UserError, match=match):
        read(fields)


def test_defaults_are_those_of_transformers():
    assert read_llama_config({}) == read_llama_config(transformers.LlamaConfig().to_dict())
    assert read_qwen2_config({}) == read_qwen2_config(transformers.Qwen2Config().to_dict())
