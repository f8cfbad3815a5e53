"""Self-attention of generating models: a token sees itself and those before it, in this pass or in the cache."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.nn.dense import Dense
from alm_jax.nn.kv_cache import KVCache, append, count_positions, reserve
from alm_jax.nn.parameter import truncated_normal
from alm_jax.nn.rotary import RotaryTables, rotate
from alm_jax.ops.attention import attend
from alm_jax.ops.attention_masks import causal_mask


def look_back(
    cache: KVCache | None, mask: Bool[Array, "B L"]
) -> tuple[KVCache | None, Int[Array, "B L"], Bool[Array, "B 1 L S"]]:
    """What all layers of a pass share: the cache with room for its tokens, their positions, and what each may see.

    Without a cache a token sees the tokens of this pass up to its own (S is L), with one also those before.
    Positions count a row's real tokens from 0. Padding (``mask`` False) is seen by none.
    """
    if cache is None:
        return None, count_positions(mask), causal_mask(mask)
    return reserve(cache, mask)


def attend_grouped(
    query: Float[Array, "B L H K"],
    key: Float[Array, "B S G K"],
    value: Float[Array, "B S G K"],
    *,
    mask: Bool[Array, "B 1 L S"],
) -> Float[Array, "B L H K"]:
    """Grouped-query attention: H / G consecutive heads of queries share a head of keys and values.

    Keys and values are not repeated: the queries of a group become queries of one head.
    (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245)
    """
    rows, length, num_heads, head_dim = query.shape
    num_groups = key.shape[2]
    if num_groups == num_heads:
        return attend(query, key, value, mask=mask)
    shared = num_heads // num_groups
    folded = query.reshape(rows, length, num_groups, shared, head_dim).swapaxes(2, 3)
    folded = folded.reshape(rows, length * shared, num_groups, head_dim)
    attended = attend(folded, key, value, mask=jnp.repeat(mask, shared, axis=2))
    attended = attended.reshape(rows, length, shared, num_groups, head_dim).swapaxes(2, 3)
    return attended.reshape(rows, length, num_heads, head_dim)


class CausalAttention(nn.Module):
    """x -> W_o attend(W_q x, W_k x, W_v x) of GPT-2, with biases, and no positions of its own.

    Parameters: ``qkv`` kernel [D 3 H K] and bias [3 H K], ``out`` kernel [H K D] and bias [D].
    """

    num_heads: int
    dtype: jnp.dtype
    dropout_rate: float = 0.0
    kernel_init: nn.initializers.Initializer = truncated_normal

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        layer: Int[Array, ""],
        cache: KVCache | None,
        visible: Bool[Array, "B 1 L S"],
        dropout_key: Array | None = None,
    ) -> tuple[Float[Array, "B L D"], KVCache | None]:
        """``layer`` is this one's number in the cache; ``visible`` is `look_back`'s."""
        width = x.shape[-1]
        qkv = Dense(
            (3, self.num_heads, width // self.num_heads),
            ("embed", "qkv", "heads", "head_dim"),
            self.dtype,
            kernel_init=self.kernel_init,
            name="qkv",
        )(x)
        query, key, value = (qkv[..., i, :, :] for i in range(3))
        if cache is not None:
            cache, key, value = append(cache, layer, key, value)
        attended = attend(
            query, key, value, mask=visible, dropout_rate=self.dropout_rate, dropout_key=dropout_key
        )
        axes = ("heads", "head_dim", "embed")
        return Dense((width,), axes, self.dtype, kernel_init=self.kernel_init, name="out")(attended), cache


class RotaryAttention(nn.Module):
    """x -> W_o attend(R W_q x, R W_k x, W_v x) of Llama and Qwen2: R turns by position, groups of queries share keys.

    Parameters: ``query`` kernel [D H K], ``key`` and ``value`` kernels [D G K], each with a bias where
    ``use_qkv_bias``; ``out`` kernel [H K D]. They are three, so that an adapter can choose among them.
    """

    num_heads: int
    num_kv_heads: int
    """Heads of keys and values; divides num_heads."""
    head_dim: int
    dtype: jnp.dtype
    use_qkv_bias: bool
    kernel_init: nn.initializers.Initializer = truncated_normal

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        layer: Int[Array, ""],
        cache: KVCache | None,
        visible: Bool[Array, "B 1 L S"],
        tables: RotaryTables,
    ) -> tuple[Float[Array, "B L D"], KVCache | None]:
        """``layer`` is this one's number in the cache; ``visible`` is `look_back`'s."""

        def project(name: str, num_heads: int) -> Array:
            return Dense(
                (num_heads, self.head_dim),
                ("embed", "heads", "head_dim"),
                self.dtype,
                use_bias=self.use_qkv_bias,
                kernel_init=self.kernel_init,
                name=name,
            )(x)

        query = rotate(project("query", self.num_heads), tables)
        key = rotate(project("key", self.num_kv_heads), tables)
        value = project("value", self.num_kv_heads)
        if cache is not None:
            cache, key, value = append(cache, layer, key, value)
        attended = attend_grouped(query, key, value, mask=visible)
        out = Dense(
            (x.shape[-1],),
            ("heads", "head_dim", "embed"),
            self.dtype,
            use_bias=False,
            kernel_init=self.kernel_init,
            name="out",
        )
        return out(attended), cache
