"""Progress display of a training run: a bar on a terminal, and a plain line at intervals elsewhere."""

import datetime
import math
import time
from collections import deque
from collections.abc import Callable, Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column
from rich.text import Text

WINDOW_UPDATES = 50
"""Number of updates over which times are averaged: enough for steady figures, few enough to show changes."""


class TrainingProgress:
    """Shows step, loss, step time, pairs/s, hours of audio seen, data-wait share and time left.

    On a terminal it is a bar that stays in place; where the output is a file or a pipe it is one line
    each ``log_sec`` seconds, with the time. It writes to standard error and honours ``NO_COLOR``. Use it as a context
    manager around the loop, on one process of a run.

    Args:
      num_steps: the step at which training ends.
      pairs_per_step: pairs in the global batch.
      start_step: the step from which this process continues.
      log_sec: seconds between two plain lines.
      clock: the time in seconds, of ``time.time``.
      console: where to write; by default standard error. ``rich.console.Console(quiet=True)`` prints nothing.
    """

    def __init__(
        self,
        num_steps: int,
        *,
        pairs_per_step: int,
        start_step: int = 0,
        log_sec: float = 30.0,
        clock: Callable[[], float] = time.time,
        console: Console | None = None,
    ) -> None:
        self._num_steps = num_steps
        self._pairs_per_step = pairs_per_step
        self._log_sec = log_sec
        self._clock = clock
        self._console = console or Console(stderr=True)
        self._step = start_step
        self._printed = -math.inf
        self._num_updates = 0
        self._window: deque[tuple[int, float, float]] = deque(maxlen=WINDOW_UPDATES)
        self._bar: _TwoLines | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._bar = _TwoLines(
                BarColumn(bar_width=None, table_column=Column(ratio=1)),
                TextColumn("{task.fields[place]}", table_column=Column(no_wrap=True)),
                console=self._console,
                expand=True,
                refresh_per_second=4,
                # Standard output may be somebody's data; only what would tear the bar is redirected.
                redirect_stdout=False,
            )
            self._task = self._bar.add_task("train", total=num_steps, completed=start_step, place="compiling")

    def update(self, step: int, *, loss: float, step_sec: float, wait_sec: float, audio_hours: float) -> None:
        """Shows the state after ``step`` steps are done.

        Args:
          step: steps done since the start of training.
          loss: the loss to show.
          step_sec: seconds a step since the last update, waiting for data included.
          wait_sec: of those, the seconds spent waiting for data.
          audio_hours: hours of audio that the model has been shown since the start of training.
        """
        self._num_updates += 1
        if self._num_updates == 2:
            self._window.clear()  # The first update carries the compilation; it says nothing of the rest.
        self._window.append((max(step - self._step, 1), step_sec, wait_sec))
        self._step = step
        place, figures = self._describe(loss, audio_hours)
        if self._bar is not None:
            self._bar.figures = figures
            self._bar.update(self._task, completed=step, place=place)
        elif self._is_line_due(step):
            self._printed = self._clock()
            now = datetime.datetime.fromtimestamp(self._printed).isoformat(" ", "seconds")
            self.message(f"{now} step {place}  {figures}")

    def message(self, text: str) -> None:
        """Prints one line, above the bar where there is one."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> "TrainingProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _is_line_due(self, step: int) -> bool:
        return self._clock() >= self._printed + self._log_sec or step >= self._num_steps

    def _describe(self, loss: float, audio_hours: float) -> tuple[str, str]:
        """Formats the progress and the metrics."""
        steps = sum(count for count, _, _ in self._window)
        step_sec = max(sum(count * sec for count, sec, _ in self._window) / steps, 1e-9)
        wait_sec = sum(count * sec for count, _, sec in self._window) / steps
        place = f"{self._step}/{self._num_steps}"
        if self._num_updates > 1:
            place += f"  {format_duration(max(self._num_steps - self._step, 0) * step_sec)} left"
        return place, (
            f"loss {loss:.4f}  {step_sec:.3g} s/step  {self._pairs_per_step / step_sec:,.0f} pairs/s  "
            f"{audio_hours:.3g} h audio  data wait {min(wait_sec / step_sec, 1):.0%}"
        )


class _TwoLines(Progress):
    """Draws a bar as wide as the terminal, and the metrics below it."""

    figures = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(self.figures, no_wrap=True, overflow="ellipsis")


def format_duration(seconds: float) -> str:
    """Formats ``seconds`` as h:mm:ss, or m:ss below an hour.

    >>> format_duration(754), format_duration(3600 * 26 + 61)
    ('12:34', '26:01:01')
    """
    minutes, secs = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"
