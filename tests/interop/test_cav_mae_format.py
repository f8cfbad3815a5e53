"""LTU's archives: the audio path comes in and goes out bit for bit, the rest of the archive is known."""

import numpy as np
import pytest
import torch

from alm_jax.encoders.audio.cav_mae import CavMaeConfig
from alm_jax.errors import UserError
from alm_jax.interop.cav_mae import CAV_MAE
from alm_jax.interop.format import arrays_to_variables, variables_to_arrays
from alm_jax.interop.parity import load_oracle

MICRO = CavMaeConfig(num_frames=64, width=64, num_layers=3, num_heads=1, mlp_dim=32, prompt_width=12)


@pytest.fixture
def archive() -> dict[str, np.ndarray]:
    """What the equations' module keeps, under its own names."""
    torch.manual_seed(0)
    return {key: value.numpy() for key, value in load_oracle("cav_mae").Ltu(MICRO).state_dict().items()}


def test_export_of_an_import_is_the_archive_bit_for_bit(archive):
    assert CAV_MAE.infer_config({key: array.shape for key, array in archive.items()}) == MICRO
    back = variables_to_arrays(CAV_MAE, MICRO, arrays_to_variables(CAV_MAE, MICRO, archive))
    assert back.keys() == archive.keys()
    for key, value in archive.items():
        np.testing.assert_array_equal(back[key], value, strict=True)


def test_norms_of_the_other_modality_and_adapters_are_passed_over_and_strangers_are_not(archive):
    ones = np.ones(64, np.float32)
    others = {f"audio_encoder.blocks_a.1.{name}.weight": ones for name in ("norm1_a", "norm2_v")}
    others |= {f"audio_encoder.blocks_u.0.{name}.bias": ones for name in ("norm1", "norm2_v")}
    others["layers.0.self_attn.q_proj.lora_A.weight"] = ones
    arrays_to_variables(CAV_MAE, MICRO, archive | others)
    with pytest.raises(UserError, match=r"unknown audio_encoder\.blocks_a\.1\.norm3"):
        arrays_to_variables(CAV_MAE, MICRO, archive | {"audio_encoder.blocks_a.1.norm3.weight": ones})


def test_patches_of_no_grid_are_refused(archive):
    shapes = {key: array.shape for key, array in archive.items()}
    with pytest.raises(UserError, match="say the config"):
        CAV_MAE.infer_config(shapes | {"audio_encoder.pos_embed_a": (1, 31, 64)})
