"""Which part of a mixture each row of each step is from: a pure function of the step, with exact shares.

Parts have whole weights. After as many steps as the weights sum to, a *period*, every part has given exactly its share
of the rows, and then it begins again; within a period the shares differ from step to step by at most one row. So the
position of a row in the endless stream of its part is known without looking at the steps before it, and each part has
its own permutations and its own epochs.

Systematic sampling: the remainders that a step shares out lie end to end on a line, and a part gets one more row for
every whole number in its stretch. The line is shifted from step to step by steps of the golden section, which spreads
every part's rows over the period, and takes every shift once.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int

_GOLDEN_SECTION = (math.sqrt(5) - 1) / 2


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Schedule:
    """The rows of the steps of one period; step s is like step s % W."""

    part: Int[np.ndarray, "W B"]
    """Which part each row is from."""
    offset: Int[np.ndarray, "W B"]
    """How many rows of that part come before it in the period."""
    rows_per_period: Int[np.ndarray, " K"]
    """Rows that each part gives in a period."""


def share_out(weights: Sequence[int], num_rows: int) -> Int[np.ndarray, "W K"]:
    """Rows that each of K parts gives in each step of a period, W = the sum of the weights in lowest terms.

    They sum to ``num_rows`` in a step and to ``num_rows`` times the weight in a period, and each is its share rounded
    up or down.
    """
    lowest = np.array(weights, np.int64) // math.gcd(*weights)
    period = int(lowest.sum())
    whole, rest = np.divmod(num_rows * lowest, period)
    edges = np.concatenate([[0], np.cumsum(rest)])
    stride = min(
        (n for n in range(1, period + 1) if math.gcd(n, period) == 1),
        key=lambda n: abs(n - _GOLDEN_SECTION * period),
    )
    shifts = np.arange(period) * stride % period
    return whole + np.diff((edges + shifts[:, None]) // period, axis=1)


def schedule(weights: Sequence[int], batch_size: int, mode: Literal["rows", "turns"]) -> Schedule:
    """Every step's rows: ``rows`` shares out each batch, its parts evenly mixed; ``turns`` gives out whole batches."""
    counts = share_out(weights, batch_size) if mode == "rows" else share_out(weights, 1) * batch_size
    before = np.cumsum(counts, axis=0) - counts
    part, offset = [], []
    for count, first in zip(counts, before, strict=True):
        number = np.repeat(np.arange(len(count)), count)
        rank = np.concatenate([np.arange(n) for n in count])
        order = np.argsort((rank + 0.5) / count[number], kind="stable")
        part.append(number[order])
        offset.append((first[number] + rank)[order])
    return Schedule(part=np.stack(part), offset=np.stack(offset), rows_per_period=counts.sum(axis=0))
