"""Stopping on signals: after SIGTERM or SIGINT a run ends at the next step and saves.

In one process our own signal handler sets a flag: JAX's preemption service handles SIGTERM only after
``jax.distributed.initialize()``. On several hosts that service makes all hosts agree on the step at which they stop.
"""

import signal
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Context in which a signal asks the loop to stop instead of killing the process.

    The first signal sets a flag; a second SIGINT (Ctrl-C again) interrupts at once.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        # On several hosts JAX has installed its own handler of SIGTERM, which must stay.
        if jax.process_count() == 1:
            self._previous = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def reached(self, step: int) -> bool:
        """Whether the run must stop after ``step``; the same answer on all hosts."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.signal is not None
