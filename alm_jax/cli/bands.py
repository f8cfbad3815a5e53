"""Where the bands of a front-end lie, for the axes of its pictures."""

import numpy as np

from alm_jax.ops.frontends import FrontendSpec


def band_centres_hz(frontend: FrontendSpec) -> np.ndarray:
    """Centre of mass of each mel band, Hz; a band that no bin falls into lies between its neighbours."""
    bank = frontend.filter_bank
    # The bank is that of another rate where a published model mislabels its audio; the audio's own rate counts.
    frequencies = np.linspace(0, frontend.sample_rate_hz / 2, bank.shape[1])
    weight = bank.sum(axis=1)
    filled = np.flatnonzero(weight)
    return np.interp(np.arange(len(bank)), filled, bank[filled] @ frequencies / weight[filled])
