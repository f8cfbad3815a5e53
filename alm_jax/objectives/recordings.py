"""From a batch's recordings to clips on the device: scaling, cropping, padding, augmentation."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax import batch as contract
from alm_jax.ops import augment
from alm_jax.ops.frontends import FrontendSpec, TowerSpec, compute_features
from alm_jax.ops.frontends.clip import filled_length, fit_clips, trim_zeros
from alm_jax.ops.frontends.pcm import pcm_to_float


@dataclasses.dataclass(frozen=True, kw_only=True)
class WaveformAugmentConfig:
    """Augmentation of the waveform in training; each is drawn anew for every clip and step."""

    gain_db: float = 0.0
    """Gain drawn uniformly from plus or minus this many decibels; 0 leaves the level alone."""
    roll: bool = False
    """Rotate each recording in time by a random amount."""


def read_recordings(
    frontend: TowerSpec, batch: dict[str, Any]
) -> tuple[Float[Array, "B S"], Int[Array, " B"]]:
    """A batch's recordings as floats, and how many of their samples are real."""
    waveform, num_samples = pcm_to_float(batch[contract.AUDIO]), batch[contract.AUDIO_NUM_SAMPLES]
    return waveform, trim_zeros(waveform, num_samples) if frontend.clip.trim_zeros else num_samples


def cut_clips(
    frontend: TowerSpec, batch: dict[str, Any], *, crop: str, key: Any = None
) -> tuple[Float[Array, "B C W"], Bool[Array, "B C"], Int[Array, " B"]]:
    """A batch's recordings as clips of the front-end's length, on the device.

    Returns waveforms, a mask of the C chunks of each recording (one, unless ``crop`` is "chunks"), and the samples that
    the sound fills of a recording's clips. ``key`` is needed where ``crop`` is "random".
    """
    waveform, num_samples = read_recordings(frontend, batch)
    clip_samples, pad = frontend.clip_samples, frontend.clip.pad
    clips, mask = fit_clips(
        waveform,
        num_samples,
        clip_samples=clip_samples,
        crop=crop,
        pad=pad,
        key=None if key is None else jax.random.fold_in(key, 2),
    )
    filled = filled_length(jnp.minimum(num_samples, clip_samples), clip_samples, pad)
    return clips, mask, jnp.where(num_samples > 0, filled, 0)


def clip_features(
    frontend: FrontendSpec, batch: dict[str, Any], *, crop: str = "centre"
) -> Float[Array, "B T F"]:
    """Features of one clip of each recording, cut without chance."""
    clips, _, _ = cut_clips(frontend, batch, crop=crop)
    return compute_features(clips[:, 0], frontend)


def single_crop(frontend: TowerSpec) -> str:
    """Where evaluation cuts a recording of which it takes one clip: as ``eval_crop`` says, "chunks" at the centre."""
    crop = frontend.clip.eval_crop
    return "centre" if crop == "chunks" else crop


def augment_waveform(
    waveform: Float[Array, "B W"],
    key: Any,
    config: WaveformAugmentConfig,
    num_samples: Int[Array, " B"] | None = None,
) -> Float[Array, "B W"]:
    """Waveforms, augmented clip by clip; ``num_samples``: those that are rotated, None for the padding too."""
    if config.gain_db:
        waveform = augment.random_gain(waveform, jax.random.fold_in(key, 0), max_db=config.gain_db)
    if config.roll:
        waveform = augment.roll_time(waveform, jax.random.fold_in(key, 1), num_samples)
    return waveform
