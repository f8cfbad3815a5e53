"""Beam search: the likeliest of the texts that keep several open at a time find.

As transformers' `generate(num_beams=k, do_sample=False)` with its defaults (early_stopping False): every step takes the
2 k likeliest continuations of a row's k open texts; those among the first k that end are candidates for the result,
by log-probability over length ** length_penalty, and the first k that do not end stay open. A row is done when it has k
candidates and the best open text, were it to end now, would be worse than all of them.

All rows and beams are one batch, B k rows of the model, each row's beams side by side. The prompt is read once a row.
A beam that goes on from another takes over that one's keys and values, within its row: where rows are spread over
devices, nothing moves between them.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from alm_jax.encoders.text.whisper_decoder import WhisperCache
from alm_jax.errors import UserError
from alm_jax.models.generated import Generated, Read
from alm_jax.nn.cross_attention import Seq2SeqCache
from alm_jax.nn.kv_cache import CACHE_AXES, KVCache

Cache: TypeAlias = KVCache | Seq2SeqCache | WhisperCache
NEVER = -1e9
"""The score of what is out of the race; transformers', and like it not -inf, so that lengths divide it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beam:
    """Beam search: the most likely text found."""

    num_beams: int = 4
    """Number of beams a row."""
    length_penalty: float = 1.0
    """Log-probabilities are divided by length to this power: 0 for their sum, 1 for their mean; above, longer texts
    win."""

    def __post_init__(self) -> None:
        if self.num_beams < 1:
            raise UserError(f"num_beams is {self.num_beams}; it must be at least 1")


class _Texts(NamedTuple):
    """k texts a row, the best first."""

    ids: Int[Array, "B k new"]
    length: Int[Array, "B k"]
    score: Float[Array, "B k"]


class _Progress(NamedTuple):
    """Carried from one token to the next."""

    num_written: Int[Array, ""]
    open: _Texts
    """Their scores are sums of log-probabilities."""
    parent: Int[Array, "B k"]
    """Which beam's keys and values each open text has in ``cache``."""
    ended: _Texts
    """Their scores are the result's; `NEVER` where there is no text yet."""
    can_improve: Bool[Array, " B"]
    cache: Cache


