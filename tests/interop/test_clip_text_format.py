"""CLIP's text tower: early files, and what is refused. (Files in and out: test_formats.py.)"""

import dataclasses

import numpy as np
import pytest

from alm_jax.encoders.text.clip_text import NANO
from alm_jax.errors import UserError
from alm_jax.interop.clip_text import CLIP_TEXT, build_oracle, write_clip_text_config
from alm_jax.interop.format import arrays_to_variables
from alm_jax.interop.safetensors_io import read_safetensors


def test_position_ids_of_early_files_are_checked(tmp_path):
    build_oracle(CLIP_TEXT, NANO).save_pretrained(tmp_path)
    saved = read_safetensors(tmp_path / "model.safetensors")
    key = "text_model.embeddings.position_ids"
    arrays_to_variables(CLIP_TEXT, NANO, saved | {key: np.arange(64)[None]})
    with pytest.raises(UserError, match=f"{key} is not what the config implies"):
        arrays_to_variables(CLIP_TEXT, NANO, saved | {key: np.arange(64)[None] + 1})


def test_another_model_is_refused():
    with pytest.raises(UserError, match="hidden_act is 'gelu'; our CLIP text tower computes 'quick_gelu'"):
        CLIP_TEXT.read_config({"hidden_act": "gelu"})
    with pytest.raises(UserError, match="end_id is 2, by which transformers means the largest id"):
        write_clip_text_config(dataclasses.replace(NANO, end_id=2))
    with pytest.raises(UserError, match="without a projection has the format clip_text_states"):
        list(CLIP_TEXT.entries(dataclasses.replace(NANO, embed_dim=None)))
