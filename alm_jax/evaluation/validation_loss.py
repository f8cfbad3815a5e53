"""The loss of any objective on a split, without noise."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from alm_jax.evaluation.embed import Batch
from alm_jax.objectives import Objective


@functools.partial(jax.jit, static_argnums=0)
def batch_loss(
    objective: Objective, variables: dict[str, Any], batch: dict[str, Array]
) -> tuple[Array, Array]:
    """Sum and weight of an objective's loss on a batch, without noise."""
    loss, _ = objective.loss(variables, batch, None, train=False)
    return loss.sum, loss.weight


def validation_loss(
    objective: Objective,
    variables: dict[str, Any],
    batches: Iterable[Batch],
    place: Callable[[dict[str, np.ndarray]], dict[str, Array]],
) -> float:
    """The mean of the loss over a split."""
    total = weight = 0.0
    for batch in batches:
        found = batch_loss(
            objective, variables, place({key: np.array(value) for key, value in batch.items()})
        )
        total, weight = total + float(found[0]), weight + float(found[1])
    return total / max(weight, 1.0)
