"""CAV-MAE's audio branch as fine-tuned for LTU: a clip becomes 32 vectors placed before a language model's text.

Gong et al. 2023, https://arxiv.org/abs/2210.07839 (CAV-MAE) and https://arxiv.org/abs/2305.10790 (LTU). log-mel [B T F]
-> 16 x 16 patches, frequency-major -> linear embedding + positions + the vector of the modality -> pre-norm blocks ->
norm -> the mean over frequency, two columns of patches at a time -> norm -> the language model's width.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from alm_jax.encoders.family import AudioTowerConfig, Family
from alm_jax.errors import UserError
from alm_jax.nn.conv import Conv
from alm_jax.nn.dense import Dense
from alm_jax.nn.norm import LayerNorm, standardise
from alm_jax.nn.parameter import declare
from alm_jax.nn.pooling import masked_mean
from alm_jax.nn.rematerialise import Remat, rematerialise
from alm_jax.nn.transformer import PreNormBlock
from alm_jax.ops.frontends import AstSpec, published_clip
from alm_jax.ops.positions import sincos_grid
from alm_jax.ops.window_mask import window_mask

# Default of torch.nn.LayerNorm, used by the released code.
_LAYER_NORM_EPS = 1e-5
# The norm that follows removes the scale; only epsilon relative to the variance matters.
_DIVISOR = 50.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class CavMaeConfig(AudioTowerConfig):
    """Shape of a CAV-MAE audio branch. Defaults are LTU's."""

    num_frames: int = 1024
    """Frames of the longest input, a multiple of patch_size."""
    num_mels: int = 128
    """Mel bins of the input, a multiple of patch_size."""
    patch_size: int = 16
    """Side of a square patch, in frames and in mel bins."""
    width: int = 768
    """Width: size of a token's hidden state and of the clip vector; a multiple of 4."""
    num_layers: int = 12
    """Transformer blocks. The last one is CAV-MAE's block shared by both modalities, with the norms of audio."""
    num_heads: int = 12
    """Attention heads; divides the width."""
    mlp_dim: int = 3072
    """Hidden size of the feed-forward layers."""
    pool_size: int = 2
    """Columns of patches averaged into one prompt vector."""
    prompt_width: int = 4096
    """Size of a prompt vector: the language model's width."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads or self.width % 4:
            raise UserError(
                f"audio width {self.width} must be a multiple of num_heads {self.num_heads} and of 4: change one"
            )
        if self.num_frames % self.patch_size or self.num_mels % self.patch_size:
            raise UserError(
                f"num_frames {self.num_frames} and num_mels {self.num_mels} must be multiples of patch_size "
                f"{self.patch_size}; change one of them"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Number of patches of the longest input along frequency and along time."""
        return self.num_mels // self.patch_size, self.num_frames // self.patch_size


LTU = CavMaeConfig()
# For tests and demonstrations on a CPU: 0.4 M parameters, up to 256 frames of 64 mel bins.
NANO = CavMaeConfig(
    num_frames=256, num_mels=64, width=128, num_layers=2, num_heads=4, mlp_dim=512, prompt_width=64
)
VARIANTS = {"ltu": LTU, "nano": NANO}


def compute_prompt_mask(config: CavMaeConfig, mask: Bool[Array, "B T"]) -> Bool[Array, "B N"]:
    """Mask of the prompt vectors that come from real frames only; ``mask`` is True for real frames, padding at the
    end."""
    columns = window_mask(mask, config.patch_size, config.patch_size)
    return window_mask(columns, config.pool_size, config.pool_size)


