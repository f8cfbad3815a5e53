"""Contrastive language-audio pre-training: two towers under a loss over all pairs of the batch.

Source: the survey's L_con (arXiv 2501.15177); CLAP (arXiv 2206.04769, 2211.06687).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from alm_jax import batch as contract
from alm_jax.models import two_towers
from alm_jax.objectives.contrastive_losses import (
    InfoNceConfig,
    LossConfig,
    contrastive_loss,
    init_scalars,
    project_scalars,
)
from alm_jax.objectives.objective import Inputs, Loss, Objective
from alm_jax.ops import augment
from alm_jax.ops.frontends import compute_features
from alm_jax.ops.frontends.clip import fit_clips
from alm_jax.ops.frontends.pcm import pcm_to_float
from alm_jax.types import Metrics, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class WaveformAugmentConfig:
    """Augmentation of the waveform in training; each is drawn anew for every clip and step."""

    gain_db: float = 0.0
    """Gain drawn uniformly from plus or minus this many decibels; 0 leaves the level alone."""
    roll: bool = False
    """Rotate each recording in time by a random amount."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """Two towers, aligned by a contrastive loss."""

    model: two_towers.TwoTowersConfig
    """The two towers and their front-end."""
    augment: WaveformAugmentConfig = WaveformAugmentConfig()
    """Waveform augmentation; SpecAugment belongs to the audio encoder."""
    loss: LossConfig = InfoNceConfig()
    """The loss, and how it is computed."""


def cut_clips(
    config: two_towers.TwoTowersConfig, batch: dict[str, Any], *, crop: str, key: Any = None
) -> tuple[Array, Array]:
    """A batch's recordings as clips of the front-end's length, on the device.

    Returns waveforms [B C W] float32 and a mask [B C] of the C chunks of each recording, where C = 1
    unless ``crop`` is "chunks". ``key`` is needed where ``crop`` is "random".
    """
    return fit_clips(
        pcm_to_float(batch[contract.AUDIO]),
        batch[contract.AUDIO_NUM_SAMPLES],
        clip_samples=config.frontend.clip_samples,
        crop=crop,
        pad=config.frontend.clip.pad,
        key=key,
    )


def augment_waveform(waveform: Array, key: Any, config: WaveformAugmentConfig) -> Array:
    """Waveforms [B W], augmented clip by clip."""
    if config.gain_db:
        waveform = augment.random_gain(waveform, jax.random.fold_in(key, 0), max_db=config.gain_db)
    if config.roll:
        waveform = augment.roll_time(waveform, jax.random.fold_in(key, 1))
    return waveform


def build_contrastive(config: ContrastiveConfig) -> Objective:
    """The objective as pure functions."""
    model = config.model

    def prepare(batch: dict[str, Any], key: Any, *, train: bool, axis_name: str | None = None) -> Inputs:
        crop = model.frontend.clip.train_crop if train else "centre"
        waveform = cut_clips(model, batch, crop=crop, key=jax.random.fold_in(key, 2) if train else None)[0]
        waveform = waveform[:, 0]
        if train:
            waveform = augment_waveform(waveform, key, config.augment)
        features = compute_features(waveform, model.frontend)
        rows = (features, batch[contract.TEXT_IDS], batch[contract.TEXT_MASK])
        moments = None
        if train:
            moments = two_towers.feature_moments(features, batch[contract.MASK], axis_name=axis_name)
        return Inputs(rows, moments)

    def encode(
        variables: dict[str, Any], inputs: Inputs, key: Any, *, train: bool, axis_name: str | None = None
    ) -> tuple[tuple[Array, Array], Params]:
        features, text_ids, text_mask = inputs.rows
        key_audio, key_text = jax.random.split(key) if train else (None, None)
        audio_emb, batch_stats = two_towers.encode_audio(
            model, variables, features, train=train, key=key_audio, moments=inputs.shared, axis_name=axis_name
        )
        text_emb = two_towers.encode_text(model, variables, text_ids, text_mask, train=train, key=key_text)
        return (audio_emb, text_emb), batch_stats

    def combine(
        params: Params, outputs: tuple[Array, Array], batch: dict[str, Any], *, axis_name: str | None = None
    ) -> tuple[Loss, Metrics]:
        audio_emb, text_emb = outputs
        loss, scale = contrastive_loss(config.loss, params, audio_emb, text_emb, batch, axis_name=axis_name)
        positive = jnp.sum(audio_emb * text_emb, axis=-1)
        cosine = jnp.sum(jnp.where(batch[contract.MASK], positive, 0.0))
        return loss, {
            "logit_scale": Loss(scale * loss.weight, loss.weight),
            "positive_cosine": Loss(cosine, loss.weight),
        }

    def init(key: Any) -> dict[str, Params]:
        variables = two_towers.init_two_towers(model, key)
        return {**variables, "params": {**variables["params"], **init_scalars(config.loss)}}

    def axes() -> Any:
        return {**two_towers.two_towers_axes(model), **dict.fromkeys(init_scalars(config.loss), ())}

    def project(params: Params) -> Params:
        return {**params, **project_scalars(config.loss, params)}

    return Objective(
        init=init,
        axes=axes,
        prepare=prepare,
        encode=encode,
        combine=combine,
        project=project,
    )
