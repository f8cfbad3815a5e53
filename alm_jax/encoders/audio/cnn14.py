"""CNN14 of PANNs: twelve convolutions on a log-mel, the audio tower of MS-CLAP 2022 and WavCaps.

Kong et al. 2020, https://arxiv.org/abs/1912.10211, table 1. log-mel [B T F] -> BatchNorm (bn0) -> SpecAugment -> six
blocks of two convolutions, each halving time and frequency but the last -> mean over frequency -> maximum plus mean
over time -> a linear layer and a ReLU, the clip vector.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alm_jax.encoders.family import AudioTowerConfig, Family
from alm_jax.errors import UserError
from alm_jax.nn.conv import Conv
from alm_jax.nn.dense import Dense
from alm_jax.nn.dropout import dropout
from alm_jax.nn.norm import BatchNorm, Moments
from alm_jax.nn.rematerialise import Remat, rematerialise
from alm_jax.ops.augment import spec_augment
from alm_jax.ops.frontends import ClipSpec, TorchlibrosaSpec

_BLOCK_DROPOUT, _CLIP_DROPOUT = 0.2, 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cnn14Config(AudioTowerConfig):
    """Shape of a CNN14 and its training noise. Defaults are the published ones without a classifier."""

    num_mels: int = 64
    """Mel bins of the input."""
    channels: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    """Channels of each block; the last is also the size of the clip vector."""
    num_classes: int | None = None
    """Classes of the classifier (AudioSet's 527); None: no classifier."""
    has_dropout: bool = True
    """Whether training uses dropout: rate 0.2 after each block and 0.5 around the clip vector."""
    spec_augment_time_width: int = 64
    """SpecAugment in training: upper bound (exclusive) of the width of a masked time stripe, frames."""
    spec_augment_time_stripes: int = 2
    """SpecAugment in training: masked time stripes of each clip; 0: none."""
    spec_augment_freq_width: int = 8
    """SpecAugment in training: upper bound (exclusive) of the width of a masked frequency stripe, mel bins."""
    spec_augment_freq_stripes: int = 2
    """SpecAugment in training: masked frequency stripes of each clip; 0: none."""

    def __post_init__(self) -> None:
        if not self.channels or self.num_mels < self.shrinkage:
            raise UserError(
                f"{self.num_mels} mel bins are halved {len(self.channels) - 1} times, to less than one: raise num_mels "
                "or take fewer blocks"
            )

    @property
    def shrinkage(self) -> int:
        """Factor by which time and frequency shrink; also the smallest number of frames of an input."""
        return 2 ** (len(self.channels) - 1)

    @property
    def width(self) -> int:
        """Size of the clip vector."""
        return self.channels[-1]


CNN14 = Cnn14Config()
AUDIOSET = dataclasses.replace(CNN14, num_classes=527)
# For tests and demonstrations on a CPU: 0.3 M parameters.
NANO = Cnn14Config(channels=(16, 32, 64, 128), has_dropout=False, spec_augment_time_width=16)
VARIANTS = {"cnn14": CNN14, "audioset": AUDIOSET, "nano": NANO}

FRONTENDS = {
    "32k": TorchlibrosaSpec(sample_rate_hz=32000, hop_samples=320, clip=ClipSpec(clip_sec=10.0)),
    "16k": TorchlibrosaSpec(
        sample_rate_hz=16000, n_fft=512, hop_samples=160, fmax_hz=8000.0, clip=ClipSpec(clip_sec=10.0)
    ),
    "ms_clap": TorchlibrosaSpec(
        sample_rate_hz=44100, hop_samples=320, clip=ClipSpec(clip_sec=5.0, pad="repeat")
    ),
}
"""Front-ends of the released weights: PANNs' ``Cnn14`` and ``Cnn14_16k``, and MS-CLAP 2022's."""


class Cnn14(nn.Module):
    """Module from log-mel features to states in time, a clip vector, or logits, in ``dtype``.

    Parameters: ``feature_norm``, ``block{i}`` with ``conv0``, ``norm0``, ``conv1`` and ``norm1``, ``embed``; with
    classes ``head``.
    """

    config: Cnn14Config
    dtype: jnp.dtype
    output: Literal["tokens", "clip", "logits"] = "clip"
    """Output. "tokens": the last map's mean over frequency [B T // shrinkage D]. "clip": the clip vector [B D].
    "logits": the classifier's output, float32 [B num_classes]; its sigmoids are probabilities."""
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "B T F"],
        *,
        train: bool = False,
        row_mask: Bool[Array, " B"] | None = None,
        moments: Moments | None = None,
    ) -> Float[Array, "B D"] | Float[Array, "B tokens D"]:
        """Encodes ``features`` of any number of frames from `Cnn14Config.shrinkage` on; padding is encoded like
        audio.

        Args:
            row_mask: True for real rows; only they enter the statistics of training.
            moments: of the whole batch, for ``feature_norm``; the blocks have theirs from the rows at hand.

        Raises:
            UserError: ``features`` do not fit the config, or logits are asked for without classes.
        """
        config = self.config
        _, num_frames, num_mels = features.shape
        if num_frames < config.shrinkage or num_mels != config.num_mels:
            raise UserError(
                f"features have {num_frames} frames of {num_mels} mel bins; this encoder takes at least "
                f"{config.shrinkage} frames of {config.num_mels}: fit the clip, hop and mel bins to it"
            )
        if self.output == "logits" and config.num_classes is None:
            raise UserError(
                "this CNN14 has no classifier: set num_classes, or ask for tokens or the clip vector"
            )
        x = BatchNorm(name="feature_norm")(features, train=train, mask=row_mask, moments=moments)
        if train and config.spec_augment_time_stripes + config.spec_augment_freq_stripes > 0:
            x = spec_augment(
                x,
                self.make_rng("dropout"),
                time_width=config.spec_augment_time_width,
                num_time_stripes=config.spec_augment_time_stripes,
                freq_width=config.spec_augment_freq_width,
                num_freq_stripes=config.spec_augment_freq_stripes,
            )
        # `train` is the third argument counting the module itself, and must stay a Python bool under remat.
        block = rematerialise(_ConvBlock, self.remat, is_scanned=False, static_argnums=(2,))
        maps = x[..., None]
        for i, channels in enumerate(config.channels):
            is_last = i == len(config.channels) - 1
            maps = block(channels, not is_last, self.dtype, name=f"block{i}")(maps, train, row_mask)
            maps = self._drop(maps, _BLOCK_DROPOUT, train)

        # Means of many positions lose bits in bfloat16.
        wide = jnp.promote_types(self.dtype, jnp.float32)
        states = jnp.mean(maps.astype(wide), axis=2)
        pooled = jnp.max(states, axis=1) + jnp.mean(states, axis=1)
        pooled = self._drop(pooled.astype(self.dtype), _CLIP_DROPOUT, train)
        embed = Dense(
            (config.width,),
            ("embed", "mlp"),
            self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            name="embed",
        )
        clip = self._drop(nn.relu(embed(pooled)), _CLIP_DROPOUT, train)
        if config.num_classes is not None:
            head = Dense((config.num_classes,), ("mlp", "classes"), self.dtype, name="head")
            logits = head(clip)
        if self.output == "tokens":
            return states.astype(self.dtype)
        return logits.astype(wide) if self.output == "logits" else clip

    def _drop(self, x: Float[Array, "*dims"], rate: float, train: bool) -> Float[Array, "*dims"]:
        return dropout(x, rate, self.make_rng("dropout") if train and self.config.has_dropout else None)


