"""What shows the records of a run elsewhere, behind one small interface: TensorBoard and Weights & Biases.

None of them can stop a run: `alm_jax.training.metrics.MetricsWriter` drops one that fails, with a warning.
"""

import io
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from alm_jax.errors import UserError

Scalar = float | int | bool | str

log = logging.getLogger(__name__)


@runtime_checkable
class Tracker(Protocol):
    """A view of a run's records. Any method may raise."""

    name: str
    """What a message calls it."""

    def write(self, step: int, metrics: Mapping[str, Scalar]) -> None:
        """Shows one record."""

    def restart(self, step: int) -> None:
        """Says that ``step`` and later ones will be written again."""

    def close(self) -> None:
        """Ends the view; what was written is complete then."""


def open_trackers(
    folder: Path, run_name: str, config: Mapping[str, Any], *, tensorboard: bool, wandb: bool
) -> list[Tracker]:
    """The trackers that a run asks for. ``folder``: the run's; ``config``: the resolved one as JSON values.

    One that cannot begin is left out with a warning. Raises UserError where its package is not installed.
    """
    wanted: list[Callable[[], Tracker]] = []
    if tensorboard:
        wanted.append(lambda: TensorBoard(folder / "tensorboard"))
    if wandb:
        wanted.append(lambda: WeightsAndBiases(folder, run_name, config))
    opened: list[Tracker] = []
    for begin in wanted:
        try:
            opened.append(begin())
        except UserError:
            raise
        except Exception as error:
            log.warning("a tracker cannot begin (%s) and is left out; metrics.jsonl has every record", error)
    return opened


def _missing(what: str, extra: str) -> str:
    return (
        f"{what} was asked for, but the package is not installed; install it with "
        f'`pip install "alm_jax[{extra}]"`, or leave it off (metrics.jsonl is always written)'
    )


class TensorBoard:
    """An event file, written directly: TensorBoard's own writer would load TensorFlow and start a thread."""

    name = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise UserError(_missing("TensorBoard output", "tensorboard")) from error
        self._event, self._session_log, self._summary = Event, SessionLog, Summary
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._writer = RecordWriter(io.FileIO(folder / name, "wb"))
        self._add(file_version="brain.Event:2")

    def _add(self, **fields: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._writer.flush()

    def write(self, step: int, metrics: Mapping[str, Scalar]) -> None:
        """Numbers become scalars; strings are left out."""
        values = [
            self._summary.Value(tag=name, simple_value=float(value))
            for name, value in metrics.items()
            if not isinstance(value, str)
        ]
        self._add(step=step, summary=self._summary(value=values))

    def restart(self, step: int) -> None:
        """Tells TensorBoard to forget what older files say of ``step`` and later."""
        self._add(step=step, session_log=self._session_log(status=self._session_log.START))

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, in ``wandb`` of the run's folder, continued under one id after a restart.

    Their own environment variables choose the rest: ``WANDB_MODE=offline`` sends nothing, and ``wandb sync`` does
    later; ``WANDB_PROJECT`` names the project, ``alm_jax`` by default. Steps that are made again after a restart
    have two points.
    """

    name = "Weights & Biases"

    def __init__(self, folder: Path, run_name: str, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(_missing("Weights & Biases", "wandb")) from error
        path = folder / ".wandb-id"
        if not path.exists():
            path.write_text(secrets.token_hex(8))
        self._run = wandb.init(
            dir=folder,
            project=os.environ.get("WANDB_PROJECT", "alm_jax"),
            name=run_name,
            id=path.read_text(),
            resume="allow",
            config=dict(config),
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Mapping[str, Scalar]) -> None:
        """Every number and string, over ``step``."""
        self._run.log({"step": step, **metrics})

    def restart(self, step: int) -> None:
        """Nothing: what was sent stays."""

    def close(self) -> None:
        """Waits until everything is written or sent."""
        self._run.finish()
