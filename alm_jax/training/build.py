"""Builds the training step of a run from its configs."""

import functools
import logging

import jax

from alm_jax.errors import UserError
from alm_jax.objectives import Objective
from alm_jax.training.compiler_options import compiler_options
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.mesh import AnyMesh, device_kind
from alm_jax.training.optimizer import OptimizerConfig, axis_names, build_optimizer, learning_rate
from alm_jax.training.parallel import PMAP_AXIS, JitParallel, Parallel, PmapParallel
from alm_jax.training.state import init_state
from alm_jax.training.step import build_train_step
from alm_jax.training.trainable import freeze

log = logging.getLogger(__name__)


def check_parallelism(objective: Objective, training: TrainingConfig) -> None:
    """Raises UserError where ``training.parallelism`` is pmap and the objective would differ from the one under
    jit."""
    if training.parallelism == "pmap" and objective.pmap == "none":
        raise UserError(
            "training.parallelism is 'pmap', and this objective couples rows of the batch that pmap keeps on different "
            "devices. pmap trains contrastive learning (with an audio tower that has no batch norms between its "
            "layers), masked spectrograms, and language modelling (with an audio tower that has no batch norms): use "
            "training.parallelism 'jit', which trains everything on any number of devices"
        )


def build_parallel(
    objective: Objective, optimizer: OptimizerConfig, training: TrainingConfig, *, seed: int, mesh: AnyMesh
) -> Parallel:
    """Makes init and step of the run, placed as ``training.parallelism`` says, without compiling them.

    Raises UserError where the configs do not fit each other or the mesh.
    """
    check_parallelism(objective, training)
    objective = freeze(objective, optimizer.frozen)
    abstract = jax.eval_shape(objective.init, jax.random.key(0))
    transformation = build_optimizer(
        optimizer,
        training.num_steps,
        objective.trained(abstract["params"]),
        objective.trained(axis_names(objective.axes())),
    )
    init = functools.partial(init_state, objective, transformation, seed, with_ema=training.ema_decay > 0)
    step = functools.partial(
        build_train_step,
        objective,
        transformation,
        schedule=learning_rate(optimizer, training.num_steps),
        num_microbatches=training.num_microbatches,
        ema_decay=training.ema_decay,
    )
    if training.parallelism == "pmap":
        return PmapParallel(init, step(axis_name=PMAP_AXIS))
    options = compiler_options(training.compiler_preset, device_kind(mesh))
    if options:
        log.info("compiler options: %s", ", ".join(f"{name}={value}" for name, value in options.items()))
    return JitParallel(init, step(), objective, mesh, options)
