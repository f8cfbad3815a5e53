"""Mel filter banks: triangles on the Slaney, HTK or Kaldi scale, with or without Slaney's normalisation."""

import functools
import warnings
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alm_jax.errors import UserError

MelScale: TypeAlias = Literal["slaney", "htk", "kaldi"]
MelNorm: TypeAlias = Literal["slaney"] | None

# Slaney's scale (Auditory Toolbox, 1998): linear below 1 kHz, 27 steps to a factor of 6.4 above it.
_LINEAR_HZ_PER_MEL = 200.0 / 3.0
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _LINEAR_HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27.0

_LARGEST_BANK = 1 << 22


def hz_to_mel(hz: Float[np.ndarray, "..."], scale: MelScale) -> Float[np.ndarray, "..."]:
    """Mel of a frequency in Hz."""
    if scale == "htk":
        return 2595.0 * np.log10(1.0 + hz / 700.0)
    if scale == "kaldi":
        return 1127.0 * np.log(1.0 + hz / 700.0)
    above = _BREAK_MEL + np.log(np.maximum(hz, _BREAK_HZ) / _BREAK_HZ) / _LOG_STEP
    return np.where(hz < _BREAK_HZ, hz / _LINEAR_HZ_PER_MEL, above)


def mel_to_hz(mel: Float[np.ndarray, "..."], scale: MelScale) -> Float[np.ndarray, "..."]:
    """Inverse of ``hz_to_mel``."""
    if scale == "htk":
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    if scale == "kaldi":
        return 700.0 * (np.exp(mel / 1127.0) - 1.0)
    above = _BREAK_HZ * np.exp(_LOG_STEP * (mel - _BREAK_MEL))
    return np.where(mel < _BREAK_MEL, mel * _LINEAR_HZ_PER_MEL, above)


@functools.lru_cache
def mel_filter_bank(
    *,
    sample_rate_hz: int,
    n_fft: int,
    num_mels: int,
    fmin_hz: float,
    fmax_hz: float,
    scale: MelScale,
    norm: MelNorm,
    num_silent: int = 0,
) -> Float[np.ndarray, "F bins"]:
    """Triangular filters, one row a mel band, one column an FFT bin (n_fft // 2 + 1 of them), float64.

    Band f rises from edge f to edge f + 1 and falls to edge f + 2, where the num_mels + 2 edges are
    equally spaced in mel; straight in Hz, and for ``scale="kaldi"`` straight in mel. ``norm="slaney"`` gives
    each triangle unit area in Hz, None unit height before sampling. Equal to ``librosa.filters.mel`` and
    ``transformers.audio_utils.mel_filter_bank``.

    A bank is built once and shared, so the array is read-only. Building a bank warns of bands too narrow to hold an
    FFT bin, which would be at the floor of the logarithm for every input. No warning is given for ``num_silent`` such
    bands, which are known (published Kaldi front-ends have one among 128).

    Raises:
      UserError: unless 0 <= fmin_hz < fmax_hz <= sample_rate_hz / 2, or where the bank would be larger than any in
      use.
    """
    if not (n_fft >= 2 and num_mels >= 1 and n_fft * num_mels <= _LARGEST_BANK):
        raise UserError(
            f"a mel bank of {num_mels} bands and n_fft {n_fft}; expected one band, 2 samples, and a product "
            f"of the two up to {_LARGEST_BANK}"
        )
    if not 0 <= fmin_hz < fmax_hz <= sample_rate_hz / 2:
        raise UserError(
            f"mel bands from {fmin_hz:g} to {fmax_hz:g} Hz at a sample rate of {sample_rate_hz} Hz: expected "
            f"0 <= fmin_hz < fmax_hz <= {sample_rate_hz / 2:g} (half the sample rate); change fmin_hz, "
            "fmax_hz or the sample rate"
        )
    bins_hz = np.linspace(0.0, sample_rate_hz / 2.0, n_fft // 2 + 1)
    ends_mel = hz_to_mel(np.array([fmin_hz, fmax_hz], np.float64), scale)
    edges_hz = mel_to_hz(np.linspace(ends_mel[0], ends_mel[1], num_mels + 2), scale)
    edges, bins = (
        (hz_to_mel(edges_hz, scale), hz_to_mel(bins_hz, scale)) if scale == "kaldi" else (edges_hz, bins_hz)
    )
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (bins[None, :] - low) / (centre - low)
    falling = (high - bins[None, :]) / (high - centre)
    bank = np.maximum(0.0, np.minimum(rising, falling))
    if norm == "slaney":
        bank *= 2.0 / (edges_hz[2:] - edges_hz[:-2])[:, None]
    empty = np.flatnonzero(bank.max(axis=1) == 0)
    if empty.size > num_silent:
        warnings.warn(
            f"{empty.size} of {num_mels} mel bands (the first is {empty[0]}) contain no FFT bin and will be "
            f"silent on every input: use fewer bands, a longer n_fft than {n_fft}, or a higher fmin_hz",
            stacklevel=2,
        )
    bank.setflags(write=False)
    return bank


def project_to_mel(
    power: Float[Array, "*B T bins"], bank: Float[np.ndarray, "F bins"]
) -> Float[Array, "*B T F"]:
    """Sums a power spectrogram into mel bands, in float32 on every device.

    Accelerators multiply float32 matrices in fewer bits by default, which shows as tenths of a decibel.
    """
    return jnp.matmul(power, jnp.asarray(bank.T, jnp.float32), precision=jax.lax.Precision.HIGHEST)
