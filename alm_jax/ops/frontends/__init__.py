"""Front-ends, waveform in and features out on the device: one file a family, chosen by its spec's type.

`log_mel` says what every spec answers. Two families make something else than one [T F] map of a clip, and
have functions of their own: `compute_fusion` four maps of a whole recording, `compute_stft` magnitude and
phase.
"""

from typing import TypeAlias

from jaxtyping import Array, Float

from alm_jax.ops.frontends.audioldm import AudioLdmSpec, compute_audioldm
from alm_jax.ops.frontends.ced import CedSpec, compute_ced
from alm_jax.ops.frontends.clap import ClapSpec, compute_clap
from alm_jax.ops.frontends.clip import ClipSpec, fit_clips
from alm_jax.ops.frontends.ctal import CtalSpec, compute_ctal
from alm_jax.ops.frontends.fusion import FusionSpec, compute_fusion
from alm_jax.ops.frontends.kaldi import AstSpec, BeatsSpec, compute_ast, compute_beats
from alm_jax.ops.frontends.log_mel import LogMelSpec
from alm_jax.ops.frontends.magphase import StftSpec, compute_stft
from alm_jax.ops.frontends.pcm import pcm_to_float
from alm_jax.ops.frontends.torchlibrosa import TorchlibrosaSpec, compute_torchlibrosa
from alm_jax.ops.frontends.whisper import WhisperSpec, compute_whisper

__all__ = [
    "AstSpec",
    "AudioLdmSpec",
    "BeatsSpec",
    "CedSpec",
    "ClapSpec",
    "ClipSpec",
    "CtalSpec",
    "FrontendSpec",
    "FusionSpec",
    "LogMelSpec",
    "StftSpec",
    "TorchlibrosaSpec",
    "WhisperSpec",
    "compute_features",
    "compute_fusion",
    "compute_stft",
    "fit_clips",
    "pcm_to_float",
]

FrontendSpec: TypeAlias = (
    TorchlibrosaSpec | ClapSpec | AstSpec | BeatsSpec | CedSpec | WhisperSpec | AudioLdmSpec | CtalSpec
)


def compute_features(waveform: Float[Array, "*B W"], spec: FrontendSpec) -> Float[Array, "*B T F"]:
    """float32 features of waveforms at ``spec.sample_rate_hz``; clips of the spec's length give its T."""
    match spec:
        case TorchlibrosaSpec():
            return compute_torchlibrosa(waveform, spec)
        case ClapSpec():
            return compute_clap(waveform, spec)
        case AstSpec():
            return compute_ast(waveform, spec)
        case BeatsSpec():
            return compute_beats(waveform, spec)
        case CedSpec():
            return compute_ced(waveform, spec)
        case WhisperSpec():
            return compute_whisper(waveform, spec)
        case AudioLdmSpec():
            return compute_audioldm(waveform, spec)
        case CtalSpec():
            return compute_ctal(waveform, spec)
