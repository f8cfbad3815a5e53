"""Random changes to training examples: pure functions of (array, key), different for every row, jit-able."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def random_gain(waveform: Float[Array, "B W"], key: Array, max_db: float) -> Float[Array, "B W"]:
    """Amplifies every row by a gain uniform in [-max_db, max_db] decibels; the result may leave [-1, 1]."""
    gain_db = jax.random.uniform(key, waveform.shape[:1], minval=-max_db, maxval=max_db)
    return waveform * (10.0 ** (gain_db / 20.0))[:, None].astype(waveform.dtype)


def roll_time(
    waveform: Float[Array, "B W"], key: Array, num_samples: Int[Array, " B"] | None = None
) -> Float[Array, "B W"]:
    """Rotates every row by a whole number of samples, uniform in [0, W).

    With ``num_samples``, only the first so many of a row are rotated; its padding stays at the end.
    """
    if num_samples is None:
        shift = jax.random.randint(key, waveform.shape[:1], 0, waveform.shape[1])
        return jax.vmap(jnp.roll)(waveform, shift)
    length = jnp.maximum(num_samples, 1)[:, None]
    shift = jax.random.randint(key, length.shape, 0, length)
    position = jnp.arange(waveform.shape[1])[None, :]
    source = jnp.where(position < length, (position - shift) % length, position)
    return jnp.take_along_axis(waveform, source, axis=1)


def _draw_stripes(
    key: Array, batch_size: int, size: int, *, max_width: int, num_stripes: int
) -> Bool[Array, "B n"]:
    """True inside the stripes: each of width U{0 .. max_width - 1} at a start U{0 .. size - width - 1}."""
    key_width, key_start = jax.random.split(key)
    shape = (batch_size, num_stripes)
    width = jax.random.randint(key_width, shape, 0, max_width)
    start = jax.random.randint(key_start, shape, 0, size - width)
    position = jnp.arange(size)[None, None, :]
    inside = (position >= start[:, :, None]) & (position < (start + width)[:, :, None])
    return inside.any(axis=1)


def spec_augment(
    features: Float[Array, "B T F"],
    key: Array,
    *,
    time_width: int,
    num_time_stripes: int,
    freq_width: int,
    num_freq_stripes: int,
) -> Float[Array, "B T F"]:
    """Zeroes stripes of frames and of frequency bins (SpecAugment, Park et al. 2019), as torchlibrosa does.

    Widths are drawn below, never equal to, ``time_width`` and ``freq_width``; every row has its own stripes.
    Published widths in time and frequency, and stripes of each:

    | HTSAT, CNN14 | 64, 8 | 2 | after their BatchNorm, where 0 is about the mean |
    | AST, AudioSet | 192, 48 | 1 | before the normalisation, so -mean / (2 std) after it |
    | AST, ESC-50 | 96, 24 | 1 | the same |

    Raises:
      ValueError: unless 1 <= time_width <= T and 1 <= freq_width <= F.
    """
    batch_size, num_frames, num_bins = features.shape
    if not (1 <= time_width <= num_frames and 1 <= freq_width <= num_bins):
        raise ValueError(
            f"stripes of up to {time_width} frames by {freq_width} bins; expected 1 to {num_frames} and 1 to "
            f"{num_bins}"
        )
    key_time, key_freq = jax.random.split(key)
    time = _draw_stripes(key_time, batch_size, num_frames, max_width=time_width, num_stripes=num_time_stripes)
    freq = _draw_stripes(key_freq, batch_size, num_bins, max_width=freq_width, num_stripes=num_freq_stripes)
    return jnp.where(time[:, :, None] | freq[:, None, :], 0, features)
