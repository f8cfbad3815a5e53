"""AST, the Audio Spectrogram Transformer: a Vision Transformer on overlapping patches of a log-mel.

Gong et al. 2021, https://arxiv.org/abs/2104.01778. log-mel [B T F] -> 16 x 16 patches, one every 10 frames and 10 mel
bins, frequency-major -> linear embedding -> a class and a distillation token in front -> learned positions -> pre-norm
blocks -> norm -> the mean of the two tokens.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alm_jax.encoders.family import AudioTowerConfig, Family
from alm_jax.errors import UserError
from alm_jax.nn.conv import Conv, conv_length
from alm_jax.nn.dense import Dense
from alm_jax.nn.norm import LayerNorm
from alm_jax.nn.parameter import declare, truncated_normal
from alm_jax.nn.rematerialise import Remat, rematerialise
from alm_jax.nn.transformer import PreNormBlock
from alm_jax.ops.frontends import AstSpec, published_clip
from alm_jax.ops.window_mask import window_mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class AstConfig(AudioTowerConfig):
    """Shape of an AST. Defaults are the published backbone for AudioSet, without its classifier."""

    num_frames: int = 1024
    """Frames of the longest input: its positions are learned."""
    num_mels: int = 128
    """Mel bins of the input."""
    patch_size: int = 16
    """Side of a square patch, in frames and in mel bins."""
    time_stride: int = 10
    """Stride of patches in time, frames."""
    frequency_stride: int = 10
    """Stride of patches in frequency, mel bins."""
    width: int = 768
    """Width: size of a token's hidden state and of the clip vector."""
    num_layers: int = 12
    """Transformer blocks."""
    num_heads: int = 12
    """Attention heads; divides the width."""
    mlp_dim: int = 3072
    """Hidden size of the feed-forward layers."""
    layer_norm_eps: float = 1e-12
    """Epsilon of LayerNorm: 1e-12 in transformers, 1e-6 in the original."""
    num_classes: int | None = None
    """Outputs of the classifier (AudioSet 527, Speech Commands V2 35); None: no classifier."""
    head_norm_eps: float = 1e-12
    """Epsilon of the classifier's LayerNorm: 1e-12 in transformers, 1e-5 in the original."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise UserError(
                f"audio width {self.width} must be a multiple of num_heads {self.num_heads}: change one of them"
            )
        if min(self.num_frames, self.num_mels) < self.patch_size:
            raise UserError(
                f"{self.num_frames} frames of {self.num_mels} mel bins hold no patch of {self.patch_size}: raise "
                "num_frames or num_mels"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Number of patches of the longest input along frequency and along time."""
        return (
            conv_length(self.num_mels, self.patch_size, self.frequency_stride),
            conv_length(self.num_frames, self.patch_size, self.time_stride),
        )


BASE = AstConfig()
# For tests and demonstrations on a CPU: 0.4 M parameters, up to 256 frames of 64 mel bins.
NANO = AstConfig(num_frames=256, num_mels=64, width=128, num_layers=2, num_heads=4, mlp_dim=512)
AUDIOSET = dataclasses.replace(BASE, num_classes=527)
VARIANTS = {
    "base": BASE,
    "audioset_10_10": AUDIOSET,
    "audioset_12_12": dataclasses.replace(AUDIOSET, time_stride=12, frequency_stride=12),
    "audioset_14_14": dataclasses.replace(AUDIOSET, time_stride=14, frequency_stride=14),
    "audioset_16_16": dataclasses.replace(AUDIOSET, time_stride=16, frequency_stride=16),
    "speech_commands_v2": dataclasses.replace(BASE, num_frames=128, num_classes=35),
    "nano": NANO,
}


