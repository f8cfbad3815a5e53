"""The linear probe: a logistic regression on the vectors of recordings, beside the same on the untrained encoder."""

import dataclasses
from typing import ClassVar

import numpy as np

from alm_jax.evaluation.evaluator import Evaluation, Evaluator
from alm_jax.evaluation.metrics.bootstrap import Scores
from alm_jax.evaluation.metrics.linear_probe import linear_probe_hits, probe_classes
from alm_jax.evaluation.model import EvaluatedModel, Variables
from alm_jax.evaluation.split import EvaluationSplit
from alm_jax.figures import Figure
from alm_jax.models.capabilities import EmbedsAudio, EmbedsText

PANEL = "Linear probe on held-out clips"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearProbe(Evaluator):
    """Accuracy of a classifier that is fitted on the training split's vectors, whose labels training does not read."""

    name: str = "linear_probe"
    fit_split: str = ""
    """Split(s) that the classifier is fitted on; empty: the run's training split."""

    declared: ClassVar[tuple[Figure, ...]] = (
        Figure(
            name="accuracy",
            label="linear probe",
            panel=PANEL,
            series="this encoder",
            is_share=True,
            chance="chance",
            is_higher_better=True,
            is_headline=True,
            is_shown=True,
        ),
        Figure(
            name="random_accuracy",
            label="linear probe, untrained encoder",
            panel=PANEL,
            series="untrained encoder",
            is_share=True,
            chance="chance",
            is_headline=True,
            is_shown=True,
        ),
        Figure(name="chance", label="linear probe by chance", is_share=True),
    )

    def obstacle(self, model: EvaluatedModel, split: EvaluationSplit) -> str:
        """Needs vectors of recordings, and two or more classes on both splits."""
        if not model.can(EmbedsAudio):
            return "the model does not embed recordings"
        fit_split = self.fit_split or model.train_split
        if not fit_split:
            return f"evaluator {self.name!r} has no fit_split, and the model's training split is not known"
        if not probe_classes(split.sibling(fit_split).labels, split.labels):
            return (
                f"not every recording of {fit_split!r} and {split.name!r} has a class, or there is only one"
            )
        # Found out now, and not after training: the package is optional.
        import sklearn.linear_model  # noqa: F401

        return ""

    def is_default(self, model: EvaluatedModel, split: EvaluationSplit) -> bool:
        """Models with text embeddings are measured zero-shot instead."""
        return not model.can(EmbedsText)

    def evaluate(self, model: EvaluatedModel, split: EvaluationSplit) -> Evaluation:
        """Accuracy on the split; the untrained encoder's is computed once a run."""
        fit_split = split.sibling(self.fit_split or model.train_split)

        def probe(variables: Variables | None) -> np.ndarray:
            found = [
                model.embed_split(one) if variables is None else model.embed_split_with(one, variables)
                for one in (fit_split, split)
            ]
            return linear_probe_hits(found[0].emb, found[0].labels, found[1].emb, found[1].labels)

        hits = probe(None)
        figures = {"accuracy": float(np.mean(hits))}
        if model.draw_untrained is not None:
            key = type(self), fit_split.name, split.name, split.data.fingerprint
            if key not in model.kept:
                model.kept[key] = float(np.mean(probe(model.draw_untrained())))
            figures["random_accuracy"] = model.kept[key]
        scores = {"accuracy": Scores(hits.astype(np.float64), np.arange(len(hits)))}
        return Evaluation({**figures, "chance": 1 / len(split.class_names)}, scores=scores)
