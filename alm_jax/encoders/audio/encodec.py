"""EnCodec, the codec whose integer codes are the audio tokens of codec language models; the causal 24 kHz model.

Defossez et al. 2022, https://arxiv.org/abs/2210.13438. Waveform [B W] -> convolutions that halve and widen, an LSTM ->
a latent every 320 samples -> residual quantisation, 2 to 32 codes each -> the mirrored decoder -> waveform.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from alm_jax.encoders.family import Family
from alm_jax.errors import UserError
from alm_jax.nn.conv import Conv, ConvTranspose1d
from alm_jax.nn.lstm import Lstm
from alm_jax.nn.residual_quantizer import Codebooks, dequantize, quantize


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodecConfig:
    """Shape of an EnCodec. Defaults are those of encodec_24khz."""

    sample_rate_hz: int = 24000
    """Sample rate of the waveform, Hz."""
    num_filters: int = 32
    """Channels of the first convolution; each downsampling step doubles them."""
    strides: tuple[int, ...] = (2, 4, 5, 8)
    """Downsampling factors of the encoder's steps, in their order; the decoder upsamples by them in reverse."""
    num_residual_layers: int = 1
    """Residual units before each downsampling and after each upsampling step."""
    dilation_growth: int = 2
    """Base of the dilations: residual unit j has dilation base ** j."""
    window: int = 7
    """Kernel size of the first convolution of encoder and decoder, samples or frames."""
    last_window: int = 7
    """Kernel size of the last convolution of encoder and decoder, samples or frames."""
    residual_window: int = 3
    """Kernel size of a residual unit's first convolution."""
    compress: int = 2
    """Divisor of a residual unit's channels that gives its hidden channels."""
    num_lstm_layers: int = 2
    """Layers of the LSTM of encoder and decoder."""
    width: int = 128
    """Size of a latent and of a codebook's entries."""
    codebook_size: int = 1024
    """Entries of a codebook, a power of two."""
    bandwidths_kbps: tuple[float, ...] = (1.5, 3.0, 6.0, 12.0, 24.0)
    """Supported bit rates, ascending; the last one uses all codebooks."""

    def __post_init__(self) -> None:
        if self.codebook_size < 2 or self.codebook_size & (self.codebook_size - 1):
            raise UserError(
                f"codebook_size {self.codebook_size} must be a power of two: a code is a number of bits"
            )
        if list(self.bandwidths_kbps) != sorted(self.bandwidths_kbps) or self.num_codebooks < 1:
            raise UserError(
                f"bandwidths_kbps {self.bandwidths_kbps} must rise, to at least "
                f"{self.bits_per_second / 1000:g}, the rate of one codebook"
            )

    @property
    def hop_samples(self) -> int:
        """Samples from one latent to the next."""
        return math.prod(self.strides)

    @property
    def bits_per_second(self) -> int:
        """Bit rate of one codebook: its bits at a frame rate that is rounded up."""
        return math.ceil(self.sample_rate_hz / self.hop_samples) * (self.codebook_size.bit_length() - 1)

    @property
    def num_codebooks(self) -> int:
        """Number of codebooks."""
        return int(1000 * self.bandwidths_kbps[-1] // self.bits_per_second)

    def codebooks_at(self, bandwidth_kbps: float) -> int:
        """Returns how many codebooks, from the first on, a bit rate uses. Raises UserError for an unsupported
        rate."""
        if bandwidth_kbps not in self.bandwidths_kbps:
            raise UserError(f"{bandwidth_kbps:g} kbps is not on offer; choose one of {self.bandwidths_kbps}")
        return max(1, int(1000 * bandwidth_kbps // self.bits_per_second))


BASE = EncodecConfig()
# For tests and demonstrations on a CPU: 0.05 M parameters, a latent every 8 samples, 4 codebooks.
NANO = EncodecConfig(
    num_filters=8, strides=(2, 4), width=16, codebook_size=64, bandwidths_kbps=(18.0, 36.0, 72.0)
)
VARIANTS = {"24khz": BASE, "nano": NANO}


class CausalConv(nn.Module):
    """Causal convolution with weight norm, whose input is mirrored before its start: T -> ceil(T / stride).

    Where the stride does not divide T, the end is mirrored too, up to a whole stride, and the convolution looks that
    far ahead.
    """

    features: int
    window: int
    dtype: jnp.dtype
    stride: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "B T channels"]) -> Float[Array, "B frames features"]:
        before = (self.window - 1) * self.dilation + 1 - self.stride
        conv = Conv(
            self.features,
            (self.window,),
            ("channels_in", "channels"),
            self.dtype,
            strides=(self.stride,),
            dilation=(self.dilation,),
            weight_norm="last",
            kernel_init=nn.initializers.he_normal(),
            name="conv",
        )
        return conv(_mirror(x, before, -x.shape[1] % self.stride))


def _mirror(x: Float[Array, "B T channels"], before: int, after: int) -> Float[Array, "B frames channels"]:
    """Mirrors both ends without repeating the end samples; an input shorter than its mirror image is zero-padded
    first."""
    zeros = max(0, max(before, after) + 1 - x.shape[1])
    padded = jnp.pad(x, ((0, 0), (0, zeros), (0, 0)))
    padded = jnp.pad(padded, ((0, 0), (before, after), (0, 0)), mode="reflect")
    return padded[:, : padded.shape[1] - zeros]


class ResidualUnit(nn.Module):
    """shortcut(x) + conv(elu(conv(elu(x)))), with fewer hidden channels."""

    config: EncodecConfig
    dilation: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T channels"]) -> Float[Array, "B T channels"]:
        config, channels = self.config, x.shape[-1]
        hidden = channels // config.compress
        y = CausalConv(hidden, config.residual_window, self.dtype, dilation=self.dilation, name="conv1")(
            nn.elu(x)
        )
        y = CausalConv(channels, 1, self.dtype, name="conv2")(nn.elu(y))
        return CausalConv(channels, 1, self.dtype, name="shortcut")(x) + y


class EncodecEncoder(nn.Module):
    """SEANet's encoder, waveform to latents.

    Parameters: ``conv_in``, ``residual_STEP_UNIT`` and ``down_STEP``, ``lstm`` (with a leading axis of layers),
    ``conv_out``.
    """

    config: EncodecConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, waveform: Float[Array, "B W"]) -> Float[Array, "B N D"]:
        config = self.config
        x = CausalConv(config.num_filters, config.window, self.dtype, name="conv_in")(waveform[:, :, None])
        for step, stride in enumerate(config.strides):
            for unit in range(config.num_residual_layers):
                dilation = config.dilation_growth**unit
                x = ResidualUnit(config, dilation, self.dtype, name=f"residual_{step}_{unit}")(x)
            down = CausalConv(2 * x.shape[-1], 2 * stride, self.dtype, stride=stride, name=f"down_{step}")
            x = down(nn.elu(x))
        x = x + _lstm(config, self.dtype)(x)[0]
        return CausalConv(config.width, config.last_window, self.dtype, name="conv_out")(nn.elu(x))


