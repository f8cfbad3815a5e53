"""T5 and Flan-T5: heads of their own, published files, and what is refused. (The rest: test_formats.py.)"""

import dataclasses
import json

import jax
import numpy as np
import pytest
import transformers

from alm_jax.encoders.text.t5 import NANO
from alm_jax.errors import UserError
from alm_jax.interop.folder import export_model, import_model
from alm_jax.interop.format import arrays_to_variables, variables_to_arrays
from alm_jax.interop.safetensors_io import read_safetensors, write_safetensors
from alm_jax.interop.t5 import T5, build_oracle, read_t5_config

TIED = dataclasses.replace(NANO, mlp="relu", tied_head=True, num_decoder_layers=3)


def test_a_head_of_its_own_goes_in_and_out_bit_for_bit(tmp_path):
    """As in the published files of v1.1 and Flan; transformers 5 makes none by itself (test_formats.py)."""
    build_oracle(T5, NANO).save_pretrained(tmp_path)
    saved = read_safetensors(tmp_path / "model.safetensors")
    assert read_t5_config(json.loads((tmp_path / "config.json").read_text())) == NANO
    back = variables_to_arrays(T5, NANO, arrays_to_variables(T5, NANO, saved))
    assert back.keys() == saved.keys()
    for key, value in saved.items():
        np.testing.assert_array_equal(back[key], value, strict=True)


def test_names_of_the_shared_table_and_a_table_that_nobody_reads_are_welcome(tmp_path):
    """Published files have them; nothing of them comes out again."""
    build_oracle(T5, TIED).save_pretrained(tmp_path)
    saved = read_safetensors(tmp_path / "model.safetensors")
    more = {f"{name}.weight": saved["shared.weight"] for name in ("encoder.embed_tokens", "lm_head")}
    unread = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    more[unread] = np.ones((TIED.num_buckets, TIED.num_heads), np.float32)
    variables = arrays_to_variables(T5, TIED, saved | more)
    assert variables_to_arrays(T5, TIED, variables).keys() == saved.keys()


@pytest.mark.parametrize("config", [NANO, TIED], ids=["flan", "first"])
def test_transformers_loads_what_we_write(config, tmp_path):
    """A head of its own stays one, and states are scaled for a tied one alone: transformers 5 ties by default."""
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), T5.abstract(config))
    arrays = variables_to_arrays(T5, config, variables)
    fields = T5.write_config(config) | {"architectures": list(T5.architectures)}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    write_safetensors(tmp_path / "model.safetensors", arrays)
    module = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path, local_files_only=True)
    assert module.config.scale_decoder_outputs == config.tied_head
    assert (module.lm_head.weight is module.shared.weight) == config.tied_head
    state = module.state_dict()
    for key, value in arrays.items():
        np.testing.assert_array_equal(state[key], value)


@pytest.mark.parametrize("mlp", ["relu", "gated-gelu"])
@pytest.mark.parametrize("tied", [False, True])
def test_what_transformers_5_makes_anew_goes_in_and_out(mlp, tied, tmp_path):
    """Its head is tied whatever the config says; the flag tells whether states are scaled."""
    fields = T5.write_config(NANO) | {"feed_forward_proj": mlp, "tie_word_embeddings": tied}
    module = transformers.T5ForConditionalGeneration(transformers.AutoConfig.for_model(**fields))
    module.save_pretrained(tmp_path / "theirs")
    found = import_model(tmp_path / "theirs")
    assert (found.config.tied_head, found.config.scales_states) == (True, tied)
    export_model(tmp_path / "ours", found.config, found.variables, T5)
    saved, written = (read_safetensors(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert saved.keys() == written.keys()
    for key, value in saved.items():
        np.testing.assert_array_equal(written[key], value, strict=True)
    assert import_model(tmp_path / "ours").config == found.config


def test_published_configs_are_read():
    """Fields of google-t5/t5-small and google/flan-t5-large as their config.json has them."""
    small = {"d_ff": 2048, "d_kv": 64, "d_model": 512, "num_heads": 8, "num_layers": 6, "vocab_size": 32128}
    assert read_t5_config(small).tied_head
    large = {"d_ff": 2816, "d_model": 1024, "num_heads": 16, "num_layers": 24, "num_decoder_layers": 24}
    large |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    config = read_t5_config(large)
    assert (config.tied_head, config.mlp, config.num_decoder_layers) == (False, "gated_gelu", 24)


def test_another_feed_forward_half_is_refused():
    with pytest.raises(UserError, match="feed_forward_proj is 'gated-silu', expected"):
        read_t5_config({"feed_forward_proj": "gated-silu"})
