"""The training step: one pure function from (state, batch) to (state, metrics)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from alm_jax.figures import Figure
from alm_jax.objectives import Objective
from alm_jax.training.accumulation import loss_and_gradients
from alm_jax.training.sharding import UNCUT, UpdateLayout
from alm_jax.training.state import TrainState
from alm_jax.training.trainable import overlay
from alm_jax.types import Metrics, PyTree

FIGURES = (
    Figure(name="grad_norm", label="norm of the gradients"),
    Figure(name="learning_rate", label="learning rate", panel="Learning rate"),
    Figure(name="num_skipped", label="steps skipped in a row", is_higher_better=False),
)
"""Metrics that every step records in addition to its objective's."""
TrainStep = Callable[..., tuple[TrainState, Metrics]]


def build_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    schedule: optax.Schedule,
    num_microbatches: int = 1,
    ema_decay: float = 0.0,
    axis_name: str | None = None,
) -> TrainStep:
    """Makes the step, for global-view ``jit`` (``axis_name`` None) or for ``pmap`` over ``axis_name``.

    A loss or gradient that is not finite leaves parameters, statistics, optimizer and average as they
    were, and is counted in ``num_skipped``; the step number still advances, so that the data moves on.

    The step also takes an `UpdateLayout`: how gradients, moments and averages are cut over devices for the update.
    """

    def train_step(
        state: TrainState, batch: dict[str, Array], layout: UpdateLayout = UNCUT
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        loss, grads, batch_stats, metrics = loss_and_gradients(
            objective, state.variables, batch, key, num_microbatches=num_microbatches, axis_name=axis_name
        )
        grads = layout.cut(grads)
        grad_norm = optax.tree.norm(grads)
        is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        def update(state: TrainState) -> TrainState:
            trained = layout.cut(objective.trained(state.params))
            updates, opt_state = optimizer.update(grads, state.opt_state, trained)
            trained = layout.cut(optax.apply_updates(trained, updates))
            params = objective.project(overlay(state.params, layout.whole(trained)))
            return dataclasses.replace(
                state,
                params=params,
                batch_stats=batch_stats,
                opt_state=opt_state,
                ema_params=average(
                    state.ema_params, layout.cut(objective.trained(params)), ema_decay, state.step
                ),
            )

        # A branch, not a select of every array: that would read old and new state side by side, and XLA would
        # copy the donated buffers first (docs/performance.md).
        updated = jax.lax.cond(is_finite, update, lambda state: state, state)
        metrics |= {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": schedule(state.step),
            "num_skipped": jnp.where(is_finite, 0, state.num_skipped + 1),
        }
        return dataclasses.replace(updated, step=state.step + 1, num_skipped=metrics["num_skipped"]), metrics

    return train_step


def average(ema_params: PyTree, params: PyTree, decay: float, step: Array) -> PyTree:
    """Updates the exponential moving average after a step; None where there is none.

    The decay is min(decay, (1 + step) / (10 + step)), so that the initial weights lose their influence quickly (the
    rule of tf.train.ExponentialMovingAverage).
    """
    if ema_params is None:
        return None
    step = step.astype(jnp.float32)
    decay_now = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda ema, new: ema + (1.0 - decay_now) * (new - ema), ema_params, params)
