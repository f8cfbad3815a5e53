"""Swin v1 blocks: attention inside windows that shift on odd blocks, and patch merging.

Liu et al. 2021, https://arxiv.org/abs/2103.14030
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from alm_jax.nn.attention import SelfAttention
from alm_jax.nn.dense import Dense
from alm_jax.nn.dropout import drop_path
from alm_jax.nn.mlp import Mlp
from alm_jax.nn.norm import LayerNorm
from alm_jax.nn.parameter import declare, truncated_normal


def split_windows(x: Float[Array, "B height width D"], window: int) -> Float[Array, "B windows tokens D"]:
    """Cuts a map into non-overlapping square windows, row by row: [B, windows, window * window, D]."""
    b, height, width, d = x.shape
    x = x.reshape(b, height // window, window, width // window, window, d)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, window * window, d)


def join_windows(
    windows: Float[Array, "B windows tokens D"], window: int, height: int, width: int
) -> Float[Array, "B height width D"]:
    """The inverse of `split_windows`."""
    b, _, _, d = windows.shape
    x = windows.reshape(b, height // window, width // window, window, window, d)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, height, width, d)


def relative_position_index(window: int) -> Int[np.ndarray, "tokens tokens"]:
    """Row of the relative-position table for two tokens of a window: (dy + w - 1)(2w - 1) + dx + w - 1."""
    y, x = np.divmod(np.arange(window * window), window)
    dy, dx = y[:, None] - y[None, :], x[:, None] - x[None, :]
    return (dy + window - 1) * (2 * window - 1) + dx + window - 1


def shift_mask(height: int, width: int, window: int, shift: int) -> Bool[np.ndarray, "windows tokens tokens"]:
    """True where two tokens of a shifted window come from the same region of the unshifted map."""

    def region(size: int) -> np.ndarray:
        index = np.arange(size)
        return (index >= size - window).astype(np.int64) + (index >= size - shift)

    regions = region(height)[:, None] * 3 + region(width)[None, :]
    regions = regions.reshape(height // window, window, width // window, window)
    regions = regions.transpose(0, 2, 1, 3).reshape(-1, window * window)
    return regions[:, :, None] == regions[:, None, :]


class SwinBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with attention inside windows.

    A map no larger than the window is one window, unshifted.
    """

    num_heads: int
    window_size: int
    shifted: bool
    mlp_dim: int
    drop_path_rate: float
    use_qkv_bias: bool
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer = truncated_normal

    @nn.compact
    def __call__(self, x: Float[Array, "B height width D"], train: bool) -> Float[Array, "B height width D"]:
        _, height, width, _ = x.shape
        window = self.window_size
        shift = window // 2 if self.shifted and min(height, width) > window else 0

        table = declare(
            self,
            "relative_position_bias",
            truncated_normal,
            ((2 * window - 1) ** 2, self.num_heads),
            ("relative_positions", "heads"),
        )
        bias = jnp.take(table, relative_position_index(window), axis=0, mode="clip").transpose(2, 0, 1)

        y = LayerNorm(self.dtype, name="attention_norm")(x)
        if shift:
            y = jnp.roll(y, (-shift, -shift), axis=(1, 2))
            mask = jnp.asarray(shift_mask(height, width, window, shift))[None, :, None, :, :]
        else:
            mask = None
        y = SelfAttention(
            self.num_heads, self.dtype, self.use_qkv_bias, kernel_init=self.kernel_init, name="attention"
        )(split_windows(y, window), bias=bias[None, None, :, :, :], mask=mask)
        y = join_windows(y, window, height, width)
        if shift:
            y = jnp.roll(y, (shift, shift), axis=(1, 2))
        x = x + self.drop(y, train)

        y = LayerNorm(self.dtype, name="mlp_norm")(x)
        y = Mlp(self.mlp_dim, self.dtype, self.kernel_init, name="mlp")(y)
        return x + self.drop(y, train)

    def drop(self, branch: Float[Array, "B *rest"], train: bool) -> Float[Array, "B *rest"]:
        """Drops the residual branch of some examples when training."""
        if not train or self.drop_path_rate == 0.0:
            return branch
        return drop_path(branch, self.drop_path_rate, self.make_rng("dropout"))


class PatchMerging(nn.Module):
    """Joins each 2 x 2 neighbourhood into one token of twice the width: Linear(LayerNorm([4D])) -> [2D]."""

    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer = truncated_normal

    @nn.compact
    def __call__(self, x: Float[Array, "B height width D"]) -> Float[Array, "B half_height half_width D2"]:
        b, height, width, d = x.shape
        x = x.reshape(b, height // 2, 2, width // 2, 2, d)
        # Published order of the neighbours (row, column): (0, 0), (1, 0), (0, 1), (1, 1).
        x = x.transpose(0, 1, 3, 4, 2, 5).reshape(b, height // 2, width // 2, 4 * d)
        x = LayerNorm(self.dtype, axis="merged", name="norm")(x)
        return Dense(
            (2 * d,), ("merged", "embed"), self.dtype, False, kernel_init=self.kernel_init, name="reduction"
        )(x)
