"""The linear layer and the table of embeddings."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from alm_jax.nn.parameter import declare, truncated_normal, zeros


class Dense(nn.Module):
    """y = x W + b over the trailing axes of x; parameters float32, the product in ``dtype``.

    Parameters: ``kernel`` [inputs..., *features] and ``bias`` [*features].
    """

    features: tuple[int, ...]
    """Sizes of the axes produced."""
    axes: tuple[str, ...]
    """A name for each axis of the kernel: those contracted, then those produced."""
    dtype: jnp.dtype
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = truncated_normal

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        num_contracted = len(self.axes) - len(self.features)
        inputs = x.shape[-num_contracted:]

        def init_kernel(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
            # An initialiser that looks at fan-in must see two axes, whatever they are split into.
            flat = self.kernel_init(key, (math.prod(inputs), math.prod(self.features)), dtype)
            return flat.reshape(shape)

        kernel = declare(self, "kernel", init_kernel, (*inputs, *self.features), self.axes)
        # One leading axis: the gradient of the kernel then contracts one axis, without transposing copies.
        rows = x.reshape(-1, *inputs).astype(self.dtype)
        contracted = tuple(range(1, 1 + num_contracted)), tuple(range(num_contracted))
        y = lax.dot_general(rows, kernel.astype(self.dtype), (contracted, ((), ())))
        if self.use_bias:
            bias = declare(self, "bias", zeros, self.features, self.axes[num_contracted:])
            y = y + bias.astype(self.dtype)[None]
        return y.reshape(*x.shape[: x.ndim - num_contracted], *self.features)


class Embed(nn.Module):
    """A table of vectors looked up by integer; parameter ``embedding`` [num_entries D], float32."""

    num_entries: int
    width: int
    axes: tuple[str, str]
    embedding_init: nn.initializers.Initializer = truncated_normal

    def setup(self) -> None:
        """Declares the table, which a tied head reads too."""
        shape = (self.num_entries, self.width)
        self.embedding = declare(self, "embedding", self.embedding_init, shape, self.axes)

    def __call__(self, ids: Int[Array, "..."]) -> Float[Array, "... D"]:
        return jnp.take(self.embedding, ids, axis=0, mode="clip")
