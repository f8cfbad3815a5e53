"""The labels that a tokenizer gives to patches: how many are in use, how evenly, and what they look like."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from alm_jax import batch as contract
from alm_jax.evaluation.clip_pictures import band_centres_hz
from alm_jax.evaluation.evaluator import Evaluation, Evaluator
from alm_jax.evaluation.metrics.units import perplexity
from alm_jax.evaluation.model import EvaluatedModel
from alm_jax.evaluation.report.pictures import draw_labels
from alm_jax.evaluation.report.sections import Picture, Section
from alm_jax.evaluation.split import EvaluationSplit
from alm_jax.figures import Figure
from alm_jax.models.capabilities import LabelsPatches

NUM_PICTURES = 6
"""Number of recordings shown with their labels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchLabels(Evaluator):
    """How the labels of patches are distributed: a tokenizer that has collapsed gives one to all."""

    name: str = "labels"

    declared: ClassVar[tuple[Figure, ...]] = (
        Figure(name="used", label="different labels in use"),
        Figure(
            name="perplexity",
            label="perplexity of the labels",
            panel="Perplexity of the labels",
            series="validation",
            is_shown=True,
        ),
        Figure(name="most_frequent", label="share of the most frequent label", is_share=True),
    )

    def obstacle(self, model: EvaluatedModel, split: EvaluationSplit) -> str:
        """Needs a model that labels patches."""
        return "" if model.can(LabelsPatches) else "the model does not label patches"

    def evaluate(self, model: EvaluatedModel, split: EvaluationSplit) -> Evaluation:
        """Counts over all patches of all recordings."""
        counts = np.zeros(1, np.int64)
        for batch in split.batches():
            # Predictions are not read, so that the compiler leaves them out.
            labels = model.run("count_labels", model.place(batch))
            counts = np.asarray(labels, np.int64) + counts
        figures = {
            "used": int(np.count_nonzero(counts)),
            "perplexity": perplexity(counts),
            "most_frequent": float(counts.max() / max(counts.sum(), 1)),
        }
        return Evaluation(figures, lambda: [draw_split(model, split)])


def draw_split(model: EvaluatedModel, split: EvaluationSplit) -> Section:
    """The labels of some recordings from all over a split."""
    frontend: Any = model.frontend
    found: list[Picture] = []
    for rows in split.rows(split.shown(NUM_PICTURES)):
        maps = model.run("label_patches", rows)
        for row, index in enumerate(rows[contract.INDEX]):
            name = split.id(int(index))
            clip: list[Any] = [None if x is None else x[row] for x in maps]
            png = draw_labels(
                *clip,
                title=name,
                frame_sec=frontend.hop_samples / frontend.sample_rate_hz,
                mel_frequencies_hz=band_centres_hz(frontend),
            )
            found.append(Picture(f"labels_{len(found):02d}", png, f"{name}: input and labels of its patches"))
    return Section(
        heading="Labels of the patches",
        note="Each label of the tokenizer has a colour; where all patches have one, it has collapsed.",
        pictures=found,
    )
