"""Text from a language model: greedy, drawn or by beam search; one program for the prompt and all steps."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from alm_jax.encoders.family import Family, apply
from alm_jax.errors import UserError
from alm_jax.models.beam_search import Beam, search
from alm_jax.models.generated import Generated, Read
from alm_jax.models.sampling import Sample, draw
from alm_jax.nn.kv_cache import make_cache
from alm_jax.types import PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Greedy:
    """Greedy decoding: the most likely token at every step."""


GREEDY = Greedy()
Strategy: TypeAlias = Greedy | Sample | Beam
"""Strategy that chooses tokens."""


def generate(
    family: Family,
    config: Any,
    variables: PyTree,
    ids: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    *inputs: Array,
    num_new_tokens: int,
    end_id: int | Int[Array, ""],
    strategy: Strategy = GREEDY,
    key: Array | None = None,
    pad_id: int = 0,
    dtype: DTypeLike = jnp.float32,
    method: str = "__call__",
    **options: Any,
) -> Generated:
    """What follows each prompt, of a decoder that takes ``cache`` and ``output``. Wants `jit`.

    Args:
        ids: prompts, padded left or right; at least one real token a row.
        inputs: what the model reads with a prompt besides: the recordings of Qwen2-Audio.
        num_new_tokens: at most so many. Rows that end earlier wait for the others; no step follows the last end.
        end_id: the token that ends a row; -1 for none.
        strategy: how tokens are chosen.
        key: of what `Sample` draws. The same key draws the same tokens on any mesh.
        dtype: of the matrix products, and of the cache.
        method: of the model, that reads: "decode" of a model with an encoder.
        options: of the pass over the prompt: ``embeds`` and ``embeds_mask``, or the encoder's states.

    Raises:
        UserError: ``num_new_tokens`` is not positive, there is no key to draw by, or there are more beams than words.
    """
    if num_new_tokens < 1:
        raise UserError(f"num_new_tokens is {num_new_tokens}; it must be at least 1")
    read = functools.partial(apply, family, config, variables, dtype=dtype, method=method, output="next")
    num_rows, length = ids.shape
    # The last token that is written is never read.
    cache = make_cache(config.cache_shape, num_rows, length + num_new_tokens - 1, dtype)
    logits, cache = read(ids, mask, *inputs, cache=cache, **options)
    limits: dict[str, Any] = {"num_new_tokens": num_new_tokens, "end_id": end_id, "pad_id": pad_id}
    if isinstance(strategy, Beam):
        return search(read, logits, cache, strategy, **limits)
    return _write_on(read, logits, cache, _chooser(strategy, key), **limits)


def _chooser(strategy: Greedy | Sample, key: Array | None) -> Callable[[Array, Array], Array]:
    """(logits [B V], number of the token) -> tokens [B]."""
    if isinstance(strategy, Greedy):
        return lambda logits, _: jnp.argmax(logits, axis=-1)
    if key is None:
        raise UserError("a Sample draws its tokens: give a key")
    return lambda logits, at: draw(jax.random.fold_in(key, at), logits, strategy)


class _Progress(NamedTuple):
    """Carried from one token to the next."""

    num_written: Int[Array, ""]
    generated: Generated
    has_ended: Bool[Array, " B"]
    cache: PyTree


def _write_on(
    read: Read,
    logits: Float[Array, "B V"],
    cache: PyTree,
    choose: Callable[[Array, Array], Array],
    *,
    num_new_tokens: int,
    end_id: int | Int[Array, ""],
    pad_id: int,
) -> Generated:
    """One token after the other, each chosen for good."""

    def write(progress: _Progress, logits: Array, cache: PyTree) -> _Progress:
        at, has_ended, before = progress.num_written, progress.has_ended, progress.generated
        logits = logits.astype(jnp.float32)
        token = choose(logits, at)
        chosen = jnp.take_along_axis(logits, token[:, None], axis=-1, mode="clip")[:, 0]
        log_prob = chosen - jax.nn.logsumexp(logits, axis=-1)
        token = jnp.where(has_ended, pad_id, token).astype(before.ids.dtype)
        generated = Generated(
            lax.dynamic_update_index_in_dim(before.ids, token, at, axis=1),
            lax.dynamic_update_index_in_dim(before.mask, ~has_ended, at, axis=1),
            before.score + jnp.where(has_ended, 0.0, log_prob),
        )
        return _Progress(at + 1, generated, has_ended | (token == end_id), cache)

    def goes_on(progress: _Progress) -> Array:
        return (progress.num_written < num_new_tokens) & ~jnp.all(progress.has_ended)

    def step(progress: _Progress) -> _Progress:
        token = lax.dynamic_index_in_dim(progress.generated.ids, progress.num_written - 1, axis=1)
        return write(progress, *read(token, ~progress.has_ended[:, None], cache=progress.cache))

    num_rows = logits.shape[0]
    nothing = Generated(
        jnp.full((num_rows, num_new_tokens), pad_id, jnp.int32),
        jnp.zeros((num_rows, num_new_tokens), bool),
        jnp.zeros(num_rows, jnp.float32),
    )
    start = _Progress(jnp.int32(0), nothing, jnp.zeros(num_rows, bool), cache)
    return lax.while_loop(goes_on, step, write(start, logits, cache)).generated
