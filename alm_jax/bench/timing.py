"""Timing on a shared machine: the candidates take turns, so that what disturbs one disturbs all.

Compare minima, or better the ratios of neighbouring runs; a median on a busy machine measures the machine.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Timing:
    """Runs of one candidate, in the order they were made."""

    seconds: tuple[float, ...]
    """Wall time of each."""
    cpu_seconds: tuple[float, ...]
    """CPU time of each, all threads of the process together."""

    @property
    def min(self) -> float:
        """The fastest run, seconds."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """The median run, seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """The slowest less the fastest run, seconds."""
        return max(self.seconds) - min(self.seconds)

    def ratios(self, other: "Timing") -> tuple[float, ...]:
        """``other``'s time over this one's, of each pair of neighbouring runs: above 1 where this is faster."""
        return tuple(theirs / own for own, theirs in zip(self.seconds, other.seconds, strict=True))


def take_turns(
    candidates: Mapping[str, Callable[[], Any]], *, repeats: int, warmups: int = 1, settling: int = 0
) -> dict[str, Timing]:
    """Runs every candidate ``repeats`` times, A B A B ..., after ``warmups`` rounds that are not counted.

    Each turn begins with ``settling`` runs that are not counted: what is called over and over, as a training step
    is, finds its memory as its own last call left it, not as the other candidate did. A candidate must return only
    when its work is done (``jax.block_until_ready``, ``torch.cuda.synchronize``).
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
