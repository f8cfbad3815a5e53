"""Evaluation of a masked autoencoder: a linear probe of its encoder, and what it draws."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from alm_jax import batch as contract
from alm_jax.evaluation.metrics.linear_probe import evaluation_crop
from alm_jax.models.masked_autoencoder import MaskedAutoencoderConfig, encode_clips, reconstruct
from alm_jax.objectives.masked_spectrogram import MaskedSpectrogramConfig
from alm_jax.objectives.patch_masks import evaluation_masks
from alm_jax.objectives.recordings import clip_features
from alm_jax.ops.patchify import patchify, unpatchify


@functools.partial(jax.jit, static_argnums=0)
def embed_clips(
    config: MaskedAutoencoderConfig, variables: dict[str, Any], batch: dict[str, Array]
) -> Float[Array, "B D"]:
    """The mean of the encoder's states of all patches of each recording; nothing is hidden."""
    features = clip_features(config.frontend, batch, crop=evaluation_crop(config.frontend))
    return encode_clips(config, variables, features)


class Reconstruction(NamedTuple):
    """What a model draws of some clips, as maps of the front-end's features."""

    features: Any
    """[B T F] float32, the input."""
    hidden: Any
    """[B T F] bool, True where the encoder saw nothing."""
    drawn: Any
    """[B T F] float32, the decoder's pixels, visible patches too, in the units of the input."""


def draw(
    config: MaskedSpectrogramConfig, variables: dict[str, Any], batch: Mapping[str, np.ndarray]
) -> Reconstruction:
    """The reconstruction of a batch's recordings, with the masks of the validation loss.

    Where patches are drawn by their own mean and deviation, these are put back: they are the input's.
    """
    placed = {
        key: jnp.asarray(batch[key]) for key in (contract.AUDIO, contract.AUDIO_NUM_SAMPLES, contract.INDEX)
    }
    return jax.tree.map(np.asarray, _draw(config, variables, placed))


@functools.partial(jax.jit, static_argnums=0)
def _draw(
    config: MaskedSpectrogramConfig, variables: dict[str, Any], batch: dict[str, Array]
) -> Reconstruction:
    model = config.model
    features = clip_features(model.frontend, batch)
    masked = evaluation_masks(config.mask, model.grid, batch[contract.INDEX])
    pixels = reconstruct(model, variables, features, masked)
    return to_maps(
        features,
        masked.hidden,
        pixels,
        patch_size=model.encoder.patch_size,
        is_normalized=config.normalize_target,
    )


def to_maps(
    features: Float[Array, "B T F"],
    hidden: Bool[Array, "B N"],
    pixels: Float[Array, "B N pixels"],
    *,
    patch_size: int,
    is_normalized: bool,
) -> Reconstruction:
    """Patches as maps; with ``is_normalized`` their mean and deviation, which are the input's, are put back."""
    pixels, patches = pixels.astype(jnp.float32), patchify(features, patch_size)
    if is_normalized:
        deviation = jnp.sqrt(jnp.var(patches, axis=-1, keepdims=True, ddof=1) + 1e-6)
        pixels = pixels * deviation + jnp.mean(patches, axis=-1, keepdims=True)
    spread = jnp.broadcast_to(hidden[..., None], patches.shape).astype(jnp.float32)
    num_mels = features.shape[-1]
    return Reconstruction(
        features, unpatchify(spread, patch_size, num_mels) > 0.5, unpatchify(pixels, patch_size, num_mels)
    )
