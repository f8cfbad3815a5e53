"""Quantisation of vectors to their nearest codes by cosine, and a codebook updated without gradients.

BEATs (Chen et al. 2022, https://arxiv.org/abs/2212.09058, sections 3.1.1 and 3.1.2), whose moving average is that of
BEiT v2 (Peng et al. 2022, https://arxiv.org/abs/2208.06366). Every vector here has length 1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

TINY = 1e-12
"""Minimum length that a vector is divided by, as in `torch.nn.functional.normalize`."""


class Codebook(NamedTuple):
    """V codes and how often each was the nearest."""

    vectors: Float[Array, "V code"]
    """The codes, each of length 1."""
    usage: Float[Array, " V"]
    """Moving average of how often a code was used, 1 for the average code; 0 before the first update."""


def normalize(x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
    """Vectors divided by their length, float32 or wider; a zero stays zero."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # The root has no gradient at 0.
    length = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return x / jnp.maximum(length, TINY)


def nearest_codes(latents: Float[Array, "B N code"], vectors: Float[Array, "V code"]) -> Int[Array, "B N"]:
    """Returns the number of the nearest code of each vector, both of length 1; the first in a tie. int32."""
    cosine = lax.dot_general(latents, vectors, (((2,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)
    return jnp.argmax(cosine, axis=-1).astype(jnp.int32)


def take_codes(codes: Int[Array, "B N"], vectors: Float[Array, "V code"]) -> Float[Array, "B N code"]:
    """Returns the codes with these numbers."""
    return jnp.take(vectors, codes, axis=0, mode="clip")


def straight_through(
    latents: Float[Array, "B N code"], chosen: Float[Array, "B N code"]
) -> Float[Array, "B N code"]:
    """Returns the value of ``chosen`` with the gradient of ``latents`` (straight-through)."""
    return latents + lax.stop_gradient(chosen - latents)


def count_codes(codes: Int[Array, "B N"], num_codes: int) -> Float[Array, "B V"]:
    """Counts how often each row uses each code."""
    return jnp.sum(_one_hot(codes, num_codes), axis=1)


def perplexity(counts: Float[Array, " V"]) -> Float[Array, ""]:
    """Perplexity, exp of the entropy of the codes: V where all are used equally often, 1 where only one is used."""
    share = counts / jnp.maximum(jnp.sum(counts), 1.0)
    return jnp.exp(-jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1)), 0)))


def update_codebook(
    codebook: Codebook,
    latents: Float[Array, "B N code"],
    mask: Bool[Array, " B"],
    key: Any,
    *,
    decay: float,
    revive_below: float,
) -> Codebook:
    """Updates the codebook with a batch, from all of its rows at once.

    A code moves towards the mean direction of the vectors that it is nearest to, v <- norm(decay v + (1 - decay)
    norm(mean)), and does not move where there are none. A code that was hardly ever used is dead: it is replaced by a
    random vector of the batch, chosen by ``key``, with average usage. All are dead before the first update, so that
    codes begin where the vectors are; BEATs runs 10 iterations of k-means there instead.

    Args:
        mask: True for real rows; others are ignored.
        revive_below: usage below which a code is dead.
    """
    num_codes = codebook.vectors.shape[0]
    weight = mask.astype(jnp.float32)[:, None, None]
    chosen = _one_hot(nearest_codes(latents, codebook.vectors), num_codes) * weight
    counts = jnp.sum(chosen, axis=(0, 1))
    # A product, since the order of additions in a GPU's scatter is random.
    sums = lax.dot_general(chosen, latents, (((0, 1), (0, 1)), ((), ())), precision=lax.Precision.HIGHEST)
    total = jnp.sum(counts)
    taken = (counts > 0)[:, None]
    target = jnp.where(taken, normalize(sums), codebook.vectors)
    vectors = normalize(decay * codebook.vectors + (1 - decay) * target)
    usage = decay * codebook.usage + (1 - decay) * counts * (num_codes / jnp.maximum(total, 1.0))

    rows, tokens, width = latents.shape
    is_real = jnp.repeat(mask, tokens)
    # Real vectors first, in random order; each is used once before any is used twice.
    order = jnp.argsort(jnp.where(is_real, jax.random.uniform(key, (rows * tokens,)), 2.0))
    drawn = order[jnp.arange(num_codes) % jnp.maximum(jnp.sum(is_real), 1)]
    is_dead = (usage < revive_below) | (codebook.usage == 0)
    vectors = jnp.where(is_dead[:, None], latents.reshape(-1, width)[drawn], vectors)
    usage = jnp.where(is_dead, 1.0, usage)
    # A batch of padding only changes nothing.
    return jax.tree.map(lambda new, old: jnp.where(total > 0, new, old), Codebook(vectors, usage), codebook)


def _one_hot(codes: Int[Array, "B N"], num_codes: int) -> Float[Array, "B N V"]:
    return (codes[:, :, None] == jnp.arange(num_codes)[None, None]).astype(jnp.float32)
