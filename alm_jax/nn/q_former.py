"""Blocks of the Q-Former: BERT's, where learned queries also attend to audio in some of them.

Queries and text stand in one sequence and share self-attention; after it each has a feed-forward layer of its own.
(BLIP-2, Li et al. 2023, https://arxiv.org/abs/2301.12597, section 3.1)
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alm_jax.nn.attention import SelfAttention
from alm_jax.nn.cross_attention import CrossAttention
from alm_jax.nn.dropout import dropout
from alm_jax.nn.mlp import Mlp
from alm_jax.nn.norm import LayerNorm
from alm_jax.nn.parameter import truncated_normal


class QFormerBlock(nn.Module):
    """x = norm(x + self(x)); queries = norm(queries + cross(queries)); x = norm(x + mlp(x)), an MLP for each kind.

    Parameters: ``attention``, ``attention_norm``; ``cross_attention``, ``cross_attention_norm`` where it attends to
    audio; ``query_mlp``, ``query_mlp_norm`` where there are queries; ``mlp``, ``mlp_norm`` where there is text.
    """

    num_heads: int
    mlp_dim: int
    epsilon: float
    dropout_rate: float
    """Dropout rate of attention weights and every branch; needs the "dropout" stream unless 0."""
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer = truncated_normal

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        num_queries: int,
        visible: Bool[Array, "B 1 Q S"],
        key: Float[Array, "B N H K"] | None,
        value: Float[Array, "B N H K"] | None,
        audio_mask: Bool[Array, "B N"] | None,
    ) -> Float[Array, "B S D"]:
        """The first ``num_queries`` of ``x`` are queries, the rest text.

        ``visible`` is True where the position (row) may attend to another (column); ``key`` and ``value`` are the
        audio's, None in a block that does not attend to it.
        """
        rate = self.dropout_rate

        def make_key() -> Array | None:
            return self.make_rng("dropout") if rate > 0.0 else None

        def add(x: Array, branch: Array, name: str) -> Array:
            return LayerNorm(self.dtype, self.epsilon, name=name)(x + dropout(branch, rate, make_key()))

        def feed(x: Array, name: str) -> Array:
            return add(x, Mlp(self.mlp_dim, self.dtype, self.kernel_init, name=name)(x), f"{name}_norm")

        init = self.kernel_init
        attention = SelfAttention(
            self.num_heads, self.dtype, dropout_rate=rate, kernel_init=init, name="attention"
        )
        x = add(x, attention(x, mask=visible, dropout_key=make_key()), "attention_norm")
        queries, text = x[:, :num_queries], x[:, num_queries:]
        parts = []
        if num_queries:
            if key is not None:
                assert value is not None
                assert audio_mask is not None
                cross = CrossAttention(
                    self.num_heads,
                    x.shape[-1] // self.num_heads,
                    self.dtype,
                    dropout_rate=rate,
                    kernel_init=init,
                    query_init=init,
                    name="cross_attention",
                )
                attended = cross(queries, key, value, audio_mask, make_key())
                queries = add(queries, attended, "cross_attention_norm")
            parts.append(feed(queries, "query_mlp"))
        if text.shape[1]:
            parts.append(feed(text, "mlp"))
        return jnp.concatenate(parts, axis=1)


class QFormerGroup(nn.Module):
    """``size`` blocks, of which the first attends to audio.

    Written as the body of `nn.scan` over groups: returns (x, None). Parameters: ``block_0``, ``block_1``, ...
    """

    size: int
    num_queries: int
    num_heads: int
    mlp_dim: int
    epsilon: float
    dropout_rate: float
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer = truncated_normal

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        key: Float[Array, "B N H K"] | None,
        value: Float[Array, "B N H K"] | None,
        visible: Bool[Array, "B 1 Q S"],
        audio_mask: Bool[Array, "B N"] | None,
    ) -> tuple[Float[Array, "B S D"], None]:
        """As `QFormerBlock`."""
        for index in range(self.size):
            block = QFormerBlock(
                self.num_heads,
                self.mlp_dim,
                self.epsilon,
                self.dropout_rate,
                self.dtype,
                self.kernel_init,
                name=f"block_{index}",
            )
            audio = (key, value) if index == 0 else (None, None)
            x = block(x, self.num_queries, visible, *audio, audio_mask)
        return x, None
