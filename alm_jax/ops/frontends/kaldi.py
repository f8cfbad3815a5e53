"""The Kaldi filter-bank front-ends: AST, AudioMAE, CAV-MAE and LTU; and BEATs.

Both follow ``torchaudio.compliance.kaldi.fbank`` without dither: frames that start at the first sample and
are not continued at the ends, each freed of its mean and pre-emphasised by itself, triangles that are
straight in mel, a natural logarithm over the epsilon of float32.
"""

import dataclasses
from typing import Annotated

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from alm_jax.errors import UserError
from alm_jax.ops.frontends.clip import ClipSpec, count_along
from alm_jax.ops.frontends.dft import mel_energies
from alm_jax.ops.frontends.log_mel import LogMelSpec
from alm_jax.ops.frontends.stft import frame, windowed
from alm_jax.ranges import Range

PREEMPHASIS = 0.97
FLOOR = float(np.finfo(np.float32).eps)
INT16_SCALE = 32768.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class KaldiSpec(LogMelSpec):
    """Fields that the Kaldi front-ends share."""

    sample_rate_hz: int = 16000
    """Sample rate of the waveform, Hz."""
    n_fft: int = 512
    """Length of the Fourier transform, samples."""
    window_samples: int = 400
    """Length of a frame and of its window, samples."""
    hop_samples: int = 160
    """Hop: samples from one frame to the next."""
    num_mels: int = 128
    """Mel bands."""
    fmin_hz: float = 20.0
    """Lower edge of the first mel band, Hz."""
    fmax_hz: float = 8000.0
    """Upper edge of the last mel band, Hz."""

    def __post_init__(self) -> None:
        """Checks the fields like every log-mel spec; raises UserError for a clip without a whole frame."""
        super().__post_init__()
        if self.clip_samples < self.window_samples:
            raise UserError(
                f"clips of {self.clip.clip_sec:g} s are {self.clip_samples} samples; a frame takes "
                f"{self.window_samples}: raise clip.clip_sec"
            )

    @property
    def num_frames(self) -> int:
        """Number of whole frames that a clip holds, T."""
        return 1 + (self.clip_samples - self.window_samples) // self.hop_samples

    @property
    def filter_bank(self) -> Float[np.ndarray, "F bins"]:
        """The mel bank. With the published values one of its bands lies between two bins and is silent."""
        return self._build_bank("kaldi", None, num_silent=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AstSpec(KaldiSpec):
    """Waveform to normalised filter banks as AST and AudioMAE do it, with AudioSet's mean and deviation.

    | | mean | std | divisor | frames |
    | AST and AudioMAE, AudioSet | -4.2677393 | 4.5689974 | 2 std | 1024 |
    | the same, ESC-50 | -6.6268077 | 5.358466 | 2 std | 512 |
    | the same, Speech Commands V2 | -6.845978 | 5.5654526 | 2 std | 128 |
    | LTU (CAV-MAE) | -5.081 | 4.4849 | std | 1024 |

    Of a stereo file the authors take the first channel, and this project the mean of both: for their numbers read it
    with ``channels="first"`` (`data_pipelines.decode.read_audio`, `embed_audio`).
    """

    remove_mean: bool = True
    """Whether to remove each clip's mean before it is cut into frames (Hugging Face's extractor does not)."""
    mean: Annotated[float, Range()] = -4.2677393
    """Mean of the training data's features, subtracted."""
    std: float = 4.5689974
    """Standard deviation of the training data's features."""
    num_std: float = 2.0
    """Number of standard deviations by which features are divided: 2; 1 in LTU."""
    padded_frames: int | None = 1024
    """Number of frames T: features are cut to it, or zero-padded before they are normalised, so that padding has the
    value -mean / (num_std std). None: as many frames as the clip has."""

    @property
    def num_frames(self) -> int:
        """Number of frames of a clip, T."""
        return super().num_frames if self.padded_frames is None else self.padded_frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeatsSpec(KaldiSpec):
    """Waveform to normalised filter banks as BEATs does it."""

    mean: Annotated[float, Range()] = 15.41663
    """Mean of the training data's features, subtracted."""
    std: float = 6.55582
    """Standard deviation of the training data's features; they are divided by twice this value."""


def hanning_window(num_samples: int) -> Float[np.ndarray, " n"]:
    """Symmetric Hann window, 0.5 - 0.5 cos(2 pi n / (N - 1)), float64; Kaldi's "hanning"."""
    return 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(num_samples) / (num_samples - 1))


