"""The validation loss: the mean over a split of what was trained, without noise, and of the objective's figures."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alm_jax import batch as contract
from alm_jax.evaluation.evaluator import Evaluation, Evaluator
from alm_jax.evaluation.means import split_means
from alm_jax.evaluation.model import EvaluatedModel, caption_owners
from alm_jax.evaluation.split import EvaluationSplit
from alm_jax.figures import Figure
from alm_jax.objectives.contrastive_losses import Negatives
from alm_jax.objectives.objective import Objective, PairLoss
from alm_jax.types import Metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationLoss(Evaluator):
    """The objective's loss and figures on held-out recordings, without augmentation or dropout."""

    name: str = "validation"

    declared: ClassVar[tuple[Figure, ...]] = (
        Figure(
            name="loss",
            label="validation loss",
            panel="Loss",
            series="validation",
            is_higher_better=False,
            is_shown=True,
        ),
    )

    def obstacle(self, model: EvaluatedModel, split: EvaluationSplit) -> str:
        """The model's objective must be known, as it is of a run."""
        return "" if model.objective else "what the model was trained for is not known"

    def figures(self, objective: Objective | None) -> dict[str, Figure]:
        """Figures of the objective, in addition to its loss."""
        trained = [] if objective is None else objective.figures
        own = {
            f"{self.name}/{figure.name}": dataclasses.replace(
                figure, name=f"{self.name}/{figure.name}", series="validation" if figure.panel else ""
            )
            for figure in trained
            if not figure.is_of_batch
        }
        return own | super().figures(objective)

    def evaluate(self, model: EvaluatedModel, split: EvaluationSplit) -> Evaluation:
        """A loss over pairs is computed from embeddings, over batches as large as training's; others over batches of
        evaluation."""
        objective = model.objective
        assert objective is not None
        pair_loss = objective.pair_loss
        is_whole = pair_loss is not None and pair_loss.name == "loss"
        means: dict[str, float] = {}
        if not is_whole or objective.measure is not None:

            def measure(batch: dict[str, Array]) -> Metrics:
                found: Metrics = {}
                if not is_whole:
                    found |= batch_metrics(objective, model.objective_variables, batch)
                if objective.measure is not None:
                    found |= objective.measure(model.variables, batch)
                return found

            means = split_means(measure, split.batches(), model.place)
        if pair_loss is not None:
            means[pair_loss.name] = mean_pair_loss(pair_loss, model, split)
        of_batch = {figure.name for figure in objective.figures if figure.is_of_batch}
        return Evaluation({name: value for name, value in means.items() if name not in of_batch})


@functools.partial(jax.jit, static_argnums=0)
def batch_metrics(objective: Objective, variables: Any, batch: dict[str, Array]) -> Metrics:
    """Sum and weight of an objective's figures on a batch, and of its ``loss``, without noise."""
    loss, metrics = objective.loss(variables, batch, None, train=False)
    return {"loss": loss, **metrics}


def mean_pair_loss(loss: PairLoss, model: EvaluatedModel, split: EvaluationSplit) -> float:
    """The mean of a loss over pairs, of each recording and its first caption, in the order of the split."""
    audio, text = model.embed_split(split), model.embed_captions(split)
    text = text[np.searchsorted(caption_owners(split), np.arange(len(split)))]
    negatives = embed_negatives(model, split)
    params = model.variables["params"]
    total = weight = 0.0
    for start in range(0, len(split), model.loss_batch_size):
        part = slice(start, start + model.loss_batch_size)
        rows = {
            contract.INDEX: jnp.arange(len(split), dtype=jnp.int32)[part],
            contract.LABEL: jnp.asarray(audio.labels[part]),
            contract.MASK: jnp.ones(len(text[part]), bool),
        }
        own = None if negatives is None else Negatives(negatives.emb[part], negatives.mask[part])
        found = loss.compute(params, jnp.asarray(audio.emb[part]), jnp.asarray(text[part]), rows, own)
        total, weight = total + float(found[0]), weight + float(found[1])
    return total / weight


def embed_negatives(model: EvaluatedModel, split: EvaluationSplit) -> Negatives | None:
    """The wrong captions of N recordings, [N K E] and their mask; None where no recording has one."""
    negatives = [split.negatives(index) for index in range(len(split))]
    most = max(map(len, negatives))
    if most == 0:
        return None
    mask = np.array([[place < len(texts) for place in range(most)] for texts in negatives])
    found = model.embed_texts([text for texts in negatives for text in texts], split)
    emb = np.zeros((*mask.shape, found.shape[1]), np.float32)
    emb[mask] = found
    return Negatives(jnp.asarray(emb), jnp.asarray(mask))
