"""wav2vec 2.0 and HuBERT: a Transformer on waveforms, whose states become the units of speech models.

Baevski et al. 2020, https://arxiv.org/abs/2006.11477, and Hsu et al. 2021, https://arxiv.org/abs/2106.07447, which has
the same encoder. Waveform [B W] -> seven convolutions, one state every 20 ms -> norm and projection -> a grouped
convolution adds positions -> Transformer blocks, norms after (base) or before (large) each half.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alm_jax.encoders.family import AudioTowerConfig, Family
from alm_jax.errors import UserError
from alm_jax.nn.channel_norm import ChannelNorm
from alm_jax.nn.conv import Conv
from alm_jax.nn.dense import Dense
from alm_jax.nn.mlp import gelu
from alm_jax.nn.norm import LayerNorm
from alm_jax.nn.parameter import declare
from alm_jax.nn.pooling import masked_mean
from alm_jax.nn.rematerialise import Remat, rematerialise
from alm_jax.nn.transformer import PostNormBlock, PreNormBlock
from alm_jax.ops.window_mask import window_mask

# torch.nn.LayerNorm's epsilon: the norms of the convolutions do not use the config's.
_CONV_NORM_EPS = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wav2Vec2Config(AudioTowerConfig):
    """Shape of a wav2vec 2.0 or HuBERT. Defaults are those of both base models."""

    conv_channels: tuple[int, ...] = (512,) * 7
    """Output channels of each convolution over the waveform."""
    conv_windows: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    """Kernel size of each convolution over the waveform."""
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    """Stride of each convolution over the waveform."""
    conv_bias: bool = False
    """Whether the convolutions have a bias."""
    conv_norm: Literal["group", "layer"] = "group"
    """Norm of the convolutions: "group" normalises each channel of the first one over time, "layer" the channels of
    every frame after each."""
    width: int = 768
    """Width: size of a state and of the clip vector."""
    num_layers: int = 12
    """Transformer blocks."""
    num_heads: int = 12
    """Attention heads; divides the width."""
    mlp_dim: int = 3072
    """Hidden size of the feed-forward layers."""
    pre_norm: bool = False
    """Norm placement: True, before each sub-layer of a block and after the last block, as in the large models. False:
    after each sub-layer."""
    position_window: int = 128
    """Kernel size of the convolution that encodes positions, states."""
    position_groups: int = 16
    """Groups of the position convolution's channels; divides the width."""
    layer_norm_eps: float = 1e-5
    """Epsilon of the LayerNorms of projection and blocks."""
    has_mask_embed: bool = True
    """Whether the model has a vector for masked states, as models that can be pre-trained further do."""
    compat: bool = False
    """Treatment of padding under a mask as in the released code, where "group" computes its statistics over padding
    too. False: a padded clip is encoded as if it were not padded."""

    def __post_init__(self) -> None:
        if not len(self.conv_channels) == len(self.conv_windows) == len(self.conv_strides) > 0:
            raise UserError(
                f"{len(self.conv_channels)} conv_channels, {len(self.conv_windows)} conv_windows and "
                f"{len(self.conv_strides)} conv_strides: give one of each for every convolution"
            )
        if self.width % self.num_heads or self.width % self.position_groups:
            raise UserError(
                f"audio width {self.width} must be a multiple of num_heads {self.num_heads} and of position_groups "
                f"{self.position_groups}: change one of them"
            )

    @property
    def min_samples(self) -> int:
        """Receptive field of one state, samples: 400 at the published sizes."""
        samples = 1
        for window, stride in zip(reversed(self.conv_windows), reversed(self.conv_strides), strict=True):
            samples = (samples - 1) * stride + window
        return samples


BASE = Wav2Vec2Config()
LARGE = Wav2Vec2Config(width=1024, num_layers=24, num_heads=16, mlp_dim=4096)
LARGE_LV60 = dataclasses.replace(LARGE, conv_bias=True, conv_norm="layer", pre_norm=True)
# For tests and demonstrations on a CPU: 0.5 M parameters, a state every 8 samples.
NANO = Wav2Vec2Config(
    conv_channels=(32, 32),
    conv_windows=(8, 4),
    conv_strides=(4, 2),
    width=128,
    num_layers=2,
    num_heads=4,
    mlp_dim=512,
    position_window=16,
    position_groups=4,
    has_mask_embed=False,
)
VARIANTS = {
    "wav2vec2_base": BASE,
    "wav2vec2_large": LARGE,
    "wav2vec2_large_lv60": LARGE_LV60,
    "hubert_base": BASE,
    "hubert_large": LARGE_LV60,
    "hubert_xlarge": dataclasses.replace(LARGE_LV60, width=1280, num_layers=48, mlp_dim=5120),
    "nano": NANO,
}


def compute_state_mask(config: Wav2Vec2Config, mask: Bool[Array, "B W"]) -> Bool[Array, "B N"]:
    """Mask of the states that come from real samples only; ``mask`` is True for real samples, padding at the end."""
    for window, stride in zip(config.conv_windows, config.conv_strides, strict=True):
        mask = window_mask(mask, window, stride)
    return mask


