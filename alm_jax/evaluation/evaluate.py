"""Runs evaluators over a model and its data: which take part, what they measure, and their parts of a report."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from alm_jax.errors import UserError
from alm_jax.evaluation.evaluator import Evaluation, Evaluator
from alm_jax.evaluation.model import EvaluatedModel
from alm_jax.evaluation.report.sections import Section
from alm_jax.evaluation.split import EvaluationSplit
from alm_jax.figures import Figure

SplitOf = Callable[[Evaluator], EvaluationSplit]
"""The split that an evaluator measures; the same object for all that measure the same."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Results of all evaluators of one evaluation."""

    figures: dict[str, float | int]
    """Figures by full name, which begins with the evaluator's: ``retrieval/text_to_audio/r@1``."""
    evaluations: Mapping[str, Evaluation]
    """What each evaluator found, by its name."""

    def sections(self) -> list[Section]:
        """The parts of a report, drawn now."""
        return [section for found in self.evaluations.values() for section in found.sections()]


def check_names(evaluators: Sequence[Evaluator]) -> None:
    """Raises UserError where two evaluators have one name."""
    names = [evaluator.name for evaluator in evaluators]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"two evaluators are called {twice[0]!r}; give each of `evaluations` a name of its own"
        )


def choose_evaluators(
    named: Sequence[Evaluator], model: EvaluatedModel, split_of: SplitOf
) -> tuple[Evaluator, ...]:
    """Those that ``named`` has, or, where it is empty, all that the model and its data allow.

    Raises UserError where one that is named cannot measure this model.
    """
    check_names(named)
    for evaluator in named:
        obstacle = evaluator.obstacle(model, split_of(evaluator))
        if obstacle:
            raise UserError(
                f"evaluator {evaluator.name!r} ({type(evaluator).__name__}) cannot be used: {obstacle}. Leave it out "
                "of `evaluations`, or change the model or the data"
            )
    if named:
        return tuple(named)
    every: list[Evaluator] = [kind() for kind in Evaluator.kinds()]
    return tuple(
        evaluator
        for evaluator in every
        if evaluator.is_default(model, split_of(evaluator))
        and not evaluator.obstacle(model, split_of(evaluator))
    )


def evaluate(
    evaluators: Sequence[Evaluator], model: EvaluatedModel, split_of: SplitOf, *, count: int | None = None
) -> EvaluationResult:
    """Measures a model.

    ``count`` is the number of this evaluation in its run, from 1: evaluators with ``every`` take part in some. None
    is the last one, or one by itself, in which all take part.
    """
    found: dict[str, Evaluation] = {}
    for evaluator in evaluators:
        if count is None or count % evaluator.every == 0:
            found[evaluator.name] = evaluator.evaluate(model, split_of(evaluator))
    figures = {
        f"{name}/{key}": value
        for name, evaluation in found.items()
        for key, value in evaluation.figures.items()
    }
    return EvaluationResult(figures=figures, evaluations=found)


def declared_figures(evaluators: Sequence[Evaluator], model: EvaluatedModel) -> dict[str, Figure]:
    """Declarations of the figures of training and of these evaluators, by full name."""
    found = {figure.name: figure for figure in (model.objective.figures if model.objective else ())}
    for evaluator in evaluators:
        found |= evaluator.figures(model.objective)
    return found
