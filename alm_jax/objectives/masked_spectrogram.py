"""Masked spectrogram pre-training: hide patches of a spectrogram, and draw them from those that are left.

AudioMAE (Huang et al. 2022, https://arxiv.org/abs/2207.06405). Captions and labels are not read.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alm_jax import batch as contract
from alm_jax.losses.reconstruction import masked_reconstruction, normalize_patches
from alm_jax.models.capabilities import Reconstruction
from alm_jax.models.masked_autoencoder import (
    MASKED_AUTOENCODER,
    MaskedAutoencoderConfig,
    encode_clips,
    reconstruct,
)
from alm_jax.objectives.objective import LOSS, Inputs, Loss, Objective, ObjectiveConfig
from alm_jax.objectives.patch_masks import MaskConfig, UnstructuredMaskConfig, draw_masks, evaluation_masks
from alm_jax.objectives.reconstructions import to_maps
from alm_jax.objectives.recordings import Clips, WaveformAugmentConfig, embed_chunks, one_clip
from alm_jax.ops.patch_masking import PatchMask
from alm_jax.ops.patchify import patchify
from alm_jax.types import Metrics, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedSpectrogramConfig(ObjectiveConfig):
    """A masked autoencoder, trained to reconstruct the hidden patches."""

    model: MaskedAutoencoderConfig
    """Front-end, encoder and decoder."""
    mask: MaskConfig = UnstructuredMaskConfig()
    """Which patches are hidden, chosen at random for every clip and step."""
    normalize_target: bool = True
    """Whether each patch is standardised by its own mean and deviation before it is predicted (AudioMAE's recipe);
    False predicts the features as they are."""
    augment: WaveformAugmentConfig = WaveformAugmentConfig()
    """Waveform augmentation."""

    def __post_init__(self) -> None:
        self.mask.check(self.model.grid)

    def build(self) -> Objective:
        """The objective as pure functions."""
        return build_masked_spectrogram(self)


class MaskedClips(NamedTuple):
    """Rows of the objective's inputs."""

    features: Float[Array, "B T F"]
    masked: PatchMask


def reconstruction_target(
    config: MaskedSpectrogramConfig, features: Float[Array, "B T F"]
) -> Float[Array, "B N pixels"]:
    """What the decoder is to draw."""
    patches = patchify(features, config.model.encoder.patch_size)
    return normalize_patches(patches) if config.normalize_target else patches


@dataclasses.dataclass(frozen=True)
class MaskedAutoencoder:
    """What a masked autoencoder can do: embed recordings, and draw what is hidden of them."""

    config: MaskedSpectrogramConfig

    @functools.partial(jax.jit, static_argnums=0)
    def embed_audio(self, variables: dict[str, Any], batch: dict[str, Array]) -> Float[Array, "B D"]:
        """The mean of the encoder's states of all patches of each recording; nothing is hidden."""
        model = self.config.model

        def encode(clips: Clips) -> Array:
            return encode_clips(model, variables, clips.features)

        return embed_chunks(encode, model.frontend, batch, padding="unmasked", is_unit=False)

    @functools.partial(jax.jit, static_argnums=0)
    def reconstruct(self, variables: dict[str, Any], batch: dict[str, Array]) -> Reconstruction:
        """Each recording with the masks of the validation loss.

        Where patches are drawn by their own mean and deviation, these are put back: they are the input's.
        """
        config, model = self.config, self.config.model
        features = one_clip(model.frontend, batch, padding="unmasked").features
        masked = evaluation_masks(config.mask, model.grid, batch[contract.INDEX])
        pixels = reconstruct(model, variables, features, masked)
        return to_maps(
            features,
            masked.hidden,
            pixels,
            patch_size=model.encoder.patch_size,
            is_normalized=config.normalize_target,
        )


def build_masked_spectrogram(config: MaskedSpectrogramConfig) -> Objective:
    """The objective as pure functions."""
    model = config.model

    def prepare(batch: dict[str, Any], key: Any, *, train: bool) -> Inputs:
        keys: Any = jax.random.split(key) if train else (None, None)
        key_mask, key_audio = keys
        clips = one_clip(
            model.frontend, batch, padding="unmasked", train=train, key=key_audio, augment=config.augment
        )
        masked = (
            draw_masks(config.mask, model.grid, jax.random.split(key_mask, len(clips.features)))
            if train
            else evaluation_masks(config.mask, model.grid, batch[contract.INDEX])
        )
        return Inputs(MaskedClips(clips.features, masked), None)

    def encode(variables: dict[str, Any], inputs: Inputs, key: Any, *, train: bool) -> tuple[Loss, Params]:
        """Sum and weight of the loss of each row: rows have nothing to do with each other."""
        clips: MaskedClips = inputs.rows
        pixels = reconstruct(
            model, variables, clips.features, clips.masked, train=train, key=key if train else None
        )
        target = reconstruction_target(config, clips.features)
        loss = Loss(*masked_reconstruction(pixels, target, clips.masked.hidden, by_row=True))
        return loss, variables["batch_stats"]

    def combine(params: Params, outputs: Loss, batch: dict[str, Any], key: Any) -> tuple[Loss, Metrics]:
        real = batch[contract.MASK]
        return Loss(*(jnp.sum(jnp.where(real, x, 0.0)) for x in outputs)), {}

    return Objective(
        init=lambda key: MASKED_AUTOENCODER.init(model, key),
        axes=lambda: MASKED_AUTOENCODER.axes(model),
        prepare=prepare,
        encode=encode,
        combine=combine,
        project=lambda params: params,
        figures=(LOSS,),
        pmap="rows",
        capabilities=lambda tokens: MaskedAutoencoder(config),
    )
