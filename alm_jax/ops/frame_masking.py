"""Masked acoustic modelling: spans of frames hidden from an encoder, a pure function of a key."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class MaskedFrames(NamedTuple):
    """Features with some spans of frames changed."""

    features: Float[Array, "B T F"]
    chosen: Bool[Array, "B T"]
    """True for the chosen frames, changed or not, on which a reconstruction is measured."""


def mask_frame_spans(
    features: Float[Array, "B T F"],
    mask: Bool[Array, "B T"],
    key: Array,
    *,
    proportion: float = 0.15,
    min_span: int = 20,
    max_span: int = 50,
) -> MaskedFrames:
    """Chooses spans of real frames and, per row, zeroes them (80 %), replaces them (10 %), or leaves them unchanged
    (10 %).

    CTAL (Li et al. 2021, arXiv 2109.00181, section 3.2), whose defaults these are, after Mockingjay (arXiv
    1910.12638). Each row has one random span length in [min_span, max_span] and int(real frames * proportion /
    length) different starts; spans may overlap, so at most ``proportion`` of the frames is chosen, and none where a
    single span would exceed it. A replaced span takes the frames of another random span of its row.

    ``mask`` is True for real frames, which come before padding.

    Raises:
      ValueError: unless 1 <= min_span <= max_span and 0 < proportion <= 1.
    """
    if not (1 <= min_span <= max_span and 0 < proportion <= 1):
        raise ValueError(
            f"spans of {min_span} to {max_span} frames over {proportion} of a row; expected 1 <= min_span <= max_span "
            "and a proportion in (0, 1]"
        )
    batch_size, num_frames, _ = features.shape
    key_span, key_start, key_source, key_action = jax.random.split(key, 4)
    length = jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.int32)  # [B 1]
    span = jax.random.randint(key_span, (batch_size, 1), min_span, max_span + 1)
    # Counted in whole frames, because 0.15 * 1000 is below 150 in float32.
    num_spans = jnp.floor(length * proportion + 1e-3).astype(jnp.int32) // span
    frame = jax.lax.broadcasted_iota(jnp.int32, (batch_size, num_frames), 1)
    fits = frame <= length - span

    def order_starts(key: Array) -> Array:
        """Orders starts of whole spans randomly, then the rest."""
        noise = jax.random.uniform(key, (batch_size, num_frames))
        return jnp.argsort(jnp.where(fits, noise, jnp.inf), axis=1)

    rank = jnp.argsort(order_starts(key_start), axis=1)
    is_start = fits & (rank < num_spans)
    # The last start at or before each frame: the frame is in its span, or in none.
    start = jax.lax.cummax(jnp.where(is_start, frame, -1), axis=1)
    chosen = (start >= 0) & (frame - start < span)

    source_of_rank = order_starts(key_source)
    rank_of_start = jnp.take_along_axis(rank, jnp.maximum(start, 0), axis=1)
    source = jnp.take_along_axis(source_of_rank, rank_of_start, axis=1) + frame - start
    source = jnp.where(chosen, source, frame)
    replaced = jnp.take_along_axis(features, source[:, :, None], axis=1, mode="clip")

    action = jax.random.uniform(key_action, (batch_size, 1))
    zeroed = chosen & (action < 0.8)
    swapped = chosen & (action >= 0.8) & (action < 0.9)
    altered = jnp.where(swapped[:, :, None], replaced, features)
    return MaskedFrames(jnp.where(zeroed[:, :, None], 0, altered), chosen)
