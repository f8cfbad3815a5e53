"""Objectives: a model and its losses, chosen by the type of their config."""

from typing import TypeAlias

from alm_jax.objectives.contrastive import ContrastiveConfig, build_contrastive
from alm_jax.objectives.masked_spectrogram import MaskedSpectrogramConfig, build_masked_spectrogram
from alm_jax.objectives.objective import Objective

ObjectiveConfig: TypeAlias = ContrastiveConfig | MaskedSpectrogramConfig


def build_objective(config: ObjectiveConfig) -> Objective:
    """The objective that ``config``'s type names."""
    match config:
        case ContrastiveConfig():
            return build_contrastive(config)
        case MaskedSpectrogramConfig():
            return build_masked_spectrogram(config)
