"""CAV-MAE's audio branch as LTU's archives hold it, beside the adapters of its language model."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from alm_jax.encoders import family
from alm_jax.encoders.audio.cav_mae import FAMILY, NANO, CavMaeConfig
from alm_jax.errors import UserError
from alm_jax.interop.entry import Entry, linear, norm
from alm_jax.interop.format import Format
from alm_jax.interop.parity import Parity, RealInputs, load_oracle
from alm_jax.interop.shapes import published_heads
from alm_jax.ops.frontends import AstSpec, ClipSpec, compute_features


def _entries(config: CavMaeConfig) -> Iterator[Entry]:
    """Every key of LTU's audio path, without PEFT's prefix."""
    width, size, prefix, root = config.width, config.patch_size, "audio_encoder.", ("params",)
    kernel = (width, 1, size, size)
    yield Entry(f"{prefix}patch_embed_a.proj.weight", (*root, "patch_embed", "kernel"), kernel, "conv")
    yield Entry(f"{prefix}patch_embed_a.proj.bias", (*root, "patch_embed", "bias"), (width,))
    yield Entry(f"{prefix}modality_a", (*root, "modality_embed"), (1, 1, width))
    num_patches = config.grid[0] * config.grid[1]
    yield Entry(f"{prefix}pos_embed_a", (*root, "position_embed"), (1, num_patches, width))
    blocks = (*root, "blocks")
    for i in range(config.num_layers):
        # The last block is the one that both modalities share; of its three pairs of norms this is audio's.
        is_last = i == config.num_layers - 1
        theirs, suffix = (f"{prefix}blocks_u.0", "_a") if is_last else (f"{prefix}blocks_a.{i}", "")
        yield from norm(f"{theirs}.norm1{suffix}", (*blocks, "attention_norm"), width, (i,))
        yield from linear(f"{theirs}.attn.qkv", (*blocks, "attention", "qkv"), width, 3 * width, (i,))
        yield from linear(f"{theirs}.attn.proj", (*blocks, "attention", "out"), width, width, (i,))
        yield from norm(f"{theirs}.norm2{suffix}", (*blocks, "mlp_norm"), width, (i,))
        yield from linear(f"{theirs}.mlp.fc1", (*blocks, "mlp", "up"), width, config.mlp_dim, (i,))
        yield from linear(f"{theirs}.mlp.fc2", (*blocks, "mlp", "down"), config.mlp_dim, width, (i,))
    yield from norm(f"{prefix}norm_a", (*root, "norm"), width)
    yield from linear("audio_proj.1", (*root, "projection"), width, config.prompt_width)


def infer_cav_mae_config(shapes: Mapping[str, tuple[int, ...]]) -> CavMaeConfig:
    """The config of an archive from its shapes: 128 mel bins, heads of 64."""
    prefix = "audio_encoder."
    width, _, size, _ = shapes[f"{prefix}patch_embed_a.proj.weight"]
    num_patches, rows = shapes[f"{prefix}pos_embed_a"][1], 128 // size
    if num_patches % rows:
        raise UserError(
            f"{num_patches} patches are no grid of {rows} rows, 128 mel bins in patches of {size}: say the config"
        )
    numbers = [int(key.split(".")[2]) for key in shapes if key.startswith(f"{prefix}blocks_a.")]
    return CavMaeConfig(
        num_frames=num_patches // rows * size,
        patch_size=size,
        width=width,
        num_layers=max(numbers) + 2,
        num_heads=published_heads(width),
        mlp_dim=shapes[f"{prefix}blocks_u.0.mlp.fc1.weight"][0],
        prompt_width=shapes["audio_proj.1.weight"][0],
    )


CAV_MAE = Format(
    name="ltu-audio",
    config_type=CavMaeConfig,
    abstract=functools.partial(family.abstract, FAMILY),
    entries=_entries,
    infer_config=infer_cav_mae_config,
    key_prefix="base_model.model.model.",
    signature="audio_encoder.pos_embed_a",
    ignored=(
        # Norms of the other modality, and those that a block has and does not use.
        r"audio_encoder\.blocks_a\.\d+\.norm[12]_[av]\.(weight|bias)",
        r"audio_encoder\.blocks_u\.0\.norm[12](_v)?\.(weight|bias)",
        # The language model's adapters.
        r"layers\.\d+\.self_attn\.[qkvo]_proj\.(lora_[AB]\.(default\.)?)?weight",
    ),
)
FORMATS = (CAV_MAE,)


def _inputs(config: CavMaeConfig, real: RealInputs) -> dict[str, np.ndarray]:
    assert isinstance(FAMILY.frontend, AstSpec)
    clip_sec = config.num_frames / 100
    clip = ClipSpec(clip_sec=clip_sec)
    # LTU's normalisation at this config's shape.
    spec = AstSpec(
        clip=clip,
        num_mels=config.num_mels,
        padded_frames=config.num_frames,
        mean=FAMILY.frontend.mean,
        std=FAMILY.frontend.std,
        num_std=FAMILY.frontend.num_std,
    )
    waveforms = jnp.asarray(real.waveforms(spec.sample_rate_hz, clip_sec))
    return {"features": np.asarray(compute_features(waveforms, spec))}


def _build(config: CavMaeConfig) -> Any:
    return load_oracle("cav_mae").Ltu(config).eval()


PARITY = (
    Parity(
        name="cav-mae audio branch and projection of ltu, nano",
        layout=CAV_MAE,
        config=NANO,
        oracle=_build,
        oracle_name="tests/oracles/cav_mae.py",
        inputs=_inputs,
        ours=lambda config, variables, given, dtype: family.apply(
            FAMILY, config, variables, given["features"], dtype=dtype
        ),
        theirs=lambda module, given: module(given["features"]),
    ),
)
