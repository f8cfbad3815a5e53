"""CED: a small Vision Transformer on 64 mel bins that was distilled from large taggers; the audio tower of ML-CLAP.

Dinkel et al. 2023, https://arxiv.org/abs/2308.11957. log-mel [B T F] -> BatchNorm -> chunks of 63 patches -> 16 x 16
patches, frequency-major -> linear embedding, a position along time and one along frequency -> pre-norm blocks -> mean
over the tokens of all chunks.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float

from alm_jax.encoders.family import AudioTowerConfig, Family
from alm_jax.errors import UserError
from alm_jax.nn.conv import Conv
from alm_jax.nn.dense import Dense
from alm_jax.nn.norm import BatchNorm, LayerNorm, Moments
from alm_jax.nn.parameter import declare, truncated_normal
from alm_jax.nn.pooling import masked_mean
from alm_jax.nn.rematerialise import Remat, rematerialise
from alm_jax.nn.transformer import PreNormBlock
from alm_jax.ops.frontends import CedSpec, ClipSpec
from alm_jax.ops.window_mask import window_mask

# The norms of the classifier and of the features have PyTorch's defaults, except for this.
_FEATURE_MOMENTUM = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class CedConfig(AudioTowerConfig):
    """Shape of a CED encoder. Defaults are CED-base's."""

    chunk_frames: int = 1012
    """Frames encoded together; a longer input is cut into chunks of this size."""
    num_mels: int = 64
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
    """Epsilon of LayerNorm; the classifier's norm has 1e-5."""
    num_classes: int | None = None
    """Classes of the classifier (AudioSet's 527); None: no classifier."""
    compat: bool = False
    """Whether to leave out the last chunk of an input that fills all its chunks, as the released code does. False
    encodes it."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise UserError(
                f"audio width {self.width} must be a multiple of num_heads {self.num_heads}: change one of them"
            )
        if self.chunk_frames < self.patch_size or self.num_mels % self.patch_size:
            raise UserError(
                f"chunks of {self.chunk_frames} frames of {self.num_mels} mel bins must hold a patch of "
                f"{self.patch_size} and whole patches of mel bins; change one of them"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Number of patches of a chunk along frequency and along time."""
        return self.num_mels // self.patch_size, self.chunk_frames // self.patch_size


BASE = CedConfig()
SMALL = CedConfig(width=384, num_heads=6, mlp_dim=1536)
MINI = CedConfig(width=256, num_heads=4, mlp_dim=1024)
TINY = CedConfig(width=192, num_heads=3, mlp_dim=768)
# For tests and demonstrations on a CPU: 0.4 M parameters, chunks of 128 frames.
NANO = CedConfig(chunk_frames=132, width=128, num_layers=2, num_heads=4, mlp_dim=512)
VARIANTS = {
    "base": BASE,
    "small": SMALL,
    "mini": MINI,
    "tiny": TINY,
    **{
        f"{name}_audioset": dataclasses.replace(config, num_classes=527)
        for name, config in (("base", BASE), ("small", SMALL), ("mini", MINI), ("tiny", TINY))
    },
    "nano": NANO,
}