class EncodecDecoder(nn.Module):
    """SEANet's decoder, latents to waveform.

    Parameters: ``conv_in``, ``lstm`` (with a leading axis of layers), ``up_STEP`` and ``residual_STEP_UNIT``,
    ``conv_out``.
    """

    config: EncodecConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, latents: Float[Array, "B N D"]) -> Float[Array, "B W"]:
        config = self.config
        channels = config.num_filters * 2 ** len(config.strides)
        x = CausalConv(channels, config.window, self.dtype, name="conv_in")(latents)
        x = x + _lstm(config, self.dtype)(x)[0]
        for step, stride in enumerate(reversed(config.strides)):
            up = ConvTranspose1d(
                x.shape[-1] // 2,
                2 * stride,
                stride,
                ("channels_in", "channels"),
                self.dtype,
                weight_norm="last",
                kernel_init=nn.initializers.he_normal(),
                name=f"up_{step}",
            )
            # Causal: drop what the last frame writes beyond its own samples.
            x = up(nn.elu(x))[:, : x.shape[1] * stride]
            for unit in range(config.num_residual_layers):
                dilation = config.dilation_growth**unit
                x = ResidualUnit(config, dilation, self.dtype, name=f"residual_{step}_{unit}")(x)
        return CausalConv(1, config.last_window, self.dtype, name="conv_out")(nn.elu(x))[:, :, 0]


