"""Which part of a mixture each row of each step comes from: a pure function of the step, with exact shares.

Parts have whole-number weights. After as many steps as the sum of the weights, a *period*, every part has given
exactly its share of the rows, and the schedule repeats; within a period the shares differ from step to step by at
most one row. So the position of a row in the endless stream of its part is known without computing the steps before
it, and each part has its own permutations and its own epochs.

The method is systematic sampling: the remainders that a step shares out lie end to end on a line, and a part gets one
more row for every whole number in its stretch. The line is shifted from step to step by multiples of the golden
section, which spreads every part's rows over the period and takes every shift once.
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
    """The rows of the steps of one period of W steps; step s equals step s % W."""

    part: Int[np.ndarray, " R"]
    """Part that each row comes from, the rows of all steps one after the other."""
    offset: Int[np.ndarray, " R"]
    """Number of earlier rows of the same part in the period."""
    first_row: Int[np.ndarray, " W1"]
    """Start of each step's rows, and the end of the last."""
    rows_per_period: Int[np.ndarray, " K"]
    """Number of rows that each part gives in a period."""

    def __len__(self) -> int:
        return len(self.first_row) - 1

    def rows_before(self, step: int) -> Int[np.ndarray, " K"]:
        """Returns the number of rows that each part has given before a step."""
        periods, place = divmod(step, len(self))
        given = np.bincount(self.part[: self.first_row[place]], minlength=len(self.rows_per_period))
        return periods * self.rows_per_period + given


def share_out(weights: Sequence[int], num_rows: int) -> Int[np.ndarray, "W K"]:
    """Returns the number of rows that each of K parts gives in each step of a period, W = the sum of the weights in
    lowest terms.

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


def schedule(weights: Sequence[int], batch_sizes: Sequence[int], mode: Literal["rows", "turns"]) -> Schedule:
    """Makes every step's rows: ``rows`` divides each batch among the parts, evenly mixed; ``turns`` assigns whole
    batches.

    ``batch_sizes`` is the size of a batch of each part; with ``rows`` they are all the same.
    """
    if mode == "rows":
        (size,) = set(batch_sizes)
        counts = share_out(weights, size)
    else:
        counts = share_out(weights, 1) * np.array(batch_sizes, np.int64)
    before = np.cumsum(counts, axis=0) - counts
    part, offset = [], []
    for count, first in zip(counts, before, strict=True):
        number = np.repeat(np.arange(len(count)), count)
        rank = np.concatenate([np.arange(n) for n in count])
        order = np.argsort((rank + 0.5) / count[number], kind="stable")
        part.append(number[order])
        offset.append((first[number] + rank)[order])
    return Schedule(
        part=np.concatenate(part),
        offset=np.concatenate(offset),
        first_row=np.concatenate([[0], np.cumsum(counts.sum(axis=1))]),
        rows_per_period=counts.sum(axis=0),
    )


def whole_weights(shares: Sequence[float], total: int = 1000) -> tuple[int, ...]:
    """Returns whole numbers in approximately these proportions, each at least one, with a sum of about ``total``."""
    scale = total / sum(shares)
    return tuple(max(1, round(share * scale)) for share in shares)
