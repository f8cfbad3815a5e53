"""Masked spectrogram pre-training: hide patches of a spectrogram, and draw them from those that are left.

AudioMAE (Huang et al. 2022, https://arxiv.org/abs/2207.06405). Captions and labels are not read.
"""

import dataclasses
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alm_jax import batch as contract
from alm_jax.errors import UserError
from alm_jax.losses.reconstruction import masked_reconstruction, normalize_patches
from alm_jax.models.masked_autoencoder import (
    MaskedAutoencoderConfig,
    init_masked_autoencoder,
    masked_autoencoder_axes,
    reconstruct,
)
from alm_jax.objectives.objective import Inputs, Loss, Objective
from alm_jax.objectives.recordings import WaveformAugmentConfig, augment_waveform, cut_clips
from alm_jax.ops.frontends import compute_features
from alm_jax.ops.patch_masking import PatchMask, mask_structured, mask_unstructured, num_kept
from alm_jax.ops.patchify import patchify
from alm_jax.types import Metrics, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnstructuredMaskConfig:
    """Any patches alike are hidden."""

    ratio: float = 0.8
    """Share of the patches that is hidden; AudioMAE pre-trains with 0.8."""

    def check(self, grid: tuple[int, int]) -> None:
        """Raises UserError where nothing of a (time, frequency) grid would be left."""
        _check_ratios(grid, {"patches": (grid[0] * grid[1], self.ratio)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class StructuredMaskConfig:
    """Whole steps of time and whole bands of frequency are hidden."""

    time_ratio: float = 0.7
    """Share of the steps that is hidden."""
    freq_ratio: float = 0.3
    """Share of the bands that is hidden."""

    def check(self, grid: tuple[int, int]) -> None:
        """Raises UserError where nothing of a (time, frequency) grid would be left."""
        _check_ratios(grid, {"steps": (grid[0], self.time_ratio), "bands": (grid[1], self.freq_ratio)})


MaskConfig: TypeAlias = UnstructuredMaskConfig | StructuredMaskConfig


def _check_ratios(grid: tuple[int, int], hidden: dict[str, tuple[int, float]]) -> None:
    for what, (size, ratio) in hidden.items():
        try:
            num_kept(size, ratio)
        except ValueError as error:
            raise UserError(
                f"a mask hides {ratio} of {size} {what} (a grid of {grid[0]} x {grid[1]}) and leaves none; lower the "
                "ratio, or take smaller patches"
            ) from error
    if not any(ratio for _, ratio in hidden.values()):
        raise UserError("a mask that hides nothing leaves nothing to learn; raise its ratio")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedSpectrogramConfig:
    """A masked autoencoder, trained to reconstruct the hidden patches."""

    model: MaskedAutoencoderConfig
    """Front-end, encoder and decoder."""
    mask: MaskConfig = UnstructuredMaskConfig()
    """What is hidden, drawn anew for every clip and step."""
    normalize_target: bool = True
    """Each patch is drawn by its own mean and deviation (AudioMAE's recipe); False draws the features as they are."""
    augment: WaveformAugmentConfig = WaveformAugmentConfig()
    """Waveform augmentation."""

    def __post_init__(self) -> None:
        self.mask.check(self.model.grid)


class MaskedClips(NamedTuple):
    """Rows of the objective's inputs."""

    features: Float[Array, "B T F"]
    masked: PatchMask


def draw_masks(config: MaskedSpectrogramConfig, keys: Any) -> PatchMask:
    """One mask for each of the B ``keys``."""
    grid, mask = config.model.grid, config.mask

    def draw(key: Any) -> PatchMask:
        if isinstance(mask, UnstructuredMaskConfig):
            drawn = mask_unstructured(key, 1, grid[0] * grid[1], mask.ratio)
        else:
            drawn = mask_structured(key, 1, grid, time_ratio=mask.time_ratio, freq_ratio=mask.freq_ratio)
        return jax.tree.map(lambda x: x[0], drawn)

    return jax.vmap(draw)(keys)


def evaluation_masks(config: MaskedSpectrogramConfig, index: Int[Array, " B"]) -> PatchMask:
    """The masks of recordings in evaluation: each always has the same, by its place in the split."""
    return draw_masks(config, jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(index))


def reconstruction_target(
    config: MaskedSpectrogramConfig, features: Float[Array, "B T F"]
) -> Float[Array, "B N pixels"]:
    """What the decoder is to draw."""
    patches = patchify(features, config.model.encoder.patch_size)
    return normalize_patches(patches) if config.normalize_target else patches


def clip_features(
    config: MaskedAutoencoderConfig, batch: dict[str, Any], *, crop: str = "centre"
) -> Float[Array, "B T F"]:
    """Features of one clip of each recording, cut without chance."""
    clips, _, _ = cut_clips(config.frontend, batch, crop=crop)
    return compute_features(clips[:, 0], config.frontend)


def build_masked_spectrogram(config: MaskedSpectrogramConfig) -> Objective:
    """The objective as pure functions."""
    model = config.model

    def prepare(batch: dict[str, Any], key: Any, *, train: bool, axis_name: str | None = None) -> Inputs:
        if not train:
            masked = evaluation_masks(config, batch[contract.INDEX])
            return Inputs(MaskedClips(clip_features(model, batch), masked), None)
        spec = model.frontend
        key_mask, key_audio = jax.random.split(key)
        clips, _, _ = cut_clips(spec, batch, crop=spec.clip.train_crop, key=key_audio)
        features = compute_features(augment_waveform(clips[:, 0], key_audio, config.augment), spec)
        masked = draw_masks(config, jax.random.split(key_mask, len(features)))
        return Inputs(MaskedClips(features, masked), None)

    def encode(
        variables: dict[str, Any], inputs: Inputs, key: Any, *, train: bool, axis_name: str | None = None
    ) -> tuple[Loss, Params]:
        """Sum and weight of the loss of each row: rows have nothing to do with each other."""
        clips: MaskedClips = inputs.rows
        pixels = reconstruct(
            model, variables, clips.features, clips.masked, train=train, key=key if train else None
        )
        target = reconstruction_target(config, clips.features)
        loss = jax.vmap(lambda *row: masked_reconstruction(*(x[None] for x in row)))(
            pixels, target, clips.masked.hidden
        )
        return Loss(*loss), variables["batch_stats"]

    def combine(
        params: Params, outputs: Loss, batch: dict[str, Any], *, axis_name: str | None = None
    ) -> tuple[Loss, Metrics]:
        real = batch[contract.MASK]
        return Loss(*(jnp.sum(jnp.where(real, x, 0.0)) for x in outputs)), {}

    return Objective(
        init=lambda key: init_masked_autoencoder(model, key),
        axes=lambda: masked_autoencoder_axes(model),
        prepare=prepare,
        encode=encode,
        combine=combine,
        project=lambda params: params,
    )
