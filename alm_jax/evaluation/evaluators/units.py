"""The discrete units of recordings: how many a recording has, and how evenly they are used."""

import dataclasses
from typing import ClassVar

import numpy as np

from alm_jax import batch as contract
from alm_jax.evaluation.evaluator import Evaluation, Evaluator
from alm_jax.evaluation.metrics.units import describe_units
from alm_jax.evaluation.model import EvaluatedModel
from alm_jax.evaluation.report.sections import Section, Table
from alm_jax.evaluation.split import EvaluationSplit
from alm_jax.figures import Figure
from alm_jax.models.capabilities import EncodesUnits

NUM_SHOWN = 12
"""Number of recordings whose units are shown."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Units(Evaluator):
    """How the units of a split are distributed: a tokenizer that has collapsed uses few."""

    name: str = "units"

    declared: ClassVar[tuple[Figure, ...]] = (
        Figure(name="per_clip", label="units of a clip"),
        Figure(name="used", label="different units in use"),
        Figure(name="perplexity", label="perplexity of the units"),
    )

    def obstacle(self, model: EvaluatedModel, split: EvaluationSplit) -> str:
        """Needs a model that turns audio into units."""
        return "" if model.can(EncodesUnits) else "the model makes no units of audio"

    def evaluate(self, model: EvaluatedModel, split: EvaluationSplit) -> Evaluation:
        """Counts over all recordings."""
        units: list[np.ndarray] = []
        for batch in split.batches():
            real = batch[contract.MASK]
            found, mask = model.run("encode_units", model.place(batch))
            units += [row[is_real] for row, is_real in zip(found[real], mask[real], strict=True)]

        def sections() -> list[Section]:
            rows = [
                (
                    split.id(int(place)),
                    " ".join(map(str, units[place])),
                    " / ".join(split.captions(int(place))[:2]),
                )
                for place in split.shown(NUM_SHOWN)
            ]
            return [Section(heading="Units of recordings", table=Table(("clip", "units", "caption"), rows))]

        return Evaluation(describe_units(units, model.capabilities.num_units), sections)
