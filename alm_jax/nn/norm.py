"""Normalisations: LayerNorm, and BatchNorm, over the mel bins (the bn0 of HTSAT and CNN14) or the channels of a map."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from alm_jax.nn.parameter import declare, ones, zeros


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + epsilon) * scale + bias over the last axis, computed in float32 or wider.

    Parameters: ``scale`` and ``bias`` [D].
    """

    dtype: jnp.dtype
    epsilon: float = 1e-5
    axis: str = "embed"

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        scale = declare(self, "scale", ones, (x.shape[-1],), (self.axis,))
        bias = declare(self, "bias", zeros, (x.shape[-1],), (self.axis,))
        leading = tuple(range(x.ndim - 1))
        y = standardise(x.astype(jnp.promote_types(x.dtype, jnp.float32)), self.epsilon) * jnp.expand_dims(
            scale, leading
        )
        return (y + jnp.expand_dims(bias, leading)).astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def standardise(x: Float[Array, "*B D"], epsilon: float) -> Float[Array, "*B D"]:
    """(x - mean) / sqrt(var + epsilon) over the last axis of a float32 or float64 array.

    The backward pass is the closed form dx = (g - mean(g) - y mean(g y)) / sqrt(var + epsilon), which keeps
    the result and one number a row.
    """
    return _standardise(x, epsilon)[0]


def _standardise(x: Array, epsilon: float) -> tuple[Array, Array]:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    inverse = lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)
    return centred * inverse, inverse


def _standardise_forward(x: Array, epsilon: float) -> tuple[Array, tuple[Array, Array]]:
    y, inverse = _standardise(x, epsilon)
    return y, (y, inverse)


def _standardise_backward(epsilon: float, kept: tuple[Array, Array], grad: Array) -> tuple[Array]:
    y, inverse = kept
    along = jnp.mean(grad * y, axis=-1, keepdims=True)
    return ((grad - jnp.mean(grad, axis=-1, keepdims=True) - y * along) * inverse,)


standardise.defvjp(_standardise_forward, _standardise_backward)


# PyTorch's default for BatchNorm, which the published models keep.
_EPSILON = 1e-5


class Moments(NamedTuple):
    """Statistics of each mel bin, or channel, over the real rows of a batch."""

    mean: Float[Array, " F"]
    variance: Float[Array, " F"]
    """Biased: the mean squared deviation."""
    total_frames: Float[Array, ""]
    """Positions that were averaged over: real rows times positions a row."""


def feature_moments(
    features: Float[Array, "B *positions F"],
    mask: Bool[Array, " B"] | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Moments:
    """Mean and variance of each mel bin over all positions of the real rows, in float32 or wider, by two passes.

    Args:
        mask: True where a row is real; None when all are.
        axis_name: inside pmap or shard_map, the axes that the batch is split over: the statistics are
            then those of the whole batch.
    """
    features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    features = features.reshape(features.shape[0], -1, features.shape[-1])
    num_rows, num_frames, _ = features.shape
    weights = jnp.ones((num_rows,), features.dtype) if mask is None else mask.astype(features.dtype)

    def total(x: Array) -> Array:
        return x if axis_name is None else lax.psum(x, axis_name)

    total_frames = total(jnp.sum(weights)) * num_frames
    divisor = jnp.maximum(total_frames, 1.0)
    mean = total(jnp.einsum("b,btf->f", weights, features, precision=lax.Precision.HIGHEST)) / divisor
    deviation = jnp.square(features - mean[None, None, :])
    variance = total(jnp.einsum("b,btf->f", weights, deviation, precision=lax.Precision.HIGHEST)) / divisor
    return Moments(mean, variance, total_frames)


class BatchNorm(nn.Module):
    """BatchNorm over mel bins, or channels, with PyTorch's running statistics; float32 or wider.

    In training it normalises by the statistics of the batch and moves the running ones towards them:
    running += momentum (batch - running), the variance unbiased (n / (n - 1)) in that update only, as
    `torch.nn.BatchNorm2d` does. A batch without a real row moves nothing. Otherwise it normalises by the running
    statistics.

    Parameters: ``scale``, ``bias`` [F]. Collection ``batch_stats``: ``mean``, ``var`` [F].
    """

    axis: str = "mel"
    """Name of the axis that keeps its own statistics."""
    momentum: float = 0.1
    """Share of the new statistics in the running ones; 0.1 is PyTorch's default."""

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "B *positions F"],
        *,
        train: bool,
        mask: Bool[Array, " B"] | None = None,
        moments: Moments | None = None,
    ) -> Float[Array, "B *positions F"]:
        """Normalises ``features``; ``moments`` replaces the statistics of the rows at hand.

        With micro-batches the moments of the WHOLE batch must be given, or accumulated gradients are not
        those of the whole batch.
        """
        shape = (features.shape[-1],)
        scale = declare(self, "scale", ones, shape, (self.axis,))
        bias = declare(self, "bias", zeros, shape, (self.axis,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if train:
            batch = feature_moments(features, mask) if moments is None else moments
            mean, variance = batch.mean, batch.variance
            if not self.is_initializing():
                unbiased = variance * batch.total_frames / jnp.maximum(batch.total_frames - 1.0, 1.0)
                momentum = jnp.where(batch.total_frames > 0, self.momentum, 0.0)
                running_mean.value += momentum * (mean - running_mean.value)
                running_var.value += momentum * (unbiased - running_var.value)
        else:
            mean, variance = running_mean.value, running_var.value
        leading = tuple(range(features.ndim - 1))
        factor = jnp.expand_dims(lax.rsqrt(variance + _EPSILON) * scale, leading)
        wide = features.astype(jnp.promote_types(features.dtype, jnp.float32))
        return (wide - jnp.expand_dims(mean, leading)) * factor + jnp.expand_dims(bias, leading)
