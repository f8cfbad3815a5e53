"""AST: what `save_pretrained` writes comes in, and goes out bit for bit; and the authors' archives."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import transformers

from alm_jax.encoders.audio.ast import AstConfig
from alm_jax.errors import UserError
from alm_jax.interop.ast import AST, AST_ARCHIVE, AST_CLASSIFIER
from alm_jax.interop.format import arrays_to_variables, variables_to_arrays
from alm_jax.interop.safetensors_io import read_safetensors

MICRO = AstConfig(num_frames=128, num_mels=128, width=64, num_layers=2, num_heads=1, mlp_dim=32)
CLASSIFIER = dataclasses.replace(MICRO, num_classes=5)


def save(layout, config, folder) -> dict[str, np.ndarray]:
    fields = layout.write_config(config)
    theirs = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    getattr(transformers, layout.architectures[0])(theirs).save_pretrained(folder)
    return read_safetensors(folder / "model.safetensors")


@pytest.mark.parametrize(("layout", "config"), [(AST, MICRO), (AST_CLASSIFIER, CLASSIFIER)])
def test_export_of_an_import_is_the_saved_model_bit_for_bit(layout, config, tmp_path):
    saved = save(layout, config, tmp_path)
    assert layout.read_config(json.loads((tmp_path / "config.json").read_text())) == config
    back = variables_to_arrays(layout, config, arrays_to_variables(layout, config, saved))
    assert back.keys() == saved.keys()
    for key, value in saved.items():
        np.testing.assert_array_equal(back[key], value, strict=True)


def to_archive(saved: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The classifier's arrays under the names of the authors, which join query, key and value."""
    tower = {
        key.removeprefix("audio_spectrogram_transformer."): value
        for key, value in saved.items()
        if key.startswith("audio_spectrogram_transformer.")
    }
    arrays = {
        "v.cls_token": tower["embeddings.cls_token"],
        "v.dist_token": tower["embeddings.distillation_token"],
        "v.pos_embed": tower["embeddings.position_embeddings"],
    }
    for kind in ("weight", "bias"):
        arrays[f"v.patch_embed.proj.{kind}"] = tower[f"embeddings.patch_embeddings.projection.{kind}"]
        arrays[f"v.norm.{kind}"] = tower[f"layernorm.{kind}"]
        arrays[f"mlp_head.0.{kind}"] = saved[f"classifier.layernorm.{kind}"]
        arrays[f"mlp_head.1.{kind}"] = saved[f"classifier.dense.{kind}"]
        for i in range(2):
            layer, block = f"encoder.layer.{i}", f"v.blocks.{i}"
            arrays[f"{block}.attn.qkv.{kind}"] = np.concatenate(
                [tower[f"{layer}.attention.attention.{name}.{kind}"] for name in ("query", "key", "value")]
            )
            for theirs, name in (
                ("layernorm_before", "norm1"),
                ("attention.output.dense", "attn.proj"),
                ("layernorm_after", "norm2"),
                ("intermediate.dense", "mlp.fc1"),
                ("output.dense", "mlp.fc2"),
            ):
                arrays[f"{block}.{name}.{kind}"] = tower[f"{layer}.{theirs}.{kind}"]
    return arrays


def test_an_archive_holds_the_same_model(tmp_path):
    saved = save(AST_CLASSIFIER, CLASSIFIER, tmp_path)
    archive = to_archive(saved)
    config = AST_ARCHIVE.infer_config({key: array.shape for key, array in archive.items()})
    assert config == dataclasses.replace(CLASSIFIER, layer_norm_eps=1e-6, head_norm_eps=1e-5)
    ours = arrays_to_variables(AST_ARCHIVE, config, archive)
    jax.tree.map(np.testing.assert_array_equal, ours, arrays_to_variables(AST_CLASSIFIER, CLASSIFIER, saved))
    with pytest.raises(UserError, match="one for both"):
        AST_CLASSIFIER.write_config(config)


def test_positions_of_no_published_grid_are_refused(tmp_path):
    shapes = {
        key: array.shape for key, array in to_archive(save(AST_CLASSIFIER, CLASSIFIER, tmp_path)).items()
    }
    with pytest.raises(UserError, match="say the config"):
        AST_ARCHIVE.infer_config(shapes | {"v.pos_embed": (1, 9, 64)})
