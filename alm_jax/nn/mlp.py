"""The feed-forward half of a transformer block."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from alm_jax.nn.dense import Dense
from alm_jax.nn.parameter import truncated_normal


@jax.custom_vjp
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x Phi(x) with the exact error function, as in BERT and Swin (not the tanh approximation).

    The backward pass keeps ``x`` alone and computes Phi again: the widest activation of a tower is kept once.
    """
    return x * _normal_cdf(x)


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1.0 + lax.erf(x * 0.5**0.5))


def _gelu_forward(x: Array) -> tuple[Array, Array]:
    return gelu(x), x


def _gelu_backward(x: Array, grad: Array) -> tuple[Array]:
    """d/dx x Phi(x) = Phi(x) + x phi(x)."""
    density = jnp.exp(-0.5 * jnp.square(x)) * (2.0 * math.pi) ** -0.5
    return (grad * (_normal_cdf(x) + x * density),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def gelu_tanh(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """GELU's tanh approximation, which GPT-2 and Flan-T5 were trained with ("gelu_new")."""
    return jax.nn.gelu(x, approximate=True)


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x sigmoid(1.702 x), the approximation of GELU that CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


class Mlp(nn.Module):
    """x -> W_down activation(W_up x + b_up) + b_down."""

    mlp_dim: int
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer = truncated_normal
    activation: Callable[[Array], Array] = gelu
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        def project(name: str, size: int, axes: tuple[str, str]) -> Dense:
            return Dense((size,), axes, self.dtype, self.use_bias, self.kernel_init, name=name)

        hidden = project("up", self.mlp_dim, ("embed", "mlp"))(x)
        return project("down", x.shape[-1], ("mlp", "embed"))(self.activation(hidden))
