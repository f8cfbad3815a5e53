"""AST: the authors' archives beside transformers' files."""

import dataclasses

import jax
import numpy as np
import pytest
import transformers

from alm_jax.encoders.audio.ast import AstConfig
from alm_jax.errors import UserError
from alm_jax.interop.ast import AST_ARCHIVE, AST_CLASSIFIER
from alm_jax.interop.format import arrays_to_variables
from alm_jax.interop.safetensors_io import read_safetensors

CLASSIFIER = AstConfig(
    num_frames=128, num_mels=128, width=64, num_layers=2, num_heads=1, mlp_dim=32, num_classes=5
)


def save(folder) -> dict[str, np.ndarray]:
    fields = AST_CLASSIFIER.write_config(CLASSIFIER)
    theirs = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    transformers.ASTForAudioClassification(theirs).save_pretrained(folder)
    return read_safetensors(folder / "model.safetensors")


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
    saved = save(tmp_path)
    archive = to_archive(saved)
    config = AST_ARCHIVE.infer_config({key: array.shape for key, array in archive.items()})
    assert config == dataclasses.replace(CLASSIFIER, layer_norm_eps=1e-6, head_norm_eps=1e-5)
    ours = arrays_to_variables(AST_ARCHIVE, config, archive)
    jax.tree.map(np.testing.assert_array_equal, ours, arrays_to_variables(AST_CLASSIFIER, CLASSIFIER, saved))
    with pytest.raises(UserError, match="one for both"):
        AST_CLASSIFIER.write_config(config)


def test_positions_of_no_published_grid_are_refused(tmp_path):
    shapes = {key: array.shape for key, array in to_archive(save(tmp_path)).items()}
    with pytest.raises(UserError, match="say the config"):
        AST_ARCHIVE.infer_config(shapes | {"v.pos_embed": (1, 9, 64)})