def search(
    read: Read,
    logits: Float[Array, "B V"],
    cache: Cache,
    beam: Beam,
    *,
    num_new_tokens: int,
    end_id: int | Int[Array, ""],
    pad_id: int,
) -> Generated:
    """The best text of each row.

    Args:
        read: the model.
        logits: of what follows each prompt.
        cache: with the prompts, and room for ``num_new_tokens`` - 1 tokens.
        beam: how wide.
        num_new_tokens: at most so many; a text that is so long counts as ended.
        end_id: the token that ends a text; -1 for none.
        pad_id: what stands after the end.

    Raises:
        UserError: the vocabulary has fewer than 2 k words.
    """
    (num_rows, vocab_size), k = logits.shape, beam.num_beams
    if vocab_size < 2 * k:
        raise UserError(
            f"num_beams is {k}; with a vocabulary of {vocab_size} it can be at most {vocab_size // 2}"
        )

    def penalise(score: Array, length: Array) -> Array:
        return score / length.astype(jnp.float32) ** beam.length_penalty

    def write(progress: _Progress, logits: Array, cache: Cache) -> _Progress:
        """The open texts and the best ended ones after one token more; ``logits`` [B k V]."""
        length = progress.num_written + 1
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32)) + progress.open.score[:, :, None]
        score, chosen = lax.top_k(log_probs.reshape(num_rows, -1), 2 * k)
        parent, token = chosen // vocab_size, (chosen % vocab_size).astype(progress.open.ids.dtype)
        ids = jnp.take_along_axis(progress.open.ids, parent[:, :, None], axis=1)
        ids = lax.dynamic_update_index_in_dim(ids, token, progress.num_written, axis=2)
        new = _Texts(ids, jnp.broadcast_to(length, score.shape), score)

        ends = (token == end_id) | (length == num_new_tokens)
        is_candidate = ends & (jnp.arange(2 * k) < k)[None, :] & progress.can_improve[:, None]
        candidates = new._replace(score=jnp.where(is_candidate, penalise(score, length), NEVER))
        merged: _Texts = jax.tree.map(lambda *pair: jnp.concatenate(pair, axis=1), progress.ended, candidates)
        ended = _take(merged, lax.top_k(merged.score, k)[1])
        # Of 2 k continuations of k texts at most k end, but at the last step, which nothing follows.
        stays = lax.top_k(jnp.where(ends, NEVER, score), k)[1]
        open_ = _take(new, stays)

        worst = ended.score[:, -1]
        can_improve = (worst <= NEVER) | (penalise(open_.score[:, 0], length) > worst)
        parent = jnp.take_along_axis(parent, stays, axis=1)
        return _Progress(length, open_, parent, ended, progress.can_improve & can_improve, cache)

    def goes_on(progress: _Progress) -> Array:
        return (progress.num_written < num_new_tokens) & jnp.any(progress.can_improve)

    def step(progress: _Progress) -> _Progress:
        token = lax.dynamic_index_in_dim(progress.open.ids, progress.num_written - 1, axis=2)
        followed = _follow(progress.cache, progress.parent)
        logits, cache = read(
            token.reshape(num_rows * k, 1), jnp.ones((num_rows * k, 1), bool), cache=followed
        )
        return write(progress, logits.reshape(num_rows, k, vocab_size), cache)

    blank = _Texts(
        jnp.full((num_rows, k, num_new_tokens), pad_id, jnp.int32),
        jnp.zeros((num_rows, k), jnp.int32),
        jnp.full((num_rows, k), NEVER, jnp.float32),
    )
    # Of k equal prompts one is open.
    first = blank._replace(score=blank.score.at[:, 0].set(0.0))
    start = _Progress(
        jnp.int32(0), first, jnp.zeros((num_rows, k), jnp.int32), blank, jnp.ones(num_rows, bool), cache
    )
    begun = write(start, jnp.broadcast_to(logits[:, None, :], (num_rows, k, vocab_size)), _repeat(cache, k))
    ended = lax.while_loop(goes_on, step, begun).ended
    is_real = jnp.arange(num_new_tokens)[None, :] < ended.length[:, :1]
    return Generated(jnp.where(is_real, ended.ids[:, 0], pad_id), is_real, ended.score[:, 0])


def _take(texts: _Texts, index: Int[Array, "B k"]) -> _Texts:
    return _Texts(
        jnp.take_along_axis(texts.ids, index[:, :, None], axis=1),
        jnp.take_along_axis(texts.length, index, axis=1),
        jnp.take_along_axis(texts.score, index, axis=1),
    )


def _repeat(cache: Cache, times: int) -> Cache:
    """Each row so many times, side by side."""

    def repeat(part: KVCache) -> KVCache:
        return _map_rows(part, lambda x, axis: jnp.repeat(x, times, axis=axis))

    match cache:
        case Seq2SeqCache():
            return Seq2SeqCache(repeat(cache.text), repeat(cache.source))
        case WhisperCache():
            key, value = (jnp.repeat(x, times, axis=1) for x in (cache.audio_key, cache.audio_value))
            mask = None if cache.audio_mask is None else jnp.repeat(cache.audio_mask, times, axis=0)
            return WhisperCache(repeat(cache.text), key, value, mask)
    return repeat(cache)


def _follow(cache: Cache, parent: Int[Array, "B k"]) -> Cache:
    """The rows of each beam's parent. What a decoder's beams have of their source is one thing, and stays."""
    num_rows, k = parent.shape

    def choose(x: Array, axis: int) -> Array:
        grouped = x.reshape(*x.shape[:axis], num_rows, k, *x.shape[axis + 1 :])
        # A gather in each row of the batch by itself, which a mesh's devices do without asking each other.
        take = jax.vmap(lambda group, index: jnp.take(group, index, axis=axis, mode="clip"), (axis, 0), axis)
        return take(grouped, parent).reshape(x.shape)

    if isinstance(cache, KVCache):
        return _map_rows(cache, choose)
    return cache._replace(text=_map_rows(cache.text, choose))


def _map_rows(cache: KVCache, change: Callable[[Array, int], Array]) -> KVCache:
    """Each array that has rows changed, given which of its axes they are."""
    return KVCache(
        **{
            name: change(x, CACHE_AXES[name].index("batch")) if "batch" in CACHE_AXES[name] else x
            for name, x in cache._asdict().items()
        }
    )
