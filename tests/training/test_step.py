"""What the update of a step costs beyond the gradients, by the compiler."""

import functools

import jax
import jax.numpy as jnp

from alm_jax.objectives import Objective
from alm_jax.objectives.objective import Inputs, Loss
from alm_jax.training.optimizer import AdamWConfig, build_optimizer, learning_rate
from alm_jax.training.state import init_state
from alm_jax.training.step import build_train_step

SHAPE = (512, 256)


def linear_objective() -> Objective:
    """loss = mean of x W over the rows: its gradient is the only large array that a step must make."""
    return Objective(
        init=lambda key: {"params": {"kernel": jax.random.normal(key, SHAPE)}, "batch_stats": {}},
        axes=lambda: {"kernel": ("embed", "mlp")},
        prepare=lambda batch, key, *, train: Inputs(batch["x"], None),
        encode=lambda variables, inputs, key, *, train: (
            inputs.rows @ variables["params"]["kernel"],
            {},
        ),
        combine=lambda params, outputs, batch, key: (
            Loss(jnp.sum(outputs), jnp.float32(outputs.shape[0])),
            {},
        ),
        project=lambda params: params,
    )


def test_the_update_works_in_place():
    """A step that chooses between old and new state array by array copies the state: four times the parameters."""
    objective, config = linear_objective(), AdamWConfig(warmup_steps=1)
    abstract = jax.eval_shape(objective.init, jax.random.key(0))
    optimizer = build_optimizer(config, 10, abstract["params"])
    step = build_train_step(objective, optimizer, schedule=learning_rate(config, 10), ema_decay=0.9)
    state = jax.eval_shape(functools.partial(init_state, objective, optimizer, 0, with_ema=True))
    batch = {
        "x": jax.ShapeDtypeStruct((8, SHAPE[0]), jnp.float32),
        "mask": jax.ShapeDtypeStruct((8,), jnp.bool_),
    }
    memory = jax.jit(step, donate_argnums=0).lower(state, batch).compile().memory_analysis()
    size = 4 * SHAPE[0] * SHAPE[1]
    assert memory.alias_size_in_bytes >= 4 * size  # parameters, two moments and the average
    assert memory.temp_size_in_bytes < 2.5 * size  # the gradient, and the clipped gradient
