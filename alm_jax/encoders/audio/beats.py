"""BEATs: a Transformer on the patches of a log-mel, pre-trained on the labels of an acoustic tokenizer.

Chen et al. 2022, https://arxiv.org/abs/2212.09058. log-mel [B T F] -> 16 x 16 patches, time-major -> linear embedding,
norm and projection -> a grouped convolution over the sequence of patches adds positions -> norm -> blocks with norms
after each half, residuals enlarged (DeepNorm), and gated relative attention.

In pre-training most patches are hidden and the blocks never compute them. The publication does not say which positions
the others then have, and the code of its pre-training is not released; here they keep those that they have in the whole
clip: the convolution runs over all places, the hidden ones zero as padding is, and distances are those of the whole.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.encoders.family import AudioTowerConfig, Family
from alm_jax.errors import UserError
from alm_jax.nn.conv import Conv
from alm_jax.nn.dense import Dense
from alm_jax.nn.gated_relative_attention import GatedRelativeAttention
from alm_jax.nn.mlp import Mlp, gelu
from alm_jax.nn.norm import LayerNorm
from alm_jax.nn.pooling import masked_mean
from alm_jax.nn.relative_bias import RelativeBias
from alm_jax.nn.rematerialise import Remat, rematerialise
from alm_jax.ops.frontends import BeatsSpec, ClipSpec
from alm_jax.ops.patch_masking import take_patches
from alm_jax.ops.patchify import patchify
from alm_jax.ops.window_mask import window_mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeatsConfig(AudioTowerConfig):
    """Shape of a BEATs encoder. Defaults are those of all released models."""

    num_mels: int = 128
    """Mel bins of the input, a multiple of patch_size."""
    patch_size: int = 16
    """Side of a square patch, in frames and in mel bins."""
    patch_width: int = 512
    """Size of a patch's embedding before its projection to the width."""
    width: int = 768
    """Width: size of a token's hidden state and of the clip vector."""
    num_layers: int = 12
    """Transformer blocks; they also determine the scale of the residuals (DeepNorm)."""
    num_heads: int = 12
    """Attention heads; divides the width."""
    mlp_dim: int = 3072
    """Hidden size of the feed-forward layers."""
    position_window: int = 128
    """Kernel size of the convolution that encodes positions, tokens."""
    position_groups: int = 16
    """Groups of the position convolution's channels; divides the width."""
    num_buckets: int = 320
    """Buckets of distances between tokens, both directions together; even."""
    max_distance: int = 800
    """Distance in tokens from which all distances share the last bucket."""
    layer_norm_eps: float = 1e-5
    """Epsilon of LayerNorm."""
    num_classes: int | None = None
    """Classes of the classifier of a fine-tuned model (AudioSet's 527); None: no classifier."""
    compat: bool = False
    """Mask of patches as in the released code, which assigns frames to patches in reading order, so that patches of
    the same time have different frames. False: a patch is real where all its frames are."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads or self.width % self.position_groups:
            raise UserError(
                f"audio width {self.width} must be a multiple of num_heads {self.num_heads} and of position_groups "
                f"{self.position_groups}: change one of them"
            )
        if self.num_mels % self.patch_size or self.num_buckets % 2:
            raise UserError(
                f"num_mels {self.num_mels} must be a multiple of patch_size {self.patch_size}, and num_buckets "
                f"{self.num_buckets} even; change one of them"
            )

    @property
    def residual_scale(self) -> float:
        """DeepNorm's alpha of an encoder, (2 L)^(1/4): Wang et al. 2022, https://arxiv.org/abs/2203.00555, table."""
        return (2.0 * self.num_layers) ** 0.25

    @property
    def init_gain(self) -> float:
        """DeepNorm's beta of an encoder, (8 L)^(-1/4)."""
        return (8.0 * self.num_layers) ** -0.25


BASE = BeatsConfig()
AUDIOSET = dataclasses.replace(BASE, num_classes=527)
# For tests and demonstrations on a CPU: 0.5 M parameters.
NANO = BeatsConfig(
    num_mels=64,
    patch_width=64,
    width=128,
    num_layers=2,
    num_heads=4,
    mlp_dim=512,
    position_window=16,
    position_groups=4,
    num_buckets=32,
    max_distance=64,
)
VARIANTS = {"base": BASE, "audioset": AUDIOSET, "nano": NANO}


def compute_patch_mask(config: BeatsConfig, mask: Bool[Array, "B T"]) -> Bool[Array, "B N"]:
    """Mask of the real patches; ``mask`` is True for real frames, padding at the end."""
    size, columns = config.patch_size, config.num_mels // config.patch_size
    if not config.compat:
        return jnp.repeat(window_mask(mask, size, size), columns, axis=1)
    num_patches = mask.shape[1] // size * columns
    share = mask.shape[1] // num_patches
    return jnp.any(mask[:, : num_patches * share].reshape(-1, num_patches, share), axis=2)


