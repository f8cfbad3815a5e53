"""Means over a split of anything that is a sum and a weight a batch."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from jaxtyping import Array

from alm_jax.evaluation.embed import Batch
from alm_jax.objectives.objective import Loss


def split_means(
    measure: Callable[[dict[str, Array]], Mapping[str, Loss]],
    batches: Iterable[Batch],
    place: Callable[[dict[str, np.ndarray]], dict[str, Array]],
) -> dict[str, float]:
    """The mean over a split of each figure of ``measure``; 0 for one of which nothing counts."""
    totals: dict[str, np.ndarray] = {}
    for batch in batches:
        found = measure(place({key: np.array(value) for key, value in batch.items()}))
        for name, loss in found.items():
            totals[name] = totals.get(name, np.zeros(2)) + np.array([float(loss.sum), float(loss.weight)])
    return {name: float(total / weight) if weight else 0.0 for name, (total, weight) in totals.items()}
