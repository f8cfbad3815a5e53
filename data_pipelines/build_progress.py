"""Progress of a build: a bar on a terminal; elsewhere a line every `LINE_EVERY_SEC`."""

import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LINE_EVERY_SEC = 30.0


class Progress:
    """Progress counter of recordings; a context manager."""

    def __init__(
        self,
        title: str,
        total: int,
        *,
        is_terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title, self._total, self._rejects = title, total, 0
        self.done = 0
        self._clock = clock
        self._started = self._said = clock()
        on_terminal = sys.stderr.isatty() if is_terminal is None else is_terminal
        columns = TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._bar = Bar(*columns, console=Console(file=sys.stderr)) if on_terminal else None
        self._task = self._bar.add_task(title, total=total) if self._bar else None

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, count: int = 1, *, rejected: int = 0) -> None:
        """Adds ``count`` recordings, read or rejected; ``rejected`` of them were rejected."""
        self.done += count
        self._rejects += rejected
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, count)
        elif self._clock() - self._said >= LINE_EVERY_SEC:
            self._said = self._clock()
            per_sec = self.done / max(self._said - self._started, 1e-9)
            left_min = (self._total - self.done) / max(per_sec, 1e-9) / 60
            print(
                f"{self._title}: {self.done:,} of {self._total:,} recordings, {self._rejects:,} rejected, "
                f"{per_sec:,.0f} a second, {left_min:,.0f} minutes left",
                file=sys.stderr,
                flush=True,
            )