class Wav2Vec2(nn.Module):
    """Module from a waveform to states or to a clip vector, in ``dtype``.

    Parameters: ``conv_0`` .. and their norms ``conv_norm_0`` .., ``features_norm``, ``projection``, ``mask_embed``,
    ``position_conv``, ``norm``, ``blocks`` (every array with a leading axis of layers).
    """

    config: Wav2Vec2Config
    dtype: jnp.dtype
    output: Literal["tokens", "clip"] = "tokens"
    """Output. "tokens": the states [B N D]. "clip": their mean over real audio [B D]."""
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self,
        waveform: Float[Array, "B W"],
        *,
        mask: Bool[Array, "B W"] | None = None,
        hidden: Bool[Array, "B N"] | None = None,
        layer: int | None = None,
    ) -> Float[Array, "B N D"] | Float[Array, "B D"]:
        """Encodes waveforms at 16 kHz, each of zero mean and unit variance where the weights were trained so.

        Args:
            mask: True for real samples, the padding at the end; `compute_state_mask` says which states are then.
            hidden: True for states to hide behind ``mask_embed``, for pre-training.
            layer: the states after this block, without the last norm, rather than those at the end; 0 for what goes
                into the first. Blocks after it are not computed. HuBERT's units are made of layer 6 or 9.

        Raises:
            UserError: the waveform is too short, there is no such layer, or nothing to hide behind.
        """
        config = self.config
        if waveform.shape[1] < config.min_samples:
            raise UserError(
                f"waveforms of {waveform.shape[1]} samples; one state comes from {config.min_samples}: pad them"
            )
        if layer is not None and not 0 <= layer <= config.num_layers:
            raise UserError(f"layer {layer}: this encoder has layers 0 to {config.num_layers}")
        if hidden is not None and not config.has_mask_embed:
            raise UserError("this encoder has no vector for masked states: set has_mask_embed")
        x = self._convolve(waveform, None if config.compat else mask)
        state_mask = None if mask is None else compute_state_mask(config, mask)

        x = LayerNorm(self.dtype, config.layer_norm_eps, "channels", name="features_norm")(x)
        x = Dense((config.width,), ("channels", "embed"), self.dtype, name="projection")(x)
        if config.has_mask_embed:
            uniform = nn.initializers.uniform(1.0)
            mask_embed = declare(self, "mask_embed", uniform, (config.width,), ("embed",)).astype(self.dtype)
            if hidden is not None:
                x = jnp.where(hidden[:, :, None], mask_embed[None, None], x)
        if state_mask is not None:
            x = jnp.where(state_mask[:, :, None], x, 0)
        positions = Conv(
            config.width,
            (config.position_window,),
            ("channels_in", "embed"),
            self.dtype,
            padding=((config.position_window // 2, (config.position_window - 1) // 2),),
            groups=config.position_groups,
            weight_norm="window",
            name="position_conv",
        )
        x = x + gelu(positions(x))
        norm = LayerNorm(self.dtype, config.layer_norm_eps, name="norm")
        if not config.pre_norm:
            x = norm(x)
        x = self._transform(x, state_mask, layer)
        if config.pre_norm and layer is None:
            x = norm(x)
        if self.output == "tokens":
            return x
        return masked_mean(x, jnp.ones(x.shape[:2], bool) if state_mask is None else state_mask)

    def _convolve(
        self, waveform: Float[Array, "B W"], mask: Bool[Array, "B W"] | None
    ) -> Float[Array, "B N channels"]:
        """Applies the convolutions over the waveform; ``mask`` keeps padding out of the statistics over time."""
        config, x = self.config, waveform[:, :, None]
        for i, (channels, window, stride) in enumerate(
            zip(config.conv_channels, config.conv_windows, config.conv_strides, strict=True)
        ):
            x = Conv(
                channels,
                (window,),
                ("channels_in", "channels"),
                self.dtype,
                strides=(stride,),
                use_bias=config.conv_bias,
                kernel_init=nn.initializers.he_normal(),
                name=f"conv_{i}",
            )(x)
            if config.conv_norm == "layer":
                x = LayerNorm(self.dtype, _CONV_NORM_EPS, "channels", name=f"conv_norm_{i}")(x)
            elif i == 0:
                real = None if mask is None else window_mask(mask, window, stride)
                x = ChannelNorm(self.dtype, name="conv_norm_0")(x, real)
            x = gelu(x)
        return x

    def _transform(
        self, x: Float[Array, "B N D"], mask: Bool[Array, "B N"] | None, layer: int | None
    ) -> Float[Array, "B N D"]:
        """Applies the blocks, up to ``layer``."""
        config = self.config
        options = (config.num_heads, config.mlp_dim, config.layer_norm_eps)
        block = rematerialise(PreNormBlock if config.pre_norm else PostNormBlock, self.remat)
        num_layers = config.num_layers if layer is None else layer
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        if num_layers < config.num_layers:
            blocks = nn.map_variables(
                blocks, "params", lambda stack: jax.tree.map(lambda array: array[:num_layers], stack)
            )
        if config.pre_norm:
            return blocks(*options, self.dtype, name="blocks")(x, mask)[0]
        everywhere = jnp.ones(x.shape[:2], bool) if mask is None else mask
        return blocks(*options, 0.0, self.dtype, name="blocks")(x, everywhere)[0]


FAMILY = Family(
    name="wav2vec2",
    kind="audio encoder",
    config_type=Wav2Vec2Config,
    build=lambda config, dtype, remat: Wav2Vec2(config, dtype, remat=remat),
    variants=VARIANTS,
    example=lambda config: (jax.ShapeDtypeStruct((2, 2 * config.min_samples), jnp.float32),),
    takes=frozenset({"mask"}),
    states="tokens",
    state_mask=lambda config, mask, train: compute_state_mask(config, mask),
    source="https://arxiv.org/abs/2006.11477, https://arxiv.org/abs/2106.07447",
)