class Beats(nn.Module):
    """Module from log-mel features to the states of the patches, a clip vector, or logits, in ``dtype``.

    Parameters: ``patch_embed``, ``patch_norm``, ``projection``, ``position_conv``, ``norm``, ``relative_bias``,
    ``blocks`` (every array with a leading axis of layers); with classes ``head``.
    """

    config: BeatsConfig
    dtype: jnp.dtype
    output: Literal["tokens", "clip", "logits"] = "clip"
    """Output. "tokens": states of the patches, time-major [B N D]. "clip": their mean over real audio [B D].
    "logits": the classifier's output for that mean, float32 [B num_classes]; its sigmoids are probabilities."""
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "B T F"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        visible_ids: Int[Array, "B n"] | None = None,
    ) -> Float[Array, "B D"] | Float[Array, "B tokens D"]:
        """Encodes ``features`` of any number of frames from a patch on; frames after the last patch are unused.

        Args:
            mask: True for real frames, the padding at the end; `compute_patch_mask` says which patches are then. The
                others are zero before the convolution and not attended to. None: padding is encoded like audio.
            visible_ids: the patches to encode, in this order; None for all. The others are not computed.

        Raises:
            UserError: ``features`` do not fit the config, or logits are asked for without classes.
        """
        config = self.config
        num_frames, num_mels = features.shape[1:]
        if num_frames < config.patch_size or num_mels != config.num_mels:
            raise UserError(
                f"features have {num_frames} frames of {num_mels} mel bins; this encoder takes at least "
                f"{config.patch_size} frames of {config.num_mels}: fit the clip, hop and mel bins to it"
            )
        if self.output == "logits" and config.num_classes is None:
            raise UserError(
                "this BEATs has no classifier: set num_classes, or ask for tokens or the clip vector"
            )
        patch_mask = None if mask is None else compute_patch_mask(config, mask)
        num_patches = num_frames // config.patch_size * (num_mels // config.patch_size)
        encoded = patch_mask
        if visible_ids is not None:
            visible = jnp.any(visible_ids[:, :, None] == jnp.arange(num_patches)[None, None], axis=1)
            encoded = visible if patch_mask is None else visible & patch_mask
        x = self._embed(features[:, : num_frames // config.patch_size * config.patch_size], encoded)

        positions = jnp.arange(num_patches)[None]
        if visible_ids is not None:
            x, positions = take_patches(x, visible_ids), visible_ids
            patch_mask = None if patch_mask is None else take_patches(patch_mask, visible_ids)
        bias = RelativeBias(
            config.num_heads,
            config.num_buckets,
            config.max_distance,
            is_bidirectional=True,
            embedding_init=nn.initializers.xavier_normal(),
            name="relative_bias",
        )(positions, positions)
        block = rematerialise(_Block, self.remat)
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = blocks(config, self.dtype, name="blocks")(x, bias, patch_mask)
        # A mean of many tokens loses bits in bfloat16.
        wide = jnp.promote_types(self.dtype, jnp.float32)
        everything = jnp.ones(x.shape[:2], jnp.bool_)
        mean = masked_mean(x.astype(wide), everything if patch_mask is None else patch_mask)
        clip = mean.astype(self.dtype)
        if config.num_classes is not None:
            # The published mean of the tokens' logits, which is the logits of the mean.
            logits = Dense((config.num_classes,), ("embed", "classes"), self.dtype, name="head")(clip)
        if self.output == "tokens":
            return x
        return logits.astype(wide) if self.output == "logits" else clip

    def _embed(
        self, features: Float[Array, "B T F"], mask: Bool[Array, "B N"] | None
    ) -> Float[Array, "B N D"]:
        """Returns the input of the first block."""
        config = self.config
        patches = patchify(features, config.patch_size)
        embed = Dense(
            (config.patch_width,), ("patch", "channels"), self.dtype, use_bias=False, name="patch_embed"
        )
        x = LayerNorm(self.dtype, axis="channels", name="patch_norm")(embed(patches))
        x = Dense((config.width,), ("channels", "embed"), self.dtype, name="projection")(x)
        if mask is not None:
            x = jnp.where(mask[:, :, None], x, 0)
        window = config.position_window
        positions = Conv(
            config.width,
            (window,),
            ("channels_in", "embed"),
            self.dtype,
            # With an even window the published code drops the last output.
            padding=((window // 2, (window - 1) // 2),),
            groups=config.position_groups,
            weight_norm="window",
            kernel_init=nn.initializers.normal((4.0 / (window * config.width)) ** 0.5),
            name="position_conv",
        )
        return LayerNorm(self.dtype, config.layer_norm_eps, name="norm")(x + gelu(positions(x)))


class _Block(nn.Module):
    """x = norm(alpha x + attention(x)); x = norm(alpha x + mlp(x)). The body of `nn.scan`: returns (x, None)."""

    config: BeatsConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], bias: Float[Array, "rows H N N"], mask: Bool[Array, "B N"] | None
    ) -> tuple[Float[Array, "B N D"], None]:
        config, alpha = self.config, self.config.residual_scale
        attention = GatedRelativeAttention(config.num_heads, self.dtype, config.init_gain, name="attention")
        y = attention(x, bias=bias, mask=mask)
        x = LayerNorm(self.dtype, config.layer_norm_eps, name="attention_norm")(alpha * x + y)
        init = nn.initializers.variance_scaling(config.init_gain**2, "fan_avg", "normal")
        y = Mlp(config.mlp_dim, self.dtype, init, name="mlp")(x)
        return LayerNorm(self.dtype, config.layer_norm_eps, name="mlp_norm")(alpha * x + y), None


FAMILY = Family(
    name="beats",
    kind="audio encoder",
    config_type=BeatsConfig,
    build=lambda config, dtype, remat: Beats(config, dtype, remat=remat),
    variants=VARIANTS,
    example=lambda config: (jax.ShapeDtypeStruct((2, 2 * config.patch_size, config.num_mels), jnp.float32),),
    frontend=BeatsSpec(clip=ClipSpec(clip_sec=10.0)),
    takes=frozenset({"mask"}),
    states="tokens",
    state_mask=lambda config, mask, train: compute_patch_mask(config, mask),
    source="https://arxiv.org/abs/2212.09058",
)
