"""A trace of some steps of a run, for XProf, TensorBoard's profile page or Perfetto."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import jax

from alm_jax.errors import UserError

FOLDER = "profile"
"""Name of the folder of traces in a run's folder."""

log = logging.getLogger(__name__)


def parse_steps(text: str) -> tuple[int, int] | None:
    """The first and the last step of "10:15"; None of "". Raises UserError where it is neither."""
    if not text:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"training.profile_steps is {text!r}; expected FIRST:LAST, such as 10:15, or nothing")
    return int(match[1]), int(match[2])


class StepProfile:
    """Traces steps FIRST to LAST of a run into its folder. A failure is a warning and ends no run."""

    def __init__(self, steps: str, workdir: Path):
        """``steps``: FIRST:LAST, or nothing for no trace. Raises UserError where it is neither."""
        self._steps = parse_steps(steps)
        self._folder = workdir / FOLDER
        self._is_open = False

    def before(self, step: int) -> None:
        """To be called before a step is on its way."""
        if self._steps and step == self._steps[0]:
            self._is_open = self._succeeds(lambda: jax.profiler.start_trace(self._folder))

    def is_due_after(self, step: int) -> bool:
        """Whether the trace ends with this step, which must have finished by then."""
        return self._is_open and self._steps is not None and step >= self._steps[1]

    def close(self) -> None:
        """Writes the trace, if one is open."""
        if self._is_open:
            self._is_open = False
            self._succeeds(jax.profiler.stop_trace)

    def _succeeds(self, act: Callable[[], None]) -> bool:
        try:
            act()
        except Exception as error:
            log.warning("the steps could not be traced: %s", error)
            return False
        return True
