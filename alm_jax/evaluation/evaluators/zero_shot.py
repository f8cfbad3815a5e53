"""Zero-shot classification: each recording is of the class whose prompts lie nearest (CLIP, arXiv 2103.00020)."""

import dataclasses
from typing import ClassVar

import numpy as np

from alm_jax.errors import UserError
from alm_jax.evaluation.evaluator import Evaluation, Evaluator
from alm_jax.evaluation.metrics.bootstrap import Scores
from alm_jax.evaluation.metrics.zero_shot import (
    LAION_TEMPLATE,
    build_prompts,
    class_embeddings,
    confusion_matrix,
    zero_shot_hits,
    zero_shot_metrics,
)
from alm_jax.evaluation.model import EvaluatedModel
from alm_jax.evaluation.report.pictures import draw_confusion
from alm_jax.evaluation.report.sections import Picture, Section
from alm_jax.evaluation.split import EvaluationSplit
from alm_jax.figures import Figure
from alm_jax.models.capabilities import EmbedsAudio, EmbedsText


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShot(Evaluator):
    """Classification by the text embeddings of class names; needs one label a recording."""

    name: str = "zero_shot"
    templates: tuple[str, ...] = ()
    """Prompt templates of a class, with ``{}`` for its name. With several, a class is the mean of its prompts'
    vectors. Empty: the templates of the data set's captions, or LAION-CLAP's where there are none."""

    declared: ClassVar[tuple[Figure, ...]] = (
        Figure(
            name="accuracy",
            label="zero-shot accuracy",
            panel="Zero-shot accuracy on held-out clips",
            series="accuracy",
            is_share=True,
            chance="chance",
            is_higher_better=True,
            is_headline=True,
            is_shown=True,
        ),
        Figure(name="chance", label="zero-shot accuracy by chance", is_share=True),
        Figure(
            name="mean_per_class_accuracy",
            label="zero-shot accuracy, mean over classes",
            is_share=True,
            chance="chance",
            is_higher_better=True,
        ),
        Figure(name="num_clips", label="number of recordings classified"),
        Figure(name="top5_accuracy", label="zero-shot top-5 accuracy", is_share=True, is_higher_better=True),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for template in self.templates:
            if template.count("{}") != 1:
                raise UserError(
                    f"evaluator {self.name!r} has the template {template!r}; expected exactly one {{}} where the name "
                    "of the class goes"
                )

    def obstacle(self, model: EvaluatedModel, split: EvaluationSplit) -> str:
        """Needs vectors of recordings and texts in one space, and a class of every recording."""
        if not model.can(EmbedsAudio, EmbedsText):
            return "the model does not embed recordings and texts in one space"
        return "" if split.has_classes else f"not every recording of {split.name!r} has a class"

    def evaluate(self, model: EvaluatedModel, split: EvaluationSplit) -> Evaluation:
        """Accuracy over recordings, over classes, and of each class."""
        audio, names = model.embed_split(split), split.class_names
        prompts = build_prompts(names, self.templates or split.templates or (LAION_TEMPLATE,))
        class_emb = class_embeddings(model.embed_texts(prompts, split), len(names))
        found = zero_shot_metrics(audio.emb, class_emb, audio.labels, names)
        confusion = confusion_matrix(audio.emb, class_emb, audio.labels)

        def sections() -> list[Section]:
            picture = Picture("confusion", draw_confusion(confusion, names), "Zero-shot confusion matrix")
            return [Section(heading="Zero-shot classification", pictures=(picture,))]

        hits = zero_shot_hits(audio.emb, class_emb, audio.labels).astype(np.float64)
        return Evaluation(found, sections, {"accuracy": Scores(hits, np.arange(len(hits)))})
