"""Llama and Qwen2: tied heads and config.json (tests/interop/test_formats.py has the rest)."""

import dataclasses

import numpy as np
import pytest
import transformers

from alm_jax.encoders.text.llama import LLAMA3_2_1B, QWEN2_NANO, QWEN2_VARIANTS, VARIANTS
from alm_jax.errors import UserError
from alm_jax.interop.format import arrays_to_variables
from alm_jax.interop.llama import LLAMA, read_llama_config
from alm_jax.interop.qwen2 import QWEN2, read_qwen2_config

TIED_QWEN2 = dataclasses.replace(QWEN2_NANO, kernel_init="normal")


def test_a_file_that_repeats_a_tied_head_comes_in():
    arrays = {entry.key: np.zeros(entry.shape, np.float32) for entry in QWEN2.entries(TIED_QWEN2)}
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
    assert "head" not in arrays_to_variables(QWEN2, TIED_QWEN2, arrays)["params"]


@pytest.mark.parametrize(
    ("layout", "name"), [(LLAMA, name) for name in VARIANTS] + [(QWEN2, name) for name in QWEN2_VARIANTS]
)
def test_config_json_of_every_variant_goes_through_transformers(layout, name):
    """Scaled rotary positions and tied heads among them."""
    variants = VARIANTS if layout is LLAMA else QWEN2_VARIANTS
    config = dataclasses.replace(variants[name], kernel_init="normal")
    theirs = transformers.AutoConfig.for_model(**layout.write_config(config))
    assert layout.read_config(theirs.to_dict()) == config


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
        (read_llama_config, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'"),
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
