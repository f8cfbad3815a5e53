"""Cache of the keys and values of earlier tokens, for generation: one stack for all layers, of static shape.

A cache has as many slots a row as the longest text needs. `reserve` gives the next slots, the same for every row, to
new tokens, many (a prompt) or one (a step); each layer then `append`s its keys and values there, in place where the
cache is carried through a scan over layers and donated to jit, and attends to all the slots that `reserve` says are
visible. Padding, left, right or between, takes slots that are never attended to, and no positions.

    cache = make_cache(config.cache_shape, num_rows, num_slots, dtype)
    cache, positions, visible = reserve(cache, mask)                    # once a forward pass
    cache, keys, values = append(cache, layer, key, value)              # in each layer
    attended = attend(query, keys, values, mask=visible)

Keys and values of cross-attention do not grow: such a cache is filled once and then only `read`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from alm_jax.errors import UserError


class CacheShape(NamedTuple):
    """Sizes of a model's cache, from its config."""

    num_layers: int
    num_heads: int
    """Heads of keys and values: fewer than query heads in grouped-query attention."""
    head_dim: int


class KVCache(NamedTuple):
    """The cache, a tree of arrays; letters as in alm_jax/types.py, S slots."""

    key: Float[Array, "layers B S H K"]
    value: Float[Array, "layers B S H K"]
    mask: Bool[Array, "B S"]
    """True where a slot holds a real token."""
    length: Int[Array, ""]
    """Number of slots in use, the same for every row; int32."""


CACHE_AXES: dict[str, tuple[str, ...]] = {
    "key": ("layers", "batch", "slots", "heads", "head_dim"),
    "value": ("layers", "batch", "slots", "heads", "head_dim"),
    "mask": ("batch", "slots"),
    "length": (),
}
"""Axis names of each array: heads are spread over devices like those of the parameters."""


def make_cache(shape: CacheShape, num_rows: int, num_slots: int, dtype: DTypeLike) -> KVCache:
    """Makes an empty cache; ``dtype`` is that of the model's matrix products."""
    stack = (shape.num_layers, num_rows, num_slots, shape.num_heads, shape.head_dim)
    return KVCache(
        key=jnp.zeros(stack, dtype),
        value=jnp.zeros(stack, dtype),
        mask=jnp.zeros((num_rows, num_slots), bool),
        length=jnp.zeros((), jnp.int32),
    )


def reserve(
    cache: KVCache, mask: Bool[Array, "B L"]
) -> tuple[KVCache, Int[Array, "B L"], Bool[Array, "B 1 L S"]]:
    """Reserves the next L slots for new tokens; returns the cache, the tokens' positions, and the slots that each may
    attend to.

    The caller must ensure that ``cache.length`` + L is at most the number of slots; beyond it the last slots are
    overwritten.

    Args:
        mask: True for real tokens; others take a slot that no token sees.

    Returns:
        The cache, for `append`; position of each token among the real tokens of its row, counted from 0; for
        `attend`, True where a token (row) sees a slot: real tokens up to its own.

    Raises:
        UserError: L is more than all the slots.
    """
    num_tokens, num_slots = mask.shape[1], cache.mask.shape[1]
    if num_tokens > num_slots:
        raise UserError(
            f"{num_tokens} tokens do not fit into a cache of {num_slots} slots: make it as long as the prompt and what "
            "shall be generated"
        )
    before = jnp.sum(cache.mask, axis=1, keepdims=True, dtype=jnp.int32)
    taken = lax.dynamic_update_slice(cache.mask, mask, (jnp.zeros_like(cache.length), cache.length))
    own_slots = cache.length + jnp.arange(num_tokens)
    is_before = jnp.arange(num_slots)[None, :] <= own_slots[:, None]
    visible = taken[:, None, None, :] & is_before[None, None, :, :]
    return (
        cache._replace(mask=taken, length=cache.length + num_tokens),
        before + count_positions(mask),
        visible,
    )


def append(
    cache: KVCache,
    layer: Int[Array, ""],
    key: Float[Array, "B L H K"],
    value: Float[Array, "B L H K"],
) -> tuple[KVCache, Float[Array, "B S H K"], Float[Array, "B S H K"]]:
    """Writes one layer's keys and values into the slots reserved last, and returns all slots of that layer."""
    zero = jnp.zeros_like(cache.length)
    start = (layer.astype(zero.dtype), zero, cache.length - key.shape[1], zero, zero)
    cache = cache._replace(
        key=lax.dynamic_update_slice(cache.key, key[None].astype(cache.key.dtype), start),
        value=lax.dynamic_update_slice(cache.value, value[None].astype(cache.value.dtype), start),
    )
    return cache, *read(cache, layer)


def read(cache: KVCache, layer: Int[Array, ""]) -> tuple[Float[Array, "B S H K"], Float[Array, "B S H K"]]:
    """Returns keys and values of one layer."""
    return (
        lax.dynamic_index_in_dim(cache.key, layer, keepdims=False),
        lax.dynamic_index_in_dim(cache.value, layer, keepdims=False),
    )


def count_positions(mask: Bool[Array, "B L"]) -> Int[Array, "B L"]:
    """Position of each real token among those of its row, counted from 0; padding has the position of the token
    before it."""
    return jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)


def count_segment_positions(mask: Bool[Array, "B L"], segments: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """Like `count_positions`, counted from 0 in each run of equal ``segments``."""
    count = jnp.cumsum(mask, axis=1, dtype=jnp.int32)
    begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
    before = lax.cummax(jnp.where(begins, count - mask, 0), axis=1)
    return jnp.maximum(count - before - 1, 0)
