"""Text from a language model: greedy decoding, one program for the prompt and all steps."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Int

from alm_jax.encoders.family import Family, apply
from alm_jax.errors import UserError
from alm_jax.nn.kv_cache import make_cache
from alm_jax.types import PyTree


class Generated(NamedTuple):
    """What was written after a prompt."""

    ids: Int[Array, "B new"]
    """A row that ended has ``end_id`` for its last token; what comes after it is ``pad_id``."""
    mask: Bool[Array, "B new"]
    """True for the tokens written, ``end_id`` among them."""


class _Progress(NamedTuple):
    """Carried from one token to the next."""

    num_written: Int[Array, ""]
    generated: Generated
    has_ended: Bool[Array, " B"]
    cache: PyTree


def generate_greedily(
    family: Family,
    config: Any,
    variables: PyTree,
    ids: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    *inputs: Array,
    num_new_tokens: int,
    end_id: int | Int[Array, ""],
    pad_id: int = 0,
    dtype: DTypeLike = jnp.float32,
    method: str = "__call__",
    **options: Any,
) -> Generated:
    """The likeliest token, again and again; of a decoder that takes ``cache`` and ``output``. Wants `jit`.

    Args:
        ids: prompts, padded left or right; at least one real token a row.
        inputs: what the model reads with a prompt besides: the recordings of Qwen2-Audio.
        num_new_tokens: at most so many. Rows that end earlier wait for the others; no step follows the last end.
        end_id: the token that ends a row; -1 for none.
        dtype: of the matrix products, and of the cache.
        method: of the model, that reads: "decode" of a model with an encoder.
        options: of the pass over the prompt: ``embeds`` and ``embeds_mask``, or the encoder's states.

    Raises:
        UserError: ``num_new_tokens`` is not positive.
    """
    if num_new_tokens < 1:
        raise UserError(f"num_new_tokens is {num_new_tokens}; it must be at least 1")
    read = functools.partial(apply, family, config, variables, dtype=dtype, method=method, output="next")
    num_rows, length = ids.shape

    def write(progress: _Progress, logits: Array, cache: PyTree) -> _Progress:
        at, has_ended = progress.num_written, progress.has_ended
        token = jnp.where(has_ended, pad_id, jnp.argmax(logits, axis=-1)).astype(ids.dtype)
        generated = Generated(
            lax.dynamic_update_index_in_dim(progress.generated.ids, token, at, axis=1),
            lax.dynamic_update_index_in_dim(progress.generated.mask, ~has_ended, at, axis=1),
        )
        return _Progress(at + 1, generated, has_ended | (token == end_id), cache)

    def goes_on(progress: _Progress) -> Array:
        return (progress.num_written < num_new_tokens) & ~jnp.all(progress.has_ended)

    def step(progress: _Progress) -> _Progress:
        token = lax.dynamic_index_in_dim(progress.generated.ids, progress.num_written - 1, axis=1)
        return write(progress, *read(token, ~progress.has_ended[:, None], cache=progress.cache))

    # The last token that is written is never read.
    cache = make_cache(config.cache_shape, num_rows, length + num_new_tokens - 1, dtype)
    nothing = Generated(
        jnp.full((num_rows, num_new_tokens), pad_id, ids.dtype), jnp.zeros((num_rows, num_new_tokens), bool)
    )
    start = _Progress(jnp.int32(0), nothing, jnp.zeros(num_rows, bool), cache)
    first = write(start, *read(ids, mask, *inputs, cache=cache, **options))
    return lax.while_loop(goes_on, step, first).generated
