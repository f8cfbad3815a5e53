"""The training of one run: from its config, or from where it stands, to its last step and its report."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

from alm_jax.errors import UserError
from alm_jax.evaluation.evaluate import EvaluationResult
from alm_jax.run import workdir as run_folder
from alm_jax.run.config_json import to_json
from alm_jax.run.evaluate import RunEvaluation
from alm_jax.run.experiment import ExperimentConfig, read_experiment
from alm_jax.run.load import load_model
from alm_jax.run.record import recorded
from alm_jax.run.session import Session, check_processes_agree, enable_compilation_cache
from alm_jax.training.checkpoint_writer import CheckpointWriter
from alm_jax.training.initialise import InitFromConfig, take_from
from alm_jax.training.loop import Loop
from alm_jax.training.metrics import MetricsWriter
from alm_jax.training.progress import TrainingProgress
from alm_jax.training.state import TrainState
from alm_jax.training.trackers import open_trackers
from alm_jax.training.wall_time import WallTime


def pretrain(
    config: ExperimentConfig,
    workdir: str | Path,
    *,
    is_change_allowed: bool = False,
    allow_data_change: bool = False,
) -> EvaluationResult:
    """Trains ``config`` in ``workdir`` to its last step, from wherever it stands.

    Leaves there ``config.json``, ``metrics.jsonl``, ``checkpoints/``, ``tokenizer.json``,
    ``evaluation.json`` and ``report.html``. Returns the last evaluation. ``is_change_allowed``: whether a run may go on
    with other values of `alm_jax.run.workdir.CHANGEABLE`; what changes is printed. ``allow_data_change``: a run whose
    data set has changed since it was saved goes on, from the same step, and says so.

    Raises:
        UserError: the config does not fit the devices, the data, or what ``workdir`` holds.
        DataError: the data cannot be used, or training diverged.
        PreemptedError: a signal asked the run to stop; it is saved.
    """
    workdir = run_folder.local_folder(str(workdir))
    enable_compilation_cache()
    is_first = jax.process_index() == 0
    allowed = {"is_change_allowed": is_change_allowed, "allow_data_change": allow_data_change}
    # One process of a run owns its folder; the others write their parts of checkpoints there.
    if not is_first:
        return _pretrain(config, workdir, is_first=False, **allowed)
    with run_folder.locked(workdir):
        run_folder.check_config(
            workdir, to_json(config), read=read_again, is_change_allowed=is_change_allowed
        )
        return _pretrain(config, workdir, is_first=True, **allowed)


def _pretrain(
    config: ExperimentConfig,
    workdir: Path,
    *,
    is_first: bool,
    is_change_allowed: bool,
    allow_data_change: bool,
) -> EvaluationResult:
    console, wall_time = Console(stderr=True, quiet=not is_first), WallTime()

    # --- config, devices, data
    session = Session(config)
    session.objective.check(session.facts)
    evaluation = RunEvaluation(session)
    check_processes_agree(config, session.data)
    checkpoints = session.checkpoints(workdir)
    train_split = session.data.split(config.data.train_split)
    console.print(describe(session, len(train_split)), highlight=False, soft_wrap=True)

    # --- state: the newest good checkpoint, or the beginning
    state, start_step = restore_or_init(
        session,
        checkpoints,
        console,
        is_change_allowed=is_change_allowed,
        allow_data_change=allow_data_change,
    )
    if start_step:
        console.print(f"continuing after step {start_step} of {config.training.num_steps}", highlight=False)
    if start_step > config.training.num_steps:
        raise UserError(
            f"{workdir} has trained {start_step} steps, training.num_steps is {config.training.num_steps}"
        )
    if is_first:
        # Once the checkpoints have agreed, whatever became of the file.
        run_folder.write_record(workdir, to_json(config), session.data.tokenizer.to_str(pretty=True))

    # --- the loop
    results: list[EvaluationResult] = []

    def evaluate(state: TrainState, count: int | None) -> Mapping[str, float | int]:
        results.append(evaluation.evaluate(state, count=count))
        return results[-1].figures

    progress = TrainingProgress(
        config.training.num_steps,
        pairs_per_step=config.training.batch_size,
        start_step=start_step,
        log_sec=config.training.log_sec,
        console=console,
    )
    with contextlib.ExitStack() as stack:
        if is_first:
            stack.enter_context(recorded(workdir, describe_devices()))
        writer, is_missing = None, False
        if is_first:
            trackers = open_trackers(
                workdir,
                config.name,
                to_json(config),
                tensorboard=config.training.tensorboard,
                wandb=config.training.wandb,
            )
            writer = stack.enter_context(MetricsWriter(workdir, trackers=trackers))
            wall_time.begin_steps(*writer.truncate_after(start_step))
            is_missing = run_folder.is_evaluation_missing(workdir, start_step, config.training)
        is_missing = agreed(is_missing)
        stack.callback(checkpoints.close)
        stack.enter_context(progress)
        state = Loop(
            config.training,
            workdir=workdir,
            parallel=session.parallel,
            checkpoints=checkpoints,
            writer=writer,
            progress=progress,
            evaluate=evaluate,
            figures=evaluation.figures,
            clip_sec=session.model.frontend.clip.clip_sec,
            wall_time=wall_time,
        ).run(
            state,
            start_step,
            session.train_batches(start_step),
            is_evaluation_missing=is_missing,
        )

    # --- what the run leaves for people
    if not results:
        evaluate(state, None)
    if is_first:
        evaluation.write(workdir, state, results[-1], run_folder=workdir)
        console.print(f"report: {workdir / 'report.html'}", highlight=False, markup=False, soft_wrap=True)
    return results[-1]


def agreed(value: bool) -> bool:
    """What the first process found, on every process."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def restore_or_init(
    session: Session,
    checkpoints: CheckpointWriter,
    console: Console,
    *,
    is_change_allowed: bool,
    allow_data_change: bool,
) -> tuple[TrainState, int]:
    """The state to go on from, placed for training, and its step; prints what a new run takes from elsewhere."""
    parallel = session.parallel
    restored = checkpoints.restore_newest(parallel.abstract())
    if restored is None:
        run_folder.check_untrained(checkpoints.folder.parent, session.config.training.save_every)
        return initialise(session, console), 0
    step = int(restored.step)
    manifest = checkpoints.manifest(step)
    old = read_again(manifest["config"])
    changes = run_folder.check_resumable(
        old,
        to_json(session.config),
        where=str(checkpoints.folder),
        is_change_allowed=is_change_allowed,
    )
    for line in changes:
        console.print(f"changed after step {step}: {line}", highlight=False, markup=False, soft_wrap=True)
    saved = manifest["data_fingerprint"]
    if saved != session.data.fingerprint:
        found = (
            f"the data set has changed since this run was saved (fingerprint {saved[:12]} then, "
            f"{session.data.fingerprint[:12]} now)"
        )
        if not allow_data_change:
            raise UserError(
                f"{found}, so the run cannot be continued exactly: restore the data, start another --workdir, or go on "
                "with --allow-data-change"
            )
        console.print(f"{found}; it goes on as --allow-data-change says", highlight=False, soft_wrap=True)
    return parallel.place(restored), step


