"""Self-attention of generating models: a token attends to itself and to earlier tokens, of this pass or of the cache.

A prefix, for example of audio and a prompt, may be read in both directions: its tokens attend to each other.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from alm_jax.errors import UserError
from alm_jax.nn.dense import Dense
from alm_jax.nn.kv_cache import KVCache, append, count_positions, count_segment_positions, reserve
from alm_jax.nn.parameter import truncated_normal
from alm_jax.nn.rotary import RotaryTables, rotate
from alm_jax.ops.attention import attend
from alm_jax.ops.attention_masks import causal_mask, prefix_lm_mask
from alm_jax.ops.packing import same_segment


def look_back(
    cache: KVCache | None,
    mask: Bool[Array, "B L"],
    prefix: Bool[Array, "B L"] | None = None,
    segments: Int[Array, "B L"] | None = None,
) -> tuple[KVCache | None, Int[Array, "B L"], Bool[Array, "B 1 L S"]]:
    """What all layers of a pass share: the cache with room for its tokens, their positions, and what each may see.

    Without a cache a token sees the tokens of this pass up to its own (S is L), with one also those before.
    Positions count a row's real tokens from 0. Padding (``mask`` False) is seen by none. Tokens where ``prefix`` is
    True, which come before the others of the pass, are seen by all of its tokens. Tokens of different ``segments``,
    each of which lies together, do not see each other, and positions count from 0 in each; that takes a pass without a
    cache.

    Raises:
        UserError: there are segments and a cache.
    """
    if cache is None:
        visible = causal_mask(mask) if prefix is None else prefix_lm_mask(mask, prefix)
        if segments is None:
            return None, count_positions(mask), visible
        return None, count_segment_positions(mask, segments), visible & same_segment(segments)[:, None]
    if segments is not None:
        raise UserError("segments are packed examples, and a cache holds one text a row: give one of them")
    reserved, positions, visible = reserve(cache, mask)
    if prefix is not None:
        start = (jnp.zeros_like(cache.length), cache.length)
        seen = lax.dynamic_update_slice(jnp.zeros_like(cache.mask), mask & prefix, start)
        visible |= seen[:, None, None, :]
    return reserved, positions, visible


def attend_visible(
    query: Float[Array, "B L H K"],
    key: Float[Array, "B S G K"],
    value: Float[Array, "B S G K"],
    *,
    visible: Bool[Array, "B 1 L S"],
    is_whole: bool,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> Float[Array, "B L H K"]:
    """`attend` by `look_back`'s ``visible``; ``is_whole``: there is no cache, prefix or segments.

    Then the keys are those of this pass, and ``visible`` is a triangle times the mask of real keys, its last row,
    which fused kernels support.
    """
    mask = visible[..., -1:, :] if is_whole else visible
    return attend(
        query,
        key,
        value,
        mask=mask,
        is_causal=is_whole,
        dropout_rate=dropout_rate,
        dropout_key=dropout_key,
    )


class CausalAttention(nn.Module):
    """x -> W_o attend(W_q x, W_k x, W_v x) of GPT-2, with biases, and no positions of its own.

    Parameters: ``qkv`` kernel [D 3 H K] and bias [3 H K], ``out`` kernel [H K D] and bias [D].
    """

    num_heads: int
    dtype: jnp.dtype
    dropout_rate: float = 0.0
    kernel_init: nn.initializers.Initializer = truncated_normal
    has_prefix: bool = False
    """Whether `look_back` was given a prefix or segments."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        layer: Int[Array, ""],
        cache: KVCache | None,
        visible: Bool[Array, "B 1 L S"],
        dropout_key: Array | None = None,
    ) -> tuple[Float[Array, "B L D"], KVCache | None]:
        """Applies the layer; ``layer`` is its number in the cache, ``visible`` is `look_back`'s."""
        width = x.shape[-1]
        qkv = Dense(
            (3, self.num_heads, width // self.num_heads),
            ("embed", "qkv", "heads", "head_dim"),
            self.dtype,
            kernel_init=self.kernel_init,
            name="qkv",
        )(x)
        query, key, value = (qkv[..., i, :, :] for i in range(3))
        is_whole = cache is None and not self.has_prefix
        if cache is not None:
            cache, key, value = append(cache, layer, key, value)
        attended = attend_visible(
            query,
            key,
            value,
            visible=visible,
            is_whole=is_whole,
            dropout_rate=self.dropout_rate,
            dropout_key=dropout_key,
        )
        axes = ("heads", "head_dim", "embed")
        return Dense((width,), axes, self.dtype, kernel_init=self.kernel_init, name="out")(attended), cache


class RotaryAttention(nn.Module):
    """x -> W_o attend(R W_q x, R W_k x, W_v x) of Llama and Qwen2: R turns by position, groups of queries share keys.

    Parameters: ``query`` kernel [D H K], ``key`` and ``value`` kernels [D G K], each with a bias where
    ``use_qkv_bias``; ``out`` kernel [H K D]. They are separate, so that an adapter can choose among them.
    """

    num_heads: int
    num_kv_heads: int
    """Heads of keys and values; divides num_heads."""
    head_dim: int
    dtype: jnp.dtype
    use_qkv_bias: bool
    kernel_init: nn.initializers.Initializer = truncated_normal
    has_prefix: bool = False
    """Whether `look_back` was given a prefix or segments."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        layer: Int[Array, ""],
        cache: KVCache | None,
        visible: Bool[Array, "B 1 L S"],
        tables: RotaryTables,
    ) -> tuple[Float[Array, "B L D"], KVCache | None]:
        """Applies the layer; ``layer`` is its number in the cache, ``visible`` is `look_back`'s."""

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
        is_whole = cache is None and not self.has_prefix
        if cache is not None:
            cache, key, value = append(cache, layer, key, value)
        attended = attend_visible(query, key, value, visible=visible, is_whole=is_whole)
        out = Dense(
            (x.shape[-1],),
            ("heads", "head_dim", "embed"),
            self.dtype,
            use_bias=False,
            kernel_init=self.kernel_init,
            name="out",
        )
        return out(attended), cache
