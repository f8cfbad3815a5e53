"""Where the wall time of a run goes, over all its starts: what is not ``step`` is no training."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

from alm_jax.figures import Figure

Part = Literal["start", "compile", "data", "step", "evaluation", "save", "lost"]
PREFIX, SUFFIX = "wall/", "_sec"
LABELS: dict[Part, str] = {
    "start": "seconds from the start of a command to its first step",
    "compile": "seconds of the first step of each start, which compiles",
    "data": "seconds that steps waited for data",
    "step": "seconds of steps",
    "evaluation": "seconds of evaluations",
    "save": "seconds that training waited for checkpoints",
    "lost": "seconds of steps that were made again after a restart",
}
FIGURES = tuple(
    Figure(name=f"{PREFIX}{part}{SUFFIX}", label=label, is_higher_better=None if part == "step" else False)
    for part, label in LABELS.items()
)
"""What each evaluation's record says of the time up to it."""


class WallTime:
    """Adds up seconds by what they went to; those that no other part took are of steps."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._sums: dict[Part, float] = dict.fromkeys(get_args(Part), 0.0)
        self._began = clock()
        self._counted = 0.0

    def begin_steps(
        self, kept: Sequence[Mapping[str, Any]] = (), dropped: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Ends the start of the process.

        ``kept``: records of metrics.jsonl of earlier starts, whose sums go on. ``dropped``: those of steps that will be
        made again.
        """
        self.add("start", self._clock() - self._began)
        last: Mapping[str, Any] = next((record for record in reversed(kept) if FIGURES[0].name in record), {})
        for part in self._sums:
            self._sums[part] += float(last.get(f"{PREFIX}{part}{SUFFIX}", 0.0))
        self._sums["lost"] += sum(float(record.get("step_sec", 0.0)) for record in dropped)

    @contextmanager
    def spent_on(self, part: Part) -> Iterator[None]:
        """Counts the time of the block; blocks must not lie within each other."""
        began = self._clock()
        try:
            yield
        finally:
            self.add(part, self._clock() - began)

    def add(self, part: Part, seconds: float) -> None:
        """Counts seconds that have passed since this object was made."""
        self._sums[part] += seconds
        self._counted += seconds

    def figures(self) -> dict[str, float]:
        """Sums so far, by the names of ``FIGURES``."""
        rest = self._clock() - self._began - self._counted
        return {
            f"{PREFIX}{part}{SUFFIX}": seconds + (rest if part == "step" else 0.0)
            for part, seconds in self._sums.items()
        }
