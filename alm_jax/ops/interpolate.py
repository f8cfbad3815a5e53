"""Bicubic interpolation along one axis, in the convention of PyTorch.

`jax.image.resize` supports neither PyTorch's kernel (a = -0.75; it uses -0.5) nor align_corners=True, so
the resize is a constant matrix here.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

_A = -0.75


@functools.lru_cache(maxsize=8)
def bicubic_matrix(
    in_size: int, out_size: int, dtype: str = "float32"
) -> Float[np.ndarray, "out_size in_size"]:
    """The matrix, float32 or float64, that resizes ``in_size`` samples to ``out_size``, ends aligned to ends.

    Equal to `torch.nn.functional.interpolate(mode="bicubic", align_corners=True)` along one axis: Keys'
    cubic convolution kernel with a = -0.75, samples beyond the ends repeating the end.
    """
    # The position of an output sample is rounded as in PyTorch, to the dtype of the features: in float32, on a
    # log-mel with steps of tens of decibels, the exact position differs by up to 1e-3 dB.
    real = np.dtype(dtype).type
    scale = real(in_size - 1) / real(max(out_size - 1, 1))
    position = scale * np.arange(out_size, dtype=dtype)
    left = np.floor(position)
    t = (position - left).astype(np.float64)

    def near(x: np.ndarray) -> np.ndarray:
        return ((_A + 2) * x - (_A + 3)) * x * x + 1

    def far(x: np.ndarray) -> np.ndarray:
        return ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A

    weights = (far(t + 1), near(t), near(1 - t), far(2 - t))
    matrix = np.zeros((out_size, in_size))
    rows = np.arange(out_size)
    for offset, weight in zip((-1, 0, 1, 2), weights, strict=True):
        columns = np.clip(left.astype(np.int64) + offset, 0, in_size - 1)
        np.add.at(matrix, (rows, columns), weight)
    matrix = matrix.astype(dtype)
    matrix.setflags(write=False)  # the cache hands the same array to every caller
    return matrix


def resize_time(features: Float[Array, "*B T F"], num_frames: int) -> Float[Array, "*B num_frames F"]:
    """Resizes the time axis of ``features`` to ``num_frames``, bicubic with aligned ends, in float32 or wider.

    As a matrix product it costs 2 T num_frames F operations a clip, under a percent of the smallest
    published tower, and is as fast backward as forward.
    """
    if features.shape[-2] == num_frames:
        return features
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    matrix = jnp.asarray(bicubic_matrix(features.shape[-2], num_frames, str(dtype)))
    resized = jnp.einsum("nt,...tf->...nf", matrix, features.astype(dtype), precision=lax.Precision.HIGHEST)
    return resized.astype(features.dtype)
