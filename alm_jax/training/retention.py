"""Which checkpoints stay beside the newest: one in so many steps, one in so many hours, those of the best figure."""

import heapq
from collections.abc import Mapping


def steps_that_stay(
    written: Mapping[int, float],
    losses: Mapping[int, float],
    *,
    every_steps: int = 0,
    every_hours: float = 0.0,
    best: int = 0,
) -> set[int]:
    """Steps among those of ``written``, step -> seconds at which it was saved, that are not to be deleted.

    Multiples of ``every_steps``; the first, and each saved ``every_hours`` or more after the last one that stays
    for this reason; the ``best`` steps of the lowest of ``losses``. 0 switches a reason off.
    """
    kept = {step for step in written if every_steps and step % every_steps == 0}
    last = float("-inf")
    for step, time_sec in sorted(written.items()) if every_hours else ():
        if time_sec >= last + every_hours * 3600:
            kept.add(step)
            last = time_sec
    measured = [step for step in written if step in losses]
    return kept | set(heapq.nsmallest(best, measured, key=lambda step: (losses[step], step)))
