"""The linear layer and the table of embeddings."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from alm_jax.nn.layout import constrain, constrain_parameter
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
        leading = x.shape[: x.ndim - num_contracted]
        # The first axis is that of a batch's rows, wherever there is one; features alone have none.
        names = ("batch", *[None] * len(leading))[: len(leading)]
        x = constrain(x.astype(self.dtype), *names, *self.axes[:num_contracted])
        rows = x.reshape(-1, *inputs)
        # Cut as the state is until the product reads it: so what is gathered, and the gradient that is added up over
        # devices, have the dtype of the product.
        kernel = constrain_parameter(kernel.astype(self.dtype), self.axes)
        y = multiply(rows, kernel, num_contracted)
        if self.use_bias:
            bias = declare(self, "bias", zeros, self.features, self.axes[num_contracted:])
            y = y + bias.astype(self.dtype)[None]
        return constrain(y.reshape(*leading, *self.features), *names, *self.axes[num_contracted:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def multiply(
    rows: Float[Array, "rows *inputs"], kernel: Float[Array, "*axes"], num_contracted: int
) -> Float[Array, "rows *features"]:
    """``rows`` times ``kernel`` over the first ``num_contracted`` axes of the kernel.

    The gradient of the kernel is the product in the kernel's own order, inputs then features. JAX's rule makes it
    features first and transposes; on a CPU that was a copy of every gradient whose kernel has more than two axes.
    """
    contracted = tuple(range(1, 1 + num_contracted)), tuple(range(num_contracted))
    return lax.dot_general(rows, kernel, (contracted, ((), ())))


def _multiply_forward(rows: Array, kernel: Array, num_contracted: int) -> tuple[Array, tuple[Array, Array]]:
    return multiply(rows, kernel, num_contracted), (rows, kernel)


def _multiply_backward(num_contracted: int, kept: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    rows, kernel = kept
    features = tuple(range(1, grad.ndim)), tuple(range(num_contracted, kernel.ndim))
    d_rows = lax.dot_general(grad, kernel, (features, ((), ())))
    return d_rows, lax.dot_general(rows, grad, (((0,), (0,)), ((), ())))


multiply.defvjp(_multiply_forward, _multiply_backward)


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
        vectors = jnp.take(self.embedding, ids, axis=0, mode="clip")
        # A single axis is not that of a batch, for example positions.
        return (
            constrain(vectors, "batch", *[None] * (ids.ndim - 1), self.axes[1]) if ids.ndim > 1 else vectors
        )
