"""Attentional pooling: from the states of tokens to a fixed number of vectors, each with its own query."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alm_jax.nn.cross_attention import CrossAttention, CrossKeyValue
from alm_jax.nn.norm import LayerNorm
from alm_jax.nn.parameter import declare, truncated_normal


class AttentionalPooler(nn.Module):
    """norm(attention of trained queries to the states); one layer, of its own width, with neither residual nor MLP.

    CoCa (Yu et al. 2022, https://arxiv.org/abs/2205.01917, section 3.2): one query for a contrastive loss, many for a
    decoder. Queries and states are normalised first, as in open_clip's implementation.

    Parameters: ``queries`` [n D], ``query_norm``, ``states_norm``, ``key_value`` (`CrossKeyValue` of one layer),
    ``attention`` (`CrossAttention`), ``norm``.
    """

    num_queries: int
    width: int
    num_heads: int
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer = truncated_normal

    @nn.compact
    def __call__(self, states: Float[Array, "B N A"], mask: Bool[Array, "B N"]) -> Float[Array, "B n D"]:
        """Pools ``states``; ``mask`` is True where a state is of real audio."""
        init, head_dim = self.kernel_init, self.width // self.num_heads
        shape = (self.num_queries, self.width)
        queries = declare(self, "queries", truncated_normal, shape, ("queries", "embed"))
        queries = LayerNorm(self.dtype, name="query_norm")(queries)
        states = LayerNorm(self.dtype, name="states_norm")(states)
        key_value = CrossKeyValue(
            1, self.num_heads, head_dim, self.dtype, kernel_init=init, name="key_value"
        )(states, mask)
        x = jnp.broadcast_to(queries[None], (states.shape[0], *shape))
        pooled = CrossAttention(
            self.num_heads, head_dim, self.dtype, kernel_init=init, query_init=init, name="attention"
        )(x, key_value.key[0], key_value.value[0], mask)
        return LayerNorm(self.dtype, name="norm")(pooled)
