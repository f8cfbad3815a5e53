"""The loss of any objective, and its metrics, on a split, without noise."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from alm_jax.evaluation.embed import Batch
from alm_jax.objectives import Objective
from alm_jax.objectives.objective import Loss
from alm_jax.types import Metrics


@functools.partial(jax.jit, static_argnums=0)
def batch_metrics(objective: Objective, variables: dict[str, Any], batch: dict[str, Array]) -> Metrics:
    """Sum and weight of an objective's metrics on a batch, and of its ``loss``, without noise."""
    loss, metrics = objective.loss(variables, batch, None, train=False)
    return {"loss": loss, **metrics}


def batch_loss(
    objective: Objective, variables: dict[str, Any], batch: dict[str, Array]
) -> tuple[Array, Array]:
    """Sum and weight of an objective's loss on a batch, without noise."""
    loss: Loss = batch_metrics(objective, variables, batch)["loss"]
    return loss


def validation_metrics(
    objective: Objective,
    variables: dict[str, Any],
    batches: Iterable[Batch],
    place: Callable[[dict[str, np.ndarray]], dict[str, Array]],
) -> dict[str, float]:
    """The means of an objective's metrics over a split, and of its ``loss``; 0 where nothing counted."""
    sums: dict[str, np.ndarray] = {}
    for batch in batches:
        found = batch_metrics(
            objective, variables, place({key: np.array(value) for key, value in batch.items()})
        )
        for name, loss in found.items():
            sums[name] = sums.get(name, np.zeros(2)) + np.array([float(loss.sum), float(loss.weight)])
    return {name: float(total / max(weight, 1.0)) for name, (total, weight) in sums.items()}


def validation_loss(
    objective: Objective,
    variables: dict[str, Any],
    batches: Iterable[Batch],
    place: Callable[[dict[str, np.ndarray]], dict[str, Array]],
) -> float:
    """The mean of the loss over a split."""
    return validation_metrics(objective, variables, batches, place)["loss"]