def _lstm(config: EncodecConfig, dtype: jnp.dtype) -> nn.Module:
    stack = nn.scan(
        Lstm,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=config.num_lstm_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return stack(dtype, name="lstm")


class Encodec(nn.Module):
    """EnCodec: waveform to codes and back.

    Parameters: ``encoder``, ``decoder``. Collection ``batch_stats``: ``codebooks``, which get no gradient.
    """

    config: EncodecConfig
    dtype: jnp.dtype

    def setup(self) -> None:
        """Makes encoder, codebooks and decoder."""
        config = self.config
        self.encoder = EncodecEncoder(config, self.dtype)
        self.codebooks = Codebooks(config.num_codebooks, config.codebook_size, config.width)
        self.decoder = EncodecDecoder(config, self.dtype)

    def __call__(
        self,
        waveform: Float[Array, "B W"],
        *,
        mask: Bool[Array, "B W"] | None = None,
        bandwidth_kbps: float | None = None,
    ) -> Float[Array, "B W"]:
        """Encodes and decodes a waveform, at `encode`'s bit rate.

        Gradients pass the quantisation unchanged, straight-through (van den Oord et al. 2017, arXiv 1711.00937,
        section 3.2).
        """
        latents = self.embed(waveform, mask=mask)
        codebooks = self.codebooks()
        codes = quantize(latents, codebooks[: self._num_codebooks(bandwidth_kbps)])
        coded = dequantize(codes, codebooks).astype(self.dtype)
        coded = lax.stop_gradient(coded) + (latents - lax.stop_gradient(latents))
        return self.decoder(coded)[:, : waveform.shape[1]]

    def embed(
        self, waveform: Float[Array, "B W"], *, mask: Bool[Array, "B W"] | None = None
    ) -> Float[Array, "B N D"]:
        """Returns the latents before quantisation, one every ``hop_samples``, N = ceil(W / hop_samples)."""
        return self.encoder(waveform if mask is None else jnp.where(mask, waveform, 0))

    def encode(
        self,
        waveform: Float[Array, "B W"],
        *,
        mask: Bool[Array, "B W"] | None = None,
        bandwidth_kbps: float | None = None,
    ) -> Int[Array, "B Q N"]:
        """The codes of a waveform at ``sample_rate_hz``, int32, N = ceil(W / hop_samples).

        Args:
            mask: True for real samples, the padding at the end: it is silence then. Nothing looks ahead but the mirror
                before a clip's start, so the first W // hop_samples codes of a clip of more than ``last_window``
                latents are the same whatever follows it.
            bandwidth_kbps: one of the config's; None for the highest.
        """
        latents = self.embed(waveform, mask=mask)
        return quantize(latents, self.codebooks()[: self._num_codebooks(bandwidth_kbps)])

    def decode(self, codes: Int[Array, "B Q N"]) -> Float[Array, "B W"]:
        """Decodes codes to a waveform, W = N hop_samples."""
        return self.decoder(dequantize(codes, self.codebooks()).astype(self.dtype))

    def _num_codebooks(self, bandwidth_kbps: float | None) -> int:
        config = self.config
        return config.codebooks_at(config.bandwidths_kbps[-1] if bandwidth_kbps is None else bandwidth_kbps)


FAMILY = Family(
    name="encodec",
    kind="codec",
    config_type=EncodecConfig,
    # The convolutions keep little for the backward pass: rematerialisation would save nothing.
    build=lambda config, dtype, remat: Encodec(config, dtype),
    variants=VARIANTS,
    example=lambda config: (jax.ShapeDtypeStruct((2, 4 * config.hop_samples), jnp.float32),),
    source="https://arxiv.org/abs/2210.13438",
)
