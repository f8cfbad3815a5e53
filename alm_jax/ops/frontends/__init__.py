"""Front-ends: waveform in, features out, computed on the device; one file a family, chosen by its spec's type.

`log_mel` defines what every spec provides. Three front-ends do not make one [T F] map of a clip and have their own
functions: `compute_fusion` makes four maps of a whole recording, `compute_stft` magnitude and phase,
`compute_waveform` returns the waveform.
"""

from typing import TypeAlias

from jaxtyping import Array, Float, Int

from alm_jax.errors import UserError
from alm_jax.ops.frontends.audioldm import AudioLdmSpec, compute_audioldm
from alm_jax.ops.frontends.ced import CedSpec, compute_ced
from alm_jax.ops.frontends.clap import ClapSpec, compute_clap
from alm_jax.ops.frontends.clip import ClipSpec, fit_clips
from alm_jax.ops.frontends.ctal import CtalSpec, compute_ctal
from alm_jax.ops.frontends.fusion import NUM_MAPS, FusionSpec, compute_fusion
from alm_jax.ops.frontends.kaldi import AstSpec, BeatsSpec, compute_ast, compute_beats, published_clip
from alm_jax.ops.frontends.log_mel import LogMelSpec
from alm_jax.ops.frontends.magphase import StftSpec, compute_stft
from alm_jax.ops.frontends.pcm import pcm_to_float
from alm_jax.ops.frontends.torchlibrosa import TorchlibrosaSpec, compute_torchlibrosa
from alm_jax.ops.frontends.waveform import WaveformSpec, compute_waveform
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
    "TowerSpec",
    "WaveformSpec",
    "WhisperSpec",
    "compute_features",
    "compute_fusion",
    "compute_stft",
    "compute_waveform",
    "feature_shape",
    "fit_clips",
    "pcm_to_float",
    "published_clip",
]

FrontendSpec: TypeAlias = (
    TorchlibrosaSpec | ClapSpec | AstSpec | BeatsSpec | CedSpec | WhisperSpec | AudioLdmSpec | CtalSpec
)
"""Spec of a front-end that makes one [T F] map of a clip."""
TowerSpec: TypeAlias = FrontendSpec | FusionSpec | WaveformSpec
"""Spec of any front-end that an audio tower accepts."""


def feature_shape(spec: TowerSpec) -> tuple[int, ...]:
    """Shape of one clip's features: [T F]; [W] for a waveform, [4 T F] for feature fusion."""
    if isinstance(spec, WaveformSpec):
        return (spec.num_frames,)
    maps = (NUM_MAPS,) if isinstance(spec, FusionSpec) else ()
    return (*maps, spec.num_frames, spec.num_features)


def compute_features(
    waveform: Float[Array, "*B W"], spec: TowerSpec, num_samples: Int[Array, "*B"] | None = None
) -> Float[Array, "*B T F"]:
    """Computes float32 features of waveforms at ``spec.sample_rate_hz``; clips of the spec's length give its T.

    ``num_samples`` of each waveform are real; without it all are. Only AST's front-end treats the padding differently
    from silence.

    Raises UserError for a spec that makes no [T F] map.
    """
    match spec:
        case TorchlibrosaSpec():
            return compute_torchlibrosa(waveform, spec)
        case ClapSpec():
            return compute_clap(waveform, spec)
        case AstSpec():
            return compute_ast(waveform, spec, num_samples)
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
        case _:
            raise UserError(f"{type(spec).__name__} makes no [T F] map of a clip; it has its own function")
