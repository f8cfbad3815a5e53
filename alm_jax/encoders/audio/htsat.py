"""HTSAT: a Swin transformer on a folded log-mel, the audio tower of LAION-CLAP.

Chen et al. 2022, https://arxiv.org/abs/2202.00874. log-mel [B T F] -> BatchNorm (bn0) -> SpecAugment ->
bicubic resize to a fixed number of frames -> fold into a square image, whose rows are segment-major then mel
-> patches -> Swin stages -> LayerNorm -> mean over tokens. The clip vector is a mean over all tokens, so the
un-folding of the published code, which only orders them in time, does not appear here.
"""

import dataclasses
import functools
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from alm_jax.encoders.family import AudioTowerConfig, Family
from alm_jax.errors import UserError
from alm_jax.nn.dense import Dense
from alm_jax.nn.norm import BatchNorm, LayerNorm, Moments
from alm_jax.nn.parameter import KERNEL_INITS
from alm_jax.nn.rematerialise import Remat, rematerialise
from alm_jax.nn.swin import PatchMerging, SwinBlock
from alm_jax.ops.augment import spec_augment
from alm_jax.ops.frontends import ClipSpec, TorchlibrosaSpec
from alm_jax.ops.interpolate import resize_time
from alm_jax.ranges import Range


@dataclasses.dataclass(frozen=True, kw_only=True)
class HtsatConfig(AudioTowerConfig):
    """Shape of an HTSAT encoder and its training noise. Defaults are the published tiny model."""

    spec_size: int = 256
    """Side of the square image that the spectrogram is folded into."""
    patch_size: int = 4
    """Side of a square patch."""
    num_mels: int = 64
    """Mel bins of the input; divides spec_size."""
    embed_dim: int = 96
    """Width of the first stage; each later stage doubles it."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    """Swin blocks of each stage."""
    num_heads: tuple[int, ...] = (4, 8, 16, 32)
    """Attention heads of each stage."""
    window_size: int = 8
    """Side of an attention window, in tokens; divides the side of every stage's map."""
    mlp_ratio: float = 4.0
    """Hidden size of the feed-forward layers, as a multiple of the width."""
    use_qkv_bias: bool = True
    """Whether query, key and value have a bias."""
    drop_path_rate: float = 0.1
    """Stochastic depth in training: drop rate of the last block; earlier blocks rise to it linearly from 0."""
    spec_augment_time_width: int = 64
    """SpecAugment in training: upper bound (exclusive) of the width of a masked time stripe, frames."""
    spec_augment_time_stripes: Annotated[int, Range(0)] = 2
    """SpecAugment in training: masked time stripes of each clip; 0: none."""
    spec_augment_freq_width: int = 8
    """SpecAugment in training: upper bound (exclusive) of the width of a masked frequency stripe, mel bins."""
    spec_augment_freq_stripes: Annotated[int, Range(0)] = 2
    """SpecAugment in training: masked frequency stripes of each clip; 0: none."""
    kernel_init: Literal["normal", "fan_in"] = "normal"
    """Initialisation of kernels: N(0, 0.02^2) as published, or N(0, 1 / fan-in), with which a narrow tower learns
    faster."""

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.num_heads):
            raise UserError(f"depths {self.depths} and num_heads {self.num_heads} must name the same stages")
        if self.spec_size % self.num_mels or self.num_mels % self.patch_size:
            raise UserError(
                f"spec_size {self.spec_size} must be a multiple of num_mels {self.num_mels}, and that a "
                f"multiple of patch_size {self.patch_size}"
            )
        for stage, heads in enumerate(self.num_heads):
            width, side = self.embed_dim * 2**stage, self.grid_size / 2**stage
            if width % heads:
                raise UserError(f"stage {stage}: width {width} is not a multiple of {heads} heads")
            if side % self.window_size:
                raise UserError(
                    f"stage {stage}: a map of {side:g} x {side:g} tokens cannot be cut into windows of "
                    f"{self.window_size}; enlarge spec_size, or take a smaller window_size or fewer stages"
                )

    @property
    def grid_size(self) -> int:
        """Tokens along one side of the first stage's map."""
        return self.spec_size // self.patch_size

    @property
    def num_segments(self) -> int:
        """Number of time segments stacked into the image."""
        return self.spec_size // self.num_mels

    @property
    def num_frames(self) -> int:
        """Frames that a spectrogram is resized to; also the longest input."""
        return self.spec_size * self.num_segments

    @property
    def width(self) -> int:
        """Size of the clip vector."""
        return self.embed_dim * 2 ** (len(self.depths) - 1)


TINY = HtsatConfig()
BASE = HtsatConfig(embed_dim=128, depths=(2, 2, 12, 2))
LARGE = HtsatConfig(embed_dim=256, depths=(2, 2, 12, 2))
# For tests and demonstrations on a CPU: 1.4 M parameters, up to 256 frames of 64 mel bins.
NANO = HtsatConfig(
    spec_size=128,
    embed_dim=32,
    depths=(1, 1, 2, 1),
    num_heads=(1, 2, 4, 8),
    window_size=4,
    drop_path_rate=0.0,
    spec_augment_time_width=16,
    kernel_init="fan_in",
)
VARIANTS = {"tiny": TINY, "base": BASE, "large": LARGE, "nano": NANO}