class Ast(nn.Module):
    """Module from log-mel features to the states of the tokens, a clip vector, or logits, in ``dtype``.

    Parameters: ``patch_embed``, ``cls_token``, ``distillation_token``, ``position_embed``, ``blocks`` (every array with
    a leading axis of layers), ``norm``; with classes ``head_norm`` and ``head``.
    """

    config: AstConfig
    dtype: jnp.dtype
    output: Literal["tokens", "clip", "logits"] = "clip"
    """tokens: class token, distillation token and patches, frequency-major [B 2+N D], normalised; clip: the mean of the
    first two [B D]; logits: the classifier's, float32 [B num_classes]."""
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self, features: Float[Array, "B T F"], *, mask: Bool[Array, "B T"] | None = None
    ) -> Float[Array, "B D"] | Float[Array, "B tokens D"]:
        """Encodes ``features`` of T frames, from a patch up to ``num_frames``; frames after the last patch are
        unused.

        A patch has the position of its place in the longest input, however many follow it.

        Args:
            mask: True where a frame is real, the padding at the end; patches with padding in them are not attended
                to. None, as published: padding is encoded like audio.

        Raises:
            UserError: ``features`` do not fit the config, or logits are asked for without classes.
        """
        config = self.config
        batch_size, num_frames, num_mels = features.shape
        if not config.patch_size <= num_frames <= config.num_frames or num_mels != config.num_mels:
            raise UserError(
                f"features have {num_frames} frames of {num_mels} mel bins; this encoder takes {config.patch_size} to "
                f"{config.num_frames} frames of {config.num_mels}: fit the clip, hop and mel bins to it"
            )
        if self.output == "logits" and config.num_classes is None:
            raise UserError(
                "this AST has no classifier: set num_classes, or ask for tokens or the clip vector"
            )
        embed = Conv(
            config.width,
            (config.patch_size, config.patch_size),
            ("channels_in", "embed"),
            self.dtype,
            strides=(config.frequency_stride, config.time_stride),
            name="patch_embed",
        )
        grid = embed(features.swapaxes(1, 2)[..., None])
        rows, columns = grid.shape[1:3]

        tokens = [
            declare(self, name, truncated_normal, (config.width,), ("embed",))
            for name in ("cls_token", "distillation_token")
        ]
        shape = (2 + config.grid[0] * config.grid[1], config.width)
        positions = declare(self, "position_embed", truncated_normal, shape, ("positions", "embed"))
        first = (jnp.stack(tokens) + positions[:2]).astype(self.dtype)
        places = positions[2:].reshape(*config.grid, config.width)[:, :columns].astype(self.dtype)
        patches = (grid + places[None]).reshape(batch_size, rows * columns, config.width)
        x = jnp.concatenate([jnp.broadcast_to(first, (batch_size, *first.shape)), patches], axis=1)
        token_mask = None
        if mask is not None:
            real = jnp.tile(window_mask(mask, config.patch_size, config.time_stride), (1, rows))
            token_mask = jnp.pad(real, ((0, 0), (2, 0)), constant_values=True)

        block = rematerialise(PreNormBlock, self.remat)
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = blocks(config.num_heads, config.mlp_dim, config.layer_norm_eps, self.dtype, name="blocks")(
            x, token_mask
        )
        x = LayerNorm(self.dtype, config.layer_norm_eps, name="norm")(x)
        clip = (x[:, 0] + x[:, 1]) / 2
        if config.num_classes is not None:
            y = LayerNorm(self.dtype, config.head_norm_eps, name="head_norm")(clip)
            logits = Dense((config.num_classes,), ("embed", "classes"), self.dtype, name="head")(y)
        if self.output == "tokens":
            return x
        if self.output == "logits":
            return logits.astype(jnp.promote_types(self.dtype, jnp.float32))
        return clip


FAMILY = Family(
    name="ast",
    kind="audio encoder",
    config_type=AstConfig,
    build=lambda config, dtype, remat: Ast(config, dtype, remat=remat),
    variants=VARIANTS,
    example=lambda config: (jax.ShapeDtypeStruct((2, config.patch_size, config.num_mels), jnp.float32),),
    frontend=AstSpec(clip=published_clip(1024)),
    takes=frozenset({"mask"}),
    states="tokens",
    source="https://arxiv.org/abs/2104.01778",
)
