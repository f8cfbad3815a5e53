"""Multi-head self-attention with one fused product for query, key and value."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alm_jax.nn.dense import Dense
from alm_jax.nn.parameter import truncated_normal
from alm_jax.ops.attention import attend


class SelfAttention(nn.Module):
    """x -> W_o attend(W_q x, W_k x, W_v x).

    Parameters: ``qkv`` kernel [D 3 H K] and bias [3 H K], ``out`` kernel [H K D] and bias [D].
    """

    num_heads: int
    dtype: jnp.dtype
    use_qkv_bias: bool = True
    dropout_rate: float = 0.0
    kernel_init: nn.initializers.Initializer = truncated_normal

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*B N D"],
        *,
        bias: Float[Array, "..."] | None = None,
        mask: Bool[Array, "..."] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[Array, "*B N D"]:
        width = x.shape[-1]
        head_dim = width // self.num_heads
        qkv = Dense(
            (3, self.num_heads, head_dim),
            ("embed", "qkv", "heads", "head_dim"),
            self.dtype,
            use_bias=self.use_qkv_bias,
            kernel_init=self.kernel_init,
            name="qkv",
        )(x)
        query, key, value = (qkv[..., i, :, :] for i in range(3))
        attended = attend(
            query, key, value, bias=bias, mask=mask, dropout_rate=self.dropout_rate, dropout_key=dropout_key
        )
        axes = ("heads", "head_dim", "embed")
        return Dense((width,), axes, self.dtype, kernel_init=self.kernel_init, name="out")(attended)
