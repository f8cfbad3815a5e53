"""Self-attention of WavLM and BEATs: T5's bias of positions, scaled by a gate computed from the query.

Chi et al. 2022, https://arxiv.org/abs/2106.16138, section 3.1, as WavLM (https://arxiv.org/abs/2110.13900, section
3.1) and BEATs have it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from alm_jax.nn.dense import Dense
from alm_jax.nn.parameter import declare, ones
from alm_jax.ops.attention import attend

_GATES, _SUMMANDS = 2, 4


class GatedRelativeAttention(nn.Module):
    """x -> W_o softmax(q k^T / sqrt(K) + gate * bias) v; the gate is one number for each head and query.

    gate = a (b c - 1) + 2, with (a, b) = sigmoid of two sums of four numbers each, W_g q + b_g, and a number c for each
    head. q is the query before it is divided by sqrt(K).

    Parameters: ``qkv`` and ``out`` as `SelfAttention`'s; ``gate`` kernel [K 2 4] and bias [2 4], which all heads share,
    and ``gate_scale`` [H], the c.
    """

    num_heads: int
    dtype: jnp.dtype
    gain: float = 1.0
    """Gain of the initialisation of value and output (DeepNorm's beta); query and key have 1."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N D"],
        *,
        bias: Float[Array, "rows H N N"],
        mask: Bool[Array, "B N"] | None = None,
    ) -> Float[Array, "B N D"]:
        """Attends; ``bias`` is float32 or wider, one for each row or one for all; ``mask`` is True for tokens that
        may be attended to."""
        width = x.shape[-1]
        head_dim = width // self.num_heads

        def init_qkv(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
            # Xavier's N(0, 2 / (inputs + outputs)) for each of the three; only the value has the gain.
            kernel = jax.random.normal(key, (shape[0], 3, width), dtype) * (2.0 / (shape[0] + width)) ** 0.5
            return (kernel * jnp.asarray([1.0, 1.0, self.gain], dtype)[None, :, None]).reshape(shape)

        axes = ("embed", "qkv", "heads", "head_dim")
        qkv = Dense((3, self.num_heads, head_dim), axes, self.dtype, kernel_init=init_qkv, name="qkv")(x)
        query, key, value = (qkv[..., i, :, :] for i in range(3))

        xavier = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")
        gate_axes = ("head_dim", "gates", "summands")
        gates = Dense((_GATES, _SUMMANDS), gate_axes, self.dtype, kernel_init=xavier, name="gate")(query)
        scale = declare(self, "gate_scale", ones, (self.num_heads,), ("heads",))
        a, b = jnp.moveaxis(nn.sigmoid(jnp.sum(gates.astype(bias.dtype), axis=-1)), -1, 0)  # each [B N H]
        gate = a * (b * scale[None, None] - 1.0) + 2.0

        attended = attend(
            query,
            key,
            value,
            bias=gate.swapaxes(1, 2)[..., None] * bias,
            mask=None if mask is None else mask[:, None, None, :],
        )
        out_init = nn.initializers.variance_scaling(self.gain**2, "fan_avg", "normal")
        out_axes = ("heads", "head_dim", "embed")
        return Dense((width,), out_axes, self.dtype, kernel_init=out_init, name="out")(attended)
