"""EnCodec, the codec whose integers are the audio tokens of codec language models: causal at 24 kHz, stereo at 48 kHz.

Defossez et al. 2022, https://arxiv.org/abs/2210.13438. Waveform [B W] -> convolutions that halve and widen, an LSTM ->
a latent every 320 samples -> residual quantisation, 2 to 32 codes each -> the mirrored decoder -> waveform. The stereo
model takes [B W 2], in pieces of a second that overlap by a hundredth, each divided by its level.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Literal

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
from alm_jax.nn.row_norm import RowNorm
from alm_jax.ops.overlap_add import cut_pieces, overlap_add
from alm_jax.ranges import PROBABILITY


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
    num_channels: int = 1
    """Channels of the waveform: [B W] for one, [B W channels] for more."""
    norm: Literal["weight", "row"] = "weight"
    """weight: kernels are weight-normed; row: what each convolution makes is normalised over its time and channels."""
    is_causal: bool = True
    """Whether convolutions look back alone; otherwise half of a window lies ahead."""
    divides_by_level: bool = False
    """Whether a piece is divided by its level, the root mean square of the mean of its channels, before coding."""
    piece_sec: float | None = None
    """Length of the pieces that are coded by themselves, seconds; None codes the whole waveform at once."""
    overlap: Annotated[float, PROBABILITY] = 0.0
    """Share of a piece that the next one repeats."""

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
        if self.piece_samples is not None and self.piece_samples < 1:
            raise UserError(f"piece_sec {self.piece_sec} is no sample at {self.sample_rate_hz} Hz")

    @property
    def hop_samples(self) -> int:
        """Samples from one latent to the next."""
        return math.prod(self.strides)

    @property
    def piece_samples(self) -> int | None:
        """Samples of a piece; None where the waveform is coded at once."""
        return None if self.piece_sec is None else int(self.piece_sec * self.sample_rate_hz)

    def pieces(self, num_samples: int) -> list[tuple[int, int]]:
        """First sample and length of each piece of a waveform; the last ones are cut where it ends."""
        return cut_pieces(num_samples, self.piece_samples or num_samples, self.step_samples(num_samples))

    def step_samples(self, num_samples: int) -> int:
        """Samples from the beginning of a piece to that of the next one."""
        if self.piece_samples is None:
            return num_samples
        return max(1, int((1.0 - self.overlap) * self.piece_samples))

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
STEREO = EncodecConfig(
    sample_rate_hz=48000,
    bandwidths_kbps=(3.0, 6.0, 12.0, 24.0),
    num_channels=2,
    norm="row",
    is_causal=False,
    divides_by_level=True,
    piece_sec=1.0,
    overlap=0.01,
)
# Pieces of 240 samples, one every 228.
NANO_STEREO = dataclasses.replace(
    STEREO,
    sample_rate_hz=NANO.sample_rate_hz,
    num_filters=NANO.num_filters,
    strides=NANO.strides,
    width=NANO.width,
    codebook_size=NANO.codebook_size,
    bandwidths_kbps=NANO.bandwidths_kbps,
    piece_sec=0.01,
    overlap=0.05,
)
VARIANTS = {"24khz": BASE, "48khz": STEREO, "nano": NANO, "nano-stereo": NANO_STEREO}


class MirroredConv(nn.Module):
    """A convolution whose input is mirrored at its ends, with the model's norm: T -> ceil(T / stride).

    A causal one is mirrored before its start. Where the stride does not divide T the end is mirrored too, up to a whole
    stride, and that much is seen ahead.
    """

    config: EncodecConfig
    features: int
    window: int
    dtype: jnp.dtype
    stride: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "B T channels"]) -> Float[Array, "B frames features"]:
        total = (self.window - 1) * self.dilation + 1 - self.stride
        after = 0 if self.config.is_causal else total // 2
        conv = Conv(
            self.features,
            (self.window,),
            ("channels_in", "channels"),
            self.dtype,
            strides=(self.stride,),
            dilation=(self.dilation,),
            weight_norm="last" if self.config.norm == "weight" else "none",
            kernel_init=nn.initializers.he_normal(),
            name="conv",
        )
        y = conv(_mirror(x, total - after, after + -x.shape[1] % self.stride))
        return RowNorm(self.dtype, name="norm")(y) if self.config.norm == "row" else y


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
        y = MirroredConv(
            config, hidden, config.residual_window, self.dtype, dilation=self.dilation, name="conv1"
        )(nn.elu(x))
        y = MirroredConv(config, channels, 1, self.dtype, name="conv2")(nn.elu(y))
        return MirroredConv(config, channels, 1, self.dtype, name="shortcut")(x) + y


class EncodecEncoder(nn.Module):
    """SEANet's encoder, waveform to latents.

    Parameters: ``conv_in``, ``residual_STEP_UNIT`` and ``down_STEP``, ``lstm`` (with a leading axis of layers),
    ``conv_out``.
    """

    config: EncodecConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, waveform: Float[Array, "B W channels"]) -> Float[Array, "B N D"]:
        config = self.config
        x = MirroredConv(config, config.num_filters, config.window, self.dtype, name="conv_in")(waveform)
        for step, stride in enumerate(config.strides):
            for unit in range(config.num_residual_layers):
                dilation = config.dilation_growth**unit
                x = ResidualUnit(config, dilation, self.dtype, name=f"residual_{step}_{unit}")(x)
            down = MirroredConv(
                config, 2 * x.shape[-1], 2 * stride, self.dtype, stride=stride, name=f"down_{step}"
            )
            x = down(nn.elu(x))
        x = x + _lstm(config, self.dtype)(x)[0]
        return MirroredConv(config, config.width, config.last_window, self.dtype, name="conv_out")(nn.elu(x))


class EncodecDecoder(nn.Module):
    """SEANet's decoder, latents to waveform.

    Parameters: ``conv_in``, ``lstm`` (with a leading axis of layers), ``up_STEP`` and ``residual_STEP_UNIT``,
    ``conv_out``.
    """

    config: EncodecConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, latents: Float[Array, "B N D"]) -> Float[Array, "B W channels"]:
        config = self.config
        channels = config.num_filters * 2 ** len(config.strides)
        x = MirroredConv(config, channels, config.window, self.dtype, name="conv_in")(latents)
        x = x + _lstm(config, self.dtype)(x)[0]
        for step, stride in enumerate(reversed(config.strides)):
            up = ConvTranspose1d(
                x.shape[-1] // 2,
                2 * stride,
                stride,
                ("channels_in", "channels"),
                self.dtype,
                weight_norm="last" if config.norm == "weight" else "none",
                kernel_init=nn.initializers.he_normal(),
                name=f"up_{step}",
            )
            # A window is two strides. Causal: of what the last frame reaches beyond its own samples nothing is kept.
            start, end = 0 if config.is_causal else stride - stride // 2, x.shape[1] * stride
            x = up(nn.elu(x))
            if config.norm == "row":
                x = RowNorm(self.dtype, name=f"up_norm_{step}")(x)
            x = x[:, start : start + end]
            for unit in range(config.num_residual_layers):
                dilation = config.dilation_growth**unit
                x = ResidualUnit(config, dilation, self.dtype, name=f"residual_{step}_{unit}")(x)
        return MirroredConv(config, config.num_channels, config.last_window, self.dtype, name="conv_out")(
            nn.elu(x)
        )


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

    A waveform is [B W], or [B W channels] where the config has more than one channel. Where it has pieces, latents and
    codes are those of its pieces one after another, and depend on all of a piece, its padding too.

    Parameters: ``encoder``, ``decoder``. Collection ``batch_stats``: ``codebooks``, which no gradient moves.
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
        waveform: Float[Array, "B W *channels"],
        *,
        mask: Bool[Array, "B W"] | None = None,
        bandwidth_kbps: float | None = None,
    ) -> Float[Array, "B W *channels"]:
        """The waveform after coding and decoding, at `encode`'s bit rate.

        Gradients pass the quantisation unchanged, straight-through (van den Oord et al. 2017, arXiv 1711.00937,
        section 3.2).
        """
        latents = self.embed(waveform, mask=mask)
        codebooks = self.codebooks()
        codes = quantize(latents, codebooks[: self._num_codebooks(bandwidth_kbps)])
        coded = dequantize(codes, codebooks).astype(self.dtype)
        coded = lax.stop_gradient(coded) + (latents - lax.stop_gradient(latents))
        levels = self.levels(waveform, mask=mask) if self.config.divides_by_level else None
        return self._decode(coded, waveform.shape[1], levels)

    def embed(
        self, waveform: Float[Array, "B W *channels"], *, mask: Bool[Array, "B W"] | None = None
    ) -> Float[Array, "B N D"]:
        """The latents before quantisation, one every ``hop_samples`` of a piece, the last one begun."""

        def encode(piece: Array) -> Array:
            if self.config.divides_by_level:
                piece = piece / _level(piece)[:, None, None]
            return self.encoder(piece)

        return jnp.concatenate(self._each_piece(encode, self._cut(waveform, mask)), axis=1)

    def levels(
        self, waveform: Float[Array, "B W *channels"], *, mask: Bool[Array, "B W"] | None = None
    ) -> Float[Array, "B pieces"]:
        """What `embed` divides each piece by where ``divides_by_level``, and `decode` multiplies with."""
        return jnp.stack([_level(piece) for piece in self._cut(waveform, mask)], axis=1)

    def encode(
        self,
        waveform: Float[Array, "B W *channels"],
        *,
        mask: Bool[Array, "B W"] | None = None,
        bandwidth_kbps: float | None = None,
    ) -> Int[Array, "B Q N"]:
        """The codes of a waveform at ``sample_rate_hz``, int32, N = ceil(W / hop_samples), of each piece where it has.

        Args:
            mask: True for real samples, the padding at the end: it is silence then. Nothing of a causal model looks
                ahead but the mirror before a clip's start, so the first W // hop_samples codes of a clip of more than
                ``last_window`` latents are the same whatever follows it.
            bandwidth_kbps: one of the config's; None for the highest.
        """
        latents = self.embed(waveform, mask=mask)
        return quantize(latents, self.codebooks()[: self._num_codebooks(bandwidth_kbps)])

    def decode(
        self,
        codes: Int[Array, "B Q N"],
        *,
        num_samples: int | None = None,
        levels: Float[Array, "B pieces"] | None = None,
    ) -> Float[Array, "B W *channels"]:
        """The waveform of codes.

        Args:
            num_samples: W; None for N hop_samples. A model with pieces needs it.
            levels: those of the pieces (`levels`), where the model divides by them; None leaves the level 1.

        Raises:
            UserError: the codes are not those of ``num_samples`` samples, or it is needed and not given.
        """
        if num_samples is None:
            if self.config.piece_sec is not None:
                raise UserError(
                    "a waveform of pieces is decoded with num_samples, that of the waveform encoded"
                )
            num_samples = codes.shape[2] * self.config.hop_samples
        return self._decode(dequantize(codes, self.codebooks()).astype(self.dtype), num_samples, levels)

    def _decode(
        self, latents: Float[Array, "B N D"], num_samples: int, levels: Float[Array, "B pieces"] | None
    ) -> Float[Array, "B W *channels"]:
        config = self.config
        lengths = [-(-length // config.hop_samples) for _, length in config.pieces(num_samples)]
        if sum(lengths) != latents.shape[1]:
            raise UserError(
                f"{num_samples} samples have {sum(lengths)} codes of each codebook, and there are {latents.shape[1]}"
            )
        pieces = jnp.split(latents, [sum(lengths[:i]) for i in range(1, len(lengths))], axis=1)
        decoded = self._each_piece(self.decoder, pieces)
        if levels is not None:
            decoded = [piece * levels[:, i, None, None] for i, piece in enumerate(decoded)]
        waveform = overlap_add(decoded, config.step_samples(num_samples)) if len(decoded) > 1 else decoded[0]
        waveform = waveform[:, :num_samples]
        return waveform if config.num_channels > 1 else waveform[:, :, 0]

    def _cut(
        self, waveform: Float[Array, "B W *channels"], mask: Bool[Array, "B W"] | None
    ) -> list[Float[Array, "B _ channels"]]:
        """The pieces of a waveform, silent where ``mask`` is not."""
        if waveform.ndim == 2:
            waveform = waveform[:, :, None]
        if waveform.shape[2] != self.config.num_channels:
            raise UserError(
                f"the waveform has {waveform.shape[2]} channels, the codec takes {self.config.num_channels}"
            )
        if mask is not None:
            waveform = jnp.where(mask[:, :, None], waveform, 0)
        return [
            waveform[:, start : start + length] for start, length in self.config.pieces(waveform.shape[1])
        ]

    def _each_piece(self, compute: Callable[[Array], Array], pieces: list[Array]) -> list[Array]:
        """``compute`` of every piece; those as long as the first one pass through together."""
        num_whole = sum(piece.shape == pieces[0].shape for piece in pieces)
        whole = compute(jnp.concatenate(pieces[:num_whole]))
        return [*jnp.split(whole, num_whole), *(compute(piece) for piece in pieces[num_whole:])]

    def _num_codebooks(self, bandwidth_kbps: float | None) -> int:
        config = self.config
        return config.codebooks_at(config.bandwidths_kbps[-1] if bandwidth_kbps is None else bandwidth_kbps)


def _level(piece: Float[Array, "B T channels"]) -> Float[Array, " B"]:
    """Root mean square of the mean of the channels."""
    return jnp.sqrt(jnp.mean(jnp.square(jnp.mean(piece, axis=2)), axis=1)) + 1e-8


FAMILY = Family(
    name="encodec",
    kind="codec",
    config_type=EncodecConfig,
    # The convolutions keep little for the backward pass: rematerialisation would save nothing.
    build=lambda config, dtype, remat: Encodec(config, dtype),
    variants=VARIANTS,
    example=lambda config: (
        jax.ShapeDtypeStruct(
            (2, 4 * config.hop_samples, *[config.num_channels][: config.num_channels > 1]), jnp.float32
        ),
    ),
    source="https://arxiv.org/abs/2210.13438",
)