def povey_window(num_samples: int) -> Float[np.ndarray, " n"]:
    """Kaldi's "povey" window, the symmetric Hann window to the power of 0.85, float64."""
    return hanning_window(num_samples) ** 0.85


def _filter_banks(
    waveform: Float[Array, "*B W"], spec: KaldiSpec, window: Float[np.ndarray, " n"]
) -> Float[Array, "*B T F"]:
    frames = frame(waveform, frame_samples=spec.window_samples, hop_samples=spec.hop_samples)
    frames = frames - jnp.mean(frames, axis=-1, keepdims=True)
    before = jnp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
    frames = windowed(frames - PREEMPHASIS * before, window)
    return jnp.log(jnp.maximum(mel_energies(frames, spec.filter_bank), FLOOR))


def published_clip(num_frames: int) -> ClipSpec:
    """Clip policy of AST's, AudioMAE's and LTU's own loaders, which make ``num_frames`` frames: the first frames of a
    recording, and zeros where it is shorter."""
    clip_sec = (num_frames - 1) * 0.01 + 0.025
    return ClipSpec(clip_sec=clip_sec, train_crop="first", eval_crop="first", pad="zero")


def compute_ast(
    waveform: Float[Array, "*B W"], spec: AstSpec, num_samples: Int[Array, "*B"] | None = None
) -> Float[Array, "*B T F"]:
    """Normalised log filter banks, float32, T = ``spec.padded_frames``.

    ``num_samples`` of each waveform are real, all of them without it. As the authors' loaders do, only frames that lie
    within these are computed, and zeros follow them before the features are normalised; the mean that is removed is
    that of the real samples.

    Largest error against Hugging Face's extractor (its NumPy form) on ESC-10 recordings in 16 bits: 0.004 in
    natural logarithms; mean error 2e-6.
    """
    waveform = waveform.astype(jnp.float32)
    if num_samples is None:
        num_samples = jnp.full(waveform.shape[:-1], waveform.shape[-1])
    is_real = count_along(num_samples, waveform.shape[-1]) < num_samples[..., None]
    if spec.remove_mean:
        # At least one sample: a padding row has none.
        count = jnp.maximum(num_samples, 1)[..., None]
        mean = jnp.sum(jnp.where(is_real, waveform, 0), axis=-1, keepdims=True) / count
        waveform = jnp.where(is_real, waveform - mean, 0)
    features = _filter_banks(waveform, spec, hanning_window(spec.window_samples))
    end = count_along(num_samples, features.shape[-2]) * spec.hop_samples + spec.window_samples
    features = jnp.where((end <= num_samples[..., None])[..., None], features, 0)
    if spec.padded_frames is not None:
        missing = max(0, spec.padded_frames - features.shape[-2])
        edges = [(0, 0)] * (features.ndim - 2) + [(0, missing), (0, 0)]
        features = jnp.pad(features, edges)[..., : spec.padded_frames, :]
    return (features - spec.mean) / (spec.num_std * spec.std)


def compute_beats(waveform: Float[Array, "*B W"], spec: BeatsSpec) -> Float[Array, "*B T F"]:
    """Normalised log filter banks, float32, of the waveform in units of the 16-bit grid (times 2^15).

    Largest error against ``transformers.audio_utils.spectrogram`` in float64 on ESC-10 recordings in 16 bits:
    0.008 in natural logarithms, 5.8e-4 normalised; mean error 1.8e-7 normalised.
    """
    waveform = waveform.astype(jnp.float32) * INT16_SCALE
    features = _filter_banks(waveform, spec, povey_window(spec.window_samples))
    return (features - spec.mean) / (2.0 * spec.std)
