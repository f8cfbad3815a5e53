"""Sizes and mel bank of every log-mel front-end, and the protocol that models rely on.

A front-end is part of a model, so its spec is stored with the weights. Code that feeds a model reads from it:

- ``sample_rate_hz``: what the waveform must be resampled to;
- ``clip`` and ``clip_samples``: the policy that makes a recording a clip, and W of a clip;
- ``num_frames`` and ``num_features``: T and F of a clip's features, known before anything is computed;
- ``hop_samples``: T in seconds;
- ``num_mels`` and ``filter_bank``: the bands, for plots and for exports.

`alm_jax.ops.frontends.compute_features` is the one function from a clip to its features.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from alm_jax.ops.frontends.clip import ClipSpec
from alm_jax.ops.frontends.mel import MelNorm, MelScale, mel_filter_bank


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogMelSpec:
    """Fields and sizes of a log-mel front-end; the values are LAION-CLAP's, each family sets its own."""

    sample_rate_hz: int = 48000
    """Sample rate of the waveform, Hz."""
    n_fft: int = 1024
    """Length of the Fourier transform, samples; also of a frame and its window, unless the family has its own field
    for them."""
    hop_samples: int = 480
    """Hop: samples from one frame to the next."""
    num_mels: int = 64
    """Mel bands."""
    fmin_hz: float = 50.0
    """Lower edge of the first mel band, Hz."""
    fmax_hz: float = 14000.0
    """Upper edge of the last mel band, Hz."""
    clip: ClipSpec
    """Clip length, crop and padding."""

    def __post_init__(self) -> None:
        """Raises UserError for impossible mel bands or too short a clip; warns of empty bands."""
        _ = self.filter_bank, self.clip_samples

    @property
    def clip_samples(self) -> int:
        """Number of samples of a clip, W."""
        return self.clip.num_samples(self.sample_rate_hz, n_fft=self.n_fft)

    @property
    def num_frames(self) -> int:
        """T of a clip: frames centred on every hop, both ends included."""
        return 1 + self.clip_samples // self.hop_samples

    @property
    def num_features(self) -> int:
        """Number of features, F."""
        return self.num_mels

    @property
    def filter_bank(self) -> Float[np.ndarray, "F bins"]:
        """The mel bank."""
        return self._build_bank("slaney", "slaney")

    def _build_bank(
        self,
        scale: MelScale,
        norm: MelNorm,
        *,
        sample_rate_hz: int | None = None,
        num_silent: int = 0,
    ) -> Float[np.ndarray, "F bins"]:
        return mel_filter_bank(
            sample_rate_hz=sample_rate_hz or self.sample_rate_hz,
            n_fft=self.n_fft,
            num_mels=self.num_mels,
            fmin_hz=self.fmin_hz,
            fmax_hz=self.fmax_hz,
            scale=scale,
            norm=norm,
            num_silent=num_silent,
        )
