"""The feed-forward half of a transformer block."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from alm_jax.nn.dense import Dense
from alm_jax.nn.parameter import truncated_normal


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x Phi(x) with the exact error function, as in BERT and Swin (not the tanh approximation)."""
    return 0.5 * x * (1.0 + lax.erf(x * 0.5**0.5))


class Mlp(nn.Module):
    """x -> W_down gelu(W_up x + b_up) + b_down."""

    mlp_dim: int
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer = truncated_normal

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        init = self.kernel_init
        hidden = gelu(Dense((self.mlp_dim,), ("embed", "mlp"), self.dtype, kernel_init=init, name="up")(x))
        return Dense((x.shape[-1],), ("mlp", "embed"), self.dtype, kernel_init=init, name="down")(hidden)
