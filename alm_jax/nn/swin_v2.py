"""Swin v2 blocks on a map of time and frequency: cosine attention in windows that shift along time alone.

AudioMAE's local decoder (Huang et al. 2022, https://arxiv.org/abs/2207.06405), after Swin V2 (Liu et al. 2022,
https://arxiv.org/abs/2111.09883): norms come after the branches, scores are cosines over a trained temperature, and
the bias of a pair of tokens is a small network of their distance.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from alm_jax.nn.dense import Dense
from alm_jax.nn.dropout import dropout
from alm_jax.nn.mlp import Mlp
from alm_jax.nn.norm import LayerNorm
from alm_jax.nn.parameter import declare, ones
from alm_jax.ops.attention import attend

MIN_TAU = 0.01
"""Minimum of the temperature."""


def log_distances(window: tuple[int, int]) -> Float[np.ndarray, "pairs 2"]:
    """sign(d) ln(1 + |d|) of the offset d = (time, frequency) of any two tokens of a window, float64, row-major."""
    places = np.indices(window).reshape(2, -1).T
    offset = (places[:, None] - places[None, :]).reshape(-1, 2)
    return np.sign(offset) * np.log1p(np.abs(offset))


def shift_in_time_mask(
    grid: tuple[int, int], window: tuple[int, int], shift: int
) -> Bool[np.ndarray, "windows tokens tokens"]:
    """True where two tokens of a window of the map, rolled back by ``shift`` steps, were on one side of its end."""
    rows, columns = grid
    is_wrapped = np.repeat(np.arange(rows) >= rows - shift, columns)
    wrapped = _split(is_wrapped.reshape(1, rows, columns, 1), window)[0, :, :, 0]
    return wrapped[:, :, None] == wrapped[:, None, :]


class CosineWindowAttention(nn.Module):
    """x -> W_o softmax(cos(q, k) / max(tau, 0.01) + MLP(log distance)) v, window by window.

    Parameters: ``qkv`` and ``out`` as of `SelfAttention`, ``tau`` [H], and the network of the bias, ``bias_up`` and
    ``bias_down``.
    """

    num_heads: int
    window: tuple[int, int]
    bias_dim: int
    bias_dropout: float
    """Dropout rate of the bias network, after each of its layers; needs the "dropout" stream unless 0."""
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B windows tokens D"],
        *,
        mask: Bool[Array, "1 windows 1 tokens tokens"] | None,
    ) -> Float[Array, "B windows tokens D"]:
        width, num_tokens = x.shape[-1], x.shape[-2]
        features = (3, self.num_heads, width // self.num_heads)
        axes = ("embed", "qkv", "heads", "head_dim")
        qkv = Dense(features, axes, self.dtype, kernel_init=self.kernel_init, name="qkv")(x)
        tau = jnp.maximum(declare(self, "tau", ones, (self.num_heads,), ("heads",)), MIN_TAU)
        query = _to_unit(qkv[..., 0, :, :]) / jnp.expand_dims(tau, (0, 1, 2, 4))
        key = _to_unit(qkv[..., 1, :, :])
        attended = attend(
            query.astype(self.dtype),
            key.astype(self.dtype),
            qkv[..., 2, :, :],
            bias=self._compute_bias(num_tokens)[None, None],
            mask=mask,
            scale=1.0,
        )
        axes_out = ("heads", "head_dim", "embed")
        return Dense((width,), axes_out, self.dtype, kernel_init=self.kernel_init, name="out")(attended)

    def _compute_bias(self, num_tokens: int) -> Float[Array, "H tokens tokens"]:
        # As wide as the norms: a bfloat16 bias would make the scores imprecise.
        dtype = jnp.promote_types(self.dtype, jnp.float32)

        def project(name: str, size: int, axes: tuple[str, str]) -> Dense:
            return Dense((size,), axes, dtype, kernel_init=self.kernel_init, name=name)

        def drop(y: Array) -> Array:
            return dropout(y, self.bias_dropout, self.make_rng("dropout") if self.bias_dropout else None)

        hidden = project("bias_up", self.bias_dim, ("coordinates", "bias_hidden"))(
            jnp.asarray(log_distances(self.window), dtype)
        )
        bias = project("bias_down", self.num_heads, ("bias_hidden", "heads"))(drop(nn.relu(hidden)))
        return drop(bias).T.reshape(self.num_heads, num_tokens, num_tokens)


class SwinV2Block(nn.Module):
    """x + norm(attention(x)), then x + norm(mlp(x)), with attention inside windows.

    A window is no larger than the map. ``shifted`` blocks cut their windows half a window later, where the map is
    longer than one.
    """

    num_heads: int
    window_size: int
    shifted: bool
    mlp_dim: int
    bias_dim: int
    bias_dropout: float
    epsilon: float
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: Float[Array, "B rows columns D"]) -> Float[Array, "B rows columns D"]:
        _, rows, columns, _ = x.shape
        window = min(rows, self.window_size), min(columns, self.window_size)
        shift = window[0] // 2 if self.shifted and rows > window[0] else 0
        mask = None
        y = x
        if shift:
            y = jnp.roll(y, -shift, axis=1)
            mask = jnp.asarray(shift_in_time_mask((rows, columns), window, shift))[None, :, None]
        y = CosineWindowAttention(
            self.num_heads,
            window,
            self.bias_dim,
            self.bias_dropout,
            self.dtype,
            self.kernel_init,
            name="attention",
        )(_split(y, window), mask=mask)
        y = _join(y, window, (rows, columns))
        y = jnp.roll(y, shift, axis=1) if shift else y
        x = x + LayerNorm(self.dtype, self.epsilon, name="attention_norm")(y)
        y = Mlp(self.mlp_dim, self.dtype, self.kernel_init, name="mlp")(x)
        return x + LayerNorm(self.dtype, self.epsilon, name="mlp_norm")(y)


def _split(x, window: tuple[int, int]):  # type: ignore[no-untyped-def]
    """A map [B rows columns D] as windows [B windows tokens D]; NumPy or JAX."""
    batch_size, rows, columns, width = x.shape
    high, wide = window
    x = x.reshape(batch_size, rows // high, high, columns // wide, wide, width)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch_size, -1, high * wide, width)


def _join(x: Array, window: tuple[int, int], grid: tuple[int, int]) -> Array:
    """The inverse of `_split`."""
    (high, wide), (rows, columns) = window, grid
    x = x.reshape(x.shape[0], rows // high, columns // wide, high, wide, x.shape[-1])
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], rows, columns, -1)


def _to_unit(x: Float[Array, "*B K"]) -> Float[Array, "*B K"]:
    """Vectors of length 1, in float32 or wider; 0 stays 0."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x * lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-12))
