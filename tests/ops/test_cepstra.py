"""Cepstra against SciPy's DCT, slopes against librosa's delta."""

import jax.numpy as jnp
import librosa
import numpy as np
import scipy.fft

from alm_jax.ops.cepstra import cepstra, slopes


def test_cepstra_are_the_orthonormal_dct():
    log_mel = np.random.default_rng(0).normal(-30, 10, (2, 7, 40)).astype(np.float32)
    expected = scipy.fft.dct(log_mel.astype(np.float64), type=2, axis=-1, norm="ortho")[..., :13]
    np.testing.assert_allclose(cepstra(jnp.asarray(log_mel), 13), expected, rtol=1e-6, atol=1e-4)


def test_slopes_are_those_of_lines_and_padding_has_no_part():
    """librosa's Savitzky-Golay filter of order 1 over five frames, its ends repeated, is the same line."""
    x = np.random.default_rng(1).normal(size=(3, 12, 4)).astype(np.float32)
    lengths = np.array([12, 7, 1])
    mask = np.arange(12) < lengths[:, None]
    found = slopes(jnp.asarray(x), jnp.asarray(mask))
    for row, length in enumerate(lengths):
        # As many repeated frames as the filter wants.
        padded = np.pad(x[row, :length].astype(np.float64), ((4, 4), (0, 0)), mode="edge")
        expected = librosa.feature.delta(padded, width=5, order=1, axis=0, mode="nearest")[4 : 4 + length]
        np.testing.assert_allclose(found[row, :length], expected, atol=1e-6)
