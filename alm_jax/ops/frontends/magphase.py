"""The magnitude and phase that separation models mask: LASS-Net, AudioSep."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from alm_jax.errors import UserError
from alm_jax.ops.frontends.clip import ClipSpec
from alm_jax.ops.frontends.dft import spectrum
from alm_jax.ops.frontends.stft import reflected_frames

POWER_FLOOR = 1e-10


@dataclasses.dataclass(frozen=True, kw_only=True)
class StftSpec:
    """Waveform to a complex spectrogram as AudioSep does it; LASS-Net has n_fft 1024 and a hop of 512."""

    sample_rate_hz: int = 32000
    """Sample rate of the waveform, Hz."""
    n_fft: int = 2048
    """Length of a frame and of its window, samples."""
    hop_samples: int = 320
    """Hop: samples from one frame to the next."""
    clip: ClipSpec
    """Clip length, crop and padding."""

    def __post_init__(self) -> None:
        """Raises UserError for an odd n_fft or too short a clip."""
        if self.n_fft % 2:
            raise UserError(f"n_fft is {self.n_fft}; expected an even number")
        _ = self.clip_samples

    @property
    def clip_samples(self) -> int:
        """Number of samples of a clip, W."""
        return self.clip.num_samples(self.sample_rate_hz, n_fft=self.n_fft)

    @property
    def num_frames(self) -> int:
        """Number of frames of a clip, T."""
        return 1 + self.clip_samples // self.hop_samples

    @property
    def num_features(self) -> int:
        """F of the magnitude: bins from 0 Hz to half the sample rate."""
        return self.n_fft // 2 + 1


def compute_stft(
    waveform: Float[Array, "*B W"], spec: StftSpec
) -> tuple[Float[Array, "*B T F"], Float[Array, "*B T F 2"]]:
    """Magnitude, and phase as cosine and sine, float32, T = 1 + W // hop_samples.

    magnitude = sqrt(max(power, 1e-10)); phase = (real, imaginary) / magnitude, so that magnitude times phase
    is the spectrum, in silence too, and a masked magnitude times phase the separated one.

    Largest error against librosa in float64 on ESC-10 recordings in 16 bits: below a millionth of the loudest
    bin's magnitude.
    """
    frames = reflected_frames(waveform, frame_samples=spec.n_fft, hop_samples=spec.hop_samples)
    value = spectrum(frames, spec.n_fft)
    magnitude = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(value), axis=-1), POWER_FLOOR))
    return magnitude, value / magnitude[..., None]
