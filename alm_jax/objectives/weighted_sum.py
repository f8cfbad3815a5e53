"""A weighted sum of means as one (sum, weight), exact over micro-batches."""

from collections.abc import Mapping

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from alm_jax.objectives.objective import Loss


def add_means(
    losses: Mapping[str, Loss],
    weights: Mapping[str, float],
    mask: Bool[Array, " B"],
) -> Loss:
    """sum_k weights[k] mean_k; a loss of which nothing counts adds nothing.

    The weight is the number of real rows, so that a mean over batches weighs a batch by its rows.
    """
    num_rows = jnp.sum(mask, dtype=jnp.float32)
    total = jnp.zeros(())
    for name, loss in losses.items():
        total += weights[name] * loss.sum / jnp.maximum(lax.stop_gradient(loss.weight), 1.0)
    return Loss(total * num_rows, num_rows)
