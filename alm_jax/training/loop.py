"""The training loop: the host's side of a run, from the restored state to the last checkpoint."""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import jax
import numpy as np

from alm_jax import batch as contract
from alm_jax.errors import AlmError, DataError, PreemptedError
from alm_jax.figures import Figure
from alm_jax.ranges import PROBABILITY, Range
from alm_jax.training import wall_time
from alm_jax.training.checkpoint_writer import CheckpointWriter
from alm_jax.training.compiler_options import Preset
from alm_jax.training.faults import Interruption, StopRequest
from alm_jax.training.mesh import MeshConfig
from alm_jax.training.metrics import MetricsWriter
from alm_jax.training.parallel import Batch, Parallel
from alm_jax.training.profile import StepProfile
from alm_jax.training.progress import TrainingProgress
from alm_jax.training.state import TrainState
from alm_jax.training.wall_time import WallTime
from alm_jax.types import Metrics

log = logging.getLogger(__name__)

FIGURES = (
    Figure(name="step_sec", label="seconds of a step", is_higher_better=False),
    Figure(name="wait_sec", label="seconds of a step that waited for data", is_higher_better=False),
    Figure(
        name="pairs_per_sec",
        label="pairs a second",
        panel="Throughput in pairs/s",
        series="pairs/s",
        is_noisy=True,
        is_higher_better=True,
    ),
    Figure(name="audio_hours", label="hours of audio that were trained on"),
    Figure(name="peak_device_memory_bytes", label="most memory of a device in use at one time, in bytes"),
    *wall_time.FIGURES,
)
"""Metrics that the loop adds to the records of training steps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Length and batch size of the training, parallelism, and intervals of logging, evaluation and checkpoints."""

    num_steps: Annotated[int, Range(1)]
    """Number of optimizer steps of the run."""
    batch_size: Annotated[int, Range(1)]
    """Examples in the global batch, over all devices and hosts. Batches of shorter recordings have more with
    data.duration_buckets.fill."""
    num_microbatches: Annotated[int, Range(1)] = 1
    """Number of pieces in which a batch is encoded, with exact gradients. More pieces need less memory, and more than
    one needs a second forward pass."""
    ema_decay: Annotated[float, PROBABILITY] = 0.0
    """Decay of the exponential moving average of the parameters, which evaluation and export use; 0 switches it
    off."""
    parallelism: Literal["jit", "pmap"] = "jit"
    """How a step runs on several devices: ``jit`` over the mesh, or data-parallel ``pmap``, which supports only
    contrastive learning, masked spectrograms and language modelling."""
    mesh: MeshConfig = MeshConfig()
    """The device mesh, for ``jit``."""
    compiler_preset: Preset = "default"
    """Compiler options of the step, for ``jit``: ``default``, or ``overlap``, which overlaps communication between
    devices with computation (alm_jax/training/compiler_options.py). A run prints the options in use."""
    log_every: Annotated[int, Range(1)] = 1
    """Steps between two records in metrics.jsonl."""
    log_sec: Annotated[float, Range(0)] = 30.0
    """Seconds between two progress lines where the output is not a terminal."""
    eval_every: Annotated[int, Range(0)] = 0
    """Steps between two evaluations; 0: evaluate only at the end."""
    save_every: Annotated[int, Range(0)] = 500
    """Steps between two checkpoints; 0: save only the last step. The last step is always saved."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep."""
    keep_every: Annotated[int, Range(0)] = 0
    """Checkpoints of steps that are multiples of this number are kept forever; 0: none."""
    keep_hours: Annotated[float, Range(0)] = 0.0
    """Hours between two checkpoints that are kept forever; 0: none."""
    keep_best: Annotated[int, Range(0)] = 0
    """Number of checkpoints with the lowest ``validation/loss`` to keep. Only a step that is both saved and evaluated
    has one."""
    max_skipped: Annotated[int, Range(1)] = 10
    """Number of consecutive steps with a non-finite loss or gradient after which the run stops."""
    profile_steps: str = ""
    """First and last step to trace into the run's folder ``profile``, such as "10:15", for XProf or Perfetto."""
    tensorboard: bool = False
    """Whether to also write TensorBoard event files (needs the [tensorboard] extra)."""
    wandb: bool = False
    """Whether to also send records to Weights & Biases (needs the [wandb] extra; WANDB_MODE=offline sends nothing)."""


@dataclasses.dataclass
class _Fetched:
    """A batch that is on its way to the devices."""

    batch: Batch
    index: np.ndarray
    wait_sec: float