def read_again(config: dict[str, Any]) -> dict[str, Any]:
    """A config that was written before, with the fields that have come since, at their defaults."""
    return to_json(read_experiment(config))


def initialise(session: Session, console: Console) -> TrainState:
    """The state before the first step: drawn from the seed, then what ``init_from`` names, then what the objective
    makes of its data, placed for training.

    Raises UserError where a source cannot be read or does not fit.
    """
    parallel = session.parallel
    state = parallel.init()
    fit = session.objective.fit
    if not session.config.init_from and fit is None:
        return state
    state = parallel.unplaced(state)
    for source in session.config.init_from:
        state, message = take_from(state, load_model(source.source).variables, source)
        console.print(f"init_from: {message}", highlight=False, markup=False, soft_wrap=True)
    if fit is not None:
        fitted = fit(session.replicate(state.variables), session.facts, session.training_data())
        if fitted is not None:
            params = fitted.params
            if jax.process_count() > 1:
                params = multihost_utils.broadcast_one_to_all(params)
            source = InitFromConfig(source="the data", into=fitted.path)
            state, _ = take_from(state, {"params": params}, source)
            console.print(f"from the data: {fitted.message}", highlight=False, markup=False, soft_wrap=True)
    return parallel.place(state)


def describe_devices() -> str:
    """How many devices of which kind all processes have."""
    return f"{jax.device_count()} {jax.devices()[0].platform} device(s)"


def describe(session: Session, num_train: int) -> str:
    """One line of what is about to run."""
    training = session.config.training
    abstract = session.parallel.abstract()
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
    devices = describe_devices()
    if training.parallelism == "jit":
        devices += " as " + " x ".join(
            f"{size} {axis}" for axis, size in session.mesh.shape.items() if size > 1
        )
        devices = devices.removesuffix(" as ")
    return (
        f"{session.config.name}: {num_parameters / 1e6:.1f} M parameters, {num_train:,} clips, "
        f"{training.num_steps:,} steps of {training.batch_size} pairs on {devices}"
    )
