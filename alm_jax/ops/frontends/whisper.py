"""The front-end of Whisper, Qwen-Audio and Qwen2-Audio."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from alm_jax.ops.frontends.decibel import POWER_FLOOR, limit_range
from alm_jax.ops.frontends.dft import mel_energies
from alm_jax.ops.frontends.log_mel import LogMelSpec
from alm_jax.ops.frontends.stft import reflected_frames

RANGE_BELS = 8.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhisperSpec(LogMelSpec):
    """Waveform to log-mel as Whisper does it; ``num_mels`` is 80, and 128 in large-v3 and Qwen2-Audio.

    The published clip is 30 s, shorter recordings followed by zeros: ``ClipSpec(clip_sec=30, pad="zero")``.
    """

    sample_rate_hz: int = 16000
    """Sample rate of the waveform, Hz."""
    n_fft: int = 400
    """Length of a frame and of its window, samples."""
    hop_samples: int = 160
    """Hop: samples from one frame to the next."""
    num_mels: int = 80
    """Mel bands."""
    fmin_hz: float = 0.0
    """Lower edge of the first mel band, Hz."""
    fmax_hz: float = 8000.0
    """Upper edge of the last mel band, Hz."""

    @property
    def num_frames(self) -> int:
        """Number of frames of a clip, T; the last centred frame is dropped."""
        return self.clip_samples // self.hop_samples


def compute_whisper(waveform: Float[Array, "*B W"], spec: WhisperSpec) -> Float[Array, "*B T F"]:
    """Log-mel, float32, T = W // hop_samples: max(x, max(x) - 8) / 4 + 1 with x = log10(max(mel, 1e-10)).

    The maximum is that of the whole clip, padding included (Radford et al. 2022, arXiv 2212.04356, and
    OpenAI's ``log_mel_spectrogram``). Largest error against the NumPy form of Hugging Face's extractor on ESC-10
    recordings in 16 bits: 1.4e-5 with 80 bands, 2.1e-5 with 128.
    """
    frames = reflected_frames(waveform, frame_samples=spec.n_fft, hop_samples=spec.hop_samples)
    mel = mel_energies(frames[..., :-1, :], spec.filter_bank)
    return limit_range(jnp.log10(jnp.maximum(mel, POWER_FLOOR)), RANGE_BELS) / 4.0 + 1.0
