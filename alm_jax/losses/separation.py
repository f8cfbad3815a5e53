"""Losses of separation by a query: L1 of the amplitude spectrogram, and the scale-invariant signal-to-distortion
ratio."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alm_jax.losses.absolute import absolute

_LEAST_SHARE = 1e-10
_TINY = 1e-30


def amplitude_l1(
    prediction: Float[Array, "B T F"],
    target: Float[Array, "B T F"],
    *,
    mask: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """sum_i || |a_i| - |a^_i| ||_1 over the real frames, and the number of their bins: L1 of magnitudes.

    The sum is the survey's L'_am (arXiv 2501.15177, "Generative Objectives"); sum / weight is the mean absolute
    error of LASS-Net (Liu et al. 2022, arXiv 2203.15147). Both arguments are magnitudes, not complex; ``mask`` is
    True for real frames. In float32.
    """
    mask = jnp.ones(target.shape[:2], bool) if mask is None else mask
    real = mask[..., None]
    prediction = jnp.where(real, prediction, 0).astype(jnp.float32)
    error = prediction - jnp.where(real, target, 0).astype(jnp.float32)
    return jnp.sum(absolute(error)), jnp.sum(mask, dtype=jnp.float32) * target.shape[-1]


def si_sdr(
    estimate: Float[Array, "B W"], reference: Float[Array, "B W"], *, mask: Bool[Array, "B W"] | None = None
) -> Float[Array, " B"]:
    """Scale-invariant signal-to-distortion ratio of each row in decibels, float32, in [-100, 100]; higher is better.

    10 log10(||a s||^2 / ||a s - s^||^2) with a = <s^, s> / ||s||^2 (Le Roux et al. 2019, arXiv 1811.02508, equation
    5), over the samples with a True ``mask``. Means are not removed, as in AudioSep's evaluation. 1e-10 of the
    estimate's energy is added to numerator and denominator, which bounds the ratio and, unlike a constant, keeps it
    independent of scale: an exact estimate has 100 dB, any estimate of silence -100, a silent estimate 0.
    """
    mask = jnp.ones(reference.shape, bool) if mask is None else mask
    estimate = jnp.where(mask, estimate, 0).astype(jnp.float32)
    reference = jnp.where(mask, reference, 0).astype(jnp.float32)
    product = jnp.sum(estimate * reference, axis=-1)
    scale = product / (jnp.sum(jnp.square(reference), axis=-1) + _TINY)
    scaled = scale[:, None] * reference
    least = _LEAST_SHARE * jnp.sum(jnp.square(estimate), axis=-1) + _TINY
    signal = jnp.sum(jnp.square(scaled), axis=-1)
    distortion = jnp.sum(jnp.square(estimate - scaled), axis=-1)
    return 10 * (jnp.log10(signal + least) - jnp.log10(distortion + least))


def negative_si_sdr(
    estimate: Float[Array, "B W"], reference: Float[Array, "B W"], *, mask: Bool[Array, "B W"] | None = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """-`si_sdr`, summed over the rows that have a real sample; the weight is their number."""
    ratio = si_sdr(estimate, reference, mask=mask)
    counted = jnp.ones(ratio.shape, bool) if mask is None else jnp.any(mask, axis=-1)
    return -jnp.sum(jnp.where(counted, ratio, 0)), jnp.sum(counted, dtype=jnp.float32)
