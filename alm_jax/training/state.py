"""Everything that a training step reads and writes, as one tree of arrays."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from alm_jax.objectives import Objective
from alm_jax.training.trainable import overlay
from alm_jax.types import Params, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """The state after ``step`` updates. The position in the data is ``step`` itself.

    Its leaves are arrays; a tree of the same form may hold shapes, shardings and others instead.
    """

    step: Any
    """int32 []: steps taken, skipped ones included."""
    params: Params
    """float32 parameters."""
    batch_stats: Params
    """Running statistics of BatchNorm layers; empty where a model has none."""
    opt_state: PyTree
    """The optimizer's state."""
    ema_params: Params | None
    """Exponential moving average of the trained parameters; None where it is switched off."""
    key: Any
    """uint32 [2]: raw data of the PRNG key; each step folds its number into it and never changes it."""
    num_skipped: Any
    """int32 []: consecutive steps skipped for a non-finite loss or gradient."""

    @property
    def variables(self) -> dict[str, Any]:
        """Variables that the objective's functions take."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def evaluation_variables(self) -> dict[str, Any]:
        """Like ``variables``, with the averaged parameters where there are any."""
        params = self.params if self.ema_params is None else overlay(self.params, self.ema_params)
        return {"params": params, "batch_stats": self.batch_stats}


def init_state(
    objective: Objective, optimizer: optax.GradientTransformation, seed: int, *, with_ema: bool
) -> TrainState:
    """Makes the state before the first step; jit-able, and abstract under ``jax.eval_shape``."""
    key_init, key_train = jax.random.split(jax.random.key(seed))
    variables = objective.init(key_init)
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(objective.trained(params)),
        # A copy, since donated buffers must not be shared between two leaves.
        ema_params=jax.tree.map(jnp.copy, objective.trained(params)) if with_ema else None,
        key=jax.random.key_data(key_train),
        num_skipped=jnp.zeros((), jnp.int32),
    )
