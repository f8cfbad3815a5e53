"""Pieces of a signal that overlap, and the signal that they make when each fades into the next."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def cut_pieces(num_samples: int, piece: int, step: int) -> list[tuple[int, int]]:
    """First sample and length of each piece: one every ``step`` samples, the last ones cut where the signal ends."""
    return [(start, min(piece, num_samples - start)) for start in range(0, num_samples, step)]


def overlap_add(pieces: Sequence[Float[Array, "B _ C"]], step: int) -> Float[Array, "B W C"]:
    """The signal of pieces that begin ``step`` samples apart, W the end of the one that reaches farthest.

    Where pieces overlap, the sample is their mean with weights that rise from a piece's beginning to its middle and
    fall to its end; all have the weights of the first piece, which is the longest.
    """
    longest = pieces[0].shape[1]
    ramp = np.linspace(0, 1, longest + 2)[1:-1]
    triangle = 0.5 - np.abs(ramp - 0.5)
    ends = [i * step + piece.shape[1] for i, piece in enumerate(pieces)]
    weights = np.zeros(max(ends))
    total = jnp.zeros((len(pieces[0]), max(ends), pieces[0].shape[2]), pieces[0].dtype)
    for i, (piece, end) in enumerate(zip(pieces, ends, strict=True)):
        own = triangle[: piece.shape[1]]
        weights[i * step : end] += own
        total = total.at[:, i * step : end].add(piece * jnp.asarray(own, piece.dtype)[None, :, None])
    return total / jnp.asarray(weights, total.dtype)[None, :, None]
