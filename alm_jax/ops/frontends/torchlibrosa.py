"""The torchlibrosa front-end: HTSAT, CNN14, LAION-CLAP without fusion, MS-CLAP, WavCaps.

Slaney bank with Slaney's normalisation, decibels over a floor of 1e-10. The BatchNorm over mel bands that
follows it in those models (``bn0``) belongs to their encoders.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alm_jax.ops.frontends.clip import ClipSpec
from alm_jax.ops.frontends.decibel import power_to_db
from alm_jax.ops.frontends.mel import mel_filter_bank, project_to_mel
from alm_jax.ops.frontends.stft import power_spectrogram

INT16_MAX = 32767.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchlibrosaSpec:
    """Waveform to log-mel as torchlibrosa's ``LogmelFilterBank`` does it, with LAION-CLAP's values."""

    sample_rate_hz: int = 48000
    """Sample rate of the waveform."""
    mel_sample_rate_hz: int | None = None
    """Sample rate that the mel bank is built for, where a release built it for another one than its audio's
    (MS-CLAP 2023 and Pengi: 32000 on 44100 Hz audio); None for the waveform's own."""
    n_fft: int = 1024
    """Samples of a frame and of its window."""
    hop_samples: int = 480
    """Samples from one frame to the next."""
    num_mels: int = 64
    """Mel bands."""
    fmin_hz: float = 50.0
    """Lower edge of the first band."""
    fmax_hz: float = 14000.0
    """Upper edge of the last band."""
    int16_quantize: bool = False
    """Round the waveform to 16 bits first, as LAION-CLAP does: clip to [-1, 1], times 32767, truncate."""
    clip: ClipSpec
    """Length of a clip, crop and padding."""

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
            sample_rate_hz=self.mel_sample_rate_hz or self.sample_rate_hz,
            n_fft=self.n_fft,
            num_mels=self.num_mels,
            fmin_hz=self.fmin_hz,
            fmax_hz=self.fmax_hz,
            scale="slaney",
            norm="slaney",
        )


def quantize_int16(waveform: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Waveform on LAION-CLAP's 16-bit grid: clipped to [-1, 1], truncated towards zero, 32767 to a unit.

    The same grid points as in NumPy, but for the last bit of their float32.
    """
    return jnp.trunc(jnp.clip(waveform, -1.0, 1.0) * INT16_MAX) / INT16_MAX


def compute_torchlibrosa(waveform: Float[Array, "*B W"], spec: TorchlibrosaSpec) -> Float[Array, "*B T F"]:
    """Log-mel in dB, float32, T = 1 + W // hop_samples.

    Largest error against librosa in float64 (melspectrogram, then power_to_db with top_db None) on ESC-10
    recordings in 16 bits: 0.024 dB; mean error 0.00004 dB.
    """
    waveform = waveform.astype(jnp.float32)
    if spec.int16_quantize:
        waveform = quantize_int16(waveform)
    power = power_spectrogram(waveform, n_fft=spec.n_fft, hop_samples=spec.hop_samples)
    return power_to_db(project_to_mel(power, spec.filter_bank))
