"""The loss of any objective, and its metrics, on a split, without noise."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from alm_jax.evaluation.embed import Batch
from alm_jax.evaluation.means import split_means
from alm_jax.objectives import Objective
from alm_jax.types import Metrics


@functools.partial(jax.jit, static_argnums=0)
def batch_metrics(objective: Objective, variables: dict[str, Any], batch: dict[str, Array]) -> Metrics:
    """Sum and weight of an objective's metrics on a batch, and of its ``loss``, without noise."""
    loss, metrics = objective.loss(variables, batch, None, train=False)
    return {"loss": loss, **metrics}


def validation_metrics(
    objective: Objective,
    variables: dict[str, Any],
    batches: Iterable[Batch],
    place: Callable[[dict[str, np.ndarray]], dict[str, Array]],
) -> dict[str, float]:
    """The means of an objective's metrics over a split, and of its ``loss``; 0 where nothing counted."""
    return split_means(lambda batch: batch_metrics(objective, variables, batch), batches, place)


def validation_loss(
    objective: Objective,
    variables: dict[str, Any],
    batches: Iterable[Batch],
    place: Callable[[dict[str, np.ndarray]], dict[str, Array]],
) -> float:
    """The mean of the loss over a split."""
    return validation_metrics(objective, variables, batches, place)["loss"]
