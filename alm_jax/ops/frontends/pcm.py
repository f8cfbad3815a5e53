"""Stored samples to waveform, and a waveform to the grid of stored samples."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int16

INT16_MAX = 32767.0


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


def quantize_int16(waveform: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Waveform on LAION-CLAP's 16-bit grid: clipped to [-1, 1], truncated towards zero, 32767 to a unit.

    The same grid points as in NumPy, but for the last bit of their float32.
    """
    return jnp.trunc(jnp.clip(waveform, -1.0, 1.0) * INT16_MAX) / INT16_MAX
