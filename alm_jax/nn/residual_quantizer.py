"""Residual vector quantisation: a vector becomes a few integers, each codebook coding the remainder of those before
it.

Zeghidour et al. 2021 (SoundStream, https://arxiv.org/abs/2107.03312, algorithm 1).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


def quantize(x: Float[Array, "B N D"], codebooks: Float[Array, "Q V D"]) -> Int[Array, "B Q N"]:
    """The nearest entry of each codebook to what is left of ``x``, int32; the first one in a tie.

    Distances are |r|^2 - 2 r e + |e|^2 in float32 or wider, as EnCodec computes them: where two entries are as near
    as that rounds, another order of the sum may choose the other, and the codebooks after it code another rest.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def step(rest: Array, entries: Array) -> tuple[Array, Array]:
        products = lax.dot_general(rest, entries, (((2,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)
        lengths = jnp.sum(jnp.square(rest), axis=-1, keepdims=True)
        sizes = jnp.sum(jnp.square(entries), axis=-1)[None, None]
        codes = jnp.argmin(lengths - 2 * products + sizes, axis=-1).astype(jnp.int32)
        return rest - jnp.take(entries, codes, axis=0, mode="clip"), codes

    _, codes = lax.scan(step, x.astype(wide), codebooks.astype(wide))
    return jnp.moveaxis(codes, 0, 1)


def dequantize(codes: Int[Array, "B Q N"], codebooks: Float[Array, "books V D"]) -> Float[Array, "B N D"]:
    """The sum of the entries that ``codes`` name, one of each of the first Q codebooks."""

    def step(total: Array, given: tuple[Array, Array]) -> tuple[Array, None]:
        entries, rows = given
        return total + jnp.take(entries, rows, axis=0, mode="clip"), None

    batch_size, num_books, length = codes.shape
    start = jnp.zeros((batch_size, length, codebooks.shape[-1]), codebooks.dtype)
    total, _ = lax.scan(step, start, (codebooks[:num_books], jnp.moveaxis(codes, 1, 0)))
    return total


class Codebooks(nn.Module):
    """The codebooks and the moving averages that they are made of; no gradient moves them.

    Collection ``batch_stats``: ``embed`` [books V D], ``cluster_size`` [books V], ``embed_avg`` [books V D] and
    ``inited`` [books 1], as in EnCodec.
    """

    num_codebooks: int
    codebook_size: int
    width: int

    @nn.compact
    def __call__(self) -> Float[Array, "books V D"]:
        """Returns the collection's ``embed``."""
        shape = (self.num_codebooks, self.codebook_size, self.width)

        def draw() -> Array:
            return jax.random.normal(self.make_rng("params"), shape, jnp.float32)

        embed = self.variable("batch_stats", "embed", draw)
        self.variable("batch_stats", "cluster_size", jnp.zeros, shape[:2], jnp.float32)
        self.variable("batch_stats", "embed_avg", jnp.zeros, shape, jnp.float32)
        self.variable("batch_stats", "inited", jnp.ones, (self.num_codebooks, 1), jnp.float32)
        return embed.value
