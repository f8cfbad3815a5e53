"""Self-attention of T5: matrices without biases, and positions as a bias added to the scores."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.nn.dense import Dense
from alm_jax.nn.kv_cache import KVCache, append
from alm_jax.ops.attention import attend

FAN_IN = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
"""T5's initialisation of matrices: N(0, 1 / fan-in)."""


def query_init(head_dim: int) -> nn.initializers.Initializer:
    """T5's initialisation of queries, N(0, 1 / (fan-in K)): the 1 / sqrt(K) that its scores are not divided by."""
    return nn.initializers.variance_scaling(1.0 / head_dim, "fan_in", "normal")


class RelativeAttention(nn.Module):
    """x -> W_o softmax(W_q x (W_k x)^T + bias) W_v x, without biases and without 1 / sqrt(K).

    Raffel et al. 2020 (https://arxiv.org/abs/1910.10683). Parameters: ``query``, ``key`` and ``value`` kernels
    [D H K], ``out`` kernel [H K D].
    """

    num_heads: int
    head_dim: int
    dtype: jnp.dtype
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        layer: Int[Array, ""],
        cache: KVCache | None,
        visible: Bool[Array, "B 1 #L S"],
        bias: Float[Array, "#B H L S"],
        dropout_key: Array | None = None,
    ) -> tuple[Float[Array, "B L D"], KVCache | None]:
        """Applies the layer; ``layer`` is its number in the cache, ``visible`` is True where a token attends to
        another."""

        def project(name: str, init: nn.initializers.Initializer) -> Array:
            size, axes = (self.num_heads, self.head_dim), ("embed", "heads", "head_dim")
            return Dense(size, axes, self.dtype, use_bias=False, kernel_init=init, name=name)(x)

        query = project("query", query_init(self.head_dim))
        key, value = project("key", FAN_IN), project("value", FAN_IN)
        if cache is not None:
            cache, key, value = append(cache, layer, key, value)
        attended = attend(
            query,
            key,
            value,
            bias=bias,
            mask=visible,
            scale=1.0,
            dropout_rate=self.dropout_rate,
            dropout_key=dropout_key,
        )
        size, axes = (x.shape[-1],), ("heads", "head_dim", "embed")
        out = Dense(size, axes, self.dtype, use_bias=False, kernel_init=FAN_IN, name="out")
        return out(attended), cache
