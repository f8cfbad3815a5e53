"""Raw waveforms as features, for wav2vec 2.0, HuBERT and other models that begin with convolutions."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alm_jax.ops.frontends.clip import ClipSpec, count_along


@dataclasses.dataclass(frozen=True, kw_only=True)
class WaveformSpec:
    """The waveform as features: a frame is a sample."""

    sample_rate_hz: int = 16000
    """Sample rate of the waveform, Hz."""
    normalise: bool = True
    """Whether to normalise the real samples of each clip to zero mean and unit variance, as transformers'
    ``Wav2Vec2FeatureExtractor`` does by default; the published wav2vec 2.0 large and HuBERT large were trained so."""
    clip: ClipSpec
    """Clip length, crop and padding."""

    def __post_init__(self) -> None:
        """Raises UserError for a clip without a sample."""
        _ = self.clip_samples

    @property
    def clip_samples(self) -> int:
        """Number of samples of a clip, W."""
        return self.clip.num_samples(self.sample_rate_hz, n_fft=1)

    @property
    def num_frames(self) -> int:
        """Number of frames of a clip, T: its samples."""
        return self.clip_samples

    @property
    def num_features(self) -> int:
        """One: the sample's value. The features have no axis for it."""
        return 1

    @property
    def hop_samples(self) -> int:
        """Hop: samples from one frame to the next."""
        return 1


def compute_waveform(
    waveform: Float[Array, "*B W"], spec: WaveformSpec, num_samples: Int[Array, "*B"] | None = None
) -> Float[Array, "*B W"]:
    """The waveform in float32, with ``normalise`` (x - mean) / sqrt(variance + 1e-7) over its real samples.

    ``num_samples`` of each waveform are real, all of them without it; the others become zeros, as transformers'
    extractor fills a batch up after it has normalised each recording.
    """
    waveform = waveform.astype(jnp.float32)
    if not spec.normalise:
        return waveform
    if num_samples is None:
        num_samples = jnp.full(waveform.shape[:-1], waveform.shape[-1])
    is_real = count_along(num_samples, waveform.shape[-1]) < num_samples[..., None]
    count = jnp.maximum(num_samples, 1)[..., None]  # a padding row has no samples
    mean = jnp.sum(jnp.where(is_real, waveform, 0), axis=-1, keepdims=True) / count
    centred = jnp.where(is_real, waveform - mean, 0)
    return centred / jnp.sqrt(jnp.sum(jnp.square(centred), axis=-1, keepdims=True) / count + 1e-7)
