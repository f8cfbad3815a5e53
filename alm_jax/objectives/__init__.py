"""Objectives: a model and its losses, chosen by the type of their config."""

from typing import TypeAlias

from alm_jax.objectives.calm import CalmConfig, build_calm
from alm_jax.objectives.contrastive import ContrastiveConfig, build_contrastive
from alm_jax.objectives.ctal import CtalConfig, build_ctal
from alm_jax.objectives.language_modeling import LanguageModelingConfig, build_language_modeling
from alm_jax.objectives.masked_prediction import MaskedPredictionConfig, build_masked_prediction
from alm_jax.objectives.masked_spectrogram import MaskedSpectrogramConfig, build_masked_spectrogram
from alm_jax.objectives.objective import Objective
from alm_jax.objectives.query_transformer import QueryTransformerConfig, build_query_transformer
from alm_jax.objectives.together import TogetherConfig, build_together
from alm_jax.objectives.tokenizer_distillation import (
    TokenizerDistillationConfig,
    build_tokenizer_distillation,
)
from alm_jax.objectives.unit_language_modeling import (
    UnitLanguageModelingConfig,
    build_unit_language_modeling,
)

ObjectiveConfig: TypeAlias = (
    CalmConfig
    | ContrastiveConfig
    | CtalConfig
    | LanguageModelingConfig
    | MaskedPredictionConfig
    | MaskedSpectrogramConfig
    | QueryTransformerConfig
    | TogetherConfig
    | TokenizerDistillationConfig
    | UnitLanguageModelingConfig
)


def build_objective(config: ObjectiveConfig) -> Objective:
    """The objective that ``config``'s type names."""
    match config:
        case CalmConfig():
            return build_calm(config)
        case CtalConfig():
            return build_ctal(config)
        case ContrastiveConfig():
            return build_contrastive(config)
        case LanguageModelingConfig():
            return build_language_modeling(config)
        case MaskedPredictionConfig():
            return build_masked_prediction(config)
        case QueryTransformerConfig():
            return build_query_transformer(config)
        case TogetherConfig():
            return build_together(config)
        case TokenizerDistillationConfig():
            return build_tokenizer_distillation(config)
        case MaskedSpectrogramConfig():
            return build_masked_spectrogram(config)
        case UnitLanguageModelingConfig():
            return build_unit_language_modeling(config)
