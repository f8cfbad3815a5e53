"""RMSNorm: the norm of Llama, Qwen and T5, without a mean and without a bias."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from alm_jax.nn.parameter import declare, ones


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * scale over the last axis, computed in float32 or wider.

    Zhang and Sennrich 2019, equation 4 (https://arxiv.org/abs/1910.07467). Parameter: ``scale`` [D].
    """

    dtype: jnp.dtype
    epsilon: float = 1e-6
    axis: str = "embed"

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        scale = declare(self, "scale", ones, (x.shape[-1],), (self.axis,))
        return (to_unit_rms(x, self.epsilon) * jnp.expand_dims(scale, tuple(range(x.ndim - 1)))).astype(
            self.dtype
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def to_unit_rms(x: Float[Array, "*B D"], epsilon: float) -> Float[Array, "*B D"]:
    """x / sqrt(mean(x^2) + epsilon) over the last axis, in float32 or wider.

    The backward pass keeps ``x`` in its own dtype, for example bfloat16, and one number a row:
    dx = (g - y mean(g y)) / sqrt(mean(x^2) + epsilon).
    """
    return _to_unit_rms(x, epsilon)[0]


def _to_unit_rms(x: Array, epsilon: float) -> tuple[Array, Array]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    inverse = lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
    return wide * inverse, inverse


def _forward(x: Array, epsilon: float) -> tuple[Array, tuple[Array, Array]]:
    y, inverse = _to_unit_rms(x, epsilon)
    return y, (x, inverse)


def _backward(epsilon: float, kept: tuple[Array, Array], grad: Array) -> tuple[Array]:
    x, inverse = kept
    y = x.astype(grad.dtype) * inverse
    along = jnp.mean(grad * y, axis=-1, keepdims=True)
    return (((grad - y * along) * inverse).astype(x.dtype),)


to_unit_rms.defvjp(_forward, _backward)
