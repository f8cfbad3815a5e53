"""The trained variables of a run folder, without its data."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from alm_jax.errors import UserError
from alm_jax.objectives import build_objective
from alm_jax.run.experiment import ExperimentConfig, read_experiment
from alm_jax.run.workdir import CHECKPOINTS
from alm_jax.training import mesh as meshes
from alm_jax.training import sharding
from alm_jax.training.build import build_parallel
from alm_jax.training.checkpoint import Checkpoints
from alm_jax.training.lora import add_adapters


def is_run_folder(folder: str | Path) -> bool:
    """Whether `alm pretrain` has saved checkpoints here."""
    return (Path(folder) / CHECKPOINTS).is_dir()


def load_run(workdir: Path) -> ExperimentConfig:
    """The config that the newest checkpoint of a run folder was made with.

    Raises UserError where the folder holds no checkpoint.
    """
    folder = workdir / CHECKPOINTS
    if not folder.is_dir():
        raise UserError(
            f"{workdir} holds no run: there is no {folder}. Expected a --workdir of `alm pretrain`"
        )
    checkpoints = Checkpoints(folder, keep=0)
    try:
        steps = checkpoints.steps()
        if not steps:
            raise UserError(
                f"{folder} holds no finished checkpoint yet; let `alm pretrain` reach its first save"
            )
        return read_experiment(checkpoints.manifest(steps[-1])["config"])
    finally:
        checkpoints.close()


def read_run_variables(folder: str | Path) -> dict[str, Any]:
    """The model's variables at the newest good checkpoint, on the host: averaged where there is an average, adapters
    merged.

    Raises:
        UserError: no checkpoint is there yet, or it is of another version's model.
        DataError: no checkpoint can be read.
    """
    config = load_run(Path(folder))
    objective = add_adapters(build_objective(config.objective), config.lora)
    # Where a run trained says nothing about where it is read.
    here = dataclasses.replace(
        config.training, mesh=meshes.MeshConfig(), parallelism="jit", num_microbatches=1
    )
    mesh = meshes.build_mesh(here.mesh)
    parallel = build_parallel(objective, config.optimizer, here, seed=config.seed, mesh=mesh)
    checkpoints = Checkpoints(Path(folder) / CHECKPOINTS, keep=config.training.keep_checkpoints)
    state = checkpoints.restore_latest(parallel.abstract())
    checkpoints.close()
    assert state is not None, "load_run has found a checkpoint"
    variables = state.evaluation_variables
    merged = variables | {"params": objective.merge(variables["params"])}
    return dict(jax.tree.map(sharding.fetch, merged))
