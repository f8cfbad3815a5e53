"""Which evaluation belongs to which objective: what a run needs, what is measured of it, and its report."""

from collections.abc import Mapping

from alm_jax.cli import (
    calm,
    ctal,
    language_modeling,
    masked_prediction,
    masked_spectrogram,
    query_transformer,
    report,
    together,
    tokenizer_distillation,
    two_towers,
    unit_language_modeling,
)
from alm_jax.objectives import (
    CalmConfig,
    ContrastiveConfig,
    CtalConfig,
    LanguageModelingConfig,
    MaskedPredictionConfig,
    MaskedSpectrogramConfig,
    ObjectiveConfig,
    QueryTransformerConfig,
    TogetherConfig,
    TokenizerDistillationConfig,
    UnitLanguageModelingConfig,
)
from alm_jax.run.train import Evaluation

EVALUATIONS: Mapping[type, Evaluation] = {
    CalmConfig: Evaluation(check=calm.check, evaluate=calm.evaluate, write_report=calm.write_run_report),
    CtalConfig: Evaluation(check=ctal.check, evaluate=ctal.evaluate, write_report=ctal.write_run_report),
    ContrastiveConfig: Evaluation(
        check=two_towers.check, evaluate=two_towers.evaluate, write_report=report.write_run_report
    ),
    LanguageModelingConfig: Evaluation(
        check=language_modeling.check,
        evaluate=language_modeling.evaluate,
        write_report=language_modeling.write_run_report,
    ),
    MaskedSpectrogramConfig: Evaluation(
        check=masked_spectrogram.check,
        evaluate=masked_spectrogram.evaluate,
        write_report=masked_spectrogram.write_run_report,
    ),
    MaskedPredictionConfig: Evaluation(
        check=masked_prediction.check,
        evaluate=masked_prediction.evaluate,
        write_report=masked_prediction.write_run_report,
    ),
    TogetherConfig: Evaluation(
        check=together.check, evaluate=together.evaluate, write_report=together.write_run_report
    ),
    QueryTransformerConfig: Evaluation(
        check=query_transformer.check,
        evaluate=query_transformer.evaluate,
        write_report=query_transformer.write_run_report,
    ),
    TokenizerDistillationConfig: Evaluation(
        check=tokenizer_distillation.check,
        evaluate=tokenizer_distillation.evaluate,
        write_report=tokenizer_distillation.write_run_report,
    ),
    UnitLanguageModelingConfig: Evaluation(
        check=unit_language_modeling.check,
        evaluate=unit_language_modeling.evaluate,
        write_report=unit_language_modeling.write_run_report,
        initialise=unit_language_modeling.initialise,
    ),
}
"""By the type of the objective's config."""


def evaluation_of(config: ObjectiveConfig) -> Evaluation:
    """The evaluation of an objective."""
    return EVALUATIONS[type(config)]