@dataclasses.dataclass
class _Pending:
    """A step that the devices are still computing."""

    step: int
    metrics: Metrics
    index: np.ndarray
    wait_sec: float


class Loop:
    """Runs steps, records them, saves and evaluates.

    ``writer`` is None on every process except the first. ``evaluate`` takes the state and the number of the
    evaluation (from 1; None for the last) and returns flat figures, which ``figures`` declares. It runs on every
    process, and its result is recorded under ``step``. ``wall_time`` counts from the start of the process.
    """

    def __init__(
        self,
        config: TrainingConfig,
        *,
        workdir: Path,
        parallel: Parallel,
        checkpoints: CheckpointWriter,
        writer: MetricsWriter | None,
        progress: TrainingProgress,
        evaluate: Callable[[TrainState, int | None], Mapping[str, float]],
        figures: Mapping[str, Figure],
        clip_sec: float,
        wall_time: WallTime,
    ):
        self.config = config
        self.workdir = workdir
        self.parallel = parallel
        self.checkpoints = checkpoints
        self.writer = writer
        self.progress = progress
        self.evaluate = evaluate
        self.figures = figures
        self.batch_hours = config.batch_size * clip_sec / 3600
        self._wall_time = wall_time
        self._profile = StepProfile(config.profile_steps, workdir)
        self._last_record = time.perf_counter()
        self._recent_index: list[tuple[int, list[int]]] = []
        self._stop = StopRequest()

    def run(
        self,
        state: TrainState,
        start_step: int,
        batches: Iterator[dict[str, np.ndarray]],
        *,
        is_evaluation_missing: bool = False,
    ) -> TrainState:
        """Trains from ``start_step`` to the end. Returns the last state, unplaced and saved.

        ``is_evaluation_missing``: whether the run stopped after ``start_step`` was saved and before its evaluation,
        which then comes first.

        Raises PreemptedError after a requested stop, once the state is saved; DataError where the loss stays
        non-finite.
        """
        config = self.config
        pending: _Pending | None = None
        self._last_record = time.perf_counter()
        with StopRequest() as stop:
            self._stop = stop
            if is_evaluation_missing:
                self.record_evaluation(state, start_step)
            waiting = self.fetch(batches) if start_step < config.num_steps else None
            for step in range(start_step + 1, config.num_steps + 1):
                # --- a step on its way, and behind it the next batch, which the devices receive while they compute
                assert waiting is not None
                fetched, is_last = waiting, step == config.num_steps
                self._profile.before(step)
                # The first step of a process is compiled before it is on its way.
                with self._wall_time.spent_on("compile" if step == start_step + 1 else "step"):
                    state, metrics = self.parallel.step(state, fetched.batch)
                waiting = None if is_last else self.fetch(batches)

                # --- the step before it, which the devices have finished by now
                if pending is not None:
                    self.record(pending)
                pending = _Pending(step, metrics, fetched.index, fetched.wait_sec)

                # --- what needs the state itself waits for this step
                stopping = stop.reached(step)
                is_traced = self._profile.is_due_after(step)
                is_awaited = is_traced or is_last or stopping
                if is_awaited or is_due(step, config.eval_every) or is_due(step, config.save_every):
                    self.record(pending)
                    pending = None
                if is_traced:
                    self._profile.close()
                if stopping and not is_last:
                    self.stop(state, step)
                # Saved before it is measured: what stops a run in its evaluation takes no step back.
                if is_due(step, config.save_every) and not is_last:
                    self.save(state)
                if is_due(step, config.eval_every) and not is_last:
                    self.record_evaluation(state, step)
            self.save(state, wait=True)
            self._profile.close()
            if start_step < config.num_steps:
                self.record_evaluation(state, config.num_steps)
        return self.parallel.unplaced(state)

    def fetch(self, batches: Iterator[dict[str, np.ndarray]]) -> _Fetched:
        """Waits for the next batch, and sends it to the devices without waiting for them."""
        started = time.perf_counter()
        batch = next(batches)
        wait_sec = time.perf_counter() - started
        self._wall_time.add("data", wait_sec)
        return _Fetched(self.parallel.send(batch), batch[contract.INDEX], wait_sec)

    def stop(self, state: TrainState, step: int) -> NoReturn:
        """Saves, and raises PreemptedError."""
        self._profile.close()
        self.save(state, wait=True)
        raise PreemptedError(
            f"stopped by request after step {step} of {self.config.num_steps}, saved in "
            f"{self.checkpoints.folder}; run the same command again to continue"
        )

    def record(self, pending: _Pending) -> None:
        """Waits for a step to finish, then writes and shows its metrics."""
        metrics = {name: np.asarray(value).item() for name, value in pending.metrics.items()}
        now = time.perf_counter()
        step_sec, self._last_record = now - self._last_record, now
        step, audio_hours = pending.step, pending.step * self.batch_hours
        if self.writer and (pending.step % self.config.log_every == 0 or step == self.config.num_steps):
            self.writer.write(
                step,
                metrics
                | {
                    "step_sec": step_sec,
                    "wait_sec": pending.wait_sec,
                    "pairs_per_sec": len(pending.index) * jax.process_count() / step_sec,
                    "audio_hours": audio_hours,
                },
            )
        self.progress.update(
            step, loss=metrics["loss"], step_sec=step_sec, wait_sec=pending.wait_sec, audio_hours=audio_hours
        )
        self.check_finite(pending, metrics)

    def check_finite(self, pending: _Pending, metrics: dict[str, Any]) -> None:
        """Raises DataError, with the batches on disk, when too many consecutive steps were skipped."""
        num_skipped = metrics["num_skipped"]
        if not num_skipped:
            self._recent_index.clear()
            return
        self._recent_index.append((pending.step, pending.index.tolist()))
        self.progress.message(
            f"step {pending.step} skipped: loss {metrics['loss']}, gradient norm {metrics['grad_norm']} "
            f"({num_skipped} in a row, {self.config.max_skipped} end the run)"
        )
        if num_skipped >= self.config.max_skipped:
            path = self.workdir / f"nonfinite-step-{pending.step}.json"
            text = json.dumps({"steps": dict(self._recent_index), "metrics": str(metrics)}, indent=2)
            try:
                path.write_text(text)
            except OSError as error:
                log.warning("%s could not be written: %s", path, error)
            raise DataError(
                f"loss or gradients were not finite for {num_skipped} steps in a row, up to step {pending.step}; "
                f"the examples of those steps are listed in {path}. Look for bad recordings there, or lower "
                f"optimizer.peak_lr. {self.last_good(pending.step - num_skipped)}"
            )

    def record_evaluation(self, state: TrainState, step: int) -> None:
        """Evaluates, writes the figures under ``step``, and prints them."""
        # The last evaluation has no number: everything takes part in it.
        is_last = step == self.config.num_steps
        count = None if is_last else step // self.config.eval_every
        try:
            with self._stop.interruptible(), self._wall_time.spent_on("evaluation"):
                metrics = dict(self.evaluate(self.parallel.unplaced(state), count))
        except Interruption:
            self.stop(state, step)
        if self.writer:
            self.writer.write(step, metrics | peak_memory() | self._wall_time.figures())
        figures = "  ".join(
            f"{name} {value:.4g}"
            for name, value in metrics.items()
            if name in self.figures and self.figures[name].is_shown and value is not None
        )
        self.progress.message(f"evaluation after step {step}: {figures}")
        # An evaluation is not part of the next step's time.
        self._last_record = time.perf_counter()

    def last_good(self, step: int) -> str:
        """Where a run whose last finite step was ``step`` can be taken up, in words."""
        saved = self.checkpoints.steps()
        before = [number for number in saved if number <= step]
        if not before:
            inside = (
                f"; {saved} were saved inside the streak, with the parameters of step {step}" if saved else ""
            )
            return f"No checkpoint is from before the streak{inside}"
        inside = f"; {saved[-1]} was saved inside the streak, with the parameters of step {step}"
        return f"The last checkpoint from before the streak is of step {before[-1]}" + (
            inside if saved[-1] > step else ""
        )

    def save(self, state: TrainState, *, wait: bool = False) -> None:
        """Saves. A failed save during training is reported as a warning; a failed save at the end ends the run."""
        try:
            with self._wall_time.spent_on("save"):
                self.checkpoints.save(self.parallel.unplaced(state), wait=wait)
        except AlmError as error:
            if wait:
                raise
            log.warning("%s; training goes on, and the next save tries again", error)
        self._last_record = time.perf_counter()


def peak_memory() -> dict[str, int]:
    """The figure of the memory of this process's devices; empty where they do not count it, as CPUs do not."""
    counts = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    known = [count for count in counts if count is not None]
    return {"peak_device_memory_bytes": max(known)} if known else {}


def is_due(step: int, every: int) -> bool:
    """Whether an action done each ``every`` steps (0: never) is due after ``step``."""
    return bool(every) and step % every == 0
