"""Front-ends, waveform in and features out on the device: one file a family, chosen by its spec's type."""

from typing import TypeAlias

from jaxtyping import Array, Float

from alm_jax.ops.frontends.clap import ClapSpec, compute_clap
from alm_jax.ops.frontends.clip import ClipSpec, fit_clips
from alm_jax.ops.frontends.pcm import pcm_to_float
from alm_jax.ops.frontends.torchlibrosa import TorchlibrosaSpec, compute_torchlibrosa

__all__ = [
    "ClapSpec",
    "ClipSpec",
    "FrontendSpec",
    "TorchlibrosaSpec",
    "compute_features",
    "fit_clips",
    "pcm_to_float",
]

FrontendSpec: TypeAlias = TorchlibrosaSpec | ClapSpec


def compute_features(waveform: Float[Array, "*B W"], spec: FrontendSpec) -> Float[Array, "*B T F"]:
    """float32 features of waveforms at ``spec.sample_rate_hz``; clips of the spec's length give its T."""
    match spec:
        case TorchlibrosaSpec():
            return compute_torchlibrosa(waveform, spec)
        case ClapSpec():
            return compute_clap(waveform, spec)
