"""Qwen2 as `transformers.Qwen2ForCausalLM` saves it."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from alm_jax.encoders import family
from alm_jax.encoders.text.llama import QWEN2 as FAMILY
from alm_jax.encoders.text.llama import QWEN2_NANO, LlamaConfig, Qwen2Config
from alm_jax.interop.fields import Fields
from alm_jax.interop.format import Format
from alm_jax.interop.llama import (
    causal_lm_parity,
    llama_entries,
    read_shape,
    tied_copies,
    tied_keys,
    widen,
    write_shape,
)

# transformers' defaults, which are no published model's.
_DEFAULTS = {
    "vocab_size": 151936,
    "width": 4096,
    "num_layers": 32,
    "num_heads": 32,
    "mlp_dim": 22016,
    "max_positions": 32768,
}


def read_qwen2_config(fields: Mapping[str, Any]) -> Qwen2Config:
    """config.json of a Qwen2ForCausalLM, absent fields at transformers' defaults."""
    fields = Fields.of(fields)
    fields.only({"hidden_act": "silu", "use_sliding_window": False}, "our Qwen2")
    given = {"num_key_value_heads": fields.get("num_key_value_heads", 32)}
    return Qwen2Config(**read_shape(fields | given, _DEFAULTS))


def write_qwen2_config(config: LlamaConfig) -> dict[str, Any]:
    """config.json of the Qwen2ForCausalLM that computes what ``config`` computes."""
    return write_shape(config) | {"model_type": "qwen2", "use_sliding_window": False}


QWEN2 = Format(
    name="qwen2",
    config_type=Qwen2Config,
    abstract=functools.partial(family.abstract, FAMILY),
    entries=llama_entries,
    copies=tied_copies,
    optional=tied_keys,
    architectures=("Qwen2ForCausalLM",),
    read_config=read_qwen2_config,
    write_config=write_qwen2_config,
)
FORMATS = (QWEN2,)


def _prepare(module: Any) -> None:
    widen(module.model, QWEN2_NANO.rope_theta)


PARITY = (
    causal_lm_parity("qwen2, nano, logits", QWEN2, FAMILY, QWEN2_NANO, _prepare),
    causal_lm_parity(
        "qwen2, nano with a head of its own, logits",
        QWEN2,
        FAMILY,
        dataclasses.replace(QWEN2_NANO, tied_head=False),
        _prepare,
    ),
)
