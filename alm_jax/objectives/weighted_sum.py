"""A weighted sum of means as one (sum, weight), exact over devices and micro-batches."""

from collections.abc import Mapping

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from alm_jax.objectives.objective import Loss


def add_means(
    losses: Mapping[str, Loss],
    weights: Mapping[str, float],
    mask: Bool[Array, " B"],
    axis_name: str | None = None,
) -> Loss:
    """sum_k weights[k] mean_k, each mean over all devices' rows; the weight is the number of real rows.

    So a mean over batches weighs a batch by its rows. ``losses`` and ``mask`` are this device's under ``pmap``; a loss
    of which nothing counts adds nothing.
    """

    def over_devices(x: Array) -> Array:
        return x if axis_name is None else lax.psum(x, axis_name)

    num_rows = jnp.sum(mask, dtype=jnp.float32)
    total = jnp.zeros(())
    for name, loss in losses.items():
        total += weights[name] * loss.sum / jnp.maximum(lax.stop_gradient(over_devices(loss.weight)), 1.0)
    return Loss(total * over_devices(num_rows), num_rows)
