"""Stopping on signals: after SIGTERM or SIGINT a run ends at the next step and saves.

In one process our own signal handler sets a flag: JAX's preemption service handles SIGTERM only after
``jax.distributed.initialize()``. On several hosts that service makes all hosts agree on the step at which they stop.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

from alm_jax import signals


class Interruption(BaseException):
    """A signal arrived in work that can be given up at once; no handler of errors may take it for one."""


class StopRequest:
    """Context in which a signal asks the loop to stop instead of ending the process.

    The first signal sets a flag; a second SIGINT (Ctrl-C again) interrupts at once.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._is_interruptible = False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "StopRequest":
        self._stack.enter_context(signals.taken_over())
        # On several hosts JAX has installed its own handler of SIGTERM, which must stay.
        numbers = signals.SIGNALS if jax.process_count() == 1 else (signal.SIGINT,)
        self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._stack.close()
        if kind is None and self.signal is not None:
            # It came after the last step: whoever serves signals now ends the process.
            signal.raise_signal(self.signal)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Work, such as an evaluation, that a signal ends at once by `Interruption`, in a run of one process."""
        self._is_interruptible = jax.process_count() == 1
        try:
            if self._is_interruptible and self.signal is not None:
                raise Interruption
            yield
        finally:
            self._is_interruptible = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if jax.process_count() > 1 or (self.signal is not None and number == signal.SIGINT):
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        if self._is_interruptible:
            self._is_interruptible = False
            raise Interruption

    def reached(self, step: int) -> bool:
        """Whether the run must stop after ``step``; the same answer on all hosts."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.signal is not None
