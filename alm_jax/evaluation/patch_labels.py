"""Evaluation of what labels patches, and of what predicts the labels: figures of a split."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alm_jax import batch as contract
from alm_jax.evaluation.embed import Batch
from alm_jax.objectives import Objective
from alm_jax.ops.vector_quantization import perplexity


@functools.partial(jax.jit, static_argnums=0)
def _measure(objective: Objective, variables: dict[str, Any], batch: dict[str, Array]) -> Any:
    """Loss and metrics as sums and weights, and how often each label occurs, of a batch without noise."""
    inputs = objective.prepare(batch, None, train=False)
    outputs, _ = objective.encode(variables, inputs, None, train=False)
    loss, metrics = objective.combine(variables["params"], outputs, batch, None)
    counts = jnp.sum(jnp.where(batch[contract.MASK][:, None], outputs.counts, 0.0), axis=0)
    return {"loss": loss, **metrics}, counts


def label_figures(
    objective: Objective,
    variables: dict[str, Any],
    batches: Iterable[Batch],
    place: Callable[[dict[str, np.ndarray]], dict[str, Array]],
) -> dict[str, float | int]:
    """Figures of a split, ``validation/...`` of the objective's loss and metrics and ``labels/...`` of the labels.

    ``labels/used`` is how many different ones occur, ``labels/perplexity`` exp of their entropy, and
    ``labels/most_frequent`` the share of the commonest: what one reaches who always says that one.

    ``objective``: one whose outputs have ``counts`` [B V], how often each row has each label.
    """
    sums: dict[str, np.ndarray] = {}
    total: Any = 0.0
    for batch in batches:
        measured, counts = _measure(
            objective, variables, place({key: np.array(value) for key, value in batch.items()})
        )
        for name, (part, weight) in measured.items():
            sums[name] = sums.get(name, np.zeros(2)) + np.array([float(part), float(weight)])
        total = total + np.asarray(counts, np.float64)
    means = {name: float(part / max(weight, 1.0)) for name, (part, weight) in sums.items()}
    # A batch's perplexity says nothing of the split's.
    del means["label_perplexity"]
    return {f"validation/{name}": value for name, value in means.items()} | {
        "labels/used": int(np.sum(total > 0)),
        "labels/perplexity": float(perplexity(jnp.asarray(total, jnp.float32))),
        "labels/most_frequent": float(np.max(total) / max(np.sum(total), 1.0)),
    }
