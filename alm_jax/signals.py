"""Signals that ask a command to end, served at any time, even while the main thread is in compiled code.

Python runs a handler only between two of its own instructions, so a compilation of minutes would delay it. A thread
reads the numbers of signals from a pipe that the C level writes at once. Until training takes them over (`taken_over`),
it ends the command with one line; training itself saves first (`alm_jax.training.faults`).
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)
INTERRUPTED = 130
"""Exit code after SIGINT, as shells have it."""
TERMINATED = 143
"""Exit code after SIGTERM of a command that has nothing to continue."""
CONTINUABLE = 75
"""Exit code after SIGTERM of a command that the same command continues."""

_is_taken_over = threading.Event()


def serve(command: str, *, is_continuable: bool) -> None:
    """From now on ends this process with one line on SIGTERM and SIGINT. Call it once, in the main thread.

    ``is_continuable``: whether the same command goes on where it was stopped, which decides the exit code of SIGTERM.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, _ignore)

    def watch() -> None:
        while numbers := os.read(read_end, 64):
            for number in numbers:
                if number in SIGNALS and not _is_taken_over.is_set():
                    _end(command, signal.Signals(number), is_continuable=is_continuable)

    threading.Thread(target=watch, name="signals", daemon=True).start()
    # A forked child has the pipe and not the thread: a signal to it would end its parent.
    os.register_at_fork(after_in_child=_leave_to_the_system)


@contextlib.contextmanager
def taken_over() -> Iterator[None]:
    """A context whose caller has handlers of its own for SIGTERM and SIGINT, and gives them back after it."""
    _is_taken_over.set()
    try:
        yield
    finally:
        _is_taken_over.clear()


def _leave_to_the_system() -> None:
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def _ignore(number: int, frame: object) -> None:
    """What Python runs in the main thread; the watching thread does the work."""


def _end(command: str, number: signal.Signals, *, is_continuable: bool) -> None:
    continued = "; nothing was lost, and the same command continues" if is_continuable else ""
    message = f"alm {command}: stopped by {number.name}{continued}\n"
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        os.write(2, message.encode())
    if number == signal.SIGINT:
        os._exit(INTERRUPTED)
    os._exit(CONTINUABLE if is_continuable else TERMINATED)
