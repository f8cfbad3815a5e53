"""Whisper's encoder, also the audio encoder of Qwen-Audio and Qwen2-Audio.

Radford et al. 2022, https://arxiv.org/abs/2212.04356. log-mel [B T F] -> two convolutions over three frames, the second
halving the rate -> fixed sinusoids -> pre-norm blocks -> norm. Its decoder: `alm_jax/encoders/text/whisper_decoder.py`.
"""

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from alm_jax.encoders.family import AudioTowerConfig, Family
from alm_jax.errors import UserError
from alm_jax.nn.conv import Conv
from alm_jax.nn.mlp import gelu
from alm_jax.nn.norm import LayerNorm
from alm_jax.nn.parameter import KERNEL_INITS, declare
from alm_jax.nn.pooling import masked_mean
from alm_jax.nn.rematerialise import Remat, rematerialise
from alm_jax.nn.whisper import LAYER_NORM_EPS, WhisperEncoderBlock
from alm_jax.ops.frontends import ClipSpec, WhisperSpec
from alm_jax.ops.window_mask import window_mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhisperEncoderConfig(AudioTowerConfig):
    """Shape of a Whisper encoder. Defaults are those of whisper-tiny."""

    num_mels: int = 80
    """Mel bins of the input: 80; 128 in large-v3."""
    max_positions: int = 1500
    """States of the longest input before pooling: half its frames."""
    width: int = 384
    """Width: size of a state and of the clip vector; even."""
    num_layers: int = 4
    """Transformer blocks."""
    num_heads: int = 6
    """Attention heads; divides the width."""
    mlp_dim: int = 1536
    """Hidden size of the feed-forward layers."""
    pool_size: int = 1
    """States averaged into one before the last norm: 1; 2 in Qwen-Audio and Qwen2-Audio."""
    compat: bool = False
    """Treatment of padding under a mask as in Qwen2-Audio, whose convolutions read the padding after a clip's end.
    False: they read zeros there, and a clip is encoded as if it were not padded."""
    kernel_init: Literal["normal", "fan_in"] = "normal"
    """Initialisation of kernels: N(0, 0.02^2), or N(0, 1 / fan-in), with which a narrow encoder learns faster; with
    the first its initial states are hardly more than the sinusoids."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads or self.width % 2:
            raise UserError(
                f"audio width {self.width} must be even and a multiple of num_heads {self.num_heads}: change one"
            )
        if not 1 <= self.pool_size <= self.max_positions:
            raise UserError(
                f"pool_size {self.pool_size} must be in 1..{self.max_positions}, the states of a clip"
            )


TINY = WhisperEncoderConfig()
BASE = WhisperEncoderConfig(width=512, num_layers=6, num_heads=8, mlp_dim=2048)
SMALL = WhisperEncoderConfig(width=768, num_layers=12, num_heads=12, mlp_dim=3072)
MEDIUM = WhisperEncoderConfig(width=1024, num_layers=24, num_heads=16, mlp_dim=4096)
LARGE = WhisperEncoderConfig(width=1280, num_layers=32, num_heads=20, mlp_dim=5120)
LARGE_V3 = dataclasses.replace(LARGE, num_mels=128)
# For tests and demonstrations on a CPU: 0.6 M parameters, up to 400 frames of 40 mel bins.
NANO = WhisperEncoderConfig(num_mels=40, max_positions=200, width=128, num_layers=2, num_heads=4, mlp_dim=512)
VARIANTS = {
    "tiny": TINY,
    "base": BASE,
    "small": SMALL,
    "medium": MEDIUM,
    "large": LARGE,
    "large_v3": LARGE_V3,
    "qwen_audio": dataclasses.replace(LARGE, pool_size=2, compat=True),
    "qwen2_audio": dataclasses.replace(LARGE_V3, pool_size=2, compat=True),
    "nano": NANO,
}


def compute_sinusoids(num_positions: int, width: int) -> Float[np.ndarray, "N D"]:
    """Fixed positions [sin(n w_k), cos(n w_k)], w_k = 10000^(-k / (width / 2 - 1)), float32; OpenAI's
    ``sinusoids``."""
    frequency = np.exp(-math.log(10000.0) / max(width // 2 - 1, 1) * np.arange(width // 2))
    angle = np.arange(num_positions)[:, None] * frequency[None]
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def compute_token_mask(config: WhisperEncoderConfig, mask: Bool[Array, "B T"]) -> Bool[Array, "B N"]:
    """Mask of the encoder's states of real audio: ceil(L / 2) of L real frames, and of those only whole pooling
    groups."""
    return window_mask(mask[:, ::2], config.pool_size, config.pool_size)


class WhisperEncoder(nn.Module):
    """Module from log-mel features to states or to a clip vector, in ``dtype``.

    Parameters: ``conv1``, ``conv2``, ``position_embed`` (sinusoids at first; the released models never trained them),
    ``blocks`` (every array with a leading axis of layers), ``norm``.
    """

    config: WhisperEncoderConfig
    dtype: jnp.dtype
    output: Literal["tokens", "clip"] = "tokens"
    """Output. "tokens": the states [B N D], N = ceil(T / 2) // pool_size, normalised. "clip": their mean over real
    audio [B D]."""
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self, features: Float[Array, "B T F"], *, mask: Bool[Array, "B T"] | None = None
    ) -> Float[Array, "B N D"] | Float[Array, "B D"]:
        """Encodes ``features`` of T frames, 1 to twice ``max_positions``; released weights expect 30 s, T = 3000.

        Args:
            mask: True where a frame is real, the padding at the end; `compute_token_mask` says which states are then.
                None, as Whisper was trained: silence after a clip is encoded too.

        Raises:
            UserError: ``features`` do not fit the config.
        """
        config = self.config
        _, num_frames, num_mels = features.shape
        if (
            not 2 * config.pool_size - 1 <= num_frames <= 2 * config.max_positions
            or num_mels != config.num_mels
        ):
            raise UserError(
                f"features have {num_frames} frames of {num_mels} mel bins; this encoder takes "
                f"{2 * config.pool_size - 1} to {2 * config.max_positions} frames of {config.num_mels}: fit the clip "
                "and mel bins to it"
            )
        padding = ((1, 1),)
        init = KERNEL_INITS[config.kernel_init]

        def conv(strides: tuple[int], axes: tuple[str, str], name: str) -> Conv:
            return Conv(config.width, (3,), axes, self.dtype, strides, padding, kernel_init=init, name=name)

        conv1 = conv((1,), ("mel", "embed"), "conv1")
        conv2 = conv((2,), ("channels_in", "embed"), "conv2")
        is_real = None if mask is None or config.compat else mask[:, :, None]
        x = features if is_real is None else jnp.where(is_real, features, 0)
        x = gelu(conv1(x))
        x = gelu(conv2(x if is_real is None else jnp.where(is_real, x, 0)))

        def init_positions(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
            return jnp.asarray(compute_sinusoids(*shape), dtype)

        shape = (config.max_positions, config.width)
        positions = declare(self, "position_embed", init_positions, shape, ("positions", "embed"))
        x = x + positions[None, : x.shape[1]].astype(self.dtype)

        block = rematerialise(WhisperEncoderBlock, self.remat)
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = blocks(config.num_heads, config.mlp_dim, self.dtype, init, name="blocks")(
            x, None if mask is None else mask[:, ::2]
        )
        if config.pool_size > 1:
            num_tokens = x.shape[1] // config.pool_size
            # A mean loses bits in bfloat16.
            x = x[:, : num_tokens * config.pool_size].astype(jnp.promote_types(self.dtype, jnp.float32))
            x = jnp.mean(x.reshape(x.shape[0], num_tokens, config.pool_size, -1), axis=2)
        x = LayerNorm(self.dtype, LAYER_NORM_EPS, name="norm")(x)
        if self.output == "tokens":
            return x
        is_real = jnp.ones(x.shape[:2], bool) if mask is None else compute_token_mask(config, mask)
        return masked_mean(x, is_real)


FAMILY = Family(
    name="whisper_encoder",
    kind="audio encoder",
    config_type=WhisperEncoderConfig,
    build=lambda config, dtype, remat: WhisperEncoder(config, dtype, remat=remat),
    variants=VARIANTS,
    example=lambda config: (jax.ShapeDtypeStruct((2, 4 * config.pool_size, config.num_mels), jnp.float32),),
    frontend=WhisperSpec(clip=ClipSpec(clip_sec=30.0, pad="zero")),
    takes=frozenset({"mask"}),
    states="tokens",
    state_mask=lambda config, mask, train: compute_token_mask(config, mask),
    source="https://arxiv.org/abs/2212.04356",
)