def fold_to_patches(
    features: Float[Array, "B frames F"], num_segments: int, patch: tuple[int, int]
) -> Float[Array, "B rows columns pixels"]:
    """Folds a spectrogram into the square image and cuts the image into patches of mel bins by frames.

    Image row = segment * F + mel, column = frame inside the segment; pixels of a patch are row-major. Frames at the
    end of a segment that do not fill a patch are left out.
    """
    b, frames, mels = features.shape
    height, width = patch
    columns, bands = frames // num_segments // width, mels // height
    x = features.reshape(b, num_segments, -1, mels)[:, :, : columns * width]
    x = x.reshape(b, num_segments, columns, width, bands, height)
    x = x.transpose(0, 1, 4, 2, 5, 3)  # B, segment, band, column, mel in patch, frame in patch
    return x.reshape(b, num_segments * bands, columns, height * width)


class Htsat(nn.Module):
    """Module from log-mel features to the clip vector [B D], in ``dtype``; D is `HtsatConfig.width`.

    Parameters: ``feature_norm``, ``patch_embed``, ``patch_norm``, ``stage{i}_block{j}``,
    ``stage{i}_merge``, ``norm``.
    """

    config: HtsatConfig
    dtype: jnp.dtype
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "B T F"],
        *,
        train: bool = False,
        row_mask: Bool[Array, " B"] | None = None,
        moments: Moments | None = None,
    ) -> Float[Array, "B D"]:
        x = self.prepare(features, train, row_mask, moments)
        return self.transform(self.embed("patch_embed", x), train)

    def prepare(
        self,
        features: Float[Array, "B *maps T F"],
        train: bool,
        row_mask: Bool[Array, " B"] | None,
        moments: Moments | None,
    ) -> Float[Array, "B *maps frames F"]:
        """Normalises features, masks stripes in training, and resizes them to the image's frames."""
        config = self.config
        *_, num_frames, num_mels = features.shape
        if num_frames > config.num_frames or num_mels != config.num_mels:
            raise UserError(
                f"features have {num_frames} frames of {num_mels} mel bins; this encoder takes at most "
                f"{config.num_frames} frames of {config.num_mels}: fit the clip, hop and mel bins to it"
            )
        x = BatchNorm(name="feature_norm")(features, train=train, mask=row_mask, moments=moments)
        if train and config.spec_augment_time_stripes + config.spec_augment_freq_stripes > 0:
            augment = functools.partial(
                spec_augment,
                time_width=config.spec_augment_time_width,
                num_time_stripes=config.spec_augment_time_stripes,
                freq_width=config.spec_augment_freq_width,
                num_freq_stripes=config.spec_augment_freq_stripes,
            )
            for _ in features.shape[1:-2]:  # the maps of a recording share its stripes
                augment = jax.vmap(augment, in_axes=(1, None), out_axes=1)
            x = augment(x, self.make_rng("dropout"))
        return resize_time(x, config.num_frames)

    def embed(
        self, name: str, x: Float[Array, "B frames F"], num_columns: int = 1
    ) -> Float[Array, "B rows columns D"]:
        """Embeds the image of a spectrogram with the layer ``name``, on patches ``num_columns`` times as wide as
        high."""
        config = self.config
        patch = (config.patch_size, config.patch_size * num_columns)
        return Dense(
            (config.embed_dim,),
            ("patch", "embed"),
            self.dtype,
            kernel_init=KERNEL_INITS[config.kernel_init],
            name=name,
        )(fold_to_patches(x, config.num_segments, patch))

    def transform(self, x: Float[Array, "B rows columns D"], train: bool) -> Float[Array, "B width"]:
        """Applies the Swin stages to embedded patches and averages over the tokens."""
        config, init = self.config, KERNEL_INITS[self.config.kernel_init]
        x = LayerNorm(self.dtype, name="patch_norm")(x)

        # `train` is the third argument counting the module itself, and must stay a Python bool under remat.
        block = rematerialise(SwinBlock, self.remat, is_scanned=False, static_argnums=(2,))
        drop_path_rates = iter(np.linspace(0.0, config.drop_path_rate, sum(config.depths)).tolist())
        for stage, (depth, num_heads) in enumerate(zip(config.depths, config.num_heads, strict=True)):
            for i in range(depth):
                x = block(
                    num_heads=num_heads,
                    window_size=config.window_size,
                    shifted=i % 2 == 1,
                    mlp_dim=int(config.mlp_ratio * x.shape[-1]),
                    drop_path_rate=next(drop_path_rates),
                    use_qkv_bias=config.use_qkv_bias,
                    dtype=self.dtype,
                    kernel_init=init,
                    name=f"stage{stage}_block{i}",
                )(x, train)
            if stage < len(config.depths) - 1:
                x = PatchMerging(self.dtype, init, name=f"stage{stage}_merge")(x)
        x = LayerNorm(self.dtype, name="norm")(x)
        # A mean of many tokens loses bits in bfloat16.
        return jnp.mean(x.astype(jnp.promote_types(self.dtype, jnp.float32)), axis=(1, 2)).astype(self.dtype)


FAMILY = Family(
    name="htsat",
    kind="audio encoder",
    config_type=HtsatConfig,
    build=Htsat,
    variants=VARIANTS,
    example=lambda config: (jax.ShapeDtypeStruct((2, config.num_frames, config.num_mels), jnp.float32),),
    frontend=TorchlibrosaSpec(clip=ClipSpec(clip_sec=10.0)),
    takes=frozenset({"train", "row_mask", "moments"}),
    source="https://arxiv.org/abs/2202.00874, https://arxiv.org/abs/2211.06687",
)
