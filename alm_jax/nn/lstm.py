"""The long short-term memory, a recurrence over time."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from alm_jax.nn.dense import Dense
from alm_jax.nn.parameter import declare, zeros


class Lstm(nn.Module):
    """States h of x: c = sigmoid(f) c + sigmoid(i) tanh(g); h = sigmoid(o) tanh(c), [i f g o] = W x + b + R h + d.

    One layer of `torch.nn.LSTM` as wide as its input, from zeros; its two biases stay two. The gates and the memory
    are float32 or wider. (Hochreiter and Schmidhuber 1997; with forget gates, Gers et al. 2000)

    Written as the body of `nn.scan` over layers: returns (h, None).

    Parameters: ``input`` kernel [D 4 D] and bias [4 D], ``recurrent`` kernel [D 4 D] and ``recurrent_bias`` [4 D].
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> tuple[Float[Array, "B T D"], None]:
        batch_size, _, width = x.shape
        wide = jnp.promote_types(self.dtype, jnp.float32)
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        axes = ("embed", "gates", "state")
        gates = Dense((4, width), axes, self.dtype, kernel_init=init, name="input")(x).astype(wide)

        def init_kernel(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
            return init(key, (width, 4 * width), dtype).reshape(shape)

        kernel = declare(self, "recurrent", init_kernel, (width, 4, width), axes).astype(self.dtype)
        bias = declare(self, "recurrent_bias", zeros, (4, width), axes[1:])

        def step(carry: tuple[Array, Array], given: Array) -> tuple[tuple[Array, Array], Array]:
            state, memory = carry
            recurrent = lax.dot_general(
                state.astype(self.dtype), kernel, (((1,), (0,)), ((), ())), preferred_element_type=wide
            )
            enter, forget, new, leave = jnp.moveaxis(given + recurrent + bias[None], 1, 0)
            memory = jax.nn.sigmoid(forget) * memory + jax.nn.sigmoid(enter) * jnp.tanh(new)
            state = jax.nn.sigmoid(leave) * jnp.tanh(memory)
            return (state, memory), state

        start = jnp.zeros((batch_size, width), wide)
        _, states = lax.scan(step, (start, start), jnp.moveaxis(gates, 1, 0))
        return jnp.moveaxis(states, 0, 1).astype(self.dtype), None
