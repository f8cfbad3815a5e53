"""LAION-CLAP's archives: a ClapModel's weights under the authors' names come in as the same model."""

import dataclasses
import re

import jax
import numpy as np
import pytest
import torch

from alm_jax.encoders.audio import htsat, htsat_fusion
from alm_jax.encoders.text import bert
from alm_jax.interop.clap_weights import CLAP
from alm_jax.interop.folder import import_model
from alm_jax.interop.format import arrays_to_variables
from alm_jax.interop.laion import LAION
from alm_jax.models.two_towers import TwoTowersConfig
from alm_jax.ops.frontends import ClapSpec, ClipSpec, FusionSpec, TorchlibrosaSpec

SMALL = {"embed_dim": 16, "depths": (1, 2), "num_heads": (2, 4), "drop_path_rate": 0.0}
TEXT = dataclasses.replace(bert.NANO, width=64, num_heads=1, mlp_dim=128, kernel_init="normal")


def rename(key: str) -> str:
    """The inverse of transformers' convert_clap_original_pytorch_to_hf.py."""
    key = re.sub(r"_projection\.linear([12])", lambda found: f"_projection.{2 * int(found[1]) - 2}", key)
    for authors, theirs in (
        ("text_branch", "text_model"),
        ("audio_branch", "audio_model.audio_encoder"),
        ("bn0", "batch_norm"),
        ("norm1", "layernorm_before"),
        ("norm2", "layernorm_after"),
    ):
        key = key.replace(theirs, authors)
    if key.startswith("audio_branch"):
        for authors, theirs in (
            ("attn.proj", "attention.output.dense"),
            ("attn", "attention.self"),
            ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
        ):
            key = key.replace(theirs, authors)
    return f"module.{key}"


def to_archive(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {rename(key): tensor for key, tensor in state.items()}
    for key in [key for key in renamed if re.search(r"audio_branch.*attn\.query", key)]:
        parts = [renamed.pop(key.replace("query", name)) for name in ("query", "key", "value")]
        renamed[key.replace("query", "qkv")] = torch.cat(parts)
    # What the authors' models have besides.
    for key in (
        "audio_branch.tscam_conv.weight",
        "audio_branch.head.bias",
        "audio_branch.logmel_extractor.melW",
        "audio_branch.layers.1.blocks.1.attn_mask",
        "audio_transform.sequential.0.weight",
    ):
        renamed[f"module.{key}"] = torch.ones(2)
    return {"epoch": 1, "name": "run", "state_dict": renamed, "optimizer": {}}


@pytest.mark.parametrize("fused", [False, True])
def test_an_archive_holds_the_same_model(build_clap, tmp_path, fused):
    audio = htsat_fusion.HtsatFusionConfig(**SMALL) if fused else htsat.HtsatConfig(**SMALL)
    clip = ClipSpec(clip_sec=10.0)
    frontend = FusionSpec(clip=clip) if fused else ClapSpec(clip=clip)
    config = TwoTowersConfig(frontend=frontend, audio=audio, text=TEXT, embed_dim=32)
    model = build_clap(config)
    torch.save(to_archive(model.state_dict()), tmp_path / "630k.pt")

    found = import_model(tmp_path / "630k.pt")
    assert found.layout is LAION
    assert dataclasses.replace(found.config.audio, drop_path_rate=0.0) == audio
    assert dataclasses.replace(found.config.text, layer_norm_eps=TEXT.layer_norm_eps) == TEXT
    assert found.config.embed_dim == 32
    if fused:
        assert isinstance(found.config.frontend, FusionSpec)
    else:
        assert isinstance(found.config.frontend, TorchlibrosaSpec)
    assert found.config.frontend.int16_quantize
    assert found.config.frontend.num_frames == 1001
    expected = arrays_to_variables(CLAP, config, {k: v.numpy() for k, v in model.state_dict().items()})
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), found.variables, expected)
