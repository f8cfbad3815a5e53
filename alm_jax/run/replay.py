"""One training step of a run again, from its record: the same batch, key and state give the same bits."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from rich.console import Console

from alm_jax import batch as contract
from alm_jax.errors import UserError
from alm_jax.run.load import load_run, open_run
from alm_jax.run.session import Session, enable_compilation_cache
from alm_jax.run.train import initialise
from alm_jax.run.workdir import METRICS_FILE
from alm_jax.training import sharding
from alm_jax.training.accumulation import loss_and_gradients
from alm_jax.training.metrics import read_metrics
from alm_jax.training.trainable import freeze

COMPARED = ("loss", "grad_norm", "learning_rate")
"""Figures that a step must give again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay:
    """What a step gave this time."""

    start_step: int
    """The checkpoint that the replay began with; 0 for the beginning."""
    examples: list[int]
    """Numbers of the examples of the batch."""
    figures: dict[str, float]
    """What the step recorded this time."""
    recorded: dict[str, Any]
    """Its record in metrics.jsonl; empty where there is none."""
    norms: dict[str, tuple[float, float]]
    """Norms of the parameters before the step and of their gradients, by module."""

    @property
    def differences(self) -> list[str]:
        """Figures that differ from the record, in words."""
        return [
            f"{name}: {self.recorded[name]!r} in the record, {self.figures[name]!r} now"
            for name in COMPARED
            if name in self.recorded and self.recorded[name] != self.figures[name]
        ]


def replay(run: Path, step: int) -> Replay:
    """Step ``step`` of a run, from the newest checkpoint before it, or from the beginning. Nothing of the run changes.

    Raises UserError where the run has no such step.
    """
    enable_compilation_cache()
    config = load_run(run)
    if not 1 <= step <= config.training.num_steps:
        raise UserError(f"step {step} is not one of the run's 1 to {config.training.num_steps}")
    session = Session(config)
    parallel, checkpoints = session.parallel, open_run(run)
    saved = [number for number in checkpoints.steps() if number < step]
    if saved:
        state = parallel.place(checkpoints.restore(saved[-1], parallel.abstract()))
    else:
        state = initialise(session, Console(quiet=True))
    start_step = saved[-1] if saved else 0
    batches = session.train_batches(start_step)
    for _ in range(start_step + 1, step):
        state, _ = parallel.step(state, next(batches))
    batch = next(batches)
    norms = _norms(session, parallel.unplaced(state), batch)
    state, metrics = parallel.step(state, batch)
    path = run / METRICS_FILE
    records = read_metrics(path) if path.is_file() else []
    return Replay(
        start_step=start_step,
        examples=batch[contract.INDEX].tolist(),
        figures={name: np.asarray(value).item() for name, value in metrics.items()},
        recorded=next((each for each in records if each["step"] == step and "grad_norm" in each), {}),
        norms=norms,
    )


def _norms(session: Session, state: Any, batch: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """Norms of parameters and gradients by module, two levels deep."""
    config = session.config
    objective = freeze(session.objective, config.optimizer.frozen)

    def gradients(variables: Any, rows: Any, key: Any) -> Any:
        key = jax.random.fold_in(jax.random.wrap_key_data(key), state.step)
        return loss_and_gradients(
            objective, variables, rows, key, num_microbatches=config.training.num_microbatches
        )[1]

    with jax.set_mesh(session.mesh):
        rows = sharding.place_batch(batch, session.mesh)
        grads = jax.jit(gradients)(state.variables, rows, state.key)
    modules = _modules(grads)
    params = _modules(objective.trained(state.params))
    return {name: (_norm(params[name]), _norm(tree)) for name, tree in modules.items()}


def _modules(tree: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if not isinstance(value, dict):
            found[name] = value
            continue
        for inner, part in value.items():
            found[f"{name}/{inner}"] = part
    return found


def _norm(tree: Any) -> float:
    return float(optax.tree.norm(jax.tree.map(lambda leaf: leaf.astype("float32"), tree)))
