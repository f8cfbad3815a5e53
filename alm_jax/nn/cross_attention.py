"""Attention of a decoder to the states of an encoder.

Keys and values of all layers are computed at once, after the encoder: training and generation then run the same code,
and a generation step reads them from a `KVCache` that is filled once.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alm_jax.errors import UserError
from alm_jax.nn.dense import Dense
from alm_jax.nn.kv_cache import KVCache
from alm_jax.nn.parameter import truncated_normal
from alm_jax.ops.attention import attend


class Seq2SeqCache(NamedTuple):
    """Cache of a generating decoder: of the text so far, and of the source, which does not change."""

    text: KVCache
    source: KVCache


def check_source(states: Float[Array, "B S D"] | None, cache: KVCache | Seq2SeqCache | None) -> None:
    """Raises UserError unless the source is given exactly once: with the prompt, and afterwards by the cache."""
    if (states is None) != isinstance(cache, Seq2SeqCache):
        raise UserError(
            "the decoder reads either the encoder's states or those of a Seq2SeqCache: give states with the prompt, "
            "and then the cache that came back, alone"
        )


class CrossKeyValue(nn.Module):
    """The encoder's states to the keys and values of every layer of the decoder.

    Parameters: ``key`` and ``value`` kernels [layers D H K], and biases [layers H K] where ``use_bias``.
    """

    num_layers: int
    num_heads: int
    head_dim: int
    dtype: jnp.dtype
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = truncated_normal

    @nn.compact
    def __call__(self, states: Float[Array, "B S D"], mask: Bool[Array, "B S"]) -> KVCache:
        dense = nn.vmap(
            Dense,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            axis_size=self.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )

        def project(name: str) -> Array:
            size, axes = (self.num_heads, self.head_dim), ("embed", "heads", "head_dim")
            return dense(size, axes, self.dtype, self.use_bias, self.kernel_init, name=name)(states)

        length = jnp.asarray(states.shape[1], jnp.int32)
        return KVCache(key=project("key"), value=project("value"), mask=mask, length=length)


class CrossAttention(nn.Module):
    """x -> W_o attend(W_q x, key, value) for one layer's keys and values.

    Parameters: ``query`` kernel [D H K], ``out`` kernel [H K D], and a bias each where ``use_bias``.
    """

    num_heads: int
    head_dim: int
    dtype: jnp.dtype
    use_bias: bool = True
    scale: float | None = None
    """Dtype of the products, as in `attend`."""
    dropout_rate: float = 0.0
    kernel_init: nn.initializers.Initializer = truncated_normal
    query_init: nn.initializers.Initializer = truncated_normal

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        key: Float[Array, "B S H K"],
        value: Float[Array, "B S H K"],
        mask: Bool[Array, "B S"],
        dropout_key: Array | None = None,
    ) -> Float[Array, "B L D"]:
        """Applies the attention; ``mask`` is True where the encoder's state is of a real token."""
        size, axes = (self.num_heads, self.head_dim), ("embed", "heads", "head_dim")
        query = Dense(size, axes, self.dtype, self.use_bias, self.query_init, name="query")(x)
        attended = attend(
            query,
            key,
            value,
            mask=mask[:, None, None, :],
            scale=self.scale,
            dropout_rate=self.dropout_rate,
            dropout_key=dropout_key,
        )
        axes = ("heads", "head_dim", "embed")
        return Dense((x.shape[-1],), axes, self.dtype, self.use_bias, self.kernel_init, name="out")(attended)
