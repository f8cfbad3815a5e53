"""Decoders of masked models: the states of the visible patches to the pixels, or scores of labels, of all.

Both put a trained token in the place of each hidden patch, add fixed positions, and end in a norm and a linear layer.
The global one is a ViT, as in MAE (He et al. 2022, https://arxiv.org/abs/2111.06377); the local one attends in windows
of 4 x 4 patches that shift along time, AudioMAE's released choice (Huang et al. 2022,
https://arxiv.org/abs/2207.06405, section 3).
"""

import dataclasses
from typing import TypeAlias

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alm_jax.errors import UserError
from alm_jax.nn.dense import Dense
from alm_jax.nn.norm import LayerNorm
from alm_jax.nn.parameter import declare
from alm_jax.nn.rematerialise import Remat, rematerialise
from alm_jax.nn.swin_v2 import SwinV2Block
from alm_jax.nn.transformer import PreNormBlock
from alm_jax.ops.patch_masking import take_patches
from alm_jax.ops.positions import sincos_grid


def _check(width: int, num_heads: int) -> None:
    if width % num_heads or width % 4:
        raise UserError(
            f"decoder width {width} must be a multiple of num_heads {num_heads} and of 4: change one of them"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlobalDecoderConfig:
    """A ViT over all patches, and the class token where there is one. Defaults are MAE's, AudioMAE's decoder_mode 0."""

    width: int = 512
    """Width: size of a token's hidden state, a multiple of 4."""
    num_layers: int = 8
    """Transformer blocks."""
    num_heads: int = 16
    """Attention heads; divides the width."""
    mlp_dim: int = 2048
    """Hidden size of the feed-forward layers."""
    layer_norm_eps: float = 1e-6
    """Epsilon of LayerNorm."""

    def __post_init__(self) -> None:
        _check(self.width, self.num_heads)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalDecoderConfig:
    """Swin v2 blocks in windows of patches. Defaults are AudioMAE's released ones, decoder_mode 1."""

    width: int = 512
    """Width: size of a token's hidden state, a multiple of 4."""
    num_layers: int = 16
    """Number of blocks, even: the windows of every second block are shifted."""
    num_heads: int = 16
    """Attention heads; divides the width."""
    mlp_dim: int = 2048
    """Hidden size of the feed-forward layers."""
    window_size: int = 4
    """Side of a window, in patches; divides each side of the grid that is longer."""
    bias_dim: int = 384
    """Hidden size of the network that computes the bias of two tokens from their distance."""
    bias_dropout: float = 0.1
    """Dropout rate in training of the network that computes the bias."""
    layer_norm_eps: float = 1e-6
    """Epsilon of LayerNorm."""

    def __post_init__(self) -> None:
        _check(self.width, self.num_heads)
        if self.num_layers % 2:
            raise UserError(f"a local decoder has {self.num_layers} blocks; it takes an even number")


DecoderConfig: TypeAlias = GlobalDecoderConfig | LocalDecoderConfig


def check_grid(config: DecoderConfig, grid: tuple[int, int]) -> None:
    """Raises UserError where a decoder cannot cut this (time, frequency) grid of patches into windows."""
    if isinstance(config, LocalDecoderConfig) and any(
        side > config.window_size and side % config.window_size for side in grid
    ):
        raise UserError(
            f"a grid of {grid[0]} x {grid[1]} patches does not divide into windows of {config.window_size}: change "
            "decoder.window_size, the patch size, or the length of the clip"
        )


class PatchDecoder(nn.Module):
    """Either decoder, by the type of its config.

    Parameters: ``embed``, ``mask_token`` (where patches are hidden), ``blocks`` (every array with a leading axis of
    layers; of pairs of them, ``plain`` and ``shifted``, in the local decoder), ``norm``, ``head``.
    """

    config: DecoderConfig
    num_outputs: int
    """Numbers that are drawn of each patch, such as its pixels."""
    grid: tuple[int, int]
    """(time, frequency) of the patches."""
    transposed_positions: bool
    """As `AudioMaeConfig.compat` lays them."""
    dtype: jnp.dtype
    remat: Remat = "none"
    has_class_token: bool = True
    """Whether the first state is no patch's."""
    output_axis: str = "patch"
    """Name of the axis of outputs."""

    @nn.compact
    def __call__(
        self, states: Float[Array, "B tokens D"], restore_ids: Int[Array, "B N"], *, train: bool = False
    ) -> Float[Array, "B N outputs"]:
        """Outputs of every patch.

        Args:
            states: the encoder's, of the class token where there is one and of the visible patches.
            restore_ids: where each patch is among "visible, then hidden" (`PatchMask`).
            train: the local decoder's dropout is on, from the "dropout" stream.
        """
        config = self.config
        init = nn.initializers.xavier_uniform()
        batch_size, num_patches = restore_ids.shape
        x = Dense((config.width,), ("audio_embed", "embed"), self.dtype, kernel_init=init, name="embed")(
            states
        )
        first = int(self.has_class_token)
        cls_token, visible = x[:, :first], x[:, first:]
        if num_hidden := num_patches - visible.shape[1]:
            init_token = nn.initializers.normal(0.02)
            mask_token = declare(self, "mask_token", init_token, (config.width,), ("embed",))
            hidden = jnp.broadcast_to(mask_token.astype(self.dtype), (batch_size, num_hidden, config.width))
            visible = jnp.concatenate([visible, hidden], axis=1)
        x = take_patches(visible, restore_ids)
        rows, columns = reversed(self.grid) if self.transposed_positions else self.grid
        x = x + jnp.asarray(sincos_grid(rows, columns, config.width), self.dtype)[None]

        if isinstance(config, LocalDecoderConfig):
            x = self._decode_locally(config, x, train, init)
        else:
            x = self._decode_globally(config, jnp.concatenate([cls_token, x], axis=1), init)[:, first:]
        x = LayerNorm(self.dtype, config.layer_norm_eps, name="norm")(x)
        axes = "embed", self.output_axis
        return Dense((self.num_outputs,), axes, self.dtype, kernel_init=init, name="head")(x)

    def _decode_globally(
        self, config: GlobalDecoderConfig, x: Float[Array, "B N D"], init: nn.initializers.Initializer
    ) -> Float[Array, "B N D"]:
        block = rematerialise(PreNormBlock, self.remat)
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        sizes = config.num_heads, config.mlp_dim, config.layer_norm_eps
        return blocks(*sizes, self.dtype, init, name="blocks")(x, None)[0]

    def _decode_locally(
        self,
        config: LocalDecoderConfig,
        x: Float[Array, "B N D"],
        train: bool,
        init: nn.initializers.Initializer,
    ) -> Float[Array, "B N D"]:
        pair = rematerialise(_SwinPair, self.remat)
        pairs = nn.scan(
            pair,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=config.num_layers // 2,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        rate = config.bias_dropout if train else 0.0
        x = x.reshape(x.shape[0], *self.grid, x.shape[-1])
        x = pairs(config, rate, self.dtype, init, name="blocks")(x, None)[0]
        return x.reshape(x.shape[0], -1, x.shape[-1])


class _SwinPair(nn.Module):
    """A block and a shifted one, as the body of `nn.scan`."""

    config: LocalDecoderConfig
    bias_dropout: float
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: Float[Array, "B rows columns D"], _: None) -> tuple[Float[Array, "..."], None]:
        for shifted in (False, True):
            x = SwinV2Block(
                self.config.num_heads,
                self.config.window_size,
                shifted,
                self.config.mlp_dim,
                self.config.bias_dim,
                self.bias_dropout,
                self.config.layer_norm_eps,
                self.dtype,
                self.kernel_init,
                name="shifted" if shifted else "plain",
            )(x)
        return x, None
