"""A Vision Transformer for clips of any length, packed in training: NaFlex, native resolution and flexible length.

log-mel [B T F] and which frames are real -> 16 x 16 patches of the real frames alone -> linear embedding + a learned
position in time + one in frequency -> pre-norm blocks -> the norm of each clip's mean. In evaluation a clip is a row.
In training several clips share a row, attention stays within a clip, and no time is spent on padding. (NaViT,
Dehghani et al. 2023, https://arxiv.org/abs/2307.06304, with its factorised positions and packing; NaFlex, SigLIP 2,
Tschannen et al. 2025, https://arxiv.org/abs/2502.14786.)
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.encoders.family import AudioTowerConfig, Family
from alm_jax.errors import UserError
from alm_jax.nn.dense import Dense
from alm_jax.nn.norm import LayerNorm
from alm_jax.nn.parameter import KERNEL_INITS, declare, truncated_normal
from alm_jax.nn.rematerialise import Remat, rematerialise
from alm_jax.nn.transformer import PreNormBlock
from alm_jax.ops.frontends import BeatsSpec, ClipSpec
from alm_jax.ops.packing import (
    Packing,
    cut_to_budget,
    pack,
    plan_packing,
    same_segment,
    segment_mean,
    unpack,
)
from alm_jax.ops.patchify import patchify


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedVitConfig(AudioTowerConfig):
    """Shape of a variable-duration ViT, and how training packs its clips. A step is one column of patches in time."""

    num_frames: int = 3072
    """Frames of the longest clip, a multiple of patch_size."""
    num_mels: int = 128
    """Mel bins of the input, a multiple of patch_size."""
    patch_size: int = 16
    """Side of a square patch, in frames and in mel bins."""
    width: int = 768
    """Width: size of a token's hidden state and of the clip vector."""
    num_layers: int = 12
    """Transformer blocks."""
    num_heads: int = 12
    """Attention heads; divides the width."""
    mlp_dim: int = 3072
    """Hidden size of the feed-forward layers."""
    layer_norm_eps: float = 1e-6
    """Epsilon of LayerNorm."""
    clips_per_row: int = 4
    """Clips that share a row in training; divides the rows of a (micro-)batch on every device. 1: no packing."""
    row_steps: int = 256
    """Steps of a row in training. Where the clips of a row have more, the longest are cut at their end; a value a
    little over clips_per_row times the mean length cuts few."""
    kernel_init: Literal["normal", "fan_in"] = "fan_in"
    """Initialisation of kernels: N(0, 0.02^2), or N(0, 1 / fan-in), with which a narrow tower learns faster."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise UserError(
                f"audio width {self.width} is not a multiple of num_heads {self.num_heads}; change one of them"
            )
        if self.num_frames % self.patch_size or self.num_mels % self.patch_size:
            raise UserError(
                f"num_frames {self.num_frames} and num_mels {self.num_mels} must be multiples of patch_size "
                f"{self.patch_size}; change one of them"
            )
        if not 1 <= self.clips_per_row <= self.row_steps:
            raise UserError(
                f"rows of {self.row_steps} steps cannot hold {self.clips_per_row} clips of a step or more; raise "
                "row_steps"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Number of patches of the longest input along time and along frequency."""
        return self.num_frames // self.patch_size, self.num_mels // self.patch_size


BASE = PackedVitConfig()
SMALL = PackedVitConfig(width=384, num_heads=6, mlp_dim=1536)
# For tests and demonstrations on a CPU: 0.5 M parameters, up to 512 frames of 64 mel bins.
NANO = PackedVitConfig(
    num_frames=512,
    num_mels=64,
    width=128,
    num_layers=2,
    num_heads=4,
    mlp_dim=512,
    clips_per_row=2,
    row_steps=48,
)
VARIANTS = {"base": BASE, "small": SMALL, "nano": NANO}


