"""Evaluator that shows a model's reconstructions of hidden parts of recordings; their loss is part of the validation
loss."""

import dataclasses
from typing import Any

from alm_jax import batch as contract
from alm_jax.evaluation.clip_pictures import band_centres_hz
from alm_jax.evaluation.evaluator import Evaluation, Evaluator
from alm_jax.evaluation.model import EvaluatedModel
from alm_jax.evaluation.report.pictures import draw_reconstruction
from alm_jax.evaluation.report.sections import Picture, Section
from alm_jax.evaluation.split import EvaluationSplit
from alm_jax.models.capabilities import Reconstructs

NUM_PICTURES = 6
"""Number of recordings shown with their reconstruction."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructionPictures(Evaluator):
    """Input, mask and reconstruction of some recordings, in a report; no figures."""

    name: str = "reconstruction"

    def obstacle(self, model: EvaluatedModel, split: EvaluationSplit) -> str:
        """Needs a model that reconstructs."""
        return "" if model.can(Reconstructs) else "the model reconstructs nothing"

    def evaluate(self, model: EvaluatedModel, split: EvaluationSplit) -> Evaluation:
        """Nothing is measured; the pictures are drawn with the report."""
        return Evaluation({}, lambda: [draw_split(model, split)])


def draw_split(model: EvaluatedModel, split: EvaluationSplit) -> Section:
    """The reconstruction of some recordings from all over a split."""
    frontend: Any = model.frontend
    found: list[Picture] = []
    for rows in split.rows(split.shown(NUM_PICTURES)):
        maps = model.run("reconstruct", rows)
        for row, index in enumerate(rows[contract.INDEX]):
            name = split.id(int(index))
            png = draw_reconstruction(
                *(x[row] for x in maps),
                title=name,
                frame_sec=frontend.hop_samples / frontend.sample_rate_hz,
                mel_frequencies_hz=band_centres_hz(frontend),
            )
            description = f"{name}: input, mask and reconstruction"
            found.append(Picture(f"reconstruction_{len(found):02d}", png, description))
    return Section(
        heading="What the model draws",
        note="The decoder draws what the encoder is not shown; the rest stands as it is.",
        pictures=found,
    )
