"""Suites: the field's standard protocols, each a data set, a split and evaluators, for any model that loads."""

import dataclasses
from collections.abc import Callable, Sequence

from alm_jax.errors import UserError
from alm_jax.evaluation.evaluator import Evaluator
from alm_jax.evaluation.evaluators.linear_probe import LinearProbe
from alm_jax.evaluation.evaluators.retrieval import Retrieval
from alm_jax.evaluation.evaluators.zero_shot import ZeroShot
from alm_jax.evaluation.metrics.zero_shot import LAION_TEMPLATE
from data_pipelines.dataset import DatasetConfig
from data_pipelines.datasets.audiocaps import AudioCapsConfig
from data_pipelines.datasets.clotho import ClothoConfig
from data_pipelines.datasets.esc50 import Esc50Config
from data_pipelines.datasets.recordings import RecordingsConfig

FOLDS = tuple(f"fold{number}" for number in range(1, 6))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """One protocol: what is measured on which split of which data set."""

    about: str
    """Description in one line."""
    dataset: Callable[[str], DatasetConfig]
    """(folder of the data set) -> its config."""
    splits: tuple[str, ...]
    """Splits that are measured, together; those that a copy of the data set lacks are left out."""
    evaluators: tuple[Evaluator, ...] = ()
    """Evaluators of the suite; empty: all that model and data allow."""
    leaves_out: LinearProbe | None = None
    """A probe of each split that is fitted on the others; None for none."""

    def choose(self, present: Sequence[str], asked: str | None) -> tuple[str, tuple[Evaluator, ...]]:
        """The split(s) that are measured, joined with ``+``, and the evaluators.

        Args:
            present: Splits of the data set.
            asked: Split(s) to measure in place of the suite's own; None for those.

        Raises UserError where the data set has none of the suite's splits, or nothing is left to fit a probe on.
        """
        own = [split for split in self.splits if split in present]
        if not own and not asked:
            raise UserError(
                f"the data set has none of the suite's splits {', '.join(self.splits)}, only {', '.join(present)}; "
                "choose one by --split"
            )
        measured = asked.split("+") if asked else own
        if self.leaves_out is None:
            return "+".join(measured), self.evaluators
        if len(own) < 2:
            raise UserError(
                f"a probe that leaves a split out needs two or more; the data set has {', '.join(own)}"
            )
        probes = tuple(
            dataclasses.replace(
                self.leaves_out,
                name=f"{self.leaves_out.name}_{split}",
                split=split,
                fit_split="+".join(other for other in own if other != split),
            )
            for split in measured
        )
        return "+".join(measured), probes


SUITES: dict[str, Suite] = {
    "esc50": Suite(
        about="zero-shot accuracy on all five folds of ESC-50 (the CLAP papers' protocol)",
        dataset=lambda root: Esc50Config(root=root),
        splits=FOLDS,
        evaluators=(ZeroShot(templates=(LAION_TEMPLATE,)),),
    ),
    "esc10": Suite(
        about="zero-shot accuracy on all five folds of ESC-10",
        dataset=lambda root: Esc50Config(root=root, subset="esc10"),
        splits=FOLDS,
        evaluators=(ZeroShot(templates=(LAION_TEMPLATE,)),),
    ),
    "esc50_probe": Suite(
        about="linear probe on each fold of ESC-50, fitted on the others",
        dataset=lambda root: Esc50Config(root=root),
        splits=FOLDS,
        leaves_out=LinearProbe(),
    ),
    "esc10_probe": Suite(
        about="linear probe on each fold of ESC-10, fitted on the others",
        dataset=lambda root: Esc50Config(root=root, subset="esc10"),
        splits=FOLDS,
        leaves_out=LinearProbe(),
    ),
    "audiocaps": Suite(
        about="retrieval both ways on the test split of AudioCaps, five captions a clip",
        dataset=lambda root: AudioCapsConfig(root=root),
        splits=("test",),
        evaluators=(Retrieval(),),
    ),
    "clotho": Suite(
        about="retrieval both ways on the evaluation split of Clotho 2.1, five captions a clip",
        dataset=lambda root: ClothoConfig(root=root),
        splits=("evaluation",),
        evaluators=(Retrieval(),),
    ),
    "own": Suite(
        about="everything that model and data allow, on recordings of your own (docs/own_data.md)",
        dataset=lambda root: RecordingsConfig(path=root),
        splits=("test",),
    ),
}
"""All suites by name."""


def suite_named(name: str) -> Suite:
    """The suite of a name. Raises UserError where there is none."""
    if name not in SUITES:
        raise UserError(f"there is no suite {name!r}; the suites are {', '.join(SUITES)}")
    return SUITES[name]