def count_steps(config: PackedVitConfig, mask: Bool[Array, "B T"]) -> Int[Array, " B"]:
    """Number of steps of each clip that hold a real frame; at least one."""
    return jnp.maximum(-(-jnp.sum(mask, axis=1) // config.patch_size), 1)


def kept_steps(config: PackedVitConfig, mask: Bool[Array, "B T"], *, train: bool) -> Int[Array, "rows clips"]:
    """Number of steps of each clip that a pass encodes: all in evaluation; in training only as many as its row
    holds."""
    steps, budget = count_steps(config, mask), config.row_steps if train else config.grid[0]
    return cut_to_budget(steps.reshape(-1, config.clips_per_row if train else 1), budget)


def compute_state_mask(
    config: PackedVitConfig, mask: Bool[Array, "B T"], *, train: bool = False
) -> Bool[Array, "B N"]:
    """Mask, for the output "tokens", of the states of steps that were encoded."""
    steps, num_bands = -(-mask.shape[1] // config.patch_size), config.grid[1]
    kept = kept_steps(config, mask, train=train).reshape(-1)
    return jnp.repeat(jnp.arange(steps)[None, :] < kept[:, None], num_bands, axis=1)


class PackedVit(nn.Module):
    """Module from log-mel features to a clip vector or to the states of its tokens, in ``dtype``.

    Parameters: ``patch_embed``, ``time_embed`` [steps D], ``frequency_embed`` [bands D], ``blocks`` (every array with a
    leading axis of layers), ``norm``.
    """

    config: PackedVitConfig
    dtype: jnp.dtype
    remat: Remat = "none"
    output: Literal["clip", "tokens"] = "clip"
    """Output. "clip": norm of the mean over a clip's tokens [B D]. "tokens": norm of each token, time-major with the
    bands inside time [B N D], one clip a row; zeros where `compute_state_mask` is False."""

    @nn.compact
    def __call__(
        self, features: Float[Array, "B T F"], *, mask: Bool[Array, "B T"] | None = None, train: bool = False
    ) -> Float[Array, "B D"] | Float[Array, "B N D"]:
        """Encodes ``features`` of up to ``num_frames`` frames.

        Args:
            mask: True where a frame is real, the padding at the end; what lies under it has no influence, and steps
                of padding alone are no tokens. None: all are real.
            train: ``clips_per_row`` neighbours share a row of ``row_steps``; otherwise each clip is whole, and a row.
                Where a row holds its clips uncut, both give the same vectors, to rounding.

        Raises:
            UserError: ``features`` do not fit the config, or in training B is no multiple of ``clips_per_row``.
        """
        config = self.config
        batch_size, num_frames, num_mels = features.shape
        if num_frames > config.num_frames or num_mels != config.num_mels:
            raise UserError(
                f"features have {num_frames} frames of {num_mels} mel bins; this encoder takes up to "
                f"{config.num_frames} frames of {config.num_mels}: fit the clip, hop and mel bins to it"
            )
        clips_per_row = config.clips_per_row if train else 1
        if batch_size % clips_per_row:
            raise UserError(
                f"{batch_size} clips cannot be packed {clips_per_row} to a row: choose a batch size and "
                "num_microbatches that leave a multiple of audio.clips_per_row"
            )
        if mask is None:
            mask = jnp.ones((batch_size, num_frames), jnp.bool_)
        features = jnp.where(mask[:, :, None], features, 0)
        features = jnp.pad(features, ((0, 0), (0, -num_frames % config.patch_size), (0, 0)))
        num_bands = config.grid[1]
        patches = patchify(features, config.patch_size)
        num_steps = patches.shape[1] // num_bands
        num_rows, budget = batch_size // clips_per_row, config.row_steps if train else num_steps

        packing = plan_packing(kept_steps(config, mask, train=train), budget)
        patches = pack(patches.reshape(num_rows, clips_per_row, num_steps, num_bands, -1), packing)
        x = self._embed(patches, packing).reshape(num_rows, budget * num_bands, config.width)
        segment = jnp.repeat(packing.segment, num_bands, axis=1)

        block = rematerialise(PreNormBlock, self.remat)
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        init = KERNEL_INITS[config.kernel_init]
        # For clips that are not packed a mask of keys is enough; fused kernels accept it.
        seen = same_segment(segment)[:, None] if clips_per_row > 1 else segment == 0
        x, _ = blocks(
            config.num_heads, config.mlp_dim, config.layer_norm_eps, self.dtype, init, name="blocks"
        )(x, seen)
        norm = LayerNorm(self.dtype, config.layer_norm_eps, name="norm")
        if self.output == "tokens":
            x = norm(x).reshape(num_rows, budget, num_bands, config.width)
            return unpack(x, packing, clips_per_row, num_steps).reshape(batch_size, -1, config.width)
        return norm(segment_mean(x, segment, clips_per_row).reshape(batch_size, config.width))

    def _embed(
        self, patches: Float[Array, "R C bands pixels"], packing: Packing
    ) -> Float[Array, "R C bands D"]:
        """Returns the patches with their positions in time and in frequency."""
        config = self.config
        init = KERNEL_INITS[config.kernel_init]
        embed = Dense((config.width,), ("patch", "embed"), self.dtype, kernel_init=init, name="patch_embed")
        steps, bands = config.grid
        time = declare(
            self, "time_embed", truncated_normal, (steps, config.width), ("time_positions", "embed")
        )
        frequency = declare(
            self, "frequency_embed", truncated_normal, (bands, config.width), ("frequency_positions", "embed")
        )
        at = jnp.take(time, packing.step, axis=0, mode="clip")[:, :, None] + frequency[None, None]
        return embed(patches) + at.astype(self.dtype)


FAMILY = Family(
    name="packed_vit",
    kind="audio encoder",
    config_type=PackedVitConfig,
    build=PackedVit,
    variants=VARIANTS,
    example=lambda config: (jax.ShapeDtypeStruct((2, 2 * config.patch_size, config.num_mels), jnp.float32),),
    frontend=BeatsSpec(clip=ClipSpec(clip_sec=30.0, pad="zero")),
    takes=frozenset({"train", "mask"}),
    any_length=True,
    states="tokens",
    state_mask=lambda config, mask, train: compute_state_mask(config, mask, train=train),
    source="https://arxiv.org/abs/2307.06304, https://arxiv.org/abs/2502.14786",
)
