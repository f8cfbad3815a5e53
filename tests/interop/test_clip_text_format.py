"""CLIP's text tower: what `save_pretrained` writes comes in, and goes out bit for bit."""

import dataclasses
import json

import numpy as np
import pytest

from alm_jax.encoders.text.clip_text import NANO
from alm_jax.errors import UserError
from alm_jax.interop.clip_text import CLIP_TEXT, CLIP_TEXT_STATES, build_oracle, write_clip_text_config
from alm_jax.interop.format import arrays_to_variables, variables_to_arrays
from alm_jax.interop.safetensors_io import read_safetensors

PROJECTED = dataclasses.replace(NANO, kernel_init="normal")
STATES = dataclasses.replace(PROJECTED, embed_dim=None, end_id=999)


@pytest.mark.parametrize(
    ("layout", "config"), [(CLIP_TEXT, PROJECTED), (CLIP_TEXT_STATES, STATES)], ids=["projected", "states"]
)
def test_export_of_an_import_is_the_saved_model_bit_for_bit(layout, config, tmp_path):
    build_oracle(layout, config).save_pretrained(tmp_path)
    saved = read_safetensors(tmp_path / "model.safetensors")

    assert layout.read_config(json.loads((tmp_path / "config.json").read_text())) == config
    back = variables_to_arrays(layout, config, arrays_to_variables(layout, config, saved))
    assert back.keys() == saved.keys()
    for key, value in saved.items():
        np.testing.assert_array_equal(back[key], value, strict=True)


def test_position_ids_of_early_files_are_checked(tmp_path):
    build_oracle(CLIP_TEXT, PROJECTED).save_pretrained(tmp_path)
    saved = read_safetensors(tmp_path / "model.safetensors")
    key = "text_model.embeddings.position_ids"
    arrays_to_variables(CLIP_TEXT, PROJECTED, saved | {key: np.arange(64)[None]})
    with pytest.raises(UserError, match=f"{key} is not what the config implies"):
        arrays_to_variables(CLIP_TEXT, PROJECTED, saved | {key: np.arange(64)[None] + 1})


def test_another_model_is_refused():
    with pytest.raises(UserError, match="hidden_act is 'gelu'; our CLIP text tower computes 'quick_gelu'"):
        CLIP_TEXT.read_config({"hidden_act": "gelu"})
    with pytest.raises(UserError, match="end_id is 2, by which transformers means the largest id"):
        write_clip_text_config(dataclasses.replace(NANO, end_id=2))
