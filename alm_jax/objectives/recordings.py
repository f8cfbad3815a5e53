"""From a batch's recordings to what an encoder takes, on the device: scaling, cropping, augmentation, features."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax import batch as contract
from alm_jax.encoders import tower
from alm_jax.ops import augment
from alm_jax.ops.frontends import (
    FusionSpec,
    TowerSpec,
    WaveformSpec,
    compute_features,
    compute_fusion,
    compute_waveform,
)
from alm_jax.ops.frontends.clip import filled_length, fit_clips, trim_zeros
from alm_jax.ops.frontends.pcm import pcm_to_float
from alm_jax.ops.similarity import unit_vectors


@dataclasses.dataclass(frozen=True, kw_only=True)
class WaveformAugmentConfig:
    """Augmentation of the waveform in training, random for every clip and step."""

    gain_db: float = 0.0
    """Largest gain, decibels: the gain is uniform between minus and plus this value; 0: no change."""
    roll: bool = False
    """Whether to rotate each recording in time by a random amount."""


Padding: TypeAlias = Literal["unmasked", "masked"]
"""Treatment of the padding of a short recording by an encoder: encoded like audio, or masked."""
GAIN, ROLL, CROP, FUSION = range(4)
"""Streams of a clip's PRNG key: each draw folds in the number of its own."""


class Clips(NamedTuple):
    """Clips of recordings as an encoder takes them; leading axes [B C], C chunks of each recording, or [B]."""

    features: Array
    """As the front-end makes them (`alm_jax.ops.frontends.feature_shape`)."""
    frame_mask: Any
    """[... T] bool, True for frames that begin in real audio; None where padding is taken for sound."""
    longer: Bool[Array, "*B"] | None
    """True where a recording is longer than a clip; None of all models but those with feature fusion."""
    num_samples: Int[Array, "*B"]
    """Samples that the sound fills, repetitions of a short recording included."""
    mask: Bool[Array, "*B"]
    """True where a clip holds real audio."""


def make_clips(
    frontend: TowerSpec,
    batch: dict[str, Any],
    *,
    crop: str,
    padding: Padding,
    key: Any = None,
    augment: WaveformAugmentConfig | None = None,
) -> Clips:
    """A batch's recordings as clips [B C ...]; C is 1 unless ``crop`` is "chunks".

    Feature fusion takes whole recordings, one clip each. ``key`` is needed where anything is random: ``crop`` "random",
    or an augmentation.
    """
    waveform, num_samples = pcm_to_float(batch[contract.AUDIO]), batch[contract.AUDIO_NUM_SAMPLES]
    if frontend.clip.trim_zeros:
        num_samples = trim_zeros(waveform, num_samples)
    if isinstance(frontend, FusionSpec):
        if augment is not None:
            waveform = augment_waveform(waveform, key, augment, num_samples)
        maps, longer = compute_fusion(waveform, num_samples, frontend, stream(key, FUSION))
        num_samples = num_samples[:, None]
        return Clips(maps[:, None], None, longer[:, None], num_samples, num_samples > 0)
    clip_samples, pad = frontend.clip_samples, frontend.clip.pad
    cut, mask = fit_clips(
        waveform, num_samples, clip_samples=clip_samples, crop=crop, pad=pad, key=stream(key, CROP)
    )
    filled = filled_length(jnp.minimum(num_samples, clip_samples), clip_samples, pad)
    rows, chunks, samples = cut.shape
    num_real = jnp.repeat(jnp.where(num_samples > 0, filled, 0), chunks)
    clips = cut.reshape(rows * chunks, samples)
    if augment is not None:
        clips = augment_waveform(clips, key, augment, None if padding == "unmasked" else num_real)
    features: Array = (
        compute_waveform(clips, frontend, num_real)
        if isinstance(frontend, WaveformSpec)
        else compute_features(clips, frontend, num_real)
    )
    flat = Clips(features, tower.frame_mask(frontend, padding, num_real), None, num_real, mask.reshape(-1))
    return jax.tree.map(lambda x: x.reshape(rows, chunks, *x.shape[1:]), flat)


def one_clip(
    frontend: TowerSpec,
    batch: dict[str, Any],
    *,
    padding: Padding,
    train: bool = False,
    key: Any = None,
    augment: WaveformAugmentConfig | None = None,
    follows_batch: bool = False,
) -> Clips:
    """One clip [B ...] of each recording: in training cut by ``train_crop`` and augmented, else cut by ``eval_crop``.

    What reads one clip alone takes the centre where ``eval_crop`` is "chunks". With ``follows_batch`` clips of training
    are as short as the batch's recordings [B S] (`alm_jax.encoders.tower.follows_batch`).
    """
    if train:
        if follows_batch:
            frontend = _no_longer_than(frontend, batch[contract.AUDIO].shape[1])
        crop = frontend.clip.train_crop
        clips = make_clips(frontend, batch, crop=crop, padding=padding, key=key, augment=augment)
    else:
        own: str = frontend.clip.eval_crop
        clips = make_clips(frontend, batch, crop="centre" if own == "chunks" else own, padding=padding)
    return jax.tree.map(lambda x: x[:, 0], clips)


def _no_longer_than(frontend: TowerSpec, num_samples: int) -> TowerSpec:
    """The front-end with clips of at most ``num_samples`` samples."""
    if num_samples >= frontend.clip_samples:
        return frontend
    clip = dataclasses.replace(frontend.clip, clip_sec=num_samples / frontend.sample_rate_hz)
    return dataclasses.replace(frontend, clip=clip)


def embed_chunks(
    encode: Callable[[Clips], Float[Array, "R *E"]],
    frontend: TowerSpec,
    batch: dict[str, Any],
    *,
    padding: Padding,
    is_unit: bool,
) -> Float[Array, "B *E"]:
    """The vectors of recordings, cut by the front-end's ``eval_crop``: of chunks the mean, of length 1 if ``is_unit``.

    Args:
        encode: clips [R ...] -> their vectors, of length 1 if ``is_unit``.
    """
    clips = make_clips(frontend, batch, crop=frontend.clip.eval_crop, padding=padding)
    rows, chunks = clips.mask.shape
    vectors = encode(jax.tree.map(lambda x: x.reshape(rows * chunks, *x.shape[2:]), clips))
    if chunks == 1:
        return vectors
    vectors = vectors.reshape(rows, chunks, *vectors.shape[1:])
    counts = clips.mask.reshape(rows, chunks, *[1] * (vectors.ndim - 2))
    total = jnp.sum(jnp.where(counts, vectors, 0.0), axis=1)
    mean = total / jnp.maximum(jnp.sum(counts, axis=1), 1)
    return unit_vectors(mean) if is_unit else mean


def stream(key: Any, number: int) -> Any:
    """The key of one of the streams of a clip; None where there is no key."""
    return None if key is None else jax.random.fold_in(key, number)


def augment_waveform(
    waveform: Float[Array, "B W"],
    key: Any,
    config: WaveformAugmentConfig,
    num_samples: Int[Array, " B"] | None = None,
) -> Float[Array, "B W"]:
    """Waveforms, augmented clip by clip; ``num_samples``: those that are rotated, None for the padding too."""
    if config.gain_db:
        waveform = augment.random_gain(waveform, stream(key, GAIN), max_db=config.gain_db)
    if config.roll:
        waveform = augment.roll_time(waveform, stream(key, ROLL), num_samples)
    return waveform
