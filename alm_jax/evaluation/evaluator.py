"""What an evaluator is: a frozen config with a method that measures a model on a split of data.

An evaluator is one file of `alm_jax.evaluation.evaluators`, or any module that is imported before a config names it:
a subclass of `Evaluator` registers itself. It asks a model for capabilities (`alm_jax.models.capabilities`), never for
its type. Its figures are prefixed with its name, so that a run can have several of a kind, each on its own data.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from alm_jax.errors import UserError
from alm_jax.evaluation.metrics.bootstrap import Scores
from alm_jax.evaluation.model import EvaluatedModel
from alm_jax.evaluation.report.sections import Section
from alm_jax.evaluation.split import EvaluationSplit
from alm_jax.figures import Figure
from alm_jax.objectives.objective import Objective
from data_pipelines.config import DataConfig

Figures = Mapping[str, float | int]


def no_sections() -> list[Section]:
    """Nothing to show beside the figures."""
    return []


class Evaluation(NamedTuple):
    """What an evaluator found."""

    figures: Figures
    """Numbers by name, without the evaluator's own name before them."""
    sections: Callable[[], list[Section]] = no_sections
    """Makes the evaluator's part of a report; called when a report is drawn, and not in every evaluation."""
    scores: Mapping[str, Scores] = MappingProxyType({})
    """The scores of single recordings, by the name of the figure that is their mean."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """The fields that every evaluator has. A subclass has defaults for all of its fields."""

    name: str
    """Prefix of its figures, as in ``NAME/accuracy``; unique among the evaluators of a run."""
    data: DataConfig | None = None
    """The data set that is measured, with the run's tokenizer; None for the run's own."""
    split: str = ""
    """Split(s) of the data set, joined with ``+``; empty for its ``eval_split``."""
    every: int = 1
    """Measured in each ``every``-th evaluation of a run, and always in the last; raise it for a costly evaluator."""

    declared: ClassVar[tuple[Figure, ...]] = ()
    """Declarations of the figures that it measures, by their names without its own."""
    _kinds: ClassVar[list[Any]] = []

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        Evaluator._kinds.append(cls)

    @classmethod
    def kinds(cls) -> list[Any]:
        """The class of every evaluator that is known, those of other packages in the order of their import."""
        importlib.import_module("alm_jax.evaluation.evaluators")
        return list(Evaluator._kinds)

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name != self.name.strip():
            raise UserError(
                f"an evaluator is named {self.name!r}; expected a name without '/' or outer spaces"
            )
        if self.every < 1:
            raise UserError(f"evaluator {self.name!r} has every={self.every}; expected 1 or more")

    def obstacle(self, model: EvaluatedModel, split: EvaluationSplit) -> str:
        """Why this evaluator cannot measure this model on this split, in words; empty where it can."""
        return ""

    def is_default(self, model: EvaluatedModel, split: EvaluationSplit) -> bool:
        """Whether a run that names no evaluators has this one, where nothing hinders it."""
        return True

    def evaluate(self, model: EvaluatedModel, split: EvaluationSplit) -> Evaluation:
        """Measures; the same on every process.

        Raises DataError where the figures cannot be computed, as of embeddings that are not finite.
        """
        raise NotImplementedError

    def figures(self, objective: Objective | None) -> dict[str, Figure]:
        """Its declarations by full name, ``NAME/accuracy``; ``objective`` is what the model was trained for."""
        found = {}
        for figure in self.declared:
            chance = f"{self.name}/{figure.chance}" if figure.chance else ""
            full = dataclasses.replace(figure, name=f"{self.name}/{figure.name}", chance=chance)
            found[full.name] = full
        return found
