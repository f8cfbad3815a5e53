"""AudioMAE: a Vision Transformer on the patches of a log-mel that encodes only the visible patches.

Huang et al. 2022, https://arxiv.org/abs/2207.06405. log-mel [B T F] -> 16 x 16 patches, time-major -> the visible
ones alone -> linear embedding + fixed sine-cosine positions -> a class token in front -> pre-norm blocks. In
pre-training 80 % of the patches are hidden and never computed; `alm_jax/ops/patch_masking.py` chooses them.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from alm_jax.encoders.family import AudioTowerConfig, Family
from alm_jax.errors import UserError
from alm_jax.nn.dense import Dense
from alm_jax.nn.norm import LayerNorm
from alm_jax.nn.parameter import declare
from alm_jax.nn.rematerialise import Remat, rematerialise
from alm_jax.nn.transformer import PreNormBlock
from alm_jax.ops.frontends import AstSpec, published_clip
from alm_jax.ops.patch_masking import take_patches
from alm_jax.ops.patchify import patchify
from alm_jax.ops.positions import sincos_grid
from alm_jax.ops.window_mask import window_mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioMaeConfig(AudioTowerConfig):
    """Shape of an AudioMAE encoder. Defaults are the published ViT-B/16."""

    num_frames: int = 1024
    """Frames of the longest input, a multiple of patch_size."""
    num_mels: int = 128
    """Mel bins of the input, a multiple of patch_size."""
    patch_size: int = 16
    """Side of a square patch, in frames and in mel bins."""
    width: int = 768
    """Width: size of a token's hidden state and of the clip vector; a multiple of 4."""
    num_layers: int = 12
    """Transformer blocks."""
    num_heads: int = 12
    """Attention heads; divides the width."""
    mlp_dim: int = 3072
    """Hidden size of the feed-forward layers."""
    layer_norm_eps: float = 1e-6
    """Epsilon of LayerNorm."""
    compat: bool = False
    """Position layout of the released weights, which lay the time-major tokens on the transposed grid: token i of 64
    x 8 has the position of row i // 64, column i % 64. False gives every token its own position."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads or self.width % 4:
            raise UserError(
                f"audio width {self.width} must be a multiple of num_heads {self.num_heads} and of 4: change "
                "one of them"
            )
        if self.num_frames % self.patch_size or self.num_mels % self.patch_size:
            raise UserError(
                f"num_frames {self.num_frames} and num_mels {self.num_mels} must be multiples of patch_size "
                f"{self.patch_size}; change one of them"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Number of patches of the longest input along time and along frequency."""
        return self.num_frames // self.patch_size, self.num_mels // self.patch_size

    @property
    def num_patches(self) -> int:
        """Number of patches of the longest input."""
        return self.grid[0] * self.grid[1]


BASE = AudioMaeConfig()
# For tests and demonstrations on a CPU: 0.4 M parameters, up to 256 frames of 64 mel bins.
NANO = AudioMaeConfig(num_frames=256, num_mels=64, width=128, num_layers=2, num_heads=4, mlp_dim=512)
VARIANTS = {"base": BASE, "nano": NANO}


def compute_positions(config: AudioMaeConfig) -> Float[np.ndarray, "N D"]:
    """Fixed sine-cosine position of each patch of the longest input, float32; the class token has none."""
    rows, columns = reversed(config.grid) if config.compat else config.grid
    return sincos_grid(rows, columns, config.width)


class AudioMae(nn.Module):
    """Module from log-mel features to the states of the patches or a clip vector, in ``dtype``.

    Parameters: ``patch_embed``, ``cls_token``, ``blocks`` (every array with a leading axis of layers), ``norm``.
    """

    config: AudioMaeConfig
    dtype: jnp.dtype
    output: Literal["tokens", "clip"] = "clip"
    """Output. "tokens": class token and visible patches [B 1+n D], normalised, as pre-training uses them. "clip":
    norm of the mean over the patches [B D], as fine-tuning uses it (its ``fc_norm``)."""
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "B T F"],
        *,
        visible_ids: Int[Array, "B n"] | None = None,
        mask: Bool[Array, "B T"] | None = None,
    ) -> Float[Array, "B D"] | Float[Array, "B tokens D"]:
        """Encodes ``features``, of T frames up to ``num_frames``, a multiple of the patch size.

        Args:
            visible_ids: the patches to encode, in this order; None for all. Other patches are not computed.
            mask: True for real frames; patches without any are not attended to and not in the clip vector. A
                patch's position is the same however many follow it. None, as published: padding is encoded like
                audio.
        """
        config = self.config
        _, num_frames, num_mels = features.shape
        if num_frames > config.num_frames or num_frames % config.patch_size or num_mels != config.num_mels:
            raise UserError(
                f"features have {num_frames} frames of {num_mels} mel bins; this encoder takes a multiple of "
                f"{config.patch_size} up to {config.num_frames} frames of {config.num_mels}: fit the clip, hop and mel "
                "bins to it"
            )
        patches = patchify(features, config.patch_size)
        batch_size, num_patches, _ = patches.shape
        positions = jnp.asarray(compute_positions(config)[:num_patches], self.dtype)[None]
        if mask is not None:
            steps = window_mask(mask, config.patch_size, config.patch_size)
            mask = jnp.repeat(steps, num_mels // config.patch_size, axis=1)
        if visible_ids is not None:
            patches = take_patches(patches, visible_ids)
            positions = jnp.take(positions[0], visible_ids, axis=0, mode="clip")
            mask = None if mask is None else take_patches(mask, visible_ids)

        init = nn.initializers.xavier_uniform()
        embed = Dense((config.width,), ("patch", "embed"), self.dtype, kernel_init=init, name="patch_embed")
        x = embed(patches) + positions
        cls_token = declare(self, "cls_token", nn.initializers.normal(0.02), (config.width,), ("embed",))
        cls_token = jnp.broadcast_to(cls_token.astype(self.dtype), (batch_size, 1, config.width))
        x = jnp.concatenate([cls_token, x], axis=1)
        token_mask = None if mask is None else jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)

        block = rematerialise(PreNormBlock, self.remat)
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = blocks(
            config.num_heads, config.mlp_dim, config.layer_norm_eps, self.dtype, init, name="blocks"
        )(x, token_mask)
        norm = LayerNorm(self.dtype, config.layer_norm_eps, name="norm")
        if self.output == "tokens":
            return norm(x)
        # A mean of many tokens loses bits in bfloat16.
        x = x[:, 1:].astype(jnp.float32)
        if mask is None:
            return norm(jnp.mean(x, axis=1))
        total = jnp.sum(jnp.where(mask[:, :, None], x, 0), axis=1)
        return norm(total / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1))


FAMILY = Family(
    name="audio_mae",
    kind="audio encoder",
    config_type=AudioMaeConfig,
    build=lambda config, dtype, remat: AudioMae(config, dtype, remat=remat),
    variants=VARIANTS,
    example=lambda config: (jax.ShapeDtypeStruct((2, config.patch_size, config.num_mels), jnp.float32),),
    frontend=AstSpec(clip=published_clip(1024)),
    takes=frozenset({"mask"}),
    states="tokens",
    source="https://arxiv.org/abs/2207.06405",
)
