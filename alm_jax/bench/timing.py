"""Timing on a shared machine: the candidates take turns, so that disturbances affect all of them.

Compare minima, or better the ratios of neighbouring runs; on a busy machine a median measures the machine.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Timing:
    """Runs of one candidate, in order."""

    seconds: tuple[float, ...]
    """Wall time of each run, seconds."""
    cpu_seconds: tuple[float, ...]
    """CPU time of each run, all threads of the process together, seconds."""

    @property
    def min(self) -> float:
        """Time of the fastest run, seconds."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """Median time of a run, seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Time of the slowest run minus the fastest, seconds."""
        return max(self.seconds) - min(self.seconds)

    def ratios(self, other: "Timing") -> tuple[float, ...]:
        """``other``'s time over this one's, for each pair of neighbouring runs: above 1 where this one is faster."""
        return tuple(theirs / own for own, theirs in zip(self.seconds, other.seconds, strict=True))


def take_turns(
    candidates: Mapping[str, Callable[[], Any]], *, repeats: int, warmups: int = 1, settling: int = 0
) -> dict[str, Timing]:
    """Runs every candidate ``repeats`` times, A B A B ..., after ``warmups`` rounds that are not counted.

    Each turn begins with ``settling`` runs that are not counted: a function that is called repeatedly, like a
    training step, then finds its memory as its own last call left it, not as the other candidate did. A candidate
    must return only when its work is done (``jax.block_until_ready``, ``torch.cuda.synchronize``).
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}, expected at least 1")
    walls: dict[str, list[float]] = {name: [] for name in candidates}
    cpus: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmups + repeats):
        for name, run in candidates.items():
            for _ in range(settling):
                run()
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if turn >= warmups:
                walls[name].append(wall)
                cpus[name].append(cpu)
    return {name: Timing(tuple(walls[name]), tuple(cpus[name])) for name in candidates}
