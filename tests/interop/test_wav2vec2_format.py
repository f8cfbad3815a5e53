"""wav2vec 2.0 and HuBERT: what the test of every format does not see of their files."""

import dataclasses

import jax
import numpy as np
import pytest
import transformers

from alm_jax.encoders.audio.wav2vec2 import NANO
from alm_jax.errors import UserError
from alm_jax.interop.format import arrays_to_variables, variables_to_arrays
from alm_jax.interop.safetensors_io import read_safetensors
from alm_jax.interop.wav2vec2 import HUBERT, WAV2VEC2, WAV2VEC2_TOWER

MICRO = dataclasses.replace(NANO, width=32, mlp_dim=64, compat=True, has_mask_embed=True)
LARGE = dataclasses.replace(MICRO, conv_norm="layer", conv_bias=True, pre_norm=True, has_mask_embed=False)


def save(layout, kind, config, folder) -> dict[str, np.ndarray]:
    fields = layout.write_config(config)
    theirs = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    kind(theirs).save_pretrained(folder)
    return read_safetensors(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("layout", "kind", "config"),
    [(WAV2VEC2, transformers.Wav2Vec2Model, LARGE), (HUBERT, transformers.HubertModel, MICRO)],
)
def test_export_of_an_import_is_the_saved_model_bit_for_bit(layout, kind, config, tmp_path):
    """Where the comparisons of wav2vec 2.0 are like base and those of HuBERT like large, the other way round."""
    saved = save(layout, kind, config, tmp_path)
    back = variables_to_arrays(layout, config, arrays_to_variables(layout, config, saved))
    assert back.keys() == saved.keys()
    for key, value in saved.items():
        np.testing.assert_array_equal(back[key], value, strict=True)


def test_old_names_of_weight_norm_are_read(tmp_path):
    """Those of the files on the hub, which PyTorch 1 wrote."""
    saved = save(HUBERT, transformers.HubertModel, MICRO, tmp_path)
    key = "encoder.pos_conv_embed.conv"
    old = {
        name: value for name, value in saved.items() if not name.startswith(f"{key}.parametrizations.weight")
    }
    old[f"{key}.weight_g"] = saved[f"{key}.parametrizations.weight.original0"]
    old[f"{key}.weight_v"] = saved[f"{key}.parametrizations.weight.original1"]
    expected = arrays_to_variables(HUBERT, MICRO, saved)
    jax.tree.map(np.testing.assert_array_equal, arrays_to_variables(HUBERT, MICRO, old), expected)
    with pytest.raises(UserError, match=r"unknown encoder\.pos_conv_embed\.conv\.weight_g"):
        arrays_to_variables(HUBERT, MICRO, saved | {f"{key}.weight_g": old[f"{key}.weight_g"]})


def test_the_encoder_comes_out_of_a_model_with_heads(tmp_path):
    saved = save(WAV2VEC2, transformers.Wav2Vec2ForPreTraining, MICRO, tmp_path)
    inner = {
        key.removeprefix("wav2vec2."): value for key, value in saved.items() if key.startswith("wav2vec2.")
    }
    assert 0 < len(inner) < len(saved)
    ours, expected = (
        arrays_to_variables(layout, MICRO, arrays)
        for layout, arrays in ((WAV2VEC2_TOWER, saved), (WAV2VEC2, inner))
    )
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
    with pytest.raises(UserError, match=r"unknown wav2vec2\.stranger"):
        arrays_to_variables(WAV2VEC2_TOWER, MICRO, saved | {"wav2vec2.stranger": np.ones(1)})


@pytest.mark.parametrize(
    "changes", [{"hidden_act": "relu"}, {"conv_pos_batch_norm": True}, {"add_adapter": True}]
)
def test_what_we_do_not_compute_is_refused(changes):
    with pytest.raises(UserError, match="alone"):
        HUBERT.read_config(HUBERT.write_config(MICRO) | changes)