class _ConvBlock(nn.Module):
    """Two times 3 x 3 convolution without bias, BatchNorm and ReLU, then optionally the mean of each 2 x 2 square."""

    channels: int
    is_pooled: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "B rows columns inputs"], train: bool, mask: Bool[Array, " B"] | None
    ) -> Float[Array, "B half_rows half_columns D"]:
        # Cut over a mesh as the two halves of a feed-forward layer are.
        for i, axes in enumerate((("embed", "mlp"), ("mlp", "embed"))):
            x = Conv(
                self.channels,
                (3, 3),
                axes,
                self.dtype,
                padding=((1, 1), (1, 1)),
                use_bias=False,
                kernel_init=nn.initializers.xavier_uniform(),
                name=f"conv{i}",
            )(x)
            x = BatchNorm(axes[1], name=f"norm{i}")(x, train=train, mask=mask)
            x = nn.relu(x).astype(self.dtype)
        return nn.avg_pool(x, (2, 2), (2, 2)) if self.is_pooled else x


FAMILY = Family(
    name="cnn14",
    kind="audio encoder",
    config_type=Cnn14Config,
    build=lambda config, dtype, remat: Cnn14(config, dtype, remat=remat),
    variants=VARIANTS,
    normalises_inside=True,
    example=lambda config: (jax.ShapeDtypeStruct((2, 2 * config.shrinkage, config.num_mels), jnp.float32),),
    frontend=FRONTENDS["32k"],
    takes=frozenset({"train", "row_mask", "moments"}),
    states="tokens",
    source="https://arxiv.org/abs/1912.10211",
)
