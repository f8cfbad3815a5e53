"""The gated feed-forward half: SwiGLU of Llama and Qwen, GEGLU of T5 v1.1.

Shazeer 2020, equation 6 (https://arxiv.org/abs/2002.05202).
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alm_jax.nn.dense import Dense
from alm_jax.nn.parameter import truncated_normal


class GatedMlp(nn.Module):
    """x -> W_down (activation(W_gate x) * W_up x), without biases.

    Parameters: ``gate`` and ``up`` kernels [D M], ``down`` kernel [M D].
    """

    mlp_dim: int
    dtype: jnp.dtype
    activation: Callable[[Array], Array] = jax.nn.silu
    kernel_init: nn.initializers.Initializer = truncated_normal

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        def project(name: str, size: int, axes: tuple[str, str]) -> Dense:
            return Dense((size,), axes, self.dtype, use_bias=False, kernel_init=self.kernel_init, name=name)

        gate = project("gate", self.mlp_dim, ("embed", "mlp"))(x)
        up = project("up", self.mlp_dim, ("embed", "mlp"))(x)
        return project("down", x.shape[-1], ("mlp", "embed"))(self.activation(gate) * up)