class Ced(nn.Module):
    """Module from log-mel features to the states of the patches, a clip vector, or logits, in ``dtype``.

    Parameters: ``feature_norm``, ``patch_embed``, ``time_embed``, ``frequency_embed``, ``blocks`` (every array with a
    leading axis of layers), ``norm``; with classes ``head_norm`` and ``head``.
    """

    config: CedConfig
    dtype: jnp.dtype
    output: Literal["tokens", "clip", "logits"] = "clip"
    """Output. "tokens": patches chunk by chunk, frequency-major in each [B N D], normalised. "clip": their mean over
    real audio [B D]. "logits": the classifier's output, float32 [B num_classes]; its sigmoids are probabilities,
    averaged over chunks."""
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "B T F"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        train: bool = False,
        row_mask: Bool[Array, " B"] | None = None,
        moments: Moments | None = None,
    ) -> Float[Array, "B D"] | Float[Array, "B N D"]:
        """Encodes ``features`` of any number of frames from a patch on.

        An input of no more than a chunk has as many patches as fit. The last chunk of a longer input is filled with
        zeros, which are encoded like audio, as published, unless there is a ``mask``.

        Args:
            mask: True for real frames, the padding at the end; patches with padding in them are not attended to
                and not in the mean. None: padding is encoded like audio.
            row_mask: True for real rows; only they enter the statistics of training.
            moments: statistics of the whole batch, for ``feature_norm``.

        Raises:
            UserError: ``features`` do not fit the config, or logits are asked for without classes.
        """
        config = self.config
        batch_size, num_frames, num_mels = features.shape
        if num_frames < config.patch_size or num_mels != config.num_mels:
            raise UserError(
                f"features have {num_frames} frames of {num_mels} mel bins; this encoder takes at least "
                f"{config.patch_size} frames of {config.num_mels}: fit the clip, hop and mel bins to it"
            )
        if self.output == "logits" and config.num_classes is None:
            raise UserError(
                "this CED has no classifier: set num_classes, or ask for tokens or the clip vector"
            )
        x = BatchNorm(momentum=_FEATURE_MOMENTUM, name="feature_norm")(
            features, train=train, mask=row_mask, moments=moments
        )
        num_chunks = -(-num_frames // config.chunk_frames)
        if config.compat and num_chunks > 1 and num_frames % config.chunk_frames == 0:
            num_chunks, num_frames = num_chunks - 1, num_frames - config.chunk_frames
            x = x[:, :num_frames]
            mask = None if mask is None else mask[:, :num_frames]
        if num_chunks > 1:
            missing = num_chunks * config.chunk_frames - num_frames
            x = jnp.pad(x, ((0, 0), (0, missing), (0, 0)))
            x = x.reshape(-1, config.chunk_frames, num_mels)
            if mask is not None:
                mask = jnp.pad(mask, ((0, 0), (0, missing))).reshape(-1, config.chunk_frames)
        x, token_mask = self._embed(x, mask)

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
        if self.output == "tokens" and config.num_classes is None:
            return x.reshape(batch_size, -1, config.width)

        # A mean of many tokens loses bits in bfloat16.
        wide = jnp.promote_types(self.dtype, jnp.float32)
        is_real = jnp.ones(x.shape[:2], jnp.bool_) if token_mask is None else token_mask
        if config.num_classes is not None:
            y = masked_mean(x.astype(wide), is_real).astype(self.dtype)
            y = LayerNorm(self.dtype, name="head_norm")(y)
            logits = Dense((config.num_classes,), ("embed", "classes"), self.dtype, name="head")(y)
        x, is_real = x.reshape(batch_size, -1, config.width), is_real.reshape(batch_size, -1)
        if self.output == "tokens":
            return x
        if self.output == "clip":
            return masked_mean(x.astype(wide), is_real).astype(self.dtype)
        weights = jnp.any(is_real.reshape(batch_size, num_chunks, -1), axis=-1)
        return _mean_logits(logits.astype(wide).reshape(batch_size, num_chunks, -1), weights)

    def _embed(
        self, chunks: Float[Array, "C T F"], mask: Bool[Array, "C T"] | None
    ) -> tuple[Float[Array, "C N D"], Bool[Array, "C N"] | None]:
        """Returns the patches of chunks with their positions, and the mask of the real ones."""
        config = self.config
        size = (config.patch_size, config.patch_size)
        embed = Conv(
            config.width, size, ("channels_in", "embed"), self.dtype, strides=size, name="patch_embed"
        )
        grid = embed(chunks.swapaxes(1, 2)[..., None])  # bands, then time
        bands, columns = grid.shape[1:3]
        # Width first, as on disk.
        time, frequency = (
            declare(self, name, truncated_normal, (config.width, length), ("embed", "positions"))
            for name, length in (("time_embed", config.grid[1]), ("frequency_embed", config.grid[0]))
        )
        places = frequency.T[:, None] + time.T[None, :columns]
        grid = grid + places[None].astype(self.dtype)
        x = grid.reshape(len(chunks), bands * columns, config.width)
        if mask is None:
            return x, None
        return x, jnp.tile(window_mask(mask, config.patch_size, config.patch_size), (1, bands))


def _mean_logits(logits: Float[Array, "B N C"], is_real: Bool[Array, "B N"]) -> Float[Array, "B C"]:
    """Logit of the mean probability over the chunks with audio, computed in the logarithm."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    is_real = is_real | ~jnp.any(is_real, axis=1, keepdims=True)  # keeps a row of padding finite
    weights = is_real[:, :, None].astype(logits.dtype)
    # The number of chunks is in numerator and denominator of the odds, and cancels.
    true, false = (logsumexp(nn.log_sigmoid(sign * logits), axis=1, b=weights) for sign in (1, -1))
    return true - false


FAMILY = Family(
    name="ced",
    kind="audio encoder",
    config_type=CedConfig,
    build=lambda config, dtype, remat: Ced(config, dtype, remat=remat),
    variants=VARIANTS,
    example=lambda config: (jax.ShapeDtypeStruct((2, config.chunk_frames, config.num_mels), jnp.float32),),
    frontend=CedSpec(clip=ClipSpec(clip_sec=10.0)),
    takes=frozenset({"train", "mask", "row_mask", "moments"}),
    states="tokens",
    source="https://arxiv.org/abs/2308.11957, https://arxiv.org/abs/2406.07012",
)
