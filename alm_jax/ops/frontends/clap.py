"""The front-end of Hugging Face's ``ClapFeatureExtractor``, as the weights in that format expect it.

One mel bank without fusion (Slaney scale, Slaney norm: the bank of ``torchlibrosa``), another with it (HTK
scale, no norm: torchaudio's), and no 16-bit quantisation.
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Array, Float

from alm_jax.ops.frontends.clip import ClipSpec
from alm_jax.ops.frontends.decibel import power_to_db
from alm_jax.ops.frontends.mel import mel_filter_bank, project_to_mel
from alm_jax.ops.frontends.stft import power_spectrogram


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClapSpec:
    """Waveform to log-mel as ``ClapFeatureExtractor`` does it, with the values of the ``laion/clap-*``."""

    sample_rate_hz: int = 48000
    """Sample rate of the waveform (``sampling_rate``)."""
    n_fft: int = 1024
    """Samples of a frame and of its window (``fft_window_size``)."""
    hop_samples: int = 480
    """Samples from one frame to the next (``hop_length``)."""
    num_mels: int = 64
    """Mel bands (``feature_size``)."""
    fmin_hz: float = 50.0
    """Lower edge of the first band (``frequency_min``; the class's default, 0, is not what was released)."""
    fmax_hz: float = 14000.0
    """Upper edge of the last band (``frequency_max``)."""
    mel_scale: Literal["slaney", "htk"] = "slaney"
    """Bank: "slaney" (with its norm) for ``truncation="rand_trunc"``, "htk" (with none) for "fusion"."""
    clip: ClipSpec
    """Length of a clip (``max_length_s``), crop and padding (``padding``)."""

    def __post_init__(self) -> None:
        """Raises UserError for impossible mel bands or too short a clip; warns of empty bands."""
        _ = self.filter_bank, self.clip_samples

    @property
    def clip_samples(self) -> int:
        """W of a clip."""
        return self.clip.num_samples(self.sample_rate_hz, n_fft=self.n_fft)

    @property
    def num_frames(self) -> int:
        """T of a clip."""
        return 1 + self.clip_samples // self.hop_samples

    @property
    def filter_bank(self) -> Float[np.ndarray, "F bins"]:
        """The mel bank."""
        return mel_filter_bank(
            sample_rate_hz=self.sample_rate_hz,
            n_fft=self.n_fft,
            num_mels=self.num_mels,
            fmin_hz=self.fmin_hz,
            fmax_hz=self.fmax_hz,
            scale=self.mel_scale,
            norm="slaney" if self.mel_scale == "slaney" else None,
        )


def compute_clap(waveform: Float[Array, "*B W"], spec: ClapSpec) -> Float[Array, "*B T F"]:
    """Log-mel in dB, float32, T = 1 + W // hop_samples: ``input_features`` without the channel axis.

    Largest error against the extractor, which works in float64, on ESC-10 recordings in 16 bits: 0.022 dB
    with either bank; mean error 0.00003 dB. On unquantised recordings, bins near the floor of -100 dB differ
    by up to 0.043 dB with the Slaney bank and 0.98 dB with the HTK bank, whose weights are larger (float32
    ``torch.stft``: 0.034 and 0.84).
    """
    power = power_spectrogram(waveform, n_fft=spec.n_fft, hop_samples=spec.hop_samples)
    return power_to_db(project_to_mel(power, spec.filter_bank))
