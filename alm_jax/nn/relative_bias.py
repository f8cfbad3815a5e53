"""T5's positions: a learned number for each head and each bucket of distances, added to the scores of attention."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from alm_jax.nn.parameter import declare


class RelativeBias(nn.Module):
    """Positions of queries and keys to what is added to their scores; parameter ``embedding`` [buckets H].

    Raffel et al. 2020, section 2.1 (https://arxiv.org/abs/1910.10683). One table serves all layers of a stack.
    """

    num_heads: int
    num_buckets: int
    """Number of buckets; half of them are for keys after the query where ``is_bidirectional``."""
    max_distance: int
    """Distance from which on keys share the last bucket."""
    is_bidirectional: bool
    """Whether later keys have their own buckets. False: all later keys have the bucket of distance 0."""
    embedding_init: nn.initializers.Initializer

    @nn.compact
    def __call__(
        self, query_positions: Int[Array, "*B Q"], key_positions: Int[Array, "*B S"]
    ) -> Float[Array, "*B H Q S"]:
        shape, axes = (self.num_buckets, self.num_heads), ("relative_positions", "heads")
        embedding = declare(self, "embedding", self.embedding_init, shape, axes)
        offset = key_positions[..., None, :] - query_positions[..., :, None]
        one_way = self.num_buckets // 2 if self.is_bidirectional else self.num_buckets
        table = jnp.asarray(distance_buckets(one_way, self.max_distance))
        distance = jnp.abs(offset) if self.is_bidirectional else jnp.maximum(-offset, 0)
        buckets = jnp.take(table, jnp.minimum(distance, self.max_distance), mode="clip")
        if self.is_bidirectional:
            buckets += jnp.where(offset > 0, one_way, 0)
        return jnp.moveaxis(jnp.take(embedding, buckets, axis=0, mode="clip"), -1, -3)


def distance_buckets(num_buckets: int, max_distance: int) -> Int[np.ndarray, " distances"]:
    """Bucket of each distance from 0 to ``max_distance``, int32.

    The first half of the buckets has one distance each, the second half widens logarithmically. float32 in the order
    of the published code: where a distance lies on the border of two buckets, the rounding decides.
    """
    num_exact = num_buckets // 2
    distances = np.arange(max_distance + 1)
    ratio = np.log(np.maximum(distances, 1).astype(np.float32) / num_exact)
    scaled = ratio / np.float32(math.log(max_distance / num_exact)) * np.float32(num_buckets - num_exact)
    widened = np.minimum(num_exact + scaled.astype(np.int32), num_buckets - 1)
    return np.where(distances < num_exact, distances, widened).astype(np.int32)
