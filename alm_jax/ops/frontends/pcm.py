"""Stored samples to waveform."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int16


def pcm_to_float(pcm: Int16[Array, "*shape"] | Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """float32 waveform of int16 PCM, value / 32768, so that -32768 is exactly -1; floats are only cast.

    32768 is the rule of libsndfile and FFmpeg, and a power of two, so the division is exact.

    Raises:
      TypeError: for another integer dtype, whose full scale would be a guess.
    """
    if jnp.issubdtype(pcm.dtype, jnp.floating):
        return pcm.astype(jnp.float32)
    if pcm.dtype != jnp.int16:
        raise TypeError(f"PCM of dtype {pcm.dtype}; expected int16 or a float waveform")
    return pcm.astype(jnp.float32) / 32768.0
