"""Which evaluation belongs to which objective: what is measured of it, and its report."""

from collections.abc import Mapping

from alm_jax.cli import (
    calm,
    ctal,
    language_modeling,
    masked_prediction,
    masked_spectrogram,
    multi_task,
    query_transformer,
    report,
    tokenizer_distillation,
    two_towers,
    unit_language_modeling,
)
from alm_jax.cli.linear_probe import check_probe
from alm_jax.objectives import ObjectiveConfig
from alm_jax.objectives.calm import CalmConfig
from alm_jax.objectives.contrastive import ContrastiveConfig
from alm_jax.objectives.ctal import CtalConfig
from alm_jax.objectives.language_modeling import LanguageModelingConfig
from alm_jax.objectives.masked_prediction import MaskedPredictionConfig
from alm_jax.objectives.masked_spectrogram import MaskedSpectrogramConfig
from alm_jax.objectives.multi_task import MultiTaskConfig
from alm_jax.objectives.query_transformer import QueryTransformerConfig
from alm_jax.objectives.tokenizer_distillation import TokenizerDistillationConfig
from alm_jax.objectives.unit_language_modeling import UnitLanguageModelingConfig
from alm_jax.run.train import Evaluation

EVALUATIONS: Mapping[type, Evaluation] = {
    CalmConfig: Evaluation(evaluate=calm.evaluate, write_report=calm.write_run_report),
    CtalConfig: Evaluation(check=check_probe, evaluate=ctal.evaluate, write_report=ctal.write_run_report),
    ContrastiveConfig: Evaluation(evaluate=two_towers.evaluate, write_report=report.write_run_report),
    LanguageModelingConfig: Evaluation(
        evaluate=language_modeling.evaluate,
        write_report=language_modeling.write_run_report,
    ),
    MaskedSpectrogramConfig: Evaluation(
        check=check_probe,
        evaluate=masked_spectrogram.evaluate,
        write_report=masked_spectrogram.write_run_report,
    ),
    MaskedPredictionConfig: Evaluation(
        check=check_probe,
        evaluate=masked_prediction.evaluate,
        write_report=masked_prediction.write_run_report,
    ),
    MultiTaskConfig: Evaluation(evaluate=multi_task.evaluate, write_report=multi_task.write_run_report),
    QueryTransformerConfig: Evaluation(
        evaluate=query_transformer.evaluate,
        write_report=query_transformer.write_run_report,
    ),
    TokenizerDistillationConfig: Evaluation(
        check=check_probe,
        evaluate=tokenizer_distillation.evaluate,
        write_report=tokenizer_distillation.write_run_report,
    ),
    UnitLanguageModelingConfig: Evaluation(
        evaluate=unit_language_modeling.evaluate,
        write_report=unit_language_modeling.write_run_report,
    ),
}
"""By the type of the objective's config."""


def evaluation_of(config: ObjectiveConfig) -> Evaluation:
    """The evaluation of an objective."""
    return EVALUATIONS[type(config)]
