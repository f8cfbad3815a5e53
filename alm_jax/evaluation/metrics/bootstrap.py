"""Bootstrap intervals: how far a figure would move on other recordings of the same kind.

Recordings are drawn with replacement, each with all its scores, since the captions of a recording are not independent;
the interval is that of the percentiles of the means (Efron and Tibshirani 1993, chapter 13).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

NUM_DRAWS = 1000
LEVEL = 0.95
_BLOCK = 1 << 22
"""Counts held at a time."""


class Scores(NamedTuple):
    """What a figure is the mean of."""

    values: Float[np.ndarray, " M"]
    """The scores; right or wrong is 1 or 0."""
    owner: Int[np.ndarray, " M"]
    """The place in the split of the recording that each score belongs to."""


def bootstrap_interval(
    scores: Scores, *, num_draws: int = NUM_DRAWS, level: float = LEVEL
) -> tuple[float, float]:
    """Lower and upper end of the mean's interval; the same scores give the same interval.

    Args:
        num_draws: Draws of as many recordings as there are.
        level: Share of the draws inside the interval.
    """
    _, group = np.unique(scores.owner, return_inverse=True)
    totals, counts = np.bincount(group, scores.values), np.bincount(group)
    num_groups = len(totals)
    generator = np.random.default_rng(0)
    means: list[np.ndarray] = []
    block = max(1, _BLOCK // num_groups)
    for start in range(0, num_draws, block):
        size = min(block, num_draws - start)
        times = generator.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=size)
        means.append((times @ totals) / (times @ counts))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
