"""Features of a split's recordings for pictures, and where their bands lie."""

import jax.numpy as jnp
import numpy as np

from alm_jax import batch as contract
from alm_jax.evaluation.split import EvaluationSplit
from alm_jax.objectives.recordings import one_clip
from alm_jax.ops.frontends import (
    ClapSpec,
    FrontendSpec,
    FusionSpec,
    TowerSpec,
    WaveformSpec,
)


def picture_frontend(frontend: TowerSpec) -> FrontendSpec:
    """A front-end whose features are a log-mel that people can look at: the model's own, where it is one."""
    if not isinstance(frontend, FusionSpec | WaveformSpec) and frontend.num_features == frontend.num_mels:
        return frontend
    rate_hz = frontend.sample_rate_hz
    return ClapSpec(
        sample_rate_hz=rate_hz,
        hop_samples=rate_hz // 100,
        fmax_hz=min(14000.0, rate_hz / 2),
        clip=frontend.clip,
    )


def clip_features(frontend: TowerSpec, split: EvaluationSplit, places: np.ndarray) -> np.ndarray:
    """Log-mel features [k T F] in dB of the recordings at these places of a split."""
    found: dict[int, np.ndarray] = {}
    for rows in split.rows(places):
        placed = {key: jnp.asarray(rows[key]) for key in (contract.AUDIO, contract.AUDIO_NUM_SAMPLES)}
        features = np.asarray(one_clip(picture_frontend(frontend), placed, padding="unmasked").features)
        found |= dict(zip(rows[contract.INDEX].tolist(), features, strict=True))
    return np.stack([found[int(place)] for place in places])


def band_centres_hz(frontend: FrontendSpec) -> np.ndarray:
    """Centre of mass of each mel band, Hz; a band that no bin falls into lies between its neighbours."""
    bank = frontend.filter_bank
    # The bank is that of another rate where a published model mislabels its audio; the audio's own rate counts.
    frequencies = np.linspace(0, frontend.sample_rate_hz / 2, bank.shape[1])
    weight = bank.sum(axis=1)
    filled = np.flatnonzero(weight)
    return np.interp(np.arange(len(bank)), filled, bank[filled] @ frequencies / weight[filled])