class CavMae(nn.Module):
    """Module from log-mel features to a language model's prompt, the states of the patches, or a clip vector, in
    ``dtype``.

    Parameters: ``patch_embed``, ``position_embed``, ``modality_embed``, ``blocks`` (every array with a leading axis of
    layers), ``norm``, ``projection``.
    """

    config: CavMaeConfig
    dtype: jnp.dtype
    output: Literal["prompt", "tokens", "clip"] = "prompt"
    """Output. "prompt": [B N prompt_width], one vector for ``pool_size`` columns of patches. "tokens": states of the
    patches, frequency-major [B N D], normalised. "clip": their mean [B D]."""
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self, features: Float[Array, "B T F"], *, mask: Bool[Array, "B T"] | None = None
    ) -> Float[Array, "B N width"] | Float[Array, "B D"]:
        """Encodes ``features``, of T frames up to ``num_frames``, whole columns of patches and at least
        ``pool_size``.

        A patch has the position of its place in the longest input, however many follow it.

        Args:
            mask: True where a frame is real, the padding at the end; patches with padding in them are not attended
                to and not in the clip vector; `compute_prompt_mask` says which vectors of the prompt are real. None,
                as published: padding is encoded like audio.

        Raises:
            UserError: ``features`` do not fit the config.
        """
        config = self.config
        batch_size, num_frames, num_mels = features.shape
        shortest = config.patch_size * config.pool_size
        is_whole = num_frames % config.patch_size == 0 and num_mels == config.num_mels
        if not (is_whole and shortest <= num_frames <= config.num_frames):
            raise UserError(
                f"features have {num_frames} frames of {num_mels} mel bins; this encoder takes a multiple of "
                f"{config.patch_size} from {shortest} to {config.num_frames} frames of {config.num_mels}: fit the "
                "clip, hop and mel bins to it"
            )
        init = nn.initializers.xavier_uniform()
        size = (config.patch_size, config.patch_size)
        axes = ("channels_in", "embed")
        embed = Conv(config.width, size, axes, self.dtype, strides=size, kernel_init=init, name="patch_embed")
        grid = embed(features.swapaxes(1, 2)[..., None])
        rows, columns = grid.shape[1:3]

        def init_positions(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
            return jnp.asarray(sincos_grid(*config.grid, config.width), dtype)

        shape = (config.grid[0] * config.grid[1], config.width)
        positions = declare(self, "position_embed", init_positions, shape, ("positions", "embed"))
        normal = nn.initializers.normal(0.02)
        modality = declare(self, "modality_embed", normal, (config.width,), ("embed",))
        places = positions.reshape(*config.grid, config.width)[:, :columns] + modality[None, None]
        x = (grid + places[None].astype(self.dtype)).reshape(batch_size, rows * columns, config.width)
        is_real = jnp.ones((batch_size, columns), bool)
        if mask is not None:
            is_real = window_mask(mask, config.patch_size, config.patch_size)
        token_mask = None if mask is None else jnp.tile(is_real, (1, rows))

        block = rematerialise(PreNormBlock, self.remat)
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = blocks(config.num_heads, config.mlp_dim, _LAYER_NORM_EPS, self.dtype, init, name="blocks")(
            x, token_mask
        )
        x = LayerNorm(self.dtype, _LAYER_NORM_EPS, name="norm")(x)

        # Means and the norm of the prompt lose bits in bfloat16.
        wide = x.astype(jnp.promote_types(self.dtype, jnp.float32))
        by_column = jnp.mean(wide.reshape(batch_size, rows, columns, config.width), axis=1)
        length = columns // config.pool_size
        pooled = by_column[:, : length * config.pool_size]
        pooled = jnp.mean(pooled.reshape(batch_size, length, config.pool_size, config.width), axis=2)
        project = Dense(
            (config.prompt_width,), ("embed", "prompt"), self.dtype, kernel_init=init, name="projection"
        )
        prompt = project(standardise(pooled / _DIVISOR, _LAYER_NORM_EPS))
        if self.output == "prompt":
            return prompt
        if self.output == "tokens":
            return x
        return masked_mean(by_column, is_real).astype(self.dtype)


FAMILY = Family(
    name="cav_mae",
    kind="audio encoder",
    config_type=CavMaeConfig,
    build=lambda config, dtype, remat: CavMae(config, dtype, remat=remat),
    variants=VARIANTS,
    example=lambda config: (
        jax.ShapeDtypeStruct((2, config.patch_size * config.pool_size, config.num_mels), jnp.float32),
    ),
    # LTU's statistics of its training data, and one standard deviation where AST takes two.
    frontend=AstSpec(clip=published_clip(1024), mean=-5.081, std=4.4849, num_std=1.0),
    takes=frozenset({"mask"}),
    states="prompt",
    state_mask=lambda config, mask, train: compute_prompt_mask(config, mask),
    source="https://arxiv.org/abs/2305.10790",
)
